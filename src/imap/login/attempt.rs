//! With what to log in, and the command that puts it to a backend.

use std::collections::VecDeque;
use std::fmt;

use crate::imap::args;
use crate::imap::capability::Capabilities;
use crate::imap::sasl::{self, Mechanism};
use crate::model::{Credentials, SecretKind};

/// With what to log in.
#[derive(Clone, Debug)]
pub enum LoginAttempt {
    /// Understood, and put into whatever form the backend offers.
    Credentials {
        /// What the client logs in with.
        credentials: Credentials,
        /// For LOGIN, which is preferred then: as the client has written it.
        written: Option<WrittenLogin>,
    },
    /// A mechanism whose messages pass between client and backend: it hides the secret, or does not say
    /// whose it is.
    Relayed {
        /// The mechanism.
        mechanism: String,
        /// The initial response in base64, or `=`.
        initial: Option<Secret>,
    },
}

/// The strings of a client's LOGIN, quoted or unquoted as they came. `None` is one that is not sent on as
/// it was written: see [`args::LoginString`].
#[derive(Clone, Debug, Default)]
pub struct WrittenLogin {
    /// The name, if the client sent one.
    pub name: Option<Secret>,
    /// The password, if the client sent one.
    pub password: Option<Secret>,
}

/// Bytes that may hold a password.
#[derive(Clone)]
pub struct Secret(pub Vec<u8>);

/// In which ways logins are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoginKinds {
    /// By name and password.
    pub passwords: bool,
    /// By access token.
    pub tokens: bool,
}

impl From<Credentials> for LoginAttempt {
    fn from(credentials: Credentials) -> Self {
        Self::Credentials { credentials, written: None }
    }
}

impl LoginAttempt {
    /// Memory that is held, in bytes, about.
    pub(in crate::imap) fn held(&self) -> usize {
        match self {
            Self::Credentials { credentials, written } => {
                let written = written.iter().flat_map(|written| [&written.name, &written.password]);
                let written = written.flatten().map(|string| string.0.capacity());
                credentials.login.len()
                    + credentials.authorization.len()
                    + credentials.expose_secret().len()
                    + written.sum::<usize>()
            }
            Self::Relayed { initial, .. } => {
                initial.as_ref().map_or(0, |initial| initial.0.capacity())
            }
        }
    }

    /// Whether a backend that offers this may take it.
    pub fn fits(&self, offered: &Capabilities) -> bool {
        match self {
            Self::Relayed { mechanism, .. } => offered.has(&format!("AUTH={mechanism}")),
            Self::Credentials { credentials, written } => {
                form(credentials, offered, written.is_some()).is_some()
            }
        }
    }

    /// The command for a backend that offers this, in pieces: behind each of them but the last the
    /// backend says to go on. With the mechanism, where that is known. `None` if it does not fit.
    pub(super) fn put_to(
        &self,
        offered: &Capabilities,
        tag: &str,
    ) -> Option<(Option<Mechanism>, VecDeque<Secret>)> {
        if !self.fits(offered) {
            return None;
        }
        Some(match self {
            Self::Relayed { mechanism, initial } => {
                let messages = initial.iter().map(|initial| initial.0.clone());
                let pieces = authenticate(tag, offered, mechanism, messages);
                (Mechanism::named(mechanism.as_bytes()), pieces)
            }
            Self::Credentials { credentials, written } => {
                match form(credentials, offered, written.is_some())? {
                    LoginForm::Authenticate(mechanism) => {
                        let messages = sasl::messages(mechanism, credentials);
                        let messages = messages.into_iter().map(String::into_bytes);
                        let pieces = authenticate(tag, offered, mechanism.name(), messages);
                        (Some(mechanism), pieces)
                    }
                    LoginForm::Login => (None, login(tag, credentials, written.as_ref())),
                }
            }
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl LoginKinds {
    /// Those of a backend that was not asked yet: most take passwords.
    pub const UNKNOWN: Self = Self { passwords: true, tokens: false };

    /// Those of a backend that offers this before login.
    pub fn of(offered: &Capabilities) -> Self {
        let takes = |mechanism: Mechanism| offered.has(&format!("AUTH={}", mechanism.name()));
        Self {
            passwords: !offered.has("LOGINDISABLED")
                || [Mechanism::Plain, Mechanism::Login].into_iter().any(takes),
            tokens: TOKENS.into_iter().any(takes),
        }
    }

    /// Those of either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { passwords: self.passwords || other.passwords, tokens: self.tokens || other.tokens }
    }
}

enum LoginForm {
    Login,
    Authenticate(Mechanism),
}

/// The mechanisms of access tokens, in the order in which they are preferred.
const TOKENS: [Mechanism; 2] = [Mechanism::XOAuth2, Mechanism::OAuthBearer];

/// How credentials are best put to a backend with these capabilities; `None` if it takes none.
/// `by_login`: they came by LOGIN.
fn form(credentials: &Credentials, offered: &Capabilities, by_login: bool) -> Option<LoginForm> {
    let takes = |mechanism: &Mechanism| offered.has(&format!("AUTH={}", mechanism.name()));
    let login_allowed = !offered.has("LOGINDISABLED");
    if credentials.kind == SecretKind::Bearer {
        return TOKENS.into_iter().find(takes).map(LoginForm::Authenticate);
    }
    let plain = takes(&Mechanism::Plain);
    if !credentials.authorization.is_empty() {
        return (plain || login_allowed).then_some(LoginForm::Authenticate(Mechanism::Plain));
    }
    let carries = |text: &[u8]| !text.contains(&0);
    let carried = carries(credentials.login.as_bytes()) && carries(credentials.expose_secret());
    if login_allowed && carried && (by_login || !plain) {
        Some(LoginForm::Login)
    } else {
        [Mechanism::Plain, Mechanism::Login].into_iter().find(takes).map(LoginForm::Authenticate)
    }
}

/// The AUTHENTICATE command, with the first of its messages where that goes with it, and the others
/// behind a continuation each.
fn authenticate(
    tag: &str,
    offered: &Capabilities,
    mechanism: &str,
    messages: impl Iterator<Item = Vec<u8>>,
) -> VecDeque<Secret> {
    let mut line = format!("{tag} AUTHENTICATE {mechanism}").into_bytes();
    let mut messages = messages.peekable();
    // LOGIN was never written down, and some servers take no initial response to it.
    let initial = offered.has("SASL-IR") && mechanism != Mechanism::Login.name();
    if let Some(message) = messages.next_if(|_| initial) {
        line.push(b' ');
        line.extend_from_slice(&message);
    }
    line.extend_from_slice(b"\r\n");
    let mut pieces = VecDeque::from([Secret(line)]);
    for mut message in messages {
        // `=` is an empty message, and only in an initial response.
        if message == b"=" {
            message.clear();
        }
        message.extend_from_slice(b"\r\n");
        pieces.push_back(Secret(message));
    }
    pieces
}

/// The LOGIN command, in pieces that end where a synchronising literal begins.
fn login(tag: &str, credentials: &Credentials, written: Option<&WrittenLogin>) -> VecDeque<Secret> {
    let (mut pieces, mut last) = (VecDeque::new(), format!("{tag} LOGIN").into_bytes());
    let WrittenLogin { name, password } = &written.cloned().unwrap_or_default();
    let name = (credentials.login.as_bytes(), name);
    for (text, written) in [name, (credentials.expose_secret(), password)] {
        last.push(b' ');
        // RFC 9051 section 9: a quoted string is of ASCII, until more was enabled.
        let quoted = || args::quote(text).filter(|_| text.is_ascii());
        match written.as_ref().map(|written| written.0.clone()).or_else(quoted) {
            Some(string) => last.extend_from_slice(&string),
            None => {
                last.extend_from_slice(format!("{{{}}}\r\n", text.len()).as_bytes());
                pieces.push_back(Secret(std::mem::replace(&mut last, text.to_vec())));
            }
        }
    }
    last.extend_from_slice(b"\r\n");
    pieces.push_back(Secret(last));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_a_backend_says_which_logins_it_takes() {
        for (list, passwords, tokens) in [
            ("IMAP4rev1", true, false),
            ("IMAP4rev1 AUTH=OAUTHBEARER", true, true),
            ("LOGINDISABLED", false, false),
            ("LOGINDISABLED AUTH=plain", true, false),
            ("LOGINDISABLED AUTH=LOGIN", true, false),
            ("logindisabled AUTH=XOAUTH2 AUTH=SCRAM-SHA-256", false, true),
        ] {
            let logins = LoginKinds::of(&Capabilities::parse(list.as_bytes()));
            assert_eq!(logins, LoginKinds { passwords, tokens }, "{list}");
        }
    }
}
