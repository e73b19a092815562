//! Parked accounts on demand, which have no task.

use super::Supervisor;
use crate::model::Account;
use crate::watch::on_demand::RestingAccount;
use crate::watch::parked::RefusedBefore;
use crate::watch::parked_wait::ParkedWait;
use crate::watch::status::{StatusCell, WatchMode, WatcherState};
use crate::watch::watcher::WatcherStart;

impl Supervisor {
    /// An account on demand is parked. What has happened since its task looked counts, and so does that it has another
    /// backend since.
    pub(super) fn parks(&mut self, account: &Account, wait: ParkedWait) {
        self.on_demand.parked(account, wait);
        let context = &self.context;
        self.on_demand.parked_moves(account, context.recoveries(account));
        let is_over =
            self.on_demand.parked_wait(account).is_some_and(|it| it.is_over(context, account));
        if is_over {
            let backend = self.context.backends.id_of(account);
            self.on_demand.call(account, backend);
        }
    }

    /// An account on demand needs no task for now, also where it was parked or refused before the program started.
    pub(super) fn rests(&mut self, account: Account, begin: &WatcherStart, moment: u64) {
        let context = &self.context;
        let shown = match (begin, begin.refused_before()) {
            (WatcherStart::Elsewhere(recorded), _) => {
                let at = context.backends.of(&account).ok();
                self.on_demand.parked(&account, ParkedWait::Change { elsewhere: true, at });
                context.parked_elsewhere(&account, recorded, true)
            }
            (_, Some(RefusedBefore { known, mut waits, shown })) => {
                waits.recoveries = context.recoveries(&account).map(Box::new);
                let wait = waits.without_task(known.refusals);
                self.on_demand.parked_before(&account, wait, known);
                shown
            }
            (_, None) => {
                let doing = WatcherState::Watching(WatchMode::OnDemand);
                let status = StatusCell::new(&context.metrics, doing);
                let resting = RestingAccount { status, known_at: moment, inherited: true };
                return self.on_demand.rest(account, resting);
            }
        };
        let status = StatusCell::new(&context.metrics, shown);
        let resting = RestingAccount { status, known_at: moment, inherited: true };
        self.on_demand.rest_unasked(account, resting);
    }

    /// All is read again. Where other nodes have `joined` meanwhile, the user of a parked account may have logged in there,
    /// which counts here if the nodes share credentials, or have registered there.
    pub(super) fn may_be_called(&mut self, account: &Account, joined: u64) {
        if joined == self.joined {
            return;
        }
        let backend = self.context.backends.id_of(account);
        match self.context.credentials.are_shared() {
            true => self.on_demand.missed_logins(account, backend),
            false => self.on_demand.missed_registrations(account, backend),
        }
    }

    /// Something has happened that ends what parked accounts wait for.
    pub(super) fn call_parked(&mut self) {
        let context = &self.context;
        let is_over = |account: &Account, wait: &ParkedWait| wait.is_over(context, account);
        self.on_demand.call_parked(is_over, |account| context.backends.id_of(account));
    }
}
