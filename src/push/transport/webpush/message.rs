//! A notice as a request to a push service (RFC 8030 section 5). Pure, but for the chance that encryption
//! needs.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use hyper::{Request, Response};
use serde_json::Value;

use super::encrypt::{ClientKeys, PADDED, PADDED_SHORT};
use super::options::WebPushOptions;
use super::vapid::VapidKey;
use super::{judge, payload};
use crate::model::{ChangeKind, Subscription, Timestamp};
use crate::net::guard::{Guard, UrlOrigin};
use crate::push::transport::{MailboxChange, Notice, Transport, TransportLimits, Verdict};

/// A push service forgets a code soon. A client that was offline meanwhile asks for another one.
const VERIFICATION_TTL: Duration = Duration::from_mins(10);

/// Most pushes under way at once to one push service, so that the others have room while one hangs.
const PER_SERVICE: usize = 50;

/// Web Push under one VAPID key. Clones share it.
#[derive(Clone)]
pub struct WebPush {
    pub(super) key: Arc<VapidKey>,
    pub(super) guard: Arc<Guard>,
}

/// What differs from message to message besides its text: its size, and headers.
struct Terms {
    /// Bytes of the plaintext with its padding.
    padded: usize,
    ttl: Duration,
    /// Of RFC 8030 section 5.3: a phone that saves its battery gets `low` later.
    urgency: &'static str,
    /// `None`: it replaces no other.
    topic: Option<String>,
}

// === impl WebPush ===

impl WebPush {
    /// Sends under this key, to endpoints that `guard` allows.
    pub fn new(key: Arc<VapidKey>, guard: Arc<Guard>) -> Self {
        Self { key, guard }
    }

    /// The name of its route, and what its subscriptions have as theirs: the key's fingerprint.
    pub fn route(&self) -> Arc<str> {
        Arc::clone(self.key.fingerprint())
    }

    /// The public key in base64url, as a browser takes it (`applicationServerKey`).
    pub fn public_key(&self) -> &str {
        self.key.public()
    }

    /// `POST` of `plain`, encrypted for the client, at `at`.
    fn request(
        &self,
        to: &Subscription,
        keys: &ClientKeys,
        plain: &str,
        terms: &Terms,
        at: Timestamp,
    ) -> Result<Request<Bytes>, Verdict> {
        let endpoint = to.endpoint.as_given();
        // What was allowed when the client subscribed may be so no more.
        let origin = self.guard.check(endpoint);
        let origin = origin.map_err(|why| Verdict::unrenderable(format!("the endpoint {why}")))?;
        let authorization = self.key.authorization(&origin.to_string(), at);
        let authorization = authorization.ok_or_else(|| Verdict::Misconfigured {
            why: "no token can be signed with the VAPID key".to_owned(),
        })?;
        let body = keys.encrypt_in(plain.as_bytes(), terms.padded);
        let body =
            body.map_err(|_| Verdict::unrenderable("the client's key is no point of P-256"))?;
        let mut request = Request::post(endpoint)
            .header("ttl", terms.ttl.as_secs())
            .header("urgency", terms.urgency)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_ENCODING, "aes128gcm")
            .header(AUTHORIZATION, authorization);
        if let Some(topic) = &terms.topic {
            request = request.header("topic", topic);
        }
        request.body(body.into()).map_err(|error| Verdict::unrenderable(error.to_string()))
    }

    /// The request that says `notice`, padded to so many bytes.
    fn notice(
        &self,
        subscription: &Subscription,
        notice: &Notice<'_>,
        padded: usize,
    ) -> Result<Request<Bytes>, Verdict> {
        let keys = keys_of(subscription)?;
        let plain = payload::changed(&subscription.account, notice, padded - 1);
        let plain = plain.ok_or_else(no_room)?;
        let is_new = |change: &MailboxChange| change.kind == ChangeKind::NewMail;
        let urgency = if notice.mailboxes.iter().any(is_new) { "high" } else { "low" };
        let topic = Some(topic(subscription, &keys, notice));
        let terms = Terms { padded, ttl: notice.ttl, urgency, topic };
        self.request(subscription, &keys, &plain, &terms, notice.at)
    }

    /// The request that brings a code, padded to so many bytes.
    fn code(
        &self,
        subscription: &Subscription,
        code: &str,
        at: Timestamp,
        padded: usize,
    ) -> Result<Request<Bytes>, Verdict> {
        let keys = keys_of(subscription)?;
        let plain = payload::verification(code, at, padded - 1).ok_or_else(no_room)?;
        let terms = Terms { padded, ttl: VERIFICATION_TTL, urgency: "high", topic: None };
        self.request(subscription, &keys, &plain, &terms, at)
    }
}

/// Push services whose browsers end a subscription when pushes show nothing: Apple's at once, Firefox after 16 at most,
/// unless the user visits the page meanwhile (`dom.push.maxQuotaPerSubscription`).
const SHOW_EACH_PUSH: [&str; 2] = ["push.apple.com", "push.services.mozilla.com"];

fn shows_each_push(subscription: &Subscription) -> bool {
    let Ok(origin) = UrlOrigin::of(subscription.endpoint.as_given()) else { return false };
    SHOW_EACH_PUSH.iter().any(|name| {
        origin.host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

impl Transport for WebPush {
    fn limits(&self) -> TransportLimits {
        // A browser keeps its subscription without a word, so only the push service says that it is dead.
        let silence = Duration::from_hours(30 * 24);
        TransportLimits {
            mailboxes: payload::MAX_MAILBOXES,
            silence,
            in_flight_per_peer: PER_SERVICE,
        }
    }

    /// Most quiet changes are of no use to a browser, and a push that shows nothing counts against its
    /// subscription. So they are for those who have asked for them.
    fn tells(&self, subscription: &Subscription, kind: ChangeKind) -> bool {
        let quiet = || WebPushOptions::from_json(&subscription.options).quiet;
        kind == ChangeKind::NewMail || quiet() && !shows_each_push(subscription)
    }

    /// A message is encrypted for the client (RFC 8291), and each has the same size, or the short one.
    fn carries_preview(&self) -> bool {
        true
    }

    /// The push service that the endpoint names, with its port.
    fn peer(&self, subscription: &Subscription) -> Arc<str> {
        let origin = UrlOrigin::of(subscription.endpoint.as_given());
        origin.map_or_else(|_| Arc::clone(&subscription.route), |it| it.authority().into())
    }

    fn remedy(&self) -> &'static str {
        "Check whether the push services in the lines \"push attempted\" are reached directly: a proxy \
         between them and mailchime may answer for them"
    }

    fn render(
        &self,
        subscription: &Subscription,
        notice: &Notice<'_>,
    ) -> Result<Request<Bytes>, Verdict> {
        self.notice(subscription, notice, PADDED)
    }

    /// Without a preview, of the mailboxes that have room in so few bytes.
    fn render_short(
        &self,
        subscription: &Subscription,
        notice: &Notice<'_>,
    ) -> Option<Result<Request<Bytes>, Verdict>> {
        let notice = Notice { preview: None, ..*notice };
        Some(self.notice(subscription, &notice, PADDED_SHORT))
    }

    fn verify(
        &self,
        subscription: &Subscription,
        code: &str,
        at: Timestamp,
    ) -> Result<Request<Bytes>, Verdict> {
        self.code(subscription, code, at, PADDED)
    }

    fn verify_short(
        &self,
        subscription: &Subscription,
        code: &str,
        at: Timestamp,
    ) -> Option<Result<Request<Bytes>, Verdict>> {
        Some(self.code(subscription, code, at, PADDED_SHORT))
    }

    fn judge(&self, response: &Response<Bytes>) -> Verdict {
        judge::judge(response)
    }
}

impl fmt::Debug for WebPush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebPush").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The client's keys.
///
/// # Errors
/// The verdict on a push that cannot be encrypted.
pub(super) fn keys_of(subscription: &Subscription) -> Result<ClientKeys, Verdict> {
    let keys = subscription.secrets.as_ref();
    let keys = keys.and_then(|keys| serde_json::from_str::<Value>(keys.expose()).ok());
    let keys = keys.and_then(|keys| ClientKeys::from_json(&keys).ok());
    let why = "the client's keys cannot be read; it gets nothing until the key file is there again, \
               or until it subscribes again";
    keys.ok_or_else(|| Verdict::unrenderable(why))
}

fn no_room() -> Verdict {
    Verdict::unrenderable("the name of the account has no room in a message")
}

/// What makes a message replace an undelivered one (RFC 8030 section 5.4): one that names the same mailboxes, each
/// with new mail as well or with none as well, so nothing is lost. 32 characters, of which the push service
/// learns nothing without the client's secret.
fn topic(subscription: &Subscription, keys: &ClientKeys, notice: &Notice<'_>) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, keys.auth()));
    context.update(b"mailchime topic\0");
    context.update(subscription.account.as_str().as_bytes());
    let changes = notice.mailboxes.iter();
    let changes: BTreeSet<_> = changes
        .map(|change| (change.mailbox.as_str(), change.kind == ChangeKind::NewMail))
        .collect();
    for (mailbox, is_new) in changes {
        context.update(if is_new { b"\0+" } else { b"\0=" });
        context.update(mailbox.as_bytes());
    }
    BASE64_URL_SAFE_NO_PAD.encode(&context.sign().as_ref()[..24])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::WebPushConfig;
    use crate::model::{Account, Mailbox, PushEndpoint, Snapshot};
    use crate::push::transport::enrol::Enrol;

    const P256DH: &str =
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AT: Timestamp = Timestamp(1_800_000_000_000);

    fn web_push(hosts: &[&str]) -> WebPush {
        let folder = tempfile::tempdir().unwrap();
        let (key, _) = VapidKey::open(&folder.path().join("key"), "mailto:a@example.org").unwrap();
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let config = WebPushConfig { hosts, ..WebPushConfig::new("key", "mailto:a@example.org") };
        WebPush::new(Arc::new(key), Arc::new(Guard::new(&config.hosts, &config.allow_private)))
    }

    fn changed(mailbox: &str, kind: ChangeKind) -> MailboxChange {
        let (mailbox, state) = (Mailbox::new(mailbox), Snapshot::default());
        MailboxChange { mailbox, kind, state, unread_before: None }
    }

    fn subscription(web_push: &WebPush, endpoint: &str) -> Subscription {
        let request = json!({
            "endpoint": endpoint,
            "keys": { "p256dh": P256DH, "auth": "BTBZMqHH6r4Tts7J_aSIgg" },
        });
        let alice = Account::from_login("alice@example.org");
        web_push.enrol(&alice, &request).unwrap().subscription
    }

    #[test]
    fn a_notice_is_a_request_that_tells_the_push_service_nothing() {
        let web_push = web_push(&["push.example.net:8443"]);
        let alice = subscription(&web_push, "https://push.example.net:8443/p/1?x=y");
        let mailboxes =
            [changed("INBOX", ChangeKind::Quiet), changed("Notes", ChangeKind::NewMail)];
        let notice = Notice {
            id: "id",
            mailboxes: &mailboxes,
            preview: None,
            at: AT,
            ttl: Duration::from_hours(24),
        };
        let request = web_push.render(&alice, &notice).unwrap();
        assert_eq!(request.method(), "POST");
        assert_eq!(request.uri(), "https://push.example.net:8443/p/1?x=y");
        let headers = request.headers();
        let header = |name| headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("ttl"), Some("86400"));
        assert_eq!(header("urgency"), Some("high"));
        assert_eq!(header("content-type"), Some("application/octet-stream"));
        assert_eq!(header("content-encoding"), Some("aes128gcm"));
        let origin = "https://push.example.net:8443";
        assert_eq!(headers["authorization"], web_push.key.authorization(origin, AT).unwrap());
        let topic = header("topic").unwrap();
        let in_topics = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        assert!(topic.len() == 32 && topic.bytes().all(in_topics), "{topic}");
        assert_eq!(headers.len(), 6);

        let code = web_push.verify(&alice, "7f3a", AT).unwrap();
        assert_eq!(
            (&code.headers()["ttl"], code.headers().get("topic")),
            (&"600".parse().unwrap(), None)
        );
        assert_eq!(code.body().len(), request.body().len(), "nobody sees that it is one");
        let no_more = self::web_push(&["other.example.net"]);
        let Verdict::Unrenderable { why } = no_more.render(&alice, &notice).unwrap_err() else {
            panic!();
        };
        assert!(why.contains("push.example.net"), "{why}");
    }

    #[test]
    fn a_topic_is_that_of_the_same_mailboxes_of_the_same_client() {
        let web_push = web_push(&[]);
        let alice = subscription(&web_push, "https://push.example.net/1");
        let topic_of_changes = |changes: &[(&str, ChangeKind)]| {
            let mailboxes: Vec<_> =
                changes.iter().map(|(name, kind)| changed(name, *kind)).collect();
            let notice = Notice {
                id: "id",
                mailboxes: &mailboxes,
                preview: None,
                at: AT,
                ttl: Duration::ZERO,
            };
            let request = web_push.render(&alice, &notice).unwrap();
            let is_new = changes.iter().any(|(_, kind)| *kind == ChangeKind::NewMail);
            assert_eq!(request.headers()["urgency"], if is_new { "high" } else { "low" });
            request.headers()["topic"].to_str().unwrap().to_owned()
        };
        let topic_of = |names: &[&str], kind: ChangeKind| {
            topic_of_changes(&names.iter().map(|name| (*name, kind)).collect::<Vec<_>>())
        };
        let topic = |names: &[&str]| topic_of(names, ChangeKind::Quiet);
        assert_ne!(
            topic(&["INBOX"]),
            topic_of(&["INBOX"], ChangeKind::NewMail),
            "it would be lost"
        );
        // Nor is the new mail of one mailbox, when the other has some.
        let (quiet, new) = (ChangeKind::Quiet, ChangeKind::NewMail);
        let both = [
            topic_of_changes(&[("INBOX", new), ("Notes", quiet)]),
            topic_of_changes(&[("INBOX", quiet), ("Notes", new)]),
            topic_of_changes(&[("INBOX", new), ("Notes", new)]),
        ];
        assert!(both[0] != both[1] && both[0] != both[2] && both[1] != both[2], "{both:?}");
        assert_eq!(topic(&["INBOX", "Notes"]), topic(&["Notes", "INBOX"]));
        assert_ne!(topic(&["INBOX", "Notes"]), topic(&["INBOX"]));
        assert_ne!(topic(&["Notes"]), topic(&["INBOX"]));
        for (endpoint, peer) in [
            ("https://push.example.net/1", "push.example.net"),
            ("https://PUSH.example.net:443/2", "push.example.net"),
            ("https://push.example.net:8443/1", "push.example.net:8443"),
        ] {
            let endpoint = PushEndpoint::new(endpoint, endpoint);
            assert_eq!(&*web_push.peer(&Subscription { endpoint, ..alice.clone() }), peer);
        }
    }
}
