//! What the status page shows, put together from what is counted and what the parts say.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::time::timeout;

use super::{Context, readiness};
use crate::metrics::{TransportCounts, Watching};
use crate::net::tls::EXPIRY_WARNING_DAYS;

/// Up to so many accounts are listed; more are counted.
const LISTED: i64 = 50;

/// How long the watchers may take to say what they do: the page is for when something hangs.
const ASK_TIME: Duration = Duration::from_secs(2);

/// Everything but a single account.
pub(super) struct Overview {
    /// Sentences on what needs somebody, the worst first.
    pub(super) warnings: Vec<String>,
    /// `{node, nodes, gone, pushes, routes}`, as [`Context::status`] says it.
    pub(super) status: Value,
    /// How many watchers are in each state.
    pub(super) watching: Vec<(&'static str, i64)>,
    /// Each watcher, as `/watchers` has it; `None` where they are too many.
    pub(super) watchers: Option<Vec<Value>>,
    /// Accounts in the database.
    pub(super) accounts: i64,
    pub(super) transports: Vec<TransportCounts>,
    pub(super) certificates: Vec<CertificateEnd>,
    /// The keys of limits that were reached, and how often.
    pub(super) limits: Vec<(&'static str, u64)>,
}

/// An account that was looked up.
pub(super) struct LookedUp {
    /// As it was written.
    pub(super) user: String,
    /// As `/explain` has it, or why there is none.
    pub(super) answer: Result<Value, String>,
}

/// When a certificate ends.
pub(super) struct CertificateEnd {
    /// Its file, or the route that it is for.
    pub(super) name: String,
    of_route: bool,
    end: SystemTime,
}

impl Overview {
    /// As things are now.
    pub(super) async fn of(context: &Context) -> Self {
        let metrics = &context.metrics;
        let all = {
            use Watching::{BackingOff, Idle, Notify, OnDemand, Parked, Poll, Starting};
            [
                ("NOTIFY", Notify),
                ("IDLE", Idle),
                ("polled", Poll),
                ("on demand", OnDemand),
                ("starting", Starting),
                ("trying again", BackingOff),
                ("parked", Parked),
            ]
        };
        let watching: Vec<_> =
            all.into_iter().map(|(name, of)| (name, metrics.watchers.of(of).get())).collect();
        let mut watchers = None;
        if watching.iter().map(|(_, count)| count).sum::<i64>() <= LISTED {
            // Where push is off nobody is watched.
            let answer = timeout(ASK_TIME, context.watchers.ask(None)).await;
            let answer = answer.ok().and_then(Result::ok).unwrap_or_default();
            let listed = answer["watchers"].as_array().cloned().unwrap_or_default();
            watchers = Some(listed);
        }
        let [of_clients, of_routes] = metrics.certificates();
        let ends = |of_route: bool| {
            move |(name, end): (String, SystemTime)| CertificateEnd { name, of_route, end }
        };
        let of_clients = of_clients.into_iter().map(ends(false));
        let certificates = of_clients.chain(of_routes.into_iter().map(ends(true))).collect();
        // It counts what is in the database.
        let status = context.status.ask(()).await.unwrap_or_default();
        let limits = context.counters.all().into_iter().map(|(key, counter)| (key, counter.hits()));
        let mut overview = Self {
            warnings: Vec::new(),
            status,
            watching,
            watchers,
            accounts: metrics.accounts.get(),
            transports: metrics.transports(),
            certificates,
            limits: limits.filter(|(_, hits)| *hits > 0).collect(),
        };
        overview.warn(context).await;
        overview
    }

    async fn warn(&mut self, context: &Context) {
        let metrics = &context.metrics;
        let mut warnings = Vec::new();
        for (part, verdict) in readiness(&context.parts, &[]).await {
            match verdict {
                Ok(note) => warnings.extend(note.as_str().map(|note| format!("{part}: {note}"))),
                Err(why) => warnings.push(format!("{part} is not ready: {why}")),
            }
        }
        for certificate in self.certificates.iter().filter(|it| it.is_due()) {
            let (name, days) = (&certificate.name, certificate.days());
            warnings.push(match days {
                ..0 => format!("The certificate {name} has expired. Renew it."),
                _ => {
                    format!("The certificate {name} ends in less than {} days. Renew it.", days + 1)
                }
            });
        }
        let watching = |of: Watching| metrics.watchers.of(of).get();
        for (what, count) in [
            (
                "Sets of certificates that were changed on disk and cannot be read (the log says why)",
                metrics.unread_certificates(),
            ),
            (
                "Files with secrets that others can use (the log names them)",
                metrics.exposed_files.get(),
            ),
            (
                "Parked accounts, which are not watched until their users log in",
                watching(Watching::Parked),
            ),
            (
                "Accounts that cannot be watched for now; mailchime tries again",
                watching(Watching::BackingOff),
            ),
            (
                "Mailboxes that are not watched for now, although their accounts are",
                metrics.mailboxes_left_out.get(),
            ),
        ] {
            warnings.extend((count > 0).then(|| format!("{what}: {count}.")));
        }
        warnings.extend(self.failing_pushes());
        warnings.extend(self.without_route());
        warnings.extend(metrics.notices());
        let nodes = self.status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !nodes.is_empty() && !nodes.contains(&self.status["node"]) {
            warnings.push(
                "This node watches nothing: it is not among those that share the accounts.".into(),
            );
        }
        self.warnings = warnings;
    }

    /// Subscriptions by services of which no route is open.
    fn without_route(&self) -> Vec<String> {
        let open = self.status["routes"].as_str().unwrap_or_default();
        let is_open = |transport: &str| {
            open.split(' ').any(|route| route.split(':').next() == Some(transport))
        };
        let closed = self.transports.iter().filter(|of| of.active > 0 && !is_open(&of.transport));
        let said = closed.map(|of| {
            let (count, transport) = (of.active, &of.transport);
            format!("Subscriptions by {transport}, of which no route is open, so they get no pushes: {count}.")
        });
        said.collect()
    }

    /// Services by which most of the last pushes were not accepted.
    fn failing_pushes(&self) -> Vec<String> {
        let pushes = self.status["pushes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let failing = self.transports.iter().filter_map(|of| {
            let by = || pushes.iter().filter(|push| push["transport"] == of.transport.as_str());
            let (all, failed) =
                (by().count(), by().filter(|push| push["outcome"] != "accepted").count());
            (2 * failed > all).then(|| {
                format!("{failed} of the last {all} pushes by {} were not accepted.", of.transport)
            })
        });
        failing.collect()
    }
}

impl CertificateEnd {
    /// Whole days until its end, negative afterwards.
    pub(super) fn days(&self) -> i64 {
        let days = |time: Duration| i64::try_from(time.as_secs() / 86_400).unwrap_or(i64::MAX);
        match self.end.duration_since(SystemTime::now()) {
            Ok(left) => days(left),
            Err(past) => -1 - days(past.duration()),
        }
    }

    /// Whether somebody has to renew it soon.
    pub(super) fn is_due(&self) -> bool {
        self.days() < EXPIRY_WARNING_DAYS
    }

    /// Who sees it.
    pub(super) fn use_of(&self) -> &'static str {
        if self.of_route { "push service" } else { "clients" }
    }
}
