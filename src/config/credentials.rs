//! `[credentials]`: with what watchers log in.

use std::path::PathBuf;

use serde::Deserialize;

use super::check::{Check, CheckResult};

/// `[credentials]`: with what watchers log in, by `mode`.
#[derive(Clone, Debug, PartialEq)]
pub enum CredentialsMode {
    /// With what each user logged in, encrypted in the database.
    Stored {
        /// May not exist yet; it is made at the first start.
        key_file: PathBuf,
    },
    /// With what each user logged in since the program's start.
    Memory,
    /// As the [`MasterUser`] of each backend.
    Master,
}

table!(RawCredentials {
    mode: Option<RawCredentialsMode>,
    key_file: Option<String>,
});

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub(super) enum RawCredentialsMode {
    Stored,
    Memory,
    Master,
}

impl CredentialsMode {
    /// Of the mode `stored`, when no other is given.
    const KEY_FILE: &str = "mailchime.key";
}

impl Default for CredentialsMode {
    fn default() -> Self {
        Self::Stored { key_file: Self::KEY_FILE.into() }
    }
}

impl Check<'_> {
    pub(super) fn credentials(&self, raw: RawCredentials) -> CheckResult<CredentialsMode> {
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

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, refused_with};
    use super::*;
    use crate::config::{Config, LoginTemplate, MasterUser};

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            ("[credentials]\nmode = \"plain\"", "[credentials] mode: unknown variant `plain`"),
            (
                "[credentials]\nmode = \"memory\"\nkey_file = \"a.key\"",
                "[credentials] key_file: has no meaning with mode = \"memory\"; remove it, or set mode = \
                 \"stored\"",
            ),
            (
                "[credentials]\nmode = \"master\"\nmaster_user = \"boss\"",
                "[credentials]: master_user is a key of the backend now, so that no backend is sent the \
                 password of another: move it to [backend], and to each [[route]] whose accounts are to \
                 be watched (line 6)",
            ),
        ] {
            refused_with(text, expected);
        }
    }

    #[test]
    fn credentials_have_three_modes() {
        let credentials =
            |text: &str| parse(&format!("[credentials]\n{text}")).unwrap().credentials;
        assert_eq!(credentials("mode = \"memory\""), CredentialsMode::Memory);
        let master = "[backend]\naddress = \"a:1\"\nmaster_user = \"boss\"\n\
                      master_password_file = \"certs/ca.pem\"\n";
        let config = |template: &str| {
            parse(&format!("{master}{template}\n[credentials]\nmode = \"master\"")).unwrap()
        };
        let Config { credentials, backend, .. } = config("");
        let MasterUser { name, password_file, login_template } = backend.master.unwrap();
        assert_eq!((credentials, &*name, login_template), (CredentialsMode::Master, "boss", None));
        assert!(password_file.ends_with("certs/ca.pem"));
        let with = config("login_template = \"{user}*{master}\"").backend.master.unwrap();
        assert_eq!(with.login_template.unwrap().login("alice", "boss"), "alice*boss");
        for bad in
            ["", "{user}", "{master}", "{user}{user}{master}", "{user}*{master}{", "{User}{master}"]
        {
            assert_eq!(LoginTemplate::new(bad), None, "{bad}");
        }
    }
}
