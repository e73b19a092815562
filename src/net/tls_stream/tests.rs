//! TLS with rustls's buffered side as the peer: whole, byte by byte, and with what breaks it.

use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{Error, InvalidMessage, RootCertStore, SupportedProtocolVersion};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::demo::pki::Pki;
use crate::net::tls::provider;

/// For what is expected to come about at once.
const LIMIT: Duration = Duration::from_secs(120);

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

/// Both ends of a TCP connection.
async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, (far, _)) = (near.unwrap(), far.unwrap());
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// The same, with something between the ends that sends on what comes in so many bytes at a time.
async fn tcp_in_pieces(length: usize) -> (TcpStream, TcpStream) {
    let ((near, left), (right, far)) = (tcp().await, tcp().await);
    let (left, right) = (left.into_split(), right.into_split());
    for (mut from, mut to) in [(left.0, right.1), (right.0, left.1)] {
        tokio::spawn(async move {
            let mut piece = vec![0; length];
            while let Ok(read @ 1..) = from.read(&mut piece).await {
                if to.write_all(&piece[..read]).await.is_err() {
                    break;
                }
            }
            to.shutdown().await.ok();
        });
    }
    (near, far)
}

struct Sides {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Sides {
    fn of(version: &'static SupportedProtocolVersion) -> Self {
        let pki = Pki::generate(None).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pki.ca.certificate.as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            server: pki.server_config().unwrap(),
            client: Arc::new(client),
            name: "localhost".try_into().unwrap(),
        }
    }

    /// Ours is the server.
    async fn server(
        &self,
        tcp: (TcpStream, TcpStream),
    ) -> (TlsServer, client::TlsStream<TcpStream>) {
        let peer = TlsConnector::from(Arc::clone(&self.client)).connect(self.name.clone(), tcp.1);
        let ours = TlsServer::accept(tcp.0, &self.server);
        let (ours, peer) = soon(async { tokio::join!(ours, peer) }).await;
        (ours.unwrap(), peer.unwrap())
    }

    /// Ours is the client.
    async fn client(
        &self,
        tcp: (TcpStream, TcpStream),
    ) -> (TlsClient, server::TlsStream<TcpStream>) {
        let peer = TlsAcceptor::from(Arc::clone(&self.server)).accept(tcp.1);
        let ours = TlsClient::connect(tcp.0, &self.client, self.name.clone());
        let (ours, peer) = soon(async { tokio::join!(ours, peer) }).await;
        (ours.unwrap(), peer.unwrap())
    }
}

/// Bytes that tell their place.
fn text(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place % 251) as u8).collect()
}

/// Sends `length` bytes each way at once, then close_notify each way. Nothing is left behind.
async fn both_ways<C: TlsSide + Unpin>(
    ours: &mut TlsStream<C>,
    peer: impl AsyncRead + AsyncWrite,
    length: usize,
    room: usize,
) {
    let sent = text(length);
    let theirs = async {
        let (mut reader, mut writer) = split(peer);
        let write = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        tokio::join!(write, async { reader.read_to_end(&mut read).await.unwrap() });
        assert!(read == sent, "the peer read something else");
    };
    let own = async {
        let (mut reader, mut writer) = split(&mut *ours);
        let write = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let read = async {
            let (mut read, mut piece) = (Vec::new(), vec![0; room]);
            while let more @ 1.. = reader.read(&mut piece).await.unwrap() {
                read.extend_from_slice(&piece[..more]);
            }
            assert!(read == sent, "we read something else");
        };
        tokio::join!(write, read);
    };
    soon(async { tokio::join!(theirs, own) }).await;
    assert_eq!(held(ours), 0, "an idle connection holds bytes");
}

fn held<C>(stream: &TlsStream<C>) -> usize {
    let KeptBytes { incoming, plain, outgoing, .. } = &stream.bytes;
    incoming.capacity() + plain.capacity() + outgoing.capacity()
}

#[tokio::test]
async fn bytes_go_both_ways_whole_in_pieces_and_one_by_one() {
    // The length of what is sent, the room of our reader, and the pieces in which TCP has it.
    let ways =
        [(2_000_000, 100_000, 0), (300_000, 10, 0), (50_000, 4096, 1), (200_000, 4096, 1000)];
    for version in [&TLS12, &TLS13] {
        let sides = Sides::of(version);
        for (length, room, pieces) in ways {
            let tcp = async || match pieces {
                0 => tcp().await,
                pieces => tcp_in_pieces(pieces).await,
            };
            let (mut ours, peer) = sides.server(tcp().await).await;
            assert_eq!(ours.agreed().protocol_version(), Some(version.version));
            both_ways(&mut ours, peer, length, room).await;
            let (mut ours, peer) = sides.client(tcp().await).await;
            both_ways(&mut ours, peer, length, room).await;
        }
    }
}

#[tokio::test]
async fn connections_that_take_turns_on_a_thread_keep_their_records_apart() {
    let sides = Sides::of(&TLS13);
    let mut pairs = Vec::new();
    for _ in 0..8 {
        pairs.push(sides.server(tcp_in_pieces(7).await).await);
    }
    let all = pairs.iter_mut().map(|(ours, peer)| both_ways(ours, peer, 20_000, 1000));
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn keys_are_changed_by_the_peer_and_asked_of_us() {
    let sides = Sides::of(&TLS13);
    let (mut ours, mut peer) = sides.server(tcp().await).await;
    for round in 0..50 {
        peer.get_mut().1.refresh_traffic_keys().unwrap();
        let said = text(1000 + round);
        let mut heard = vec![0; said.len()];
        soon(async {
            peer.write_all(&said).await.unwrap();
            peer.flush().await.unwrap();
            ours.read_exact(&mut heard).await.unwrap();
            assert!(heard == said);
            ours.write_all(&said).await.unwrap();
            ours.flush().await.unwrap();
            peer.read_exact(&mut heard).await.unwrap();
        })
        .await;
        assert!(heard == said);
    }
    both_ways(&mut ours, peer, 100_000, 4096).await;
}

#[tokio::test]
async fn a_client_hello_in_many_records_is_one_message() {
    let sides = Sides::of(&TLS13);
    let ((near, mut left), (mut right, far)) = (tcp().await, tcp().await);
    tokio::spawn(async move {
        let mut head = [0; HEAD];
        right.read_exact(&mut head).await.unwrap();
        let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        right.read_exact(&mut hello).await.unwrap();
        for piece in hello.chunks(10) {
            let record = [&head[..3], &(piece.len() as u16).to_be_bytes(), piece].concat();
            left.write_all(&record).await.unwrap();
        }
        tokio::io::copy_bidirectional(&mut left, &mut right).await.ok();
    });
    let (mut ours, peer) = sides.server((near, far)).await;
    both_ways(&mut ours, peer, 10_000, 4096).await;
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_kept_only_so_far() {
    let sides = Sides::of(&TLS13);
    let (near, mut far) = tcp().await;
    // A ClientHello of the greatest length, of which each record has a byte.
    let endless = async {
        far.write_all(b"\x16\x03\x01\x00\x04\x01\x00\xff\xff").await?;
        while far.write_all(&b"\x16\x03\x01\x00\x01\x03".repeat(100)).await.is_ok() {}
        io::Result::Ok(())
    };
    let ours = async {
        let error = TlsServer::accept(near, &sides.server).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    };
    soon(async { tokio::join!(ours, endless) }).await.1.unwrap();
}

/// Writes until it takes no more; how much that was.
async fn write_all_it_takes(ours: &mut TlsServer) -> usize {
    poll_fn(|cx| {
        let mut written = 0;
        while let Poll::Ready(more) = Pin::new(&mut *ours).poll_write(cx, &[7; 2 * READ_SIZE]) {
            written += more.unwrap();
        }
        Poll::Ready(written)
    })
    .await
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_sent_no_more_than_the_limit() {
    let sides = Sides::of(&TLS13);
    let (mut ours, mut peer) = sides.server(tcp().await).await;
    for limit in [16 * 1024, READ_SIZE] {
        ours.set_limit(limit);
        let written = write_all_it_takes(&mut ours).await;
        let waiting = ours.unsent();
        assert!((1..=limit + ADDED).contains(&waiting), "{waiting} bytes wait");
        let mut read = vec![0; written];
        let (read, flushed) =
            soon(async { tokio::join!(peer.read_exact(&mut read), ours.flush()) }).await;
        assert!(read.is_ok() && flushed.is_ok());
        assert_eq!(held(&ours), 0);
    }
}

/// It is behind by some bytes all the time.
#[tokio::test]
async fn of_a_slow_peer_no_more_is_kept_than_was_encrypted_at_once() {
    let sides = Sides::of(&TLS13);
    let (near, far) = tcp().await;
    SockRef::from(&near).set_send_buffer_size(16 * 1024).unwrap();
    let (mut ours, mut peer) = sides.server((near, far)).await;
    let most = READ_SIZE + ADDED;
    let mut heard = vec![0; 5000];
    soon(async {
        let mut written = 0;
        while written < 4_000_000 {
            written += write_all_it_takes(&mut ours).await;
            assert!(ours.held_unsent() <= most, "{}", ours.held_unsent());
            tokio::select! {
                read = peer.read_exact(&mut heard) => drop(read.unwrap()),
                flushed = ours.flush() => flushed.unwrap(),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_end_without_close_notify_is_no_end_of_what_was_said() {
    let sides = Sides::of(&TLS13);
    let (mut ours, mut peer) = sides.server(tcp().await).await;
    soon(async {
        peer.write_all(b"said").await.unwrap();
        peer.flush().await.unwrap();
        peer.get_mut().0.shutdown().await.unwrap();
        let mut said = Vec::new();
        let error = ours.read_to_end(&mut said).await.unwrap_err();
        assert_eq!((said.as_slice(), error.kind()), (&b"said"[..], io::ErrorKind::UnexpectedEof));
    })
    .await;
    let (near, mut far) = tcp().await;
    let error = soon(async {
        far.write_all(b"\x16\x03\x01").await.unwrap();
        far.shutdown().await.unwrap();
        TlsServer::accept(near, &sides.server).await.unwrap_err()
    })
    .await;
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn who_breaks_the_protocol_is_told_why() {
    let sides = Sides::of(&TLS13);
    let why = |error: &io::Error| {
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        error.get_ref().and_then(|why| why.downcast_ref::<Error>()).cloned()
    };
    // In the clear, with an alert in the clear.
    let (near, mut far) = tcp().await;
    far.write_all(b"a0 NOOP\r\n").await.unwrap();
    let error = soon(TlsServer::accept(near, &sides.server)).await.unwrap_err();
    let expected = Error::InvalidMessage(InvalidMessage::InvalidContentType);
    assert_eq!(why(&error), Some(expected));
    let mut alert = Vec::new();
    soon(far.read_to_end(&mut alert)).await.ok();
    assert_eq!(alert.first(), Some(&21), "{alert:?}");
    // Its head alone shows it.
    let (mut ours, mut peer) = sides.server(tcp().await).await;
    soon(async {
        for piece in [&b"\xff"[..], b"\xff\xff\xff\xff"] {
            peer.get_mut().0.write_all(piece).await.unwrap();
        }
        let error = ours.read_u8().await.unwrap_err();
        assert!(matches!(why(&error), Some(Error::InvalidMessage(_))), "{error}");
        ours.shutdown().await.unwrap();
    })
    .await;
    // Later, under the keys.
    let (mut ours, mut peer) = sides.server(tcp().await).await;
    soon(async {
        let forged = [&b"\x17\x03\x03\x00\x20"[..], &[9; 32]].concat();
        peer.write_all(b"said").await.unwrap();
        // It is answered, and what answers it comes before the alert.
        peer.get_mut().1.refresh_traffic_keys().unwrap();
        peer.flush().await.unwrap();
        peer.get_mut().0.write_all(&forged).await.unwrap();
        let mut said = [0; 4];
        ours.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"said", "what came before it counts");
        let error = ours.read_u8().await.unwrap_err();
        assert_eq!(why(&error), Some(Error::DecryptError));
        assert_eq!(ours.read(&mut said).await.unwrap(), 0);
        let error = ours.write(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let error = peer.read_u8().await.unwrap_err();
        let told = Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
        assert_eq!(why(&error), Some(told));
    })
    .await;
}

#[tokio::test]
async fn a_password_is_overwritten_where_it_was_decrypted() {
    let sides = Sides::of(&TLS13);
    let (mut ours, mut peer) = sides.server(tcp().await).await;
    let secret = b"a0 LOGIN joe tulips\r\n";
    let is_there =
        || INCOMING.with_borrow(|bytes| bytes.windows(secret.len()).any(|window| window == secret));
    for is_secret in [false, true] {
        ours.set_secret(is_secret);
        let mut heard = [0; 21];
        soon(async {
            peer.write_all(secret).await.unwrap();
            peer.flush().await.unwrap();
            ours.read_exact(&mut heard).await.unwrap();
        })
        .await;
        assert_eq!((&heard, is_there()), (secret, !is_secret));
    }
    // With what breaks the connection behind it.
    soon(async {
        peer.write_all(secret).await.unwrap();
        peer.flush().await.unwrap();
        peer.get_mut().0.write_all(b"\xff\xff\xff\xff\xff").await.unwrap();
        let mut heard = Vec::new();
        ours.read_to_end(&mut heard).await.unwrap_err();
        assert_eq!(heard, secret);
    })
    .await;
    assert!(!is_there());
}
