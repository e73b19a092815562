//! The watcher of one account: its connection, its looks, its failures.
//!
//! ```text
//!   Start ──login──▶ reload what was told ──▶ look (STATUS) ──▶ wait (IDLE or poll) ──┐
//!     ▲  ▲                                     ▲                                      │
//!     │  └── back-off ◀── connection lost ─────┴──────── activity, renewal, orders ◀──┘
//!     └───── new password ◀── parked ◀── login refused
//! ```

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use tokio::sync::watch;
use tokio::time::Instant;

use super::Context;
use super::connection::{Answer, Connection, Idle, Lost};
use super::snapshot::{difference, with_new_mail};
use crate::imap::args::quote;
use crate::imap::capability::Capabilities;
use crate::imap::login::has_code;
use crate::imap::mailbox;
use crate::imap::status::{Activity, activity, mailbox_status};
use crate::model::{
    Account, Change, ChangeKind, Credentials, Mailbox, Snapshot, Timestamp, WatchEvent,
};
use crate::net::backend::LoginError;
use crate::net::backoff::Backoff;
use crate::store::StoreError;

/// A connection that has lived so long makes the next failure the first one again.
const LIVED: Duration = Duration::from_secs(60);

/// Tries of a password that the backend calls wrong.
const REFUSED_TRIES: u32 = 2;

/// Tries of a password that was refused without a reason, and the pause between them: it may be the
/// backend's own trouble.
const UNEXPLAINED_TRIES: u32 = 3;
const UNEXPLAINED_PAUSE: Duration = Duration::from_secs(600);

/// What the supervisor last told a watcher.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// Counts registrations: another one means that other mailboxes may be wanted.
    pub(super) registrations: u64,
    /// What the backend last accepted.
    pub(super) credentials: Option<Credentials>,
    /// No device is left.
    pub(super) stop: bool,
}

/// One account's watcher.
#[derive(Debug)]
pub(super) struct Watcher {
    account: Account,
    context: Arc<Context>,
    orders: watch::Receiver<Orders>,
    credentials: Option<Credentials>,
    mailboxes: Vec<Watched>,
}

/// A mailbox, and what `push` was last told of it.
#[derive(Debug)]
struct Watched {
    mailbox: Mailbox,
    known: Snapshot,
    /// An announcement from untagged data that a look has yet to confirm.
    announced: Option<u64>,
}

/// Why a connection ended.
#[derive(Debug)]
enum End {
    /// The supervisor said so.
    Stop,
    /// No live registration is in the store.
    Nothing,
    /// The credentials were refused; the backend's answer behind the tag.
    Refused(Vec<u8>),
    Failed(String),
}

impl From<Lost> for End {
    fn from(lost: Lost) -> Self {
        Self::Failed(lost.to_string())
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Watcher {
    pub(super) fn new(
        account: Account,
        context: Arc<Context>,
        orders: watch::Receiver<Orders>,
    ) -> Self {
        Self { account, context, orders, credentials: None, mailboxes: Vec::new() }
    }

    /// Watches until the supervisor says stop. `parked` tells why the
    /// account's last watcher gave up, if it did.
    pub(super) async fn run(mut self, parked: Option<String>) {
        let config = &self.context.config;
        let backoff = Backoff::new(config.retry_min, config.retry_max);
        let (mut failures, mut refusals) = (0u32, 0);
        if parked.is_some() && self.wait_for_password().await.is_none() {
            return;
        }
        loop {
            // The supervisor's word counts at every step, also while waiting for a turn.
            tokio::select! {
                () = self.context.pacer.turn() => {}
                () = stopped(self.orders.clone()) => return,
            }
            let started = Instant::now();
            // Boxed: an account spends its life inside, and its parts are not all needed at once.
            let end = Box::pin(self.connection()).await;
            let lived = started.elapsed() >= LIVED;
            let account = &self.account;
            let pause = match end {
                End::Stop => return,
                // Another registration may be on its way: only the supervisor ends a watcher.
                End::Nothing => Duration::MAX,
                End::Refused(answer) => {
                    refusals += 1;
                    let told = told_wrong(&answer);
                    let (tries, pause) = match told {
                        true => (REFUSED_TRIES, backoff.wait(refusals, rand::random())),
                        false => (UNEXPLAINED_TRIES, UNEXPLAINED_PAUSE),
                    };
                    if refusals >= tries {
                        (failures, refusals) = (0, 0);
                        if self.park(&answer).await.is_none() {
                            return;
                        }
                        continue;
                    }
                    tracing::warn!(%account, ?pause, "the backend refused the stored password");
                    pause
                }
                End::Failed(why) => {
                    failures = if lived { 1 } else { failures.saturating_add(1) };
                    refusals = 0;
                    let pause = backoff.wait(failures, rand::random());
                    tracing::info!(%account, why, ?pause, "watching is interrupted");
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.orders.changed() => {
                    if changed.is_err() || self.orders.borrow().stop {
                        return;
                    }
                    self.take_orders().await;
                }
            }
        }
    }

    /// Waits, the password being wrong, until its user has logged in with another. `None` on stop.
    async fn park(&mut self, answer: &[u8]) -> Option<()> {
        let reason = crate::imap::login::printable(answer);
        let account = &self.account;
        tracing::warn!(%account, reason, "not watched until its user logs in again");
        if let Err(error) = self.context.store.park(account, &reason, Timestamp::now()).await {
            tracing::warn!(%account, %error, "that the account is parked could not be stored");
        }
        self.wait_for_password().await
    }

    async fn wait_for_password(&mut self) -> Option<()> {
        let refused = self.credentials.take();
        loop {
            self.orders.changed().await.ok()?;
            let orders = self.orders.borrow().clone();
            if orders.stop {
                return None;
            }
            // Even the same password counts: the backend has just accepted it.
            if orders.credentials.is_some() {
                self.credentials = refused;
                self.take_orders().await;
                tracing::info!(account = %self.account, "its user logged in: watched again");
                return Some(());
            }
        }
    }

    /// Takes over what the supervisor told; keeps a new password.
    async fn take_orders(&mut self) {
        let Some(fresh) = self.orders.borrow_and_update().credentials.clone() else { return };
        if self.credentials.as_ref().is_some_and(|known| known.same_as(&fresh)) {
            return;
        }
        let sealed = self.context.vault.seal(&fresh);
        let store = &self.context.store;
        if let Err(error) = store.save_credentials(&self.account, &sealed).await {
            tracing::warn!(account = %self.account, %error, "a new password could not be stored");
        }
        self.credentials = Some(fresh);
    }

    /// One connection from login to its end.
    async fn connection(&mut self) -> End {
        let (mut connection, granted) = match self.log_in().await {
            Ok(logged_in) => logged_in,
            Err(end) => return end,
        };
        let Err(end) = self.watch(&mut connection, granted).await;
        if matches!(end, End::Stop | End::Nothing) {
            connection.log_out().await;
        }
        end
    }

    async fn watch(
        &mut self,
        connection: &mut Connection,
        mut granted: Option<Capabilities>,
    ) -> Result<Infallible, End> {
        if granted.is_none() {
            connection
                .command("CAPABILITY", |line| {
                    granted = Capabilities::in_response(line).or(granted.take());
                })
                .await?;
        }
        let granted = granted.unwrap_or_default();
        let items = match granted.has("CONDSTORE") || granted.has("QRESYNC") {
            true => "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)",
            false => "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN)",
        };
        let mut idles = granted.has("IDLE") && self.examine(connection).await?;
        let mailboxes = self.mailboxes.len();
        tracing::debug!(account = %self.account, idles, mailboxes, "watching");
        let mut wanted = Look::All;
        let mut next_poll = Instant::now();
        loop {
            self.look(connection, items, wanted).await?;
            if wanted == Look::All {
                next_poll = Instant::now() + self.context.config.poll_interval;
            }
            wanted = match idles {
                true => match self.idle(connection, next_poll).await? {
                    Some(look) => look,
                    None => {
                        tracing::warn!(account = %self.account, "the backend refuses IDLE: polled");
                        idles = false;
                        Look::All
                    }
                },
                false => self.pause(connection, next_poll).await?,
            };
        }
    }

    /// Reads which mailboxes are registered and what their devices were told.
    async fn reload(&mut self) -> Result<(), End> {
        let context = &self.context;
        let since = Timestamp::now().minus(context.registration_ttl);
        let rows = context.store.watched(&self.account, since).await?;
        if rows.is_empty() {
            return Err(End::Nothing);
        }
        let mut before = std::mem::take(&mut self.mailboxes);
        for (mailbox, told) in rows {
            // What was announced and not yet told is still known; the rest is as it was told.
            let known = before.iter().position(|watched| watched.mailbox == mailbox);
            self.mailboxes.push(match known {
                Some(index) => before.swap_remove(index),
                None => Watched { mailbox, known: told, announced: None },
            });
        }
        Ok(())
    }

    async fn log_in(&mut self) -> Result<(Connection, Option<Capabilities>), End> {
        // After a break nothing counts but what the devices were told.
        self.mailboxes.clear();
        self.reload().await?;
        let credentials = match &self.credentials {
            Some(credentials) => credentials.clone(),
            None => self.stored_credentials().await?,
        };
        let context = &self.context;
        let config = &context.config;
        let result = context
            .backend
            .log_in(credentials.clone(), config.answer_timeout, context.response_size)
            .await;
        match result {
            Ok(logged_in) => {
                self.credentials = Some(credentials);
                let connection = Connection::new(
                    logged_in.stream,
                    logged_in.input,
                    config.answer_timeout,
                    context.response_size,
                );
                Ok((connection, logged_in.capabilities))
            }
            Err(LoginError::Refused { answer }) if !is_temporary(&answer) => {
                Err(End::Refused(answer))
            }
            Err(error) => Err(End::Failed(error.to_string())),
        }
    }

    async fn stored_credentials(&mut self) -> Result<Credentials, End> {
        if let Some(credentials) = self.orders.borrow().credentials.clone() {
            return Ok(credentials);
        }
        let Some(sealed) = self.context.store.credentials(&self.account).await? else {
            return Err(End::Refused(b" NO no password is stored".to_vec()));
        };
        self.context.vault.unseal(&self.account, &sealed).map_err(|error| {
            tracing::error!(account = %self.account, %error, "the stored password is unusable");
            End::Failed(error.to_string())
        })
    }

    /// Opens INBOX for IDLE, without touching \Recent; false if there is nothing to be had so.
    async fn examine(&mut self, connection: &mut Connection) -> Result<bool, End> {
        if !self.mailboxes.iter().any(|watched| watched.mailbox.is_inbox()) {
            return Ok(false);
        }
        Ok(connection.command("EXAMINE INBOX", |_| {}).await? == Answer::Ok)
    }

    /// Takes snapshots, and tells `push` of what differs.
    async fn look(
        &mut self,
        connection: &mut Connection,
        items: &str,
        wanted: Look,
    ) -> Result<(), End> {
        for index in 0..self.mailboxes.len() {
            let mailbox = self.mailboxes[index].mailbox.clone();
            if !wanted.includes(&mailbox) {
                continue;
            }
            // Modified UTF-7 is printable ASCII, which can always be quoted.
            let Some(name) = quote(mailbox::encode(&mailbox).as_bytes()) else { continue };
            let command = format!("STATUS {} {items}", String::from_utf8_lossy(&name));
            let mut now = None;
            let answer = connection
                .command(&command, |line| {
                    if let Some((_, snapshot)) = mailbox_status(line) {
                        now = Some(snapshot);
                    }
                })
                .await?;
            match now {
                Some(now) if answer == Answer::Ok => self.compare(index, now).await?,
                // Deleted or renamed, it may come back; its devices will register again.
                _ => tracing::debug!(account = %self.account, %mailbox, "has no STATUS"),
            }
        }
        Ok(())
    }

    async fn compare(&mut self, index: usize, now: Snapshot) -> Result<(), End> {
        let context = Arc::clone(&self.context);
        let watched = &mut self.mailboxes[index];
        let event = match (difference(&watched.known, &now), watched.announced.take()) {
            (Some(kind), _) => {
                tracing::debug!(account = %self.account, mailbox = %watched.mailbox, ?kind, "changed");
                WatchEvent::Changed(Change {
                    account: self.account.clone(),
                    mailbox: watched.mailbox.clone(),
                    kind,
                    id: context.next_id(),
                    snapshot: Some(now),
                    seen_at: StdInstant::now(),
                })
            }
            (None, Some(id)) => WatchEvent::Confirmed {
                account: self.account.clone(),
                mailbox: watched.mailbox.clone(),
                id,
                snapshot: now,
            },
            (None, None) => {
                watched.known = now;
                return Ok(());
            }
        };
        watched.known = now;
        context.events.send(event).await.map_err(|_| End::Stop)
    }

    /// Waits in IDLE until there is something to look at; `None` if the backend refuses IDLE.
    async fn idle(
        &mut self,
        connection: &mut Connection,
        next_poll: Instant,
    ) -> Result<Option<Look>, End> {
        let config = &self.context.config;
        let renewal = Instant::now() + config.idle_renewal;
        let others = self.mailboxes.iter().any(|watched| !watched.mailbox.is_inbox());
        let deadline = if others { renewal.min(next_poll) } else { renewal };
        let mut news = News::default();
        let (idle, tag) = connection.idle(|line| news.read(line)).await?;
        if idle == Idle::Refused {
            return Ok(None);
        }
        let mut wanted = None;
        let mut look_at = deadline;
        loop {
            if let Some(exists) = news.exists.take()
                && self.announce(exists).await?
            {
                wanted = Some(Look::Inbox);
                break;
            }
            if std::mem::take(&mut news.other) {
                wanted = Some(Look::Inbox);
                look_at = look_at.min(Instant::now() + self.context.config.settle);
            }
            tokio::select! {
                response = connection.response() => news.read(&response?),
                () = tokio::time::sleep_until(look_at) => break,
                changed = self.orders.changed() => {
                    if changed.is_err() || self.orders.borrow().stop {
                        return Err(End::Stop);
                    }
                    self.take_orders().await;
                    self.reload().await?;
                    wanted = Some(Look::All);
                    break;
                }
            }
        }
        connection.done(&tag, |line| news.read(line)).await?;
        if let Some(exists) = news.exists.take() {
            self.announce(exists).await?;
        }
        // Once in a while everything is looked at, whatever was or was not told.
        Ok(Some(match wanted {
            Some(look) if Instant::now() < deadline => look,
            _ => Look::All,
        }))
    }

    /// EXISTS was told for INBOX: new mail is announced before it has been looked at. Returns
    /// whether it is new mail.
    async fn announce(&mut self, exists: u64) -> Result<bool, End> {
        let context = Arc::clone(&self.context);
        let Some(inbox) = self.mailboxes.iter_mut().find(|watched| watched.mailbox.is_inbox())
        else {
            return Ok(false);
        };
        let Some(arrived) = inbox.known.messages.and_then(|known| exists.checked_sub(known)) else {
            return Ok(true);
        };
        if arrived == 0 {
            return Ok(true);
        }
        inbox.known = with_new_mail(&inbox.known, arrived);
        let id = context.next_id();
        inbox.announced = Some(id);
        let change = Change {
            account: self.account.clone(),
            mailbox: inbox.mailbox.clone(),
            kind: ChangeKind::NewMail,
            id,
            snapshot: None,
            seen_at: StdInstant::now(),
        };
        context.events.send(WatchEvent::Changed(change)).await.map_err(|_| End::Stop)?;
        Ok(true)
    }

    /// Waits, without IDLE, for the next look.
    async fn pause(
        &mut self,
        connection: &mut Connection,
        next_poll: Instant,
    ) -> Result<Look, End> {
        loop {
            tokio::select! {
                // Untagged data between two looks tells nothing that the look will not; BYE does.
                response = connection.response() => { response?; }
                () = tokio::time::sleep_until(next_poll) => break,
                changed = self.orders.changed() => {
                    if changed.is_err() || self.orders.borrow().stop {
                        return Err(End::Stop);
                    }
                    self.take_orders().await;
                    self.reload().await?;
                    break;
                }
            }
        }
        Ok(Look::All)
    }
}

/// Which mailboxes to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    All,
    Inbox,
}

impl Look {
    fn includes(self, mailbox: &Mailbox) -> bool {
        match self {
            Self::All => true,
            Self::Inbox => mailbox.is_inbox(),
        }
    }
}

/// What untagged data said since it was last asked.
#[derive(Debug, Default)]
struct News {
    exists: Option<u64>,
    other: bool,
}

impl News {
    fn read(&mut self, line: &[u8]) {
        match activity(line) {
            Some(Activity::Exists(count)) => self.exists = Some(count),
            Some(Activity::Other) => self.other = true,
            None => {}
        }
    }
}

async fn stopped(mut orders: watch::Receiver<Orders>) {
    // A supervisor that is gone is the end, too.
    let _ = orders.wait_for(|orders| orders.stop).await;
}

/// The refusal says that it will pass (RFC 5530).
fn is_temporary(answer: &[u8]) -> bool {
    ["UNAVAILABLE", "LIMIT", "INUSE", "SERVERBUG", "OVERQUOTA"]
        .iter()
        .any(|code| has_code(answer, code))
}

/// The refusal says that the credentials are wrong (RFC 5530).
fn told_wrong(answer: &[u8]) -> bool {
    ["AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "EXPIRED", "PRIVACYREQUIRED", "CONTACTADMIN"]
        .iter()
        .any(|code| has_code(answer, code))
}
