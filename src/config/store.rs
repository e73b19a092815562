//! `[store]`: the database.

use std::path::Path;
use std::time::Duration;

use super::check::{Check, CheckResult, MILLISECOND, MINUTE};
use super::database_url::DatabaseUrl;

/// `[store]`: the database. `Debug` shows no password.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// Which database. A relative path in the file begins at the file's folder.
    pub url: DatabaseUrl,
    /// How long a statement waits for another process's lock.
    pub busy_timeout: Duration,
}

table!(RawStore {
    url: Option<String>,
    busy_timeout: Option<String>,
});

/// `[store] url`, when none is given.
const FILE: &str = "mailchime.db";

impl Default for StoreConfig {
    fn default() -> Self {
        Self { url: DatabaseUrl::sqlite(Path::new(FILE)), busy_timeout: Duration::from_secs(5) }
    }
}

impl Check<'_> {
    pub(super) fn store(&self, raw: RawStore) -> CheckResult<StoreConfig> {
        let url = match raw.url {
            Some(url) => DatabaseUrl::parse(&url, self.folder())
                .map_err(|problem| self.refusal("[store] url", problem))?,
            None => DatabaseUrl::sqlite(&self.folder().join(FILE)),
        };
        let mut store = StoreConfig { url, ..StoreConfig::default() };
        let busy_timeout = &mut store.busy_timeout;
        self.duration(
            "[store] busy_timeout",
            raw.busy_timeout,
            MILLISECOND..=MINUTE,
            busy_timeout,
        )?;
        Ok(store)
    }
}

#[cfg(test)]
mod tests {
    use super::super::database_url::DatabaseKind;
    use super::super::tests::{parse, refused_with};

    /// A password ends where one of its characters means something else.
    const CUT_MARIADB: &str =
        "[store] url: mariadb://…: a character of the user or the password ends it; write / as %2F";
    const CUT_POSTGRES: &str = "[store] url: postgres://…: a character of the user or the password ends it; write / as %2F";

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
                "[store]\nurl = \"mysql://u:secret@db/mail?pasword=secret\"",
                "[store] url: mariadb://db:3306/mail: has an unknown parameter; allowed are socket",
            ),
            ("[store]\nurl = \"mysql://u:secret@db\"", "[store] url: mariadb://db:3306/: names no"),
            ("[store]\nurl = \"mysql://u:12/secret@db/mail\"", CUT_MARIADB),
            ("[store]\nurl = \"mariadb://u:se@cret/x@db/mail\"", CUT_MARIADB),
            ("[store]\nurl = \"postgres://u:12/secret@db/mail\"", CUT_POSTGRES),
            ("[store]\nurl = \"postgres://u:12?secret@db/mail\"", CUT_POSTGRES),
            ("[store]\nurl = \"postgres://u:12#secret@db/mail\"", CUT_POSTGRES),
            ("[store]\nurl = \"postgres://u:se@cret#x@db/mail\"", CUT_POSTGRES),
            ("[store]\nurl = \"postgres://u:se@cret?x@db/mail\"", CUT_POSTGRES),
            (
                "[store]\nurl = \"oracle://u:secret@db/mail\"",
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
            "postgres://mc:sesame%40@127.0.0.1/mail?dbname=a@b",
        ] {
            let config = parse(&format!("[store]\nurl = \"{url}\"")).unwrap();
            let DatabaseKind::Postgres(server) = config.store.url.kind() else { panic!("{url}") };
            let more = server.as_str().strip_prefix(url).unwrap();
            assert!(more.ends_with("application_name=mailchime") && !server.keeps_statements());
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
