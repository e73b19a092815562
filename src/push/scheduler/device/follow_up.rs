//! What follows for a device from the verdict on its push, and what is said of it in the log.

use tracing::{error, info, warn};

use super::super::{OTHER_ROUTE, REFUSED, TOO_MANY, UNAVAILABLE};
use super::DeviceState;
use crate::model::Timestamp;
use crate::net::backoff::Backoff;
use crate::push::transport::Verdict;

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
    /// It is tried again, later and later, or with `heals` as soon as the device registers anew.
    Owed {
        backoff: Backoff,
        heals: bool,
    },
    /// There is no such device, unless it has registered after this.
    Dead {
        not_after: Timestamp,
    },
}

impl DeviceState {
    /// What follows from a verdict on the push that is under way, which was sent to the registration of
    /// `registered_at`. With `by_users` users say where pushes of the route go.
    pub(in super::super) fn became(
        &mut self,
        verdict: &Verdict,
        registered_at: Timestamp,
        doubts: Option<Doubts>,
        by_users: bool,
    ) -> FollowUp {
        // Since the push was sent: what was said of the device was said of the registration before.
        let renewed = registered_at < self.registered_at;
        let soon_if_renewed = |backoff| if renewed { UNAVAILABLE } else { backoff };
        let DeviceState { device, .. } = self;
        let (account, endpoint, route) = (&device.account, &device.endpoint, &self.route.name);
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
                     push, and tries again once the device has registered anew, and from time to time"
                );
                FollowUp::Owed { backoff: soon_if_renewed(OTHER_ROUTE), heals: true }
            }
            Verdict::TooLarge | Verdict::Misconfigured { .. } => {
                self.say_refused(verdict, by_users);
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

    fn say_refused(&self, verdict: &Verdict, by_users: bool) {
        let DeviceState { device, .. } = self;
        let (account, endpoint, route) = (&device.account, &device.endpoint, &self.route.name);
        let (outcome, why) = (verdict.name(), verdict.detail());
        if by_users {
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
