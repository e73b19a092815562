//! A phone registers through mailchime in front of each server, a mail is delivered as that server
//! delivers, and the push arrives; the server hears nothing of `XAPPLEPUSHSERVICE`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::block_in_place;

use super::LIMIT;
use super::site::{Behind, Kind, before};
use super::table::Cell;
use crate::support::in_process::InProcess;
use crate::support::listener;
use crate::support::servers::client::Client;
use crate::support::servers::{ALICE, mail, pki};
use crate::support::world::ACCOUNT_ID;

/// From a delivery to its push.
const SOON: Duration = Duration::from_secs(120);

/// How long nothing is delivered, to see whether there are pushes all the same.
const QUIET: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_registers() {
    registers("dovecot_registers", Kind::Dovecot).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot24_registers() {
    registers("dovecot24_registers", Kind::Dovecot24).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cyrus_registers() {
    registers("cyrus_registers", Kind::Cyrus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn courier_registers() {
    registers("courier_registers", Kind::Courier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imap4d_registers() {
    registers("imap4d_registers", Kind::Imap4d).await;
}

async fn registers(test: &'static str, kind: Kind) {
    let cell = Cell::begin(test).await;
    let Some(server) = kind.start(&format!("matrix::{test}")) else {
        return cell.skipped(&format!("{} cannot run on this machine", kind.name()));
    };
    let registered = async {
        block_in_place(|| server.seed());
        let tap = Tap::start(server.plain()).await;
        let mailchime = before(tap.address, Behind::Plain).await;
        let team = format!("{}Team", kind.prefix());
        let user = (&*kind.login(), ALICE.1);
        let answer = mailchime.register(user, &["INBOX", &team, "Nope"]).await;
        assert_eq!(answer.mailboxes, ["INBOX", &team]);
        assert_eq!(answer.topic, pki().topic);

        let mut notes = Vec::new();
        for which in ["first", "second"] {
            let before = mailchime.apns.received();
            block_in_place(|| server.deliver(&mail(which)));
            let start = Instant::now();
            let push = tokio::time::timeout(SOON, mailchime.apns.wait_for(before + 1)).await;
            push.unwrap_or_else(|_| panic!("no push of the {which} mail"));
            notes.push(format!("{which} push after {:.1} s", start.elapsed().as_secs_f32()));
        }
        for push in mailchime.apns.pushes() {
            assert_eq!(push.json()["aps"]["account-id"], ACCOUNT_ID);
        }
        let before = mailchime.apns.received();
        let endless = mailchime.apns.wait_for(u64::MAX);
        assert!(tokio::time::timeout(QUIET, endless).await.is_err());
        let needless = mailchime.apns.received() - before;
        notes.push(format!("{needless} pushes in {} s without mail", QUIET.as_secs()));
        // One more is allowed, one at each look is not.
        assert!(needless <= 1, "{notes:?}");

        block_in_place(|| announced_once(&mailchime, kind));
        if kind == Kind::Cyrus {
            let own = Client::connect(server.plain()).greeting.contains(" XAPPLEPUSHSERVICE");
            assert!(own, "Cyrus has none of its own");
            notes.push("its own XAPPLEPUSHSERVICE is hidden".into());
        }
        mailchime.mailchime.stop().await;
        let reached = tap.heard.lock().unwrap().to_ascii_uppercase();
        assert!(reached.windows(5).any(|it| it == b"LOGIN"), "the server heard nothing");
        assert!(!reached.windows(17).any(|it| it == b"XAPPLEPUSHSERVICE"));
        notes
    };
    let notes = tokio::time::timeout(LIMIT, registered).await.expect("the cell takes too long");
    cell.passed(&notes);
}

/// A client that is logged in finds the capability once.
fn announced_once(mailchime: &InProcess, kind: Kind) {
    let mut client = Client::connect_tls(mailchime.address());
    let answer = client.login((&kind.login(), ALICE.1));
    assert!(answer.starts_with("x OK"), "{answer}");
    let capabilities = client.ask("CAPABILITY").remove(0);
    assert_eq!(capabilities.matches(" XAPPLEPUSHSERVICE").count(), 1, "{capabilities}");
    client.ask("LOGOUT");
}

/// Passes connections on to a server, and keeps what the server hears.
struct Tap {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    async fn start(server: SocketAddr) -> Self {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let keep = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, Arc::clone(&keep)));
            }
        });
        Self { address, heard }
    }
}

async fn pass(client: TcpStream, server: SocketAddr, heard: Arc<Mutex<Vec<u8>>>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(server).await.unwrap().into_split();
    let up = async {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            heard.lock().unwrap().extend_from_slice(&buffer[..length]);
            if to_server.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        // The client may have gone already.
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down);
}
