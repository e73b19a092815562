//! Who sends: the topics of a client certificate, or a provider token with Apple's checks on it.

use std::collections::HashMap;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::Value;
use x509_parser::asn1_rs::{Any, FromDer, Sequence};
use x509_parser::der_parser::Oid;

use crate::demo::pki::{ProviderKey, TOPICS, UID};

/// A token may be this old, in seconds.
const OLDEST: i64 = 3600;
/// What a token's time may be ahead of Apple's clock.
const AHEAD: i64 = 60;
/// A provider may bring a new token this often, in seconds.
const UPDATES: i64 = 20 * 60;

/// Apple's view of a team and its key. Never held over an await.
pub(super) struct Provider {
    key_id: String,
    team_id: String,
    public_key: Vec<u8>,
    topic: String,
    /// For each connection its token and when that was issued, in seconds since 1970.
    tokens: Mutex<HashMap<u64, (String, i64)>>,
}

impl Provider {
    /// The team may push to `topic` alone.
    pub(super) fn new(key: &ProviderKey, topic: &str) -> Self {
        Self {
            key_id: key.key_id.clone(),
            team_id: key.team_id.clone(),
            public_key: key.public_key().to_vec(),
            topic: topic.to_owned(),
            tokens: Mutex::default(),
        }
    }

    /// The topics that the sender of this `authorization` may push to; `now` is in seconds.
    pub(super) fn topics(
        &self,
        authorization: Option<&str>,
        connection: u64,
        now: i64,
    ) -> Result<Vec<String>, (u16, &'static str)> {
        let token = authorization.ok_or((403, "MissingProviderToken"))?;
        let issued_at = authorization
            .and_then(|value| value.strip_prefix("bearer "))
            .and_then(|token| self.verified(token))
            .ok_or((403, "InvalidProviderToken"))?;
        if issued_at < now - OLDEST || issued_at > now + AHEAD {
            return Err((403, "ExpiredProviderToken"));
        }
        let mut tokens = self.tokens.lock();
        if let Some((last, before)) = tokens.get(&connection)
            && last != token
            && issued_at < before + UPDATES
        {
            return Err((429, "TooManyProviderTokenUpdates"));
        }
        tokens.insert(connection, (token.to_owned(), issued_at));
        Ok(vec![self.topic.clone()])
    }

    /// When a token was issued, if this team's key has signed it (RFC 7515 section 5.2).
    fn verified(&self, token: &str) -> Option<i64> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let json = |text: &str| serde_json::from_slice::<Value>(&decode(text)?).ok();
        let (header, claims) = (json(header)?, json(claims)?);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public_key)
            .verify(signed.as_bytes(), &decode(signature)?)
            .ok()?;
        let ours = header["alg"] == "ES256"
            && header["kid"] == *self.key_id
            && claims["iss"] == *self.team_id;
        claims["iat"].as_i64().filter(|_| ours)
    }
}

/// The topics of a client certificate: the UID of its subject and those in Apple's extension.
pub(super) fn topics_of(certificate: &[u8]) -> Option<Vec<String>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let uid = Oid::from(&UID).ok()?;
    let subject = certificate.subject().iter_by_oid(&uid).next()?.as_str().ok()?.to_owned();
    let mut topics = vec![subject];
    let list = Oid::from(&TOPICS).ok()?;
    if let Ok(Some(extension)) = certificate.get_extension_unique(&list)
        && let Ok((_, sequence)) = Sequence::from_der(extension.value)
    {
        let mut rest: &[u8] = &sequence.content;
        while let Ok((after, any)) = Any::from_der(rest) {
            topics.extend(any.utf8string().ok().map(|text| text.string()));
            rest = after;
        }
    }
    Some(topics)
}
