//! Logging in at a backend, as a state machine: used for a client's session and for a watcher.
//!
//! ```text
//!   Greeting ──▶ Capability (if the greeting told none) ──▶ Answer ──▶ Outcome
//! ```

use std::collections::VecDeque;
use std::fmt;

use imap_codec::encode::{Encoder, Fragment};
use imap_codec::imap_types::command::{Command, CommandBody};
use imap_codec::imap_types::core::{AString, Tag};

use super::capability::{self, Capabilities};
use super::literal::{End, end_of_response};
use super::peek::{self, Response, Status};
use super::sasl;
use crate::model::Credentials;

/// Tags of the two commands that a login may send.
const CAPABILITY_TAG: &[u8] = b"m1";
const LOGIN_TAG: &[u8] = b"m2";

/// One login at one backend.
#[derive(Debug)]
pub struct Login {
    credentials: Credentials,
    prefer_login: bool,
    /// Longest response and most untagged data, in bytes.
    limit: usize,
    stage: Stage,
    /// As told before login.
    offered: Option<Capabilities>,
    /// Untagged responses to the login itself, as they came.
    untagged: Vec<u8>,
    /// As told with or after the login.
    granted: Option<Capabilities>,
}

#[derive(Debug)]
enum Stage {
    Greeting,
    Capability,
    /// The login is sent but for these pieces, each of which needs a continuation first.
    Answer(VecDeque<Secret>),
}

/// How a login ended.
#[derive(Debug)]
pub enum Outcome {
    Accepted {
        /// Untagged responses to the login, to be passed on.
        untagged: Vec<u8>,
        /// The tagged OK behind its tag, from the space on, line end included.
        answer: Vec<u8>,
        /// What the backend told before login.
        offered: Capabilities,
        /// What it told in or with its answer.
        granted: Option<Capabilities>,
    },
    /// The backend's tagged NO or BAD behind its tag, from the space on, line end included.
    Refused { answer: Vec<u8>, offered: Capabilities },
    /// There is no answer to these credentials; the text says why, for a log.
    Unavailable(String),
}

/// Bytes that may hold a password.
struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Login {
    /// For a connection that was just opened. With `prefer_login` the LOGIN command is used where
    /// the backend allows it, otherwise AUTHENTICATE PLAIN where the backend offers it. No response
    /// of the backend may be longer than `limit` bytes.
    pub fn new(credentials: Credentials, prefer_login: bool, limit: usize) -> Self {
        Self {
            credentials,
            prefer_login,
            limit,
            stage: Stage::Greeting,
            offered: None,
            untagged: Vec::new(),
            granted: None,
        }
    }

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Takes the backend's bytes: returns how many were used and, at the end, the outcome. Bytes
    /// for the backend are added to `out`. What is not used must be given again, with more.
    pub fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Option<Outcome>) {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            let length = match end_of_status_or_response(rest) {
                End::At(length) if length <= self.limit => length,
                End::Beyond if rest.len() <= self.limit => return (used, None),
                _ => return (used, Some(unavailable("an overlong answer to a login"))),
            };
            used += length;
            if let Some(outcome) = self.response(&rest[..length], out) {
                return (used, Some(outcome));
            }
        }
    }

    fn response(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<Outcome> {
        let response = peek::response(line)?;
        if let Response::Status { tag: None, status: Status::Bye, .. } = response {
            return Some(unavailable(format_args!("BYE: {}", printable(line))));
        }
        let told = Capabilities::in_response(line);
        match &mut self.stage {
            Stage::Greeting => match response {
                Response::Status { tag: None, status: Status::Ok, .. } => {
                    self.offered = told;
                    if self.offered.is_some() {
                        return self.send_login(out);
                    }
                    out.extend_from_slice(CAPABILITY_TAG);
                    out.extend_from_slice(b" CAPABILITY\r\n");
                    self.stage = Stage::Capability;
                    None
                }
                Response::Status { tag: None, status: Status::Preauth, .. } => {
                    Some(unavailable("a backend that greets with PREAUTH cannot tell users apart"))
                }
                _ => Some(unavailable(format_args!("no IMAP greeting: {}", printable(line)))),
            },
            Stage::Capability => {
                if told.is_some() {
                    self.offered = told;
                }
                match response {
                    Response::Status { tag: Some(CAPABILITY_TAG), .. } => self.send_login(out),
                    _ => None,
                }
            }
            Stage::Answer(pieces) => match response {
                Response::Continuation => {
                    // A challenge that nothing answers is cancelled (RFC 9051 section 6.2.2).
                    let piece = pieces.pop_front().unwrap_or_else(|| Secret(b"*\r\n".to_vec()));
                    out.extend_from_slice(&piece.0);
                    None
                }
                Response::Status { tag: Some(LOGIN_TAG), status, .. } => {
                    if told.is_some() {
                        self.granted = told;
                    }
                    let answer = line[LOGIN_TAG.len()..].to_vec();
                    let offered = self.offered.take().unwrap_or_default();
                    Some(if status == Status::Ok {
                        let untagged = std::mem::take(&mut self.untagged);
                        Outcome::Accepted {
                            untagged,
                            answer,
                            offered,
                            granted: self.granted.take(),
                        }
                    } else {
                        Outcome::Refused { answer, offered }
                    })
                }
                _ => {
                    if told.is_some() {
                        self.granted = told;
                    }
                    if self.untagged.len() + line.len() > self.limit {
                        return Some(unavailable("an overlong answer to a login"));
                    }
                    self.untagged.extend_from_slice(line);
                    None
                }
            },
        }
    }

    fn send_login(&mut self, out: &mut Vec<u8>) -> Option<Outcome> {
        let offered = self.offered.get_or_insert_default();
        let plain = offered.has("AUTH=PLAIN");
        let login_allowed = !offered.has("LOGINDISABLED");
        let acts_as_other = !self.credentials.authorization.is_empty();
        // LOGIN is specified for ASCII only.
        let ascii = self.credentials.expose_password().is_ascii();
        let login = !acts_as_other && login_allowed && (!plain || (self.prefer_login && ascii));
        let mut pieces = VecDeque::new();
        if login {
            let Some(encoded) = encode_login(&self.credentials) else {
                return Some(unavailable("a login name or password that IMAP cannot carry"));
            };
            pieces = encoded;
        } else if plain || (acts_as_other && login_allowed) {
            let message = format!("{}\r\n", sasl::plain_message(&self.credentials));
            let tag = LOGIN_TAG.escape_ascii();
            if offered.has("SASL-IR") {
                let line = format!("{tag} AUTHENTICATE PLAIN {message}");
                pieces.push_back(Secret(line.into_bytes()));
            } else {
                pieces.push_back(Secret(format!("{tag} AUTHENTICATE PLAIN\r\n").into_bytes()));
                pieces.push_back(Secret(message.into_bytes()));
            }
        } else {
            return Some(unavailable("the backend takes no password on this connection"));
        }
        if let Some(first) = pieces.pop_front() {
            out.extend_from_slice(&first.0);
        }
        self.stage = Stage::Answer(pieces);
        None
    }
}

/// The LOGIN command in pieces that end where a synchronising literal begins.
fn encode_login(credentials: &Credentials) -> Option<VecDeque<Secret>> {
    let name = AString::try_from(credentials.login.as_bytes()).ok()?;
    let password = AString::try_from(credentials.expose_password()).ok()?;
    let body = CommandBody::login(name, password).ok()?;
    let command = Command { tag: Tag::try_from(LOGIN_TAG).ok()?, body };
    let mut pieces: VecDeque<Secret> = VecDeque::new();
    for fragment in imap_codec::CommandCodec::default().encode(&command) {
        match fragment {
            Fragment::Line { data } => match pieces.back_mut() {
                // What follows a literal goes with it.
                Some(last) => last.0.extend_from_slice(&data),
                None => pieces.push_back(Secret(data)),
            },
            Fragment::Literal { data, .. } => pieces.push_back(Secret(data)),
        }
    }
    Some(pieces)
}

/// The end of the response that starts `input`; the text of a status announces no literal.
pub fn end_of_status_or_response(input: &[u8]) -> End {
    match peek::response(input) {
        None => End::Beyond,
        Some(Response::Continuation | Response::Status { .. }) => {
            super::literal::end_of_line(input)
        }
        Some(_) => end_of_response(input),
    }
}

fn unavailable(why: impl fmt::Display) -> Outcome {
    Outcome::Unavailable(why.to_string())
}

/// The first part of a backend's line for a log.
pub fn printable(line: &[u8]) -> String {
    line[..line.len().min(200)].trim_ascii().escape_ascii().to_string()
}

/// Whether `line`, a whole response, names `code` as its response code (RFC 5530), as in
/// `NO [AUTHENTICATIONFAILED] …`.
pub fn has_code(line: &[u8], code: &str) -> bool {
    let Some(start) = line.iter().position(|b| *b == b'[') else { return false };
    let before = line[..start].trim_ascii();
    // The code stands right behind the status word, not somewhere in the text.
    let status = before.rsplit(|b| *b == b' ').next().unwrap_or_default();
    let is_status = [&b"OK"[..], b"NO", b"BAD", b"BYE", b"PREAUTH"]
        .iter()
        .any(|word| word.eq_ignore_ascii_case(status));
    let rest = &line[start + 1..];
    let end = rest.iter().position(|b| matches!(b, b']' | b' ')).unwrap_or(rest.len());
    is_status && rest[..end].eq_ignore_ascii_case(code.as_bytes())
}

/// The response with its capability list, if it has one, as a client may see it.
pub fn edited(untagged: &[u8], push: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(untagged.len());
    let mut rest = untagged;
    while let End::At(length) = end_of_status_or_response(rest) {
        let (response, after) = rest.split_at(length);
        if capability::is_in(response) {
            out.extend_from_slice(&capability::edit_response(response, push));
        } else {
            out.extend_from_slice(response);
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `dialogue` (`B: ` the backend says, `M: ` must be said to it), a byte at a time.
    fn play(credentials: Credentials, prefer_login: bool, dialogue: &[&str]) -> Option<Outcome> {
        let mut login = Login::new(credentials, prefer_login, 4096);
        let (mut input, mut out, mut outcome) = (Vec::new(), Vec::new(), None);
        for line in dialogue {
            if let Some(text) = line.strip_prefix("B: ") {
                for byte in text.bytes().chain(*b"\r\n") {
                    assert!(outcome.is_none(), "more after the end: {line}");
                    input.push(byte);
                    let (used, end) = login.step(&input, &mut out);
                    input.drain(..used);
                    outcome = end;
                }
            } else {
                let text = line.strip_prefix("M: ").expect("a lane");
                let said = String::from_utf8(std::mem::take(&mut out)).unwrap();
                assert_eq!(said, format!("{text}\r\n"));
            }
        }
        assert_eq!(out, b"", "nothing more is said");
        outcome
    }

    fn alice() -> Credentials {
        Credentials::password("alice", b"wonder land".to_vec())
    }

    fn accepted(outcome: Option<Outcome>) -> (String, String) {
        match outcome {
            Some(Outcome::Accepted { untagged, answer, .. }) => {
                (String::from_utf8(untagged).unwrap(), String::from_utf8(answer).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plain_with_initial_response() {
        let outcome = play(
            alice(),
            false,
            &[
                "B: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi {5}",
                "M: m2 AUTHENTICATE PLAIN AGFsaWNlAHdvbmRlciBsYW5k",
                "B: * CAPABILITY IMAP4rev1 IDLE",
                "B: m2 OK Logged in",
            ],
        );
        let expected = ("* CAPABILITY IMAP4rev1 IDLE\r\n".into(), " OK Logged in\r\n".into());
        assert_eq!(accepted(outcome), expected);
    }

    #[test]
    fn plain_without_initial_response_after_asking() {
        let outcome = play(
            alice(),
            false,
            &[
                "B: * OK hi",
                "M: m1 CAPABILITY",
                "B: * CAPABILITY IMAP4rev1 AUTH=PLAIN LOGINDISABLED",
                "B: m1 OK done",
                "M: m2 AUTHENTICATE PLAIN",
                "B: + ",
                "M: AGFsaWNlAHdvbmRlciBsYW5k",
                "B: m2 OK [CAPABILITY IMAP4rev1] in",
            ],
        );
        assert_eq!(accepted(outcome).1, " OK [CAPABILITY IMAP4rev1] in\r\n");
    }

    #[test]
    fn login_quotes_and_uses_literals_where_it_must() {
        let bob = Credentials::password("bob", b"q\"uo\\te".to_vec());
        play(
            bob,
            true,
            &[
                "B: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi",
                "M: m2 LOGIN bob \"q\\\"uo\\\\te\"",
                "B: m2 OK in",
            ],
        )
        .expect("an outcome");
        let umlaut = Credentials::password("ü", "pä".as_bytes().to_vec());
        play(
            umlaut.clone(),
            true,
            &[
                "B: * OK [CAPABILITY IMAP4rev1] hi",
                "M: m2 LOGIN {2}",
                "B: + OK",
                "M: ü {3}",
                "B: + OK",
                "M: pä",
                "B: m2 OK in",
            ],
        )
        .expect("an outcome");
        play(
            umlaut,
            true,
            &[
                "B: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hi",
                "M: m2 AUTHENTICATE PLAIN AMO8AHDDpA==",
                "B: m2 OK in",
            ],
        )
        .expect("an outcome");
    }

    #[test]
    fn refusals_keep_their_text() {
        let outcome = play(
            alice(),
            true,
            &[
                "B: * OK [CAPABILITY IMAP4rev1] hi",
                "M: m2 LOGIN alice \"wonder land\"",
                "B: m2 NO [AUTHENTICATIONFAILED] no {3}",
            ],
        );
        let Some(Outcome::Refused { answer, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(answer, b" NO [AUTHENTICATIONFAILED] no {3}\r\n");
    }

    #[test]
    fn no_answer_is_no_refusal() {
        for dialogue in [
            &["B: * BYE busy"][..],
            &["B: * PREAUTH hi"],
            &["B: 220 smtp.example.org ESMTP"],
            &["B: * OK [CAPABILITY IMAP4rev1 LOGINDISABLED STARTTLS] hi"],
            &[
                "B: * OK [CAPABILITY IMAP4rev1] hi",
                "M: m2 LOGIN alice \"wonder land\"",
                "B: * BYE Temporary problem, please try again later",
            ],
        ] {
            let outcome = play(alice(), true, dialogue);
            assert!(matches!(outcome, Some(Outcome::Unavailable(_))), "{outcome:?}");
        }
        let mut login = Login::new(alice(), true, 100);
        let (_, outcome) = login.step(&[b'x'; 101], &mut Vec::new());
        assert!(matches!(outcome, Some(Outcome::Unavailable(_))), "{outcome:?}");
    }

    #[test]
    fn an_unexpected_challenge_is_cancelled() {
        let outcome = play(
            alice(),
            true,
            &[
                "B: * OK [CAPABILITY IMAP4rev1] hi",
                "M: m2 LOGIN alice \"wonder land\"",
                "B: + what?",
                "M: *",
                "B: m2 BAD cancelled",
            ],
        );
        assert!(matches!(outcome, Some(Outcome::Refused { .. })), "{outcome:?}");
    }

    #[test]
    fn codes_are_read_where_they_stand() {
        assert!(has_code(b" NO [AUTHENTICATIONFAILED] x\r\n", "AuthenticationFailed"));
        assert!(has_code(b"* BYE [UNAVAILABLE]\r\n", "UNAVAILABLE"));
        assert!(has_code(b"a NO [LIMIT x] y", "LIMIT"));
        assert!(!has_code(b"a NO see [LIMIT] y", "LIMIT"));
        assert!(!has_code(b"a NO [LIMITS]", "LIMIT"));
        assert!(!has_code(b"a NO", "LIMIT"));
    }

    #[test]
    fn debug_shows_no_password() {
        let mut login = Login::new(alice(), false, 4096);
        login.step(b"* OK [CAPABILITY AUTH=PLAIN] x\r\n", &mut Vec::new());
        let shown = format!("{login:?}");
        assert!(!shown.contains("AGFs") && !shown.contains("wonder"), "{shown}");
    }
}
