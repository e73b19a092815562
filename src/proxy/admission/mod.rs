//! Who may come in, who may try to log in, and who may cost a backend a connection.
//!
//! A connection [waits](waiting) until its user is logged in, in a pool of its own. A login is a
//! [attempt](attempts), which is reserved before the backend is dialled. What the backend has accepted takes a
//! place among the [sessions]. What is counted here outlives a configuration; the limits
//! themselves come with each call.

mod attempts;
mod origin;
mod sessions;
mod waiting;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) use self::attempts::LimitHit;
use self::attempts::{AttemptKeys, Attempts, Decision};
use self::origin::Origin;
use self::sessions::Sessions;
pub(super) use self::sessions::{SessionPermit, SessionsFull};
use self::waiting::WaitingRoom;
use crate::config::LimitsConfig;
use crate::model::Account;
use crate::net::counters::LimitCounters;

/// Who waits for another try to end looks this often by itself: an old failure may count no more.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// So many accounts in a row from one address, and none from any other, look like a load balancer.
const MANY_ACCOUNTS: usize = 30;

/// Counts of what is going on now.
#[derive(Debug, Default)]
pub(super) struct Admission {
    waiting: Arc<Mutex<WaitingRoom>>,
    tries: Arc<Mutex<Attempts>>,
    sessions: Arc<Mutex<Sessions>>,
    crowd: Mutex<LastOrigin>,
}

/// A connection's place among those on which nobody is logged in. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct WaitingPermit {
    waiting: Arc<Mutex<WaitingRoom>>,
    number: u64,
    goes: CancellationToken,
}

/// A try that is reserved. Dropped without a word, it counts as failed if its backend was asked.
#[derive(Debug)]
pub(super) struct AttemptPermit {
    tries: Arc<Mutex<Attempts>>,
    keys: AttemptKeys,
    asked: bool,
}

/// The accounts that logged in from the origin that was the last to log in.
#[derive(Debug, Default)]
struct LastOrigin {
    origin: Option<Origin>,
    accounts: HashSet<Account>,
    told: bool,
}

// === impl Admission ===

impl Admission {
    /// Takes in a connection from `address`. Where it is one too many, another one has to go, which
    /// is counted.
    pub(super) fn enter(
        &self,
        address: IpAddr,
        limits: &LimitsConfig,
        counters: &LimitCounters,
    ) -> WaitingPermit {
        let (number, goes, crowded) = self.waiting.lock().enter(address, limits.waiting);
        if crowded && counters.waiting.hit() {
            let limit = limits.waiting;
            tracing::warn!(
                target: "mailchime::proxy::waiting_reached",
                limit,
                "[limits] waiting is reached; mailchime closes old connections that have not \
                 logged in"
            );
        }
        WaitingPermit { waiting: Arc::clone(&self.waiting), number, goes }
    }

    /// Sends a connection away on which nobody is logged in, if there is any.
    pub(super) fn make_room(&self) {
        self.waiting.lock().evict();
    }

    /// Reserves a try to log in from `address`, as soon as there may be one. Which limit it met where
    /// there may be none. Cancel safe.
    pub(super) async fn try_in(
        &self,
        address: IpAddr,
        account: Option<&Account>,
        limits: &LimitsConfig,
        counters: &LimitCounters,
    ) -> Result<AttemptPermit, LimitHit> {
        let (mut told, mut woken_by) = (false, None);
        loop {
            let verdict = self.tries.lock().begin(address, account, limits, Instant::now());
            let full = match &verdict {
                Decision::Full { freed, .. } => Some(Arc::clone(freed)),
                _ => None,
            };
            // Who cannot use it leaves it to the next one.
            if let Some(woken_by) = woken_by.take()
                && !matches!(verdict, Decision::Go { .. })
                && full.as_ref().is_none_or(|full| !Arc::ptr_eq(full, &woken_by))
            {
                woken_by.notify_one();
            }
            match verdict {
                Decision::Go { keys, at, slowed } => {
                    let reserved =
                        AttemptPermit { tries: Arc::clone(&self.tries), keys, asked: false };
                    if let Some(over) = slowed {
                        over.hit(address, limits, counters);
                    }
                    // A timer for a time that has come waits for the next millisecond.
                    if at > Instant::now() {
                        tokio::time::sleep_until(at).await;
                    }
                    return Ok(reserved);
                }
                Decision::No(over) => {
                    over.hit(address, limits, counters);
                    return Err(over);
                }
                Decision::Full { freed, why } => {
                    // Attempts that are all right take their turns, and need no log line.
                    if why == LimitHit::DialsAtOnce && !std::mem::replace(&mut told, true) {
                        why.hit(address, limits, counters);
                    }
                    let _ = tokio::time::timeout(LOOK_AGAIN, freed.notified()).await;
                    woken_by = Some(freed);
                }
            }
        }
    }

    /// A name or a password from `address` is wrong, as needed no backend to be seen.
    pub(super) fn failed(&self, address: IpAddr, account: Option<&Account>) {
        let mut tries = self.tries.lock();
        let keys = tries.keys(address, account);
        tries.fail(&keys, Instant::now());
    }

    /// A place for a session from `address`, whose user the backend has accepted.
    pub(super) fn session(
        &self,
        address: IpAddr,
        limits: &LimitsConfig,
    ) -> Result<SessionPermit, SessionsFull> {
        SessionPermit::take(&self.sessions, address, limits)
    }

    /// The user of an account, beyond doubt, is logged in from `address`, where the account is known
    /// from now on. Warns once where all users seem to have one address.
    pub(super) fn logged_in(&self, address: IpAddr, account: &Account) {
        self.tries.lock().succeed(address, account, Instant::now());
        let many = self.crowd.lock().add(Origin::of(address), account);
        if many {
            tracing::warn!(
                target: "mailchime::proxy::one_client_address",
                %address,
                "all users come from one address, and limits count them as one. If it is a load \
                 balancer, let it send the PROXY protocol, and name its address in [[listener]] \
                 proxy_protocol; if it is webmail, raise sessions_per_ip, dials_per_minute and \
                 login_failures_per_minute in [limits]"
            );
        }
    }
}

impl LastOrigin {
    /// Whether this is the moment to tell that all users come from one origin.
    fn add(&mut self, origin: Origin, account: &Account) -> bool {
        if self.told {
            return false;
        }
        if self.origin.replace(origin) != Some(origin) {
            self.accounts.clear();
        }
        self.accounts.insert(account.clone());
        self.told = self.accounts.len() >= MANY_ACCOUNTS;
        if self.told {
            self.accounts = HashSet::new();
        }
        self.told
    }
}

// === impl WaitingPermit ===

impl WaitingPermit {
    /// The connection is known to come from another address than that of who sent it here.
    pub(super) fn comes_from(&self, address: IpAddr) {
        self.waiting.lock().comes_from(self.number, address);
    }

    /// A login began or ended. Whose login is under way goes after all others.
    pub(super) fn tries(&self, trying: bool) {
        self.waiting.lock().tries(self.number, trying);
    }

    /// Ends when the connection has to go.
    pub(super) async fn over(&self) {
        self.goes.cancelled().await;
    }
}

impl Drop for WaitingPermit {
    fn drop(&mut self) {
        self.waiting.lock().leave(self.number);
    }
}

// === impl AttemptPermit ===

impl AttemptPermit {
    /// From here on it is a try, however it ends.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// The backend accepted it, or had no answer, or one that says nothing of name and password.
    pub(super) fn no_guess(mut self) {
        self.asked = false;
    }
}

impl Drop for AttemptPermit {
    fn drop(&mut self) {
        let mut tries = self.tries.lock();
        tries.end(&self.keys);
        if self.asked {
            tries.fail(&self.keys, Instant::now());
        }
    }
}

// === impl LimitHit ===

impl LimitHit {
    /// What mailchime answers.
    pub(super) fn answer(self) -> &'static str {
        match self {
            Self::LoginFailures => {
                "NO [LIMIT] Too many failed logins from your address, try again later"
            }
            Self::AccountFailures => {
                "NO [LIMIT] Too many failed logins of this account, try again later"
            }
            Self::DialsPerMinute | Self::DialsAtOnce => {
                "NO [LIMIT] Too many logins from your address, try again later"
            }
        }
    }

    fn hit(self, peer: IpAddr, limits: &LimitsConfig, counters: &LimitCounters) {
        let (counter, key, limit) = match self {
            Self::LoginFailures => (
                &counters.login_failures_per_minute,
                "login_failures_per_minute",
                limits.login_failures_per_minute,
            ),
            Self::AccountFailures => (
                &counters.account_failures_per_minute,
                "account_failures_per_minute",
                limits.account_failures_per_minute,
            ),
            Self::DialsPerMinute => {
                (&counters.dials_per_minute, "dials_per_minute", limits.dials_per_minute)
            }
            Self::DialsAtOnce => (&counters.dials_at_once, "dials_at_once", limits.dials_at_once),
        };
        if counter.hit() {
            tracing::warn!(
                target: "mailchime::proxy::client_limit_reached",
                %peer, limit, "[limits] {key} is reached; further logins get NO [LIMIT]"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    const PEER: &str = "192.0.2.1";

    fn limits() -> LimitsConfig {
        LimitsConfig { login_failures_per_minute: 3, ..LimitsConfig::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_may_be_made_does_not_wait() {
        let (admission, counters) = (Admission::default(), LimitCounters::default());
        let (peer, limits) = (PEER.parse().unwrap(), limits());
        // Timers count in milliseconds.
        tokio::time::advance(Duration::from_micros(500)).await;
        assert!(poll!(pin!(admission.try_in(peer, None, &limits, &counters))).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_while_too_many_are_under_way_waits_for_their_answers() {
        let (admission, counters) =
            (Arc::new(Admission::default()), Arc::new(LimitCounters::default()));
        let peer = PEER.parse().unwrap();
        let trying = |name: String| {
            let (admission, counters) = (Arc::clone(&admission), Arc::clone(&counters));
            async move {
                let account = Account::from_login(&name);
                admission.try_in(peer, Some(&account), &limits(), &counters).await
            }
        };
        let mut first = Vec::new();
        for at in 0..3 {
            first.push(trying(format!("first{at}")).await.unwrap());
        }
        let others: Vec<_> = (0..50).map(|at| tokio::spawn(trying(format!("other{at}")))).collect();
        tokio::task::yield_now().await;
        assert!(others.iter().all(|other| !other.is_finished()));
        first.into_iter().for_each(AttemptPermit::no_guess);
        // Each one lets the next one in.
        for other in others {
            other.await.unwrap().unwrap().no_guess();
        }
        admission.logged_in(peer, &Account::from_login("other7"));
        for at in 0..3 {
            let mut wrong = trying(format!("wrong{at}")).await.unwrap();
            wrong.ask();
        }
        assert_eq!(trying("late".into()).await.unwrap_err(), LimitHit::LoginFailures);
        trying("other7".into()).await.unwrap().no_guess();
        assert_eq!(counters.login_failures_per_minute.hits(), 1);
    }

    #[test]
    fn many_accounts_of_one_address_alone_make_one_log_line() {
        let mut crowd = LastOrigin::default();
        let origin = |text: &str| Origin::of(text.parse().unwrap());
        let account = |at: usize| Account::from_login(&format!("user{at}"));
        assert!((0..29).all(|at| !crowd.add(origin(PEER), &account(at))));
        assert!(!crowd.add(origin(PEER), &account(0)), "the same one again");
        assert!(!crowd.add(origin("192.0.2.2"), &account(29)));
        assert!((0..29).all(|at| !crowd.add(origin(PEER), &account(at))));
        assert!(crowd.add(origin(PEER), &account(29)));
        assert!((0..99).all(|at| !crowd.add(origin(PEER), &account(at))));
    }
}
