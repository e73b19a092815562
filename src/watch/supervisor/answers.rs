//! What the database answers.

use tokio::task::JoinError;
use tokio::time::Instant;

use super::{ReplyKind, StoreReply, Supervisor};
use crate::model::Account;
use crate::store::{Invalidation, LiveAccount, StoreError};
use crate::watch::directive::Directive;
use crate::watch::on_demand::Sweep;
use crate::watch::watcher::WatcherStart;

/// All is to be read again soon.
#[derive(Debug)]
pub(super) struct ReadAgain;

impl Supervisor {
    /// Takes an answer. Where all is to be read again, a sweep that it was about begins again at that time.
    pub(super) fn answered(
        &mut self,
        answer: Result<StoreReply, JoinError>,
        again: Instant,
    ) -> Result<(), ReadAgain> {
        let Ok(StoreReply { moment, what }) = answer else {
            // It is not known what it was about.
            (self.reading, self.joined) = (false, 0);
            self.on_demand.everybody_at(again);
            return Err(ReadAgain);
        };
        match what {
            ReplyKind::All { joined, sweep, accounts } => {
                self.reading = false;
                let accounts = accounts.map_err(|error| {
                    tracing::error!(
                        target: "mailchime::watch::accounts_unreadable",
                        %error,
                        "could not read from the database which accounts to watch; mailchime tries again"
                    );
                    self.on_demand.sweep_again(sweep, again);
                    ReadAgain
                })?;
                let all = accounts.iter().map(|live| &live.account);
                let on_demand = all.filter(|account| self.context.is_on_demand(account));
                let on_demand: Vec<Account> = on_demand.cloned().collect();
                self.refresh(moment, joined, accounts);
                self.find_due(moment, sweep, on_demand);
                self.begun = true;
            }
            ReplyKind::Due { sweep, due } => {
                let due = due.map_err(|error| self.due_unreadable(&error, sweep, again))?;
                self.found_due(moment, sweep, due);
            }
            ReplyKind::Marked { sweep, due } => {
                let due = due.map_err(|error| self.due_unreadable(&error, sweep, again))?;
                self.marked(moment, sweep, due);
            }
            ReplyKind::Counted => {}
            ReplyKind::One { account, live, news } => {
                self.looked_up(moment, &account, live, news).map_err(|_| {
                    // What it was about is lost, so all is to be read again.
                    self.joined = 0;
                    ReadAgain
                })?;
            }
        }
        Ok(())
    }

    /// The database did not say what is due, or did not take a mark: the sweep begins again then.
    fn due_unreadable(&mut self, error: &StoreError, sweep: Sweep, again: Instant) -> ReadAgain {
        tracing::error!(
            target: "mailchime::watch::due_unreadable",
            %error,
            "could not record in the database, or read from it, which accounts are to be asked for; mailchime \
             tries again"
        );
        self.on_demand.sweep_again(sweep, again);
        ReadAgain
    }

    /// What the database said at that moment of an account that another process has changed, or whose
    /// last device is said to be gone. It may have registered since. An error where news is lost.
    fn looked_up(
        &mut self,
        moment: u64,
        account: &Account,
        live: Result<Option<LiveAccount>, StoreError>,
        news: Option<Invalidation>,
    ) -> Result<(), StoreError> {
        let live = match live {
            Ok(live) => live,
            Err(error) => {
                tracing::warn!(
                    target: "mailchime::watch::account_unreadable",
                    %account, %error,
                    "could not look up an account in the database; mailchime tries again at its \
                     next refresh"
                );
                // Without news it watches for nobody until the next refresh.
                return if news.is_some() { Err(error) } else { Ok(()) };
            }
        };
        if news.is_some() {
            self.device_news.add(account.clone());
        }
        let is_ours = self.is_ours(account);
        let handle = self.watchers.get_mut(account).filter(|handle| handle.is_live());
        match (handle, live, news) {
            // It has registered since.
            (Some(handle), None, _) if handle.moment > moment => {}
            (None, None, _) if self.on_demand.rests_since(account) > Some(moment) => {}
            (_, None, _) => self.stop(account),
            (Some(handle), Some(_), Some(Invalidation { login, event, .. })) => {
                if event {
                    handle.status.hint();
                }
                handle.moment = handle.moment.max(moment);
                handle.look_again(login && self.context.credentials.are_shared());
            }
            (None, Some(live), Some(Invalidation { login, .. })) if is_ours => {
                let rests = self.on_demand.is_resting(account);
                let begin = match rests {
                    // More is known of it here, and of later: its user may have logged in since it was looked up.
                    true => WatcherStart::AtOnce,
                    // What was refused counts here, too.
                    false => self.begin(&live),
                };
                let login = rests && login && self.context.credentials.are_shared();
                let (registrations, logins_elsewhere) = (u64::from(rests), u64::from(login));
                let news = Directive { registrations, logins_elsewhere, ..Directive::default() };
                self.start(account.clone(), news, begin);
                // That it has a task says nothing of its devices: a later look-up may have found none.
                if let Some(handle) = self.watchers.get_mut(account).filter(|_| !rests) {
                    handle.moment = moment;
                }
                self.is_known_since(account, moment);
            }
            (_, Some(_), _) => {}
        }
        Ok(())
    }
}
