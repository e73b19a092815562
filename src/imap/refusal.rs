//! What a backend's refusal of a login says, by its response code (RFC 5530). Sessions and watchers
//! hear of it from [`login`](super::login).

use super::responses::has_code;

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
    /// `answer` is a NO, BAD or BYE, with its tag or without. The code decides, but for a text that speaks
    /// of too many connections: some servers (Gmail, mail filters) say so with the code of a wrong password.
    pub fn of(answer: &[u8]) -> Self {
        let says = |codes: &[&str]| codes.iter().any(|code| has_code(answer, code));
        if says(&["UNAVAILABLE", "LIMIT", "INUSE", "SERVERBUG", "OVERQUOTA"]) {
            Self::Temporary
        } else if says(&BARRED) {
            Self::Barred
        } else if speaks_of_connections(answer) {
            Self::Temporary
        } else if says(&["AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "EXPIRED"]) {
            Self::Wrong
        } else {
            Self::Unexplained
        }
    }

    /// What a NO, BAD or BYE without a tag says of the login, be it that it is refused without saying why;
    /// `None` where it may be about anything else. Where there is no code the words decide: a backend that
    /// is in trouble sends BYE as well, and its users have not guessed.
    pub fn without_a_tag(line: &[u8]) -> Option<Self> {
        match Self::of(line) {
            Self::Unexplained => speaks_of_a_failed_login(line).then_some(Self::Unexplained),
            refusal => Some(refusal),
        }
    }

    /// Whether the login may have been a guess.
    pub fn may_be_a_guess(self) -> bool {
        matches!(self, Self::Wrong | Self::Unexplained)
    }
}

/// Codes of a NO that is about the mailbox (RFC 5530), and words of servers that send none.
const OF_MAILBOX: [&str; 3] = ["NONEXISTENT", "NOPERM", "CANNOT"];
const OF_MAILBOX_WORDS: &[&str] = &[
    "exist",
    "exists",
    "nonexistent",
    "existent",
    "found",
    "unknown",
    "such",
    "denied",
    "permission",
    "selectable",
];

/// Whether a NO to a command on a mailbox says that this one is gone or not for the user, by its code or else its
/// words. Any other may pass.
pub fn is_of_mailbox(answer: &[u8]) -> bool {
    if OF_MAILBOX.iter().any(|code| has_code(answer, code)) {
        return true;
    }
    let text = &answer[..answer.len().min(TEXT)];
    let mut words = text.split(|b| !b.is_ascii_alphabetic());
    Refusal::of(answer) == Refusal::Unexplained
        && words.any(|word| {
            OF_MAILBOX_WORDS.iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes()))
        })
}

/// Bytes of a text that are looked at, and how far apart the words may be.
const TEXT: usize = 1024;
const APART: usize = 5;

/// Words of a text that speaks of tries that failed.
const FAILED_TRIES: &[&str] =
    &["failed", "failure", "failures", "attempt", "attempts", "invalid", "tries", "errors"];

/// Whether the text says that there are too many connections: "too many open connections", "maximum
/// number of sessions", "connection limit exceeded". One that speaks of failed tries is none of them.
fn speaks_of_connections(answer: &[u8]) -> bool {
    let is = |word: &[u8], words: &[&str]| {
        words.iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes()))
    };
    // Words since one that speaks of a limit, and since one that speaks of connections.
    let (mut limit, mut connections) = (None, None);
    let text = &answer[..answer.len().min(TEXT)];
    for word in text.split(|b| !b.is_ascii_alphabetic()).filter(|word| !word.is_empty()) {
        for seen in [&mut limit, &mut connections] {
            *seen = seen.map(|words| words + 1).filter(|words| *words < APART);
        }
        if is(word, &["connection", "connections", "sessions"]) {
            if limit.is_some() || is(word, &["connections"]) && has_code(answer, "ALERT") {
                return true;
            }
            connections = Some(0);
        } else if is(word, &["many", "maximum", "max", "simultaneous", "concurrent"]) {
            limit = Some(0);
        } else if is(word, &["limit", "exceeded", "reached"]) && connections.is_some() {
            return true;
        } else if is(word, FAILED_TRIES) {
            (limit, connections) = (None, None);
        }
    }
    false
}

/// Words that speak of a login, of its failure, and of a backend that is in trouble.
const LOGIN: &[&str] = &[
    "login",
    "logon",
    "auth",
    "authentication",
    "password",
    "passwords",
    "credentials",
    "user",
    "username",
];
const FAILED: &[&str] = &[
    "failed",
    "failure",
    "failures",
    "fails",
    "invalid",
    "incorrect",
    "wrong",
    "bad",
    "denied",
    "rejected",
    "unknown",
];
const TROUBLE: &[&str] = &[
    "temporary",
    "temporarily",
    "internal",
    "unavailable",
    "later",
    "timeout",
    "timed",
    "inactivity",
    "down",
    "shutting",
    "maintenance",
    "database",
    "server",
    "service",
    "backend",
    "connect",
    "connections",
    "cannot",
    "unable",
    "lookup",
    "ldap",
    "directory",
    "error",
    "logins",
];

/// Whether the text says that a login has failed: "Login failed", "Too many authentication failures",
/// "Invalid user name or password". One that speaks of trouble is none of them.
fn speaks_of_a_failed_login(line: &[u8]) -> bool {
    let is = |word: &[u8], words: &[&str]| {
        words.iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes()))
    };
    // Words since one of either kind.
    let (mut login, mut failed, mut says_so) = (None, None, false);
    let text = &line[..line.len().min(TEXT)];
    for word in text.split(|b| !b.is_ascii_alphabetic()).filter(|word| !word.is_empty()) {
        for seen in [&mut login, &mut failed] {
            *seen = seen.map(|words| words + 1).filter(|words| *words < APART);
        }
        if is(word, TROUBLE) {
            return false;
        } else if is(word, LOGIN) {
            login = Some(0);
        } else if is(word, FAILED) {
            failed = Some(0);
        }
        says_so |= login.is_some() && failed.is_some();
    }
    says_so
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_that_the_mailbox_is_gone_or_that_it_may_pass() {
        for (answer, gone) in [
            ("w2 NO [NONEXISTENT] Mailbox doesn't exist: Team (0.001 secs).", true),
            ("w2 NO Mailbox does not exist", true),
            ("w2 NO [NOPERM] not yours", true),
            ("w2 NO Permission denied", true),
            ("w2 NO No such mailbox", true),
            ("w2 NO [UNAVAILABLE] does not exist for now", false),
            ("w2 NO [SERVERBUG] Internal error occurred.", false),
            ("w2 NO Internal error", false),
            ("w2 NO System I/O error", false),
            ("w2 BAD", false),
        ] {
            assert_eq!(is_of_mailbox(answer.as_bytes()), gone, "{answer}");
        }
    }

    #[test]
    fn the_code_distinguishes_a_wrong_password_from_a_backend_in_trouble() {
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
            ("NO too many connections", Refusal::Temporary),
            (
                "NO [AUTHENTICATIONFAILED] Invalid credentials (Too many simultaneous connections.)",
                Refusal::Temporary,
            ),
            ("NO [AUTHENTICATIONFAILED] Too many IMAP sessions open", Refusal::Temporary),
            ("NO Maximum number of connections from user+IP exceeded", Refusal::Temporary),
            ("NO LOGIN failed: connection limit reached", Refusal::Temporary),
            ("NO [AUTHENTICATIONFAILED] Concurrent connections exceeded", Refusal::Temporary),
            ("NO [CONTACTADMIN] Too many connections", Refusal::Barred),
            ("NO [AUTHENTICATIONFAILED] Too many failed logins, connection closed", Refusal::Wrong),
            ("NO Too many invalid attempts on this connection", Refusal::Unexplained),
            ("NO [AUTHENTICATIONFAILED] closing connection", Refusal::Wrong),
            ("NO the maximum of failed attempts, closing the connection", Refusal::Unexplained),
            (
                "NO Maximum number of login attempts exceeded for this connection",
                Refusal::Unexplained,
            ),
            ("BAD cancelled", Refusal::Unexplained),
        ] {
            let refusal = Refusal::of(format!(" {answer}\r\n").as_bytes());
            assert_eq!(refusal, expected, "{answer}");
            let guess = matches!(expected, Refusal::Wrong | Refusal::Unexplained);
            assert_eq!(refusal.may_be_a_guess(), guess, "{answer}");
        }
    }

    #[test]
    fn without_a_tag_and_a_code_the_words_tell_a_guess_from_a_backend_in_trouble() {
        for said in [
            "* BYE Login failed",
            "* BYE LOGIN failed.",
            "* NO Invalid user name or password",
            "* BYE Too many authentication failures",
            "* BYE Disconnected (auth failed, 3 attempts in 5 secs)",
            "* BAD Incorrect password",
            "* BYE [ALERT] Authentication failed",
        ] {
            let refusal = Refusal::without_a_tag(said.as_bytes());
            assert_eq!(refusal, Some(Refusal::Unexplained), "{said}");
        }
        for said in [
            "* BYE",
            "* BYE Temporary problem, please try again later",
            "* BYE Temporary authentication failure",
            "* BYE Internal login failure. Refer to server log for more information.",
            "* BYE Disconnected: Auth process broken",
            "* BYE Disconnected: Inactivity during authentication.",
            "* BYE Server shutting down",
            "* BYE Connection queue full",
            "* NO Failed to open the index of INBOX",
            "* NO Your password expires in three days",
            "* BYE Authentication service failed: the database is away",
            "* BYE Logins denied, wrong time",
        ] {
            assert_eq!(Refusal::without_a_tag(said.as_bytes()), None, "{said}");
        }
        let coded = Refusal::without_a_tag(b"* BYE [UNAVAILABLE] Login failed");
        assert_eq!(coded, Some(Refusal::Temporary));
    }
}
