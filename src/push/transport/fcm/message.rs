//! A notice as a message of FCM HTTP v1: data alone, so that the app's own service gets it and fetches.
//!
//! <https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages>

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Response, Uri};
use serde::Serialize;
use serde_json::{Value, json};

use super::judge;
use crate::model::{Account, ChangeKind, Subscription, Timestamp, hex};
use crate::push::transport::event::{EventMessage, changed, only_change};
use crate::push::transport::{Notice, Transport, TransportLimits, Verdict};

/// An app that is well registers whenever it starts, and at the latest when its token is another one.
const SILENCE: Duration = Duration::from_hours(30 * 24);

/// The longest that FCM keeps a message.
const MAX_TTL: Duration = Duration::from_hours(28 * 24);

/// Most bytes of the names and values of a message's data.
const MAX_DATA: usize = 4096;

/// A code is of use for so long.
const VERIFICATION_TTL: Duration = Duration::from_mins(10);

/// What one project sends.
#[derive(Clone, Debug)]
pub(super) struct FcmMessages {
    /// Where messages of the project go.
    pub(super) url: Uri,
}

/// How Android treats a message.
struct AndroidTerms {
    priority: &'static str,
    ttl: Duration,
    /// `None`: it replaces no other.
    collapse_key: Option<String>,
}

impl FcmMessages {
    /// `endpoint` as in the configuration.
    pub(super) fn new(endpoint: &Uri, project: &str) -> Option<Self> {
        let authority = endpoint.authority()?;
        let url = format!("https://{authority}/v1/projects/{project}/messages:send");
        Some(Self { url: url.parse().ok()? })
    }

    /// A message that FCM checks and delivers to nobody.
    pub(super) fn probe(&self) -> Result<Request<Bytes>, Verdict> {
        let message = json!({ "topic": "mailchime-check", "data": { "type": "check" } });
        self.post(&json!({ "message": message, "validate_only": true }))
    }

    fn request(
        &self,
        to: &Subscription,
        data: &BTreeMap<String, String>,
        terms: &AndroidTerms,
    ) -> Result<Request<Bytes>, Verdict> {
        let seconds = terms.ttl.min(MAX_TTL).as_secs();
        let mut android = json!({ "priority": terms.priority, "ttl": format!("{seconds}s") });
        if let Some(key) = &terms.collapse_key {
            android["collapse_key"] = key.as_str().into();
        }
        let token = to.endpoint.as_given();
        self.post(&json!({ "message": { "token": token, "data": data, "android": android } }))
    }

    fn post(&self, body: &Value) -> Result<Request<Bytes>, Verdict> {
        Request::post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string().into())
            .map_err(|_| Verdict::unrenderable("the message cannot be written as a request"))
    }
}

impl Transport for FcmMessages {
    fn limits(&self) -> TransportLimits {
        // A message has one mailbox, as a web hook's event does.
        TransportLimits { mailboxes: 1, silence: SILENCE, in_flight_per_peer: usize::MAX }
    }

    fn remedy(&self) -> &'static str {
        "Check that the app was built for the project of [[fcm]] service_account_file"
    }

    fn render(
        &self,
        subscription: &Subscription,
        notice: &Notice<'_>,
    ) -> Result<Request<Bytes>, Verdict> {
        let account = &subscription.account;
        let change = only_change(notice)?;
        let event = changed(account, change, notice.at);
        let mut data = strings(&event)?;
        if size(&data) > MAX_DATA {
            // The app looks at all of them then.
            data.remove("mailbox");
        }
        if size(&data) > MAX_DATA {
            let why = "the name of the account has no room in a message";
            return Err(Verdict::unrenderable(why));
        }
        let terms = AndroidTerms {
            // What is urgent wakes a phone that dozes.
            priority: if change.kind == ChangeKind::NewMail { "high" } else { "normal" },
            ttl: notice.ttl,
            collapse_key: Some(collapse_key(account)),
        };
        self.request(subscription, &data, &terms)
    }

    fn verify(
        &self,
        subscription: &Subscription,
        code: &str,
        at: Timestamp,
    ) -> Result<Request<Bytes>, Verdict> {
        let data = strings(&EventMessage::verify(code, at))?;
        let terms = AndroidTerms { priority: "high", ttl: VERIFICATION_TTL, collapse_key: None };
        self.request(subscription, &data, &terms)
    }

    fn judge(&self, response: &Response<Bytes>) -> Verdict {
        judge::judge(response)
    }
}

/// An event as FCM takes it: one level, and texts only.
fn strings<D: Serialize>(event: &EventMessage<D>) -> Result<BTreeMap<String, String>, Verdict> {
    let mut strings = BTreeMap::new();
    strings.insert("type".to_owned(), event.kind.to_owned());
    strings.insert("timestamp".to_owned(), event.timestamp.clone());
    let data = serde_json::to_value(&event.data);
    let Ok(Value::Object(data)) = data else {
        return Err(Verdict::unrenderable("the event cannot be written"));
    };
    strings.extend(data.into_iter().map(|(name, value)| match value {
        Value::String(text) => (name, text),
        other => (name, other.to_string()),
    }));
    Ok(strings)
}

fn size(data: &BTreeMap<String, String>) -> usize {
    data.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// A newer message of the same account replaces one that a phone has not got yet: the app looks at all
/// mailboxes that it shows. FCM keeps messages of four accounts for one phone at once.
fn collapse_key(account: &Account) -> String {
    hex(&digest(&SHA256, account.as_str().as_bytes()).as_ref()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Mailbox, PushEndpoint, Snapshot, TransportId};
    use crate::push::transport::MailboxChange;

    /// What is sent of new mail in this mailbox, to be kept for 60 days.
    fn sent(login: &str, mailbox: &str) -> Result<Value, Verdict> {
        let messages = FcmMessages::new(&Uri::from_static("https://fcm.example"), "p").unwrap();
        let subscription = Subscription {
            account: Account::from_login(login),
            transport: TransportId::new("fcm"),
            endpoint: PushEndpoint::new("token", "token"),
            app: "app".into(),
            route: "p".into(),
            options: "{}".into(),
            secrets: None,
            expires_at: None,
        };
        let change = MailboxChange {
            mailbox: Mailbox::new(mailbox),
            kind: ChangeKind::NewMail,
            state: Snapshot { unseen: Some(1), ..Snapshot::default() },
            unread_before: None,
        };
        let notice = Notice {
            id: "id",
            mailboxes: &[change],
            preview: None,
            at: Timestamp(0),
            ttl: Duration::from_hours(60 * 24),
        };
        let request = messages.render(&subscription, &notice)?;
        let json: Value = serde_json::from_slice(request.body()).unwrap();
        Ok(json["message"].clone())
    }

    #[test]
    fn a_message_has_the_length_and_the_life_that_fcm_takes() {
        let message = sent("alice", "INBOX").unwrap();
        assert_eq!(message["android"]["ttl"], "2419200s");
        assert_eq!(message["data"]["mailbox"], "INBOX");
        let long = "x".repeat(5000);
        let message = sent("alice", &long).unwrap();
        assert_eq!(message["data"]["mailbox"], Value::Null);
        assert_eq!(message["data"]["account"], "alice");
        assert!(matches!(sent(&long, "INBOX"), Err(Verdict::Unrenderable { .. })));
    }
}
