//! What watching costs: the time until all accounts are watched after a start, memory and idle CPU,
//! and how long a change takes to its push.
//!
//! The real program runs in a process of its own, with a database that is filled beforehand. The
//! IMAP server and the APNs stand-in run in this one, on the same cores: their share of the time is
//! in every figure but the program's own CPU and memory.
//!
//! `benches/watching.sh --help`

#![expect(clippy::print_stdout, reason = "that is what it is for")]

mod events;
mod on_demand;
mod transports;

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use mailchime::demo::apns::Apns;
use mailchime::demo::backend::DemoBackend;
use mailchime::demo::pki::Pki;
use mailchime::imap::registration::xapple::{DeviceToken, XAppleRegistration};
use mailchime::model::{
    Account, BackendId, Credentials, Mailbox, Registration, SecretKind, Snapshot, Subscription,
    Timestamp,
};
use mailchime::store::{Registrant, Sealed, Store, Vault};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, sleep, timeout};

const HOST: &str = "localhost";
const PASSWORD: &str = "wonderland";
const MAIL: &str = "Subject: hello\r\nFrom: a <b@c>\r\n\r\nHi there\r\n";
const TOPIC: &str = "com.apple.mail.XServer.c171e9f9-1a7b-4a2e-9b0d-6a9f7e1d2c3b";

/// The kernel's unit of CPU time in proc(5), a second's hundredth on Linux.
const TICK: f64 = 0.01;

/// Measures the watching of many accounts on loopback.
#[derive(Clone, Parser)]
struct Options {
    /// Watched accounts, each with INBOX registered.
    #[arg(long, default_value_t = 2000)]
    accounts: usize,
    /// Devices of each account, with `--on-demand` or `--events`.
    #[arg(long, default_value_t = 1)]
    devices: usize,
    /// `watch.logins_per_second`; the program's default is 100.
    #[arg(long, default_value_t = 100_000)]
    logins_per_second: u32,
    /// TLS to the IMAP server.
    #[arg(long)]
    tls: bool,
    /// No connection for each account: measures what they take on disk and in memory, the start, and the sweep, and
    /// ends.
    #[arg(long)]
    on_demand: bool,
    /// The same with a hundredth of the accounts and with a tenth first, each in a database of its own.
    #[arg(long)]
    growth: bool,
    /// With `--on-demand`: ends when the programs are ready.
    #[arg(long, requires = "on_demand")]
    start_only: bool,
    /// Adds what an account takes, or the start with accounts on demand, to this file, as `compare.sh` does.
    #[arg(long)]
    rows: Option<PathBuf>,
    /// With `--on-demand`, `--events` or `--growth`: `sqlite`, or the URL of an empty database of PostgreSQL, beside which
    /// `--growth` creates others.
    #[arg(long, default_value = "sqlite")]
    store: String,
    /// With these: programs that share a database of PostgreSQL.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Mails a second while the latency is measured.
    #[arg(long, default_value_t = 200)]
    changes: u32,
    /// How long idle CPU, latency and each turn of `--transports` are measured, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Measures nothing but what a push costs by Web Push, beside one by APNs.
    #[arg(long)]
    transports: bool,
    /// As `--on-demand`, and then how long events of a mail server take to their answers and to their pushes.
    #[arg(long, conflicts_with = "transports")]
    events: bool,
    /// Mails a second for each transport, or events a second.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// The processors that the program may use, as taskset(1) takes them, such as `0,1`.
    #[arg(long)]
    cores: Option<String>,
}

impl Options {
    /// Adds a number to the file of rows, if there is one, in the form of `compare.sh`.
    fn row(&self, figure: &str, name: &str, number: f64) -> Result<(), Box<dyn Error>> {
        let Some(file) = &self.rows else { return Ok(()) };
        let mut file = fs::OpenOptions::new().create(true).append(true).open(file)?;
        Ok(writeln!(file, "{figure}\tmailchime\t1\t{name}\t{number:.6}")?)
    }
}

/// The program, which is killed when this is dropped.
struct Program(Child);

impl Program {
    /// Lets it end as an administrator does, and waits until it has.
    async fn stop(mut self) -> Result<(), Box<dyn Error>> {
        let pid = self.0.id().to_string();
        Command::new("kill").arg(pid).status()?;
        let began = Instant::now();
        while self.0.try_wait()?.is_none() {
            if began.elapsed() > Duration::from_secs(60) {
                return Err("the program does not end".into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if options.transports {
        return transports::compare(&options).await;
    }
    if options.events || options.on_demand || options.growth {
        return on_demand::measure(&options).await;
    }
    let folder = tempfile::tempdir()?;
    let pki = Pki::generate(Some(TOPIC))?;
    pki.write_to(folder.path())?;
    let tls = options.tls.then(|| pki.server_config()).transpose()?;
    let backend = DemoBackend::start(TcpListener::bind("127.0.0.1:0").await?, tls)?;
    let apns = Apns::start(TcpListener::bind("127.0.0.1:0").await?, &pki)?;
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    configure(folder.path(), &options, port, &backend, &apns, "")?;

    let (program, listening) = start(folder.path(), port, &options).await?;
    sleep(Duration::from_secs(1)).await;
    let empty = memory(&program)?;
    println!("start: listening after {:.0} ms, {} MB resident", ms(listening), megabytes(empty));
    verdict("ms to listening", ms(listening), |ms| ms < 100.0, "under 100");
    verdict("MB resident", empty as f64 / f64::from(1 << 20), |mb| mb < 30.0, "under 30");
    drop(program);

    let accounts = register(folder.path(), &backend, options.accounts).await?;
    let all = |counters: &mailchime::demo::backend::Counters| counters.idling >= options.accounts;
    // Once before: as after any other start the devices know the states of their mailboxes then.
    let (program, _) = start(folder.path(), port, &options).await?;
    timeout(Duration::from_secs(600), backend.wait_until(all)).await?;
    timeout(Duration::from_secs(120), apns.wait_for(options.accounts as u64)).await?;
    program.stop().await?;
    let began = Instant::now();
    let (program, _) = start(folder.path(), port, &options).await?;
    timeout(Duration::from_secs(600), backend.wait_until(all)).await?;
    let took = began.elapsed().as_secs_f64();
    println!(
        "{} accounts ({}): all watched {took:.1} s after the start at {} logins a second, {:.2} ms of CPU each",
        options.accounts,
        if options.tls { "TLS" } else { "plain" },
        options.logins_per_second,
        cpu(&program)? * 1000.0 / options.accounts as f64,
    );
    // At the program's own rate that is a matter of the rate.
    if options.logins_per_second > 1000 {
        let expected = 60.0 * options.accounts as f64 / 10_000.0;
        let wanted = format!("within {expected:.0}");
        verdict("seconds until all are watched", took, |took| took <= expected, &wanted);
    }
    sleep(Duration::from_secs(2)).await;
    let full = memory(&program)?;
    let each = full.saturating_sub(empty) as f64 / options.accounts as f64 / 1024.0;
    println!("memory: {} MB, {each:.1} KB an account", megabytes(full));
    let (figure, most) = if options.tls { ("held-tls", 9.0) } else { ("held", 4.5) };
    options.row(figure, "kb", each)?;
    verdict("KB an account", each, |each| each <= most, &format!("at most {most}"));

    let before = cpu(&program)?;
    sleep(Duration::from_secs(options.seconds.into())).await;
    let idle = (cpu(&program)? - before) / f64::from(options.seconds);
    println!("idle: {:.2} % of a core", idle * 100.0);
    verdict("% of a core", idle * 100.0, |idle| idle < 1.0, "under 1");

    latency(&options, &program, &backend, &apns, &accounts).await?;
    burst(&program, &backend, &apns, &accounts).await?;
    println!("memory afterwards: {} MB", megabytes(memory(&program)?));
    Ok(())
}

fn configure(
    folder: &Path,
    options: &Options,
    port: u16,
    backend: &DemoBackend,
    apns: &Apns,
    more: &str,
) -> Result<(), Box<dyn Error>> {
    Ok(fs::write(folder.join("proxy.toml"), configuration(options, port, backend, apns, more))?)
}

/// The configuration of a program that listens on this port.
fn configuration(
    options: &Options,
    port: u16,
    backend: &DemoBackend,
    apns: &Apns,
    more: &str,
) -> String {
    let tls = match options.tls {
        true => "tls = \"implicit\"\nca = \"ca.pem\"",
        false => "tls = \"none\"",
    };
    format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\n\
         [tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
         [backend]\naddress = \"{HOST}:{}\"\n{tls}\n\
         [watch]\nlogins_per_second = {}\nconnection = \"{}\"\n\
         [apns]\nendpoint = \"https://localhost:{}\"\nca = \"ca.pem\"\n\
         certificate = \"apns.pem\"\nprivate_key = \"apns.key\"\n{more}\
         [log]\nlevel = \"info\"\n",
        backend.address().port(),
        options.logins_per_second,
        if options.on_demand || options.events || options.growth { "on_demand" } else { "held" },
        apns.address().port(),
    )
}

/// The program that was built in the same way as this one: examples are in a folder beside it.
fn program() -> Result<PathBuf, Box<dyn Error>> {
    let here = env::current_exe()?;
    let folder = here.parent().and_then(Path::parent).ok_or("no folder")?;
    Ok(folder.join("mailchime"))
}

/// Says what was measured, and whether that is good enough.
fn verdict(what: &str, measured: f64, is_within: impl Fn(f64) -> bool, wanted: &str) {
    let reached = if is_within(measured) { "reached" } else { "MISSED" };
    println!("  {reached:>7}: {what} {measured:.1}, wanted {wanted}");
}

/// Starts the program; how long it took until it listened.
async fn start(
    folder: &Path,
    port: u16,
    options: &Options,
) -> Result<(Program, Duration), Box<dyn Error>> {
    let began = Instant::now();
    let program = start_node(folder, "proxy.toml", options)?;
    listens(port).await?;
    Ok((program, began.elapsed()))
}

/// Waits until somebody listens at this port of loopback.
async fn listens(port: u16) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if began.elapsed() > Duration::from_secs(30) {
            return Err("the program does not listen".into());
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Starts the program with this configuration.
fn start_node(folder: &Path, config: &str, options: &Options) -> Result<Program, Box<dyn Error>> {
    let mut command = match &options.cores {
        None => Command::new(program()?),
        Some(cores) => {
            let mut command = Command::new("taskset");
            command.args(["-c", cores]).arg(program()?);
            command
        }
    };
    let child = command
        .args(["serve", "--config", config])
        .current_dir(folder)
        .stdin(Stdio::null())
        .spawn()?;
    Ok(Program(child))
}

/// Fills the program's database.
struct Registrar {
    store: Store,
    vault: Vault,
    backend: BackendId,
}

/// Of the database at `url`, or of the file in the folder.
async fn registrar(
    folder: &Path,
    backend: &DemoBackend,
    url: Option<&str>,
) -> Result<Registrar, Box<dyn Error>> {
    let file = || format!("sqlite://{}", folder.join("mailchime.db").display());
    let url = url.map_or_else(file, str::to_owned);
    let key_file = folder.join("mailchime.key");
    let store = Store::open(&url.parse()?, Duration::from_secs(5)).await?.sealing(&key_file);
    let vault = Vault::open(&key_file)?;
    // As the configuration names it: accounts of another backend are parked.
    let backend = BackendId::new(None, HOST, backend.address().port());
    Ok(Registrar { store, vault, backend })
}

impl Registrar {
    /// A new user, for whom this subscription counts.
    async fn register(
        &self,
        backend: &DemoBackend,
        user: &str,
        subscription: Subscription,
    ) -> Result<(), Box<dyn Error>> {
        backend.add_account(user, PASSWORD.as_bytes());
        self.store_device(user, subscription).await
    }

    /// The same for a user whom the backend has.
    async fn store_device(
        &self,
        user: &str,
        subscription: Subscription,
    ) -> Result<(), Box<dyn Error>> {
        let credentials = Credentials::new(user.to_owned(), SecretKind::Password, PASSWORD.into());
        let text = self.vault.seal(&credentials.account(), &credentials);
        let sealed = Sealed { text, until: None };
        let mailboxes = vec![(Mailbox::inbox(), Snapshot::default())];
        let registration = Registration { subscription, mailboxes };
        let now = Timestamp::now();
        let login = Registrant::new(&self.backend, now, Some(&sealed));
        self.store.register(&registration, login, 10, now).await?;
        Ok(())
    }
}

/// The iPhone of the user with this number.
fn device(number: usize, user: &str) -> Result<Subscription, Box<dyn Error>> {
    // Apple takes 64 zeros for no token.
    let token = format!("{:064x}", number + 1);
    let registration = XAppleRegistration {
        version: 2,
        account_id: "0715A26B-CA09-4730-A419-793000CA982E".into(),
        token: DeviceToken::new(&token).ok_or("no token")?,
        subtopic: "com.apple.mobilemail".into(),
        mailboxes: Vec::new(),
    };
    Ok(registration.subscription(Account::from_login(user), TOPIC))
}

/// Gives each account a device; the account by the device's token.
async fn register(
    folder: &Path,
    backend: &DemoBackend,
    accounts: usize,
) -> Result<HashMap<String, String>, Box<dyn Error>> {
    let registrar = registrar(folder, backend, None).await?;
    let mut by_token = HashMap::new();
    for number in 0..accounts {
        let user = format!("user{number}@example.org");
        let device = device(number, &user)?;
        by_token.insert(device.endpoint.as_given().to_owned(), user.clone());
        registrar.register(backend, &user, device).await?;
    }
    registrar.store.close().await;
    Ok(by_token)
}

/// Mails one after the other, evenly, each for another account.
async fn latency(
    options: &Options,
    program: &Program,
    backend: &DemoBackend,
    apns: &Apns,
    accounts: &HashMap<String, String>,
) -> Result<(), Box<dyn Error>> {
    let earlier = apns.received();
    let before = cpu(program)?;
    let mails = (options.changes * options.seconds) as usize;
    let mut tick = interval(Duration::from_secs(1) / options.changes);
    let mut delivered: HashMap<&str, Vec<Instant>> = HashMap::new();
    let in_turn: Vec<_> = accounts.iter().collect();
    for (token, user) in in_turn.iter().cycle().take(mails) {
        tick.tick().await;
        delivered.entry(token).or_default().push(Instant::now());
        backend.deliver(user, "INBOX", MAIL)?;
    }
    // Mails for one account that come close together share a push.
    let once = mails.min(accounts.len()) as u64;
    timeout(Duration::from_secs(60), apns.wait_for(earlier + once)).await?;
    sleep(Duration::from_secs(1)).await;
    let spent = cpu(program)? - before;
    let mut latencies = Vec::new();
    for push in apns.pushes().iter().skip(earlier as usize) {
        let token = push.token.as_ref().map(DeviceToken::to_lowercase).unwrap_or_default();
        let sent = delivered.get_mut(token.as_str()).filter(|sent| !sent.is_empty());
        if let Some(sent) = sent {
            latencies.push(push.received.saturating_duration_since(sent.remove(0)));
        }
    }
    latencies.sort_unstable();
    let percentile = |share: f64| ms(latencies[((latencies.len() - 1) as f64 * share) as usize]);
    println!(
        "push: {mails} mails at {} a second, {} pushes; from the mail to the request at the stand-in \
         p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; {:.2} ms of CPU each",
        options.changes,
        latencies.len(),
        percentile(0.5),
        percentile(0.99),
        percentile(1.0),
        spent * 1000.0 / mails as f64,
    );
    verdict("ms p50", percentile(0.5), |ms| ms < 2.0, "under 2");
    verdict("ms p99", percentile(0.99), |ms| ms < 20.0, "under 20");
    Ok(())
}

/// A mail for every account at once.
async fn burst(
    program: &Program,
    backend: &DemoBackend,
    apns: &Apns,
    accounts: &HashMap<String, String>,
) -> Result<(), Box<dyn Error>> {
    // The pauses after the pushes before are over.
    sleep(Duration::from_secs(6)).await;
    let (earlier, before, began) = (apns.received(), cpu(program)?, Instant::now());
    let links = apns.connections();
    for user in accounts.values() {
        backend.deliver(user, "INBOX", MAIL)?;
    }
    let all = apns.wait_for(earlier + accounts.len() as u64);
    if timeout(Duration::from_secs(60), all).await.is_err() {
        return Err(format!("only {} pushes", apns.received() - earlier).into());
    }
    let took = began.elapsed().as_secs_f64();
    println!(
        "burst: {} mails at once, all pushed after {took:.2} s: {:.0} pushes a second over {} \
         connection(s), {:.3} ms of CPU each",
        accounts.len(),
        accounts.len() as f64 / took,
        1 + apns.connections() - links,
        (cpu(program)? - before) * 1000.0 / accounts.len() as f64,
    );
    let rate = accounts.len() as f64 / took;
    verdict("pushes a second", rate, |rate| rate >= 5000.0, "at least 5000");
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// The program's own share of memory (PSS, proc(5)), in bytes.
fn memory(program: &Program) -> Result<u64, Box<dyn Error>> {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", program.0.id()))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// CPU that the program has used, in seconds.
fn cpu(program: &Program) -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", program.0.id()))?;
    // Behind the name, which is in parentheses: user and system time are the fields 14 and 15.
    let fields = stat.rsplit_once(')').ok_or("no name")?.1;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(ticks.sum::<Result<u64, _>>()? as f64 * TICK)
}
