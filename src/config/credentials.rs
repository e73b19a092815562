//! `[credentials]`: with what watchers log in.

use std::path::PathBuf;

use serde::Deserialize;

use super::check::Check;

/// `[credentials]`: with what watchers log in, by `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CredentialsMode {
    /// With what each user logged in, encrypted in the database.
    #[default]
    Stored,
    /// With what each user logged in since the program's start.
    Memory,
    /// As the [`super::MasterUser`] of each backend.
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

/// `[credentials] key_file`, when none is given.
pub(super) const KEY_FILE: &str = "mailchime.key";

impl Check<'_> {
    /// The mode, and the key file.
    pub(super) fn credentials(&self, raw: RawCredentials) -> (CredentialsMode, PathBuf) {
        let mode = match raw.mode.unwrap_or(RawCredentialsMode::Stored) {
            RawCredentialsMode::Stored => CredentialsMode::Stored,
            RawCredentialsMode::Memory => CredentialsMode::Memory,
            RawCredentialsMode::Master => CredentialsMode::Master,
        };
        let key_file = raw.key_file.unwrap_or(KEY_FILE.to_owned());
        (mode, self.folder().join(key_file))
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
