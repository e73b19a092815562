//! The web hooks of the operator: each has a subscription of every account that it covers, so that nothing
//! of what it is to hear is lost, as for a phone.
//!
//! ```text
//!   proxy ──SessionEvent──▶ enrolment ──the same, and its own Registered──▶ watch
//!                               │ a login of an account that a web hook covers
//!                               ▼
//!                             store ◀── every hour: what is missing, what is too much
//! ```
//!
//! - A row is made when its account's user logs in. It is for INBOX, and for each mailbox that another
//!   subscription of the account wants.
//! - While mailchime can log in to the account, the row is written anew each day, so it does not expire.
//! - A change of the user's password says nothing of a row: its account is watched as long as a login works.
//! - Rows of a web hook that no longer covers their account are removed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch as cell};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, CredentialsMode, PushConfig, WebhookConfig};
use crate::model::{
    AcceptedLogin, Account, Mailbox, Registration, RegistrationResult, SessionEvent, Snapshot,
    SubscriptionKey, Timestamp,
};
use crate::net::backends::Backends;
use crate::nodes::Assignment;
use crate::push::transport::webhook;
use crate::registrar::Registrar;
use crate::store::{Alive, LiveAccount, Registrant, Store, StoreError, Target};

/// Between two comparisons of all rows with the configuration.
const COMPARE: Duration = Duration::from_hours(1);

/// The same while the database does not answer.
const RETRY: Duration = Duration::from_secs(10);

/// So many accounts one after the other at which it fails say that the database is at fault.
const FAILURES: u32 = 3;

/// A row that is older is written anew.
const AGE: Duration = Duration::from_hours(24);

/// How often the rows of an account are written after one login, as long as they are not as wanted.
const WRITES: usize = 5;

/// Accounts that are read from the database at once.
const PAGE: u32 = 500;

/// Logins that may be looked into at once. Of more, the next login of the user counts.
const LOGINS: usize = 64;

/// Accounts whose logins were looked into within the hour; of more, all are forgotten.
const KNOWN: usize = 100_000;

/// What is needed to keep the rows.
#[derive(Debug)]
pub(super) struct Enrolment {
    webhooks: Vec<WebhookConfig>,
    push: PushConfig,
    store: Store,
    registrar: Registrar,
    backends: Backends,
    /// A master user watches; nobody's password is needed.
    by_master: bool,
    assignment: cell::Receiver<Assignment>,
}

impl Enrolment {
    /// By this configuration.
    pub(super) fn new(
        config: &Config,
        store: Store,
        registrar: Registrar,
        backends: Backends,
        assignment: cell::Receiver<Assignment>,
    ) -> Self {
        let (webhooks, push) = (config.webhooks.clone(), config.push.clone());
        let by_master = config.credentials == CredentialsMode::Master;
        Self { webhooks, push, store, registrar, backends, by_master, assignment }
    }

    /// Passes on what sessions say to `watching`, and keeps the rows, until nobody is left to speak or to
    /// hear.
    pub(super) async fn run(
        mut self,
        mut sessions: mpsc::Receiver<SessionEvent>,
        watching: mpsc::Sender<SessionEvent>,
        stop: CancellationToken,
    ) {
        // What it registers itself must not come back to it.
        self.registrar = self.registrar.clone().telling(watching.clone());
        let enrolment = Arc::new(self);
        let mut logins: JoinSet<()> = JoinSet::new();
        let mut comparing: JoinSet<bool> = JoinSet::new();
        let mut known: HashMap<Account, Instant> = HashMap::new();
        let mut next_comparison = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = sessions.recv() => {
                    let Some(event) = event else { break };
                    if watching.send(event.clone()).await.is_err() {
                        break;
                    }
                    let (account, login, is_login) = match event {
                        SessionEvent::LoggedIn { account, login } => (account, login, true),
                        SessionEvent::Registered { account, login } => (account, login, false),
                    };
                    let now = Instant::now();
                    let fresh = |at: &Instant| now.duration_since(*at) < COMPARE;
                    let skipped = is_login && known.get(&account).is_some_and(fresh);
                    if skipped || !enrolment.may_enrol(&account, &login) {
                        continue;
                    }
                    if logins.len() >= LOGINS {
                        tracing::debug!(
                            target: "mailchime::app::webhook_login_skipped",
                            %account,
                            "the database is busy; the account's web hooks are looked at after its \
                             next login"
                        );
                        continue;
                    }
                    if known.len() >= KNOWN {
                        known.clear();
                    }
                    known.insert(account.clone(), now);
                    let enrolment = Arc::clone(&enrolment);
                    logins.spawn(async move { enrolment.logged_in(account, login).await });
                }
                Some(_) = logins.join_next() => {}
                () = sleep_until(next_comparison), if comparing.is_empty() => {
                    let enrolment = Arc::clone(&enrolment);
                    comparing.spawn(async move { enrolment.compare().await });
                }
                Some(done) = comparing.join_next() => {
                    let pause = if matches!(done, Ok(true)) { COMPARE } else { RETRY };
                    next_comparison = Instant::now() + pause;
                }
            }
        }
    }

    fn covering<'a>(&'a self, account: &'a Account) -> impl Iterator<Item = &'a WebhookConfig> {
        self.webhooks.iter().filter(|webhook| webhook.covers(account))
    }

    /// Whether some web hook covers the account, and it can be watched after this login.
    fn may_enrol(&self, account: &Account, login: &AcceptedLogin) -> bool {
        self.covering(account).next().is_some() && (login.credentials.is_some() || self.by_master)
    }

    /// Writes the rows that are missing after a login.
    async fn logged_in(&self, account: Account, login: AcceptedLogin) {
        if let Some(targets) = self.targets(&account).await {
            self.enrol(&account, &login, targets).await;
        }
    }

    /// Writes the rows that are missing where the account had these subscriptions. It reads again what it has
    /// written, for others may have registered meanwhile, and another login may have written less.
    async fn enrol(&self, account: &Account, login: &AcceptedLogin, mut targets: Vec<Target>) {
        for _ in 0..WRITES {
            if !self.write(account, login, &targets).await {
                break;
            }
            let Some(now) = self.targets(account).await else { break };
            targets = now;
        }
    }

    /// Writes the rows that are not as wanted, by the registrar, which tells the watching side. Returns whether
    /// it has written one; what is in the way is in the log.
    async fn write(&self, account: &Account, login: &AcceptedLogin, targets: &[Target]) -> bool {
        let old = self.store.served(Timestamp::now()).minus(AGE);
        let mut written = false;
        for webhook in self.covering(account) {
            let registration = self.registration(webhook, account, targets);
            if !is_as_wanted(&registration, targets, old) {
                let registered = self.registrar.clone().register(registration, login.clone()).await;
                written |= matches!(registered, RegistrationResult::Stored { .. });
            }
        }
        written
    }

    /// The account's subscriptions; `None` where the database cannot say, which is in the log.
    async fn targets(&self, account: &Account) -> Option<Vec<Target>> {
        let targets = self.store.targets(account, self.alive()).await;
        targets
            .inspect_err(|error| {
                tracing::warn!(
                    target: "mailchime::app::webhook_not_enrolled",
                    %account, %error,
                    "could not read whether the web hooks of an account are recorded; mailchime tries \
                     again after the user's next login"
                );
            })
            .ok()
    }

    /// Compares all rows with the configuration; returns whether that was possible.
    async fn compare(&self) -> bool {
        let compared = self.compare_all().await;
        if let Err(error) = &compared {
            tracing::warn!(
                target: "mailchime::app::webhooks_not_compared",
                %error,
                "could not compare the web hooks of the configuration with the database; mailchime \
                 tries again"
            );
        }
        compared.is_ok()
    }

    async fn compare_all(&self) -> Result<(), StoreError> {
        let alive = self.alive();
        let accounts = self.store.accounts(alive).await?;
        let accounts: HashMap<_, _> = accounts.iter().map(|live| (&live.account, live)).collect();
        // What fails at one account is tried again, and does not stop those behind it.
        let (mut failed, mut in_a_row) = (None, 0);
        let mut after = None;
        while let Some((last, targets)) = self.store.subscriptions(after.as_ref(), PAGE).await? {
            let of_one = |a: &Target, b: &Target| a.subscription.account == b.subscription.account;
            for targets in targets.chunk_by(of_one) {
                let account = &targets[0].subscription.account;
                if !self.assignment.borrow().is_mine(account) {
                    continue;
                }
                match self.compare_one(accounts.get(account).copied(), targets).await {
                    Ok(()) => in_a_row = 0,
                    Err(error) if in_a_row >= FAILURES => return Err(error),
                    Err(error) => {
                        in_a_row += 1;
                        failed = Some(error);
                    }
                }
            }
            after = Some(last);
        }
        failed.map_or(Ok(()), Err)
    }

    async fn compare_one(
        &self,
        live: Option<&LiveAccount>,
        targets: &[Target],
    ) -> Result<(), StoreError> {
        self.take_away(&targets[0].subscription.account, targets).await?;
        match live {
            Some(live) => self.renew(live, targets).await,
            None => Ok(()),
        }
    }

    /// Removes the rows of web hooks that do not cover their account any more.
    async fn take_away(&self, account: &Account, targets: &[Target]) -> Result<(), StoreError> {
        let covered = |route: &str| self.covering(account).any(|webhook| webhook.name == route);
        for Target { subscription, .. } in targets {
            if subscription.is_of_operator() && !covered(&subscription.route) {
                let key = SubscriptionKey::from(subscription);
                if self.store.remove_subscription(&key, None).await?.is_some() {
                    tracing::info!(
                        target: "mailchime::app::webhook_withdrawn",
                        %account, webhook = &*subscription.route,
                        "a web hook hears no more of an account, by the configuration"
                    );
                }
            }
        }
        Ok(())
    }

    /// Writes the rows that are missing or old of an account to which mailchime can log in.
    async fn renew(&self, live: &LiveAccount, targets: &[Target]) -> Result<(), StoreError> {
        let account = &live.account;
        let Some(home) = self.backends.id_of(account) else { return Ok(()) };
        // What is written lets it be tried anew, so not if its backend has refused the last try.
        if live.parked.is_some() || live.refused.is_some() || live.elsewhere(&home).is_some() {
            return Ok(());
        }
        let now = Timestamp::now();
        let old = self.store.served(now).minus(AGE);
        for webhook in self.covering(account) {
            let registration = self.registration(webhook, account, targets);
            let row = targets.iter().find(|it| it.subscription == registration.subscription);
            if !is_as_wanted(&registration, targets, old) {
                let login = Registrant::new(&home, now, None);
                self.store.register(&registration, login, self.most(), now).await?;
                if row.is_none() {
                    tracing::info!(
                        target: "mailchime::app::webhook_enrolled",
                        %account, webhook = webhook.name,
                        "a web hook hears of an account from now on"
                    );
                }
            }
        }
        Ok(())
    }

    /// The row of this web hook, for what the account's other subscriptions want, and INBOX.
    fn registration(
        &self,
        webhook: &WebhookConfig,
        account: &Account,
        targets: &[Target],
    ) -> Registration {
        let others = targets.iter().filter(|target| !target.subscription.is_of_operator());
        let wanted =
            others.flat_map(|target| &target.mailboxes).map(|(mailbox, _)| mailbox.clone());
        let wanted: BTreeSet<_> = wanted.chain([Mailbox::inbox()]).collect();
        Registration {
            subscription: webhook::of_operator(&webhook.name, account),
            // Of a mailbox that is watched already the state is known, and stays.
            mailboxes: wanted.into_iter().map(|it| (it, Snapshot::default())).collect(),
        }
    }

    fn most(&self) -> u32 {
        u32::try_from(self.push.devices).unwrap_or(u32::MAX)
    }

    fn alive(&self) -> Alive {
        Alive::at(self.store.served(Timestamp::now()), &self.push)
    }
}

/// Whether the row of this registration is among `targets`, and newer than `old`.
fn is_as_wanted(registration: &Registration, targets: &[Target], old: Timestamp) -> bool {
    let row = targets.iter().find(|it| it.subscription == registration.subscription);
    row.is_some_and(|row| {
        let has = row.mailboxes.iter().map(|(mailbox, _)| mailbox);
        let wanted = registration.mailboxes.iter().map(|(mailbox, _)| mailbox);
        row.heard_at >= old && row.outdated_since.is_none() && has.eq(wanted)
    })
}

#[cfg(test)]
mod tests;
