//! A service account of Google's: who we are to FCM, and the proof of it.
//!
//! The proof is a JSON Web Token (RFC 7523) that the account's RSA key signs; the account's server gives
//! an access token for it.

use std::fmt;
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Uri;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::json;

use crate::files;
use crate::model::Timestamp;

/// What a token of the account may be used for.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

/// For how many seconds a proof counts: the longest that Google takes.
const LIFE: i64 = 3600;

/// Most bytes of the file; one has about 2,400.
const MAX_FILE: u64 = 64 * 1024;

/// A service account. `Debug` does not show its key.
pub(super) struct ServiceAccount {
    /// The project that it sends for.
    pub(super) project: String,
    email: String,
    key_id: String,
    /// Where proofs are exchanged for access tokens.
    pub(super) token_uri: Uri,
    key: RsaKeyPair,
}

#[derive(Deserialize)]
struct AccountFile {
    #[serde(rename = "type")]
    kind: String,
    project_id: String,
    private_key_id: String,
    private_key: String,
    client_email: String,
    token_uri: String,
}

impl ServiceAccount {
    /// Reads the file that the Firebase console makes.
    ///
    /// # Errors
    /// A clause for people, which names the file.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let text = files::read_text(path, MAX_FILE).map(|(text, _)| text);
        let text = text.map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
        Self::parse(&text).map_err(|why| format!("{}: {why}", path.display()))
    }

    /// From the content of the file.
    fn parse(text: &str) -> Result<Self, String> {
        // What serde says may show what is in the file.
        let file: AccountFile = serde_json::from_str(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("is no service account (line {line}, column {column}); make a new key")
        })?;
        if file.kind != "service_account" {
            return Err("is of another type than \"service_account\"; make a key of one".into());
        }
        let in_ids = |b: u8| b.is_ascii_alphanumeric() || b"-.:_".contains(&b);
        if file.project_id.is_empty() || !file.project_id.bytes().all(in_ids) {
            return Err("has no project_id that is one".into());
        }
        let token_uri = file.token_uri.parse::<Uri>().ok();
        let token_uri = token_uri.filter(|uri| uri.scheme_str() == Some("https"));
        let token_uri = token_uri.ok_or("has no token_uri that begins with https://")?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(file.private_key.as_bytes()).ok();
        let key = key.and_then(|key| RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).ok());
        Ok(Self {
            project: file.project_id,
            email: file.client_email,
            key_id: file.private_key_id,
            token_uri,
            key: key.ok_or("has no private_key that is an RSA key (PKCS#8, PEM)")?,
        })
    }

    /// The proof at this time of day (RFC 7523 section 2.1); `None` if it cannot be signed.
    pub(super) fn assertion(&self, now: Timestamp) -> Option<String> {
        let at = now.0.div_euclid(1000);
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": self.key_id });
        let claims = json!({
            "iss": self.email,
            "scope": SCOPE,
            "aud": self.token_uri.to_string(),
            "iat": at,
            "exp": at + LIFE,
        });
        let encode = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        let random = SystemRandom::new();
        self.key.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).ok()?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccount").field("project", &self.project).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::encoding::Pkcs8V1Der;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    use base64::engine::general_purpose::STANDARD;
    use serde_json::Value;

    use super::*;

    /// The content of a file, changed.
    pub(in super::super) fn file(change: impl FnOnce(&mut Value)) -> String {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
        let key = STANDARD.encode(der.as_ref());
        let mut file = json!({
            "type": "service_account",
            "project_id": "my-project",
            "private_key_id": "abc",
            "private_key": format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n"),
            "client_email": "me@my-project.iam.gserviceaccount.com",
            "token_uri": "https://oauth2.googleapis.com/token",
            "universe_domain": "googleapis.com",
        });
        change(&mut file);
        file.to_string()
    }

    #[test]
    fn the_proof_says_who_what_for_and_until_when_and_is_signed() {
        let account = ServiceAccount::parse(&file(|_| {})).unwrap();
        let assertion = account.assertion(Timestamp(1_800_000_000_999)).unwrap();
        let (signed, signature) = assertion.rsplit_once('.').unwrap();
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let json = |text: &str| serde_json::from_slice::<Value>(&decode(text)).unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        assert_eq!(json(header), json!({ "alg": "RS256", "typ": "JWT", "kid": "abc" }));
        let expected = json!({
            "iss": "me@my-project.iam.gserviceaccount.com",
            "scope": "https://www.googleapis.com/auth/firebase.messaging",
            "aud": "https://oauth2.googleapis.com/token",
            "iat": 1_800_000_000,
            "exp": 1_800_003_600,
        });
        assert_eq!(json(claims), expected);
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, account.key.public_key().as_ref())
            .verify(signed.as_bytes(), &decode(signature))
            .unwrap();
    }

    #[test]
    fn what_is_no_service_account_is_refused_and_nothing_of_it_is_shown() {
        let refused = |change: fn(&mut Value)| ServiceAccount::parse(&file(change)).unwrap_err();
        for (change, expected) in [
            (
                (|file: &mut Value| drop(file.as_object_mut().unwrap().remove("client_email")))
                    as fn(&mut Value),
                "is no service account (line 1",
            ),
            (|file| file["type"] = "authorized_user".into(), "is of another type"),
            (|file| file["project_id"] = "a/b".into(), "has no project_id"),
            (|file| file["token_uri"] = "http://a/".into(), "has no token_uri"),
            (|file| file["private_key"] = "hush".into(), "has no private_key"),
        ] {
            let why = refused(change);
            assert!(why.starts_with(expected) && !why.contains("hush"), "{why}");
        }
        assert!(ServiceAccount::parse("{\"secret\"").is_err());
        let account = ServiceAccount::parse(&file(|_| {})).unwrap();
        assert_eq!(format!("{account:?}"), "ServiceAccount { project: \"my-project\", .. }");
    }
}
