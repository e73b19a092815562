//! A configuration that is read again: new sessions go by it, the others go on.

use std::net::SocketAddr;
use std::sync::Arc;

use mailchime::config::{ListenerTls, PublicUrl, RelayedLogins};
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::backends::route;
use super::tls::{handshake, sni, trusting, write_certificate};
use crate::support::in_process::{InProcess, demo_backend, logins, loopback, plain, register};
use crate::support::line::Line;
use crate::support::{limited, listener, soon};

#[tokio::test]
async fn new_sessions_go_by_it_and_the_others_go_on() {
    limited(async {
        let (old, new) =
            (demo_backend(&["a@b.example"]).await, demo_backend(&["a@b.example"]).await);
        let mut world = InProcess::start(old.address(), |_| {}).await;
        let mut before = world.session("a@b.example").await;

        let folder = tempfile::tempdir().unwrap();
        write_certificate(folder.path(), "new", &["new.example"]);
        let mut config = world.config.clone();
        config.tls.sni.push(sni(folder.path(), "new", "new.example"));
        config.routes.push(route("b.example", &new));
        config.limits.sessions_per_ip = 3;
        world.mailchime.reload(&config).await.unwrap();

        let trusted = Arc::new(trusting(&[&folder.path().join("new.pem")], &[&TLS13]));
        assert!(handshake(world.address(), "new.example", &trusted).await.is_some());
        assert!(before.command("n NOOP").await.starts_with("n OK"));
        let mut after = world.session("a@b.example").await;
        assert_eq!((logins(&old, "a@b.example"), logins(&new, "a@b.example")), (1, 1));
        assert!(after.command("n NOOP").await.starts_with("n OK"));
        // The sessions that are there count, whenever they began.
        let _third = world.session("a@b.example").await;
        let refusal = world.client().await.log_in("a@b.example", "secret").await;
        assert_eq!(refusal, "in NO [LIMIT] Too many sessions from your address");
    })
    .await;
}

#[tokio::test]
async fn the_api_shows_the_certificates_of_the_reload_and_has_their_names() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        let mut world = InProcess::start(backend.address(), |config| {
            config.api.address = Some(loopback());
            config.api.public_url = Some(PublicUrl::new("push.example", 443));
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        write_certificate(folder.path(), "new", &["new.example"]);
        let trusted = Arc::new(trusting(&[&folder.path().join("new.pem")], &[&TLS13]));
        let address = world.mailchime.api.expect("[api] is on");
        let trusts = async || {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("new.example").unwrap();
            let connector = TlsConnector::from(Arc::clone(&trusted));
            soon("the end of the handshake", connector.connect(name, stream)).await.is_ok()
        };
        let anybody =
            Arc::new(trusting(&[&world.file("ca.pem"), &folder.path().join("new.pem")], &[&TLS13]));
        let answered = async |shown: &'static str| {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from(shown).unwrap();
            let mut stream =
                TlsConnector::from(Arc::clone(&anybody)).connect(name, stream).await.unwrap();
            let request =
                b"GET /healthz HTTP/1.1\r\nHost: new.example\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.unwrap();
            line
        };
        assert!(!trusts().await);
        assert!(answered("localhost").await.starts_with("HTTP/1.1 421 "));

        let mut config = world.config.clone();
        config.tls.sni.push(sni(folder.path(), "new", "new.example"));
        world.mailchime.reload(&config).await.unwrap();
        assert!(trusts().await);
        let answer = answered("new.example").await;
        assert!(answer.starts_with("HTTP/1.1 ") && !answer.contains("421"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn mechanisms_that_hide_the_password_pass_from_the_reload_on() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        backend.behave(|it| it.capabilities.push("AUTH=SCRAM-SHA-256".to_owned()));
        let mut world = InProcess::start(backend.address(), |_| {}).await;
        // mailchime has seen by then what the backend offers.
        world.session("alice").await;
        assert!(!capabilities(&world).await.contains("SCRAM"));

        let mut config = world.config.clone();
        config.auth.relay = RelayedLogins::Always;
        world.mailchime.reload(&config).await.unwrap();
        assert!(capabilities(&world).await.contains(" AUTH=SCRAM-SHA-256"));

        config.auth.relay = RelayedLogins::Never;
        world.mailchime.reload(&config).await.unwrap();
        assert!(!capabilities(&world).await.contains("SCRAM"));
    })
    .await;
}

/// What a client is offered before its login.
async fn capabilities(world: &InProcess) -> String {
    let mut client = world.client().await;
    client.send("c CAPABILITY\r\n").await;
    client.line().await
}

#[tokio::test]
async fn listeners_come_and_go_and_change() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        // An address that a configuration can name again, and that no other test uses.
        let fixed = TcpListener::bind("127.0.0.77:0").await.unwrap().local_addr().unwrap();
        let mut world = InProcess::start(backend.address(), |config| {
            config.listeners[0].address = fixed;
        })
        .await;
        let mut before = world.session("alice").await;

        // One more.
        let mut config = world.config.clone();
        config.listeners.push(config.listeners[0].clone());
        config.listeners[1].address = ([127, 0, 0, 1], 0).into();
        config.listeners[1].tls = ListenerTls::StartTls;
        world.mailchime.reload(&config).await.unwrap();
        assert_eq!(world.address(), fixed);
        let added = world.mailchime.addresses[1];
        assert!(greeting(added).await.contains("STARTTLS"));
        world.session("alice").await;

        // The first one changes its ways without losing its socket.
        config.listeners[0].tls = ListenerTls::StartTls;
        world.mailchime.reload(&config).await.unwrap();
        assert!(greeting(fixed).await.contains("STARTTLS"));
        assert_eq!(world.mailchime.addresses, [fixed, added]);

        // The first one goes, its session stays.
        config.listeners.remove(0);
        world.mailchime.reload(&config).await.unwrap();
        assert_eq!(world.mailchime.addresses, [added]);
        let refused = async {
            // The port is closed by a task that has yet to hear of it.
            while TcpStream::connect(fixed).await.is_ok() {}
        };
        soon("the end of the listener", refused).await;
        assert!(before.command("n NOOP").await.starts_with("n OK"));
        assert!(greeting(added).await.contains("STARTTLS"));

        // And comes back.
        config.listeners.push(world.config.listeners[0].clone());
        world.mailchime.reload(&config).await.unwrap();
        assert!(before.command("n NOOP").await.starts_with("n OK"));
        let again = TcpStream::connect(fixed).await.unwrap();
        assert!(world.greeted(again).await.is_some());
        world.mailchime.stop().await;
        assert!(before.rest().await.starts_with("* BYE "), "the end finds every session");
    })
    .await;
}

async fn greeting(address: SocketAddr) -> String {
    Line::of(TcpStream::connect(address).await.unwrap()).line().await
}

#[tokio::test]
async fn one_that_cannot_be_used_changes_nothing() {
    limited(async {
        let (old, new) = (demo_backend(&["alice"]).await, demo_backend(&["alice"]).await);
        let mut world = InProcess::start(old.address(), |_| {}).await;
        let occupied = listener().await;
        let broken = world.file("broken.pem");
        std::fs::write(&broken, "no certificate").unwrap();
        // Each is wrong in one thing, and right in another that must not take effect.
        let mut config = world.config.clone();
        config.backend = plain(new.address());
        let mut bad_certificate = config.clone();
        bad_certificate.tls.certificates[0].certificate = broken.clone();
        let mut bad_ca = config.clone();
        let trust = mailchime::config::TrustConfig { ca: Some(broken), server_name: "x".into() };
        bad_ca.backend.tls = mailchime::config::BackendTls::Implicit(trust);
        let mut bad_address = config.clone();
        bad_address.listeners.push(config.listeners[0].clone());
        bad_address.listeners[1].address = occupied.local_addr().unwrap();
        for (config, expected) in [
            (bad_certificate, "[tls] certificate: "),
            (bad_ca, "[backend] ca: "),
            (bad_address, "cannot listen: "),
        ] {
            let error = world.mailchime.reload(&config).await.unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
            world.session("alice").await;
        }
        assert_eq!((logins(&old, "alice"), logins(&new, "alice")), (3, 0));
        assert_eq!(new.counters().accepted, 0);
        world.mailchime.reload(&config).await.unwrap();
        let asked = new.wait_until(|counters| counters.commands.contains_key("LOGOUT"));
        soon("who asks what it offers", asked).await;
        world.session("alice").await;
        assert_eq!((logins(&old, "alice"), logins(&new, "alice")), (3, 1));
    })
    .await;
}

#[tokio::test]
async fn a_watcher_goes_to_where_its_account_registered_anew() {
    limited(async {
        let user = "a@b.example";
        let (old, new) = (demo_backend(&[user]).await, demo_backend(&[user]).await);
        let mut world = InProcess::pushing(old.address(), |_| {}).await;
        assert!(world.session(user).await.command(&register()).await.starts_with("r OK"));
        soon("a watcher", old.wait_until(|counters| counters.idling == 1)).await;

        // What does not concern it leaves it alone.
        let mut config = world.config.clone();
        config.routes.push(route("c.example", &new));
        world.mailchime.reload(&config).await.unwrap();
        config.routes.push(route("b.example", &new));
        world.mailchime.reload(&config).await.unwrap();
        soon("its farewell", old.wait_until(|counters| counters.connections == 0)).await;
        assert_eq!(logins(&old, user), 2, "the phone and the watcher");
        assert_eq!(logins(&new, user), 0, "the password was not accepted there yet");
        assert!(world.session(user).await.command(&register()).await.starts_with("r OK"));
        soon("the watcher there", new.wait_until(|counters| counters.idling == 1)).await;
        new.deliver(user, "INBOX", "Subject: hello\r\n\r\nHi\r\n").unwrap();
        soon("a push", world.apns.next()).await;
        world.mailchime.stop().await;
    })
    .await;
}
