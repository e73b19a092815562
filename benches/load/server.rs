//! An IMAP server that does nothing but answer, as fast as it can.
//!
//! Any name and password will do. Message *n* of any mailbox has *n* KiB. What it is sent in literals
//! is read and forgotten. It speaks what the proxies say to a server before they get out of the way.

use std::io;
use std::net::SocketAddr;
use std::sync::LazyLock;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::Listen;

/// Announced before and after login; a proxy in front may have its own idea before.
const CAPABILITIES: &str = "IMAP4rev1 LITERAL+ SASL-IR AUTH=PLAIN ID IDLE NAMESPACE UIDPLUS";

/// Read at a time, in bytes: from who says little, and from who sends long literals.
const SMALL: usize = 2 * 1024;
const LARGE: usize = 256 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    listen: Listen,
    /// Where to listen without TLS
    #[arg(long)]
    plain: SocketAddr,
    /// Where nginx asks by HTTP which server is whose; the answer is the one without TLS
    #[arg(long)]
    auth_http: SocketAddr,
}

pub(crate) async fn run(options: Options) {
    LazyLock::force(&TEXT);
    let acceptor = options.listen.acceptor();
    let tls = each(options.listen.tls, move |stream| {
        let accepting = acceptor.accept(BufReader::with_capacity(16 * 1024, stream));
        async { session(accepting.await?).await }
    });
    let plain = each(options.plain, session);
    let auth = each(options.auth_http, move |stream| auth(stream, options.plain));
    tokio::join!(tls, plain, auth);
}

/// Serves each connection to `address` in a task of its own.
async fn each<F, S>(address: SocketAddr, serve: F)
where
    F: Fn(TcpStream) -> S,
    S: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = listen(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Who is gone already will tell by its next read.
        let _ = stream.set_nodelay(true);
        tokio::spawn(serve(stream));
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

/// Mail of which there is enough: words, in lines, with the frequencies that words have.
static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| text(1024 * 1024));

/// Much the same as prose to a compressor, in size and in time.
pub(crate) fn text(size: usize) -> Vec<u8> {
    // Letters as often as English has them, in thousands.
    #[rustfmt::skip]
    const LETTERS: &[(u8, u64)] = &[
        (b'e', 127), (b't', 91), (b'a', 82), (b'o', 75), (b'i', 70), (b'n', 67), (b's', 63),
        (b'h', 61), (b'r', 60), (b'd', 43), (b'l', 40), (b'c', 28), (b'u', 28), (b'm', 24),
        (b'w', 24), (b'f', 22), (b'g', 20), (b'y', 20), (b'p', 19), (b'b', 15), (b'v', 10),
        (b'k', 8), (b'j', 2), (b'x', 1),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let letter = |mut left: u64| {
        for &(letter, weight) in LETTERS {
            if left < weight {
                return letter;
            }
            left -= weight;
        }
        b'e'
    };
    // Those that are frequent are short.
    let words: Vec<Vec<u8>> = (1..=20_000_u32)
        .map(|rank| {
            (0..1 + rank.ilog2() * 2 / 3 + rank % 3).map(|_| letter(random() % 1000)).collect()
        })
        .collect();
    let mut text = Vec::with_capacity(size + 80);
    let mut line = 0;
    while text.len() < size {
        // Zipf's law: the logarithm of a word's rank is even.
        let even = (random() >> 11) as f64 / (1_u64 << 53) as f64;
        let word = &words[(words.len() as f64).powf(even) as usize - 1];
        text.extend_from_slice(word);
        line += word.len() + 1;
        if line > 66 {
            text.extend_from_slice(b"\r\n");
            line = 0;
        } else {
            text.push(b' ');
        }
    }
    text.truncate(size);
    text
}

/// One client, from the greeting to its LOGOUT or its end.
async fn session<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
    stream.write_all(format!("* OK [CAPABILITY {CAPABILITIES}] ready\r\n").as_bytes()).await?;
    stream.flush().await?;
    let mut buffer = vec![0; SMALL];
    let (mut start, mut end) = (0, 0);
    let mut under_way: Option<UnderWay> = None;
    let mut out = Vec::new();
    loop {
        while let Some(length) = memchr::memchr(b'\n', &buffer[start..end]) {
            let line = &buffer[start..start + length];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            start += length + 1;
            let next = under_way.take();
            let literal = literal(line);
            let command = next.unwrap_or_else(|| UnderWay::new(line));
            if let Some((length, synchronising)) = literal {
                under_way = Some(command);
                if synchronising {
                    out.extend_from_slice(b"+ OK\r\n");
                    send(&mut stream, &mut out).await?;
                }
                let mut left = length.saturating_sub(end - start);
                start += length.min(end - start);
                if left > buffer.len() {
                    buffer.resize(LARGE, 0);
                }
                while left > 0 {
                    (start, end) = (0, 0);
                    let most = left.min(buffer.len());
                    let read = stream.read(&mut buffer[..most]).await?;
                    if read == 0 {
                        return Ok(());
                    }
                    left -= read;
                }
                continue;
            }
            match command.verb {
                Verb::Fetch => {
                    send(&mut stream, &mut out).await?;
                    fetch(&mut stream, &command).await?;
                }
                Verb::Idle | Verb::AuthenticatePlain if !command.asked => {
                    out.extend_from_slice(b"+ \r\n");
                    under_way = Some(UnderWay { asked: true, ..command });
                }
                Verb::Logout => {
                    command.answer(&mut out);
                    send(&mut stream, &mut out).await?;
                    return stream.shutdown().await;
                }
                _ => command.answer(&mut out),
            }
        }
        send(&mut stream, &mut out).await?;
        buffer.copy_within(start..end, 0);
        (start, end) = (0, end - start);
        if end == buffer.len() {
            return Ok(()); // a line that nobody sends here
        }
        match stream.read(&mut buffer[end..]).await? {
            0 => return Ok(()),
            read => end += read,
        }
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, out: &mut Vec<u8>) -> io::Result<()> {
    if !out.is_empty() {
        stream.write_all(out).await?;
        stream.flush().await?;
        out.clear();
    }
    Ok(())
}

async fn fetch<S: AsyncWrite + Unpin>(stream: &mut S, command: &UnderWay) -> io::Result<()> {
    let (number, tag) = (command.message, &command.tag);
    let size = number * 1024;
    let mut head = format!("* {number} FETCH (BODY[] {{{size}}}\r\n").into_bytes();
    let tail = format!(")\r\n{tag} OK FETCH completed\r\n").into_bytes();
    if size <= 16 * 1024 {
        head.extend_from_slice(&TEXT[..size]);
        head.extend_from_slice(&tail);
        stream.write_all(&head).await?;
        return stream.flush().await;
    }
    stream.write_all(&head).await?;
    let mut left = size;
    while left > 0 {
        let next = left.min(TEXT.len());
        stream.write_all(&TEXT[..next]).await?;
        left -= next;
    }
    stream.write_all(&tail).await?;
    stream.flush().await
}

/// A command that was begun.
struct UnderWay {
    tag: String,
    verb: Verb,
    message: usize,
    /// The client was asked to go on.
    asked: bool,
}

#[derive(PartialEq)]
enum Verb {
    Noop,
    Capability,
    Login,
    Id,
    AuthenticatePlain,
    Select,
    Fetch,
    Idle,
    Append,
    Logout,
    Other,
}

impl UnderWay {
    fn new(line: &[u8]) -> Self {
        let line = String::from_utf8_lossy(line);
        let mut words = line.split(' ');
        let tag = words.next().unwrap_or_default().to_owned();
        let mut verb = words.next().unwrap_or_default().to_ascii_uppercase();
        if verb == "UID" {
            verb = words.next().unwrap_or_default().to_ascii_uppercase();
        }
        let argument = words.next();
        let verb = match verb.as_str() {
            "NOOP" => Verb::Noop,
            "CAPABILITY" => Verb::Capability,
            "LOGIN" => Verb::Login,
            "ID" => Verb::Id,
            "AUTHENTICATE" if words.next().is_some() => Verb::Login,
            "AUTHENTICATE" => Verb::AuthenticatePlain,
            "SELECT" | "EXAMINE" => Verb::Select,
            "FETCH" => Verb::Fetch,
            "IDLE" => Verb::Idle,
            "APPEND" => Verb::Append,
            "LOGOUT" => Verb::Logout,
            _ => Verb::Other,
        };
        let message = argument.and_then(|number| number.parse().ok()).unwrap_or(1);
        Self { tag, verb, message, asked: false }
    }

    fn answer(&self, out: &mut Vec<u8>) {
        let untagged = match self.verb {
            Verb::Capability => format!("* CAPABILITY {CAPABILITIES}\r\n"),
            Verb::Id => "* ID NIL\r\n".to_owned(),
            Verb::Select => {
                "* FLAGS (\\Seen)\r\n* 65536 EXISTS\r\n* OK [UIDVALIDITY 1] valid\r\n".to_owned()
            }
            Verb::Logout => "* BYE Logging out\r\n".to_owned(),
            _ => String::new(),
        };
        let tagged = match self.verb {
            Verb::Login | Verb::AuthenticatePlain => {
                format!("OK [CAPABILITY {CAPABILITIES}] Logged in")
            }
            Verb::Other => "BAD Unknown command".to_owned(),
            _ => "OK completed".to_owned(),
        };
        out.extend_from_slice(format!("{untagged}{} {tagged}\r\n", self.tag).as_bytes());
    }
}

/// The literal that `line` announces at its end: its length, and whether it waits for an answer.
pub(crate) fn literal(line: &[u8]) -> Option<(usize, bool)> {
    let inner = line.strip_suffix(b"}")?;
    let digits = &inner[memchr::memrchr(b'{', inner)? + 1..];
    let (digits, synchronising) = match digits.strip_suffix(b"+") {
        Some(digits) => (digits, false),
        None => (digits, true),
    };
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, synchronising))
}

/// Tells nginx's mail proxy which server a user has.
async fn auth(mut stream: TcpStream, server: SocketAddr) -> io::Result<()> {
    let mut question = Vec::new();
    while !question.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut question).await? == 0 {
            return Ok(());
        }
    }
    let answer = format!(
        "HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: {}\r\nAuth-Port: {}\r\n\r\n",
        server.ip(),
        server.port()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
