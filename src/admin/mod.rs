//! What people and machines may ask of the program at work, over HTTP/1.1:
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | the status page, for people; `?user=USER` looks an account up |
//! | `GET /metrics` | what is counted, for Prometheus |
//! | `GET /healthz` | 200 while the process answers at all |
//! | `GET /readyz` | 200 when every part is ready, else 503; `?exclude=PART` leaves one out |
//! | `GET /watchers` | the accounts that this node watches; `?user=USER` for one |
//! | `POST /push?user=USER` | sends a test push, `&mailbox=NAME` for one mailbox, and tells APNs' answers |
//! | `POST /subscriptions?user=USER` | has the user's subscriptions read again, which were changed in the database |
//! | `GET /explain?user=USER` | whether new mail would be pushed now, device by device; `&mailbox=NAME` too |
//!
//! Answers but the first two are JSON, times in milliseconds since 1970; an error is `{"error": "…"}`.
//! Nobody is asked who they are, so the address must be one that only the right ones reach, or a Unix
//! socket that only they may open. A page on the web must not come in through the browser of someone
//! who may: requests that a browser says are another site's are refused, and so are those for another
//! host, which a page sends whose own name points here (DNS rebinding). No
//! answer holds a secret or a device token in full.
//!
//! Nothing here knows the other parts: `app` gives functions that ask them.

mod answer;
mod listener;
mod overview;
mod page;
mod serve;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::time::timeout;

pub use self::listener::AdminListener;
pub use self::serve::serve;
use crate::metrics::Metrics;
use crate::model::{Account, Mailbox, Timestamp};
use crate::net::counters::LimitCounters;

/// What mailchime shows, and how to find it out.
pub struct Context {
    /// What Prometheus reads.
    pub registry: Registry,
    /// The metrics in the registry.
    pub metrics: Arc<Metrics>,
    /// The limits that were reached.
    pub counters: Arc<LimitCounters>,
    /// Names and addresses by which this is reached, beside `localhost` and the address of the connection.
    /// In lower case, addresses without brackets.
    pub hosts: Vec<String>,
    /// What `/readyz` asks, in this order.
    pub parts: Vec<Part>,
    /// The watchers of an account, or all of them.
    pub watchers: Ask<Option<Account>>,
    /// Sends a test push.
    pub push: Ask<(Account, Option<Mailbox>)>,
    /// Has an account's subscriptions read again.
    pub subscriptions: Ask<Account>,
    /// Whether a change would be pushed.
    pub explain: Ask<(Account, Option<Mailbox>)>,
    /// What the status page shows beside what is counted: `{node, nodes, pushes, routes}`, the last pushes first, the
    /// open routes as the log has them.
    pub status: Ask<()>,
    /// When the program started.
    pub started_at: Timestamp,
}

/// A part of the program that is ready or not.
pub struct Part {
    /// One word.
    pub name: &'static str,
    check: Ask<()>,
}

/// Asks a part of the program. The error is one sentence for people; what takes too long is dropped.
pub struct Ask<Q>(Box<dyn Fn(Q) -> Answered + Send + Sync>);

/// For a part to say whether it is ready.
const READY_TIME: Duration = Duration::from_secs(3);

/// What each part says of itself, asked at once, but for those of these names.
/// One that is ready may have a note, as text, or null.
async fn readiness(
    parts: &[Part],
    excluded: &[String],
) -> Vec<(&'static str, Result<Value, String>)> {
    let asked = parts.iter().filter(|part| !excluded.iter().any(|name| name == part.name));
    let asked: Vec<_> = asked
        .map(|part| (part.name, tokio::spawn(timeout(READY_TIME, part.check.ask(())))))
        .collect();
    let mut verdicts = Vec::new();
    for (name, verdict) in asked {
        let verdict = match verdict.await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) => Err(format!("no answer in {READY_TIME:?}")),
            Err(_) => Err("it broke while it was asked".to_owned()),
        };
        verdicts.push((name, verdict));
    }
    verdicts
}

type Answered = Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;

impl Part {
    /// A part about which `check` says what is wrong.
    pub fn new<F>(name: &'static str, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self::with_note(name, move || {
            let checked = check();
            async move { checked.await.map(|()| None) }
        })
    }

    /// A part about which `check` says what is wrong, or, where nothing is, what is worth knowing.
    pub fn with_note<F>(name: &'static str, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Option<&'static str>, String>> + Send + 'static,
    {
        let check = Ask::new(move |()| {
            let checked = check();
            async move { checked.await.map(Value::from) }
        });
        Self { name, check }
    }
}

impl<Q> Ask<Q> {
    /// Answers requests by `ask`.
    pub fn new<F>(ask: impl Fn(Q) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Value, String>> + Send + 'static,
    {
        Self(Box::new(move |question| Box::pin(ask(question))))
    }

    fn ask(&self, question: Q) -> Answered {
        (self.0)(question)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<Q> fmt::Debug for Ask<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask").finish_non_exhaustive()
    }
}
