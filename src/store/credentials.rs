//! With what the watcher of an account logs in: `[credentials] mode`.
//!
//! `stored`: what the user logged in with, sealed in the database; [`super::keeping`] says how much of it.
//! `memory`: the same, never written and gone at a restart. `master`: one user who may act as any other,
//! so that no user's password is kept at all. An access token is kept until it expires, in every mode.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;

use super::keeping::{self, Accepted, Kept};
use super::registrant::{Keeper, Keeping, KeptRow};
use super::vault::SEAL_LEN;
use super::{RegisterOutcome, Registrant, Sealed, Store, StoreError, Vault, VaultError};
use crate::config;
use crate::model::{
    AcceptedLogin, Account, BackendId, Credentials, Registration, SecretKind, SubscriptionState,
    Timestamp,
};

/// How long a token is kept that does not say when it expires, in milliseconds: an hour, for which
/// most are issued.
const TOKEN_LIFE: i64 = 3_600_000;

/// How long a registration that changes nothing is not written again. When it was made is then known
/// to within this time, of the days after which a device is forgotten.
const UNWRITTEN: Duration = Duration::from_hours(1);

/// Takes over what users log in with and says what their watchers log in with. `Debug` shows the
/// mode.
pub struct CredentialSource {
    store: Store,
    mode: Mode,
}

enum Mode {
    Stored(Arc<Vault>),
    Memory(Mutex<HashMap<Account, InMemory>>),
    Master,
}

/// What is kept in memory of an account.
struct InMemory {
    /// Which one has accepted them.
    backend: BackendId,
    /// In the order of [`Accepted::kept`].
    kept: Vec<Kept>,
    /// The login that brought the last password.
    password_since: Timestamp,
}

/// Why the credentials of an account cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// They are there but cannot be read; what its user logs in with next replaces them.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// How many credentials in the database no key of the vault has sealed; all of them without a vault.
///
/// # Errors
/// [`StoreError`] when the database cannot be used, or does not answer in time.
pub async fn unreadable(store: &Store, vault: Option<&Vault>) -> Result<u64, StoreError> {
    let seals = store.seals(SEAL_LEN).await?;
    let knows = |seal: &str| vault.is_some_and(|vault| vault.knows(seal));
    Ok(seals.iter().filter(|(seal, _)| !knows(seal)).map(|(_, count)| count).sum())
}

impl CredentialSource {
    /// Reads the key file, in the mode `stored`.
    ///
    /// # Errors
    /// [`VaultError::KeyFile`].
    pub fn open(
        mode: config::CredentialsMode,
        key_file: &Path,
        store: Store,
    ) -> Result<Self, VaultError> {
        let mode = match mode {
            config::CredentialsMode::Stored => Mode::Stored(Arc::new(Vault::open(key_file)?)),
            config::CredentialsMode::Memory => Mode::Memory(Mutex::new(HashMap::new())),
            config::CredentialsMode::Master => Mode::Master,
        };
        Ok(Self { store, mode })
    }

    /// Whether the same registration, by a login with the same credentials, was written within the last
    /// hour, so that nothing of it has to be written again.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn has_registered(
        &self,
        registration: &Registration,
        login: &AcceptedLogin,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let since = now.minus(UNWRITTEN);
        let believed = self.store.believed(now);
        let account = &registration.subscription.account;
        // The credentials are read before the registration. Where another password is kept meanwhile, either
        // this login has it, and the registration is read as outdated, or it has not, and all is written.
        match (&self.mode, &login.credentials) {
            (Mode::Memory(all), Some(credentials)) => {
                let all = all.lock();
                let known = all.get(account).filter(|it| login.backend.is(it.backend.as_str()));
                if !known.is_some_and(|known| changes_nothing(&known.kept, credentials, believed)) {
                    return Ok(false);
                }
            }
            (Mode::Stored(vault), Some(credentials)) => {
                let found = self.store.kept(account, &login.backend).await?;
                let rows = found.map_or(Vec::new(), |(rows, _)| rows);
                let kept = unsealed(vault, account, &rows).0;
                if !changes_nothing(&kept, credentials, believed) {
                    return Ok(false);
                }
            }
            _ => {}
        }
        self.store.registered(registration, &login.backend, since, now).await
    }

    /// Stores the registration of a user who has logged in with `login`, and keeps the credentials as
    /// the mode says; where a master watches they need not be known. As [`Store::register`].
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn register(
        &self,
        registration: &Registration,
        login: &AcceptedLogin,
        max_subscriptions: u32,
        now: Timestamp,
    ) -> Result<RegisterOutcome, StoreError> {
        let state = SubscriptionState::Active;
        self.register_in(registration, login, max_subscriptions, now, state).await
    }

    /// The same for a subscription that counts when [`Store::confirm`] is called for it: until then it gets
    /// no pushes and keeps no account watched. One that is there and counts goes on counting.
    ///
    /// # Errors
    /// [`StoreError`] when the database or the key file cannot be used, or the database does not answer in
    /// time.
    pub async fn register_pending(
        &self,
        registration: &Registration,
        login: &AcceptedLogin,
        max_subscriptions: u32,
        now: Timestamp,
    ) -> Result<RegisterOutcome, StoreError> {
        let state = SubscriptionState::Pending;
        self.register_in(registration, login, max_subscriptions, now, state).await
    }

    /// A pending subscription of the account that `login` proves is confirmed: [`Store::confirm`].
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn confirm(
        &self,
        account: &Account,
        id: i64,
        login: &AcceptedLogin,
        max_subscriptions: u32,
    ) -> Result<Option<RegisterOutcome>, StoreError> {
        self.store.confirm(account, id, login, max_subscriptions).await
    }

    async fn register_in(
        &self,
        registration: &Registration,
        login: &AcceptedLogin,
        max_subscriptions: u32,
        now: Timestamp,
        state: SubscriptionState,
    ) -> Result<RegisterOutcome, StoreError> {
        let account = &registration.subscription.account;
        let AcceptedLogin { backend, credentials, at, .. } = login;
        let mut registrant = Registrant::new(backend, *at, None);
        registrant.names_ignore_case = login.names_ignore_case;
        registrant.state = state;
        match (&self.mode, credentials) {
            (Mode::Stored(vault), Some(credentials)) => {
                let fresh = fresh(credentials, *at, now);
                registrant.keeper = Some(keeper(vault, account, fresh, self.store.believed(*at)));
            }
            (Mode::Memory(all), Some(credentials)) => {
                let all = all.lock();
                let known = all.get(account).filter(|known| backend.is(known.backend.as_str()));
                let accepted =
                    known.map(|it| keeping::accept(&it.kept, fresh(credentials, *at, now), *at));
                registrant.other_password = accepted.is_some_and(|it| it.other_password);
            }
            _ => {}
        }
        let stored = self.store.register(registration, registrant, max_subscriptions, now).await?;
        if let (Mode::Memory(all), Some(credentials)) = (&self.mode, credentials)
            && let RegisterOutcome::Stored(_) = stored
        {
            self.remember(all, account, backend, fresh(credentials, *at, now), now).await?;
        }
        Ok(stored)
    }

    /// Keeps what the user of a registered account has logged in with, beside what lasts longer, and ends
    /// the parking. Returns whether the account is of the backend that has accepted it; of another one
    /// nothing is touched.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn save(
        &self,
        account: &Account,
        login: &AcceptedLogin,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let AcceptedLogin { backend, credentials, at, .. } = login;
        match (&self.mode, credentials) {
            (Mode::Stored(vault), Some(credentials)) => {
                let Some((rows, parked)) = self.store.kept(account, backend).await? else {
                    return Ok(false);
                };
                let fresh = fresh(credentials, *at, *at);
                let keeper = keeper(vault, account, fresh, self.store.believed(*at));
                if !parked && (keeper.0)(&rows, 0).rows.is_none() {
                    return Ok(true);
                }
                let login = Registrant::new(backend, *at, None);
                let login = Registrant { keeper: Some(keeper), ..login };
                return self.store.save_credentials(account, login, now).await;
            }
            _ if !self.store.is_of(account, backend).await? => return Ok(false),
            (Mode::Memory(all), Some(credentials)) => {
                let fresh = fresh(credentials, *at, *at);
                if !self.remember(all, account, backend, fresh, now).await? {
                    return Ok(false);
                }
            }
            _ => {}
        }
        self.store.unpark(account, backend).await.map(|()| true)
    }

    /// Keeps these in memory, unless their login was before the one that brought the password of now. A
    /// time later than `now` is of a clock that was ahead, and does not count.
    async fn remember(
        &self,
        all: &Mutex<HashMap<Account, InMemory>>,
        account: &Account,
        backend: &BackendId,
        fresh: Kept,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let at = fresh.since;
        let (Accepted { kept, other_password }, before) = {
            let all = all.lock();
            let before = all.get(account).filter(|before| backend.is(before.backend.as_str()));
            let since = before.map(|before| before.password_since).filter(|since| *since <= now);
            let before = before.map_or(&[][..], |before| &before.kept);
            (keeping::accept(before, fresh, self.store.believed(at)), since)
        };
        if other_password && before.is_some_and(|since| at < since) {
            return Ok(false);
        }
        // First, so that what is in memory tells that it has been done.
        if other_password {
            self.store.outdate(account, at, now).await?;
        }
        let password_since = before.filter(|_| !other_password).unwrap_or(at);
        let backend = backend.clone();
        all.lock().insert(account.clone(), InMemory { backend, kept, password_since });
        Ok(true)
    }

    /// What to log in with for `account` at the backend that has accepted it, and what lasts longest first;
    /// nothing until its user logs in again, and always where it is a master who logs in.
    ///
    /// # Errors
    /// [`CredentialsError::Vault`] where some are kept and none can be read.
    pub async fn kept(
        &self,
        account: &Account,
        backend: &BackendId,
        now: Timestamp,
    ) -> Result<Vec<Kept>, CredentialsError> {
        let now = self.store.believed(now);
        let mut kept = match &self.mode {
            Mode::Stored(vault) => {
                let found = self.store.kept(account, backend).await?;
                let (mut rows, _) = found.unwrap_or_default();
                rows.retain(|row| row.sealed.until.is_none_or(|until| now < until));
                match unsealed(vault, account, &rows) {
                    (kept, Some(error)) if kept.is_empty() => return Err(error.into()),
                    (kept, _) => kept,
                }
            }
            Mode::Memory(all) => {
                let all = all.lock();
                let known = all.get(account).filter(|known| backend.is(known.backend.as_str()));
                known.map_or(Vec::new(), |known| known.kept.clone())
            }
            Mode::Master => Vec::new(),
        };
        kept.retain(|kept| kept.lives(now));
        keeping::by_durability(&mut kept);
        Ok(kept)
    }

    /// The first of [`CredentialSource::kept`].
    ///
    /// # Errors
    /// [`CredentialsError`] when the database cannot be used or the key does not open what it
    /// holds.
    pub async fn of(
        &self,
        account: &Account,
        backend: &BackendId,
        now: Timestamp,
    ) -> Result<Option<Credentials>, CredentialsError> {
        let kept = self.kept(account, backend, now).await?;
        Ok(kept.into_iter().next().map(|kept| kept.credentials))
    }

    /// A watcher has logged in with `accepted`, after the backend had refused `refused`: those go, and how
    /// long the others have proved good is noted now and then.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn worked(
        &self,
        account: &Account,
        backend: &BackendId,
        accepted: &Credentials,
        refused: &[Credentials],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let now = self.store.believed(now);
        match &self.mode {
            Mode::Stored(vault) => {
                let (vault, of) = (Arc::clone(vault), account.clone());
                let (accepted, refused) = (accepted.clone(), refused.to_vec());
                let keeper = Keeper(Arc::new(move |rows: &[KeptRow], _| {
                    let (before, unreadable) = unsealed(&vault, &of, rows);
                    let kept = keeping::worked(&before, &accepted, &refused, now);
                    // With the right key file the next start can read those.
                    let kept = kept.filter(|_| unreadable.is_none());
                    let rows = kept.map(|kept| sealed(&vault, &of, kept));
                    Keeping { rows, other_password: false }
                }));
                let found = self.store.kept(account, backend).await?;
                match found.is_some_and(|(rows, _)| (keeper.0)(&rows, 0).rows.is_some()) {
                    true => self.store.sort_out(account, backend, &keeper).await,
                    false => Ok(()),
                }
            }
            Mode::Memory(all) => {
                let mut all = all.lock();
                let known = all.get_mut(account).filter(|known| backend.is(known.backend.as_str()));
                if let Some(known) = known
                    && let Some(kept) = keeping::worked(&known.kept, accepted, refused, now)
                {
                    known.kept = kept;
                }
                Ok(())
            }
            Mode::Master => Ok(()),
        }
    }

    /// Whether the program is ending, so that nothing is tried again.
    pub fn is_stopping(&self) -> bool {
        self.store.is_stopping()
    }

    /// Whether watchers log in with what their users have logged in with; if not, as the master user
    /// of the backend.
    pub fn are_of_users(&self) -> bool {
        !matches!(self.mode, Mode::Master)
    }

    /// Whether what users log in with is of any use to their watchers.
    pub fn takes_logins(&self) -> bool {
        !matches!(self.mode, Mode::Master)
    }

    /// Whether this process alone knows what to log in with: it is kept in memory, so no other one can
    /// watch the account.
    pub fn holds(&self, account: &Account) -> bool {
        match &self.mode {
            Mode::Memory(kept) => kept.lock().contains_key(account),
            Mode::Stored(_) | Mode::Master => false,
        }
    }

    /// Whether other processes know what this one keeps, if they have the same database.
    pub fn are_shared(&self) -> bool {
        !matches!(self.mode, Mode::Memory(_))
    }

    /// Forgets what is kept in memory for an account that has no device any more; what is stored
    /// goes with its row.
    pub fn forget(&self, account: &Account) {
        if let Mode::Memory(kept) = &self.mode {
            kept.lock().remove(account);
        }
    }

    /// Removes what must not be kept any longer: tokens that have expired, in the modes that store
    /// nothing what is stored from before, and in SQLite's log what was removed or replaced since the
    /// last time. To be called again and again. A clock that has just jumped ends no token
    /// ([`Store::believed`]). Returns how many the database lost.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn tidy(&self, now: Timestamp) -> Result<u64, StoreError> {
        let now = self.store.believed(now);
        match &self.mode {
            Mode::Stored(_) => {}
            Mode::Memory(all) => all.lock().retain(|_, known| {
                known.kept.retain(|kept| kept.lives(now));
                !known.kept.is_empty()
            }),
            Mode::Master => {}
        }
        let expired_at = matches!(self.mode, Mode::Stored(_)).then_some(now);
        let erased = self.store.erase_credentials(expired_at).await?;
        self.store.scrub().await?;
        Ok(erased)
    }

    /// How many stored credentials the key file cannot open: another one was in use.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn unreadable(&self) -> Result<u64, StoreError> {
        match &self.mode {
            Mode::Stored(vault) => unreadable(&self.store, Some(vault)).await,
            Mode::Memory(_) | Mode::Master => self.store.unreadable_secrets().await,
        }
    }
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match &self.mode {
            Mode::Stored(_) => "stored",
            Mode::Memory(_) => "memory",
            Mode::Master => "master",
        };
        f.debug_struct("CredentialSource").field("mode", &mode).finish_non_exhaustive()
    }
}

/// What a login brings that was accepted at `at`; a token that does not say when it expires was issued at
/// `now` at the latest.
fn fresh(credentials: &Credentials, at: Timestamp, now: Timestamp) -> Kept {
    Kept::new(credentials.clone(), expiry(credentials, now), at)
}

/// Says what is kept when these credentials of the account have been accepted; tokens that have expired by
/// `now` are not.
fn keeper(vault: &Arc<Vault>, account: &Account, fresh: Kept, now: Timestamp) -> Keeper {
    let (vault, account) = (Arc::clone(vault), account.clone());
    Keeper(Arc::new(move |rows: &[KeptRow], refused| {
        let (stored, unreadable) = unsealed(&vault, &account, rows);
        let mut before = stored.clone();
        if refused > 0 {
            keeping::doubt(&mut before, &fresh);
        }
        let Accepted { mut kept, other_password } = keeping::accept(&before, fresh.clone(), now);
        keeping::settle_doubts(&mut kept, &stored, &fresh, refused);
        let same = unreadable.is_none() && keeping::are_as_stored(&kept, &stored);
        let rows = (!same).then(|| sealed(&vault, &account, kept));
        Keeping { rows, other_password }
    }))
}

/// The rows that can be opened, and why the others cannot.
fn unsealed(vault: &Vault, account: &Account, rows: &[KeptRow]) -> (Vec<Kept>, Option<VaultError>) {
    let (mut kept, mut unreadable) = (Vec::with_capacity(rows.len()), None);
    for KeptRow { sealed: Sealed { text, until }, since, proved_at } in rows {
        match vault.unseal(account, text) {
            Ok(credentials) => {
                let mut it = Kept::new(credentials, *until, *since);
                (it.proved_at, it.text) = (*proved_at, Some(text.clone()));
                kept.push(it);
            }
            Err(error) => unreadable = Some(error),
        }
    }
    (kept, unreadable)
}

/// The rows for these.
fn sealed(vault: &Vault, account: &Account, kept: Vec<Kept>) -> Vec<KeptRow> {
    let row = |kept: Kept| {
        let Kept { credentials, until, since, proved_at, text } = kept;
        let text = text.unwrap_or_else(|| vault.seal(account, &credentials));
        KeptRow { sealed: Sealed { text, until }, since, proved_at }
    };
    kept.into_iter().map(row).collect()
}

/// Whether a login with these would change nothing of what is kept but how long it has proved good: they
/// are the last password, or a token that is kept.
fn changes_nothing(kept: &[Kept], credentials: &Credentials, now: Timestamp) -> bool {
    let same = |it: &Kept| it.lives(now) && it.credentials.same_as(credentials);
    match credentials.kind {
        SecretKind::Password => kept.first().is_some_and(same),
        SecretKind::Bearer => kept.iter().any(same),
    }
}

/// When credentials are worth nothing any more: for a token, what it says of itself if it is a JWT
/// (RFC 7519 section 4.1.4), else an hour from now.
fn expiry(credentials: &Credentials, now: Timestamp) -> Option<Timestamp> {
    match credentials.kind {
        SecretKind::Password => None,
        SecretKind::Bearer => {
            let told = expiry_of_jwt(credentials.expose_secret());
            Some(told.unwrap_or(Timestamp(now.0.saturating_add(TOKEN_LIFE))))
        }
    }
}

fn expiry_of_jwt(token: &[u8]) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Claims {
        /// Seconds since 1970, maybe with a fraction.
        exp: f64,
    }
    let mut parts = token.split(|byte| *byte == b'.');
    let (_, Some(claims), Some(_), None) =
        (parts.next()?, parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let claims = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?);
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    Some(Timestamp((exp * 1000.0) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> Credentials {
        let claims = BASE64_URL_SAFE_NO_PAD.encode(claims);
        Credentials::bearer("alice", format!("eyJhbGciOiJub25lIn0.{claims}.c2ln").into_bytes())
    }

    #[test]
    fn a_token_says_when_it_expires_or_lives_an_hour() {
        let now = Timestamp(1_000_000);
        let of = |credentials: &Credentials| expiry(credentials, now).unwrap().0;
        assert_eq!(of(&token(r#"{"sub":"alice","exp":1300819380}"#)), 1_300_819_380_000);
        assert_eq!(of(&token(r#"{"exp":1.5}"#)), 1500);
        let hour = now.0 + 3_600_000;
        for claims in ["{}", r#"{"exp":"tomorrow"}"#, "not json", ""] {
            assert_eq!(of(&token(claims)), hour, "{claims}");
        }
        for opaque in ["ya29.opaque", "a.b.c.d", "", "a.!.c"] {
            assert_eq!(of(&Credentials::bearer("alice", opaque.into())), hour, "{opaque}");
        }
        assert_eq!(expiry(&Credentials::password("alice", b"a.e30.c".to_vec()), now), None);
    }
}
