//! A browser with a subscription: its keys, and what it reads (RFC 8291 section 3, RFC 8188 section 2).

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::{aead, hkdf, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};

/// One subscription. `Debug` shows the endpoint alone.
pub struct Browser {
    endpoint: String,
    application_server_key: String,
    private: PrivateKey,
    public: Vec<u8>,
    auth: [u8; 16],
}

/// Salt, record size, length of the sender's key, and the key.
const HEAD: usize = 16 + 4 + 1 + 65;

impl Browser {
    #[expect(clippy::expect_used, reason = "a stand-in without random bytes is of no use")]
    pub(super) fn new(endpoint: String, application_server_key: &str) -> Self {
        let private = PrivateKey::generate(&ECDH_P256).expect("a key");
        let public = private.compute_public_key().expect("its public half").as_ref().to_vec();
        let mut auth = [0; 16];
        rand::fill(&mut auth).expect("random bytes");
        Self {
            endpoint,
            application_server_key: application_server_key.to_owned(),
            private,
            public,
            auth,
        }
    }

    /// Where its messages are sent to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What `PushSubscription.toJSON()` gives.
    pub fn to_json(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({
            "endpoint": self.endpoint,
            "expirationTime": null,
            "keys": { "p256dh": encode(&self.public), "auth": encode(&self.auth) },
        })
    }

    pub(super) fn application_server_key(&self) -> &str {
        &self.application_server_key
    }

    /// What a body says to this browser; `None` if it is for another, or no message.
    pub(super) fn decrypt(&self, body: &[u8]) -> Option<Bytes> {
        let (head, record) = body.split_at_checked(HEAD)?;
        let (salt, theirs) = (&head[..16], &head[21..]);
        let size = u32::from_be_bytes(head[16..20].try_into().ok()?);
        if head[20] != 65 || record.len() > usize::try_from(size).ok()? {
            return None;
        }
        let info = [b"WebPush: info\0", &self.public[..], theirs].concat();
        let peer = UnparsedPublicKey::new(&ECDH_P256, theirs);
        let shared = agree(&self.private, peer, None, |secret| {
            derive::<32>(&self.auth, secret, &info).ok_or(None::<()>)
        });
        let shared = shared.ok()?;
        let key: [u8; 16] = derive(salt, &shared, b"Content-Encoding: aes128gcm\0")?;
        let nonce = derive(salt, &shared, b"Content-Encoding: nonce\0")?;
        let key = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_128_GCM, &key).ok()?);
        let mut record = record.to_vec();
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let plain = key.open_in_place(nonce, aead::Aad::empty(), &mut record).ok()?;
        // Behind the text are a 2, for it is the last record, and zeros.
        let end = plain.iter().rposition(|byte| *byte != 0)?;
        (plain[end] == 2).then(|| Bytes::copy_from_slice(&plain[..end]))
    }
}

impl std::fmt::Debug for Browser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Browser").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

struct OutputLength(usize);

impl hkdf::KeyType for OutputLength {
    fn len(&self) -> usize {
        self.0
    }
}

fn derive<const N: usize>(salt: &[u8], secret: &[u8], info: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    key.expand(&[info], OutputLength(N)).ok()?.fill(&mut out).ok()?;
    Some(out)
}
