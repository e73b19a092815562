//! From what the file says to what the program relies on: defaults, ranges, files that exist.
//!
//! A value that is refused is an error that names its key and what is allowed instead. What is
//! allowed but probably not meant becomes a warning.

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use rustls::pki_types::ServerName;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::raw::{
    RawApns, RawBackend, RawBackendTls, RawConfig, RawCredentials, RawCredentialsMode, RawLimits,
    RawListener, RawListenerTls, RawLog, RawPush, RawStore, RawTls, RawWatch,
};
use super::{
    Apns, Backend, BackendTls, Config, ConfigError, Credentials, Endpoint, Limits, Listener, Log,
    Push, PushType, Store, Tls, Watch,
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
    let mut config = Config::new(check.tls(raw.tls)?, check.backend(raw.backend)?);
    if let Some(listeners) = raw.listener {
        config.listeners = check.listeners(listeners)?;
    }
    config.store = check.store(raw.store)?;
    config.credentials = check.credentials(raw.credentials);
    config.watch = check.watch(raw.watch)?;
    config.push = check.push(raw.push)?;
    config.apns = raw.apns.map(|raw| check.apns(raw)).transpose()?;
    config.limits = check.limits(raw.limits)?;
    config.log = check.log(raw.log)?;
    config.warnings = warnings(&config);
    Ok(config)
}

fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let Backend { host, tls, .. } = &config.backend;
    if *tls == BackendTls::None && !is_loopback(host) {
        warnings.push(format!(
            "[backend] tls = \"none\": passwords and mail travel to {host} unencrypted; use \
             \"implicit\" unless the whole way is yours"
        ));
    }
    if config.apns.is_none() {
        warnings.push(
            "there is no [apns] table: nothing is pushed, and clients are not offered \
             XAPPLEPUSHSERVICE"
                .to_owned(),
        );
    }
    warnings
}

/// The checks of one file, one method per table and then one per kind of value. The latter take the
/// key for the message, and leave the default in `value` when the file is silent.
struct Check<'a> {
    origin: &'a Path,
}

impl Check<'_> {
    fn listeners(&self, raw: Vec<RawListener>) -> Result<Vec<Listener>> {
        const ADDRESS: &str = "[[listener]] address";
        let mut listeners: Vec<Listener> = Vec::new();
        for RawListener { address, tls } in raw {
            let mut listener = Listener::default();
            match tls {
                None | Some(RawListenerTls::Implicit) => {}
            }
            if let Some(text) = address {
                listener.address = text.parse::<SocketAddr>().map_err(|_| {
                    let allowed = "allowed is an IP address with a port, such as \"[::]:993\" or \
                                   \"192.0.2.1:993\"";
                    self.refusal(ADDRESS, format!("{text:?} is no address; {allowed}"))
                })?;
            }
            // Port 0 is another port each time.
            if listener.address.port() != 0 && listeners.contains(&listener) {
                let address = listener.address;
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

    fn tls(&self, raw: RawTls) -> Result<Tls> {
        Ok(Tls {
            certificate: self.required_file("[tls] certificate", raw.certificate)?,
            private_key: self.required_file("[tls] private_key", raw.private_key)?,
        })
    }

    fn backend(&self, raw: RawBackend) -> Result<Backend> {
        const ADDRESS: &str = "[backend] address";
        let allowed = "give the IMAP server as \"host:port\", such as \"imap.example.org:993\"";
        let Some(address) = raw.address else {
            return Err(self.refusal(ADDRESS, format!("missing; {allowed}")));
        };
        let Some((host, port)) = host_and_port(&address) else {
            return Err(self.refusal(ADDRESS, format!("{address:?} is no address; {allowed}")));
        };
        let tls = match raw.tls.unwrap_or(RawBackendTls::Implicit) {
            RawBackendTls::None => {
                for (key, value) in [("ca", &raw.ca), ("server_name", &raw.server_name)] {
                    if value.is_some() {
                        let problem = "has no meaning with tls = \"none\"; remove one of the two";
                        return Err(self.refusal(&format!("[backend] {key}"), problem));
                    }
                }
                BackendTls::None
            }
            RawBackendTls::Implicit => {
                // A host that cannot stand in a certificate is a fault only where it would have to.
                let (key, server_name) = match raw.server_name {
                    Some(name) => ("[backend] server_name", name),
                    None => (ADDRESS, host.clone()),
                };
                if ServerName::try_from(server_name.as_str()).is_err() {
                    let problem = format!(
                        "{server_name:?} cannot be the name in a certificate; allowed is a host \
                         name or an IP address without port"
                    );
                    return Err(self.refusal(key, problem));
                }
                BackendTls::Implicit { ca: self.file("[backend] ca", raw.ca)?, server_name }
            }
        };
        Ok(Backend { host, port, tls })
    }

    fn store(&self, raw: RawStore) -> Result<Store> {
        let mut store = Store::default();
        let url = raw.url.unwrap_or(store.url);
        let Some(path) = url.strip_prefix("sqlite://").filter(|path| names_a_file(path)) else {
            let allowed = "allowed is \"sqlite://\" and the path of a file, such as \
                           \"sqlite:///var/lib/mailchime/mailchime.db\"";
            return Err(
                self.refusal("[store] url", format!("{url:?} is not understood; {allowed}"))
            );
        };
        let folder = self.folder();
        store.url = if path.starts_with('/') || folder.as_os_str().is_empty() {
            url
        } else {
            format!("sqlite://{}/{path}", percent_encoded(folder).trim_end_matches('/'))
        };
        let busy_timeout = &mut store.busy_timeout;
        self.duration(
            "[store] busy_timeout",
            raw.busy_timeout,
            MILLISECOND..=MINUTE,
            busy_timeout,
        )?;
        Ok(store)
    }

    fn credentials(&self, raw: RawCredentials) -> Credentials {
        match raw.mode {
            None | Some(RawCredentialsMode::Stored) => {}
        }
        let key_file = raw.key_file.map_or(Credentials::default().key_file, PathBuf::from);
        Credentials { key_file: self.folder().join(key_file) }
    }

    #[rustfmt::skip] // a table: one key, one line
    fn watch(&self, raw: RawWatch) -> Result<Watch> {
        let mut watch = Watch::default();
        self.duration("[watch] idle_renewal", raw.idle_renewal, MINUTE..=29 * MINUTE, &mut watch.idle_renewal)?;
        self.duration("[watch] poll_interval", raw.poll_interval, SECOND..=DAY, &mut watch.poll_interval)?;
        self.duration("[watch] answer_timeout", raw.answer_timeout, SECOND..=10 * MINUTE, &mut watch.answer_timeout)?;
        self.number("[watch] logins_per_second", raw.logins_per_second, 1..=100_000, &mut watch.logins_per_second)?;
        self.duration("[watch] retry_min", raw.retry_min, 10 * MILLISECOND..=HOUR, &mut watch.retry_min)?;
        self.duration("[watch] retry_max", raw.retry_max, 10 * MILLISECOND..=DAY, &mut watch.retry_max)?;
        self.duration("[watch] settle", raw.settle, MILLISECOND..=MINUTE, &mut watch.settle)?;
        self.not_above(("[watch] retry_min", watch.retry_min), ("retry_max", watch.retry_max))?;
        Ok(watch)
    }

    #[rustfmt::skip] // a table: one key, one line
    fn push(&self, raw: RawPush) -> Result<Push> {
        let mut push = Push::default();
        self.duration("[push] quiet_delay", raw.quiet_delay, MILLISECOND..=HOUR, &mut push.quiet_delay)?;
        self.duration("[push] min_interval", raw.min_interval, MILLISECOND..=HOUR, &mut push.min_interval)?;
        self.duration("[push] max_delay", raw.max_delay, MILLISECOND..=HOUR, &mut push.max_delay)?;
        // Devices register anew every 23 hours: a shorter life would forget those that are well.
        self.duration("[push] registration_ttl", raw.registration_ttl, 2 * DAY..=365 * DAY, &mut push.registration_ttl)?;
        self.number("[push] mailboxes", raw.mailboxes, 1..=10_000, &mut push.mailboxes)?;
        self.number("[push] devices", raw.devices, 1..=10_000, &mut push.devices)?;
        self.duration("[push] expiration", raw.expiration, MINUTE..=30 * DAY, &mut push.expiration)?;
        self.not_above(("[push] quiet_delay", push.quiet_delay), ("max_delay", push.max_delay))?;
        self.not_above(("[push] min_interval", push.min_interval), ("max_delay", push.max_delay))?;
        if let Some(clients) = raw.clients {
            push.clients = self.clients(clients)?;
        }
        push.push_type = raw.push_type.unwrap_or(push.push_type);
        push.priority = self.priority(raw.priority, push.push_type)?;
        Ok(push)
    }

    fn clients(&self, clients: Vec<String>) -> Result<Vec<String>> {
        let allowed = "allowed are bundle ids of letters, digits, \".\", \"-\" and \"_\", exact or \
                       with \"*\" as the last character";
        let refusal = |problem: String| self.refusal("[push] clients", problem);
        if clients.is_empty() {
            return Err(refusal(format!(
                "the list is empty, so no device could register; {allowed}"
            )));
        }
        let fits = |client: &str| {
            let exact = client.strip_suffix('*').unwrap_or(client);
            !client.is_empty()
                && exact.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        };
        match clients.iter().find(|client| !fits(client)) {
            Some(client) => Err(refusal(format!("{client:?} is not understood; {allowed}"))),
            None => Ok(clients),
        }
    }

    fn priority(&self, priority: Option<i64>, push_type: PushType) -> Result<Option<u8>> {
        let problem = match (priority, push_type) {
            (None, _) => return Ok(None),
            (Some(1), _) => return Ok(Some(1)),
            (Some(5), _) => return Ok(Some(5)),
            (Some(10), PushType::Alert) => return Ok(Some(10)),
            (Some(10), PushType::Background) => {
                "10 is refused by APNs for background pushes; use 5 or 1, or push_type = \"alert\""
                    .to_owned()
            }
            (Some(other), _) => format!("{other} does not exist; allowed are 1, 5 and 10"),
        };
        Err(self.refusal("[push] priority", problem))
    }

    #[rustfmt::skip] // a table: one key, one line
    fn apns(&self, raw: RawApns) -> Result<Apns> {
        let mut apns = Apns::new(
            self.required_file("[apns] certificate", raw.certificate)?,
            self.required_file("[apns] private_key", raw.private_key)?,
        );
        if let Some(endpoint) = raw.endpoint {
            apns.endpoint = self.endpoint(&endpoint)?;
        }
        apns.ca = self.file("[apns] ca", raw.ca)?;
        self.duration("[apns] connect_timeout", raw.connect_timeout, SECOND..=10 * MINUTE, &mut apns.connect_timeout)?;
        self.duration("[apns] request_timeout", raw.request_timeout, SECOND..=10 * MINUTE, &mut apns.request_timeout)?;
        self.duration("[apns] ping_interval", raw.ping_interval, SECOND..=HOUR, &mut apns.ping_interval)?;
        self.number("[apns] in_flight", raw.in_flight, 1..=100_000, &mut apns.in_flight)?;
        Ok(apns)
    }

    fn endpoint(&self, text: &str) -> Result<Endpoint> {
        let address = match text {
            "production" => return Ok(Endpoint::production()),
            "sandbox" => return Ok(Endpoint::sandbox()),
            other => other.strip_prefix("https://").and_then(host_and_port),
        };
        match address {
            Some((host, port)) if ServerName::try_from(host.as_str()).is_ok() => {
                Ok(Endpoint { host, port })
            }
            _ => {
                let allowed = "allowed are \"production\", \"sandbox\" and \"https://host:port\"";
                Err(self
                    .refusal("[apns] endpoint", format!("{text:?} is not understood; {allowed}")))
            }
        }
    }

    #[rustfmt::skip] // a table: one key, one line
    fn limits(&self, raw: RawLimits) -> Result<Limits> {
        let mut limits = Limits::default();
        self.number("[limits] sessions", raw.sessions, 1..=1_000_000, &mut limits.sessions)?;
        self.duration("[limits] handshake_timeout", raw.handshake_timeout, SECOND..=10 * MINUTE, &mut limits.handshake_timeout)?;
        self.duration("[limits] login_timeout", raw.login_timeout, SECOND..=HOUR, &mut limits.login_timeout)?;
        self.duration("[limits] shutdown_grace", raw.shutdown_grace, MILLISECOND..=10 * MINUTE, &mut limits.shutdown_grace)?;
        self.duration("[limits] failure_delay", raw.failure_delay, MILLISECOND..=MINUTE, &mut limits.failure_delay)?;
        self.duration("[limits] connect_timeout", raw.connect_timeout, SECOND..=10 * MINUTE, &mut limits.connect_timeout)?;
        self.size("[limits] command_size", raw.command_size, KIB..=16 * MIB, &mut limits.command_size)?;
        self.size("[limits] capability_size", raw.capability_size, KIB..=MIB, &mut limits.capability_size)?;
        self.duration("[limits] write_timeout", raw.write_timeout, SECOND..=DAY, &mut limits.write_timeout)?;
        Ok(limits)
    }

    fn log(&self, raw: RawLog) -> Result<Log> {
        let mut log = Log::default();
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

    // --- kinds of value ---

    fn duration(
        &self,
        key: &str,
        text: Option<String>,
        allowed: RangeInclusive<Duration>,
        value: &mut Duration,
    ) -> Result<()> {
        let Some(text) = text else { return Ok(()) };
        let range = format!("allowed is {} to {}", shown(*allowed.start()), shown(*allowed.end()));
        *value = humantime::parse_duration(&text).map_err(|error| {
            self.refusal(key, format!("{text:?} is no duration ({error}); {range}"))
        })?;
        self.in_range(key, &text, allowed.contains(value), range)
    }

    fn size(
        &self,
        key: &str,
        text: Option<String>,
        allowed: RangeInclusive<u64>,
        value: &mut usize,
    ) -> Result<()> {
        let Some(text) = text else { return Ok(()) };
        let shown = |bytes: u64| match bytes {
            bytes if bytes.is_multiple_of(MIB) => format!("{}MiB", bytes / MIB),
            bytes => format!("{}KiB", bytes / KIB),
        };
        let range = format!("allowed is {} to {}", shown(*allowed.start()), shown(*allowed.end()));
        // A number without a unit is a guess what was meant.
        let bytes = match text.parse::<ByteSize>() {
            Ok(bytes) if text.ends_with(|c: char| c.is_ascii_alphabetic()) => bytes.as_u64(),
            _ => return Err(self.refusal(key, format!("{text:?} is no size with a unit; {range}"))),
        };
        *value = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.in_range(key, &text, allowed.contains(&bytes), range)
    }

    fn number<T: TryFrom<i64>>(
        &self,
        key: &str,
        number: Option<i64>,
        allowed: RangeInclusive<i64>,
        value: &mut T,
    ) -> Result<()> {
        let Some(number) = number else { return Ok(()) };
        let range = format!("allowed is {} to {}", allowed.start(), allowed.end());
        let fits = allowed.contains(&number);
        if let (true, Ok(number)) = (fits, T::try_from(number)) {
            *value = number;
        }
        self.in_range(key, &number.to_string(), fits, range)
    }

    fn in_range(&self, key: &str, value: &str, fits: bool, range: String) -> Result<()> {
        match fits {
            true => Ok(()),
            false => Err(self.refusal(key, format!("{value} is out of range; {range}"))),
        }
    }

    fn not_above(&self, low: (&str, Duration), high: (&str, Duration)) -> Result<()> {
        if low.1 <= high.1 {
            return Ok(());
        }
        let [value, limit] = [low.1, high.1].map(shown);
        let problem = format!("{value} is longer than {} ({limit}); lower it", high.0);
        Err(self.refusal(low.0, problem))
    }

    fn required_file(&self, key: &str, path: Option<String>) -> Result<PathBuf> {
        self.file(key, path)?.ok_or_else(|| {
            let remedy = "name a PEM file; `mailchime certs dev` makes one to try with";
            self.refusal(key, format!("missing; {remedy}"))
        })
    }

    /// The path from the folder of the configuration, of a file that can be read.
    fn file(&self, key: &str, path: Option<String>) -> Result<Option<PathBuf>> {
        let Some(path) = path else { return Ok(None) };
        let path = self.folder().join(path);
        let problem = match fs::metadata(&path).and_then(|found| {
            // Opened only when it is a file: opening a pipe would wait for its other end.
            if found.is_file() { fs::File::open(&path).map(|_| true) } else { Ok(false) }
        }) {
            Ok(true) => return Ok(Some(path)),
            Ok(false) => "is not a file; name a PEM file".to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                "does not exist; correct the path, which starts at the folder of the configuration \
                 file, or make the file"
                    .to_owned()
            }
            Err(error) => {
                format!("cannot be read ({error}); let the user that mailchime runs as read it")
            }
        };
        Err(self.refusal(key, format!("{} {problem}", path.display())))
    }

    fn folder(&self) -> &Path {
        self.origin.parent().unwrap_or(Path::new(""))
    }

    fn refusal(&self, key: &str, problem: impl fmt::Display) -> ConfigError {
        ConfigError {
            file: self.origin.to_owned(),
            key: Some(key.to_owned()),
            problem: problem.to_string(),
        }
    }
}

/// A duration in the largest unit of which it is a multiple.
fn shown(duration: Duration) -> String {
    let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (SECOND, "s"), (MILLISECOND, "ms")];
    let fitting =
        units.iter().find(|(unit, _)| duration.as_nanos().is_multiple_of(unit.as_nanos()));
    match fitting {
        Some((unit, name)) => format!("{}{name}", duration.as_nanos() / unit.as_nanos()),
        None => format!("{duration:?}"),
    }
}

/// `host:port` or `[IPv6]:port`; the host comes without brackets.
fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let valid = match bracketed {
        Some(inner) => inner.contains(':') && inner.bytes().all(|b| b.is_ascii_graphic()),
        None => {
            let in_names = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
            !host.is_empty() && host.bytes().all(in_names)
        }
    };
    valid.then(|| (bracketed.unwrap_or(host).to_owned(), port))
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether the part of a database URL after `sqlite://` is the path of a file and nothing more: a
/// database in memory would forget registrations, and parameters could turn off what keeps them.
fn names_a_file(path: &str) -> bool {
    !path.is_empty() && !path.starts_with(':') && !path.ends_with('/') && !path.contains(['?', '#'])
}

/// A folder as a part of a URL (RFC 3986 section 2.1).
fn percent_encoded(folder: &Path) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
    let bytes = folder.as_os_str().as_encoded_bytes();
    bytes.iter().fold(String::new(), |mut encoded, &byte| {
        match plain(byte) {
            true => encoded.push(char::from(byte)),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}
