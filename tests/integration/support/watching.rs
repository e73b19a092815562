//! Watchers on real sockets: a backend, a store in a temporary folder, and what they tell `push`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mailchime::config::{self, BackendTls, Config};
use mailchime::imap::registration::xapple::{DeviceToken, XAppleRegistration};
use mailchime::metrics::{Metrics, Watching as Mode};
use mailchime::model::{
    AcceptedLogin, Account, BackendId, ChangeKind, Credentials, Mailbox, Preview, PushEndpoint,
    Registration, SessionEvent, Snapshot, Subscription, Timestamp, TransportId, WatchEvent,
};
use mailchime::net::backends::{Backends, Table};
use mailchime::net::resolve::NameResolver;
use mailchime::nodes::ClusterView;
use mailchime::store::{CredentialSource, Registrant, Sealed, Store, Vault};
use mailchime::watch;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{limited, until};

pub(crate) const PASSWORD: &str = "wonderland";

/// The token of the user's phone.
pub(crate) fn token(user: &str) -> DeviceToken {
    let hex: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
    DeviceToken::new(&format!("{hex:0<64}")).unwrap()
}

/// What the phone of `user` registers.
fn subscription(user: &str) -> Subscription {
    XAppleRegistration {
        version: 2,
        account_id: "0715A26B-CA09-4730-A419-793000CA982E".into(),
        token: token(user),
        subtopic: "com.apple.mobilemail".into(),
        mailboxes: Vec::new(),
    }
    .subscription(Account::from_login(user), "com.apple.mail.XServer.test")
}

/// What outlives the program: the backend's address, the database, the key.
pub(crate) struct WatchWorld {
    pub(crate) folder: TempDir,
    pub(crate) store: Store,
    pub(crate) key_file: PathBuf,
    pub(crate) backend: SocketAddr,
    pub(crate) tls: BackendTls,
    /// Of every user.
    pub(crate) password: &'static str,
    pub(crate) watch: config::WatchConfig,
    /// A master has the password of every user, and the name `user*master` of each.
    pub(crate) credentials: config::CredentialsMode,
    /// A master has a password here.
    pub(crate) has_master: bool,
    pub(crate) doveadm: Option<config::DoveadmConfig>,
    /// `[limits] connect_timeout`.
    pub(crate) connect_timeout: Duration,
    /// How many events may wait for `push`.
    pub(crate) queue: usize,
    /// `[events] waiting`.
    pub(crate) most_hints: usize,
    /// `[push] preview`, which browsers may be told of.
    pub(crate) preview: config::PreviewContent,
    /// A source of events has `metadata`.
    pub(crate) entries: bool,
}

/// A running [`watch::run`], and the hands of its cluster.
pub(crate) struct Watching {
    pub(crate) backends: Backends,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) events: mpsc::Receiver<WatchEvent>,
    pub(crate) sessions: mpsc::Sender<SessionEvent>,
    pub(crate) unwatched: mpsc::Sender<Account>,
    pub(crate) inquirer: watch::SupervisorHandle,
    pub(crate) followers: watch::Followers,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<()>,
    /// Of the last change, and of those that are to be confirmed.
    pub(crate) last_id: u64,
    pub(crate) announced: Vec<u64>,
}

impl WatchWorld {
    /// Nothing happens by time alone, unless a test changes that.
    pub(crate) async fn new(backend: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(30)).await.unwrap();
        let key_file = folder.path().join("key");
        let watch = config::WatchConfig {
            connection: config::WatchConnection::Held,
            connection_of_routes: BTreeMap::new(),
            sweep: Duration::from_hours(6),
            idle_renewal: Duration::from_hours(1),
            idle_check: Duration::from_hours(1),
            poll_interval: Duration::from_hours(1),
            poll_max: Duration::from_hours(1),
            answer_timeout: Duration::from_hours(1),
            logins_per_second: 10_000,
            connections: 0,
            retry_min: Duration::from_millis(1),
            retry_max: Duration::from_millis(5),
            settle: Duration::from_millis(50),
        };
        let (tls, password) = (BackendTls::None, PASSWORD);
        let connect_timeout = config::LimitsConfig::default().connect_timeout;
        let queue = 100;
        let preview = config::PreviewContent::None;
        Self {
            folder,
            store,
            key_file,
            backend,
            tls,
            password,
            watch,
            credentials: config::CredentialsMode::Stored,
            has_master: true,
            doveadm: None,
            connect_timeout,
            queue,
            most_hints: config::EventsConfig::default().waiting,
            preview,
            entries: false,
        }
    }

    /// A phone of `user` registers for mailboxes, each with the state that it knows.
    pub(crate) async fn register(&self, user: &str, mailboxes: &[(&str, Snapshot)]) {
        self.register_at(&self.id(), user, mailboxes).await;
    }

    /// A browser of `user` does.
    pub(crate) async fn register_browser(&self, user: &str, mailboxes: &[(&str, Snapshot)]) {
        let endpoint = "https://push.example.net/1";
        let browser = Subscription {
            transport: TransportId::new("webpush"),
            endpoint: PushEndpoint::new(endpoint, endpoint),
            app: "".into(),
            ..subscription(user)
        };
        self.subscribe(browser, &self.id(), user, mailboxes).await;
    }

    /// The same as [`WatchWorld::register`] at this backend.
    pub(crate) async fn register_at(
        &self,
        id: &BackendId,
        user: &str,
        mailboxes: &[(&str, Snapshot)],
    ) {
        self.subscribe(subscription(user), id, user, mailboxes).await;
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
        id: &BackendId,
        user: &str,
        mailboxes: &[(&str, Snapshot)],
    ) {
        let registration = Registration {
            subscription,
            mailboxes: mailboxes.iter().map(|(name, told)| (Mailbox::new(name), *told)).collect(),
        };
        let text = self.vault().seal(&Account::from_login(user), &credentials(user, self.password));
        let sealed = Sealed { text, until: None };
        let now = Timestamp::now();
        let login = Registrant::new(id, now, Some(&sealed));
        self.store.register(&registration, login, 10, now).await.unwrap();
    }

    /// What accounts are recorded with.
    pub(crate) fn id(&self) -> BackendId {
        self.config().backend.id()
    }

    pub(crate) fn vault(&self) -> Vault {
        Vault::open(&self.key_file).unwrap()
    }

    /// The phone is no longer registered.
    pub(crate) async fn unregister(&self, user: &str) {
        let key = (&subscription(user)).into();
        self.store.remove_subscription(&key, None).await.unwrap().expect("it was registered");
    }

    /// Why the watcher of `user` gave up.
    pub(crate) async fn parked(&self, user: &str) -> Option<String> {
        let accounts = self.store.accounts(Timestamp(0)).await.unwrap();
        let account = accounts.into_iter().find(|live| live.account.as_str() == user);
        account.expect("an account with a device").parked
    }

    /// Opens the database again, so that calls wait for it as long as `busy`; its URL, for a connection beside it.
    pub(crate) async fn reopened(&mut self, busy: Duration) -> String {
        let url = |name| format!("sqlite://{}", self.folder.path().join(name).display());
        let (database, room) = (url("mailchime.db"), url("room.db"));
        // One program at a time has the file, so its first store makes room.
        self.store.close().await;
        self.store = Store::open(&room.parse().unwrap(), Duration::from_secs(1)).await.unwrap();
        self.store = Store::open(&database.parse().unwrap(), busy).await.unwrap();
        database
    }

    pub(crate) async fn until_parked(&self, user: &str, parked: bool) {
        until(async || self.parked(user).await.is_some() == parked).await;
    }

    pub(crate) async fn stored_password(&self, user: &str) -> Vec<u8> {
        let account = Account::from_login(user);
        let sealed = self.store.credentials(&account, &self.id()).await.unwrap().unwrap();
        self.vault().unseal(&account, &sealed.text).unwrap().expose_secret().to_vec()
    }

    pub(crate) fn config(&self) -> Config {
        let (host, port) = (self.backend.ip().to_string(), self.backend.port());
        let backend = config::BackendConfig::new(host, port, self.tls.clone());
        let mut config = Config::new(config::TlsConfig::new("none", "none"), backend);
        config.backend.doveadm.clone_from(&self.doveadm);
        if self.credentials == config::CredentialsMode::Master && self.has_master {
            let password_file = self.folder.path().join("master");
            std::fs::write(&password_file, self.password).unwrap();
            let only_ours = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&password_file, only_ours).unwrap();
            config.backend.master = Some(config::MasterUser {
                name: "master".into(),
                password_file,
                login_template: config::LoginTemplate::new("{user}*{master}"),
            });
        }
        config.watch = self.watch.clone();
        config.limits.connect_timeout = self.connect_timeout;
        config.push.preview = self.preview;
        config.events.waiting = self.most_hints;
        if self.entries {
            let source =
                config::EventSourceConfig::new("dovecot", self.folder.path().join("secret"));
            config.events.sources = vec![config::EventSourceConfig { metadata: true, ..source }];
        }
        config
    }

    /// Starts the program's watching part.
    pub(crate) fn watch(&self) -> Watching {
        self.watch_beside(ClusterView::none("here"))
    }

    /// The same, as one of several nodes.
    pub(crate) fn watch_beside(&self, cluster: ClusterView) -> Watching {
        let config = self.config();
        let (sender, events) = mpsc::channel(self.queue);
        let backends =
            Backends::new(Table::new(&config, &NameResolver::default()).unwrap(), Arc::default());
        let source =
            CredentialSource::open(self.credentials, &self.key_file, self.store.clone()).unwrap();
        let source = Arc::new(source);
        let store = self.store.clone();
        let metrics = Arc::new(Metrics::default());
        let context = watch::WatchContext::new(&config, backends.clone(), store, source, sender);
        let context = context.counting(Arc::clone(&metrics));
        let context = context.previewing_for(|transport| transport.as_str() == "webpush");
        let context = Arc::new(context);
        let (sessions, session_events) = mpsc::channel(10);
        let (unwatched, unwatched_accounts) = mpsc::channel(10);
        let stop = CancellationToken::new();
        let (inquirer, inquiries) = watch::requests();
        let followers = watch::Followers::new(Arc::clone(&context));
        let task = tokio::spawn(watch::run(
            context,
            session_events,
            unwatched_accounts,
            cluster,
            inquiries,
            stop.clone(),
        ));
        Watching {
            backends,
            metrics,
            events,
            sessions,
            unwatched,
            inquirer,
            followers,
            stop,
            task,
            last_id: 0,
            announced: Vec::new(),
        }
    }
}

impl Watching {
    /// The next event for `push`, as a line. A confirmation is of what was last announced,
    /// or of nothing.
    pub(crate) async fn next(&mut self) -> String {
        let news = async {
            loop {
                match self.events.recv().await {
                    // A hint for `push`, which asks the store itself.
                    Some(WatchEvent::Registered { .. }) => {}
                    event => break event,
                }
            }
        };
        let event = tokio::time::timeout(super::SOON, news).await;
        match event.expect("no event comes").expect("the watching part has ended") {
            WatchEvent::Registered { .. } => unreachable!("it is passed over"),
            WatchEvent::Announced(change) | WatchEvent::Changed(change) => {
                let kind = match change.kind {
                    ChangeKind::NewMail => "new mail",
                    ChangeKind::Quiet => "quiet",
                };
                assert!(change.id > self.last_id, "ids rise");
                self.last_id = change.id;
                if change.snapshot.is_none() {
                    self.announced.push(change.id);
                }
                let mut line = match change.snapshot {
                    Some(snapshot) => format!("{}: {kind}, {}", change.mailbox, show(&snapshot)),
                    None => format!("{}: {kind}, announced", change.mailbox),
                };
                if change.preview_follows {
                    line.push_str(", a preview follows");
                }
                line
            }
            WatchEvent::Rebased { mailbox, id, snapshot, .. } => {
                let place = self.announced.iter().position(|announced| *announced == id);
                let what = match place.map(|place| self.announced.remove(place)) {
                    Some(_) => "confirmed",
                    None => "as told",
                };
                assert!(what == "confirmed" || id > self.last_id, "{id} was announced before");
                format!("{mailbox}: {what}, {}", show(&snapshot))
            }
            WatchEvent::Previewed { mailbox, preview, .. } => {
                let preview = preview.as_ref();
                let [sender, subject] =
                    [preview.and_then(Preview::sender), preview.and_then(Preview::subject)]
                        .map(|text| text.map_or("nothing".to_owned(), |text| format!("{text:?}")));
                let messages = preview.map_or(0, |preview| preview.messages);
                format!("{mailbox}: newest of {messages}: {sender} about {subject}")
            }
            WatchEvent::LoginWanted { account, .. } => format!("{account} is to log in"),
        }
    }

    /// The account of which `push` gets word that its devices are others now.
    pub(crate) async fn word_of_devices(&mut self) -> Account {
        loop {
            if let WatchEvent::Registered { account } = self.events.recv().await.unwrap() {
                break account;
            }
        }
    }

    pub(crate) async fn expect(&mut self, lines: &[&str]) {
        for line in lines {
            assert_eq!(self.next().await, *line);
        }
    }

    /// What the supervisor says of the one account that is watched, once its state is this.
    pub(crate) async fn until(&self, state: &str) -> watch::WatcherStatus {
        loop {
            let mut told = self.inquirer.watchers(None).await.unwrap();
            if told.len() == 1 && told[0].state == state {
                return told.remove(0);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the state of this account is this.
    pub(crate) async fn until_of(&self, user: &str, state: &str) {
        let account = Account::from_login(user);
        until(async || {
            let told = self.inquirer.watchers(Some(account.clone())).await.unwrap();
            told.iter().any(|told| told.state == state)
        })
        .await;
    }

    /// How many accounts are watched in this way.
    pub(crate) fn watched(&self, mode: Mode) -> usize {
        usize::try_from(self.metrics.watchers.of(mode).get()).unwrap()
    }

    pub(crate) fn expect_nothing(&mut self) {
        if let Ok(event) = self.events.try_recv() {
            panic!("told without need: {event:?}");
        }
    }

    /// A login that the user's backend has accepted just now.
    pub(crate) fn login(&self, credentials: Credentials) -> AcceptedLogin {
        let backend = self.backends.id_of(&credentials.account()).unwrap();
        AcceptedLogin {
            backend,
            credentials: Some(credentials),
            at: Timestamp::now(),
            names_ignore_case: false,
        }
    }

    pub(crate) async fn registered(&self, user: &str) {
        let account = Account::from_login(user);
        let login = self.login(credentials(user, PASSWORD));
        self.sessions.send(SessionEvent::Registered { account, login }).await.unwrap();
    }

    pub(crate) async fn logged_in(&self, user: &str, password: &str) {
        let account = Account::from_login(user);
        let login = self.login(credentials(user, password));
        self.sessions.send(SessionEvent::LoggedIn { account, login }).await.unwrap();
    }

    /// The configuration is read again.
    pub(crate) fn reload(&self, config: &Config) {
        self.backends.replace(Table::new(config, &NameResolver::default()).unwrap());
    }

    /// Ends it as the program does; what it had still to tell is lost.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        limited(self.task).await.unwrap();
    }
}

pub(crate) fn credentials(user: &str, password: &str) -> Credentials {
    Credentials::password(user, password.as_bytes().to_vec())
}

pub(crate) fn told(uid_validity: u64, uid_next: u64, messages: u64, unseen: u64) -> Snapshot {
    Snapshot {
        uid_validity: Some(uid_validity),
        uid_next: Some(uid_next),
        messages: Some(messages),
        unseen: Some(unseen),
        highest_mod_seq: None,
    }
}

pub(crate) fn show(snapshot: &Snapshot) -> String {
    let number = |number: Option<u64>| number.map_or("?".into(), |number| number.to_string());
    let Snapshot { uid_next, messages, unseen, .. } = *snapshot;
    format!("next {} of {} with {} unseen", number(uid_next), number(messages), number(unseen))
}
