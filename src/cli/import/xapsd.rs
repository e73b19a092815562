//! The database of xapsd (`internal/database` of dovecot-xaps-daemon): one file in JSON. Read in its forms of 2015
//! (accounts without a time), 2018 (with one) and 2020 (with the keys of Apple's certificates beside them, which are
//! skipped); the form of 2014, of the program in Python, is recognized.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::super::CommandFailure;
use super::{FormerDevices, FoundDevice, ImportOptions};
use crate::files;
use crate::model::{Mailbox, Timestamp};

/// A hundred thousand devices are a tenth of this.
const LARGEST: u64 = 256 * 1024 * 1024;

/// The only mail client that it takes.
const APP: &str = "com.apple.mobilemail";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct XapsdOptions {
    /// Its `databaseFile`, /var/lib/xapsd/database.json as a rule
    file: PathBuf,

    #[command(flatten)]
    common: ImportOptions,
}

/// Names as Go writes them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct XapsdDatabase {
    #[serde(default, deserialize_with = "those_named")]
    users: Option<BTreeMap<String, XapsdUser>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct XapsdUser {
    /// By the phone's id for the account.
    accounts: Option<BTreeMap<String, XapsdAccount>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct XapsdAccount {
    device_token: String,
    mailboxes: Option<Vec<String>>,
    /// Databases of the first versions have none.
    registration_time: Option<String>,
}

/// A user in the form of 2014, which has users at its top and no times.
#[derive(Deserialize)]
struct FirstXapsdUser {
    #[serde(rename = "accounts")]
    _accounts: BTreeMap<String, IgnoredAny>,
}

impl XapsdOptions {
    pub(super) fn common(&self) -> &ImportOptions {
        &self.common
    }

    /// Its registrations.
    pub(super) fn read(&self) -> Result<FormerDevices, CommandFailure> {
        let failed = |why: String| CommandFailure::Usage(format!("{}: {why}", self.file.display()));
        let (text, _) =
            files::read_text(&self.file, LARGEST).map_err(|error| failed(error.to_string()))?;
        let users = users(&text).map_err(failed)?;
        let mut devices = Vec::new();
        for (user, of_user) in users {
            for (account_id, account) in of_user.accounts.unwrap_or_default() {
                devices.push(account.device(&user, account_id));
            }
        }
        Ok(FormerDevices {
            devices,
            notes: vec![
                "xapsd never named mailboxes to phones, so these get pushes for INBOX alone until they \
                 register anew, within a day. Then all of their mailboxes count.",
                "xapsd has names of users in lower case, except its first versions. Where users log in with capitals and the server \
                 does not mind, set [backend] names_ignore_case = true; where they log in by another name \
                 than Dovecot's name of the user, the import is of no use to them.",
            ],
        })
    }
}

/// The users of a database, or why it is none.
fn users(text: &str) -> Result<BTreeMap<String, XapsdUser>, String> {
    // xapsd takes an empty file for a database without users.
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    let database: XapsdDatabase = serde_json::from_str(text).map_err(|error| {
        // The error itself could quote a token.
        let (line, column) = (error.line(), error.column());
        format!("is no database of xapsd (line {line}, column {column})")
    })?;
    if let Some(users) = database.users {
        return Ok(users);
    }
    let first: Option<BTreeMap<String, FirstXapsdUser>> = serde_json::from_str(text).ok();
    Err(match first.is_some_and(|users| !users.is_empty()) {
        true => "is of xapsd's first version, which kept no times: which phones still live is not known. \
                 Each phone that lives registers anew within a day"
            .to_owned(),
        false => "is no database of xapsd (it has no \"Users\")".to_owned(),
    })
}

/// The users where the key is there. Go writes a map that was never made as null.
fn those_named<'de, D: Deserializer<'de>>(
    value: D,
) -> Result<Option<BTreeMap<String, XapsdUser>>, D::Error> {
    let users: Option<BTreeMap<String, XapsdUser>> = Option::deserialize(value)?;
    Ok(Some(users.unwrap_or_default()))
}

impl XapsdAccount {
    fn device(self, user: &str, account_id: String) -> FoundDevice {
        let Self { device_token, mailboxes, registration_time } = self;
        let has_inbox =
            mailboxes.unwrap_or_default().iter().any(|name| Mailbox::new(name).is_inbox());
        FoundDevice {
            user: user.to_owned(),
            token: device_token,
            account_id,
            app: APP.to_owned(),
            // A phone to which no mailbox was named drops pushes that name one.
            version: if has_inbox { 1 } else { 2 },
            mailboxes: Vec::new(),
            registered_at: registration_time.as_deref().and_then(time),
        }
    }
}

/// A time as Go writes it, such as `2026-01-31T12:00:00.123456789+01:00`; `None` for year 1, which is none.
fn time(text: &str) -> Option<Timestamp> {
    let (local, ahead) = match text.strip_suffix('Z') {
        Some(local) => (local, 0),
        None => {
            let (local, zone) = text.split_at_checked(text.len().checked_sub(6)?)?;
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
            (local, if zone.starts_with('-') { -minutes } else { minutes })
        }
    };
    let seconds = local.split('.').next()?;
    let since = humantime::parse_rfc3339_weak(seconds).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let since = Timestamp(i64::try_from(since.as_millis()).ok()?);
    let zone = Duration::from_secs(ahead.unsigned_abs().checked_mul(60)?);
    Some(if ahead < 0 { since.plus(zone) } else { since.minus(zone) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_go_are_read_in_any_zone() {
        let noon = time("2026-01-31T12:00:00Z");
        assert_eq!(noon, Some(Timestamp(1_769_860_800_000)));
        for same in [
            "2026-01-31T12:00:00.123456789Z",
            "2026-01-31T13:00:00.5+01:00",
            "2026-01-31T06:30:00-05:30",
        ] {
            assert_eq!(time(same), noon, "{same}");
        }
        for none in
            ["0001-01-01T00:00:00Z", "", "Z", "+01:00", "yesterday", "2026-01-31T12:00:00é1:00"]
        {
            assert_eq!(time(none), None, "{none}");
        }
    }
}
