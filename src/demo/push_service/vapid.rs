//! Who sends: the token and the key of an `authorization` (RFC 8292 section 3), as a push service checks them.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// The most that a token may be ahead of its end, in seconds.
const LONGEST: u64 = 24 * 3600;

/// Why the sender may not send to a subscription of `key` at the push service of `origin`.
pub(super) fn refusal(authorization: &str, key: &str, origin: &str) -> Option<(u16, &'static str)> {
    let parts = authorization.strip_prefix("vapid ").map(|parts| {
        let part = |name| parts.split(',').find_map(|part| part.trim().strip_prefix(name));
        (part("t="), part("k="))
    });
    let Some((Some(token), Some(given))) = parts else { return Some((401, "no VAPID token")) };
    let Some(claims) = claims(token, given) else { return Some((403, "InvalidSignature")) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let ends = claims["exp"].as_u64().unwrap_or_default();
    let contact = claims["sub"].as_str().unwrap_or_default();
    if given != key {
        return Some((403, "VapidPkHashMismatch"));
    }
    if claims["aud"] != origin {
        return Some((403, "aud is another origin"));
    }
    if ends <= now || ends > now + LONGEST {
        return Some((403, "ExpiredJwtToken"));
    }
    if !contact.starts_with("mailto:") && !contact.starts_with("https:") {
        return Some((403, "BadJwtToken"));
    }
    None
}

/// The claims of a token that the holder of this key has signed.
fn claims(token: &str, key: &str) -> Option<Value> {
    let (signed, signature) = token.rsplit_once('.')?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, decode(key)?)
        .verify(signed.as_bytes(), &decode(signature)?)
        .ok()?;
    let (head, claims) = signed.split_once('.')?;
    let head: Value = serde_json::from_slice(&decode(head)?).ok()?;
    (head["alg"] == "ES256").then_some(())?;
    serde_json::from_slice(&decode(claims)?).ok()
}
