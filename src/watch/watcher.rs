//! The watcher of one account: what it knows, what the supervisor tells it, and how its connections end.
//! What it does is in `lifecycle`, `login`, `parked` and the sources.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use tokio::time::Instant;

use super::WatchContext;
use super::asking::{AskingTask, KnownAway};
use super::credential_history::CredentialHistory;
use super::directive::DirectiveReceiver;
use super::hints::Hints;
use super::ledger::{Consequence, Ledger};
use super::parked_wait::{KnownRecoveries, ParkedWait, has_moved};
use super::source::imap::connection::ConnectionLost;
use super::source::imap::health::BackendHealth;
use super::source::imap::keepalive::Keepalive;
use super::source::imap::mailbox_faults::MailboxFaults;
use super::source::imap::master_login::MasterLogin;
use super::source::imap::preview_requests::PreviewRequests;
use super::source::imap::reliability::MethodConfidence;
use super::status::{StatusCell, WatcherState};
use crate::imap::refusal::Refusal;
use crate::model::{Account, Hint, Mailbox, Snapshot, Timestamp};
use crate::net::backend::Backend;
use crate::store::{DueMailbox, LookedAt, NodeMarks, StoreError};

/// One account's watcher. What few have is boxed: there may be one for each account.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) account: Account,
    pub(super) context: Arc<WatchContext>,
    pub(super) directive: DirectiveReceiver,
    pub(super) hints: Hints,
    pub(super) status: StatusCell,
    /// Where it is connected, or last was.
    pub(super) backend: Backend,
    /// The backend that the account was last found to have.
    pub(super) considered: Option<Backend>,
    pub(super) known: CredentialHistory,
    /// In the order of [`in_order`], each once.
    pub(super) mailboxes: Vec<WatchedMailbox>,
    /// Those of them that do not answer as the others do. It outlives connections.
    pub(super) faults: MailboxFaults,
    /// The registrations that `mailboxes` takes in.
    pub(super) registrations: u64,
    /// Those of which the supervisor has told.
    pub(super) told: u64,
    /// Since when it has watched on this connection.
    pub(super) watches_since: Option<Instant>,
    /// Nothing has shown yet that the password is right: the process that watched before, until it was killed
    /// perhaps, may have tried it and had no time to note what came of it.
    pub(super) inherited: bool,
    /// Connections that failed in a row.
    pub(super) failures: u32,
    /// Of an account on demand: before that it is not asked for again, after a failure.
    pub(super) retry_at: Option<Instant>,
    /// Tries in a row that failed for the database.
    pub(super) unread: u32,
    pub(super) methods: MethodConfidence,
    pub(super) keepalive: Keepalive,
    /// What flags have changed was asked for and not answered, so far.
    pub(super) asked_for_flags: bool,
    /// `None` where no push may say anything of a mail.
    pub(super) previews: Option<Box<PreviewRequests>>,
    /// It has no connection but while it asks for mailboxes that are due.
    pub(super) on_demand: bool,
    /// Those of [`Directive::looks`](super::directive::Directive::looks) that are taken over.
    pub(super) looks: u64,
    /// Those of [`registrations`](super::directive::Directive::registrations) that came before it last read what is due.
    pub(super) found: u64,
    /// Of an account on demand: whether it asks, or waits.
    pub(super) asking: Option<Box<AskingTask>>,
    /// What was looked at, or told in full. Its marks are taken away when the task ends.
    pub(super) looked_at: Vec<LookedAt>,
    /// Of an account on demand: its task ends although it is still to be asked for.
    pub(super) unasked: Option<Box<Unasked>>,
    /// What the task before it waited for.
    pub(super) waited: Option<Box<ParkedWait>>,
    /// It is this one's turn to have devices pushed, so that their user logs in.
    pub(super) may_push: bool,
    /// The account was last found to be of another backend than it has by the configuration.
    pub(super) elsewhere: bool,
    /// Hears of what it sees, instead of `push`. Then the supervisor does not know of it.
    pub(super) instead: Option<Box<InsteadOfPush>>,
}

/// Hears of a mailbox what follows for it, and the state that is known of it. It does not wait.
#[derive(Clone)]
pub(super) struct InsteadOfPush(pub(super) Arc<Hears>);

type Hears = dyn Fn(&Mailbox, Consequence, &Snapshot) + Send + Sync;

impl fmt::Debug for InsteadOfPush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InsteadOfPush").finish_non_exhaustive()
    }
}

/// How a watcher begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WatcherStart {
    AtOnce,
    /// When its user has logged in, or when another try is due: so many tries in a row were refused, the
    /// last at that time. It is parked if there is a reason.
    Refused {
        tries: u32,
        at: Option<Timestamp>,
        parked: Option<String>,
    },
    /// When its account is its backend's again, or another one's: this backend has accepted it.
    Elsewhere(String),
}

/// A mailbox, and what `push` was last told of it.
#[derive(Debug)]
pub(super) struct WatchedMailbox {
    pub(super) mailbox: Mailbox,
    pub(super) ledger: Ledger,
    /// It is to be looked at.
    pub(super) due: bool,
    /// When the last look was answered.
    pub(super) looked_at: Option<StdInstant>,
    /// It is marked as due on disk, or may be.
    pub(super) marked: bool,
    /// What other nodes have marked.
    pub(super) marks: NodeMarks,
    /// Numbers do not spare the look: what another node marked it for is not known, or all is looked at.
    pub(super) must_look: bool,
    /// It is due on disk since its state was refused: it is asked for in its turn, and its mark stays.
    pub(super) left_out: bool,
}

/// How much of a [`Directive`](super::directive::Directive) a watcher on demand has taken over.
#[derive(Clone, Copy, Debug)]
pub(super) struct TakenOver {
    pub(super) logins: u64,
    pub(super) logins_elsewhere: u64,
    pub(super) logins_missed: u64,
    pub(super) looks: u64,
    pub(super) registrations: u64,
}

/// Why an account on demand waits without a task although all of it is to be looked at.
#[derive(Debug)]
pub(super) enum Unasked {
    /// Its backend cannot be reached, or the database. What failed before that goes on to count.
    Away(FailedVisit),
    /// What it was asked for has failed.
    Failed(FailedVisit),
    /// It cannot be asked for before something happens, or for long.
    Parked(ParkedWait),
}

/// What the next visit has to know of those that failed.
#[derive(Clone, Debug)]
pub(super) struct FailedVisit {
    /// It is not asked for again before that.
    pub(super) retry_at: Instant,
    /// Visits that failed in a row.
    pub(super) failures: u32,
    /// How often in a row the master user was refused as this account, where one acts for it.
    pub(super) refusals: u32,
    /// The backend that it was at; `None` where it had none.
    pub(super) at: Option<Backend>,
}

/// Why a connection ended, or never was.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The supervisor said so.
    Stop,
    /// What was due has been asked for, or nothing was.
    Visited,
    /// Another watcher needs the place.
    Turn,
    /// No live registration is in the store.
    Nothing,
    /// There is no password to try, for this reason; whether another login of its user helps.
    NoPassword {
        why: &'static str,
        login_helps: bool,
    },
    /// A master watches, and the account's backend has none.
    NoMaster,
    /// This backend has accepted the account's user, and the configuration names another one.
    Elsewhere(String),
    /// The configuration names another backend since a moment ago.
    Moved,
    /// So many tries were refused; the backend's last answer behind the tag, and what it says.
    Refused {
        answer: Vec<u8>,
        refusal: Refusal,
        tries: u32,
    },
    /// Tries were refused, and it is the backend's fault.
    Excused,
    /// The master user was, as this account. For so long nobody tries it if it is as all.
    MasterRefused {
        answer: Vec<u8>,
        rest: Option<Duration>,
    },
    Failed(String),
    /// The backend could not be reached.
    Unreachable(String),
    /// The same is known of it, and another account is asked for first; or so it is with the database. Of an account on
    /// demand.
    Away(KnownAway),
    /// The database did not say what is to be watched, or did not take what it is to know.
    Database(String),
}

impl SessionEnd {
    pub(super) fn no_password(why: &'static str) -> Self {
        Self::NoPassword { why, login_helps: true }
    }
}

impl From<ConnectionLost> for SessionEnd {
    fn from(lost: ConnectionLost) -> Self {
        Self::Failed(lost.to_string())
    }
}

impl From<StoreError> for SessionEnd {
    fn from(error: StoreError) -> Self {
        Self::Database(error.to_string())
    }
}

/// Where a watcher logs in, and what is shared with others who do.
#[derive(Clone, Copy)]
pub(super) struct LoginTarget<'a> {
    pub(super) backend: &'a Backend,
    pub(super) health: &'a BackendHealth,
    /// Where it logs in as a master user.
    pub(super) master: Option<&'a MasterLogin>,
}

/// How a watcher waits while its credentials are refused, or there are none.
#[derive(Clone, Debug, Default)]
pub(super) struct LoginWait {
    /// There is another try after this time.
    pub(super) retry: Option<Duration>,
    /// It is parked, and its devices are pushed after this time.
    pub(super) push: Option<Duration>,
    /// How often its backend was at fault when the wait began; `None` where it begins now.
    pub(super) recoveries: Option<Box<KnownRecoveries>>,
}

/// What comes after an end.
#[derive(Debug)]
pub(super) enum NextStep {
    Stop,
    /// Another try when its user has logged in, or when one is due.
    Login(LoginWait),
    /// Another try after this time, or when the supervisor has something to tell.
    Try(Duration),
    /// Another try after this time, whatever happens.
    Later(Duration),
    /// Nothing is to be done: the end, until the supervisor has something to tell.
    Rest,
}

impl FailedVisit {
    /// Whether it changes anything of the next visit.
    pub(super) fn counts(&self) -> bool {
        self.failures > 0 || self.refusals > 0 || self.retry_at > Instant::now()
    }

    /// Whether the account has another backend now.
    pub(super) fn has_moved(&self, now: Option<&Backend>) -> bool {
        has_moved(self.at.as_ref(), now)
    }
}

impl Watcher {
    pub(super) fn new(
        account: Account,
        context: Arc<WatchContext>,
        directive: DirectiveReceiver,
        hints: Hints,
        status: StatusCell,
    ) -> Self {
        let inherited = directive.read(|told| told.login.is_none());
        let on_demand = context.is_on_demand(&account);
        let previews = context.asks_for_previews().then(Box::default);
        let backend = context.backends.of(&account).unwrap_or_else(|_| context.backends.default());
        Self {
            account,
            context,
            directive,
            hints,
            status,
            considered: Some(backend.clone()),
            backend,
            known: CredentialHistory::default(),
            mailboxes: Vec::new(),
            faults: MailboxFaults::default(),
            registrations: 0,
            told: 0,
            watches_since: None,
            inherited,
            failures: 0,
            retry_at: None,
            unread: 0,
            methods: MethodConfidence::default(),
            keepalive: Keepalive::default(),
            asked_for_flags: false,
            previews,
            on_demand,
            looks: 0,
            found: 0,
            asking: None,
            looked_at: Vec::new(),
            unasked: None,
            waited: None,
            may_push: false,
            elsewhere: false,
            instead: None,
        }
    }

    /// Notes that nothing is done for some time, or until something happens.
    pub(super) fn rest(&self, pause: Option<Duration>, why: &str) {
        let next_try = pause.map(|pause| Timestamp::now().plus(pause));
        self.status.set(WatcherState::BackingOff { next_try, why: why.to_owned() });
    }

    /// Notes what it does. An account on demand that is parked or in trouble shows that until it was asked for.
    pub(super) fn shows(&self, doing: WatcherState) {
        if !(self.on_demand && self.status.rests()) {
            self.status.set(doing);
        }
    }

    /// Reads which mailboxes are registered and what their devices know. Returns those that are due on disk.
    pub(super) async fn reload(
        &mut self,
        backend: &Backend,
    ) -> Result<Vec<DueMailbox>, SessionEnd> {
        let (context, account, id) = (&self.context, &self.account, backend.id());
        // Before the rows are read: a registration that comes meanwhile has them read again.
        let registrations = self.directive.read(|told| told.registrations);
        let (mut rows, due) = context.store.watched_and_due(account, id, context.alive()).await?;
        if rows.is_empty() {
            let live = context.store.live_account(account, context.alive()).await?;
            let elsewhere = live.as_ref().and_then(|live| live.elsewhere(id));
            return Err(
                elsewhere.map_or(SessionEnd::Nothing, |it| SessionEnd::Elsewhere(it.to_owned()))
            );
        }
        (self.elsewhere, self.unread) = (false, 0);
        rows.sort_by(|(one, _), (other, _)| in_order(one, other));
        let before = std::mem::take(&mut self.mailboxes).into_iter();
        let mut before: HashMap<_, _> =
            before.map(|watched| (watched.mailbox.clone(), watched)).collect();
        // Most accounts have one or two, and a list that grows has room for four.
        self.mailboxes.reserve_exact(rows.len());
        for (mailbox, told) in rows {
            // What was announced and not yet pushed is still known; the rest is as the devices know it.
            let known = before.remove(&mailbox).map(|mut watched| {
                watched.ledger.registered(told);
                watched
            });
            let new = || WatchedMailbox::new(mailbox, told, !self.on_demand);
            self.mailboxes.push(known.unwrap_or_else(new));
        }
        let Self { mailboxes, faults, .. } = self;
        faults.retain(|mailbox| mailboxes.iter().any(|watched| watched.mailbox == *mailbox));
        self.registrations = registrations;
        if let Some(previews) = &mut self.previews {
            let wanted = context.store.mailboxes_by_transport(account, context.alive()).await?;
            let carried = wanted.into_iter().filter(|(_, by)| context.carries_preview(by));
            previews.wanted = carried.map(|(mailbox, _)| mailbox).collect();
        }
        Ok(due)
    }

    /// The mailboxes at these places were looked at. Where the state of one is unknown, a registration may have
    /// brought it since the rows were read.
    pub(super) async fn read_unknown(
        &mut self,
        mut seen: impl Iterator<Item = usize>,
    ) -> Result<(), SessionEnd> {
        let is_unknown = |index: usize| self.mailboxes[index].ledger.is_unknown();
        if self.instead.is_some() || !seen.any(is_unknown) {
            return Ok(());
        }
        let (context, account, id) = (&self.context, &self.account, self.backend.id());
        // Seldom, and its future is large.
        let rows = Box::pin(context.store.watched(account, id, context.alive())).await?;
        for (mailbox, told) in rows {
            if let Some(index) = self.place(&mailbox) {
                self.mailboxes[index].ledger.registered(told);
            }
        }
        Ok(())
    }

    /// What it has taken over.
    pub(super) fn taken_over(&self) -> TakenOver {
        let CredentialHistory { logins, logins_elsewhere, logins_missed, .. } = self.known;
        let (looks, registrations) = (self.looks, self.found);
        TakenOver { logins, logins_elsewhere, logins_missed, looks, registrations }
    }

    /// After a change of the orders while connected: takes them; returns whether the list of
    /// mailboxes was read again. A user's login alone is no reason to disturb the backend.
    pub(super) async fn follow_directive(&mut self) -> Result<bool, SessionEnd> {
        self.take_directive().await;
        let wanted = self.directive.read(|told| told.registrations) != self.registrations;
        if wanted {
            let backend = self.backend.clone();
            self.reload(&backend).await?;
        }
        Ok(wanted)
    }
}

impl Watcher {
    /// Those who follow the account learn which of its mailboxes are watched, after a look.
    pub(super) fn watches(&self) {
        if self.instead.is_some() {
            return;
        }
        let watches = |mailbox: &Mailbox| {
            let watched = self.place(mailbox).map(|index| &self.mailboxes[index]);
            // A visit may have failed before it came to this one.
            watched.is_some_and(|it| self.faults.is_sound(mailbox) && !(self.on_demand && it.due))
        };
        self.context.followed.watched((&self.account, self.backend.id()), watches);
    }

    /// Takes note of what other sources say, and tells `push` what follows. Whether there is something to look
    /// at.
    pub(super) async fn hear_hints(&mut self) -> Result<bool, SessionEnd> {
        let mut due = false;
        for hint in self.hints.take() {
            match &hint.mailbox {
                Some(mailbox) => {
                    let Some(index) = self.place(mailbox) else { continue };
                    due |= self.hear_hint(index, &hint).await?;
                }
                None => {
                    for watched in &mut self.mailboxes {
                        (watched.due, watched.marked, watched.must_look) = (true, true, true);
                    }
                    due = true;
                }
            }
        }
        Ok(due)
    }

    /// The same for one hint, of this mailbox.
    pub(super) async fn hear_hint(
        &mut self,
        index: usize,
        hint: &Hint,
    ) -> Result<bool, SessionEnd> {
        let due = self.event(index, hint).await?.urgency().is_some();
        let watched = &mut self.mailboxes[index];
        watched.marked = true;
        if self.on_demand && !due {
            // What it says in full is the look.
            watched.due = watched.must_look;
        }
        Ok(due)
    }
}

/// The order in which mailboxes are looked at. INBOX first: a long list must not make new mail wait.
pub(super) fn in_order(one: &Mailbox, other: &Mailbox) -> Ordering {
    other.is_inbox().cmp(&one.is_inbox()).then_with(|| one.cmp(other))
}

impl WatchedMailbox {
    pub(super) fn new(mailbox: Mailbox, told: Snapshot, due: bool) -> Self {
        Self {
            mailbox,
            ledger: Ledger::new(told),
            due,
            looked_at: None,
            marked: false,
            marks: NodeMarks::default(),
            must_look: false,
            left_out: false,
        }
    }

    /// Whether its state is refused still, so that its mark stays.
    pub(super) fn is_left_out(&self, faults: &MailboxFaults) -> bool {
        self.left_out && !faults.is_sound(&self.mailbox)
    }

    /// What is known of it once it was looked at, without what was due.
    pub(super) fn rested(self) -> Self {
        let marks = NodeMarks::default();
        Self { due: false, marked: false, marks, must_look: false, left_out: false, ..self }
    }
}
