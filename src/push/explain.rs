//! Why a push to a device would or would not be sent now.
//!
//! Pure: it judges what the database, the identities and the dispatcher know of one device, and
//! names every reason, not just the first, since the first that is mended may not be the last.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::scheduler::DeliveryView;
use super::transport::apns::identities::NoClient;
use super::transport::apns::payload::hears_of_inbox_alone;
use crate::config;
use crate::model::{BackendId, Mailbox, Timestamp};
use crate::store::{Alive, Target};

/// One device, and what would become of new mail that comes now. Times are in milliseconds since
/// 1970, spans in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The first 8 digits.
    pub token: String,
    pub subtopic: String,
    pub topic: String,
    pub registered_at: i64,
    /// When APNs last accepted a push for it.
    pub pushed_at: Option<i64>,
    /// What it registered for.
    pub mailboxes: Vec<String>,
    /// Those of which a mark on disk says that a push is owed.
    pub owed: Vec<String>,
    /// Those that the next push will name, and when it may go.
    pub waiting: Vec<String>,
    pub due_in: Option<u64>,
    /// Whether new mail would be pushed at once: there are no reasons against it.
    pub would_push: bool,
    pub reasons: Vec<Reason>,
}

/// Why new mail would not be pushed at once. `Display` is a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// It has not registered for too long.
    Expired { since: u64 },
    /// Its account got another password, with which it has not registered.
    OldPassword { since: u64 },
    /// Its account registered at this backend, and has that one now.
    OtherBackend { registered_at: String, now: String },
    /// It did not register for this mailbox.
    OtherMailbox { mailbox: String },
    /// With version 1 only INBOX is pushed.
    InboxOnly,
    /// Asleep: nobody can push to its topic until it registers again.
    OtherTopic,
    /// The certificate for its topic has expired, or is not valid yet.
    Identity { why: String },
    /// APNs cannot be reached, or refuses the identity; the next push tries after this time.
    ApnsShut { tries_in: u64 },
    /// It was pushed for other accounts a moment ago.
    OtherAccounts { due_in: u64 },
    /// APNs said twice that there is no such token: it is left alone until it registers anew.
    BadToken,
    /// It is left alone after failures in a row.
    BacksOff { failures: u32, tries_in: u64 },
    /// A push is under way; the next one waits for its answer.
    UnderWay { since: u64 },
    /// The last push was a moment ago.
    TooSoon { due_in: u64 },
}

/// What is known of one device.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) target: &'a Target,
    /// How long a registration counts.
    pub(super) config: &'a config::Push,
    /// The backend of its account.
    pub(super) home: Option<&'a BackendId>,
    /// Why nobody can push to its topic.
    pub(super) identity: Option<NoClient>,
    pub(super) pending: DeliveryView,
}

impl Facts<'_> {
    /// `mailbox` is where the mail would come; `None` stands for any that it registered for.
    /// `served` is the time of service.
    pub(super) fn explain(&self, mailbox: Option<&Mailbox>, served: Timestamp) -> Explanation {
        let Target { subscription: device, registered_at, heard_at, pushed_at, mailboxes, .. } =
            self.target;
        let DeliveryView {
            under_way,
            waiting,
            due_in,
            too_soon,
            backs_off,
            failures,
            held,
            suspended,
            shut,
        } = &self.pending;
        let mut reasons = Vec::new();
        let alive = Alive::at(served, self.config);
        if *heard_at < alive.registered_since {
            let since = served.0.saturating_sub(heard_at.0);
            reasons.push(Reason::Expired { since: since.unsigned_abs() });
        }
        let outdated_at = self.target.outdated_since.and(self.target.outdated_at);
        if let Some(at) = outdated_at.filter(|at| *at <= alive.outdated_after) {
            let since = served.0.saturating_sub(at.0).unsigned_abs();
            reasons.push(Reason::OldPassword { since });
        }
        if let Some(home) = self.home
            && let Some(recorded) = self.target.elsewhere(home)
        {
            let (registered_at, now) = (recorded.to_owned(), home.to_string());
            reasons.push(Reason::OtherBackend { registered_at, now });
        }
        if let Some(mailbox) = mailbox {
            if !mailboxes.iter().any(|(registered, _)| registered == mailbox) {
                reasons.push(Reason::OtherMailbox { mailbox: mailbox.as_str().to_owned() });
            } else if hears_of_inbox_alone(device) && !mailbox.is_inbox() {
                reasons.push(Reason::InboxOnly);
            }
        }
        reasons.extend(self.identity.as_ref().map(|why| match why {
            NoClient::OtherTopic => Reason::OtherTopic,
            NoClient::Invalid { .. } => Reason::Identity { why: why.to_string() },
        }));
        reasons.extend(shut.map(|left| Reason::ApnsShut { tries_in: millis(left) }));
        reasons.extend(held.map(|left| Reason::OtherAccounts { due_in: millis(left) }));
        reasons.extend(suspended.then_some(Reason::BadToken));
        let failures = *failures;
        reasons.extend(backs_off.map(|left| Reason::BacksOff { failures, tries_in: millis(left) }));
        reasons.extend(under_way.map(|since| Reason::UnderWay { since: millis(since) }));
        reasons.extend(too_soon.map(|left| Reason::TooSoon { due_in: millis(left) }));
        let name = |mailbox: &Mailbox| mailbox.as_str().to_owned();
        Explanation {
            token: device.endpoint.to_string(),
            subtopic: device.app.to_string(),
            topic: device.route.to_string(),
            registered_at: registered_at.0,
            pushed_at: pushed_at.map(|at| at.0),
            mailboxes: mailboxes.iter().map(|(mailbox, _)| name(mailbox)).collect(),
            owed: mailboxes.iter().filter(|(_, owed)| *owed).map(|(m, _)| name(m)).collect(),
            waiting: waiting.iter().map(name).collect(),
            due_in: due_in.map(millis),
            would_push: reasons.is_empty(),
            reasons,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |millis: &u64| format!("{:.1} s", *millis as f64 / 1000.0);
        match self {
            Self::Expired { since } => {
                let days = since / (24 * 3600 * 1000);
                write!(f, "it has not registered for {days} days, so it is taken for gone")
            }
            Self::OldPassword { since } => {
                let hours = since / (3600 * 1000);
                write!(
                    f,
                    "its account got another password {hours} hours ago, and it has not registered \
                     with that"
                )
            }
            Self::OtherBackend { registered_at, now } => write!(
                f,
                "its account registered at {registered_at}, and its backend is {now} now; it is parked \
                 until its phone has registered there"
            ),
            Self::OtherMailbox { mailbox } => {
                write!(f, "it did not register for {:?}", Mailbox::new(mailbox))
            }
            Self::InboxOnly => f.write_str("it registered with version 1, for INBOX alone"),
            Self::OtherTopic => f.write_str(
                "it listens to another topic than those of the identities, and sleeps until it \
                 registers again",
            ),
            Self::Identity { why } => f.write_str(why),
            Self::ApnsShut { tries_in: 0 } => {
                f.write_str("APNs did not answer or refused us; one push is trying now")
            }
            Self::ApnsShut { tries_in } => {
                let left = seconds(tries_in);
                write!(f, "APNs did not answer or refused us; one push tries again in {left}")
            }
            Self::OtherAccounts { due_in } => {
                let left = seconds(due_in);
                write!(
                    f,
                    "it was pushed for other accounts a moment ago; the next may go in {left}"
                )
            }
            Self::BadToken => f.write_str(
                "APNs said twice that it does not know this token; nothing is sent until it \
                 registers again",
            ),
            Self::BacksOff { failures, tries_in } => {
                let left = seconds(tries_in);
                write!(f, "{failures} pushes in a row failed; it is left alone for {left} more")
            }
            Self::UnderWay { since } => {
                write!(f, "a push is under way since {}; the next waits for it", seconds(since))
            }
            Self::TooSoon { due_in } => {
                let left = seconds(due_in);
                write!(f, "the last push was a moment ago; the next may go in {left}")
            }
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imap::registration::xapple::{ApnsOptions, DeviceToken, XAppleRegistration};
    use crate::model::Account;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const TTL: Duration = Duration::from_hours(240);

    fn target() -> Target {
        let subscription = XAppleRegistration {
            version: 2,
            account_id: "ID".into(),
            token: DeviceToken::new(&"ab".repeat(32)).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: Vec::new(),
        }
        .subscription(Account::from_login("alice@example.org"), "com.apple.mail.XServer.1");
        let mailboxes = vec![(Mailbox::inbox(), false), (Mailbox::new("Notes"), true)];
        let registered_at = NOW.minus(TTL);
        Target {
            subscription,
            registered_at,
            heard_at: registered_at,
            backend: Some("imap:993".to_owned()),
            outdated_since: None,
            outdated_at: None,
            pushed_at: None,
            mailboxes,
        }
    }

    #[test]
    fn a_device_that_is_well_would_be_pushed_and_each_hindrance_is_named() {
        let explain = |target: &Target, identity, pending, mailbox: Option<&str>| {
            let config = config::Push { registration_ttl: TTL, ..Default::default() };
            let home = BackendId::new(None, "imap", 993);
            let facts = Facts { target, config: &config, home: Some(&home), identity, pending };
            facts.explain(mailbox.map(Mailbox::new).as_ref(), NOW)
        };
        let well = explain(&target(), None, DeliveryView::default(), Some("inbox"));
        assert!(well.would_push && well.reasons.is_empty(), "{well:?}");
        assert_eq!((&*well.token, &well.owed[..]), ("abababab…", &["Notes".to_owned()][..]));

        let mut old = target();
        old.heard_at.0 = NOW.0 - 11 * 24 * 3600 * 1000;
        let version_1 = ApnsOptions { account_id: "ID".into(), version: 1 };
        old.subscription.options = version_1.to_json().into();
        old.outdated_at = Some(NOW.minus(Duration::from_hours(25)));
        old.outdated_since = old.outdated_at;
        old.backend = Some("other:993".into());
        let invalid = NoClient::Invalid {
            file: "apns.pem".into(),
            validity: super::super::transport::apns::Validity::Expired,
        };
        let second = Some(Duration::from_secs(1));
        let pending = DeliveryView {
            under_way: second,
            waiting: vec![Mailbox::new("Notes")],
            due_in: second,
            too_soon: second,
            backs_off: second,
            failures: 3,
            held: second,
            suspended: true,
            shut: Some(Duration::ZERO),
        };
        let ill = explain(&old, Some(invalid), pending, Some("Notes"));
        assert!(!ill.would_push);
        assert_eq!((&ill.waiting[..], ill.due_in), (&["Notes".to_owned()][..], Some(1000)));
        let sentences: Vec<_> = ill.reasons.iter().map(Reason::to_string).collect();
        assert_eq!(
            sentences,
            [
                "it has not registered for 11 days, so it is taken for gone",
                "its account got another password 25 hours ago, and it has not registered with that",
                "its account registered at other:993, and its backend is imap:993 now; it is parked \
                 until its phone has registered there",
                "it registered with version 1, for INBOX alone",
                "apns.pem: is expired",
                "APNs did not answer or refused us; one push is trying now",
                "it was pushed for other accounts a moment ago; the next may go in 1.0 s",
                "APNs said twice that it does not know this token; nothing is sent until it \
                 registers again",
                "3 pushes in a row failed; it is left alone for 1.0 s more",
                "a push is under way since 1.0 s; the next waits for it",
                "the last push was a moment ago; the next may go in 1.0 s",
            ]
        );

        let other =
            explain(&target(), Some(NoClient::OtherTopic), DeliveryView::default(), Some("Spam"));
        let json = serde_json::to_value(&other).unwrap();
        assert_eq!(
            json["reasons"],
            serde_json::json!([
                { "reason": "other_mailbox", "mailbox": "Spam" },
                { "reason": "other_topic" },
            ])
        );
    }
}
