//! A watcher's connection: commands, a bounded number of them at a time, and responses, of which a
//! bounded number of bytes is kept.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use super::keepalive::ConnectionLoss;
use super::unsolicited::Unsolicited;
use crate::imap::capability::Capabilities;
use crate::imap::peek::{self, Response, Status};
use crate::imap::responses::Responses;
use crate::imap::responses::printable;
use crate::net::account_connections::ConnectionPermit;
use crate::net::backend::LoggedIn;
use crate::net::stream::Stream;

/// For the last words of a connection.
const FAREWELL: Duration = Duration::from_secs(1);

/// Commands that are sent ahead of their answers.
const AHEAD: usize = 16;

/// What is read before other tasks have their turn: bytes, and some more for each response. It is done
/// within a fraction of a millisecond, however short the responses are.
const TURN: u32 = 128 * 1024;
const RESPONSE: u32 = 128;

/// A logged-in connection. It holds no bytes while it waits for some.
#[derive(Debug)]
pub(in crate::watch) struct ImapConnection {
    stream: Stream,
    input: Responses,
    /// What was read since other tasks had their turn.
    read: u32,
    /// Why the next response will not come.
    lost: Option<Box<ConnectionLost>>,
    commands: u32,
    began: Instant,
    /// When something was last said, by either side.
    active_at: Instant,
    /// The backend has said nothing since we did, which was after so long.
    unanswered: Option<Duration>,
    /// Since when a response has been coming of which the end has not.
    under_way: Option<Instant>,
    /// Since when IDLE has been under way, which is the last command then.
    idle: Option<Instant>,
    /// What was said of mailboxes, in whatever answer.
    pub(in crate::watch) unsolicited: Unsolicited,
    /// The last NO or BAD, for logs.
    refusal: Option<Box<str>>,
    answer_timeout: Duration,
    /// What the backend told of itself with the login, until somebody asks.
    granted: Option<Box<Capabilities>>,
    /// Among the connections of its account.
    _place: Option<ConnectionPermit>,
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(in crate::watch) enum ConnectionLost {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the backend said {0}")]
    Bye(String),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("a response that has no end after {0:?}")]
    Endless(Duration),
}

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::watch) enum Completion {
    Ok,
    No,
    Bad,
}

/// A command was refused.
#[derive(Debug)]
pub(in crate::watch) struct CommandRefused {
    /// With BAD.
    pub(in crate::watch) bad: bool,
    /// The backend's words.
    pub(in crate::watch) refusal: Box<str>,
}

impl ImapConnection {
    /// `answer_timeout` is for the whole answer to a command, and for the bytes of any one response;
    /// `longest` is the most bytes of one response that are kept.
    pub(in crate::watch) fn new(
        logged_in: LoggedIn,
        answer_timeout: Duration,
        longest: usize,
    ) -> Self {
        let LoggedIn { stream, input, capabilities, place: _place, .. } = logged_in;
        Self {
            stream,
            input: Responses::new(input, longest),
            read: 0,
            lost: None,
            commands: 0,
            began: Instant::now(),
            active_at: Instant::now(),
            unanswered: None,
            under_way: None,
            idle: None,
            unsolicited: Unsolicited::default(),
            refusal: None,
            answer_timeout,
            granted: capabilities.map(Box::new),
            _place,
        }
    }

    /// The capabilities after the login: what the backend told with it, or else says when it is asked.
    pub(in crate::watch) async fn capabilities(&mut self) -> Result<Capabilities, ConnectionLost> {
        if let Some(granted) = self.granted.take() {
            return Ok(*granted);
        }
        let mut told = None;
        let capability = |line: &[u8]| told = Capabilities::in_response(line).or(told.take());
        self.command("CAPABILITY", capability).await?;
        let granted = told.unwrap_or_default();
        // The login says who we are where ID was offered by then. Coremail opens no mailbox for a client
        // that has not (RFC 2971).
        if granted.has("ID") {
            self.command("ID (\"name\" \"mailchime\")", |_| {}).await?;
        }
        Ok(granted)
    }

    /// Sends a command and gives each untagged response until its answer to `untagged`.
    pub(in crate::watch) async fn command(
        &mut self,
        command: &str,
        untagged: impl FnMut(&[u8]),
    ) -> Result<Completion, ConnectionLost> {
        let number = self.send(command).await?;
        self.until(number, untagged).await
    }

    /// Sends commands that do not depend on each other, some of them ahead of the answers
    /// (RFC 9051 section 5.5). Calls `answered` with the place of each, what came of it and what was
    /// said until then.
    pub(in crate::watch) async fn commands(
        &mut self,
        commands: &[String],
        mut answered: impl FnMut(usize, Result<(), CommandRefused>, &mut Unsolicited),
    ) -> Result<(), ConnectionLost> {
        let first = self.commands.wrapping_add(1);
        let (mut sent, mut done) = (0, 0);
        while done < commands.len() {
            if sent < commands.len() && sent - done <= AHEAD / 2 {
                let mut batch = String::new();
                for command in &commands[sent..commands.len().min(done + AHEAD)] {
                    self.commands = self.commands.wrapping_add(1);
                    sent += 1;
                    // A String takes anything.
                    let _ = write!(batch, "w{} {command}\r\n", self.commands);
                }
                self.write(batch.as_bytes()).await?;
            }
            let (place, answer) = self
                .tagged(|tag| {
                    let place = numbered(tag)?.wrapping_sub(first);
                    usize::try_from(place).ok().filter(|place| *place < sent)
                })
                .await?;
            done += 1;
            let refusal = self.refusal.take().unwrap_or_default();
            let result = match answer {
                Completion::Ok => Ok(()),
                Completion::No | Completion::Bad => {
                    Err(CommandRefused { bad: answer == Completion::Bad, refusal })
                }
            };
            answered(place, result, &mut self.unsolicited);
        }
        Ok(())
    }

    /// What the backend said when it last refused a command.
    pub(in crate::watch) fn take_refusal(&mut self) -> Box<str> {
        self.refusal.take().unwrap_or_default()
    }

    /// Starts IDLE (RFC 2177) and returns whether it has begun: then call [`ImapConnection::unasked`]
    /// and [`ImapConnection::done`], and nothing else.
    pub(in crate::watch) async fn idle(&mut self) -> Result<bool, ConnectionLost> {
        let number = self.send("IDLE").await?;
        // Already now: a farewell in between has to end it, too.
        self.idle = Some(Instant::now());
        let limit = self.answer_timeout;
        let begun = async {
            loop {
                match peek::response(self.response().await?) {
                    Some(Response::Continuation) => return Ok(true),
                    Some(Response::Status { tag: Some(tag), .. })
                        if numbered(tag) == Some(number) =>
                    {
                        self.idle = None;
                        return Ok(false);
                    }
                    _ => {}
                }
            }
        };
        timeout(limit, begun).await.map_err(|_| ConnectionLost::Silent(limit))?
    }

    /// Takes in what nothing was asked for, which may be news: the next response, and those that came
    /// with it. Whether the backend has ended the IDLE with them. Cancel safe.
    pub(in crate::watch) async fn unasked(&mut self) -> Result<bool, ConnectionLost> {
        self.response().await?;
        let mut ends = self.ends_idle();
        // News must not wait for the rest of what is under way.
        while !ends && self.read < TURN && self.input.advance() {
            if let Err(lost) = self.heard() {
                // Nor be lost with it.
                self.lost = Some(Box::new(lost));
                break;
            }
            ends = self.ends_idle();
        }
        if ends {
            self.idle = None;
        }
        Ok(ends)
    }

    /// Whether the current response is the answer to IDLE.
    fn ends_idle(&self) -> bool {
        match peek::response(self.input.current()) {
            Some(Response::Status { tag: Some(tag), .. }) => {
                self.idle.is_some() && numbered(tag) == Some(self.commands)
            }
            _ => false,
        }
    }

    /// Whether IDLE is under way.
    pub(in crate::watch) fn idles(&self) -> bool {
        self.idle.is_some()
    }

    /// For how long IDLE has been under way.
    pub(in crate::watch) fn idles_for(&self) -> Option<Duration> {
        self.idle.map(|since| since.elapsed())
    }

    /// When something was last said, by either side.
    pub(in crate::watch) fn active_at(&self) -> Instant {
        self.active_at
    }

    /// What its end says, if it is lost now.
    pub(in crate::watch) fn loss(&self) -> ConnectionLoss {
        let quiet = self.unanswered.unwrap_or_else(|| self.active_at.elapsed());
        ConnectionLoss { age: self.began.elapsed(), quiet, unanswered: self.unanswered.is_some() }
    }

    /// Ends IDLE, if it is under way.
    pub(in crate::watch) async fn done(&mut self) -> Result<(), ConnectionLost> {
        if self.idle.take().is_some() {
            self.write(b"DONE\r\n").await?;
            self.until(self.commands, |_| {}).await?;
        }
        Ok(())
    }

    /// The next whole response, however long it takes to begin. Cancel safe.
    async fn response(&mut self) -> Result<&[u8], ConnectionLost> {
        if let Some(lost) = self.lost.take() {
            return Err(*lost);
        }
        self.take_turns().await;
        while !self.input.advance() {
            // One without end must not keep others waiting either.
            self.take_turns().await;
            let read = self.stream.fill(self.input.more()).await?;
            if read == 0 {
                return Err(ConnectionLost::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            self.read = self.read.saturating_add(u32::try_from(read).unwrap_or(u32::MAX));
            (self.active_at, self.unanswered) = (Instant::now(), None);
            // What is not needed is skipped, whatever its length, but not for ever.
            if self.under_way.get_or_insert(self.active_at).elapsed() > self.answer_timeout {
                return Err(ConnectionLost::Endless(self.answer_timeout));
            }
        }
        self.under_way = None;
        self.heard()
    }

    /// Lets other tasks have their turn when enough was read.
    async fn take_turns(&mut self) {
        if self.read >= TURN {
            self.read = 0;
            tokio::task::yield_now().await;
        }
    }

    /// Takes note of the current response.
    fn heard(&mut self) -> Result<&[u8], ConnectionLost> {
        let response = self.input.current();
        self.read = self.read.saturating_add(RESPONSE);
        self.unsolicited.read(response);
        match peek::response(response) {
            Some(Response::Status { tag: None, status: Status::Bye, .. }) => {
                Err(ConnectionLost::Bye(printable(response)))
            }
            _ => Ok(response),
        }
    }

    /// Says goodbye wherever it stands, so that the backend's log shows an orderly end, and waits a
    /// moment to be heard. Whether it was is no matter.
    pub(in crate::watch) async fn log_out(mut self) {
        let farewell = async {
            if self.idle.is_some() {
                self.write(b"DONE\r\n").await?;
            }
            self.send("LOGOUT").await?;
            // Until the BYE.
            while self.response().await.is_ok() {}
            Ok::<_, ConnectionLost>(self.stream.shutdown().await?)
        };
        let _ = timeout(FAREWELL, farewell).await;
    }

    /// Sends a command, and returns its number.
    async fn send(&mut self, command: &str) -> Result<u32, ConnectionLost> {
        self.commands = self.commands.wrapping_add(1);
        self.write(format!("w{} {command}\r\n", self.commands).as_bytes()).await?;
        Ok(self.commands)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ConnectionLost> {
        let Self { stream, answer_timeout, active_at, unanswered, .. } = self;
        unanswered.get_or_insert(active_at.elapsed());
        *active_at = Instant::now();
        let written = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        match timeout(*answer_timeout, written).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ConnectionLost::Silent(*answer_timeout)),
        }
    }

    /// The answer to the command of this number.
    async fn until(
        &mut self,
        number: u32,
        mut untagged: impl FnMut(&[u8]),
    ) -> Result<Completion, ConnectionLost> {
        let ours = |tag: &[u8]| (numbered(tag) == Some(number)).then_some(());
        let ((), answer) = self.tagged_or(ours, &mut untagged).await?;
        Ok(answer)
    }

    async fn tagged<T>(
        &mut self,
        ours: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<(T, Completion), ConnectionLost> {
        self.tagged_or(ours, |_| {}).await
    }

    /// The next answer whose tag is one of `ours`, in time as a whole: a backend that goes on and on
    /// with other things has not answered either.
    async fn tagged_or<T>(
        &mut self,
        ours: impl Fn(&[u8]) -> Option<T>,
        mut other: impl FnMut(&[u8]),
    ) -> Result<(T, Completion), ConnectionLost> {
        let limit = self.answer_timeout;
        let answer = async {
            loop {
                let response = self.response().await?;
                if let Some(Response::Status { tag: Some(tag), status, .. }) =
                    peek::response(response)
                    && let Some(found) = ours(tag)
                {
                    let answer = match status {
                        Status::Ok => return Ok((found, Completion::Ok)),
                        Status::No => Completion::No,
                        _ => Completion::Bad,
                    };
                    let words = response.get(tag.len()..).unwrap_or_default();
                    self.refusal = Some(printable(words).into());
                    return Ok((found, answer));
                }
                other(response);
            }
        };
        timeout(limit, answer).await.map_err(|_| ConnectionLost::Silent(limit))?
    }
}

/// The number of the command that has this tag.
fn numbered(tag: &[u8]) -> Option<u32> {
    std::str::from_utf8(tag).ok()?.strip_prefix('w')?.parse().ok()
}
