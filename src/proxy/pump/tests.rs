//! What of a peer's bytes is kept, and for how long.

use std::future::poll_fn;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::demo::pki::Pki;
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
    let connecting = TlsConnector::from(std::sync::Arc::new(config)).connect(name, far);
    let (ours, peer) = tokio::join!(TlsServer::accept(near, &server), connecting);
    let stream = Stream::Server(Box::new(ours.unwrap()));
    (Endpoint::new(stream, Side::Client), peer.unwrap())
}

#[tokio::test]
async fn nothing_is_read_for_a_peer_that_is_behind_and_one_that_is_slow_still_moves() {
    let test = async {
        let (mut client, mut peer) = client().await;
        let mut from_backend = Endpoint::gone(Side::Backend).inbound;
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
            let moved = std::mem::take(&mut from_backend.moved);
            assert_eq!((left, moved), (unsent == 0, unsent < before), "{unsent} of {before}");
            times += usize::from(moved);
            if left { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::join!(hearing, leaving);
        assert!(times > 1, "it leaves bit by bit");
        let left = poll_fn(|cx| Poll::Ready(from_backend.has_left(cx, &mut client)));
        assert!(left.await.unwrap() && !from_backend.moved);
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
