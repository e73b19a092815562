//! The file as it is written: every key may be missing, an unknown one is an error.
//!
//! Nothing is judged here but names and types; ranges and defaults are `check`'s.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Collapse, ConfigError, LogFormat, PushType, RelayedLogins};

/// A table of the file. A macro, because the attributes of each must be the same.
macro_rules! table {
    ($name:ident { $($key:ident: $type:ty,)* }) => {
        #[derive(Debug, Default, Deserialize)]
        #[cfg_attr(test, derive(serde::Serialize))]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            $(pub(super) $key: $type,)*
        }
    };
}

table!(RawConfig {
    listener: Option<Vec<RawListener>>,
    tls: RawTls,
    auth: RawAuth,
    backend: RawBackend,
    route: Vec<RawRoute>,
    store: RawStore,
    credentials: RawCredentials,
    watch: RawWatch,
    push: RawPush,
    apns: Option<OneOrMore<RawApns>>,
    limits: RawLimits,
    resolver: RawResolver,
    admin: RawAdmin,
    node: RawNode,
    log: RawLog,
    record: RawRecord,
});

table!(RawListener {
    address: Option<String>,
    tls: Option<RawListenerTls>,
    proxy_protocol: Vec<String>,
});

table!(RawTls {
    certificate: Option<OnePathOrMore>,
    private_key: Option<OnePathOrMore>,
    sni: Vec<RawSni>,
});

table!(RawSni {
    name: Option<String>,
    certificate: Option<OnePathOrMore>,
    private_key: Option<OnePathOrMore>,
});

table!(RawAuth {
    relay: Option<RelayedLogins>,
});

table!(RawBackend {
    name: Option<String>,
    address: Option<String>,
    tls: Option<RawBackendTls>,
    ca: Option<String>,
    server_name: Option<String>,
    proxy_protocol: Option<bool>,
    send_id: Option<bool>,
    checks_token_name: Option<bool>,
    names_ignore_case: Option<bool>,
    master_user: Option<String>,
    master_password_file: Option<String>,
    login_template: Option<String>,
});

// `domain` and the keys of `RawBackend`, which serde cannot flatten into a table that refuses
// unknown keys.
table!(RawRoute {
    domain: Option<String>,
    name: Option<String>,
    address: Option<String>,
    tls: Option<RawBackendTls>,
    ca: Option<String>,
    server_name: Option<String>,
    proxy_protocol: Option<bool>,
    send_id: Option<bool>,
    checks_token_name: Option<bool>,
    names_ignore_case: Option<bool>,
    master_user: Option<String>,
    master_password_file: Option<String>,
    login_template: Option<String>,
});

impl RawRoute {
    pub(super) fn split(self) -> (Option<String>, RawBackend) {
        let backend = RawBackend {
            name: self.name,
            address: self.address,
            tls: self.tls,
            ca: self.ca,
            server_name: self.server_name,
            proxy_protocol: self.proxy_protocol,
            send_id: self.send_id,
            checks_token_name: self.checks_token_name,
            names_ignore_case: self.names_ignore_case,
            master_user: self.master_user,
            master_password_file: self.master_password_file,
            login_template: self.login_template,
        };
        (self.domain, backend)
    }
}

table!(RawStore {
    url: Option<String>,
    busy_timeout: Option<String>,
});

table!(RawCredentials {
    mode: Option<RawCredentialsMode>,
    key_file: Option<String>,
});

table!(RawWatch {
    idle_renewal: Option<String>,
    idle_check: Option<String>,
    poll_interval: Option<String>,
    poll_max: Option<String>,
    answer_timeout: Option<String>,
    logins_per_second: Option<i64>,
    connections: Option<i64>,
    retry_min: Option<String>,
    retry_max: Option<String>,
    settle: Option<String>,
});

table!(RawPush {
    quiet_delay: Option<String>,
    min_interval: Option<String>,
    max_delay: Option<String>,
    registration_ttl: Option<String>,
    clients: Option<Vec<String>>,
    mailboxes: Option<i64>,
    devices: Option<i64>,
    forget_devices_on_password_change: Option<bool>,
    accounts_per_device: Option<i64>,
    accounts_per_domain: Option<i64>,
    devices_per_domain: Option<i64>,
    accounts_per_backend: Option<i64>,
    devices_per_backend: Option<i64>,
    pushes_per_second_per_domain: Option<i64>,
    pushes_per_second_per_backend: Option<i64>,
    events: Option<Vec<RawEvent>>,
    collapse: Option<Collapse>,
    push_type: Option<PushType>,
    expiration: Option<String>,
    priority: Option<i64>,
});

table!(RawApns {
    endpoint: Option<String>,
    ca: Option<String>,
    certificate: Option<String>,
    private_key: Option<String>,
    password_file: Option<String>,
    key: Option<String>,
    key_id: Option<String>,
    team_id: Option<String>,
    topic: Option<String>,
    domains: Vec<String>,
    proxy: Option<String>,
    proxy_login_file: Option<String>,
    connect_timeout: Option<String>,
    request_timeout: Option<String>,
    ping_interval: Option<String>,
    in_flight: Option<i64>,
});

table!(RawLimits {
    sessions: Option<i64>,
    sessions_per_ip: Option<i64>,
    connections_per_account: Option<i64>,
    waiting: Option<i64>,
    login_failures_per_minute: Option<i64>,
    account_failures_per_minute: Option<i64>,
    dials_per_minute: Option<i64>,
    dials_at_once: Option<i64>,
    registrations_per_minute: Option<i64>,
    handshake_timeout: Option<String>,
    login_timeout: Option<String>,
    shutdown_grace: Option<String>,
    failure_delay: Option<String>,
    connect_timeout: Option<String>,
    commands_before_login: Option<i64>,
    command_size: Option<String>,
    capability_size: Option<String>,
    login_memory: Option<String>,
    session_memory: Option<String>,
    write_timeout: Option<String>,
    compress: Option<bool>,
    answer_timeout: Option<String>,
});

table!(RawResolver {
    name_servers: Vec<String>,
    waiting: Option<i64>,
});

table!(RawAdmin {
    address: Option<String>,
    group: Option<String>,
    hosts: Vec<String>,
    expose_without_authentication: Option<bool>,
});

table!(RawNode {
    name: Option<String>,
    takeover: Option<String>,
});

table!(RawLog {
    format: Option<LogFormat>,
    level: Option<String>,
});

table!(RawRecord {
    folder: Option<String>,
    max_size: Option<String>,
});

#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub(super) enum RawListenerTls {
    Implicit,
    StartTls,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub(super) enum RawBackendTls {
    None,
    StartTls,
    Implicit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub(super) enum RawCredentialsMode {
    Stored,
    Memory,
    Master,
}

/// `[table]`, or `[[table]]` as often as there is need.
#[derive(Debug)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) struct OneOrMore<T>(pub(super) Vec<T>);

/// `"path"`, or `["path", …]`.
#[derive(Debug)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) struct OnePathOrMore(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for OnePathOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Paths;

        impl<'de> Visitor<'de> for Paths {
            type Value = OnePathOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a list of paths")
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<Self::Value, E> {
                Ok(OnePathOrMore(vec![path.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, paths: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(paths)).map(OnePathOrMore)
            }
        }

        deserializer.deserialize_any(Paths)
    }
}

/// The names of RFC 5423 section 4 for what happens to a mail.
#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) enum RawEvent {
    MessageNew,
    MessageAppend,
    MessageRead,
    MessageTrash,
    MessageExpunge,
    MessageExpires,
    FlagsSet,
    FlagsClear,
}

// Not `untagged`, which would hide which key is at fault.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMore<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tables<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Tables<T> {
            type Value = OneOrMore<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table or several")
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(table)).map(|one| OneOrMore(vec![one]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, tables: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(tables)).map(OneOrMore)
            }
        }

        deserializer.deserialize_any(Tables(PhantomData))
    }
}

/// Keys of `[credentials]` in earlier versions.
const MOVED: [&str; 3] = ["master_user", "master_password_file", "login_template"];

/// Reads `text`, the content of the file `origin`.
pub(super) fn parse(text: &str, origin: &Path) -> Result<RawConfig, ConfigError> {
    toml::from_str(text).map_err(|mut error| {
        let line = error.span().map(|span| {
            let before = text.get(..span.start).unwrap_or(text);
            before.matches('\n').count() + 1
        });
        // Without its input the error shows no excerpt of the file but the path of the key, in a
        // last line "in `watch.idle_renewal`". An unknown key's path ends at its table.
        error.set_input(None);
        let shown = error.to_string();
        let path =
            shown.lines().last().and_then(|line| line.strip_prefix("in `")?.strip_suffix('`'));
        let mut problem = error.message().replacen("unknown field", "unknown key", 1);
        let moved = MOVED.iter().find(|key| {
            path == Some("credentials") && problem.starts_with(&format!("unknown key `{key}`"))
        });
        if let Some(key) = moved {
            problem = format!(
                "{key} is a key of the backend now, so that no backend is sent the password of \
                 another: move it to [backend], and to each [[route]] whose accounts are to be \
                 watched"
            );
        }
        if let Some(line) = line {
            problem.push_str(&format!(" (line {line})"));
        }
        ConfigError { file: origin.to_owned(), key: path.map(bracketed), problem }
    })
}

/// No key has a meaning with an empty text: a path would name the folder of the configuration, a name
/// everybody or nobody.
pub(super) fn refuse_empty(text: &str, origin: &Path) -> Result<(), ConfigError> {
    fn empty(value: &toml::Value) -> Option<String> {
        match value {
            toml::Value::String(text) => text.is_empty().then(String::new),
            toml::Value::Array(values) => values.iter().find_map(empty),
            toml::Value::Table(table) => table.iter().find_map(|(key, value)| {
                let rest = empty(value)?;
                Some(if rest.is_empty() { key.clone() } else { format!("{key}.{rest}") })
            }),
            _ => None,
        }
    }
    match toml::from_str(text).ok().as_ref().and_then(empty) {
        None => Ok(()),
        Some(path) => Err(ConfigError {
            file: origin.to_owned(),
            key: Some(bracketed(&path)),
            problem: "is empty; give a value, or remove the key for its default".to_owned(),
        }),
    }
}

/// `watch.idle_renewal` as an administrator sees it: `[watch] idle_renewal`.
fn bracketed(path: &str) -> String {
    for table in ["listener", "route", "tls.sni"] {
        match path.strip_prefix(table) {
            Some("") => return format!("[[{table}]]"),
            Some(key) if key.starts_with('.') => return format!("[[{table}]] {}", &key[1..]),
            _ => {}
        }
    }
    let (table, key) = path.split_once('.').unwrap_or((path, ""));
    format!("[{table}] {key}").trim_end().to_owned()
}
