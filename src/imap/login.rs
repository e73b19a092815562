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
use super::literal::ResponseEnd;
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
    /// The backend has accepted it.
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
    /// The backend has refused it.
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

    /// What is tried.
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
                ResponseEnd::At(length) if length <= limit => length,
                ResponseEnd::Beyond if rest.len() <= limit || !self.ending.is_known() => {
                    return (used, None);
                }
                ResponseEnd::At(_) | ResponseEnd::Beyond => {
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
            LoginStage::Greeting => self.greeted(line, told, out),
            LoginStage::Capability => {
                if told.is_some() {
                    self.offered = told;
                }
                tagged(CAPABILITY_TAG).and_then(|_| self.send_id(out))
            }
            LoginStage::Id => tagged(ID_TAG).and_then(|_| self.send_login(out)),
            LoginStage::Answer(_) => {
                if let Response::Continuation = response {
                    return self.continues(line, out);
                }
                if told.is_some() {
                    self.granted = told;
                }
                if let Some(status) = tagged(LOGIN_TAG) {
                    let answer = line[LOGIN_TAG.len()..].to_vec();
                    return self.answered(status, answer, out);
                }
                self.keep_untagged(response, line);
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

    /// The first response of the backend.
    fn greeted(
        &mut self,
        line: &[u8],
        told: Option<Capabilities>,
        out: &mut Vec<u8>,
    ) -> Option<LoginOutcome> {
        match Greeting::of(line) {
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
        }
    }

    /// The backend waits for more of the login.
    fn continues(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<LoginOutcome> {
        if let LoginStage::Answer(pieces) = &mut self.stage
            && let Some(piece) = pieces.pop_front()
        {
            out.extend_from_slice(&piece.0);
            return None;
        }
        if self.challenges >= MOST_CHALLENGES {
            return Some(unavailable("more challenges than any mechanism has"));
        }
        self.challenges += 1;
        let text = line.strip_prefix(b"+").unwrap_or(line).trim_ascii();
        self.observer.backend(text);
        Some(LoginOutcome::Challenge(text.to_vec()))
    }

    /// A response to the login that is not the answer.
    fn keep_untagged(&mut self, response: Response<'_>, line: &[u8]) {
        // The answer to what nobody asked could be taken for one to the client's next command.
        if matches!(response, Response::Status { tag: Some(_), .. }) {
            return;
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
    while let ResponseEnd::At(length) = end_of_status_or_response(rest) {
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
mod tests;
