//! The key file of a vault.

use std::fs;
use std::io;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, RandomizedNonceKey};
use aws_lc_rs::{digest, rand};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::zeroize::Zeroizing;

use super::VaultError;
use crate::files::{Stamp, stamp};
use crate::model::hex;
use crate::secret_file::{Successor, Unfit, read_private};

pub(super) const VERSION: &str = "v1";
pub(super) const KEY_LEN: usize = 32;
/// Digits of a key's id.
const ID_LEN: usize = 8;

/// Characters of a sealed text up to the end of its key's id.
pub(in crate::store) const SEAL_LEN: usize = VERSION.len() + 1 + ID_LEN;

/// What the file held when it was last read.
pub(super) struct Keys {
    pub(super) stamp: Stamp,
    /// Seals and opens.
    pub(super) current: SealingKey,
    /// The one before, while it is being replaced: opens only.
    pub(super) old: Option<SealingKey>,
}

/// Nothing of it is kept as the file has it.
pub(super) struct SealingKey {
    pub(super) id: String,
    pub(super) key: RandomizedNonceKey,
}

// === impl Keys ===

impl Keys {
    pub(super) fn of(text: &str, metadata: &fs::Metadata) -> Result<Self, Unfit> {
        let mut lines = key_lines(text);
        let mut key =
            || lines.next().map(|line| SealingKey::new(line).ok_or(Unfit::Malformed)).transpose();
        let (Some(current), old, None) = (key()?, key()?, key()?) else {
            return Err(Unfit::Malformed);
        };
        if old.as_ref().is_some_and(|old| old.id == current.id) {
            return Err(Unfit::Malformed);
        }
        Ok(Self { stamp: stamp(metadata), current, old })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &SealingKey> {
        std::iter::once(&self.current).chain(&self.old)
    }
}

impl SealingKey {
    fn new(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text).ok()?);
        let bytes: Zeroizing<[u8; KEY_LEN]> = Zeroizing::new(bytes.as_slice().try_into().ok()?);
        let key = RandomizedNonceKey::new(&AES_256_GCM, &*bytes).ok()?;
        Some(Self { id: key_id(&bytes), key })
    }

    /// What the texts that it sealed begin with.
    pub(super) fn seal(&self) -> String {
        format!("{VERSION}.{}", self.id)
    }

    /// What a sealed text is bound to.
    pub(super) fn bound_to(&self, what: &str, whose: &str) -> Aad<Vec<u8>> {
        let bound = format!("mailchime {what} {VERSION} {} {whose}", self.id);
        Aad::from(bound.into_bytes())
    }
}

// === files ===

pub(super) fn unusable(unfit: Unfit, path: &Path) -> VaultError {
    let (problem, remedy) = unfit.told(
        path,
        "it must be a file that the user who runs mailchime can read, in a folder that exists (and \
         that mailchime can write when it is to make or change the file)",
        "does not hold 32 bytes in base64 on one line (or two such lines, that differ, while the \
         key is being replaced)",
        "restore it from a copy; or, if no credentials were stored with it, remove it and mailchime \
         makes a new one",
    );
    VaultError::KeyFile { path: path.to_owned(), problem, remedy }
}

pub(super) fn read_keys(path: &Path) -> Result<Keys, Unfit> {
    let (text, metadata) = read_private(path)?;
    Keys::of(&text, &metadata)
}

/// The keys in the text of a file, each as it is written there.
pub(super) fn key_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

pub(super) const KEY_COMMENT: &str = "\
    # The key that seals the credentials in mailchime's database (AES-256).\n\
    # Without it they cannot be read, with it they can: keep a copy, away from the database's.\n";
pub(super) const OLD_KEY_COMMENT: &str = "\
    # The key before, which still opens what it sealed. `mailchime credentials rotate` was begun:\n\
    # run it again to bring it to its end.\n";

pub(super) fn new_key() -> io::Result<Zeroizing<String>> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    rand::fill(&mut *key).map_err(|_| io::Error::other("the system gave no random bytes"))?;
    Ok(Zeroizing::new(BASE64_STANDARD.encode(*key)))
}

/// Makes a key file unless there is one by now: nobody ever sees a key file that is half written, and of
/// two programs that start at once both use the first's.
pub(super) fn create(path: &Path) -> io::Result<()> {
    let successor = Successor::of(path)?;
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let text = Zeroizing::new(format!("{KEY_COMMENT}{}\n", *new_key()?));
    successor.write(&text, None)?;
    tracing::info!(
        target: "mailchime::store::key_created",
        path = %path.display(),
        "created a key for stored credentials; back it up apart from the database"
    );
    Ok(())
}

/// A key's id that comes from the database: no more of it than an id can have.
pub(super) fn id_shown(id: &str) -> String {
    id.chars().filter(char::is_ascii_hexdigit).take(ID_LEN).collect()
}

/// 32 bits of a digest: enough to tell one's keys apart, and nothing about a random key.
fn key_id(key: &[u8; KEY_LEN]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"mailchime key id");
    context.update(key);
    hex(&context.finish().as_ref()[..ID_LEN / 2])
}
