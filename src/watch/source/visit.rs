//! An account on demand: it has no connection. When a mailbox is due, a short one asks for its state: login,
//! STATUS, logout. What a hint tells in full needs none.

use std::time::Duration;

use tokio::time::sleep;

use super::imap::connection::ImapConnection;
use super::imap::health::BackendHealth;
use super::imap::session::{ImapSession, RefreshReason};
use crate::imap::capability::Capabilities;
use crate::model::{Mailbox, Snapshot, Timestamp};
use crate::net::backend::Backend;
use crate::watch::status::{WatchMode, WatcherState};
use crate::watch::watcher::{NextStep, SessionEnd, Watcher, stopped};

/// What is due within this time is asked for together.
const MERGED: Duration = Duration::from_secs(1);

/// For so long what was told is remembered after a hint, so that those that follow are compared with it.
const LINGERS: Duration = Duration::from_secs(10);

impl Watcher {
    /// Tells `push` what can be told without the backend, and finds what is due. Whether anything is.
    pub(in crate::watch) async fn find_due(
        &mut self,
        backend: &Backend,
    ) -> Result<bool, SessionEnd> {
        self.status.set(WatcherState::Watching(WatchMode::OnDemand));
        self.backend = backend.clone();
        self.take_directive().await;
        self.reload(backend).await?;
        let marked = self.context.store.due(&self.account).await?;
        let looks = self.directive.borrow().looks;
        let all = std::mem::replace(&mut self.looks, looks) != looks;
        for watched in &mut self.mailboxes {
            let unknown = *watched.ledger.known() == Snapshot::default();
            watched.due |= all || unknown || marked.contains(&watched.mailbox);
        }
        self.lingers = self.hear_hints_on_demand().await?;
        if !self.is_due() {
            return Ok(false);
        }
        tokio::select! {
            () = sleep(MERGED) => {}
            () = stopped(self.directive.clone()) => return Err(SessionEnd::Stop),
        }
        self.lingers |= self.hear_hints_on_demand().await?;
        Ok(self.is_due())
    }

    fn is_due(&self) -> bool {
        self.mailboxes.iter().any(|watched| watched.due)
    }

    /// Hears hints. Where one tells a state in full it is the look. Whether there were any.
    async fn hear_hints_on_demand(&mut self) -> Result<bool, SessionEnd> {
        let now = Timestamp::now();
        let heard = self.hear_hints().await?;
        let looked_at = heard.in_full.iter().map(|index| &self.mailboxes[*index]);
        let looked_at = looked_at.filter(|watched| !watched.due);
        let looked_at: Vec<_> = looked_at.map(|watched| watched.mailbox.clone()).collect();
        self.context.store.looked_at(&self.account, &looked_at, now).await?;
        Ok(heard.any)
    }

    /// Asks for what is due.
    pub(in crate::watch) async fn visit(
        &mut self,
        connection: &mut ImapConnection,
        health: &BackendHealth,
        granted: Option<Capabilities>,
    ) -> SessionEnd {
        match self.ask_for_due(connection, health, granted).await {
            Ok(()) => SessionEnd::Visited,
            Err(end) => end,
        }
    }

    async fn ask_for_due(
        &mut self,
        connection: &mut ImapConnection,
        health: &BackendHealth,
        granted: Option<Capabilities>,
    ) -> Result<(), SessionEnd> {
        let granted = connection.capabilities(granted).await?;
        let mut session = ImapSession::new(connection, health, &granted);
        let due = self.mailboxes.iter().filter(|watched| watched.due);
        let due: Vec<Mailbox> = due.map(|watched| watched.mailbox.clone()).collect();
        let now = Timestamp::now();
        self.status.set(WatcherState::Watching(WatchMode::OnDemand));
        self.previews_on(true);
        self.refresh(&mut session, RefreshReason::All).await?;
        self.context.store.looked_at(&self.account, &due, now).await?;
        self.fetch_previews(&mut session).await
    }

    /// What comes after a visit, or where none was needed.
    pub(in crate::watch) fn visited(&mut self) -> NextStep {
        self.failures = 0;
        self.status.set(WatcherState::Watching(WatchMode::OnDemand));
        NextStep::Rest(if self.lingers { LINGERS } else { Duration::ZERO })
    }

    /// Waits for something to do; false when nothing came within this time, or on stop.
    pub(in crate::watch) async fn linger(&mut self, time: Duration) -> bool {
        tokio::select! {
            biased;
            changed = self.directive.changed() => changed.is_ok() && !self.directive.borrow().stop,
            () = sleep(time) => false,
        }
    }
}
