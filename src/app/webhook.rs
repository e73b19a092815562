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
//! - Rows of a web hook that no longer covers their account are removed, also where no web hook is left.
//! - A reload that changes the web hooks has all rows compared at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch as cell};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::background::SubscriptionNews;
use crate::config::{Config, CredentialsMode, PushConfig, WebhookConfig};
use crate::model::{
    AcceptedLogin, Account, Mailbox, Registration, RegistrationResult, SessionEvent, Snapshot,
    SubscriptionKey, Timestamp, TransportId,
};
use crate::net::backends::Backends;
use crate::nodes::Assignment;
use crate::push::transport::webhook;
use crate::registrar::Registrar;
use crate::store::{Alive, Store, StoreError, Target};

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
    parts: EnrolmentParts,
    push: PushConfig,
    /// A master user watches; nobody's password is needed.
    by_master: bool,
}

/// What it works with.
#[derive(Clone, Debug)]
pub(super) struct EnrolmentParts {
    /// Those of the configuration.
    pub(super) webhooks: cell::Receiver<Arc<[WebhookConfig]>>,
    pub(super) store: Store,
    pub(super) registrar: Registrar,
    pub(super) backends: Backends,
    pub(super) assignment: cell::Receiver<Assignment>,
    pub(super) news: SubscriptionNews,
}

impl Enrolment {
    /// By this configuration.
    pub(super) fn new(config: &Config, parts: EnrolmentParts) -> Self {
        let by_master = config.credentials == CredentialsMode::Master;
        Self { parts, push: config.push.clone(), by_master }
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
        self.parts.registrar = self.parts.registrar.clone().of_operator(watching.clone());
        let mut webhooks = self.parts.webhooks.clone();
        let enrolment = Arc::new(self);
        let mut logins: JoinSet<Result<(), Account>> = JoinSet::new();
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
                        SessionEvent::RegisteredAgain { .. } | SessionEvent::Ended { .. } => continue,
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
                Some(done) = logins.join_next() => {
                    // The next login of the account counts again.
                    if let Ok(Err(failed)) = done {
                        known.remove(&failed);
                    }
                }
                Ok(()) = webhooks.changed() => {
                    known.clear();
                    next_comparison = Instant::now();
                }
                () = sleep_until(next_comparison), if comparing.is_empty() => {
                    next_comparison = Instant::now() + COMPARE;
                    let enrolment = Arc::clone(&enrolment);
                    comparing.spawn(async move { enrolment.compare().await });
                }
                Some(done) = comparing.join_next() => {
                    if !matches!(done, Ok(true)) {
                        next_comparison = next_comparison.min(Instant::now() + RETRY);
                    }
                }
            }
        }
    }

    /// The web hooks that cover the account.
    fn covering(&self, account: &Account) -> Vec<WebhookConfig> {
        let webhooks = self.parts.webhooks.borrow();
        webhooks.iter().filter(|webhook| webhook.covers(account)).cloned().collect()
    }

    /// Whether some web hook covers the account, and it can be watched after this login.
    fn may_enrol(&self, account: &Account, login: &AcceptedLogin) -> bool {
        !self.covering(account).is_empty() && (login.credentials.is_some() || self.by_master)
    }

    /// Writes the rows that are missing after a login. An error names the account again where the database did
    /// not do so.
    async fn logged_in(&self, account: Account, login: AcceptedLogin) -> Result<(), Account> {
        let done = match self.targets(&account).await {
            Some(targets) => self.enrol(&account, &login, targets).await,
            None => false,
        };
        if done { Ok(()) } else { Err(account) }
    }

    /// Writes the rows that are missing where the account had these subscriptions. It reads again what it has
    /// written, for others may have registered meanwhile, and another login may have written less. Returns
    /// whether the database took everything; what is in the way is in the log.
    async fn enrol(
        &self,
        account: &Account,
        login: &AcceptedLogin,
        mut targets: Vec<Target>,
    ) -> bool {
        for _ in 0..WRITES {
            match self.write(account, login, &targets).await {
                RowsWritten::None => return true,
                RowsWritten::Some => {}
                RowsWritten::Unavailable => return false,
            }
            let Some(now) = self.targets(account).await else { return false };
            targets = now;
        }
        true
    }

    /// Writes the rows that are not as wanted, by the registrar, which tells the watching side.
    async fn write(
        &self,
        account: &Account,
        login: &AcceptedLogin,
        targets: &[Target],
    ) -> RowsWritten {
        let old = self.parts.store.served(Timestamp::now()).minus(AGE);
        let mut written = RowsWritten::None;
        for webhook in self.covering(account) {
            let registration = self.registration(&webhook, account, targets);
            if is_as_wanted(&registration, targets, old) {
                continue;
            }
            let is_new = row(&registration, targets).is_none();
            match self.parts.registrar.clone().register(registration, login.clone()).await {
                RegistrationResult::Stored { .. } => {
                    written = RowsWritten::Some;
                    if is_new {
                        tracing::info!(
                            target: "mailchime::app::webhook_enrolled",
                            %account, webhook = webhook.name,
                            "a web hook hears of an account from now on"
                        );
                    }
                }
                RegistrationResult::Unavailable => return RowsWritten::Unavailable,
                // Which limit leaves no room is in the log.
                RegistrationResult::TooMany
                | RegistrationResult::DomainFull
                | RegistrationResult::BackendFull => {}
            }
        }
        written
    }

    /// The account's subscriptions; `None` where the database cannot say, which is in the log.
    async fn targets(&self, account: &Account) -> Option<Vec<Target>> {
        let targets = self.parts.store.targets(account, self.alive()).await;
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
        let is_empty = self.parts.webhooks.borrow().is_empty();
        if let Err(error) = &compared
            && !is_empty
        {
            tracing::warn!(
                target: "mailchime::app::webhooks_not_compared",
                %error,
                "could not compare the web hooks of the configuration with the database; mailchime \
                 tries again"
            );
        }
        compared.unwrap_or(false)
    }

    /// Returns whether the database took everything. What fails at one account is tried again, and does not
    /// stop those behind it.
    async fn compare_all(&self) -> Result<bool, StoreError> {
        if self.parts.webhooks.borrow().is_empty() {
            let routes = self.parts.store.routes(&TransportId::new(webhook::TRANSPORT)).await?;
            // What is left of those of before has their names.
            if routes.iter().all(|(route, _)| route == webhook::USERS) {
                return Ok(true);
            }
        }
        let (mut failed, mut in_a_row) = (None, 0);
        let mut taken = true;
        let mut after = None;
        while let Some((last, targets)) =
            self.parts.store.subscriptions(after.as_ref(), PAGE).await?
        {
            let of_one = |a: &Target, b: &Target| a.subscription.account == b.subscription.account;
            for targets in targets.chunk_by(of_one) {
                if !self.parts.assignment.borrow().is_mine(&targets[0].subscription.account) {
                    continue;
                }
                match self.compare_one(targets).await {
                    Ok(all) => {
                        taken &= all;
                        in_a_row = 0;
                    }
                    Err(error) => {
                        in_a_row += 1;
                        if in_a_row >= FAILURES {
                            return Err(error);
                        }
                        failed = Some(error);
                    }
                }
            }
            after = Some(last);
        }
        failed.map_or(Ok(taken), Err)
    }

    async fn compare_one(&self, targets: &[Target]) -> Result<bool, StoreError> {
        let account = &targets[0].subscription.account;
        self.take_away(account, targets).await?;
        let old = self.parts.store.served(Timestamp::now()).minus(AGE);
        let is_kept =
            |webhook| is_as_wanted(&self.registration(webhook, account, targets), targets, old);
        if self.covering(account).iter().all(is_kept) {
            return Ok(true);
        }
        self.renew(account).await
    }

    /// Removes the rows of web hooks that do not cover their account any more.
    async fn take_away(&self, account: &Account, targets: &[Target]) -> Result<(), StoreError> {
        let covering = self.covering(account);
        let covered = |route: &str| covering.iter().any(|webhook| webhook.name == route);
        let mut is_other = false;
        for Target { subscription, .. } in targets {
            if subscription.is_of_operator() && !covered(&subscription.route) {
                let key = SubscriptionKey::from(subscription);
                if let Some(removed) = self.parts.store.remove_subscription(&key, None).await? {
                    tracing::info!(
                        target: "mailchime::app::webhook_withdrawn",
                        %account, webhook = &*subscription.route,
                        "a web hook hears no more of an account, by the configuration"
                    );
                    if !removed.account_left {
                        self.parts.registrar.forget(account);
                    }
                    is_other = true;
                }
            }
        }
        if is_other {
            self.parts.news.of(account.clone()).await;
        }
        Ok(())
    }

    /// Writes the rows that are missing or old of an account, by what the database has of it now, where
    /// mailchime can log in to it. Returns whether the database took everything.
    async fn renew(&self, account: &Account) -> Result<bool, StoreError> {
        let alive = self.alive();
        let live = self.parts.store.live_account(account, alive).await?;
        let (Some(live), Some(backend)) = (live, self.parts.backends.id_of(account)) else {
            return Ok(true);
        };
        // What is written lets it be tried anew, so not if its backend has refused the last try.
        if live.parked.is_some() || live.refused.is_some() || live.elsewhere(&backend).is_some() {
            return Ok(true);
        }
        let targets = self.parts.store.targets(account, alive).await?;
        let at = Timestamp::now();
        let login = AcceptedLogin { backend, credentials: None, at, names_ignore_case: false };
        Ok(self.enrol(account, &login, targets).await)
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

    fn alive(&self) -> Alive {
        Alive::at(self.parts.store.served(Timestamp::now()), &self.push)
    }
}

/// What an account's rows needed.
enum RowsWritten {
    /// They are as wanted, or there is no room for them.
    None,
    /// Some were written.
    Some,
    /// The database did not take one.
    Unavailable,
}

/// The row of this registration among `targets`.
fn row<'a>(registration: &Registration, targets: &'a [Target]) -> Option<&'a Target> {
    targets.iter().find(|it| it.subscription == registration.subscription)
}

/// Whether the row of this registration is among `targets`, and newer than `old`.
fn is_as_wanted(registration: &Registration, targets: &[Target], old: Timestamp) -> bool {
    row(registration, targets).is_some_and(|row| {
        let has = row.mailboxes.iter().map(|(mailbox, _)| mailbox);
        let wanted = registration.mailboxes.iter().map(|(mailbox, _)| mailbox);
        row.heard_at >= old && row.outdated_since.is_none() && has.eq(wanted)
    })
}

#[cfg(test)]
mod tests;
