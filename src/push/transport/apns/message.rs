//! How APNs is spoken to: a notice as a request, an answer as a verdict (PROTOCOL.md section 2).

use std::time::Duration;

use a2::PushType;
use a2::request::payload::PayloadLike;
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response};

use super::judge;
use super::payload::{self, Headers, MailPush, collapse_id, hears_of_inbox_alone};
use crate::config::{self, ApnsServer, Collapse};
use crate::imap::registration::xapple::ApnsOptions;
use crate::model::{Mailbox, Subscription};
use crate::push::transport::{Notice, Transport, TransportLimits, Verdict};

/// iOS registers every 23 hours, or when the phone is switched on.
const SILENCE: Duration = Duration::from_hours(48);

/// What of `[push]` is in each push.
#[derive(Clone, Copy, Debug)]
pub struct MessageStyle {
    /// The `apns-push-type` of pushes.
    pub push_type: config::PushType,
    /// Which pushes replace one another.
    pub collapse: Collapse,
    /// `apns-priority`; `None` leaves the header out.
    pub priority: Option<u8>,
}

/// What iOS Mail expects, written for one server.
#[derive(Clone, Debug)]
pub(super) struct MailMessages {
    pub(super) server: ApnsServer,
    pub(super) style: MessageStyle,
}

impl From<&config::PushConfig> for MessageStyle {
    fn from(push: &config::PushConfig) -> Self {
        Self { push_type: push.push_type, collapse: push.collapse, priority: push.priority }
    }
}

impl Transport for MailMessages {
    fn limits(&self) -> TransportLimits {
        let mailboxes = payload::MAX_MAILBOXES;
        TransportLimits { mailboxes, silence: SILENCE, in_flight_per_peer: usize::MAX }
    }

    fn withholds(&self, device: &Subscription, mailbox: &Mailbox) -> Option<&'static str> {
        (hears_of_inbox_alone(device) && !mailbox.is_inbox())
            .then_some("it registered with version 1, for INBOX alone")
    }

    /// A device knows its mail account by the account id. With a push for another version it looks all the
    /// same.
    fn covers(&self, before: &Subscription, after: &Subscription) -> bool {
        let [before, after] = [before, after].map(|device| ApnsOptions::from_json(&device.options));
        before.map(|options| options.account_id) == after.map(|options| options.account_id)
    }

    fn remedy(&self) -> &'static str {
        "Check that the certificate belongs to [apns] endpoint: production or sandbox"
    }

    fn render(
        &self,
        device: &Subscription,
        notice: &Notice<'_>,
    ) -> Result<Request<Bytes>, Verdict> {
        let collapse_id = match self.style.collapse {
            Collapse::None => None,
            Collapse::Account => collapse_id(device),
        };
        let headers = Headers {
            id: notice.id,
            push_type: match self.style.push_type {
                config::PushType::Background => PushType::Background,
                config::PushType::Alert => PushType::Alert,
            },
            expiration: (notice.at.plus(notice.ttl).0 / 1000).unsigned_abs(),
            collapse_id: collapse_id.as_deref(),
        };
        let changed = notice.mailboxes.iter().map(|change| &change.mailbox);
        let push = MailPush::new(device, changed, headers).ok_or_else(|| {
            Verdict::unrenderable("the options of the registration cannot be read")
        })?;
        request(&self.server, &push, self.style.priority)
    }

    fn judge(&self, response: &Response<Bytes>) -> Verdict {
        judge::judge(response)
    }
}

/// The request for `push` (PROTOCOL.md section 2, "Headers"). `priority` is that of a push without one.
pub(super) fn request(
    server: &ApnsServer,
    push: &impl PayloadLike,
    priority: Option<u8>,
) -> Result<Request<Bytes>, Verdict> {
    let options = push.get_options();
    let body = push
        .to_json_string()
        .map_err(|_| Verdict::unrenderable("the payload cannot be written"))?;
    let uri = format!("{server}/3/device/{}", push.get_device_token());
    let own_priority = options.apns_priority.as_ref().map(ToString::to_string);
    let headers = [
        ("apns-id", options.apns_id.map(str::to_owned)),
        ("apns-topic", options.apns_topic.map(str::to_owned)),
        ("apns-push-type", options.apns_push_type.map(|kind| kind.to_string())),
        ("apns-priority", own_priority.or(priority.map(|priority| priority.to_string()))),
        ("apns-expiration", options.apns_expiration.map(|at| at.to_string())),
        ("apns-collapse-id", options.apns_collapse_id.as_ref().map(|id| id.value.to_owned())),
    ];
    // Without it the push is accepted and then dropped.
    let mut request =
        Request::post(uri).header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in headers {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    // The error's own text is about a header or the address, and that has the token.
    request
        .body(Bytes::from(body))
        .map_err(|_| Verdict::unrenderable("the push cannot be written as a request"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imap::registration::xapple::{DeviceToken, XAppleRegistration};
    use crate::model::Account;

    fn registered(version: u8, account_id: &str) -> Subscription {
        let token = DeviceToken::new(&"ab".repeat(32)).unwrap();
        let (account_id, subtopic) = (account_id.into(), "com.apple.mobilemail".into());
        XAppleRegistration { version, account_id, token, subtopic, mailboxes: Vec::new() }
            .subscription(Account::from_login("alice"), "com.apple.mail.XServer.1")
    }

    #[test]
    fn another_version_alone_costs_no_second_push_and_another_account_id_does() {
        let style = MessageStyle::from(&config::PushConfig::default());
        let messages = MailMessages { server: ApnsServer::production(), style };
        let before = registered(1, "A");
        assert_ne!(before.options, registered(2, "A").options);
        assert!(messages.covers(&before, &registered(2, "A")));
        assert!(!messages.covers(&before, &registered(1, "B")));
        assert!(!messages.covers(&before, &registered(2, "B")));
        let unreadable = Subscription { options: "{}".into(), ..before.clone() };
        assert!(!messages.covers(&unreadable, &before), "nothing was sent for it");
    }
}
