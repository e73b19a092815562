//! The client's half of a dialogue against a live server, mailchime or any other.
//!
//! Servers differ where dialogues do not care: in what they say beside what was asked, in its order,
//! and in words. The rules are those of `fixtures/README.md`.

use std::fmt;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::{End, Failure, LIMIT, Silence, differs};
use crate::demo::dialogue::{Deed, Dialogue, Difference, Peer, Text, Variables, What};
use crate::imap::literal::{Announcement, ResponseEnd};
use crate::imap::peek::{self, Response};
use crate::imap::responses::end_of_status_or_response;
use crate::imap::responses::has_code;
use crate::net::stream::Stream;
use crate::net::tls_stream::TlsClient;

/// Where a dialogue is played.
#[derive(Clone, Debug)]
pub struct LiveServer {
    /// A name or an IP address, the latter without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `None` speaks without TLS.
    pub tls: Option<Arc<ClientConfig>>,
}

/// For whom a dialogue is played, in place of whom its settings name.
#[derive(Clone)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The user's password.
    pub password: Vec<u8>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Plays the client's half of a dialogue and compares what the client hears.
///
/// # Errors
/// The first difference, or why it could not be played.
pub async fn against_server(
    dialogue: &Dialogue,
    server: &LiveServer,
    login: Option<&Login>,
) -> Result<(), Failure> {
    let variables = match login {
        Some(Login { user, password }) => Variables::of_login(user, password),
        None => Variables::of(&dialogue.settings),
    };
    let stream = match tokio::time::timeout(LIMIT, server.connect()).await {
        Ok(stream) => stream?,
        Err(_) => return Err(Failure::Broken(format!("no connection within {LIMIT:?}"))),
    };
    let mut client = Client { end: End::new(stream), variables: variables.lenient() };
    for event in &dialogue.events {
        match &event.what {
            What::Says(Peer::Client, text) => {
                let said = client.end.say(&text.filled(&mut client.variables)).await;
                said.map_err(|error| differs(event.line, "C:", format_args!("[{error}]")))?;
            }
            What::Hears(Peer::Client, text) => client.hears(text).await?,
            What::Does(Deed::Close) => {
                let closed = client.end.rest().await;
                closed.map_err(|silence| differs(event.line, "P: close", silence))?;
            }
            What::Says(Peer::Backend, _) | What::Hears(Peer::Backend, _) | What::Does(_) => {}
        }
    }
    client.end.shutdown().await;
    Ok(())
}

impl LiveServer {
    async fn connect(&self) -> Result<Stream, Failure> {
        let address = format!("{}:{}", self.host, self.port);
        let broken = |error: &dyn fmt::Display| Failure::Broken(format!("{address}: {error}"));
        let stream = TcpStream::connect((self.host.as_str(), self.port));
        let stream = stream.await.map_err(|error| broken(&error))?;
        stream.set_nodelay(true).map_err(|error| broken(&error))?;
        let Some(config) = &self.tls else { return Ok(Stream::Plain(stream)) };
        let name = ServerName::try_from(self.host.clone()).map_err(|error| broken(&error))?;
        let stream = TlsClient::connect(stream, config, name).await;
        Ok(Stream::Client(Box::new(stream.map_err(|error| broken(&error))?)))
    }
}

struct Client {
    end: End,
    variables: Variables,
}

impl Client {
    /// Hears the responses of a packet. Untagged ones may come in any order and among others, as
    /// long as they come before the tagged one or the `+` behind them.
    async fn hears(&mut self, text: &Text) -> Result<(), Difference> {
        let mut awaited: Vec<Text> = Vec::new();
        let mut passed: Vec<Vec<u8>> = Vec::new();
        for expected in responses(text, &self.variables) {
            if !is_final(&expected.filled(&mut self.variables.clone())) {
                awaited.push(expected);
                continue;
            }
            loop {
                let heard = self.response().await;
                let heard = heard.map_err(|silence| expected.unlike(silence))?;
                if is_final(&heard) {
                    missing(&awaited, &passed, heard.escape_ascii())?;
                    self.compare(&expected, &heard)?;
                    break;
                }
                self.take(heard, &mut awaited, &mut passed);
            }
            passed.clear();
        }
        while !awaited.is_empty() {
            match self.response().await {
                Ok(heard) if is_final(&heard) => {
                    return missing(&awaited, &passed, heard.escape_ascii());
                }
                Ok(heard) => self.take(heard, &mut awaited, &mut passed),
                Err(silence) => return missing(&awaited, &passed, silence),
            }
        }
        Ok(())
    }

    /// An untagged response: one of those awaited, or one to pass over.
    fn take(&mut self, heard: Vec<u8>, awaited: &mut Vec<Text>, passed: &mut Vec<Vec<u8>>) {
        let found = (0..awaited.len()).find(|i| self.compare(&awaited[*i], &heard).is_ok());
        match found {
            Some(index) => drop(awaited.remove(index)),
            None => passed.push(heard),
        }
    }

    fn compare(&mut self, expected: &Text, heard: &[u8]) -> Result<(), Difference> {
        let filled = expected.filled(&mut self.variables.clone());
        let alike = match (peek::response(&filled), peek::response(heard)) {
            (Some(Response::Continuation), Some(Response::Continuation))
            | (Some(Response::Capability), Some(Response::Capability)) => true,
            (
                Some(Response::Status { tag, status, .. }),
                Some(Response::Status { tag: tag_heard, status: status_heard, .. }),
            ) => {
                let code = code(&filled);
                // What stands in the code may be of use later.
                let _ = expected.compare(heard, &mut self.variables);
                (tag, status) == (tag_heard, status_heard)
                    && code.is_none_or(|code| has_code(heard, &code))
            }
            _ => return expected.compare(heard, &mut self.variables),
        };
        if alike { Ok(()) } else { Err(expected.unlike(heard.escape_ascii())) }
    }

    /// The next whole response of the server.
    async fn response(&mut self) -> Result<Vec<u8>, Silence> {
        loop {
            match end_of_status_or_response(&self.end.heard) {
                ResponseEnd::At(length) => return Ok(self.end.heard.drain(..length).collect()),
                ResponseEnd::Beyond => self.end.more().await?,
            }
        }
    }
}

/// The responses that a text is made of: lines, and with them the literals that they announce.
fn responses(text: &Text, variables: &Variables) -> Vec<Text> {
    let mut variables = variables.clone();
    let mut responses: Vec<Text> = Vec::new();
    // Octets that must stand behind the last response before its next line can end it.
    let mut owed = 0;
    for line in text.lines() {
        let filled = line.filled(&mut variables);
        let goes_on = owed > 0;
        match responses.last_mut() {
            Some(last) if goes_on => last.join(&line),
            _ => responses.push(line),
        }
        if filled.len() as u64 <= owed {
            // A line of a literal. One that ends with the literal leaves the rest of its line.
            owed -= filled.len() as u64;
            owed = owed.max(1);
            continue;
        }
        let is_text = !goes_on
            && matches!(
                peek::response(&filled),
                Some(Response::Status { .. } | Response::Continuation)
            );
        owed = match Announcement::at_end_of(&filled) {
            Some(announced) if !is_text => announced.length.max(1),
            _ => 0,
        };
    }
    responses
}

/// Whether a response is one that a client waits for: tagged, or `+`.
fn is_final(response: &[u8]) -> bool {
    !response.starts_with(b"* ")
}

/// The name of a status response's code, `NONEXISTENT` in `a NO [NONEXISTENT] …`.
fn code(response: &[u8]) -> Option<String> {
    let start = response.iter().position(|b| *b == b'[')? + 1;
    let length = response[start..].iter().position(|b| matches!(b, b' ' | b']'))?;
    let code = std::str::from_utf8(&response[start..start + length]).ok()?;
    has_code(response, code).then(|| code.to_owned())
}

/// The first of those awaited did not come: what came in its place is the one of its kind, or else
/// what ended the wait.
fn missing(awaited: &[Text], passed: &[Vec<u8>], end: impl fmt::Display) -> Result<(), Difference> {
    let Some(first) = awaited.first() else { return Ok(()) };
    let kind = |response: &[u8]| {
        response
            .split(|b| matches!(b, b' ' | b'\r' | b'\n'))
            .find(|word| word.first().is_some_and(u8::is_ascii_alphabetic))
            .map(<[u8]>::to_ascii_uppercase)
    };
    match passed.iter().find(|response| kind(response) == kind(first.bytes())) {
        Some(response) => Err(first.unlike(response.escape_ascii())),
        None => Err(first.unlike(end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_has_its_literals() {
        let dialogue = Dialogue::parse(
            "S: * 1 FETCH (BODY[] {${n=7}}\nS: ab\nS: cde)\nS: * OK see {5}\nS: * X {2}\nS: xy\nS: a OK\n",
        )
        .unwrap();
        let What::Hears(_, text) = &dialogue.events[0].what else { panic!() };
        let found = responses(text, &Variables::default());
        let lines: Vec<_> = found.iter().map(Text::line).collect();
        assert_eq!(lines, [1, 4, 5, 7]);
    }

    #[test]
    fn the_code_is_that_of_the_status() {
        assert_eq!(code(b"a NO [NONEXISTENT] x\r\n").as_deref(), Some("NONEXISTENT"));
        assert_eq!(code(b"* OK [UIDVALIDITY 7] x\r\n").as_deref(), Some("UIDVALIDITY"));
        assert_eq!(code(b"a OK see [X]\r\n"), None);
    }
}
