//! The checks of `[store]` and `[credentials]`.

use std::path::Path;
use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::super::raw::{RawCredentials, RawCredentialsMode, RawStore};
use super::super::{CredentialsMode, StoreConfig, database_name};
use super::value::{is_loopback, names_a_file, percent_encoded};
use super::{Check, MILLISECOND, MINUTE, Result};

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

fn is_server(url: &str) -> bool {
    POSTGRES.iter().any(|scheme| url.starts_with(scheme))
}

impl Check<'_> {
    pub(super) fn store(&self, raw: RawStore) -> Result<StoreConfig> {
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

    fn database(&self, url: String) -> Result<String> {
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

    pub(super) fn credentials(&self, raw: RawCredentials) -> Result<CredentialsMode> {
        use RawCredentialsMode::{Master, Memory, Stored};
        let mode = raw.mode.unwrap_or(Stored);
        if raw.key_file.is_some() && mode != Stored {
            let has = format!("{mode:?}").to_lowercase();
            let problem = format!(
                "has no meaning with mode = \"{has}\"; remove it, or set mode = \"stored\""
            );
            return Err(self.refusal("[credentials] key_file", problem));
        }
        Ok(match mode {
            Stored => {
                let key_file = raw.key_file.unwrap_or(CredentialsMode::KEY_FILE.to_owned());
                CredentialsMode::Stored { key_file: self.folder().join(key_file) }
            }
            Memory => CredentialsMode::Memory,
            Master => CredentialsMode::Master,
        })
    }
}
