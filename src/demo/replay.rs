//! Playing dialogues: against mailchime with a backend that follows the script, and the client's
//! half against a live server.
//!
//! The one part of `demo` that runs mailchime itself: between the script's two ends, so what is
//! checked here is what mailchime says.

mod live;
mod proxy;
mod scripted;

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

pub use self::live::{LiveServer, Login, against_server};
pub use self::proxy::{Proxy, TOPIC, push_offer, push_offer_of};
pub use self::scripted::{against_mailchime, against_mailchime_as};
use super::dialogue::{Difference, Text, Variables};
use crate::net::stream::Stream;

/// For each thing that is waited for.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a dialogue does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The first difference.
    #[error(transparent)]
    Differs(#[from] Difference),
    /// It could not be played.
    #[error("{0}")]
    Broken(String),
}

impl Failure {
    fn broken(error: impl std::fmt::Display) -> Self {
        Self::Broken(error.to_string())
    }
}

/// One end of the script: its connection, and what was heard on it and not compared yet.
#[derive(Debug)]
struct End {
    stream: Stream,
    heard: Vec<u8>,
}

/// What came in place of bytes.
#[derive(Debug)]
enum Silence {
    Ended,
    Nothing,
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended => f.write_str("[the end of the connection]"),
            Self::Nothing => write!(f, "[nothing more within {LIMIT:?}]"),
        }
    }
}

impl End {
    fn new(stream: Stream) -> Self {
        Self { stream, heard: Vec::new() }
    }

    async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        let said = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        let late = || Err(io::ErrorKind::TimedOut.into());
        tokio::time::timeout(LIMIT, said).await.unwrap_or_else(|_| late())
    }

    /// Hears more; the end may come in any way.
    async fn more(&mut self) -> Result<(), Silence> {
        match tokio::time::timeout(LIMIT, self.stream.fill(&mut self.heard)).await {
            Ok(Ok(1..)) => Ok(()),
            Ok(Ok(0) | Err(_)) => Err(Silence::Ended),
            Err(_) => Err(Silence::Nothing),
        }
    }

    /// Hears a text, line by line.
    async fn hear(&mut self, text: &Text, variables: &mut Variables) -> Result<(), Difference> {
        for line in text.lines() {
            let length = loop {
                let length = match line.length(variables) {
                    Some(length) => (self.heard.len() >= length).then_some(length),
                    None => self.heard.iter().position(|b| *b == b'\n').map(|feed| feed + 1),
                };
                if let Some(length) = length {
                    break length;
                }
                if let Err(silence) = self.more().await {
                    let heard = self.heard.escape_ascii();
                    return Err(line.unlike(format_args!("{heard}{silence}")));
                }
            };
            let heard: Vec<u8> = self.heard.drain(..length).collect();
            line.compare(&heard, variables)?;
        }
        Ok(())
    }

    /// Hears the rest, to the end of the connection.
    async fn rest(&mut self) -> Result<(), Silence> {
        loop {
            match self.more().await {
                Ok(()) => {}
                Err(Silence::Ended) => return Ok(()),
                Err(silence) => return Err(silence),
            }
        }
    }

    async fn shutdown(&mut self) {
        // A client that has hung up already needs no answer.
        let _ = tokio::time::timeout(LIMIT, self.stream.shutdown()).await;
    }
}

fn differs(line: usize, expected: &str, heard: impl std::fmt::Display) -> Difference {
    Difference { line, expected: expected.to_owned(), heard: heard.to_string() }
}
