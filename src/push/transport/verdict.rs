//! What became of a push, in words that fit every service.

use std::time::Duration;

use crate::model::Timestamp;

/// How a subscription fails that rests.
const RESTS: &str = "rejected";

/// What became of one push. No text in here holds an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The service has it. Whether the client shows anything is not known.
    Accepted {
        /// The name under which the service can find it, if it says one.
        id: Option<String>,
    },
    /// The endpoint is dead.
    Gone {
        /// Since when; a registration that is newer than this is none of the dead.
        since: Option<Timestamp>,
    },
    /// The service does not know the endpoint: it is dead, or it is one of another environment.
    BadEndpoint,
    /// The endpoint belongs to another route: that heals when the client registers again.
    OtherRoute,
    /// The service takes no message of this size.
    TooLarge,
    /// Nor does it take the short form of the message, and it will take no other.
    TooLargeInShort,
    /// The service refuses this push, and would refuse it as often as it came: its protocol says not to send it again.
    /// The subscription rests ([`Verdict::rests`]).
    Rejected {
        /// What is wrong.
        why: String,
    },
    /// No request can be written for this subscription, as for one whose options cannot be read: nothing
    /// was sent. That heals when the client registers again, or when what mailchime lacks for it is there again.
    Unrenderable {
        /// What is wrong.
        why: String,
    },
    /// The service refuses who mailchime says it is, for this subscription. Where it takes pushes of others, the
    /// fault is the subscription's; else an operator can mend it.
    Refused {
        /// What is wrong.
        why: String,
    },
    /// The service refuses the push for a reason that only an operator can mend.
    Misconfigured {
        /// What is wrong.
        why: String,
    },
    /// This subscription is pushed too often.
    TooMany {
        /// How long to wait, if the service says so.
        retry_after: Option<Duration>,
    },
    /// The service has trouble, or did not answer in time. It may be about this push alone.
    Unavailable {
        /// What is wrong.
        why: String,
        /// How long to wait, if the service says so.
        retry_after: Option<Duration>,
    },
    /// Nothing can be sent to this peer of the route, to whichever subscription: there is no connection,
    /// or nothing that proves who we are.
    RouteClosed {
        /// What is wrong.
        why: String,
        /// How long to wait, if the service says so.
        retry_after: Option<Duration>,
    },
}

/// Who is at fault for what became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// It went well, or it cannot be said yet.
    Nobody,
    /// This subscription alone: others of the peer are pushed as before.
    Subscription,
    /// The whole peer, which is the whole route where that has one peer ([`Transport::peer`]): nothing else
    /// can be sent to it either.
    ///
    /// [`Transport::peer`]: super::Transport::peer
    Route,
    /// The configuration or mailchime, as far as one answer says.
    Us,
}

// === impl Verdict ===

impl Verdict {
    /// Who is at fault.
    pub fn blames(&self) -> Blame {
        match self {
            Self::Accepted { .. } | Self::Unavailable { .. } => Blame::Nobody,
            Self::Gone { .. }
            | Self::BadEndpoint
            | Self::OtherRoute
            | Self::TooMany { .. }
            | Self::Unrenderable { .. } => Blame::Subscription,
            Self::RouteClosed { .. } => Blame::Route,
            Self::TooLarge
            | Self::TooLargeInShort
            | Self::Rejected { .. }
            | Self::Refused { .. }
            | Self::Misconfigured { .. } => Blame::Us,
        }
    }

    /// Whether it lasts until its client, its user or the operator mends it: its service refuses its push, or none can
    /// be written.
    pub fn lasts(&self) -> bool {
        let is_of_now = matches!(self, Self::TooMany { .. });
        !is_of_now && matches!(self.blames(), Blame::Subscription | Blame::Us)
    }

    /// Whether time alone brings no other answer. The push stays owed, and its subscription rests: it is tried again
    /// with the next change of its mailboxes, when its client registers it anew, after a reload of the configuration,
    /// and at a start.
    pub fn rests(&self) -> bool {
        matches!(self, Self::Rejected { .. } | Self::TooLargeInShort)
    }

    /// How a subscription fails whose pushes end so, in one word: what the database keeps of a failure that lasts.
    pub fn failure(&self) -> &'static str {
        if self.rests() { RESTS } else { self.name() }
    }

    /// Whether a subscription that [fails so](Verdict::failure) rests.
    pub fn is_rest(failure: &str) -> bool {
        failure == RESTS
    }

    /// One word, for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Gone { .. } => "gone",
            Self::BadEndpoint => "bad-endpoint",
            Self::OtherRoute => "other-route",
            Self::TooLarge | Self::TooLargeInShort => "too-large",
            Self::Unrenderable { .. } => "unrenderable",
            Self::Rejected { .. } | Self::Refused { .. } | Self::Misconfigured { .. } => "refused",
            Self::TooMany { .. } => "too-many",
            Self::Unavailable { .. } | Self::RouteClosed { .. } => "unavailable",
        }
    }

    /// What there is to say besides, for people.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Unrenderable { why }
            | Self::Rejected { why }
            | Self::Refused { why }
            | Self::Misconfigured { why }
            | Self::Unavailable { why, .. }
            | Self::RouteClosed { why, .. } => Some(why),
            _ => None,
        }
    }

    /// For how long the service asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooMany { retry_after }
            | Self::Unavailable { retry_after, .. }
            | Self::RouteClosed { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// No request can be written for this subscription, for this reason.
    pub fn unrenderable(why: impl Into<String>) -> Self {
        Self::Unrenderable { why: why.into() }
    }

    /// This push got no answer, for this reason.
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into(), retry_after: None }
    }

    /// Nothing can be sent to the peer, for this reason.
    pub fn route_closed(why: impl Into<String>) -> Self {
        Self::RouteClosed { why: why.into(), retry_after: None }
    }
}
