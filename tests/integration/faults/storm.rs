//! The storm: hundreds of accounts, and for a minute every fault at random, many at the same time. On PostgreSQL and
//! MariaDB it is a smaller one, and their server crashes too.
//! Then it is calm, and what was promised must hold:
//!
//! - **Every device was told of every mailbox's last state**: after the moment in which the numbers
//!   of the mailbox changed last, APNs has taken a push to the device that names the mailbox. A push
//!   makes the phone look, so whatever it was sent for, it tells what is there when it comes.
//! - **No stale password was tried more than twice**, however often the program was killed.
//! - **Nothing grew without bound**: memory, open files, threads and rows of the database are what
//!   they were before, but for what is said beside each bound.
//! - What sessions read meanwhile was right, byte by byte.
//!
//! What happens is drawn from a seed, which is printed; `MAILCHIME_STORM_SEED` repeats it, though
//! not the order in which the machine lets things happen.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::say;
use crate::support::apart::apart;
use crate::support::chance::Chance;
use crate::support::servers::DatabaseServer;
use crate::support::servers::mariadb::MariaDb;
use crate::support::servers::postgres::Postgres;
use database::Database;
use site::{Growth, Site};

pub(super) mod database;
mod faults;
mod site;
mod users;

/// Who is watched, and for how long there is a storm.
const ACCOUNTS: usize = 500;
const STORM: Duration = Duration::from_secs(60);

/// The same on a database server.
const ACCOUNTS_ON_SERVER: usize = 120;
const STORM_ON_SERVER: Duration = Duration::from_secs(30);

/// How long it may take after the storm until all devices have their pushes: mostly seconds, but where APNs failed at
/// every one of the last tries, the next is a minute away.
const CALM: Duration = Duration::from_secs(400);

const SEED: &str = "MAILCHIME_STORM_SEED";

/// What happened.
#[derive(Debug, Default)]
struct Tally {
    deliveries: AtomicU64,
    /// Mail read or deleted.
    quiet: AtomicU64,
    kills: AtomicU64,
    backend: AtomicU64,
    apns: AtomicU64,
    database: AtomicU64,
    passwords: AtomicU64,
    /// Events of the mail server that were taken without numbers and with them, and those that were not taken.
    events: AtomicU64,
    numbered_events: AtomicU64,
    lost_events: AtomicU64,
    /// Messages that sessions read whole, and connections that they lost.
    read: AtomicU64,
    lost: AtomicU64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deliveries, quiet, kills, backend, apns, database, passwords, .. } = self;
        let Self { events, numbered_events, lost_events, read, lost, .. } = self;
        let sum = [kills, backend, apns, database, passwords].map(|count| count.load(Relaxed));
        write!(
            f,
            "{deliveries:?} deliveries, {quiet:?} mails read or deleted, {} faults ({kills:?} \
             SIGKILL, {backend:?} of the backend, {apns:?} of APNs, {database:?} of the database, \
             {passwords:?} passwords), {events:?} events taken, {numbered_events:?} with numbers, and {lost_events:?} lost, {read:?} mails \
             fetched, {lost:?} sessions lost",
            sum.iter().sum::<u64>()
        )
    }
}

#[test]
fn after_a_storm_every_device_has_a_push_for_each_change() {
    a_storm("faults::storm::after_a_storm_every_device_has_a_push_for_each_change", false, None);
}

/// Accounts have no connection. Events that are lost in the storm are not sent again.
#[test]
fn after_a_storm_with_events_every_device_has_a_push_for_each_change() {
    let test = "faults::storm::after_a_storm_with_events_every_device_has_a_push_for_each_change";
    a_storm(test, true, None);
}

/// With events, as above: what is due is in the database then.
#[test]
fn after_a_storm_on_postgres_every_device_has_a_push_for_each_change() {
    let test = "faults::storm::after_a_storm_on_postgres_every_device_has_a_push_for_each_change";
    a_storm(test, true, Some(|test| Some(Box::new(Postgres::start(test)?))));
}

#[test]
fn after_a_storm_on_mariadb_every_device_has_a_push_for_each_change() {
    let test = "faults::storm::after_a_storm_on_mariadb_every_device_has_a_push_for_each_change";
    a_storm(test, true, Some(|test| Some(Box::new(MariaDb::start(test)?))));
}

/// Starts a database server, where it can run.
type StartServer = fn(&str) -> Option<Box<dyn DatabaseServer>>;

fn a_storm(test: &str, with_events: bool, start: Option<StartServer>) {
    let storm = || {
        let server = start.map(|start| start(test));
        if matches!(server, Some(None)) {
            return;
        }
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(the_storm_itself(with_events, server.flatten()));
    };
    if let Some([_, errors]) = apart(test, 8192, storm) {
        say(&errors);
    }
}

async fn the_storm_itself(with_events: bool, server: Option<Box<dyn DatabaseServer>>) {
    let seed = std::env::var(SEED).ok().map(|text| text.parse().expect("the seed is a number"));
    let seed = seed.unwrap_or_else(rand::random::<u32>);
    say(&format!("a storm with {SEED}={seed}\n"));
    let began = Instant::now();
    let (accounts, lasts) = match server {
        None => (ACCOUNTS, STORM),
        Some(_) => (ACCOUNTS_ON_SERVER, STORM_ON_SERVER),
    };
    let database = Database::new(server);
    let site = Arc::new(Site::start(accounts, seed, lasts, with_events, database).await);
    let before = site.growth().await;
    say(&format!("{accounts} accounts watched after {:.1?}\n", began.elapsed()));

    storm(&site).await;
    let calm = Instant::now();
    let all_told = tokio::time::timeout(CALM, site.calm_down()).await;
    let tally = &site.tally;
    let pushes = site.world.apns.received();
    say(&format!("{tally}, {pushes} pushes; calm after {:.1?}\n", calm.elapsed()));
    let tried = site.stale_tries();
    let most = tried.values().max().copied().unwrap_or_default();
    say(&format!("passwords of {} users changed, tried {most} times at most\n", tried.len()));
    let untold = site.untold();
    assert!(untold.is_empty(), "{} not told of:\n{}", untold.len(), site.log_of(&untold).await);
    assert!(all_told.is_ok(), "it does not become calm: {:?}", site.unrest().await);
    let often = site.users.iter().filter(|user| tried.get(&user.login).is_some_and(|it| *it > 2));
    let often: Vec<_> = often.map(|user| (user, "INBOX")).collect();
    assert!(most <= 2, "tried {most} times:\n{}", site.log_of(&often).await);

    // What the storm had need of goes in its own time.
    let calm = Instant::now();
    loop {
        let after = site.growth().await;
        let said = grown(&before, &after);
        if said.is_none() || calm.elapsed() > CALM {
            say(&format!("before {before:?}\nafter  {after:?}\n"));
            assert_eq!(said, None);
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for (what, count) in [
        ("deliveries", &tally.deliveries),
        ("kills", &tally.kills),
        ("backend", &tally.backend),
        ("apns", &tally.apns),
        ("database", &tally.database),
        ("passwords", &tally.passwords),
        ("read", &tally.read),
    ] {
        assert!(count.load(Relaxed) > 0, "{what}: there was none");
    }
    let events = [&tally.events, &tally.numbered_events, &tally.lost_events];
    let some = events.map(|count| count.load(Relaxed) > 0);
    assert_eq!(some, [with_events; 3], "events taken without numbers, with them, and lost");
}

/// Everything at once, until the time is over.
async fn storm(site: &Arc<Site>) {
    let over = CancellationToken::new();
    let mut streams = JoinSet::new();
    for (number, stream) in [
        faults::mail as fn(Arc<Site>, Chance) -> faults::Stream,
        faults::kills,
        faults::backend,
        faults::apns,
        faults::database,
        users::changed_passwords,
        users::reading,
        users::reading,
        users::reading,
        users::reading,
    ]
    .into_iter()
    .enumerate()
    {
        let chance = Chance::new(site.seed, number);
        streams.spawn(over.clone().run_until_cancelled_owned(stream(site.clone(), chance)));
    }
    tokio::select! {
        // They do not end by themselves, but for a panic.
        Some(ended) = streams.join_next() => { let _ = ended.unwrap(); }
        () = tokio::time::sleep(site.lasts) => {}
    }
    over.cancel();
    while let Some(ended) = streams.join_next().await {
        let _ = ended.unwrap();
    }
}

/// What has grown more than it may.
fn grown(before: &Growth, after: &Growth) -> Option<String> {
    if before.rows != after.rows {
        return Some("a row is a device, a mailbox or an account".to_owned());
    }
    let bounds = [
        // Of what the storm had need of once the allocator keeps some for the next.
        ("KiB of memory", after.memory, before.memory + before.memory / 2 + 32 * 1024),
        // Connections to the database that were made for the storm.
        ("open files", after.open_files as u64, before.open_files as u64 + 32),
        // Those for calls that block end when they have had nothing to do for ten seconds.
        ("threads", after.threads as u64, before.threads as u64 + 8),
    ];
    let (what, is, most) = bounds.into_iter().find(|(_, is, most)| is > most)?;
    Some(format!("{is} {what}, {most} at most"))
}

/// When APNs last took a push for each device and mailbox.
type Told = HashMap<(String, String), Instant>;
