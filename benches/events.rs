//! How long `[events]` takes to answer, and an event to its pushes: accounts without a connection, events with all
//! numbers.

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{interval_at, sleep};

use super::on_demand::{Site, latencies, user};
use super::{Options, cpu, ms, verdict};

/// Connections of the source, each with a request at a time. They take turns among the nodes.
const CONNECTIONS: usize = 64;

/// The pushes of events that come close together wait for so long.
const SETTLED: Duration = Duration::from_secs(10);

pub(super) const SECRET: &str = "correct-horse-battery";

/// An event: whose, when it was sent, and how long its answer took.
type Sent = (usize, Instant, Duration);

/// Sends `--rate` events a second for `--seconds`, each of the next account.
pub(super) async fn measure(options: &Options, site: &Site) -> Result<(), Box<dyn Error>> {
    let logins = site.backend.counters().accepted;
    let spent =
        || -> f64 { site.nodes.iter().map(|node| cpu(&node.program).unwrap_or_default()).sum() };
    site.pushed.lock().clear();
    let before = spent();
    let each = (options.rate * options.seconds) as usize / CONNECTIONS;
    let senders = (0..CONNECTIONS).map(|sender| {
        let port = site.nodes[sender % site.nodes.len()].events;
        let (rate, accounts) = (options.rate, site.accounts);
        tokio::spawn(async move { send(port, sender, each, rate, accounts).await })
    });
    let senders: Vec<_> = senders.collect();
    let mut all: Vec<Sent> = Vec::new();
    for sender in senders {
        all.extend(sender.await?.map_err(|error| error.to_string())?);
    }
    sleep(SETTLED).await;
    let spent = spent() - before;
    all.sort_unstable_by_key(|(_, sent, _)| *sent);
    let mut of_users: HashMap<usize, Vec<Instant>> = HashMap::new();
    for (user, sent, _) in &all {
        of_users.entry(*user).or_default().push(*sent);
    }
    let pushed = std::mem::take(&mut *site.pushed.lock());
    let (mut pushes, missed) = latencies(&of_users, &pushed, (site.accounts, options.devices));
    let mut answers: Vec<Duration> = all.iter().map(|(_, _, took)| *took).collect();
    answers.sort_unstable();
    pushes.sort_unstable();
    if answers.is_empty() || pushes.is_empty() {
        return Err("there were no events, or no pushes".into());
    }
    let percentile = |of: &[Duration], share: f64| ms(of[((of.len() - 1) as f64 * share) as usize]);
    println!(
        "events: {} at {} a second, {} logins; answered p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; {:.2} ms of \
         CPU each, with its pushes",
        answers.len(),
        options.rate,
        site.backend.counters().accepted - logins,
        percentile(&answers, 0.5),
        percentile(&answers, 0.99),
        percentile(&answers, 1.0),
        spent * 1000.0 / answers.len() as f64,
    );
    verdict("ms p99 of answers", percentile(&answers, 0.99), |ms| ms < 50.0, "under 50");
    println!(
        "pushes: {}; from the event to the push p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        pushes.len(),
        percentile(&pushes, 0.5),
        percentile(&pushes, 0.99),
        percentile(&pushes, 1.0),
    );
    // Two pushes of a device are 5 s apart.
    if site.accounts / options.rate as usize >= 6 {
        verdict("ms p50 of pushes", percentile(&pushes, 0.5), |ms| ms < 5.0, "under 5");
        verdict("ms p99 of pushes", percentile(&pushes, 0.99), |ms| ms < 100.0, "under 100");
    } else {
        println!("  with so few accounts pushes wait for the devices' [push] min_interval");
    }
    verdict("devices without their last push", missed as f64, |it| it == 0.0, "none");
    Ok(())
}

/// One request on a connection of its own; the head of the answer.
pub(super) async fn ask(port: u16, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(request.as_bytes()).await?;
    let head = head(&mut stream).await?;
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(answer)
}

/// One connection's share, evenly; how long each answer took.
async fn send(
    port: u16,
    sender: usize,
    count: usize,
    rate: u32,
    accounts: usize,
) -> Result<Vec<Sent>, std::io::Error> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let began = Instant::now() + Duration::from_secs(sender as u64) / rate;
    let mut tick = interval_at(began.into(), Duration::from_secs(CONNECTIONS as u64) / rate);
    let mut took = Vec::with_capacity(count);
    for turn in 0..count {
        tick.tick().await;
        let event = turn * CONNECTIONS + sender;
        // There was one mail. Each time around there is a mail more in the account.
        let (number, mails) = (event % accounts, event / accounts + 2);
        let user = user(number);
        // The backend gives the mailboxes their UIDVALIDITY in the order in which the accounts were added. Each mail
        // is a change of the mailbox.
        let (uid_validity, uid_next, mod_seq) = (number + 1, mails + 1, mails + 1);
        let body = format!(
            "{{\"user\":\"{user}\",\"changes\":[{{\"mailbox\":\"INBOX\",\
             \"events\":[\"MessageNew\"],\"uidvalidity\":{uid_validity},\"uidnext\":{uid_next},\
             \"messages\":{mails},\"unseen\":{mails},\"highestmodseq\":{mod_seq}}}]}}"
        );
        let request = format!(
            "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let began = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        let answer = head(&mut stream).await?;
        if !answer.starts_with(b"HTTP/1.1 204") {
            return Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
        }
        took.push((number, began, began.elapsed()));
    }
    Ok(took)
}
