//! Who reaches `[admin]` without being meant to: pages on the web, in the browser of somebody on this
//! machine; and who keeps others from being answered.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::support::world::{LOGIN, World};
use crate::support::{limited, soon};

/// Says this, and hears all that comes.
async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon("an answer of [admin]", stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// The address of `[admin]` in the configuration.
fn address(world: &World) -> String {
    let config = fs::read_to_string(world.file("proxy.toml")).unwrap();
    let admin = config.split("[admin]\naddress = \"").nth(1).unwrap();
    admin.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_page_on_the_web_gets_nothing_through_a_browser_on_this_machine() {
    limited(async {
        let world = World::new().await;
        let server = world.serve_with_admin().await;
        let address = address(&world);
        world.register(server.address).await.unwrap();
        for request in [
            "GET /",
            "GET /?user=alice",
            "GET /metrics",
            "HEAD /metrics",
            "GET /healthz",
            "GET /readyz",
            "GET /watchers",
            "GET /explain?user=alice",
            "POST /push?user=alice",
            "POST /subscriptions?user=alice",
        ] {
            for (headers, status) in [
                // A name of the page's own, which now points here.
                ("Host: evil.example", 421),
                ("Host: evil.example:8143", 421),
                ("Host: 127.0.0.1.evil.example", 421),
                ("Host: 203.0.113.7", 421),
                ("Host: localhost\r\nHost: evil.example", 421),
                // Another site's, or another port of this machine.
                ("Host: localhost\r\nSec-Fetch-Site: cross-site", 403),
                ("Host: localhost\r\nSec-Fetch-Site: same-site", 403),
                ("Host: localhost\r\nSec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site", 403),
                ("Host: localhost\r\nOrigin: http://evil.example", 403),
                ("Host: localhost\r\nOrigin: null", 403),
            ] {
                let stream = TcpStream::connect(&address).await.unwrap();
                let answer = say(stream, &format!("{request} HTTP/1.1\r\n{headers}\r\n\r\n")).await;
                let start = answer.lines().next().unwrap_or_default().to_owned();
                let refused = [status, 400].map(|status| format!("HTTP/1.1 {status} "));
                assert!(
                    refused.iter().any(|refused| start.starts_with(refused)),
                    "{request} {headers:?}: {start}"
                );
                assert!(!answer.contains(LOGIN) && !answer.contains("mailchime_"), "{answer}");
            }
        }
        assert_eq!(world.apns.received(), 0, "no push was sent");
        for head in [
            format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n"),
            "GET /healthz HTTP/1.1\r\nHost: localhost:8143\r\nSec-Fetch-Site: none\r\n\r\n"
                .to_owned(),
            // A load balancer.
            "GET /healthz HTTP/1.0\r\n\r\n".to_owned(),
        ] {
            let answer = say(TcpStream::connect(&address).await.unwrap(), &head).await;
            assert!(answer.split(' ').nth(1) == Some("200"), "{head}: {answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn half_open_requests_do_not_delay_a_health_check() {
    limited(async {
        let world = World::new().await;
        let _server = world.serve_with_admin().await;
        let address = address(&world);
        for open in [40, 300] {
            let mut half_open = Vec::new();
            for _ in 0..open {
                let mut stream = TcpStream::connect(&address).await.unwrap();
                // The oldest are hung up on while there are more.
                let _ = stream.write_all(b"GET /hea").await;
                half_open.push(stream);
            }
            let began = Instant::now();
            for path in ["/healthz", "/readyz", "/metrics"] {
                let stream = TcpStream::connect(&address).await.unwrap();
                let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                let answer = say(stream, &request).await;
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                if path == "/metrics" {
                    let hits = "mailchime_limits_hit_total{limit=\"admin_connections\"} ";
                    let hits = answer.split(hits).nth(1).unwrap().lines().next().unwrap();
                    assert_eq!(hits == "0", open == 40, "{hits} of {open}");
                }
            }
            let took = began.elapsed();
            assert!(took < Duration::from_secs(30), "{took:?} beside {open} half-open requests");
        }
    })
    .await;
}

#[tokio::test]
async fn a_unix_socket_is_for_its_user_and_the_commands_speak_to_it() {
    limited(async {
        let world = World::new().await;
        world.configure("[log]", "[admin]\naddress = \"unix:admin.sock\"\n[log]");
        let path = world.file("admin.sock");
        let mut server = world.serve().await;
        let line = server.logged("serving metrics, health and status").await;
        assert_eq!(line["address"], format!("unix:{}", path.display()));
        let file = fs::symlink_metadata(&path).unwrap();
        assert!(file.file_type().is_socket());
        assert_eq!(file.mode() & 0o777, 0o600);

        world.register(server.address).await.unwrap();
        world.watched().await;
        let said = world.command(&["watchers"]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(said.line(LOGIN).contains("watching"), "{}", said.stdout);
        let said = world.command(&["push", LOGIN]).await;
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        world.push().await;
        let said = world.command(&["devices", "remove", LOGIN]).await;
        said.line("the mailchime that runs has been told");
        let stream = UnixStream::connect(&path).await.unwrap();
        let answer = say(stream, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

        // A second one does not take its place; one that was killed leaves a file that is replaced.
        let second = world.command(&["serve"]).await;
        assert_eq!(second.code, 1, "{}", second.stderr);
        assert!(second.stderr.contains("[admin] address: unix:"), "{}", second.stderr);
        server.process.kill();
        assert!(path.exists());
        let mut server = world.serve().await;
        server.logged("serving metrics, health and status").await;
        assert_eq!(world.command(&["watchers"]).await.code, 0);
        server.process.signal("TERM");
        server.process.end().await;
        assert!(!path.exists(), "the file goes with the program");
        let said = world.command(&["watchers"]).await;
        assert!(said.code == 1 && said.stderr.contains("is mailchime running"), "{}", said.stderr);
        // What is no socket is left alone.
        fs::write(&path, "precious").unwrap();
        assert_eq!(world.command(&["serve"]).await.code, 64);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    })
    .await;
}

#[tokio::test]
async fn a_group_may_be_given_the_unix_socket() {
    limited(async {
        let world = World::new().await;
        let own = fs::metadata(world.folder()).unwrap().gid();
        world.configure(
            "[log]",
            &format!("[admin]\naddress = \"unix:admin.sock\"\ngroup = \"{own}\"\n[log]"),
        );
        let mut server = world.serve().await;
        server.logged("serving metrics, health and status").await;
        let file = fs::symlink_metadata(world.file("admin.sock")).unwrap();
        assert_eq!((file.mode() & 0o777, file.gid()), (0o660, own));
        world.configure(&format!("\"{own}\""), "\"no-such-group\"");
        fs::remove_file(world.file("admin.sock")).unwrap();
        let said = world.command(&["serve"]).await;
        assert!(
            said.code == 64 && said.stderr.contains("no group \"no-such-group\""),
            "{}",
            said.stderr
        );
    })
    .await;
}
