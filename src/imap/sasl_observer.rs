//! Who logs in by a mechanism that hides the password: the name in its messages, which pass between
//! client and backend. SCRAM (RFC 5802, RFC 7677) and CRAM-MD5 (RFC 2195) are followed.
//!
//! Once the backend has accepted the login the name is whom it has accepted, and so whose mailboxes
//! may be watched. It must be just the name that the backend took, so whatever is not exactly as the
//! mechanism says ends in nobody: a message too many, a nonce that the backend does not take up, a
//! name that is not ASCII (which a backend may map to another one), and users who act as somebody
//! else, since a backend that overlooks the authorization identity would let anybody be anybody.

use super::sasl;

/// Longest name, in bytes.
const LONGEST: usize = 512;

/// One exchange, as far as it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaslObserver {
    /// Nothing was said.
    Scram,
    /// The client has named itself.
    ScramFirst {
        /// The name.
        name: String,
        /// The client's nonce.
        nonce: Vec<u8>,
    },
    /// The backend has answered with its nonce behind that of the client.
    ScramChallenged {
        /// The name.
        name: String,
        /// The client's nonce.
        nonce: Vec<u8>,
    },
    /// Nothing was said.
    CramMd5,
    /// CRAM-MD5, and the challenge was sent.
    CramMd5Challenged,
    /// The client has proved to be this one, which is the backend's to judge.
    Name(String),
    /// There is no saying who it is.
    Nobody,
}

impl SaslObserver {
    /// An exchange by this mechanism that has not begun.
    pub fn new(mechanism: &str) -> Self {
        match mechanism.to_ascii_uppercase().as_str() {
            "CRAM-MD5" => Self::CramMd5,
            name if name.starts_with("SCRAM-") && !name.ends_with("-PLUS") => Self::Scram,
            _ => Self::Nobody,
        }
    }

    /// The client says this, in base64; `=` is nothing, in an initial response.
    pub fn client(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = if line == b"=" { b"" } else { line };
        let message = sasl::decode(line);
        let before = std::mem::replace(self, Self::Nobody);
        *self = message.and_then(|message| before.said(&message)).unwrap_or(Self::Nobody);
    }

    /// The backend says this, in base64.
    pub fn backend(&mut self, text: &[u8]) {
        let message = sasl::decode(text);
        let before = std::mem::replace(self, Self::Nobody);
        *self = message.and_then(|message| before.asked(&message)).unwrap_or(Self::Nobody);
    }

    /// Whom the backend has accepted, if it has.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            _ => None,
        }
    }

    /// `None` is nobody.
    fn said(self, message: &[u8]) -> Option<Self> {
        match self {
            Self::Scram => {
                let (name, nonce) = client_first(message)?;
                Some(Self::ScramFirst { name, nonce })
            }
            Self::ScramChallenged { name, nonce } => {
                // `c=biws,r=<nonce>,p=<proof>`
                let mut fields = message.split(|byte| *byte == b',');
                let bound = fields.next()?.starts_with(b"c=");
                let same = fields.next()?.strip_prefix(b"r=")? == nonce;
                (bound && same).then_some(Self::Name(name))
            }
            Self::CramMd5Challenged => {
                let blank = message.iter().rposition(|byte| *byte == b' ')?;
                let (name, digest) = (&message[..blank], &message[blank + 1..]);
                let proves = digest.len() == 32 && digest.iter().all(u8::is_ascii_hexdigit);
                fit(name).filter(|_| proves).map(Self::Name)
            }
            // The backend's last word of SCRAM is answered with nothing.
            Self::Name(name) if message.is_empty() => Some(Self::Name(name)),
            _ => None,
        }
    }

    /// `None` is nobody.
    fn asked(self, message: &[u8]) -> Option<Self> {
        match self {
            Self::Scram if message.is_empty() => Some(Self::Scram),
            Self::ScramFirst { name, nonce } => {
                // `r=<nonce>,s=<salt>,i=<iterations>`
                let theirs = message.split(|byte| *byte == b',').next()?.strip_prefix(b"r=")?;
                let longer = theirs.len() > nonce.len() && theirs.starts_with(&nonce);
                longer.then(|| Self::ScramChallenged { name, nonce: theirs.to_vec() })
            }
            Self::CramMd5 if !message.is_empty() => Some(Self::CramMd5Challenged),
            Self::Name(name) if message.starts_with(b"v=") => Some(Self::Name(name)),
            _ => None,
        }
    }
}

/// Name and nonce of `n,[a=<name>],n=<name>,r=<nonce>` (RFC 5802 section 7). Channel binding (`p=`)
/// cannot pass a proxy.
fn client_first(message: &[u8]) -> Option<(String, Vec<u8>)> {
    let mut fields = message.split(|byte| *byte == b',');
    if !matches!(fields.next()?, b"n" | b"y") {
        return None;
    }
    let authorization = fields.next()?;
    let name = sasl_name(fields.next()?.strip_prefix(b"n=")?)?;
    let nonce = fields.next()?.strip_prefix(b"r=")?;
    let own = match authorization.strip_prefix(b"a=") {
        Some(authorization) => sasl_name(authorization)? == name,
        None => authorization.is_empty(),
    };
    (own && !nonce.is_empty()).then(|| (name, nonce.to_vec()))
}

/// A name in which `=2C` is a comma and `=3D` an equals sign, and no other `=` may stand.
fn sasl_name(escaped: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(escaped).ok()?;
    let mut parts = text.split('=');
    let mut name = parts.next()?.to_owned();
    for part in parts {
        let (meant, rest) = match part.get(..2)? {
            "2C" => (',', &part[2..]),
            "3D" => ('=', &part[2..]),
            _ => return None,
        };
        name.push(meant);
        name.push_str(rest);
    }
    fit(name.as_bytes())
}

fn fit(name: &[u8]) -> Option<String> {
    let printable = name.iter().all(|byte| matches!(byte, b' '..=b'~'));
    let fits = printable && (1..=LONGEST).contains(&name.len());
    fits.then(|| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// Plays an exchange: `C: ` the client says, `B: ` the backend.
    fn name(mechanism: &str, exchange: &[&str]) -> Option<String> {
        let mut observer = SaslObserver::new(mechanism);
        for line in exchange {
            let text = STANDARD.encode(&line[3..]);
            match &line[..3] {
                "C: " => observer.client(format!("{text}\r\n").as_bytes()),
                _ => observer.backend(text.as_bytes()),
            }
        }
        observer.name().map(str::to_owned)
    }

    fn scram(first: &str) -> Option<String> {
        let exchange = [&format!("C: {first}"), "B: r=abXY,s=QQ==,i=4096", "C: c=biws,r=abXY,p=x"];
        name("SCRAM-SHA-256", &exchange)
    }

    #[test]
    fn scram_names_the_user_in_its_first_message() {
        for (first, expected) in [
            ("n,,n=user,r=ab", Some("user")),
            ("y,,n=user,r=ab,x=extension", Some("user")),
            ("n,a=user,n=user,r=ab", Some("user")),
            ("n,,n=a=2Cb=3Dc d@e.example,r=ab", Some("a,b=c d@e.example")),
            // Acts as somebody else.
            ("n,a=victim,n=user,r=ab", None),
            ("n,a=,n=user,r=ab", None),
            ("p=tls-unique,,n=user,r=ab", None),
            ("n,,m=x,n=user,r=ab", None),
            ("n,,n=,r=ab", None),
            ("n,,n=a=2cb,r=ab", None),
            ("n,,n=a=,r=ab", None),
            ("n,,n=a=\u{fc}b,r=ab", None),
            // SASLprep makes `victim` of it.
            ("n,,n=vic\u{ad}tim,r=ab", None),
            ("n,,n=a\u{7f},r=ab", None),
            ("n,,n=user,r=", None),
            ("n,,n=user", None),
            ("n,n=user,r=ab", None),
            ("", None),
        ] {
            assert_eq!(scram(first).as_deref(), expected, "{first}");
        }
    }

    #[test]
    fn only_the_exchange_that_the_backend_took_up_counts() {
        let first = "C: n,,n=user,r=ab";
        let (challenge, last) = ("B: r=abXY,s=QQ==,i=4096", "C: c=biws,r=abXY,p=x");
        let of = |exchange: &[&str]| name("scram-sha-1", exchange);
        let user = Some("user".to_owned());
        assert_eq!(of(&["B: ", first, challenge, last, "B: v=x", "C: "]), user);
        for bad in [
            &[first, challenge][..],
            &[first, last],
            &[challenge, first, challenge, last],
            // An initial response that the backend overlooked, and another name behind it.
            &["C: n,,n=victim,r=zz", "B: ", first, challenge, last],
            &["C: n,,n=victim,r=zz", challenge, "C: c=biws,r=abXY,p=x"],
            &["C: n,,n=victim,r=ab", first, challenge, last],
            &[first, "B: r=ab,s=QQ==,i=4096", "C: c=biws,r=ab,p=x"],
            &[first, "B: e=unknown-user", last],
            &[first, challenge, "C: c=biws,r=abXYZ,p=x"],
            &[first, challenge, last, "C: n,,n=victim,r=ab"],
            &[first, challenge, last, "B: r=abXY,s=QQ==,i=1"],
        ] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(name("SCRAM-SHA-256-PLUS", &[first, challenge, last]), None);
    }

    #[test]
    fn cram_md5_names_the_user_in_its_only_message() {
        let proof = "b913a602c7eda7a495b4e6e7334d3890";
        let of = |exchange: &[&str]| name("CRAM-MD5", exchange);
        let said = |name: &str| format!("C: {name} {proof}");
        assert_eq!(of(&["B: <1@x>", &said("tim tam")]).as_deref(), Some("tim tam"));
        for bad in [
            &["B: <1@x>"][..],
            &[&said("tim")],
            &["C: ", "B: <1@x>", &said("tim")],
            &[&said("victim"), "B: <1@x>", &said("tim")],
            &["B: ", &said("tim")],
            &["B: <1@x>", &said("tim"), "B: <2@x>"],
            &["B: <1@x>", &said("tim"), &said("victim")],
            &["B: <1@x>", "C: tim"],
            &["B: <1@x>", &said("")],
            &["B: <1@x>", &said("t\u{fc}m")],
        ] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn nobody_is_known_by_other_mechanisms() {
        let first = "C: n,,n=user,r=ab";
        for mechanism in ["DIGEST-MD5", "GSSAPI", "NTLM", "X-SCRAM-SHA-1", ""] {
            assert_eq!(name(mechanism, &[first]), None, "{mechanism}");
        }
        let mut observer = SaslObserver::new("SCRAM-SHA-1");
        observer.client(b"*\r\n");
        assert_eq!(observer, SaslObserver::Nobody);
    }

    #[test]
    fn a_message_that_is_not_plain_base64_names_no_user() {
        let first = STANDARD.encode("n,,n=user,r=ab");
        for (line, known) in [
            (first.clone(), true),
            (format!("{first}\n"), true),
            (format!("{first}\r\n"), true),
            (format!("{first}\t\n"), false),
            (format!("{first} \r\n"), false),
            (format!(" {first}\r\n"), false),
        ] {
            let mut observer = SaslObserver::new("SCRAM-SHA-256");
            observer.client(line.as_bytes());
            assert_eq!(observer != SaslObserver::Nobody, known, "{line:?}");
        }
    }
}
