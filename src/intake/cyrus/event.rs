//! What Cyrus says of a mailbox, as hints.
//!
//! An event is JSON with a URI, by which the mailbox is found, and the numbers of STATUS (RFC 9051 section
//! 6.3.11) after the change: `messages`, `uidnext`, `vnd.cmu.unseenMessages` and `modseq`, of which the last is
//! missing where one command has changed several messages. `user` is who did it, and not whose mailbox it is.
//!
//! The URI has the name that administrators see, whose first parts are `user` and the owner:
//!
//! | imapd.conf | the owner's INBOX | a folder |
//! | --- | --- | --- |
//! | `unixhierarchysep: yes` | `user/alice` | `user/alice/Team/Sub` |
//! | `unixhierarchysep: no` | `user.alice` | `user.alice.Team.Sub` |
//! | `virtdomains` | `user/carol@example.org` | `user/carol/Team@example.org` |
//!
//! Clients know that folder as `Team/Sub`, or as `INBOX/Team/Sub` with `altnamespace: no`. The event does not
//! say which, so there is a hint for each: of a name for which nobody has registered nothing follows.
//!
//! Nothing of a mail is kept: the types that are parsed have no field for it.

use std::time::Instant;

use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::super::refusal::IntakeRefusal;
use super::super::report::{JsonObject, OF_NO_MATTER, account, mailbox, number, read};
use super::super::source::KnownSource;
use super::notification::{self, Notification};
use crate::imap::registration::xapple::XAppleRegistration;
use crate::imap::registration::xapple_cyrus::CyrusRegistration;
use crate::model::{Account, Hint, Mailbox, MailboxEvent, Snapshot};

/// What a notification or an event says.
#[derive(Debug)]
pub(in crate::intake) enum CyrusNews {
    /// Something happened in a mailbox: a hint for each name that it may have. Empty where it is no matter
    /// for a device.
    Hints(Vec<Hint>),
    /// A device has registered at Cyrus.
    Device(Account, Box<XAppleRegistration>),
}

impl CyrusNews {
    /// Whose device has registered.
    pub(in crate::intake) fn device(&self) -> Option<&Account> {
        match self {
            Self::Hints(_) => None,
            Self::Device(account, _) => Some(account),
        }
    }
}

#[derive(Deserialize)]
struct CyrusEvent {
    event: String,
    uri: Option<String>,
    #[serde(rename = "oldMailboxID")]
    old_mailbox: Option<String>,
    #[serde(rename = "vnd.cmu.mailboxACL")]
    acl: Option<String>,
    #[serde(rename = "flagNames")]
    flags: Option<String>,
    uidnext: Option<u64>,
    messages: Option<u64>,
    #[serde(rename = "vnd.cmu.unseenMessages")]
    unseen: Option<u64>,
    modseq: Option<u64>,
}

/// The mailbox of a URI.
struct NamedMailbox {
    owner: String,
    /// `None` is the owner's INBOX.
    folder: Option<String>,
    separator: char,
    uid_validity: Option<u64>,
}

/// The event that says which device has registered.
const DEVICE: &str = "ApplePushService";

/// Beside others there is one of these, which says less.
const SAYS_LESS: &str = "MailboxModseq";

/// What a notification says, of whatever class.
pub(in crate::intake) fn news(
    notification: &Notification,
    source: &KnownSource,
) -> Result<CyrusNews, IntakeRefusal> {
    match notification.class.as_slice() {
        notification::EVENT => event_news(&notification.message, source),
        b"MAIL" => delivery(notification, source).map(CyrusNews::Hints),
        // Of Sieve, for example.
        _ => Ok(CyrusNews::Hints(Vec::new())),
    }
}

/// What an event says.
pub(in crate::intake) fn event_news(
    json: &[u8],
    source: &KnownSource,
) -> Result<CyrusNews, IntakeRefusal> {
    let JsonObject(event): JsonObject<CyrusEvent> = read(json)?;
    if event.event == DEVICE {
        let device = CyrusRegistration::of_event(json);
        let CyrusRegistration { user, request } =
            device.map_err(|why| IntakeRefusal::malformed(why.to_string()))?;
        let account = account(&user, source)?;
        return Ok(CyrusNews::Device(account, Box::new(request)));
    }
    event.hints(source).map(CyrusNews::Hints)
}

/// Mail was delivered; nothing else is known. Cyrus may name INBOX where it means any mailbox of the user, by what
/// lmtpd knows of the user, so this one announces no mail: all of them are looked at.
fn delivery(notification: &Notification, source: &KnownSource) -> Result<Vec<Hint>, IntakeRefusal> {
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| malformed("A name is not UTF-8."));
    let account = account(text(&notification.user)?, source)?;
    let folder = text(&notification.mailbox)?;
    if folder.eq_ignore_ascii_case(Mailbox::INBOX) {
        let (event, state) = (MailboxEvent::Unnamed, Snapshot::default());
        return Ok(vec![Hint { account, mailbox: None, event, state, seen_at: Instant::now() }]);
    }
    // The separator is not known.
    let mut mailboxes = names(folder, '/')?;
    mailboxes.extend(names(folder, '.')?.pop());
    Ok(all(&account, mailboxes, MailboxEvent::MessageNew, Snapshot::default()))
}

/// A hint for each of these names.
fn all(
    account: &Account,
    mailboxes: Vec<Mailbox>,
    event: MailboxEvent,
    state: Snapshot,
) -> Vec<Hint> {
    let hint = |mailbox| Hint {
        account: account.clone(),
        mailbox: Some(mailbox),
        event,
        state,
        seen_at: Instant::now(),
    };
    mailboxes.into_iter().map(hint).collect()
}

/// The names that a client may know a folder by.
fn names(folder: &str, separator: char) -> Result<Vec<Mailbox>, IntakeRefusal> {
    Ok(vec![mailbox(folder)?, mailbox(&format!("{}{separator}{folder}", Mailbox::INBOX))?])
}

fn malformed(problem: &str) -> IntakeRefusal {
    IntakeRefusal::malformed(problem)
}

impl CyrusEvent {
    fn hints(&self, source: &KnownSource) -> Result<Vec<Hint>, IntakeRefusal> {
        let Some(event) = self.kind() else { return Ok(Vec::new()) };
        let mut hints = Vec::new();
        let uri = self.uri.as_deref().ok_or_else(|| malformed("An event has no uri."))?;
        if let Some(named) = self.mailbox(uri)? {
            let account = account(&named.owner, source)?;
            let state = self.state(named.uid_validity)?;
            hints = all(&account, named.names()?, event, state);
        }
        // A copy and a move leave the other mailbox as it is, or say what becomes of it by another event.
        if event == MailboxEvent::MailboxRename
            && let Some(old) = &self.old_mailbox
            && let Some(named) = self.mailbox(old)?
        {
            let account = account(&named.owner, source)?;
            hints.extend(all(&account, named.names()?, event, Snapshot::default()));
            // Cyrus does not tell of the mailboxes below it.
            hints.push(Hint { mailbox: None, event, ..Hint::of_all(account) });
        }
        Ok(hints)
    }

    /// What happened; `None` if it is no matter for a device.
    fn kind(&self) -> Option<MailboxEvent> {
        let is = |other: &&str| self.event.eq_ignore_ascii_case(other);
        if is(&SAYS_LESS) || OF_NO_MATTER.iter().any(is) {
            return None;
        }
        // The target is in the URI.
        if is(&"vnd.cmu.MessageCopy") || is(&"vnd.cmu.MessageMove") {
            return Some(MailboxEvent::MessageAppend);
        }
        let event = MailboxEvent::named(&self.event);
        let of_no_matter = match event {
            MailboxEvent::FlagsSet | MailboxEvent::FlagsClear => {
                self.flags.as_deref().is_some_and(|flags| !flags.split(' ').any(is_shown))
            }
            _ => false,
        };
        (!of_no_matter).then_some(event)
    }

    /// The state after the change, as far as the event says.
    fn state(&self, uid_validity: Option<u64>) -> Result<Snapshot, IntakeRefusal> {
        let (most, most_mod_seq) = (u32::MAX.into(), i64::MAX.unsigned_abs());
        let some = |number: Option<u64>| number.filter(|number| *number > 0);
        Ok(Snapshot {
            uid_validity: match self.uidnext {
                Some(_) => some(number("UIDVALIDITY", uid_validity, most)?),
                // Nothing is said of what is in the mailbox.
                None => None,
            },
            uid_next: some(number("uidnext", self.uidnext, most)?),
            messages: number("messages", self.messages, most)?,
            unseen: number("unseenMessages", self.unseen, most)?,
            highest_mod_seq: some(number("modseq", self.modseq, most_mod_seq)?),
        })
    }

    /// The mailbox of this URI; `None` if it is no user's.
    fn mailbox(&self, uri: &str) -> Result<Option<NamedMailbox>, IntakeRefusal> {
        let wrong = || malformed("A uri is none of a mailbox.");
        let (_server, path) =
            uri.strip_prefix("imap://").and_then(|it| it.split_once('/')).ok_or_else(wrong)?;
        let (path, attributes) = path.split_once(';').unwrap_or((path, ""));
        let uid_validity = attributes.split([';', '/']).find_map(|attribute| {
            attribute.strip_prefix("UIDVALIDITY=").and_then(|number| number.parse().ok())
        });
        let name = percent_decode_str(path).decode_utf8().map_err(|_| wrong())?;
        let Some(rest) = name.strip_prefix("user") else { return Ok(None) };
        let mut rest = rest.chars();
        let Some(separator @ ('/' | '.')) = rest.next() else { return Ok(None) };
        let (owner, folder) = self.owner_and_folder(rest.as_str(), separator);
        if owner.is_empty() {
            return Err(wrong());
        }
        Ok(Some(NamedMailbox { owner, folder, separator, uid_validity }))
    }

    /// Who has the mailbox of this name, and which one it is. With `virtdomains` the owner's domain is at the
    /// name's end; without, a folder may have an "@" in its name. The owner is one of those in the access list.
    fn owner_and_folder(&self, name: &str, separator: char) -> (String, Option<String>) {
        let split = |name: &str| {
            let (owner, folder) = name.split_once(separator).unwrap_or((name, ""));
            // Where "." separates, Cyrus writes that of a user's name in another way.
            let owner = if separator == '.' { owner.replace('^', ".") } else { owner.to_owned() };
            (owner, Some(folder.to_owned()).filter(|folder| !folder.is_empty()))
        };
        let plain = split(name);
        let Some((local, domain)) = name.rsplit_once('@') else { return plain };
        let (owner, folder) = split(local);
        let with_domain = (format!("{owner}@{domain}"), folder);
        let listed = |owner: &str| {
            let acl = self.acl.as_deref().unwrap_or_default();
            acl.split('\t').step_by(2).any(|who| who == owner)
        };
        if listed(&plain.0) && !listed(&with_domain.0) { plain } else { with_domain }
    }
}

/// Whether a phone shows the flag.
fn is_shown(flag: &str) -> bool {
    ["\\Seen", "\\Deleted"].iter().any(|shown| flag.eq_ignore_ascii_case(shown))
}

impl NamedMailbox {
    /// The names that a client may know it by.
    fn names(&self) -> Result<Vec<Mailbox>, IntakeRefusal> {
        match &self.folder {
            None => Ok(vec![Mailbox::inbox()]),
            Some(folder) => names(folder, self.separator),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::report::tests::{shown, source};
    use super::*;

    /// An event whose URI has this path, with an access list and whatever else.
    fn event(event: &str, path: &str, acl: &str, more: &str) -> String {
        format!(
            r#"{{"event":"{event}","timestamp":"2026-11-26T11:39:00.287Z","uri":"imap://localhost/{path}",
            "pid":19713,"user":"bob","messageSize":477,"vnd.cmu.mbtype":"e","serverFQDN":"localhost",
            "vnd.cmu.mailboxACL":"{acl}"{more}}}"#
        )
    }

    fn hints(json: &str) -> Result<Vec<Hint>, IntakeRefusal> {
        match event_news(json.as_bytes(), &source())? {
            CyrusNews::Hints(hints) => Ok(hints),
            CyrusNews::Device(account, _) => panic!("a device of {account}"),
        }
    }

    fn hints_of(json: &str) -> Vec<String> {
        shown(hints(json))
    }

    #[test]
    fn events_of_cyrus_are_hints() {
        const NUMBERS: &str = r#","modseq":3,"messages":2,"vnd.cmu.unseenMessages":1,"uidnext":3,"vnd.cmu.sessionId":"x""#;
        let of = |name: &str, more: &str| {
            let path = "user/alice;UIDVALIDITY=1795693125/;UID=2";
            hints_of(&event(name, path, r"alice\tlrswipkxtecdan\t", &format!("{NUMBERS}{more}")))
        };
        // As Cyrus 3.6.1 and 3.10.2 have sent them, but for the numbers.
        for (name, more, expected) in [
            ("MessageNew", "", "MessageNew"),
            ("MessageAppend", r#","flagNames":"\\seen""#, "MessageAppend"),
            ("MessageRead", r#","uidset":"1:2""#, "MessageRead"),
            ("FlagsClear", r#","flagNames":"\\Seen""#, "FlagsClear"),
            ("FlagsSet", r#","flagNames":"\\Flagged $Forwarded""#, ""),
            ("FlagsClear", r#","flagNames":"$Junk \\Deleted""#, "FlagsClear"),
            ("MessageTrash", r#","uidset":"1""#, "MessageTrash"),
            ("MessageExpunge", r#","uidset":"1""#, "MessageExpunge"),
            (
                "vnd.cmu.MessageCopy",
                r#","oldMailboxID":"imap://localhost/user/alice/Team;UIDVALIDITY=1""#,
                "MessageAppend",
            ),
            (
                "vnd.cmu.MessageMove",
                r#","oldMailboxID":"imap://localhost/user/alice/Team;UIDVALIDITY=1""#,
                "MessageAppend",
            ),
            ("MailboxModseq", "", ""),
            ("AclChange", r#","aclSubject":"bob""#, ""),
            ("MailboxSubscribe", "", ""),
            ("Login", "", ""),
            ("SomethingNew", "", "Unnamed"),
        ] {
            let expected = match expected {
                "" => Vec::new(),
                event => vec![format!("alice@example.org INBOX {event} 1795693125 3 2 1 3")],
            };
            assert_eq!(of(name, more), expected, "{name} {more}");
        }
    }

    #[test]
    fn a_number_that_is_missing_is_not_known() {
        let acl = r"alice\tlr\t";
        let without_modseq = r#","messages":2,"vnd.cmu.unseenMessages":0,"uidnext":3"#;
        assert_eq!(
            hints_of(&event("MessageRead", "user/alice;UIDVALIDITY=7", acl, without_modseq)),
            ["alice@example.org INBOX MessageRead 7 3 2 0 -"]
        );
        assert_eq!(
            hints_of(&event("MailboxCreate", "user/alice/Box;UIDVALIDITY=7", acl, "")),
            [
                "alice@example.org Box MailboxCreate - - - - -",
                "alice@example.org INBOX/Box MailboxCreate - - - - -",
            ]
        );
        let old = r#","oldMailboxID":"imap://localhost/user/alice;UIDVALIDITY=7""#;
        assert_eq!(
            hints_of(&event("MailboxRename", "user/alice/Box;UIDVALIDITY=7", acl, old)),
            [
                "alice@example.org Box MailboxRename - - - - -",
                "alice@example.org INBOX/Box MailboxRename - - - - -",
                "alice@example.org INBOX MailboxRename - - - - -",
                "alice@example.org * MailboxRename - - - - -",
            ]
        );
    }

    #[test]
    fn the_uri_says_whose_mailbox_it_is_and_which() {
        for (path, acl, expected) in [
            ("user/alice", "alice", "alice@example.org INBOX"),
            ("user.alice", "alice", "alice@example.org INBOX"),
            ("user/alice/Team/Sub", "alice", "alice@example.org Team/Sub, INBOX/Team/Sub"),
            ("user.alice.Team.Sub", "alice", "alice@example.org Team.Sub, INBOX.Team.Sub"),
            (
                "user/alice/Entw%C3%BCrfe",
                "alice",
                "alice@example.org Entw\u{fc}rfe, INBOX/Entw\u{fc}rfe",
            ),
            ("user/al.ice/a.b", "al.ice", "al.ice@example.org a.b, INBOX/a.b"),
            ("user.al%5Eice.a", "al.ice", "al.ice@example.org a, INBOX.a"),
            // Virtual domains.
            ("user/carol%40example.org", "carol@example.org", "carol@example.org INBOX"),
            (
                "user/carol/Box%40example.org",
                "carol@example.org",
                "carol@example.org Box, INBOX/Box",
            ),
            (
                "user.carol.Box%40example.org",
                "carol@example.org",
                "carol@example.org Box, INBOX.Box",
            ),
            (
                "user/carol/a%40b%40example.org",
                "carol@example.org",
                "carol@example.org a@b, INBOX/a@b",
            ),
            ("user/carol/Box%40example.org", "anyone", "carol@example.org Box, INBOX/Box"),
            // None, and a folder with an "@".
            ("user/alice/ann%40a.org", "alice", "alice@example.org ann@a.org, INBOX/ann@a.org"),
            // Of nobody.
            ("shared/Team", "anyone", ""),
            ("users", "anyone", ""),
            ("user", "anyone", ""),
        ] {
            let acl = format!(r"{acl}\tlrswipkxtecdan\tbob\tlr\t");
            let hints = hints_of(&event("MessageNew", &format!("{path};UIDVALIDITY=7"), &acl, ""));
            let owner = hints.first().map(|hint| hint.split(' ').next().unwrap().to_owned());
            let names: Vec<_> = hints.iter().filter_map(|hint| hint.split(' ').nth(1)).collect();
            let found = owner.map(|owner| format!("{owner} {}", names.join(", ")));
            assert_eq!(found.unwrap_or_default(), expected, "{path}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused_and_never_quoted() {
        for (json, expected) in [
            ("private", "malformed"),
            ("{\"event\":\"MessageNew\"}", "malformed"),
            ("[\"MessageNew\",\"imap://x/user/private\",null,null,null,1,1,1,1]", "malformed"),
            ("{\"event\":\"MessageNew\",\"uri\":\"http://private\"}", "malformed"),
            ("{\"event\":\"MessageNew\",\"uri\":\"imap://x/user/%FFprivate\"}", "malformed"),
            ("{\"event\":\"MessageNew\",\"uri\":\"imap://x/user/\"}", "malformed"),
            ("{\"event\":\"MessageNew\",\"uri\":\"imap://x/user/a/%00\"}", "malformed"),
            (
                "{\"event\":\"MessageNew\",\"uri\":\"imap://x/user/a\",\"uidnext\":9999999999}",
                "malformed",
            ),
            ("{\"event\":\"MessageNew\",\"uri\":\"imap://x/user/a%40other.org\"}", "foreign"),
            ("{\"event\":\"ApplePushService\",\"user\":\"private\"}", "malformed"),
        ] {
            let refusal = hints(json).unwrap_err();
            assert_eq!(refusal.counted.map(|why| why.word()), Some(expected), "{json}");
            assert!(!format!("{refusal:?}").contains("private"), "{refusal:?}");
        }
    }

    #[test]
    fn a_delivery_by_the_other_class_is_new_mail_in_a_folder_or_a_sign_to_look() {
        let of = |user: &str, mailbox: &str| {
            let (user, mailbox) = (user.into(), mailbox.into());
            let message = b"From: private\n".into();
            let notification = Notification { class: b"MAIL".into(), user, mailbox, message };
            match news(&notification, &source()) {
                Ok(CyrusNews::Hints(hints)) => shown(Ok(hints)),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(of("alice", "INBOX"), ["alice@example.org * Unnamed - - - - -"]);
        let team = ["Team", "INBOX/Team", "INBOX.Team"];
        let team = team.map(|name| format!("alice@example.org {name} MessageNew - - - - -"));
        assert_eq!(of("alice@example.org", "Team"), team);
    }
}
