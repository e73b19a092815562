//! The real Dovecot, which tells of its mailboxes by `contrib/dovecot/mailchime.lua`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mailchime::config::{EventSourceConfig, WatchConnection};
use mailchime::intake::{
    self, HintRecorder, IntakeParts, KnownSource, KnownSources, RecordingHints,
};
use mailchime::metrics::Metrics;
use mailchime::model::{Account, BackendId, Hint, Timestamp};
use mailchime::net::counters::LimitCounters;
use mailchime::net::http::{HttpLimits, HttpServer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::TOKEN;
use super::waits::{HeldUp, Listens, NotTaking};
use crate::support::in_process::{InProcess, loopback};
use crate::support::ports::connections_to;
use crate::support::pushing::backends;
use crate::support::servers::client::Client;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::event_script::{EventScript, PATIENT, TIMEOUT};
use crate::support::servers::{ALICE, mail};
use crate::support::{limited, listener, soon, until};

/// Dovecot with the script.
fn with_script(script: &EventScript, test: &str) -> Option<Dovecot> {
    let extra: &'static str = Box::leak(script.lines().into_boxed_str());
    Dovecot::start(test, &Options { extra, ..Options::default() })
}

/// Hears the hints that came with one request or some, each as a person reads it.
#[derive(Debug)]
pub(super) struct Heard(pub(super) mpsc::UnboundedSender<String>);

impl HintRecorder for Heard {
    fn record(&self, hints: Vec<Hint>) -> RecordingHints<'_> {
        let known = vec![true; hints.len()];
        for hint in hints {
            let mailbox = hint.mailbox.as_ref().map_or("*", |mailbox| mailbox.as_str());
            let s = hint.state;
            let numbers = [s.uid_validity, s.uid_next, s.messages, s.unseen, s.highest_mod_seq];
            let numbers = numbers.map(|it| it.map_or("-".to_owned(), |it| it.to_string()));
            let hint = format!("{} {mailbox} {:?} {}", hint.account, hint.event, numbers.join(" "));
            let _ = self.0.send(hint);
        }
        Box::pin(async { Ok(known) })
    }

    fn missed(&self) {}
}

/// An intake of events without a mailchime behind it.
pub(super) async fn intake(folder: &Path) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let (sender, heard) = mpsc::unbounded_channel();
    (intake_with(&folder.join("mailchime.token"), Arc::new(Heard(sender))).await, heard)
}

/// One whose source `dovecot` has the secret of this file.
pub(super) async fn intake_with(secret: &Path, recorder: Arc<dyn HintRecorder>) -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let limit = Duration::from_secs(60);
    let server = HttpServer {
        listener,
        tls: None,
        proxy_protocol: Vec::new(),
        limits: HttpLimits {
            connections: 64,
            request_timeout: limit,
            write_timeout: limit,
            shutdown_grace: limit,
        },
        table: "[events]",
        counters: Arc::default(),
    };
    let config = EventSourceConfig::new("dovecot", secret);
    let metrics = Metrics::default();
    let parts = IntakeParts {
        sources: KnownSources::new(vec![
            KnownSource::load(&config, metrics.source("dovecot")).unwrap(),
        ]),
        udp: None,
        cyrus: None,
        devices: None,
        backends: backends(),
        recorder,
        request_timeout: limit,
        body_size: 64 * 1024,
        counters: Arc::new(LimitCounters::default()),
        strangers: metrics.source(""),
    };
    tokio::spawn(intake::serve(Some(server), parts, CancellationToken::new()));
    address
}

/// Alice's session, and what is heard of her mailboxes.
pub(super) struct HeardSession {
    pub(super) client: Client,
    pub(super) heard: mpsc::UnboundedReceiver<String>,
}

impl HeardSession {
    /// The next thing that is heard is this event of this mailbox, with the numbers that the server says.
    pub(super) async fn hears(&mut self, mailbox: &str, event: &str) {
        let heard = soon(event, self.heard.recv()).await.unwrap();
        let items = "UIDVALIDITY UIDNEXT MESSAGES UNSEEN HIGHESTMODSEQ";
        let status = self.client.ask(&format!("STATUS {mailbox} ({items})"));
        let number = |item: &str| {
            let (_, rest) = status[0].split_once(&format!("{item} "))?;
            rest.split([' ', ')']).next()
        };
        let numbers: Vec<_> = items.split(' ').map(|item| number(item).unwrap_or("-")).collect();
        assert_eq!(heard, format!("alice {mailbox} {event} {}", numbers.join(" ")));
    }

    /// The next thing that is heard is this event of this mailbox, with other numbers than it has by now, or with none.
    pub(super) async fn hears_of(&mut self, mailbox: &str, event: &str, numbered: bool) {
        let heard = soon(event, self.heard.recv()).await.unwrap();
        let unnumbered = format!("alice {mailbox} {event} - - - - -");
        match numbered {
            false => assert_eq!(heard, unnumbered),
            true => {
                let numbers = heard.strip_prefix(&format!("alice {mailbox} {event} "));
                assert!(numbers.is_some_and(|numbers| !numbers.contains('-')), "{heard}");
            }
        }
    }

    /// Nothing waits to be heard, since each command waits until it was told of.
    fn hears_nothing(&mut self) {
        assert!(self.heard.try_recv().is_err());
    }

    pub(super) fn ask(&mut self, command: &str) {
        let answer = self.client.ask(command).pop().unwrap();
        assert!(answer.starts_with("x OK"), "{command}: {answer}");
    }

    /// Alice, who has two mails in INBOX and a mailbox Team, does all that there is to tell of, and what there is not.
    pub(super) async fn does_and_hears_all(&mut self) {
        self.ask("APPEND INBOX {4+}\r\na: b");
        self.hears("INBOX", "MessageAppend").await;
        self.ask("SELECT INBOX");
        self.ask("COPY 1:2 Team");
        self.hears("Team", "MessageAppend").await;
        self.ask("MOVE 3 Team");
        self.hears("Team", "MessageAppend").await;
        self.hears("INBOX", "MessageExpunge").await;

        // Phones show none of these flags.
        self.ask("STORE 1 +FLAGS (\\Flagged \\Answered $Label)");
        self.ask("STORE 1 -FLAGS (\\Flagged $Label)");
        self.hears_nothing();
        for (flags, event) in [
            ("1:2 +FLAGS (\\Seen)", "MessageRead"),
            ("2 -FLAGS (\\Seen)", "FlagsClear"),
            ("1 +FLAGS (\\Deleted)", "MessageTrash"),
            ("1 -FLAGS (\\Deleted)", "FlagsClear"),
            ("1 FLAGS (\\Seen \\Deleted)", "MessageTrash"),
            ("1 FLAGS ()", "FlagsClear"),
            ("1 FLAGS (\\Deleted)", "MessageTrash"),
        ] {
            self.ask(&format!("STORE {flags}"));
            self.hears("INBOX", event).await;
            self.hears_nothing();
        }
        self.ask("EXPUNGE");
        self.hears("INBOX", "MessageExpunge").await;
        self.ask("FETCH 1 BODY[]");
        self.hears("INBOX", "MessageRead").await;

        self.ask("CREATE Box");
        self.hears("Box", "MailboxCreate").await;
        self.ask("SUBSCRIBE Box");
        self.hears_nothing();
        self.ask("RENAME Box Entw&APw-rfe");
        self.hears_of("Entw\u{fc}rfe", "MailboxRename", true).await;
        self.hears_of("*", "MailboxRename", false).await;
        self.ask("DELETE Entw&APw-rfe");
        self.hears_of("Entw\u{fc}rfe", "MailboxDelete", false).await;
        self.hears_nothing();
    }
}

/// mailchime in front of it, which has no connection to it while nothing happens, and which the script tells.
async fn on_demand(dovecot: &Dovecot, script: &EventScript) -> InProcess {
    let token = script.token();
    let world = InProcess::pushing(dovecot.plain, |config| {
        config.watch.connection = WatchConnection::OnDemand;
        // Nobody is asked for after a session.
        config.watch.poll_interval = Duration::from_hours(1);
        config.watch.poll_max = Duration::from_hours(1);
        config.events.address = Some(loopback());
        config.events.sources = vec![EventSourceConfig::new("dovecot", token)];
    });
    let world = world.await;
    script.tell_by("http", world.mailchime.events.unwrap(), PATIENT);
    world
}

/// Nothing is due any more.
pub(super) async fn looked_at(world: &InProcess) {
    let store = &world.mailchime.store;
    until(async || store.due_accounts().await.unwrap().is_empty()).await;
}

/// Delivers by Dovecot's program for that, as an MTA does.
pub(super) fn deliver_by_lda(dovecot: &Dovecot, mailbox: &str) {
    let run = dovecot.lmtp();
    let config = run.ancestors().nth(2).unwrap().join("dovecot.conf");
    let mut command = Command::new("/usr/lib/dovecot/dovecot-lda");
    command.arg("-c").arg(config).args(["-d", ALICE.0, "-m", mailbox]);
    command.args(["-o", "lda_mailbox_autocreate=yes"]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    use std::io::Write;
    child.stdin.take().unwrap().write_all(&mail("by lda")).unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_of_a_mailbox_comes_with_its_numbers() {
    limited(async {
        let script = EventScript::new(TOKEN);
        let (address, heard) = intake(script.folder()).await;
        script.tell_by("http", address, PATIENT);
        let test = "intake::each_change_of_a_mailbox_comes_with_its_numbers";
        let Some(dovecot) = with_script(&script, test) else { return };
        let mut client = Client::connect(dovecot.plain);
        assert!(client.login(ALICE).starts_with("x OK"));
        let mut alice = HeardSession { client, heard };

        // The first delivery makes INBOX.
        dovecot.deliver_by_lmtp(ALICE.0, &mail("by LMTP"));
        alice.hears_of("INBOX", "MailboxCreate", true).await;
        alice.hears("INBOX", "MessageNew").await;
        deliver_by_lda(&dovecot, "INBOX");
        alice.hears("INBOX", "MessageNew").await;
        deliver_by_lda(&dovecot, "Team");
        alice.hears_of("Team", "MailboxCreate", true).await;
        alice.hears("Team", "MessageNew").await;
        alice.does_and_hears_all().await;
    })
    .await;
}

/// Dovecot tells of the one alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_below_one_with_another_name_is_looked_at() {
    limited(async {
        let script = EventScript::new(TOKEN);
        let test = "intake::a_mailbox_below_one_with_another_name_is_looked_at";
        let Some(dovecot) = with_script(&script, test) else { return };
        let world = on_demand(&dovecot, &script).await;
        let mut client = Client::connect(dovecot.plain);
        assert!(client.login(ALICE).starts_with("x OK"));
        let mut ask = |command: &str| {
            let answer = client.ask(command).pop().unwrap();
            assert!(answer.starts_with("x OK"), "{command}: {answer}");
        };
        ask("CREATE Box/Child");
        ask("CREATE Other/Child");
        ask("APPEND Other/Child {4+}\r\na: b");
        world.register(ALICE, &["INBOX", "Box/Child"]).await;
        let (store, alice) = (&world.mailchime.store, Account::from_login(ALICE.0));
        let home = BackendId::new(None, "127.0.0.1", dovecot.plain.port());
        // What the device knows is on disk when the push was taken.
        let knows_of = async |mails: u64| {
            let known = store.watched(&alice, &home, Timestamp(0)).await.unwrap();
            known.iter().any(|(mailbox, known)| {
                mailbox.as_str() == "Box/Child" && known.messages == Some(mails)
            })
        };
        until(async || knows_of(0).await).await;
        looked_at(&world).await;
        ask("RENAME Box Gone");
        looked_at(&world).await;
        ask("RENAME Other Box");
        until(async || knows_of(1).await).await;
    })
    .await;
}

/// So many that a wait of two seconds for each would be seen.
const DELIVERIES: usize = 16;

/// Mails come and three are read; what Dovecot's log says of it, and how many requests came.
async fn mail_goes_on(test: &str, listens: Listens) -> Option<(String, usize)> {
    let script = EventScript::new(TOKEN);
    let mailchime = NotTaking::start(listens, script.folder()).await;
    // An answer that comes at all is waited for.
    let (timeout, wait) = match listens {
        Listens::Silent | Listens::Slow => (TIMEOUT, Duration::from_millis(500)),
        Listens::None | Listens::Refusing | Listens::Busy => (PATIENT, Duration::ZERO),
    };
    script.tell_by("http", mailchime.address, timeout);
    let dovecot = with_script(&script, test)?;
    let mut client = Client::connect(dovecot.plain);
    assert!(client.login(ALICE).starts_with("x OK"));
    let mut held_up = HeldUp::default();
    for _ in 1..DELIVERIES {
        held_up.at_most(wait, || dovecot.deliver_by_lmtp(ALICE.0, &mail("all the same")));
    }
    held_up.at_most(wait, || deliver_by_lda(&dovecot, "INBOX"));
    client.ask("SELECT INBOX");
    for number in 1..=3 {
        let read = format!("STORE {number} +FLAGS (\\Seen)");
        let answer = held_up.at_most(wait, || client.ask(&read)).pop().unwrap();
        assert!(answer.starts_with("x OK"), "{answer}");
    }
    assert_eq!(client.messages("INBOX") as usize, DELIVERIES);
    Some((dovecot.log(), mailchime.requests()))
}

/// The script has said this of each request in vain that it has told of.
fn waits_end_with(log: &str, expected: &str) {
    let waits: Vec<_> = log.lines().filter(|line| line.contains("mailchime: http://")).collect();
    assert!(!waits.is_empty() && waits.iter().all(|line| line.contains(expected)), "{log}");
}

/// What ended each wait was the time that the script gives for all of it.
const TIME_IS_UP: &str = ": 9008 Absolute request timeout expired ";

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_nobody_listens() {
    limited(async {
        let test = "intake::mail_goes_on_where_nobody_listens";
        let Some((log, _)) = mail_goes_on(test, Listens::None).await else { return };
        waits_end_with(&log, ": 9003 ");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_mailchime_is_slow() {
    limited(async {
        let test = "intake::mail_goes_on_where_mailchime_is_slow";
        let Some((log, _)) = mail_goes_on(test, Listens::Slow).await else { return };
        waits_end_with(&log, TIME_IS_UP);
    })
    .await;
}

/// Dovecot 2.3 would wait for two seconds to send the body, and then for the time of the script.
#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_mailchime_says_nothing() {
    limited(async {
        let test = "intake::mail_goes_on_where_mailchime_says_nothing";
        let Some((log, _)) = mail_goes_on(test, Listens::Silent).await else { return };
        waits_end_with(&log, TIME_IS_UP);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_mailchime_refuses() {
    limited(async {
        let test = "intake::mail_goes_on_where_mailchime_refuses";
        let Some((log, _)) = mail_goes_on(test, Listens::Refusing).await else { return };
        waits_end_with(&log, ": 401 Unauthorized");
    })
    .await;
}

/// The script asks once for each delivery and each command, and for INBOX, which the first one makes.
#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_mailchime_has_too_much_to_do() {
    limited(async {
        let test = "intake::mail_goes_on_where_mailchime_has_too_much_to_do";
        let Some((log, requests)) = mail_goes_on(test, Listens::Busy).await else { return };
        waits_end_with(&log, ": 503 Service Unavailable");
        assert_eq!(requests, 1 + DELIVERIES + 3);
    })
    .await;
}

/// Over HTTPS.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_trusts_the_authority_that_dovecot_trusts() {
    limited(async {
        let script = EventScript::new(TOKEN);
        let test = "intake::a_script_trusts_the_authority_that_dovecot_trusts";
        let Some(dovecot) = with_script(&script, test) else { return };
        let token = script.token();
        let world = InProcess::pushing(dovecot.plain, |config| {
            config.watch.connection = WatchConnection::OnDemand;
            config.events.address = Some(loopback());
            config.events.tls = true;
            config.events.sources = vec![EventSourceConfig::new("dovecot", token)];
        });
        let world = world.await;
        script.tell_by("https", world.mailchime.events.unwrap(), PATIENT);
        world.register(ALICE, &["INBOX"]).await;
        dovecot.deliver_by_lmtp(ALICE.0, &mail("hello"));
        soon("a push", world.push_of(&["INBOX"])).await;
        assert!(!dovecot.log().contains("Warning: mailchime: "), "{}", dovecot.log());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_is_a_push_while_mailchime_has_no_connection_to_dovecot() {
    limited(async {
        let script = EventScript::new(TOKEN);
        let test = "intake::a_mail_is_a_push_while_mailchime_has_no_connection_to_dovecot";
        let Some(dovecot) = with_script(&script, test) else { return };
        let world = on_demand(&dovecot, &script).await;
        world.register(ALICE, &["INBOX"]).await;
        looked_at(&world).await;
        until(async || connections_to(dovecot.plain) == 0).await;
        let mut dovecot = dovecot;
        dovecot.deliver_by_lmtp(ALICE.0, &mail("hello"));
        soon("a push", world.push_of(&["INBOX"])).await;
        assert_eq!(connections_to(dovecot.plain), 0);
        // Dovecot would let nobody in any more.
        dovecot.set_password(ALICE.0, "another");
        dovecot.deliver_by_lmtp(ALICE.0, &mail("hello again"));
        soon("a push", world.push_of(&["INBOX"])).await;
        looked_at(&world).await;
        assert_eq!(connections_to(dovecot.plain), 0);
    })
    .await;
}
