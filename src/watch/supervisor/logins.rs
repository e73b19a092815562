//! What sessions say of their users: they have logged in, or registered.

use std::sync::Arc;

use tokio::time::Instant;

use super::{EARLY, LOGINS, Supervisor, WatcherHandle};
use crate::model::{AcceptedLogin, Account, Hint};
use crate::watch::accounts::pass_on;
use crate::watch::directive::Directive;
use crate::watch::watcher::WatcherStart;

impl Supervisor {
    pub(super) fn registered(&mut self, account: Account, login: AcceptedLogin) {
        self.entries.look_after(&account);
        if !self.is_ours(&account) {
            // With the registration, news of it was written to the node that watches.
            return;
        }
        self.device_news.add(account.clone());
        let (moment, of_users) = (self.now(), self.context.credentials.are_of_users());
        let handle = self.watchers.get_mut(&account).filter(|handle| handle.is_live());
        let Some(handle) = handle else {
            let mut directive = Directive::default();
            directive.log_in(login, of_users);
            self.start(account.clone(), directive, WatcherStart::AtOnce);
            return self.is_known_since(&account, moment);
        };
        handle.moment = moment;
        handle.directive.send_modify(|directive| {
            directive.registrations += 1;
            directive.log_in(login, of_users);
        });
    }

    /// At that moment it was known that the account, which has a task, is to be watched.
    pub(super) fn is_known_since(&mut self, account: &Account, moment: u64) {
        if let Some(handle) = self.watchers.get_mut(account) {
            handle.moment = handle.moment.max(moment);
        }
    }

    /// The registration was on disk before: of an account that is watched it is no news.
    pub(super) fn registered_again(&mut self, account: Account, login: AcceptedLogin) {
        let is_watched = self.watchers.get(&account).is_some_and(WatcherHandle::is_live);
        if is_watched || self.on_demand.is_resting(&account) {
            self.entries.look_after(&account);
        } else {
            self.registered(account, login);
        }
    }

    pub(super) fn logged_in(&mut self, account: Account, login: AcceptedLogin) {
        self.entries.logged_in(&account, &login);
        if self.on_demand.is_resting(&account) {
            // It takes the credentials over. What the session does is known when it has ended.
            let mut directive = Directive::default();
            directive.log_in(login, self.context.credentials.are_of_users());
            if directive.logins > 0 {
                self.start(account, directive, WatcherStart::AtOnce);
            }
        } else if let Some(WatcherHandle { directive, .. }) = self.watchers.get(&account) {
            let of_users = self.context.credentials.are_of_users();
            if login.credentials.is_some() || !of_users {
                self.early.remove(&account);
                directive.send_modify(|directive| directive.log_in(login, of_users));
            }
        } else if self.reading && self.is_ours(&account) {
            let brings = login.credentials.is_some() || !self.context.credentials.are_of_users();
            let has_room = self.early.len() < EARLY || self.early.contains_key(&account);
            if brings && has_room {
                self.early.insert(account, login);
            }
        } else if !self.is_ours(&account)
            && self.context.credentials.are_of_users()
            && login.credentials.is_some()
        {
            match self.passing.get_mut(&account) {
                Some(next) => *next = Some(login),
                None if self.logins.len() < LOGINS => self.pass_on(account, login),
                None => tracing::debug!(
                    target: "mailchime::watch::login_not_noted",
                    %account,
                    "the database is busy; the node that watches the account does not learn of \
                     this login"
                ),
            }
        }
    }

    /// A session has ended that may have changed mailboxes of an account without a connection, which hears
    /// nothing of it by itself.
    pub(super) fn session_ended(&mut self, account: Account) {
        if self.context.is_on_demand(&account) {
            let at = Instant::now() + self.context.config.poll_interval;
            self.on_demand.session_ended(account, at);
        }
    }

    /// Has an account looked at, some time after a session of its user has ended, or a visit that has left mailboxes due or
    /// failed; or looked into, when the time of a parked one has come.
    /// After a fault of a mail server's storage there are many such: without a task, it waits until its backend has room.
    pub(super) fn look_again(&mut self, account: Account) {
        if let Some(handle) = self.watchers.get(&account) {
            handle.directive.send_modify(|directive| directive.looks += 1);
        } else if self.on_demand.is_resting(&account) {
            let backend = self.context.backends.id_of(&account);
            if self.on_demand.is_parked(&account) {
                self.on_demand.parked_until_now(account, backend);
            } else if self.on_demand.has_failed(&account) {
                // It may fail again, and there may be many such.
                self.on_demand.wait_for_backend(account, backend);
            } else {
                self.on_demand.look_again(account, backend);
            }
        } else if !self.is_ours(&account) {
            self.write(vec![Hint::of_all(account)], None);
        }
    }

    pub(super) fn pass_on(&mut self, account: Account, login: AcceptedLogin) {
        self.passing.insert(account.clone(), None);
        let context = Arc::clone(&self.context);
        self.logins.spawn(async move {
            let here = pass_on(context, &account, login).await;
            (account, here)
        });
    }

    pub(super) fn passed_on(&mut self, account: Account, here: Option<AcceptedLogin>) {
        if let Some(Some(next)) = self.passing.remove(&account) {
            self.pass_on(account.clone(), next);
        }
        if let Some(login) = here {
            self.registered(account, login);
        }
    }
}
