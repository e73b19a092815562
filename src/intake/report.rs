//! The body of `POST /v1/events`: what happened to a user's mailboxes.
//!
//! ```json
//! {"user": "alice@example.org", "changes": [{"mailbox": "INBOX", "events": ["MessageNew"],
//!  "uidvalidity": 7, "uidnext": 39, "messages": 34, "unseen": 7, "highestmodseq": 63}]}
//! ```
//!
//! Or a list of such objects. Names of events are those of RFC 5423; numbers are those of STATUS (RFC 9051
//! section 6.3.11), after the change. What else stands in a body is skipped while it is read.

use std::fmt;
use std::marker::PhantomData;
use std::time::Instant;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::refusal::IntakeRefusal;
use super::source::KnownSource;
use crate::model::{Hint, Mailbox, MailboxEvent, Snapshot};

/// Changes in one request.
const MOST_CHANGES: usize = 1000;

/// Events of one change.
const MOST_EVENTS: usize = 64;

/// Bytes of the name of a user or a mailbox.
const LONGEST_NAME: usize = 1024;

/// Events that change nothing a device shows.
pub(super) const OF_NO_MATTER: [&str; 10] = [
    "AclChange",
    "AnnotationChange",
    "Login",
    "Logout",
    "MailboxSubscribe",
    "MailboxUnSubscribe",
    "QuotaChange",
    "QuotaExceed",
    "QuotaWithin",
    "MetadataChange",
];

#[derive(Deserialize)]
struct EventReport {
    user: String,
    changes: Vec<JsonObject<ReportedChange>>,
}

#[derive(Deserialize)]
struct ReportedChange {
    mailbox: Option<String>,
    #[serde(default)]
    events: Vec<String>,
    uidvalidity: Option<u64>,
    uidnext: Option<u64>,
    messages: Option<u64>,
    unseen: Option<u64>,
    highestmodseq: Option<u64>,
}

/// The hints of a body.
pub(super) fn hints(body: &[u8], source: &KnownSource) -> Result<Vec<Hint>, IntakeRefusal> {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    let reports: Vec<JsonObject<EventReport>> = match first {
        Some(b'[') => read(body)?,
        _ => vec![read(body)?],
    };
    if reports.iter().map(|JsonObject(report)| report.changes.len()).sum::<usize>() > MOST_CHANGES {
        let problem = format!("Send at most {MOST_CHANGES} changes at once.");
        return Err(IntakeRefusal::malformed(problem));
    }
    let mut hints = Vec::new();
    for JsonObject(EventReport { user, changes }) in reports {
        let account = account(&user, source)?;
        for JsonObject(change) in changes {
            let Some(event) = change.event()? else { continue };
            let mailbox = change.mailbox.as_deref().map(mailbox).transpose()?;
            let (account, state) = (account.clone(), change.state()?);
            hints.push(Hint { account, mailbox, event, state, seen_at: Instant::now() });
        }
    }
    Ok(hints)
}

/// What is read of an object and of nothing else: a derived type also takes a list, by the places of its values.
pub(super) struct JsonObject<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for JsonObject<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct OfMap<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfMap<T> {
            type Value = JsonObject<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(object)).map(JsonObject)
            }
        }

        json.deserialize_map(OfMap(PhantomData))
    }
}

/// What a body says, without what nobody asks for.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, IntakeRefusal> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        // serde quotes what it does not understand, which may be of a mail.
        let path = error.path().to_string();
        IntakeRefusal::malformed(if error.inner().is_data() {
            format!("A value is missing, or of another type, in {path:?}.")
        } else {
            "The body is not well-formed JSON.".to_owned()
        })
    })?;
    json.end().map_err(|_| IntakeRefusal::malformed("More follows the JSON of the body."))?;
    Ok(read)
}

/// The account of a user whom the source may speak for.
pub(super) fn account(
    user: &str,
    source: &KnownSource,
) -> Result<crate::model::Account, IntakeRefusal> {
    named(user, "user")?;
    source.account(user).ok_or_else(IntakeRefusal::foreign)
}

/// A mailbox by its decoded name.
pub(super) fn mailbox(name: &str) -> Result<Mailbox, IntakeRefusal> {
    named(name, "mailbox")?;
    Ok(Mailbox::new(name))
}

/// A number that is at most so large; zero, which no server means, is none.
pub(super) fn number(
    what: &str,
    number: Option<u64>,
    most: u64,
) -> Result<Option<u64>, IntakeRefusal> {
    match number {
        Some(number) if number > most => {
            Err(IntakeRefusal::malformed(format!("{what} is at most {most}.")))
        }
        number => Ok(number),
    }
}

fn named(name: &str, what: &str) -> Result<(), IntakeRefusal> {
    if (1..=LONGEST_NAME).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    let problem =
        format!("A {what} has 1 to {LONGEST_NAME} bytes, and no control character is among them.");
    Err(IntakeRefusal::malformed(problem))
}

impl ReportedChange {
    /// What happened; `None` if it is no matter for a device.
    fn event(&self) -> Result<Option<MailboxEvent>, IntakeRefusal> {
        if self.events.len() > MOST_EVENTS {
            let problem = format!("A change has at most {MOST_EVENTS} events.");
            return Err(IntakeRefusal::malformed(problem));
        }
        let matters = |name: &&String| !OF_NO_MATTER.iter().any(|it| it.eq_ignore_ascii_case(name));
        let events = self.events.iter().filter(matters).map(|name| MailboxEvent::named(name));
        let event = events.max_by_key(|event| event.kind());
        Ok(event.or(self.events.is_empty().then_some(MailboxEvent::Unnamed)))
    }

    fn state(&self) -> Result<Snapshot, IntakeRefusal> {
        // RFC 9051 section 9: numbers have 32 bits, and a mod-sequence 63 (RFC 7162 section 7).
        let (most, most_mod_seq) = (u32::MAX.into(), i64::MAX.unsigned_abs());
        let some = |number: Option<u64>| number.filter(|number| *number > 0);
        Ok(Snapshot {
            uid_validity: some(number("uidvalidity", self.uidvalidity, most)?),
            uid_next: some(number("uidnext", self.uidnext, most)?),
            messages: number("messages", self.messages, most)?,
            unseen: number("unseen", self.unseen, most)?,
            highest_mod_seq: some(number("highestmodseq", self.highestmodseq, most_mod_seq)?),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::EventSourceConfig;
    use crate::metrics::Metrics;

    /// A source for example.org, where users without a domain are.
    pub(in crate::intake) fn source() -> KnownSource {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "correct-horse-battery").unwrap();
        let mut config = EventSourceConfig::new("dovecot", file);
        config.domains = vec!["example.org".to_owned()];
        config.default_domain = Some("example.org".to_owned());
        KnownSource::load(&config, Metrics::default().source("dovecot")).unwrap()
    }

    /// Hints as a person reads them.
    pub(in crate::intake) fn shown(hints: Result<Vec<Hint>, IntakeRefusal>) -> Vec<String> {
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |it| it.to_string());
        let one = |hint: &Hint| {
            let mailbox = hint.mailbox.as_ref().map_or("*", |mailbox| mailbox.as_str());
            let s = hint.state;
            let numbers =
                [s.uid_validity, s.uid_next, s.messages, s.unseen, s.highest_mod_seq].map(number);
            format!("{} {mailbox} {:?} {}", hint.account, hint.event, numbers.join(" "))
        };
        match hints {
            Ok(hints) => hints.iter().map(one).collect(),
            Err(refusal) => vec![format!("{refusal:?}")],
        }
    }

    #[test]
    fn a_report_is_hints() {
        let source = source();
        for (body, expected) in [
            (
                r#"{"user":"alice","changes":[{"mailbox":"INBOX","events":["MessageNew"],
                "uidvalidity":1795692578,"uidnext":39,"messages":34,"unseen":7,"highestmodseq":63}]}"#,
                &["alice@example.org INBOX MessageNew 1795692578 39 34 7 63"][..],
            ),
            // The new mail counts most; zero is no number where none can be zero.
            (
                r#"[{"user":"bob@Example.org","changes":[{"mailbox":"inbox","unseen":0,"messages":0,
                "events":["messageread","messageNew","MessageRead"],"highestmodseq":0,"uidnext":0}]},
                {"user":"alice","changes":[{"mailbox":"Entwürfe","events":["MailboxDelete"]},
                {"mailbox":"Old","events":["MailboxRename"]}]}]"#,
                &[
                    "bob@example.org INBOX MessageNew - - 0 0 -",
                    "alice@example.org Entwürfe MailboxDelete - - - - -",
                    "alice@example.org Old MailboxRename - - - - -",
                ],
            ),
            // Nobody says what happened, or where; and it may be of a kind that is not known.
            (
                r#"{"changes":[{},{"mailbox":"A"},{"mailbox":"B","events":["vnd.x.Moved"]}],"user":"alice"}"#,
                &[
                    "alice@example.org * Unnamed - - - - -",
                    "alice@example.org A Unnamed - - - - -",
                    "alice@example.org B Unnamed - - - - -",
                ],
            ),
            // These change nothing that a device shows.
            (
                r#"{"user":"alice","changes":[{"mailbox":"A","events":["Login","quotaExceed"]}]}"#,
                &[],
            ),
            (r#"{"user":"alice","changes":[]}"#, &[]),
            ("[]", &[]),
            // What else is there is skipped.
            (
                r#"{"user":"alice","subject":"private","changes":[{"mailbox":"A","from":{"a":["b"]}}]}"#,
                &["alice@example.org A Unnamed - - - - -"],
            ),
        ] {
            assert_eq!(shown(hints(body.as_bytes(), &source)), expected, "{body}");
        }
    }

    #[test]
    fn what_is_no_report_is_refused_with_a_reason_that_quotes_nothing() {
        let source = source();
        let many = |changes: usize| {
            let change = vec!["{}"; changes].join(",");
            format!("{{\"user\":\"alice\",\"changes\":[{change}]}}")
        };
        assert_eq!(shown(hints(many(MOST_CHANGES).as_bytes(), &source)).len(), MOST_CHANGES);
        let long = format!("{{\"user\":\"{}\",\"changes\":[]}}", "private".repeat(200));
        let events = vec!["\"Login\""; MOST_EVENTS + 1].join(",");
        let events = format!("{{\"user\":\"alice\",\"changes\":[{{\"events\":[{events}]}}]}}");
        for (body, expected) in [
            ("", "not well-formed JSON"),
            ("{\"user\":\"alice\",\"chang", "not well-formed JSON"),
            ("private", "not well-formed JSON"),
            ("\"private\"", "A value is missing"),
            ("{\"user\":\"alice\"}", "A value is missing"),
            ("{\"changes\":[]}", "A value is missing"),
            ("[[\"alice\",[]]]", "of another type, in \\\"[0]\\\""),
            (
                "{\"user\":\"alice\",\"changes\":[[\"private\"]]}",
                "of another type, in \\\"changes[0]\\\"",
            ),
            ("{\"user\":\"alice\",\"changes\":[]} private", "More follows"),
            (
                "{\"user\":\"alice\",\"changes\":[{\"uidnext\":\"private\"}]}",
                "in \\\"changes[0].uidnext\\\"",
            ),
            ("{\"user\":\"alice\",\"changes\":[{\"uidnext\":-1}]}", "A value is missing"),
            (
                "{\"user\":\"alice\",\"changes\":[{\"uidnext\":4294967296}]}",
                "uidnext is at most 4294967295",
            ),
            ("{\"user\":\"\",\"changes\":[]}", "A user has 1 to 1024 bytes"),
            ("{\"user\":\"a\\u0000\",\"changes\":[]}", "A user has 1 to 1024 bytes"),
            (
                "{\"user\":\"a\",\"changes\":[{\"mailbox\":\"\\n\"}]}",
                "A mailbox has 1 to 1024 bytes",
            ),
            ("{\"user\":\"alice@example.com\",\"changes\":[]}", "foreign_domain"),
            (
                "[{\"user\":\"alice\",\"changes\":[{}]},{\"user\":\"a@b\",\"changes\":[]}]",
                "foreign_domain",
            ),
            (&many(MOST_CHANGES + 1), "at most 1000 changes"),
            (&long, "A user has 1 to 1024 bytes"),
            (&events, "at most 64 events"),
        ] {
            let refused = shown(hints(body.as_bytes(), &source)).join("\n");
            assert!(refused.contains(expected), "{body}\n{refused}");
            assert!(
                refused.starts_with("IntakeRefusal") && !refused.contains("private"),
                "{refused}"
            );
        }
    }
}
