//! Accounts without a connection: what they take on disk and in memory, the start, the sweep after it, and, with
//! `--events`, how long an event of the mail server takes to its answer and to its pushes. On one program or several
//! nodes, in SQLite or in PostgreSQL.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailchime::demo::apns::Apns;
use mailchime::demo::backend::{Counters, DemoBackend};
use mailchime::demo::pki::Pki;
use parking_lot::Mutex;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{
    MAIL, Options, Program, TOPIC, configuration, cpu, device, events, listens, megabytes, memory,
    ms, registrar, start_node, verdict,
};

/// Registrations that are written at once.
const AT_ONCE: usize = 64;

/// The whole of one measurement.
pub(super) struct Site {
    pub(super) folder: TempDir,
    pub(super) backend: DemoBackend,
    pub(super) apns: Arc<Apns>,
    pub(super) accounts: usize,
    /// The number of each token that was pushed, and when.
    pub(super) pushed: Arc<Mutex<Vec<(usize, Instant)>>>,
    pub(super) nodes: Vec<Node>,
}

/// One program, and where it takes events.
pub(super) struct Node {
    pub(super) program: Program,
    pub(super) events: u16,
}

/// What an account takes, in bytes.
struct Size {
    accounts: usize,
    disk: f64,
    memory: f64,
}

/// Measures with `--accounts`, and with `--growth` with a hundredth and a tenth of them first.
pub(super) async fn measure(options: &Options) -> Result<(), Box<dyn Error>> {
    let parts: &[usize] = if options.growth { &[100, 10, 1] } else { &[1] };
    let mut sizes = Vec::new();
    for part in parts {
        let accounts = (options.accounts / part).max(1);
        let store = if options.growth {
            own_store(&options.store, accounts).await?
        } else {
            options.store.clone()
        };
        sizes.extend(measure_with(&Options { store, ..options.clone() }, accounts).await?);
    }
    if sizes.is_empty() {
        return Ok(());
    }
    println!("{} devices each: accounts, bytes an account on disk, in memory", options.devices);
    for Size { accounts, disk, memory } in sizes {
        println!("  {accounts:>7} {disk:>7.0} {memory:>7.0}");
        options.row(&format!("growth-disk-{accounts}"), "bytes", disk)?;
        options.row(&format!("growth-memory-{accounts}"), "bytes", memory)?;
    }
    Ok(())
}

/// A database for so many accounts alone, on the server of this one.
async fn own_store(store: &str, accounts: usize) -> Result<String, Box<dyn Error>> {
    if store == "sqlite" {
        return Ok(store.to_owned());
    }
    let mut database = PgConnection::connect(store).await?;
    let name = format!("accounts_{accounts}");
    sqlx::query(AssertSqlSafe(format!("create database {name}"))).execute(&mut database).await?;
    Ok(store.parse::<PgConnectOptions>()?.database(&name).to_url_lossy().into())
}

async fn measure_with(options: &Options, accounts: usize) -> Result<Option<Size>, Box<dyn Error>> {
    let mut site = Site::new(options, accounts).await?;
    // Several programs share the pages that are the same in all.
    site.start(options).await?;
    sleep(Duration::from_secs(1)).await;
    let empty = memory(&site.nodes[0].program)?;
    site.nodes.clear();

    let disk = disk(options, site.folder.path()).await?;
    site.register(options).await?;
    let disk = self::disk(options, site.folder.path()).await?.saturating_sub(disk);
    let on_disk = disk as f64 / accounts as f64;
    println!("{accounts} accounts: {} MB on disk, {on_disk:.0} bytes each", megabytes(disk));

    site.hear();
    let began = Instant::now();
    let (listening, ready) = site.start(options).await?;
    println!("start: listening after {:.0} ms, ready after {:.0} ms", ms(listening), ms(ready));
    options.row("watched", "ms", ms(listening))?;
    options.row("watched", "ready", ms(ready))?;
    verdict("ms to listening", ms(listening), |ms| ms < 100.0, "under 100");
    verdict("seconds to ready", ready.as_secs_f64(), |s| s < 5.0, "under 5");
    if options.start_only {
        return Ok(None);
    }
    site.sweep(options, began).await?;
    // What was told is forgotten by then.
    sleep(Duration::from_secs(15)).await;
    let mut all = 0;
    for node in &site.nodes {
        let full = memory(&node.program)?;
        all += full.saturating_sub(empty);
        println!(
            "memory: {} MB, of which {} before the accounts",
            megabytes(full),
            megabytes(empty)
        );
        within_memory("MB", full, accounts);
    }
    if options.events {
        events::measure(options, &site).await?;
        for node in &site.nodes {
            let full = memory(&node.program)?;
            println!("memory afterwards: {} MB", megabytes(full));
            within_memory("MB afterwards", full, accounts);
        }
    }
    Ok(Some(Size { accounts, disk: on_disk, memory: all as f64 / accounts as f64 }))
}

/// Says whether so many bytes are within what is wanted of so many accounts.
fn within_memory(what: &str, bytes: u64, accounts: usize) {
    let most = 250.0 * accounts.max(20_000) as f64 / 100_000.0;
    let wanted = format!("under {most:.0}");
    verdict(what, bytes as f64 / f64::from(1 << 20), |mb| mb < most, &wanted);
}

impl Site {
    async fn new(options: &Options, accounts: usize) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let pki = Pki::generate(Some(TOPIC))?;
        pki.write_to(folder.path())?;
        let secret = folder.path().join("events.secret");
        fs::write(&secret, events::SECRET)?;
        fs::set_permissions(&secret, Permissions::from_mode(0o600))?;
        let bind = || TcpListener::bind("127.0.0.1:0");
        let tls = options.tls.then(|| pki.server_config()).transpose()?;
        let backend = DemoBackend::start(bind().await?, tls)?;
        let apns = Arc::new(Apns::start(bind().await?, &pki)?);
        let pushed = Arc::default();
        Ok(Self { folder, backend, apns, accounts, pushed, nodes: Vec::new() })
    }

    /// Starts the nodes; how long it took until all listened, and until all were ready.
    async fn start(&mut self, options: &Options) -> Result<(Duration, Duration), Box<dyn Error>> {
        let (began, mut listening) = (Instant::now(), Duration::ZERO);
        for node in 0..options.nodes {
            let mut ports = [0; 3];
            for port in &mut ports {
                *port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
            }
            let [imap, admin, events] = ports;
            let store = match options.store.as_str() {
                "sqlite" => String::new(),
                url => format!("[store]\nurl = \"{url}\"\n"),
            };
            let more = format!(
                "{store}[node]\nname = \"node{node}\"\n[admin]\naddress = \"127.0.0.1:{admin}\"\n\
                 [events]\naddress = \"127.0.0.1:{events}\"\n[[events.source]]\nname = \"bench\"\n\
                 secret_file = \"events.secret\"\nevents_per_second = 1000000\n"
            );
            let text = configuration(options, imap, &self.backend, &self.apns, &more);
            let file = format!("node{node}.toml");
            fs::write(self.folder.path().join(&file), text)?;
            let program = start_node(self.folder.path(), &file, options)?;
            listens(imap).await?;
            listening = began.elapsed();
            ready(admin).await?;
            self.nodes.push(Node { program, events });
        }
        Ok((listening, began.elapsed()))
    }

    /// Registers the devices of all accounts, each of which has a mail of which they do not know.
    async fn register(&self, options: &Options) -> Result<(), Box<dyn Error>> {
        let url = match options.store.as_str() {
            "sqlite" => None,
            url => Some(url),
        };
        let registrar = Arc::new(registrar(self.folder.path(), &self.backend, url).await?);
        let mut registering = JoinSet::new();
        for number in 0..self.accounts {
            let user = user(number);
            self.backend.add_account(&user, super::PASSWORD.as_bytes());
            self.backend.deliver(&user, "INBOX", MAIL)?;
            for of_user in 0..options.devices {
                let device = device(number + of_user * self.accounts, &user)?;
                let (registrar, user) = (Arc::clone(&registrar), user.clone());
                while registering.len() >= AT_ONCE {
                    registering.join_next().await.ok_or("nothing was to be done")???;
                }
                registering.spawn(async move {
                    let stored = registrar.store_device(&user, device).await;
                    stored.map_err(|error| error.to_string())
                });
            }
        }
        while let Some(registered) = registering.join_next().await {
            registered??;
        }
        registrar.store.close().await;
        if let Some(url) = url {
            // PostgreSQL does so by itself within minutes; until then it plans for tables that are as good as empty.
            sqlx::query("analyze").execute(&mut PgConnection::connect(url).await?).await?;
        }
        Ok(())
    }

    /// Takes note of all pushes from now on.
    fn hear(&self) {
        let (apns, pushed) = (Arc::clone(&self.apns), Arc::clone(&self.pushed));
        tokio::spawn(async move {
            loop {
                let push = apns.next().await;
                let number = push.token.and_then(|token| {
                    usize::from_str_radix(token.to_lowercase().trim_start_matches('0'), 16).ok()
                });
                if let Some(number) = number {
                    pushed.lock().push((number - 1, push.received));
                }
            }
        });
    }

    /// Waits until all accounts were asked for, and all devices pushed.
    async fn sweep(&self, options: &Options, began: Instant) -> Result<(), Box<dyn Error>> {
        let accounts = self.accounts as u64;
        let all = |c: &Counters| c.accepted >= accounts && c.connections == 0;
        timeout(Duration::from_secs(3600), self.backend.wait_until(all)).await?;
        let took = began.elapsed().as_secs_f64();
        let spent: f64 = self.nodes.iter().map(|node| cpu(&node.program).unwrap_or_default()).sum();
        println!(
            "sweep: all asked for {took:.1} s after the start at {} logins a second on each of {} \
             nodes, {:.2} ms of CPU each, with its pushes",
            options.logins_per_second,
            options.nodes,
            spent * 1000.0 / accounts as f64,
        );
        let devices = self.accounts * options.devices;
        let mut pushed = 0;
        for _ in 0..120 {
            pushed =
                self.pushed.lock().iter().map(|(number, _)| *number).collect::<HashSet<_>>().len();
            if pushed >= devices {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        let lost = devices.saturating_sub(pushed) as f64;
        verdict("devices without their push", lost, |lost| lost == 0.0, "none");
        Ok(())
    }
}

/// The user with this number.
pub(super) fn user(number: usize) -> String {
    format!("user{number}@example.org")
}

/// Waits until the program whose `[admin]` has this port is ready.
async fn ready(port: u16) -> Result<(), Box<dyn Error>> {
    let ready = async {
        loop {
            let answer = events::ask(port, "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            if answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    Ok(timeout(Duration::from_secs(60), ready).await?)
}

/// What the database takes on disk, in bytes.
async fn disk(options: &Options, folder: &Path) -> Result<u64, Box<dyn Error>> {
    if options.store != "sqlite" {
        let mut database = PgConnection::connect(&options.store).await?;
        let size = sqlx::query("select pg_database_size(current_database())");
        let size: i64 = size.fetch_one(&mut database).await?.try_get(0)?;
        return Ok(size.unsigned_abs());
    }
    let sizes = ["mailchime.db", "mailchime.db-wal"].map(|name| fs::metadata(folder.join(name)));
    Ok(sizes.into_iter().flatten().map(|file| file.len()).sum())
}

/// How long each push took after the event that it is for, and how many devices missed their last one. A push is for
/// the first event of its user that no push of the device was for; `sent` has the users' events.
pub(super) fn latencies(
    sent: &HashMap<usize, Vec<Instant>>,
    pushed: &[(usize, Instant)],
    (accounts, devices): (usize, usize),
) -> (Vec<Duration>, usize) {
    let mut known: HashMap<usize, usize> = HashMap::new();
    let mut took = Vec::new();
    for (number, at) in pushed {
        let Some(sent) = sent.get(&(number % accounts)) else { continue };
        let known = known.entry(*number).or_default();
        let by_now = sent.partition_point(|sent| sent <= at);
        if *known < by_now {
            took.push(at.saturating_duration_since(sent[*known]));
            *known = by_now;
        }
    }
    let knows = |user: usize, of_user: usize| {
        known.get(&(user + of_user * accounts)).copied().unwrap_or_default()
    };
    let missed = sent.iter().flat_map(|(user, sent)| {
        (0..devices).filter(move |of_user| knows(*user, *of_user) < sent.len())
    });
    (took, missed.count())
}
