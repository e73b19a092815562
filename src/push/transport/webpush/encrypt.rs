//! Encryption for one client: RFC 8291, and one record of RFC 8188's `aes128gcm`.
//!
//! ```text
//!   body = salt (16) | record size (4) | 65 | our public key (65) | AES-128-GCM(plaintext | 2 | 0…)
//! ```

use std::fmt;

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{aead, hkdf, rand};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::zeroize::Zeroizing;
use serde_json::{Value, json};

/// Bytes of the plaintext with its padding. Every message has this size, or its length would tell the push
/// service how many mailboxes changed. Far below 4,096 bytes in all, which every push service has to take
/// (RFC 8030 section 7.2).
pub const PADDED: usize = 2048;

/// The same of a short message, for a push service that does not take the others.
pub(super) const PADDED_SHORT: usize = 512;

/// Most bytes of a plaintext: one of [`PADDED`] ends it.
pub const MOST: usize = PADDED - 1;

/// The record size that is said, which only has to be larger than the one record.
const RECORD_SIZE: u32 = 4096;

/// Ends the plaintext of the last record (RFC 8188 section 2).
const LAST_RECORD: u8 = 2;

/// An uncompressed point of P-256.
const PUBLIC_KEY: usize = 65;
const AUTH: usize = 16;
const SALT: usize = 16;

/// Base64url without padding, as it is written; with padding it is read, too.
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The keys of a client (RFC 8291 section 2). `Debug` shows none.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKeys {
    p256dh: [u8; PUBLIC_KEY],
    auth: [u8; AUTH],
}

/// The keys of one message.
struct MessageKeys {
    content: [u8; 16],
    nonce: [u8; aead::NONCE_LEN],
}

/// So many bytes.
struct Length(usize);

// === impl ClientKeys ===

impl ClientKeys {
    /// The `keys` of a browser's subscription, `{"p256dh": …, "auth": …}` in base64url (or base64), with or
    /// without padding.
    ///
    /// # Errors
    /// A sentence for the client, which shows no key.
    pub fn from_json(keys: &Value) -> Result<Self, String> {
        let p256dh = bytes(keys, "p256dh")?;
        let auth = bytes(keys, "auth")?;
        Ok(Self { p256dh, auth })
    }

    /// The same of keys that a client gives: something can be encrypted for them.
    ///
    /// # Errors
    /// As [`ClientKeys::from_json`], and where its public key is no point of the curve.
    pub fn given(keys: &Value) -> Result<Self, String> {
        let keys = Self::from_json(keys)?;
        match keys.encrypt(b"") {
            Ok(_) => Ok(keys),
            Err(Unspecified) => Err("keys.p256dh is no point of the curve P-256".to_owned()),
        }
    }

    /// As [`ClientKeys::from_json`] reads it.
    pub fn to_json(&self) -> Value {
        json!({ "p256dh": URL_SAFE.encode(self.p256dh), "auth": URL_SAFE.encode(self.auth) })
    }

    /// The secret of the two, which only the client and we know.
    pub(super) fn auth(&self) -> &[u8] {
        &self.auth
    }

    /// The body of a request that brings `plain` to the client, padded to [`PADDED`] bytes, under a key and
    /// a salt that are new each time.
    ///
    /// # Errors
    /// Where `plain` is longer than [`MOST`] bytes, or the client's key is no point of the curve.
    pub fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, Unspecified> {
        self.encrypt_in(plain, PADDED)
    }

    /// The same, padded to this many bytes, which have to be more than those of `plain`.
    pub(super) fn encrypt_in(&self, plain: &[u8], padded: usize) -> Result<Vec<u8>, Unspecified> {
        let mut salt = [0; SALT];
        rand::fill(&mut salt)?;
        self.encrypt_with(plain, padded, &PrivateKey::generate(&ECDH_P256)?, &salt)
    }

    fn encrypt_with(
        &self,
        plain: &[u8],
        padded: usize,
        ours: &PrivateKey,
        salt: &[u8; SALT],
    ) -> Result<Vec<u8>, Unspecified> {
        if plain.len() >= padded {
            return Err(Unspecified);
        }
        let public = ours.compute_public_key()?;
        let public = public.as_ref();
        let keys = MessageKeys::new(&*self.shared(ours, public)?, salt)?;
        let head = SALT + size_of::<u32>() + 1 + public.len();
        let mut body = Vec::with_capacity(head + padded + aead::AES_128_GCM.tag_len());
        body.extend_from_slice(salt);
        body.extend_from_slice(&RECORD_SIZE.to_be_bytes());
        body.push(u8::try_from(public.len()).map_err(|_| Unspecified)?);
        body.extend_from_slice(public);
        body.extend_from_slice(plain);
        body.push(LAST_RECORD);
        body.resize(head + padded, 0);
        let key = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_128_GCM, &keys.content)?);
        // The key is of this message alone, and so is its nonce.
        let nonce = aead::Nonce::assume_unique_for_key(keys.nonce);
        let record = body.get_mut(head..).ok_or(Unspecified)?;
        let tag = key.seal_in_place_separate_tag(nonce, aead::Aad::empty(), record)?;
        body.extend_from_slice(tag.as_ref());
        Ok(body)
    }

    /// `IKM` of RFC 8291 section 3.4.
    fn shared(&self, ours: &PrivateKey, public: &[u8]) -> Result<Zeroizing<[u8; 32]>, Unspecified> {
        let theirs = UnparsedPublicKey::new(&ECDH_P256, &self.p256dh[..]);
        let info = [&b"WebPush: info\0"[..], &self.p256dh, public];
        agree(ours, theirs, Unspecified, |secret| {
            let mut shared = Zeroizing::new([0; 32]);
            derive(&self.auth, secret, &info, &mut *shared)?;
            Ok(shared)
        })
    }
}

impl fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKeys")
    }
}

// === impl MessageKeys ===

impl MessageKeys {
    /// `CEK` and `NONCE` of RFC 8188 sections 2.2 and 2.3.
    fn new(shared: &[u8], salt: &[u8; SALT]) -> Result<Self, Unspecified> {
        let mut keys = Self { content: [0; 16], nonce: [0; aead::NONCE_LEN] };
        derive(salt, shared, &[b"Content-Encoding: aes128gcm\0"], &mut keys.content)?;
        derive(salt, shared, &[b"Content-Encoding: nonce\0"], &mut keys.nonce)?;
        Ok(keys)
    }
}

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF with SHA-256 (RFC 5869).
fn derive(salt: &[u8], secret: &[u8], info: &[&[u8]], out: &mut [u8]) -> Result<(), Unspecified> {
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    key.expand(info, Length(out.len()))?.fill(out)
}

/// Exactly so many bytes in base64 of either alphabet.
fn bytes<const N: usize>(keys: &Value, key: &str) -> Result<[u8; N], String> {
    let Some(text) = keys.get(key).and_then(Value::as_str) else {
        return Err(format!("keys.{key} is missing; send what the browser's subscription has"));
    };
    // A long text is not worth reading.
    let text = text.get(..2 * N).unwrap_or(text).replace('+', "-").replace('/', "_");
    let bytes = URL_SAFE.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| format!("keys.{key} is not {N} bytes in base64url"))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;

    use super::*;

    /// RFC 8291 appendix A.
    const PLAIN: &[u8] = b"When I grow up, I want to be a watermelon";
    const OURS: &str = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw";
    const OUR_PUBLIC: &str =
        "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8";
    const THEIRS: &str = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94";
    const P256DH: &str =
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";
    const SALT: &str = "DGv6ra1nlYgDCS1FRnbzlw";
    const BODY: &str = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";

    fn decoded(text: &str) -> Vec<u8> {
        URL_SAFE.decode(text).unwrap()
    }

    fn encoded(bytes: &[u8]) -> String {
        URL_SAFE.encode(bytes)
    }

    fn private(text: &str) -> PrivateKey {
        PrivateKey::from_private_key(&ECDH_P256, &decoded(text)).unwrap()
    }

    fn client() -> ClientKeys {
        ClientKeys::from_json(&json!({ "p256dh": P256DH, "auth": AUTH })).unwrap()
    }

    fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
    }

    /// Each value of RFC 8291 section 3.4 from the one before it, by HMAC alone; those that the program
    /// has are compared with it.
    #[test]
    fn each_value_on_the_way_is_that_of_the_rfc() {
        let (ours, client) = (private(OURS), client());
        let public = ours.compute_public_key().unwrap();
        assert_eq!(encoded(public.as_ref()), OUR_PUBLIC);
        let theirs = UnparsedPublicKey::new(&ECDH_P256, decoded(P256DH));
        let secret = agree(&ours, theirs, (), |secret| Ok::<_, ()>(secret.to_vec())).unwrap();
        assert_eq!(encoded(&secret), "kyrL1jIIOHEzg3sM2ZWRHDRB62YACZhhSlknJ672kSs");
        let prk = hmac(&decoded(AUTH), &secret);
        assert_eq!(encoded(&prk), "Snr3JMxaHVDXHWJn5wdC52WjpCtd2EIEGBykDcZW32k");
        let info = [b"WebPush: info\0", &*decoded(P256DH), public.as_ref(), &[1]].concat();
        let ikm = hmac(&prk, &info);
        assert_eq!(encoded(&ikm), "S4lYMb_L0FxCeq0WhDx813KgSYqU26kOyzWUdsXYyrg");
        assert_eq!(client.shared(&ours, public.as_ref()).unwrap().to_vec(), ikm);
        let prk = hmac(&decoded(SALT), &ikm);
        assert_eq!(encoded(&prk), "09_eUZGrsvxChDCGRCdkLiDXrReGOEVeSCdCcPBSJSc");
        let content = &hmac(&prk, b"Content-Encoding: aes128gcm\0\x01")[..16];
        assert_eq!(encoded(content), "oIhVW04MRdy2XN9CiKLxTg");
        let nonce = &hmac(&prk, b"Content-Encoding: nonce\0\x01")[..12];
        assert_eq!(encoded(nonce), "4h_95klXJ5E_qnoN");
        let keys = MessageKeys::new(&ikm, &decoded(SALT).try_into().unwrap()).unwrap();
        assert_eq!((&keys.content[..], &keys.nonce[..]), (content, nonce));
    }

    #[test]
    fn the_example_of_the_rfc_is_encrypted_as_there() {
        let salt = decoded(SALT).try_into().unwrap();
        let body = client().encrypt_with(PLAIN, PLAIN.len() + 1, &private(OURS), &salt).unwrap();
        assert_eq!((encoded(&body).as_str(), body.len()), (BODY, 144));
    }

    /// Read as a client reads it, with its own private key.
    #[test]
    fn a_message_is_padded_to_one_size_and_read_by_its_client_alone() {
        let bodies = [&b""[..], PLAIN, &[b'x'; MOST]].map(|plain| {
            let body = client().encrypt(plain).unwrap();
            assert_eq!(body.len(), 86 + PADDED + 16);
            let (head, record) = body.split_at(86);
            let ours = UnparsedPublicKey::new(&ECDH_P256, &head[21..]);
            let theirs = private(THEIRS);
            let ikm = agree(&theirs, ours, (), |secret| {
                let prk = hmac(&decoded(AUTH), secret);
                let info = [b"WebPush: info\0", &*decoded(P256DH), &head[21..], &[1]].concat();
                Ok::<_, ()>(hmac(&prk, &info))
            });
            let salt = head[..16].try_into().unwrap();
            let keys = MessageKeys::new(&ikm.unwrap(), &salt).unwrap();
            let key = aead::UnboundKey::new(&aead::AES_128_GCM, &keys.content).unwrap();
            let nonce = aead::Nonce::assume_unique_for_key(keys.nonce);
            let mut record = record.to_vec();
            let opened = aead::LessSafeKey::new(key)
                .open_in_place(nonce, aead::Aad::empty(), &mut record)
                .unwrap();
            assert_eq!(opened.len(), PADDED);
            let (text, rest) = opened.split_at(plain.len());
            assert_eq!(text, plain);
            assert!(rest[0] == LAST_RECORD && rest[1..].iter().all(|byte| *byte == 0));
            body
        });
        assert_ne!(bodies[0][..86], bodies[1][..86], "a key and a salt of each message's own");
        assert!(client().encrypt(&[b'x'; PADDED]).is_err());
    }

    #[test]
    fn keys_are_read_in_each_form_that_clients_write_and_others_are_named() {
        let expected = client();
        let standard = |text: &str| text.replace('-', "+").replace('_', "/");
        for (p256dh, auth) in [
            (P256DH.to_owned(), format!("{AUTH}==")),
            (format!("{}=", standard(P256DH)), standard(AUTH)),
        ] {
            let keys = json!({ "p256dh": p256dh, "auth": auth });
            assert_eq!(ClientKeys::from_json(&keys).unwrap(), expected);
        }
        assert_eq!(ClientKeys::from_json(&expected.to_json()).unwrap(), expected);
        assert_eq!(format!("{expected:?}"), "ClientKeys");
        let off_the_curve = encoded(&[4; 65]);
        for (keys, problem) in [
            (json!(null), "keys.p256dh is missing"),
            (json!({ "p256dh": 1, "auth": AUTH }), "keys.p256dh is missing"),
            (json!({ "p256dh": P256DH }), "keys.auth is missing"),
            (json!({ "p256dh": &P256DH[1..], "auth": AUTH }), "keys.p256dh is not 65 bytes"),
            (json!({ "p256dh": P256DH, "auth": "BTBZMqHH6r4Tts7J" }), "keys.auth is not 16 bytes"),
            (json!({ "p256dh": P256DH, "auth": "x".repeat(100_000) }), "keys.auth is not 16 bytes"),
            (json!({ "p256dh": off_the_curve, "auth": AUTH }), "keys.p256dh is no point"),
        ] {
            let why = ClientKeys::given(&keys).unwrap_err();
            assert!(why.starts_with(problem), "{keys}: {why}");
        }
    }
}
