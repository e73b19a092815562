//! What a watcher does with its life: it waits for its turn, logs in, watches until the connection ends, and
//! decides what comes after each end.
//!
//! ```text
//!   wait for a turn ──▶ read what the devices know ──▶ log in ──▶ look and wait (see `source::imap::session`)
//!     ▲     ▲                                    │            │
//!     │     └──── back-off ◀─────────────────────┼── lost ◀───┘
//!     └──── its user logs in ◀── parked ◀── refused (see `parked`)
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::either::Either;

use super::asking::AskingTask;
use super::refusal;
use super::source::imap::connection::ImapConnection;
use super::source::imap::health::{BackendHealth, ConnectionSlot};
use super::source::imap::keepalive;
use super::source::imap::login_breaker::{LoginPermit, PATIENCE};
use super::source::imap::master_login::{self, MasterLogin};
use super::source::imap::pacing;
use super::status::WatcherState;
use super::watcher::{LoginTarget, LoginWait, NextStep, SessionEnd, Watcher, WatcherStart};
use crate::imap::refusal::Refusal;
use crate::imap::responses::printable;
use crate::model::{Account, seconds};
use crate::net::backend::{Backend, LoggedIn, LoginError};
use crate::net::backoff::Backoff;

const MASTER_REMEDY: &str = "see master_user, master_password_file and login_template of its [backend] \
    or [[route]], and what the server lets this user do; `mailchime check --login USER` tries it; send \
    SIGHUP when the configuration or the password file has changed";
/// The longest pause between attempts to read what is to be watched.
const UNREAD: Duration = Duration::from_secs(30);

/// Where to log in, and as whom.
struct LoginPlan {
    /// Whose mailboxes they are.
    account: Account,
    backend: Backend,
    health: Arc<BackendHealth>,
    /// The master user that logs in; `None` where the account's does.
    master: Option<Arc<MasterLogin>>,
}

/// Leave for one login.
type LoginPermits<'a> =
    (Option<master_login::MasterPermit<'a>>, LoginPermit<'a>, pacing::LoginSlot<'a>);

impl Watcher {
    /// Watches until the supervisor says stop. Each step is boxed by itself: only the one under way takes room.
    pub(super) async fn run(&mut self, begin: Box<WatcherStart>) {
        let mut next = Box::pin(self.first(*begin)).await;
        // Its user has just registered or logged in.
        let mut user_is_there = self.directive.read(|told| told.login.is_some() || told.logins > 0);
        while let Some(told) = Box::pin(self.pause(next)).await {
            user_is_there |= told;
            let plan = match Box::pin(self.plan_login(&mut user_is_there)).await {
                Ok(plan) => plan,
                Err(other) => {
                    next = other;
                    continue;
                }
            };
            let end = Box::pin(self.attempt(plan, &mut user_is_there)).await;
            next = Box::pin(self.after(end)).await;
        }
    }

    /// What comes first.
    async fn first(&mut self, begin: WatcherStart) -> NextStep {
        match (self.waited.take(), begin) {
            (Some(waited), _) => waited.goes_on(),
            (None, WatcherStart::Elsewhere(recorded)) => {
                self.after(SessionEnd::Elsewhere(recorded)).await
            }
            (None, begin) => self.begins_refused(&begin),
        }
    }

    /// Waits for a turn, logs in, and watches until the connection ends. `user_is_there` counts until it has had its
    /// turn. One allocation holds all of that but the login: with two, thousands of accounts that wait at the start would
    /// leave holes in the heap.
    async fn attempt(&mut self, plan: Box<LoginPlan>, user_is_there: &mut bool) -> SessionEnd {
        self.shows(WatcherState::Starting);
        let turns = self.turns(&plan.health, plan.master.as_deref(), *user_is_there);
        let (turns, _place) = match turns.await {
            Ok(turns) => turns,
            Err(end) => return end,
        };
        self.shows(WatcherState::Starting);
        *user_is_there = false;
        let LoginPlan { account, backend, health, master } = &*plan;
        let at = LoginTarget { backend, health, master: master.as_deref() };
        // The largest part, and soon over.
        let mut connection = match Box::pin(self.begin_connection(at, turns)).await {
            Ok(connection) => connection,
            Err(end) => return end,
        };
        let directive = self.directive.clone();
        let backends = self.context.backends.clone();
        self.keepalive.begin(&health.keepalive, rand::random());
        let watching = match self.on_demand {
            true => {
                Either::Left(Box::pin(async { Err(self.visit(&mut connection, health).await) }))
            }
            false => Either::Right(self.run_session(&mut connection, health)),
        };
        // Whatever it waits for, it ends when it is to stop.
        let (end, orderly) = tokio::select! {
            ended = watching => {
                let Err(end) = ended;
                let orderly =
                    matches!(end, SessionEnd::Stop | SessionEnd::Nothing | SessionEnd::Visited);
                (end, orderly)
            }
            () = health.wanted() => (SessionEnd::Turn, true),
            () = directive.wait_until(|told| told.stop || !backends.is_of(account, backend)) => {
                let end = match directive.is_stopped() {
                    true => SessionEnd::Stop,
                    false => SessionEnd::Failed("the configuration names another backend".to_owned()),
                };
                (end, true)
            }
        };
        match end {
            SessionEnd::Failed(_) if !orderly => self.learn_from(&connection, health),
            _ if orderly => Box::pin(connection.log_out()).await,
            _ => {}
        }
        end
    }

    /// Returns where it is to log in, and as whom; an error with what is next, where it is not to log in, or has asked
    /// doveadm in place of it.
    async fn plan_login(&mut self, user_is_there: &mut bool) -> Result<Box<LoginPlan>, NextStep> {
        let backend = self.context.backends.of(&self.account);
        self.considered = backend.as_ref().ok().cloned();
        if self.on_demand {
            self.take_directive().await;
        }
        let backend = match backend {
            Ok(backend) => backend,
            // Another configuration may tell.
            Err(error) => {
                let next = self.after(SessionEnd::Failed(error.to_string())).await;
                if self.unasked.is_some() {
                    // It does not know whose mailboxes they are. The next task looks at all.
                    self.hints.take();
                }
                return Err(next);
            }
        };
        if let Some(asking) = &mut self.asking {
            asking.asks_at(backend.id());
        }
        // It asks nothing of a backend that is not the account's, not even a turn.
        if self.elsewhere
            && let Err(end) = Box::pin(self.reload(&backend)).await
        {
            return Err(self.after(end).await);
        }
        if self.on_demand {
            Box::pin(self.is_to_ask(&backend, *user_is_there)).await?;
        }
        let health = self.context.backend_health.of(&backend);
        if let Some(doveadm) = backend.doveadm().filter(|_| self.on_demand) {
            let end = Box::pin(self.visit_by_doveadm(doveadm, &health.doveadm)).await;
            *user_is_there = false;
            return Err(self.after(end).await);
        }
        match self.master_at(&backend, &health) {
            Ok(master) => {
                let account = self.account.clone();
                Ok(Box::new(LoginPlan { account, backend, health, master }))
            }
            Err(end) => Err(self.after(end).await),
        }
    }

    /// Tells what can be told of an account on demand without its backend. An error with what is next, where the
    /// backend is not to be asked now.
    async fn is_to_ask(&mut self, backend: &Backend, user_is_there: bool) -> Result<(), NextStep> {
        let has_news = user_is_there || !self.hints.is_empty();
        if !has_news
            && let Some(known) = self.asking.as_deref_mut().and_then(AskingTask::database_away)
        {
            return Err(self.after(SessionEnd::Away(known)).await);
        }
        match self.find_due(backend).await {
            Ok(true) => {}
            Ok(false) => return Err(self.after(SessionEnd::Visited).await),
            Err(end) => return Err(self.after(end).await),
        }
        // No user's login helps where the master user is refused.
        if user_is_there && !(self.acts_as_master() && self.known.refusals > 0) {
            return Ok(());
        }
        let now = Instant::now();
        if let Some(at) = self.retry_at.filter(|at| *at > now) {
            return Err(self.waits_alone(at));
        }
        match self.asking.as_deref_mut().and_then(AskingTask::away) {
            Some(known) => Err(self.after(SessionEnd::Away(known)).await),
            None => Ok(()),
        }
    }

    /// Waits for what is next; `None` on stop. Returns whether its user has just logged in or registered.
    pub(super) async fn pause(&mut self, next: NextStep) -> Option<bool> {
        let asks = matches!(next, NextStep::Stop | NextStep::Rest | NextStep::Try(Duration::ZERO));
        self.asks(asks);
        let told = self.wait_for(next).await;
        self.asks(true);
        told
    }

    fn asks(&mut self, asks: bool) {
        if let Some(asking) = &mut self.asking {
            asking.set(asks);
        }
    }

    async fn wait_for(&mut self, next: NextStep) -> Option<bool> {
        let pause = match next {
            NextStep::Stop | NextStep::Rest => return None,
            NextStep::Login(waiting) => return self.wait_for_login(waiting).await,
            NextStep::Try(pause) => pause,
            NextStep::Later(pause) => tokio::select! {
                () = tokio::time::sleep(pause) => Duration::ZERO,
                () = self.directive.stopped() => return None,
            },
        };
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                biased;
                () = self.directive.changed() => {
                    if self.directive.is_stopped() {
                        return None;
                    }
                    let before = (self.told, self.known.logins());
                    self.take_directive().await;
                    if (self.told, self.known.logins()) != before {
                        return Some(true);
                    }
                    // What they say in full is told although the account is not asked for yet.
                    if self.retry_at.is_some() && !self.hints.is_empty() {
                        return Some(false);
                    }
                    // Other backends are in use, and perhaps not for this account.
                    if self.has_moved() {
                        self.retry_at = None;
                        return Some(false);
                    }
                }
                () = &mut pause => return Some(false),
            }
        }
    }

    /// Whether the account has another backend than when that was last looked at.
    fn has_moved(&self) -> bool {
        match (&self.considered, self.context.backends.of(&self.account)) {
            (Some(before), Ok(now)) => !now.is(before),
            (None, Err(_)) => false,
            _ => true,
        }
    }

    /// Waits for leave to log in, for a place among the connections and for a turn.
    async fn turns<'a>(
        &self,
        health: &'a BackendHealth,
        master: Option<&'a MasterLogin>,
        user_is_there: bool,
    ) -> Result<(LoginPermits<'a>, ConnectionSlot), SessionEnd> {
        let turns = async {
            let (acting, leave) = match master {
                Some(master) => {
                    let acting = master.turn(|rest, why| self.rest(Some(rest), why)).await;
                    (Some(acting), health.logins.at_once())
                }
                None if user_is_there => (None, health.logins.at_once()),
                None => {
                    let why = "the backend refuses many accounts";
                    let told = |rest| self.rest(Some(rest), why);
                    let leave = health.logins.leave(self.known.is_refused_alone(), told);
                    (None, leave.await.ok_or(SessionEnd::Excused)?)
                }
            };
            let (place, turn) = health.turn(user_is_there).await;
            Ok(((acting, leave, turn), place))
        };
        tokio::select! {
            turns = turns => turns,
            () = self.directive.stopped() => Err(SessionEnd::Stop),
        }
    }

    async fn after(&mut self, end: SessionEnd) -> NextStep {
        self.previews_on(false);
        if !matches!(end, SessionEnd::Visited) {
            self.context.followed.unwatched(&self.account);
        }
        let account = &self.account;
        let config = &self.context.config;
        let backoff = Backoff::new(config.retry_min, config.retry_max);
        // That a connection ended is a failure only if it was a short one.
        if self
            .watches_since
            .take()
            .is_some_and(|since| since.elapsed() >= keepalive::least(config))
        {
            self.failures = 0;
        }
        match end {
            SessionEnd::Stop => NextStep::Stop,
            SessionEnd::Visited => self.visited(),
            SessionEnd::Turn | SessionEnd::Moved => NextStep::Try(Duration::ZERO),
            // Another registration may be on its way: only the supervisor ends a watcher.
            SessionEnd::Nothing => {
                self.rest(None, "no device is registered");
                self.waits_for_change()
            }
            SessionEnd::NoPassword { why, login_helps } => self.has_no_password(why, login_helps),
            SessionEnd::Elsewhere(recorded) => self.is_elsewhere(&recorded),
            SessionEnd::NoMaster => {
                let why = "its backend has no master_user";
                self.status.set(WatcherState::Parked { why: why.to_owned() });
                self.waits_for_change()
            }
            SessionEnd::Refused { answer, refusal, tries } => {
                self.refused(&answer, refusal, tries).await
            }
            SessionEnd::Excused => match self.excuse("the password was refused").await {
                Some(retry) => NextStep::Login(LoginWait::until_retry(retry)),
                None => NextStep::Try(Duration::ZERO),
            },
            SessionEnd::MasterRefused { answer, rest } => self.master_refused(&answer, rest),
            SessionEnd::Away(known) => self.waits_with_others(known),
            SessionEnd::Unreachable(why) if self.asking.is_some() => {
                self.backend_is_away(&why, backoff)
            }
            SessionEnd::Failed(why) | SessionEnd::Unreachable(why) => {
                self.failures = self.failures.saturating_add(1);
                let wait = backoff.wait(self.failures, rand::random());
                tracing::info!(
                    target: "mailchime::watch::connection_failed",
                    %account, why, wait_seconds = seconds(wait), "watching is interrupted; mailchime tries again"
                );
                self.rest(Some(wait), &why);
                if !self.on_demand {
                    NextStep::Try(wait)
                } else if self.considered.is_some() && self.has_left_out_the_rest() {
                    self.visited()
                } else {
                    self.waits_alone(Instant::now() + wait)
                }
            }
            // It says nothing of the backend, so it is no failure of it.
            SessionEnd::Database(why) => {
                self.unread = self.unread.saturating_add(1);
                let backoff = Backoff::new(config.retry_min, config.retry_max.min(UNREAD));
                if self.asking.is_some() {
                    return self.database_is_away(&why, backoff);
                }
                let wait = backoff.wait(self.unread, rand::random());
                tracing::info!(
                    target: "mailchime::watch::waiting_for_database",
                    %account, why, wait_seconds = seconds(wait), "watching waits for the database; mailchime tries again"
                );
                self.rest(Some(wait), &why);
                NextStep::Try(wait)
            }
        }
    }

    /// This backend has accepted the account's user, and the configuration names another one.
    fn is_elsewhere(&mut self, recorded: &str) -> NextStep {
        let is_new = !std::mem::replace(&mut self.elsewhere, true);
        self.status.set(self.context.parked_elsewhere(&self.account, recorded, is_new));
        self.waits_for_change()
    }

    /// The backend refused the master user: with `rest`, for any account.
    fn master_refused(&mut self, answer: &[u8], rest: Option<Duration>) -> NextStep {
        self.known.refusals = self.known.refusals.saturating_add(1);
        let wait = refusal::master_wait(self.known.refusals, rand::random());
        let (account, reason) = (&self.account, printable(answer));
        match rest {
            Some(rest) => tracing::error!(
                target: "mailchime::watch::master_user_refused",
                %account, reason, wait_seconds = seconds(rest), remedy = MASTER_REMEDY,
                "the backend refuses the master user for any account; mailchime begins no \
                 watching there until it is accepted"
            ),
            None => tracing::warn!(
                target: "mailchime::watch::master_user_refused_for_account",
                %account, reason, wait_seconds = seconds(wait),
                "the backend refuses the master user for this account; mailchime tries \
                 again"
            ),
        }
        self.rest(Some(wait), &format!("the master user is refused: {reason}"));
        match self.on_demand {
            true => self.waits_alone(Instant::now() + wait),
            false => NextStep::Later(wait),
        }
    }

    /// Whether it logs in as the master user, whom no user's login can help.
    pub(super) fn acts_as_master(&self) -> bool {
        !self.context.credentials.are_of_users()
    }

    /// The master user there; `None` where the account's user logs in.
    fn master_at(
        &self,
        backend: &Backend,
        health: &BackendHealth,
    ) -> Result<Option<Arc<MasterLogin>>, SessionEnd> {
        match self.acts_as_master() {
            false => Ok(None),
            true => health.master(backend).map(Some).ok_or(SessionEnd::NoMaster),
        }
    }

    /// A connection that is logged in.
    async fn begin_connection(
        &mut self,
        at: LoginTarget<'_>,
        mut turns: LoginPermits<'_>,
    ) -> Result<Box<ImapConnection>, SessionEnd> {
        let directive = self.directive.clone();
        let login = async {
            tokio::select! {
                logged_in = self.log_in(at) => logged_in,
                () = directive.stopped() => Err(SessionEnd::Stop),
            }
        };
        tokio::pin!(login);
        tokio::select! {
            logged_in = &mut login => return logged_in,
            () = tokio::time::sleep(PATIENCE), if turns.1.is_alone() => {}
        }
        turns.1.give_back();
        login.await
    }

    /// The connection was lost.
    pub(super) fn learn_from(&mut self, connection: &ImapConnection, health: &BackendHealth) {
        let (account, least) = (&self.account, keepalive::least(&self.context.config));
        if connection.idles_for().is_some_and(|time| time < least) && self.methods.idle.lost() {
            tracing::info!(
                target: "mailchime::watch::polled_instead_of_idle",
                %account,
                "connections end as soon as IDLE begins; mailchime polls this account for an hour"
            );
        }
        let shared = &health.keepalive;
        let logins = self.context.config.logins_per_second;
        if self.watches_since.is_none()
            || shared.lost(usize::try_from(logins).unwrap_or(usize::MAX))
        {
            return;
        }
        let loss = connection.loss();
        let learnt = self.keepalive.lost(loss, account, shared, least, rand::random());
        if let Some(renewal) = learnt {
            tracing::info!(
                target: "mailchime::watch::quiet_connections_cut",
                %account, quiet_seconds = seconds(loss.quiet), renewal_seconds = seconds(renewal),
                "something on the way to the backend ends quiet connections; mailchime uses them \
                 more often"
            );
        }
    }

    async fn log_in(&mut self, at: LoginTarget<'_>) -> Result<Box<ImapConnection>, SessionEnd> {
        let LoginTarget { backend, master, .. } = at;
        if self.on_demand {
            self.faults.ask_refused_again();
        } else {
            // All mailboxes are looked at.
            self.hints.take();
            // After a break nothing counts but what the devices know.
            self.mailboxes.clear();
            self.faults.forget_refusals();
        }
        if self.backend.name() != backend.name() {
            (self.methods, self.keepalive) = Default::default();
        }
        self.backend = backend.clone();
        // Credentials that are used without being taken would not be stored.
        self.take_directive().await;
        self.reload(backend).await?;
        let context = &self.context;
        let (timeout, longest) = (context.config.answer_timeout, context.response_size);
        let logged_in = match master {
            Some(master) => self.log_in_as_master(backend, master).await?,
            None => self.log_in_as_user(at).await?,
        };
        self.unpark().await?;
        Ok(Box::new(ImapConnection::new(logged_in, timeout, longest)))
    }

    async fn log_in_as_master(
        &mut self,
        backend: &Backend,
        master: &MasterLogin,
    ) -> Result<LoggedIn, SessionEnd> {
        let (context, account) = (&self.context, &self.account);
        let credentials = backend.master().ok_or(SessionEnd::NoMaster)?.acting_as(account);
        // It took its time to come here.
        if !context.backends.is_of(account, backend) {
            return Err(SessionEnd::Moved);
        }
        let (timeout, longest) = (context.config.answer_timeout, context.response_size);
        let answer = context.backends.log_in(backend, account, credentials, timeout, longest).await;
        self.note_reach(&answer);
        let account = &self.account;
        match answer {
            Ok(logged_in) => {
                self.known.refusals = 0;
                master.accepted();
                Ok(logged_in)
            }
            Err(LoginError::Refused { answer, refusal }) if refusal != Refusal::Temporary => {
                let why = format!("the master user is refused: {}", printable(&answer));
                let rest = master.refused(account, &why);
                Err(SessionEnd::MasterRefused { answer, rest })
            }
            Err(error) => Err(error.into()),
        }
    }
}
