//! Why a push to a subscription would or would not be sent now.
//!
//! Pure: it judges what the database, the identities and the dispatcher know of one subscription, and
//! names every reason, not just the first, since the first that is mended may not be the last.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::scheduler::DeliveryView;
use super::transport::{Route, Verdict};
use crate::config;
use crate::model::{BackendId, Mailbox, SubscriptionState, Timestamp};
use crate::store::{Alive, Target};

/// One subscription, and what would become of new mail that comes now. Times are in milliseconds since
/// 1970, spans in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The service that it is sent by.
    pub transport: String,
    /// Its beginning, as logs show it.
    pub endpoint: String,
    /// The app that registered.
    pub app: String,
    /// The route that it is sent by.
    pub route: String,
    /// When it registered, in milliseconds since 1970.
    pub registered_at: i64,
    /// When the service last accepted a push for it.
    pub pushed_at: Option<i64>,
    /// Since when its pushes fail for a reason that lasts, and how the last one failed.
    pub failing_since: Option<i64>,
    /// The verdict's name.
    pub failing_kind: Option<String>,
    /// For how many milliseconds that was seen to be its own fault; it is removed after
    /// [`OWN_FAULT`](super::dispatcher::OWN_FAULT).
    pub own_fault: u64,
    /// What it registered for.
    pub mailboxes: Vec<String>,
    /// Those of which a mark on disk says that a push is owed.
    pub owed: Vec<String>,
    /// Those that the next push will name, and when it may go.
    pub waiting: Vec<String>,
    /// In how many milliseconds a push is due.
    pub due_in: Option<u64>,
    /// Its pushes say sender, or sender and subject, of new mail where the backend tells them (`[push] preview`).
    pub preview: bool,
    /// Whether new mail would be pushed at once: there are no reasons against it.
    pub would_push: bool,
    /// Why it gets none now; empty if it would.
    pub reasons: Vec<Reason>,
}

/// Why new mail would not be pushed at once. `Display` is a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// Its client has not confirmed it with the code that a first push brings.
    Pending,
    /// The key file cannot be read, or does not open its secrets.
    Sealed,
    /// It has not registered for too long.
    Expired {
        /// For how many milliseconds.
        since: u64,
    },
    /// It has ended at the time that its client asked for, and is removed soon.
    Ended,
    /// Its account got another password, with which it has not registered.
    OldPassword {
        /// For how many milliseconds.
        since: u64,
    },
    /// Its account registered at this backend, and has that one now.
    OtherBackend {
        /// The backend where it registered.
        registered_at: String,
        /// The backend of the account now.
        now: String,
    },
    /// It did not register for this mailbox.
    OtherMailbox {
        /// The mailbox.
        mailbox: String,
    },
    /// It gets no push for this mailbox although it registered for it.
    Withheld {
        /// What is wrong.
        why: String,
    },
    /// Asleep: there is no route to it until it registers again.
    OtherRoute,
    /// Nothing can be sent on its route at the moment.
    RouteClosed {
        /// What is wrong.
        why: String,
    },
    /// The service cannot be reached, or refuses us; the next push tries after this time.
    RoutePaused {
        /// In how many milliseconds the next try is.
        tries_in: u64,
    },
    /// It was pushed for other accounts a moment ago.
    OtherAccounts {
        /// In how many milliseconds it is due.
        due_in: u64,
    },
    /// The service said twice that it does not know the endpoint: it is left alone until it registers
    /// anew.
    BadEndpoint,
    /// Its service refuses its push as often as it comes: that goes with the next change of its mailboxes, when it
    /// registers anew, after a reload, or at a start.
    Rests {
        /// What the service said, if that was since the start.
        why: Option<String>,
    },
    /// It is left alone after failures in a row.
    BacksOff {
        /// How many tries have failed.
        failures: u32,
        /// In how many milliseconds the next try is.
        tries_in: u64,
    },
    /// Nobody sees new mail of its account.
    Unwatched {
        /// What is wrong.
        why: String,
    },
    /// A push is under way; the next one waits for its answer.
    UnderWay {
        /// For how many milliseconds.
        since: u64,
    },
    /// The last push was a moment ago.
    TooSoon {
        /// In how many milliseconds it is due.
        due_in: u64,
    },
}

/// What is known of one subscription.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) target: &'a Target,
    /// Its secrets can be opened, if it counts and has any.
    pub(super) opened: bool,
    /// How long a registration counts.
    pub(super) config: &'a config::PushConfig,
    /// The backend of its account.
    pub(super) home: Option<&'a BackendId>,
    /// On which it would be pushed, if there is such a route.
    pub(super) route: Option<&'a Route>,
    pub(super) pending: DeliveryView,
}

impl Explanation {
    /// The same of an account whose new mail nobody sees, and why.
    pub fn hinder(&mut self, why: &str) {
        self.reasons.insert(0, Reason::Unwatched { why: why.to_owned() });
        self.would_push = false;
    }
}

impl Facts<'_> {
    /// `mailbox` is where the mail would come; `None` stands for any that it registered for.
    /// `wall` is the time of day, `served` that of service.
    pub(super) fn explain(
        &self,
        mailbox: Option<&Mailbox>,
        wall: Timestamp,
        served: Timestamp,
    ) -> Explanation {
        let Target { subscription, registered_at, pushed_at, failing, mailboxes, .. } = self.target;
        let DeliveryView {
            under_way,
            waiting,
            due_in,
            too_soon,
            backs_off,
            failures,
            held,
            suspended,
            rests,
            shut,
        } = &self.pending;
        let mut reasons = self.reasons_of_registration(served);
        reasons.extend(subscription.has_ended(wall).then_some(Reason::Ended));
        if let Some(mailbox) = mailbox {
            if !mailboxes.iter().any(|(registered, _)| registered == mailbox) {
                reasons.push(Reason::OtherMailbox { mailbox: mailbox.as_str().to_owned() });
            } else if let Some(why) = self.withheld(mailbox) {
                reasons.push(Reason::Withheld { why: why.to_owned() });
            }
        } else {
            // Where one of them gets pushes, new mail may come there.
            let withheld = mailboxes.iter().map(|(mailbox, _)| self.withheld(mailbox));
            if let Some(withheld) = withheld.collect::<Option<Vec<_>>>()
                && let Some(why) = withheld.first()
            {
                reasons.push(Reason::Withheld { why: (*why).to_owned() });
            }
        }
        reasons.extend(match self.route {
            None => Some(Reason::OtherRoute),
            Some(route) => route.closed(wall).map(|why| Reason::RouteClosed { why }),
        });
        reasons.extend(shut.map(|left| Reason::RoutePaused { tries_in: millis(left) }));
        reasons.extend(held.map(|left| Reason::OtherAccounts { due_in: millis(left) }));
        reasons.extend(suspended.then_some(Reason::BadEndpoint));
        reasons.extend(self.rests(rests.clone()));
        let failures = *failures;
        reasons.extend(backs_off.map(|left| Reason::BacksOff { failures, tries_in: millis(left) }));
        reasons.extend(under_way.map(|since| Reason::UnderWay { since: millis(since) }));
        reasons.extend(too_soon.map(|left| Reason::TooSoon { due_in: millis(left) }));
        let name = |mailbox: &Mailbox| mailbox.as_str().to_owned();
        Explanation {
            transport: subscription.transport.to_string(),
            endpoint: subscription.endpoint.to_string(),
            app: subscription.app.to_string(),
            route: subscription.route.to_string(),
            registered_at: registered_at.0,
            pushed_at: pushed_at.map(|at| at.0),
            failing_since: failing.as_ref().map(|failing| failing.since.0),
            failing_kind: failing.as_ref().map(|failing| failing.kind.to_string()),
            own_fault: failing
                .as_ref()
                .map(|failing| millis(failing.own_fault))
                .unwrap_or_default(),
            mailboxes: mailboxes.iter().map(|(mailbox, _)| name(mailbox)).collect(),
            owed: mailboxes.iter().filter(|(_, owed)| *owed).map(|(m, _)| name(m)).collect(),
            waiting: waiting.iter().map(name).collect(),
            due_in: due_in.map(millis),
            preview: self.carries_preview(),
            would_push: reasons.is_empty(),
            reasons,
        }
    }

    /// Why it gets no push for any mailbox, by what the database has of it.
    fn reasons_of_registration(&self, served: Timestamp) -> Vec<Reason> {
        let mut reasons = Vec::new();
        match self.target.state {
            SubscriptionState::Pending => reasons.push(Reason::Pending),
            SubscriptionState::Active if !self.opened => reasons.push(Reason::Sealed),
            SubscriptionState::Active => {}
        }
        let alive = Alive::at(served, self.config);
        if self.target.heard_at < alive.registered_since && self.target.renews {
            let since = served.0.saturating_sub(self.target.heard_at.0);
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
        reasons
    }

    /// Whether it rests, and why; `why` is what the dispatcher knows, which forgets it after a while.
    fn rests(&self, why: Option<String>) -> Option<Reason> {
        let failing = self.target.failing.as_ref();
        let is_forgotten = failing.is_some_and(|failing| Verdict::is_rest(&failing.kind))
            && self.pending.waiting.is_empty()
            && self.pending.under_way.is_none();
        (why.is_some() || is_forgotten).then_some(Reason::Rests { why })
    }

    fn carries_preview(&self) -> bool {
        self.config.preview != config::PreviewContent::None
            && self.route.is_some_and(|route| route.transport().carries_preview())
    }

    /// Why the transport gives the subscription no push for this mailbox.
    fn withheld(&self, mailbox: &Mailbox) -> Option<&'static str> {
        self.route?.transport().withholds(&self.target.subscription, mailbox)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |millis: &u64| format!("{:.1} s", *millis as f64 / 1000.0);
        match self {
            Self::Pending => f.write_str(
                "it is pending: its client has not confirmed it with the code that its first push brings",
            ),
            Self::Sealed => f.write_str(
                "[credentials] key_file cannot be read, or does not open its secrets; put the file back that \
                 sealed them, so that mailchime can read it, or its user subscribes again",
            ),
            Self::Expired { since } => {
                let days = since / (24 * 3600 * 1000);
                write!(f, "it has not registered for {days} days, so it is taken for gone")
            }
            Self::Ended => f.write_str(
                "it has ended at the time that its client asked for, and is removed within a minute",
            ),
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
            Self::OtherRoute => f.write_str(
                "it listens to another route than there are, and sleeps until it registers again",
            ),
            Self::Unwatched { why } | Self::Withheld { why } | Self::RouteClosed { why } => {
                f.write_str(why)
            }
            Self::RoutePaused { tries_in: 0 } => {
                f.write_str("the push service did not answer or refused us; one push is trying now")
            }
            Self::RoutePaused { tries_in } => {
                let left = seconds(tries_in);
                write!(f, "the push service did not answer or refused us; one push tries again in {left}")
            }
            Self::OtherAccounts { due_in } => {
                let left = seconds(due_in);
                write!(
                    f,
                    "it was pushed for other accounts a moment ago; the next may go in {left}"
                )
            }
            Self::BadEndpoint => f.write_str(
                "the push service said twice that it does not know this endpoint; nothing is sent until it \
                 registers again",
            ),
            Self::Rests { why } => {
                let why = why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
                write!(
                    f,
                    "the push service rejected its last push{why}; it rests until new mail comes, and that push may be \
                     rejected as well; it is also tried when it registers anew, after a reload and at a start"
                )
            }
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
    use crate::model::{Account, LastingFailure, PushEndpoint, Subscription, TransportId};
    use crate::push::transport::stub::{OF_INBOX_ALONE, Stub};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const TTL: Duration = Duration::from_hours(240);

    fn target() -> Target {
        let subscription = Subscription {
            account: Account::from_login("alice@example.org"),
            transport: TransportId::new("stub"),
            endpoint: PushEndpoint::new(&"ab".repeat(32), &"ab".repeat(32)),
            app: "mail".into(),
            route: "route".into(),
            options: "{}".into(),
            secrets: None,
            expires_at: None,
        };
        let mailboxes = vec![(Mailbox::inbox(), false), (Mailbox::new("Notes"), true)];
        let registered_at = NOW.minus(TTL);
        Target {
            subscription,
            state: Default::default(),
            registered_at,
            heard_at: registered_at,
            renews: true,
            backend: Some("imap:993".to_owned()),
            outdated_since: None,
            outdated_at: None,
            pushed_at: None,
            failing: None,
            mailboxes,
        }
    }

    fn explain(
        target: &Target,
        route: Option<&Route>,
        pending: DeliveryView,
        mailbox: Option<&str>,
    ) -> Explanation {
        let config = config::PushConfig { registration_ttl: TTL, ..Default::default() };
        let home = BackendId::new(None, "imap", 993);
        let home = Some(&home);
        let facts = Facts { target, opened: true, config: &config, home, route, pending };
        facts.explain(mailbox.map(Mailbox::new).as_ref(), NOW, NOW)
    }

    #[test]
    fn a_subscription_whose_mailboxes_are_all_withheld_would_get_no_push_for_any_of_them() {
        let open = Stub::default().route(1);
        let any_mailbox =
            |target: &Target| explain(target, Some(&open), DeliveryView::default(), None);
        let mut target = target();
        target.subscription.options = OF_INBOX_ALONE.into();
        assert!(any_mailbox(&target).would_push, "there is INBOX");
        target.mailboxes.retain(|(mailbox, _)| !mailbox.is_inbox());
        let never = any_mailbox(&target);
        let why = "it registered for INBOX alone".to_owned();
        assert_eq!(never.reasons, [Reason::Withheld { why }]);
        assert!(!never.would_push);
    }

    #[test]
    fn a_preview_is_for_who_may_carry_it_where_the_configuration_says_so() {
        let (target, home) = (target(), BackendId::new(None, "imap", 993));
        for (preview, previews, expected) in [
            (config::PreviewContent::Subject, true, true),
            (config::PreviewContent::None, true, false),
            (config::PreviewContent::Sender, false, false),
        ] {
            let config = config::PushConfig { preview, ..Default::default() };
            let route = Stub { previews, ..Stub::default() }.route(1);
            let (home, route) = (Some(&home), Some(&route));
            let pending = DeliveryView::default();
            let target = &target;
            let facts = Facts { target, opened: true, config: &config, home, route, pending };
            assert_eq!(facts.explain(None, NOW, NOW).preview, expected, "{preview:?}");
        }
    }

    #[test]
    fn a_subscription_that_is_well_would_be_pushed_and_each_hindrance_is_named() {
        let open = Stub::default().route(1);
        let well = explain(&target(), Some(&open), DeliveryView::default(), Some("inbox"));
        assert!(well.would_push && well.reasons.is_empty() && !well.preview, "{well:?}");
        assert_eq!((&*well.endpoint, &well.owed[..]), ("abababab…", &["Notes".to_owned()][..]));

        let mut old = target();
        old.heard_at.0 = NOW.0 - 11 * 24 * 3600 * 1000;
        old.subscription.options = OF_INBOX_ALONE.into();
        old.outdated_at = Some(NOW.minus(Duration::from_hours(25)));
        old.outdated_since = old.outdated_at;
        old.backend = Some("other:993".into());
        let closed = Stub { closed: Some("key.pem: is expired"), ..Stub::default() }.route(1);
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
            rests: Some("400".to_owned()),
            shut: Some(Duration::ZERO),
        };
        let ill = explain(&old, Some(&closed), pending, Some("Notes"));
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
                "it registered for INBOX alone",
                "key.pem: is expired",
                "the push service did not answer or refused us; one push is trying now",
                "it was pushed for other accounts a moment ago; the next may go in 1.0 s",
                "the push service said twice that it does not know this endpoint; nothing is sent until it \
                 registers again",
                "the push service rejected its last push (400); it rests until new mail comes, and that push may be \
                 rejected as well; it is also tried when it registers anew, after a reload and at a start",
                "3 pushes in a row failed; it is left alone for 1.0 s more",
                "a push is under way since 1.0 s; the next waits for it",
                "the last push was a moment ago; the next may go in 1.0 s",
            ]
        );

        let mut failing = target();
        failing.state = SubscriptionState::Pending;
        failing.failing = Some(LastingFailure {
            since: NOW.minus(TTL),
            kind: "refused".into(),
            own_fault: Duration::from_hours(24),
        });
        let pending = explain(&failing, Some(&open), DeliveryView::default(), None);
        assert_eq!(pending.reasons, [Reason::Pending]);
        assert_eq!(pending.failing_kind.as_deref(), Some("refused"));
        assert_eq!(pending.own_fault, 24 * 3600 * 1000);

        let mut resting = target();
        resting.subscription.expires_at = Some(NOW);
        let kind = Verdict::TooLargeInShort.failure().into();
        resting.failing = Some(LastingFailure { since: NOW, kind, own_fault: Duration::ZERO });
        let resting = explain(&resting, Some(&open), DeliveryView::default(), None);
        let forgotten = Reason::Rests { why: None };
        assert_eq!(resting.reasons, [Reason::Ended, forgotten], "the database still says so");

        let other = explain(&target(), None, DeliveryView::default(), Some("Spam"));
        let json = serde_json::to_value(&other).unwrap();
        assert_eq!(
            json["reasons"],
            serde_json::json!([
                { "reason": "other_mailbox", "mailbox": "Spam" },
                { "reason": "other_route" },
            ])
        );
    }
}
