//! What follows for a subscription from the verdict on its push, and what is said of it in the log.

use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::super::route_queue::Fault;
use super::super::{OTHER_ROUTE, REFUSED, TOO_MANY, UNAVAILABLE};
use super::SubscriptionQueue;
use crate::model::{LastingFailure, Timestamp};
use crate::net::backoff::Backoff;
use crate::push::transport::Verdict;

/// A subscription that no client registers again is removed when its pushes have failed for so long by its own fault.
/// What an operator has to mend and the time in which nothing was tried do not count: one that rests
/// ([`Verdict::rests`]) is not removed for that, however long it rests.
pub const OWN_FAULT: Duration = Duration::from_hours(7 * 24);
/// Between two tries no more than this counts: tries are no further apart, unless something else held them up.
const BETWEEN_TRIES: Duration = Duration::from_hours(1);

/// What the other pushes of its route say of a verdict.
#[derive(Default)]
pub(in super::super) struct Circumstances {
    pub(in super::super) doubts: Option<Doubts>,
    /// Whose fault a failure that lasts is; `None` where that cannot be told.
    pub(in super::super) fault: Option<Fault>,
    /// Users say where pushes of the route go: what their receivers answer is nothing that an operator can mend.
    pub(in super::super) by_users: bool,
}

/// The service does not know most endpoints of a route, so the fault is hardly theirs.
pub(in super::super) struct Doubts {
    /// What registered later than this, by the time of service, is kept.
    pub(in super::super) renewed_since: Timestamp,
    /// It is time to say so in the log, with what an operator checks.
    pub(in super::super) say: Option<&'static str>,
}

/// What follows from a verdict.
pub(in super::super) enum FollowUp {
    Delivered,
    /// It is tried again, later and later, or with `heals` as soon as the subscription registers anew.
    Owed {
        backoff: Backoff,
        heals: bool,
    },
    /// Time alone brings no other answer.
    Rests,
    /// There is no such subscription, unless it has registered after this.
    Dead {
        not_after: Timestamp,
    },
}

impl SubscriptionQueue {
    /// Takes note of whether its pushes fail for a reason that lasts, by a verdict on a push to the registration of
    /// `registered_at`; `wall` is the time of day. Returns what is to be written of that, if it is not written yet.
    pub(in super::super) fn fails(
        &mut self,
        verdict: &Verdict,
        registered_at: Timestamp,
        fault: Option<Fault>,
        wall: Timestamp,
        now: Instant,
    ) -> Option<LastingFailure> {
        if registered_at < self.registered_at {
            return None;
        }
        let lasts = verdict.lasts();
        let is_own = lasts && fault.is_some_and(Fault::counts);
        let tried_at = std::mem::replace(&mut self.at_fault_at, is_own.then_some(now));
        if !lasts {
            return None;
        }
        let before = self.failing.as_ref();
        let counted = before.map(|before| before.own_fault).unwrap_or_default();
        let since_try = tried_at.map(|at| now.saturating_duration_since(at)).unwrap_or_default();
        let own_fault = match fault {
            // Its silence ends it.
            _ if self.renews => Duration::ZERO,
            Some(Fault::Operator) => Duration::ZERO,
            Some(Fault::Subscription | Fault::Alone) => counted + since_try.min(BETWEEN_TRIES),
            None => counted,
        };
        let since = before.map_or(wall, |before| before.since);
        let failing = LastingFailure { since, kind: verdict.failure().into(), own_fault };
        (self.failing.replace(failing.clone()).as_ref() != Some(&failing)).then_some(failing)
    }

    /// What follows from a verdict on the push that is under way, which was sent to the registration of
    /// `registered_at`, after [`SubscriptionQueue::fails`].
    pub(in super::super) fn became(
        &mut self,
        verdict: &Verdict,
        registered_at: Timestamp,
        Circumstances { doubts, fault, by_users }: Circumstances,
    ) -> FollowUp {
        // Since the push was sent: what was said of the subscription was said of the registration before.
        let renewed = registered_at < self.registered_at;
        let soon_if_renewed = |backoff| if renewed { UNAVAILABLE } else { backoff };
        if !renewed && fault.is_some_and(Fault::counts) && self.is_given_up(verdict) {
            return FollowUp::Dead { not_after: registered_at };
        }
        let SubscriptionQueue { subscription, .. } = self;
        let (account, endpoint, route) =
            (&subscription.account, &subscription.endpoint, &self.route.name);
        match verdict {
            Verdict::Accepted { .. } => FollowUp::Delivered,
            Verdict::Gone { since } => {
                let not_after = since.unwrap_or(registered_at);
                match self.registered_at <= not_after {
                    true => FollowUp::Dead { not_after },
                    // It registered after its endpoint died: it lives, and the service has yet to see that.
                    false => FollowUp::Owed { backoff: soon_if_renewed(REFUSED), heals: true },
                }
            }
            Verdict::BadEndpoint if renewed => FollowUp::Owed { backoff: UNAVAILABLE, heals: true },
            Verdict::BadEndpoint
                if let Some(Doubts { renewed_since, say }) = doubts
                    && (self.heard_at >= renewed_since || !self.renews) =>
            {
                if let Some(remedy) = say {
                    error!(
                        target: "mailchime::push::bad_endpoints_doubted",
                        %route, %account, %endpoint, remedy,
                        "the push service does not know most endpoints; mailchime removes no registration of the \
                         last days for that, and none that no client renews, until other answers come"
                    );
                }
                // One that never registers again would be left alone for good.
                if self.renews {
                    self.bad_answers = self.bad_answers.saturating_add(1);
                }
                FollowUp::Owed { backoff: REFUSED, heals: true }
            }
            Verdict::BadEndpoint => FollowUp::Dead { not_after: registered_at },
            Verdict::OtherRoute => {
                warn!(
                    target: "mailchime::push::other_route",
                    %account, %endpoint, %route,
                    "the push service says that the endpoint belongs to another route; mailchime keeps the \
                     push, and tries again once its client has registered anew, and from time to time"
                );
                FollowUp::Owed { backoff: soon_if_renewed(OTHER_ROUTE), heals: true }
            }
            Verdict::TooLargeInShort | Verdict::Rejected { .. } if renewed => {
                FollowUp::Owed { backoff: UNAVAILABLE, heals: true }
            }
            Verdict::TooLargeInShort | Verdict::Rejected { .. } => {
                self.say_rejected(verdict, by_users);
                FollowUp::Rests
            }
            Verdict::TooLarge | Verdict::Refused { .. } | Verdict::Misconfigured { .. } => {
                self.say_refused(verdict, fault, by_users);
                FollowUp::Owed { backoff: soon_if_renewed(REFUSED), heals: true }
            }
            Verdict::Unrenderable { why } if by_users => {
                info!(
                    target: "mailchime::push::registration_of_user_unusable",
                    why, %account, %endpoint, %route,
                    "could not write a push for what a user registered; mailchime keeps the push, and tries again \
                     once the client has registered anew, and from time to time"
                );
                FollowUp::Owed { backoff: soon_if_renewed(REFUSED), heals: true }
            }
            Verdict::Unrenderable { why } => {
                error!(
                    target: "mailchime::push::registration_unusable",
                    why, %account, %endpoint, %route,
                    "could not write a push for a registration; mailchime keeps the push, and tries again once \
                     the client has registered anew, and from time to time"
                );
                FollowUp::Owed { backoff: soon_if_renewed(REFUSED), heals: true }
            }
            Verdict::TooMany { .. } => FollowUp::Owed { backoff: TOO_MANY, heals: false },
            Verdict::Unavailable { .. } | Verdict::RouteClosed { .. } => {
                FollowUp::Owed { backoff: UNAVAILABLE, heals: false }
            }
        }
    }

    /// Whether it has failed by its own fault for as long as one is kept; then the log says so.
    fn is_given_up(&self, verdict: &Verdict) -> bool {
        let SubscriptionQueue { subscription, failing, .. } = self;
        let given_up =
            verdict.lasts() && failing.as_ref().is_some_and(|it| it.own_fault >= OWN_FAULT);
        if given_up {
            info!(
                target: "mailchime::push::subscription_given_up",
                outcome = verdict.name(), why = verdict.detail(),
                account = %subscription.account, endpoint = %subscription.endpoint, route = %self.route.name,
                "for seven days the push service has refused all pushes of a subscription, while others of the route \
                 were accepted; mailchime removes the subscription"
            );
        }
        given_up
    }

    fn say_rejected(&self, verdict: &Verdict, by_users: bool) {
        let SubscriptionQueue { subscription, .. } = self;
        let (account, endpoint, route) =
            (&subscription.account, &subscription.endpoint, &self.route.name);
        let (outcome, why) = (verdict.name(), verdict.detail());
        if by_users {
            info!(
                target: "mailchime::push::push_rejected_by_receiver",
                outcome, why, %account, %endpoint, %route,
                "the push service that a user named rejects a push; mailchime keeps it, and sends it with the next change, \
                 once the client registers anew, after a reload, or at the next start"
            );
        } else {
            error!(
                target: "mailchime::push::push_rejected",
                outcome, why, %account, %endpoint, %route,
                "the push service rejects a push; mailchime keeps it, and sends it with the next change, once the client \
                 registers anew, after a reload, or at the next start"
            );
        }
    }

    fn say_refused(&self, verdict: &Verdict, fault: Option<Fault>, by_users: bool) {
        let SubscriptionQueue { subscription, .. } = self;
        let (account, endpoint, route) =
            (&subscription.account, &subscription.endpoint, &self.route.name);
        let (outcome, why) = (verdict.name(), verdict.detail());
        if let Verdict::Refused { .. } = verdict
            && fault != Some(Fault::Subscription)
        {
            warn!(
                target: "mailchime::push::identity_refused",
                why, %account, %endpoint, %route,
                "the push service refuses mailchime's key or contact, and has accepted few other pushes lately, or none; \
                 check them and the clock; mailchime keeps the push and tries again"
            );
        } else if by_users {
            info!(
                target: "mailchime::push::push_refused_by_receiver",
                outcome, why, %account, %endpoint, %route,
                "the receiver that a user named refuses a push; mailchime keeps the push and tries again"
            );
        } else {
            error!(
                target: "mailchime::push::push_refused",
                outcome, why, %account, %endpoint, %route,
                "the push service refuses a push for a reason that an operator has to fix; mailchime keeps \
                 the push and tries again"
            );
        }
    }
}
