//! Watchers at real servers: in which way each is watched, and how soon a change there becomes an event.
//!
//! Each test prints a line of what it saw.

mod previews;

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mailchime::config::{DoveadmConfig, PreviewContent, WatchConnection};
use mailchime::metrics::{VisitBy, Watching as Mode};
use mailchime::model::{Account, Hint, Mailbox, MailboxEvent, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::block_in_place;

use crate::support::limited;
use crate::support::listener;
use crate::support::ports::own_address;
use crate::support::servers::client::Client;
use crate::support::servers::courier::Courier;
use crate::support::servers::cyrus::Cyrus;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::imap4d::Imap4d;
use crate::support::servers::{ALICE, OTHERS, mail};
use crate::support::watching::{WatchWorld, Watching};

/// Between two polls: the least that the configuration takes.
const POLL: Duration = Duration::from_secs(1);

/// A user who is watched at a server.
struct Scene {
    watching: Watching,
    _world: WatchWorld,
    began: Instant,
    /// What was seen, and after how many milliseconds.
    seen: Vec<String>,
}

impl Scene {
    /// Watches as soon as the server is known to be watched in this way.
    async fn new(
        address: SocketAddr,
        login: &str,
        mailboxes: &[&str],
        mode: Mode,
        adjust: impl FnOnce(&mut WatchWorld),
    ) -> Self {
        let mut world = WatchWorld::new(address).await;
        world.password = ALICE.1;
        (world.watch.poll_interval, world.watch.poll_max) = (POLL, POLL);
        world.watch.answer_timeout = Duration::from_secs(10);
        adjust(&mut world);
        let mailboxes: Vec<_> = mailboxes.iter().map(|name| (*name, Snapshot::default())).collect();
        world.register(login, &mailboxes).await;
        if world.preview != PreviewContent::None {
            world.register_browser(login, &mailboxes).await;
        }
        let watching = world.watch();
        let (began, seen) = (Instant::now(), Vec::new());
        let mut scene = Self { watching, _world: world, began, seen };
        scene.until(mode).await;
        scene
    }

    async fn until(&mut self, mode: Mode) {
        while self.watching.watched(mode) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.seen.push(format!("{mode:?}"));
    }

    /// Makes something happen, and waits for its event; one that confirms an earlier event does
    /// not count.
    async fn expect(&mut self, told: &str, happen: impl FnOnce()) {
        let began = Instant::now();
        block_in_place(happen);
        loop {
            let line = self.watching.next().await;
            if line.starts_with(told) {
                break;
            }
            assert!(!line.contains(": new mail"), "{line:?} instead of {told:?}");
        }
        let took = began.elapsed();
        self.seen.push(format!("{told} {} ms", took.as_millis()));
    }

    /// Makes something happen that gives so many events, at least; all that comes until there is silence.
    async fn told(&mut self, least: usize, happen: impl FnOnce()) -> Vec<String> {
        block_in_place(happen);
        let mut told = Vec::new();
        loop {
            let line = if told.len() < least {
                self.watching.next().await
            } else {
                match tokio::time::timeout(SILENCE, self.watching.next()).await {
                    Ok(line) => line,
                    Err(_) => break,
                }
            };
            let line = line.split_once(',').map_or(line.as_str(), |(what, _)| what);
            // What confirms what was told, or is no push.
            if !line.ends_with("confirmed") && !line.ends_with("as told") {
                told.push(line.to_owned());
            }
        }
        self.seen.push(format!("{told:?}"));
        told
    }

    async fn end(self, server: &str) {
        let line = format!(
            "{server}: {} (in {:.1} s)\n",
            self.seen.join(", "),
            self.began.elapsed().as_secs_f64()
        );
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        self.watching.stop().await;
    }
}

/// In this time most comes that is yet to come.
const SILENCE: Duration = Duration::from_millis(1500);

/// No poll comes in any test: every event begins with something that the server says.
fn without_polls(world: &mut WatchWorld) {
    let hour = Duration::from_hours(1);
    (world.watch.poll_interval, world.watch.poll_max) = (hour, hour);
}

/// A Dovecot to which mail comes as to most: by LMTP, also into other mailboxes than INBOX.
fn dovecot(test: &str, capability: Option<&'static str>) -> Option<Dovecot> {
    let extra = "
lmtp_save_to_detail_mailbox = yes
lda_mailbox_autocreate = yes
";
    let dovecot = Dovecot::start(test, &Options { capability, extra, ..Options::default() })?;
    let mut client = Client::connect(dovecot.plain);
    client.login(ALICE);
    client.ask("CREATE Team");
    Some(dovecot)
}

async fn dovecot_tells(dovecot: &Dovecot, mode: Mode) -> Scene {
    let boxes = ["INBOX", "Team"];
    let adjust = |world: &mut WatchWorld| {
        if mode == Mode::Notify {
            without_polls(world);
        }
    };
    let mut scene = Scene::new(dovecot.plain, ALICE.0, &boxes, mode, adjust).await;
    for _ in 0..2 {
        let deliver = || dovecot.deliver_by_lmtp(ALICE.0, &mail("for the inbox"));
        scene.expect("INBOX: new mail", deliver).await;
        let deliver = || dovecot.deliver_by_lmtp("alice+Team", &mail("for the team"));
        scene.expect("Team: new mail", deliver).await;
    }
    let read = |mailbox| move || read(dovecot.plain, ALICE.0, mailbox);
    scene.expect("INBOX: quiet", read("INBOX")).await;
    scene.expect("Team: quiet", read("Team")).await;
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_by_notify() {
    let Some(dovecot) = dovecot("watch_servers::dovecot_by_notify", None) else { return };
    limited(async {
        dovecot_tells(&dovecot, Mode::Notify).await.end("Dovecot by NOTIFY").await;
    })
    .await;
}

/// Now and then everything is looked at and asked for anew. A NOTIFY SET that takes the place of
/// another makes Dovecot 2.3 deaf: it tells nothing of other mailboxes until the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_by_notify_that_is_asked_for_again() {
    let test = "watch_servers::dovecot_by_notify_that_is_asked_for_again";
    let Some(dovecot) = dovecot(test, None) else { return };
    limited(async {
        // Longer than a delivery takes to be told.
        let check = 2 * SILENCE;
        let adjust = |world: &mut WatchWorld| {
            world.watch.idle_check = check;
            without_polls(world);
        };
        let boxes = ["INBOX", "Team"];
        let mut scene = Scene::new(dovecot.plain, ALICE.0, &boxes, Mode::Notify, adjust).await;
        while scene.began.elapsed() < 3 * check {
            let deliver = || dovecot.deliver_by_lmtp("alice+Team", &mail("for the team"));
            scene.expect("Team: new mail", deliver).await;
        }
        scene.end("Dovecot by NOTIFY, again and again").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_by_idle_and_list_status() {
    let capability = Some("IMAP4rev1 IDLE LIST-EXTENDED LIST-STATUS CONDSTORE");
    let Some(dovecot) = dovecot("watch_servers::dovecot_by_idle", capability) else { return };
    limited(async {
        dovecot_tells(&dovecot, Mode::Idle).await.end("Dovecot by IDLE").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_by_polls() {
    let Some(dovecot) = dovecot("watch_servers::dovecot_by_polls", Some("IMAP4rev1")) else {
        return;
    };
    limited(async {
        dovecot_tells(&dovecot, Mode::Poll).await.end("Dovecot by polls").await;
    })
    .await;
}

/// Dovecot's NOTIFY knows only of what Dovecot itself delivers. What a program puts into a Maildir
/// is found by polls, and in INBOX told by IDLE.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_whose_maildirs_another_program_fills() {
    let test = "watch_servers::dovecot_whose_maildirs_another_program_fills";
    let Some(dovecot) = dovecot(test, None) else { return };
    limited(async {
        let boxes = ["INBOX", "Team"];
        let mut scene = Scene::new(dovecot.plain, ALICE.0, &boxes, Mode::Notify, |_| {}).await;
        for _ in 0..4 {
            let deliver = || drop(dovecot.deliver(ALICE.0, "INBOX", &mail("for the inbox")));
            scene.expect("INBOX: new mail", deliver).await;
            let deliver = || drop(dovecot.deliver(ALICE.0, "Team", &mail("for the team")));
            scene.expect("Team: new mail", deliver).await;
        }
        scene.end("Dovecot with foreign deliveries").await;
    })
    .await;
}

/// What the phone shows is one push, and what it does not show is none: mail that arrives read, keywords
/// and marks that filters set.
async fn dovecot_tells_what_the_phone_shows(dovecot: &Dovecot, mode: Mode) -> Scene {
    // With CONDSTORE (RFC 7162) even what changes no number is seen.
    let swapped = usize::from(mode == Mode::Notify);
    let boxes = ["INBOX", "Team"];
    for user in [ALICE.0, "alice+Team"] {
        for _ in 0..3 {
            dovecot.deliver_by_lmtp(user, &mail("hello"));
        }
    }
    // Their states come with the first look at them.
    let mut scene = Scene::new(dovecot.plain, ALICE.0, &boxes, mode, |world| {
        (world.watch.poll_interval, world.watch.poll_max) = (SILENCE / 3, SILENCE / 3);
    })
    .await;
    scene.told(0, || {}).await;
    let (mut client, mut other) = (Client::connect(dovecot.plain), Client::connect(dovecot.plain));
    for (client, mailbox) in [(&mut client, "INBOX"), (&mut other, "Team")] {
        assert!(client.login(ALICE).starts_with("x OK"));
        client.ask(&format!("SELECT {mailbox}"));
        let mut ask = |commands: &[&str]| {
            for command in commands {
                let answer = client.ask_bytes(command.as_bytes());
                assert!(answer.last().unwrap().starts_with("x OK"), "{command}: {answer:?}");
            }
        };
        let append = |flags: &str| format!("APPEND {mailbox} ({flags}) {{12+}}\r\nSubject: a\r\n");
        let (read, unread) = (append("\\Seen $Label"), append(""));
        let (new, quiet) = (format!("{mailbox}: new mail"), format!("{mailbox}: quiet"));
        let (new, quiet) = (new.as_str(), quiet.as_str());
        for (commands, expected) in [
            (&[read.as_str()][..], &[new][..]),
            (&["STORE 1 +FLAGS ($Label)"], &[]),
            (&["STORE 1:3 +FLAGS (\\Flagged)"], &[]),
            (&[unread.as_str(), "STORE 5 +FLAGS ($Label)"], &[new]),
            (&["STORE 2 +FLAGS (\\Seen)"], &[quiet]),
            (&["STORE 2 -FLAGS (\\Seen)", "STORE 3 +FLAGS (\\Seen)"], &[quiet][..swapped]),
            (&["STORE 1 +FLAGS (\\Deleted \\Seen)"], &[quiet]),
            (&["EXPUNGE"], &[quiet]),
        ] {
            let told = scene.told(expected.len(), || ask(commands)).await;
            // A look may come between two commands.
            let between = commands.len() == 2 && told == [quiet, quiet];
            assert!(told == expected || between, "{commands:?}: {told:?}");
        }
    }
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_pushes_once_for_what_the_phone_shows() {
    let test = "watch_servers::dovecot_pushes_once_for_what_the_phone_shows";
    let Some(dovecot) = dovecot(test, None) else { return };
    let scene = dovecot_tells_what_the_phone_shows(&dovecot, Mode::Notify);
    let scene = tokio::time::timeout(Duration::from_secs(400), scene).await.unwrap();
    scene.end("Dovecot by NOTIFY").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_without_condstore_pushes_once_for_what_the_phone_shows() {
    let test = "watch_servers::dovecot_without_condstore_pushes_once_for_what_the_phone_shows";
    let Some(dovecot) = dovecot(test, Some("IMAP4rev1 IDLE LIST-STATUS")) else { return };
    let scene = dovecot_tells_what_the_phone_shows(&dovecot, Mode::Idle);
    let scene = tokio::time::timeout(Duration::from_secs(400), scene).await.unwrap();
    scene.end("Dovecot by IDLE without CONDSTORE").await;
}

/// Relays connections to a server, and cuts each on which nothing was said for `quiet`. Counts them.
async fn network_that_cuts(server: SocketAddr, quiet: Duration) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = listener().await;
    let (address, count) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let accepted = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            accepted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let (mut asked, mut said) = (vec![0; 4096], vec![0; 4096]);
                loop {
                    let (to, bytes) = tokio::select! {
                        Ok(length) = client.read(&mut asked) => (&mut server, &asked[..length]),
                        Ok(length) = server.read(&mut said) => (&mut client, &said[..length]),
                        () = tokio::time::sleep(quiet) => return,
                    };
                    if bytes.is_empty() || to.write_all(bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_behind_a_network_that_cuts_quiet_connections() {
    let test = "watch_servers::dovecot_behind_a_network_that_cuts_quiet_connections";
    let Some(dovecot) = dovecot(test, None) else { return };
    let cut = Duration::from_secs(5);
    let run = async {
        let (network, connections) = network_that_cuts(dovecot.plain, cut).await;
        let adjust = |world: &mut WatchWorld| {
            let watch = &mut world.watch;
            (watch.poll_interval, watch.poll_max) = (20 * cut, 20 * cut);
            (watch.retry_min, watch.retry_max) = (Duration::from_millis(200), 20 * cut);
        };
        let boxes = ["INBOX", "Team"];
        let mut scene = Scene::new(network, ALICE.0, &boxes, Mode::Notify, adjust).await;
        let (mut before, mut steady) = (0, 0);
        while steady < 4 {
            // As long as a connection lasts that is quiet, and some more.
            tokio::time::sleep(cut + cut / 4).await;
            let now = connections.load(Ordering::Relaxed);
            assert!(now <= 8, "{now} connections");
            steady = if now == before { steady + 1 } else { 0 };
            before = now;
        }
        scene.seen.push(format!("{before} connections"));
        let deliver = || dovecot.deliver_by_lmtp(ALICE.0, &mail("for the inbox"));
        scene.expect("INBOX: new mail", deliver).await;
        let deliver = || dovecot.deliver_by_lmtp("alice+Team", &mail("for the team"));
        scene.expect("Team: new mail", deliver).await;
        scene.end("Dovecot behind a network that cuts").await;
    };
    tokio::time::timeout(Duration::from_secs(400), run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cyrus_by_idle() {
    let Some(cyrus) = Cyrus::start("watch_servers::cyrus_by_idle") else { return };
    limited(async {
        let mut scene = Scene::new(cyrus.plain, ALICE.0, &["INBOX"], Mode::Idle, |_| {}).await;
        let deliver = || cyrus.deliver(ALICE.0, &mail("hello"));
        scene.expect("INBOX: new mail", deliver).await;
        // It may come while IDLE begins anew, of which Cyrus does not tell.
        scene.expect("INBOX: new mail", deliver).await;
        scene.expect("INBOX: quiet", || read(cyrus.plain, ALICE.0, "INBOX")).await;
        scene.end("Cyrus").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn courier_by_idle() {
    let Some(courier) = Courier::start("watch_servers::courier_by_idle") else { return };
    // It makes the mailbox, too.
    courier.deliver(ALICE.0, "Team", &mail("the first"));
    limited(async {
        let boxes = ["INBOX", "INBOX.Team"];
        let mut scene = Scene::new(courier.plain, ALICE.0, &boxes, Mode::Idle, |_| {}).await;
        // The state in which it was registered is unknown: its unread mail may have come since.
        scene.expect("INBOX.Team: new mail", || {}).await;
        for _ in 0..2 {
            let deliver = || courier.deliver(ALICE.0, "INBOX", &mail("hello"));
            scene.expect("INBOX: new mail", deliver).await;
            let deliver = || courier.deliver(ALICE.0, "Team", &mail("hello, all"));
            scene.expect("INBOX.Team: new mail", deliver).await;
        }
        scene.expect("INBOX: quiet", || read(courier.plain, ALICE.0, "INBOX")).await;
        scene.end("Courier").await;
    })
    .await;
}

/// It refuses this password unless it is quoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn courier_with_a_tilde_in_the_password() {
    let test = "watch_servers::courier_with_a_tilde_in_the_password";
    let Some(courier) = Courier::start(test) else { return };
    limited(async {
        let (carol, password) = OTHERS[0];
        let adjust = |world: &mut WatchWorld| world.password = password;
        let mut scene = Scene::new(courier.plain, carol, &["INBOX"], Mode::Idle, adjust).await;
        let deliver = || courier.deliver(carol, "INBOX", &mail("hello"));
        scene.expect("INBOX: new mail", deliver).await;
        scene.end("Courier, Zip~ped9").await;
    })
    .await;
}

/// It accepts IDLE and tells nothing; then it is polled, and its UIDVALIDITY is another one at each
/// poll.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imap4d_announces_nothing_in_idle_and_is_polled() {
    let Some(imap4d) = Imap4d::start("watch_servers::imap4d") else { return };
    limited(async {
        let login = Imap4d::login_name(ALICE.0);
        let adjust = |world: &mut WatchWorld| world.watch.idle_check = POLL;
        let mut scene = Scene::new(imap4d.plain, &login, &["INBOX"], Mode::Idle, adjust).await;
        for _ in 0..3 {
            let deliver = || imap4d.deliver(ALICE.0, &mail("hello"));
            scene.expect("INBOX: new mail", deliver).await;
        }
        scene.until(Mode::Poll).await;
        // Three polls of a mailbox to which nothing comes.
        let quiet = tokio::time::timeout(3 * POLL + POLL / 2, scene.watching.next()).await;
        assert!(quiet.is_err(), "told without need: {quiet:?}");
        let deliver = || imap4d.deliver(ALICE.0, &mail("hello"));
        scene.expect("INBOX: new mail", deliver).await;
        scene.expect("INBOX: quiet", || read(imap4d.plain, &login, "INBOX")).await;
        scene.end("imap4d").await;
    })
    .await;
}

/// Reads the first message of a mailbox in another session.
fn read(address: SocketAddr, login: &str, mailbox: &str) {
    let mut client = Client::connect(address);
    assert!(client.login((login, ALICE.1)).starts_with("x OK"));
    client.ask(&format!("SELECT {mailbox}"));
    let answer = client.ask("STORE 1 +FLAGS (\\Seen)");
    assert!(answer.last().unwrap().starts_with("x OK"), "{answer:?}");
    client.ask("LOGOUT");
}

/// Nobody logs in: the key says who asks.
#[tokio::test(flavor = "multi_thread")]
async fn doveadm_is_asked_in_place_of_a_login() {
    const TEST: &str = "watch_servers::doveadm_is_asked_in_place_of_a_login";
    limited(async {
        let port = own_address().port();
        let extra = format!(
            "doveadm_api_key = sesame\nservice doveadm {{\n  inet_listener http {{\n    port = {port}\n  }}\n}}\n"
        );
        let options = Options { extra: extra.leak(), ..Options::default() };
        let Some(dovecot) = block_in_place(|| Dovecot::start(TEST, &options)) else { return };
        block_in_place(|| dovecot.deliver(ALICE.0, "Entw&APw-rfe", &mail("a")));
        let mailboxes = ["INBOX", "Entwürfe", "Missing"];
        let mut scene = Scene::new(dovecot.plain, ALICE.0, &mailboxes, Mode::OnDemand, |world| {
            world.watch.connection = WatchConnection::OnDemand;
            let key_file = world.folder.path().join("doveadm.key");
            std::fs::write(&key_file, "sesame\n").unwrap();
            let only_ours = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&key_file, only_ours).unwrap();
            let url = format!("http://127.0.0.1:{port}/doveadm/v1").parse().unwrap();
            world.doveadm = Some(DoveadmConfig { url, key_file });
        })
        .await;
        // An inbox that nobody has used is not there yet.
        let first = scene.told(1, || {}).await;
        assert!(first.iter().any(|line| line.starts_with("Entwürfe: new mail")), "{first:?}");
        let hints = |scene: &Scene| {
            let (account, seen_at) = (Account::from_login(ALICE.0), Instant::now());
            let (event, state) = (MailboxEvent::FlagsSet, Snapshot::default());
            let hint = Hint { account, mailbox: Some(Mailbox::inbox()), event, state, seen_at };
            let handle = scene.watching.inquirer.clone();
            async move { handle.hints(vec![hint]).await.unwrap() }
        };
        block_in_place(|| dovecot.deliver_by_lmtp(ALICE.0, &mail("b")));
        assert_eq!(hints(&scene).await, [true]);
        scene.expect("INBOX: new mail", || {}).await;
        let visits = &scene.watching.metrics.visits;
        assert_eq!(visits.of(VisitBy::Login).get(), 0);
        assert!(visits.of(VisitBy::Doveadm).get() >= 2);
        scene.end(TEST).await;
    })
    .await;
}
