//! What a client reads: the JSON of [`EventMessage`] with all mailboxes that have changed in one event. It names the
//! account and what has changed; of a message it says who sent it about what, where `[push] preview` has it asked
//! for. Pure.

use std::borrow::Cow;

use serde::Serialize;

use crate::model::event::{ChangedMailbox, EventMessage, MAILBOX_CHANGED};
use crate::model::{Account, Mailbox, PREVIEW_CHARACTERS, Preview, Timestamp};
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
    #[serde(skip_serializing_if = "Option::is_none")]
    preview: Option<PreviewData<'a>>,
}

/// What is known of the newest mail of one of the mailboxes.
#[derive(Clone, Debug, Serialize)]
struct PreviewData<'a> {
    mailbox: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Cow<'a, str>>,
    /// How many new mails it is the newest of.
    messages: u64,
}

/// Characters of sender and subject, each, that are tried until they have room.
const TRIED: [usize; 5] = [PREVIEW_CHARACTERS, 150, 100, 50, 25];

/// What `notice` says to a client of the account: at most `most` bytes. Mailboxes that have no room are
/// left out, and `more` says so; sender and subject are cut for what room these leave. `None` where not even the
/// name of the account has room.
pub(super) fn changed(account: &Account, notice: &Notice<'_>, most: usize) -> Option<String> {
    let changes = notice.mailboxes.iter();
    let all: Vec<_> = changes
        .map(|it| {
            ChangedMailbox::new(&it.mailbox, (it.kind, it.state))
                .with_unread_before(it.unread_before)
        })
        .collect();
    let with = |count: usize, preview| {
        let (mailboxes, more) = (&all[..count], count < all.len());
        let data = AccountData { account: account.as_str(), mailboxes, more, preview };
        text(&EventMessage::new(MAILBOX_CHANGED, data, notice.at), most)
    };
    let (count, plain) =
        (0..=all.len()).rev().find_map(|count| Some((count, with(count, None)?)))?;
    let is_named =
        |mailbox: &Mailbox| notice.mailboxes[..count].iter().any(|it| it.mailbox == *mailbox);
    let preview = notice.preview.filter(|(mailbox, _)| is_named(mailbox));
    let previewed = preview.and_then(|(mailbox, preview)| {
        let data = |most| PreviewData::new(mailbox, preview, most);
        TRIED.into_iter().find_map(|most| with(count, Some(data(most))))
    });
    Some(previewed.unwrap_or(plain))
}

impl<'a> PreviewData<'a> {
    /// With so many characters of each text at most.
    fn new(mailbox: &'a Mailbox, preview: &'a Preview, most: usize) -> Self {
        Self {
            mailbox: mailbox.as_str(),
            sender: preview.sender().map(|text| cut(text, most)),
            subject: preview.subject().map(|text| cut(text, most)),
            messages: preview.messages,
        }
    }
}

/// The text, which ends in dots where it has more than so many characters.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => text.into(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// What brings a code to a client, which gives it back.
pub(super) fn verification(code: &str, at: Timestamp, most: usize) -> Option<String> {
    text(&EventMessage::verify(code, at), most)
}

fn text(message: &impl Serialize, most: usize) -> Option<String> {
    serde_json::to_string(message).ok().filter(|json| json.len() <= most)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::encrypt::MOST;
    use super::*;
    use crate::model::{ChangeKind, Snapshot};
    use crate::push::transport::MailboxChange;

    fn told(account: &str, mailboxes: &[MailboxChange]) -> Option<Value> {
        told_of(account, mailboxes, None)
    }

    fn told_of(
        account: &str,
        mailboxes: &[MailboxChange],
        preview: Option<(&Mailbox, &Preview)>,
    ) -> Option<Value> {
        let at = Timestamp(1_795_692_578_287);
        let notice = Notice { id: "id", mailboxes, preview, at, ttl: Duration::from_secs(60) };
        let json = changed(&Account::from_login(account), &notice, MOST)?;
        assert!(json.len() <= MOST, "{}", json.len());
        Some(serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn new_mail_says_how_many_were_unread_before() {
        let inbox = MailboxChange { unread_before: Some(5), ..new("INBOX") };
        let data = told("alice", &[inbox, new("Lists")]).unwrap()["data"].take();
        let mailboxes = json!([
            { "mailbox": "INBOX", "kind": "new", "unseen_before": 5 },
            { "mailbox": "Lists", "kind": "new" },
        ]);
        assert_eq!(data["mailboxes"], mailboxes);
    }

    fn new(mailbox: &str) -> MailboxChange {
        let state = Snapshot::default();
        MailboxChange {
            mailbox: Mailbox::new(mailbox),
            kind: ChangeKind::NewMail,
            state,
            unread_before: None,
        }
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
        let drafts =
            MailboxChange { mailbox: drafts, kind: ChangeKind::Quiet, state, unread_before: None };
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
            serde_json::from_str::<Value>(&verification("7f", Timestamp(0), MOST).unwrap())
                .unwrap(),
            json!({
                "type": "subscription.verify",
                "timestamp": "1970-01-01T00:00:00.000Z",
                "data": { "code": "7f" },
            })
        );
    }

    #[test]
    fn the_newest_mail_is_named_where_it_is_known() {
        let (inbox, notes) = (Mailbox::inbox(), Mailbox::new("Notes"));
        let hello = Preview::new(Some("Bob \"B.\""), Some("Hello"), 3).unwrap();
        let data = |preview| {
            let told = told_of("alice", &[new("INBOX")], Some(preview)).unwrap();
            told["data"]["preview"].clone()
        };
        let expected = json!({ "mailbox": "INBOX", "sender": "Bob \"B.\"", "subject": "Hello", "messages": 3 });
        assert_eq!(data((&inbox, &hello)), expected);
        assert_eq!(data((&notes, &hello)), Value::Null, "of a mailbox that is not named");
        let sender = Preview::new(Some("Bob"), None, 1).unwrap();
        assert_eq!(
            data((&inbox, &sender)),
            json!({ "mailbox": "INBOX", "sender": "Bob", "messages": 1 })
        );
    }

    #[test]
    fn the_longest_texts_have_room_beside_one_mailbox_and_are_cut_beside_many() {
        let text = "\u{10348}".repeat(PREVIEW_CHARACTERS);
        let preview = Preview::new(Some(&text), Some(&text), u64::MAX).unwrap();
        let account = format!("{}@example.org", "a".repeat(64));
        let state = |it| MailboxChange {
            state: Snapshot {
                uid_validity: Some(u64::from(u32::MAX)),
                uid_next: Some(u64::from(u32::MAX)),
                messages: Some(1_000_000),
                unseen: Some(1_000_000),
                highest_mod_seq: Some(1_000_000),
            },
            ..it
        };
        let inbox = Mailbox::inbox();
        let said = |mailboxes: &[MailboxChange]| {
            let data =
                told_of(&account, mailboxes, Some((&inbox, &preview))).unwrap()["data"].take();
            let subject = data["preview"]["subject"].as_str().map(|it| it.chars().count());
            (data["mailboxes"].as_array().unwrap().len(), subject)
        };
        assert_eq!(said(&[state(new("INBOX"))]), (1, Some(200)));
        let mut many: Vec<_> = (0..5).map(|number| state(new(&format!("Team {number}")))).collect();
        many.insert(0, state(new("INBOX")));
        assert_eq!(said(&many), (6, Some(100)));
        many.push(new(&"x".repeat(900)));
        assert_eq!(said(&many), (7, None), "the mailboxes come first");
        assert_eq!(cut("ab", 2), "ab");
        assert_eq!(cut("abc", 2), "a…");
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
        assert!(verification(&"x".repeat(MOST), Timestamp(0), MOST).is_none());
    }
}
