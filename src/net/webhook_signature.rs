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
