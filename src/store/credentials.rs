//! With what the watcher of an account logs in: `[credentials] mode`.
//!
//! `stored`: what the user last logged in with, sealed in the database. `memory`: the same, never
//! written and gone at a restart. `master`: one user who may act as any other, so that no user's
//! password is kept at all. An access token is kept until it expires, in every mode.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;

use super::vault::SEAL_LEN;
use super::{RegisterOutcome, Registrant, Sealed, Store, StoreError, Vault, VaultError};
use crate::config;
use crate::model::{
    AcceptedLogin, Account, BackendId, Credentials, Registration, SecretKind, Timestamp,
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
    Stored(Vault),
    Memory(Mutex<HashMap<Account, Kept>>),
    Master,
}

struct Kept {
    /// Which one has accepted them.
    backend: BackendId,
    credentials: Credentials,
    until: Option<Timestamp>,
    /// The first login with this password.
    at: Timestamp,
}

/// Why the credentials of an account cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// They are there but cannot be read; what its user logs in with next replaces them.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// How many credentials in the database no key of the vault has sealed; all of them without a vault.
pub async fn unreadable(store: &Store, vault: Option<&Vault>) -> Result<u64, StoreError> {
    let seals = store.seals(SEAL_LEN).await?;
    let knows = |seal: &str| vault.is_some_and(|vault| vault.knows(seal));
    Ok(seals.iter().filter(|(seal, _)| !knows(seal)).map(|(_, count)| count).sum())
}

impl CredentialSource {
    /// Reads the key file.
    ///
    /// # Errors
    /// [`VaultError::KeyFile`].
    pub fn open(config: &config::Credentials, store: Store) -> Result<Self, VaultError> {
        let mode = match config {
            config::Credentials::Stored { key_file } => Mode::Stored(Vault::open(key_file)?),
            config::Credentials::Memory => Mode::Memory(Mutex::new(HashMap::new())),
            config::Credentials::Master => Mode::Master,
        };
        Ok(Self { store, mode })
    }

    /// Whether the same registration, by a login with the same credentials, was written within the last
    /// hour, so that nothing of it has to be written again.
    pub async fn has_registered(
        &self,
        registration: &Registration,
        login: &AcceptedLogin,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let since = now.minus(UNWRITTEN);
        let believed = self.store.believed(now);
        let account = &registration.device.account;
        let lives = |until: Option<Timestamp>| until.is_none_or(|until| believed < until);
        // Before the rows are read: with another password in memory they are outdated already.
        if let (Mode::Memory(kept), Some(credentials)) = (&self.mode, &login.credentials) {
            let kept = lock(kept);
            let same = kept.get(account).is_some_and(|kept| {
                login.backend.is(kept.backend.as_str())
                    && lives(kept.until)
                    && kept.credentials.same_as(credentials)
            });
            if !same {
                return Ok(false);
            }
        }
        let Some(sealed) = self.store.registered(registration, &login.backend, since, now).await?
        else {
            return Ok(false);
        };
        let Some(credentials) = &login.credentials else { return Ok(true) };
        Ok(match &self.mode {
            Mode::Stored(vault) => {
                sealed.filter(|sealed| lives(sealed.until)).is_some_and(|sealed| {
                    vault
                        .unseal(account, &sealed.text)
                        .is_ok_and(|known| known.same_as(credentials))
                })
            }
            Mode::Memory(_) | Mode::Master => true,
        })
    }

    /// Stores the registration of a user who has logged in with `login`, and keeps the credentials as
    /// the mode says; where a master watches they need not be known. As [`Store::register`].
    pub async fn register(
        &self,
        registration: &Registration,
        login: &AcceptedLogin,
        max_devices: u32,
        now: Timestamp,
    ) -> Result<RegisterOutcome, StoreError> {
        let account = &registration.device.account;
        let AcceptedLogin { backend, credentials, at, .. } = login;
        let mut registrant = Registrant::new(backend, *at, None);
        registrant.names_ignore_case = login.names_ignore_case;
        if let (Mode::Stored(vault), Some(credentials)) = (&self.mode, credentials) {
            let until = expiry(credentials, now);
            registrant.sealed = Some(Sealed { text: vault.seal(account, credentials), until });
            registrant.other_password = match self.of(account, backend, now).await {
                Ok(known) => known.is_some_and(|known| is_other_password(&known, credentials)),
                Err(CredentialsError::Vault(_)) => false,
                Err(CredentialsError::Store(error)) => return Err(error),
            };
        }
        if let (Mode::Memory(all), Some(credentials)) = (&self.mode, credentials) {
            let all = lock(all);
            let known = all.get(account).filter(|known| backend.is(known.backend.as_str()));
            registrant.other_password =
                known.is_some_and(|known| is_other_password(&known.credentials, credentials));
        }
        let stored = self.store.register(registration, registrant, max_devices, now).await?;
        if let (Mode::Memory(all), Some(kept)) = (&self.mode, Kept::of(login))
            && let RegisterOutcome::Stored(_) = stored
        {
            self.replace(all, account, kept).await?;
        }
        Ok(stored)
    }

    /// Keeps what the user of a registered account has logged in with, in the place of what was kept,
    /// and ends the parking. Returns whether the account is of the backend that has accepted it; of
    /// another one nothing is touched.
    pub async fn save(&self, account: &Account, login: &AcceptedLogin) -> Result<bool, StoreError> {
        let AcceptedLogin { backend, credentials, at, .. } = login;
        match (&self.mode, credentials) {
            (Mode::Stored(vault), Some(credentials)) => {
                let known = match self.of(account, backend, *at).await {
                    Err(CredentialsError::Store(error)) => return Err(error),
                    Err(CredentialsError::Vault(_)) | Ok(None) => None,
                    Ok(known) => known,
                };
                if !known.as_ref().is_some_and(|known| known.same_as(credentials)) {
                    let text = vault.seal(account, credentials);
                    let sealed = Sealed { text, until: expiry(credentials, *at) };
                    let other_password =
                        known.is_some_and(|known| is_other_password(&known, credentials));
                    let login = Registrant::new(backend, *at, Some(&sealed));
                    let login = Registrant { other_password, ..login };
                    return self.store.save_credentials(account, login).await;
                }
            }
            (Mode::Memory(all), Some(_)) => {
                let Some(kept) = Kept::of(login) else { return Ok(false) };
                if !self.store.is_of(account, backend).await?
                    || !self.replace(all, account, kept).await?
                {
                    return Ok(false);
                }
            }
            _ if !self.store.is_of(account, backend).await? => return Ok(false),
            _ => {}
        }
        self.store.unpark(account, backend).await.map(|()| true)
    }

    /// Keeps these in memory, unless their login was before the one that brought the password of now.
    async fn replace(
        &self,
        all: &Mutex<HashMap<Account, Kept>>,
        account: &Account,
        mut kept: Kept,
    ) -> Result<bool, StoreError> {
        let (backend, at) = (kept.backend.clone(), kept.at);
        let other_password = {
            let all = lock(all);
            let before = all.get(account).filter(|before| backend.is(before.backend.as_str()));
            let other_password = before
                .is_some_and(|before| is_other_password(&before.credentials, &kept.credentials));
            if other_password && before.is_some_and(|before| at < before.at) {
                return Ok(false);
            }
            // A token of later says nothing of the password.
            if let (false, Some(before)) = (other_password, before) {
                kept.at = before.at;
            }
            other_password
        };
        // First, so that what is in memory tells that it has been done.
        if other_password {
            self.store.outdate(account, at).await?;
        }
        lock(all).insert(account.clone(), kept);
        Ok(true)
    }

    /// What to log in with for `account` at the backend that has accepted it; `None` until its user
    /// logs in again, and always where it is a master who logs in.
    pub async fn of(
        &self,
        account: &Account,
        backend: &BackendId,
        now: Timestamp,
    ) -> Result<Option<Credentials>, CredentialsError> {
        let now = self.store.believed(now);
        let lives = |until: Option<Timestamp>| until.is_none_or(|until| now < until);
        match &self.mode {
            Mode::Stored(vault) => match self.store.credentials(account, backend).await? {
                Some(sealed) if lives(sealed.until) => {
                    Ok(Some(vault.unseal(account, &sealed.text)?))
                }
                _ => Ok(None),
            },
            Mode::Memory(kept) => {
                let kept = lock(kept);
                let kept = kept.get(account).filter(|kept| lives(kept.until));
                let kept = kept.filter(|kept| backend.is(kept.backend.as_str()));
                Ok(kept.map(|kept| kept.credentials.clone()))
            }
            Mode::Master => Ok(None),
        }
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
            Mode::Memory(kept) => lock(kept).contains_key(account),
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
            lock(kept).remove(account);
        }
    }

    /// Removes what must not be kept any longer: tokens that have expired, in the modes that store
    /// nothing what is stored from before, and in SQLite's log what was removed or replaced since the
    /// last time. To be called again and again. A clock that has just jumped ends no token
    /// ([`Store::believed`]). Returns how many the database lost.
    pub async fn tidy(&self, now: Timestamp) -> Result<u64, StoreError> {
        let now = self.store.believed(now);
        match &self.mode {
            Mode::Stored(_) => {}
            Mode::Memory(kept) => {
                lock(kept).retain(|_, kept| kept.until.is_none_or(|until| now < until));
            }
            Mode::Master => {}
        }
        let expired_at = matches!(self.mode, Mode::Stored(_)).then_some(now);
        let erased = self.store.erase_credentials(expired_at).await?;
        self.store.scrub().await?;
        Ok(erased)
    }

    /// How many stored credentials the key file cannot open: another one was in use.
    pub async fn unreadable(&self) -> Result<u64, StoreError> {
        match &self.mode {
            Mode::Stored(vault) => unreadable(&self.store, Some(vault)).await,
            Mode::Memory(_) | Mode::Master => Ok(0),
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

impl Kept {
    fn of(login: &AcceptedLogin) -> Option<Self> {
        let AcceptedLogin { backend, credentials, at, .. } = login.clone();
        let credentials = credentials?;
        Some(Self { backend, until: expiry(&credentials, at), credentials, at })
    }
}

/// Whether both are passwords, and not the same. Tokens change all the time.
fn is_other_password(old: &Credentials, new: &Credentials) -> bool {
    old.kind == SecretKind::Password
        && new.kind == SecretKind::Password
        && old.expose_secret() != new.expose_secret()
}

fn lock(kept: &Mutex<HashMap<Account, Kept>>) -> MutexGuard<'_, HashMap<Account, Kept>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
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
