//! The two directions after login, and mailchime's own questions between them.
//!
//! Bytes of both directions are followed, not parsed: lines, literals, and the first words of
//! commands and responses. All of them go on unchanged but for capability lists, which are edited,
//! and the few commands that mailchime answers itself.
//!
//! ```text
//!   client  ──▶ command? ──▶ `pending`: what the backend owes for it
//!                  │ ours
//!                  ▼
//!               a command of ours (see `intercept`): the direction is held until it is answered
//!
//!   backend ──▶ response? ──▶ capability list: edit │ our own tag, our STATUS: swallow │ pass on
//!                  └───────▶ `pending`: whose go-ahead, answer or refusal is it?
//! ```
//!
//! Whether what follows a synchronising literal's announcement, or IDLE, is a command is the backend's
//! to decide. A client that does not wait for that is held: until the go-ahead, an answer to the
//! command or an untagged BAD has come that is not an earlier command's. Any of them may come before
//! the command's line has ended (Dovecot says NO when a mailbox's name has come, and `+` at the brace);
//! then nothing is waited for at its end. What an answered command announces to come without waiting
//! still comes.
//!
//! While a command of ours is under way the client's direction is held, too. The fence, a NOOP of our own,
//! is answered when all earlier commands of the client are, since a server answers in order.
//!
//! Nothing is held for ever: see [`Relay::awaited`]. A registration that the database does not take at
//! once is set aside, and answered when that is known; its client goes on.

mod intercept;
mod pending_replies;
mod selection;
mod wires;

use std::sync::Arc;

use self::intercept::{Intercept, is_intercepted};
use self::pending_replies::{PendingReplies, ReplyOwner, ReplyTo};
use self::selection::Selection;
use self::wires::{Deferred, Wires};
use super::capability::{self, Own};
use super::contract::{Awaited, LONGEST_STATUS, Output, Profile, Step};
use super::literal::{Announcement, ResponseEnd, Scan};
use super::peek::{self, Command, Response, Status, Verb};
use super::stream_position::{LineEnd, StreamPosition};
use crate::model::{Account, Mailbox, RegistrationResult};

/// The most lines that are looked at in one step, so that the caller can let others have their turn.
const MOST_LINES: u32 = 4096;

/// A session after login.
#[derive(Debug)]
pub struct Relay {
    client: StreamPosition,
    backend: StreamPosition,
    /// For the end of the backend's response under way, where that is waited for.
    scan: Scan,
    /// The backend's line under way does not reach the client.
    swallows: bool,
    pending: PendingReplies,
    selection: Selection,
    /// The go-ahead for the literal that the client's line is about to announce has come already.
    granted: bool,
    /// The client's last command is answered.
    over: bool,
    /// The client has gone on without waiting for what decides what its bytes are.
    held: bool,
    intercept: Intercept,
    deferred: Deferred,
}

/// What begins at a line start of the client.
enum Begun<'a> {
    /// Something that passes; the direction follows it.
    Passes,
    /// Nothing that is known yet.
    Waits,
    /// A command that mailchime answers.
    Ours(&'a [u8], Verb),
    Endless,
}

/// What begins at a line start of the backend.
enum ResponseBegun {
    /// Something that passes; the direction follows it.
    Passes,
    /// Nothing that is known yet.
    Waits,
    /// A response that mailchime looks at as a whole, and where it ends.
    Held(ResponseEnd),
}

impl Relay {
    /// A session of `account` that starts at a line start in both directions.
    pub fn new(profile: Arc<Profile>, account: Option<Account>, tag_prefix: String) -> Self {
        Self {
            client: StreamPosition::LineStart,
            backend: StreamPosition::LineStart,
            scan: Scan::default(),
            swallows: false,
            pending: PendingReplies::default(),
            selection: Selection::default(),
            granted: false,
            over: false,
            held: false,
            intercept: Intercept::new(profile, account, tag_prefix),
            deferred: Deferred::default(),
        }
    }

    /// What to do with the client's bytes. `last` means that no more will follow.
    pub fn client(&mut self, input: &[u8], last: bool, out: &mut Output) -> Step {
        if self.intercept.is_at_work() {
            let (intercept, mut wires) = self.parts(out);
            return intercept.collect(input, &mut wires);
        }
        self.held = false;
        let (mut used, mut lines) = (0, 0);
        while used < input.len() && lines < MOST_LINES {
            lines += 1;
            let rest = &input[used..];
            if let StreamPosition::LineStart | StreamPosition::Announced(_) = self.client {
                match self.begins(rest, last) {
                    Begun::Passes => {}
                    Begun::Waits => break,
                    // What came before it goes first.
                    Begun::Ours(..) | Begun::Endless if used > 0 => break,
                    Begun::Ours(tag, verb) => {
                        let (intercept, mut wires) = self.parts(out);
                        intercept.start(tag, verb, &mut wires);
                        return Step::Take(0);
                    }
                    Begun::Endless => return Step::Close("a tag without end"),
                }
                continue;
            }
            let (length, end) = self.client.follow(rest);
            used += length;
            let whole = matches!(end, LineEnd::Plain);
            self.selection.follow(&rest[..length], whole, self.intercept.utf8);
            match end {
                LineEnd::None => {}
                LineEnd::Plain => self.granted = false,
                LineEnd::Announces(announcement) => self.announces(announcement),
            }
        }
        out.lines += lines;
        if used == 0 { Step::Wait } else { Step::Forward(used) }
    }

    /// What begins at a line start of the client.
    fn begins<'a>(&mut self, rest: &'a [u8], last: bool) -> Begun<'a> {
        if let StreamPosition::Announced(_) = self.client
            && !self.over
        {
            self.held = true;
            return Begun::Waits;
        }
        let command = match peek::command(rest) {
            Some(Command::Endless) => return Begun::Endless,
            Some(command) => command,
            // Half a line is all that will ever come.
            None if last => {
                self.client = StreamPosition::line(false);
                return Begun::Passes;
            }
            None => return Begun::Waits,
        };
        match (self.pending.idle(), command) {
            (_, Command::Done) => {
                self.pending.done();
                self.client = StreamPosition::line(false);
            }
            (Some(false), _) if !last => {
                self.held = true;
                return Begun::Waits;
            }
            // In IDLE nothing but DONE is a command; the backend says so.
            (Some(_), _) => self.client = StreamPosition::line(false),
            (None, Command::Known { tag, verb }) if is_intercepted(verb) => {
                return Begun::Ours(tag, verb);
            }
            (None, Command::Known { tag, verb: Verb::Idle }) => self.begin(tag, ReplyTo::IDLE),
            (None, Command::Known { tag, verb }) => {
                self.selection.begins(tag, verb);
                self.begin(tag, ReplyTo::Command);
            }
            (None, Command::Other { tag }) => self.begin(tag, ReplyTo::Command),
            (None, Command::Garbage | Command::Endless) => {
                let word = rest.iter().position(|b| b" \r\n".contains(b)).unwrap_or(rest.len());
                self.begin(&rest[..word], ReplyTo::Stray);
            }
        }
        Begun::Passes
    }

    /// A line of the client's last command ended so.
    fn announces(&mut self, Announcement { length, synchronising }: Announcement) {
        let granted = std::mem::take(&mut self.granted);
        if !synchronising || granted {
            self.client = StreamPosition::literal(length);
        } else if !self.over {
            self.client = StreamPosition::Announced(length);
        }
    }

    /// What to do with the backend's bytes. `last` means that no more will follow.
    pub fn backend(&mut self, input: &[u8], last: bool, out: &mut Output) -> Step {
        let (mut used, mut lines) = (0, 0);
        while lines < MOST_LINES {
            lines += 1;
            let at_start = matches!(self.backend, StreamPosition::LineStart);
            if at_start && !self.deferred.is_empty() {
                if used == 0 {
                    self.deferred.release(out);
                    return Step::Take(0);
                }
                break;
            }
            let rest = &input[used..];
            if rest.is_empty() {
                break;
            }
            if !at_start {
                if self.swallows && used > 0 {
                    break;
                }
                let (length, end) = self.backend.follow(rest);
                if self.swallows {
                    self.swallows = !matches!(self.backend, StreamPosition::LineStart);
                    return Step::Take(length);
                }
                used += length;
                if let LineEnd::Announces(Announcement { length, .. }) = end {
                    self.backend = StreamPosition::literal(length);
                }
                continue;
            }
            let response = match peek::response(rest) {
                Some(response) => response,
                // Half a line is all that will ever come.
                None if last => Response::Data,
                None => break,
            };
            let end = match self.response_begins(response, rest, last) {
                ResponseBegun::Passes => continue,
                ResponseBegun::Waits => break,
                ResponseBegun::Held(end) => end,
            };
            // A response that does not simply pass: what came before it goes first.
            if used > 0 {
                break;
            }
            return self.take_response(response, end, rest, out);
        }
        out.lines += lines;
        if used == 0 { Step::Wait } else { Step::Forward(used) }
    }

    /// What begins at a line start of the backend.
    fn response_begins(
        &mut self,
        response: Response<'_>,
        rest: &[u8],
        last: bool,
    ) -> ResponseBegun {
        let end = match response {
            Response::Status { tag, status, capability } => {
                if !capability && !self.is_question_answered(tag, status) {
                    self.command_answered(tag, status);
                    self.passes(false);
                    return ResponseBegun::Passes;
                }
                self.scan.end_of_line(rest)
            }
            Response::Capability => self.scan.end_of_line(rest),
            Response::Enabled => {
                let limit = self.intercept.profile().capability_size;
                match self.scan.end_of_line(rest) {
                    ResponseEnd::At(length) if length <= limit => self.enabled(&rest[..length]),
                    ResponseEnd::Beyond if rest.len() <= limit && !last => {
                        return ResponseBegun::Waits;
                    }
                    ResponseEnd::At(_) | ResponseEnd::Beyond => {}
                }
                self.passes(true);
                return ResponseBegun::Passes;
            }
            Response::MailboxStatus if self.intercept.takes_statuses() => {
                match self.scan.end_of_response(rest) {
                    ResponseEnd::At(length) if length <= LONGEST_STATUS => ResponseEnd::At(length),
                    ResponseEnd::Beyond if rest.len() <= LONGEST_STATUS => ResponseEnd::Beyond,
                    ResponseEnd::At(_) | ResponseEnd::Beyond => {
                        self.passes(true);
                        return ResponseBegun::Passes;
                    }
                }
            }
            Response::Continuation => {
                self.go_ahead();
                self.passes(false);
                return ResponseBegun::Passes;
            }
            Response::MailboxStatus | Response::Data => {
                self.passes(true);
                return ResponseBegun::Passes;
            }
        };
        if end == ResponseEnd::Beyond && last {
            self.passes(true);
            return ResponseBegun::Passes;
        }
        ResponseBegun::Held(end)
    }

    /// Takes a response that does not simply pass, and ends there.
    fn take_response(
        &mut self,
        response: Response<'_>,
        end: ResponseEnd,
        rest: &[u8],
        out: &mut Output,
    ) -> Step {
        let limit = self.intercept.profile().longest_response();
        match end {
            ResponseEnd::At(length) if length <= limit => {
                self.take(response, &rest[..length], out);
                Step::Take(length)
            }
            ResponseEnd::Beyond if rest.len() <= limit => Step::Wait,
            // The rest of what a question of ours is answered with is for nobody.
            ResponseEnd::At(_) | ResponseEnd::Beyond
                if let Response::Status { tag: tag @ Some(_), status, .. } = response
                    && self.is_question_answered(tag, status) =>
            {
                self.take(response, &rest[..limit], out);
                self.passes(false);
                let (length, _) = self.backend.follow(rest);
                self.swallows = !matches!(self.backend, StreamPosition::LineStart);
                Step::Take(length)
            }
            // Whether its end is at hand already is chance, and makes no difference.
            ResponseEnd::At(_) | ResponseEnd::Beyond => {
                out.over.capability += 1;
                Step::Close("a capability list of the backend that is too long")
            }
        }
    }

    /// Goes by another profile from now on. The route for this user's devices then; `None` if they are
    /// offered no push.
    pub fn renewed(&mut self, profile: Arc<Profile>) -> Option<&str> {
        self.intercept.renewed(profile)
    }

    /// The registration of the first `Action::Register` without an answer is on disk, or cannot be.
    pub fn registered(&mut self, result: RegistrationResult, out: &mut Output) {
        let (intercept, mut wires) = self.parts(out);
        intercept.registered(result, &mut wires);
    }

    /// As [`Session::spare`](super::session::Session::spare).
    pub(super) fn spare(&mut self, scarce: bool) {
        self.intercept.scarce = scarce;
    }

    /// As [`Session::held`](super::session::Session::held).
    pub(super) fn held(&self) -> usize {
        self.deferred.held() + self.selection.held() + self.intercept.held()
    }

    /// Whether a command of ours is not answered yet.
    pub fn is_busy(&self) -> bool {
        self.intercept.is_busy()
    }

    /// Whether the client waits for nothing but news: all its commands are answered, or it idles.
    pub fn is_idle(&self) -> bool {
        !self.is_busy() && (self.pending.idle().is_some() || self.pending.all_answered())
    }

    /// The word that holds up the client, if one does. When it has not come in time, call
    /// [`Relay::overdue`].
    pub fn awaited(&self) -> Option<Awaited> {
        if self.intercept.is_at_work() {
            return self.intercept.awaited(!self.pending.all_answered());
        }
        self.held.then_some(Awaited::Turn)
    }

    /// What [`Relay::awaited`] named is not waited for any longer. A command of ours for which the
    /// backend is asked is answered with NO; a registration that is being written is not answered yet,
    /// and its client goes on. Bytes that were held go on unlooked at: as those of the literal that was announced, or
    /// as said in IDLE.
    pub fn overdue(&mut self, out: &mut Output) {
        if self.intercept.is_at_work() {
            let (intercept, mut wires) = self.parts(out);
            intercept.overdue(&mut wires);
        } else if let StreamPosition::Announced(length) = self.client {
            self.client = StreamPosition::literal(length);
        } else {
            self.pending.start_idle();
        }
    }

    /// The backend is not asked for these mailboxes: it did not answer before, or ended the connection.
    pub(super) fn ask_not(&mut self, mailboxes: Vec<Mailbox>) {
        self.intercept.unasked = mailboxes;
    }

    /// The mailbox that the backend is asked for.
    pub fn asked(&self) -> Option<&Mailbox> {
        self.intercept.asked()
    }

    /// What mailchime adds to capability lists.
    pub fn own(&self) -> Own {
        self.intercept.own()
    }

    /// Whether no response of the backend is under way to the client.
    pub fn at_response_boundary(&self) -> bool {
        matches!(self.backend, StreamPosition::LineStart)
    }

    /// The commands that mailchime answers, and what they may touch.
    fn parts<'a>(&'a mut self, out: &'a mut Output) -> (&'a mut Intercept, Wires<'a>) {
        let at_boundary = self.at_response_boundary();
        let Self { intercept, pending, deferred, selection, .. } = self;
        (intercept, Wires { pending, deferred, selection, at_boundary, out })
    }

    /// The backend's response goes on as it is; its first line may announce a literal, or not.
    fn passes(&mut self, literals: bool) {
        self.scan = Scan::default();
        self.backend = StreamPosition::line(literals);
    }

    fn begin(&mut self, tag: &[u8], to: ReplyTo) {
        self.pending.begin(tag, to);
        (self.granted, self.over) = (false, false);
        // No server looks for a literal where there is no command.
        self.client = StreamPosition::line(to != ReplyTo::Stray);
    }

    /// The backend sent `+`.
    fn go_ahead(&mut self) {
        if self.pending.go_ahead() {
            return;
        }
        match self.client {
            StreamPosition::Announced(length) => {
                self.client = StreamPosition::literal(length);
                if std::mem::take(&mut self.over) {
                    self.pending.revive();
                }
            }
            StreamPosition::Line { tail, literals: true } => self.granted |= tail.waits(),
            StreamPosition::Line { .. }
            | StreamPosition::LineStart
            | StreamPosition::Literal(_) => {}
        }
    }

    /// Whether a status response is the answer to a question of ours.
    fn is_question_answered(&self, tag: Option<&[u8]>, status: Status) -> bool {
        match tag {
            Some(tag) => self.intercept.may_have_asked(tag) && self.pending.is_question(tag),
            None => status == Status::Bad && self.pending.is_question_next(),
        }
    }

    /// The backend answered a command of the client, or refused one without its tag.
    fn command_answered(&mut self, tag: Option<&[u8]>, status: Status) {
        let whose = match tag {
            Some(tag) => {
                self.selection.answered(tag, status);
                self.pending.answered(tag, status == Status::Ok)
            }
            None if status == Status::Bad && !self.pending.is_question_next() => {
                self.pending.refused()
            }
            None => return,
        };
        if whose == ReplyOwner::Last {
            self.over = true;
            // What was only complained about may have its go-ahead yet.
            if let (Some(_), StreamPosition::Announced(_)) = (tag, self.client) {
                self.client = StreamPosition::LineStart;
            }
        }
    }

    fn enabled(&mut self, line: &[u8]) {
        let mut words = line.split(|b| matches!(b, b' ' | b'\r' | b'\n'));
        let utf8 = [&b"UTF8=ACCEPT"[..], b"IMAP4rev2"];
        self.intercept.utf8 |=
            words.any(|word| utf8.iter().any(|name| word.eq_ignore_ascii_case(name)));
    }

    /// A whole response that does not simply pass.
    fn take(&mut self, response: Response<'_>, line: &[u8], out: &mut Output) {
        match response {
            Response::Status { tag, status, capability }
                if (tag.is_some() || !capability) && self.is_question_answered(tag, status) =>
            {
                match tag {
                    Some(tag) => drop(self.pending.answered(tag, true)),
                    None => {
                        self.pending.refused();
                        out.to_client.extend_from_slice(line);
                    }
                }
                let refusal = (status != Status::Ok).then_some(line);
                let (intercept, mut wires) = self.parts(out);
                intercept.question_answered(tag, refusal, &mut wires);
            }
            Response::MailboxStatus => self.intercept.keep(line),
            _ => {
                if let Response::Status { tag, status, .. } = response {
                    self.command_answered(tag, status);
                }
                let edited = capability::edit_response(line, self.own());
                out.to_client.extend_from_slice(&edited);
            }
        }
    }
}
