//! SASL as mailchime understands it: PLAIN (RFC 4616) and LOGIN (draft-murchison-sasl-login).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::model::Credentials;

/// A mechanism that carries a password which can be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    Login,
}

/// The server's side of an exchange.
#[derive(Debug)]
pub enum Exchange {
    /// PLAIN: its one message is awaited.
    Plain,
    /// LOGIN: the name is awaited.
    LoginName,
    /// LOGIN: the password is awaited.
    LoginPassword { login: String },
}

/// What follows a client's message.
#[derive(Debug)]
pub enum Step {
    /// Send this challenge (base64, without the `+ `) and go on.
    Challenge(Exchange, &'static str),
    Credentials(Credentials),
    /// The client gave up with `*`.
    Cancelled,
    /// Not base64, or not of the mechanism's form.
    Malformed,
}

impl Mechanism {
    pub fn named(name: &[u8]) -> Option<Self> {
        if name.eq_ignore_ascii_case(b"PLAIN") {
            Some(Self::Plain)
        } else if name.eq_ignore_ascii_case(b"LOGIN") {
            Some(Self::Login)
        } else {
            None
        }
    }

    /// The exchange and its first challenge.
    pub fn start(self) -> (Exchange, &'static str) {
        match self {
            Self::Plain => (Exchange::Plain, ""),
            Self::Login => (Exchange::LoginName, "VXNlcm5hbWU6"),
        }
    }
}

impl Exchange {
    /// Takes one line of the client without its line end: base64, `*`, or `=` for nothing (only as
    /// an initial response).
    pub fn respond(self, line: &[u8]) -> Step {
        if line == b"*" {
            return Step::Cancelled;
        }
        let line = if line == b"=" { b"" } else { line };
        let Ok(message) = STANDARD.decode(line) else { return Step::Malformed };
        match self {
            Self::Plain => plain(&message).map_or(Step::Malformed, Step::Credentials),
            Self::LoginName => match String::from_utf8(message) {
                Ok(login) => Step::Challenge(Self::LoginPassword { login }, "UGFzc3dvcmQ6"),
                Err(_) => Step::Malformed,
            },
            Self::LoginPassword { login } => {
                Step::Credentials(Credentials::password(login, message))
            }
        }
    }
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

/// PLAIN's message for these credentials, in base64.
pub fn plain_message(credentials: &Credentials) -> String {
    let mut message = Vec::new();
    message.extend_from_slice(credentials.authorization.as_bytes());
    message.push(0);
    message.extend_from_slice(credentials.login.as_bytes());
    message.push(0);
    message.extend_from_slice(credentials.expose_password());
    STANDARD.encode(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(step: Step) -> (String, String, Vec<u8>) {
        match step {
            Step::Credentials(c) => {
                (c.authorization.clone(), c.login.clone(), c.expose_password().to_vec())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plain_with_and_without_authorization() {
        for (message, expected) in [
            (&b"\0alice\0wonder land"[..], ("", "alice", &b"wonder land"[..])),
            (b"alice\0alice\0x", ("", "alice", b"x")),
            (b"bob\0boss\0\xff\"\\", ("bob", "boss", b"\xff\"\\")),
        ] {
            let step = Exchange::Plain.respond(STANDARD.encode(message).as_bytes());
            let (authorization, login, password) = credentials(step);
            assert_eq!((&authorization[..], &login[..], &password[..]), expected);
            let again = Credentials::password(login, password).acting_as(authorization);
            assert!(matches!(
                Exchange::Plain.respond(plain_message(&again).as_bytes()),
                Step::Credentials(c) if c.same_as(&again)
            ));
        }
    }

    #[test]
    fn malformed_and_cancelled() {
        for bad in ["!", "AAA", "YWxpY2U=", "AGE=", "AGEAYgBj", "=", "", "\u{fc}"] {
            let step = Exchange::Plain.respond(bad.as_bytes());
            assert!(matches!(step, Step::Malformed), "{bad}: {step:?}");
        }
        assert!(matches!(Exchange::Plain.respond(b"*"), Step::Cancelled));
        assert!(matches!(Exchange::LoginName.respond(b"*"), Step::Cancelled));
    }

    #[test]
    fn login_asks_twice() {
        let (exchange, challenge) = Mechanism::Login.start();
        assert_eq!(STANDARD.decode(challenge).unwrap(), b"Username:");
        let Step::Challenge(exchange, challenge) = exchange.respond(b"YWxpY2U=") else { panic!() };
        assert_eq!(STANDARD.decode(challenge).unwrap(), b"Password:");
        let (_, login, password) = credentials(exchange.respond(b"c2VjcmV0"));
        assert_eq!((&login[..], &password[..]), ("alice", &b"secret"[..]));
    }
}
