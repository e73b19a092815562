//! What a backend's refusal of a login says, by its response code (RFC 5530). Sessions and watchers
//! hear of it from [`login`](super::login).

use super::login::has_code;

/// A backend's NO or BAD to a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It will pass, and says nothing of the name or the password.
    Temporary,
    /// The name or the password is wrong.
    Wrong,
    /// Somebody has to change something, and it is not the name or the password.
    Barred,
    /// No code, or one that does not tell. Most servers but Dovecot say no more of a wrong password.
    Unexplained,
}

/// Codes of [`Refusal::Barred`]: those of RFC 5530, and Gmail's for who must log in on the web first.
const BARRED: [&str; 7] =
    ["PRIVACYREQUIRED", "CONTACTADMIN", "NOPERM", "CANNOT", "CLIENTBUG", "CORRUPTION", "WEBALERT"];

impl Refusal {
    /// `answer` is a NO, BAD or BYE, with its tag or without.
    pub fn of(answer: &[u8]) -> Self {
        let says = |codes: &[&str]| codes.iter().any(|code| has_code(answer, code));
        if says(&["UNAVAILABLE", "LIMIT", "INUSE", "SERVERBUG", "OVERQUOTA"]) {
            Self::Temporary
        } else if says(&["AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "EXPIRED"]) {
            Self::Wrong
        } else if says(&BARRED) {
            Self::Barred
        } else if says(&["ALERT"]) && speaks_of_connections(answer) {
            // As Gmail says it.
            Self::Temporary
        } else {
            Self::Unexplained
        }
    }

    /// Whether the login may have been a guess.
    pub fn may_be_a_guess(self) -> bool {
        matches!(self, Self::Wrong | Self::Unexplained)
    }
}

fn speaks_of_connections(answer: &[u8]) -> bool {
    let word = b"connections";
    answer.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b42_the_code_tells_a_wrong_password_from_a_backend_in_trouble() {
        for (answer, expected) in [
            ("NO [AUTHENTICATIONFAILED] Authentication failed.", Refusal::Wrong),
            ("NO [authorizationfailed] x", Refusal::Wrong),
            ("NO [EXPIRED] x", Refusal::Wrong),
            ("NO [UNAVAILABLE] Temporary authentication failure.", Refusal::Temporary),
            ("NO [UNAVAILABLE] Maximum number of connections", Refusal::Temporary),
            ("NO [LIMIT] too many", Refusal::Temporary),
            ("NO [INUSE] busy", Refusal::Temporary),
            ("NO [SERVERBUG] oops", Refusal::Temporary),
            ("NO [ALERT] Too many simultaneous connections. (Failure)", Refusal::Temporary),
            ("NO [ALERT] Invalid credentials (Failure)", Refusal::Unexplained),
            ("NO [CONTACTADMIN] disabled", Refusal::Barred),
            ("NO [PRIVACYREQUIRED] TLS first", Refusal::Barred),
            ("NO [NOPERM] no IMAP for you", Refusal::Barred),
            ("BAD [CLIENTBUG] what?", Refusal::Barred),
            ("* NO [WEBALERT https://x.example] Web login required.", Refusal::Barred),
            ("* BYE [UNAVAILABLE] shutting down", Refusal::Temporary),
            ("* BYE [AUTHENTICATIONFAILED] once too often", Refusal::Wrong),
            ("NO Login failed", Refusal::Unexplained),
            ("NO [CAPABILITY IMAP4rev1] Login failed", Refusal::Unexplained),
            ("NO see [AUTHENTICATIONFAILED]", Refusal::Unexplained),
            ("NO too many connections", Refusal::Unexplained),
            ("BAD cancelled", Refusal::Unexplained),
        ] {
            let refusal = Refusal::of(format!(" {answer}\r\n").as_bytes());
            assert_eq!(refusal, expected, "{answer}");
            let guess = matches!(expected, Refusal::Wrong | Refusal::Unexplained);
            assert_eq!(refusal.may_be_a_guess(), guess, "{answer}");
        }
    }
}
