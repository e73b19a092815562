//! What goes on beside the sessions: the backends are asked what they offer, credentials and the database's
//! file are looked after, and the time of service is counted.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::imap::contract::PushOffer;
use crate::metrics::Metrics;
use crate::model::{Account, Timestamp};
use crate::net::backends::Backends;
use crate::push::dispatcher::DispatcherHandle;
use crate::push::transport::Routes;
use crate::store::{self, Census, CredentialSource, Store};
use crate::watch::SupervisorHandle;

/// Between two looks at what the backend offers before login.
const PROBE_INTERVAL: Duration = Duration::from_secs(600);
const PROBE_RETRY: Duration = Duration::from_secs(10);

/// For the answers of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks for credentials that have expired.
const TIDY_INTERVAL: Duration = Duration::from_secs(60);

/// For the client of a new subscription to say the code that a push has brought.
const PENDING: Duration = Duration::from_mins(10);

/// Between two counts of accounts and subscriptions.
const COUNT_INTERVAL: Duration = Duration::from_secs(60);

/// Between two looks whether the database's file is still there.
const FILE_INTERVAL: Duration = Duration::from_secs(1);

/// Has the push side read an account's subscriptions again, as they are others in the database.
#[derive(Clone, Debug)]
pub(super) struct SubscriptionNews {
    pub(super) routes: Routes,
    pub(super) pushes: DispatcherHandle,
}

impl SubscriptionNews {
    /// This account's are others. What is gone gets nothing more; where none is left, nobody watches any more.
    pub(super) async fn of(&self, account: Account) {
        match self.routes.is_empty() {
            // Nobody listens where there never was a route.
            true => self.pushes.changed_perhaps(account),
            // A dispatcher that is gone reads everything next time.
            false => drop(self.pushes.changed(account).await),
        }
    }
}

/// Keeps what clients are offered before login up to date.
pub(super) async fn probe(backends: Backends, longest: usize, stop: CancellationToken) {
    let probing = async {
        loop {
            let backend = backends.default();
            let pause = match backend.probe(PROBE_TIMEOUT, longest).await {
                Ok(()) => PROBE_INTERVAL,
                Err(error) => {
                    tracing::warn!(
                        target: "mailchime::app::backend_not_probed",
                        %error,
                        "the backend did not say what it offers; clients see what is known so far, \
                         and mailchime asks again"
                    );
                    PROBE_RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = backends.moved(None, &backend) => {}
            }
        }
    };
    // Whether they take passwords or tokens is shown to all.
    let probing_routes = async {
        let mut replacements = backends.replacements();
        loop {
            for backend in backends.of_routes() {
                if let Err(error) = backend.probe(PROBE_TIMEOUT, longest).await {
                    tracing::debug!(
                        target: "mailchime::app::backend_not_probed",
                        %error,
                        "the backend of a route did not say what it offers; mailchime asks again"
                    );
                }
            }
            let replaced = tokio::time::timeout(PROBE_INTERVAL, replacements.changed()).await;
            drop(replaced);
        }
    };
    stop.run_until_cancelled(async { tokio::join!(probing, probing_routes) }).await;
}

/// Keeps no credentials longer than they may be kept.
pub(super) async fn tidy(credentials: Arc<CredentialSource>, stop: CancellationToken) {
    match credentials.unreadable().await {
        Ok(0) => {}
        Ok(accounts) => tracing::error!(
            target: "mailchime::app::credentials_unreadable",
            accounts,
            "[credentials] key_file does not open the stored credentials of these accounts; put \
             back the key file that sealed them, or mailchime watches each account again once its \
             user logs in"
        ),
        Err(error) => tracing::warn!(
            target: "mailchime::app::credentials_not_checked",
            %error,
            "could not check whether [credentials] key_file opens the stored credentials; \
             mailchime goes on"
        ),
    }
    loop {
        match credentials.tidy(Timestamp::now()).await {
            Ok(0) => {}
            Ok(accounts) => tracing::info!(
                target: "mailchime::app::credentials_expired",
                accounts, "removed stored credentials that had expired"
            ),
            Err(error) => tracing::warn!(
                target: "mailchime::app::expired_credentials_not_removed",
                %error,
                "could not remove expired credentials from the database; mailchime tries again in \
                 a minute"
            ),
        }
        tokio::select! {
            () = tokio::time::sleep(TIDY_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Removes subscriptions that were not confirmed in time, and those that are over.
pub(super) async fn drop_ended(
    store: Store,
    credentials: Arc<CredentialSource>,
    news: SubscriptionNews,
    stop: CancellationToken,
) {
    let dropping = async {
        loop {
            let now = Timestamp::now();
            let (accounts, done) = store.drop_ended(now.minus(PENDING), now).await;
            for account in accounts {
                // Nobody has watched what was never confirmed, so nobody else forgets it.
                credentials.forget(&account);
                news.of(account).await;
            }
            if let Err(error) = done {
                tracing::warn!(
                    target: "mailchime::app::ended_subscriptions_not_removed",
                    %error,
                    "could not remove subscriptions that have ended; mailchime tries again in a minute"
                );
            }
            tokio::time::sleep(TIDY_INTERVAL).await;
        }
    };
    stop.run_until_cancelled(dropping).await;
}

/// Counts accounts and subscriptions for the metrics.
pub(super) async fn count(store: Store, metrics: Arc<Metrics>, stop: CancellationToken) {
    let counting = async {
        loop {
            // An error is counted, and the database says it elsewhere.
            if let Ok(Census { accounts, subscriptions }) = store.census().await {
                metrics.registered(accounts, &subscriptions);
            }
            tokio::time::sleep(COUNT_INTERVAL).await;
        }
    };
    stop.run_until_cancelled(counting).await;
}

/// Notices that the file of the database was replaced, also while nothing is written, and that another program has
/// written to it, as the command that removes a subscription does.
pub(super) async fn guard(store: Store, watchers: SupervisorHandle, stop: CancellationToken) {
    let looking = async {
        let mut known = None;
        while !store.is_shared() {
            store.look_at_file().await;
            // Other tasks say what is wrong with the database.
            if let Ok(Some(version)) = store.version_of_file().await
                && known.replace(version).is_some_and(|known| known != version)
            {
                watchers.read_again();
            }
            tokio::time::sleep(FILE_INTERVAL).await;
        }
    };
    stop.run_until_cancelled(looking).await;
}

/// Counts the time in which phones can register: push is offered to them, and the database takes what
/// they say.
pub(super) async fn count_service(
    store: Store,
    offered: watch::Receiver<Option<PushOffer>>,
    stop: CancellationToken,
) {
    loop {
        let open = offered.borrow().is_some();
        if let Err(error) = store.count_service(Timestamp::now(), open).await {
            tracing::warn!(
                target: "mailchime::app::service_time_not_recorded",
                %error,
                "could not record the time of service in the database; mailchime tries again"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(store::TICK) => {}
            () = stop.cancelled() => return,
        }
    }
}
