//! What the enrolment writes, by whose login, and when it looks again.

use std::sync::Mutex;

use sqlx::{Connection, Executor, SqliteConnection};

use super::*;
use crate::config::{BackendConfig, BackendTls, TlsConfig};
use crate::model::{Credentials, PushEndpoint, Subscription};
use crate::net::backends::Table;
use crate::net::counters::LimitCounters;
use crate::net::resolve::NameResolver;
use crate::push::dispatcher;
use crate::push::transport::Routes;
use crate::store::CredentialSource;

/// What enrols, with alice's registrar, the sessions' events to it and what it passes on.
struct EnrolmentWorld {
    folder: tempfile::TempDir,
    store: Store,
    backends: Backends,
    registrar: Registrar,
    enrolment: Enrolment,
    sessions: mpsc::Sender<SessionEvent>,
    heard: mpsc::Receiver<SessionEvent>,
}

impl EnrolmentWorld {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        let backend = BackendConfig::new("127.0.0.1", 1, BackendTls::None);
        let mut config = Config::new(TlsConfig::new("a", "b"), backend);
        let hook = WebhookConfig::new("a", "https://a.example/".parse().unwrap(), "x");
        config.webhooks = vec![hook];
        let table = Table::new(&config, &NameResolver::default()).unwrap();
        let backends = Backends::new(table, Arc::new(LimitCounters::default()));
        let key = folder.path().join("key");
        let source = CredentialSource::open(config.credentials, &key, store.clone()).unwrap();
        let (sessions, heard) = mpsc::channel(100);
        let registrar =
            Registrar::new(backends.clone(), Arc::new(source), sessions.clone(), &config);
        let (_, assignment) = cell::channel(Assignment::unknown("here".into()));
        let news = SubscriptionNews { routes: Routes::default(), pushes: dispatcher::channel().0 };
        let (_of_config, webhooks) = cell::channel(config.webhooks.as_slice().into());
        let parts = EnrolmentParts {
            webhooks,
            store: store.clone(),
            registrar: registrar.clone(),
            backends: backends.clone(),
            assignment,
            news,
        };
        let enrolment = Enrolment::new(&config, parts);
        Self { folder, store, backends, registrar, enrolment, sessions, heard }
    }

    fn login(&self, password: &str, at: Timestamp) -> AcceptedLogin {
        AcceptedLogin {
            backend: self.backends.id_of(&alice()).unwrap(),
            credentials: Some(Credentials::password(alice().as_str(), password.into())),
            at,
            names_ignore_case: false,
        }
    }

    /// Registers alice's phone of this name; the event goes to `events`.
    async fn register(
        &self,
        phone: Registration,
        login: AcceptedLogin,
        events: &mpsc::Sender<SessionEvent>,
    ) {
        let registrar = self.registrar.clone().of_operator(events.clone());
        let stored = registrar.register(phone, login).await;
        assert!(matches!(stored, RegistrationResult::Stored { .. }));
    }
}

/// What was logged so far.
#[derive(Clone, Default)]
struct LogText(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for LogText {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl LogText {
    /// Waits for a line with this text.
    async fn line(&self, text: &str) {
        let waiting = async {
            while !String::from_utf8_lossy(&self.0.lock().unwrap()).contains(text) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), waiting).await.unwrap();
    }
}

fn alice() -> Account {
    Account::from_login("alice@example.org")
}

fn phone(name: &str, mailboxes: &[&str]) -> Registration {
    Registration {
        subscription: Subscription {
            transport: TransportId::new("phone"),
            endpoint: PushEndpoint::new(name, name),
            app: "mail".into(),
            route: "mail".into(),
            ..webhook::of_operator("a", &alice())
        },
        mailboxes: mailboxes.iter().map(|name| (Mailbox::new(name), Snapshot::default())).collect(),
    }
}

/// A phone registers by each of two passwords of one account, and a third one by the older of them.
#[tokio::test]
async fn a_login_of_before_another_password_enrols_once_and_leaves_the_row_current() {
    let parts = EnrolmentWorld::new().await;
    let now = Timestamp::now();
    let (others, _unheard) = mpsc::channel(100);
    let (first, second) = (now.minus(2 * COMPARE), now.minus(COMPARE));
    for (name, password, at) in [("1", "one", first), ("2", "two", second), ("3", "one", first)] {
        let events = if name == "3" { &parts.sessions } else { &others };
        parts.register(phone(name, &["INBOX"]), parts.login(password, at), events).await;
    }
    let EnrolmentWorld { folder: _folder, store, registrar, enrolment, sessions, heard, .. } =
        parts;
    let (watching, mut passed_on) = mpsc::channel(100);
    let running = tokio::spawn(enrolment.run(heard, watching, CancellationToken::new()));
    // That of the phone, and that of the web hook.
    for _ in 0..2 {
        passed_on.recv().await.unwrap();
    }
    drop((sessions, registrar));
    assert!(passed_on.recv().await.is_none(), "it goes on registering");
    running.await.unwrap();
    let rows = store.targets(&alice(), Timestamp(0)).await.unwrap();
    let outdated: Vec<_> =
        rows.iter().filter(|row| row.outdated_since.is_some()).map(row_name).collect();
    assert_eq!(rows.len(), 4);
    assert_eq!(outdated, ["3"]);
    let later = Timestamp(now.0 + 3_600_000);
    store.outdate(&alice(), later, later).await.unwrap();
    let rows = store.targets(&alice(), Timestamp(0)).await.unwrap();
    let current = rows.iter().filter(|row| row.outdated_since.is_none()).map(row_name);
    assert_eq!(current.collect::<Vec<_>>(), ["a"], "the operator's");
}

/// Another login's enrolment has read the account before its phone was there, and writes last.
#[tokio::test]
async fn an_enrolment_that_has_read_less_leaves_no_mailbox_out() {
    let parts = EnrolmentWorld::new().await;
    let login = parts.login("one", Timestamp::now());
    let (events, _unheard) = mpsc::channel(100);
    parts.register(phone("1", &["INBOX", "Notes"]), login.clone(), &events).await;
    parts.enrolment.enrol(&alice(), &login, Vec::new()).await;
    let rows = parts.store.targets(&alice(), Timestamp(0)).await.unwrap();
    let hook = rows.iter().find(|row| row.subscription.is_of_operator()).unwrap();
    let mailboxes: Vec<_> = hook.mailboxes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(mailboxes, ["INBOX", "Notes"]);
}

/// The phone registers for one more mailbox behind the page that the comparison goes by.
#[tokio::test]
async fn a_comparison_writes_what_the_database_has_now_and_tells_the_watching_side() {
    let mut parts = EnrolmentWorld::new().await;
    let login = parts.login("one", Timestamp::now());
    let (events, _unheard) = mpsc::channel(100);
    parts.register(phone("1", &["INBOX"]), login.clone(), &events).await;
    let page = parts.store.targets(&alice(), Timestamp(0)).await.unwrap();
    parts.register(phone("1", &["INBOX", "Notes"]), login, &events).await;
    assert!(parts.enrolment.compare_one(&page).await.unwrap());
    let rows = parts.store.targets(&alice(), Timestamp(0)).await.unwrap();
    let hook = rows.iter().find(|row| row.subscription.is_of_operator()).unwrap();
    let mailboxes: Vec<_> = hook.mailboxes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(mailboxes, ["INBOX", "Notes"]);
    let heard = parts.heard.try_recv().unwrap();
    assert!(matches!(heard, SessionEvent::Registered { account, .. } if account == alice()));
}

#[tokio::test]
async fn a_login_at_which_the_database_cannot_be_read_does_not_count() {
    let parts = EnrolmentWorld::new().await;
    let log = LogText::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let login = parts.login("one", Timestamp::now());
    let EnrolmentWorld { folder, store, registrar, enrolment, sessions, heard, .. } = parts;
    let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
    let mut beside = SqliteConnection::connect(&url).await.unwrap();
    let (watching, mut passed_on) = mpsc::channel(100);
    let running = tokio::spawn(enrolment.run(heard, watching, CancellationToken::new()));
    let log_in = async || {
        let event = SessionEvent::LoggedIn { account: alice(), login: login.clone() };
        sessions.send(event).await.unwrap();
    };
    beside.execute("alter table subscription rename to elsewhere").await.unwrap();
    log_in().await;
    log.line("mailchime::app::webhook_not_enrolled").await;
    beside.execute("alter table elsewhere rename to subscription").await.unwrap();
    log_in().await;
    for _ in 0..2 {
        assert!(matches!(passed_on.recv().await, Some(SessionEvent::LoggedIn { .. })));
    }
    let registered = tokio::time::timeout(Duration::from_mins(1), passed_on.recv()).await;
    assert!(matches!(registered, Ok(Some(SessionEvent::Registered { .. }))));
    drop((sessions, registrar));
    running.await.unwrap();
    assert_eq!(store.targets(&alice(), Timestamp(0)).await.unwrap().len(), 1);
}

fn row_name(row: &Target) -> &str {
    row.subscription.endpoint.as_given()
}
