//! A connection's bytes: commands with their literals in, responses out. It knows where a command
//! ends and not what it means.

use std::io;

use bytes::{Bytes, BytesMut};
use imap_codec::ResponseCodec;
use imap_codec::encode::Encoder;
use imap_codec::imap_types::response::Response;
use memchr::memchr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(super) struct Wire<S> {
    stream: S,
    input: BytesMut,
    /// Responses that are not sent yet. They go out together, at the latest before the next read.
    pub(super) out: Vec<u8>,
}

/// What came in.
pub(super) enum Input {
    /// A whole command, its literals and line ends included.
    Command(Bytes),
    /// A command whose literal was refused before it was sent; its first line.
    Refused(Bytes),
    /// The client is not to be followed any longer: a line or literal beyond the limit.
    Overflow,
    Closed,
}

/// Which literals the client may send without asking (RFC 7888), and how much altogether.
#[derive(Clone, Copy)]
pub(super) struct WireLimits {
    pub(super) command: usize,
    pub(super) non_sync: usize,
}

const LINE: usize = 64 * 1024;

/// From this size on a literal is sent from where it lies instead of being copied.
const DIRECT: usize = 64 * 1024;

/// Responses are sent when so many bytes of them have gathered.
const BATCH: usize = 256 * 1024;

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, input: BytesMut::new(), out: Vec::new() }
    }

    /// The next command. Answers `+ OK` to synchronising literals on the way.
    pub(super) async fn command(&mut self, limits: WireLimits) -> io::Result<Input> {
        let mut start = 0;
        loop {
            let Some(end) = self.line_end(start).await? else {
                return Ok(if self.input.is_empty() { Input::Closed } else { Input::Overflow });
            };
            let Some((length, sync)) = announced_literal(&self.input[start..end]) else {
                return Ok(Input::Command(self.input.split_to(end).freeze()));
            };
            let whole = end.saturating_add(length);
            if sync {
                if whole > limits.command {
                    return Ok(Input::Refused(self.input.split_to(end).freeze()));
                }
                self.out.extend_from_slice(b"+ OK\r\n");
            } else if length > limits.non_sync || whole > limits.command {
                return Ok(Input::Overflow);
            }
            while self.input.len() < whole {
                self.input.reserve(whole - self.input.len());
                if self.fill().await? == 0 {
                    return Ok(Input::Closed);
                }
            }
            start = whole;
        }
    }

    /// The next line, or `None` at the end. Cancel safe while `out` is empty.
    pub(super) async fn line(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.line_end(0).await?.map(|end| self.input.split_to(end).freeze()))
    }

    pub(super) fn put(&mut self, response: Response<'_>) {
        for fragment in ResponseCodec::default().encode(&response) {
            use imap_codec::encode::Fragment::{Line, Literal};
            let (Line { data } | Literal { data, .. }) = fragment;
            self.out.extend_from_slice(&data);
        }
    }

    /// A literal with its announcement.
    pub(super) async fn put_literal(&mut self, data: &[u8]) -> io::Result<()> {
        self.out.extend_from_slice(format!("{{{}}}\r\n", data.len()).as_bytes());
        if data.len() < DIRECT {
            self.out.extend_from_slice(data);
            return Ok(());
        }
        self.flush().await?;
        self.stream.write_all(data).await
    }

    /// Sends what has gathered if it is much.
    pub(super) async fn flush_if_full(&mut self) -> io::Result<()> {
        if self.out.len() < BATCH { Ok(()) } else { self.flush().await }
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).await?;
            self.out.clear();
            self.out.shrink_to(BATCH);
        }
        self.stream.flush().await
    }

    /// Says farewell to the transport (TLS close_notify).
    pub(super) async fn close(mut self) -> io::Result<()> {
        self.flush().await?;
        self.stream.shutdown().await
    }

    /// Where the line that begins at `start` ends; `None` if the stream ends or the line does not.
    async fn line_end(&mut self, start: usize) -> io::Result<Option<usize>> {
        let mut searched = start;
        loop {
            if let Some(at) = memchr(b'\n', &self.input[searched..]) {
                return Ok(Some(searched + at + 1));
            }
            searched = self.input.len();
            if searched - start > LINE || self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        if !self.out.is_empty() {
            self.flush().await?;
        }
        self.stream.read_buf(&mut self.input).await
    }
}

/// The literal that a line announces at its end: its length, and whether the client waits for
/// leave to send it.
fn announced_literal(line: &[u8]) -> Option<(usize, bool)> {
    let line = line.strip_suffix(b"\n")?;
    let line = line.strip_suffix(b"\r").unwrap_or(line).strip_suffix(b"}")?;
    let digits = &line[memchr::memrchr(b'{', line)? + 1..];
    let (digits, sync) = match digits.strip_suffix(b"+") {
        Some(digits) => (digits, false),
        None => (digits, true),
    };
    let number = std::str::from_utf8(digits).ok()?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        // A number that does not fit is a literal all the same, and too long.
        .then(|| (number.parse().unwrap_or(usize::MAX), sync))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_announced_at_the_end_of_a_line() {
        for (line, expected) in [
            ("a LOGIN {5}\r\n", Some((5, true))),
            ("a LOGIN {5+}\r\n", Some((5, false))),
            ("a APPEND x ~{12}\n", Some((12, true))),
            ("a X {99999999999999999999999}\r\n", Some((usize::MAX, true))),
            ("a LOGIN \"{5}\"\r\n", None),
            ("a LOGIN {}\r\n", None),
            ("a LOGIN {+5}\r\n", None),
            ("a LOGIN {-1}\r\n", None),
            ("a LOGIN {5} \r\n", None),
        ] {
            assert_eq!(announced_literal(line.as_bytes()), expected, "{line:?}");
        }
    }
}
