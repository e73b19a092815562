//! What a client reads: the JSON of [`EventMessage`] with all mailboxes that have changed in one event. It names the
//! account and what has changed, and nothing of a message. Pure.

use serde::Serialize;

use super::encrypt::MOST;
use crate::model::event::{ChangedMailbox, EventMessage, MAILBOX_CHANGED};
use crate::model::{Account, Timestamp};
use crate::push::transport::Notice;

/// How many mailboxes one message names: as many as fit with names of usual lengths.
pub(super) const MAX_MAILBOXES: usize = 10;

#[derive(Serialize)]
struct AccountData<'a> {
    account: &'a str,
    mailboxes: &'a [ChangedMailbox<'a>],
    /// There are changed mailboxes whose names had no room.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

/// What `notice` says to a client of the account: at most [`MOST`] bytes. Mailboxes that have no room are
/// left out, and `more` says so. `None` where not even the name of the account has room.
pub(super) fn changed(account: &Account, notice: &Notice<'_>) -> Option<String> {
    let changes = notice.mailboxes.iter();
    let all: Vec<_> =
        changes.map(|it| ChangedMailbox::new(&it.mailbox, (it.kind, it.state))).collect();
    (0..=all.len()).rev().find_map(|count| {
        let more = count < all.len();
        let data = AccountData { account: account.as_str(), mailboxes: &all[..count], more };
        text(&EventMessage::new(MAILBOX_CHANGED, data, notice.at))
    })
}

/// What brings a code to a client, which gives it back.
pub(super) fn verification(code: &str, at: Timestamp) -> Option<String> {
    text(&EventMessage::verify(code, at))
}

fn text(message: &impl Serialize) -> Option<String> {
    serde_json::to_string(message).ok().filter(|json| json.len() <= MOST)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::model::{ChangeKind, Mailbox, Snapshot};
    use crate::push::transport::MailboxChange;

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
            json!({
                "type": "subscription.verify",
                "timestamp": "1970-01-01T00:00:00.000Z",
                "data": { "code": "7f" },
            })
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
