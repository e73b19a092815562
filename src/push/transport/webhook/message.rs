//! How the receiver of a web hook is spoken to: a notice as a request, an answer as a verdict.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, Uri};
use uuid::Uuid;

use super::{WebhookOwner, judge};
use crate::config::BodyTemplate;
use crate::model::{ChangeKind, Subscription, SubscriptionSecrets, Timestamp};
use crate::net::guard::{Guard, UrlOrigin};
use crate::net::webhook_signature::{WebhookSecret, signature};
use crate::push::transport::event::{EventMessage, changed, kind_name, only_change};
use crate::push::transport::{Notice, Transport, TransportLimits, Verdict};

/// No receiver says that it does not know itself, so this never matters.
const SILENCE: Duration = Duration::from_hours(48);

/// One event has one mailbox. One of the operator's has one receiver.
const LIMITS: TransportLimits =
    TransportLimits { mailboxes: 1, silence: SILENCE, in_flight_per_peer: usize::MAX };

/// Most events under way to one host that users name.
const PER_HOST: usize = 4;

/// What one web hook of the operator's sends.
#[derive(Debug)]
pub(super) struct OperatorMessages {
    pub(super) url: Uri,
    /// The newest first.
    pub(super) secrets: Vec<WebhookSecret>,
    /// Sensitive.
    pub(super) authorization: Option<HeaderValue>,
    pub(super) template: Option<BodyTemplate>,
}

impl Transport for OperatorMessages {
    fn limits(&self) -> TransportLimits {
        LIMITS
    }

    /// A text for people is of new mail alone.
    fn tells(&self, _: &Subscription, kind: ChangeKind) -> bool {
        self.template.is_none() || kind == ChangeKind::NewMail
    }

    fn remedy(&self) -> &'static str {
        "Check [[webhook]] url"
    }

    fn render(
        &self,
        subscription: &Subscription,
        notice: &Notice<'_>,
    ) -> Result<Request<Bytes>, Verdict> {
        let change = only_change(notice)?;
        let (content_type, body) = match &self.template {
            Some(template) => {
                let number = |number: Option<u64>| match number {
                    Some(number) => Cow::Owned(number.to_string()),
                    None => Cow::Borrowed("?"),
                };
                let body = template.fill(&[
                    Cow::Borrowed(subscription.account.as_str()),
                    Cow::Borrowed(change.mailbox.as_str()),
                    Cow::Borrowed(kind_name(change.kind)),
                    number(change.state.messages),
                    number(change.state.unseen),
                ]);
                (template.content_type(), body)
            }
            None => {
                let event = changed(&subscription.account, change, notice.at);
                (JSON, json(&event)?)
            }
        };
        let id = notice.id.replace('-', "");
        let mut request = signed(&self.url, &self.secrets, (&id, notice.at), content_type, body)?;
        let authorization = self.authorization.clone();
        request.headers_mut().extend(authorization.map(|value| (AUTHORIZATION, value)));
        Ok(request)
    }

    fn judge(&self, response: &Response<Bytes>) -> Verdict {
        judge::judge(WebhookOwner::Operator, response)
    }
}

/// What the web hooks of all users send.
#[derive(Debug)]
pub(super) struct UserMessages {
    pub(super) guard: Arc<Guard>,
}

impl UserMessages {
    fn request(
        &self,
        to: &Subscription,
        (id, at): (&str, Timestamp),
        event: &impl serde::Serialize,
    ) -> Result<Request<Bytes>, Verdict> {
        let url = to.endpoint.as_given();
        // What was allowed when the user gave it may be so no more.
        self.guard.check(url).map_err(|why| Verdict::unrenderable(format!("the URL {why}")))?;
        let url = url.parse().map_err(|_| Verdict::unrenderable("the URL cannot be read"))?;
        let secrets = secrets(to);
        if secrets.is_empty() {
            return Err(Verdict::unrenderable(
                "its secret cannot be read: put back the key file, or its user subscribes again",
            ));
        }
        signed(&url, &secrets, (&id.replace('-', ""), at), JSON, json(event)?)
    }
}

impl Transport for UserMessages {
    fn limits(&self) -> TransportLimits {
        TransportLimits { in_flight_per_peer: PER_HOST, ..LIMITS }
    }

    fn peer(&self, subscription: &Subscription) -> Arc<str> {
        UrlOrigin::of(subscription.endpoint.as_given()).unwrap_or_default().host.into()
    }

    fn remedy(&self) -> &'static str {
        "Ask the user whether the URL is right"
    }

    fn render(
        &self,
        subscription: &Subscription,
        notice: &Notice<'_>,
    ) -> Result<Request<Bytes>, Verdict> {
        let event = changed(&subscription.account, only_change(notice)?, notice.at);
        self.request(subscription, (notice.id, notice.at), &event)
    }

    fn verify(
        &self,
        subscription: &Subscription,
        code: &str,
        at: Timestamp,
    ) -> Result<Request<Bytes>, Verdict> {
        let id = Uuid::new_v4().to_string();
        self.request(subscription, (&id, at), &EventMessage::verify(code, at))
    }

    fn judge(&self, response: &Response<Bytes>) -> Verdict {
        judge::judge(WebhookOwner::User, response)
    }
}

const JSON: &str = "application/json";

fn json(event: &impl serde::Serialize) -> Result<String, Verdict> {
    serde_json::to_string(event)
        .map_err(|_| Verdict::unrenderable("the event cannot be written as JSON"))
}

/// A POST with the headers of Standard Webhooks; unsigned where there is no secret. `id` holds no dot.
fn signed(
    url: &Uri,
    secrets: &[WebhookSecret],
    (id, Timestamp(millis)): (&str, Timestamp),
    content_type: &'static str,
    body: String,
) -> Result<Request<Bytes>, Verdict> {
    let (id, seconds) = (format!("msg_{id}"), millis.div_euclid(1000));
    let mut request = Request::post(url)
        .header(CONTENT_TYPE, content_type)
        .header("webhook-id", &id)
        .header("webhook-timestamp", seconds);
    if !secrets.is_empty() {
        let signature = signature(secrets, &id, seconds, body.as_bytes());
        request = request.header("webhook-signature", signature);
    }
    // The error's own text would show the address.
    request
        .body(body.into())
        .map_err(|_| Verdict::unrenderable("the event cannot be written as a request"))
}

/// The secrets of a subscription; empty if they cannot be read.
pub(super) fn secrets(subscription: &Subscription) -> Vec<WebhookSecret> {
    let text = subscription.secrets.as_ref().map_or("", SubscriptionSecrets::expose);
    text.lines().filter_map(WebhookSecret::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::super::of_operator;
    use super::*;
    use crate::model::{Account, PushEndpoint};

    #[test]
    fn a_text_for_people_is_of_new_mail_alone() {
        let messages = |template: Option<&str>| OperatorMessages {
            url: Uri::from_static("https://hooks.example.org/"),
            secrets: Vec::new(),
            authorization: None,
            template: template.map(|text| BodyTemplate::parse(text).unwrap()),
        };
        let alice = of_operator("a", &Account::from_login("alice"));
        let (text, json) = (messages(Some("New mail in {mailbox}")), messages(None));
        assert!(text.tells(&alice, ChangeKind::NewMail) && json.tells(&alice, ChangeKind::NewMail));
        assert!(!text.tells(&alice, ChangeKind::Quiet) && json.tells(&alice, ChangeKind::Quiet));
    }

    #[test]
    fn a_receiver_is_known_by_its_host() {
        let messages = UserMessages { guard: Arc::new(Guard::new(&[], &[])) };
        for (url, host) in
            [("https://Hooks.example.org:8443/x", "hooks.example.org"), ("nonsense url", "")]
        {
            let endpoint = PushEndpoint::new(url, url);
            let alice = of_operator("a", &Account::from_login("alice"));
            assert_eq!(&*messages.peer(&Subscription { endpoint, ..alice }), host);
        }
    }
}
