//! SASL as mailchime understands it: PLAIN (RFC 4616), LOGIN (draft-murchison-sasl-login), XOAUTH2
//! (Google's) and OAUTHBEARER (RFC 7628).

use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::{Engine, alphabet};

use crate::model::Credentials;

/// Some clients leave bits in the padding, which say nothing (RFC 4648 section 3.5).
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// A mechanism that carries a secret which can be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// PLAIN (RFC 4616)
    Plain,
    /// LOGIN, which no RFC has.
    Login,
    /// XOAUTH2, by Google.
    XOAuth2,
    /// OAUTHBEARER (RFC 7628)
    OAuthBearer,
}

/// The server's side of an exchange.
#[derive(Debug)]
pub enum SaslExchange {
    /// The one message of this mechanism is awaited.
    Message(Mechanism),
    /// LOGIN: the password is awaited.
    LoginPassword {
        /// The name.
        login: String,
    },
}

/// What follows a client's message.
#[derive(Debug)]
pub enum SaslStep {
    /// Send this challenge (base64, without the `+ `) and go on.
    Challenge(SaslExchange, &'static str),
    /// The client has sent its credentials.
    Credentials(Credentials),
    /// A token that comes without a name (RFC 7628 section 3.1): it is the backend's to say whose it
    /// is. The client's one message, in base64.
    Nameless(String),
    /// The client gave up with `*`.
    Cancelled,
    /// Not base64, or not of the mechanism's form.
    Malformed,
}

impl Mechanism {
    /// The mechanism of this name, in any case.
    pub fn named(name: &[u8]) -> Option<Self> {
        [Self::Plain, Self::Login, Self::XOAuth2, Self::OAuthBearer]
            .into_iter()
            .find(|mechanism| name.eq_ignore_ascii_case(mechanism.name().as_bytes()))
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
            Self::XOAuth2 => "XOAUTH2",
            Self::OAuthBearer => "OAUTHBEARER",
        }
    }

    /// The exchange and its first challenge.
    pub fn start(self) -> (SaslExchange, &'static str) {
        match self {
            Self::Login => (SaslExchange::Message(self), "VXNlcm5hbWU6"),
            _ => (SaslExchange::Message(self), ""),
        }
    }
}

impl SaslExchange {
    /// Takes one line of the client without its line end: base64, `*`, or `=` for nothing (only as
    /// an initial response).
    pub fn respond(self, line: &[u8]) -> SaslStep {
        if line == b"*" {
            return SaslStep::Cancelled;
        }
        let line = if line == b"=" { b"" } else { line };
        let Some(message) = decode(line) else { return SaslStep::Malformed };
        let credentials = match self {
            Self::Message(Mechanism::Plain) => plain(&message),
            Self::Message(Mechanism::XOAuth2) => xoauth2(&message),
            Self::Message(Mechanism::OAuthBearer) => match names_nobody(&message) {
                true => return SaslStep::Nameless(STANDARD.encode(message)),
                false => oauthbearer(&message),
            },
            Self::Message(Mechanism::Login) => match String::from_utf8(message) {
                Ok(login) => {
                    return SaslStep::Challenge(Self::LoginPassword { login }, "UGFzc3dvcmQ6");
                }
                Err(_) => None,
            },
            Self::LoginPassword { login } => Some(Credentials::password(login, message)),
        };
        credentials.map_or(SaslStep::Malformed, SaslStep::Credentials)
    }
}

/// The bytes of a message in base64, with all of its padding.
pub fn decode(base64: &[u8]) -> Option<Vec<u8>> {
    LENIENT.decode(base64).ok()
}

fn plain(message: &[u8]) -> Option<Credentials> {
    let mut parts = message.splitn(3, |b| *b == 0);
    let (authorization, login, password) = (parts.next()?, parts.next()?, parts.next()?);
    if password.contains(&0) {
        return None;
    }
    let login = std::str::from_utf8(login).ok()?;
    let authorization = std::str::from_utf8(authorization).ok()?;
    let credentials = Credentials::password(login, password.to_vec());
    Some(if authorization == login { credentials } else { credentials.acting_as(authorization) })
}

/// `user=<name>^Aauth=Bearer <token>^A^A`
fn xoauth2(message: &[u8]) -> Option<Credentials> {
    let mut fields = message.split(|b| *b == 1);
    let login = fields.next()?.strip_prefix(b"user=")?;
    bearer(login, fields)
}

/// `n,a=<name>,^Ahost=…^Aport=…^Aauth=Bearer <token>^A^A`
fn oauthbearer(message: &[u8]) -> Option<Credentials> {
    let mut fields = message.split(|b| *b == 1);
    let header = std::str::from_utf8(fields.next()?).ok()?;
    // Channel binding (`p=`) cannot pass a proxy.
    let rest = header.strip_prefix("n,").or_else(|| header.strip_prefix("y,"))?;
    let login = rest.strip_prefix("a=")?.strip_suffix(',')?;
    let login = login.replace("=2C", ",").replace("=3D", "=");
    bearer(login.as_bytes(), fields)
}

/// Whether this is a message of OAUTHBEARER without an authorization identity.
fn names_nobody(message: &[u8]) -> bool {
    [&b"n,,\x01"[..], b"y,,\x01"].iter().any(|header| message.starts_with(header))
        && message.ends_with(b"\x01\x01")
}

fn bearer<'a>(login: &[u8], mut fields: impl Iterator<Item = &'a [u8]>) -> Option<Credentials> {
    let login = std::str::from_utf8(login).ok()?;
    let auth = fields.find_map(|field| field.strip_prefix(b"auth="))?;
    let (scheme, token) = auth.split_at_checked(7)?;
    let fit = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    (scheme.eq_ignore_ascii_case(b"Bearer ") && fit)
        .then(|| Credentials::bearer(login, token.to_vec()))
}

/// The client's messages of `mechanism` for these credentials, in base64: LOGIN has two.
pub fn messages(mechanism: Mechanism, credentials: &Credentials) -> Vec<String> {
    let (login, secret) = (credentials.login.as_bytes(), credentials.expose_secret());
    let message = match mechanism {
        Mechanism::Plain => {
            [credentials.authorization.as_bytes(), b"\0", login, b"\0", secret].concat()
        }
        Mechanism::XOAuth2 => [b"user=", login, b"\x01auth=Bearer ", secret, b"\x01\x01"].concat(),
        Mechanism::OAuthBearer => {
            let name = credentials.login.replace('=', "=3D").replace(',', "=2C");
            [b"n,a=", name.as_bytes(), b",\x01auth=Bearer ", secret, b"\x01\x01"].concat()
        }
        Mechanism::Login => return [login, secret].map(|text| STANDARD.encode(text)).to_vec(),
    };
    vec![STANDARD.encode(message)]
}

/// Whether a backend's mechanism may be relayed line by line although it is not understood: it must
/// need no TLS of its own (channel binding, certificates), and prove somebody.
pub fn is_relayable(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    Mechanism::named(upper.as_bytes()).is_none()
        && !upper.ends_with("-PLUS")
        && !["EXTERNAL", "ANONYMOUS"].contains(&upper.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(step: SaslStep) -> (String, String, Vec<u8>) {
        match step {
            SaslStep::Credentials(c) => {
                (c.authorization.clone(), c.login.clone(), c.expose_secret().to_vec())
            }
            other => panic!("{other:?}"),
        }
    }

    fn respond(mechanism: Mechanism, message: &[u8]) -> SaslStep {
        SaslExchange::Message(mechanism).respond(STANDARD.encode(message).as_bytes())
    }

    #[test]
    fn plain_with_and_without_authorization() {
        for (message, expected) in [
            (&b"\0alice\0wonder land"[..], ("", "alice", &b"wonder land"[..])),
            (b"alice\0alice\0x", ("", "alice", b"x")),
            (b"bob\0boss\0\xff\"\\", ("bob", "boss", b"\xff\"\\")),
        ] {
            let (authorization, login, password) = credentials(respond(Mechanism::Plain, message));
            assert_eq!((&authorization[..], &login[..], &password[..]), expected);
            let again = Credentials::password(login, password).acting_as(authorization);
            round_trip(Mechanism::Plain, &again);
        }
    }

    #[test]
    fn bearer_tokens() {
        let token = b"ya29.Token-x_y~z==";
        let message = b"user=a@b.example\x01auth=Bearer ya29.Token-x_y~z==\x01\x01";
        let (_, login, secret) = credentials(respond(Mechanism::XOAuth2, message));
        assert_eq!((&login[..], &secret[..]), ("a@b.example", &token[..]));
        let message =
            b"n,a=a=2Cb=3Dc,\x01host=x\x01port=993\x01auth=bearer ya29.Token-x_y~z==\x01\x01";
        let (_, login, secret) = credentials(respond(Mechanism::OAuthBearer, message));
        assert_eq!((&login[..], &secret[..]), ("a,b=c", &token[..]));
        for mechanism in [Mechanism::XOAuth2, Mechanism::OAuthBearer] {
            round_trip(mechanism, &Credentials::bearer("a,b=c", token.to_vec()));
        }
        for (mechanism, bad) in [
            (Mechanism::XOAuth2, &b"user=a\x01auth=Basic x\x01\x01"[..]),
            (Mechanism::XOAuth2, b"user=a\x01auth=Bearer \x01\x01"),
            (Mechanism::XOAuth2, b"user=a\x01auth=Bearer a b\x01\x01"),
            (Mechanism::XOAuth2, b"a\x01auth=Bearer x\x01\x01"),
            (Mechanism::OAuthBearer, b"p=tls-unique,a=a,\x01auth=Bearer x\x01\x01"),
            (Mechanism::OAuthBearer, b"n,,\x01auth=Bearer x"),
            (Mechanism::OAuthBearer, b"\x01"),
        ] {
            let step = respond(mechanism, bad);
            assert!(matches!(step, SaslStep::Malformed), "{}: {step:?}", bad.escape_ascii());
        }
    }

    #[test]
    fn a_token_without_a_name_is_the_backends_to_judge() {
        for message in [
            &b"n,,\x01auth=Bearer x\x01\x01"[..],
            b"y,,\x01host=x\x01port=993\x01auth=Bearer x\x01\x01",
            // A client that asks what the server wants.
            b"n,,\x01auth=\x01\x01",
        ] {
            let step = respond(Mechanism::OAuthBearer, message);
            assert!(matches!(&step, SaslStep::Nameless(same) if *same == STANDARD.encode(message)));
        }
    }

    fn round_trip(mechanism: Mechanism, known: &Credentials) {
        let [message] = &messages(mechanism, known)[..] else { panic!("one message") };
        let step = SaslExchange::Message(mechanism).respond(message.as_bytes());
        assert!(matches!(&step, SaslStep::Credentials(c) if c.same_as(known)), "{step:?}");
    }

    #[test]
    fn malformed_and_cancelled() {
        for bad in ["!", "AAA", "YWxpY2U=", "AGE=", "AGEAYgBj", "=", "", "\u{fc}"] {
            let step = SaslExchange::Message(Mechanism::Plain).respond(bad.as_bytes());
            assert!(matches!(step, SaslStep::Malformed), "{bad}: {step:?}");
        }
        for mechanism in [Mechanism::Plain, Mechanism::Login] {
            assert!(matches!(SaslExchange::Message(mechanism).respond(b"*"), SaslStep::Cancelled));
        }
    }

    #[test]
    fn bits_in_the_padding_say_nothing() {
        for (text, expected) in [
            ("YQ==", Some(&b"a"[..])),
            ("YR==", Some(b"a")),
            ("Yf==", Some(b"a")),
            ("YWI=", Some(b"ab")),
            ("YWL=", Some(b"ab")),
            ("YWJj", Some(b"abc")),
            ("YR", None),
            ("YR=", None),
            ("YR===", None),
            ("YWJj=", None),
            ("YW Jj", None),
        ] {
            assert_eq!(decode(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn login_asks_twice() {
        let (exchange, challenge) = Mechanism::Login.start();
        assert_eq!(STANDARD.decode(challenge).unwrap(), b"Username:");
        let SaslStep::Challenge(exchange, challenge) = exchange.respond(b"YWxpY2U=") else {
            panic!()
        };
        assert_eq!(STANDARD.decode(challenge).unwrap(), b"Password:");
        let (_, login, password) = credentials(exchange.respond(b"c2VjcmV0"));
        assert_eq!((&login[..], &password[..]), ("alice", &b"secret"[..]));
        let alice = Credentials::password("alice", b"secret".to_vec());
        assert_eq!(messages(Mechanism::Login, &alice), ["YWxpY2U=", "c2VjcmV0"]);
    }

    #[test]
    fn what_may_be_relayed() {
        for (name, expected) in [
            ("SCRAM-SHA-256", true),
            ("cram-md5", true),
            ("SCRAM-SHA-256-PLUS", false),
            ("EXTERNAL", false),
            ("ANONYMOUS", false),
            ("PLAIN", false),
            ("xoauth2", false),
        ] {
            assert_eq!(is_relayable(name), expected, "{name}");
        }
    }
}
