//! With what a watcher logs in, in which order, and what it remembers of that.

use std::time::Duration;

use tokio::time::Instant;

use super::directive::Directive;
use super::watcher::{LoginTarget, SessionEnd, Watcher};
use crate::imap::refusal::Refusal;
use crate::imap::responses::printable;
use crate::model::{Credentials, Timestamp};
use crate::net::backend::{Backend, LoggedIn, LoginError};
use crate::store::{CredentialsError, Kept, LiveAccount};

/// Credentials that are tried in a row.
const MOST_AT_ONCE: usize = 3;

/// Credentials that were refused and are remembered for as long as none is accepted.
const MOST_REFUSED: usize = 6;

/// Credentials that were refused as often are not tried behind those of a new login.
const MOST_TRIES: usize = 2;

/// How long the same login counts as known, in milliseconds.
const ASKED_AGAIN: i64 = 3_600_000;

impl Watcher {
    /// Takes over what the supervisor told; keeps what the user has logged in with.
    pub(super) async fn take_directive(&mut self) {
        let told = self.directive.take();
        let Directive { login, logins, logins_elsewhere, logins_missed, .. } = told;
        let Directive { registrations, stop, .. } = told;
        if stop {
            // It is not for this to act on: whatever waits next has to hear of it.
            self.directive.mark_changed();
        }
        self.told = registrations;
        let known = &mut self.known;
        let elsewhere = std::mem::replace(&mut known.logins_elsewhere, logins_elsewhere);
        let missed = std::mem::replace(&mut known.logins_missed, logins_missed);
        // Seldom, and its future is large.
        if elsewhere != logins_elsewhere
            || missed != logins_missed && Box::pin(self.may_have_missed_a_login()).await
        {
            // The other node has stored it.
            (self.known.taken, self.known.brought) = (None, None);
            self.known.accepted += 1;
            self.known.forget_earlier();
        }
        let new = logins != self.known.logins;
        if !new && !self.known.unsaved {
            return;
        }
        self.known.logins = logins;
        let Some(login) = login else {
            // A master watches.
            self.known.accepted += 1;
            return;
        };
        let Some(fresh) = &login.credentials else { return };
        // A session may be older than the configuration.
        let id = self.context.backends.id_of(&self.account);
        if !id.is_some_and(|id| id.is(login.backend.as_str())) {
            return;
        }
        let again = self.known.taken.as_ref().is_some_and(|last| {
            let (backend, taken, at) = &**last;
            // How long it has proved good is noted now and then.
            let lately = login.at.0.saturating_sub(at.0) < ASKED_AGAIN;
            backend.is(login.backend.as_str()) && taken.same_as(fresh) && lately
        });
        let known = &self.known;
        if !again || known.unsaved || known.noted || known.used.is_none() {
            // The connection may end before it is.
            self.known.unsaved = true;
            match self.context.credentials.save(&self.account, &login, Timestamp::now()).await {
                Ok(true) => (self.known.unsaved, self.known.noted) = (false, false),
                // Another backend has the account, or it has another password since.
                Ok(false) => {
                    self.known.unsaved = false;
                    return;
                }
                Err(error) => {
                    let account = &self.account;
                    tracing::warn!(
                        target: "mailchime::watch::password_not_stored",
                        %account, %error,
                        "could not store a new password; mailchime tries again before it next logs \
                         in"
                    );
                    // It is tried again before the watcher's next login, or with its user's.
                }
            }
        }
        if !new {
            return;
        }
        let known = &mut self.known;
        let backend = login.backend.clone();
        if known.refusals > 0 || known.unsaved || known.brought.is_some() {
            known.brought = Some(Box::new((backend.clone(), fresh.clone())));
        }
        if !again {
            known.taken = Some(Box::new((backend, fresh.clone(), login.at)));
        }
        known.accepted += 1;
        if known.refusals == 0 {
            // The backend takes it again.
            known.refused.retain(|it| !it.same_as(fresh));
        }
        // Of one that is tried anyway, what was refused does not count anew for being tried sooner.
        let counts_on = known.is_tried_again() && known.refused.iter().any(|it| it.same_as(fresh));
        if !counts_on {
            known.refusals = 0;
        }
        (known.parked, self.inherited, self.failures) = (false, false, 0);
    }

    /// Whether its user may have logged in at another node, of which no word has come. Where tries were refused here, the
    /// store shows it: it has what was not refused, or it knows no more of what was.
    async fn may_have_missed_a_login(&self) -> bool {
        let (context, account, known) = (&self.context, &self.account, &self.known);
        if known.refusals == 0 || !context.credentials.takes_logins() {
            return true;
        }
        let kept = context.credentials.kept(account, self.backend.id(), Timestamp::now()).await;
        let is_new = |it: &Kept| !known.refused.iter().any(|old| old.same_as(&it.credentials));
        if !known.refused.is_empty() && kept.is_ok_and(|kept| kept.iter().any(is_new)) {
            return true;
        }
        let is_accepted = |live: LiveAccount| live.parked.is_none() && live.refused.is_none();
        known.noted
            && context
                .store
                .live_account(account, context.alive())
                .await
                .is_ok_and(|live| live.is_some_and(is_accepted))
    }

    /// What to try at this backend, in this order. Not empty.
    async fn to_try(&self, backend: &Backend) -> Result<Vec<Kept>, SessionEnd> {
        let (account, id) = (&self.account, backend.id());
        let brought = self.known.brought.as_deref().filter(|(by, _)| id.is(by.as_str()));
        let brought = brought.map(|(_, credentials)| credentials.clone());
        let mut kept = match self.context.credentials.kept(account, id, Timestamp::now()).await {
            Ok(kept) => kept,
            // It stays as it is: with the right key file the next start can read it.
            Err(CredentialsError::Vault(error)) if brought.is_none() => {
                tracing::error!(
                    target: "mailchime::watch::stored_password_unreadable",
                    %account, %error,
                    "not watched until its user logs in: the stored password cannot be opened"
                );
                return Err(SessionEnd::no_password("the stored password cannot be read"));
            }
            Err(CredentialsError::Vault(_)) => Vec::new(),
            Err(CredentialsError::Store(error)) => return Err(error.into()),
        };
        if let Some(used) = &self.known.used {
            put_first(&mut kept, used, false);
        }
        // Behind the others, of which the backend has not said anything yet.
        let refused = &self.known.refused;
        kept.sort_by_key(|kept| refused.iter().any(|it| it.same_as(&kept.credentials)));
        // Its user has another one by now.
        let may_be_tried = |it: &Kept| {
            refused.iter().filter(|old| old.same_as(&it.credentials)).count() < MOST_TRIES
        };
        if brought.is_some() || kept.iter().any(may_be_tried) {
            kept.retain(may_be_tried);
        }
        if let Some(brought) = &brought {
            put_first(&mut kept, brought, true);
        }
        if kept.is_empty() {
            tracing::warn!(
                target: "mailchime::watch::no_password",
                %account, "not watched until its user logs in: no password is stored"
            );
            return Err(SessionEnd::no_password("no password is kept"));
        }
        // What was stored under another configuration, or by an earlier version, may be a claim.
        kept.retain(|kept| kept.credentials.prove_account(backend.checks_token_name()));
        if kept.is_empty() {
            let why = "what is kept does not prove whose it is";
            tracing::warn!(
                target: "mailchime::watch::password_proves_nothing",
                %account,
                "not watched until its user logs in: the stored credentials do not prove whose \
                 account it is"
            );
            return Err(SessionEnd::NoPassword { why, login_helps: false });
        }
        // Of several that were refused one is enough, for a backend locks the account as a whole.
        let most = if self.known.refusals == 0 { MOST_AT_ONCE } else { 1 };
        kept.truncate(most);
        Ok(kept)
    }

    /// Logs in with the first of its credentials that the backend takes.
    pub(super) async fn log_in_as_user(
        &mut self,
        LoginTarget { backend, health, .. }: LoginTarget<'_>,
    ) -> Result<LoggedIn, SessionEnd> {
        let mut to_try = self.to_try(backend).await?.into_iter().peekable();
        let several = to_try.len() > 1;
        let mut refused = Vec::new();
        while let Some(mut kept) = to_try.next() {
            let credentials = &kept.credentials;
            let context = &self.context;
            // It took its time to come here.
            if !context.backends.is_of(&self.account, backend) {
                self.count_refused(refused);
                return Err(SessionEnd::Moved);
            }
            let (timeout, longest) = (context.config.answer_timeout, context.response_size);
            let login = credentials.clone();
            let result =
                context.backends.log_in(backend, &self.account, login, timeout, longest).await;
            self.note_reach(&result);
            match result {
                Ok(logged_in) => {
                    let again = self.known.refused.iter().any(|it| it.same_as(credentials));
                    if health.logins.accepted(&self.account, again) {
                        let backend = &health.name;
                        tracing::info!(
                            target: "mailchime::watch::backend_accepts_again",
                            backend,
                            "the backend accepts logins that it had refused; mailchime watches its \
                             accounts again"
                        );
                    }
                    let proved = kept.prove(Timestamp::now());
                    self.logged_in_with(kept.credentials, refused, several || proved).await;
                    return Ok(logged_in);
                }
                Err(LoginError::Refused { answer, refusal }) if refusal != Refusal::Temporary => {
                    refused.push(kept.credentials);
                    let last = to_try.peek().is_none();
                    // An account is refused when all that is kept of it is.
                    if last && health.logins.refused(&self.account).new {
                        tracing::error!(
                            target: "mailchime::watch::backend_refuses_many",
                            backend = health.name,
                            reason = printable(&answer),
                            "the backend refuses accounts whose passwords it accepted before; \
                             mailchime parks none of them and tries one account at a time, after \
                             10 minutes and then less often. Check whether its user directory \
                             answers"
                        );
                    }
                    if last || health.logins.state().borrow().explains(Duration::ZERO) {
                        let tries = self.remember_refused(refused);
                        return Err(SessionEnd::Refused { answer, refusal, tries });
                    }
                    let (account, reason) = (&self.account, printable(&answer));
                    tracing::info!(
                        target: "mailchime::watch::next_password_tried",
                        %account, reason,
                        "the backend refuses stored credentials; mailchime tries the next ones of \
                         the account"
                    );
                    // Before the next try: who is killed after it must not count anew.
                    let tries = u32::try_from(refused.len()).unwrap_or(u32::MAX);
                    self.note(tries, Some(&reason)).await;
                }
                Err(error) => {
                    self.count_refused(refused);
                    return Err(error.into());
                }
            }
        }
        Err(SessionEnd::no_password("no password is kept"))
    }

    /// Notes that these were refused; returns how many they are.
    fn remember_refused(&mut self, refused: Vec<Credentials>) -> u32 {
        let tries = u32::try_from(refused.len()).unwrap_or(u32::MAX);
        self.known.refused.extend(refused);
        let more = self.known.refused.len().saturating_sub(MOST_REFUSED);
        self.known.refused.drain(..more);
        tries
    }

    /// These were refused, and what the others are worth is not known: they are tried first the next time.
    fn count_refused(&mut self, refused: Vec<Credentials>) {
        let tries = self.remember_refused(refused);
        if tries > 0 {
            let known = &mut self.known;
            known.refusals = known.refusals.saturating_add(tries);
            (known.refused_at, known.used) = (Some(Instant::now()), None);
        }
    }

    /// The backend has taken these, and had refused those.
    async fn logged_in_with(
        &mut self,
        accepted: Credentials,
        refused: Vec<Credentials>,
        sort_out: bool,
    ) {
        let before = std::mem::take(&mut self.known.refused);
        // What is taken again shows that the others were not wrong either.
        let again = before.iter().any(|it| it.same_as(&accepted));
        let refused = if again { refused } else { [before, refused].concat() };
        if sort_out || !refused.is_empty() {
            let (source, account, id) =
                (&self.context.credentials, &self.account, self.backend.id());
            let now = Timestamp::now();
            if let Err(error) = source.worked(account, id, &accepted, &refused, now).await {
                tracing::warn!(
                    target: "mailchime::watch::password_outcome_not_stored",
                    %account, %error, "could not store which credentials work"
                );
                // They stay kept, and are tried behind this one the next time.
                self.known.refused = refused;
            }
        }
        let known = &mut self.known;
        (known.brought, known.used) = (None, Some(accepted));
        (known.refusals, known.refused_at) = (0, None);
        (known.excused, known.parked) = (false, false);
        self.inherited = false;
    }

    /// The store knows that nothing is refused any more, if it knew that something was.
    pub(super) async fn unpark(&mut self) -> Result<(), SessionEnd> {
        if std::mem::take(&mut self.known.noted) {
            let unparked = self.context.store.unpark(&self.account, self.backend.id()).await;
            unparked.inspect_err(|_| self.known.noted = true)?;
        }
        Ok(())
    }
}

/// Puts these in front, if they are kept, or all the same.
fn put_first(kept: &mut Vec<Kept>, credentials: &Credentials, even_if_not_kept: bool) {
    match kept.iter().position(|kept| kept.credentials.same_as(credentials)) {
        Some(place) => kept[..=place].rotate_right(1),
        None if even_if_not_kept => {
            kept.insert(0, Kept::new(credentials.clone(), None, Timestamp::now()));
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use sqlx::{Connection, Executor, SqliteConnection};
    use tokio::time::timeout;

    use super::*;
    use crate::config::CredentialsMode;
    use crate::model::Account;
    use crate::watch::directive::directive_channel;
    use crate::watch::hints::Hints;
    use crate::watch::status::{StatusCell, WatcherState};
    use crate::watch::test_context::{context, context_with, one_backend};
    use crate::watch::watcher::{LoginWait, NextStep};

    /// The program ends while a watcher is about to log in. It finds nothing to log in with, and does not wait
    /// for its user then.
    #[tokio::test]
    async fn a_watcher_that_takes_over_a_stop_with_something_else_stops_all_the_same() {
        let (_folder, context) = context(&one_backend("localhost")).await;
        let (directive, told) = directive_channel(Directive::default());
        let status = StatusCell::new(&Arc::default(), WatcherState::Starting);
        let alice = Account::from_login("alice");
        let mut watcher = Watcher::new(alice, context, told, Hints::default(), status);
        directive.send_modify(|directive| directive.stop = true);
        watcher.take_directive().await;
        let limit = Duration::from_secs(60);
        let waited = timeout(limit, watcher.wait_for_login(LoginWait::default())).await;
        assert_eq!(waited, Ok(None));
        watcher.take_directive().await;
        let paused = timeout(limit, watcher.pause(NextStep::Try(Duration::MAX))).await;
        assert_eq!(paused, Ok(None));
    }

    #[tokio::test]
    async fn the_next_task_knows_what_was_refused_where_the_database_does_not_take_it() {
        let (folder, context) =
            context_with(&one_backend("localhost"), CredentialsMode::Stored).await;
        let database = folder.path().join("mailchime.db");
        let url = format!("sqlite://{}", database.display());
        let mut beside = SqliteConnection::connect(&url).await.unwrap();
        beside.execute("drop table account").await.unwrap();
        let (_directive, told) = directive_channel(Directive::default());
        let status = StatusCell::new(&Arc::default(), WatcherState::Starting);
        let alice = Account::from_login("alice");
        let mut watcher = Watcher::new(alice, context, told, Hints::default(), status);
        let [old, new] = ["old", "new"].map(|it| Credentials::password("alice", it.into()));
        watcher.logged_in_with(new.clone(), vec![old.clone()], true).await;
        assert!(watcher.known.matters());
        let next = watcher.known.of_next_task();
        assert!(next.refused.iter().all(|it| it.same_as(&old)) && next.refused.len() == 1);
        assert!(next.used.is_some_and(|it| it.same_as(&new)));
    }
}
