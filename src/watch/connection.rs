//! A watcher's connection: commands one at a time, responses whole and bounded.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::news::News;
use crate::imap::literal::End;
use crate::imap::login::{end_of_status_or_response, printable};
use crate::imap::peek::{self, Response, Status};
use crate::net::backend::LoggedIn;
use crate::net::backends::Place;
use crate::net::stream::Stream;

/// For the last words of a connection.
const FAREWELL: Duration = Duration::from_secs(1);

/// A logged-in connection. It holds no bytes while it waits for some.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    input: Vec<u8>,
    commands: u32,
    /// The tag of the IDLE that is under way.
    idle: Option<String>,
    /// What was said of the mailbox that is open, in whatever answer.
    pub(super) news: News,
    answer_timeout: Duration,
    longest: usize,
    /// Among the connections of its account.
    _place: Option<Place>,
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the backend said {0}")]
    Bye(String),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("a response of more than {0} bytes")]
    TooLong(usize),
}

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ok,
    No,
    Bad,
}

impl Connection {
    /// `answer_timeout` is for the whole answer to a command, `longest` the most bytes of one
    /// response.
    pub(super) fn new(logged_in: LoggedIn, answer_timeout: Duration, longest: usize) -> Self {
        let LoggedIn { stream, input, place: _place, .. } = logged_in;
        let news = News::default();
        Self { stream, input, commands: 0, idle: None, news, answer_timeout, longest, _place }
    }

    /// Sends a command and gives each untagged response until its answer to `untagged`.
    pub(super) async fn command(
        &mut self,
        command: &str,
        untagged: impl FnMut(&[u8]),
    ) -> Result<Answer, Lost> {
        let tag = self.send(command).await?;
        self.until(&tag, untagged).await
    }

    /// Starts IDLE (RFC 2177) and returns whether it has begun: then call [`Connection::idling`]
    /// and [`Connection::done`], and nothing else.
    pub(super) async fn idle(&mut self) -> Result<bool, Lost> {
        let tag = self.send("IDLE").await?;
        // Already now: a farewell in between has to end it, too.
        self.idle = Some(tag.clone());
        let limit = self.answer_timeout;
        let begun = async {
            loop {
                let response = self.response().await?;
                match peek::response(&response) {
                    Some(Response::Continuation) => return Ok(true),
                    Some(Response::Status { tag: Some(told), .. }) if told == tag.as_bytes() => {
                        self.idle = None;
                        return Ok(false);
                    }
                    _ => {}
                }
            }
        };
        timeout(limit, begun).await.map_err(|_| Lost::Silent(limit))?
    }

    /// The next response in IDLE, which may be news; false if the backend has ended the IDLE.
    /// Cancel safe.
    pub(super) async fn idling(&mut self) -> Result<bool, Lost> {
        let response = self.response().await?;
        if let Some(Response::Status { tag: Some(told), .. }) = peek::response(&response)
            && self.idle.as_ref().is_some_and(|tag| tag.as_bytes() == told)
        {
            self.idle = None;
        }
        Ok(self.idle.is_some())
    }

    /// Ends IDLE.
    pub(super) async fn done(&mut self) -> Result<(), Lost> {
        if let Some(tag) = self.idle.take() {
            self.write(b"DONE\r\n").await?;
            self.until(&tag, |_| {}).await?;
        }
        Ok(())
    }

    /// The next whole response, however long it takes. Cancel safe.
    pub(super) async fn response(&mut self) -> Result<Vec<u8>, Lost> {
        loop {
            match end_of_status_or_response(&self.input) {
                End::At(length) => {
                    let rest = self.input.split_off(length);
                    let response = std::mem::replace(&mut self.input, rest);
                    if self.input.is_empty() {
                        self.input = Vec::new();
                    }
                    self.news.read(&response);
                    return match peek::response(&response) {
                        Some(Response::Status { tag: None, status: Status::Bye, .. }) => {
                            Err(Lost::Bye(printable(&response)))
                        }
                        _ => Ok(response),
                    };
                }
                End::Beyond if self.input.len() > self.longest => {
                    return Err(Lost::TooLong(self.longest));
                }
                End::Beyond => {}
            }
            if self.stream.fill(&mut self.input).await? == 0 {
                return Err(Lost::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Says goodbye wherever it stands, so that the backend's log shows an orderly end, and waits a
    /// moment to be heard. Whether it was is no matter.
    pub(super) async fn log_out(mut self) {
        let farewell = async {
            if self.idle.is_some() {
                self.write(b"DONE\r\n").await?;
            }
            self.send("LOGOUT").await?;
            // Until the BYE.
            while self.response().await.is_ok() {}
            Ok::<_, Lost>(self.stream.shutdown().await?)
        };
        let _ = timeout(FAREWELL, farewell).await;
    }

    async fn send(&mut self, command: &str) -> Result<String, Lost> {
        self.commands = self.commands.wrapping_add(1);
        let tag = format!("w{}", self.commands);
        self.write(format!("{tag} {command}\r\n").as_bytes()).await?;
        Ok(tag)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let Self { stream, answer_timeout, .. } = self;
        let written = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        match timeout(*answer_timeout, written).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Lost::Silent(*answer_timeout)),
        }
    }

    /// The answer to the command of `tag`, in time as a whole: a backend that goes on and on with
    /// other things has not answered either.
    async fn until(&mut self, tag: &str, mut untagged: impl FnMut(&[u8])) -> Result<Answer, Lost> {
        let limit = self.answer_timeout;
        let answer = async {
            loop {
                let response = self.response().await?;
                match peek::response(&response) {
                    Some(Response::Status { tag: Some(told), status, .. })
                        if told == tag.as_bytes() =>
                    {
                        return Ok(match status {
                            Status::Ok => Answer::Ok,
                            Status::No => Answer::No,
                            _ => Answer::Bad,
                        });
                    }
                    _ => untagged(&response),
                }
            }
        };
        timeout(limit, answer).await.map_err(|_| Lost::Silent(limit))?
    }
}
