//! Thousands of accounts: how soon all of them are watched after a start, and what each costs.
//!
//! The measurement runs in a process of its own, since the memory of this one is also that of other
//! tests.

use std::io::Write;
use std::ops::Range;
use std::time::{Duration, Instant};

use mailchime::config::{BackendTls, TrustConfig};
use mailchime::demo::backend::DemoBackend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::apart::apart;
use crate::support::listener;
use crate::support::servers::pki;
use crate::support::watching::{PASSWORD, WatchWorld, told};

/// How many accounts, and how many logins a second: so few that they do not pile up on a machine that is busy. What logins
/// need that are under way at once stays with the process.
const ACCOUNTS: usize = 2000;
const RATE: u32 = 200;

/// So many more are there before anything is measured, and with them what all share: connections of the database with
/// their caches, threads, and room for the logins that are under way at once.
const BEFORE: usize = 500;

#[test]
fn thousands_of_accounts_are_watched_by_one_connection_each() {
    run_apart("watch::scale::thousands_of_accounts_are_watched_by_one_connection_each", false);
}

#[test]
fn thousands_of_accounts_are_watched_over_tls() {
    run_apart("watch::scale::thousands_of_accounts_are_watched_over_tls", true);
}

fn run_apart(test: &str, tls: bool) {
    let measured = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(measure(tls));
    };
    let Some([said, _]) = apart(test, 12_000, measured) else { return };
    let result = said.lines().find_map(|line| line.split_once("WATCHED ")).expect(&said).1;
    std::io::stderr().write_all(format!("{result}\n").as_bytes()).unwrap();
}

async fn measure(tls: bool) {
    tokio::time::timeout(Duration::from_secs(400), measured(tls)).await.expect("in time");
}

async fn measured(tls: bool) {
    let backend = demo(tls).await;
    let mut world = WatchWorld::new(backend.address()).await;
    world.watch.logins_per_second = RATE;
    let ca = world.folder.path().join("ca.pem");
    std::fs::write(&ca, &pki().ca.certificate).unwrap();
    if tls {
        let trust = TrustConfig { ca: Some(ca), server_name: "localhost".into() };
        world.tls = BackendTls::Implicit(trust);
    }
    register(&world, &backend, 0..BEFORE).await;
    let watching = world.watch();
    backend.wait_until(|c| c.idling == BEFORE).await;
    register(&world, &backend, BEFORE..BEFORE + ACCOUNTS).await;
    let before = memory();
    let began = Instant::now();
    watching.inquirer.read_again();
    backend.wait_until(|c| c.idling == BEFORE + ACCOUNTS).await;
    let took = began.elapsed();
    let each = (memory() - before) / ACCOUNTS as u64;

    let seen = backend.counters();
    assert_eq!(seen.accepted, (BEFORE + ACCOUNTS) as u64, "one connection each");
    // The server's own part: as many clients that hold next to nothing.
    let other = demo(false).await;
    let mut clients = Vec::new();
    add_idle(&other, &mut clients, BEFORE).await;
    let before = memory();
    add_idle(&other, &mut clients, ACCOUNTS).await;
    let server = (memory() - before) / ACCOUNTS as u64;
    let result = format!(
        "WATCHED {ACCOUNTS} accounts ({}) in {:.1} s at {RATE} logins a second; \
         {each} bytes each, of which the demo server and sockets take {server} (without TLS)\n",
        if tls { "TLS" } else { "plain" },
        took.as_secs_f64(),
    );
    std::io::stdout().write_all(result.as_bytes()).unwrap();
    // A watcher that has grown shows here. The server's side of TLS is in it, and no optimisation.
    let own = each.saturating_sub(server);
    assert!(own < if tls { 28 } else { 13 } * 1024, "{own} bytes for each account");
    // The test prints how long it took and asserts nothing of it; that turns are even is the pacer's own test.
    drop(clients);
    watching.stop().await;
}

/// These users register.
async fn register(world: &WatchWorld, backend: &DemoBackend, numbers: Range<usize>) {
    for number in numbers {
        let user = format!("user{number}");
        backend.add_account(&user, PASSWORD.as_bytes());
        world.register(&user, &[("INBOX", told(number as u64 + 1, 1, 0, 0))]).await;
    }
}

/// So many more clients idle.
async fn add_idle(backend: &DemoBackend, clients: &mut Vec<TcpStream>, number: usize) {
    for _ in 0..number {
        let user = format!("user{}", clients.len());
        backend.add_account(&user, PASSWORD.as_bytes());
        clients.push(idle_client(backend, &user).await);
    }
}

async fn demo(tls: bool) -> DemoBackend {
    let tls = tls.then(|| pki().server_config().unwrap());
    DemoBackend::start(listener().await, tls).unwrap()
}

/// A client in IDLE that keeps no buffer.
async fn idle_client(backend: &DemoBackend, user: &str) -> TcpStream {
    let idling = backend.counters().idling;
    let mut stream = TcpStream::connect(backend.address()).await.unwrap();
    let commands = format!("a LOGIN {user} {PASSWORD}\r\nb EXAMINE INBOX\r\nc IDLE\r\n");
    stream.write_all(commands.as_bytes()).await.unwrap();
    backend.wait_until(|c| c.idling > idling).await;
    let mut heard = [0; 4096];
    let _ = stream.read(&mut heard).await.unwrap();
    stream
}

/// Resident memory of this process, in bytes (proc(5)).
fn memory() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
