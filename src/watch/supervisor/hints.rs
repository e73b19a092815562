//! What other sources say of accounts: it goes to disk, and then to the watchers.

use tokio::time::Instant;

use super::Supervisor;
use super::handle::WatcherHandle;
use crate::model::{Account, Hint};
use crate::store::{Invalidation, LookedAt, NodeNews};
use crate::watch::directive::Directive;
use crate::watch::hint_writer::{HintReply, RecordedHints};
use crate::watch::hints::Hints;
use crate::watch::missed_events::MissedAt;
use crate::watch::watcher::WatcherStart;

impl Supervisor {
    /// Has what waits to be recorded written.
    pub(super) fn record(&mut self) {
        let (assignment, credentials) = (self.assignment.borrow(), &self.context.credentials);
        let is_ours = |account: &Account| assignment.is_mine(account) || credentials.holds(account);
        let is_watched = |account: &Account| self.watchers.contains_key(account);
        self.hint_writer.write(is_ours, is_watched);
    }

    /// Has hints recorded; with `reply` somebody waits for that.
    pub(super) fn write(&mut self, hints: Vec<Hint>, reply: Option<HintReply>) {
        if self.hint_writer.add(hints, reply).is_err() {
            self.missed_events(MissedAt::ThisNode);
        }
    }

    /// Hints are on disk, and go to their watchers. Who brought them gets an answer.
    pub(super) fn recorded(&mut self, mut written: RecordedHints) {
        if written.marks_left {
            self.read_all_again();
        }
        for (hint, others_know) in written.hints.drain(..) {
            self.hint(hint, others_know);
        }
        if written.answer().is_err() {
            self.missed_events(MissedAt::ThisNode);
        }
    }

    /// The task of an account that began then has looked at these. A mark of which there is word for another task stays
    /// until that has looked, and so do those of an account that is not this node's any more.
    pub(super) fn looked_at(
        &mut self,
        account: &Account,
        began: u64,
        mut looked_at: Vec<LookedAt>,
    ) {
        let task = self.watchers.get(account).filter(|handle| handle.began == began);
        let Some(task) = task else { return };
        looked_at.retain(|it| !task.hints.are_of(&it.mailbox));
        if self.hint_writer.looked_at(looked_at) {
            self.read_all_again();
        }
    }

    /// Another node has news.
    pub(super) fn node_news(&mut self, news: NodeNews) {
        match news {
            NodeNews::Invalidation(news) if !self.is_ours(&news.account) => {}
            // A connection that is held finds out by itself what the name did not tell.
            NodeNews::Invalidation(Invalidation { account, named: true, .. })
                if !self.context.is_on_demand(&account) => {}
            NodeNews::Invalidation(news) => {
                if !(news.named && self.marked_by_another_node(&news.account)) {
                    self.look_up(news.account.clone(), Some(news));
                }
            }
            // Rows follow, also of those that are not known here yet.
            NodeNews::Events(accounts) => {
                for account in &accounts {
                    if self.is_ours(account) {
                        self.marked_by_another_node(account);
                    }
                }
            }
            NodeNews::MissedEvents => self.missed_events(MissedAt::AnotherNode),
        }
    }

    /// Another node has marked mailboxes of the account as due: its watcher reads which. Returns whether the account is known
    /// here.
    fn marked_by_another_node(&mut self, account: &Account) -> bool {
        let is_watched = self.watchers.get(account).is_some_and(WatcherHandle::is_live);
        if !is_watched && self.on_demand.is_resting(account) {
            let news = Directive { registrations: 1, ..Directive::default() };
            self.start(account.clone(), news, WatcherStart::AtOnce);
        } else if let Some(handle) = self.watchers.get(account).filter(|_| is_watched) {
            handle.look_again(false);
        } else {
            return false;
        }
        if let Some(handle) = self.watchers.get(account) {
            handle.status.hint();
        }
        true
    }

    /// Events were not recorded. Connections that are held tell of the same, and accounts without one are asked for.
    pub(super) fn missed_events(&mut self, at: MissedAt) {
        if self.context.knows_on_demand() {
            self.on_demand.missed_events(Instant::now(), at);
        }
    }

    /// Another source has news of an account. Any node may receive it; with `others_know` the other ones have
    /// word of it.
    pub(super) fn hint(&mut self, hint: Hint, others_know: bool) {
        self.context.followed.hint(&hint);
        match self.watchers.get(&hint.account) {
            Some(handle) => {
                handle.status.hint();
                handle.hints.add(hint);
                handle.directive.send_modify(|_| {});
            }
            None if self.on_demand.is_resting(&hint.account) => {
                let (account, hints) = (hint.account.clone(), Hints::default());
                hints.add(hint);
                self.start_with(account.clone(), Directive::default(), WatcherStart::AtOnce, hints);
                if let Some(handle) = self.watchers.get(&account) {
                    handle.status.hint();
                }
            }
            // Another node has got it meanwhile.
            None if !others_know && !self.is_ours(&hint.account) => {
                self.write(vec![hint], None);
            }
            // Nobody has registered, or the account is being read: then what is due is read after that.
            None => {}
        }
    }

    /// Somebody follows the account, and wants all of it to be looked at. Whether anything here is about to.
    pub(super) fn look(&mut self, account: Account) -> bool {
        match self.watchers.get(&account).filter(|handle| handle.is_live()) {
            Some(handle) if handle.status.rests() => false,
            Some(handle) => {
                handle.hints.add(Hint::of_all(account));
                handle.directive.send_modify(|_| {});
                true
            }
            None if self.on_demand.is_unasked(&account) => false,
            None if self.on_demand.is_resting(&account) => {
                let hints = Hints::default();
                hints.add(Hint::of_all(account.clone()));
                self.start_with(account, Directive::default(), WatcherStart::AtOnce, hints);
                true
            }
            None => false,
        }
    }
}
