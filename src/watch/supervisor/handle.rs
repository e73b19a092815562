//! How the supervisor speaks to a watcher.

use crate::watch::directive::DirectiveSender;
use crate::watch::hints::Hints;
use crate::watch::status::StatusCell;

/// The way to speak to a watcher, and what it does. One that has ended has no receiver any more.
#[derive(Debug)]
pub(super) struct WatcherHandle {
    pub(super) directive: DirectiveSender,
    pub(super) hints: Hints,
    pub(super) status: StatusCell,
    /// When it was last known that the account is to be watched.
    pub(super) moment: u64,
    /// When it began.
    pub(super) began: u64,
    pub(super) on_demand: bool,
}

impl WatcherHandle {
    /// Whether somebody still watches the account: of a task of an account on demand, the end is heard first.
    pub(super) fn is_live(&self) -> bool {
        self.on_demand || !self.directive.is_closed()
    }

    /// Its user may have logged in at another node.
    pub(super) fn missed_logins(&self) {
        self.directive.send_modify(|directive| directive.logins_missed += 1);
    }

    /// The rows of the account are others now; with `login` its stored credentials, too. What its user has
    /// logged in with here stays: it may have come since, and be nowhere else.
    pub(super) fn look_again(&self, login: bool) {
        self.directive.send_modify(|directive| {
            directive.registrations += 1;
            directive.logins_elsewhere += u64::from(login);
        });
    }
}
