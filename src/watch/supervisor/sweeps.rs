//! Sweeps: what is due is read, what is not is marked, and both is asked for.

use std::sync::Arc;

use super::{ReplyKind, StoreReply, Supervisor};
use crate::model::Account;
use crate::watch::directive::Directive;
use crate::watch::due_accounts::{self, DueAccounts};
use crate::watch::on_demand::Sweep;
use crate::watch::watcher::WatcherStart;

impl Supervisor {
    /// Finds what is due, of accounts that are known by now: an event that comes meanwhile has its task begin.
    pub(super) fn find_due(&mut self, moment: u64, sweep: Sweep, accounts: Vec<Account>) {
        let (context, assignment) = (Arc::clone(&self.context), self.assignment.borrow().clone());
        self.asked.spawn(async move {
            let due = due_accounts::due(&context, &assignment, accounts, sweep).await;
            StoreReply { moment, what: ReplyKind::Due { sweep, due } }
        });
    }

    /// These are due. Without a sweep, a task that is there to look at all of the account does so, or has since: what comes
    /// meanwhile it hears of.
    pub(super) fn found_due(&mut self, moment: u64, sweep: Sweep, mut due: DueAccounts) {
        if sweep == Sweep::None {
            due.accounts.retain(|account| match self.watchers.get(account) {
                Some(task) => task.directive.read(|told| told.looks == 0),
                None => !self.on_demand.has_told_all_since(account, moment),
            });
        }
        let backends = &self.context.backends;
        self.on_demand.found_due(moment, sweep, due.accounts, |account| backends.id_of(account));
        self.mark(moment, sweep, due.unmarked);
    }

    /// These are marked. The next ones follow.
    pub(super) fn marked(&mut self, moment: u64, sweep: Sweep, due: DueAccounts) {
        let backends = &self.context.backends;
        if self.on_demand.marked(moment, due.accounts, |account| backends.id_of(account)) {
            self.mark(moment, sweep, due.unmarked);
        }
    }

    fn mark(&mut self, moment: u64, sweep: Sweep, unmarked: Vec<Account>) {
        if unmarked.is_empty() {
            return;
        }
        let (context, assignment) = (Arc::clone(&self.context), self.assignment.borrow().clone());
        self.asked.spawn(async move {
            let due = due_accounts::mark(&context, &assignment, unmarked).await;
            StoreReply { moment, what: ReplyKind::Marked { sweep, due } }
        });
    }

    /// Those on demand that are due get their tasks, so many at once.
    pub(super) fn ask_for_those_due(&mut self) {
        let waiting = i64::try_from(self.on_demand.waiting()).unwrap_or(i64::MAX);
        self.context.metrics.sweep_waiting.set(waiting);
        while let Some(account) = self.on_demand.next_waiting() {
            match self.watchers.get(&account) {
                Some(handle) => handle.directive.send_modify(|directive| directive.looks += 1),
                // What is due of it waits with it.
                None if self.on_demand.waits_parked(&account) => {}
                None if self.on_demand.is_resting(&account) => {
                    let looks = Directive { looks: 1, ..Directive::default() };
                    self.start(account, looks, WatcherStart::AtOnce);
                }
                None => {}
            }
        }
        while let Some(account) = self.on_demand.next_to_push() {
            self.start(account, Directive::default(), WatcherStart::AtOnce);
        }
    }
}
