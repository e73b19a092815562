//! How long `[events]` takes to answer, and an event to its push: accounts without a connection, events with all
//! numbers.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use mailchime::demo::apns::Apns;
use mailchime::demo::backend::{Counters, DemoBackend};
use mailchime::demo::pki::Pki;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, sleep, timeout};

use super::{Options, TOPIC, configure, cpu, memory, ms, register, start, verdict};

/// Connections of the source, each with a request at a time.
const CONNECTIONS: usize = 64;

const SECRET: &str = "correct-horse-battery";

/// Sends `--rate` events a second for `--seconds`, each of the next account.
pub(super) async fn measure(options: &Options) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let pki = Pki::generate(Some(TOPIC))?;
    pki.write_to(folder.path())?;
    let backend = DemoBackend::start(TcpListener::bind("127.0.0.1:0").await?, None)?;
    let apns = Apns::start(TcpListener::bind("127.0.0.1:0").await?, &pki)?;
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let events = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    fs::write(folder.path().join("events.secret"), SECRET)?;
    let more = format!(
        "[events]\naddress = \"127.0.0.1:{events}\"\n[[events.source]]\nname = \"bench\"\n\
         secret_file = \"events.secret\"\nevents_per_second = 1000000\n"
    );
    configure(folder.path(), options, port, &backend, &apns, &more)?;
    register(folder.path(), &backend, options.accounts, options.devices).await?;
    let (program, _) = start(folder.path(), port, options).await?;
    let accounts = options.accounts as u64;
    let swept = |c: &Counters| c.commands.get("LOGOUT").is_some_and(|count| *count >= accounts);
    timeout(Duration::from_secs(600), backend.wait_until(swept)).await?;
    sleep(Duration::from_secs(2)).await;
    println!("{} accounts on demand: {} MB", options.accounts, memory(&program)? >> 20);

    let logins = backend.counters().accepted;
    let before = cpu(&program)?;
    let each = (options.rate * options.seconds) as usize / CONNECTIONS;
    let senders = (0..CONNECTIONS).map(|sender| {
        let (rate, accounts) = (options.rate, options.accounts);
        tokio::spawn(async move { send(events, sender, each, rate, accounts).await })
    });
    let senders: Vec<_> = senders.collect();
    let mut answers = Vec::new();
    for sender in senders {
        answers.extend(sender.await?.map_err(|error| error.to_string())?);
    }
    let sent = answers.len();
    sleep(Duration::from_secs(2)).await;
    let spent = cpu(&program)? - before;
    answers.sort_unstable();
    let percentile = |share: f64| ms(answers[((sent - 1) as f64 * share) as usize]);
    println!(
        "events: {sent} at {} a second, {} pushes, {} logins; answered p50 {:.2} ms, p99 {:.2} ms, max \
         {:.2} ms; {:.2} ms of CPU each, with its push",
        options.rate,
        apns.received(),
        backend.counters().accepted - logins,
        percentile(0.5),
        percentile(0.99),
        percentile(1.0),
        spent * 1000.0 / sent as f64,
    );
    verdict("ms p99 of answers", percentile(0.99), |ms| ms < 50.0, "under 50");
    Ok(())
}

/// One connection's share, evenly; how long each answer took.
async fn send(
    port: u16,
    sender: usize,
    count: usize,
    rate: u32,
    accounts: usize,
) -> Result<Vec<Duration>, std::io::Error> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut tick = interval(Duration::from_secs(CONNECTIONS as u64) / rate);
    let mut took = Vec::with_capacity(count);
    for turn in 0..count {
        tick.tick().await;
        let event = turn * CONNECTIONS + sender;
        // Each time around there is a mail more in the account.
        let (user, mails) = (event % accounts, event / accounts + 1);
        let body = format!(
            "{{\"user\":\"user{user}@example.org\",\"changes\":[{{\"mailbox\":\"INBOX\",\
             \"events\":[\"MessageNew\"],\"uidnext\":{},\"messages\":{mails},\
             \"unseen\":{mails}}}]}}",
            mails + 1
        );
        let request = format!(
            "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let began = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        if !answer.starts_with(b"HTTP/1.1 204") {
            return Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
        }
        took.push(began.elapsed());
    }
    Ok(took)
}
