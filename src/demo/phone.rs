//! A scripted iPhone that registers for push, and a helper that leaves mail in a mailbox.
//!
//! Both are IMAP clients of their own, so that the demo shows what a stranger sees.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio_rustls::TlsConnector;

use super::{crypto, pki};

/// What the phone knows: an account and what it registers with.
#[derive(Clone)]
pub struct Phone {
    /// The user's name.
    pub login: String,
    /// The user's password.
    pub password: String,
    /// `aps-account-id`: a UUID that the phone made for this account.
    pub account_id: String,
    /// `aps-device-token`: 64 hex digits.
    pub device_token: String,
    /// As on the wire (modified UTF-7).
    pub mailboxes: Vec<String>,
}

/// What the server answered to the registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// The version of the protocol that the server speaks.
    pub version: String,
    /// The topic to listen to.
    pub topic: String,
    /// The mailboxes that were echoed, as on the wire, in order.
    pub mailboxes: Vec<String>,
}

/// Who said a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The phone.
    Client,
    /// From the server.
    Server,
}

/// Why a script did not come to its end.
#[derive(Debug, Error)]
pub enum PhoneError {
    /// The connection failed.
    #[error("{step}: {source}")]
    Io {
        /// At which step.
        step: &'static str,
        /// What the library or the system says.
        source: io::Error,
    },
    /// The server did not answer in time.
    #[error("{step}: no answer within {} s", STEP.as_secs())]
    Late {
        /// At which step.
        step: &'static str,
    },
    /// The authority cannot be used.
    #[error("the CA certificate cannot be used: {0}")]
    Ca(rustls::Error),
    /// With the server's words.
    #[error("{step}: refused: {answer}")]
    Refused {
        /// At which step.
        step: &'static str,
        /// What the server said.
        answer: String,
    },
    /// The server offers no push.
    #[error("the server does not offer XAPPLEPUSHSERVICE")]
    NotOffered,
    /// The server closed the connection.
    #[error("{0}: the server closed the connection")]
    Closed(&'static str),
    /// The server said something else.
    #[error("{0}: the server's answer makes no sense")]
    Malformed(&'static str),
    /// CR, LF, NUL and what is not ASCII cannot stand between quotes (RFC 3501 section 9).
    #[error("{0} cannot be sent as a quoted string")]
    Unquotable(&'static str),
}

/// Each step (connect, handshake, one command) has so long.
const STEP: Duration = Duration::from_secs(10);

/// A server that says more than this in one response is not ours.
const RESPONSE: usize = 1024 * 1024;

// === impl Phone ===

impl Phone {
    /// Logs in over TLS, registers as iOS Mail does (PROTOCOL.md section 1) and logs out.
    ///
    /// `server_name` is the name in the server's certificate, `ca` the PEM of who signed it.
    ///
    /// `heard` gets every line in both directions, without its end, **as it is, the password and
    /// the device token included**: it is for showing a demonstration whose password is public, and
    /// for nothing else.
    ///
    /// # Errors
    /// [`PhoneError`] says at which step it failed.
    pub async fn register(
        &self,
        address: impl ToSocketAddrs,
        server_name: &str,
        ca: &str,
        heard: impl FnMut(Direction, &str),
    ) -> Result<Registered, PhoneError> {
        let config = ClientConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .map_err(PhoneError::Ca)?
            .with_root_certificates(pki::roots(ca).map_err(PhoneError::Ca)?)
            .with_no_client_auth();
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|e| PhoneError::Io { step: "server name", source: io::Error::other(e) })?;
        let stream = in_time("connect", TcpStream::connect(address)).await?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let mut dialogue = PhoneConnection::new(in_time("TLS handshake", tls).await?, heard);

        dialogue.greeting().await?;
        let login = quoted(&self.login, "login")?;
        let password = quoted(&self.password, "password")?;
        dialogue.command("login", &format!("LOGIN {login} {password}")).await?;
        let capabilities = dialogue.command("capability", "CAPABILITY").await?;
        let offered = capabilities.iter().any(|response| {
            let mut words = words(response).into_iter();
            words.next().as_deref() == Some("*")
                && words.next().is_some_and(|word| word.eq_ignore_ascii_case("CAPABILITY"))
                && words.any(|word| word.eq_ignore_ascii_case("XAPPLEPUSHSERVICE"))
        });
        if !offered {
            return Err(PhoneError::NotOffered);
        }
        let answers = dialogue.command("registration", &self.registration()?).await?;
        let registered = understand(&answers).ok_or(PhoneError::Malformed("registration"))?;
        dialogue.command("logout", "LOGOUT").await?;
        Ok(registered)
    }

    fn registration(&self) -> Result<String, PhoneError> {
        let mailboxes: Vec<_> =
            self.mailboxes.iter().map(|name| quoted(name, "mailbox")).collect::<Result<_, _>>()?;
        Ok(format!(
            "XAPPLEPUSHSERVICE \"aps-version\" \"2\" \"aps-account-id\" {} \"aps-device-token\" {} \
             \"aps-subtopic\" \"com.apple.mobilemail\" \"mailboxes\" ({})",
            quoted(&self.account_id, "account id")?,
            quoted(&self.device_token, "device token")?,
            mailboxes.join(" "),
        ))
    }
}

impl fmt::Debug for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Phone")
            .field("login", &self.login)
            .field("mailboxes", &self.mailboxes)
            .finish_non_exhaustive()
    }
}

/// Leaves a small mail in a mailbox of a server that speaks IMAP without TLS, such as the demo
/// backend: logs in, appends, logs out.
///
/// # Errors
/// [`PhoneError`] says at which step it failed.
pub async fn deliver(
    address: impl ToSocketAddrs,
    login: &str,
    password: &str,
    mailbox: &str,
    subject: &str,
) -> Result<(), PhoneError> {
    // A line end in the subject would let it write the rest of the header.
    quoted(subject, "subject")?;
    let date = super::date_time(SystemTime::now());
    let mail = format!(
        "From: Demo <demo@localhost>\r\nTo: <{login}>\r\nSubject: {subject}\r\n\
         Date: {date}\r\nMessage-ID: <{}@localhost>\r\n\r\nHello from the demo.\r\n",
        super::random_uuid()
    );
    let stream = in_time("connect", TcpStream::connect(address)).await?;
    let mut dialogue = PhoneConnection::new(stream, |_, _: &str| {});
    dialogue.greeting().await?;
    let credentials = format!("{} {}", quoted(login, "login")?, quoted(password, "password")?);
    dialogue.command("login", &format!("LOGIN {credentials}")).await?;
    let append = format!("APPEND {} {{{}}}", quoted(mailbox, "mailbox")?, mail.len());
    dialogue.command_with_literal("delivery", &append, &mail).await?;
    dialogue.command("logout", "LOGOUT").await?;
    Ok(())
}

/// One command at a time, and what the server says to it.
struct PhoneConnection<S, F> {
    stream: BufStream<S>,
    heard: F,
    commands: u32,
}

impl<S, F> PhoneConnection<S, F>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: FnMut(Direction, &str),
{
    fn new(stream: S, heard: F) -> Self {
        Self { stream: BufStream::new(stream), heard, commands: 0 }
    }

    async fn greeting(&mut self) -> Result<(), PhoneError> {
        let greeting = within("greeting", self.response("greeting")).await?;
        match greeting.starts_with("* OK") {
            true => Ok(()),
            false => Err(PhoneError::Refused { step: "greeting", answer: greeting }),
        }
    }

    /// Sends a command and returns the untagged responses before its OK.
    async fn command(
        &mut self,
        step: &'static str,
        command: &str,
    ) -> Result<Vec<String>, PhoneError> {
        within(step, async {
            let tag = self.send_tagged(step, command).await?;
            self.until_tagged(step, &tag).await
        })
        .await
    }

    /// The same for a command that ends with a synchronising literal.
    async fn command_with_literal(
        &mut self,
        step: &'static str,
        command: &str,
        literal: &str,
    ) -> Result<Vec<String>, PhoneError> {
        within(step, async {
            let tag = self.send_tagged(step, command).await?;
            let go_ahead = self.response(step).await?;
            if !go_ahead.starts_with('+') {
                return Err(PhoneError::Refused { step, answer: go_ahead });
            }
            self.send(step, literal).await?;
            self.until_tagged(step, &tag).await
        })
        .await
    }

    async fn send_tagged(
        &mut self,
        step: &'static str,
        command: &str,
    ) -> Result<String, PhoneError> {
        self.commands += 1;
        let tag = format!("t{}", self.commands);
        self.send(step, &format!("{tag} {command}")).await?;
        Ok(tag)
    }

    async fn send(&mut self, step: &'static str, text: &str) -> Result<(), PhoneError> {
        (self.heard)(Direction::Client, text);
        let sent = async {
            self.stream.write_all(text.as_bytes()).await?;
            self.stream.write_all(b"\r\n").await?;
            self.stream.flush().await
        };
        sent.await.map_err(|source| PhoneError::Io { step, source })
    }

    async fn until_tagged(
        &mut self,
        step: &'static str,
        tag: &str,
    ) -> Result<Vec<String>, PhoneError> {
        let mut untagged = Vec::new();
        loop {
            let response = self.response(step).await?;
            match response.strip_prefix(tag).and_then(|rest| rest.strip_prefix(' ')) {
                Some(rest) if rest.starts_with("OK") => return Ok(untagged),
                Some(rest) => return Err(PhoneError::Refused { step, answer: rest.to_owned() }),
                None if untagged.len() < 10_000 => untagged.push(response),
                None => return Err(PhoneError::Malformed(step)),
            }
        }
    }

    /// One response without its line end; literals stand in it as they came.
    async fn response(&mut self, step: &'static str) -> Result<String, PhoneError> {
        let failed = |source| PhoneError::Io { step, source };
        let mut response = Vec::new();
        loop {
            let start = response.len();
            let mut limited = (&mut self.stream).take((RESPONSE - start.min(RESPONSE)) as u64);
            limited.read_until(b'\n', &mut response).await.map_err(failed)?;
            let Some(line) = response[start..].strip_suffix(b"\r\n") else {
                return Err(match response.len() {
                    0 => PhoneError::Closed(step),
                    _ => PhoneError::Malformed(step),
                });
            };
            let Some(length) = literal_length(line) else { break };
            let end = response.len().saturating_add(length);
            if end > RESPONSE {
                return Err(PhoneError::Malformed(step));
            }
            let start = response.len();
            response.resize(end, 0);
            self.stream.read_exact(&mut response[start..]).await.map_err(failed)?;
        }
        response.truncate(response.len() - 2);
        let response = String::from_utf8_lossy(&response).into_owned();
        (self.heard)(Direction::Server, &response);
        Ok(response)
    }
}

async fn in_time<T>(
    step: &'static str,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, PhoneError> {
    within(step, async { work.await.map_err(|source| PhoneError::Io { step, source }) }).await
}

async fn within<T>(
    step: &'static str,
    work: impl Future<Output = Result<T, PhoneError>>,
) -> Result<T, PhoneError> {
    tokio::time::timeout(STEP, work).await.unwrap_or(Err(PhoneError::Late { step }))
}

/// A quoted string (RFC 3501 section 9).
fn quoted(text: &str, what: &'static str) -> Result<String, PhoneError> {
    if !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return Err(PhoneError::Unquotable(what));
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn literal_length(line: &[u8]) -> Option<usize> {
    let line = line.strip_suffix(b"}")?;
    let start = line.iter().rposition(|byte| *byte == b'{')?;
    std::str::from_utf8(&line[start + 1..]).ok()?.parse().ok()
}

/// What the answers to a registration say. Of several version and topic lines the first counts.
fn understand(answers: &[String]) -> Option<Registered> {
    let mut registered = Registered::default();
    for answer in answers {
        let words = words(answer);
        let [star, verb, pairs @ ..] = &words[..] else { continue };
        if star != "*" || !verb.eq_ignore_ascii_case("XAPPLEPUSHSERVICE") {
            continue;
        }
        for pair in pairs.chunks(2) {
            let [key, value] = pair else { return None };
            match key.to_ascii_lowercase().as_str() {
                "mailbox" => registered.mailboxes.push(value.clone()),
                "aps-version" if registered.version.is_empty() => {
                    registered.version.clone_from(value);
                }
                "aps-topic" if registered.topic.is_empty() => registered.topic.clone_from(value),
                _ => {}
            }
        }
    }
    (!registered.topic.is_empty()).then_some(registered)
}

/// The atoms and strings of a response, without quotes.
fn words(response: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = response.trim_start_matches(' ');
    while let Some(first) = rest.chars().next() {
        let mut word = String::new();
        let used = if first == '"' {
            let mut end = rest.len();
            let mut escaped = false;
            for (at, c) in rest.char_indices().skip(1) {
                match c {
                    _ if escaped => escaped = false,
                    '\\' => {
                        escaped = true;
                        continue;
                    }
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    _ => {}
                }
                word.push(c);
            }
            end
        } else if let Some((length, text)) = literal(rest) {
            word.push_str(&text[..length]);
            rest.len() - text.len() + length
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            word.push_str(&rest[..end]);
            end
        };
        words.push(word);
        rest = rest[used..].trim_start_matches(' ');
    }
    words
}

/// The length of the literal that `text` begins with, and what follows its announcement.
fn literal(text: &str) -> Option<(usize, &str)> {
    let (length, rest) = text.strip_prefix('{')?.split_once("}\r\n")?;
    let length = length.parse().ok()?;
    rest.is_char_boundary(length).then_some((length, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_understood_in_every_form() {
        let answers = [
            "* XAPPLEPUSHSERVICE \"mailbox\" \"INBOX\"",
            "* 3 EXISTS",
            "* XAPPLEPUSHSERVICE \"mailbox\" {5}\r\na \"b\\",
            "* XAPPLEPUSHSERVICE mailbox \"a \\\"b\\\\\"",
            "* XAPPLEPUSHSERVICE \"aps-version\" \"2\" \"aps-topic\" \"com.apple.mail.x\"",
            "* XAPPLEPUSHSERVICE \"aps-version\" \"3\" \"aps-topic\" \"com.apple.mail.y\"",
        ]
        .map(String::from);
        let registered = understand(&answers).unwrap();
        assert_eq!(registered.mailboxes, ["INBOX", "a \"b\\", "a \"b\\"]);
        assert_eq!(
            (registered.version.as_str(), registered.topic.as_str()),
            ("2", "com.apple.mail.x")
        );
        assert_eq!(understand(&answers[..3]), None, "no topic");
    }

    #[test]
    fn quoting() {
        assert_eq!(quoted("a\"b\\", "x").unwrap(), "\"a\\\"b\\\\\"");
        for bad in ["a\r\nb", "é", "\0"] {
            assert!(quoted(bad, "x").is_err(), "{bad:?}");
        }
    }
}
