//! One who takes more than a share: made-up accounts, devices and tokens, a foreign device's token,
//! registrations without end. Others get their pushes as if nothing were going on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mailchime::config::{self, ApnsServer};
use mailchime::demo::apns::{Answer, Apns, Push};
use mailchime::demo::backend::DemoBackend;
use mailchime::demo::pki::Pki;
use mailchime::imap::registration::xapple::{ApnsOptions, DeviceToken, XAppleRegistration};
use mailchime::model::{
    Account, Change, ChangeKind, Mailbox, Registration, Snapshot, Subscription, Timestamp,
    WatchEvent,
};
use mailchime::net::counters::LimitCounters;
use mailchime::nodes::ClusterView;
use mailchime::push::dispatcher::{self, DispatcherParts};
use mailchime::store::Store;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::support::log::Log;
use crate::support::pushing::{backends, load, register};
use crate::support::world::{PASSWORD, TOKEN, World, registration};
use crate::support::{limited, listener};

/// The push side alone: a database in a file, the rules, and the stand-in for APNs. Changes come from
/// the test.
struct Site {
    pki: Pki,
    folder: TempDir,
    apns: Apns,
    store: Store,
    config: config::PushConfig,
    counters: Arc<LimitCounters>,
    running: Option<Running>,
    changes: u64,
}

struct Running {
    events: mpsc::Sender<WatchEvent>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

fn account(login: &str) -> Account {
    Account::from_login(login)
}

fn state(mails: u64) -> Snapshot {
    Snapshot { uid_next: Some(mails), ..Snapshot::default() }
}

fn token(name: &str) -> DeviceToken {
    DeviceToken::new(&format!("{name:0<64}")).unwrap()
}

impl Site {
    async fn new(config: config::PushConfig) -> Self {
        let pki = Pki::generate(None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        pki.write_to(folder.path()).unwrap();
        let listener = listener().await;
        let apns = Apns::start(listener, &pki).unwrap();
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        let counters = Arc::default();
        Self { pki, folder, apns, store, config, counters, running: None, changes: 0 }
    }

    /// A device of this account, whose token begins with `name`.
    fn device(&self, login: &str, name: &str) -> Subscription {
        XAppleRegistration {
            version: 2,
            account_id: format!("ID of {login}"),
            token: token(name),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: Vec::new(),
        }
        .subscription(account(login), &self.pki.topic)
    }

    async fn register(&self, device: Subscription) {
        let mailboxes = vec![(Mailbox::inbox(), state(1))];
        let registration = Registration { subscription: device, mailboxes };
        register(&self.store, &registration, Timestamp::now()).await;
    }

    fn start(&mut self) {
        let file = |name| self.folder.path().join(name);
        let mut apns = config::ApnsConfig::new(file("apns.pem"), file("apns.key"));
        let address = self.apns.address();
        apns.endpoint = ApnsServer { host: address.ip().to_string(), port: address.port() };
        apns.ca = Some(file("ca.pem"));
        let (events, changes) = mpsc::channel(1024);
        let (removed, mut hints) = mpsc::channel(8);
        tokio::spawn(async move { while hints.recv().await.is_some() {} });
        let cancel = CancellationToken::new();
        let parts = DispatcherParts {
            events: changes,
            store: self.store.clone(),
            backends: backends(),
            routes: load(&[apns]).routes().clone(),
            config: self.config.clone(),
            removed,
            assignment: ClusterView::none("here").assignment,
            requests: dispatcher::channel().1,
            metrics: Arc::default(),
            backend_of: dispatcher::BackendOf::new(|_| "backend".into()),
            counters: Arc::clone(&self.counters),
        };
        let task = tokio::spawn(dispatcher::run(parts, cancel.clone()));
        self.running = Some(Running { events, cancel, task });
    }

    /// New mail in the account's INBOX.
    async fn mail(&mut self, login: &str) {
        self.changes += 1;
        let change = Change {
            account: account(login),
            backend: backends().default().id().clone(),
            mailbox: Mailbox::inbox(),
            kind: ChangeKind::NewMail,
            id: self.changes,
            snapshot: Some(state(1 + self.changes)),
            seen_at: Instant::now(),
            unread_before: None,
            preview_follows: false,
        };
        let running = self.running.as_ref().unwrap();
        running.events.send(WatchEvent::Changed(change)).await.unwrap();
    }

    /// Ends the dispatcher as the program does.
    async fn end(&mut self) {
        let Running { cancel, task, .. } = self.running.take().unwrap();
        cancel.cancel();
        task.await.unwrap();
    }

    async fn devices(&self, login: &str) -> usize {
        self.store.targets(&account(login), Timestamp(0)).await.unwrap().len()
    }

    /// Waits for a push like this.
    async fn pushed(&self, fits: impl Fn(&Push) -> bool) {
        loop {
            let received = self.apns.received();
            if self.apns.pushes().iter().any(&fits) {
                return;
            }
            self.apns.wait_for(received + 1).await;
        }
    }

    /// How many pushes went to tokens that begin so.
    fn pushes_to(&self, name: &str) -> usize {
        let fits = |token: &DeviceToken| token.as_given().starts_with(name);
        self.apns.pushes().iter().filter(|push| push.token.as_ref().is_some_and(fits)).count()
    }
}

/// Tokens that nobody has are answered as bad, and so is one of a phone that is gone. The first say
/// nothing of the second.
#[tokio::test]
async fn made_up_tokens_of_one_account_keep_no_dead_token_of_others() {
    limited(async {
        let log = Log::default();
        // With one subscriber alone, a line that another test's thread reaches first would count as
        // one that nobody wants.
        let _another = tracing::Dispatch::new(tracing_subscriber::registry());
        let _guard = tracing::subscriber::set_default(log.subscriber(Level::INFO));
        let mut site = Site::new(config::PushConfig::default()).await;
        for number in 0..50 {
            let made_up = site.device("mallory@tenant.example", &format!("bad{number:02x}f"));
            site.apns.answer_token(
                &token(&format!("bad{number:02x}f")),
                Answer::refuse(400, "BadDeviceToken"),
            );
            site.register(made_up).await;
        }
        for number in 0..6 {
            site.register(site.device(&format!("u{number}@example.org"), &format!("a{number}f")))
                .await;
        }
        let gone = site.device("carol@example.org", "deadf");
        site.apns.answer_token(&token("deadf"), Answer::refuse(400, "BadDeviceToken"));
        site.register(gone).await;
        site.start();
        for number in 0..6 {
            site.mail(&format!("u{number}@example.org")).await;
        }
        site.apns.wait_for(6).await;
        site.mail("mallory@tenant.example").await;
        site.apns.wait_for(56).await;
        site.mail("carol@example.org").await;
        site.apns.wait_for(57).await;
        site.end().await;
        let (left, errors) = (site.devices("carol@example.org").await, log.count("ERROR"));
        println!("carol has {left} devices, the log has {errors} errors");
        assert_eq!(left, 0, "the device of a phone that is gone is removed");
        assert!(errors <= 1, "the alarm is raised once, not {errors} times");
    })
    .await;
}

/// A registration with another device's token.
fn registration_of(token: &str) -> String {
    registration().replace(TOKEN, token)
}

/// The phone's own registration again and again, which changes nothing.
#[tokio::test]
async fn a_registration_that_is_repeated_is_written_once() {
    limited(async {
        const TIMES: usize = 200;
        let world = World::new().await;
        let mut server = world.serve().await;
        let mut client = world.session(&server).await;
        client.send(format!("a {}\r\n", registration()).as_bytes()).await;
        client.until("a OK").await;
        server.logged("a client registered for push").await;
        world.watched().await;
        let written = || std::fs::metadata(world.file("mailchime.db-wal")).unwrap().len();
        let (before, began) = (written(), Instant::now());
        for number in 0..TIMES {
            client.send(format!("r{number} {}\r\n", registration()).as_bytes()).await;
            client.until(&format!("r{number} OK")).await;
        }
        let (took, grown) = (began.elapsed(), written() - before);
        let lines = server.process.stderr.so_far();
        let lines = lines.iter().filter(|line| line.contains("\"a client registered for push\"")).count();
        println!(
            "{TIMES} registrations of one user: {:.0} a second, {grown} bytes written, {lines} lines",
            TIMES as f64 / took.as_secs_f64()
        );
        // Each that is written takes a page of 4 KiB at least; the program itself writes now and then.
        assert!(grown < TIMES as u64 * 1024, "{grown} bytes are written");
        assert!(lines <= 1, "the log has {lines} lines of it");
        // What changes is written: other mailboxes.
        let other = registration().replace("(\"INBOX\")", "(\"INBOX\" \"Notes\")");
        client.send(format!("b CREATE Notes\r\nc {other}\r\n").as_bytes()).await;
        client.until("c OK").await;
        assert!(written() > before);
    })
    .await;
}

/// Registrations that do change something, from one user: they wait for their turns, and nobody else
/// does.
#[tokio::test]
async fn a_user_who_registers_without_end_waits_alone() {
    limited(async {
        const FREE: usize = 60;
        let world = World::new().await;
        world.backend.add_account("bob", PASSWORD.as_bytes());
        let limit = format!("[limits]\nregistrations_per_minute = {FREE}\n[log]");
        world.configure("[log]", &limit);
        let server = world.serve().await;
        let began = Instant::now();
        let mut alice = world.session(&server).await;
        for number in 0..FREE + 3 {
            let other = registration_of(&format!("{number:064x}"));
            alice.send(format!("r{number} {other}\r\n").as_bytes()).await;
        }
        alice.until(&format!("r{} OK", FREE - 1)).await;
        let asked = Instant::now();
        let mut bob = world.client(&server).await;
        bob.send(format!("in LOGIN bob \"{PASSWORD}\"\r\nb {}\r\n", registration()).as_bytes())
            .await;
        bob.until("b OK").await;
        println!("bob waits {:?} from his connection to the OK", asked.elapsed());
        alice.until(&format!("r{} OK", FREE + 2)).await;
        let took = began.elapsed();
        println!("{} registrations take {took:?}", FREE + 3);
        // The three beyond have their turns after one, two and three seconds.
        assert!(took >= Duration::from_secs(3), "{took:?}");
    })
    .await;
}

/// 400 made-up accounts of one tenant with 50 devices each get mail at once. The next push to APNs
/// but for those that are under way is another tenant's.
#[tokio::test]
async fn a_tenant_who_floods_delays_no_push_of_another() {
    limited(async {
        const ACCOUNTS: usize = 400;
        let mut site = Site::new(config::PushConfig::default()).await;
        site.fill(ACCOUNTS, 50).await;
        site.register(site.device("alice@example.org", "a11ce")).await;
        site.start();
        site.apns.hold_answers(true);
        for number in 0..ACCOUNTS {
            site.mail(&format!("m{number}@tenant.example")).await;
        }
        // As many as may be under way.
        site.apns.wait_for(500).await;
        let before = site.apns.received();
        let began = Instant::now();
        site.mail("alice@example.org").await;
        site.apns.hold_answers(false);
        site.pushed(|push| push.token == Some(token("a11ce"))).await;
        let took = began.elapsed();
        let pushes = site.apns.pushes();
        let place = pushes.iter().position(|push| push.token == Some(token("a11ce"))).unwrap();
        let ahead = place - usize::try_from(before).unwrap();
        println!("{ahead} pushes of the flood went ahead, {took:?}");
        site.running.take().unwrap().task.abort();
        // In their order it would have been all of them.
        assert!(ahead < ACCOUNTS * 50 / 10, "{ahead} pushes went ahead of alice's");
    })
    .await;
}

/// Somebody registers a foreign phone's token under accounts of their own, and sends mail to them.
#[tokio::test]
async fn a_foreign_token_under_many_accounts_does_not_wake_its_owner_without_end() {
    limited(async {
        // As five seconds and 22 seconds, but a tenth as long.
        let interval = Duration::from_millis(500);
        let config = config::PushConfig { min_interval: interval, ..config::PushConfig::default() };
        let mut site = Site::new(config).await;
        for number in 0..40 {
            site.register(site.device(&format!("m{number}@tenant.example"), "a11ce")).await;
        }
        site.register(site.device("alice@example.org", "a11ce")).await;
        for number in 0..40 {
            site.register(site.device(&format!("m{number}@tenant.example"), "a11ce")).await;
        }
        let of_the_token = async |site: &Site| {
            let mut count = 0;
            for number in 0..40 {
                count += site.devices(&format!("m{number}@tenant.example")).await;
            }
            count + site.devices("alice@example.org").await
        };
        let accounts = of_the_token(&site).await;
        site.start();
        let began = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while began.elapsed() < Duration::from_millis(2200) {
            for number in 0..40 {
                site.mail(&format!("m{number}@tenant.example")).await;
            }
            ticks.tick().await;
        }
        let (pushes, time) = (site.pushes_to("a11ce"), began.elapsed());
        site.mail("alice@example.org").await;
        let asked = Instant::now();
        site.pushed(|push| push.json()["aps"]["account-id"] == "ID of alice@example.org").await;
        println!(
            "{accounts} accounts have the token, {pushes} pushes in {time:?}, alice's own mail \
             came after {:?}",
            asked.elapsed()
        );
        site.end().await;
        assert!(accounts <= 20, "{accounts} accounts have the token");
        assert_eq!(site.devices("alice@example.org").await, 1);
        let most = 5 + time.div_duration_f64(interval) as usize;
        assert!(pushes <= most, "{pushes} pushes, {most} would do");
    })
    .await;
}

impl Site {
    /// Accounts of a tenant, each with so many devices, as they would be after as many registrations.
    async fn fill(&self, accounts: usize, devices: usize) {
        use sqlx::{ConnectOptions, Connection};
        let file = self.folder.path().join("mailchime.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
        let mut connection = options.connect().await.unwrap();
        let mut transaction = connection.begin().await.unwrap();
        let now = Timestamp::now().0;
        for number in 0..accounts {
            let name = format!("m{number}@tenant.example");
            let account = sqlx::query("insert into account (name, created_at) values ($1, $2)")
                .bind(&name)
                .bind(now)
                .execute(&mut *transaction)
                .await
                .unwrap()
                .last_insert_rowid();
            let mailbox = sqlx::query("insert into mailbox (account, name) values ($1, 'INBOX')")
                .bind(account)
                .execute(&mut *transaction)
                .await
                .unwrap()
                .last_insert_rowid();
            for device in 0..devices {
                let token = made_up(number, device);
                let options = ApnsOptions { account_id: "ID".to_owned(), version: 2 };
                let subscription = sqlx::query(
                    "insert into subscription (account, transport, endpoint_hash, endpoint, app, \
                     route, options, registered_at) values ($1, 'apns', $2, $3, 's', $4, $5, $6)",
                )
                .bind(account)
                .bind(token.endpoint().hash_hex())
                .bind(token.as_given())
                .bind(&self.pki.topic)
                .bind(options.to_json())
                .bind(now)
                .execute(&mut *transaction)
                .await
                .unwrap()
                .last_insert_rowid();
                sqlx::query(
                    "insert into subscription_mailbox (subscription, mailbox) values ($1, $2)",
                )
                .bind(subscription)
                .bind(mailbox)
                .execute(&mut *transaction)
                .await
                .unwrap();
            }
        }
        transaction.commit().await.unwrap();
        connection.close().await.unwrap();
    }
}

fn made_up(number: usize, device: usize) -> DeviceToken {
    token(&format!("f{number:04x}{device:04x}f"))
}

/// To Dovecot and most others `alice` and `ALICE` are one user.
#[tokio::test]
async fn one_user_in_many_spellings_has_the_devices_of_one() {
    limited(async {
        let site = Site::new(config::PushConfig::default()).await;
        let spellings: Vec<String> = (0..32_u32)
            .map(|number| {
                let letters = "alice".chars().enumerate().map(|(place, letter)| {
                    if number >> place & 1 == 1 { letter.to_ascii_uppercase() } else { letter }
                });
                format!("{}@example.org", letters.collect::<String>())
            })
            .collect();
        for round in 0..3 {
            for (number, spelling) in spellings.iter().enumerate() {
                site.register(site.device(spelling, &format!("{number:02x}{round}f"))).await;
                site.register(site.device(spelling, &format!("{number:02x}{round}e"))).await;
            }
        }
        let mut devices = 0;
        for spelling in &spellings {
            devices += site.devices(spelling).await;
        }
        println!("{} spellings have {devices} devices", spellings.len());
        assert!(devices <= 50, "{devices}");
        // A server may tell them apart: nobody loses a device to somebody who has more.
        site.register(site.device("Bob@example.org", "b0bf")).await;
        for number in 0..60 {
            site.register(site.device("bob@example.org", &format!("b{number:02x}f"))).await;
        }
        let devices =
            [site.devices("Bob@example.org").await, site.devices("bob@example.org").await];
        assert_eq!(devices, [1, 49]);
    })
    .await;
}

/// A registration beyond what a domain may have is refused, and says so.
#[tokio::test]
async fn a_domain_that_has_all_it_may_have_gets_a_refusal_that_says_so() {
    limited(async {
        let world = World::new().await;
        world.backend.add_account("bob", PASSWORD.as_bytes());
        world.configure("[push]", "[push]\naccounts_per_domain = 1\nsubscriptions_per_domain = 2");
        let mut server = world.serve().await;
        let mut alice = world.session(&server).await;
        for (number, answer) in [(1, "OK"), (2, "OK"), (3, "NO [LIMIT]"), (2, "OK")] {
            let registration = registration_of(&format!("{number:064x}"));
            alice.send(format!("r {registration}\r\n").as_bytes()).await;
            alice.until(&format!("r {answer}")).await;
        }
        let mut bob = world.client(&server).await;
        bob.send(format!("in LOGIN bob \"{PASSWORD}\"\r\nb {}\r\n", registration()).as_bytes())
            .await;
        bob.until("b NO [LIMIT]").await;
        server
            .logged("[push] subscriptions_per_domain is reached; mailchime refused a registration")
            .await;
    })
    .await;
}

/// A registration beyond what the accounts of a backend may have is refused, and says so; that of another
/// backend's account is not, nor is a renewal.
#[tokio::test]
async fn a_backend_that_has_all_it_may_have_gets_a_refusal_that_says_so() {
    limited(async {
        let world = World::new().await;
        world.backend.add_account("bob", PASSWORD.as_bytes());
        let other = DemoBackend::start(listener().await, None).unwrap();
        other.add_account("carol@b.example", PASSWORD.as_bytes());
        let route = format!(
            "[[route]]\ndomain = \"b.example\"\naddress = \"{}\"\ntls = \"none\"\n[push]\n\
             accounts_per_backend = 1\nsubscriptions_per_backend = 2",
            other.address()
        );
        world.configure("[push]", &route);
        let mut server = world.serve().await;
        let mut alice = world.session(&server).await;
        alice.send(format!("r {}\r\n", registration_of(&"1".repeat(64))).as_bytes()).await;
        alice.until("r OK").await;
        let mut bob = world.client(&server).await;
        bob.send(format!("in LOGIN bob \"{PASSWORD}\"\r\nb {}\r\n", registration()).as_bytes())
            .await;
        bob.until("b NO [LIMIT] No more devices of this mail server can register").await;
        server
            .logged("[push] accounts_per_backend is reached; mailchime refused a registration")
            .await;
        for (number, answer) in [(2, "OK"), (3, "NO [LIMIT]")] {
            let registration = registration_of(&number.to_string().repeat(64));
            alice.send(format!("r {registration}\r\n").as_bytes()).await;
            alice.until(&format!("r {answer}")).await;
        }
        server
            .logged("[push] subscriptions_per_backend is reached; mailchime refused a registration")
            .await;
        // A renewal that has to be written.
        let renewal = registration_of(&"1".repeat(64));
        let renewal = renewal.replace("(\"INBOX\")", "(\"INBOX\" \"Notes\")");
        alice.send(format!("n CREATE Notes\r\nr {renewal}\r\n").as_bytes()).await;
        alice.until("r OK").await;
        let mut carol = world.client(&server).await;
        let login = format!("in LOGIN carol@b.example \"{PASSWORD}\"\r\n");
        carol.send(format!("{login}c {}\r\n", registration()).as_bytes()).await;
        carol.until("c OK").await;
    })
    .await;
}

/// A tenant whose accounts all get mail at once is pushed as often as its domain may be, and all of it in
/// the end. Another tenant's push does not wait.
#[tokio::test]
async fn a_domain_over_its_rate_of_pushes_waits_alone_and_loses_none() {
    limited(async {
        const ACCOUNTS: usize = 40;
        const RATE: u32 = 10;
        let config = config::PushConfig {
            pushes_per_second_per_domain: RATE,
            ..config::PushConfig::default()
        };
        let mut site = Site::new(config).await;
        for number in 0..ACCOUNTS {
            let login = format!("m{number}@tenant.example");
            site.register(site.device(&login, &format!("f{number:02x}f"))).await;
        }
        site.register(site.device("alice@example.org", "a11ce")).await;
        site.start();
        let began = Instant::now();
        for number in 0..ACCOUNTS {
            site.mail(&format!("m{number}@tenant.example")).await;
        }
        // As many as go at once.
        site.apns.wait_for(RATE.into()).await;
        site.mail("alice@example.org").await;
        site.pushed(|push| push.token == Some(token("a11ce"))).await;
        let pushes = site.apns.pushes();
        let place = pushes.iter().position(|push| push.token == Some(token("a11ce"))).unwrap();
        for number in 0..ACCOUNTS {
            let device = token(&format!("f{number:02x}f"));
            site.pushed(|push| push.token.as_ref() == Some(&device)).await;
        }
        let took = began.elapsed();
        // The dispatcher reads at its start what is due on disk. Where that comes behind the first mails, it
        // finds the marks of pushes that wait for the domain's rate, and may send those twice.
        for number in 0..ACCOUNTS {
            let pushes = site.pushes_to(&format!("f{number:02x}f"));
            assert!((1..=2).contains(&pushes), "{pushes} pushes to device {number}");
        }
        let waits = site.counters.pushes_per_second_per_domain.hits();
        println!("{ACCOUNTS} pushes of one domain take {took:?}, {place} went before alice's");
        site.end().await;
        // The first second's go at once, and the others one after the other.
        let least = Duration::from_secs(1) * (ACCOUNTS as u32 - RATE) / RATE;
        assert!(took >= least, "{took:?}");
        assert!(place < ACCOUNTS, "alice's push came after {place} of the tenant's");
        assert!(waits > 0);
    })
    .await;
}
