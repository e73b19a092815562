//! The vault seals credentials and the secrets of subscriptions for the database and opens them again.
//!
//! A sealed text is `v1.KEYID.BOX`: `KEYID` says which key sealed it, without telling the key, and
//! `BOX` is base64 of nonce, ciphertext and tag of AES-256-GCM with a random nonce. The version, the
//! key id and the account are authenticated with it, so that a row copied to another account does
//! not open; with the secrets of a subscription its transport and endpoint are, too. The vault reads one
//! file and knows nothing of the database.
//!
//! The file holds one key, or two while one is being replaced: the first seals, both open. It is
//! read again when it has changed, so that a running server seals with a new key from the moment
//! that there is one.

mod keys;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use aws_lc_rs::aead::{AES_256_GCM, NONCE_LEN, Nonce};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use parking_lot::{RwLock, RwLockReadGuard};
use secrecy::zeroize::Zeroizing;

use self::keys::{
    KEY_COMMENT, Keys, OLD_KEY_COMMENT, VERSION, create, id_shown, key_lines, new_key, read_keys,
    unusable,
};
use crate::files::stamp;
use crate::model::{Account, Credentials, SecretKind, SubscriptionKey, SubscriptionSecrets};
use crate::secret_file::{Successor, Unfit, read_private, tidy};

pub(super) use self::keys::SEAL_LEN;

/// Seals under the keys of one file. `Debug` shows where they are and their ids.
pub struct Vault {
    path: PathBuf,
    keys: RwLock<Keys>,
}

/// The vault of a key file that may not be there: opened when it is first needed, and the file made when
/// something is first sealed.
#[derive(Debug)]
pub(super) struct VaultFile {
    path: PathBuf,
    vault: OnceLock<Vault>,
}

/// Of what a sealed text is: nothing else opens it.
struct Binding<'a> {
    what: &'static str,
    whose: String,
    account: &'a Account,
}

/// Why a key file cannot be used or sealed credentials cannot be opened. Holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The key file cannot be used.
    #[error("credentials key {}: {problem}; {remedy}", .path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// Something is to be sealed or opened, and no key file is there or named.
    #[error("there is no credentials key; put back the file that [credentials] key_file names")]
    NoKeyFile,
    /// None of what is stored was sealed with the keys of this file.
    #[error(
        "the key in {} ({key_id}) is not the one that sealed the stored credentials of {accounts} \
         accounts ({sealed_by}); put back the key file of that time",
        .path.display()
    )]
    WrongKeyFile {
        /// The file.
        path: PathBuf,
        /// The id of the key.
        key_id: String,
        /// The id of the key that sealed it.
        sealed_by: String,
        /// How many accounts it is about.
        accounts: u64,
    },
    /// Sealed with another key: this key file is not the one that was in use then.
    #[error(
        "the key in {} ({key_id}) is not the one that sealed the credentials of {} \
         ({sealed_by}); put back the key file of that time, or let the user log in again",
        .path.display(),
        .account.as_str().escape_debug()
    )]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// The id of the key.
        key_id: String,
        /// The id of the key that sealed it.
        sealed_by: String,
        /// The account.
        account: Account,
    },
    /// Cut, altered, sealed for another account, or of a version that this program does not know.
    #[error(
        "the sealed credentials of {} are damaged or not this account's; they are replaced when the \
         user logs in again",
        .account.as_str().escape_debug()
    )]
    Damaged {
        /// The account.
        account: Account,
    },
}

// === impl Vault ===

impl Vault {
    /// Opens the key file at `path`, which holds 32 random bytes in base64 on one line, maybe a
    /// second line with the key that is being replaced, and maybe comment lines (`#`). When there is
    /// no file it is made, readable by its owner only.
    ///
    /// # Errors
    /// [`VaultError::KeyFile`] when others can read the file or it holds anything else.
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        let keys = match read_keys(path) {
            Err(Unfit::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                create(path).map_err(Unfit::Io).and_then(|()| read_keys(path))
            }
            read => read,
        };
        let keys = keys.map_err(|unfit| unusable(unfit, path))?;
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if let Err(error) = tidy(&real) {
            let remedy = "remove the file beside it that ends in .new";
            tracing::warn!(
                target: "mailchime::store::rotation_left_key",
                path = %path.display(), %error, remedy,
                "a rotation of the key has left a file behind"
            );
        }
        Ok(Self { path: path.to_owned(), keys: RwLock::new(keys) })
    }

    /// The same for a file that must be there. Nothing is made or tidied up.
    ///
    /// # Errors
    /// [`VaultError::KeyFile`] when it is not there, others can read it, or it holds anything else.
    pub fn open_existing(path: &Path) -> Result<Self, VaultError> {
        let keys = read_keys(path).map_err(|unfit| unusable(unfit, path))?;
        Ok(Self { path: path.to_owned(), keys: RwLock::new(keys) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Seals `credentials` for the account whose row they are kept in.
    pub fn seal(&self, account: &Account, credentials: &Credentials) -> String {
        let (authorization, login) = (&credentials.authorization, &credentials.login);
        let secret = credentials.expose_secret();
        let mut plain = room(9 + authorization.len() + login.len() + secret.len());
        plain.push(match credentials.kind {
            SecretKind::Password => PASSWORD,
            SecretKind::Bearer => BEARER,
        });
        put(&mut plain, authorization);
        put(&mut plain, login);
        plain.extend_from_slice(secret);
        self.seal_for(&Binding::credentials(account), plain)
    }

    /// Opens what [`seal`](Self::seal) made for credentials of this account.
    ///
    /// # Errors
    /// [`VaultError::OtherKey`] or [`VaultError::Damaged`].
    pub fn unseal(&self, account: &Account, sealed: &str) -> Result<Credentials, VaultError> {
        let plain = self.unseal_for(&Binding::credentials(account), sealed)?;
        read_plain(&plain).ok_or_else(|| VaultError::Damaged { account: account.clone() })
    }

    /// Seals the secrets of a subscription for its row.
    pub fn seal_secrets(&self, key: &SubscriptionKey, secrets: &SubscriptionSecrets) -> String {
        let mut plain = room(secrets.expose().len());
        plain.extend_from_slice(secrets.expose().as_bytes());
        self.seal_for(&Binding::secrets(key), plain)
    }

    /// Opens what [`seal_secrets`](Self::seal_secrets) made for this subscription.
    ///
    /// # Errors
    /// [`VaultError::OtherKey`] or [`VaultError::Damaged`].
    pub fn unseal_secrets(
        &self,
        key: &SubscriptionKey,
        sealed: &str,
    ) -> Result<SubscriptionSecrets, VaultError> {
        let plain = self.unseal_for(&Binding::secrets(key), sealed)?;
        let text = str::from_utf8(&plain);
        let text = text.map_err(|_| VaultError::Damaged { account: key.account.clone() })?;
        Ok(SubscriptionSecrets::new(text.to_owned()))
    }

    /// `plain` has [`room`] for the tag.
    fn seal_for(&self, binding: &Binding<'_>, mut plain: Vec<u8>) -> String {
        let keys = self.keys();
        let key = &keys.current;
        #[expect(clippy::expect_used, reason = "fails for plaintexts of 64 GiB only")]
        let nonce = key
            .key
            .seal_in_place_append_tag(key.bound_to(binding.what, &binding.whose), &mut plain)
            .expect("what is sealed is shorter than the limit of AES-GCM");
        let sealed = [&nonce.as_ref()[..], &plain].concat();
        format!("{VERSION}.{}.{}", key.id, BASE64_URL_SAFE_NO_PAD.encode(sealed))
    }

    fn unseal_for(
        &self,
        binding: &Binding<'_>,
        sealed: &str,
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let damaged = || VaultError::Damaged { account: binding.account.clone() };
        let mut parts = sealed.splitn(3, '.');
        let (Some(VERSION), Some(sealed_by), Some(text)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(damaged());
        };
        let keys = self.keys();
        let Some(key) = keys.all().find(|key| key.id == sealed_by) else {
            return Err(VaultError::OtherKey {
                path: self.path.clone(),
                key_id: keys.current.id.clone(),
                sealed_by: id_shown(sealed_by),
                account: binding.account.clone(),
            });
        };
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| damaged())?;
        let (nonce, cipher) = bytes.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut plain = Zeroizing::new(cipher.to_vec());
        let bound = key.bound_to(binding.what, &binding.whose);
        let length = key.key.open_in_place(nonce, bound, &mut plain).map_err(|_| damaged())?.len();
        plain.truncate(length);
        Ok(plain)
    }

    /// What [`seal`](Self::seal) made under another key of the file, sealed under the current one;
    /// `None` when it is so already.
    ///
    /// # Errors
    /// As [`unseal`](Self::unseal).
    pub(super) fn reseal(
        &self,
        account: &Account,
        sealed: &str,
    ) -> Result<Option<String>, VaultError> {
        if self.is_current(sealed) {
            return Ok(None);
        }
        Ok(Some(self.seal(account, &self.unseal(account, sealed)?)))
    }

    /// The same for what [`seal_secrets`](Self::seal_secrets) made.
    ///
    /// # Errors
    /// As [`unseal_secrets`](Self::unseal_secrets).
    pub(super) fn reseal_secrets(
        &self,
        key: &SubscriptionKey,
        sealed: &str,
    ) -> Result<Option<String>, VaultError> {
        if self.is_current(sealed) {
            return Ok(None);
        }
        Ok(Some(self.seal_secrets(key, &self.unseal_secrets(key, sealed)?)))
    }

    fn is_current(&self, sealed: &str) -> bool {
        sealed.get(..SEAL_LEN) == Some(&self.keys().current.seal())
    }

    /// Whether a sealed text with this beginning, of [`SEAL_LEN`] characters, is of a key of the
    /// file.
    pub(super) fn knows(&self, seal: &str) -> bool {
        self.keys().all().any(|key| key.seal() == seal)
    }

    /// The error of a file none of whose keys is among `seals`.
    pub(super) fn wrong_key_file(&self, seals: &[(String, u64)]) -> VaultError {
        let ids = seals.iter().map(|(seal, _)| id_shown(seal.get(VERSION.len()..).unwrap_or("")));
        VaultError::WrongKeyFile {
            path: self.path.clone(),
            key_id: self.keys().current.id.clone(),
            sealed_by: ids.collect::<Vec<_>>().join(", "),
            accounts: seals.iter().map(|(_, accounts)| accounts).sum(),
        }
    }

    /// Puts a new key before the one of the file, unless it has two already.
    ///
    /// # Errors
    /// [`VaultError::KeyFile`]; the file is as it was then.
    pub(super) fn add_key(&self) -> Result<(), VaultError> {
        self.rewrite(|current, old| {
            if old.is_some() {
                return Ok(None);
            }
            let new = new_key()?;
            let text = format!("{KEY_COMMENT}{}\n{OLD_KEY_COMMENT}{current}\n", *new);
            Ok(Some(Zeroizing::new(text)))
        })
    }

    /// Leaves the first key alone in the file.
    ///
    /// # Errors
    /// [`VaultError::KeyFile`]; the file is as it was then.
    pub(super) fn drop_old_key(&self) -> Result<(), VaultError> {
        self.rewrite(|current, old| {
            let alone = || Zeroizing::new(format!("{KEY_COMMENT}{current}\n"));
            Ok(old.is_some().then(alone))
        })
    }

    /// Writes a new content in the place of the file's, made from its key and the one before; whole or
    /// not at all.
    fn rewrite(
        &self,
        content: impl Fn(&str, Option<&str>) -> io::Result<Option<Zeroizing<String>>>,
    ) -> Result<(), VaultError> {
        self.try_rewrite(content).map_err(|unfit| unusable(unfit, &self.path))?;
        drop(self.keys());
        Ok(())
    }

    fn try_rewrite(
        &self,
        content: impl Fn(&str, Option<&str>) -> io::Result<Option<Zeroizing<String>>>,
    ) -> Result<(), Unfit> {
        // What is found here may be a link; the file that it leads to is the one to replace.
        let path = fs::canonicalize(&self.path)?;
        // Two rotations that begin at once must not both put a key before the same old one.
        let successor = Successor::of(&path)?;
        let (text, metadata) = read_private(&path)?;
        Keys::of(&text, &metadata)?;
        let mut keys = key_lines(&text);
        let (current, old) = (keys.next().unwrap_or_default(), keys.next());
        if let Some(text) = content(current, old)? {
            successor.write(&text, Some(&metadata))?;
        }
        Ok(())
    }

    /// The keys, read again if the file has changed. If it cannot be read those known stay.
    fn keys(&self) -> RwLockReadGuard<'_, Keys> {
        let known = self.keys.read();
        if fs::metadata(&self.path).is_ok_and(|metadata| stamp(&metadata) == known.stamp) {
            return known;
        }
        drop(known);
        match read_keys(&self.path) {
            Ok(keys) => *self.keys.write() = keys,
            Err(unfit) => {
                let error = unusable(unfit, &self.path);
                tracing::error!(
                    target: "mailchime::store::key_file_unreadable",
                    %error,
                    "the key file changed and cannot be used; mailchime keeps using the previous \
                     key"
                );
            }
        }
        self.keys.read()
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("path", &self.path)
            .field("key_id", &self.keys().current.id)
            .finish_non_exhaustive()
    }
}

// === impl VaultFile ===

impl VaultFile {
    /// The vault of the key file at `path`. Nothing is opened yet.
    pub(in crate::store) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), vault: OnceLock::new() }
    }

    /// The vault, if there is a key file.
    ///
    /// # Errors
    /// [`VaultError::KeyFile`] when the file cannot be used.
    pub(in crate::store) fn existing(&self) -> Result<Option<&Vault>, VaultError> {
        if let Some(vault) = self.vault.get() {
            return Ok(Some(vault));
        }
        let is_missing = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        if fs::symlink_metadata(&self.path).is_err_and(is_missing) {
            return Ok(None);
        }
        let vault = Vault::open_existing(&self.path)?;
        Ok(Some(self.vault.get_or_init(|| vault)))
    }

    /// The vault. A key file is made where there is none.
    ///
    /// # Errors
    /// [`VaultError::KeyFile`] when the file cannot be used or made.
    pub(in crate::store) fn made(&self) -> Result<&Vault, VaultError> {
        if let Some(vault) = self.vault.get() {
            return Ok(vault);
        }
        let vault = Vault::open(&self.path)?;
        Ok(self.vault.get_or_init(|| vault))
    }
}

// === impl Binding ===

impl<'a> Binding<'a> {
    fn credentials(account: &'a Account) -> Self {
        Self { what: "credentials", whose: account.as_str().to_owned(), account }
    }

    /// Neither a transport nor a hash holds a space.
    fn secrets(key: &'a SubscriptionKey) -> Self {
        let SubscriptionKey { account, transport, endpoint, .. } = key;
        let whose = format!("{transport} {} {}", endpoint.hash_hex(), account.as_str());
        Self { what: "subscription", whose, account }
    }
}

/// Room for a plaintext of this length and all that sealing adds, so that no copy of it is left behind by
/// growing; sealing overwrites it.
fn room(length: usize) -> Vec<u8> {
    Vec::with_capacity(length + AES_256_GCM.tag_len())
}

/// First byte of a plaintext: the kind of its secret.
const PASSWORD: u8 = 0;
const BEARER: u8 = 1;

/// A field: its length in four bytes, then its bytes. The password is what remains at the end.
fn put(plain: &mut Vec<u8>, field: &str) {
    let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
    plain.extend_from_slice(&length.to_be_bytes());
    plain.extend_from_slice(field.as_bytes());
}

fn take<'a>(plain: &mut &'a [u8]) -> Option<&'a str> {
    let (length, rest) = plain.split_first_chunk()?;
    let (field, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *plain = rest;
    str::from_utf8(field).ok()
}

fn read_plain(plain: &[u8]) -> Option<Credentials> {
    let (kind, mut plain) = plain.split_first()?;
    let kind = match *kind {
        PASSWORD => SecretKind::Password,
        BEARER => SecretKind::Bearer,
        _ => return None,
    };
    let authorization = take(&mut plain)?;
    let login = take(&mut plain)?;
    Some(Credentials::new(login.into(), kind, plain.to_vec()).acting_as(authorization))
}

#[cfg(test)]
mod tests;
