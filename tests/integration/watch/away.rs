//! Accounts without a connection whose backend cannot be reached, or is asked for as many as it may be.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mailchime::config::{CredentialsMode, DoveadmConfig, WatchConnection};
use mailchime::demo::backend::DemoBackend;
use mailchime::metrics::{VisitBy, Watching as Mode};
use mailchime::model::{Account, Hint, Mailbox, MailboxEvent, SessionEvent, Snapshot, Timestamp};
use mailchime::store::DueMark;
use mailchime::watch::WatcherStatus;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tracing::Level;

use super::hints::hint;
use super::mail::backend;
use super::on_demand::{mark, resting, until_resting, world};
use crate::support::log::Log;
use crate::support::stage::{IDLE, Stage};
use crate::support::watching::{PASSWORD, WatchWorld, told};
use crate::support::{later, limited, listener, patient, until};

const MAIL: &str = "Subject: hello\r\n\r\nHi there\r\n";

#[tokio::test]
async fn an_account_whose_backend_is_away_shows_that_until_it_is_back_and_numbers_are_told() {
    patient(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        let retry = Duration::from_mins(10);
        (world.watch.retry_min, world.watch.retry_max) = (retry, retry);
        let mut watching = resting(&world, &backend).await;
        backend.refuse().await;
        let inbox = || Some(Mailbox::inbox());
        hint(&watching, inbox(), MailboxEvent::FlagsSet, Snapshot::default()).await;
        let away = watching.until("backing_off").await;
        // They do not wait for the next try, nor is there one.
        hint(&watching, inbox(), MailboxEvent::MessageNew, told(1, 2, 1, 1)).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        let still = watching.until("backing_off").await;
        assert_eq!((still.since, still.next_try_at), (away.since, away.next_try_at));
        backend.resume().await.unwrap();
        later(retry).await;
        until_resting(&world, &watching).await;
        watching.stop().await;
    })
    .await;
}

/// More of them than may be asked for at once.
const MANY: usize = 300;

/// Tasks of the whole test.
pub(super) fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[tokio::test]
async fn the_accounts_of_a_backend_that_is_away_wait_together_in_a_sweep() {
    patient(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        let retry = Duration::from_mins(10);
        (world.watch.retry_min, world.watch.retry_max) = (retry, retry);
        for number in 1..MANY {
            let user = format!("user{number}");
            backend.add_account(&user, PASSWORD.as_bytes());
            world.register(&user, &[("INBOX", told(1, 1, 0, 0))]).await;
        }
        backend.refuse().await;
        let log = Log::default();
        let _logs = tracing::subscriber::set_default(log.subscriber(Level::INFO));
        let before = tasks();
        let mut watching = world.watch();
        let many = i64::try_from(MANY).unwrap();
        let wait = async || watching.metrics.sweep_waiting.get() == many && tasks() < before + 20;
        until(wait).await;
        let tries = async || {
            let all = watching.inquirer.watchers(None).await.unwrap();
            let away = all.into_iter().filter(|it| it.state == "backing_off");
            away.filter_map(|it| it.next_try_at).collect::<Vec<_>>()
        };
        let first = tries().await;
        assert!((1..MANY).contains(&first.len()), "{}", first.len());
        assert!(first.iter().all(|at| *at == first[0]), "{first:?}");
        // One tries for all of them.
        later(retry).await;
        until(async || tries().await.iter().filter(|at| **at != first[0]).count() == 1).await;
        until(wait).await;
        assert_eq!(log.count("the backend cannot be reached"), 1);
        assert_eq!(backend.counters().accepted, 0);
        backend.resume().await.unwrap();
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        later(retry).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        until(async || world.store.due_accounts().await.unwrap().is_empty()).await;
        until(async || watching.watched(Mode::OnDemand) == MANY).await;
        assert_eq!(backend.counters().accepted, MANY as u64);
        assert_eq!(log.count("the backend can be reached again"), 1);
        watching.stop().await;
    })
    .await;
}

/// The database fails while the accounts of a sweep wait for their turn. Only one of them asks it.
#[tokio::test]
async fn the_accounts_of_a_sweep_wait_together_while_the_database_fails() {
    patient(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        let retry = Duration::from_mins(10);
        (world.watch.retry_min, world.watch.retry_max) = (retry, retry);
        for number in 1..MANY {
            let user = format!("user{number}");
            backend.add_account(&user, PASSWORD.as_bytes());
            world.register(&user, &[("INBOX", told(1, 1, 0, 0))]).await;
        }
        let url = world.reopened(Duration::from_secs(30)).await;
        let mut beside = SqliteConnection::connect(&url).await.unwrap();
        backend.refuse().await;
        let log = Log::default();
        let _logs = tracing::subscriber::set_default(log.subscriber(Level::INFO));
        let before = tasks();
        let mut watching = world.watch();
        let many = i64::try_from(MANY).unwrap();
        let wait = async || watching.metrics.sweep_waiting.get() == many && tasks() < before + 20;
        until(wait).await;
        beside.execute("alter table subscription_mailbox rename to away").await.unwrap();
        backend.resume().await.unwrap();
        // Each try is of one account.
        for tries in 1..4 {
            later(retry).await;
            until(async || log.count("watching waits for the database") == tries).await;
            until(wait).await;
        }
        assert_eq!(backend.counters().accepted, 0);
        beside.execute("alter table away rename to subscription_mailbox").await.unwrap();
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        later(retry).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        until(async || world.store.due_accounts().await.unwrap().is_empty()).await;
        until(async || watching.watched(Mode::OnDemand) == MANY).await;
        assert_eq!(backend.counters().accepted, MANY as u64);
        watching.stop().await;
    })
    .await;
}

/// The wait after refusals goes on where it was, also when the account waits with all others in between.
#[tokio::test]
async fn an_account_as_which_the_master_is_refused_waits_ever_longer_whatever_fails_in_between() {
    for database in [false, true] {
        patient(async {
            let backend = backend().await;
            let mut world = world(&backend).await;
            world.credentials = CredentialsMode::Master;
            let retry = Duration::from_mins(10);
            (world.watch.retry_min, world.watch.retry_max) = (retry, retry);
            let url = world.reopened(Duration::from_secs(30)).await;
            let mut beside = SqliteConnection::connect(&url).await.unwrap();
            let watching = world.watch();
            let mut last = 0;
            let mut waits = async |refused: bool| loop {
                let status = watching.until("backing_off").await;
                let (at, reason) = (status.next_try_at.unwrap(), status.reason.unwrap());
                if at != last && reason.starts_with("the master user is refused") == refused {
                    last = at;
                    break Duration::from_millis((at - status.since).try_into().unwrap());
                }
                tokio::task::yield_now().await;
            };
            for _ in 0..2 {
                let wait = waits(true).await;
                assert!(wait.as_secs().abs_diff(900) <= 301, "{wait:?}");
                if database {
                    beside
                        .execute("alter table subscription_mailbox rename to away")
                        .await
                        .unwrap();
                } else {
                    backend.refuse().await;
                }
                later(2 * retry).await;
                waits(false).await;
                if database {
                    beside
                        .execute("alter table away rename to subscription_mailbox")
                        .await
                        .unwrap();
                } else {
                    backend.resume().await.unwrap();
                }
                later(retry).await;
            }
            let wait = waits(true).await;
            assert!(wait > Duration::from_mins(19), "{wait:?} after three refusals");
            watching.stop().await;
        })
        .await;
    }
}

/// What a backend greets everybody with, and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    LoginRefused,
    ByeAtLogin,
    StatusRefused,
    ByeAtStatus,
    Over,
}

/// A backend in trouble, and how many logins it has been sent.
struct TroubledBackend {
    trouble: Mutex<Trouble>,
    logins: AtomicUsize,
}

impl TroubledBackend {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let client = listener.accept().await.unwrap().0;
            let backend = Arc::clone(&self);
            tokio::spawn(async move { backend.answer(BufStream::new(client)).await });
        }
    }

    /// To the end of a connection. What the watcher does not wait for is lost.
    async fn answer(&self, mut client: BufStream<TcpStream>) -> std::io::Result<()> {
        client.write_all(b"* OK [CAPABILITY IMAP4rev1] hi\r\n").await?;
        loop {
            client.flush().await?;
            let mut line = String::new();
            client.read_line(&mut line).await?;
            let Some((tag, command)) = line.split_once(' ') else { return Ok(()) };
            let trouble = *self.trouble.lock().unwrap();
            let command = command.split([' ', '\r']).next().unwrap_or_default();
            if command == "LOGIN" {
                self.logins.fetch_add(1, Ordering::SeqCst);
            }
            let answer = match (command, trouble) {
                ("LOGIN", Trouble::LoginRefused) => format!("{tag} NO [SERVERBUG] later\r\n"),
                ("LOGIN", Trouble::ByeAtLogin) | ("STATUS", Trouble::ByeAtStatus) => {
                    client.write_all(b"* BYE [UNAVAILABLE] later\r\n").await?;
                    return client.flush().await;
                }
                ("STATUS", Trouble::StatusRefused) => format!("{tag} NO [SERVERBUG] later\r\n"),
                ("STATUS", _) => {
                    let numbers = "MESSAGES 0 UIDNEXT 1 UIDVALIDITY 1 UNSEEN 0";
                    format!("* STATUS INBOX ({numbers})\r\n{tag} OK done\r\n")
                }
                ("LOGOUT", _) => {
                    client.write_all(format!("* BYE\r\n{tag} OK out\r\n").as_bytes()).await?;
                    return client.flush().await;
                }
                ("LOGIN", _) => format!("{tag} OK [CAPABILITY IMAP4rev1] in\r\n"),
                _ => format!("{tag} OK done\r\n"),
            };
            client.write_all(answer.as_bytes()).await?;
        }
    }
}

/// It can be reached, so each account is tried, and after a time of its own again: of one it may be the account.
#[tokio::test]
async fn accounts_of_a_backend_in_trouble_wait_without_a_task_each_for_its_next_try() {
    use Trouble::*;
    for trouble in [LoginRefused, ByeAtLogin, StatusRefused, ByeAtStatus] {
        patient(async {
            let listener = listener().await;
            let mut world = WatchWorld::new(listener.local_addr().unwrap()).await;
            world.watch.connection = WatchConnection::OnDemand;
            let retry = Duration::from_mins(10);
            (world.watch.retry_min, world.watch.retry_max) = (retry, retry);
            for number in 0..MANY {
                world.register(&format!("user{number}"), &[("INBOX", told(1, 1, 0, 0))]).await;
            }
            let (trouble, logins) = (Mutex::new(trouble), AtomicUsize::new(0));
            let backend = Arc::new(TroubledBackend { trouble, logins });
            let serving = tokio::spawn(Arc::clone(&backend).serve(listener));
            let log = Log::default();
            let _logs = tracing::subscriber::set_default(log.subscriber(Level::INFO));
            let before = tasks();
            let watching = world.watch();
            let logins = || backend.logins.load(Ordering::SeqCst);
            let failed = || log.count("watching is interrupted");
            let all_wait = async |failures: usize| {
                let waiting = watching.watched(Mode::BackingOff);
                failed() == failures && waiting == MANY && tasks() < before + 20
            };
            until(async || all_wait(MANY).await).await;
            assert_eq!(logins(), MANY, "each has tried once");
            // An event hastens nothing.
            let (account, mailbox) = (Account::from_login("user1"), Some(Mailbox::inbox()));
            let (event, state) = (MailboxEvent::MessageExpunge, Snapshot::default());
            let hint = Hint { account, mailbox, event, state, seen_at: Instant::now() };
            watching.inquirer.hints(vec![hint]).await.unwrap();
            later(retry).await;
            until(async || all_wait(2 * MANY).await).await;
            assert_eq!(logins(), 2 * MANY);
            *backend.trouble.lock().unwrap() = Over;
            later(2 * retry).await;
            until(async || world.store.due_accounts().await.unwrap().is_empty()).await;
            until(async || watching.watched(Mode::OnDemand) == MANY).await;
            assert_eq!(logins(), 3 * MANY);
            watching.stop().await;
            serving.abort();
        })
        .await;
    }
}

/// doveadm's HTTP API, as a test plays it.
struct DoveadmApi {
    listener: TcpListener,
    world: WatchWorld,
}

impl DoveadmApi {
    async fn new(backend: &DemoBackend) -> Self {
        let mut world = WatchWorld::new(backend.address()).await;
        world.watch.connection = WatchConnection::OnDemand;
        let retry = Duration::from_mins(10);
        (world.watch.retry_min, world.watch.retry_max) = (retry, retry);
        let listener = listener().await;
        let key_file = world.folder.path().join("doveadm.key");
        std::fs::write(&key_file, "sesame\n").unwrap();
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let url = format!("http://{}/doveadm/v1", listener.local_addr().unwrap()).parse().unwrap();
        world.doveadm = Some(DoveadmConfig { url, key_file });
        Self { listener, world }
    }

    /// The same until `test` has ended.
    async fn answers_during(
        &self,
        test: impl Future<Output = ()>,
        answer: &Mutex<Value>,
        calls: &Mutex<Vec<usize>>,
    ) {
        tokio::select! {
            () = self.answer(answer, calls) => {}
            () = test => {}
        }
    }

    /// Answers each command of each call alike, on connections that last for one call; how many commands each has.
    async fn answer(&self, answer: &Mutex<Value>, calls: &Mutex<Vec<usize>>) {
        loop {
            let mut client = BufStream::new(self.listener.accept().await.unwrap().0);
            let (mut line, mut length) = (String::new(), 0);
            while line != "\r\n" {
                line.clear();
                assert!(client.read_line(&mut line).await.unwrap() > 0);
                if let Some(number) = line.to_lowercase().strip_prefix("content-length: ") {
                    length = number.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            client.read_exact(&mut body).await.unwrap();
            let commands: Vec<Value> = serde_json::from_slice(&body).unwrap();
            calls.lock().unwrap().push(commands.len());
            let of = answer.lock().unwrap().clone();
            let answered = commands.iter().map(|it| json!([of[0], of[1], it[2]]));
            let body = Value::from(answered.collect::<Vec<_>>()).to_string();
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ";
            client
                .write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())
                .await
                .unwrap();
            client.flush().await.unwrap();
        }
    }
}

/// What doveadm says of INBOX.
fn inbox(uid_next: u64, messages: u64, mod_seq: u64) -> Value {
    let [uid_next, messages, mod_seq] = [uid_next, messages, mod_seq].map(|it| it.to_string());
    let row = json!({
        "mailbox": "INBOX", "uidvalidity": "1", "uidnext": uid_next, "messages": messages, "unseen": messages,
        "highestmodseq": mod_seq,
    });
    json!(["doveadmResponse", [row]])
}

/// Its calls are for many accounts: where one fails, nothing is known of any of them.
#[tokio::test]
async fn the_accounts_wait_together_where_doveadm_is_away_too() {
    patient(async {
        let backend = backend().await;
        let doveadm = DoveadmApi::new(&backend).await;
        doveadm.world.register("alice", &[("INBOX", told(1, 1, 0, 0))]).await;
        let mut watching = doveadm.world.watch();
        let away = loop {
            tokio::select! {
                call = doveadm.listener.accept() => drop(call.unwrap()),
                away = watching.until("backing_off") => break away,
            }
        };
        assert!(away.next_try_at.is_some() && away.reason.unwrap().starts_with("doveadm: "));
        until(async || watching.metrics.sweep_waiting.get() == 1).await;
        later(Duration::from_mins(10)).await;
        let (answer, calls) = (Mutex::new(inbox(2, 1, 1)), Mutex::default());
        let answered = async {
            watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
            until_resting(&doveadm.world, &watching).await;
        };
        doveadm.answers_during(answered, &answer, &calls).await;
        assert_eq!(backend.counters().accepted, 0);
        watching.stop().await;
    })
    .await;
}

/// It may know none of them by the names with which they log in. Those that wait for a call share it.
#[tokio::test]
async fn accounts_that_doveadm_refuses_wait_without_a_task_each_for_its_next_try() {
    for reload in [false, true] {
        doveadm_refuses_all(reload).await;
    }
}

/// Then it knows them, and mailchime asks for them again in time, or at a `reload`.
async fn doveadm_refuses_all(reload: bool) {
    patient(async {
        let backend = backend().await;
        let doveadm = DoveadmApi::new(&backend).await;
        for number in 0..MANY {
            let user = format!("user{number}");
            doveadm.world.register(&user, &[("INBOX", told(1, 1, 0, 0))]).await;
        }
        let refused = json!(["doveadmError", { "type": "exitCode", "exitCode": 67 }]);
        let (answer, calls) = (Mutex::new(refused), Mutex::new(Vec::new()));
        let before = tasks();
        let watching = doveadm.world.watch();
        let asked = || calls.lock().unwrap().iter().sum::<usize>();
        // As many as may be wait for the first calls.
        until(async || watching.metrics.visits.of(VisitBy::Doveadm).get() >= 256).await;
        let test = async {
            let all_wait =
                async || watching.watched(Mode::BackingOff) == MANY && tasks() < before + 20;
            until(all_wait).await;
            assert_eq!(asked(), MANY, "each was asked for once");
            assert!(calls.lock().unwrap().len() < MANY / 2, "many in a call: {calls:?}");
            *answer.lock().unwrap() = inbox(1, 0, 1);
            if reload {
                let mut config = doveadm.world.config();
                config.backend.send_id = !config.backend.send_id;
                watching.reload(&config);
            } else {
                later(Duration::from_mins(10)).await;
            }
            until(async || watching.watched(Mode::OnDemand) == MANY).await;
            until(async || doveadm.world.store.due_accounts().await.unwrap().is_empty()).await;
            assert_eq!(asked(), 2 * MANY);
        };
        doveadm.answers_during(test, &answer, &calls).await;
        watching.stop().await;
    })
    .await;
}

/// Which flags they are is not known, so it counts as a change.
#[tokio::test]
async fn a_change_of_flags_alone_that_doveadm_tells_of_is_told() {
    limited(async {
        let backend = backend().await;
        let doveadm = DoveadmApi::new(&backend).await;
        let state = Snapshot { highest_mod_seq: Some(90), ..told(1, 6, 5, 5) };
        doveadm.world.register("alice", &[("INBOX", state)]).await;
        let mut watching = doveadm.world.watch();
        let (answer, calls) = (Mutex::new(inbox(6, 5, 95)), Mutex::default());
        let told = watching.expect(&["INBOX: quiet, next 6 of 5 with 5 unseen"]);
        doveadm.answers_during(told, &answer, &calls).await;
        watching.stop().await;
    })
    .await;
}

/// So do those that are to be asked for once more, after a session or since a mailbox was left due.
#[tokio::test]
async fn an_account_that_is_to_be_asked_for_again_waits_until_its_backend_has_room() {
    limited(async {
        let mut stage = Stage::new().await;
        let watch = &mut stage.world.watch;
        (watch.connection, watch.poll_interval) =
            (WatchConnection::OnDemand, Duration::from_secs(1));
        stage.world.connect_timeout = Duration::from_hours(1);
        let watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(
            "\
C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w1 OK done
C: w2 LOGOUT
S: * BYE
S: w2 OK out
",
        )
        .await;
        until_resting(&stage.world, &watching).await;

        // From now on the backend answers nobody.
        let users: Vec<_> = (1..MANY).map(|number| format!("user{number}")).collect();
        let mut marks = Vec::new();
        for user in &users {
            stage.world.register(user, &[("INBOX", told(1, 1, 0, 0))]).await;
            let (account, mailbox) = (Account::from_login(user), None);
            let (state, shown_flags, is_due, for_another_node) = (None, false, true, true);
            let mark = DueMark { account, mailbox, state, shown_flags, is_due, for_another_node };
            marks.push(mark);
        }
        stage.world.store.mark_due(&[], &marks, Timestamp::now()).await.unwrap();
        for user in &users {
            watching.registered(user).await;
        }
        let account = Account::from_login("alice");
        watching.sessions.send(SessionEvent::Ended { account: account.clone() }).await.unwrap();
        let waits = async || {
            let told = watching.inquirer.watchers(Some(account.clone())).await.unwrap();
            let reason = told[0].reason.as_deref().unwrap_or_default();
            assert_eq!(told[0].state, "watching", "it has a task: {reason}");
            reason == "it waits for its turn to be asked for"
        };
        until(waits).await;
        watching.stop().await;
    })
    .await;
}

/// So a sweep that was interrupted goes on where it stopped. The backend answers nobody.
#[tokio::test]
async fn those_that_have_been_due_for_longest_are_asked_for_first() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.connection = WatchConnection::OnDemand;
        stage.world.connect_timeout = Duration::from_hours(1);
        let user = |number: usize| format!("user{number}");
        for number in 0..MANY {
            stage.world.register(&user(number), &[("INBOX", told(1, 1, 0, 0))]).await;
            // The last one for longest.
            let at = i64::try_from(MANY - number).unwrap();
            mark(&stage.world, &user(number), at).await;
        }
        let watching = stage.world.watch();
        let waiting = async || {
            let all = watching.inquirer.watchers(None).await.unwrap();
            let waits = |it: &WatcherStatus| {
                it.reason.as_deref() == Some("it waits for its turn to be asked for")
            };
            all.into_iter().filter(waits).map(|it| it.account).collect::<BTreeSet<_>>()
        };
        // Alice has not been due before, and at one backend so many are asked for at once.
        let last = (0..MANY - 256).map(user).chain(["alice".to_owned()]).collect::<BTreeSet<_>>();
        until(async || waiting().await == last).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn visits_of_a_sweep_are_paced() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        world.watch.logins_per_second = 2;
        for user in ["bob", "carol", "dave"] {
            backend.add_account(user, PASSWORD.as_bytes());
            world.register(user, &[("INBOX", told(1, 1, 0, 0))]).await;
        }
        let began = Instant::now();
        let watching = world.watch();
        backend.wait_until(|c| c.accepted == 4).await;
        // A turn may come so much late, and the next one then comes so much sooner.
        let late = Duration::from_millis(10);
        assert!(began.elapsed() >= 3 * (Duration::from_millis(500) - late));
        watching.stop().await;
    })
    .await;
}
