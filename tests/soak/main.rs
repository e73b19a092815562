//! The soak: mailchime in front of a real Dovecot for as long as `tests/soak.sh` says, with
//! 300 phones registered, mail coming, being read and deleted, sessions coming and going, and
//! everything restarted, cut off or refused now and then. Then it is calm, and must hold:
//!
//! - **Nothing is lost**: after the last change of each mailbox APNs has taken a push that names
//!   it, and the states in the database, of which the phones know, are those that Dovecot has.
//! - **Nothing grows**: memory, open files, threads, rows and size of the database.
//! - Every byte that sessions read meanwhile was right, and mailchime's log tells of no panic.
//!
//! What happens is drawn from a seed, which is printed and may be given, though not the order in
//! which the machine lets things happen. mailchime is restarted in the first third only, for a
//! restart hides what a program that runs has forgotten, and what it has gathered.
//!
//! It is a program of its own and no test among others: it cannot pass without having been run.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how it fails")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it reports to who started it")]

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Parser;
use mailchime::demo::apns::Answer;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use site::{Growth, Site};
use support::chance::Chance;

mod session;
mod site;
mod streams;
#[allow(dead_code, unused_imports, reason = "the soak needs some of what the tests share")]
#[path = "../integration/support/mod.rs"]
mod support;

const ACCOUNTS: usize = 300;

/// How long after mailchime's last start its memory counts as that of one that is warm.
const WARM_UP: Duration = Duration::from_secs(60);

/// How long what is under way at the end may take, and how long until all devices have their pushes. Where
/// APNs failed at every one of the last tries, the next is a minute away.
const ENDING: Duration = Duration::from_secs(120);
const CALM: Duration = Duration::from_secs(180);

/// Between two looks whether all devices have their pushes.
const LOOK: Duration = Duration::from_millis(500);

/// A soak of mailchime in front of Dovecot
#[derive(Parser)]
struct Options {
    /// How long it goes on, settling not counted
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,

    /// What happens is drawn from this number
    #[arg(long)]
    seed: Option<u32>,

    /// With PostgreSQL instead of SQLite
    #[arg(long)]
    postgres: bool,

    /// Dovecot tells of its mailboxes, and accounts have no connection of their own
    #[arg(long)]
    events: bool,

    /// The mailchime to run
    #[arg(long, value_name = "PATH")]
    program: PathBuf,

    /// Where its log goes at the end
    #[arg(long, value_name = "PATH")]
    log: PathBuf,
}

/// What happened.
#[derive(Default)]
struct Tally {
    deliveries: Count,
    /// Deliveries that Dovecot did not take at once.
    deferred: Count,
    flags: Count,
    pushes: Count,
    /// Pushes that APNs did not take.
    refused: Count,
    sessions: Count,
    lost_sessions: Count,
    cut: Count,
    read: Count,
    /// EXISTS that idle sessions heard.
    news: Count,
    restarts: Count,
    kills: Count,
    dovecot: Count,
    apns: Count,
    passwords: Count,
    reloads: Count,
}

#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self) {
        self.add_all(1);
    }

    fn add_all(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let code = runtime.block_on(async {
        let [mut interrupt, mut terminate] =
            [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).unwrap());
        tokio::select! {
            code = soak(&options) => code,
            _ = interrupt.recv() => ExitCode::from(130),
            _ = terminate.recv() => ExitCode::from(143),
        }
    });
    // With its tasks goes what they hold: mailchime, Dovecot and their folders.
    runtime.shutdown_timeout(Duration::from_secs(30));
    code
}

async fn soak(options: &Options) -> ExitCode {
    let seed = options.seed.unwrap_or_else(rand::random);
    let time = Duration::from_secs(options.minutes * 60);
    let store = if options.postgres { "PostgreSQL" } else { "SQLite" };
    let watched = if options.events { "watched by events" } else { "watched by connections" };
    println!(
        "soak: {} minutes, {ACCOUNTS} accounts {watched}, {store}, --seed {seed}, log in {}",
        options.minutes,
        options.log.display()
    );
    let began = Instant::now();
    let site = Site::start(ACCOUNTS, options).await;
    let Some(site) = site else {
        eprintln!("NOT RUN: there is no server for it on this machine");
        return ExitCode::FAILURE;
    };
    let mut noting = JoinSet::new();
    noting.spawn(site.clone().note_pushes());
    timeout(CALM, settled(&site)).await.expect("the phones know what there is at the start");
    let start = site.growth().await;
    println!("all registered and watched after {:.1?}", began.elapsed());

    let [warm, busy] = go_on(&site, seed, time).await;
    let calm = Instant::now();
    let told = timeout(CALM, told(&site)).await;
    let calm = calm.elapsed();
    let untold = site.untold();
    let mistaken = site.mistaken().await;
    let end = site.growth().await;
    report(&site, options.minutes, calm, untold.len(), [start, warm, busy, end]);

    let mut wrong = Vec::new();
    if told.is_err() {
        let (owed, parked) = site.owed_and_parked().await;
        wrong.push(format!("not calm after {CALM:?}: {owed} marks, {parked} accounts parked"));
    }
    wrong.extend(untold.iter().map(|(user, mailbox)| format!("lost: {mailbox} of {}", user.login)));
    wrong.extend(mistaken);
    wrong.extend(grown([&start, &warm, &busy, &end]));
    wrong.extend(site.keep_log(Path::new(&options.log)).await);
    if wrong.is_empty() {
        println!("all well");
        return ExitCode::SUCCESS;
    }
    println!("FAILED with --seed {seed}:\n  {}", wrong.join("\n  "));
    ExitCode::FAILURE
}

/// Everything at once, until the time is over and what was begun is done. What mailchime takes
/// meanwhile, once it is warm and at the end.
async fn go_on(site: &Arc<Site>, seed: u32, time: Duration) -> [Growth; 2] {
    let began = Instant::now();
    let mut going_on = JoinSet::new();
    for (number, stream) in streams::all().into_iter().enumerate() {
        going_on.spawn(stream(site.clone(), Chance::new(seed, number), time));
    }
    let mut minutes = interval(Duration::from_secs(60));
    let mut warm = None;
    let warm_at = time / 3 + WARM_UP.min(time / 3);
    loop {
        tokio::select! {
            Some(ended) = going_on.join_next() => unwound(ended),
            _ = minutes.tick() => progress(site, began.elapsed(), site.growth().await),
            () = sleep(warm_at.saturating_sub(began.elapsed())), if warm.is_none() => {
                warm = Some(site.growth().await);
            }
            () = sleep(time.saturating_sub(began.elapsed())) => break,
        }
    }
    let busy = site.growth().await;
    progress(site, began.elapsed(), busy);
    site.over.cancel();
    let ending = async {
        while let Some(ended) = going_on.join_next().await {
            unwound(ended);
        }
    };
    timeout(ENDING, ending).await.expect("what is under way at the end is done some time");
    [warm.expect("the warm-up is shorter than the whole"), busy]
}

fn unwound(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        resume_unwind(error.into_panic());
    }
}

/// Ends all faults, and waits until the phones were told of everything.
async fn told(site: &Arc<Site>) {
    site.apns.answer_all(Answer::Accept);
    for user in site.users.iter().filter(|user| user.is_stale()) {
        while streams::log_in(site, user).await.is_err() {
            sleep(LOOK).await;
        }
        user.healed();
    }
    while !site.untold().is_empty() || site.owed_and_parked().await != (0, 0) {
        sleep(LOOK).await;
    }
    settled(site).await;
}

/// Waits until the database says that the phones know what there is.
async fn settled(site: &Arc<Site>) {
    while !site.mistaken().await.is_empty() {
        sleep(LOOK).await;
    }
}

fn progress(site: &Site, since: Duration, growth: Growth) {
    let tally = &site.tally;
    println!(
        "{:>5.1} min: {:>6} deliveries {:>6} pushes {:>6} sessions {:>4} restarts | {:>6.1} MiB \
         {:>4} files {:>3} threads",
        since.as_secs_f64() / 60.0,
        tally.deliveries.get(),
        tally.pushes.get(),
        tally.sessions.get(),
        tally.restarts.get() + tally.kills.get() + tally.dovecot.get(),
        mib(growth.memory),
        growth.open_files,
        growth.threads,
    );
}

fn report(site: &Site, minutes: u64, calm: Duration, lost: usize, growth: [Growth; 4]) {
    let tally = &site.tally;
    let [start, warm, busy, end] = growth;
    let delays = |mailbox: &str| {
        let [half, most, all] = site.delays(mailbox);
        format!("p50 {half:.1?}, p99 {most:.1?}, max {all:.1?}")
    };
    println!("\nafter {minutes} minutes, and {calm:.1?} until all was told:");
    for (what, text) in [
        (
            "deliveries",
            format!("{} ({} tries put off)", tally.deliveries.get(), tally.deferred.get()),
        ),
        ("flag changes", format!("{}", tally.flags.get())),
        ("pushes", format!("{} accepted, {} not", tally.pushes.get(), tally.refused.get())),
        (
            "sessions",
            format!(
                "{}, {} ended by faults, {} cut off; {} messages read, {} EXISTS heard in IDLE",
                tally.sessions.get(),
                tally.lost_sessions.get(),
                tally.cut.get(),
                tally.read.get(),
                tally.news.get(),
            ),
        ),
        (
            "restarts",
            format!(
                "{} of mailchime, {} by SIGKILL, {} of Dovecot",
                tally.restarts.get() + tally.kills.get(),
                tally.kills.get(),
                tally.dovecot.get(),
            ),
        ),
        (
            "other faults",
            format!(
                "{} of APNs, {} passwords changed, {} reloads",
                tally.apns.get(),
                tally.passwords.get(),
                tally.reloads.get(),
            ),
        ),
        ("lost", lost.to_string()),
        ("mail to push", format!("INBOX {}; Notes {}", delays("INBOX"), delays("Notes"))),
        (
            "memory",
            format!(
                "{:.1} MiB at the start; busy, {:.1} MiB when warm after the last restart and {:.1} MiB \
                 at the end; {:.1} MiB when all was told",
                mib(start.memory),
                mib(warm.memory),
                mib(busy.memory),
                mib(end.memory)
            ),
        ),
        ("open files", format!("{} at the start, {} at the end", start.open_files, end.open_files)),
        ("threads", format!("{} at the start, {} at the end", start.threads, end.threads)),
        (
            "database",
            format!(
                "{:.1} MiB at the start, {:.1} MiB at the end, {} rows",
                mib(start.database),
                mib(end.database),
                end.rows
            ),
        ),
    ] {
        println!("  {what:<13} {text}");
    }
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// What has grown, by more than there is a reason for.
fn grown([start, warm, busy, end]: [&Growth; 4]) -> Vec<String> {
    let mut grown = Vec::new();
    let mut check = |what: &str, is: u64, most: u64| {
        if is > most {
            grown.push(format!("{what} has grown to {is}, {most} at most"));
        }
    };
    // When Dovecot is back, all accounts log in at once; the allocator keeps some of that.
    check("memory in KiB", busy.memory.max(end.memory), warm.memory + warm.memory / 4 + 8 * 1024);
    // Connections to the database and to APNs, of which there may be one more or less.
    check("the number of open files", end.open_files as u64, start.open_files as u64 + 8);
    // Those for calls that block end when they have had nothing to do for ten seconds.
    check("the number of threads", end.threads as u64, start.threads as u64 + 8);
    // A row is a device, a mailbox or an account, and none has come.
    check("the number of rows", end.rows.unsigned_abs(), start.rows.unsigned_abs());
    // The rows are the same, but pages are split as they change; and the write-ahead log of SQLite
    // is some 4 MiB before it is begun anew.
    check("the database in KiB", end.database, start.database * 2 + 8 * 1024);
    grown
}
