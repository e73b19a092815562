//! The place: Dovecot, the APNs stand-in and mailchime between them, the users, and what is known
//! of what they did and what their phones were told.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mailchime::demo::apns::Apns;
use mailchime::demo::phone::Phone;
use mailchime::model::Mailbox;
use mailchime::push::transport::apns::payload::mailbox_hash;
use rustls::ClientConfig;
use sqlx::{AnyPool, Row};
use tempfile::TempDir;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::support::chance::Chance;
use crate::support::listener;
use crate::support::program::Process;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::event_script::{EventScript, TIMEOUT};
use crate::support::servers::postgres::Postgres;
use crate::support::servers::{pki, try_by_lmtp};
use crate::support::world::Server;
use crate::{Options as SoakOptions, Tally};

/// The UID of the message that is read all the while. It is never changed.
pub(crate) const FIRST: u32 = 1;

/// How many phones register at once.
const AT_ONCE: usize = 8;

/// Before a mail server tries again what Dovecot did not take, and a phone to log in.
const AGAIN: Duration = Duration::from_millis(500);

pub(crate) struct Site {
    pub(crate) users: Vec<User>,
    pub(crate) tally: Tally,
    pub(crate) apns: Apns,
    pub(crate) dovecot: Arc<Mutex<Dovecot>>,
    pub(crate) client_config: Arc<ClientConfig>,
    /// What the first message of everyone says.
    pub(crate) text: String,
    /// Nothing more is begun.
    pub(crate) over: CancellationToken,
    lmtp: PathBuf,
    backend: SocketAddr,
    program: PathBuf,
    process: AsyncMutex<Process>,
    address: watch::Sender<SocketAddr>,
    /// When APNs last took a push, by token and mailbox.
    told: Mutex<HashMap<(String, &'static str), Instant>>,
    /// By mailbox, from a delivery to the first push after it.
    delays: Mutex<HashMap<&'static str, Vec<Duration>>>,
    database: AnyPool,
    /// Dropped last: what is above lies in it or uses it.
    postgres: Option<Postgres>,
    folder: TempDir,
    _script: Option<EventScript>,
}

pub(crate) struct User {
    pub(crate) login: String,
    pub(crate) mailboxes: &'static [&'static str],
    token: String,
    /// How often it was changed, which is also what it is; and whether mailchime does not know.
    password: Mutex<(u32, bool)>,
    /// Since when what a phone was told of a mailbox may be stale, and whether new mail is why.
    changed: Mutex<HashMap<&'static str, (Instant, bool)>>,
}

/// What must not grow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    /// KiB that are resident.
    pub(crate) memory: u64,
    pub(crate) open_files: usize,
    pub(crate) threads: usize,
    /// KiB.
    pub(crate) database: u64,
    pub(crate) rows: i64,
}

// === impl User ===

impl User {
    fn new(number: usize) -> Self {
        Self {
            login: format!("user{number:03}"),
            mailboxes: if number.is_multiple_of(3) { &["INBOX", "Notes"] } else { &["INBOX"] },
            token: format!("{:064x}", 0xabcd_0000 + number),
            password: Mutex::new((0, false)),
            changed: Mutex::default(),
        }
    }

    pub(crate) fn phone(&self) -> Phone {
        Phone {
            login: self.login.clone(),
            password: self.password(),
            account_id: format!("0715A26B-CA09-4730-A419-{}", &self.token[52..]),
            device_token: self.token.clone(),
            mailboxes: self.mailboxes.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    pub(crate) fn password(&self) -> String {
        format!("wonder land {}", self.password.lock().unwrap().0)
    }

    /// Whether mailchime does not know the newest password from its user.
    pub(crate) fn is_stale(&self) -> bool {
        self.password.lock().unwrap().1
    }

    pub(crate) fn healed(&self) {
        self.password.lock().unwrap().1 = false;
    }

    /// A mailbox is about to change, by new mail or otherwise.
    pub(crate) fn changes(&self, mailbox: &'static str, new_mail: bool) {
        self.changed.lock().unwrap().insert(mailbox, (Instant::now(), new_mail));
    }
}

// === impl Site ===

impl Site {
    /// A phone of each user has registered. `None` where Dovecot or PostgreSQL cannot run.
    pub(crate) async fn start(accounts: usize, soak: &SoakOptions) -> Option<Arc<Self>> {
        let program = soak.program.clone();
        let script = soak.events.then(|| EventScript::new(SECRET));
        let users: Vec<User> = (0..accounts).map(User::new).collect();
        let options = Options {
            users: users.iter().map(|user| (user.login.clone(), user.password())).collect(),
            extra: script.as_ref().map_or(EXTRA, with_script),
            ..Options::default()
        };
        let dovecot = Dovecot::start("soak", &options)?;
        let postgres = if soak.postgres { Some(Postgres::start("soak")?) } else { None };

        let folder = tempfile::tempdir().unwrap();
        pki().write_to(folder.path()).unwrap();
        let apns = Apns::start(listener().await, pki()).unwrap();
        let store = match &postgres {
            None => format!("sqlite://{}", folder.path().join("mailchime.db").display()),
            Some(postgres) => postgres.url(),
        };
        let mut config = configuration(dovecot.plain, apns.address(), &store);
        if let Some(script) = &script {
            // mailchime takes events there after each restart, too.
            let address = listener().await.local_addr().unwrap();
            script.tell_by("http", address, TIMEOUT);
            let secret = folder.path().join("events.secret");
            fs::write(&secret, SECRET).unwrap();
            fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
            config = taking_events(&config, address);
        }
        let file = folder.path().join("proxy.toml");
        fs::write(&file, config).unwrap();
        // The URL of the database has a password.
        fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        let server = serve(&program, folder.path()).await;
        sqlx::any::install_default_drivers();
        let site = Arc::new(Self {
            users,
            tally: Tally::default(),
            apns,
            client_config: Arc::new(pki().client_config(None).unwrap()),
            text: (0..400)
                .map(|n| format!("* {n} OK {{{n}}} as if this were a line of IMAP\r\n"))
                .collect(),
            over: CancellationToken::new(),
            lmtp: dovecot.lmtp(),
            backend: dovecot.plain,
            dovecot: Arc::new(Mutex::new(dovecot)),
            program,
            process: AsyncMutex::new(server.process),
            address: watch::Sender::new(server.address),
            told: Mutex::default(),
            delays: Mutex::default(),
            database: AnyPool::connect(&store).await.unwrap(),
            postgres,
            folder,
            _script: script,
        });
        let mut registering = JoinSet::new();
        for number in 0..accounts {
            if registering.len() >= AT_ONCE {
                registering.join_next().await.unwrap().unwrap();
            }
            let site = site.clone();
            registering.spawn(async move {
                let user = &site.users[number];
                for mailbox in user.mailboxes {
                    // The end of the last line comes with LMTP.
                    let text = site.text.trim_end();
                    site.by_lmtp(user, mailbox, text).await.unwrap();
                }
                let registered = site.register(user).await.unwrap();
                assert_eq!(registered, user.mailboxes, "{}", user.login);
            });
        }
        while let Some(registered) = registering.join_next().await {
            registered.unwrap();
        }
        Some(site)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        *self.address.borrow()
    }

    /// Waits so many milliseconds, by chance; whether it goes on.
    pub(crate) async fn goes_on(&self, chance: &mut Chance, milliseconds: Range<usize>) -> bool {
        self.over.run_until_cancelled(chance.pause(milliseconds)).await.is_some()
    }

    /// The mailboxes that the phone is promised to be told of.
    pub(crate) async fn register(
        &self,
        user: &User,
    ) -> Result<Vec<String>, mailchime::demo::phone::PhoneError> {
        let ca = &pki().ca.certificate;
        let registered = user.phone().register(self.address(), "localhost", ca, |_, _| {}).await?;
        Ok(registered.mailboxes)
    }

    /// Delivers a mail as a mail server does, which tries again until it is taken. It may be taken
    /// more than once, as ever with LMTP, and each time is a change.
    pub(crate) async fn deliver(&self, user: &User, mailbox: &'static str) {
        loop {
            user.changes(mailbox, true);
            if self.by_lmtp(user, mailbox, "Hi there.").await.is_ok() {
                return self.tally.deliveries.add();
            }
            self.tally.deferred.add();
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn by_lmtp(&self, user: &User, mailbox: &str, text: &str) -> std::io::Result<()> {
        let (socket, text) = (self.lmtp.clone(), text.to_owned());
        let recipient = match mailbox {
            "INBOX" => user.login.clone(),
            other => format!("{}+{other}", user.login),
        };
        let deliver = move || {
            let mail = format!("From: Ann <ann@example.org>\r\nSubject: soak\r\n\r\n{text}");
            try_by_lmtp(&socket, &recipient, mail.as_bytes())
        };
        spawn_blocking(deliver).await.unwrap()
    }

    /// Counts from the next login on. mailchime is not told.
    pub(crate) async fn change_password(self: &Arc<Self>, number: usize) {
        let site = self.clone();
        let change = move || {
            let user = &site.users[number];
            let password = {
                let mut password = user.password.lock().unwrap();
                *password = (password.0 + 1, true);
                format!("wonder land {}", password.0)
            };
            site.dovecot.lock().unwrap().set_password(&user.login, &password);
        };
        spawn_blocking(change).await.unwrap();
        self.tally.passwords.add();
    }

    /// SIGHUP.
    pub(crate) async fn reload(&self) {
        let mut process = self.process.lock().await;
        process.signal("HUP");
        process
            .stderr
            .find("that it was reloaded", |line| {
                line.contains("configuration reloaded").then_some(())
            })
            .await;
        self.tally.reloads.add();
    }

    /// Ends mailchime in order, or by SIGKILL, and starts it again.
    pub(crate) async fn restart(&self, kill: bool) {
        let mut process = self.process.lock().await;
        process.signal(if kill { "KILL" } else { "TERM" });
        let status = process.end().await;
        assert!(kill || status.success(), "after SIGTERM: {status}");
        let mut server = serve(&self.program, self.folder.path()).await;
        let mut seen = std::mem::take(&mut process.stderr.seen);
        seen.append(&mut server.process.stderr.seen);
        server.process.stderr.seen = seen;
        *process = server.process;
        self.address.send_replace(server.address);
        if kill { self.tally.kills.add() } else { self.tally.restarts.add() }
    }

    /// Takes note of what APNs is sent, until it is dropped.
    pub(crate) async fn note_pushes(self: Arc<Self>) {
        let names: HashMap<String, &'static str> = ["INBOX", "Notes"]
            .map(|name| (mailbox_hash(&Mailbox::new(name)), name))
            .into_iter()
            .collect();
        loop {
            let push = self.apns.next().await;
            let (Some(token), Some(200)) = (&push.token, push.status) else {
                self.tally.refused.add();
                continue;
            };
            self.tally.pushes.add();
            let json = push.json();
            let named = match json["aps"]["m"].as_array() {
                // Without names it is about INBOX alone.
                None => vec!["INBOX"],
                Some(hashes) => hashes.iter().map(|hash| names[hash.as_str().unwrap()]).collect(),
            };
            let user = self.users.iter().find(|user| user.token == token.as_given()).unwrap();
            for name in named {
                let before = (user.token.clone(), name);
                let before = self.told.lock().unwrap().insert(before, push.received);
                let changed = user.changed.lock().unwrap().get(name).copied();
                if let Some((changed, true)) = changed
                    && before.is_none_or(|before| before < changed)
                    && push.received > changed
                {
                    let delay = push.received - changed;
                    self.delays.lock().unwrap().entry(name).or_default().push(delay);
                }
            }
        }
    }

    /// From a delivery to the first push after it: half were told within the first, 99 of 100 within
    /// the second, all within the third.
    pub(crate) fn delays(&self, mailbox: &str) -> [Duration; 3] {
        let mut delays = self.delays.lock().unwrap().get(mailbox).cloned().unwrap_or_default();
        delays.sort_unstable();
        let at = |part: usize| delays.get(delays.len().saturating_sub(1) * part / 100).copied();
        [50, 99, 100].map(|part| at(part).unwrap_or_default())
    }

    /// The users and mailboxes whose last change no push followed that APNs has taken.
    pub(crate) fn untold(&self) -> Vec<(&User, &'static str)> {
        let told = self.told.lock().unwrap();
        let mut untold = Vec::new();
        for user in &self.users {
            for (mailbox, (changed, _)) in user.changed.lock().unwrap().iter() {
                let told = told.get(&(user.token.clone(), *mailbox));
                if told.is_none_or(|told| told < changed) {
                    untold.push((user, *mailbox));
                }
            }
        }
        untold
    }

    /// The mailboxes of which the database says that the phones know something else than Dovecot.
    pub(crate) async fn mistaken(self: &Arc<Self>) -> Vec<String> {
        let rows = "select a.name, m.name, m.messages, m.uid_next, m.unseen from mailbox m \
                    join account a on a.id = m.account";
        let rows = sqlx::query(rows).fetch_all(&self.database).await.unwrap();
        let mut known = HashMap::new();
        for row in rows {
            let numbers: [Option<i64>; 3] = [row.get(2), row.get(3), row.get(4)];
            known.insert((row.get::<String, _>(0), row.get::<String, _>(1)), numbers);
        }
        let site = self.clone();
        let compare = move || {
            let mut mistaken = Vec::new();
            for user in &site.users {
                let mut client = crate::support::servers::client::Client::connect(site.backend);
                let answer = client.login((&user.login, &user.password()));
                assert!(answer.starts_with("x OK"), "{}: {answer}", user.login);
                for mailbox in user.mailboxes {
                    let status = format!("STATUS {mailbox} (MESSAGES UIDNEXT UNSEEN)");
                    let answer = client.ask(&status).remove(0);
                    let told = known.get(&(user.login.clone(), (*mailbox).to_owned()));
                    let [messages, next, unseen] =
                        told.copied().unwrap_or_default().map(Option::unwrap_or_default);
                    let told = format!("(MESSAGES {messages} UIDNEXT {next} UNSEEN {unseen})");
                    if !answer.ends_with(&told) {
                        mistaken.push(format!("{}: told {told}, but {answer}", user.login));
                    }
                }
                client.ask("LOGOUT");
            }
            mistaken
        };
        spawn_blocking(compare).await.unwrap()
    }

    /// How many pushes are marked as owed, and how many accounts are parked.
    pub(crate) async fn owed_and_parked(&self) -> (i64, i64) {
        let owed = self.count("subscription_mailbox where owed_since is not null").await;
        (owed, self.count("account where parked is not null").await)
    }

    pub(crate) async fn growth(&self) -> Growth {
        let mut rows = 0;
        for table in ["account", "subscription", "subscription_mailbox", "mailbox"] {
            rows += self.count(table).await;
        }
        let database = match self.postgres {
            Some(_) => {
                let size = "select pg_database_size(current_database())";
                let size: i64 = sqlx::query_scalar(size).fetch_one(&self.database).await.unwrap();
                size.unsigned_abs()
            }
            None => ["mailchime.db", "mailchime.db-wal"]
                .iter()
                .filter_map(|name| fs::metadata(self.folder.path().join(name)).ok())
                .map(|file| file.len())
                .sum(),
        };
        let process = self.process.lock().await;
        Growth {
            memory: process.memory("VmRSS"),
            open_files: process.open_files(),
            threads: process.threads(),
            database: database / 1024,
            rows,
        }
    }

    /// Writes mailchime's log, of all its runs, to a file; the lines that nobody may have to read.
    pub(crate) async fn keep_log(&self, path: &Path) -> Vec<String> {
        let mut process = self.process.lock().await;
        let lines = process.stderr.so_far();
        fs::write(path, lines.join("\n")).unwrap();
        let panicked = |line: &&String| line.contains("panicked") || line.contains("\"ERROR\"");
        lines.iter().filter(panicked).cloned().collect()
    }

    async fn count(&self, of: &'static str) -> i64 {
        let query = sqlx::AssertSqlSafe(format!("select count(*) from {of}"));
        sqlx::query_scalar(query).fetch_one(&self.database).await.unwrap()
    }
}

/// What Dovecot is configured with in addition, to tell of its mailboxes.
fn with_script(script: &EventScript) -> &'static str {
    Box::leak(format!("{EXTRA}{}", script.lines()).into_boxed_str())
}

/// The configuration of mailchime that takes events there. Some are lost while Dovecot or mailchime ends.
fn taking_events(config: &str, address: SocketAddr) -> String {
    let watch = "[watch]\nconnection = \"on_demand\"\nsweep = \"1m\"\n";
    let config = config.replacen("[watch]\n", watch, 1);
    format!(
        "{config}[events]\naddress = \"{address}\"\n\
         [[events.source]]\nname = \"dovecot\"\nsecret_file = \"events.secret\"\n"
    )
}

async fn serve(program: &Path, folder: &Path) -> Server {
    let mut command = Command::new(program);
    command.args(["serve", "--config"]).arg(folder.join("proxy.toml")).stdin(Stdio::null());
    command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
    Server::of(Process::spawn(command)).await
}

/// By which mailchime knows Dovecot.
const SECRET: &str = "a-secret-of-many-characters";

/// Folders are made when mail for them comes.
const EXTRA: &str = "
lmtp_save_to_detail_mailbox = yes
lda_mailbox_autocreate = yes
";

/// What happens in minutes or hours by default happens in seconds, so that half an hour holds as
/// much of it as a day.
fn configuration(backend: SocketAddr, apns: SocketAddr, store: &str) -> String {
    let apns = apns.port();
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
         [backend]\naddress = \"{backend}\"\ntls = \"none\"\n\
         [store]\nurl = \"{store}\"\n\
         [watch]\nretry_min = \"200ms\"\nretry_max = \"5s\"\nidle_renewal = \"1m\"\n\
         idle_check = \"1m\"\npoll_interval = \"5s\"\npoll_max = \"20s\"\nanswer_timeout = \"10s\"\n\
         [push]\nquiet_delay = \"2s\"\nmin_interval = \"500ms\"\nmax_delay = \"10s\"\n\
         [limits]\nlogin_failures_per_minute = 1000000\naccount_failures_per_minute = 1000000\n\
         dials_per_minute = 1000000\ndials_at_once = 1000000\n\
         [apns]\nendpoint = \"https://localhost:{apns}\"\nca = \"ca.pem\"\n\
         certificate = \"apns.pem\"\nprivate_key = \"apns.key\"\n\
         connect_timeout = \"3s\"\nrequest_timeout = \"3s\"\n\
         [log]\nformat = \"json\"\n"
    )
}
