//! With what watchers log in, by mode; part of the contract.

use mailchime::config;
use mailchime::model::{AcceptedLogin, Credentials, SecretKind};
use mailchime::store::{CredentialSource, CredentialsError, VaultError};

use super::*;

const HOUR: i64 = 3_600_000;

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

async fn is_parked(store: &Store) -> bool {
    store.accounts(EVER).await.unwrap()[0].parked.is_some()
}

pub(super) async fn stored_credentials(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let config = config::Credentials::Stored { key_file: folder.path().join("key") };
    let source = CredentialSource::open(&config, store.clone()).unwrap();
    assert!(source.of(&alice(), &imap(), EVER).await.unwrap().is_none());
    registered(&source, &password("first"), 0).await;
    assert_eq!(secret(&source, i64::MAX).await.as_deref(), Some("first"));
    let known = source.of(&alice(), &imap(), EVER).await.unwrap().unwrap();
    assert!(known.same_as(&password("first")), "also the name as it was given");

    // A new password replaces the old at once and ends the parking; so does the same, unwritten.
    store.park(&alice(), &imap(), "NO", EVER).await.unwrap();
    source.save(&alice(), &login(password("second"), 0)).await.unwrap();
    assert_eq!(secret(&source, 0).await.as_deref(), Some("second"));
    assert!(!is_parked(&store).await);
    let before = kept(&store, &alice()).await;
    store.park(&alice(), &imap(), "NO", EVER).await.unwrap();
    source.save(&alice(), &login(password("second"), 0)).await.unwrap();
    assert!(!is_parked(&store).await);
    assert_eq!(kept(&store, &alice()).await, before);

    // A token lives until it expires, and is gone then.
    source.save(&alice(), &login(token(), 1000)).await.unwrap();
    assert_eq!(secret(&source, 999 + HOUR).await.as_deref(), Some("opaque"));
    let known = source.of(&alice(), &imap(), EVER).await.unwrap().unwrap();
    assert_eq!(known.kind, SecretKind::Bearer);
    assert_eq!(secret(&source, 1000 + HOUR).await, None);
    assert_eq!(source.tidy(Timestamp(999 + HOUR)).await.unwrap(), 0);
    assert_eq!(source.tidy(Timestamp(1000 + HOUR)).await.unwrap(), 1);
    assert_eq!(kept(&store, &alice()).await, None);

    // Under another key nothing opens, nothing is lost, and a login heals it.
    registered(&source, &password("third"), 0).await;
    assert_eq!(source.unreadable().await.unwrap(), 0);
    let config = config::Credentials::Stored { key_file: folder.path().join("other key") };
    let other = CredentialSource::open(&config, store.clone()).unwrap();
    assert_eq!(other.unreadable().await.unwrap(), 1);
    let refused = other.of(&alice(), &imap(), EVER).await.unwrap_err();
    let CredentialsError::Vault(VaultError::OtherKey { .. }) = refused else { panic!("{refused}") };
    assert_eq!(secret(&source, 0).await.as_deref(), Some("third"));
    other.save(&alice(), &login(password("third"), 0)).await.unwrap();
    assert_eq!(secret(&other, 0).await.as_deref(), Some("third"));

    assert!(source.are_of_users());
}

pub(super) async fn credentials_in_memory(store: Store) {
    let source = CredentialSource::open(&config::Credentials::Memory, store.clone()).unwrap();
    registered(&source, &password("first"), 0).await;
    assert_eq!(kept(&store, &alice()).await, None, "nothing is written");
    assert_eq!(secret(&source, i64::MAX).await.as_deref(), Some("first"));
    store.park(&alice(), &imap(), "NO", EVER).await.unwrap();
    source.save(&alice(), &login(password("second"), 0)).await.unwrap();
    assert!(!is_parked(&store).await);
    assert_eq!(secret(&source, 0).await.as_deref(), Some("second"));
    let shown = format!("{source:?}");
    assert!(shown.contains("memory") && !shown.contains("second"), "{shown}");

    let restarted = CredentialSource::open(&config::Credentials::Memory, store.clone()).unwrap();
    assert_eq!(secret(&restarted, 0).await, None, "gone at a restart");

    source.save(&alice(), &login(token(), 1000)).await.unwrap();
    assert_eq!(secret(&source, 1000 + HOUR).await, None);
    source.tidy(Timestamp(1000 + HOUR)).await.unwrap();
    assert_eq!(secret(&source, 1000).await, None, "not hidden but gone");

    source.save(&alice(), &login(password("third"), 0)).await.unwrap();
    source.forget(&alice());
    assert_eq!(secret(&source, 0).await, None);

    // What another mode stored does not stay.
    store.save_credentials(&alice(), by(&imap(), Some(&sealed("from before")))).await.unwrap();
    assert_eq!(source.tidy(EVER).await.unwrap(), 1);
    assert_eq!(kept(&store, &alice()).await, None);
}

pub(super) async fn a_master(store: Store) {
    store
        .register(&registration(device(&alice(), 'a'), &["INBOX"], 5), by(&imap(), None), 10, EVER)
        .await
        .unwrap();
    store.save_credentials(&alice(), by(&imap(), Some(&sealed("from before")))).await.unwrap();
    let source = CredentialSource::open(&config::Credentials::Master, store.clone()).unwrap();
    assert_eq!(source.tidy(EVER).await.unwrap(), 1);
    registered(&source, &password("alice's own"), 0).await;
    source.save(&alice(), &login(password("alice's own"), 0)).await.unwrap();
    assert_eq!(kept(&store, &alice()).await, None);
    assert!(source.of(&alice(), &imap(), EVER).await.unwrap().is_none());
    assert!(!source.are_of_users());
    assert!(format!("{source:?}").contains("master"));
}
