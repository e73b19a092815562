//! The pin of a public key: a certificate with this key counts, by whatever authority it is signed.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// The SHA-256 of a public key as certificates hold it (SubjectPublicKeyInfo, RFC 5280 section 4.1.2.7), written
/// in base64 (RFC 7469 section 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKeyPin(pub [u8; 32]);

/// A text is no pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPin;

impl FromStr for PublicKeyPin {
    type Err = NoPin;

    fn from_str(text: &str) -> Result<Self, NoPin> {
        let bytes = BASE64_STANDARD.decode(text).map_err(|_| NoPin)?;
        bytes.try_into().map(Self).map_err(|_| NoPin)
    }
}

impl fmt::Display for PublicKeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_base64_of_32_bytes() {
        let text = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(text.parse::<PublicKeyPin>().unwrap().to_string(), text);
        for text in ["", "47DEQpj8", &text[..43], &format!("{text}AAAA"), &"é".repeat(22)] {
            assert_eq!(text.parse::<PublicKeyPin>(), Err(NoPin), "{text}");
        }
    }
}
