//! Reaching a backend: an address after the other, until one has greeted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Backend, Connected, Security, Told, read_more};
use crate::imap::greeting::{Greeting, UnfitGreeting};
use crate::imap::peek::{self, Response, Status};
use crate::imap::responses::Responses;
use crate::imap::responses::printable;
use crate::net::dial::{self, AddressTurn};
use crate::net::proxy_protocol::{self, ProxiedClient};
use crate::net::stream::Stream;
use crate::net::tls::RefusedCertificate;
use crate::net::tls_stream::TlsStream;

/// What is kept of a response before STARTTLS, in bytes.
const LONGEST_BEFORE_TLS: usize = 4 * 1024;

/// Why an address is no good.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialFailure {
    /// This did not come in time.
    #[error("no {0} in time")]
    Late(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
    /// As [`Unfit`](super::ConnectError::Unfit).
    #[error("{}", UnfitGreeting(.0))]
    UnfitGreeting(Vec<u8>),
}

impl DialFailure {
    /// How much the backend has said of it. A BYE has a reason, and is for people.
    fn words(&self) -> u8 {
        match self {
            Self::UnfitGreeting(said) if Greeting::of(said) == Greeting::Bye => 2,
            Self::UnfitGreeting(_) => 1,
            Self::Late(_) | Self::Io(_) => 0,
        }
    }
}

impl Backend {
    /// The first of `addresses` that greets; or why the last one does not, unless another has said more
    /// about it.
    pub(super) async fn dial(
        &self,
        addresses: &[SocketAddr],
        deadline: Instant,
        client: Option<ProxiedClient>,
        longest: usize,
    ) -> Result<Connected, DialFailure> {
        let mut failure = DialFailure::Io(dial::no_address());
        for AddressTurn { address, limit, is_last } in dial::turns(addresses, deadline) {
            let mut missing = "TCP connection";
            let open = self.open(address, client, longest, &mut missing);
            let failed = match tokio::time::timeout(limit, open).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(failed)) => failed,
                Err(_) => DialFailure::Late(missing),
            };
            if !is_last {
                let why = failed.to_string();
                tracing::info!(
                    target: "mailchime::net::next_address_tried",
                    backend = self.name(), %address, why,
                    "could not connect to an address of the backend; mailchime tries the next one"
                );
            }
            if failed.words() >= failure.words() {
                failure = failed;
            }
        }
        Err(failure)
    }

    /// `missing` is, at each moment, what is waited for.
    async fn open(
        &self,
        address: SocketAddr,
        client: Option<ProxiedClient>,
        longest: usize,
        missing: &mut &'static str,
    ) -> Result<Connected, DialFailure> {
        const GREETING: &str = "greeting";
        const HANDSHAKE: &str = "TLS handshake";
        let mut stream = dial::address(address).await?;
        if self.way.proxy_protocol {
            stream.write_all(&proxy_protocol::header_for(client)).await?;
        }
        let (mut stream, greeted) = match &self.way.security {
            Security::None => (Stream::Plain(stream), false),
            Security::Implicit(config, name) => {
                *missing = HANDSHAKE;
                (secure(stream, config, name).await?, false)
            }
            Security::StartTls(config, name) => {
                *missing = GREETING;
                let mut plain = Stream::Plain(stream);
                let heard = greeting(&mut plain, longest).await?;
                *missing = "answer to STARTTLS";
                start_tls(&mut plain, heard).await?;
                let Stream::Plain(stream) = plain else {
                    return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
                };
                *missing = HANDSHAKE;
                (secure(stream, config, name).await?, true)
            }
        };
        if greeted {
            return Ok(Connected { stream, heard: Vec::new(), greeted });
        }
        *missing = GREETING;
        let heard = greeting(&mut stream, longest).await?;
        Ok(Connected { stream, heard, greeted })
    }
}

/// Begins TLS on a connection, whose certificate must be for this name.
async fn secure(
    stream: TcpStream,
    config: &Arc<ClientConfig>,
    name: &ServerName<'static>,
) -> io::Result<Stream> {
    let secured = TlsStream::connect(stream, config, name.clone()).await;
    Ok(Stream::Client(Box::new(secured.map_err(RefusedCertificate::instead_of)?)))
}

/// Reads a backend's greeting, which is at most `longest` bytes with the blank lines before it. Returns it,
/// and what came behind it.
async fn greeting(stream: &mut Stream, longest: usize) -> Result<Vec<u8>, DialFailure> {
    let (mut heard, mut left) = (Responses::new(Vec::new(), usize::MAX), longest);
    let unfit = |mut said: Vec<u8>| {
        // No more than shows that it is too long.
        said.truncate(longest + 1);
        DialFailure::UnfitGreeting(said)
    };
    loop {
        while !heard.advance() {
            if heard.rest().len() > left {
                return Err(unfit(heard.into_rest()));
            }
            read_more(stream, heard.more()).await.map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    io::Error::new(error.kind(), "it hung up before it greeted")
                }
                _ => error,
            })?;
        }
        let response = heard.current();
        let fits = response.len() <= left;
        left = left.saturating_sub(response.len());
        match Greeting::of(response) {
            Greeting::Blank if fits => {}
            Greeting::Ready if fits => return Ok([response, heard.rest()].concat()),
            _ => return Err(unfit(response.to_vec())),
        }
    }
}

/// Asks for TLS behind the greeting, with which `heard` begins. Bytes behind the answer came without
/// protection: they end the connection (CVE-2011-0411 and its kin).
async fn start_tls(stream: &mut Stream, heard: Vec<u8>) -> io::Result<()> {
    let mut told = Told::new(heard, LONGEST_BEFORE_TLS);
    let mut asked = false;
    loop {
        let (line, _) = told.next(stream).await?;
        match (asked, peek::response(line)) {
            (false, _) => {
                asked = true;
                stream.write_all(b"m0 STARTTLS\r\n").await?;
                stream.flush().await?;
            }
            (true, Some(Response::Status { tag: Some(b"m0"), status: Status::Ok, .. })) => {
                if told.responses.rest().is_empty() {
                    return Ok(());
                }
                return Err(io::Error::other("the backend sent more before TLS than it should"));
            }
            (true, Some(Response::Status { tag: None, status: Status::Ok, .. }))
            | (true, Some(Response::Capability)) => {}
            // Nothing that is needed.
            (true, Some(Response::Data)) if line.starts_with(b"* ") => {}
            _ => {
                let said = printable(line);
                return Err(io::Error::other(format!("the backend refuses STARTTLS: {said}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::{self, BackendTls, TrustConfig};
    use crate::demo::pki::Pki;
    use crate::net::proxy_protocol::{Addresses, ClientTls};
    use crate::net::resolve::NameResolver;

    /// For what is expected to come about at once.
    const LIMIT: Duration = Duration::from_secs(60);

    const READY: &[u8] = b"* OK ready\r\n";

    fn backend(tls: BackendTls) -> config::BackendConfig {
        config::BackendConfig::new("localhost", 1, tls)
    }

    fn built(config: &config::BackendConfig) -> Backend {
        Backend::new(config, LIMIT, &NameResolver::default()).unwrap()
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn a_dead_address_takes_its_share_of_the_time_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::generate(None).unwrap();
        pki.write_to(folder.path()).unwrap();
        let ca = Some(folder.path().join("ca.pem"));
        let trust = TrustConfig { ca, server_name: "localhost".into() };
        let backend = built(&backend(BackendTls::Implicit(trust)));

        // The system accepts for one that never does; the one behind it shakes hands and greets.
        let (_silent, dead) = listener().await;
        let (lively, alive) = listener().await;
        let acceptor = tokio_rustls::TlsAcceptor::from(pki.server_config().unwrap());
        tokio::spawn(async move {
            let (stream, _) = lively.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            stream.write_all(READY).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await
        });
        let started = Instant::now();
        let deadline = started + Duration::from_secs(9);
        let connected = backend.dial(&[dead, dead, alive], deadline, None, 1024).await.unwrap();
        assert!(matches!(connected.stream, Stream::Client(_)));
        let taken = started.elapsed();
        let thirds = Duration::from_millis(5900)..Duration::from_secs(9);
        assert!(thirds.contains(&taken), "{taken:?}: both dead ones have a third");

        let soon = Instant::now() + Duration::from_millis(1);
        let failure = backend.dial(&[dead], soon, None, 1024).await;
        assert!(matches!(failure, Err(DialFailure::Late(_))), "{failure:?}");
    }

    #[tokio::test]
    async fn an_address_that_refuses_takes_no_time() {
        let (closed, refusing) = listener().await;
        drop(closed);
        let listening = greets(READY).await;
        let backend = built(&backend(BackendTls::None));
        let deadline = Instant::now() + LIMIT;
        let failure = backend.dial(&[refusing], deadline, None, 1024).await.unwrap_err();
        let DialFailure::Io(failure) = failure else { panic!("{failure:?}") };
        assert_eq!(failure.kind(), io::ErrorKind::ConnectionRefused);
        backend.dial(&[refusing, listening], deadline, None, 1024).await.unwrap();
        let failure = backend.dial(&[], deadline, None, 1024).await.unwrap_err();
        assert_eq!(failure.to_string(), "the name has no address");
    }

    /// The address of a server that says this on each connection, and waits.
    async fn greets(words: &'static [u8]) -> SocketAddr {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(words).await.unwrap();
                open.push(stream);
            }
        });
        address
    }

    #[tokio::test]
    async fn a_greeting_is_heard_with_what_is_behind_it_or_tells_why_not() {
        let backend = built(&backend(BackendTls::None));
        let deadline = Instant::now() + LIMIT;
        let connected = async |words| {
            backend.dial(&[greets(words).await], deadline, None, 64).await.map(|it| it.heard)
        };
        assert_eq!(connected(b"\r\n \n* OK x\r\n* OK y").await.unwrap(), b"* OK x\r\n* OK y");
        for (words, why) in [
            (&b"* BYE no\r\n"[..], "the backend greets with BYE: \"* BYE no\""),
            (
                b"* PREAUTH x\r\n",
                "a backend that greets with PREAUTH cannot tell users apart: \"* PREAUTH x\"",
            ),
            (b"220 x\r\n", "no IMAP greeting: \"220 x\""),
            (&[b'\n'; 100], "the greeting is too long: \"\""),
        ] {
            assert_eq!(connected(words).await.unwrap_err().to_string(), why);
        }
        for long in [
            &b"* OK 0123456789012345678901234567890123456789012345678901234567890123\r\n"[..],
            b"* OK 01234567890123456789012345678901234567890123456789012345678901234",
        ] {
            let DialFailure::UnfitGreeting(said) = connected(long).await.unwrap_err() else {
                panic!()
            };
            assert_eq!(said, long[..65]);
        }
    }

    /// Whatever their order, a BYE tells more than another word, and any word more than none.
    #[tokio::test]
    async fn the_reason_of_one_address_is_reported_although_others_give_less() {
        let (closed, refusing) = listener().await;
        drop(closed);
        let (bye, other) = (greets(b"* BYE no\r\n").await, greets(b"220 x\r\n").await);
        let backend = built(&backend(BackendTls::None));
        for addresses in [[bye, other, refusing], [refusing, bye, other], [other, refusing, bye]] {
            let failure = backend.dial(&addresses, Instant::now() + LIMIT, None, 1024).await;
            assert!(failure.unwrap_err().to_string().contains("BYE"), "{addresses:?}");
        }
    }

    #[tokio::test]
    async fn a_probe_skips_what_it_does_not_need() {
        let (listening, address) = listener().await;
        let mut config = backend(BackendTls::None);
        (config.host, config.port) = (address.ip().to_string(), address.port());
        let backend = built(&config);
        let played = async {
            let (mut stream, _) = listening.accept().await.unwrap();
            stream.write_all(b"* OK hello\r\n").await.unwrap();
            let mut heard = [0; 15];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"m1 CAPABILITY\r\n");
            let news = [b"* X-NEWS {100000}\r\n", &[b'\n'; 100_000][..], b"\r\n"].concat();
            stream.write_all(&news).await.unwrap();
            stream.write_all(b"* CAPABILITY IMAP4rev1 IDLE\r\nm1 OK done\r\n").await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        let (probed, ()) = tokio::join!(backend.probe(LIMIT, 16 * 1024), played);
        probed.unwrap();
        assert!(backend.seen().is_some_and(|seen| seen.has("IDLE")));
    }

    #[tokio::test]
    async fn the_header_comes_before_anything_else() {
        let addresses = Addresses {
            source: "192.0.2.1:1234".parse().unwrap(),
            destination: "198.51.100.1:993".parse().unwrap(),
        };
        let client = ProxiedClient { addresses, tls: ClientTls::Version("TLSv1.3") };
        let mut config = backend(BackendTls::None);
        config.proxy_protocol = true;
        for told in [Some(client), None] {
            let (listening, address) = listener().await;
            let deadline = Instant::now() + LIMIT;
            let backend = built(&config);
            let dialling = async {
                drop(backend.dial(&[address], deadline, told, 1024).await.unwrap());
            };
            let greeting = async {
                let (mut stream, _) = listening.accept().await.unwrap();
                stream.write_all(READY).await.unwrap();
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).await.unwrap();
                heard
            };
            let ((), heard) = tokio::join!(dialling, greeting);
            let mut rest = &heard[..];
            let read = proxy_protocol::read(&mut rest).await.unwrap();
            assert_eq!(read, told.map(|client| client.addresses));
            assert_eq!(rest, b"");
        }
    }
}
