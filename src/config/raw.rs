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

/// Tables that can be given several times.
const LISTS: [&str; 6] = ["listener", "route", "tls.sni", "events.source", "fcm", "webhook"];

/// Tables of which there is one.
const SINGLES: [&str; 16] = [
    "tls",
    "auth",
    "backend",
    "store",
    "credentials",
    "watch",
    "push",
    "webpush",
    "limits",
    "resolver",
    "admin",
    "api",
    "events",
    "node",
    "log",
    "record",
];

/// What is wrong with the text of a file.
pub(super) struct RawFault {
    pub(super) error: ConfigError,
    /// Where a value should be a text: the file with quotes around it, which says more of what is allowed.
    pub(super) quoted: Option<String>,
}

impl RawFault {
    /// The error; or the one of `quoted`, by `parse`, where it is about the same key.
    pub(super) fn explained(self, parse: impl FnOnce(&str) -> Option<ConfigError>) -> ConfigError {
        let Some(quoted) = self.quoted else { return self.error };
        match parse(&quoted) {
            Some(error) if error.key == self.error.key => error,
            _ => self.error,
        }
    }
}

/// Reads `text`, the content of the file `origin`.
pub(super) fn parse(text: &str, origin: &Path) -> Result<RawConfig, Box<RawFault>> {
    toml::from_str(text).map_err(|mut error| {
        let span = error.span();
        let line = span.clone().map(|span| line_at(text, span.start));
        // Without its input the error shows no excerpt of the file but the path of the key, in a
        // last line "in `watch.idle_renewal`". An unknown key's path ends at its table.
        error.set_input(None);
        let shown = error.to_string();
        let path =
            shown.lines().last().and_then(|line| line.strip_prefix("in `")?.strip_suffix('`'));
        let refused = |key, problem| ConfigError { file: origin.to_owned(), key, problem };
        if let Some((table, line, remedy)) = misbracketed(text) {
            let problem = format!("{remedy} (line {line})");
            let error = refused(Some(table), problem);
            return Box::new(RawFault { error, quoted: None });
        }
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
        if let Some(twice) = span.clone().and_then(|span| twice(text, span.start, &problem)) {
            problem = twice;
        }
        let quoted = span.and_then(|span| quoted(text, span, &problem));
        if let Some(told) = wrong_form(path, &problem) {
            problem = told;
        }
        if let Some(line) = line {
            problem.push_str(&format!(" (line {line})"));
        }
        Box::new(RawFault { error: refused(path.map(bracketed), problem), quoted })
    })
}

/// The number of the line with this byte.
fn line_at(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

/// The first table that has one pair of brackets and should have two, or the reverse: its name as it should be,
/// its line, and what to do.
fn misbracketed(text: &str) -> Option<(String, usize, String)> {
    text.lines().enumerate().find_map(|(at, line)| {
        let header = line.split('#').next().unwrap_or_default().trim();
        let double = header.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]"));
        let single = header.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let (table, remedy) = match (double, single) {
            (Some(name), _) if SINGLES.contains(&name) => (
                format!("[{name}]"),
                format!("is written [[{name}]]; there is one, so write [{name}]"),
            ),
            (None, Some(name)) if LISTS.contains(&name) => (
                format!("[[{name}]]"),
                format!("is written [{name}]; it can be given several times, so write [[{name}]]"),
            ),
            _ => return None,
        };
        Some((table, at + 1, remedy))
    })
}

/// What to do about a table or a key that is given a second time at this byte.
fn twice(text: &str, at: usize, problem: &str) -> Option<String> {
    if !problem.starts_with("duplicate key") {
        return None;
    }
    let start = text.get(..at)?.rfind('\n').map_or(0, |before| before + 1);
    let line = text.get(start..)?.lines().next()?;
    let line = line.split('#').next().unwrap_or_default().trim();
    Some(match (line.starts_with('['), line) {
        (true, "[apns]") => {
            "[apns] is given twice; put its keys into one table, or write [[apns]] each \
                             time for several certificates"
                .to_owned()
        }
        (true, table) => format!("{table} is given twice; put all its keys into one table"),
        (false, line) => {
            let key = line.split('=').next().unwrap_or_default().trim();
            format!("{key} is given twice in its table; remove one")
        }
    })
}

/// A value of the wrong form, in the words of the file in place of the parser's: what is expected, and how it is written.
fn wrong_form(path: Option<&str>, problem: &str) -> Option<String> {
    let (found, expected) = problem.strip_prefix("invalid type: ")?.rsplit_once(", expected ")?;
    if found == "map" && path.is_some_and(|path| LISTS.contains(&path)) {
        let table = path.unwrap_or_default();
        return Some(format!(
            "is written as one table; it can be given several times, so write [[{table}]]"
        ));
    }
    let expected = match expected {
        "i64" => "a whole number, without quotes",
        "a boolean" => "true or false, without quotes",
        "a sequence" => "a list, in brackets: [\"…\", \"…\"]",
        raw if raw.starts_with("struct Raw") => "a table with keys of its own",
        _ => return None,
    };
    Some(format!("invalid type: {found}, expected {expected}"))
}

/// The text with quotes around a number or a truth value that stands where a text should.
fn quoted(text: &str, span: std::ops::Range<usize>, problem: &str) -> Option<String> {
    let value = text.get(span.clone())?;
    let is_bare = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._:".contains(&b));
    let is_no_text = ["invalid type: ", "wanted "].iter().any(|start| problem.starts_with(start));
    if value.is_empty() || !is_bare || !is_no_text || !problem.contains("string") {
        return None;
    }
    Some(format!("{}\"{value}\"{}", text.get(..span.start)?, text.get(span.end..)?))
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
    for table in LISTS {
        match path.strip_prefix(table) {
            Some("") => return format!("[[{table}]]"),
            Some(key) if key.starts_with('.') => return format!("[[{table}]] {}", &key[1..]),
            _ => {}
        }
    }
    let (table, key) = path.split_once('.').unwrap_or((path, ""));
    format!("[{table}] {key}").trim_end().to_owned()
}
