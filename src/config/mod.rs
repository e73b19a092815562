//! The configuration: a TOML file in, a checked [`Config`] out.
//!
//! Two stages. `raw` is the file as it is written, every key optional, an unknown one refused by
//! name. `check` turns it into the structs below, in which every value is present and in range, so
//! that no other part has to ask again. `proxy.toml` is the manual of the keys; tests hold the two
//! together.
//!
//! This floor knows files and text only: no socket, no TLS, no IMAP. Files that keys name are looked
//! for here and read elsewhere.

mod apns;
mod check;
mod network;
mod raw;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;

pub use self::apns::{ApnsConfig, ApnsServer, ProviderFiles, ProxyConfig};
pub use self::network::Network;
use crate::files;
use crate::model::{Account, BackendId};

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect; never empty.
    pub listeners: Vec<ListenerConfig>,
    /// `[tls]`
    pub tls: TlsConfig,
    /// For users without a route.
    pub backend: BackendConfig,
    /// Each with a domain of its own.
    pub routes: Vec<RouteConfig>,
    /// `[auth]`
    pub auth: AuthConfig,
    /// `[store]`
    pub store: StoreConfig,
    /// `[credentials]`
    pub credentials: CredentialsMode,
    /// `[watch]`
    pub watch: WatchConfig,
    /// `[push]`
    pub push: PushConfig,
    /// Empty: nothing is pushed, and XAPPLEPUSHSERVICE is not advertised. No two serve the same
    /// domain, and at most one serves all others.
    pub apns: Vec<ApnsConfig>,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[resolver]`
    pub resolver: ResolverConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[node]`
    pub node: NodeConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `None`: no session is recorded.
    pub record: Option<RecordConfig>,
    /// The file that all this was read from, where it holds a password.
    pub secret_origin: Option<PathBuf>,
    /// What is allowed but probably not meant; one sentence each, to be logged at start.
    pub warnings: Vec<String>,
}

/// `[[listener]]`: one address.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerConfig {
    /// Port 0 lets the system choose one.
    pub address: SocketAddr,
    /// How TLS begins.
    pub tls: ListenerTls,
    /// Who begins each connection with a PROXY header that tells the client's address.
    pub proxy_protocol: Vec<Network>,
}

/// When TLS begins on a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerTls {
    /// From the first byte (RFC 8314 section 3.2).
    Implicit,
    /// After the client's STARTTLS, and nobody logs in before (RFC 9051 section 6.2.1).
    StartTls,
}

/// `[tls]`: what clients are shown.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsConfig {
    /// At least one; a client is shown the first that it can use.
    pub certificates: Vec<CertificateFiles>,
    /// Each with a name of its own.
    pub sni: Vec<Sni>,
}

/// A certificate and its private key: PEM files that exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub private_key: PathBuf,
}

/// `[[tls.sni]]`: what clients are shown that ask for this name (RFC 6066 section 3).
#[derive(Clone, Debug, PartialEq)]
pub struct Sni {
    /// A host name in lower case; `*.` at its beginning stands for exactly one label.
    pub name: String,
    /// As in [`TlsConfig`].
    pub certificates: Vec<CertificateFiles>,
}

/// `[backend]` or `[[route]]`: an IMAP server that holds the mail.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendConfig {
    /// Tells it from others when its address has changed; no other address has this name.
    pub name: Option<String>,
    /// A name or an IP address, the latter without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How TLS begins.
    pub tls: BackendTls,
    /// Each connection begins with a PROXY header, version 2.
    pub proxy_protocol: bool,
    /// The client's ID goes there, with its address.
    pub send_id: bool,
    /// An access token is refused there that was not issued to the name that comes with it.
    pub checks_token_name: bool,
    /// Login names that differ in nothing but the case of ASCII letters are one user's there.
    pub names_ignore_case: bool,
    /// Whom its accounts are watched as in the mode [`CredentialsMode::Master`]; `None`: they are not.
    pub master: Option<MasterUser>,
}

/// The user of a backend who may act as any other.
#[derive(Clone, Debug, PartialEq)]
pub struct MasterUser {
    /// Not empty.
    pub name: String,
    /// A file that exists.
    pub password_file: PathBuf,
    /// `None`: with the user as SASL authorization identity (RFC 4616).
    pub login_template: Option<LoginTemplate>,
}

/// How the backend is spoken to.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendTls {
    /// In the clear.
    None,
    /// TLS after STARTTLS, or no connection.
    StartTls(TrustConfig),
    /// TLS from the first byte.
    Implicit(TrustConfig),
}

/// Whose certificates are good for a backend, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct TrustConfig {
    /// A PEM file that exists; `None` trusts the system's roots.
    pub ca: Option<PathBuf>,
    /// The name or IP address that the certificate must bear.
    pub server_name: String,
}

/// `[[route]]`: the backend of one domain's accounts.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteConfig {
    /// In lower case.
    pub domain: String,
    /// Where these users' sessions go.
    pub backend: BackendConfig,
}

/// `[store]`: the database. `Debug` shows no password.
#[derive(Clone, PartialEq)]
pub struct StoreConfig {
    /// `sqlite://` and a path, where a relative path in the file has been put below the file's
    /// folder; or `postgres://` and what a connection needs, maybe with a password.
    pub url: String,
    /// How long a statement waits for another process's lock.
    pub busy_timeout: Duration,
}

/// `[auth]`: how clients may prove who they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthConfig {
    /// Whether mechanisms that hide the password pass.
    pub relay: RelayedLogins,
}

/// When mechanisms of the backend that hide the password are relayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum RelayedLogins {
    /// In master mode only, where nobody's password is needed for watching.
    #[default]
    Master,
    /// They do.
    Always,
    /// They do not.
    Never,
}

/// `[credentials]`: with what watchers log in, by `mode`.
#[derive(Clone, Debug, PartialEq)]
pub enum CredentialsMode {
    /// With what each user logged in, encrypted in the database.
    Stored {
        /// May not exist yet; it is made at the first start.
        key_file: PathBuf,
    },
    /// With what each user logged in since the program's start.
    Memory,
    /// As the [`MasterUser`] of each backend.
    Master,
}

/// A login name made of a user's and the master's, such as `{user}*{master}`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoginTemplate(String);

/// `[watch]`: how accounts are watched.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchConfig {
    /// IDLE is ended and begun again after this time, 1 to 29 minutes (RFC 2177 section 3).
    pub idle_renewal: Duration,
    /// At the latest after this time everything is looked at, whatever the backend told.
    pub idle_check: Duration,
    /// Between two looks at a mailbox of which the backend tells nothing by itself, while there are
    /// changes, and from news of INBOX to one more look; not above `poll_max`.
    pub poll_interval: Duration,
    /// The same after a long time without any.
    pub poll_max: Duration,
    /// For the backend's whole answer to one of the watcher's commands.
    pub answer_timeout: Duration,
    /// To one backend.
    pub logins_per_second: u32,
    /// Of watchers to one backend; 0 for no limit.
    pub connections: usize,
    /// The first pause after a failure; not above `retry_max`.
    pub retry_min: Duration,
    /// The longest pause between two tries.
    pub retry_max: Duration,
    /// From flag or expunge activity to the look that it causes.
    pub settle: Duration,
}

/// `[push]`: which changes reach which devices, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct PushConfig {
    /// How long a change that is no new mail waits for others.
    pub quiet_delay: Duration,
    /// Between two pushes to one device.
    pub min_interval: Duration,
    /// No change waits longer than this; not below the two above.
    pub max_delay: Duration,
    /// A device that has not registered for this long is forgotten.
    pub registration_ttl: Duration,
    /// Bundle ids of the mail clients that may register; `*` at the end stands for anything.
    pub clients: Vec<String>,
    /// Most mailboxes of one registration.
    pub mailboxes: usize,
    /// Most devices of one account.
    pub devices: usize,
    /// Devices do not outlive the password that they registered with, not even for a day.
    pub forget_devices_on_password_change: bool,
    /// Most accounts of one device.
    pub accounts_per_device: u32,
    /// Most accounts with devices of one domain; 0 for no limit.
    pub accounts_per_domain: u32,
    /// Most devices of one domain; 0 for no limit.
    pub devices_per_domain: u32,
    /// Most accounts with devices of one backend; 0 for no limit.
    pub accounts_per_backend: u32,
    /// Most devices of one backend; 0 for no limit.
    pub devices_per_backend: u32,
    /// Most pushes a second to the devices of one domain; 0 for no limit.
    pub pushes_per_second_per_domain: u32,
    /// Most pushes a second to the devices of one backend; 0 for no limit.
    pub pushes_per_second_per_backend: u32,
    /// Which changes are pushed.
    pub events: Events,
    /// Which pushes replace one another.
    pub collapse: Collapse,
    /// The `apns-push-type` of pushes.
    pub push_type: PushType,
    /// How long APNs keeps a push for a device that is offline.
    pub expiration: Duration,
    /// `apns-priority`: 1, 5 or 10, and never 10 with [`PushType::Background`]; `None` sends none.
    pub priority: Option<u8>,
}

/// Which kinds of change are pushed; at least one is. What is not is taken note of all the same, so
/// that it is not told later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// New mail.
    pub new_mail: bool,
    /// Anything else: mail that was read, marked, deleted or moved elsewhere.
    pub quiet: bool,
}

/// Whether APNs keeps every push for a device that is offline, or the last one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum Collapse {
    /// No `apns-collapse-id`.
    None,
    /// One for each mail account of a device.
    Account,
}

/// `apns-push-type` (PROTOCOL.md section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum PushType {
    /// `background`
    Background,
    /// `alert`
    Alert,
}

/// `[limits]`: what one peer, and all together, may take.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitsConfig {
    /// Users who are logged in.
    pub sessions: usize,
    /// Of them from one client address, or from one /64 network where that is IPv6; four times as many
    /// from one of 56 bits, and sixteen times as many from one of 48.
    pub sessions_per_ip: usize,
    /// Connections on which nobody is logged in.
    pub waiting: usize,
    /// Connections to the backend of one account, its watcher's included; 0 for no limit.
    pub connections_per_account: usize,
    /// Refused logins of one client address, after which no backend is asked for a while.
    pub login_failures_per_minute: u32,
    /// Refused logins of one account, after which further ones are slowed down.
    pub account_failures_per_minute: u32,
    /// Connections to backends that one client address causes.
    pub dials_per_minute: u32,
    /// Logins from one client address that are under way.
    pub dials_at_once: u32,
    /// Registrations of one account that are written without a delay.
    pub registrations_per_minute: u32,
    /// For a client's TLS handshake.
    pub handshake_timeout: Duration,
    /// For the login dialogue, between two commands.
    pub login_timeout: Duration,
    /// For commands that are under way when the program has to stop.
    pub shutdown_grace: Duration,
    /// From a login's try to its refusal, at least.
    pub failure_delay: Duration,
    /// For the connection to the backend, TLS and greeting included.
    pub connect_timeout: Duration,
    /// Commands of a client until it is logged in.
    pub commands_before_login: u32,
    /// Bytes of a command that mailchime itself reads, literals included.
    pub command_size: usize,
    /// Bytes of a backend's capability list.
    pub capability_size: usize,
    /// Bytes that all sessions together may hold before their login, beside a small share for each.
    pub login_memory: usize,
    /// The same of sessions that are logged in, memory for COMPRESS included.
    pub session_memory: usize,
    /// How long a peer may read nothing of what it is sent.
    pub write_timeout: Duration,
    /// Clients may have their connection compressed.
    pub compress: bool,
    /// How long a client is held up by a word of the backend that mailchime needs.
    pub answer_timeout: Duration,
}

/// `[resolver]`: how names of servers become addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolverConfig {
    /// Empty: those of `/etc/resolv.conf`.
    pub name_servers: Vec<SocketAddr>,
    /// Connections that wait for the address of one name.
    pub waiting: usize,
}

/// `[admin]`: metrics, health and status over HTTP, without authentication.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdminConfig {
    /// `None`: there is none of it.
    pub address: Option<AdminAddress>,
    /// Names and addresses by which it is reached beside its own; in lower case, addresses without
    /// brackets.
    pub hosts: Vec<String>,
}

/// Where `[admin]` listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// Not a loopback address only where the configuration says that this is meant. Port 0 lets the
    /// system choose one.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix {
        /// The file.
        path: PathBuf,
        /// Name or number of a group that may connect, beside mailchime's user.
        group: Option<String>,
    },
}

/// `[node]`: this process among those that share its database.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// Unlike that of any other; `None`: made of the machine's name and the first listener's port.
    pub name: Option<String>,
    /// A node that gives no sign of life for this time is dead.
    pub takeover: Duration,
}

/// `[log]`: what goes to standard error.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// The form of a line.
    pub format: LogFormat,
    /// Directives of `tracing_subscriber::EnvFilter` that are known to parse.
    pub level: String,
}

/// The form of a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: an object a line.
    Json,
}

/// `[record]`: sessions as dialogues, to find a fault.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordConfig {
    /// A folder that exists.
    pub folder: PathBuf,
    /// Bytes of one session's file.
    pub max_size: u64,
}

/// What is wrong with a configuration. `Display` is the one message that its author needs: file,
/// key, what is wrong, and what is allowed or to be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}{problem}", file.display(), key.as_deref().map(|key| format!("{key}: ")).unwrap_or_default())]
pub struct ConfigError {
    /// The configuration file, as it was named.
    pub file: PathBuf,
    /// As `[push] quiet_delay`; `None` when no single key is at fault.
    pub key: Option<String>,
    /// What is wrong, and what is allowed.
    pub problem: String,
}

// === impl Config ===

impl Config {
    /// A configuration with what has no default, and the defaults.
    pub fn new(tls: TlsConfig, backend: BackendConfig) -> Self {
        Self {
            listeners: vec![ListenerConfig::default()],
            tls,
            backend,
            auth: AuthConfig::default(),
            routes: Vec::new(),
            store: StoreConfig::default(),
            credentials: CredentialsMode::default(),
            watch: WatchConfig::default(),
            push: PushConfig::default(),
            apns: Vec::new(),
            limits: LimitsConfig::default(),
            resolver: ResolverConfig::default(),
            admin: AdminConfig::default(),
            node: NodeConfig::default(),
            log: LogConfig::default(),
            record: None,
            secret_origin: None,
            warnings: Vec::new(),
        }
    }

    /// The account under the one name that it has where its backend ignores the case of names; as it is
    /// at any other backend, and where the name leaves open which one it is.
    pub fn canonical(&self, account: Account) -> Account {
        let route = |domain: &str| self.routes.iter().find(|route| route.domain == domain);
        let Ok(domain) = account.domain_among(|domain| route(domain).is_some()) else {
            return account;
        };
        let backend = domain.and_then(route).map_or(&self.backend, |route| &route.backend);
        account.canonical(backend.names_ignore_case)
    }

    /// Reads the file at `path` and checks it.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, and says what is wrong and what is allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (text, _) = files::read_text(path, files::LARGEST).map_err(|error| ConfigError {
            file: path.to_owned(),
            key: None,
            problem: match error.kind() {
                io::ErrorKind::NotFound => {
                    "no such file; name the configuration with --config".to_owned()
                }
                io::ErrorKind::InvalidData => "not text; it must be TOML in UTF-8".to_owned(),
                _ => format!("cannot be read: {error}"),
            },
        })?;
        Self::parse(&text, path)
    }

    /// Checks `text`, the content of the file `origin`. Relative paths in it start at the folder of
    /// `origin`, and the files that it names must exist.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, and says what is wrong and what is allowed.
    pub fn parse(text: &str, origin: &Path) -> Result<Self, ConfigError> {
        let config = check::config(raw::parse(text, origin)?, origin)?;
        // Last, since most keys have more to say of what is allowed.
        raw::refuse_empty(text, origin)?;
        Ok(config)
    }

    /// The files with secrets that it names, each with its key.
    pub fn secret_files(&self) -> Vec<(&'static str, &Path)> {
        let mut files = Vec::new();
        let keys = self.tls.certificates.iter().map(|pair| pair.private_key.as_path());
        files.extend(keys.map(|key| ("[tls] private_key", key)));
        let named = self.tls.sni.iter().flat_map(|sni| &sni.certificates);
        files.extend(named.map(|pair| ("[[tls.sni]] private_key", pair.private_key.as_path())));
        let routes = self.routes.iter().map(|route| &route.backend);
        let masters = std::iter::once(&self.backend).chain(routes).flat_map(|it| &it.master);
        files.extend(masters.map(|master| ("master_password_file", &*master.password_file)));
        if let CredentialsMode::Stored { key_file } = &self.credentials {
            files.push(("[credentials] key_file", key_file));
        }
        for apns in &self.apns {
            match &apns.identity {
                ProviderFiles::Pem { private_key, .. } => {
                    files.push(("[apns] private_key", private_key));
                }
                ProviderFiles::Pkcs12 { file, password_file, .. } => {
                    files.push(("[apns] certificate", file));
                    let password_file = password_file.iter();
                    files.extend(password_file.map(|file| ("[apns] password_file", &**file)));
                }
                ProviderFiles::Key { key, .. } => files.push(("[apns] key", key)),
            }
            let login_file = apns.proxy.iter().flat_map(|proxy| &proxy.login_file);
            files.extend(login_file.map(|file| ("[apns] proxy_login_file", &**file)));
        }
        files.extend(self.secret_origin.iter().map(|file| ("[store] url", &**file)));
        files
    }
}

// === impl Listener ===

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 993)),
            tls: ListenerTls::Implicit,
            proxy_protocol: Vec::new(),
        }
    }
}

// === impl Tls ===

impl TlsConfig {
    /// One certificate for every name.
    pub fn new(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        Self {
            certificates: vec![CertificateFiles::new(certificate, private_key)],
            sni: Vec::new(),
        }
    }

    /// Those for every name, then those for one.
    pub fn all_certificates(&self) -> impl Iterator<Item = &CertificateFiles> {
        self.certificates.iter().chain(self.sni.iter().flat_map(|sni| &sni.certificates))
    }
}

// === impl CertificateFiles ===

impl CertificateFiles {
    /// The chain and the key in these files.
    pub fn new(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        Self { certificate: certificate.into(), private_key: private_key.into() }
    }
}

// === impl Backend ===

impl BackendConfig {
    /// A backend that learns nothing of the client, and has no master user.
    pub fn new(host: impl Into<String>, port: u16, tls: BackendTls) -> Self {
        Self {
            name: None,
            host: host.into(),
            port,
            tls,
            proxy_protocol: false,
            send_id: false,
            checks_token_name: false,
            names_ignore_case: false,
            master: None,
        }
    }

    /// What accounts that it has accepted are recorded with.
    pub fn id(&self) -> BackendId {
        BackendId::new(self.name.as_deref(), &self.host, self.port)
    }
}

// === impl Store ===

impl Default for StoreConfig {
    fn default() -> Self {
        Self { url: "sqlite://mailchime.db".into(), busy_timeout: Duration::from_secs(5) }
    }
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("url", &database_name(&self.url))
            .field("busy_timeout", &self.busy_timeout)
            .finish()
    }
}

/// A database URL as it may be shown: of a server where it is and no more, since the rest may hold a
/// password.
pub fn database_name(url: &str) -> String {
    if url.starts_with("sqlite://") {
        return url.to_owned();
    }
    let Ok(server) = PgConnectOptions::from_str(url) else { return "postgres://…".to_owned() };
    let database = server.get_database().unwrap_or(server.get_username());
    match server.get_socket() {
        Some(folder) => format!("postgres://{}/{database}", folder.display()),
        None => format!("postgres://{}:{}/{database}", server.get_host(), server.get_port()),
    }
}

// === impl Credentials ===

impl CredentialsMode {
    /// Of the mode `stored`, when no other is given.
    const KEY_FILE: &str = "mailchime.key";
}

impl Default for CredentialsMode {
    fn default() -> Self {
        Self::Stored { key_file: Self::KEY_FILE.into() }
    }
}

// === impl LoginTemplate ===

impl LoginTemplate {
    const USER: &str = "{user}";
    const MASTER: &str = "{master}";

    /// `None` unless `text` holds `{user}` and `{master}`, once each, and no other brace.
    pub fn new(text: &str) -> Option<Self> {
        let once = |part: &str| text.matches(part).count() == 1;
        let valid = once(Self::USER) && once(Self::MASTER) && text.matches(['{', '}']).count() == 4;
        valid.then(|| Self(text.to_owned()))
    }

    /// The login name with which `master` acts as `user`.
    pub fn login(&self, user: &str, master: &str) -> String {
        // The names may hold anything, so neither may be put in before the other is looked for.
        let filled = |text: &str| text.replace(Self::MASTER, master);
        let (before, behind) = self.0.split_once(Self::USER).unwrap_or((&self.0, ""));
        format!("{}{user}{}", filled(before), filled(behind))
    }
}

// === impl Watch ===

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            idle_renewal: Duration::from_mins(9),
            idle_check: Duration::from_mins(15),
            poll_interval: Duration::from_secs(60),
            poll_max: Duration::from_mins(5),
            answer_timeout: Duration::from_secs(30),
            logins_per_second: 100,
            connections: 0,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_mins(5),
            settle: Duration::from_millis(500),
        }
    }
}

// === impl Push ===

impl PushConfig {
    /// For how long a device lives that has not registered with its account's new password. One that
    /// is well registers each 23 hours.
    pub fn outdated_for(&self) -> Duration {
        match self.forget_devices_on_password_change {
            true => Duration::ZERO,
            false => Duration::from_hours(25),
        }
    }
}

impl Default for PushConfig {
    fn default() -> Self {
        Self {
            quiet_delay: Duration::from_secs(30),
            min_interval: Duration::from_secs(5),
            max_delay: Duration::from_mins(2),
            registration_ttl: Duration::from_hours(10 * 24),
            clients: vec!["com.apple.mobilemail".into()],
            mailboxes: 64,
            devices: 50,
            forget_devices_on_password_change: false,
            accounts_per_device: 20,
            accounts_per_domain: 0,
            devices_per_domain: 0,
            accounts_per_backend: 0,
            devices_per_backend: 0,
            pushes_per_second_per_domain: 0,
            pushes_per_second_per_backend: 0,
            events: Events { new_mail: true, quiet: true },
            collapse: Collapse::None,
            push_type: PushType::Background,
            expiration: Duration::from_hours(24),
            priority: None,
        }
    }
}

// === impl PushType ===

impl PushType {
    /// The value of the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Background => "background",
            Self::Alert => "alert",
        }
    }
}

// === impl Limits ===

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            sessions: 20_000,
            sessions_per_ip: 500,
            waiting: 4_000,
            connections_per_account: 0,
            login_failures_per_minute: 30,
            account_failures_per_minute: 30,
            dials_per_minute: 600,
            dials_at_once: 50,
            registrations_per_minute: 10,
            handshake_timeout: Duration::from_secs(15),
            login_timeout: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(10),
            failure_delay: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(10),
            commands_before_login: 200,
            command_size: 64 * 1024,
            capability_size: 16 * 1024,
            login_memory: 64 * 1024 * 1024,
            session_memory: 1024 * 1024 * 1024,
            write_timeout: Duration::from_mins(5),
            compress: true,
            answer_timeout: Duration::from_secs(30),
        }
    }
}

// === impl AdminAddress ===

impl From<SocketAddr> for AdminAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

// === impl Resolver ===

impl Default for ResolverConfig {
    fn default() -> Self {
        Self { name_servers: Vec::new(), waiting: 4096 }
    }
}

// === impl Node ===

impl Default for NodeConfig {
    fn default() -> Self {
        Self { name: None, takeover: Duration::from_secs(30) }
    }
}

// === impl Log ===

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}
