//! A watcher's connection: commands one at a time, responses whole and bounded.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::imap::literal::End;
use crate::imap::login::{end_of_status_or_response, printable};
use crate::imap::peek::{self, Response, Status};
use crate::net::stream::Stream;

/// For the last words of a connection.
const FAREWELL: Duration = Duration::from_secs(1);

/// A logged-in connection. It holds no bytes while it waits for some.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    input: Vec<u8>,
    commands: u32,
    answer_timeout: Duration,
    longest: usize,
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
    /// NO or BAD.
    Refused,
}

/// What an IDLE came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Idle {
    Started,
    Refused,
}

impl Connection {
    /// `input` is what came behind the answer to the login.
    pub(super) fn new(
        stream: Stream,
        input: Vec<u8>,
        answer_timeout: Duration,
        longest: usize,
    ) -> Self {
        Self { stream, input, commands: 0, answer_timeout, longest }
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

    /// Starts IDLE (RFC 2177): after [`Idle::Started`] read responses, then call
    /// [`Connection::done`] with the tag.
    pub(super) async fn idle(
        &mut self,
        mut untagged: impl FnMut(&[u8]),
    ) -> Result<(Idle, String), Lost> {
        let tag = self.send("IDLE").await?;
        loop {
            let response = self.timely().await?;
            match peek::response(&response) {
                Some(Response::Continuation) => return Ok((Idle::Started, tag)),
                Some(Response::Status { tag: Some(told), .. }) if told == tag.as_bytes() => {
                    return Ok((Idle::Refused, tag));
                }
                _ => untagged(&response),
            }
        }
    }

    /// Ends IDLE.
    pub(super) async fn done(
        &mut self,
        tag: &str,
        untagged: impl FnMut(&[u8]),
    ) -> Result<Answer, Lost> {
        self.write(b"DONE\r\n").await?;
        self.until(tag, untagged).await
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

    /// Says goodbye, so that the backend's log shows an orderly end. Whether it is heard is no
    /// matter.
    pub(super) async fn log_out(mut self) {
        self.answer_timeout = FAREWELL;
        if self.send("LOGOUT").await.is_ok() {
            let _ = tokio::time::timeout(FAREWELL, self.stream.shutdown()).await;
        }
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
        match tokio::time::timeout(*answer_timeout, written).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Lost::Silent(*answer_timeout)),
        }
    }

    async fn until(&mut self, tag: &str, mut untagged: impl FnMut(&[u8])) -> Result<Answer, Lost> {
        loop {
            let response = self.timely().await?;
            match peek::response(&response) {
                Some(Response::Status { tag: Some(told), status, .. })
                    if told == tag.as_bytes() =>
                {
                    let ok = status == Status::Ok;
                    return Ok(if ok { Answer::Ok } else { Answer::Refused });
                }
                _ => untagged(&response),
            }
        }
    }

    async fn timely(&mut self) -> Result<Vec<u8>, Lost> {
        let limit = self.answer_timeout;
        tokio::time::timeout(limit, self.response()).await.map_err(|_| Lost::Silent(limit))?
    }
}
