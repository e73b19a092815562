//! One figure of one server: `NAME<tab>NUMBER` on each line of the output.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::task::JoinSet;

use crate::client::{self, Session};
use crate::{processes, server};

/// How many sessions are opened at once where thousands are.
const OPENING: usize = 64;

/// A session that is just to be there needs no more, in bytes.
const SMALL: usize = 8 * 1024;

/// Read at a time where it matters how fast, in bytes.
const LARGE: usize = 256 * 1024;

/// From one FETCH of a phone to its next.
const EVERY: Duration = Duration::from_secs(5);

/// Nothing here takes as long; who does is stuck.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    figure: Figure,
    /// The server
    #[arg(long)]
    to: SocketAddr,
    /// The processes whose CPU time and memory count, with their children
    #[arg(long, required = true)]
    pid: Vec<u32>,
    /// At once
    #[arg(long, default_value_t = 1)]
    pub(crate) sessions: usize,
    /// For how long
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Which message to fetch; the synthetic server has one of so many KiB
    #[arg(long, default_value_t = 16 * 1024)]
    message: usize,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Figure {
    /// Messages read
    Fetch,
    /// Messages read, compressed
    Compress,
    /// Messages written
    Append,
    /// The shortest command and its answer
    Noop,
    /// Connections that log in and out
    Login,
    /// The same, with tickets of the connection before
    Resume,
    /// Memory of sessions that wait in IDLE
    Idle,
    /// Sessions that fetch a message every few seconds
    Phones,
}

pub(crate) async fn run(options: Options) {
    let measured = async {
        match options.figure {
            Figure::Fetch | Figure::Compress | Figure::Append | Figure::Noop => {
                commands(&options).await
            }
            Figure::Login | Figure::Resume => logins(&options).await,
            Figure::Idle => idle(&options).await,
            Figure::Phones => phones(&options).await,
        }
    };
    match tokio::time::timeout(PATIENCE, measured).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => fail(&error.to_string()),
        Err(_) => fail("not done in time"),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("load: {why}");
    std::process::exit(1)
}

fn say(name: &str, value: f64) {
    println!("{name}\t{value:.6}");
}

/// One command after the other on each session, until the time is over.
async fn commands(options: &Options) -> io::Result<()> {
    let (figure, message) = (options.figure, options.message);
    let text: Arc<[u8]> = server::text(1024 * 1024).into();
    let tls = client::tls(false);
    let mut sessions = Vec::new();
    for user in 0..options.sessions {
        let size = if matches!(figure, Figure::Noop) { SMALL } else { LARGE };
        let mut session = Session::connect(options.to, &tls, size).await?;
        session.login(user).await?;
        session.command(b"a SELECT INBOX\r\n").await?;
        if matches!(figure, Figure::Compress) {
            session.compress().await?;
        }
        sessions.push(session);
    }
    for session in &mut sessions {
        once(session, figure, message, &text).await?;
    }
    let (cpu, began) = (processes::cpu_seconds(&options.pid), Instant::now());
    let until = began + Duration::from_secs_f64(options.seconds);
    let mut tasks = JoinSet::new();
    for mut session in sessions {
        let text = Arc::clone(&text);
        tasks.spawn(async move {
            let (mut octets, mut took) = (0, Vec::new());
            loop {
                let start = Instant::now();
                if start >= until && !took.is_empty() {
                    return Ok::<_, io::Error>((session, octets, took));
                }
                octets += once(&mut session, figure, message, &text).await?;
                took.push(start.elapsed());
            }
        });
    }
    let (mut octets, mut took, mut sessions) = (0, Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (session, more, times) = done.unwrap()?;
        octets += more;
        took.extend(times);
        sessions.push(session);
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = processes::cpu_seconds(&options.pid) - cpu;
    let count = took.len() as f64;
    if !matches!(figure, Figure::Noop) {
        let megabytes = octets as f64 / 1e6;
        say("rate", megabytes / seconds);
        say("cpu", cpu / (megabytes / 1e3));
    } else {
        say("rate", count / seconds);
        say("cpu", cpu / count * 1e6);
    }
    percentiles(&mut took);
    Ok(())
}

/// Carries out one command; returns the bytes of the message that went either way.
async fn once(
    session: &mut Session,
    figure: Figure,
    message: usize,
    text: &[u8],
) -> io::Result<u64> {
    match figure {
        Figure::Append => {
            session.append(message * 1024, text).await?;
            Ok(message as u64 * 1024)
        }
        Figure::Noop => session.command(b"a NOOP\r\n").await,
        _ => session.command(format!("a FETCH {message} BODY[]\r\n").as_bytes()).await,
    }
}

/// In µs.
fn percentiles(took: &mut [Duration]) {
    took.sort_unstable();
    for (name, part) in [("p50", 0.50), ("p99", 0.99)] {
        say(name, took[(took.len() as f64 * part) as usize].as_secs_f64() * 1e6);
    }
}

async fn logins(options: &Options) -> io::Result<()> {
    let resume = matches!(options.figure, Figure::Resume);
    let (cpu, began) = (processes::cpu_seconds(&options.pid), Instant::now());
    let until = began + Duration::from_secs_f64(options.seconds);
    let mut tasks = JoinSet::new();
    for user in 0..options.sessions {
        // Each has its own tickets, as each phone has.
        let tls = client::tls(resume);
        let to = options.to;
        tasks.spawn(async move {
            let (mut took, mut resumed) = (Vec::new(), 0);
            while Instant::now() < until {
                let start = Instant::now();
                let mut session = Session::connect(to, &tls, SMALL).await?;
                session.login(user).await?;
                resumed += usize::from(session.is_resumed());
                session.command(b"a LOGOUT\r\n").await?;
                session.end().await;
                took.push(start.elapsed());
            }
            Ok::<_, io::Error>((took, resumed))
        });
    }
    let (mut took, mut resumed) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (times, more) = done.unwrap()?;
        took.extend(times);
        resumed += more;
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = processes::cpu_seconds(&options.pid) - cpu;
    let count = took.len() as f64;
    say("rate", count / seconds);
    say("cpu", cpu / count * 1e3);
    say("resumed", resumed as f64 / count);
    percentiles(&mut took);
    Ok(())
}

/// Opens that many sessions in INBOX; `ready` prepares each.
async fn opened<F: Future<Output = io::Result<Session>> + Send + 'static>(
    options: &Options,
    ready: impl Fn(Session) -> F + Copy + Send + 'static,
) -> io::Result<Vec<Session>> {
    let tls: Arc<ClientConfig> = client::tls(false);
    let (next, total, to) = (Arc::new(AtomicUsize::new(0)), options.sessions, options.to);
    let mut tasks = JoinSet::new();
    for _ in 0..OPENING.min(total) {
        let (next, tls) = (Arc::clone(&next), Arc::clone(&tls));
        tasks.spawn(async move {
            let mut sessions = Vec::new();
            loop {
                let user = next.fetch_add(1, Ordering::Relaxed);
                if user >= total {
                    return Ok::<_, io::Error>(sessions);
                }
                let mut session = Session::connect(to, &tls, SMALL).await?;
                session.login(user).await?;
                session.command(b"a SELECT INBOX\r\n").await?;
                sessions.push(ready(session).await?);
            }
        });
    }
    let mut sessions = Vec::new();
    while let Some(opened) = tasks.join_next().await {
        sessions.extend(opened.unwrap()?);
    }
    Ok(sessions)
}

/// Each session fetches a message every [`EVERY`], in its own moment of that time.
async fn phones(options: &Options) -> io::Result<()> {
    let (before, message) = (processes::pss(&options.pid), options.message);
    let sessions = opened(options, |session| async { Ok(session) }).await?;
    let total = sessions.len();
    let (cpu, began) = (processes::cpu_seconds(&options.pid), tokio::time::Instant::now());
    let until = began + Duration::from_secs_f64(options.seconds);
    let mut tasks = JoinSet::new();
    for (place, mut session) in sessions.into_iter().enumerate() {
        tasks.spawn(async move {
            let mut took = Vec::new();
            let mut next = began + EVERY.mul_f64(place as f64 / total as f64);
            while next < until {
                tokio::time::sleep_until(next).await;
                let start = Instant::now();
                session.command(format!("a FETCH {message} BODY[]\r\n").as_bytes()).await?;
                took.push(start.elapsed());
                next += EVERY;
            }
            tokio::time::sleep_until(until).await;
            Ok::<_, io::Error>((session, took))
        });
    }
    let (mut took, mut sessions) = (Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (session, times) = done.unwrap()?;
        took.extend(times);
        sessions.push(session);
    }
    let cpu = processes::cpu_seconds(&options.pid) - cpu;
    let after = processes::pss(&options.pid);
    say("rate", took.len() as f64 / options.seconds);
    say("cpu", cpu / took.len() as f64 * 1e6);
    say("kib", after.saturating_sub(before) as f64 / total as f64);
    percentiles(&mut took);
    Ok(())
}

async fn idle(options: &Options) -> io::Result<()> {
    let (before, total) = (processes::pss(&options.pid), options.sessions);
    let sessions = opened(options, |mut session| async {
        session.idle().await?;
        Ok(session)
    });
    let sessions = sessions.await?;
    // What is let go of after a while is not held while idle.
    tokio::time::sleep(Duration::from_secs_f64(options.seconds)).await;
    let cpu = processes::cpu_seconds(&options.pid);
    let after = processes::pss(&options.pid);
    say("kib", after.saturating_sub(before) as f64 / total as f64);
    say("base", before as f64 / 1024.0);
    say("all", after as f64 / total as f64);
    tokio::time::sleep(Duration::from_secs(1)).await;
    say("percent", (processes::cpu_seconds(&options.pid) - cpu) * 100.0);
    drop(sessions);
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(crate) struct Start {
    /// Where it will listen
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 5)]
    runs: usize,
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

pub(crate) fn start(options: &Start) {
    for _ in 0..options.runs {
        let began = Instant::now();
        let mut child = Command::new(&options.program[0])
            .args(&options.program[1..])
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        while TcpStream::connect(options.to).is_err() {
            if child.try_wait().unwrap().is_some() || began.elapsed() > PATIENCE {
                fail("the program does not listen");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        say("ms", began.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_secs(1));
        say("mib", processes::rss(child.id()) as f64 / 1024.0);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
