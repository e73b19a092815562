//! What a client reads: the JSON that mailchime says to all who are no phone of Apple's. It names the account
//! and what has changed, and nothing of a message. Pure.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::encrypt::MOST;
use crate::model::{Account, ChangeKind, Timestamp};
use crate::push::transport::{MailboxChange, Notice};

/// How many mailboxes one message names: as many as fit with names of usual lengths.
pub(super) const MAX_MAILBOXES: usize = 10;

#[derive(Serialize)]
struct WebPushMessage<'a> {
    r#type: &'static str,
    timestamp: String,
    data: Changed<'a>,
}

#[derive(Serialize)]
struct Changed<'a> {
    account: &'a str,
    mailboxes: Vec<ChangedMailbox<'a>>,
    /// There are changed mailboxes whose names had no room.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

#[derive(Clone, Serialize)]
struct ChangedMailbox<'a> {
    mailbox: &'a str,
    /// `new` or `quiet`.
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uidvalidity: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uidnext: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unseen: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    highestmodseq: Option<u64>,
}

#[derive(Serialize)]
struct Verification<'a> {
    r#type: &'static str,
    timestamp: String,
    code: &'a str,
}

/// What `notice` says to a client of the account: at most [`MOST`] bytes. Mailboxes that have no room are
/// left out, and `more` says so. `None` where not even the name of the account has room.
pub(super) fn changed(account: &Account, notice: &Notice<'_>) -> Option<String> {
    let all: Vec<_> = notice.mailboxes.iter().map(ChangedMailbox::from).collect();
    (0..=all.len().min(MAX_MAILBOXES)).rev().find_map(|count| {
        let data = Changed {
            account: account.as_str(),
            mailboxes: all[..count].to_vec(),
            more: count < all.len(),
        };
        let message =
            WebPushMessage { r#type: "mailbox.changed", timestamp: timestamp(notice.at), data };
        serde_json::to_string(&message).ok().filter(|json| json.len() <= MOST)
    })
}

impl<'a> From<&'a MailboxChange> for ChangedMailbox<'a> {
    fn from(change: &'a MailboxChange) -> Self {
        let MailboxChange { mailbox, kind, state } = change;
        Self {
            mailbox: mailbox.as_str(),
            kind: match kind {
                ChangeKind::NewMail => "new",
                ChangeKind::Quiet => "quiet",
            },
            uidvalidity: state.uid_validity,
            uidnext: state.uid_next,
            messages: state.messages,
            unseen: state.unseen,
            highestmodseq: state.highest_mod_seq,
        }
    }
}

/// What brings a code to a client, which gives it back.
pub(super) fn verification(code: &str, at: Timestamp) -> Option<String> {
    let message = Verification { r#type: "verification", timestamp: timestamp(at), code };
    serde_json::to_string(&message).ok().filter(|json| json.len() <= MOST)
}

/// `2026-11-26T11:39:00.287Z`
fn timestamp(at: Timestamp) -> String {
    let last = 253_402_300_799_999; // of the year 9999
    let since = Duration::from_millis(at.0.clamp(0, last).unsigned_abs());
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{Mailbox, Snapshot};

    fn told(account: &str, mailboxes: &[MailboxChange]) -> Option<Value> {
        let at = Timestamp(1_795_692_578_287);
        let notice =
            Notice { id: "id", mailboxes, preview: None, at, ttl: Duration::from_secs(60) };
        let json = changed(&Account::from_login(account), &notice)?;
        assert!(json.len() <= MOST, "{}", json.len());
        Some(serde_json::from_str(&json).unwrap())
    }

    fn new(mailbox: &str) -> MailboxChange {
        let state = Snapshot::default();
        MailboxChange { mailbox: Mailbox::new(mailbox), kind: ChangeKind::NewMail, state }
    }

    #[test]
    fn a_message_names_the_account_and_what_is_known_of_its_mailboxes() {
        let state = Snapshot {
            uid_validity: Some(1_795_692_578),
            uid_next: Some(39),
            messages: Some(34),
            unseen: Some(7),
            highest_mod_seq: None,
        };
        let drafts = Mailbox::new("Entwürfe \"2\"");
        let drafts = MailboxChange { mailbox: drafts, kind: ChangeKind::Quiet, state };
        assert_eq!(
            told("alice@example.org", &[new("INBOX"), drafts]).unwrap(),
            json!({
                "type": "mailbox.changed",
                "timestamp": "2026-11-26T11:29:38.287Z",
                "data": {
                    "account": "alice@example.org",
                    "mailboxes": [
                        { "mailbox": "INBOX", "kind": "new" },
                        {
                            "mailbox": "Entwürfe \"2\"",
                            "kind": "quiet",
                            "uidvalidity": 1_795_692_578,
                            "uidnext": 39,
                            "messages": 34,
                            "unseen": 7,
                        },
                    ],
                },
            })
        );
        assert_eq!(
            serde_json::from_str::<Value>(&verification("7f", Timestamp(0)).unwrap()).unwrap(),
            json!({ "type": "verification", "timestamp": "1970-01-01T00:00:00.000Z", "code": "7f" })
        );
    }

    #[test]
    fn what_has_no_room_is_left_out() {
        let long = "\u{1}".repeat(400);
        let data = told("alice@example.org", &[new("INBOX"), new(&long)]).unwrap()["data"].take();
        assert_eq!(data["mailboxes"], json!([{ "mailbox": "INBOX", "kind": "new" }]));
        assert_eq!(data["more"], json!(true));
        let long_name = told(&"\u{1}".repeat(300), &[new("INBOX")]).unwrap();
        assert_eq!(long_name["data"]["mailboxes"].as_array().unwrap().len(), 1);
        assert_eq!(told(&"\u{1}".repeat(1000), &[new("INBOX")]), None);
        assert!(verification(&"x".repeat(MOST), Timestamp(0)).is_none());
    }
}
