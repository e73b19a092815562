//! Cyrus, which tells of its mailboxes by its `notifysocket`: the real one, and what else may write there.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mailchime::config::{CredentialsMode, CyrusEventsConfig, MasterUser, WatchConnection};
use mailchime::intake::{
    self, CyrusEvents, HintRecorder, IntakeParts, KnownSources, RecordingHints,
};
use mailchime::metrics::Metrics;
use mailchime::model::Hint;
use mailchime::net::counters::LimitCounters;
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, block_in_place, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::dovecot::Heard;
use crate::support::in_process::InProcess;
use crate::support::ports::connections_to;
use crate::support::pushing::backends;
use crate::support::servers::client::Client;
use crate::support::servers::cyrus::{ADMIN, Cyrus};
use crate::support::servers::{ALICE, mail};
use crate::support::world::registration;
use crate::support::{limited, soon, until};

/// As docs/events.md says, but for the names of the sockets.
pub(super) const EVENTS: &str = "event_groups: message flags mailbox applepushservice\n\
                      event_extra_params: timestamp uidnext messages vnd.cmu.unseenMessages modseq service flagNames\n";

/// The group of the user as whom Cyrus runs.
pub(super) const GROUP: &str = "65534";

/// A folder that Cyrus can enter, for the sockets.
pub(super) struct SocketFolder(TempDir);

/// An intake of events without a mailchime behind it. It ends with this.
struct CyrusSide {
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

/// Alice's session, and what is heard of her mailboxes.
struct CyrusSession {
    client: Client,
    heard: mpsc::UnboundedReceiver<String>,
}

/// Says when it is asked, and records when it may.
#[derive(Debug)]
struct SlowDisk {
    asked: mpsc::UnboundedSender<usize>,
    may_write: Semaphore,
}

/// Hears how often events are missed.
#[derive(Debug)]
struct Missed(mpsc::UnboundedSender<()>);

impl SocketFolder {
    pub(super) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("mc-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    pub(super) fn datagrams(&self) -> PathBuf {
        self.0.path().join("datagrams")
    }

    pub(super) fn stream(&self) -> PathBuf {
        self.0.path().join("stream")
    }

    /// The lines of `imapd.conf` for datagrams.
    fn by_datagrams(&self) -> String {
        let path = self.datagrams().display().to_string();
        format!("{EVENTS}event_notifier: external\nnotifysocket: {path}\n")
    }

    /// The lines of `imapd.conf` for connections.
    fn by_stream(&self) -> String {
        let path = self.stream().display().to_string();
        format!("{EVENTS}event_notifier: mailchime\nnotifysocket: dlist:{path}\n")
    }

    /// The lines of `imapd.conf` by which only lmtpd tells, and only of mail.
    fn of_mail_alone(&self) -> String {
        let path = self.stream().display().to_string();
        format!("mailnotifier: mailchime\nnotifysocket: dlist:{path}\n")
    }

    pub(super) fn config(&self) -> CyrusEventsConfig {
        let mut config = CyrusEventsConfig::new();
        (config.socket, config.stream) = (Some(self.datagrams()), Some(self.stream()));
        config.group = Some(GROUP.to_owned());
        config
    }
}

impl CyrusSide {
    fn start(config: &CyrusEventsConfig, recorder: Arc<dyn HintRecorder>) -> Self {
        Self::waiting(config, recorder, Duration::from_secs(60))
    }

    /// One that waits so long for an event.
    fn waiting(
        config: &CyrusEventsConfig,
        recorder: Arc<dyn HintRecorder>,
        request_timeout: Duration,
    ) -> Self {
        let metrics = Metrics::default();
        let cyrus = CyrusEvents::bind(config, metrics.source("cyrus")).unwrap();
        let parts = IntakeParts {
            sources: KnownSources::new(Vec::new()),
            udp: None,
            cyrus: Some(cyrus),
            devices: None,
            backends: backends(),
            recorder,
            request_timeout,
            body_size: 64 * 1024,
            counters: Arc::new(LimitCounters::default()),
            strangers: metrics.source(""),
        };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(intake::serve(None, parts, stop.clone()));
        Self { stop, serving }
    }

    fn hearing(config: &CyrusEventsConfig) -> (Self, mpsc::UnboundedReceiver<String>) {
        let (sender, heard) = mpsc::unbounded_channel();
        (Self::start(config, Arc::new(Heard(sender))), heard)
    }

    async fn stop(self) {
        self.stop.cancel();
        soon("the end", self.serving).await.unwrap();
    }
}

impl HintRecorder for SlowDisk {
    fn record(&self, hints: Vec<Hint>) -> RecordingHints<'_> {
        let _ = self.asked.send(hints.len());
        Box::pin(async move {
            self.may_write.acquire().await.unwrap().forget();
            Ok(vec![true; hints.len()])
        })
    }

    fn missed(&self) {}
}

impl HintRecorder for Missed {
    fn record(&self, hints: Vec<Hint>) -> RecordingHints<'_> {
        Box::pin(async move { panic!("an event was taken: {hints:?}") })
    }

    fn missed(&self) {
        let _ = self.0.send(());
    }
}

impl CyrusSession {
    /// The next thing that is heard is this event of this mailbox, with the numbers that the server says; of
    /// HIGHESTMODSEQ it may say nothing. A folder is heard of by both names that it may have.
    async fn hears(&mut self, mailbox: &str, event: &str) {
        let items = "UIDVALIDITY UIDNEXT MESSAGES UNSEEN HIGHESTMODSEQ";
        let heard = soon(event, self.heard.recv()).await.unwrap();
        let status = self.client.ask(&format!("STATUS {mailbox} ({items})"));
        let number = |item: &str| {
            let (_, rest) = status[0].split_once(&format!("{item} "))?;
            rest.split([' ', ')']).next()
        };
        let mut numbers: Vec<_> = items.split(' ').map(|item| number(item).unwrap()).collect();
        if heard.ends_with(" -") {
            numbers[4] = "-";
        }
        assert_eq!(heard, format!("alice {mailbox} {event} {}", numbers.join(" ")));
        self.hears_by_the_other_name(mailbox, &heard).await;
    }

    /// The next thing that is heard is this event, which says nothing of what is in the mailbox.
    async fn hears_only(&mut self, mailbox: &str, event: &str) {
        let heard = soon(event, self.heard.recv()).await.unwrap();
        assert_eq!(heard, format!("alice {mailbox} {event} - - - - -"));
        self.hears_by_the_other_name(mailbox, &heard).await;
    }

    async fn hears_by_the_other_name(&mut self, mailbox: &str, heard: &str) {
        if mailbox != "INBOX" {
            let other = soon("the other name", self.heard.recv()).await.unwrap();
            let of = |name: &str| format!("alice {name} ");
            assert_eq!(other, heard.replacen(&of(mailbox), &of(&format!("INBOX/{mailbox}")), 1));
        }
    }

    fn ask(&mut self, command: &str) -> Vec<String> {
        let answer = self.client.ask(command);
        assert!(answer.last().unwrap().starts_with("x OK"), "{command}: {answer:?}");
        answer
    }
}

/// Whatever Alice's mailboxes go through.
async fn each_change_is_heard(test: &str, lines: impl Fn(&SocketFolder) -> String) {
    let folder = SocketFolder::new();
    let Some(cyrus) = Cyrus::with_events(test, &lines(&folder)) else { return };
    let (side, heard) = CyrusSide::hearing(&folder.config());
    let mut client = Client::connect(cyrus.plain);
    assert!(client.login(ALICE).starts_with("x OK"));
    let mut alice = CyrusSession { client, heard };

    for subject in ["one", "two", "three"] {
        block_in_place(|| cyrus.deliver(ALICE.0, &mail(subject)));
        alice.hears("INBOX", "MessageNew").await;
    }
    alice.ask("APPEND INBOX {24+}\r\nSubject: four\r\n\r\nHello\r\n");
    alice.hears("INBOX", "MessageAppend").await;
    alice.ask("CREATE Team");
    alice.hears_only("Team", "MailboxCreate").await;
    alice.ask("SELECT INBOX");
    alice.ask("COPY 1:2 Team");
    alice.hears("Team", "MessageAppend").await;
    alice.ask("MOVE 4 Team");
    alice.hears("Team", "MessageAppend").await;
    alice.hears("INBOX", "MessageExpunge").await;

    // Of flags that a phone does not show nothing is heard.
    alice.ask("STORE 1 +FLAGS (\\Flagged $Label)");
    alice.ask("STORE 1:2 +FLAGS (\\Seen)");
    alice.hears("INBOX", "MessageRead").await;
    alice.ask("STORE 2 -FLAGS (\\Seen)");
    alice.hears("INBOX", "FlagsClear").await;
    alice.ask("FETCH 2 BODY[]");
    alice.hears("INBOX", "MessageRead").await;
    alice.ask("STORE 1 +FLAGS (\\Deleted)");
    alice.hears("INBOX", "MessageTrash").await;
    alice.ask("EXPUNGE");
    alice.hears("INBOX", "MessageExpunge").await;

    alice.ask("CREATE Team/Child");
    alice.hears_only("Team/Child", "MailboxCreate").await;
    alice.ask("RENAME Team Box");
    alice.hears_only("Box", "MailboxRename").await;
    alice.hears_only("Team", "MailboxRename").await;
    // Cyrus does not tell of the one below.
    assert_eq!(soon("all", alice.heard.recv()).await.unwrap(), "alice * MailboxRename - - - - -");
    alice.ask("DELETE Box/Child");
    alice.hears_only("Box/Child", "MailboxDelete").await;
    alice.ask("DELETE Box");
    alice.hears_only("Box", "MailboxDelete").await;
    // mailchime is away.
    side.stop().await;
    assert!(!folder.datagrams().exists() && !folder.stream().exists());
    for number in 0..15 {
        block_in_place(|| cyrus.deliver(ALICE.0, &mail(&format!("away {number}"))));
    }
    let mut client = Client::connect(cyrus.plain);
    assert!(client.login(ALICE).starts_with("x OK"));
    assert_eq!(client.messages("INBOX"), 17);
    assert!(alice.heard.recv().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_comes_by_datagrams() {
    let test = "intake::cyrus::each_change_comes_by_datagrams";
    limited(each_change_is_heard(test, SocketFolder::by_datagrams)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_comes_by_connections() {
    let test = "intake::cyrus::each_change_comes_by_connections";
    limited(each_change_is_heard(test, SocketFolder::by_stream)).await;
}

async fn until_nothing_is_due(world: &InProcess) {
    while !world.mailchime.store.due_accounts().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_is_a_push_while_mailchime_has_no_connection_to_cyrus() {
    limited(async {
        let folder = SocketFolder::new();
        let test = "intake::cyrus::a_mail_is_a_push_while_mailchime_has_no_connection_to_cyrus";
        let Some(cyrus) = Cyrus::with_events(test, &folder.by_stream()) else { return };
        let world = InProcess::pushing(cyrus.plain, |config| {
            config.watch.connection = WatchConnection::OnDemand;
            config.events.cyrus = Some(folder.config());
        });
        let world = world.await;
        world.register(ALICE, &["INBOX"]).await;
        until_nothing_is_due(&world).await;
        until(async || connections_to(cyrus.plain) == 0).await;
        block_in_place(|| cyrus.deliver(ALICE.0, &mail("hello")));
        soon("a push", world.push_of(&["INBOX"])).await;
        assert_eq!(connections_to(cyrus.plain), 0);
        // Cyrus would let nobody in any more.
        cyrus.set_password((ALICE.0, "another"));
        block_in_place(|| cyrus.deliver(ALICE.0, &mail("hello again")));
        soon("a push", world.push_of(&["INBOX"])).await;
        until_nothing_is_due(&world).await;
        assert_eq!(connections_to(cyrus.plain), 0);
    })
    .await;
}

/// lmtpd names INBOX for each mailbox of a user.
#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_goes_to_a_folder_is_a_push_of_that_by_mailnotifier() {
    limited(async {
        let folder = SocketFolder::new();
        let test = "intake::cyrus::a_mail_that_goes_to_a_folder_is_a_push_of_that_by_mailnotifier";
        let Some(cyrus) = Cyrus::with_events(test, &folder.of_mail_alone()) else { return };
        let mut client = Client::connect(cyrus.plain);
        assert!(client.login(ALICE).starts_with("x OK"));
        for command in ["CREATE Team", "SETACL Team anyone p"] {
            let answer = client.ask(command);
            assert!(answer.last().unwrap().starts_with("x OK"), "{answer:?}");
        }
        let world = InProcess::pushing(cyrus.plain, |config| {
            config.watch.connection = WatchConnection::OnDemand;
            config.events.cyrus = Some(folder.config());
        });
        let world = world.await;
        world.register(ALICE, &["INBOX", "Team"]).await;
        until_nothing_is_due(&world).await;
        block_in_place(|| cyrus.deliver(&format!("{}+Team", ALICE.0), &mail("to a folder")));
        soon("a push of the folder", world.push_of(&["Team"])).await;
        until_nothing_is_due(&world).await;
        block_in_place(|| cyrus.deliver(ALICE.0, &mail("to the INBOX")));
        soon("a push of INBOX", world.push_of(&["INBOX"])).await;
        until_nothing_is_due(&world).await;
        assert_eq!(world.apns.received(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_registers_at_cyrus_is_pushed_to_by_mailchime() {
    limited(async {
        let folder = SocketFolder::new();
        let test = "intake::cyrus::a_device_that_registers_at_cyrus_is_pushed_to_by_mailchime";
        let Some(cyrus) = Cyrus::with_events(test, &folder.by_stream()) else { return };
        let password = folder.0.path().join("password");
        fs::write(&password, ADMIN.1).unwrap();
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
        let route = crate::support::servers::pki().topic.clone();
        let world = InProcess::pushing(cyrus.plain, |config| {
            config.watch.connection = WatchConnection::OnDemand;
            let mut events = folder.config();
            events.source.route = Some(route);
            config.events.cyrus = Some(events);
            config.credentials = CredentialsMode::Master;
            config.backend.master = Some(MasterUser {
                name: ADMIN.0.to_owned(),
                password_file: password,
                login_template: None,
            });
        });
        let world = world.await;
        // The phone knows nothing of mailchime.
        let mut phone = Client::connect_tls(cyrus.tls);
        assert!(phone.login(ALICE).starts_with("x OK"));
        let answer = phone.ask(&registration());
        assert!(answer.last().unwrap().starts_with("x OK"), "{answer:?}");
        block_in_place(|| cyrus.deliver(ALICE.0, &mail("hello")));
        soon("a push", world.push_of(&["INBOX"])).await;
    })
    .await;
}

/// A notification of new mail in the INBOX of this owner, for a connection.
pub(super) fn notify(owner: &str) -> String {
    let json = event_of(owner);
    format!(
        "NOTIFY %(METHOD m CLASS EVENT PRIORITY NIL USER NIL MAILBOX NIL OPTIONS () MESSAGE {{{}+}}\r\n{json} \
         FILEPATH NIL)\r\n",
        json.len()
    )
}

/// The same as a datagram.
pub(super) fn datagram(owner: &str) -> String {
    format!("external\0EVENT\0\0\0\x000\0{}\0", event_of(owner))
}

fn event_of(owner: &str) -> String {
    format!(
        r#"{{"event":"MessageNew","uri":"imap://localhost/user/{owner};UIDVALIDITY=7/;UID=2"}}"#
    )
}

/// Writes to the socket and returns all that is answered.
pub(super) async fn said(path: &Path, text: String) -> String {
    let path = path.to_owned();
    let answer = spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        // It may be closed before all is read.
        let _ = stream.write_all(text.as_bytes());
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => answer,
        }
    });
    soon("an answer", answer).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_answered_when_the_event_is_on_disk_and_garbage_is_not() {
    limited(async {
        let folder = SocketFolder::new();
        let mut config = folder.config();
        config.source.domains = vec!["example.org".to_owned()];
        config.source.default_domain = Some("example.org".to_owned());
        let (sender, mut asked) = mpsc::unbounded_channel();
        let disk = Arc::new(SlowDisk { asked: sender, may_write: Semaphore::new(0) });
        let side = CyrusSide::start(&config, Arc::clone(&disk) as Arc<dyn HintRecorder>);

        let path = folder.stream();
        assert_eq!(said(&path, "GET / HTTP/1.1\r\n\r\n".to_owned()).await, "");
        assert_eq!(said(&path, format!("NOTIFY %(A {}", "a".repeat(200_000))).await, "");
        assert_eq!(said(&path, notify("carol%40example.com")).await, "NO ()\r\n");
        assert_eq!(said(&path, notify("%FF")).await, "NO ()\r\n");

        let mut alice = UnixStream::connect(&path).unwrap();
        alice.write_all(notify("alice").as_bytes()).unwrap();
        assert_eq!(soon("the recorder", asked.recv()).await, Some(1));
        alice.set_nonblocking(true).unwrap();
        let early = alice.read(&mut [0; 16]).unwrap_err();
        assert_eq!(early.kind(), ErrorKind::WouldBlock);
        disk.may_write.add_permits(1);
        alice.set_nonblocking(false).unwrap();
        let mut answer = String::new();
        block_in_place(|| alice.read_to_string(&mut answer)).unwrap();
        assert_eq!(answer, "OK ()\r\n");
        side.stop().await;
    })
    .await;
}

/// Of what it would have told nothing is known.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_breaks_off_or_is_late_or_too_long_is_missed() {
    limited(async {
        let folder = SocketFolder::new();
        let (sender, mut missed) = mpsc::unbounded_channel();
        let missing = Arc::new(Missed(sender));
        let side =
            CyrusSide::start(&folder.config(), Arc::clone(&missing) as Arc<dyn HintRecorder>);
        let path = folder.stream();
        let event = notify("alice");
        let write = |text: &str| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            stream
        };
        drop(write(&event[..event.len() - 1]));
        soon("that it broke off", missed.recv()).await.unwrap();
        let long = format!("NOTIFY %(A {}", "a".repeat(200_000));
        assert_eq!(said(&path, long).await, "");
        soon("that it is too long", missed.recv()).await.unwrap();
        assert_eq!(said(&path, event.replace("MESSAGE {", "MESSAGE {9999")).await, "");
        soon("that it would be too long", missed.recv()).await.unwrap();
        let datagrams = UnixDatagram::unbound().unwrap();
        let long = datagram("alice").replace("alice", &"a".repeat(100_000));
        datagrams.send_to(long.as_bytes(), folder.datagrams()).unwrap();
        soon("that the datagram is too long", missed.recv()).await.unwrap();
        // These are no events.
        assert_eq!(said(&path, "GET / HTTP/1.1\r\n\r\n".to_owned()).await, "");
        drop(UnixStream::connect(&path).unwrap());
        datagrams.send_to(b"garbage", folder.datagrams()).unwrap();
        side.stop().await;
        assert!(missed.try_recv().is_err());

        let second = Duration::from_secs(1);
        let side = CyrusSide::waiting(&folder.config(), missing, second);
        let _waits = write(&event[..event.len() - 1]);
        soon("that it is late", missed.recv()).await.unwrap();
        side.stop().await;
    })
    .await;
}

/// Twice as many as the kernel would keep, and more.
#[tokio::test(flavor = "multi_thread")]
async fn datagrams_are_read_while_the_disk_is_busy() {
    limited(async {
        let folder = SocketFolder::new();
        let (sender, mut asked) = mpsc::unbounded_channel();
        let disk = Arc::new(SlowDisk { asked: sender, may_write: Semaphore::new(0) });
        let side = CyrusSide::start(&folder.config(), Arc::clone(&disk) as Arc<dyn HintRecorder>);
        let socket = UnixDatagram::unbound().unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        let event = datagram("alice");
        block_in_place(|| {
            for _ in 0..500 {
                socket.send_to(event.as_bytes(), folder.datagrams()).unwrap();
                socket.send_to(b"garbage", folder.datagrams()).unwrap();
            }
        });
        // What was read by the end is recorded.
        side.stop.cancel();
        disk.may_write.add_permits(500);
        side.stop().await;
        drop(disk);
        let mut recorded = 0;
        while let Some(events) = asked.recv().await {
            recorded += events;
        }
        assert_eq!(recorded, 500);
    })
    .await;
}
