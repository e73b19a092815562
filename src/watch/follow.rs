//! Mailboxes that somebody follows for a while, as their own user: the streams of the API do.
//!
//! ```text
//!   follow ──▶ Followed: an account, by one proof ──▶ one connection: EXAMINE, IDLE, NOTIFY, STATUS
//!                  │ compares each look with what each follower was told
//!                  ▼
//!              FollowEvent ──▶ its followers
//! ```
//!
//! Followers of one account who have proved themselves by the same credentials share a connection, which the
//! backend lets see what it lets that user see. It is none of the supervisor's: nothing of it is on disk, nobody
//! is pushed for it, and it ends with its last follower. The credentials are proved anew now and then.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as StdInstant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::WatchContext;
use super::hints::Hints;
use super::ledger::Consequence;
use super::snapshot::difference;
use super::source::imap::connection::ImapConnection;
use super::source::imap::health::ConnectionSlot;
use super::status::{StatusCell, WatcherState};
use super::watcher::{Directive, InsteadOfPush, SessionEnd, WatchedMailbox, Watcher, in_order};
use crate::imap::refusal::Refusal;
use crate::imap::responses::printable;
use crate::metrics::{Held, Metrics};
use crate::model::{
    Account, BackendId, ChangeKind, Credentials, FollowRequest, Hint, Mailbox, MailboxEvent,
    MailboxToFollow, Snapshot,
};
use crate::net::backend::{Backend, LoggedIn, LoginError};
use crate::net::backoff::Backoff;

/// From a login to the next one, which proves that the credentials still count; less up to a tenth.
const PROOF: Duration = Duration::from_hours(1);

/// Has mailboxes followed. Clones have the same followers.
#[derive(Clone, Debug)]
pub struct Followers(Arc<FollowersInner>);

#[derive(Debug)]
struct FollowersInner {
    context: Arc<WatchContext>,
    /// They are no watchers of the supervisor, and not counted as such.
    uncounted: Arc<Metrics>,
    followed: Mutex<HashMap<Account, Vec<Arc<Followed>>>>,
    last_number: AtomicU64,
    tasks: TaskTracker,
}

/// What a follower hears.
#[derive(Clone, Copy, Debug)]
pub enum FollowEvent<'a> {
    /// A mailbox has this state now.
    State {
        /// Which one.
        mailbox: &'a Mailbox,
        /// What has happened; `None` where it is nothing that a device must know.
        kind: Option<ChangeKind>,
        /// All that is known of it.
        state: Snapshot,
    },
    /// The credentials prove nothing any more, and nothing else comes.
    Refused,
}

/// Takes what a follower hears. It must not wait, nor ask for anything of the [`Followers`].
#[derive(Clone)]
pub struct FollowListener(Arc<dyn Fn(FollowEvent<'_>) + Send + Sync>);

/// Mailboxes are followed while this lives.
#[derive(Debug)]
pub struct FollowGuard {
    followers: Followers,
    followed: Arc<Followed>,
    number: u64,
}

/// An account that is followed by one proof.
#[derive(Debug)]
struct Followed {
    account: Account,
    backend: BackendId,
    credentials: Credentials,
    followers: Mutex<Vec<Follower>>,
    /// A mailbox is wanted that the connection does not watch.
    more: Notify,
    hints: Hints,
    directive: watch::Sender<Directive>,
    /// Cancelled when the last follower has gone.
    left: CancellationToken,
}

#[derive(Debug)]
struct Follower {
    number: u64,
    mailboxes: Vec<FollowedMailbox>,
    hears: FollowListener,
}

/// A mailbox, and what its follower was told.
#[derive(Debug)]
struct FollowedMailbox {
    mailbox: Mailbox,
    told: Snapshot,
    /// New mail was announced, and no look has shown it yet.
    announced: bool,
}

/// Why a connection ended, or never was.
enum FollowedEnd {
    /// Nobody follows any more.
    Left,
    /// Another one is wanted at once.
    Anew,
    /// The backend's answer, or why the proof is none any more.
    Refused(String),
    Failed(String),
}

impl FollowListener {
    /// Calls `hears` with each event, while locks are held.
    pub fn new(hears: impl Fn(FollowEvent<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hears))
    }
}

impl fmt::Debug for FollowListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FollowListener").finish_non_exhaustive()
    }
}

// === impl Followers ===

impl Followers {
    /// Nobody follows anything yet. `context` is what watchers share.
    pub fn new(context: Arc<WatchContext>) -> Self {
        Self(Arc::new(FollowersInner {
            context,
            uncounted: Arc::default(),
            followed: Mutex::default(),
            last_number: AtomicU64::new(0),
            tasks: TaskTracker::new(),
        }))
    }

    /// Tells `hears` what differs from what the follower knows, before this returns, and then of what happens,
    /// until the guard is dropped or the backend refuses the credentials. Where the backend is away, a follower
    /// hears of what happens meanwhile when it is back.
    pub fn follow(&self, request: FollowRequest, hears: FollowListener) -> FollowGuard {
        let FollowRequest { account, backend, credentials, mailboxes } = request;
        let number = self.0.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let mailboxes = mailboxes.into_iter().map(|wanted| FollowedMailbox::new(wanted, &hears));
        let follower = Follower { number, mailboxes: mailboxes.collect(), hears };
        let mut all = self.0.followed.lock();
        let of_account = all.entry(account.clone()).or_default();
        let known = of_account.iter().find(|followed| {
            followed.credentials.same_as(&credentials) && followed.backend.is(backend.as_str())
        });
        let followed = match known {
            Some(followed) => {
                followed.join(follower);
                Arc::clone(followed)
            }
            None => {
                let followed = Arc::new(Followed {
                    account,
                    backend,
                    credentials,
                    followers: Mutex::new(vec![follower]),
                    more: Notify::new(),
                    hints: Hints::default(),
                    directive: watch::Sender::default(),
                    left: CancellationToken::new(),
                });
                of_account.push(Arc::clone(&followed));
                let (followers, following) = (self.clone(), Arc::clone(&followed));
                self.0.tasks.spawn(async move { following.run(&followers).await });
                followed
            }
        };
        FollowGuard { followers: self.clone(), followed, number }
    }

    /// Waits for `stop`, and then until all connections have ended.
    pub async fn run(self, stop: CancellationToken) {
        stop.cancelled().await;
        let all = std::mem::take(&mut *self.0.followed.lock());
        all.into_values().flatten().for_each(|followed| followed.left.cancel());
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Drop for FollowGuard {
    fn drop(&mut self) {
        let Self { followers, followed, number } = self;
        // Nobody joins meanwhile.
        let mut all = followers.0.followed.lock();
        let mut left = followed.followers.lock();
        left.retain(|follower| follower.number != *number);
        if left.is_empty() {
            forget(&mut all, followed);
            followed.left.cancel();
        }
    }
}

// === impl Followed ===

impl Followed {
    /// One more follows.
    fn join(&self, follower: Follower) {
        let mut followers = self.followers.lock();
        let watched = |mailbox: &Mailbox| followers.iter().any(|other| other.wants(mailbox));
        let more = !follower.mailboxes.iter().all(|wanted| watched(&wanted.mailbox));
        followers.push(follower);
        drop(followers);
        if more {
            self.more.notify_one();
        } else {
            // The others may have been told what this one does not know.
            self.look();
        }
    }

    /// Has all mailboxes looked at.
    fn look(&self) {
        self.hints.add(Hint {
            account: self.account.clone(),
            mailbox: None,
            event: MailboxEvent::FlagsSet,
            state: Snapshot::default(),
            seen_at: StdInstant::now(),
        });
        self.directive.send_modify(|_| {});
    }

    /// Takes what follows for a mailbox that is known to have this state.
    fn hear(&self, mailbox: &Mailbox, follows: Consequence, known: &Snapshot) {
        for Follower { mailboxes, hears, .. } in &mut *self.followers.lock() {
            let followed = mailboxes.iter_mut().find(|followed| followed.mailbox == *mailbox);
            let Some(followed) = followed else { continue };
            if let Some((kind, state)) = followed.hear(follows, known) {
                (hears.0)(FollowEvent::State { mailbox, kind, state });
            }
        }
    }

    /// All mailboxes that are followed, as their followers know them.
    fn wanted(&self) -> Vec<WatchedMailbox> {
        let followers = self.followers.lock();
        let all = followers.iter().flat_map(|follower| &follower.mailboxes);
        let mut all: Vec<_> = all.map(|it| (it.mailbox.clone(), it.told)).collect();
        drop(followers);
        all.sort_by(|(one, _), (other, _)| in_order(one, other));
        all.dedup_by(|(one, _), (other, _)| one == other);
        all.into_iter().map(|(mailbox, told)| WatchedMailbox::new(mailbox, told, true)).collect()
    }

    async fn run(self: Arc<Self>, followers: &Followers) {
        let FollowersInner { context, uncounted, .. } = &*followers.0;
        let _counted = Held::new(&context.metrics.stream_connections);
        let status = StatusCell::new(uncounted, WatcherState::Starting);
        let (account, hints) = (self.account.clone(), self.hints.clone());
        let directive = self.directive.subscribe();
        let mut watcher = Watcher::new(account, Arc::clone(context), directive, hints, status);
        let hears = Arc::clone(&self);
        watcher.instead = Some(InsteadOfPush(Arc::new(move |mailbox, follows, known| {
            hears.hear(mailbox, follows, known);
        })));
        (watcher.on_demand, watcher.previews) = (false, None);
        let backoff = Backoff::new(context.config.retry_min, context.config.retry_max);
        let mut failures = 0;
        loop {
            let began = tokio::time::Instant::now();
            let account = &self.account;
            match Box::pin(self.connection(context, &mut watcher)).await {
                FollowedEnd::Left => return,
                FollowedEnd::Anew => failures = 0,
                FollowedEnd::Refused(why) => {
                    tracing::info!(
                        target: "mailchime::watch::stream_refused",
                        %account, why,
                        "what a user opened streams with does not count any more; mailchime ends these \
                         streams"
                    );
                    forget(&mut followers.0.followed.lock(), &self);
                    for Follower { hears, .. } in &*self.followers.lock() {
                        (hears.0)(FollowEvent::Refused);
                    }
                    return;
                }
                FollowedEnd::Failed(why) => {
                    failures = if began.elapsed() < PROOF / 10 { failures + 1 } else { 1 };
                    let wait = backoff.wait(failures, rand::random());
                    tracing::info!(
                        target: "mailchime::watch::stream_interrupted",
                        %account, why, ?wait,
                        "the connection for a user's streams ended; mailchime connects again, and the \
                         streams hear then what has changed"
                    );
                    let waited = tokio::time::sleep(wait);
                    if self.left.run_until_cancelled(waited).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// One connection from login to its end.
    async fn connection(&self, context: &WatchContext, watcher: &mut Watcher) -> FollowedEnd {
        let backend = match context.backends.of(&self.account) {
            Ok(backend) if backend.id().is(self.backend.as_str()) => backend,
            _ => return FollowedEnd::Refused("the account has another backend now".to_owned()),
        };
        let logging_in = self.left.run_until_cancelled(self.log_in(context, &backend)).await;
        let (mut logged_in, _place) = match logging_in {
            None => return FollowedEnd::Left,
            Some(Ok(logged_in)) => logged_in,
            Some(Err(LoginError::Refused { answer, refusal })) if refusal != Refusal::Temporary => {
                return FollowedEnd::Refused(printable(&answer));
            }
            Some(Err(error)) => return FollowedEnd::Failed(error.to_string()),
        };
        let granted = logged_in.capabilities.take();
        let (timeout, longest) = (context.config.answer_timeout, context.response_size);
        let mut connection = ImapConnection::new(logged_in, timeout, longest);
        let health = context.backend_health.of(&backend);
        // All mailboxes are looked at, and compared with what their followers know.
        self.hints.take();
        watcher.mailboxes = self.wanted();
        watcher.faults.forget_refusals();
        watcher.keepalive.begin(&health.keepalive, rand::random());
        watcher.watches_since = None;
        let proof = PROOF.mul_f64(1.0 - rand::random::<f64>() / 10.0);
        let (end, orderly) = tokio::select! {
            Err(end) = watcher.run_session(&mut connection, &health, granted) => match end {
                SessionEnd::Failed(why) => (FollowedEnd::Failed(why), false),
                end => (FollowedEnd::Failed(format!("{end:?}")), true),
            },
            () = self.left.cancelled() => (FollowedEnd::Left, true),
            () = self.more.notified() => (FollowedEnd::Anew, true),
            () = health.wanted() => (FollowedEnd::Anew, true),
            () = tokio::time::sleep(proof) => (FollowedEnd::Anew, true),
            () = context.backends.moved(Some(&self.account), &backend) => (FollowedEnd::Anew, true),
        };
        if orderly {
            Box::pin(connection.log_out()).await;
        } else {
            watcher.learn_from(&connection, &health);
        }
        end
    }

    async fn log_in(
        &self,
        context: &WatchContext,
        backend: &Backend,
    ) -> Result<(LoggedIn, ConnectionSlot), LoginError> {
        let health = context.backend_health.of(backend);
        let (place, _turn) = health.turn(true).await;
        let (timeout, longest) = (context.config.answer_timeout, context.response_size);
        let credentials = self.credentials.clone();
        let logging_in =
            context.backends.log_in(backend, &self.account, credentials, timeout, longest);
        Ok((logging_in.await?, place))
    }
}

impl Follower {
    fn wants(&self, mailbox: &Mailbox) -> bool {
        self.mailboxes.iter().any(|wanted| wanted.mailbox == *mailbox)
    }
}

impl FollowedMailbox {
    /// Tells at once what differs.
    fn new(wanted: MailboxToFollow, hears: &FollowListener) -> Self {
        let MailboxToFollow { mailbox, told, now } = wanted;
        let told = told.unwrap_or(now);
        let mut followed = Self { mailbox: mailbox.clone(), told, announced: false };
        // Of one that could not be asked for its state the first look tells.
        if now != Snapshot::default()
            && let Some((kind, state)) = followed.hear(Consequence::Nothing, &now)
        {
            (hears.0)(FollowEvent::State { mailbox: &mailbox, kind, state });
        }
        followed
    }

    /// What its follower is to hear.
    fn hear(
        &mut self,
        follows: Consequence,
        known: &Snapshot,
    ) -> Option<(Option<ChangeKind>, Snapshot)> {
        let (kind, state) = match follows {
            Consequence::Announced { .. } => {
                self.announced = true;
                return None;
            }
            // A look follows.
            Consequence::LookDue(_) => return None,
            Consequence::Changed { kind, state, .. } => (Some(kind), state),
            Consequence::Rebased { state, .. } => (None, state),
            Consequence::Nothing if self.announced => return None,
            Consequence::Nothing => (None, *known),
        };
        let announced = std::mem::take(&mut self.announced).then_some(ChangeKind::NewMail);
        if state == self.told {
            return None;
        }
        let kind = kind.max(announced).max(difference(&self.told, &state));
        self.told = state;
        Some((kind, state))
    }
}

/// Nobody joins this one any more.
fn forget(all: &mut HashMap<Account, Vec<Arc<Followed>>>, followed: &Arc<Followed>) {
    if let Some(of_account) = all.get_mut(&followed.account) {
        of_account.retain(|other| !Arc::ptr_eq(other, followed));
        if of_account.is_empty() {
            all.remove(&followed.account);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(next: u64, messages: u64, unseen: u64) -> Snapshot {
        Snapshot {
            uid_validity: Some(7),
            uid_next: Some(next),
            messages: Some(messages),
            unseen: Some(unseen),
            highest_mod_seq: None,
        }
    }

    fn followed(told: Option<Snapshot>, now: Snapshot) -> (FollowedMailbox, Vec<String>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = FollowListener::new({
            let heard = Arc::clone(&heard);
            move |event| heard.lock().push(format!("{event:?}"))
        });
        let wanted = MailboxToFollow { mailbox: Mailbox::inbox(), told, now };
        let followed = FollowedMailbox::new(wanted, &hears);
        let heard = heard.lock().clone();
        (followed, heard)
    }

    #[test]
    fn a_follower_hears_at_once_what_differs_from_what_it_knows() {
        let now = state(11, 6, 3);
        assert!(followed(None, now).1.is_empty());
        assert!(followed(Some(now), now).1.is_empty());
        let (_, heard) = followed(Some(state(10, 5, 2)), now);
        assert!(heard.len() == 1 && heard[0].contains("NewMail"), "{heard:?}");
        let (_, heard) = followed(Some(state(11, 6, 4)), now);
        assert!(heard.len() == 1 && heard[0].contains("Quiet"), "{heard:?}");
        // What could not be asked for is compared with the first look.
        let (mut later, heard) = followed(Some(state(10, 5, 2)), Snapshot::default());
        assert!(heard.is_empty());
        let looked = later.hear(Consequence::Nothing, &now);
        assert_eq!(looked, Some((Some(ChangeKind::NewMail), now)));
    }

    #[test]
    fn each_follower_hears_a_state_once_whatever_the_others_know() {
        let (mut first, mut second) =
            (followed(None, state(10, 5, 2)).0, followed(None, state(11, 6, 3)).0);
        let changed =
            Consequence::Changed { kind: ChangeKind::NewMail, id: 1, state: state(11, 6, 3) };
        let heard = first.hear(changed, &state(11, 6, 3));
        assert_eq!(heard, Some((Some(ChangeKind::NewMail), state(11, 6, 3))));
        assert_eq!(second.hear(changed, &state(11, 6, 3)), None, "it knew that");
        // One that joined with an older state hears of it at the next look, which is no news to the first.
        let (mut late, _) = followed(None, state(10, 5, 2));
        assert_eq!(first.hear(Consequence::Nothing, &state(11, 6, 3)), None);
        assert!(late.hear(Consequence::Nothing, &state(11, 6, 3)).is_some());
    }

    #[test]
    fn new_mail_that_was_announced_is_told_with_its_numbers() {
        let (mut followed, _) = followed(None, state(10, 5, 2));
        assert_eq!(followed.hear(Consequence::Announced { id: 1 }, &state(11, 6, 3)), None);
        assert_eq!(followed.hear(Consequence::Nothing, &state(11, 6, 3)), None, "not looked at");
        let rebased = Consequence::Rebased { id: 1, state: state(11, 6, 2) };
        let heard = followed.hear(rebased, &state(11, 6, 2));
        assert_eq!(heard, Some((Some(ChangeKind::NewMail), state(11, 6, 2))));
        let keyword = Snapshot { highest_mod_seq: Some(4), ..state(11, 6, 2) };
        let rebased = Consequence::Rebased { id: 2, state: keyword };
        assert_eq!(followed.hear(rebased, &keyword), Some((None, keyword)));
    }
}
