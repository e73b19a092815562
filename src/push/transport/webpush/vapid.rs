//! Who we are to push services: a key pair of P-256 and the tokens that it signs (RFC 8292).
//!
//! The key is for good: a browser binds each subscription to the public key with which it was made, and a
//! push service refuses any other. So the name of the route is the key's fingerprint, and the subscriptions
//! of another key are known by theirs.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hyper::header::HeaderValue;
use parking_lot::Mutex;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use secrecy::zeroize::Zeroizing;
use serde_json::json;

use crate::model::{Timestamp, hex};
use crate::secret_file::{Successor, Unfit, read_private, tidy};

/// How long a token is good. Push services take 24 hours at most (RFC 8292 section 2).
const VALIDITY: Duration = Duration::from_hours(12);
/// What has to be left of it when it is used.
const RESERVE: Duration = Duration::from_hours(1);
/// Tokens that are kept, one for each push service. Users say which there are, so there may be many.
const TOKENS: usize = 1024;

const COMMENT: &str = "\
    The key by which push services know mailchime (Web Push, VAPID).\n\
    Without it every browser has to subscribe again: keep a copy.\n";

/// A key pair, and how to reach the operator. `Debug` shows the public key's fingerprint.
pub struct VapidKey {
    pair: EcdsaKeyPair,
    /// In base64url, as a browser takes it (`applicationServerKey`).
    public: String,
    fingerprint: Arc<str>,
    /// `mailto:` or `https:`.
    contact: String,
    /// By origin: until when a token is good, and the header that has it.
    tokens: Mutex<HashMap<String, (Timestamp, HeaderValue)>>,
}

/// Why there is no key. The text names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[error("VAPID key {}: {problem}; {remedy}", .path.display())]
pub struct VapidKeyError {
    path: PathBuf,
    problem: String,
    remedy: String,
}

// === impl VapidKey ===

impl VapidKey {
    /// Reads the key file at `path`: a private key of P-256 in PEM form, which its owner alone can use. Where
    /// there is no file a new key is made. Returns also whether it was.
    ///
    /// # Errors
    /// [`VapidKeyError`] when others can use the file, it holds anything else, or it cannot be made.
    pub fn open(path: &Path, contact: &str) -> Result<(Self, bool), VapidKeyError> {
        let (read, made) = match read(path) {
            Err(Unfit::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                (create(path).map_err(Unfit::Io).and_then(|()| read(path)), true)
            }
            read => (read, false),
        };
        let pair = read.map_err(|unfit| unusable(unfit, path))?;
        // A program that was killed while it made the key.
        let _ = tidy(path);
        Ok((Self::new(pair, contact), made))
    }

    /// The same for a file that must be there. Nothing is made.
    ///
    /// # Errors
    /// As [`VapidKey::open`], or when there is no file.
    pub fn open_existing(path: &Path, contact: &str) -> Result<Self, VapidKeyError> {
        let pair = read(path).map_err(|unfit| unusable(unfit, path))?;
        Ok(Self::new(pair, contact))
    }

    fn new(pair: EcdsaKeyPair, contact: &str) -> Self {
        let public = pair.public_key().as_ref();
        let fingerprint = hex(&digest(&SHA256, public).as_ref()[..8]);
        Self {
            public: BASE64_URL_SAFE_NO_PAD.encode(public),
            fingerprint: fingerprint.into(),
            contact: contact.to_owned(),
            tokens: Mutex::default(),
            pair,
        }
    }

    /// The public key in base64url without padding: 65 bytes, as `applicationServerKey` takes it.
    pub fn public(&self) -> &str {
        &self.public
    }

    /// What tells this key from others: the first 8 bytes of the SHA-256 of the public key, in hex.
    pub fn fingerprint(&self) -> &Arc<str> {
        &self.fingerprint
    }

    /// `authorization` for a request to the push service of this origin (RFC 6454 section 6.2), at `now`.
    /// One token serves for hours. `None` where nothing can be signed.
    pub fn authorization(&self, origin: &str, now: Timestamp) -> Option<HeaderValue> {
        let mut tokens = self.tokens.lock();
        // A clock that was set back makes a token one of too far ahead.
        let (soon, late) = (later(now, RESERVE), later(now, VALIDITY));
        let good = |until: &Timestamp| (soon..=late).contains(until);
        if let Some((until, header)) = tokens.get(origin)
            && good(until)
        {
            return Some(header.clone());
        }
        if tokens.len() >= TOKENS {
            tokens.retain(|_, (until, _)| good(until));
        }
        if tokens.len() >= TOKENS {
            tokens.clear();
        }
        let header = self.header(origin, late)?;
        tokens.insert(origin.to_owned(), (late, header.clone()));
        Some(header)
    }

    fn header(&self, origin: &str, until: Timestamp) -> Option<HeaderValue> {
        let encode = |json: String| BASE64_URL_SAFE_NO_PAD.encode(json);
        let head = encode(json!({ "typ": "JWT", "alg": "ES256" }).to_string());
        let seconds = until.0.div_euclid(1000);
        let claims = json!({ "aud": origin, "exp": seconds, "sub": self.contact });
        let signed = format!("{head}.{}", encode(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).ok()?;
        let signature = BASE64_URL_SAFE_NO_PAD.encode(signature.as_ref());
        let mut header =
            HeaderValue::try_from(format!("vapid t={signed}.{signature}, k={}", self.public))
                .ok()?;
        header.set_sensitive(true);
        Some(header)
    }
}

impl fmt::Debug for VapidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VapidKey").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp(at.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
}

fn unusable(unfit: Unfit, path: &Path) -> VapidKeyError {
    let (problem, remedy) = unfit.told(
        path,
        "it must be a file that the user who runs mailchime can read, in a folder that exists (and \
         that mailchime can write when it is to make the file)",
        "does not hold a private key of the curve P-256 in PEM form",
        "restore it from a copy; or, if no browser has subscribed, remove it and mailchime makes a \
         new one",
    );
    VapidKeyError { path: path.to_owned(), problem, remedy }
}

fn read(path: &Path) -> Result<EcdsaKeyPair, Unfit> {
    let (text, _) = read_private(path)?;
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| Unfit::Malformed)?;
    let pair = match &key {
        PrivateKeyDer::Pkcs8(der) => {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
        }
        PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            der.secret_sec1_der(),
        ),
        _ => return Err(Unfit::Malformed),
    };
    pair.map_err(|_| Unfit::Malformed)
}

/// Makes a key file unless there is one by now: of two programs that start at once both use the first's.
fn create(path: &Path) -> io::Result<()> {
    let successor = Successor::of(path)?;
    if std::fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|_| io::Error::other("no key could be made"))?;
    let pem = Zeroizing::new(pair.serialize_pem());
    let text = Zeroizing::new([COMMENT, pem.as_str()].concat());
    successor.write(&text, None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    use serde_json::Value;

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const HOUR: i64 = 3_600_000;

    fn key() -> (tempfile::TempDir, VapidKey) {
        let folder = tempfile::tempdir().unwrap();
        let (key, made) =
            VapidKey::open(&folder.path().join("key"), "mailto:admin@example.org").unwrap();
        assert!(made);
        (folder, key)
    }

    fn claims(header: &HeaderValue, key: &VapidKey) -> Value {
        let text = header.to_str().unwrap();
        let (token, public) = text.strip_prefix("vapid t=").unwrap().split_once(", k=").unwrap();
        assert_eq!(public, key.public());
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap();
        let public = decode(public);
        assert_eq!((public.len(), public[0]), (65, 4));
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public)
            .verify(signed.as_bytes(), &decode(signature))
            .unwrap();
        let (head, claims) = signed.split_once('.').unwrap();
        let head: Value = serde_json::from_slice(&decode(head)).unwrap();
        assert_eq!(head, json!({ "typ": "JWT", "alg": "ES256" }));
        serde_json::from_slice(&decode(claims)).unwrap()
    }

    #[test]
    fn a_token_is_for_one_origin_and_says_who_can_be_asked() {
        let (_folder, key) = key();
        let header = key.authorization("https://push.example.net:8443", NOW).unwrap();
        assert!(header.is_sensitive());
        assert_eq!(
            claims(&header, &key),
            json!({
                "aud": "https://push.example.net:8443",
                "exp": (NOW.0 + 12 * HOUR) / 1000,
                "sub": "mailto:admin@example.org",
            })
        );
    }

    #[test]
    fn a_token_is_kept_while_an_hour_is_left_and_the_clock_goes_on() {
        let (_folder, key) = key();
        let at = |hours: i64| key.authorization("https://a", Timestamp(NOW.0 + hours * HOUR));
        let first = at(0).unwrap();
        assert_eq!(at(11).unwrap(), first);
        assert_ne!(key.authorization("https://b", NOW).unwrap(), first);
        let second = at(12).unwrap();
        assert_ne!(second, first);
        let back = at(-2).unwrap();
        assert_ne!(back, second, "good for more than a push service takes");
        for n in 0..3 * TOKENS {
            key.authorization(&format!("https://{n}.example"), NOW).unwrap();
        }
        assert!(key.tokens.lock().len() <= TOKENS);
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_read_again() {
        let (folder, key) = key();
        let file = folder.path().join("key");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let (again, made) = VapidKey::open(&file, "mailto:a@example.org").unwrap();
        assert!(!made && again.public() == key.public() && key.fingerprint().len() == 16);
        assert_eq!(again.fingerprint(), key.fingerprint());
        let shown = format!("{key:?}");
        assert!(shown.contains(&**key.fingerprint()) && !shown.contains("mailto"), "{shown}");

        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let error = VapidKey::open(&file, "").unwrap_err().to_string();
        assert!(error.contains("mode 640") && error.contains("chmod 600"), "{error}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        for text in ["", "-----BEGIN PRIVATE KEY-----\n", &other.serialize_pem()] {
            fs::write(&file, text).unwrap();
            let error = VapidKey::open(&file, "").unwrap_err().to_string();
            assert!(error.contains("does not hold a private key of the curve P-256"), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text, "it stays");
        }
        fs::remove_file(&file).unwrap();
        assert!(VapidKey::open_existing(&file, "").is_err() && !file.exists());
    }
}
