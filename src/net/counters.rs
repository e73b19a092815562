//! How often each limit was hit, for operators.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// One counter for each limit, named as its key in `[limits]`; of other tables with theirs before it.
#[derive(Debug, Default)]
pub struct LimitCounters {
    /// `[limits] sessions`
    pub sessions: Counter,
    /// `[limits] sessions_per_ip`
    pub sessions_per_ip: Counter,
    /// `[limits] connections_per_account`
    pub connections_per_account: Counter,
    /// `[limits] login_failures_per_minute`
    pub login_failures_per_minute: Counter,
    /// `[limits] handshake_timeout`
    pub handshake_timeout: Counter,
    /// `[limits] login_timeout`
    pub login_timeout: Counter,
    /// `[limits] connect_timeout`
    pub connect_timeout: Counter,
    /// `[limits] commands_before_login`
    pub commands_before_login: Counter,
    /// `[limits] command_size`
    pub command_size: Counter,
    /// `[limits] capability_size`
    pub capability_size: Counter,
    /// `[limits] login_memory`
    pub login_memory: Counter,
    /// `[limits] session_memory`
    pub session_memory: Counter,
    /// `[limits] write_timeout`
    pub write_timeout: Counter,
    /// `[limits] answer_timeout`
    pub answer_timeout: Counter,
    /// Registrations with more mailboxes than a device can have watched.
    pub mailboxes: Counter,
    /// `[watch] connections`
    pub watch_connections: Counter,
    /// `[limits] registrations_per_minute`
    pub registrations_per_minute: Counter,
    /// `[push] accounts_per_device`
    pub accounts_per_device: Counter,
    /// `[push] accounts_per_domain`
    pub accounts_per_domain: Counter,
    /// `[push] subscriptions_per_domain`
    pub subscriptions_per_domain: Counter,
    /// `[push] accounts_per_backend`
    pub accounts_per_backend: Counter,
    /// `[push] subscriptions_per_backend`
    pub subscriptions_per_backend: Counter,
    /// Pushes that waited for their turns, as their domain or backend had as many as it may have.
    pub pushes_per_second_per_domain: Counter,
    /// `[push] pushes_per_second_per_backend`
    pub pushes_per_second_per_backend: Counter,
    /// Pushes that were put off for those of other accounts to the same device.
    pub min_interval: Counter,
    /// `[resolver] waiting`
    pub resolver_waiting: Counter,
    /// The connections that `[admin]` may have.
    pub admin_connections: Counter,
    /// Those of `[api]`.
    pub api: Arc<HttpCounters>,
    /// Those of `[events]`.
    pub events: Arc<HttpCounters>,
    /// `[events] waiting`
    pub events_waiting: Counter,
    /// `[[events.source]] events_per_second`
    pub events_per_second: Counter,
    /// `[limits] waiting`
    pub waiting: Counter,
    /// `[limits] account_failures_per_minute`
    pub account_failures_per_minute: Counter,
    /// `[limits] dials_per_minute`
    pub dials_per_minute: Counter,
    /// `[limits] dials_at_once`
    pub dials_at_once: Counter,
    /// "the backend cannot be reached", by backend.
    pub unreachable: Folded,
    /// "the backend gave no answer to a login", by backend.
    pub unanswered: Folded,
    /// "the backend refused a login, and not for its name or password", by backend.
    pub undecided: Folded,
    /// "refused events of a source", by source and reason.
    pub events_refused: Folded,
    /// "could not record events", by source.
    pub events_unrecorded: Folded,
    /// "a client cannot use TLS as mailchime offers it", by what it lacks, once an hour.
    pub tls_incompatible: Folded,
    /// "TLS with a client failed", and what else keeps clients from it, by the reason.
    pub tls_failed: Folded,
}

/// The limits of an HTTP server, named as its table's keys.
#[derive(Debug, Default)]
pub struct HttpCounters {
    /// Connections at once.
    pub connections: Counter,
    /// For a handshake, a request's head, or its body.
    pub request_timeout: Counter,
    /// Bytes or fields of a request's head.
    pub head_size: Counter,
    /// Bytes of a request's body.
    pub body_size: Counter,
    /// Sessions that are open by a cookie.
    pub sessions: Counter,
    /// Streams in all.
    pub streams: Counter,
    /// Streams of one account.
    pub streams_per_account: Counter,
    /// `[limits] write_timeout`: streams that were not read.
    pub write_timeout: Counter,
}

/// How often one limit was hit since the start.
#[derive(Debug, Default)]
pub struct Counter {
    hits: AtomicU64,
    /// When a log line last told of it.
    told: Mutex<Option<Instant>>,
}

/// A log line that may be due a thousand times a second: the first one is written, and then one a
/// minute, or an hour, that says how many there were.
#[derive(Debug, Default)]
pub struct Folded {
    /// When a line last told of each matter, and how many were left out since.
    told: Mutex<HashMap<String, (Instant, u64)>>,
}

/// Matters that are kept apart; when there are more, all are forgotten.
const MOST_MATTERS: usize = 1024;

/// Between two log lines about one limit: a peer that runs into it a thousand times a second must not
/// fill the disk.
const QUIET: Duration = Duration::from_secs(60);

/// The same for what nobody at this end can change at once.
const HOUR: Duration = Duration::from_hours(1);

impl LimitCounters {
    /// Each counter with the key of its limit.
    pub fn all(&self) -> [(&'static str, &Counter); 45] {
        [
            ("sessions", &self.sessions),
            ("sessions_per_ip", &self.sessions_per_ip),
            ("connections_per_account", &self.connections_per_account),
            ("login_failures_per_minute", &self.login_failures_per_minute),
            ("handshake_timeout", &self.handshake_timeout),
            ("login_timeout", &self.login_timeout),
            ("connect_timeout", &self.connect_timeout),
            ("commands_before_login", &self.commands_before_login),
            ("command_size", &self.command_size),
            ("capability_size", &self.capability_size),
            ("login_memory", &self.login_memory),
            ("session_memory", &self.session_memory),
            ("write_timeout", &self.write_timeout),
            ("answer_timeout", &self.answer_timeout),
            ("mailboxes", &self.mailboxes),
            ("watch_connections", &self.watch_connections),
            ("registrations_per_minute", &self.registrations_per_minute),
            ("accounts_per_device", &self.accounts_per_device),
            ("accounts_per_domain", &self.accounts_per_domain),
            ("subscriptions_per_domain", &self.subscriptions_per_domain),
            ("accounts_per_backend", &self.accounts_per_backend),
            ("subscriptions_per_backend", &self.subscriptions_per_backend),
            ("pushes_per_second_per_domain", &self.pushes_per_second_per_domain),
            ("pushes_per_second_per_backend", &self.pushes_per_second_per_backend),
            ("min_interval", &self.min_interval),
            ("resolver_waiting", &self.resolver_waiting),
            ("admin_connections", &self.admin_connections),
            ("api_connections", &self.api.connections),
            ("api_request_timeout", &self.api.request_timeout),
            ("api_head_size", &self.api.head_size),
            ("api_body_size", &self.api.body_size),
            ("api_sessions", &self.api.sessions),
            ("api_streams", &self.api.streams),
            ("api_streams_per_account", &self.api.streams_per_account),
            ("api_write_timeout", &self.api.write_timeout),
            ("events_connections", &self.events.connections),
            ("events_request_timeout", &self.events.request_timeout),
            ("events_head_size", &self.events.head_size),
            ("events_body_size", &self.events.body_size),
            ("events_waiting", &self.events_waiting),
            ("events_per_second", &self.events_per_second),
            ("waiting", &self.waiting),
            ("account_failures_per_minute", &self.account_failures_per_minute),
            ("dials_per_minute", &self.dials_per_minute),
            ("dials_at_once", &self.dials_at_once),
        ]
    }
}

impl Counter {
    /// How often it was reached.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// It was reached so many times more.
    pub fn add(&self, times: u32) {
        // All sessions ask, and a shared number that is written costs all of them.
        if times > 0 {
            self.hits.fetch_add(times.into(), Ordering::Relaxed);
        }
    }

    /// Counts one more. Returns whether it is time for a log line: at most one a minute.
    pub fn hit(&self) -> bool {
        self.add(1);
        let now = Instant::now();
        let mut told = self.told.lock();
        let due = told.is_none_or(|told| now.duration_since(told) >= QUIET);
        if due {
            *told = Some(now);
        }
        due
    }
}

impl Folded {
    /// Whether to write a line about this matter now: how many were left out since the last one, or
    /// `None` where this one is to be left out too, but for a log of details.
    pub fn due(&self, matter: &str) -> Option<u64> {
        self.due_after(QUIET, matter)
    }

    /// The same for a line once an hour.
    pub fn due_hourly(&self, matter: &str) -> Option<u64> {
        self.due_after(HOUR, matter)
    }

    fn due_after(&self, quiet: Duration, matter: &str) -> Option<u64> {
        let now = Instant::now();
        let mut told = self.told.lock();
        if let Some((at, left_out)) = told.get_mut(matter) {
            if now.duration_since(*at) < quiet {
                *left_out += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(left_out));
        }
        if told.len() >= MOST_MATTERS {
            told.clear();
        }
        told.insert(matter.to_owned(), (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_line_is_written_and_then_one_a_minute() {
        let folded = Folded::default();
        assert_eq!([folded.due("a"), folded.due("a"), folded.due("a")], [Some(0), None, None]);
        assert_eq!([folded.due("b"), folded.due("a")], [Some(0), None]);
        tokio::time::advance(QUIET).await;
        assert_eq!([folded.due("a"), folded.due("a"), folded.due("b")], [Some(3), None, Some(0)]);
        for at in 0..2 * MOST_MATTERS {
            folded.due(&at.to_string());
        }
        assert!(folded.told.lock().len() <= MOST_MATTERS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_for_the_hour_is_not_due_in_a_minute() {
        let folded = Folded::default();
        assert_eq!([folded.due_hourly("a"), folded.due_hourly("a")], [Some(0), None]);
        tokio::time::advance(HOUR - QUIET).await;
        assert_eq!([folded.due_hourly("a"), folded.due_hourly("b")], [None, Some(0)]);
        tokio::time::advance(QUIET).await;
        assert_eq!([folded.due_hourly("a"), folded.due_hourly("b")], [Some(2), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_hit_counts_and_one_a_minute_is_logged() {
        let counter = Counter::default();
        assert_eq!([counter.hit(), counter.hit()], [true, false]);
        tokio::time::advance(QUIET).await;
        assert_eq!([counter.hit(), counter.hit()], [true, false]);
        assert_eq!(counter.hits(), 4);
    }
}
