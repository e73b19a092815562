//! PROXY headers from load balancers, and those that mailchime sends itself.

use std::net::SocketAddr;

use mailchime::config::Config;
use mailchime::net::proxy_protocol::{Addresses, header};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::in_process::{InProcess, scripted_login};
use crate::support::line::Line;
use crate::support::{limited, listener, reached};

fn trusting(networks: &'static [&str]) -> impl FnOnce(&mut Config) {
    move |config| {
        let networks = networks.iter().map(|network| network.parse().unwrap());
        config.listeners[0].proxy_protocol = networks.collect();
        config.backend.send_id = true;
        config.backend.proxy_protocol = true;
    }
}

fn addresses(source: &str, destination: &str) -> Addresses {
    Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

/// Sends `begin`, logs in, and gives what the backend hears of the client.
async fn told_to_backend(begin: &[u8]) -> (Option<Addresses>, String, SocketAddr, SocketAddr) {
    let backend = listener().await;
    let world =
        InProcess::start(backend.local_addr().unwrap(), trusting(&["192.0.2.0/24", "127.0.0.1"]))
            .await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let own = stream.local_addr().unwrap();
    stream.write_all(begin).await.unwrap();
    let mut client = world.greeted(stream).await.expect("a greeting");
    client.command("i ID (\"name\" \"phone\" \"x-originating-ip\" \"6.6.6.6\")").await;
    client.send("in LOGIN alice secret\r\n").await;
    let (told, id) = scripted_login(&backend, true).await;
    (told, id, own, world.address())
}

#[tokio::test]
async fn the_client_of_a_load_balancer_is_the_one_in_the_header() {
    limited(async {
        let v4 = addresses("203.0.113.7:4711", "198.51.100.1:993");
        let v6 = addresses("[2001:db8::7]:4711", "[2001:db8::1]:993");
        let mut with_tlv = header(Some(v4));
        with_tlv[15] += 5;
        with_tlv.extend_from_slice(&[0x04, 0x00, 0x02, 0xff, 0xff]);
        for (begin, expected) in [
            (b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 993\r\n".to_vec(), v4),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 993\r\n".to_vec(), v6),
            (header(Some(v4)), v4),
            (header(Some(v6)), v6),
            (with_tlv, v4),
        ] {
            let (told, id, ..) = told_to_backend(&begin).await;
            assert_eq!(told, Some(expected));
            let Addresses { source, destination } = expected;
            let expected = format!(
                "ID (\"name\" \"phone\" \"x-originating-ip\" \"{}\" \"x-originating-port\" \"4711\" \
                 \"x-connected-ip\" \"{}\" \"x-connected-port\" \"993\")",
                source.ip(),
                destination.ip(),
            );
            assert_eq!(id, expected);
        }
    })
    .await;
}

#[tokio::test]
async fn a_load_balancer_that_speaks_for_itself_is_the_client() {
    limited(async {
        for begin in [header(None), b"PROXY UNKNOWN\r\n".to_vec()] {
            let (told, _, source, destination) = told_to_backend(&begin).await;
            assert_eq!(told, Some(Addresses { source, destination }));
        }
    })
    .await;
}

#[tokio::test]
async fn from_a_load_balancer_nothing_but_a_header_will_do() {
    limited(async {
        let backend = listener().await;
        let world =
            InProcess::start(backend.local_addr().unwrap(), trusting(&["127.0.0.0/8"])).await;
        let stream = TcpStream::connect(world.address()).await.unwrap();
        assert!(world.secured(stream).await.is_none(), "TLS without a header");
        let long = format!("PROXY UNKNOWN {}", "x".repeat(100));
        for begin in ["PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", "a NOOP and so on and on\r\n", &long] {
            let mut stream = TcpStream::connect(world.address()).await.unwrap();
            stream.write_all(begin.as_bytes()).await.unwrap();
            assert_eq!(Line::of(stream).rest().await, "", "{begin:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_header_that_does_not_come_ends_with_the_handshake_timeout() {
    limited(async {
        let backend = listener().await;
        let world = InProcess::start(backend.local_addr().unwrap(), |config| {
            trusting(&["127.0.0.1"])(config);
            config.limits.handshake_timeout = std::time::Duration::from_millis(50);
        })
        .await;
        let mut stream = TcpStream::connect(world.address()).await.unwrap();
        stream.write_all(b"PROXY TC").await.unwrap();
        assert_eq!(Line::of(stream).rest().await, "");
        reached(&world.mailchime.counters().handshake_timeout, 1).await;
    })
    .await;
}

#[tokio::test]
async fn only_trusted_networks_may_send_a_proxy_header() {
    limited(async {
        let backend = listener().await;
        let world =
            InProcess::start(backend.local_addr().unwrap(), trusting(&["192.0.2.0/24"])).await;
        // As it is: it tells nothing and is served, or tells something and that is not TLS.
        let mut client = world.client().await;
        let own = client.0.get_ref().get_ref().0.local_addr().unwrap();
        client.send("in LOGIN alice secret\r\n").await;
        let (told, _) = scripted_login(&backend, true).await;
        assert_eq!(told, Some(Addresses { source: own, destination: world.address() }));
        let mut stream = TcpStream::connect(world.address()).await.unwrap();
        stream.write_all(b"PROXY TCP4 192.0.2.1 198.51.100.1 1 993\r\n").await.unwrap();
        let mut heard = Line::of(stream);
        assert!(!heard.rest().await.contains("* OK"));
    })
    .await;
}
