//! The place: the program, its users, and what is known of both.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mailchime::demo::apns::Answer;
use mailchime::demo::backend::DemoBackend;
use mailchime::demo::phone::Phone;
use md5::{Digest, Md5};
use rustls::ClientConfig;
use serde_json::Value;
use sqlx::AnyConnection;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinSet;
use tokio::time::interval;

use super::database::Database;
use super::{Tally, Told, users};
use crate::intake::TOKEN;
use crate::support::program::Process;
use crate::support::world::World;

/// The UID of the message that is read in the storm. It is never deleted.
pub(super) const FIRST: u32 = 1;

pub(super) const MAIL: &str = "Subject: storm\r\nFrom: a <b@c>\r\n\r\nIt blows.\r\n";

/// All users have one address.
const LIMITS: &str = "[limits]\nlogin_failures_per_minute = 1000000\n\
    account_failures_per_minute = 1000000\ndials_per_minute = 1000000\n\
    dials_at_once = 1000000\n[log]\n";

/// How mailboxes are watched, in `[watch]`.
const POLLS: &str = "settle = \"50ms\"\npoll_interval = \"2s\"\npoll_max = \"4s\"\n\
                     answer_timeout = \"5s\"\nlogins_per_second = 400";

/// Accounts have no connection, and the mail server tells of changes.
const WITH_EVENTS: &str = "connection = \"on_demand\"\n";
const EVENTS: &str = "[events]\naddress = \"127.0.0.1:0\"\n[[events.source]]\nname = \"dovecot\"\n\
                      secret_file = \"events.secret\"\nevents_per_second = 100000\n[store]\n";

/// How many phones register at once before the storm.
const AT_ONCE: usize = 16;

/// What the program says when it takes events.
const TAKES_EVENTS: &str = "taking events of mail servers over HTTP";

/// After the storm the test looks this often whether all devices have their pushes.
const LOOK: Duration = Duration::from_millis(250);

pub(super) struct Site {
    pub(super) world: World,
    pub(super) database: Database,
    pub(super) seed: u32,
    /// How long the storm lasts.
    pub(super) lasts: Duration,
    pub(super) users: Vec<User>,
    pub(super) tally: Tally,
    /// What the first message of each reader is.
    pub(super) first: Vec<u8>,
    pub(super) client_config: Arc<ClientConfig>,
    process: AsyncMutex<Process>,
    address: watch::Sender<SocketAddr>,
    /// Where it takes events, if it does; `None` while it has not said where.
    events: Option<watch::Sender<Option<SocketAddr>>>,
    /// Of all processes that have ended.
    log: Mutex<Vec<String>>,
    /// Since when phones are to be told.
    watched_at: Instant,
}

pub(super) struct User {
    pub(super) login: String,
    pub(super) token: String,
    pub(super) mailboxes: &'static [&'static str],
    /// How often it was changed, which is also what it is; and whether the program does not know.
    password: Mutex<(u32, bool)>,
}

/// What must not grow.
#[derive(Debug)]
pub(super) struct Growth {
    /// KiB that are resident.
    pub(super) memory: u64,
    pub(super) open_files: usize,
    pub(super) threads: usize,
    /// By table.
    pub(super) rows: Vec<(&'static str, i64)>,
}

impl User {
    fn new(number: usize) -> Self {
        Self {
            login: format!("user{number:03}"),
            token: format!("{:064x}", 0xabcd_0000 + number),
            // A mailbox that is polled costs more than one with IDLE.
            mailboxes: if number.is_multiple_of(5) { &["INBOX", "Notes"] } else { &["INBOX"] },
            password: Mutex::new((0, false)),
        }
    }

    fn phone(&self) -> Phone {
        Phone {
            login: self.login.clone(),
            password: self.password(),
            account_id: format!("0715A26B-CA09-4730-A419-{}", &self.token[52..]),
            device_token: self.token.clone(),
            mailboxes: self.mailboxes.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    pub(super) fn password(&self) -> String {
        format!("wonder land {}", self.password.lock().unwrap().0)
    }

    fn has_changed(&self) -> bool {
        self.password.lock().unwrap().0 > 0
    }

    /// Whether the program does not know the newest password from its user.
    pub(super) fn is_stale(&self) -> bool {
        self.password.lock().unwrap().1
    }

    pub(super) fn healed(&self) {
        self.password.lock().unwrap().1 = false;
    }

    pub(super) fn change_password(&self, backend: &DemoBackend) {
        {
            let mut password = self.password.lock().unwrap();
            *password = (password.0 + 1, true);
        }
        backend.set_password(&self.login, self.password().as_bytes()).unwrap();
    }
}

impl Site {
    /// A phone of each user has registered, and all are watched: by a connection each, or with events by none.
    pub(super) async fn start(
        accounts: usize,
        seed: u32,
        lasts: Duration,
        with_events: bool,
        database: Database,
    ) -> Self {
        let world = World::new().await;
        configure(&world, with_events);
        database.configure(&world);
        let first: Vec<u8> = (0..400)
            .flat_map(|n| {
                format!("* {n} OK {{{n}}} as if this were a line of IMAP\r\n").into_bytes()
            })
            .collect();
        let users: Vec<User> = (0..accounts).map(User::new).collect();
        for user in &users {
            world.backend.add_account(&user.login, user.password().as_bytes());
            for mailbox in user.mailboxes {
                // INBOX is there already.
                let _ = world.backend.create_mailbox(&user.login, mailbox);
                world.backend.deliver(&user.login, mailbox, first.clone()).unwrap();
            }
        }
        let client_config = Arc::new(world.pki.client_config(None).unwrap());
        let mut server = world.serve().await;
        let address = watch::Sender::new(server.address);
        let events = match with_events {
            true => {
                let line = server.logged(TAKES_EVENTS).await;
                let events = line["address"].as_str().unwrap().parse().unwrap();
                Some(watch::Sender::new(Some(events)))
            }
            false => None,
        };
        let mut registering = JoinSet::new();
        for user in &users {
            if registering.len() >= AT_ONCE {
                registering.join_next().await.unwrap().unwrap();
            }
            let (phone, ca) = (user.phone(), world.pki.ca.certificate.clone());
            registering.spawn(async move {
                // On a machine that is busy a phone may be late, and tries again as phones do.
                let mut left = 5;
                loop {
                    match phone.register(server.address, "localhost", &ca, |_, _| {}).await {
                        Ok(_) => break,
                        Err(error) if left == 0 => panic!("{}: {error}", phone.login),
                        Err(_) => left -= 1,
                    }
                }
            });
        }
        registering.join_all().await;
        let site = Self {
            world,
            database,
            seed,
            lasts,
            users,
            tally: Tally::default(),
            first,
            client_config,
            process: AsyncMutex::new(server.process),
            address,
            events,
            log: Mutex::default(),
            watched_at: Instant::now(),
        };
        let mut look = interval(LOOK);
        while site.unrest().await.is_some() {
            look.tick().await;
        }
        Self { watched_at: Instant::now(), ..site }
    }

    pub(super) fn address(&self) -> SocketAddr {
        *self.address.borrow()
    }

    /// Whether the program takes events.
    pub(super) fn takes_events(&self) -> bool {
        self.events.is_some()
    }

    /// Where it takes them, or did before it was killed. Servers know its port also before this has read it.
    pub(super) async fn events(&self) -> SocketAddr {
        let mut events = self.events.as_ref().unwrap().subscribe();
        let address = *events.wait_for(Option::is_some).await.unwrap();
        address.unwrap()
    }

    /// SIGKILL, and a start; another one where the database is locked, as a service manager does it.
    pub(super) async fn restart(&self) {
        let mut process = self.process.lock().await;
        self.log.lock().unwrap().extend_from_slice(process.stderr.so_far());
        process.signal("KILL");
        let _ = process.end().await;
        loop {
            if let Some(events) = &self.events {
                events.send_replace(None);
            }
            *process = Process::spawn(self.world.program());
            let mut missing = 1 + usize::from(self.events.is_some());
            while let Some(line) = process.stderr.next().await {
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                let address = || line["address"].as_str().unwrap().parse().unwrap();
                match (line["message"].as_str(), &self.events) {
                    (Some("listening"), _) => {
                        self.address.send_replace(address());
                    }
                    (Some(TAKES_EVENTS), Some(events)) => {
                        events.send_replace(Some(address()));
                    }
                    _ => continue,
                }
                missing -= 1;
                if missing == 0 {
                    return;
                }
            }
            self.log.lock().unwrap().extend_from_slice(process.stderr.so_far());
        }
    }

    /// Ends all faults, and waits until there is nothing left to do.
    pub(super) async fn calm_down(&self) {
        let (apns, backend) = (&self.world.apns, &self.world.backend);
        apns.answer_all(Answer::Accept);
        for user in &self.users {
            let token =
                mailchime::imap::registration::xapple::DeviceToken::new(&user.token).unwrap();
            apns.answer_token(&token, Answer::Accept);
        }
        apns.stall(false);
        apns.hold_answers(false);
        apns.resume().await.unwrap();
        backend.behave(|behaviour| behaviour.unavailable = false);
        backend.resume().await.unwrap();
        self.database.runs().await;
        // It may be about to start.
        drop(self.process.lock().await);
        let mut look = interval(LOOK);
        for user in self.users.iter().filter(|user| user.has_changed()) {
            while users::log_in(self, user).await.is_err() {
                look.tick().await;
            }
        }
        while !(self.untold().is_empty() && self.unrest().await.is_none()) {
            look.tick().await;
        }
    }

    /// What still goes on.
    pub(super) async fn unrest(&self) -> Option<String> {
        let counters = self.world.backend.counters();
        let (idling, connections) = (counters.idling, counters.connections);
        let watched = if self.events.is_some() { 0 } else { self.users.len() };
        if (idling, connections) != (watched, watched) {
            return Some(format!("{idling} of {connections} connections are in IDLE"));
        }
        let mut database = self.database.beside(&self.world).await;
        let owed: i64 =
            count(&mut database, "subscription_mailbox where owed_since is not null").await;
        let parked: i64 = count(&mut database, "account where parked is not null").await;
        let due: i64 = count(&mut database, "mailbox where due_since is not null").await;
        (owed + parked + due > 0)
            .then(|| format!("{owed} marks, {parked} accounts parked, {due} mailboxes due"))
    }

    /// The users and mailboxes whose last state a device was not told.
    pub(super) fn untold(&self) -> Vec<(&User, &'static str)> {
        let told = self.told();
        let all = self.users.iter().flat_map(|user| user.mailboxes.iter().map(move |m| (user, *m)));
        all.filter(|(user, mailbox)| {
            let changed = self.world.backend.last_change(&user.login, mailbox).unwrap();
            let told = told.get(&(user.token.clone(), (*mailbox).to_owned()));
            changed.is_some_and(|changed| {
                changed > self.watched_at && told.is_none_or(|told| *told < changed)
            })
        })
        .collect()
    }

    fn told(&self) -> Told {
        let names: HashMap<String, &str> =
            ["INBOX", "Notes"].map(|name| (hash(name), name)).into_iter().collect();
        let mut told = Told::new();
        for push in self.world.apns.pushes() {
            let (Some(token), Some(200)) = (&push.token, push.status) else { continue };
            let json = push.json();
            let named = match json["aps"]["m"].as_array() {
                // Without names it is about INBOX alone.
                None => vec!["INBOX"],
                Some(hashes) => hashes.iter().map(|hash| names[hash.as_str().unwrap()]).collect(),
            };
            for name in named {
                told.insert((token.as_given().to_owned(), name.to_owned()), push.received);
            }
        }
        told
    }

    /// How often each password was tried after it was replaced, by user.
    pub(super) fn stale_tries(&self) -> HashMap<String, u64> {
        let changed = self.users.iter().filter(|user| user.has_changed());
        changed
            .map(|user| {
                let tries = self.world.backend.stale_tries(&user.login).unwrap();
                (user.login.clone(), tries.into_iter().max().unwrap_or_default())
            })
            .collect()
    }

    pub(super) async fn growth(&self) -> Growth {
        let process = self.process.lock().await;
        let mut database = self.database.beside(&self.world).await;
        let mut rows = Vec::new();
        for table in ["account", "subscription", "subscription_mailbox", "mailbox"] {
            rows.push((table, count(&mut database, table).await));
        }
        Growth {
            memory: process.memory("VmRSS"),
            open_files: process.open_files(),
            threads: process.threads(),
            rows,
        }
    }

    /// What the log says of the first of these.
    pub(super) async fn log_of(&self, untold: &[(&User, &str)]) -> String {
        let mut process = self.process.lock().await;
        let mut log = self.log.lock().unwrap();
        log.extend_from_slice(process.stderr.so_far());
        let mut text = String::new();
        for (user, mailbox) in untold {
            writeln!(text, "{mailbox} of {}", user.login).unwrap();
        }
        let Some((user, _)) = untold.first() else { return text };
        let named = format!("\"{}\"", user.login);
        for line in log.iter().filter(|line| line.contains(&named)) {
            writeln!(text, "{line}").unwrap();
        }
        text
    }
}

/// What the storm takes of the configuration.
fn configure(world: &World, with_events: bool) {
    for (old, new) in [
        // As short as a minute demands, and long enough for a machine that is busy.
        ("busy_timeout = \"5s\"", "busy_timeout = \"2s\""),
        ("retry_min = \"10ms\"", "retry_min = \"100ms\""),
        ("retry_max = \"200ms\"", "retry_max = \"2s\""),
        ("settle = \"10ms\"", POLLS),
        ("quiet_delay = \"100ms\"", "quiet_delay = \"300ms\""),
        ("min_interval = \"10ms\"", "min_interval = \"100ms\""),
        ("[apns]\n", "[apns]\nconnect_timeout = \"2s\"\nrequest_timeout = \"2s\"\n"),
        ("[log]\n", LIMITS),
        ("\"info,mailchime=debug\"", "\"info\""),
    ] {
        world.configure(old, new);
    }
    if with_events {
        let secret = world.file("events.secret");
        std::fs::write(&secret, TOKEN).unwrap();
        std::fs::set_permissions(secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        world.configure("[watch]\n", &format!("[watch]\n{WITH_EVENTS}"));
        world.configure("[store]\n", EVENTS);
    }
}

/// As in `m` of a push.
fn hash(mailbox: &str) -> String {
    Md5::digest(mailbox).iter().map(|byte| format!("{byte:02X}")).collect()
}

async fn count(database: &mut AnyConnection, of: &'static str) -> i64 {
    let query = sqlx::AssertSqlSafe(format!("select count(*) from {of}"));
    sqlx::query_scalar(query).fetch_one(database).await.unwrap()
}
