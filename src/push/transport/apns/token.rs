//! Provider tokens: JSON Web Tokens (RFC 7519) that an ECDSA P-256 key signs, in place of a client
//! certificate.
//!
//! APNs refuses a token that is older than an hour, and a provider that brings a new one more often
//! than every 20 minutes. So there is one token for each key and all its users, and it lives for
//! [`LIFE`] from its first use. Nothing here reads a clock.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::HeaderValue;
use parking_lot::Mutex;
use serde_json::json;

use crate::model::Timestamp;

/// After this time a token is replaced.
const LIFE: Duration = Duration::from_mins(40);
/// No token is replaced before this time because APNs says that it has expired: if it says so of a
/// new one, it is one of the two clocks, and more tokens would not help.
const LEAST_LIFE: Duration = Duration::from_mins(20);
/// The time in a token is rounded down to a multiple of this, so that a clock that is a little
/// ahead makes no token of the future.
const ROUNDED: i64 = 60;

/// The tokens of one key. `Debug` shows neither.
pub(super) struct Tokens {
    key: EcdsaKeyPair,
    key_id: String,
    team_id: String,
    /// Never held over an await.
    current: Mutex<Option<Minted>>,
}

#[derive(Clone)]
struct Minted {
    authorization: HeaderValue,
    at: Timestamp,
}

impl Tokens {
    /// From a private key (PKCS#8, DER) and Apple's names for it and its team; `None` if it is no
    /// ECDSA key on P-256.
    pub(super) fn new(key: &[u8], key_id: &str, team_id: &str) -> Option<Self> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key).ok()?;
        let (key_id, team_id) = (key_id.to_owned(), team_id.to_owned());
        Some(Self { key, key_id, team_id, current: Mutex::default() })
    }

    /// Whether the tokens of both are as good.
    pub(super) fn is_of_same_key(&self, other: &Self) -> bool {
        self.key.public_key().as_ref() == other.key.public_key().as_ref()
            && (&self.key_id, &self.team_id) == (&other.key_id, &other.team_id)
    }

    /// The value of `authorization` for a request at `now`; `None` if it cannot be signed.
    pub(super) fn authorization(&self, now: Timestamp) -> Option<HeaderValue> {
        self.current(now, |minted| minted.age(now).is_some_and(|age| age < LIFE))
    }

    /// A new value, since APNs says that `refused` has expired; `None` if that was a new one itself.
    pub(super) fn renewed(&self, refused: &HeaderValue, now: Timestamp) -> Option<HeaderValue> {
        let newer = self.current(now, |minted| {
            minted.authorization != *refused || minted.age(now).is_some_and(|age| age < LEAST_LIFE)
        });
        newer.filter(|newer| newer != refused)
    }

    /// The present one if it is good, or a new one.
    fn current(&self, now: Timestamp, good: impl FnOnce(&Minted) -> bool) -> Option<HeaderValue> {
        let mut current = self.current.lock();
        if !current.as_ref().is_some_and(good) {
            *current = Some(Minted { authorization: self.mint(now)?, at: now });
        }
        current.as_ref().map(|minted| minted.authorization.clone())
    }

    /// RFC 7515 section 3.1, with ES256 (RFC 7518 section 3.4).
    fn mint(&self, now: Timestamp) -> Option<HeaderValue> {
        let seconds = now.0 / 1000;
        let header = json!({ "alg": "ES256", "kid": self.key_id });
        let claims = json!({ "iss": self.team_id, "iat": seconds - seconds % ROUNDED });
        let encode = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).ok()?;
        let signature = URL_SAFE_NO_PAD.encode(signature);
        let mut value = HeaderValue::try_from(format!("bearer {signed}.{signature}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Minted {
    /// `None` if the clock has been set back since: then nobody knows.
    fn age(&self, now: Timestamp) -> Option<Duration> {
        u64::try_from(now.0 - self.at.0).ok().map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    use serde_json::Value;

    use super::*;

    const START: i64 = 1_800_000_000_000;

    fn tokens() -> Tokens {
        let key = rcgen::KeyPair::generate().unwrap();
        Tokens::new(&key.serialize_der(), "ABCDE12345", "TEAM123456").unwrap()
    }

    fn minutes(minutes: i64) -> Timestamp {
        Timestamp(START + minutes * 60_000)
    }

    #[test]
    fn a_token_says_key_team_and_minute_and_is_signed() {
        let tokens = tokens();
        let value = tokens.authorization(Timestamp(START + 59_999)).unwrap();
        assert!(value.is_sensitive());
        let (signed, signature) =
            value.to_str().unwrap().strip_prefix("bearer ").unwrap().rsplit_once('.').unwrap();
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let json = |text: &str| serde_json::from_slice::<Value>(&decode(text)).unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        assert_eq!(json(header), json!({ "alg": "ES256", "kid": "ABCDE12345" }));
        assert_eq!(json(claims), json!({ "iss": "TEAM123456", "iat": START / 1000 }));
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, tokens.key.public_key().as_ref())
            .verify(signed.as_bytes(), &decode(signature))
            .unwrap();
    }

    #[test]
    fn one_token_lives_40_minutes_from_its_first_use() {
        let tokens = tokens();
        let at = |minute| tokens.authorization(minutes(minute)).unwrap();
        let first = at(0);
        assert_eq!((at(39), at(39)), (first.clone(), first.clone()));
        let second = at(40);
        assert_ne!(second, first);
        assert_eq!(at(79), second);
        assert_ne!(at(5), second, "a clock that is set back makes that one a token of the future");
    }

    #[test]
    fn an_expired_token_is_replaced_once_and_not_at_the_next_complaint() {
        let tokens = tokens();
        let first = tokens.authorization(minutes(0)).unwrap();
        assert_eq!(tokens.renewed(&first, minutes(19)), None, "it is new");
        let second = tokens.renewed(&first, minutes(20)).unwrap();
        assert_ne!(second, first);
        assert_eq!(tokens.renewed(&first, minutes(20)), Some(second.clone()), "late word");
        assert_eq!(tokens.renewed(&second, minutes(21)), None);
        assert_eq!(tokens.authorization(minutes(21)), Some(second));
    }

    #[test]
    fn only_a_p256_key_will_do_and_debug_has_no_key() {
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(Tokens::new(&other.serialize_der(), "k", "t").is_none());
        assert!(Tokens::new(b"", "k", "t").is_none());
        let (one, other) = (tokens(), tokens());
        assert!(one.is_of_same_key(&one) && !one.is_of_same_key(&other));
        assert!(!format!("{one:?}").contains("pub"), "{one:?}");
    }
}
