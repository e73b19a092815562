//! `[store]`: the database.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::check::{Check, CheckResult, MILLISECOND, MINUTE, is_loopback};

const POSTGRES: [&str; 2] = ["postgres://", "postgresql://"];
/// What may follow the `?`.
const POSTGRES_PARAMETERS: [&str; 13] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// `[store]`: the database. `Debug` shows no password.
#[derive(Clone, PartialEq)]
pub struct StoreConfig {
    /// `sqlite://` and a path, where a relative path in the file has been put below the file's
    /// folder; or `postgres://` and what a connection needs, maybe with a password.
    pub url: String,
    /// How long a statement waits for another process's lock.
    pub busy_timeout: Duration,
}

table!(RawStore {
    url: Option<String>,
    busy_timeout: Option<String>,
});

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

/// Whether what goes to a database of this URL can be read or changed on its way.
pub(super) fn is_in_the_clear(url: &str) -> bool {
    if !is_server(url) {
        return false;
    }
    PgConnectOptions::from_str(url).is_ok_and(|server| {
        let verified = matches!(server.get_ssl_mode(), PgSslMode::VerifyFull | PgSslMode::VerifyCa);
        !verified && server.get_socket().is_none() && !is_loopback(server.get_host())
    })
}

/// Whether the URL of a database holds the password (or the key) of its user.
pub(super) fn holds_password(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://").filter(|_| is_server(url)) else { return false };
    let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let user = place.rsplit_once('@').map_or("", |(user, _)| user);
    user.contains(':') || parameters.split('&').any(|given| given.starts_with("password="))
}

impl Check<'_> {
    pub(super) fn store(&self, raw: RawStore) -> CheckResult<StoreConfig> {
        let mut store = StoreConfig::default();
        store.url = self.database(raw.url.unwrap_or(store.url))?;
        let busy_timeout = &mut store.busy_timeout;
        self.duration(
            "[store] busy_timeout",
            raw.busy_timeout,
            MILLISECOND..=MINUTE,
            busy_timeout,
        )?;
        Ok(store)
    }

    fn database(&self, url: String) -> CheckResult<String> {
        const URL: &str = "[store] url";
        if is_server(&url) {
            let problem =
                |problem| self.refusal(URL, format!("{}: {problem}", database_name(&url)));
            let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
            for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
                let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                if !POSTGRES_PARAMETERS.contains(&name) {
                    let allowed = POSTGRES_PARAMETERS.join(", ");
                    // What is misspelt may be the name of a password.
                    return Err(problem(format!(
                        "has an unknown parameter; allowed are {allowed}"
                    )));
                }
                let is_file = ["sslrootcert", "sslcert", "sslkey"].contains(&name);
                if is_file && !value.contains('%') && !Path::new(value).is_file() {
                    return Err(problem(format!("{name}: {value} is not a file; name a PEM file")));
                }
            }
            return match PgConnectOptions::from_str(&url) {
                Ok(_) => Ok(url),
                Err(error) => Err(problem(error.to_string())),
            };
        }
        let Some(path) = url.strip_prefix("sqlite://").filter(|path| names_a_file(path)) else {
            let allowed = "allowed is \"sqlite://\" and the path of a file, such as \
                           \"sqlite:///var/lib/mailchime/mailchime.db\", or \
                           \"postgres://user@host/database\"";
            // A URL of another kind may hold a password, too.
            let shown = if url.contains('@') { "the URL".to_owned() } else { format!("{url:?}") };
            return Err(self.refusal(URL, format!("{shown} is not understood; {allowed}")));
        };
        let folder = self.folder();
        Ok(if path.starts_with('/') || folder.as_os_str().is_empty() {
            url
        } else {
            format!("sqlite://{}/{path}", percent_encoded(folder).trim_end_matches('/'))
        })
    }
}

fn is_server(url: &str) -> bool {
    POSTGRES.iter().any(|scheme| url.starts_with(scheme))
}

/// Whether the part of a database URL after `sqlite://` is the path of a file and nothing more: a
/// database in memory would forget registrations, and parameters could turn off what keeps them.
fn names_a_file(path: &str) -> bool {
    !path.is_empty() && !path.starts_with(':') && !path.ends_with('/') && !path.contains(['?', '#'])
}

/// A folder as a part of a URL (RFC 3986 section 2.1).
fn percent_encoded(folder: &Path) -> String {
    const ESCAPED: AsciiSet =
        NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    percent_encode(folder.as_os_str().as_encoded_bytes(), &ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, refused_with};

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            (
                "[store]\nurl = \"mailchime.db\"",
                "[store] url: \"mailchime.db\" is not understood; allowed is",
            ),
            ("[store]\nurl = \"sqlite://:memory:\"", "[store] url: "),
            ("[store]\nurl = \"sqlite://mail.db?mode=memory\"", "[store] url: "),
            (
                "[store]\nurl = \"postgres://u:secret@db:5432/mail?pasword=secret\"",
                "[store] url: postgres://db:5432/mail: has an unknown parameter; allowed are application",
            ),
            (
                "[store]\nurl = \"postgres://u:secret@db/mail?sslrootcert=no.pem\"",
                "[store] url: postgres://db:5432/mail: sslrootcert: no.pem is not a file",
            ),
            ("[store]\nurl = \"postgres://u:secret@db:x/mail\"", "[store] url: postgres://…: "),
            (
                "[store]\nurl = \"mysql://u:secret@db/mail\"",
                "[store] url: the URL is not understood",
            ),
        ] {
            refused_with(text, expected);
        }
    }

    #[test]
    fn a_database_server_is_taken_as_it_is_given_and_its_password_not_shown() {
        for url in [
            "postgres://mc:sesame@127.0.0.1/mail",
            "postgresql://mc@db.example.org:5433/mail?sslmode=verify-full&password=sesame",
            "postgres:///mail?host=/run/postgresql&user=mc&password=sesame",
        ] {
            let config = parse(&format!("[store]\nurl = \"{url}\"")).unwrap();
            assert_eq!(config.store.url, url);
            assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
            let shown = format!("{config:?}");
            assert!(!shown.contains("sesame") && shown.contains("postgres://"), "{shown}");
        }
        for mode in ["", "?sslmode=require", "?sslmode=disable"] {
            let url = format!("postgres://mc:sesame@db.example.org/mail{mode}");
            let warnings = parse(&format!("[store]\nurl = \"{url}\"")).unwrap().warnings;
            assert!(warnings[0].starts_with("[store] url: device tokens"), "{warnings:?}");
            assert!(!warnings[0].contains("sesame"), "{warnings:?}");
        }
    }
}
