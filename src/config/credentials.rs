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
