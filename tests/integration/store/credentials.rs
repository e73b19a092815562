//! With what watchers log in, by mode; part of the contract.

use std::path::Path;

use mailchime::config;
use mailchime::config::PushConfig;
use mailchime::model::{AcceptedLogin, Credentials};
use mailchime::store::{
    Alive, CredentialSource, CredentialsError, Kept, Vault, VaultError, rotate,
};

use super::*;

const HOUR: i64 = 3_600_000;

fn source_in(mode: config::CredentialsMode, key_file: &Path, store: &Store) -> CredentialSource {
    CredentialSource::open(mode, key_file, store.clone()).unwrap()
}

fn password(password: &str) -> Credentials {
    Credentials::password("alice@Example.org", password.as_bytes().to_vec())
}

fn token() -> Credentials {
    Credentials::bearer("alice@Example.org", b"opaque".to_vec())
}

/// A login that the account's backend has accepted at that time.
fn login(with: Credentials, at: i64) -> AcceptedLogin {
    AcceptedLogin {
        backend: imap(),
        credentials: Some(with),
        at: Timestamp(at),
        names_ignore_case: false,
    }
}

async fn registered(source: &CredentialSource, with: &Credentials, now: i64) {
    let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
    source.register(&registration, &login(with.clone(), now), 10, Timestamp(now)).await.unwrap();
}

/// The secret with which alice's watcher logs in.
async fn secret(source: &CredentialSource, now: i64) -> Option<String> {
    let credentials = source.of(&alice(), &imap(), Timestamp(now)).await.unwrap()?;
    Some(String::from_utf8(credentials.expose_secret().to_vec()).unwrap())
}

/// All secrets that are kept for her, in the order in which her watcher tries them.
async fn secrets(source: &CredentialSource, now: i64) -> Vec<String> {
    let kept = source.kept(&alice(), &imap(), Timestamp(now)).await.unwrap();
    let secret = |kept: &Kept| String::from_utf8_lossy(kept.credentials.expose_secret()).into();
    kept.iter().map(secret).collect()
}

async fn is_parked(store: &Store) -> bool {
    store.accounts(EVER).await.unwrap()[0].parked.is_some()
}

pub(super) async fn stored_credentials(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let source = source_in(config::CredentialsMode::Stored, &folder.path().join("key"), &store);
    assert!(source.of(&alice(), &imap(), EVER).await.unwrap().is_none());
    registered(&source, &password("first"), 0).await;
    assert_eq!(secret(&source, i64::MAX).await.as_deref(), Some("first"));
    let known = source.of(&alice(), &imap(), EVER).await.unwrap().unwrap();
    assert!(known.same_as(&password("first")), "also the name as it was given");

    // A new password replaces the old at once and ends the parking; so does the same, unwritten.
    store.refused(&alice(), &imap(), 1, Some("NO"), EVER).await.unwrap();
    source.save(&alice(), &login(password("second"), 0), Timestamp::now()).await.unwrap();
    assert_eq!(secret(&source, 0).await.as_deref(), Some("second"));
    assert!(!is_parked(&store).await);
    let before = kept(&store, &alice()).await;
    store.refused(&alice(), &imap(), 2, Some("NO"), EVER).await.unwrap();
    source.save(&alice(), &login(password("second"), 0), Timestamp::now()).await.unwrap();
    assert!(!is_parked(&store).await);
    assert_eq!(kept(&store, &alice()).await, before);

    // A token lives until it expires, and is gone then.
    source.save(&alice(), &login(token(), 1000), Timestamp::now()).await.unwrap();
    assert_eq!(secrets(&source, 999 + HOUR).await, ["second", "first", "opaque"]);
    assert_eq!(secrets(&source, 1000 + HOUR).await, ["second", "first"]);
    assert_eq!(source.tidy(Timestamp(999 + HOUR)).await.unwrap(), 0);
    assert_eq!(source.tidy(Timestamp(1000 + HOUR)).await.unwrap(), 1);
    assert_eq!(secrets(&source, 1000).await, ["second", "first"], "not hidden but gone");

    // Under another key nothing opens, nothing is lost, and a login heals it.
    registered(&source, &password("third"), 0).await;
    assert_eq!(source.unreadable().await.unwrap(), 0);
    let other =
        source_in(config::CredentialsMode::Stored, &folder.path().join("other key"), &store);
    assert_eq!(other.unreadable().await.unwrap(), 1);
    let refused = other.of(&alice(), &imap(), EVER).await.unwrap_err();
    let CredentialsError::Vault(VaultError::OtherKey { .. }) = refused else { panic!("{refused}") };
    assert_eq!(secret(&source, 0).await.as_deref(), Some("third"));
    other.save(&alice(), &login(password("third"), 0), Timestamp::now()).await.unwrap();
    assert_eq!(secret(&other, 0).await.as_deref(), Some("third"));

    // What two tries have shown to be wrong goes.
    store.refused(&alice(), &imap(), 2, Some("NO"), EVER).await.unwrap();
    other.save(&alice(), &login(password("fourth"), 0), Timestamp::now()).await.unwrap();
    assert_eq!(secrets(&other, 0).await, ["fourth"]);

    assert!(source.are_of_users());
}

pub(super) async fn credentials_in_memory(store: Store) {
    let source = source_in(config::CredentialsMode::Memory, Path::new("unused"), &store);
    registered(&source, &password("first"), 0).await;
    assert_eq!(kept(&store, &alice()).await, None, "nothing is written");
    assert_eq!(secret(&source, i64::MAX).await.as_deref(), Some("first"));
    store.refused(&alice(), &imap(), 2, Some("NO"), EVER).await.unwrap();
    source.save(&alice(), &login(password("second"), 0), Timestamp::now()).await.unwrap();
    assert!(!is_parked(&store).await);
    assert_eq!(secret(&source, 0).await.as_deref(), Some("second"));
    let shown = format!("{source:?}");
    assert!(shown.contains("memory") && !shown.contains("second"), "{shown}");

    let restarted = source_in(config::CredentialsMode::Memory, Path::new("unused"), &store);
    assert_eq!(secret(&restarted, 0).await, None, "gone at a restart");

    source.save(&alice(), &login(token(), 1000), Timestamp::now()).await.unwrap();
    assert_eq!(secrets(&source, 999 + HOUR).await, ["second", "first", "opaque"]);
    source.tidy(Timestamp(1000 + HOUR)).await.unwrap();
    assert_eq!(secrets(&source, 1000).await, ["second", "first"], "not hidden but gone");

    source.save(&alice(), &login(password("third"), 0), Timestamp::now()).await.unwrap();
    source.forget(&alice());
    assert_eq!(secret(&source, 0).await, None);

    // What another mode stored does not stay.
    store
        .save_credentials(&alice(), by(&imap(), Some(&sealed("from before"))), Timestamp::now())
        .await
        .unwrap();
    assert_eq!(source.tidy(EVER).await.unwrap(), 1);
    assert_eq!(kept(&store, &alice()).await, None);
}

/// A login under a clock that was a day ahead, and then others by the right one.
pub(super) async fn a_clock_that_was_ahead_holds_up_no_login(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let stored = config::CredentialsMode::Stored;
    let now = Timestamp::now();
    for (config, account) in [(stored, alice()), (config::CredentialsMode::Memory, bob())] {
        let source = source_in(config, &folder.path().join("key"), &store);
        let with =
            |secret: &str| Credentials::password(account.as_str(), secret.as_bytes().to_vec());
        let at = |secret: &str, time: Timestamp| login(with(secret), time.0);
        let before = now.minus(Duration::from_hours(1));
        let registration = registration(device(&account, 'a'), &["INBOX"], 5);
        source.register(&registration, &at("first", before), 10, before).await.unwrap();
        let ahead = now.plus(Duration::from_hours(24));
        assert!(source.save(&account, &at("second", ahead), ahead).await.unwrap());
        store.refused(&account, &imap(), 2, Some("NO"), now).await.unwrap();

        assert!(source.save(&account, &at("third", now), now).await.unwrap(), "{source:?}");
        let kept = source.kept(&account, &imap(), now).await.unwrap();
        assert!(kept.iter().any(|it| it.credentials.same_as(&with("third"))), "{source:?}");
        let live = store.live_account(&account, EVER).await.unwrap().unwrap();
        assert_eq!(live.parked, None, "{source:?}");
        // The time that was ahead is forgotten: a login from before the third one is late.
        let stale = now.minus(Duration::from_secs(1));
        assert!(!source.save(&account, &at("late", stale), now).await.unwrap(), "{source:?}");
    }
}

pub(super) async fn a_master(store: Store) {
    store
        .register(&registration(device(&alice(), 'a'), &["INBOX"], 5), by(&imap(), None), 10, EVER)
        .await
        .unwrap();
    store
        .save_credentials(&alice(), by(&imap(), Some(&sealed("from before"))), Timestamp::now())
        .await
        .unwrap();
    let source = source_in(config::CredentialsMode::Master, Path::new("unused"), &store);
    assert_eq!(source.tidy(EVER).await.unwrap(), 1);
    registered(&source, &password("alice's own"), 0).await;
    source.save(&alice(), &login(password("alice's own"), 0), Timestamp::now()).await.unwrap();
    assert_eq!(kept(&store, &alice()).await, None);
    assert!(source.of(&alice(), &imap(), EVER).await.unwrap().is_none());
    assert!(!source.are_of_users());
    assert!(format!("{source:?}").contains("master"));
}

/// A phone with a password that lasts, another client with access tokens, and web mail that makes up a
/// password for each login.
async fn what_lasts_stays(source: &CredentialSource) {
    let (phone, hour) = (password("phone"), HOUR);
    registered(source, &phone, 0).await;
    source.worked(&alice(), &imap(), &phone, &[], Timestamp(hour)).await.unwrap();
    for round in 1..=3 {
        let once = password(&format!("once {round}"));
        assert!(source.save(&alice(), &login(once, round * hour), Timestamp::now()).await.unwrap());
        assert!(
            source.save(&alice(), &login(token(), round * hour), Timestamp::now()).await.unwrap()
        );
        let now = round * hour + 1;
        let expected = ["phone", &format!("once {round}"), "opaque"];
        assert_eq!(secrets(source, now).await, expected);
    }
    // A token that expires sooner is not kept beside.
    let sooner = Credentials::bearer("alice@Example.org", b"a.eyJleHAiOjExMDAwfQ.b".to_vec());
    source.save(&alice(), &login(sooner, 3 * hour), Timestamp::now()).await.unwrap();
    assert_eq!(secrets(source, 3 * hour + 1).await, ["phone", "once 3", "opaque"]);
    // What is refused goes when something else works.
    let refused = [password("once 3"), phone];
    source.worked(&alice(), &imap(), &token(), &refused, Timestamp(3 * hour)).await.unwrap();
    assert_eq!(secrets(source, 3 * hour + 1).await, ["opaque"]);
    let backend = BackendId::new(None, "imap.example.net", 993);
    assert!(source.kept(&alice(), &backend, EVER).await.unwrap().is_empty());
}

pub(super) async fn several_stored_credentials(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    let source = source_in(config::CredentialsMode::Stored, &key_file, &store);
    what_lasts_stays(&source).await;

    registered(&source, &password("first"), 4 * HOUR).await;
    source.save(&alice(), &login(password("second"), 4 * HOUR), Timestamp::now()).await.unwrap();
    source.save(&alice(), &login(token(), 4 * HOUR), Timestamp::now()).await.unwrap();
    let before = secrets(&source, 0).await;
    assert_eq!(before.len(), 3, "{before:?}");
    // All of them are sealed anew by a rotation.
    let rotated = rotate(&store, &Vault::open(&key_file).unwrap()).await.unwrap();
    assert_eq!(rotated, 3);
    let again = source_in(config::CredentialsMode::Stored, &key_file, &store);
    assert_eq!(again.unreadable().await.unwrap(), 0);
    assert_eq!(secrets(&again, 0).await, before);
    // All go with the last device, and where none are to be kept.
    store.remove_subscription(&key(&alice(), 'a'), None).await.unwrap();
    assert!(secrets(&source, 0).await.is_empty());
    registered(&source, &password("new"), 5 * HOUR).await;
    source.save(&alice(), &login(token(), 5 * HOUR), Timestamp::now()).await.unwrap();
    assert_eq!(secrets(&source, 0).await, ["new", "opaque"]);
    let memory = source_in(config::CredentialsMode::Memory, Path::new("unused"), &store);
    assert_eq!(memory.tidy(EVER).await.unwrap(), 2);
    assert!(secrets(&source, 0).await.is_empty());
}

pub(super) async fn several_credentials_in_memory(store: Store) {
    let source = source_in(config::CredentialsMode::Memory, Path::new("unused"), &store);
    what_lasts_stays(&source).await;
    assert_eq!(kept(&store, &alice()).await, None, "nothing is written");
    source.forget(&alice());
    assert!(secrets(&source, 0).await.is_empty());
}

/// The old password is kept beside the new one; its devices are outdated all the same, and a session that
/// logged in with it before makes none live.
pub(super) async fn devices_of_an_old_password_that_is_kept_are_forgotten(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let stored = config::CredentialsMode::Stored;
    for config in [stored, config::CredentialsMode::Memory] {
        let source = source_in(config, &folder.path().join("key"), &store);
        let registers = async |digit, with: &str, at: i64, now: i64| {
            let registration = registration(device(&alice(), digit), &["INBOX"], 5);
            let login = login(password(with), at * HOUR);
            source.register(&registration, &login, 10, Timestamp(now * HOUR)).await.unwrap();
        };
        let live = async |hour: i64, forget: bool| -> String {
            let push = PushConfig {
                forget_subscriptions_on_password_change: forget,
                ..PushConfig::default()
            };
            let alive = Alive::at(Timestamp(hour * HOUR), &push);
            let targets = store.targets(&alice(), alive).await.unwrap();
            targets.iter().map(|target| &target.subscription.endpoint.as_given()[..1]).collect()
        };
        registers('a', "old", 1, 1).await;
        registers('b', "old", 1, 1).await;
        source.save(&alice(), &login(password("new"), 2 * HOUR), Timestamp::now()).await.unwrap();
        assert_eq!(secrets(&source, 0).await.len(), 2);
        assert_eq!((live(2, false).await, live(2, true).await), ("ab".into(), String::new()));
        registers('c', "old", 1, 3).await;
        registers('a', "old", 1, 3).await;
        assert_eq!(live(3, true).await, "");
        registers('b', "new", 2, 4).await;
        assert_eq!((live(4, false).await, live(4, true).await), ("abc".into(), "b".into()));
        assert_eq!(live(27, false).await, "b");
        // It works again after that: then it is the new one.
        registers('a', "old", 28, 28).await;
        assert_eq!((live(28, true).await, live(53, false).await), ("a".into(), "a".into()));
        store.remove_account(&alice()).await.unwrap();
    }
}

/// Devices are pushed once while an account is parked, and once a day.
pub(super) async fn devices_are_asked_for_a_login_once_a_day(store: Store) {
    let day = Duration::from_hours(24);
    let wants = async |hour: i64| {
        store.want_login(&alice(), &imap(), day, Timestamp(hour * HOUR)).await.unwrap()
    };
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 5, 1).await;
    register(&store, device(&alice(), 'b'), &["Sent", "Drafts"], 5, 1).await;
    store.refused(&alice(), &imap(), 2, Some("NO"), Timestamp(HOUR)).await.unwrap();
    let other = BackendId::new(None, "imap.example.net", 993);
    assert!(store.want_login(&alice(), &other, day, Timestamp(HOUR)).await.unwrap().is_err());
    assert_eq!(wants(1).await, Ok(()));
    let marked = store.targets(&alice(), EVER).await.unwrap();
    let marked: Vec<_> = marked.iter().map(mailboxes).collect();
    assert_eq!(marked, [["INBOX!", "Sent"], ["Drafts!", "Sent"]]);
    assert_eq!(store.owed_accounts().await.unwrap(), [alice()]);
    assert_eq!(wants(30).await, Err(Timestamp(i64::MAX)), "once while it is parked");
    // Parked anew within the day.
    store.unpark(&alice(), &imap()).await.unwrap();
    store.refused(&alice(), &imap(), 2, Some("NO"), Timestamp(3 * HOUR)).await.unwrap();
    assert_eq!(wants(4).await, Err(Timestamp(25 * HOUR)));
    assert_eq!(wants(25).await, Ok(()));
    let live = store.live_account(&alice(), EVER).await.unwrap().unwrap();
    assert_eq!(live.refused, Some((2, Timestamp(3 * HOUR))));
    store.refused(&alice(), &imap(), 3, None, Timestamp(4 * HOUR)).await.unwrap();
    let live = store.live_account(&alice(), EVER).await.unwrap().unwrap();
    assert_eq!((live.refused, live.parked), (Some((3, Timestamp(4 * HOUR))), None));
    store.unpark(&alice(), &imap()).await.unwrap();
    assert_eq!(store.live_account(&alice(), EVER).await.unwrap().unwrap().refused, None);
}
