//! The IMAP server behind: connecting to it, and logging in there.

mod dial;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use self::dial::DialFailure;
use super::account_connections::ConnectionPermit;
use super::doveadm::{Doveadm, KeyFileError};
use super::master::{MasterCredentials, PasswordFileError};
use super::proxy_protocol::ProxiedClient;
use super::resolve::NameResolver;
use super::stream::Stream;
use super::tls::{self, TlsError};
use crate::config::{self, BackendTls, TrustConfig};
use crate::imap::capability::Capabilities;
use crate::imap::greeting::UnfitGreeting;
use crate::imap::login::{BackendLogin, LoginAttempt, LoginKinds, LoginOptions, LoginOutcome};
use crate::imap::peek::{self, Response};
use crate::imap::refusal::Refusal;
use crate::imap::responses::Responses;
use crate::model::{Account, BackendId, Credentials};

/// What a backend offers counts for so long where it rules a login out.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A backend and what is known of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backend {
    way: Arc<Way>,
    known: Arc<RememberedBackend>,
}

/// How to get there.
#[derive(Debug)]
struct Way {
    host: String,
    port: u16,
    security: Security,
    connect_timeout: Duration,
    proxy_protocol: bool,
    send_id: bool,
    resolver: NameResolver,
    checks_token_name: bool,
    names_ignore_case: bool,
    id: BackendId,
    master: Option<MasterCredentials>,
    doveadm: Option<Arc<Doveadm>>,
}

/// What outlives a configuration, and so tells one backend from another.
#[derive(Debug, Default)]
struct RememberedBackend {
    seen: Mutex<Option<LastOffer>>,
    /// When it last gave no answer to who asked it because that ruled a login out.
    unanswered: tokio::sync::Mutex<Option<Instant>>,
}

/// What a backend was last seen to offer before login, and when.
#[derive(Debug)]
struct LastOffer {
    offered: Arc<Capabilities>,
    logins: LoginKinds,
    at: Instant,
}

/// How connections to a backend are protected. The name is the one that its certificate must be
/// for.
#[derive(Clone, Debug)]
enum Security {
    None,
    StartTls(Arc<ClientConfig>, ServerName<'static>),
    Implicit(Arc<ClientConfig>, ServerName<'static>),
}

/// A connection to a backend that has greeted, on which nobody is logged in.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub stream: Stream,
    /// The greeting and what came behind it. Nothing after STARTTLS: what was said before counts for
    /// nothing then, and there is no other greeting.
    pub heard: Vec<u8>,
    /// STARTTLS was done.
    pub greeted: bool,
}

/// Why there is no connection to a backend: an operator's or the network's matter, and temporary.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// `missing` is what did not come in time: a look-up, a handshake, a greeting.
    #[error("{backend}: no {missing} within {limit:?}")]
    Timeout {
        /// The backend.
        backend: String,
        /// What did not happen in time.
        missing: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The connection failed.
    #[error("{backend}: {source}")]
    Io {
        /// The backend.
        backend: String,
        /// What the library or the system says.
        source: io::Error,
    },
    /// It said this in place of a greeting with which it would serve somebody: a BYE, or something else.
    #[error("{backend}: {}", UnfitGreeting(said))]
    Unfit {
        /// The backend.
        backend: String,
        /// What the backend said.
        said: Vec<u8>,
    },
    /// `[limits] connections_per_account`.
    #[error("{} has {limit} connections already", .account.as_str().escape_debug())]
    TooMany {
        /// The account.
        account: Account,
        /// The limit.
        limit: usize,
    },
}

/// A connection on which a user is logged in.
#[derive(Debug)]
pub struct LoggedIn {
    /// The connection.
    pub stream: Stream,
    /// What the backend sent behind its answer.
    pub input: Vec<u8>,
    /// As told with the login, if it was.
    pub capabilities: Option<Capabilities>,
    /// Held as long as the connection is open.
    pub place: Option<ConnectionPermit>,
}

/// What is wrong with a backend as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The master user's password cannot be read.
    #[error(transparent)]
    PasswordFile(#[from] PasswordFileError),
    /// doveadm's key cannot be read.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
}

/// Why a login did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The NO or BAD behind its tag, whose code and text are the backend's, and what it says.
    #[error("refused: {}", crate::imap::responses::printable(answer))]
    Refused {
        /// What the server said.
        answer: Vec<u8>,
        /// What the refusal means.
        refusal: Refusal,
    },
    /// The backend did not answer as it should; with what it did.
    #[error("no answer: {0}")]
    Unavailable(String),
}

impl RememberedBackend {
    fn seen(&self) -> MutexGuard<'_, Option<LastOffer>> {
        self.seen.lock()
    }
}

impl Backend {
    /// The timeout covers address look-up, TCP, TLS and the greeting together. The master's password is
    /// read here.
    ///
    /// # Errors
    /// What is wrong with the TLS or the master user that the configuration asks for, and its key.
    pub fn new(
        config: &config::BackendConfig,
        connect_timeout: Duration,
        resolver: &NameResolver,
    ) -> Result<Self, (&'static str, BackendError)> {
        let verifier = |ca: Option<&Path>| match config.pin {
            Some(pin) => Ok(tls::key_verifier(vec![pin])),
            None => tls::verifier(ca).map_err(|error| ("ca", BackendError::from(error))),
        };
        let trust = |trust: &TrustConfig| -> Result<_, (&'static str, BackendError)> {
            let client = tls::client_with(verifier(trust.ca.as_deref())?);
            let client = client.map_err(|error| ("tls", error.into()))?;
            let name = trust.server_name.as_str();
            let name = ServerName::try_from(name)
                .map_err(|_| ("server_name", TlsError::NoName(name.to_owned()).into()))?;
            Ok((client, name.to_owned()))
        };
        let security = match &config.tls {
            BackendTls::None => Security::None,
            BackendTls::StartTls(whom) => {
                let (client, name) = trust(whom)?;
                Security::StartTls(client, name)
            }
            BackendTls::Implicit(whom) => {
                let (client, name) = trust(whom)?;
                Security::Implicit(client, name)
            }
        };
        let config::BackendConfig {
            host, port, proxy_protocol, send_id, checks_token_name, ..
        } = config;
        let master = config.master.as_ref().map(MasterCredentials::open);
        let doveadm = config.doveadm.as_ref().map(|doveadm| {
            let key = Doveadm::key(doveadm).map_err(|error| ("doveadm_key_file", error.into()))?;
            let ca = match &config.tls {
                BackendTls::None => None,
                BackendTls::StartTls(trust) | BackendTls::Implicit(trust) => trust.ca.as_deref(),
            };
            let doveadm = Doveadm::new(doveadm, key, verifier(ca)?, resolver);
            doveadm.map(Arc::new).map_err(|error| ("ca", BackendError::from(error)))
        });
        let way = Way {
            doveadm: doveadm.transpose()?,
            host: host.clone(),
            port: *port,
            security,
            connect_timeout,
            proxy_protocol: *proxy_protocol,
            send_id: *send_id,
            resolver: resolver.clone(),
            checks_token_name: *checks_token_name,
            names_ignore_case: config.names_ignore_case,
            id: config.id(),
            master: master.transpose().map_err(|error| ("master_password_file", error.into()))?,
        };
        Ok(Self { way: Arc::new(way), known: Arc::default() })
    }

    /// The same backend under a configuration that was read again: what is known of `old` counts.
    pub(super) fn succeeding(self, old: &Self) -> Self {
        Self { known: Arc::clone(&old.known), ..self }
    }

    /// Whether both are one backend, perhaps under different configurations.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.known, &other.known)
    }

    /// Whether it is to be sent the client's ID.
    pub fn takes_id(&self) -> bool {
        self.way.send_id
    }

    /// Whether it refuses an access token that was not issued to the name that comes with it.
    pub fn checks_token_name(&self) -> bool {
        self.way.checks_token_name
    }

    /// Whether login names that differ in nothing but the case of ASCII letters are one user's there.
    pub fn names_ignore_case(&self) -> bool {
        self.way.names_ignore_case
    }

    /// What accounts that it has accepted are recorded with.
    pub fn id(&self) -> &BackendId {
        &self.way.id
    }

    /// Whom watchers log in as there, in the mode in which they do; `None`: they do not.
    pub fn master(&self) -> Option<&MasterCredentials> {
        self.way.master.as_ref()
    }

    /// What says the state of mailboxes without a login, if there is anything.
    pub fn doveadm(&self) -> Option<&Arc<Doveadm>> {
        self.way.doveadm.as_ref()
    }

    /// `host:port`, for logs.
    pub fn name(&self) -> String {
        format!("{}:{}", self.way.host, self.way.port)
    }

    /// What it was last seen to offer before login.
    pub fn seen(&self) -> Option<Arc<Capabilities>> {
        self.known.seen().as_ref().map(|seen| Arc::clone(&seen.offered))
    }

    /// In which ways it was last seen to take logins.
    pub fn logins(&self) -> LoginKinds {
        self.known.seen().as_ref().map_or(LoginKinds::UNKNOWN, |seen| seen.logins)
    }

    /// Remembers what it was just seen to offer before login.
    pub fn saw(&self, offered: Capabilities) {
        let (mut seen, now) = (self.known.seen(), Instant::now());
        match &mut *seen {
            Some(same) if *same.offered == offered => same.at = now,
            other => {
                let logins = LoginKinds::of(&offered);
                *other = Some(LastOffer { offered: Arc::new(offered), logins, at: now });
            }
        }
    }

    /// Opens a connection, TLS and the backend's greeting included, for a client, or on mailchime's own
    /// behalf. Each address of the host is tried in turn until one has greeted, with an equal share of
    /// what is left of the time: a dead one does not use it up. No greeting may be longer than `longest`
    /// bytes.
    ///
    /// # Errors
    /// [`ConnectError`] when no address can be connected to in time, or the greeting is none or a
    /// refusal.
    pub async fn connect(
        &self,
        client: Option<ProxiedClient>,
        longest: usize,
    ) -> Result<Connected, ConnectError> {
        let Way { host, port, connect_timeout: limit, .. } = &*self.way;
        let backend = || self.name();
        let late = |missing| ConnectError::Timeout { backend: backend(), missing, limit: *limit };
        let deadline = Instant::now() + *limit;
        let looked_up = self.way.resolver.resolve(host, *port);
        let looked_up = tokio::time::timeout_at(deadline, looked_up).await;
        let looked_up = looked_up.map_err(|_| late("address of its name"))?;
        let addresses =
            looked_up.map_err(|source| ConnectError::Io { backend: backend(), source })?;
        self.dial(&addresses, deadline, client, longest).await.map_err(|failure| match failure {
            DialFailure::Late(missing) => late(missing),
            DialFailure::Io(source) => ConnectError::Io { backend: backend(), source },
            DialFailure::UnfitGreeting(said) => ConnectError::Unfit { backend: backend(), said },
        })
    }

    /// Connects and logs in; the whole takes at most `limit` beyond connecting. No response of the
    /// backend may be longer than `longest` bytes.
    ///
    /// # Errors
    /// [`LoginError`]: no connection, a refusal, or no answer in time.
    pub async fn log_in(
        &self,
        credentials: Credentials,
        limit: Duration,
        longest: usize,
    ) -> Result<LoggedIn, LoginError> {
        let Connected { stream, heard, greeted } = self.connect(None, longest).await?;
        let id = Some(b"(\"name\" \"mailchime\")".to_vec());
        let options = LoginOptions { greeted, id, limit: longest };
        let login = BackendLogin::new(LoginAttempt::from(credentials), options);
        let (offered, result) = dialogue(stream, heard, login, limit).await?;
        self.saw(offered);
        result
    }

    /// What it offers before login, asked anew unless it was just seen: for a login that what was last
    /// seen rules out. `None` if it does not answer. However many ask, it is asked once every few
    /// seconds. `limit` and `longest` are as for [`Backend::log_in`].
    pub async fn seen_anew(&self, limit: Duration, longest: usize) -> Option<Arc<Capabilities>> {
        // One asks, and the others wait for the answer.
        let mut unanswered = self.known.unanswered.lock().await;
        let is_new = |seen: Instant| seen.elapsed() < ASK_AGAIN;
        if unanswered.is_some_and(is_new) {
            return None;
        }
        let known = self.known.seen().as_ref().is_some_and(|seen| is_new(seen.at));
        if !known && self.probe(limit, longest).await.is_err() {
            *unanswered = Some(Instant::now());
            return None;
        }
        *unanswered = None;
        self.seen()
    }

    /// Asks what the backend offers before login, without logging in. `limit` and `longest` are as
    /// for [`Backend::log_in`].
    ///
    /// # Errors
    /// [`LoginError`]: no connection, or no answer in time.
    pub async fn probe(&self, limit: Duration, longest: usize) -> Result<(), LoginError> {
        self.ask_offer(None, limit, longest).await
    }

    /// As [`Backend::probe`], on a connection for this client.
    ///
    /// # Errors
    /// As [`Backend::probe`].
    pub async fn probe_for(
        &self,
        client: ProxiedClient,
        limit: Duration,
        longest: usize,
    ) -> Result<(), LoginError> {
        self.ask_offer(Some(client), limit, longest).await
    }

    async fn ask_offer(
        &self,
        client: Option<ProxiedClient>,
        limit: Duration,
        longest: usize,
    ) -> Result<(), LoginError> {
        let Connected { mut stream, heard, greeted } = self.connect(client, longest).await?;
        let told = Told::new(heard, longest);
        let offered = tokio::time::timeout(limit, offered(&mut stream, told, greeted))
            .await
            .map_err(|_| LoginError::Unavailable(format!("no capabilities within {limit:?}")))?
            .map_err(|why| LoginError::Unavailable(why.to_string()))?;
        self.saw(offered);
        // A farewell keeps the backend's log free of aborted logins; whether it arrives is no
        // matter.
        let _ = stream.write_all(b"m2 LOGOUT\r\n").await;
        let _ = stream.shutdown().await;
        Ok(())
    }
}

/// Plays the login on a fresh connection, of which this was heard, within `limit`; gives what was offered
/// before it, too.
async fn dialogue(
    mut stream: Stream,
    mut input: Vec<u8>,
    mut login: BackendLogin,
    limit: Duration,
) -> Result<(Capabilities, Result<LoggedIn, LoginError>), LoginError> {
    let played = play(&mut stream, &mut login, &mut input);
    let outcome = match tokio::time::timeout(limit, played).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => login.unanswered(error.to_string()),
        Err(_) => login.unanswered(format!("no answer within {limit:?}")),
    };
    let unavailable = |why: &str| LoginError::Unavailable(why.to_owned());
    match outcome {
        LoginOutcome::Accepted { offered, granted, .. } => {
            let logged_in = LoggedIn { stream, input, capabilities: granted, place: None };
            Ok((offered, Ok(logged_in)))
        }
        LoginOutcome::Refused { answer, refusal, offered, .. } => {
            Ok((offered, Err(LoginError::Refused { answer, refusal })))
        }
        LoginOutcome::NotOffered(offered) => {
            let why = "the backend takes no such credentials on this connection";
            Ok((offered, Err(unavailable(why))))
        }
        LoginOutcome::Unavailable(why) | LoginOutcome::SentAway { why, .. } => {
            Err(LoginError::Unavailable(why))
        }
        LoginOutcome::Challenge(_) | LoginOutcome::TooLong => {
            Err(unavailable("an overlong answer to a login"))
        }
    }
}

/// Says and hears what a login takes, until it is decided. `input` is what came behind that.
async fn play(
    stream: &mut Stream,
    login: &mut BackendLogin,
    input: &mut Vec<u8>,
) -> io::Result<LoginOutcome> {
    let mut out = Vec::new();
    login.start(&mut out);
    loop {
        if !out.is_empty() {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
        }
        let (used, outcome) = login.step(input, &mut out);
        input.drain(..used);
        match outcome {
            // What was written leads to what is read.
            None if !out.is_empty() => {}
            None => read_more(stream, input).await?,
            Some(LoginOutcome::Challenge(_)) => login.acknowledge(&mut out),
            Some(outcome) => return Ok(outcome),
        }
    }
}

/// The capabilities in the greeting, or else in the answer to CAPABILITY.
async fn offered(stream: &mut Stream, mut told: Told, greeted: bool) -> io::Result<Capabilities> {
    let mut asked = greeted;
    if greeted {
        stream.write_all(b"m1 CAPABILITY\r\n").await?;
        stream.flush().await?;
    }
    loop {
        let (line, cut) = told.next(stream).await?;
        if cut && peek::response(line) == Some(Response::Capability) {
            return Err(io::Error::other("a capability list that is too long"));
        }
        if let Some(offered) = Capabilities::in_response(line) {
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
}

/// What a backend tells before a login.
struct Told {
    responses: Responses,
}

impl Told {
    /// `heard` was read already. Keeps so many bytes of a response.
    fn new(heard: Vec<u8>, longest: usize) -> Self {
        Self { responses: Responses::new(heard, longest) }
    }

    /// The next response, and whether it was longer than what is kept of it. The end of the stream is
    /// an error. It is the caller who limits the time.
    async fn next(&mut self, stream: &mut Stream) -> io::Result<(&[u8], bool)> {
        while !self.responses.advance() {
            read_more(stream, self.responses.more()).await?;
        }
        Ok((self.responses.current(), self.responses.is_cut()))
    }
}

/// Reads some bytes; the end of the stream is an error.
async fn read_more(stream: &mut Stream, input: &mut Vec<u8>) -> io::Result<()> {
    match stream.fill(input).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
