//! From what the file says to what the program relies on: defaults, ranges, files that exist.
//!
//! A value that is refused is an error that names its key and what is allowed instead. What is
//! allowed but probably not meant becomes a warning.

mod backend;
mod push;
mod store;
mod value;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use self::value::{domain, host_and_port, is_loopback};
use super::raw::{
    OnePathOrMore, RawAdmin, RawBackend, RawBackendTls, RawConfig, RawLimits, RawListener,
    RawListenerTls, RawLog, RawNode, RawRecord, RawResolver, RawRoute, RawSni, RawTls, RawWatch,
};
use super::{
    AdminAddress, AdminConfig, BackendConfig, BackendTls, CertificateFiles, Config, ConfigError,
    CredentialsMode, LimitsConfig, ListenerConfig, ListenerTls, LogConfig, Network, NodeConfig,
    RecordConfig, ResolverConfig, RouteConfig, Sni, TlsConfig, TrustConfig, WatchConfig,
    database_name,
};

type Result<T> = std::result::Result<T, ConfigError>;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const KIB: u64 = bytesize::KIB;
const MIB: u64 = bytesize::MIB;

/// Checks what was read from the file `origin`.
pub(super) fn config(raw: RawConfig, origin: &Path) -> Result<Config> {
    let check = Check { origin };
    let mut config = Config::new(check.tls(raw.tls)?, check.backend("[backend]", raw.backend)?);
    config.auth.relay = raw.auth.relay.unwrap_or_default();
    config.routes = check.routes(raw.route)?;
    if let Some(listeners) = raw.listener {
        config.listeners = check.listeners(listeners)?;
    }
    config.store = check.store(raw.store)?;
    config.credentials = check.credentials(raw.credentials)?;
    config.watch = check.watch(raw.watch)?;
    config.push = check.push(raw.push)?;
    config.apns = check.identities(raw.apns)?;
    config.limits = check.limits(raw.limits)?;
    config.resolver = check.resolver(raw.resolver)?;
    config.admin = check.admin(raw.admin)?;
    config.node = check.node(raw.node)?;
    config.log = check.log(raw.log)?;
    config.record = check.record(raw.record)?;
    check.backends(&config)?;
    config.secret_origin = store::holds_password(&config.store.url).then(|| origin.to_owned());
    config.warnings = warnings(&config);
    Ok(config)
}

fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for (table, BackendConfig { host, tls, master, .. }) in backend::tables(config) {
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
    if store::is_in_the_clear(&config.store.url) {
        warnings.push(format!(
            "[store] url: device tokens and sealed credentials may travel to {} unencrypted; add \
             ?sslmode=verify-full (and sslrootcert=, for a private authority) unless the whole way \
             is yours",
            database_name(&config.store.url)
        ));
    }
    if config.apns.is_empty() {
        warnings.push(
            "there is no [apns] table: nothing is pushed, and clients are not offered \
             XAPPLEPUSHSERVICE"
                .to_owned(),
        );
    }
    warnings
}

/// The checks of one file: one method per table here, one per kind of value in `value`.
struct Check<'a> {
    origin: &'a Path,
}

impl Check<'_> {
    fn listeners(&self, raw: Vec<RawListener>) -> Result<Vec<ListenerConfig>> {
        const ADDRESS: &str = "[[listener]] address";
        let mut listeners: Vec<ListenerConfig> = Vec::new();
        for RawListener { address, tls, proxy_protocol } in raw {
            let mut listener = ListenerConfig::default();
            match tls {
                None | Some(RawListenerTls::Implicit) => {}
                Some(RawListenerTls::StartTls) => {
                    listener.tls = ListenerTls::StartTls;
                    listener.address.set_port(143);
                }
            }
            if let Some(text) = address {
                listener.address = text.parse::<SocketAddr>().map_err(|_| {
                    let allowed = "allowed is an IP address with a port, such as \"[::]:993\" or \
                                   \"192.0.2.1:993\"";
                    self.refusal(ADDRESS, format!("{text:?} is no address; {allowed}"))
                })?;
            }
            let networks = proxy_protocol.iter().map(|text| self.network(text));
            listener.proxy_protocol = networks.collect::<Result<_>>()?;
            let address = listener.address;
            // Port 0 is another port each time.
            if address.port() != 0 && listeners.iter().any(|other| other.address == address) {
                return Err(self.refusal(ADDRESS, format!("{address} is given twice; remove one")));
            }
            listeners.push(listener);
        }
        if listeners.is_empty() {
            let remedy = "remove the key for the default, or give at least one [[listener]]";
            return Err(self.refusal("listener", format!("the list is empty; {remedy}")));
        }
        Ok(listeners)
    }

    fn network(&self, text: &str) -> Result<Network> {
        text.parse().map_err(|meant: Option<Network>| {
            let problem = match meant {
                Some(meant) => format!("{text:?} has bits beyond its prefix; write \"{meant}\""),
                None => format!(
                    "{text:?} is no network; allowed is an IP address with or without the length \
                     of its prefix, such as \"10.0.0.0/8\" or \"::1\""
                ),
            };
            self.refusal("[[listener]] proxy_protocol", problem)
        })
    }

    fn tls(&self, raw: RawTls) -> Result<TlsConfig> {
        const NAME: &str = "[[tls.sni]] name";
        let certificates = self.certificates("[tls]", raw.certificate, raw.private_key)?;
        let mut tls = TlsConfig { certificates, sni: Vec::new() };
        for RawSni { name, certificate, private_key } in raw.sni {
            let allowed = "give a host name, such as \"imap.example.org\", or one with \"*\" for \
                           its first label: \"*.example.org\"";
            let Some(name) = name else {
                return Err(self.refusal(NAME, format!("missing; {allowed}")));
            };
            let Some(known) = domain(name.strip_prefix("*.").unwrap_or(&name)) else {
                return Err(self.refusal(NAME, format!("{name:?} is no host name; {allowed}")));
            };
            let name = if name.starts_with("*.") { format!("*.{known}") } else { known };
            if tls.sni.iter().any(|other| other.name == name) {
                return Err(self.refusal(NAME, format!("{name} is given twice; remove one")));
            }
            let certificates = self.certificates("[[tls.sni]]", certificate, private_key)?;
            tls.sni.push(Sni { name, certificates });
        }
        Ok(tls)
    }

    /// The certificates of a table, each with its private key.
    fn certificates(
        &self,
        table: &str,
        certificate: Option<OnePathOrMore>,
        private_key: Option<OnePathOrMore>,
    ) -> Result<Vec<CertificateFiles>> {
        let files = |key: &str, paths: Option<OnePathOrMore>| -> Result<Vec<PathBuf>> {
            let key = format!("{table} {key}");
            match paths {
                Some(OnePathOrMore(paths)) if !paths.is_empty() => {
                    paths.into_iter().map(|path| self.required_file(&key, Some(path))).collect()
                }
                _ => Ok(vec![self.required_file(&key, None)?]),
            }
        };
        let certificates = files("certificate", certificate)?;
        let private_keys = files("private_key", private_key)?;
        if private_keys.len() != certificates.len() {
            let problem = format!(
                "names {} files, and `certificate` {}; give the private key of each certificate, in \
                 the same order",
                private_keys.len(),
                certificates.len()
            );
            return Err(self.refusal(&format!("{table} private_key"), problem));
        }
        let pairs = certificates.into_iter().zip(private_keys);
        Ok(pairs.map(|(certificate, key)| CertificateFiles::new(certificate, key)).collect())
    }

    fn routes(&self, raw: Vec<RawRoute>) -> Result<Vec<RouteConfig>> {
        const DOMAIN: &str = "[[route]] domain";
        let mut routes: Vec<RouteConfig> = Vec::new();
        for route in raw {
            let (name, backend) = route.split();
            let allowed =
                "give what stands behind the \"@\" of login names, such as \"example.org\"";
            let Some(name) = name else {
                return Err(self.refusal(DOMAIN, format!("missing; {allowed}")));
            };
            let Some(domain) = domain(&name) else {
                return Err(self.refusal(DOMAIN, format!("{name:?} is no domain; {allowed}")));
            };
            if routes.iter().any(|other| other.domain == domain) {
                return Err(self.refusal(DOMAIN, format!("{domain} is given twice; remove one")));
            }
            routes.push(RouteConfig { domain, backend: self.backend("[[route]]", backend)? });
        }
        Ok(routes)
    }

    /// The backend of a table that is called so.
    fn backend(&self, table: &str, raw: RawBackend) -> Result<BackendConfig> {
        let key = |name: &str| format!("{table} {name}");
        let allowed = "give the IMAP server as \"host:port\", such as \"imap.example.org:993\"";
        let Some(address) = raw.address else {
            return Err(self.refusal(&key("address"), format!("missing; {allowed}")));
        };
        let Some((host, port)) = host_and_port(&address) else {
            let problem = format!("{address:?} is no address; {allowed}");
            return Err(self.refusal(&key("address"), problem));
        };
        let trust = |ca, server_name: Option<String>| {
            // A host that cannot stand in a certificate is a fault only where it would have to.
            let (name, server_name) = match server_name {
                Some(name) => ("server_name", name),
                None => ("address", host.clone()),
            };
            if ServerName::try_from(server_name.as_str()).is_err() {
                let problem = format!(
                    "{server_name:?} cannot be the name in a certificate; allowed is a host name \
                     or an IP address without port"
                );
                return Err(self.refusal(&key(name), problem));
            }
            Ok(TrustConfig { ca: self.file(&key("ca"), ca)?, server_name })
        };
        let tls = match raw.tls.unwrap_or(RawBackendTls::Implicit) {
            RawBackendTls::None => {
                for (name, value) in [("ca", &raw.ca), ("server_name", &raw.server_name)] {
                    if value.is_some() {
                        let problem = "has no meaning with tls = \"none\"; remove one of the two";
                        return Err(self.refusal(&key(name), problem));
                    }
                }
                BackendTls::None
            }
            RawBackendTls::StartTls => BackendTls::StartTls(trust(raw.ca, raw.server_name)?),
            RawBackendTls::Implicit => BackendTls::Implicit(trust(raw.ca, raw.server_name)?),
        };
        let mut backend = BackendConfig::new(host, port, tls);
        backend.name = self.backend_name(&key("name"), raw.name)?;
        backend.proxy_protocol = raw.proxy_protocol.unwrap_or(backend.proxy_protocol);
        backend.send_id = raw.send_id.unwrap_or(backend.send_id);
        backend.checks_token_name = raw.checks_token_name.unwrap_or(backend.checks_token_name);
        backend.names_ignore_case = raw.names_ignore_case.unwrap_or(backend.names_ignore_case);
        let master = (raw.master_user, raw.master_password_file, raw.login_template);
        backend.master = self.master(table, master)?;
        Ok(backend)
    }

    #[rustfmt::skip] // a table: one key, one line
    fn watch(&self, raw: RawWatch) -> Result<WatchConfig> {
        let mut watch = WatchConfig::default();
        self.duration("[watch] idle_renewal", raw.idle_renewal, MINUTE..=29 * MINUTE, &mut watch.idle_renewal)?;
        self.duration("[watch] idle_check", raw.idle_check, MINUTE..=DAY, &mut watch.idle_check)?;
        self.duration("[watch] poll_interval", raw.poll_interval, SECOND..=DAY, &mut watch.poll_interval)?;
        self.duration("[watch] poll_max", raw.poll_max, SECOND..=DAY, &mut watch.poll_max)?;
        self.duration("[watch] answer_timeout", raw.answer_timeout, SECOND..=10 * MINUTE, &mut watch.answer_timeout)?;
        self.number("[watch] logins_per_second", raw.logins_per_second, 1..=100_000, &mut watch.logins_per_second)?;
        self.number("[watch] connections", raw.connections, 0..=1_000_000, &mut watch.connections)?;
        self.duration("[watch] retry_min", raw.retry_min, 10 * MILLISECOND..=HOUR, &mut watch.retry_min)?;
        self.duration("[watch] retry_max", raw.retry_max, 10 * MILLISECOND..=DAY, &mut watch.retry_max)?;
        self.duration("[watch] settle", raw.settle, MILLISECOND..=MINUTE, &mut watch.settle)?;
        self.not_above(("[watch] poll_interval", watch.poll_interval), ("poll_max", watch.poll_max))?;
        self.not_above(("[watch] retry_min", watch.retry_min), ("retry_max", watch.retry_max))?;
        Ok(watch)
    }

    #[rustfmt::skip] // a table: one key, one line
    fn limits(&self, raw: RawLimits) -> Result<LimitsConfig> {
        let mut limits = LimitsConfig::default();
        self.number("[limits] sessions", raw.sessions, 1..=1_000_000, &mut limits.sessions)?;
        self.number("[limits] sessions_per_ip", raw.sessions_per_ip, 1..=1_000_000, &mut limits.sessions_per_ip)?;
        self.number("[limits] waiting", raw.waiting, 1..=1_000_000, &mut limits.waiting)?;
        self.number("[limits] connections_per_account", raw.connections_per_account, 0..=100_000, &mut limits.connections_per_account)?;
        self.number("[limits] login_failures_per_minute", raw.login_failures_per_minute, 1..=1_000_000, &mut limits.login_failures_per_minute)?;
        self.number("[limits] account_failures_per_minute", raw.account_failures_per_minute, 1..=1_000_000, &mut limits.account_failures_per_minute)?;
        self.number("[limits] dials_per_minute", raw.dials_per_minute, 1..=1_000_000, &mut limits.dials_per_minute)?;
        self.number("[limits] dials_at_once", raw.dials_at_once, 1..=1_000_000, &mut limits.dials_at_once)?;
        self.number("[limits] registrations_per_minute", raw.registrations_per_minute, 1..=100_000, &mut limits.registrations_per_minute)?;
        self.duration("[limits] handshake_timeout", raw.handshake_timeout, SECOND..=10 * MINUTE, &mut limits.handshake_timeout)?;
        self.duration("[limits] login_timeout", raw.login_timeout, SECOND..=HOUR, &mut limits.login_timeout)?;
        self.duration("[limits] shutdown_grace", raw.shutdown_grace, MILLISECOND..=10 * MINUTE, &mut limits.shutdown_grace)?;
        self.duration("[limits] failure_delay", raw.failure_delay, MILLISECOND..=MINUTE, &mut limits.failure_delay)?;
        self.duration("[limits] connect_timeout", raw.connect_timeout, SECOND..=10 * MINUTE, &mut limits.connect_timeout)?;
        self.number("[limits] commands_before_login", raw.commands_before_login, 20..=1_000_000, &mut limits.commands_before_login)?;
        self.size("[limits] command_size", raw.command_size, KIB..=16 * MIB, &mut limits.command_size)?;
        self.size("[limits] capability_size", raw.capability_size, KIB..=MIB, &mut limits.capability_size)?;
        self.size("[limits] login_memory", raw.login_memory, MIB..=1024 * 1024 * MIB, &mut limits.login_memory)?;
        self.size("[limits] session_memory", raw.session_memory, MIB..=1024 * 1024 * MIB, &mut limits.session_memory)?;
        self.duration("[limits] write_timeout", raw.write_timeout, SECOND..=DAY, &mut limits.write_timeout)?;
        limits.compress = raw.compress.unwrap_or(limits.compress);
        self.duration("[limits] answer_timeout", raw.answer_timeout, SECOND..=10 * MINUTE, &mut limits.answer_timeout)?;
        Ok(limits)
    }

    fn record(&self, raw: RawRecord) -> Result<Option<RecordConfig>> {
        let mut max_size = MIB as usize;
        self.size("[record] max_size", raw.max_size, KIB..=1024 * MIB, &mut max_size)?;
        let Some(folder) = raw.folder else { return Ok(None) };
        let folder = self.folder().join(folder);
        if !folder.is_dir() {
            let problem = format!("{} is no folder; make it", folder.display());
            return Err(self.refusal("[record] folder", problem));
        }
        Ok(Some(RecordConfig { folder, max_size: max_size as u64 }))
    }

    fn resolver(&self, raw: RawResolver) -> Result<ResolverConfig> {
        const SERVERS: &str = "[resolver] name_servers";
        let mut resolver = ResolverConfig::default();
        for text in raw.name_servers {
            let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
            let address = address.or_else(|_| text.parse::<SocketAddr>()).map_err(|_| {
                let allowed = "allowed is an IP address, also with a port, such as \"192.0.2.53\" or \
                               \"127.0.0.1:5353\"";
                self.refusal(SERVERS, format!("{text:?} is no address; {allowed}"))
            })?;
            resolver.name_servers.push(address);
        }
        self.number("[resolver] waiting", raw.waiting, 1..=1_000_000, &mut resolver.waiting)?;
        Ok(resolver)
    }

    fn admin(&self, raw: RawAdmin) -> Result<AdminConfig> {
        const ADDRESS: &str = "[admin] address";
        let RawAdmin { address: Some(text), group, hosts, expose_without_authentication } = raw
        else {
            return Ok(AdminConfig::default());
        };
        let hosts = hosts.iter().map(|host| self.admin_host(host)).collect::<Result<_>>()?;
        if let Some(path) = text.strip_prefix("unix:") {
            let path = self.folder().join(path);
            // It is made under a longer name, and the system allows 107.
            if path.as_os_str().len() > 90 || path.file_name().is_none() {
                let allowed = "allowed is the path of a file of at most 90 bytes, behind \"unix:\"";
                return Err(self.refusal(ADDRESS, format!("{text:?} is no socket; {allowed}")));
            }
            return Ok(AdminConfig { address: Some(AdminAddress::Unix { path, group }), hosts });
        }
        let address = text.parse::<SocketAddr>().map_err(|_| {
            let allowed = "allowed is an IP address with a port, such as \"127.0.0.1:8143\", or a Unix \
                           socket, such as \"unix:/run/mailchime/admin.sock\"";
            self.refusal(ADDRESS, format!("{text:?} is no address; {allowed}"))
        })?;
        if group.is_some() {
            let problem =
                "only a Unix socket has a group; give address = \"unix:…\", or leave it out";
            return Err(self.refusal("[admin] group", problem));
        }
        if !address.ip().is_loopback() && !expose_without_authentication.unwrap_or_default() {
            let problem = format!(
                "{address} can be reached from other machines, and nobody is asked for a password \
                 there; use \"127.0.0.1:8143\", or set expose_without_authentication = true if \
                 something else keeps strangers out"
            );
            return Err(self.refusal(ADDRESS, problem));
        }
        Ok(AdminConfig { address: Some(address.into()), hosts })
    }

    fn admin_host(&self, text: &str) -> Result<String> {
        let address = text.parse::<IpAddr>().map(|address| address.to_string());
        address.ok().or_else(|| domain(text)).ok_or_else(|| {
            let allowed = "allowed are names and IP addresses, without a port";
            self.refusal("[admin] hosts", format!("{text:?} is no host; {allowed}"))
        })
    }

    fn node(&self, raw: RawNode) -> Result<NodeConfig> {
        let mut node = NodeConfig { name: raw.name, ..NodeConfig::default() };
        if let Some(name) = &node.name
            && (name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_graphic()))
        {
            let allowed = "allowed are 1 to 64 characters of ASCII without blanks";
            return Err(self.refusal("[node] name", format!("{name:?} is no name; {allowed}")));
        }
        self.duration("[node] takeover", raw.takeover, 3 * SECOND..=HOUR, &mut node.takeover)?;
        Ok(node)
    }

    fn log(&self, raw: RawLog) -> Result<LogConfig> {
        let mut log = LogConfig::default();
        log.format = raw.format.unwrap_or(log.format);
        if let Some(level) = raw.level {
            // EnvFilter takes a misspelt level for the name of a module, and would be silent about
            // all others; so a bare word must be a level.
            let named = |part: &str| {
                part.contains('=') || (!part.is_empty() && part.parse::<LevelFilter>().is_ok())
            };
            if !level.split(',').all(|part| named(part.trim()))
                || EnvFilter::try_new(&level).is_err()
            {
                let allowed = "allowed are off, error, warn, info, debug and trace, also by module: \
                               \"info,mailchime::watch=debug\"";
                return Err(
                    self.refusal("[log] level", format!("{level:?} is not understood; {allowed}"))
                );
            }
            log.level = level;
        }
        Ok(log)
    }
}
