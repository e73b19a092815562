//! `[limits]`: what one peer, and all together, may take.

use std::time::Duration;

use super::check::{Check, CheckResult, DAY, HOUR, KIB, MIB, MILLISECOND, MINUTE, SECOND};

/// `[limits]`: what one peer, and all together, may take.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitsConfig {
    /// Users who are logged in.
    pub sessions: usize,
    /// Of them from one client address, or from one /64 network where that is IPv6; four times as many
    /// from one of 56 bits, and sixteen times as many from one of 48.
    pub sessions_per_ip: usize,
    /// Connections on which nobody is logged in.
    pub waiting: usize,
    /// Connections to the backend of one account, its watcher's included; 0 for no limit.
    pub connections_per_account: usize,
    /// Refused logins of one client address, after which no backend is asked for a while.
    pub login_failures_per_minute: u32,
    /// Refused logins of one account, after which further ones are slowed down.
    pub account_failures_per_minute: u32,
    /// Connections to backends that one client address causes.
    pub dials_per_minute: u32,
    /// Logins from one client address that are under way.
    pub dials_at_once: u32,
    /// Registrations of one account that are written without a delay.
    pub registrations_per_minute: u32,
    /// For a client's TLS handshake.
    pub handshake_timeout: Duration,
    /// For the login dialogue, between two commands.
    pub login_timeout: Duration,
    /// For commands that are under way when the program has to stop.
    pub shutdown_grace: Duration,
    /// From a login's try to its refusal, at least.
    pub failure_delay: Duration,
    /// For the connection to the backend, TLS and greeting included.
    pub connect_timeout: Duration,
    /// Commands of a client until it is logged in.
    pub commands_before_login: u32,
    /// Bytes of a command that mailchime itself reads, literals included.
    pub command_size: usize,
    /// Bytes of a backend's capability list.
    pub capability_size: usize,
    /// Bytes that all sessions together may hold before their login, beside a small share for each.
    pub login_memory: usize,
    /// The same of sessions that are logged in, memory for COMPRESS included.
    pub session_memory: usize,
    /// How long a peer may read nothing of what it is sent.
    pub write_timeout: Duration,
    /// Clients may have their connection compressed.
    pub compress: bool,
    /// How long a client is held up by a word of the backend that mailchime needs.
    pub answer_timeout: Duration,
}

table!(RawLimits {
    sessions: Option<i64>,
    sessions_per_ip: Option<i64>,
    connections_per_account: Option<i64>,
    waiting: Option<i64>,
    login_failures_per_minute: Option<i64>,
    account_failures_per_minute: Option<i64>,
    dials_per_minute: Option<i64>,
    dials_at_once: Option<i64>,
    registrations_per_minute: Option<i64>,
    handshake_timeout: Option<String>,
    login_timeout: Option<String>,
    shutdown_grace: Option<String>,
    failure_delay: Option<String>,
    connect_timeout: Option<String>,
    commands_before_login: Option<i64>,
    command_size: Option<String>,
    capability_size: Option<String>,
    login_memory: Option<String>,
    session_memory: Option<String>,
    write_timeout: Option<String>,
    compress: Option<bool>,
    answer_timeout: Option<String>,
});

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            sessions: 20_000,
            sessions_per_ip: 500,
            waiting: 4_000,
            connections_per_account: 0,
            login_failures_per_minute: 30,
            account_failures_per_minute: 30,
            dials_per_minute: 600,
            dials_at_once: 50,
            registrations_per_minute: 10,
            handshake_timeout: Duration::from_secs(15),
            login_timeout: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(10),
            failure_delay: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(10),
            commands_before_login: 200,
            command_size: 64 * 1024,
            capability_size: 16 * 1024,
            login_memory: 64 * 1024 * 1024,
            session_memory: 1024 * 1024 * 1024,
            write_timeout: Duration::from_mins(5),
            compress: true,
            answer_timeout: Duration::from_secs(30),
        }
    }
}

impl Check<'_> {
    #[rustfmt::skip] // a table: one key, one line
    pub(super) fn limits(&self, raw: RawLimits) -> CheckResult<LimitsConfig> {
        let mut limits = LimitsConfig::default();
        self.number("[limits] sessions", raw.sessions, 1..=1_000_000, &mut limits.sessions)?;
        self.number("[limits] sessions_per_ip", raw.sessions_per_ip, 1..=1_000_000, &mut limits.sessions_per_ip)?;
        self.number("[limits] waiting", raw.waiting, 1..=1_000_000, &mut limits.waiting)?;
        self.number("[limits] connections_per_account", raw.connections_per_account, 0..=100_000, &mut limits.connections_per_account)?;
        self.number("[limits] login_failures_per_minute", raw.login_failures_per_minute, 1..=1_000_000, &mut limits.login_failures_per_minute)?;
        self.number("[limits] account_failures_per_minute", raw.account_failures_per_minute, 1..=1_000_000, &mut limits.account_failures_per_minute)?;
        self.number("[limits] dials_per_minute", raw.dials_per_minute, 1..=1_000_000, &mut limits.dials_per_minute)?;
        self.number("[limits] dials_at_once", raw.dials_at_once, 1..=1_000_000, &mut limits.dials_at_once)?;
        self.number("[limits] registrations_per_minute", raw.registrations_per_minute, 1..=100_000, &mut limits.registrations_per_minute)?;
        self.duration("[limits] handshake_timeout", raw.handshake_timeout, SECOND..=10 * MINUTE, &mut limits.handshake_timeout)?;
        self.duration("[limits] login_timeout", raw.login_timeout, SECOND..=HOUR, &mut limits.login_timeout)?;
        self.duration("[limits] shutdown_grace", raw.shutdown_grace, MILLISECOND..=10 * MINUTE, &mut limits.shutdown_grace)?;
        self.duration("[limits] failure_delay", raw.failure_delay, MILLISECOND..=MINUTE, &mut limits.failure_delay)?;
        self.duration("[limits] connect_timeout", raw.connect_timeout, SECOND..=10 * MINUTE, &mut limits.connect_timeout)?;
        self.number("[limits] commands_before_login", raw.commands_before_login, 20..=1_000_000, &mut limits.commands_before_login)?;
        self.size("[limits] command_size", raw.command_size, KIB..=16 * MIB, &mut limits.command_size)?;
        self.size("[limits] capability_size", raw.capability_size, KIB..=MIB, &mut limits.capability_size)?;
        self.size("[limits] login_memory", raw.login_memory, MIB..=1024 * 1024 * MIB, &mut limits.login_memory)?;
        self.size("[limits] session_memory", raw.session_memory, MIB..=1024 * 1024 * MIB, &mut limits.session_memory)?;
        self.duration("[limits] write_timeout", raw.write_timeout, SECOND..=DAY, &mut limits.write_timeout)?;
        limits.compress = raw.compress.unwrap_or(limits.compress);
        self.duration("[limits] answer_timeout", raw.answer_timeout, SECOND..=10 * MINUTE, &mut limits.answer_timeout)?;
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refused_with;

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            (
                "[limits]\ncommand_size = \"65536\"",
                "[limits] command_size: \"65536\" is no size with a unit",
            ),
            (
                "[limits]\ncommand_size = \"1GiB\"",
                "[limits] command_size: 1GiB is out of range; allowed is 1KiB to 16MiB",
            ),
        ] {
            refused_with(text, expected);
        }
    }
}
