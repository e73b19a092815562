//! The configuration: a TOML file in, a checked [`Config`] out.
//!
//! A file for each table. It has the table as it is written (`Raw…`: every key optional, an unknown
//! one refused by name), the struct that the program relies on (every value present and in range, so
//! that no other part has to ask again), its defaults, and the check that makes one of the other.
//! `raw` puts the tables of the file together, `check` has the kinds of values, and this file has what
//! no table can know alone. `proxy.toml` is the manual of the keys; tests hold the two together.
//!
//! This floor knows files and text only: no socket, no TLS, no IMAP. Files that keys name are looked
//! for here and read elsewhere.

#[macro_use]
mod table;

mod addresses;
mod admin;
mod api;
mod apns;
mod auth;
mod backend;
mod check;
mod credentials;
mod database_url;
mod error;
mod events;
mod fcm;
mod limits;
mod listener;
mod log;
mod network;
mod node;
mod pin;
mod proxy;
mod push;
mod raw;
mod record;
mod resolver;
mod route;
mod store;
#[cfg(test)]
mod tests;
mod tls;
mod watch;
mod webhook;
mod webpush;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use self::addresses::takes;
pub use self::admin::{AdminAddress, AdminConfig};
pub use self::api::{ApiConfig, PublicUrl};
pub use self::apns::{ApnsConfig, ApnsServer, ProviderFiles};
pub use self::auth::{AuthConfig, RelayedLogins};
pub use self::backend::{
    BackendConfig, BackendTls, DoveadmConfig, LoginTemplate, MasterUser, TrustConfig,
};
use self::check::{Check, CheckResult, is_loopback};
pub use self::credentials::CredentialsMode;
pub use self::database_url::{DatabaseKind, DatabaseUrl, ServerUrl};
pub use self::error::ConfigError;
pub use self::events::{CyrusEventsConfig, EventSourceConfig, EventsConfig, UdpEventsConfig};
pub use self::fcm::FcmConfig;
pub use self::limits::LimitsConfig;
pub use self::listener::{ListenerConfig, ListenerTls};
pub use self::log::{LogConfig, LogFormat};
pub use self::network::Network;
pub use self::node::NodeConfig;
pub use self::pin::PublicKeyPin;
pub use self::proxy::ProxyConfig;
pub use self::push::{Collapse, Events, PreviewContent, PushConfig, PushType};
use self::raw::RawConfig;
pub use self::record::RecordConfig;
pub use self::resolver::ResolverConfig;
pub use self::route::RouteConfig;
pub use self::store::StoreConfig;
pub use self::tls::{CertificateFiles, Sni, TlsConfig};
pub use self::watch::{WatchConfig, WatchConnection};
pub use self::webhook::{BodyTemplate, TemplateValues, WebhookConfig};
pub use self::webpush::{HostPattern, WebPushConfig};
use crate::files;
use crate::model::Account;

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
    /// `[credentials] key_file`: seals what is secret in the database. It may not exist yet: in the mode
    /// `stored` it is made at the first start, else with the first subscription that has secrets.
    pub key_file: PathBuf,
    /// `[watch]`
    pub watch: WatchConfig,
    /// `[push]`
    pub push: PushConfig,
    /// Empty: nothing is pushed to iOS Mail, and XAPPLEPUSHSERVICE is not advertised. No two serve the same
    /// domain, and at most one serves all others.
    pub apns: Vec<ApnsConfig>,
    /// No two serve the same app, and at most one serves all others.
    pub fcm: Vec<FcmConfig>,
    /// Each with a name of its own.
    pub webhooks: Vec<WebhookConfig>,
    /// `None`: nothing is pushed to browsers.
    pub web_push: Option<WebPushConfig>,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[resolver]`
    pub resolver: ResolverConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[api]`
    pub api: ApiConfig,
    /// `[events]`
    pub events: EventsConfig,
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

/// Values in the wrong form that one message is explained by, at most.
const MOST_EXPLAINED: u8 = 16;

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
            key_file: credentials::KEY_FILE.into(),
            watch: WatchConfig::default(),
            push: PushConfig::default(),
            apns: Vec::new(),
            fcm: Vec::new(),
            webhooks: Vec::new(),
            web_push: None,
            limits: LimitsConfig::default(),
            resolver: ResolverConfig::default(),
            admin: AdminConfig::default(),
            api: ApiConfig::default(),
            events: EventsConfig::default(),
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
                io::ErrorKind::PermissionDenied => {
                    format!("{error}; run this as root or as the user mailchime")
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
        Self::parse_with(text, origin, MOST_EXPLAINED)
    }

    /// At most so many values in the wrong form are read as texts, for the sake of the message.
    fn parse_with(text: &str, origin: &Path, explained: u8) -> Result<Self, ConfigError> {
        let raw = raw::parse(text, origin).map_err(|fault| match explained.checked_sub(1) {
            Some(fewer) => fault.explained(|quoted| Self::parse_with(quoted, origin, fewer).err()),
            None => fault.error,
        })?;
        let config = checked(raw, origin)?;
        // Last, since most keys have more to say of what is allowed.
        raw::refuse_empty(text, origin)?;
        Ok(config)
    }

    /// The files with authorities that it names, each with its key.
    pub fn authorities(&self) -> Vec<(&'static str, &Path)> {
        let routes = self.routes.iter().map(|route| &route.backend);
        let backends = std::iter::once(&self.backend).chain(routes);
        let trusts = backends.filter_map(|backend| match &backend.tls {
            BackendTls::StartTls(trust) | BackendTls::Implicit(trust) => Some(trust),
            BackendTls::None => None,
        });
        let of_backends = trusts.flat_map(|trust| &trust.ca).map(|ca| ("[backend] ca", &**ca));
        let of_apns = self.apns.iter().flat_map(|it| &it.ca).map(|ca| ("[apns] ca", &**ca));
        let of_fcm = self.fcm.iter().flat_map(|it| &it.ca).map(|ca| ("[[fcm]] ca", &**ca));
        let of_hooks = self.webhooks.iter().flat_map(|it| &it.ca);
        let of_hooks = of_hooks.map(|ca| ("[[webhook]] ca", &**ca));
        let of_web_push = self.web_push.iter().flat_map(|it| &it.ca);
        let of_web_push = of_web_push.map(|ca| ("[webpush] ca", &**ca));
        of_backends.chain(of_apns).chain(of_fcm).chain(of_hooks).chain(of_web_push).collect()
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
        files.push(("[credentials] key_file", &self.key_file));
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
        for fcm in &self.fcm {
            files.push(("[[fcm]] service_account_file", &fcm.service_account_file));
            let login_file = fcm.proxy.iter().flat_map(|proxy| &proxy.login_file);
            files.extend(login_file.map(|file| ("[[fcm]] proxy_login_file", &**file)));
        }
        for webhook in &self.webhooks {
            let secret_file = webhook.secret_file.iter();
            files.extend(secret_file.map(|file| ("[[webhook]] secret_file", &**file)));
            let token_file = webhook.token_file.iter();
            files.extend(token_file.map(|file| ("[[webhook]] token_file", &**file)));
        }
        let sources = self.events.sources.iter().map(|source| &*source.secret_file);
        files.extend(sources.map(|file| ("[[events.source]] secret_file", file)));
        if let Some(web_push) = &self.web_push {
            files.push(("[webpush] key_file", &web_push.key_file));
            let login_file = web_push.proxy.iter().flat_map(|proxy| &proxy.login_file);
            files.extend(login_file.map(|file| ("[webpush] proxy_login_file", &**file)));
        }
        files.extend(self.secret_origin.iter().map(|file| ("[store] url", &**file)));
        files
    }
}

/// Checks what was read from the file `origin`.
fn checked(raw: RawConfig, origin: &Path) -> CheckResult<Config> {
    let check = Check { origin };
    let mut config = Config::new(check.tls(raw.tls)?, check.backend("[backend]", raw.backend)?);
    config.auth.relay = raw.auth.relay.unwrap_or_default();
    let connections = raw.route.iter().filter_map(route::RawRoute::connection).collect();
    config.routes = check.routes(raw.route)?;
    if let Some(listeners) = raw.listener {
        config.listeners = check.listeners(listeners)?;
    }
    config.store = check.store(raw.store)?;
    (config.credentials, config.key_file) = check.credentials(raw.credentials);
    config.watch = check.watch(raw.watch)?;
    config.watch.connection_of_routes = connections;
    config.push = check.push(raw.push)?;
    config.apns = check.identities(raw.apns)?;
    config.fcm = check.fcm(raw.fcm)?;
    config.webhooks = check.webhooks(raw.webhook, |account| config.canonical(account))?;
    config.web_push = check.web_push(raw.webpush, &config.key_file)?;
    config.limits = check.limits(raw.limits)?;
    config.resolver = check.resolver(raw.resolver)?;
    config.admin = check.admin(raw.admin)?;
    config.api = check.api(raw.api)?;
    config.events = check.event_intake(raw.events)?;
    config.node = check.node(raw.node)?;
    config.log = check.log(raw.log)?;
    config.record = check.record(raw.record)?;
    check.backends(&config)?;
    check.apart(&tcp_addresses(&config))?;
    check.sockets_apart(&socket_files(&config))?;
    config.secret_origin = config.store.url.holds_password().then(|| origin.to_owned());
    config.warnings = warnings(&config);
    Ok(config)
}

fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for (table, BackendConfig { host, tls, master, .. }) in tables(config) {
        if *tls == BackendTls::None && !is_loopback(host) {
            warnings.push(format!(
                "{table} tls = \"none\": passwords and mail travel to {host} unencrypted; use \
                 \"implicit\" unless the whole way is yours"
            ));
        }
        if config.credentials == CredentialsMode::Master && master.is_none() {
            warnings.push(format!(
                "{table} has no master_user: its accounts are not watched, and their phones are not \
                 offered push"
            ));
        }
    }
    let everyone = ["0.0.0.0/0", "::/0"];
    let networks = config.listeners.iter().flat_map(|listener| &listener.proxy_protocol);
    for network in networks.map(Network::to_string).filter(|n| everyone.contains(&n.as_str())) {
        warnings.push(format!(
            "[[listener]] proxy_protocol = [\"{network}\"]: a client that connects there can claim any \
             address; name your load balancers only"
        ));
    }
    if config.store.url.is_in_the_clear() {
        warnings.push(format!(
            "[store] url: device tokens and sealed credentials may travel to {} unencrypted; add {} \
             unless the whole way is yours",
            config.store.url,
            config.store.url.verification()
        ));
    }
    if config.api.address.is_some() && config.web_push.is_none() {
        warnings.push(
            "[api] is on and [webpush] has no contact: browsers and web apps get no notifications"
                .to_owned(),
        );
    }
    if config.push.preview != PreviewContent::None && config.web_push.is_none() {
        warnings.push(
            "[push] preview is on and [webpush] has no contact: no push says anything of a mail"
                .to_owned(),
        );
    }
    if config.apns.is_empty() {
        let others = config.web_push.is_some()
            || config.api.address.is_some()
            || !config.fcm.is_empty()
            || !config.webhooks.is_empty();
        let what = if others { "nothing is pushed to iOS Mail" } else { "nothing is pushed" };
        warnings.push(format!(
            "there is no [apns] table: {what}, and clients are not offered XAPPLEPUSHSERVICE"
        ));
    }
    warnings
}

/// Where mailchime listens for connections, each with its key.
fn tcp_addresses(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let listeners = config.listeners.iter().map(|it| ("[[listener]] address", it.address));
    let admin = match config.admin.address {
        Some(AdminAddress::Tcp(address)) => Some(("[admin] address", address)),
        _ => None,
    };
    let api = config.api.address.map(|address| ("[api] address", address));
    let events = config.events.address.map(|address| ("[events] address", address));
    listeners.chain(admin).chain(api).chain(events).collect()
}

/// The Unix sockets that mailchime makes, each with its key.
fn socket_files(config: &Config) -> Vec<(&'static str, &Path)> {
    let admin = match &config.admin.address {
        Some(AdminAddress::Unix { path, .. }) => Some(("[admin] address", path.as_path())),
        _ => None,
    };
    let cyrus = config.events.cyrus.iter();
    let cyrus = cyrus.flat_map(|it| {
        [("[events] cyrus_socket", &it.socket), ("[events] cyrus_stream", &it.stream)]
    });
    let cyrus = cyrus.filter_map(|(key, path)| Some((key, path.as_deref()?)));
    admin.into_iter().chain(cyrus).collect()
}

/// The tables of a configuration that name a backend, as they are called.
fn tables(config: &Config) -> impl Iterator<Item = (String, &BackendConfig)> {
    let route = |route: &'_ RouteConfig| format!("[[route]] {}", route.domain);
    let routes = config.routes.iter().map(move |it| (route(it), &it.backend));
    std::iter::once(("[backend]".to_owned(), &config.backend)).chain(routes)
}

impl Check<'_> {
    /// What no table of a backend can know alone: that it is not mailchime itself, that a name has one address, and who
    /// is watched as a master user.
    pub(super) fn backends(&self, config: &Config) -> CheckResult<()> {
        let all: Vec<_> = tables(config).collect();
        for (at, (table, backend)) in all.iter().enumerate() {
            let table = table.split(' ').next().unwrap_or(table);
            self.elsewhere(table, backend, &config.listeners)?;
            let named_so = |(_, other): &&(String, &BackendConfig)| {
                backend.name.is_some() && other.name == backend.name
            };
            if let Some((_, other)) = all[..at].iter().find(named_so)
                && other.id().address() != backend.id().address()
            {
                let (name, one, two) = (backend.id(), other.id(), backend.id());
                let problem = format!(
                    "{name} is the name of {} and of {}; a name is that of one server",
                    one.address(),
                    two.address()
                );
                return Err(self.refusal(&format!("{table} name"), problem));
            }
            if backend.master.is_some() && config.credentials != CredentialsMode::Master {
                let problem = "has no meaning unless [credentials] mode = \"master\"; remove it, \
                               or set that mode";
                return Err(self.refusal(&format!("{table} master_user"), problem));
            }
        }
        if config.credentials == CredentialsMode::Master
            && all.iter().all(|(_, backend)| backend.master.is_none())
        {
            let problem = "missing, and so in each [[route]]: with [credentials] mode = \"master\" \
                           nobody could be watched; name the user of the IMAP server who may act as \
                           any other";
            return Err(self.refusal("[backend] master_user", problem));
        }
        Ok(())
    }
}
