//! What of a peer's bytes is kept, and for how long.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::demo::pki::Pki;
use crate::imap::contract::{ClientConnection, Profile, ShownCapabilities};
use crate::imap::login::LoginKinds;
use crate::imap::session::Session;
use crate::net::tls_stream::TlsServer;

/// For what is expected to come about at once.
const LIMIT: Duration = Duration::from_secs(120);

/// A client by TLS whose socket holds little, and its own side.
async fn client() -> (Endpoint, client::TlsStream<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (far, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (far, (near, _)) = (far.unwrap(), accepted.unwrap());
    SockRef::from(&near).set_send_buffer_size(16 * 1024).unwrap();
    let pki = Pki::generate(None).unwrap();
    let (server, config) = (pki.server_config().unwrap(), pki.client_config(None).unwrap());
    let name = ServerName::try_from("localhost").unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, far);
    let (ours, peer) = tokio::join!(TlsServer::accept(near, &server), connecting);
    let stream = Stream::Server(Box::new(ours.unwrap()));
    (Endpoint::new(stream, Side::Client), peer.unwrap())
}

#[tokio::test]
async fn what_waits_for_a_slow_peer_leaves_bit_by_bit() {
    let test = async {
        let (mut client, mut peer) = client().await;
        let from_backend = Endpoint::gone(Side::Backend).inbound;
        let mail = vec![7; READ_SIZE];
        let sent = poll_fn(|cx| client.poll_pass(cx, &mail, Side::Backend)).await.unwrap();
        assert_eq!(sent, READ_SIZE, "it is taken whole, and a part of it waits");
        assert!(client.stream.unsent() > 0);
        let hearing = async {
            let mut piece = [0; 5000];
            let mut heard = 0;
            while heard < READ_SIZE {
                heard += peer.read(&mut piece).await.unwrap();
            }
        };
        let mut times = 0;
        let leaving = poll_fn(|cx| {
            let before = client.stream.unsent();
            let left = from_backend.has_left(cx, &mut client).unwrap();
            let unsent = client.stream.unsent();
            assert_eq!(left, unsent == 0, "{unsent} of {before}");
            times += usize::from(unsent < before);
            if left { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::join!(hearing, leaving);
        assert!(times > 1, "it leaves bit by bit");
    };
    tokio::time::timeout(LIMIT, test).await.expect("in time");
}

/// A session whose client has said nothing yet.
fn session() -> Tapped {
    let profile = Arc::new(Profile {
        backend: None,
        logins_elsewhere: LoginKinds::default(),
        push: None,
        relay_mechanisms: false,
        master: false,
        routed: Vec::new(),
        commands: 100,
        command_size: 1024,
        capability_size: 1024,
        compress: false,
        shown: ShownCapabilities::default(),
    });
    let (tag_prefix, id_fields) = ("mc".to_owned(), Vec::new());
    let connection = ClientConnection { secure: true, tag_prefix, id_fields };
    Tapped::new(Session::new(Arc::clone(&profile), connection), None, &profile, true)
}

#[tokio::test]
async fn nothing_is_read_for_a_client_that_is_behind() {
    const ALL: usize = 64 * 1024;
    let test = async {
        let (mut client, _peer) = client().await;
        let (near, mut far) = tokio::io::duplex(ALL);
        far.write_all(&[b'x'; ALL]).await.unwrap();
        let mut backend = Endpoint::new(Stream::Local(near), Side::Backend);
        let mut bounds = Bounds { backend: ALL, at_once: READ_SIZE, turn: TURN };
        let (mail, mut session) = (vec![7; READ_SIZE], session());
        session.output.to_client.clear();
        poll_fn(|cx| client.poll_pass(cx, &mail, Side::Backend)).await.unwrap();
        poll_fn(|cx| {
            let pause = backend.pump(cx, Some(&mut client), &mut session, &mut bounds);
            assert!(matches!(pause, Ok(Pause::Stalled)));
            // The pipe is as full as before.
            assert!(Pin::new(&mut far).poll_write(cx, b"x").is_pending(), "something was read");
            Poll::Ready(())
        })
        .await;
    };
    tokio::time::timeout(LIMIT, test).await.expect("in time");
}

#[test]
fn the_more_all_sessions_keep_the_less_is_read_at_once() {
    let mut duplex = Duplex::new(Stream::Taken, 0);
    for (kept, expected) in
        [(0, READ_SIZE), (100, READ_SIZE), (101, MIDDLE), (400, MIDDLE), (401, SMALL)]
    {
        duplex.begin(kept, 400);
        assert_eq!(duplex.bounds.at_once, expected, "{kept} of 400 bytes are kept");
    }
}

#[tokio::test]
async fn a_peer_that_takes_bytes_slowly_takes_them() {
    let test = async {
        let (client, mut peer) = client().await;
        let mut duplex = Duplex::new(Stream::Taken, 0);
        duplex.client = client;
        let mail = vec![7; READ_SIZE];
        poll_fn(|cx| duplex.client.poll_pass(cx, &mail, Side::Backend)).await.unwrap();
        assert!(duplex.is_client_behind() && !duplex.has_taken() && !duplex.has_taken());
        let mut heard = 0;
        let hearing = async {
            while heard < READ_SIZE {
                heard += peer.read(&mut [0; 5000]).await.unwrap();
            }
        };
        let mut unsent = duplex.client.stream.unsent();
        let leaving = poll_fn(|cx| {
            duplex.flush(cx).unwrap();
            let before = std::mem::replace(&mut unsent, duplex.client.stream.unsent());
            assert_eq!(duplex.has_taken(), unsent < before, "{unsent} of {before}");
            if unsent == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::join!(hearing, leaving);
        assert!(!duplex.is_client_behind());
    };
    tokio::time::timeout(LIMIT, test).await.expect("in time");
}

#[tokio::test]
async fn what_nobody_wants_is_read_in_turns() {
    const ALL: usize = 16 * TURN;
    let (near, mut far) = tokio::io::duplex(ALL);
    far.write_all(&vec![7; ALL]).await.unwrap();
    let mut client = Endpoint::new(Stream::Local(near), Side::Client);
    let read = poll_fn(|cx| {
        assert!(client.poll_discard(cx).is_pending(), "there is more");
        // As many bytes have room again.
        Pin::new(&mut far).poll_write(cx, &vec![7; ALL])
    });
    let read = read.await.unwrap();
    assert!((1..=TURN).contains(&read), "{read} bytes in a turn");
}
