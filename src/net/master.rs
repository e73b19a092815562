//! The user of a backend who may act as any other: a part of what is known of that backend, so that
//! no other one is ever sent the password.

use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::zeroize::Zeroizing;

use crate::config::{self, LoginTemplate};
use crate::model::{Account, Credentials};
use crate::secret_file::{Unfit, read_private};

/// A master user and the password. `Debug` does not show it.
#[derive(Debug)]
pub struct MasterCredentials {
    credentials: Credentials,
    template: Option<LoginTemplate>,
}

/// Why the file with a master's password cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("master password {}: {problem}; {remedy}", path.display())]
pub struct PasswordFileError {
    path: PathBuf,
    problem: String,
    remedy: String,
}

impl MasterCredentials {
    /// Reads the password from its file.
    ///
    /// # Errors
    /// [`PasswordFileError`] when the file cannot be read or holds no password.
    pub fn open(config: &config::MasterUser) -> Result<Self, PasswordFileError> {
        let config::MasterUser { name, password_file, login_template } = config;
        let password = read_private(password_file)
            .and_then(|(text, _)| password(&text).ok_or(Unfit::Malformed))
            .map_err(|unfit| unusable(unfit, password_file))?;
        let credentials = Credentials::password(name, password.to_vec());
        Ok(Self { credentials, template: login_template.clone() })
    }

    /// What to log in with as `account`.
    pub fn acting_as(&self, account: &Account) -> Credentials {
        let master = &self.credentials;
        match &self.template {
            None => master.clone().acting_as(account.as_str()),
            Some(template) => {
                let login = template.login(account.as_str(), &master.login);
                Credentials::password(login, master.expose_secret().to_vec())
            }
        }
    }

    /// Whether both are the same user with the same password.
    pub fn same_as(&self, other: &Self) -> bool {
        self.credentials.same_as(&other.credentials) && self.template == other.template
    }
}

impl fmt::Display for MasterCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.credentials.login.escape_debug())
    }
}

fn unusable(unfit: Unfit, path: &Path) -> PasswordFileError {
    let (problem, remedy) = unfit.told(
        path,
        "it must be a file that the user who runs mailchime can read",
        "does not hold a password on one line",
        "write the password of master_user into it, and nothing else",
    );
    PasswordFileError { path: path.to_owned(), problem, remedy }
}

/// The password that a file holds: its only line.
fn password(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let fits = !line.is_empty() && !line.contains(['\n', '\r', '\0']);
    fits.then(|| Zeroizing::new(line.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_password_file_holds_one_line() {
        for (text, expected) in [
            ("secret", Some("secret")),
            ("secret\n", Some("secret")),
            (" sec ret \r\n", Some(" sec ret ")),
            ("", None),
            ("\n", None),
            ("one\ntwo\n", None),
            ("one\n\n", None),
        ] {
            let found = password(text);
            let found = found.as_deref().map(|found| str::from_utf8(found).unwrap());
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn a_master_acts_as_any_user_by_either_way() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "open sesame\n").unwrap();
        let open = |template: Option<&str>| {
            MasterCredentials::open(&config::MasterUser {
                name: "boss".into(),
                password_file: file.path().to_owned(),
                login_template: template.map(|template| LoginTemplate::new(template).unwrap()),
            })
        };
        let alice = Account::from_login("alice@example.org");
        let master = open(None).unwrap();
        let expected = Credentials::password("boss", b"open sesame".to_vec());
        let expected = expected.acting_as("alice@example.org");
        assert!(master.acting_as(&alice).same_as(&expected));
        let shown = format!("{master:?} {master}");
        assert!(shown.contains("boss") && !shown.contains("sesame"), "{shown}");

        let by_name = open(Some("{user}*{master}")).unwrap();
        assert!(!by_name.same_as(&master) && by_name.same_as(&by_name));
        let login = "alice@example.org*boss";
        let expected = Credentials::password(login, b"open sesame".to_vec());
        assert!(by_name.acting_as(&alice).same_as(&expected));
        // A name may hold what means something in the template.
        let odd = by_name.acting_as(&Account::from_login("{master}{user}"));
        assert_eq!(odd.login, "{master}{user}*boss");

        for (mode, text, said) in
            [(0o640, "sesame", "chmod 600"), (0o600, "", "one line"), (0o600, "a\nb", "one line")]
        {
            fs::write(file.path(), text).unwrap();
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            let shown = open(None).unwrap_err().to_string();
            assert!(shown.contains(said) && !shown.contains("sesame"), "{shown}");
        }
    }
}
