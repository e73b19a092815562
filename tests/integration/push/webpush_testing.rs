//! Web Push to a push service that others wrote: npm web-push-testing, which checks the key and its signature,
//! and decrypts. It speaks no TLS, so that is taken off in front of it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::webpush::Site;
use crate::support::pushing::{Disk, Running, alice};
use crate::support::servers::pki;
use crate::support::skip::skipped;
use crate::support::{limited, listener};
use mailchime::config::PushConfig;
use mailchime::net::resolve::NameResolver;
use mailchime::push::transport::Verdict;
use mailchime::push::transport::enrol::Enrol;

const LIBRARY: &str = "web-push-testing-1.2.2";

/// At a port of loopback that the system chooses, which it prints.
const SCRIPT: &str = "
    const http = require('http'); const listen = http.Server.prototype.listen;
    http.Server.prototype.listen = function (port, ...rest) {
        this.on('listening', () => console.log('at ' + this.address().port));
        return listen.call(this, 0, '127.0.0.1', ...rest);
    };
    const {PushApiModel} = require('web-push-testing/src/PushApiModel');
    const Server = require('web-push-testing/src/server.js');
    new Server(new PushApiModel(), 1).startServer();
";

struct WebPushTesting {
    child: Child,
    port: u16,
}

impl WebPushTesting {
    fn start() -> Self {
        let libraries: PathBuf = std::env::var_os("MAILCHIME_CLIENTS").map_or_else(
            || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("clients"),
            Into::into,
        );
        let mut child = Command::new("node")
            .args(["-e", SCRIPT])
            .env("NODE_PATH", libraries.join(LIBRARY).join("node_modules"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port =
            lines.map_while(Result::ok).find_map(|line| line.strip_prefix("at ")?.parse().ok());
        Self { child, port: port.expect("web-push-testing says where it listens") }
    }

    /// What it answers to this, as JSON.
    async fn ask(&self, path: &str, question: &Value) -> Value {
        let body = question.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_default()
    }
}

impl Drop for WebPushTesting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes TLS off what comes to `listener`, for the port.
fn take_tls_off(listener: TcpListener, port: u16) {
    let tls = TlsAcceptor::from(pki().server_config().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut near = tls.accept(stream).await.unwrap();
                let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
}

#[tokio::test]
async fn web_push_testing_reads_what_has_changed() {
    const TEST: &str = "web_push_testing_reads_what_has_changed";
    if ["node", "web-push-testing"].iter().any(|needed| skipped(TEST, needed)) {
        return;
    }
    limited(async {
        let theirs = WebPushTesting::start();
        let way = listener().await;
        let port = way.local_addr().unwrap().port();
        take_tls_off(way, theirs.port);
        let site = Site::with(&[port], &NameResolver::default(), |_| {});
        let key = site.web_push.public_key();
        let wanted = json!({ "userVisibleOnly": "true", "applicationServerKey": key });
        let mut subscribed = theirs.ask("/subscribe", &wanted).await["data"].take();
        let client = subscribed["clientHash"].as_str().unwrap().to_owned();
        subscribed["endpoint"] = json!(format!("https://localhost:{port}/notify/{client}"));
        let subscription = site.web_push.enrol(&alice(), &subscribed).unwrap().subscription;

        let disk = Disk::with(std::slice::from_ref(&subscription)).await;
        let mut running = Running::over(&disk, &site.routes, PushConfig::default());
        running.mail("INBOX", 2).await;
        let read = loop {
            let question = json!({ "clientHash": client });
            let answer = theirs.ask("/get-notifications", &question).await;
            if let Some(message) = answer["data"]["messages"].get(0) {
                break message.as_str().unwrap().to_owned();
            }
        };
        running.end().await;
        // It leaves the padding on.
        let read: Value = serde_json::from_str(read.trim_end_matches(['\0', '\u{2}'])).unwrap();
        assert_eq!(read["data"]["mailboxes"][0]["mailbox"], "INBOX", "{read}");

        theirs.ask(&format!("/expire-subscription/{client}"), &json!({})).await;
        assert_eq!(site.verify(&subscription).await, Verdict::Gone { since: None });
    })
    .await;
}
