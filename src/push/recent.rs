//! The last pushes and what became of them, for people who look.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

use super::scheduler::Delivery;
use super::transport::Verdict;
use crate::metrics::{Metrics, PushOutcome};
use crate::model::{Timestamp, seconds};

/// How many are kept.
const KEPT: usize = 20;

/// Characters of what a push service said.
const DETAIL: usize = 200;

/// A push that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecentPush {
    /// When its answer came, in milliseconds since 1970.
    pub at: i64,
    /// Whose change it told.
    pub account: String,
    /// The service that it was sent by.
    pub transport: String,
    /// The beginning of its endpoint, as logs show it.
    pub endpoint: String,
    /// A word, as in the log: `accepted`, or what went wrong.
    pub outcome: &'static str,
    /// What the service said besides. It may be a stranger's.
    pub detail: Option<String>,
    /// Between the change and the answer.
    pub seconds: f64,
}

/// The last pushes of this process, the newest first; clones share them.
#[derive(Clone, Debug, Default)]
pub struct RecentPushes(Arc<Mutex<VecDeque<RecentPush>>>);

impl RecentPushes {
    /// All that are kept.
    pub fn all(&self) -> Vec<RecentPush> {
        self.0.lock().iter().cloned().collect()
    }

    /// A push was answered `now`: it is counted, and kept among the last ones.
    pub(super) fn note(&self, metrics: &Metrics, push: &Delivery, verdict: &Verdict, now: Instant) {
        let outcome = match verdict {
            Verdict::Accepted { .. } => PushOutcome::Accepted,
            Verdict::Gone { .. } => PushOutcome::Gone,
            Verdict::BadEndpoint => PushOutcome::BadEndpoint,
            Verdict::OtherRoute => PushOutcome::OtherRoute,
            Verdict::TooLarge | Verdict::TooLargeInShort => PushOutcome::TooLarge,
            Verdict::Unrenderable { .. } => PushOutcome::Unrenderable,
            Verdict::Rejected { .. } | Verdict::Refused { .. } | Verdict::Misconfigured { .. } => {
                PushOutcome::Refused
            }
            Verdict::TooMany { .. } => PushOutcome::TooMany,
            Verdict::Unavailable { .. } | Verdict::RouteClosed { .. } => PushOutcome::Unavailable,
        };
        let since_seen = now.saturating_duration_since(push.seen_at);
        metrics.pushed(push.subscription.transport.as_str(), outcome, since_seen);
        let push = RecentPush {
            at: Timestamp::now().0,
            account: push.subscription.account.as_str().to_owned(),
            transport: push.subscription.transport.to_string(),
            endpoint: push.subscription.endpoint.to_string(),
            outcome: verdict.name(),
            detail: verdict.detail().map(|detail| detail.chars().take(DETAIL).collect()),
            seconds: seconds(since_seen),
        };
        let mut pushes = self.0.lock();
        pushes.truncate(KEPT - 1);
        pushes.push_front(push);
    }
}
