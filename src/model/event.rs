//! The one JSON in which programs hear of mailboxes: web hooks as it is, FCM as strings, Web Push encrypted and with
//! several mailboxes in one event.
//!
//! Its form is the one that Standard Webhooks recommends: `type`, `timestamp`, `data`. It holds nothing of
//! a message (Web Push adds the preview of one), and leaves out what is not known.

use serde::Serialize;

use super::{Account, ChangeKind, Mailbox, Snapshot, Timestamp};

/// The `type` of an event about a mailbox.
pub const MAILBOX_CHANGED: &str = "mailbox.changed";

/// The `type` of the first event, whose code the receiver sends back.
pub const VERIFY: &str = "subscription.verify";

/// An event. Serialized, it is the body.
#[derive(Debug, Serialize)]
pub struct EventMessage<D> {
    /// What has happened.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// RFC 3339, in UTC.
    pub timestamp: String,
    /// What there is to say of it.
    pub data: D,
}

/// What [`MAILBOX_CHANGED`] says.
#[derive(Debug, Serialize)]
pub struct MailboxData<'a> {
    account: &'a str,
    #[serde(flatten)]
    changed: ChangedMailbox<'a>,
}

/// One mailbox of an event: its name, `new` or `quiet`, and the numbers that are known of it.
#[derive(Clone, Debug, Serialize)]
pub struct ChangedMailbox<'a> {
    mailbox: &'a str,
    kind: &'static str,
    #[serde(flatten)]
    state: StateData,
    #[serde(skip_serializing_if = "Option::is_none")]
    unseen_before: Option<u64>,
}

/// The numbers of a mailbox's state that are known.
#[derive(Clone, Debug, Serialize)]
pub struct StateData {
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

/// What [`VERIFY`] says.
#[derive(Debug, Serialize)]
pub struct VerifyData<'a> {
    /// The code.
    pub code: &'a str,
}

impl<D> EventMessage<D> {
    /// An event of this kind at this time of day.
    pub fn new(kind: &'static str, data: D, at: Timestamp) -> Self {
        Self { kind, timestamp: at.rfc3339_millis(), data }
    }
}

impl<'a> EventMessage<MailboxData<'a>> {
    /// What has happened to a mailbox of the account.
    pub fn changed(
        account: &'a Account,
        mailbox: &'a Mailbox,
        change: (ChangeKind, Snapshot),
        at: Timestamp,
    ) -> Self {
        let changed = ChangedMailbox::new(mailbox, change);
        let data = MailboxData { account: account.as_str(), changed };
        Self::new(MAILBOX_CHANGED, data, at)
    }
}

impl<'a> EventMessage<VerifyData<'a>> {
    /// The receiver proves by this code that it gets what is sent to it.
    pub fn verify(code: &'a str, at: Timestamp) -> Self {
        Self::new(VERIFY, VerifyData { code }, at)
    }
}

impl<'a> ChangedMailbox<'a> {
    /// The mailbox with what has happened to it and the state that it has now.
    pub fn new(mailbox: &'a Mailbox, (kind, state): (ChangeKind, Snapshot)) -> Self {
        let kind = kind_name(kind);
        Self { mailbox: mailbox.as_str(), kind, state: state.into(), unseen_before: None }
    }

    /// The same with how many messages were unread before its new mail, where that was known.
    #[must_use]
    pub fn with_unread_before(self, unseen_before: Option<u64>) -> Self {
        Self { unseen_before, ..self }
    }
}

impl From<Snapshot> for StateData {
    fn from(state: Snapshot) -> Self {
        let Snapshot { uid_validity, uid_next, messages, unseen, highest_mod_seq } = state;
        Self {
            uidvalidity: uid_validity,
            uidnext: uid_next,
            messages,
            unseen,
            highestmodseq: highest_mod_seq,
        }
    }
}

/// `new` or `quiet`.
pub fn kind_name(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::NewMail => "new",
        ChangeKind::Quiet => "quiet",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp(1_795_693_140_287);

    fn json(event: &impl Serialize) -> String {
        serde_json::to_string(event).unwrap()
    }

    #[test]
    fn a_change_is_said_in_one_form_and_what_is_not_known_is_left_out() {
        let alice = Account::from_login("alice@example.org");
        let state = Snapshot {
            uid_validity: Some(1_795_692_578),
            uid_next: Some(39),
            messages: Some(34),
            unseen: Some(7),
            highest_mod_seq: Some(63),
        };
        let change = (ChangeKind::NewMail, state);
        assert_eq!(
            json(&EventMessage::changed(&alice, &Mailbox::inbox(), change, AT)),
            r#"{"type":"mailbox.changed","timestamp":"2026-11-26T11:39:00.287Z","data":{"account":"alice@example.org","mailbox":"INBOX","kind":"new","uidvalidity":1795692578,"uidnext":39,"messages":34,"unseen":7,"highestmodseq":63}}"#
        );
        let mailbox = Mailbox::new("Entw\u{fc}rfe \"x\"\n");
        let odd = (ChangeKind::Quiet, Snapshot::default());
        let event = EventMessage::changed(&alice, &mailbox, odd, Timestamp(i64::MAX));
        assert_eq!(
            json(&event),
            r#"{"type":"mailbox.changed","timestamp":"9999-12-31T23:59:59.000Z","data":{"account":"alice@example.org","mailbox":"Entwürfe \"x\"\n","kind":"quiet"}}"#
        );
        assert_eq!(
            json(&EventMessage::verify("abc", AT)),
            r#"{"type":"subscription.verify","timestamp":"2026-11-26T11:39:00.287Z","data":{"code":"abc"}}"#
        );
    }
}
