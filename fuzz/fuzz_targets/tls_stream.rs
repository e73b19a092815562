//! TLS with both ends in one task, and a wire between them that carries as much as the script says, turns bits, puts
//! bytes in, and breaks off: what one end writes the other reads, whole; nothing else is ever read; an end without
//! close_notify is seen.
#![no_main]

use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::demo::pki::Pki;
use mailchime::net::tls::provider;
use mailchime::net::tls_stream::{TlsClient, TlsServer, TlsSide, TlsStream};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

/// Bytes of a record's head.
const HEAD: usize = 5;

struct Sides {
    server: Arc<ServerConfig>,
    /// For TLS 1.2 and 1.3. Sessions are resumed.
    clients: [Arc<ClientConfig>; 2],
}

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
    static SIDES: Sides = sides();
}

fn sides() -> Sides {
    let pki = Pki::generate(None).expect("certificates");
    let authority = CertificateDer::from_pem_slice(pki.ca.certificate.as_bytes());
    let mut roots = RootCertStore::empty();
    roots.add(authority.expect("a certificate")).expect("a certificate");
    let clients = [&TLS12, &TLS13].map(|version| {
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        Arc::new(client)
    });
    Sides { server: pki.server_config().expect("a configuration"), clients }
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let [options, pieces, script @ ..] = data else { return Corpus::Reject };
    RUNTIME.with(|runtime| {
        runtime.block_on(SIDES.with(|sides| {
            play(
                sides.server.clone(),
                sides.clients[usize::from(options & 1)].clone(),
                *options,
                *pieces,
                script,
            )
        }));
    });
    Corpus::Keep
});

async fn play(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    options: u8,
    pieces: u8,
    script: &[u8],
) {
    let ((near, mid_near), (far, mid_far)) = (pair(), pair());
    let mut wires = [Wire::new(&mid_near, &mid_far), Wire::new(&mid_far, &mid_near)];
    if options & 2 != 0 {
        // In the handshake, somewhere.
        let [first, ..] = script else { return };
        wires[usize::from(options >> 2 & 1)].turn_at = Some(usize::from(*first) * 8);
    }
    let mut connecting = pin!(TlsClient::connect(near, &client, name()));
    let mut accepting = pin!(TlsServer::accept(far, &server));
    let (mut connected, mut accepted) = (None, None);
    let mut idle = 0;
    while (connected.is_none() || accepted.is_none()) && idle < 3 {
        if connected.is_none() {
            connected = once(connecting.as_mut()).await;
        }
        if accepted.is_none() {
            accepted = once(accepting.as_mut()).await;
        }
        let size = if pieces == 0 { usize::MAX } else { usize::from(pieces) * 16 };
        let moved = wires[0].carry(size) + wires[1].carry(size);
        idle = if moved == 0 { idle + 1 } else { 0 };
        yield_now().await;
    }
    let is_turned = wires.iter().any(|wire| wire.is_broken);
    let (Some(Ok(client)), Some(Ok(server))) = (connected, accepted) else {
        assert!(is_turned, "no handshake");
        return;
    };
    let mut near = End::new(client, 0);
    let mut far = End::new(server, 1);
    let mut script = script.iter().copied();
    while let Some(op) = script.next() {
        let size = script.next().unwrap_or_default();
        let side = usize::from(op >> 7);
        yield_now().await;
        match side {
            0 => step(op, size, &mut near, &mut far.said, &mut wires).await,
            _ => step(op, size, &mut far, &mut near.said, &mut wires).await,
        }
    }
    end(&mut near, &mut far, &mut wires).await;
}

/// What the script has one end do, or the wire behind it.
async fn step<C: TlsSide + Unpin>(
    op: u8,
    size: u8,
    end: &mut End<C>,
    heard: &mut Said,
    wires: &mut [Wire; 2],
) {
    let wire = end.side;
    match op % 11 {
        0 => end.write(usize::from(size) + 1, wires).await,
        1 => end.write(usize::from(size) * 300 + 1, wires).await,
        2 => end.flush().await,
        3 => end.read(usize::from(size) + 1, heard, wires).await,
        4 => end.read(usize::from(size) * 300 + 1, heard, wires).await,
        5 => drop(wires[wire].carry(usize::from(size) + 1)),
        6 => drop(wires[wire].carry(usize::from(size) * 300 + 1)),
        7 => end.shutdown(&mut wires[wire]).await,
        8 if size.is_multiple_of(4) => {
            wires[wire].turn_at = Some(wires[wire].carried + usize::from(size) / 4)
        }
        8 => end.tls.set_limit(usize::from(size) * 300),
        9 if size.is_multiple_of(4) => wires[wire].cut(),
        9 if size % 4 == 1 => wires[wire].put(&[0x14, 3, 3, 0, 1, 1]),
        9 if size % 4 == 2 => wires[wire].put(&[0x17, 3, 3, 0, size, 1]),
        9 => wires[wire].put(&[size]),
        _ => end.tls.set_secret(size.is_multiple_of(2)),
    }
}

/// All that waits gets there; then both say the end and hang up.
async fn end(
    near: &mut End<rustls::client::UnbufferedClientConnection>,
    far: &mut End<rustls::server::UnbufferedServerConnection>,
    wires: &mut [Wire; 2],
) {
    all(near, far, wires).await;
    near.shutdown(&mut wires[0]).await;
    all(near, far, wires).await;
    if wires.iter().all(|wire| !wire.is_broken) {
        far.shutdown(&mut wires[1]).await;
        all(near, far, wires).await;
    }
    wires.iter_mut().for_each(Wire::cut);
    all(near, far, wires).await;
    let is_whole = wires.iter().all(|wire| !wire.is_broken && !wire.is_cut_short);
    for (wire, said, ended, is_deaf) in [
        (&wires[0], &near.said, far.ended, far.asked_to_close),
        (&wires[1], &far.said, near.ended, near.asked_to_close),
    ] {
        if is_whole {
            assert_eq!((said.heard, ended), (said.written, Some(Ended::Well)));
        }
        match ended {
            None => assert!(wire.is_broken && is_deaf, "an end that is not seen"),
            Some(Ended::Well) => assert!(!wire.is_broken_early, "what is broken is not seen"),
            Some(Ended::Failed(_)) => assert!(!is_whole),
        }
    }
}

/// Until nothing moves any longer.
async fn all<A: TlsSide + Unpin, B: TlsSide + Unpin>(
    near: &mut End<A>,
    far: &mut End<B>,
    wires: &mut [Wire; 2],
) {
    let mut idle = 0;
    while idle < 3 {
        let before = (near.said.heard, far.said.heard);
        near.flush().await;
        far.flush().await;
        let moved = wires[0].carry(usize::MAX) + wires[1].carry(usize::MAX);
        yield_now().await;
        near.read(50_000, &mut far.said, wires).await;
        far.read(50_000, &mut near.said, wires).await;
        let is_idle = moved == 0 && before == (near.said.heard, far.said.heard);
        idle = if is_idle { idle + 1 } else { 0 };
    }
}

/// What one end has written, and how much of it the other has read. Each byte tells its place.
#[derive(Default)]
struct Said {
    written: usize,
    heard: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// By close_notify.
    Well,
    Failed(ErrorKind),
}

struct End<C> {
    tls: TlsStream<C>,
    side: usize,
    said: Said,
    /// How its reading has ended.
    ended: Option<Ended>,
    asked_to_close: bool,
}

impl<C: TlsSide + Unpin> End<C> {
    fn new(tls: TlsStream<C>, side: usize) -> Self {
        Self { tls, side, said: Said::default(), ended: None, asked_to_close: false }
    }

    async fn write(&mut self, length: usize, wires: &[Wire; 2]) {
        let said: Vec<u8> = (self.said.written..).map(byte).take(length).collect();
        match now(&mut self.tls, |tls, cx| tls.poll_write(cx, &said)).await {
            Poll::Ready(Ok(written)) => {
                assert!((1..=length).contains(&written) && !self.asked_to_close);
                self.said.written += written;
            }
            Poll::Ready(Err(error)) => {
                let is_broken = wires.iter().any(|wire| wire.is_broken);
                assert!(self.asked_to_close || is_broken, "{error}");
            }
            Poll::Pending => assert!(!self.asked_to_close),
        }
    }

    async fn flush(&mut self) {
        if let Poll::Ready(Err(error)) = now(&mut self.tls, |tls, cx| tls.poll_flush(cx)).await {
            panic!("{error}");
        }
    }

    async fn shutdown(&mut self, wire: &mut Wire) {
        self.asked_to_close = true;
        wire.is_closing = true;
        if let Poll::Ready(done) = now(&mut self.tls, |tls, cx| tls.poll_shutdown(cx)).await {
            done.expect("an end");
        }
    }

    async fn read(&mut self, room: usize, said: &mut Said, wires: &[Wire; 2]) {
        // Behind close_notify rustls has no alert to send, and in a debug build it asserts that it needs none.
        if self.asked_to_close && wires[1 - self.side].is_broken {
            return;
        }
        let mut room = vec![0; room];
        let mut into = ReadBuf::new(&mut room);
        let read = now(&mut self.tls, |tls, cx| tls.poll_read(cx, &mut into)).await;
        let came = into.filled();
        for (place, heard) in came.iter().enumerate() {
            assert_eq!(*heard, byte(said.heard + place), "another byte than was said");
        }
        said.heard += came.len();
        assert!(said.heard <= said.written);
        let (own, theirs) = (&wires[self.side], &wires[1 - self.side]);
        match read {
            Poll::Pending => assert!(came.is_empty() && self.ended.is_none()),
            Poll::Ready(Ok(())) if came.is_empty() => {
                if self.ended.is_none() {
                    assert!(theirs.is_closing, "an end that nobody said");
                    assert_eq!(said.heard, said.written, "an end before all was heard");
                    assert!(!theirs.is_broken_early, "an end behind a record that is broken");
                    self.ended = Some(Ended::Well);
                }
            }
            Poll::Ready(Ok(())) => assert!(self.ended.is_none(), "bytes behind the end"),
            Poll::Ready(Err(error)) => {
                let kind = error.kind();
                assert!(self.ended != Some(Ended::Well) && came.is_empty());
                match kind {
                    ErrorKind::UnexpectedEof => assert!(theirs.is_cut, "{error}"),
                    ErrorKind::InvalidData => assert!(own.is_broken || theirs.is_broken, "{error}"),
                    _ => panic!("{error}"),
                }
                self.ended = Some(Ended::Failed(kind));
            }
        }
    }
}

/// What carries the bytes of one end to the other.
struct Wire {
    from: UnixStream,
    to: UnixStream,
    carried: usize,
    /// How far the record is carried that is under way: its head, and what is left of it behind that.
    head: Vec<u8>,
    left: usize,
    /// From here on the next bit is turned that counts.
    turn_at: Option<usize>,
    /// Something else has come than was sent.
    is_broken: bool,
    /// The same, before the end of what is sent.
    is_broken_early: bool,
    /// The end of what is sent is on its way.
    is_closing: bool,
    is_cut: bool,
    /// Before all was carried.
    is_cut_short: bool,
}

impl Wire {
    fn new(from: &UnixStream, to: &UnixStream) -> Self {
        let copy = |stream: &UnixStream| stream.try_clone().expect("a socket");
        Self {
            from: copy(from),
            to: copy(to),
            carried: 0,
            head: Vec::new(),
            left: 0,
            turn_at: None,
            is_broken: false,
            is_broken_early: false,
            is_closing: false,
            is_cut: false,
            is_cut_short: false,
        }
    }

    /// Carries so many bytes, if as many wait, and says how many those were.
    fn carry(&mut self, most: usize) -> usize {
        let mut bytes = vec![0; most.min(50_000)];
        match self.from.read(&mut bytes) {
            Ok(0) => {
                self.cut();
                0
            }
            Ok(length) => {
                let bytes = &mut bytes[..length];
                for byte in bytes.iter_mut() {
                    self.pass(byte);
                }
                self.say(bytes);
                length
            }
            // Nothing waits, or the other end is gone.
            Err(_) => 0,
        }
    }

    fn pass(&mut self, byte: &mut u8) {
        let is_of_head = self.left == 0;
        // In the head of a record that is encrypted type and version say nothing (RFC 8446 section 5.2).
        let counts = !is_of_head || self.head.len() > 2;
        if is_of_head {
            self.head.push(*byte);
            if self.head.len() == HEAD {
                self.left = usize::from(u16::from_be_bytes([self.head[3], self.head[4]]));
                self.head.clear();
            }
        } else {
            self.left -= 1;
        }
        if counts && !self.is_cut && self.turn_at.is_some_and(|at| at <= self.carried) {
            *byte ^= 1 << (self.carried % 8);
            self.turn_at = None;
            self.breaks();
        }
        self.carried += 1;
    }

    fn put(&mut self, bytes: &[u8]) {
        if !self.is_cut {
            self.breaks();
            self.say(bytes);
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        if self.is_cut {
            self.is_cut_short = true;
        } else if (&self.to).write_all(bytes).is_err() {
            // The other end is gone, or takes nothing at the moment and there is no more room.
            self.is_cut_short = true;
            self.cut();
        }
    }

    fn breaks(&mut self) {
        self.is_broken = true;
        self.is_broken_early |= !self.is_closing;
    }

    /// Breaks off.
    fn cut(&mut self) {
        if !std::mem::replace(&mut self.is_cut, true) {
            self.to.shutdown(Shutdown::Write).ok();
        }
    }
}

fn name() -> ServerName<'static> {
    "localhost".try_into().expect("a name")
}

/// Without ports and waits: a pair of local sockets does all that is asked of one of TCP.
fn pair() -> (TcpStream, UnixStream) {
    let (ours, wire) = UnixStream::pair().expect("a pair");
    ours.set_nonblocking(true).expect("a socket");
    wire.set_nonblocking(true).expect("a socket");
    let ours = std::net::TcpStream::from(OwnedFd::from(ours));
    (TcpStream::from_std(ours).expect("a stream"), wire)
}

/// The byte at this place of what an end says.
fn byte(place: usize) -> u8 {
    (place % 251) as u8
}

async fn once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// What comes of it without waiting.
async fn now<S: Unpin, T>(
    tls: &mut S,
    mut poll: impl FnMut(Pin<&mut S>, &mut std::task::Context<'_>) -> Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    poll_fn(|cx| Poll::Ready(poll(Pin::new(&mut *tls), cx))).await
}
