//! The vault seals credentials for the database and opens them again.
//!
//! A sealed text is `v1.KEYID.BOX`: `KEYID` says which key sealed it, without telling the key, and
//! `BOX` is base64 of nonce, ciphertext and tag of AES-256-GCM with a random nonce. The version, the
//! key id and the account are authenticated with it, so that a row copied to another account does
//! not open. The vault reads one file and knows nothing of the database.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{digest, rand};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use secrecy::zeroize::Zeroizing;

use crate::model::{Account, Credentials, SecretKind};

/// Seals under the key of one file. `Debug` shows where the key is and its id.
pub struct Vault {
    path: PathBuf,
    key_id: String,
    key: RandomizedNonceKey,
}

/// Why a key file cannot be used or sealed credentials cannot be opened. Holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("credentials key {}: {problem}; {remedy}", .path.display())]
    KeyFile { path: PathBuf, problem: String, remedy: String },
    /// Sealed with another key: this key file is not the one that was in use then.
    #[error(
        "the key in {} ({key_id}) is not the one that sealed the credentials of {account} \
         ({sealed_by}); put back the key file of that time, or let the user log in again",
        .path.display()
    )]
    OtherKey { path: PathBuf, key_id: String, sealed_by: String, account: Account },
    /// Cut, altered, sealed for another account, or of a version that this program does not know.
    #[error(
        "the sealed credentials of {account} are damaged or not this account's; they are replaced \
         when the user logs in again"
    )]
    Damaged { account: Account },
}

const VERSION: &str = "v1";
const KEY_LEN: usize = 32;
/// No key file that mailchime wrote comes near this, in bytes.
const MAX_KEY_FILE: u64 = 4096;

// === impl Vault ===

impl Vault {
    /// Opens the key file at `path`, which holds 32 random bytes in base64 on one line and maybe
    /// comment lines (`#`). When there is no file it is made, readable by its owner only.
    ///
    /// # Errors
    /// [`VaultError::KeyFile`] when others can read the file or it holds anything else.
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        let unreadable = |error: io::Error| {
            let remedy = "it must be a file that the user who runs mailchime can read, in a folder \
                          that exists (and that mailchime can write when it is to make the file)";
            key_file(path, error.to_string(), remedy)
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path).and_then(|()| File::open(path)).map_err(unreadable)?
            }
            opened => opened.map_err(unreadable)?,
        };
        // Of the open file, so that what is checked is what is read.
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(unreadable(io::Error::other("is not a file")));
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let problem = format!("others than its owner can use it (mode {mode:03o})");
            return Err(key_file(path, problem, &format!("run: chmod 600 {}", path.display())));
        }
        let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_FILE as usize));
        file.take(MAX_KEY_FILE).read_to_string(&mut text).map_err(unreadable)?;
        let key = parse_key(&text).ok_or_else(|| {
            let remedy = "restore it from a copy; or, if no credentials were stored with it, \
                          remove it and mailchime makes a new one";
            key_file(path, "is not one line with 32 bytes in base64".into(), remedy)
        })?;
        Ok(Self::new(path, &key))
    }

    /// Seals `credentials` for the account that they open.
    pub fn seal(&self, credentials: &Credentials) -> String {
        let (authorization, login) = (&credentials.authorization, &credentials.login);
        let secret = credentials.expose_secret();
        // Room for all, so that no copy of the plaintext is left behind by growing; sealing
        // overwrites it.
        let mut plain = Vec::with_capacity(
            9 + authorization.len() + login.len() + secret.len() + AES_256_GCM.tag_len(),
        );
        plain.push(match credentials.kind {
            SecretKind::Password => PASSWORD,
            SecretKind::Bearer => BEARER,
        });
        put(&mut plain, authorization);
        put(&mut plain, login);
        plain.extend_from_slice(secret);
        #[expect(clippy::expect_used, reason = "fails for plaintexts of 64 GiB only")]
        let nonce = self
            .key
            .seal_in_place_append_tag(self.bound_to(&credentials.account()), &mut plain)
            .expect("credentials are shorter than the limit of AES-GCM");
        let sealed = [&nonce.as_ref()[..], &plain].concat();
        format!("{VERSION}.{}.{}", self.key_id, BASE64_URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Opens what [`seal`](Self::seal) made for credentials of this account.
    ///
    /// # Errors
    /// [`VaultError::OtherKey`] or [`VaultError::Damaged`].
    pub fn unseal(&self, account: &Account, sealed: &str) -> Result<Credentials, VaultError> {
        let damaged = || VaultError::Damaged { account: account.clone() };
        let mut parts = sealed.splitn(3, '.');
        let (Some(VERSION), Some(sealed_by), Some(text)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(damaged());
        };
        if sealed_by != self.key_id {
            return Err(VaultError::OtherKey {
                path: self.path.clone(),
                key_id: self.key_id.clone(),
                // From the database: show no more of it than an id can have.
                sealed_by: sealed_by.chars().filter(char::is_ascii_hexdigit).take(8).collect(),
                account: account.clone(),
            });
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| damaged())?;
        let (nonce, cipher) = bytes.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut plain = Zeroizing::new(cipher.to_vec());
        let opened = self
            .key
            .open_in_place(nonce, self.bound_to(account), &mut plain)
            .map_err(|_| damaged())?;
        read_plain(opened).ok_or_else(damaged)
    }

    fn new(path: &Path, key: &[u8; KEY_LEN]) -> Self {
        #[expect(clippy::expect_used, reason = "fails for other key lengths only")]
        let sealing = RandomizedNonceKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes");
        Self { path: path.to_owned(), key_id: key_id(key), key: sealing }
    }

    /// What a sealed text is bound to.
    fn bound_to(&self, account: &Account) -> Aad<Vec<u8>> {
        let bound = format!("mailchime credentials {VERSION} {} {}", self.key_id, account.as_str());
        Aad::from(bound.into_bytes())
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("path", &self.path)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

fn key_file(path: &Path, problem: String, remedy: &str) -> VaultError {
    VaultError::KeyFile { path: path.to_owned(), problem, remedy: remedy.to_owned() }
}

/// Writes a new key beside `path` and gives it that name when nothing has it: nobody ever sees a
/// key file that is half written, and of two programs that start at once both use the first's.
fn create(path: &Path) -> io::Result<()> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    rand::fill(&mut *key).map_err(|_| io::Error::other("the system gave no random bytes"))?;
    let text = Zeroizing::new(format!(
        "# The key that seals the credentials in mailchime's database (AES-256).\n\
         # Without it they cannot be read, with it they can: keep a copy, away from the database's.\n\
         {}\n",
        *Zeroizing::new(BASE64_STANDARD.encode(*key))
    ));
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Made with mode 0600.
    // Said of the folder itself, since a temporary file's name would only puzzle.
    fs::metadata(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => {
            // The name too must outlive a power cut: rows sealed with a key that is gone are lost.
            File::open(folder)?.sync_all()?;
            tracing::info!(path = %path.display(), "made a new key for stored credentials");
            Ok(())
        }
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    }
}

fn parse_key(text: &str) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    let mut lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    let bytes = Zeroizing::new(BASE64_STANDARD.decode(line).ok()?);
    Some(Zeroizing::new(bytes.as_slice().try_into().ok()?))
}

/// 32 bits of a digest: enough to tell one's keys apart, and nothing about a random key.
fn key_id(key: &[u8; KEY_LEN]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"mailchime key id");
    context.update(key);
    context.finish().as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A field: its length in four bytes, then its bytes. The password is what remains at the end.
/// First byte of a plaintext: the kind of its secret.
const PASSWORD: u8 = 0;
const BEARER: u8 = 1;

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
mod tests {
    use std::fs::{self, OpenOptions, Permissions};
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn credentials() -> Credentials {
        Credentials::password("alice@example.org", b"p\xffss\0 w\r\n\xc3\xb6rd".to_vec())
    }

    fn vault(byte: u8) -> Vault {
        Vault::new(Path::new("test.key"), &[byte; KEY_LEN])
    }

    fn write(path: &Path, mode: u32, text: &str) {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_was_sealed_opens_for_its_account_alone() {
        let vault = vault(1);
        let master = Credentials::password("master", b"m".to_vec()).acting_as("bob@example.org");
        let empty = Credentials::password("", Vec::new());
        for credentials in [credentials(), master, empty] {
            let sealed = vault.seal(&credentials);
            assert!(vault.unseal(&credentials.account(), &sealed).unwrap().same_as(&credentials));
            let other = Account::from_login("mallory@example.org");
            let refused = vault.unseal(&other, &sealed);
            assert!(matches!(refused, Err(VaultError::Damaged { .. })), "{refused:?}");
        }
    }

    #[test]
    fn two_seals_of_the_same_differ() {
        let vault = vault(1);
        assert_ne!(vault.seal(&credentials()), vault.seal(&credentials()));
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let sealed = vault(1).seal(&credentials());
        let refused = vault(2).unseal(&credentials().account(), &sealed).unwrap_err();
        assert!(matches!(refused, VaultError::OtherKey { .. }), "{refused:?}");
        assert!(refused.to_string().contains("test.key"), "{refused}");
    }

    #[test]
    fn every_alteration_is_refused() {
        let vault = vault(1);
        let account = credentials().account();
        let sealed = vault.seal(&credentials());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert!(vault.unseal(&account, &altered).is_err(), "byte {at}: {altered}");
            assert!(vault.unseal(&account, &sealed[..at]).is_err(), "cut at {at}");
        }
        for bad in ["", ".", "v1", "v1.", "v2.00000000.AAAA", &sealed.replace("v1.", "v2.")] {
            let refused = vault.unseal(&account, bad);
            assert!(matches!(refused, Err(VaultError::Damaged { .. })), "{bad}: {refused:?}");
        }
    }

    #[test]
    fn a_missing_key_file_is_made_for_its_owner_and_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.key");
        let sealed = Vault::open(&path).unwrap().seal(&credentials());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        let again = Vault::open(&path).unwrap();
        assert!(again.unseal(&credentials().account(), &sealed).unwrap().same_as(&credentials()));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn creating_never_overwrites() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.key");
        write(&path, 0o600, "the other program was faster");
        create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "the other program was faster");
    }

    #[test]
    fn a_key_file_that_others_can_use_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o620, 0o644] {
            let path = folder.path().join(format!("{mode:o}.key"));
            write(&path, mode, &BASE64_STANDARD.encode([7; KEY_LEN]));
            let refused = Vault::open(&path).unwrap_err().to_string();
            assert!(refused.contains(&format!("chmod 600 {}", path.display())), "{refused}");
        }
    }

    #[test]
    fn a_malformed_key_file_is_refused_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let key = BASE64_STANDARD.encode([7; KEY_LEN]);
        let texts = [
            String::new(),
            "# only a comment\n".into(),
            "c2VjcmV0".into(),
            format!("{key}\n{key}\n"),
            format!("{key}x"),
            BASE64_STANDARD.encode([7; 33]),
        ];
        for (number, text) in texts.iter().enumerate() {
            let path = folder.path().join(format!("{number}.key"));
            write(&path, 0o600, text);
            let refused = Vault::open(&path).unwrap_err();
            let shown = format!("{refused} {refused:?}");
            assert!(shown.contains(&format!("{number}.key")), "{shown}");
            assert!(!shown.contains("c2VjcmV0") && !shown.contains(&key), "{shown}");
        }
        let path = folder.path().join("good.key");
        write(&path, 0o400, &format!("# a comment\n\n  {key}  \n# another\n"));
        Vault::open(&path).unwrap();
        let nowhere = Vault::open(&folder.path().join("no/such.key")).unwrap_err().to_string();
        assert!(nowhere.contains("no/such.key") && nowhere.contains("folder"), "{nowhere}");
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?}", vault(7));
        assert!(shown.contains("test.key") && !shown.contains("7, 7"), "{shown}");
        assert!(!shown.contains(&BASE64_STANDARD.encode([7; KEY_LEN])[..8]), "{shown}");
    }
}
