//! The body of `PUT /v1/events/ox`: what Dovecot's push notification driver `ox` says of a delivery.
//!
//! ```json
//! {"user": "alice", "event": "messageNew", "folder": "INBOX", "imap-uidvalidity": 7, "imap-uid": 2,
//!  "from": "…", "subject": "…", "snippet": "…", "unseen": 2}
//! ```
//!
//! Sender, subject and snippet have no field here and are skipped while the body is read. The number of messages
//! does not come, so such an event announces new mail and does not replace a look.

use std::time::Instant;

use serde::Deserialize;

use super::refusal::IntakeRefusal;
use super::report::{JsonObject, account, mailbox, number, read};
use super::source::KnownSource;
use crate::model::{Hint, MailboxEvent, Snapshot};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct OxReport {
    user: String,
    event: String,
    folder: String,
    imap_uidvalidity: Option<u64>,
    imap_uid: Option<u64>,
    unseen: Option<u64>,
}

/// The hint of a body.
pub(super) fn hints(body: &[u8], source: &KnownSource) -> Result<Vec<Hint>, IntakeRefusal> {
    let JsonObject(report): JsonObject<OxReport> = read(body)?;
    let most = u32::MAX.into();
    let some = |number: Option<u64>| number.filter(|number| *number > 0);
    let uid = some(number("imap-uid", report.imap_uid, most)?);
    let state = Snapshot {
        uid_validity: some(number("imap-uidvalidity", report.imap_uidvalidity, most)?),
        // The next one is at least one more (RFC 9051 section 2.3.1.1).
        uid_next: uid.map(|uid| uid.saturating_add(1).min(most)),
        unseen: number("unseen", report.unseen, most)?,
        ..Snapshot::default()
    };
    Ok(vec![Hint {
        account: account(&report.user, source)?,
        mailbox: Some(mailbox(&report.folder)?),
        event: MailboxEvent::named(&report.event),
        state,
        seen_at: Instant::now(),
    }])
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{shown, source};
    use super::*;

    #[test]
    fn a_delivery_is_a_hint_without_anything_of_the_mail() {
        let source = source();
        // As Dovecot 2.3.19 and 2.4.1 have sent them.
        for (body, expected) in [
            (
                r#"{"user":"alice@example.org","event":"messageNew","folder":"INBOX",
                "imap-uidvalidity":1795692578,"imap-uid":2,"from":"Ann <ann@example.org>",
                "subject":"hello","snippet":"hi there","unseen":2}"#,
                "alice@example.org INBOX MessageNew 1795692578 3 - 2 -",
            ),
            (
                r#"{"user":"alice","event":"messageNew","folder":"INBOX","imap-uidvalidity":7,"imap-uid":3}"#,
                "alice@example.org INBOX MessageNew 7 4 - - -",
            ),
        ] {
            assert_eq!(shown(hints(body.as_bytes(), &source)), [expected], "{body}");
        }
        for bad in [
            r#"{"user":"alice@example.com","event":"messageNew","folder":"INBOX"}"#,
            r#"{"user":"alice","event":"messageNew"}"#,
            r#"{"user":"alice","event":"messageNew","folder":"INBOX","imap-uid":"2"}"#,
            r#"[{"user":"alice","event":"messageNew","folder":"INBOX"}"#,
            r#"["alice","messageNew","INBOX",7,2,2]"#,
        ] {
            assert!(hints(bad.as_bytes(), &source).is_err(), "{bad}");
        }
    }
}
