//! Signatures of Standard Webhooks: HMAC-SHA256 of id, time and body under a secret that both ends know.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretBox};

/// What a secret begins with as text.
const PREFIX: &str = "whsec_";
/// The bytes of one that is made here.
const LENGTH: usize = 32;
/// The bytes that one may have.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;

/// Signatures of one request that are looked at.
const MOST_GIVEN: usize = 8;

/// The secret of one receiver. `Debug` never shows it; clones share it.
#[derive(Clone)]
pub struct WebhookSecret(Arc<SecretBox<[u8]>>);

impl WebhookSecret {
    /// A new one; `None` if the system gives no random bytes.
    pub fn generate() -> Option<Self> {
        let mut bytes = Zeroizing::new([0; LENGTH]);
        SystemRandom::new().fill(&mut *bytes).ok()?;
        Some(Self::of(bytes.to_vec()))
    }

    /// From `whsec_` and the base64 of 24 to 64 bytes, with or without padding. `None` of all else.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().strip_prefix(PREFIX)?;
        let bytes = STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
        LENGTHS.contains(&bytes.len()).then(|| Self::of(bytes))
    }

    /// As [`WebhookSecret::parse`] takes it: for the receiver, once, and for the vault.
    pub fn expose_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}{}", STANDARD.encode(self.0.expose_secret())))
    }

    fn of(bytes: Vec<u8>) -> Self {
        Self(Arc::new(SecretBox::new(bytes.into_boxed_slice())))
    }

    fn is_tag(&self, signed: &[u8], tag: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.expose_secret());
        // In a time that does not depend on where they differ.
        hmac::verify(&key, signed, tag).is_ok()
    }

    fn sign(&self, signed: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.expose_secret());
        format!("v1,{}", STANDARD.encode(hmac::sign(&key, signed)))
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The value of `webhook-signature`: one signature for each secret, the newest first. `seconds` are those
/// since 1970 in `webhook-timestamp`.
pub fn signature(secrets: &[WebhookSecret], id: &str, seconds: i64, body: &[u8]) -> String {
    let mut signed = format!("{id}.{seconds}.").into_bytes();
    signed.extend_from_slice(body);
    secrets.iter().map(|secret| secret.sign(&signed)).collect::<Vec<_>>().join(" ")
}

/// Whether one of the signatures in `given`, the value of `webhook-signature`, is that of one of the secrets.
/// Signatures of other versions than `v1` are passed over.
pub fn is_signed(
    secrets: &[WebhookSecret],
    given: &str,
    (id, seconds): (&str, i64),
    body: &[u8],
) -> bool {
    let mut signed = format!("{id}.{seconds}.").into_bytes();
    signed.extend_from_slice(body);
    let tags = given.split(' ').filter_map(|one| one.strip_prefix("v1,"));
    let tags = tags.take(MOST_GIVEN).filter_map(|tag| STANDARD.decode(tag).ok());
    tags.into_iter().any(|tag| secrets.iter().any(|secret| secret.is_tag(&signed, &tag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The vector of the specification's own libraries.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let secret = WebhookSecret::parse(SECRET).unwrap();
        let (id, seconds, body) =
            ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signature(std::slice::from_ref(&secret), id, seconds, body), expected);
        let new = WebhookSecret::generate().unwrap();
        let both = signature(&[new.clone(), secret], id, seconds, body);
        let (first, second) = both.split_once(' ').unwrap();
        assert_eq!(second, expected, "an old secret signs, too, while it is kept");
        assert_eq!(first, signature(&[new], id, seconds, body));
    }

    #[test]
    fn a_signature_is_known_by_the_secret_and_the_signed() {
        let secret = WebhookSecret::parse(SECRET).unwrap();
        let (id, seconds, body) =
            ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        let known = [WebhookSecret::generate().unwrap(), secret];
        let good = "v1a,x v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert!(is_signed(&known, good, (id, seconds), body));
        assert!(!is_signed(&known, good, (id, seconds + 1), body));
        assert!(!is_signed(&known, good, ("msg_", seconds), body));
        assert!(!is_signed(&known, good, (id, seconds), b"{}"));
        assert!(!is_signed(&known[..1], good, (id, seconds), body));
        for bad in ["", "v1,", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", "v1,!"] {
            assert!(!is_signed(&known, bad, (id, seconds), body), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_read_as_it_is_written_and_never_shown() {
        let made = WebhookSecret::generate().unwrap();
        let text = made.expose_text();
        assert_eq!(*WebhookSecret::parse(&format!(" {}\n", *text)).unwrap().expose_text(), *text);
        assert_eq!(
            WebhookSecret::parse(SECRET).unwrap().expose_text().trim_end_matches('='),
            SECRET
        );
        assert_eq!(format!("{made:?}"), "[redacted]");
        let short = format!("whsec_{}", STANDARD.encode([0; 23]));
        let long = format!("whsec_{}", STANDARD.encode([0; 65]));
        for bad in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_%%%%", &short, &long] {
            assert!(WebhookSecret::parse(bad).is_none(), "{bad}");
        }
    }
}
