//! A new key in the place of the one that seals the credentials and the secrets of subscriptions.
//!
//! ```text
//!   file:  old  ──▶  new, old  ──▶  new
//!   rows:  old  ───  old and new ─  new
//! ```
//!
//! Whatever ends it in between, both keys are in the file while rows of both are in the database;
//! the next rotation goes on where this one stopped. A server that runs meanwhile seals with the new
//! key as soon as it is in the file. A key is replaced only where all that is stored is sealed with it:
//! other rows may show that the database is not the one that it belongs to.

use std::path::PathBuf;
use std::sync::Arc;

use super::kept_rows::Resealed;
use super::sql;
use super::vault::SEAL_LEN;
use super::{Store, StoreError, Vault, VaultError};
use crate::model::Account;

/// Why a key was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key file cannot be used.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The database holds nothing that a key seals.
    #[error(
        "{database} holds no credentials, and the key in {} may belong to another database: nothing was \
         changed; name the database that it belongs to",
        .path.display()
    )]
    NothingSealed {
        /// The database, without its password.
        database: Arc<str>,
        /// The file.
        path: PathBuf,
    },
    /// Without the key of now they might never open again.
    #[error(
        "the credentials of {accounts} accounts ({names}) are damaged, or no key in {} has sealed them: \
         {changed}; put back the key file of that time, or remove these accounts with `mailchime subscriptions \
         remove`",
        .path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// How many accounts it is about.
        accounts: usize,
        /// Of the first of them, for people.
        names: String,
        /// Whether anything was changed.
        changed: &'static str,
    },
}

/// Makes a new key, seals all stored credentials with it, and drops the old key; what the old one sealed
/// is gone from the files of SQLite, too. Returns how many credentials the new key seals instead of the
/// old one.
///
/// # Errors
/// [`RotationError::NothingSealed`] and [`VaultError::WrongKeyFile`] where the database holds nothing
/// that the file opens, [`RotationError::Unreadable`] where it holds something that the file does not
/// open; nothing was changed then, unless that says so. With any other error the rotation is begun, and
/// to be called again.
pub async fn rotate(store: &Store, vault: &Vault) -> Result<u64, RotationError> {
    let seals = store.seals(SEAL_LEN).await?;
    if seals.is_empty() {
        let (database, path) = (store.database.clone(), vault.path().to_owned());
        return Err(RotationError::NothingSealed { database, path });
    }
    if !seals.iter().any(|(seal, _)| vault.knows(seal)) {
        return Err(vault.wrong_key_file(&seals).into());
    }
    all_changed(store, vault, RowChange::Look).await?;
    store.is_in_place()?;
    vault.add_key()?;
    let resealed = all_changed(store, vault, RowChange::Reseal).await?;
    // A backup that was put in its place meanwhile may need the old key.
    store.is_in_place()?;
    vault.drop_old_key()?;
    store.scrub_soon().await;
    Ok(resealed)
}

/// So many accounts are named whose credentials do not open.
const NAMED: usize = 20;

/// What is done with each row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RowChange {
    /// It must open.
    Look,
    /// It is sealed with the first key of the file.
    Reseal,
}

#[derive(Default)]
struct Pass {
    resealed: u64,
    /// Whose credentials do not open.
    unreadable: Vec<Account>,
}

/// Goes through all rows until nothing is left to do.
async fn all_changed(store: &Store, vault: &Vault, work: RowChange) -> Result<u64, RotationError> {
    let (mut resealed, mut before) = (0, Vec::new());
    loop {
        let Pass { resealed: more, unreadable } = pass(store, vault, work).await?;
        resealed += more;
        match more {
            0 if unreadable.is_empty() => return Ok(resealed),
            // Another rotation may have been faster with a row, and have dropped its key since.
            0 if unreadable == before => {
                let names = unreadable.iter().take(NAMED);
                let names =
                    names.map(|account| format!("{:?}", sql::rows::shortened(account.as_str())));
                return Err(RotationError::Unreadable {
                    path: vault.path().to_owned(),
                    accounts: unreadable.len(),
                    names: names.collect::<Vec<_>>().join(", "),
                    changed: match work {
                        RowChange::Look => "nothing was changed",
                        RowChange::Reseal => "both keys stay in the file",
                    },
                });
            }
            // Users log in meanwhile, and a server may have sealed with the old key a moment ago.
            _ => before = unreadable,
        }
    }
}

/// Looks at all stored credentials once.
async fn pass(store: &Store, vault: &Vault, work: RowChange) -> Result<Pass, RotationError> {
    let mut pass = pass_over_secrets(store, vault, work).await?;
    let mut last = (String::new(), 0);
    loop {
        let kept = store.sealed_after((&last.0, last.1), sql::MOST_ROWS).await?;
        let Some(((account, number), _)) = kept.last() else {
            // One account may have several.
            pass.unreadable.dedup();
            return Ok(pass);
        };
        last = (account.as_str().to_owned(), *number);
        let mut texts = Vec::new();
        for ((account, number), old) in kept {
            let Some(old) = old else {
                pass.unreadable.push(account);
                continue;
            };
            let new = match work {
                RowChange::Look => vault.unseal(&account, &old).map(|_| None),
                RowChange::Reseal => vault.reseal(&account, &old),
            };
            match new {
                Ok(Some(new)) => texts.push(Resealed { account, number, old, new }),
                Ok(None) => {}
                Err(VaultError::Damaged { .. } | VaultError::OtherKey { .. }) => {
                    pass.unreadable.push(account);
                }
                Err(error) => return Err(error.into()),
            }
        }
        pass.resealed += store.reseal(&texts).await?;
    }
}

/// Looks at the secrets of all subscriptions once.
async fn pass_over_secrets(
    store: &Store,
    vault: &Vault,
    work: RowChange,
) -> Result<Pass, RotationError> {
    let (mut pass, mut last) = (Pass::default(), 0);
    loop {
        let secrets = store.secrets_after(last, sql::MOST_ROWS).await?;
        let Some(end) = secrets.last() else { return Ok(pass) };
        last = end.id;
        let mut texts = Vec::new();
        for row in secrets {
            let new = match work {
                RowChange::Look => vault.unseal_secrets(&row.key, &row.sealed).map(|_| None),
                RowChange::Reseal => vault.reseal_secrets(&row.key, &row.sealed),
            };
            match new {
                Ok(Some(new)) => texts.push((row, new)),
                Ok(None) => {}
                Err(VaultError::Damaged { .. } | VaultError::OtherKey { .. }) => {
                    pass.unreadable.push(row.key.account);
                }
                Err(error) => return Err(error.into()),
            }
        }
        pass.resealed += store.reseal_secrets(&texts).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;
    use crate::imap::registration::xapple::{DeviceToken, XAppleRegistration};
    use crate::model::{
        Account, BackendId, Credentials, Mailbox, Registration, Snapshot, Timestamp,
    };
    use crate::store::Registrant;
    use crate::store::Sealed;

    const ACCOUNTS: usize = 7;

    fn credentials(number: usize) -> Credentials {
        let password = format!("password {number}").into_bytes();
        Credentials::password(format!("user{number}@example.org"), password)
    }

    fn backend() -> BackendId {
        BackendId::new(None, "imap", 993)
    }

    async fn register(store: &Store, account: Account, text: String) {
        let subscription = XAppleRegistration {
            version: 2,
            account_id: "id".into(),
            token: DeviceToken::new(&"ab".repeat(32)).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: Vec::new(),
        }
        .subscription(account, "topic");
        let mailboxes = vec![(Mailbox::inbox(), Snapshot::default())];
        let sealed = Sealed { text, until: None };
        let registration = Registration { subscription, mailboxes };
        let backend = backend();
        let login = Registrant::new(&backend, Timestamp(1), Some(&sealed));
        store.register(&registration, login, 10, Timestamp(1)).await.unwrap();
    }

    async fn filled(folder: &Path) -> (Store, Vault) {
        let url = format!("sqlite://{}", folder.join("test.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        let vault = Vault::open(&folder.join("test.key")).unwrap();
        for number in 0..ACCOUNTS {
            let credentials = credentials(number);
            register(
                &store,
                credentials.account(),
                vault.seal(&credentials.account(), &credentials),
            )
            .await;
        }
        (store, vault)
    }

    /// Opens every row with the key file as it is now.
    async fn all_open(store: &Store, folder: &Path) {
        let vault = Vault::open(&folder.join("test.key")).unwrap();
        for number in 0..ACCOUNTS {
            let expected = credentials(number);
            let account = expected.account();
            let sealed = store.credentials(&account, &backend()).await.unwrap().unwrap();
            assert!(vault.unseal(&account, &sealed.text).unwrap().same_as(&expected));
        }
    }

    fn keys_in(folder: &Path) -> usize {
        let text = std::fs::read_to_string(folder.join("test.key")).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).count()
    }

    #[tokio::test]
    async fn a_new_key_seals_everything_and_the_old_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (store, vault) = filled(folder.path()).await;
        // A server that runs and knows the old key.
        let server = Vault::open(&folder.path().join("test.key")).unwrap();
        let before = server.seal(&credentials(0).account(), &credentials(0));
        assert_eq!(rotate(&store, &vault).await.unwrap(), ACCOUNTS as u64);
        assert_eq!(keys_in(folder.path()), 1);
        all_open(&store, folder.path()).await;
        let after = server.seal(&credentials(0).account(), &credentials(0));
        assert_ne!(before[..SEAL_LEN], after[..SEAL_LEN], "it takes the new key at once");
        let seals = store.seals(SEAL_LEN).await.unwrap();
        assert_eq!(seals, [(after[..SEAL_LEN].to_owned(), ACCOUNTS as u64)]);
        assert!(server.unseal(&credentials(0).account(), &before).is_err(), "the old key is gone");
    }

    #[tokio::test]
    async fn stopped_anywhere_it_loses_nothing_and_goes_on() {
        for polls in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let (store, vault) = filled(folder.path()).await;
            let mut rotation = Box::pin(rotate(&store, &vault));
            let mut left = polls;
            let ended = std::future::poll_fn(|context| {
                if left == 0 {
                    return Poll::Ready(false);
                }
                left -= 1;
                rotation.as_mut().poll(context).map(|result| result.is_ok())
            });
            let ended = tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
            drop(rotation);
            all_open(&store, folder.path()).await;
            if ended {
                assert!(polls > 5, "it was stopped {polls} times only");
                return;
            }
            let again = Vault::open(&folder.path().join("test.key")).unwrap();
            rotate(&store, &again).await.unwrap();
            assert_eq!(keys_in(folder.path()), 1);
            all_open(&store, folder.path()).await;
            store.close().await;
        }
    }

    #[tokio::test]
    async fn a_wrong_key_file_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = filled(folder.path()).await;
        let wrong = folder.path().join("wrong.key");
        let vault = Vault::open(&wrong).unwrap();
        let text = std::fs::read_to_string(&wrong).unwrap();
        let refused = rotate(&store, &vault).await.unwrap_err().to_string();
        assert!(refused.contains("wrong.key") && refused.contains("7 accounts"), "{refused}");
        assert_eq!(std::fs::read_to_string(&wrong).unwrap(), text);
        all_open(&store, folder.path()).await;
    }

    #[tokio::test]
    async fn a_row_that_does_not_open_keeps_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let (store, vault) = filled(folder.path()).await;
        let key = || std::fs::read_to_string(folder.path().join("test.key")).unwrap();
        let before = key();
        let damaged = vault.seal(&Account::from_login("another"), &credentials(0));
        for foreign in ["v1.01234567.AAAA", &damaged] {
            register(&store, Account::from_login("zoe"), foreign.into()).await;
            let refused = rotate(&store, &vault).await.unwrap_err().to_string();
            assert!(
                refused.contains("zoe") && refused.contains("nothing was changed"),
                "{refused}"
            );
            assert_eq!(key(), before);
            all_open(&store, folder.path()).await;
        }
        store.remove_account(&Account::from_login("zoe")).await.unwrap();
        rotate(&store, &vault).await.unwrap();
        assert_ne!(key(), before);
    }

    #[tokio::test]
    async fn a_database_without_credentials_keeps_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let (_, vault) = filled(folder.path()).await;
        let other = format!("sqlite://{}", folder.path().join("other.db").display());
        let other = Store::open(&other.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        let before = std::fs::read_to_string(folder.path().join("test.key")).unwrap();
        let refused = rotate(&other, &vault).await.unwrap_err().to_string();
        assert!(
            refused.contains("other.db") && refused.contains("nothing was changed"),
            "{refused}"
        );
        assert_eq!(std::fs::read_to_string(folder.path().join("test.key")).unwrap(), before);
    }

    #[tokio::test]
    async fn a_database_that_was_replaced_keeps_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let (store, vault) = filled(folder.path()).await;
        let key = || std::fs::read_to_string(folder.path().join("test.key")).unwrap();
        let before = key();
        let (there, backup) = (folder.path().join("test.db"), folder.path().join("backup.db"));
        std::fs::copy(&there, &backup).unwrap();
        std::fs::rename(&backup, &there).unwrap();
        let refused = rotate(&store, &vault).await.unwrap_err();
        assert!(matches!(&refused, RotationError::Store(StoreError::Replaced { .. })), "{refused}");
        assert_eq!(key(), before);
    }

    #[tokio::test]
    async fn two_rotations_at_once_agree_on_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let (store, vault) = filled(folder.path()).await;
        let other = Vault::open(&folder.path().join("test.key")).unwrap();
        let (one, two) = tokio::join!(rotate(&store, &vault), rotate(&store, &other));
        one.unwrap();
        two.unwrap();
        assert_eq!(keys_in(folder.path()), 1);
        all_open(&store, folder.path()).await;
    }
}
