//! Through an HTTP proxy.

use std::sync::{Arc, Mutex};

use mailchime::config::ProxyConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::client::{is_accepted, push, why};
use crate::support::pushing::{Certificates, route_of, try_load};
use crate::support::{limited, listener};

/// A proxy that gives each request this answer and then passes bytes on to where it was asked.
/// Returns the heads of the requests.
pub(super) fn proxy(listener: TcpListener, answer: &'static str) -> Arc<Mutex<Vec<String>>> {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = near.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let to = head.split(' ').nth(1).unwrap().to_owned();
                seen.lock().unwrap().push(head);
                near.write_all(answer.as_bytes()).await.unwrap();
                if answer.contains(" 200 ") {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    heads
}

#[tokio::test]
async fn a_proxy_is_asked_for_a_tunnel_and_sees_only_its_destination() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let login_file = certificates.folder.path().join("login");
        std::fs::write(&login_file, "me:open sesame\n").unwrap();
        let to = stand_in.address();
        for (login_file, expected) in [
            (None, format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n")),
            (
                Some(login_file),
                format!(
                    "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\
                     Proxy-Authorization: Basic bWU6b3BlbiBzZXNhbWU=\r\n\r\n"
                ),
            ),
        ] {
            let listener = listener().await;
            let address = listener.local_addr().unwrap();
            let heads = proxy(listener, "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n");
            let mut config = certificates.config(to);
            let (host, port) = (address.ip().to_string(), address.port());
            config.proxy = Some(ProxyConfig { host, port, login_file });
            let apns = route_of(&certificates.identity(), &config);
            let device = certificates.device("ab");
            assert!(is_accepted(&push(&apns, &device).await));
            assert!(is_accepted(&push(&apns, &device).await));
            assert_eq!(*heads.lock().unwrap(), [expected]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_proxy_that_refuses_or_talks_nonsense_is_reported_without_its_login() {
    limited(async {
        let certificates = Certificates::new();
        let login_file = certificates.folder.path().join("login");
        std::fs::write(&login_file, "me:open sesame").unwrap();
        for (answer, said) in [
            (
                "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
                "proxy: it answers HTTP/1.1 407 Proxy Authentication Required",
            ),
            ("HTTP/1.1 2000 OK\r\n\r\n", "proxy: it answers HTTP/1.1 2000 OK"),
            ("SSH-2.0-\x1b[31m 200 \r\n\r\n", "proxy: it answers SSH-2.0-\\u{1b}[31m 200 "),
            ("", "proxy: no answer in time"),
        ] {
            let listener = listener().await;
            let address = listener.local_addr().unwrap();
            let heads = proxy(listener, answer);
            let mut config = certificates.config(address);
            config.connect_timeout = std::time::Duration::from_secs(10);
            let (host, port) = (address.ip().to_string(), address.port());
            config.proxy = Some(ProxyConfig { host, port, login_file: Some(login_file.clone()) });
            let apns = route_of(&certificates.identity(), &config);
            let found = why(push(&apns, &certificates.device("ab")).await);
            // A proxy that only closes says nothing.
            let closed = answer.is_empty() && found.contains("proxy: ");
            assert!(closed || found.contains(said), "{found}");
            assert!(!format!("{found} {apns:?}").contains("sesame") && !found.contains("bWU6"));
            let heads = heads.lock().unwrap();
            assert!(matches!(&heads[..], [head] if head.starts_with("CONNECT ")), "{heads:?}");
        }
        std::fs::write(&login_file, "").unwrap();
        let mut config = certificates.config(([127, 0, 0, 1], 1).into());
        let login_file = Some(login_file);
        config.proxy = Some(ProxyConfig { host: "localhost".into(), port: 1, login_file });
        let error = try_load(&[config], &Default::default()).unwrap_err().to_string();
        assert!(error.starts_with("[apns] proxy_login_file: "), "{error}");
    })
    .await;
}
