//! The IMAP server behind: connecting to it, and logging in there.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::stream::{Stream, tune};
use crate::imap::capability::Capabilities;
use crate::imap::literal::End;
use crate::imap::login::{Attempt, Login, Options, Outcome, end_of_status_or_response, printable};
use crate::imap::peek::{self, Response, Status};
use crate::model::Credentials;

/// A backend and what is known of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: String,
    port: u16,
    tls: Tls,
    connect_timeout: Duration,
    /// What it was last seen to offer before login.
    seen: Mutex<Option<Arc<Capabilities>>>,
}

/// How connections to a backend are protected. The name is the one that its certificate must be
/// for.
#[derive(Clone, Debug)]
pub enum Tls {
    None,
    StartTls(Arc<ClientConfig>, ServerName<'static>),
    Implicit(Arc<ClientConfig>, ServerName<'static>),
}

/// A connection on which nobody is logged in.
#[derive(Debug)]
pub struct Connected {
    pub stream: Stream,
    /// The greeting has been read, before STARTTLS; there is no other.
    pub greeted: bool,
}

/// Why there is no connection to a backend: an operator's or the network's matter, and temporary.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{backend}: no connection within {limit:?}")]
    Timeout { backend: String, limit: Duration },
    #[error("{backend}: {source}")]
    Io { backend: String, source: io::Error },
}

/// A connection on which a user is logged in.
#[derive(Debug)]
pub struct LoggedIn {
    pub stream: Stream,
    /// What the backend sent behind its answer.
    pub input: Vec<u8>,
    /// As told with the login, if it was.
    pub capabilities: Option<Capabilities>,
}

/// Why a login did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The tagged NO or BAD behind its tag: `code` and text are the backend's.
    #[error("refused: {}", crate::imap::login::printable(answer))]
    Refused { answer: Vec<u8> },
    #[error("no answer: {0}")]
    Unavailable(String),
}

impl Backend {
    /// The timeout covers address look-up, TCP and TLS together.
    pub fn new(host: impl Into<String>, port: u16, tls: Tls, connect_timeout: Duration) -> Self {
        let seen = Mutex::new(None);
        Self(Arc::new(Inner { host: host.into(), port, tls, connect_timeout, seen }))
    }

    /// `host:port`, for logs.
    pub fn name(&self) -> String {
        format!("{}:{}", self.0.host, self.0.port)
    }

    /// What it was last seen to offer before login.
    pub fn seen(&self) -> Option<Arc<Capabilities>> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers what it was just seen to offer before login.
    pub fn saw(&self, offered: Capabilities) {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.as_deref() != Some(&offered) {
            *seen = Some(Arc::new(offered));
        }
    }

    /// Opens a connection, TLS included; each address of the host is tried in turn.
    pub async fn connect(&self) -> Result<Connected, ConnectError> {
        let limit = self.0.connect_timeout;
        match tokio::time::timeout(limit, self.dial()).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(ConnectError::Io { backend: self.name(), source }),
            Err(_) => Err(ConnectError::Timeout { backend: self.name(), limit }),
        }
    }

    /// Connects and logs in; the whole takes at most `limit` beyond connecting. No response of the
    /// backend may be longer than `longest` bytes.
    pub async fn log_in(
        &self,
        credentials: Credentials,
        limit: Duration,
        longest: usize,
    ) -> Result<LoggedIn, LoginError> {
        let Connected { stream, greeted } = self.connect().await?;
        let id = Some(b"(\"name\" \"mailchime\")".to_vec());
        let options = Options { prefer_login: false, greeted, id, limit: longest };
        let dialogue = dialogue(stream, Login::new(Attempt::Credentials(credentials), options));
        match tokio::time::timeout(limit, dialogue).await {
            Ok(result) => {
                let (offered, result) = result?;
                self.saw(offered);
                result
            }
            Err(_) => Err(LoginError::Unavailable(format!("no answer within {limit:?}"))),
        }
    }

    /// Asks what the backend offers before login, without logging in. `limit` and `longest` are as
    /// for [`Backend::log_in`].
    pub async fn probe(&self, limit: Duration, longest: usize) -> Result<(), LoginError> {
        let Connected { mut stream, greeted } = self.connect().await?;
        let offered = tokio::time::timeout(limit, offered(&mut stream, greeted, longest))
            .await
            .map_err(|_| LoginError::Unavailable(format!("no greeting within {limit:?}")))?
            .map_err(|why| LoginError::Unavailable(why.to_string()))?;
        self.saw(offered);
        // A farewell keeps the backend's log free of aborted logins; whether it arrives is no
        // matter.
        let _ = stream.write_all(b"m2 LOGOUT\r\n").await;
        let _ = stream.shutdown().await;
        Ok(())
    }

    async fn dial(&self) -> io::Result<Connected> {
        let Inner { host, port, tls, .. } = &*self.0;
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in tokio::net::lookup_host((host.as_str(), *port)).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    tune(&stream);
                    return secure(stream, tls).await;
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// Brings a fresh connection under TLS as configured.
async fn secure(stream: TcpStream, tls: &Tls) -> io::Result<Connected> {
    let (config, name, greeted) = match tls {
        Tls::None => return Ok(Connected { stream: Stream::Plain(stream), greeted: false }),
        Tls::Implicit(config, name) => (config, name, false),
        Tls::StartTls(config, name) => (config, name, true),
    };
    let mut stream = Stream::Plain(stream);
    if greeted {
        start_tls(&mut stream).await?;
    }
    let Stream::Plain(stream) = stream else { return Err(io::ErrorKind::InvalidInput.into()) };
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = connector.connect(name.clone(), stream).await?;
    Ok(Connected { stream: Stream::Client(Box::new(stream)), greeted })
}

/// Reads the greeting and asks for TLS. Bytes behind the answer came without protection: they end
/// the connection (CVE-2011-0411 and its kin).
async fn start_tls(stream: &mut Stream) -> io::Result<()> {
    const LONGEST: usize = 64 * 1024;
    let mut input = Vec::new();
    let mut asked = false;
    loop {
        while let End::At(length) = end_of_status_or_response(&input) {
            let line: Vec<u8> = input.drain(..length).collect();
            match (asked, peek::response(&line)) {
                (false, Some(Response::Status { tag: None, status: Status::Ok, .. })) => {
                    asked = true;
                    stream.write_all(b"m0 STARTTLS\r\n").await?;
                    stream.flush().await?;
                }
                (true, Some(Response::Status { tag: Some(b"m0"), status: Status::Ok, .. })) => {
                    if input.is_empty() {
                        return Ok(());
                    }
                    return Err(io::Error::other(
                        "the backend sent more before TLS than it should",
                    ));
                }
                (true, Some(Response::Status { tag: None, status: Status::Ok, .. }))
                | (true, Some(Response::Capability)) => {}
                _ => {
                    let said = printable(&line);
                    return Err(io::Error::other(format!("the backend refuses STARTTLS: {said}")));
                }
            }
        }
        if input.len() > LONGEST {
            return Err(io::Error::other("an overlong response"));
        }
        read_more(stream, &mut input).await?;
    }
}

/// Plays the login on a fresh connection; gives what was offered before it, too.
async fn dialogue(
    mut stream: Stream,
    mut login: Login,
) -> Result<(Capabilities, Result<LoggedIn, LoginError>), LoginError> {
    let (mut input, mut out) = (Vec::new(), Vec::new());
    login.start(&mut out);
    let gone = |error: io::Error| LoginError::Unavailable(error.to_string());
    loop {
        if !out.is_empty() {
            stream.write_all(&out).await.map_err(gone)?;
            stream.flush().await.map_err(gone)?;
            out.clear();
        }
        let (used, outcome) = login.step(&input, &mut out);
        input.drain(..used);
        match outcome {
            // What was written leads to what is read.
            None if !out.is_empty() => {}
            None => read_more(&mut stream, &mut input).await.map_err(gone)?,
            Some(Outcome::Challenge(_)) => login.acknowledge(&mut out),
            Some(Outcome::Accepted { offered, granted, .. }) => {
                return Ok((offered, Ok(LoggedIn { stream, input, capabilities: granted })));
            }
            Some(Outcome::Refused { answer, offered }) => {
                return Ok((offered, Err(LoginError::Refused { answer })));
            }
            Some(Outcome::Unavailable(why)) => return Err(LoginError::Unavailable(why)),
            Some(Outcome::TooLong) => {
                let why = "an overlong answer to a login".to_owned();
                return Err(LoginError::Unavailable(why));
            }
        }
    }
}

/// The capabilities in the greeting, or else in the answer to CAPABILITY.
async fn offered(stream: &mut Stream, greeted: bool, longest: usize) -> io::Result<Capabilities> {
    let (mut input, mut asked) = (Vec::new(), greeted);
    if greeted {
        stream.write_all(b"m1 CAPABILITY\r\n").await?;
        stream.flush().await?;
    }
    loop {
        while let End::At(length) = end_of_status_or_response(&input) {
            let line: Vec<u8> = input.drain(..length).collect();
            if let Some(offered) = Capabilities::in_response(&line) {
                return Ok(offered);
            }
            if !asked {
                asked = true;
                stream.write_all(b"m1 CAPABILITY\r\n").await?;
                stream.flush().await?;
            } else if line.starts_with(b"m1 ") {
                return Err(io::Error::other("the backend tells no capabilities"));
            }
        }
        if input.len() > longest {
            return Err(io::Error::other("an overlong response"));
        }
        read_more(stream, &mut input).await?;
    }
}

/// Reads some bytes; the end of the stream is an error.
async fn read_more(stream: &mut Stream, input: &mut Vec<u8>) -> io::Result<()> {
    match stream.fill(input).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
