//! What counts as a guess and what does not, where a backend refuses a login without a tag or says
//! nothing at all; and that the client gets its answer in any case.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::support::limited;
use crate::support::line::Client;
use crate::support::listener;
use crate::support::world::{LOGIN, PASSWORD, Server, World};

/// What the backend does about a wrong password: it says this, with its tag in place of `#`.
#[derive(Clone, Copy)]
enum Manner {
    /// And hangs up.
    Leave(&'static str),
    /// And nothing more.
    Stay(&'static str),
    /// Not before [`Backend::speak`], and hangs up.
    Later(&'static str),
}

/// A backend that takes the right password.
struct Backend {
    address: SocketAddr,
    manner: watch::Sender<Manner>,
    /// How often those were told to speak that do it later.
    spoken: watch::Sender<u32>,
}

impl Backend {
    async fn start() -> Self {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let (manner, what) = watch::channel(Manner::Leave(""));
        let (spoken, speaks) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, what.clone(), speaks.clone()));
            }
        });
        Self { address, manner, spoken }
    }

    fn does(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    fn speak(&self) {
        self.spoken.send_modify(|times| *times += 1);
    }
}

async fn serve(
    stream: TcpStream,
    manner: watch::Receiver<Manner>,
    mut speaks: watch::Receiver<u32>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"* OK [CAPABILITY IMAP4rev1] ready\r\n").await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let tag = line.split(' ').next().unwrap_or_default().to_owned();
        let wrong = line.contains("LOGIN") && !line.contains(PASSWORD);
        line.clear();
        if !wrong {
            stream.write_all(format!("{tag} OK done\r\n").as_bytes()).await?;
            continue;
        }
        let manner = *manner.borrow();
        let (Manner::Leave(text) | Manner::Stay(text) | Manner::Later(text)) = manner;
        if let Manner::Later(_) = manner {
            let before = *speaks.borrow_and_update();
            let _ = speaks.wait_for(|times| *times > before).await;
        }
        stream.write_all(text.replace('#', &tag).as_bytes()).await?;
        if let Manner::Leave(_) | Manner::Later(_) = manner {
            return stream.shutdown().await;
        }
    }
    Ok(())
}

async fn world(backend: &Backend, limits: &str) -> (World, Server) {
    let world = World::new().await;
    world.in_front_of(backend.address);
    let limits = format!("[limits]\nfailure_delay = \"1ms\"\n{limits}\n[log]");
    world.configure("[log]", &limits);
    let server = world.serve().await;
    (world, server)
}

async fn guess(client: &mut Client) -> String {
    client.send(b"l LOGIN mallory guess\r\n").await;
    client.until("l ").await
}

const NOT_REACHED: &str = "l NO [UNAVAILABLE] The mail server cannot be reached, try again later";

#[tokio::test]
async fn a_refusal_without_a_tag_counts_by_its_code() {
    limited(async {
        let backend = Backend::start().await;
        let limits = "login_failures_per_minute = 3\nanswer_timeout = \"2s\"";
        let (world, mut server) = world(&backend, limits).await;
        for (manner, answer) in [
            (Manner::Leave("* BYE [UNAVAILABLE] later\r\n"), "l NO [UNAVAILABLE] later"),
            (Manner::Leave("* NO [LIMIT] too many\r\n"), "l NO [LIMIT] too many"),
            (
                Manner::Leave("* BYE Temporary problem\r\n"),
                "l NO [UNAVAILABLE] The mail server says: Temporary problem",
            ),
            (Manner::Stay("* NO [UNAVAILABLE] x\r\n# NO Login failed\r\n"), "l NO Login failed"),
            (Manner::Stay("* BAD [SERVERBUG] oops\r\n"), "l BAD [SERVERBUG] oops"),
        ] {
            backend.does(manner);
            let mut client = world.client(&server).await;
            for _ in 0..4 {
                assert_eq!(guess(&mut client).await, answer);
            }
            // And on the same connection.
            client.send(format!("l LOGIN {LOGIN} \"{PASSWORD}\"\r\n").as_bytes()).await;
            assert!(client.until("l ").await.starts_with("l OK"), "{answer}");
        }
        assert_eq!(server.warned("login refused").await, 0);

        backend.does(Manner::Leave("* BYE [AUTHENTICATIONFAILED] never\r\n"));
        let mut client = world.client(&server).await;
        for _ in 0..3 {
            assert_eq!(guess(&mut client).await, "l NO [AUTHENTICATIONFAILED] never");
            assert_eq!(server.logged("login refused").await["account"], "mallory");
        }
        let answer = guess(&mut client).await;
        assert!(answer.starts_with("l NO [LIMIT] Too many failed logins"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_refusal_in_words_without_a_tag_or_a_code_is_a_guess() {
    limited(async {
        for (said, answer) in [
            ("* BYE Login failed\r\n", "l NO Login failed"),
            ("* NO Invalid user name or password\r\n", "l NO Invalid user name or password"),
        ] {
            let backend = Backend::start().await;
            let (world, mut server) = world(&backend, "login_failures_per_minute = 3").await;
            backend.does(Manner::Leave(said));
            let mut client = world.client(&server).await;
            for _ in 0..3 {
                assert_eq!(guess(&mut client).await, answer);
                assert_eq!(server.logged("login refused").await["account"], "mallory");
            }
            let answer = guess(&mut client).await;
            assert!(answer.starts_with("l NO [LIMIT] Too many failed logins"), "{answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_login_that_the_backend_does_not_answer_is_answered_in_time() {
    limited(async {
        let backend = Backend::start().await;
        let limits = "login_failures_per_minute = 3\nanswer_timeout = \"2s\"";
        let (world, mut server) = world(&backend, limits).await;
        // It hangs up in the end: nobody has guessed.
        for _ in 0..5 {
            backend.does(Manner::Later(""));
            let mut client = world.client(&server).await;
            assert_eq!(guess(&mut client).await, NOT_REACHED);
            assert!(client.rest().await.starts_with("* BYE [UNAVAILABLE] "));
            backend.speak();
        }
        assert_eq!(server.warned("login refused").await, 0);
        assert_eq!(
            server.warned("the backend did not answer a login; see the backend's log").await,
            1
        );
        // It refuses in the end, which counts.
        for _ in 0..3 {
            backend.does(Manner::Later("# NO [AUTHENTICATIONFAILED] never\r\n"));
            let mut client = world.client(&server).await;
            assert_eq!(guess(&mut client).await, NOT_REACHED);
            client.rest().await;
            backend.speak();
            server.logged("login refused").await;
        }
        let answer = guess(&mut world.client(&server).await).await;
        assert!(answer.starts_with("l NO [LIMIT] Too many failed logins"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_login_gets_an_answer_before_the_time_for_it_is_over() {
    limited(async {
        let backend = Backend::start().await;
        backend.does(Manner::Stay(""));
        let limits = "login_timeout = \"6s\"\nanswer_timeout = \"10m\"";
        let (world, server) = world(&backend, limits).await;
        let mut client = world.client(&server).await;
        assert_eq!(guess(&mut client).await, NOT_REACHED);
        assert_eq!(client.rest().await, "* BYE No login in time\r\n");
    })
    .await;
}
