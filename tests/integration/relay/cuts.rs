//! What a client hears through mailchime is what it hears from the real server, wherever its packets
//! are cut, however fast it goes on, and in whatever pieces the server answers.
//!
//! Each script is played twice in the same pieces: to Dovecot itself, and through mailchime. What was
//! heard must be the same. `MAILCHIME_CUTS` is for how many seconds; without it there are few. When
//! each place was cut once, several are cut at a time.

mod scripts;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mailchime::demo::replay::Proxy;
use mailchime::net::stream::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use self::scripts::Part::{GoAhead, Say, Until};
use self::scripts::{REGISTER, REGISTRATION, SCRIPTS};
use crate::support::dialogues::{proxy, push_offer};
use crate::support::listener;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::times::without_times;
use crate::support::servers::{ALICE, mail};

/// For how long places are cut in each run of the tests, in seconds.
const FEW: u64 = 12;

/// How long an answer may take before it counts as none.
const LIMIT: Duration = Duration::from_secs(60);

/// For how long an answer to half a packet is waited for, which may not come.
const QUIET: Duration = Duration::from_millis(4);

/// Sessions at a time.
const WORKERS: usize = 4;

/// Where and how the packets of a script are cut.
#[derive(Clone, Debug)]
struct Cuts {
    script: usize,
    /// Bytes before each, of all that is said.
    at: Vec<usize>,
    /// The client waits at each of them for an answer.
    waits: bool,
    /// The server's answers come byte by byte.
    bytes: bool,
}

/// A client's connection, and all that it heard.
struct Client {
    stream: Stream,
    heard: Vec<u8>,
    /// How much of it was looked at.
    seen: usize,
    ended: bool,
}

impl Client {
    fn new(stream: Stream) -> Self {
        Self { stream, heard: Vec::new(), seen: 0, ended: false }
    }

    async fn say(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).await.is_err() || self.stream.flush().await.is_err() {
            self.ended = true;
        }
    }

    /// Hears more; whether it did, in this time.
    async fn more(&mut self, within: Duration) -> bool {
        if self.ended {
            return false;
        }
        match tokio::time::timeout(within, self.stream.fill(&mut self.heard)).await {
            Ok(Ok(1..)) => true,
            Ok(_) => {
                self.ended = true;
                false
            }
            Err(_) => false,
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            let rest = &self.heard[self.seen..];
            if let Some(feed) = rest.iter().position(|b| *b == b'\n') {
                let line = String::from_utf8_lossy(&rest[..=feed]).into_owned();
                self.seen += feed + 1;
                return Some(line);
            }
            if !self.more(LIMIT).await {
                let why = if self.ended { "[the end]" } else { "[nothing]" };
                self.heard.extend_from_slice(why.as_bytes());
                return None;
            }
        }
    }

    /// Whether a go-ahead comes, and not the answer to `tag` or a refusal.
    async fn go_ahead(&mut self, tag: &str) -> bool {
        let tagged = format!("{tag} ");
        loop {
            let from = self.seen;
            match self.line().await {
                Some(line) if line.starts_with('+') => return true,
                // To be heard again by who waits for it.
                Some(line) if line.starts_with(&tagged) => {
                    self.seen = from;
                    return false;
                }
                Some(line) if line.starts_with("* BYE") => return false,
                Some(_) => {}
                None => return false,
            }
        }
    }

    async fn until(&mut self, tag: &str) -> bool {
        let tagged = format!("{tag} ");
        while let Some(line) = self.line().await {
            if line.starts_with(&tagged) {
                return true;
            }
        }
        false
    }
}

/// Plays a script; `registers` if it does so at mailchime. All that was heard, and whether the
/// connection goes on.
async fn play(client: &mut Client, cuts: &Cuts, registers: bool) -> (String, bool) {
    let (parts, registration) =
        (SCRIPTS[cuts.script].parts, if registers { REGISTRATION } else { "" });
    (client.heard, client.seen) = (Vec::new(), 0);
    let mut said = 0;
    let mut skips = false;
    let mut whole = true;
    let last = [Say("z NOOP\r\n"), Until("z")];
    let mut at = cuts.at.iter().copied().peekable();
    for (index, part) in parts.iter().chain(&last).enumerate() {
        match part {
            Say(text) => {
                // Where a cut is in what only one of the two hears, it is before that.
                let from = said;
                said += text.replace(REGISTER, REGISTRATION).len();
                if skips {
                    while at.next_if(|cut| *cut < said).is_some() {}
                    continue;
                }
                let mut begins = from;
                for (place, piece) in text.split(REGISTER).enumerate() {
                    if place > 0 {
                        pieces(client, registration, begins, &mut at, cuts.waits, registers).await;
                        begins += REGISTRATION.len();
                    }
                    pieces(client, piece, begins, &mut at, cuts.waits, true).await;
                    begins += piece.len();
                }
            }
            GoAhead => {
                let tags = parts[index..].iter();
                let tag = tags.clone().find_map(|part| match part {
                    Until(tag) => Some(*tag),
                    _ => None,
                });
                skips = !client.go_ahead(tag.unwrap_or("z")).await;
            }
            Until(tag) => {
                skips = false;
                whole &= client.until(tag).await;
                if !whole {
                    break;
                }
            }
        }
    }
    (normal(&client.heard), whole && !client.ended)
}

/// Says a text in its pieces.
async fn pieces(
    client: &mut Client,
    text: &str,
    begins: usize,
    at: &mut std::iter::Peekable<impl Iterator<Item = usize>>,
    waits: bool,
    counts: bool,
) {
    let mut from = 0;
    let ends = begins + if counts { text.len() } else { REGISTRATION.len() };
    while let Some(cut) = at.next_if(|cut| *cut < ends) {
        let to = if counts { cut.saturating_sub(begins).max(from) } else { 0 };
        client.say(&text.as_bytes()[from..to]).await;
        from = to;
        if waits {
            while client.more(QUIET).await {}
        }
    }
    client.say(&text.as_bytes()[from..]).await;
}

/// What was heard without times, numbers of messages, capabilities and what is mailchime's own.
fn normal(heard: &[u8]) -> String {
    let mut lines = String::new();
    for line in String::from_utf8_lossy(heard).split_inclusive("\r\n") {
        if line.starts_with("* XAPPLEPUSHSERVICE ")
            || line == "reg OK XAPPLEPUSHSERVICE completed\r\n"
        {
            continue;
        }
        let mut line = without_times(line);
        for (start, end) in [("[APPENDUID ", "]"), ("[CAPABILITY ", "] ")] {
            if let Some((before, after)) = line.split_once(start)
                && let Some((_, after)) = after.split_once(end)
            {
                line = format!("{before}{after}");
            }
        }
        lines += &line;
    }
    lines
}

/// How often mailchime has answered the registrations of a script.
fn registrations(heard: &[u8]) -> usize {
    String::from_utf8_lossy(heard).matches("reg OK XAPPLEPUSHSERVICE completed\r\n").count()
}

struct Site {
    dovecot: SocketAddr,
    /// Whose backend answers as it does, and byte by byte.
    proxies: [Proxy; 2],
    places: Vec<Cuts>,
    next: AtomicUsize,
    ends: Instant,
    random: AtomicU64,
    registered: AtomicUsize,
}

impl Site {
    /// The next cuts, as long as there is time.
    fn next(&self) -> Option<Cuts> {
        // Some at least, however slow all is.
        let enough = self.next.load(Ordering::Relaxed) > 30 + WORKERS
            && self.registered.load(Ordering::Relaxed) > 0;
        if enough && Instant::now() > self.ends {
            return None;
        }
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(cuts) = self.places.get(next) {
            return Some(cuts.clone());
        }
        // Each place was cut by itself.
        let mut cuts = self.places[self.random() % self.places.len()].clone();
        let length: usize = length(cuts.script);
        for _ in 0..1 + self.random() % 5 {
            cuts.at.push(self.random() % length);
        }
        cuts.at.sort_unstable();
        Some(cuts)
    }

    fn random(&self) -> usize {
        // SplitMix64
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 8) as usize
    }

    async fn connect(&self, proxied: Option<bool>, fresh: bool) -> Client {
        let mut client = Client::new(match proxied {
            None => {
                let stream = TcpStream::connect(self.dovecot).await.unwrap();
                stream.set_nodelay(true).unwrap();
                Stream::Plain(stream)
            }
            Some(bytes) => {
                let proxy = &self.proxies[usize::from(bytes)];
                Stream::Client(Box::new(proxy.connect().await.unwrap()))
            }
        });
        client.line().await.expect("a greeting");
        if !fresh {
            client.say(format!("l LOGIN {} \"{}\"\r\n", ALICE.0, ALICE.1).as_bytes()).await;
            assert!(client.until("l").await);
        }
        client
    }

    /// Plays scripts until the time is over; what differed.
    async fn work(self: Arc<Self>) -> Vec<String> {
        let mut differences = Vec::new();
        let mut clients: [Option<Client>; 3] = [None, None, None];
        while let Some(cuts) = self.next() {
            let script = &SCRIPTS[cuts.script];
            let proxied = 1 + usize::from(cuts.bytes);
            let mut heard = Vec::new();
            for (place, through) in [(0, None), (proxied, Some(cuts.bytes))] {
                if script.fresh {
                    clients[place] = None;
                }
                let mut client = match clients[place].take() {
                    Some(client) => client,
                    None => self.connect(through, script.fresh).await,
                };
                let (text, goes_on) = play(&mut client, &cuts, through.is_some()).await;
                assert!(through.is_some() || !text.contains("[nothing]"), "{cuts:?}: {text}");
                if through.is_some() {
                    self.registered.fetch_add(registrations(&client.heard), Ordering::Relaxed);
                }
                heard.push(text);
                clients[place] = goes_on.then_some(client);
            }
            if heard[0] != heard[1] {
                let [direct, through] =
                    [&heard[0], &heard[1]].map(|text| text.replace('\n', "\n    "));
                differences.push(format!(
                    "{cuts:?}\n  directly\n    {direct}\n  through mailchime\n    {through}"
                ));
                clients = [None, None, None];
                if differences.len() >= 10 {
                    break;
                }
            }
        }
        differences
    }
}

/// Bytes that a client says in all of a script.
fn length(script: usize) -> usize {
    let said = SCRIPTS[script].parts.iter();
    said.map(
        |part| if let Say(text) = part { text.replace(REGISTER, REGISTRATION).len() } else { 0 },
    )
    .sum()
}

/// Whether the place is in the arguments of a registration, of which some do for all.
fn is_inside_registration(script: usize, at: usize) -> bool {
    let mut begins = 0;
    for part in SCRIPTS[script].parts {
        let Say(text) = part else { continue };
        let text = text.replace(REGISTER, REGISTRATION);
        for (place, _) in text.match_indices(REGISTRATION) {
            let inside = at.saturating_sub(begins + place);
            if (25..REGISTRATION.len() - 3).contains(&inside) && inside % 41 != 0 {
                return true;
            }
        }
        begins += text.len();
    }
    false
}

/// Each place of each script in each way, in an order that has something of everything at its start.
fn places() -> Vec<Cuts> {
    let mut places = Vec::new();
    for script in 0..SCRIPTS.len() {
        for at in (0..length(script)).filter(|at| !is_inside_registration(script, *at)) {
            for (waits, bytes) in [(true, false), (true, true), (false, false), (false, true)] {
                places.push(Cuts { script, at: vec![at], waits, bytes });
            }
        }
    }
    // A step that has no divisor in common with any number that is not a multiple of it.
    let step = 7919;
    assert!(places.len() % step != 0);
    (0..places.len()).map(|index| places[index * step % places.len()].clone()).collect()
}

/// In front of Dovecot: says what it says byte by byte.
async fn byte_by_byte(dovecot: SocketAddr) -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let server = TcpStream::connect(dovecot).await.unwrap();
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let down = async {
                    let mut heard = [0; 4096];
                    while let Ok(length @ 1..) = from_server.read(&mut heard).await {
                        for byte in &heard[..length] {
                            if to_client.write_all(&[*byte]).await.is_err() {
                                return;
                            }
                            tokio::task::yield_now().await;
                        }
                    }
                    let _ = to_client.shutdown().await;
                };
                let up = async {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                    let _ = to_server.shutdown().await;
                };
                tokio::join!(down, up);
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_hears_what_dovecot_says_wherever_its_packets_are_cut() {
    let options = Options {
        extra: "mail_fsync = never\nprotocol imap {\n  imap_idle_notify_interval = 1 hour\n}",
        ..Options::default()
    };
    let Some(dovecot) = Dovecot::start("relay::cuts", &options) else { return };
    dovecot.deliver(ALICE.0, "INBOX", &mail("one"));
    dovecot.deliver(ALICE.0, "Cuts", &mail("first"));
    let seconds = std::env::var("MAILCHIME_CUTS").ok().map(|text| text.parse().expect("seconds"));
    let shim = byte_by_byte(dovecot.plain).await;
    let config = |config: &mut mailchime::config::Config| {
        config.limits.login_failures_per_minute = u32::MAX;
    };
    let proxies = [
        proxy(dovecot.plain, Some(push_offer()), config).await,
        proxy(shim, Some(push_offer()), config).await,
    ];
    let site = Arc::new(Site {
        dovecot: dovecot.plain,
        proxies,
        places: places(),
        next: AtomicUsize::new(0),
        ends: Instant::now() + Duration::from_secs(seconds.unwrap_or(FEW)),
        random: AtomicU64::new(rand::random()),
        registered: AtomicUsize::new(0),
    });
    let workers = (0..WORKERS).map(|_| tokio::spawn(Arc::clone(&site).work()));
    let mut differences = Vec::new();
    for worker in workers.collect::<Vec<_>>() {
        differences.extend(worker.await.unwrap());
    }
    let (played, registered) =
        (site.next.load(Ordering::Relaxed), site.registered.load(Ordering::Relaxed));
    let line = format!(
        "relay::cuts: {played} of {} cuts played, {registered} registrations, {} differences\n",
        site.places.len(),
        differences.len()
    );
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(played > 20 && registered > 0, "{line}");
}
