//! What the enrolment writes, and by whose login.

use super::*;
use crate::config::{BackendConfig, BackendTls, TlsConfig};
use crate::model::{Credentials, PushEndpoint, Subscription, TransportId};
use crate::net::backends::Table;
use crate::net::counters::LimitCounters;
use crate::net::resolve::NameResolver;
use crate::store::CredentialSource;

/// What enrols, with alice's registrar, the sessions' events to it and what it passes on.
struct EnrolmentParts {
    _folder: tempfile::TempDir,
    store: Store,
    backends: Backends,
    registrar: Registrar,
    enrolment: Enrolment,
    sessions: mpsc::Sender<SessionEvent>,
    heard: mpsc::Receiver<SessionEvent>,
}

impl EnrolmentParts {
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
        let (of_hook, of_backends) = (registrar.clone(), backends.clone());
        let enrolment = Enrolment::new(&config, store.clone(), of_hook, of_backends, assignment);
        Self { _folder: folder, store, backends, registrar, enrolment, sessions, heard }
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
        let registrar = self.registrar.clone().telling(events.clone());
        let stored = registrar.register(phone, login).await;
        assert!(matches!(stored, RegistrationResult::Stored { .. }));
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
    let parts = EnrolmentParts::new().await;
    let now = Timestamp::now();
    let (others, _unheard) = mpsc::channel(100);
    let (first, second) = (now.minus(2 * COMPARE), now.minus(COMPARE));
    for (name, password, at) in [("1", "one", first), ("2", "two", second), ("3", "one", first)] {
        let events = if name == "3" { &parts.sessions } else { &others };
        parts.register(phone(name, &["INBOX"]), parts.login(password, at), events).await;
    }
    let EnrolmentParts { _folder, store, registrar, enrolment, sessions, heard, .. } = parts;
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
    let parts = EnrolmentParts::new().await;
    let login = parts.login("one", Timestamp::now());
    let (events, _unheard) = mpsc::channel(100);
    parts.register(phone("1", &["INBOX", "Notes"]), login.clone(), &events).await;
    parts.enrolment.enrol(&alice(), &login, Vec::new()).await;
    let rows = parts.store.targets(&alice(), Timestamp(0)).await.unwrap();
    let hook = rows.iter().find(|row| row.subscription.is_of_operator()).unwrap();
    let mailboxes: Vec<_> = hook.mailboxes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(mailboxes, ["INBOX", "Notes"]);
}

fn row_name(row: &Target) -> &str {
    row.subscription.endpoint.as_given()
}
