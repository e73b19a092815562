//! The URL of a database, which is read here and nowhere else.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::check::is_loopback;

/// Which database, and how to connect to it. `Display` and `Debug` show where it is and no password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    kind: DatabaseKind,
    /// What may be shown.
    shown: String,
    holds_password: bool,
    is_in_the_clear: bool,
}

/// What a [`DatabaseUrl`] leads to. `Debug` shows which kind it is.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseKind {
    /// A file of SQLite.
    Sqlite(PathBuf),
    /// A server of PostgreSQL.
    Postgres(ServerUrl),
    /// A server of MariaDB.
    MariaDb(ServerUrl),
}

/// How to connect to a server, in the words of its driver. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    text: String,
    keeps_statements: bool,
}

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
const POSTGRES_FILES: [&str; 3] = ["sslrootcert", "sslcert", "sslkey"];

const MARIADB: [&str; 2] = ["mariadb://", "mysql://"];
const MARIADB_PARAMETERS: [&str; 6] =
    ["socket", "ssl-ca", "ssl-cert", "ssl-key", "ssl-mode", "statement-cache-capacity"];
/// In which characters and by which order names come to the server.
const MARIADB_NAMES: &str = "charset=utf8mb4&collation=utf8mb4_nopad_bin";
/// Statements that each of a node's eight connections keeps prepared, unless the URL says another number. The server
/// takes 16,382 of all clients by default (`max_prepared_stmt_count`).
const MARIADB_STATEMENTS: &str = "&statement-cache-capacity=400";
const MARIADB_FILES: [&str; 3] = ["ssl-ca", "ssl-cert", "ssl-key"];

impl DatabaseUrl {
    /// What leads to a SQLite file.
    pub fn sqlite(path: &Path) -> Self {
        Self {
            kind: DatabaseKind::Sqlite(path.to_owned()),
            shown: format!("sqlite://{}", path.display()),
            holds_password: false,
            is_in_the_clear: false,
        }
    }

    /// The URL in `text`; a relative path in it begins at `folder`.
    ///
    /// # Errors
    /// What is wrong and what is allowed, without a password.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        if POSTGRES.iter().any(|scheme| text.starts_with(scheme)) {
            return Self::postgres(text);
        }
        if MARIADB.iter().any(|scheme| text.starts_with(scheme)) {
            return Self::mariadb(text);
        }
        let Some(path) = text.strip_prefix("sqlite://").filter(|path| names_a_file(path)) else {
            // A URL of another kind may hold a password, too.
            let shown = if text.contains('@') { "the URL".to_owned() } else { format!("{text:?}") };
            return Err(format!(
                "{shown} is not understood; allowed is \"sqlite://\" and the path of a file, such as \
                 \"sqlite:///var/lib/mailchime/mailchime.db\", \"postgres://user@host/database\" or \
                 \"mariadb://user@host/database\""
            ));
        };
        Ok(Self::sqlite(&folder.join(path)))
    }

    fn postgres(text: &str) -> Result<Self, String> {
        check_user(text, &POSTGRES_PARAMETERS).map_err(|it| format!("postgres://…: {it}"))?;
        let server = PgConnectOptions::from_str(text);
        let shown = server.as_ref().map_or("postgres://…".to_owned(), |server| {
            let database = server.get_database().unwrap_or(server.get_username());
            match server.get_socket() {
                Some(folder) => format!("postgres://{}/{database}", folder.display()),
                None => {
                    format!("postgres://{}:{}/{database}", server.get_host(), server.get_port())
                }
            }
        });
        check_parameters(text, &POSTGRES_PARAMETERS, &POSTGRES_FILES)
            .map_err(|problem| format!("{shown}: {problem}"))?;
        let server = server.map_err(|error| format!("{shown}: {error}"))?;
        let is_verified =
            matches!(server.get_ssl_mode(), PgSslMode::VerifyFull | PgSslMode::VerifyCa);
        let is_here = server.get_socket().is_some() || is_loopback(server.get_host());
        let name = server.get_application_name().is_none().then_some("application_name=mailchime");
        Ok(Self {
            kind: DatabaseKind::Postgres(ServerUrl::new(text, name)),
            shown,
            holds_password: holds_password(text),
            is_in_the_clear: !is_verified && !is_here,
        })
    }

    fn mariadb(text: &str) -> Result<Self, String> {
        check_user(text, &MARIADB_PARAMETERS).map_err(|it| format!("mariadb://…: {it}"))?;
        let server = MySqlConnectOptions::from_str(text);
        let shown = server.as_ref().map_or("mariadb://…".to_owned(), |server| {
            let database = server.get_database().unwrap_or_default();
            match server.get_socket() {
                Some(socket) => format!("mariadb://{}/{database}", socket.display()),
                None => format!("mariadb://{}:{}/{database}", server.get_host(), server.get_port()),
            }
        });
        check_parameters(text, &MARIADB_PARAMETERS, &MARIADB_FILES)
            .map_err(|problem| format!("{shown}: {problem}"))?;
        let server = server.map_err(|error| format!("{shown}: {error}"))?;
        if server.get_database().is_none() {
            return Err(format!("{shown}: names no database; write mariadb://user@host/database"));
        }
        let is_verified =
            matches!(server.get_ssl_mode(), MySqlSslMode::VerifyIdentity | MySqlSslMode::VerifyCa);
        let is_here = server.get_socket().is_some() || is_loopback(server.get_host());
        let statements = match text.contains("statement-cache-capacity=") {
            true => "",
            false => MARIADB_STATEMENTS,
        };
        // Arguments are compared as the columns are.
        let parameters = format!("{MARIADB_NAMES}{statements}");
        Ok(Self {
            kind: DatabaseKind::MariaDb(ServerUrl::new(text, Some(&parameters))),
            shown,
            holds_password: holds_password(text),
            is_in_the_clear: !is_verified && !is_here,
        })
    }

    /// What it leads to.
    pub fn kind(&self) -> &DatabaseKind {
        &self.kind
    }

    /// Whether it holds the password (or the key) of its user.
    pub fn holds_password(&self) -> bool {
        self.holds_password
    }

    /// What has the server's certificate verified.
    pub(crate) fn verification(&self) -> &'static str {
        match self.kind {
            DatabaseKind::MariaDb(_) => {
                "?ssl-mode=verify_identity (and ssl-ca=, for a private authority)"
            }
            _ => "?sslmode=verify-full (and sslrootcert=, for a private authority)",
        }
    }

    /// Whether what goes to the database can be read or changed on its way.
    pub(crate) fn is_in_the_clear(&self) -> bool {
        self.is_in_the_clear
    }
}

impl ServerUrl {
    /// The URL in `text` with one more parameter.
    fn new(text: &str, parameter: Option<&str>) -> Self {
        let given = text.split_once('?').map_or("", |(_, given)| given).split('&');
        let mut capacity = given.filter_map(|it| it.strip_prefix("statement-cache-capacity="));
        let keeps_statements = capacity.any(|capacity| capacity != "0");
        let separator = if text.contains('?') { '&' } else { '?' };
        let more = parameter.map(|parameter| format!("{separator}{parameter}"));
        Self { text: format!("{text}{}", more.unwrap_or_default()), keeps_statements }
    }

    /// The whole URL for the driver, maybe with a password.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether an operator says that statements may be kept prepared.
    pub fn keeps_statements(&self) -> bool {
        self.keeps_statements
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerUrl")
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    /// As [`DatabaseUrl::parse`]; a relative path begins at the folder of the program.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, Path::new(""))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for DatabaseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite(_) => "Sqlite",
            Self::Postgres(_) => "Postgres",
            Self::MariaDb(_) => "MariaDb",
        })
    }
}

/// No character of the user or the password ends that part of the URL: the rest of it would be shown as a host, a database or
/// a parameter.
fn check_user(text: &str, parameters: &[&str]) -> Result<(), String> {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let (authority, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (path, given) = behind.split_once('?').unwrap_or((behind, ""));
    let ends_before = !authority.is_empty() && !authority.contains('@') && behind.contains('@');
    let is_known =
        |given: &str| given.split_once('=').is_some_and(|(it, _)| parameters.contains(&it));
    let is_rest = |given: &str| given.contains('@') && !is_known(given);
    if ends_before || path.contains('@') || rest.contains('#') || given.split('&').any(is_rest) {
        return Err("a character of the user or the password ends it; write / as %2F, ? as %3F, # as %23, @ as %40 \
                    and % as %25"
            .to_owned());
    }
    Ok(())
}

/// Every parameter is one of those that are known, and names a file that is there where it has to.
fn check_parameters(text: &str, known: &[&str], files: &[&str]) -> Result<(), String> {
    let parameters = text.split_once('?').map_or("", |(_, parameters)| parameters);
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if !known.contains(&name) {
            // What is misspelt may be the name of a password.
            return Err(format!("has an unknown parameter; allowed are {}", known.join(", ")));
        }
        if files.contains(&name) && !value.contains('%') && !Path::new(value).is_file() {
            return Err(format!("{name}: {value} is not a file; name a PEM file"));
        }
    }
    Ok(())
}

fn holds_password(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("://") else { return false };
    let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let user = place.rsplit_once('@').map_or("", |(user, _)| user);
    user.contains(':') || parameters.split('&').any(|given| given.starts_with("password="))
}

/// Whether the part of a database URL after `sqlite://` is the path of a file and nothing more: a
/// database in memory would forget registrations, and parameters could turn off what keeps them.
fn names_a_file(path: &str) -> bool {
    !path.is_empty() && !path.starts_with(':') && !path.ends_with('/') && !path.contains(['?', '#'])
}
