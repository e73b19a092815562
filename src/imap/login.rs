//! Logging in at a backend, as a state machine: used for a client's session and for a watcher.
//!
//! ```text
//!   Greeting ──▶ Capability (if the greeting told none) ──▶ Id (if wanted) ──▶ Answer ──▶ IdAfter ──▶ LoginOutcome
//!                                                                              │  ▲
//!                                                                   Challenge ─▼──┘ respond
//! ```

mod attempt;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

pub use self::attempt::{LoginAttempt, LoginKinds, Secret, WrittenLogin};
use super::capability::{self, Capabilities, Own};
use super::greeting::{Greeting, UnfitGreeting, bye_answer};
use super::literal::End;
use super::peek::{self, Response, Status};
use super::refusal::Refusal;
use super::responses::{Cut, Ending, end_of_status_or_response, printable};
use super::sasl::Mechanism;
use super::sasl_observer::SaslObserver;

/// Tags of the commands that a login may send.
const CAPABILITY_TAG: &str = "m1";
const LOGIN_TAG: &str = "m2";
const ID_TAG: &str = "m3";
const ID_AFTER_TAG: &str = "m4";

/// The most that a backend may say from its greeting to its answer, in [`LoginOptions::limit`]s. What is
/// skipped, since one response of it is longer than that limit, does not count.
const MOST_HEARD: usize = 8;

/// The most challenges of a backend to one login: no mechanism has as many.
const MOST_CHALLENGES: u32 = 32;

/// One login at one backend.
#[derive(Debug)]
pub struct BackendLogin {
    attempt: LoginAttempt,
    options: LoginOptions,
    stage: LoginStage,
    /// As told before login.
    offered: Option<Capabilities>,
    /// Untagged responses to the login itself, as they came, but for a BYE.
    untagged: Vec<u8>,
    /// The first of them that refuses the login by a code that tells why, or else by words: where it stands.
    refusal: Option<Range<usize>>,
    /// A BYE in place of an answer to the login, or before it.
    farewell: Option<Vec<u8>>,
    /// As told with or after the login.
    granted: Option<Capabilities>,
    /// The mechanism of a bearer token, which decides how a refusal is acknowledged.
    mechanism: Option<Mechanism>,
    /// Who it is, where that passes by.
    observer: SaslObserver,
    /// That of the response under way.
    ending: Ending,
    /// That response, if it is longer than what is kept.
    cut: Option<Box<Cut>>,
    /// Bytes that were said so far.
    heard: usize,
    challenges: u32,
}

/// How to log in.
#[derive(Clone, Debug)]
pub struct LoginOptions {
    /// The greeting has been read already, before STARTTLS.
    pub greeted: bool,
    /// Arguments of ID (RFC 2971), sent before and after the login where the backend offers ID.
    pub id: Option<Vec<u8>>,
    /// What is kept at most of a response, and of untagged data to the login itself, in bytes: of other
    /// data the rest is skipped, capability lists and challenges must not be longer. All shorter
    /// responses until then may be eight times as much.
    pub limit: usize,
}

#[derive(Debug)]
enum LoginStage {
    Greeting,
    Capability,
    Id,
    /// The login is sent but for these pieces, each of which needs a continuation first.
    Answer(VecDeque<Secret>),
    /// The login has succeeded with this answer.
    IdAfter(Vec<u8>),
}

/// What became of a login.
#[derive(Debug)]
pub enum LoginOutcome {
    /// The backend's challenge (behind `+ `), which is the client's to answer: call
    /// [`BackendLogin::respond`], or [`BackendLogin::acknowledge`] if there is no client.
    Challenge(Vec<u8>),
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
    Refused {
        /// Untagged responses to the login, to be passed on.
        untagged: Vec<u8>,
        /// The tagged NO or BAD behind its tag, from the space on, line end included; or what stands
        /// for it where there is none.
        answer: Vec<u8>,
        /// What it says, together with what was said before it.
        refusal: Refusal,
        /// What the backend told before login.
        offered: Capabilities,
    },
    /// The backend takes no such login, and was not asked.
    NotOffered(Capabilities),
    /// There is no answer to this attempt; the text says why, for a log.
    Unavailable(String),
    /// The backend has said BYE, in its greeting or in place of an answer.
    SentAway {
        /// What a client gets behind its tag, beginning with NO; `None` if the backend gave no reason.
        answer: Option<String>,
        /// For a log.
        why: String,
    },
    /// A capability list or a challenge is longer than [`LoginOptions::limit`], or so much is said that there
    /// is no answer in it.
    TooLong,
}

impl BackendLogin {
    /// For a connection that was just opened: with [`LoginOptions::greeted`] send what
    /// [`BackendLogin::start`] gives first.
    pub fn new(attempt: LoginAttempt, options: LoginOptions) -> Self {
        let mut observer = SaslObserver::Nobody;
        if let LoginAttempt::Relayed { mechanism, initial } = &attempt {
            observer = SaslObserver::new(mechanism);
            initial.iter().for_each(|initial| observer.client(&initial.0));
        }
        Self {
            attempt,
            options,
            stage: LoginStage::Greeting,
            offered: None,
            untagged: Vec::new(),
            refusal: None,
            farewell: None,
            granted: None,
            mechanism: None,
            observer,
            ending: Ending::default(),
            cut: None,
            heard: 0,
            challenges: 0,
        }
    }

    /// Says the first word where no greeting is to be waited for.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        if self.options.greeted {
            self.ask_capability(out);
        }
    }

    /// Memory that is held, in bytes, about.
    pub fn held(&self) -> usize {
        let told = [&self.offered, &self.granted].into_iter().flatten();
        let pieces = match &self.stage {
            LoginStage::Answer(pieces) => pieces.iter().map(|piece| piece.0.capacity()).sum(),
            LoginStage::IdAfter(answer) => answer.capacity(),
            LoginStage::Greeting | LoginStage::Capability | LoginStage::Id => 0,
        };
        let said = [&self.options.id, &self.farewell].into_iter().flatten();
        let said = said.map(Vec::capacity).sum::<usize>();
        let capabilities = told.map(Capabilities::held).sum::<usize>();
        let cut = self.cut.as_ref().map_or(0, |cut| cut.held());
        self.attempt.held() + pieces + said + self.untagged.capacity() + capabilities + cut
    }

    pub fn attempt(&self) -> &LoginAttempt {
        &self.attempt
    }

    /// Who it is that a relayed mechanism proves, once the backend has answered.
    pub fn observed_name(&self) -> Option<&str> {
        self.observer.name()
    }

    /// Takes the backend's bytes: returns how many were used and what became of it, if something
    /// did. Bytes for the backend are added to `out`. What is not used must be given again, with
    /// more.
    pub fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Option<LoginOutcome>) {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            if let Some(cut) = &mut self.cut {
                let (skipped, whole) = cut.skip(rest);
                used += skipped;
                if !whole {
                    return (used, None);
                }
                if let Some(cut) = self.cut.take()
                    && let Some(outcome) = self.long_response(cut.kept(), out)
                {
                    return (used, Some(outcome));
                }
                continue;
            }
            let limit = self.options.limit;
            let length = match self.ending.find(rest) {
                End::At(length) if length <= limit => length,
                End::Beyond if rest.len() <= limit || !self.ending.is_known() => {
                    return (used, None);
                }
                End::At(_) | End::Beyond => {
                    self.ending = Ending::default();
                    self.cut = Some(Box::new(Cut::new(rest, limit)));
                    continue;
                }
            };
            used += length;
            // A backend that says so much without an answer has none, however short each line is.
            self.heard += length;
            if self.heard > MOST_HEARD * self.options.limit {
                return (used, Some(LoginOutcome::TooLong));
            }
            if let Some(outcome) = self.response(&rest[..length], out) {
                return (used, Some(outcome));
            }
        }
    }

    /// Passes on what the client says to a challenge, line end included.
    pub fn respond(&mut self, line: &[u8], out: &mut Vec<u8>) {
        self.observer.client(line);
        out.extend_from_slice(line);
    }

    /// Answers a challenge for a client that is not there: a refused token is acknowledged
    /// (RFC 7628 section 3.2.3), anything else is cancelled.
    pub fn acknowledge(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self.mechanism {
            Some(Mechanism::XOAuth2) => b"\r\n",
            Some(Mechanism::OAuthBearer) => b"AQ==\r\n",
            _ => b"*\r\n",
        });
    }

    /// Whether an untagged response refuses the login, and says more of it than what was said before: words
    /// count for less than a code.
    fn is_refused_by(&self, response: Response<'_>, line: &[u8]) -> bool {
        let Response::Status { tag: None, status: Status::No | Status::Bad, .. } = response else {
            return false;
        };
        let before = self.refusal.clone().map(|at| Refusal::of(&self.untagged[at]));
        match (Refusal::without_a_tag(line), before) {
            (Some(refusal), Some(Refusal::Unexplained)) => refusal != Refusal::Unexplained,
            (said, before) => said.is_some() && before.is_none(),
        }
    }

    /// Whether the backend has said something that decides the login, were it to say no more.
    pub fn is_refused(&self) -> bool {
        self.refusal.is_some() || self.farewell.is_some()
    }

    /// There is no tagged answer and there will be none, for this reason: what became of the login by
    /// what the backend has said without a tag.
    pub fn unanswered(&mut self, why: impl Into<String>) -> LoginOutcome {
        let farewell = self.farewell.take();
        let answer = match (self.refusal.take(), &farewell) {
            (Some(at), _) => Some(self.untagged.drain(at).skip(1).collect()),
            (None, Some(bye)) if Refusal::without_a_tag(bye).is_some() => Some(as_answer(bye)),
            (None, _) => None,
        };
        match (answer, farewell) {
            (Some(answer), _) => self.refused(answer),
            (None, Some(bye)) => sent_away(&bye),
            (None, None) => LoginOutcome::Unavailable(why.into()),
        }
    }

    /// What is kept of a response that is longer than that. Text for people can be shorter; data that is
    /// not needed is passed over; a capability list and a challenge have to be whole.
    fn long_response(&mut self, kept: &[u8], out: &mut Vec<u8>) -> Option<LoginOutcome> {
        match peek::response(kept).unwrap_or(Response::Data) {
            Response::Capability | Response::Continuation => Some(LoginOutcome::TooLong),
            Response::Status { capability: true, .. }
                if Capabilities::in_response(kept).is_none() =>
            {
                Some(LoginOutcome::TooLong)
            }
            Response::Status { .. } => self.response(&[kept, b"\r\n"].concat(), out),
            _ => match self.stage {
                LoginStage::Greeting => {
                    Some(unavailable(format_args!("no IMAP greeting: {}", printable(kept))))
                }
                _ => None,
            },
        }
    }

    fn response(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<LoginOutcome> {
        let response = peek::response(line)?;
        if let Response::Status { tag: None, status: Status::Bye, .. } = response {
            match self.stage {
                // It is no greeting, and tells why.
                LoginStage::Greeting => {}
                // A refusal may follow, and the end does.
                LoginStage::Answer(_) => {
                    self.farewell.get_or_insert_with(|| line.to_vec());
                    return None;
                }
                LoginStage::Capability | LoginStage::Id | LoginStage::IdAfter(_) => {
                    return Some(unavailable(format_args!("BYE: {}", printable(line))));
                }
            }
        }
        let tagged = |expected: &str| match response {
            Response::Status { tag: Some(tag), status, .. } if tag == expected.as_bytes() => {
                Some(status)
            }
            _ => None,
        };
        let told = Capabilities::in_response(line);
        match &mut self.stage {
            LoginStage::Greeting => match Greeting::of(line) {
                Greeting::Blank => None,
                Greeting::Ready => {
                    self.offered = told;
                    if self.offered.is_some() {
                        return self.send_id(out);
                    }
                    self.ask_capability(out);
                    None
                }
                Greeting::Bye => {
                    let why = UnfitGreeting(line).to_string();
                    Some(LoginOutcome::SentAway { answer: bye_answer(line), why })
                }
                Greeting::Preauth | Greeting::Other => Some(unavailable(UnfitGreeting(line))),
            },
            LoginStage::Capability => {
                if told.is_some() {
                    self.offered = told;
                }
                tagged(CAPABILITY_TAG).and_then(|_| self.send_id(out))
            }
            LoginStage::Id => tagged(ID_TAG).and_then(|_| self.send_login(out)),
            LoginStage::Answer(pieces) => {
                if let Response::Continuation = response {
                    return match pieces.pop_front() {
                        Some(piece) => {
                            out.extend_from_slice(&piece.0);
                            None
                        }
                        None if self.challenges >= MOST_CHALLENGES => {
                            Some(unavailable("more challenges than any mechanism has"))
                        }
                        None => {
                            self.challenges += 1;
                            let text = line.strip_prefix(b"+").unwrap_or(line).trim_ascii();
                            self.observer.backend(text);
                            Some(LoginOutcome::Challenge(text.to_vec()))
                        }
                    };
                }
                if told.is_some() {
                    self.granted = told;
                }
                if let Some(status) = tagged(LOGIN_TAG) {
                    let answer = line[LOGIN_TAG.len()..].to_vec();
                    return self.answered(status, answer, out);
                }
                // The answer to what nobody asked could be taken for one to the client's next command.
                if matches!(response, Response::Status { tag: Some(_), .. }) {
                    return None;
                }
                let refuses = self.is_refused_by(response, line);
                let start = self.untagged.len();
                // What there is no room for does not reach the client, who gets the answer all the same.
                if refuses || start + line.len() <= self.options.limit {
                    self.untagged.extend_from_slice(line);
                }
                if refuses {
                    self.refusal = Some(start..self.untagged.len());
                }
                None
            }
            LoginStage::IdAfter(answer) => {
                if tagged(ID_AFTER_TAG).is_some() {
                    let answer = std::mem::take(answer);
                    return Some(self.accepted(answer));
                }
                None
            }
        }
    }

    fn ask_capability(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{CAPABILITY_TAG} CAPABILITY\r\n").as_bytes());
        self.stage = LoginStage::Capability;
    }

    /// The arguments of ID, if it is to be sent.
    fn id(&self, told: Option<&Capabilities>) -> Option<&[u8]> {
        let offered = [self.offered.as_ref(), told].into_iter().flatten().any(|c| c.has("ID"));
        self.options.id.as_deref().filter(|_| offered)
    }

    fn send_id(&mut self, out: &mut Vec<u8>) -> Option<LoginOutcome> {
        let Some(id) = self.id(None) else { return self.send_login(out) };
        out.extend_from_slice(&[ID_TAG.as_bytes(), b" ID ", id, b"\r\n"].concat());
        self.stage = LoginStage::Id;
        None
    }

    fn send_login(&mut self, out: &mut Vec<u8>) -> Option<LoginOutcome> {
        let offered = self.offered.get_or_insert_default();
        let Some((mechanism, mut pieces)) = self.attempt.put_to(offered, LOGIN_TAG) else {
            return Some(LoginOutcome::NotOffered(std::mem::take(offered)));
        };
        self.mechanism = mechanism;
        if let Some(first) = pieces.pop_front() {
            out.extend_from_slice(&first.0);
        }
        self.stage = LoginStage::Answer(pieces);
        None
    }

    fn answered(
        &mut self,
        status: Status,
        answer: Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Option<LoginOutcome> {
        if status != Status::Ok {
            return Some(self.refused(answer));
        }
        if let Some(bye) = &self.farewell {
            return Some(sent_away(bye));
        }
        let Some(id) = self.id(self.granted.as_ref()) else { return Some(self.accepted(answer)) };
        out.extend_from_slice(&[ID_AFTER_TAG.as_bytes(), b" ID ", id, b"\r\n"].concat());
        self.stage = LoginStage::IdAfter(answer);
        None
    }

    fn refused(&mut self, answer: Vec<u8>) -> LoginOutcome {
        let before = self.refusal.take().map(|at| &self.untagged[at]);
        let said = [Some(&answer[..]), before, self.farewell.as_deref()];
        let telling = said.into_iter().flatten().map(Refusal::of);
        let telling = telling.into_iter().find(|refusal| *refusal != Refusal::Unexplained);
        LoginOutcome::Refused {
            refusal: telling.unwrap_or(Refusal::Unexplained),
            untagged: without_lists(&std::mem::take(&mut self.untagged)),
            answer,
            offered: self.offered.take().unwrap_or_default(),
        }
    }

    fn accepted(&mut self, answer: Vec<u8>) -> LoginOutcome {
        LoginOutcome::Accepted {
            untagged: std::mem::take(&mut self.untagged),
            answer,
            offered: self.offered.take().unwrap_or_default(),
            granted: self.granted.take(),
        }
    }
}

fn sent_away(bye: &[u8]) -> LoginOutcome {
    let why = format!("BYE: {}", printable(bye));
    LoginOutcome::SentAway { answer: bye_answer(bye), why }
}

/// What a BYE is as an answer behind its tag.
fn as_answer(bye: &[u8]) -> Vec<u8> {
    let text = bye.splitn(3, |byte| *byte == b' ').nth(2).unwrap_or(b"\r\n");
    [b" NO ", text].concat()
}

fn unavailable(why: impl fmt::Display) -> LoginOutcome {
    LoginOutcome::Unavailable(why.to_string())
}

/// The response with its capability list, if it has one, as a client may see it.
pub fn edited(untagged: &[u8], own: Own) -> Vec<u8> {
    with_lists(untagged, |list| capability::edit_response(list, own))
}

/// The responses that have no capability list.
fn without_lists(untagged: &[u8]) -> Vec<u8> {
    with_lists(untagged, |_| Vec::new())
}

/// The responses, with others in place of those that have a capability list.
fn with_lists(untagged: &[u8], edit: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::with_capacity(untagged.len());
    let mut rest = untagged;
    while let End::At(length) = end_of_status_or_response(rest) {
        let (response, after) = rest.split_at(length);
        if capability::is_in(response) {
            out.extend_from_slice(&edit(response));
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
    use crate::model::Credentials;

    /// Plays `dialogue` (`B: ` the backend says, `M: ` must be said to it), a byte at a time.
    fn play(attempt: impl Into<LoginAttempt>, dialogue: &[&str]) -> Option<LoginOutcome> {
        let mut login = BackendLogin::new(attempt.into(), options());
        play_on(&mut login, dialogue)
    }

    fn play_on(login: &mut BackendLogin, dialogue: &[&str]) -> Option<LoginOutcome> {
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
                let text = line.strip_prefix("M: ").expect("a direction");
                let said = String::from_utf8(std::mem::take(&mut out)).unwrap();
                assert_eq!(said, format!("{text}\r\n"));
            }
        }
        assert_eq!(out, b"", "nothing more is said");
        outcome
    }

    fn options() -> LoginOptions {
        LoginOptions { greeted: false, id: None, limit: 4096 }
    }

    /// By LOGIN with two strings that were written so.
    fn by_login(
        credentials: Credentials,
        name: Option<&str>,
        password: Option<&str>,
    ) -> LoginAttempt {
        let secret = |text: &str| Secret(text.as_bytes().to_vec());
        let written = WrittenLogin { name: name.map(secret), password: password.map(secret) };
        LoginAttempt::Credentials { credentials, written: Some(written) }
    }

    fn alice_by_login() -> LoginAttempt {
        by_login(alice(), None, None)
    }

    fn alice() -> Credentials {
        Credentials::password("alice", b"wonder land".to_vec())
    }

    fn accepted(outcome: Option<LoginOutcome>) -> (String, String) {
        match outcome {
            Some(LoginOutcome::Accepted { untagged, answer, .. }) => {
                (String::from_utf8(untagged).unwrap(), String::from_utf8(answer).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plain_with_initial_response() {
        let outcome = play(
            alice(),
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
    fn login_is_sent_as_it_was_written_and_else_quoted() {
        let said = |attempt: LoginAttempt, sent: &[&str]| {
            let greeting = ["B: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi"];
            let dialogue = [&greeting[..], sent, &["B: m2 OK in"]].concat();
            play(attempt, &dialogue).expect("an outcome");
        };
        let bob = || Credentials::password("bob", b"q\"uo\\te".to_vec());
        let zip = || Credentials::password("x%y", b"Zip~ped9".to_vec());
        said(by_login(bob(), None, None), &[r#"M: m2 LOGIN "bob" "q\"uo\\te""#]);
        said(by_login(zip(), None, None), &[r#"M: m2 LOGIN "x%y" "Zip~ped9""#]);
        said(by_login(zip(), None, Some("Zip~ped9")), &[r#"M: m2 LOGIN "x%y" Zip~ped9"#]);
        let umlaut = || Credentials::password("ü", "pä".as_bytes().to_vec());
        said(by_login(umlaut(), Some("\"ü\""), Some("\"pä\"")), &["M: m2 LOGIN \"ü\" \"pä\""]);
        let literals = ["M: m2 LOGIN {2}", "B: + OK", "M: ü {3}", "B: + OK", "M: pä"];
        said(by_login(umlaut(), None, None), &literals);
        // What did not come by LOGIN goes by it where there is nothing else.
        let umlaut = LoginAttempt::from(umlaut());
        let dialogue = [&["B: * OK [CAPABILITY IMAP4rev1] hi"][..], &literals, &["B: m2 OK in"]];
        play(umlaut.clone(), &dialogue.concat()).expect("an outcome");
        said(umlaut, &["M: m2 AUTHENTICATE PLAIN", "B: + ", "M: AMO8AHDDpA=="]);
    }

    #[test]
    fn the_mechanism_login_is_used_where_there_is_no_other() {
        for (attempt, list) in [
            (alice_by_login(), "LOGINDISABLED AUTH=LOGIN SASL-IR"),
            (alice().into(), "LOGINDISABLED AUTH=login AUTH=CRAM-MD5"),
        ] {
            let greeting = format!("B: * OK [CAPABILITY IMAP4rev1 {list}] hi");
            let dialogue = [
                &greeting,
                "M: m2 AUTHENTICATE LOGIN",
                "B: + VXNlcm5hbWU6",
                "M: YWxpY2U=",
                "B: + UGFzc3dvcmQ6",
                "M: d29uZGVyIGxhbmQ=",
                "B: m2 OK in",
            ];
            accepted(play(attempt, &dialogue));
        }
    }

    #[test]
    fn refusals_keep_their_text() {
        let outcome = play(
            alice_by_login(),
            &[
                "B: * OK [CAPABILITY IMAP4rev1] hi",
                "M: m2 LOGIN \"alice\" \"wonder land\"",
                "B: m2 NO [AUTHENTICATIONFAILED] no {3}",
            ],
        );
        let Some(LoginOutcome::Refused { answer, refusal, .. }) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(answer, b" NO [AUTHENTICATIONFAILED] no {3}\r\n");
        assert_eq!(refusal, Refusal::Wrong);
    }

    /// A login that the backend has been sent and then says this to.
    fn answered(said: &[&str]) -> (BackendLogin, Option<LoginOutcome>) {
        let mut login = BackendLogin::new(alice_by_login(), options());
        let sent = ["B: * OK [CAPABILITY IMAP4rev1] hi", "M: m2 LOGIN \"alice\" \"wonder land\""];
        let outcome = play_on(&mut login, &[&sent[..], said].concat());
        (login, outcome)
    }

    #[test]
    fn what_is_said_without_a_tag_tells_why_a_login_is_refused() {
        use Refusal::{Barred, Temporary, Unexplained, Wrong};
        for (said, expected) in [
            (&["B: * NO [UNAVAILABLE] no database", "B: m2 NO Login failed"][..], Temporary),
            (&["B: * bad [serverbug] oops", "B: m2 BAD"], Temporary),
            (&["B: * BYE [UNAVAILABLE] later", "B: m2 NO Login failed"], Temporary),
            (&["B: * BYE", "B: m2 NO [AUTHENTICATIONFAILED] no"], Wrong),
            (&["B: * NO [WEBALERT x] go there", "B: m2 NO [ALERT] no (Failure)"], Barred),
            // The answer counts where it tells, and the first of the others.
            (&["B: * NO [UNAVAILABLE] x", "B: m2 NO [AUTHENTICATIONFAILED] x"], Wrong),
            (&["B: * NO [EXPIRED] x", "B: * NO [LIMIT] x", "B: m2 NO x"], Wrong),
            (&["B: * OK [UNAVAILABLE] x", "B: * NO not now", "B: m2 NO x"], Unexplained),
        ] {
            let (_, outcome) = answered(said);
            let Some(LoginOutcome::Refused { refusal, untagged, .. }) = outcome else {
                panic!("{said:?}")
            };
            assert_eq!(refusal, expected, "{said:?}");
            let kept =
                said.iter().filter(|line| line.starts_with("B: * ") && !line.contains("BYE"));
            let kept: String = kept.map(|line| format!("{}\r\n", &line[3..])).collect();
            assert_eq!(String::from_utf8(untagged).unwrap(), kept, "{said:?}");
        }
        // It is a warning where the login succeeds.
        let (_, outcome) = answered(&["B: * NO [OVERQUOTA] nearly full", "B: m2 OK in"]);
        assert_eq!(accepted(outcome).0, "* NO [OVERQUOTA] nearly full\r\n");
    }

    #[test]
    fn without_a_tagged_answer_the_code_decides() {
        for (said, before, expected) in [
            (&["B: * BYE [UNAVAILABLE] down"][..], "", " NO [UNAVAILABLE] down\r\n"),
            (&["B: * bye [AuthenticationFailed]"], "", " NO [AuthenticationFailed]\r\n"),
            (&["B: * NO [LIMIT] x", "B: * BYE"], "", " NO [LIMIT] x\r\n"),
            (&["B: * BAD x", "B: * BAD [LIMIT] y"], "* BAD x\r\n", " BAD [LIMIT] y\r\n"),
            (
                &["B: * NO Login failed", "B: * NO [LIMIT] y"],
                "* NO Login failed\r\n",
                " NO [LIMIT] y\r\n",
            ),
        ] {
            let (mut login, outcome) = answered(said);
            assert!(outcome.is_none() && login.is_refused(), "{said:?}");
            let LoginOutcome::Refused { untagged, answer, refusal, .. } = login.unanswered("gone")
            else {
                panic!("{said:?}")
            };
            assert_eq!(String::from_utf8(untagged).unwrap(), before);
            assert_eq!(String::from_utf8(answer).unwrap(), expected);
            assert_ne!(refusal, Refusal::Unexplained);
        }
        // In words it is refused as by a tagged NO without a code.
        for (said, expected) in [
            ("B: * BYE Login failed", " NO Login failed\r\n"),
            ("B: * NO Invalid password", " NO Invalid password\r\n"),
        ] {
            let (mut login, _) = answered(&[said]);
            let LoginOutcome::Refused { answer, refusal, .. } = login.unanswered("gone") else {
                panic!("{said}")
            };
            assert_eq!(String::from_utf8(answer).unwrap(), expected);
            assert_eq!(refusal, Refusal::Unexplained);
        }
        for (said, why) in [(&[][..], "gone"), (&["B: * NO not now"], "gone")] {
            let (mut login, outcome) = answered(said);
            assert!(outcome.is_none(), "{said:?}");
            let outcome = login.unanswered("gone");
            assert!(matches!(&outcome, LoginOutcome::Unavailable(it) if it == why), "{outcome:?}");
        }
        let (mut login, _) = answered(&["B: * BYE Temporary problem"]);
        let LoginOutcome::SentAway { answer, why } = login.unanswered("gone") else {
            panic!("no BYE")
        };
        assert_eq!(answer.unwrap(), "NO [UNAVAILABLE] The mail server says: Temporary problem");
        assert_eq!(why, "BYE: * BYE Temporary problem");
    }

    #[test]
    fn no_answer_is_no_refusal() {
        for dialogue in [&["B: * PREAUTH hi"][..], &["B: 220 smtp.example.org ESMTP"]] {
            let outcome = play(alice_by_login(), dialogue);
            assert!(matches!(outcome, Some(LoginOutcome::Unavailable(_))), "{outcome:?}");
        }
        // Who says BYE lets nobody in.
        let (_, outcome) = answered(&["B: * BYE Temporary problem", "B: m2 OK in"]);
        assert!(matches!(outcome, Some(LoginOutcome::SentAway { .. })), "{outcome:?}");
        let options = LoginOptions { limit: 100, ..options() };
        let mut login = BackendLogin::new(alice_by_login(), options);
        let (_, outcome) = login.step(&[b'x'; 2000], &mut Vec::new());
        assert!(outcome.is_none(), "{outcome:?}");
        let (_, outcome) = login.step(b"\r\n", &mut Vec::new());
        assert!(matches!(outcome, Some(LoginOutcome::Unavailable(_))), "{outcome:?}");
    }

    #[test]
    fn what_a_login_does_not_need_is_skipped_whatever_its_length() {
        let options = LoginOptions { limit: 2000, ..options() };
        for piece in [1, 1000, 1 << 20] {
            let mut login = BackendLogin::new(alice_by_login(), options.clone());
            let (mut input, mut out, mut outcome, mut most) = (Vec::new(), Vec::new(), None, 0);
            let mut hear = |said: &[u8]| {
                for bytes in said.chunks(piece) {
                    assert!(outcome.is_none(), "{outcome:?}");
                    input.extend_from_slice(bytes);
                    let (used, end) = login.step(&input, &mut out);
                    input.drain(..used);
                    most = most.max(input.len() + login.held());
                    outcome = end;
                }
                outcome.take()
            };
            let notice = [b"* OK ", &[b'x'; 5000][..], b"\r\n"].concat();
            let data = [b"* X-NEWS ({20000}\r\n", &[b'\n'; 20000][..], b")\r\n"].concat();
            let alert = b"* NO [WEBALERT http://x] see there\r\n";
            assert!(hear(&notice).is_none());
            assert!(hear(&data).is_none());
            assert!(hear(b"m1 OK done\r\n").is_none());
            for said in [&data, &notice, &alert[..]] {
                assert!(hear(said).is_none());
            }
            let end = hear(&[b"m2 NO [LIMIT] ", &[b'y'; 5000][..], b"\r\n"].concat());
            let Some(LoginOutcome::Refused { untagged, answer, .. }) = end else {
                panic!("{end:?}")
            };
            let start = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..12]).into_owned();
            assert_eq!(untagged, alert, "{}", start(&untagged));
            assert!(start(&answer).starts_with(" NO [LIMIT] "), "{}", start(&answer));
            assert!(answer.len() < 2000 + 10 && answer.ends_with(b"y\r\n"));
            assert!(most < 3 * 2000 + 1000 || piece > 1000, "{most} bytes are held");
        }
        for list in [&b"* OK [CAPABILITY IMAP4rev1"[..], b"* CAPABILITY IMAP4rev1"] {
            let mut login = BackendLogin::new(alice_by_login(), options.clone());
            let mut out = Vec::new();
            login.step(b"* OK hi\r\n", &mut out);
            let said = [list, &b" XYZ".repeat(1000), b"] hi\r\n"].concat();
            let (_, outcome) = login.step(&said, &mut out);
            assert!(matches!(outcome, Some(LoginOutcome::TooLong)), "{outcome:?}");
        }
    }

    #[test]
    fn a_greeting_comes_behind_blank_lines_and_sends_away_with_bye() {
        let outcome = play(alice_by_login(), &["B: ", "B:  ", "B: * BYE [LIMIT] busy"]);
        let Some(LoginOutcome::SentAway { answer, why }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(answer.as_deref(), Some("NO [LIMIT] The mail server says: busy"));
        assert_eq!(why, "the backend greets with BYE: \"* BYE [LIMIT] busy\"");
        let greeting =
            ["B: ", "B: * OK [CAPABILITY IMAP4rev1] hi", "M: m2 LOGIN \"alice\" \"wonder land\""];
        assert!(play(alice_by_login(), &greeting).is_none());
    }

    #[test]
    fn what_is_not_offered_is_not_tried() {
        let relayed =
            |mechanism: &str| LoginAttempt::Relayed { mechanism: mechanism.into(), initial: None };
        let token = || Credentials::bearer("a@b.example", b"tok".to_vec());
        for (attempt, list) in [
            (alice_by_login(), "LOGINDISABLED STARTTLS"),
            (alice().into(), "LOGINDISABLED AUTH=XOAUTH2"),
            (alice().acting_as("bob").into(), "LOGINDISABLED AUTH=LOGIN"),
            (token().into(), "AUTH=PLAIN"),
            (relayed("OAUTHBEARER"), "AUTH=XOAUTH2"),
        ] {
            let greeting = format!("B: * OK [CAPABILITY IMAP4rev1 {list}] hi");
            let outcome = play(attempt, &[&greeting]);
            assert!(matches!(outcome, Some(LoginOutcome::NotOffered(_))), "{list}: {outcome:?}");
        }
    }

    #[test]
    fn a_challenge_that_nothing_was_kept_for_is_somebody_elses_to_answer() {
        let mut login = BackendLogin::new(alice_by_login(), options());
        let mut out = Vec::new();
        login.step(b"* OK [CAPABILITY IMAP4rev1] hi\r\n", &mut out);
        let (_, outcome) = login.step(b"+ what?\r\n", &mut out);
        assert!(matches!(outcome, Some(LoginOutcome::Challenge(text)) if text == b"what?"));
        out.clear();
        login.acknowledge(&mut out);
        assert_eq!(out, b"*\r\n");
        let (_, outcome) = login.step(b"m2 BAD cancelled\r\n", &mut out);
        assert!(matches!(outcome, Some(LoginOutcome::Refused { .. })), "{outcome:?}");
    }

    #[test]
    fn a_token_goes_by_the_mechanism_that_is_offered() {
        let token = Credentials::bearer("a@b.example", b"tok".to_vec());
        play(
            token.clone(),
            &[
                "B: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=OAUTHBEARER] hi",
                "M: m2 AUTHENTICATE OAUTHBEARER bixhPWFAYi5leGFtcGxlLAFhdXRoPUJlYXJlciB0b2sBAQ==",
                "B: m2 OK in",
            ],
        )
        .expect("an outcome");
        let mut login = BackendLogin::new(token.into(), options());
        let mut out = Vec::new();
        login.step(b"* OK [CAPABILITY AUTH=XOAUTH2] hi\r\n", &mut out);
        assert_eq!(out, b"m2 AUTHENTICATE XOAUTH2\r\n");
        out.clear();
        login.step(b"+ \r\n", &mut out);
        assert_eq!(out, b"dXNlcj1hQGIuZXhhbXBsZQFhdXRoPUJlYXJlciB0b2sBAQ==\r\n");
        let (_, outcome) = login.step(b"+ eyJzdGF0dXMiOiI0MDEifQ==\r\n", &mut out);
        assert!(matches!(outcome, Some(LoginOutcome::Challenge(text)) if text.starts_with(b"eyJ")));
        out.clear();
        login.acknowledge(&mut out);
        assert_eq!(out, b"\r\n");
    }

    #[test]
    fn id_is_sent_before_and_after_where_it_is_offered() {
        let mut options = options();
        options.id = Some(b"(\"name\" \"x\")".to_vec());
        let mut login = BackendLogin::new(alice_by_login(), options);
        let mut out = Vec::new();
        login.step(b"* OK [CAPABILITY IMAP4rev1 ID] Coremail\r\n", &mut out);
        assert_eq!(out, b"m3 ID (\"name\" \"x\")\r\n");
        out.clear();
        login.step(b"* ID NIL\r\nm3 OK done\r\n", &mut out);
        assert_eq!(out, b"m2 LOGIN \"alice\" \"wonder land\"\r\n");
        out.clear();
        let (_, outcome) = login.step(b"m2 OK in\r\n", &mut out);
        assert!(outcome.is_none());
        assert_eq!(out, b"m4 ID (\"name\" \"x\")\r\n");
        let (_, outcome) = login.step(b"* ID NIL\r\nm4 OK done\r\n", &mut out);
        let (untagged, answer) = accepted(outcome);
        assert_eq!((&untagged[..], &answer[..]), ("", " OK in\r\n"));
    }

    #[test]
    fn after_starttls_no_greeting_is_waited_for() {
        let options = LoginOptions { greeted: true, ..options() };
        let mut login = BackendLogin::new(alice_by_login(), options);
        let mut out = Vec::new();
        login.start(&mut out);
        assert_eq!(out, b"m1 CAPABILITY\r\n");
        out.clear();
        login.step(b"* CAPABILITY IMAP4rev1\r\nm1 OK\r\n", &mut out);
        assert_eq!(out, b"m2 LOGIN \"alice\" \"wonder land\"\r\n");
    }

    #[test]
    fn a_mechanism_that_is_not_understood_passes() {
        let attempt = LoginAttempt::Relayed {
            mechanism: "SCRAM-SHA-256".into(),
            initial: Some(Secret(b"biwsbj1hLHI9eA==".to_vec())),
        };
        let mut login = BackendLogin::new(attempt, options());
        let mut out = Vec::new();
        login.step(b"* OK [CAPABILITY AUTH=SCRAM-SHA-256] hi\r\n", &mut out);
        assert_eq!(out, b"m2 AUTHENTICATE SCRAM-SHA-256\r\n");
        out.clear();
        login.step(b"+ \r\n", &mut out);
        assert_eq!(out, b"biwsbj1hLHI9eA==\r\n");
        let (_, outcome) = login.step(b"+ cj14eSxzPXE=\r\n", &mut out);
        assert!(matches!(outcome, Some(LoginOutcome::Challenge(text)) if text == b"cj14eSxzPXE="));
    }

    #[test]
    fn debug_shows_no_password() {
        let written = by_login(alice(), None, Some("\"wonder land\""));
        let initial = Some(Secret(b"wonder".to_vec()));
        let relayed = LoginAttempt::Relayed { mechanism: "OAUTHBEARER".into(), initial };
        for attempt in [alice().into(), written, relayed] {
            let mut login = BackendLogin::new(attempt, options());
            login.step(b"* OK [CAPABILITY AUTH=PLAIN] x\r\n", &mut Vec::new());
            let shown = format!("{login:?}");
            assert!(!shown.contains("AGFs") && !shown.contains("wonder"), "{shown}");
            assert!(!shown.contains("119, 111"), "{shown}");
        }
    }
}
