//! Names to addresses, without a thread that waits: what the system's `getaddrinfo` does for a server,
//! asked of `/etc/hosts` and of the name servers in `/etc/resolv.conf`, whose changes count at once.
//!
//! One look-up of a name is under way at a time, in a task of its own. Any number of connections wait for
//! it; when they give up, it goes on, and the next connection gets its answer. So a name server that says
//! nothing delays only connections that need one of its names.
//!
//! The resolver keeps an answer for its time to live. After that it asks again, and goes on using the old
//! answer for up to a day while no name server answers (RFC 8767).

mod files;
mod servers;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use self::files::ResolverFiles;
use self::servers::{FoundAddresses, LookupFailure, Servers};
use super::counters::LimitCounters;
use crate::config;

/// For a look-up as a whole: all servers, all domains of the search list.
const LOOK_UP_TIME: Duration = Duration::from_secs(30);
/// An answer counts for no less, or each login would be a question.
const SHORTEST: Duration = Duration::from_secs(1);
/// And for no more.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// That there is no such name counts for no longer: somebody may be about to mend it.
const LONGEST_ABSENCE: Duration = Duration::from_secs(5);
/// After a look-up without an answer the next one waits for so long.
const RETRY: Duration = Duration::from_secs(2);
/// How long an answer is used after its time when there is no newer one (RFC 8767 section 5).
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// For a newer answer, where there is an old one (RFC 8767 section 5).
const PATIENCE: Duration = Duration::from_millis(1800);
/// Names that are remembered. Where they come from the configuration there are few; those of users have a table
/// of their own.
const NAMES: usize = 4096;
/// Between two log lines about one name.
const QUIET: Duration = Duration::from_secs(60);

/// A handle to what is known of names. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NameResolver(Arc<NameTable>);

/// Where answers come from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The file of known hosts.
    pub hosts: PathBuf,
    /// The file that names the name servers.
    pub resolv_conf: PathBuf,
    /// Those of `resolv_conf` where there are none.
    pub name_servers: Vec<SocketAddr>,
}

#[derive(Debug)]
struct NameTable {
    files: Arc<Mutex<ResolverFiles>>,
    names: Mutex<HashMap<String, watch::Sender<NameRecord>>>,
    most_waiting: usize,
    counters: Arc<LimitCounters>,
}

/// What is known of a name.
#[derive(Debug, Default)]
struct NameRecord {
    answer: Option<KnownAddresses>,
    /// Of the last look-up, if it found nothing.
    failure: Option<(LookupFailure, Instant)>,
    asking: Option<Lookup>,
    /// Of the servers that answer and failure come from.
    generation: u64,
    /// When the log last told of a failure.
    told: Option<Instant>,
}

#[derive(Debug)]
struct KnownAddresses {
    /// In the order in which they are to be tried.
    addresses: Vec<IpAddr>,
    /// How many at the beginning are as good as the first.
    alike: usize,
    /// How often it was given.
    given: usize,
    fresh_until: Instant,
}

/// A look-up that is under way.
#[derive(Clone, Copy, Debug)]
struct Lookup {
    since: Instant,
    /// Of the servers that are asked.
    generation: u64,
}

/// What somebody who asks for a name gets now.
enum CacheAnswer {
    Addresses(Vec<IpAddr>),
    LookupFailure(LookupFailure),
    /// A look-up is under way; what else there is will do from then on.
    Wait(Option<Instant>),
}

// === impl Sources ===

impl Default for Sources {
    /// Those of the system.
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            name_servers: Vec::new(),
        }
    }
}

// === impl NameResolver ===

impl Default for NameResolver {
    fn default() -> Self {
        Self::new(&config::ResolverConfig::default(), Arc::default())
    }
}

impl NameResolver {
    /// A resolver that knows nothing yet. `counters` learn how often too many wait for one name.
    pub fn new(config: &config::ResolverConfig, counters: Arc<LimitCounters>) -> Self {
        let name_servers = config.name_servers.clone();
        let sources = Sources { name_servers, ..Sources::default() };
        Self::with_sources(sources, config.waiting, counters)
    }

    /// The same with other files than the system's.
    pub fn with_sources(
        sources: Sources,
        most_waiting: usize,
        counters: Arc<LimitCounters>,
    ) -> Self {
        let files = Arc::new(Mutex::new(ResolverFiles::new(sources)));
        Self(Arc::new(NameTable { files, names: Mutex::default(), most_waiting, counters }))
    }

    /// The same with a memory of its own, for names that users give: however many those are, what is known of
    /// the operator's names stays.
    pub fn apart(&self) -> Self {
        let NameTable { files, names: _, most_waiting, counters } = &*self.0;
        Self(Arc::new(NameTable {
            files: Arc::clone(files),
            names: Mutex::default(),
            most_waiting: *most_waiting,
            counters: Arc::clone(counters),
        }))
    }

    /// The addresses of `host` with this port, in the order in which they are to be tried. Those that
    /// are as good as the first take turns. `host` is a name, or an IP address without brackets.
    ///
    /// It may take as long as the name servers do, so the caller has to have a limit of its own.
    ///
    /// # Errors
    /// `NotFound`: there is no such name, or it has no address. `TimedOut`: no name server answers.
    /// `ResourceBusy`: `[resolver] waiting` connections wait for this name. Anything else is what a
    /// name server said.
    pub async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Some(address) = literal(host, port) {
            return Ok(vec![address]);
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        // A dot at the end says that the name is whole.
        let name = if host.ends_with('.') { format!("{name}.") } else { name };
        let (hosts, servers) = self.0.files.lock().current();
        let addresses = match hosts.get(name.trim_end_matches('.')) {
            Some(addresses) => in_order(addresses.clone()).0,
            None if files::is_localhost(&name) => in_order(files::localhost()).0,
            None => self.ask(&name, &servers).await?,
        };
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    /// The addresses of a name that only a name server knows.
    async fn ask(&self, name: &str, servers: &Arc<Servers>) -> io::Result<Vec<IpAddr>> {
        let (mut verdict, mut known) = self.begin(name, servers);
        loop {
            let until = match verdict {
                CacheAnswer::Addresses(addresses) => return Ok(addresses),
                CacheAnswer::LookupFailure(failure) => return Err(failure.into()),
                CacheAnswer::Wait(until) => until,
            };
            let Some(receiver) = &mut known else { return Err(self.too_many(name)) };
            tokio::select! {
                changed = receiver.changed() => if changed.is_err() {
                    return Err(LookupFailure::Silent.into());
                },
                () = async {
                    match until {
                        Some(until) => sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
            verdict = self.now(name);
        }
    }

    /// What is known of `name`. Begins a look-up if there has to be one. A caller that has to wait gets a
    /// receiver that tells of the end, unless too many wait.
    fn begin(
        &self,
        name: &str,
        servers: &Arc<Servers>,
    ) -> (CacheAnswer, Option<watch::Receiver<NameRecord>>) {
        let now = Instant::now();
        let mut names = self.0.names.lock();
        if names.len() >= NAMES && !names.contains_key(name) {
            names.retain(|_, known| known.receiver_count() > 0);
        }
        let sender = names.entry(name.to_owned()).or_default();
        let (mut verdict, mut look_up) = (CacheAnswer::Wait(None), false);
        sender.send_if_modified(|known| {
            look_up = known.is_due(servers.generation(), now);
            if look_up {
                known.asking = Some(Lookup { since: now, generation: servers.generation() });
            }
            verdict = known.verdict(now);
            false
        });
        if look_up {
            tokio::spawn(look_up_and_tell(self.clone(), name.to_owned(), Arc::clone(servers)));
        }
        let may_wait = sender.receiver_count() < self.0.most_waiting;
        let waits = matches!(verdict, CacheAnswer::Wait(_)) && may_wait;
        let receiver = waits.then(|| sender.subscribe());
        (verdict, receiver)
    }

    /// What is known of `name`.
    fn now(&self, name: &str) -> CacheAnswer {
        let (now, mut verdict) =
            (Instant::now(), CacheAnswer::LookupFailure(LookupFailure::Silent));
        if let Some(sender) = self.0.names.lock().get(name) {
            sender.send_if_modified(|known| {
                verdict = known.verdict(now);
                false
            });
        }
        verdict
    }

    fn too_many(&self, name: &str) -> io::Error {
        let limit = self.0.most_waiting;
        if self.0.counters.resolver_waiting.hit() {
            tracing::warn!(
                target: "mailchime::net::name_server_silent",
                name,
                limit,
                "the name server does not answer and [resolver] waiting is reached; further \
                 connections to this name fail at once"
            );
        }
        let why = format!("{limit} connections wait for the address of {name} already");
        io::Error::new(io::ErrorKind::ResourceBusy, why)
    }
}

/// The one look-up of a name.
async fn look_up_and_tell(resolver: NameResolver, name: String, servers: Arc<Servers>) {
    let found = timeout(LOOK_UP_TIME, servers.look_up(&name)).await;
    let found = found.unwrap_or(Err(LookupFailure::Silent));
    let names = resolver.0.names.lock();
    if let Some(sender) = names.get(&name) {
        let now = Instant::now();
        sender.send_if_modified(|known| known.learn(&name, found, servers.generation(), now));
    }
}

// === impl NameRecord ===

impl NameRecord {
    /// Whether a look-up has to begin, at the servers of this generation.
    fn is_due(&self, generation: u64, now: Instant) -> bool {
        // One that ended without a word, by a panic, must not be waited for for ever.
        let under_way = self.asking.is_some_and(|asking| {
            asking.generation == generation && now < asking.since + 2 * LOOK_UP_TIME
        });
        let fresh = self.answer.as_ref().is_some_and(|answer| now < answer.fresh_until);
        let resting = self.failure.as_ref().is_some_and(|(_, until)| now < *until);
        // What other servers said before is no more than an old answer.
        let answered = self.generation == generation && (fresh || resting);
        !under_way && !answered
    }

    fn verdict(&mut self, now: Instant) -> CacheAnswer {
        self.answer.take_if(|answer| now >= answer.fresh_until + STALE);
        match (&mut self.answer, self.asking) {
            (Some(answer), Some(asking)) => match asking.since + PATIENCE {
                until if now < until => CacheAnswer::Wait(Some(until)),
                _ => CacheAnswer::Addresses(answer.give()),
            },
            (Some(answer), None) => CacheAnswer::Addresses(answer.give()),
            (None, Some(_)) => CacheAnswer::Wait(None),
            (None, None) => {
                let failure = self.failure.as_ref().map(|(failure, _)| failure.clone());
                CacheAnswer::LookupFailure(failure.unwrap_or(LookupFailure::Silent))
            }
        }
    }

    /// A look-up has ended. Returns whether anybody has to hear of it.
    fn learn(
        &mut self,
        name: &str,
        found: Result<FoundAddresses, LookupFailure>,
        generation: u64,
        now: Instant,
    ) -> bool {
        if self.asking.is_none_or(|asking| asking.generation != generation) {
            return false;
        }
        (self.asking, self.generation) = (None, generation);
        match found {
            Ok(FoundAddresses { addresses, ttl }) => {
                let fresh_until = now + ttl.clamp(SHORTEST, LONGEST);
                self.answer = Some(KnownAddresses::new(addresses, fresh_until));
                self.failure = None;
            }
            Err(failure) => {
                let rest = match &failure {
                    LookupFailure::Absent { ttl, .. } => {
                        // The name's owner says so; what was known holds no more.
                        self.answer = None;
                        ttl.unwrap_or(LONGEST_ABSENCE).clamp(SHORTEST, LONGEST_ABSENCE)
                    }
                    LookupFailure::Silent | LookupFailure::Other(_) => RETRY,
                };
                let due = self.told.is_none_or(|told| now.duration_since(told) >= QUIET);
                if due && self.answer.is_some() {
                    self.told = Some(now);
                    tracing::warn!(
                        target: "mailchime::net::name_lookup_failed",
                        name,
                        why = %failure,
                        "could not look up a name; mailchime uses its last known addresses for up \
                         to a day"
                    );
                }
                self.failure = Some((failure, now + rest));
            }
        }
        true
    }
}

// === impl KnownAddresses ===

impl KnownAddresses {
    fn new(addresses: Vec<IpAddr>, fresh_until: Instant) -> Self {
        let (addresses, alike) = in_order(addresses);
        Self { addresses, alike, given: 0, fresh_until }
    }

    fn give(&mut self) -> Vec<IpAddr> {
        let mut addresses = self.addresses.clone();
        if self.alike > 1 {
            addresses[..self.alike].rotate_left(self.given % self.alike);
        }
        self.given = self.given.wrapping_add(1);
        addresses
    }
}

/// The addresses in the order in which they are to be tried, and how many are as good as the first. As
/// RFC 6724 section 6 has it where it matters: first those that this machine has a way to (rule 1), and
/// of them IPv6 (rule 6).
fn in_order(addresses: Vec<IpAddr>) -> (Vec<IpAddr>, usize) {
    let rank = |address: IpAddr| ((!has_way_to(address), address.is_ipv4()), address);
    let mut ranked: Vec<_> = addresses.into_iter().map(rank).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let first = ranked.first().map(|(rank, _)| *rank);
    let alike = ranked.iter().take_while(|(rank, _)| Some(*rank) == first).count();
    (ranked.into_iter().map(|(_, address)| address).collect(), alike)
}

/// Whether this machine has a route there. Nothing is sent.
fn has_way_to(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, 53))).is_ok()
}

/// An address that needs no look-up; of IPv6 also one with the name or number of an interface behind a
/// `%` (RFC 4007 section 11).
fn literal(host: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, port));
    }
    let (address, zone) = host.split_once('%')?;
    let address = address.parse::<Ipv6Addr>().ok()?;
    let zone = zone.parse().ok().or_else(|| files::interface(zone))?;
    Some(SocketAddrV6::new(address, port, 0, zone).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_users_take_no_place_of_the_operators() {
        let operators = NameResolver::default();
        let put = |resolver: &NameResolver, name: &str| {
            resolver.0.names.lock().entry(name.to_owned()).or_default();
        };
        put(&operators, "imap.example.org");
        let users = operators.apart();
        (0..NAMES).for_each(|n| put(&users, &format!("{n}.example")));
        assert_eq!((operators.0.names.lock().len(), users.0.names.lock().len()), (1, NAMES));
        assert!(Arc::ptr_eq(&operators.0.files, &users.0.files));
    }
}
