//! `[watch]`: how accounts are watched.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::check::{Check, CheckResult, DAY, HOUR, MILLISECOND, MINUTE, SECOND};
use crate::model::Account;

/// Whether an account that is watched has a connection to its backend all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "snake_case")]
pub enum WatchConnection {
    /// It has.
    Held,
    /// It has one for a moment, when there is a reason to ask for its mailboxes.
    OnDemand,
}

/// `[watch]`: how accounts are watched.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchConfig {
    /// Of accounts without a route, and of routes that do not say.
    pub connection: WatchConnection,
    /// `[[route]] connection`, by domain, where it is given.
    pub connection_of_routes: BTreeMap<String, WatchConnection>,
    /// Accounts without a connection are all asked for after a start and each time after this.
    pub sweep: Duration,
    /// IDLE is ended and begun again after this time, 1 to 29 minutes (RFC 2177 section 3).
    pub idle_renewal: Duration,
    /// At the latest after this time everything is looked at, whatever the backend told.
    pub idle_check: Duration,
    /// Between two looks at a mailbox of which the backend tells nothing by itself, while there are
    /// changes, and from news of INBOX to one more look; not above `poll_max`.
    pub poll_interval: Duration,
    /// The same after a long time without any.
    pub poll_max: Duration,
    /// For the backend's whole answer to one of the watcher's commands.
    pub answer_timeout: Duration,
    /// To one backend.
    pub logins_per_second: u32,
    /// Of watchers to one backend; 0 for no limit.
    pub connections: usize,
    /// The first pause after a failure; not above `retry_max`.
    pub retry_min: Duration,
    /// The longest pause between two tries.
    pub retry_max: Duration,
    /// From flag or expunge activity to the look that it causes.
    pub settle: Duration,
}

impl WatchConfig {
    /// Whether the account has a connection for a moment only, when there is a reason.
    pub fn is_on_demand(&self, account: &Account) -> bool {
        let routes = &self.connection_of_routes;
        let route = account.domain_among(|domain| routes.contains_key(domain)).ok().flatten();
        let connection = route.and_then(|domain| routes.get(domain));
        *connection.unwrap_or(&self.connection) == WatchConnection::OnDemand
    }
}

table!(RawWatch {
    idle_renewal: Option<String>,
    idle_check: Option<String>,
    poll_interval: Option<String>,
    poll_max: Option<String>,
    answer_timeout: Option<String>,
    logins_per_second: Option<i64>,
    connections: Option<i64>,
    retry_min: Option<String>,
    retry_max: Option<String>,
    settle: Option<String>,
    connection: Option<WatchConnection>,
    sweep: Option<String>,
});

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            connection: WatchConnection::Held,
            connection_of_routes: BTreeMap::new(),
            sweep: Duration::from_hours(6),
            idle_renewal: Duration::from_mins(9),
            idle_check: Duration::from_mins(15),
            poll_interval: Duration::from_secs(60),
            poll_max: Duration::from_mins(5),
            answer_timeout: Duration::from_secs(30),
            logins_per_second: 100,
            connections: 0,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_mins(5),
            settle: Duration::from_millis(500),
        }
    }
}

impl Check<'_> {
    #[rustfmt::skip] // a table: one key, one line
    pub(super) fn watch(&self, raw: RawWatch) -> CheckResult<WatchConfig> {
        let mut watch = WatchConfig::default();
        watch.connection = raw.connection.unwrap_or(watch.connection);
        self.duration("[watch] sweep", raw.sweep, MINUTE..=7 * DAY, &mut watch.sweep)?;
        self.duration("[watch] idle_renewal", raw.idle_renewal, MINUTE..=29 * MINUTE, &mut watch.idle_renewal)?;
        self.duration("[watch] idle_check", raw.idle_check, MINUTE..=DAY, &mut watch.idle_check)?;
        self.duration("[watch] poll_interval", raw.poll_interval, SECOND..=DAY, &mut watch.poll_interval)?;
        self.duration("[watch] poll_max", raw.poll_max, SECOND..=DAY, &mut watch.poll_max)?;
        self.duration("[watch] answer_timeout", raw.answer_timeout, SECOND..=10 * MINUTE, &mut watch.answer_timeout)?;
        self.number("[watch] logins_per_second", raw.logins_per_second, 1..=100_000, &mut watch.logins_per_second)?;
        self.number("[watch] connections", raw.connections, 0..=1_000_000, &mut watch.connections)?;
        self.duration("[watch] retry_min", raw.retry_min, 10 * MILLISECOND..=HOUR, &mut watch.retry_min)?;
        self.duration("[watch] retry_max", raw.retry_max, 10 * MILLISECOND..=DAY, &mut watch.retry_max)?;
        self.duration("[watch] settle", raw.settle, MILLISECOND..=MINUTE, &mut watch.settle)?;
        self.not_above(("[watch] poll_interval", watch.poll_interval), ("poll_max", watch.poll_max))?;
        self.not_above(("[watch] retry_min", watch.retry_min), ("retry_max", watch.retry_max))?;
        Ok(watch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refused_with;

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            (
                "[watch]\nidle_renewal = \"30m\"",
                "[watch] idle_renewal: 30m is out of range; allowed is 1m to 29m",
            ),
            (
                "[watch]\npoll_interval = \"10m\"",
                "[watch] poll_interval: 10m is longer than poll_max (5m)",
            ),
            ("[watch]\nsweep = \"10d\"", "[watch] sweep: 10d is out of range; allowed is 1m to 7d"),
            (
                "[watch]\nretry_min = \"10m\"",
                "[watch] retry_min: 10m is longer than retry_max (5m)",
            ),
        ] {
            refused_with(text, expected);
        }
    }
}
