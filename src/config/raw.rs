//! The file as it is written: every key may be missing, an unknown one is an error.
//!
//! Nothing is judged here but names and types; ranges and defaults are those of each table.

use std::path::Path;

use super::admin::RawAdmin;
use super::api::RawApi;
use super::apns::RawApns;
use super::auth::RawAuth;
use super::backend::RawBackend;
use super::credentials::RawCredentials;
use super::error::ConfigError;
use super::events::RawEvents;
use super::fcm::RawFcm;
use super::limits::RawLimits;
use super::listener::RawListener;
use super::log::RawLog;
use super::node::RawNode;
use super::push::RawPush;
use super::record::RawRecord;
use super::resolver::RawResolver;
use super::route::RawRoute;
use super::store::RawStore;
use super::table::OneOrMore;
use super::tls::RawTls;
use super::watch::RawWatch;
use super::webhook::RawWebhook;
use super::webpush::RawWebPush;

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
    fcm: Vec<RawFcm>,
    webhook: Vec<RawWebhook>,
    webpush: RawWebPush,
    limits: RawLimits,
    resolver: RawResolver,
    admin: RawAdmin,
    api: RawApi,
    events: RawEvents,
    node: RawNode,
    log: RawLog,
    record: RawRecord,
});

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
    for table in ["listener", "route", "tls.sni", "events.source", "fcm", "webhook"] {
        match path.strip_prefix(table) {
            Some("") => return format!("[[{table}]]"),
            Some(key) if key.starts_with('.') => return format!("[[{table}]] {}", &key[1..]),
            _ => {}
        }
    }
    let (table, key) = path.split_once('.').unwrap_or((path, ""));
    format!("[{table}] {key}").trim_end().to_owned()
}
