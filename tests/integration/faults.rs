//! Faults by promise: the real program between stand-ins, one fault after another done to it, and
//! what must hold afterwards (DESIGN.md section 1). And a storm of all of them at once.
//!
//! Each fault is a row of a table that is printed at the end; a row that fails fails the test, and
//! the others are done all the same.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use scene::{Scene, Tally};

mod apns;
mod backend;
mod clock;
mod database;
mod events;
mod fcm;
mod killed;
mod live;
mod scene;
mod storm;
mod webhook;
mod webpush;

/// How many rows are under way at once: most of them wait for something most of the time.
const AT_ONCE: usize = 4;

/// How long a row may take. Two of them wait until a device may be pushed again.
const LIMIT: Duration = Duration::from_secs(400);

/// A row: what is done and at which step, and what must hold afterwards.
#[derive(Clone)]
struct Fault {
    name: &'static str,
    holds: &'static str,
    run: fn(Scene) -> JoinHandle<()>,
}

/// A row that is carried out by an async function of a [`Scene`].
macro_rules! fault {
    ($run:path, $name:literal, $holds:literal) => {
        super::Fault { name: $name, holds: $holds, run: |scene| tokio::spawn($run(scene)) }
    };
}
use fault;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_survived() {
    let faults: Vec<Fault> = killed::faults()
        .into_iter()
        .chain(backend::faults())
        .chain(apns::faults())
        .chain(fcm::faults())
        .chain(webhook::faults())
        .chain(webpush::faults())
        .chain(live::faults())
        .chain(database::faults())
        .chain(events::faults())
        .chain(clock::faults())
        .collect();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let rows: Vec<_> = faults.into_iter().map(|fault| carry_out(fault, places.clone())).collect();
    let mut table = String::new();
    let mut failed = Vec::new();
    line(&mut table, "fault", "deliveries", "pushes", "faults", "verdict");
    for row in rows {
        let Row { fault, tally, verdict } = row.await.unwrap();
        let [deliveries, pushes, faults] = [&tally.deliveries, &tally.pushes, &tally.faults];
        let [deliveries, pushes, faults] =
            [deliveries, pushes, faults].map(|count| count.load(Relaxed).to_string());
        let verdict = match verdict {
            Ok(()) if tally.skipped.load(Relaxed) => "skipped".to_owned(),
            Ok(()) => format!("holds: {}", fault.holds),
            Err(why) => {
                failed.push(fault.name);
                format!("FAILED: {}: {}", fault.holds, why.lines().next().unwrap_or_default())
            }
        };
        line(&mut table, fault.name, &deliveries, &pushes, &faults, &verdict);
    }
    say(&table);
    assert!(failed.is_empty(), "{failed:?}");
}

/// A fault that was carried out.
struct Row {
    fault: Fault,
    tally: Arc<Tally>,
    verdict: Result<(), String>,
}

fn carry_out(fault: Fault, places: Arc<Semaphore>) -> JoinHandle<Row> {
    tokio::spawn(async move {
        let _place = places.acquire_owned().await.unwrap();
        let tally = Arc::new(Tally::default());
        let scene = Scene::new(fault.name, tally.clone()).await;
        let mut run = (fault.run)(scene);
        let verdict = match tokio::time::timeout(LIMIT, &mut run).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(panic)) => Err(message(panic)),
            Err(_) => {
                run.abort();
                Err(format!("takes longer than {LIMIT:?}"))
            }
        };
        Row { fault, tally, verdict }
    })
}

fn message(panic: tokio::task::JoinError) -> String {
    let panic = panic.into_panic();
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (None, Some(text)) => (*text).to_owned(),
        (None, None) => "it panicked".to_owned(),
    }
}

fn line(table: &mut String, name: &str, deliveries: &str, pushes: &str, faults: &str, end: &str) {
    writeln!(table, "{name:<58} | {deliveries:>10} | {pushes:>6} | {faults:>6} | {end}").unwrap();
}

/// Past the capture of the test harness.
fn say(text: &str) {
    std::io::stderr().write_all(format!("\n{text}").as_bytes()).unwrap();
}
