//! A new key in the place of the one that seals the credentials.
//!
//! ```text
//!   file:  old  ──▶  new, old  ──▶  new
//!   rows:  old  ───  old and new ─  new
//! ```
//!
//! Whatever ends it in between, both keys are in the file while rows of both are in the database;
//! the next rotation goes on where this one stopped. A server that runs meanwhile seals with the new
//! key as soon as it is in the file. Rows that no key of the file opens stay as they are.

use super::accounts::Resealed;
use super::vault::SEAL_LEN;
use super::{CredentialsError, Store, Vault, VaultError, rows};

/// What a rotation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotated {
    /// Credentials that the new key seals instead of the old one.
    pub resealed: u64,
    /// Credentials that the key file does not open: damaged, or of a key from before.
    pub unreadable: u64,
}

/// Makes a new key, seals all stored credentials with it, and drops the old key; what the old one sealed
/// is gone from the files of SQLite, too.
///
/// # Errors
/// [`VaultError::WrongKeyFile`] when the file opens nothing of what is stored; nothing was changed
/// then. With any other error the rotation is begun, and to be called again.
pub async fn rotate(store: &Store, vault: &Vault) -> Result<Rotated, CredentialsError> {
    let seals = store.seals(SEAL_LEN).await?;
    if !seals.is_empty() && !seals.iter().any(|(seal, _)| vault.knows(seal)) {
        return Err(vault.wrong_key_file(&seals).into());
    }
    vault.add_key()?;
    let mut rotated = Rotated::default();
    // Users log in meanwhile, and a server may have sealed with the old key a moment ago.
    loop {
        let pass = pass(store, vault).await?;
        rotated.resealed += pass.resealed;
        rotated.unreadable = pass.unreadable;
        if !pass.again {
            break;
        }
    }
    vault.drop_old_key()?;
    store.scrub_soon().await;
    Ok(rotated)
}

#[derive(Default)]
struct Pass {
    resealed: u64,
    unreadable: u64,
    /// There was something to do.
    again: bool,
}

/// Looks at all stored credentials once.
async fn pass(store: &Store, vault: &Vault) -> Result<Pass, CredentialsError> {
    let mut pass = Pass::default();
    let mut last = String::new();
    loop {
        let accounts = store.sealed_after(&last, rows::MOST).await?;
        let Some((account, _)) = accounts.last() else { return Ok(pass) };
        account.as_str().clone_into(&mut last);
        let mut texts = Vec::new();
        for (account, old) in accounts {
            let Some(old) = old else {
                pass.unreadable += 1;
                continue;
            };
            match vault.reseal(&account, &old) {
                Ok(Some(new)) => texts.push(Resealed { account, old, new }),
                Ok(None) => {}
                Err(error @ (VaultError::Damaged { .. } | VaultError::OtherKey { .. })) => {
                    tracing::warn!(%account, %error, "left as it is");
                    pass.unreadable += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        pass.again |= !texts.is_empty();
        pass.resealed += store.reseal(&texts).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;
    use crate::model::{
        Account, BackendId, Credentials, Device, DeviceToken, Mailbox, Registration, Snapshot,
        Timestamp,
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
        let device = Device {
            account,
            account_id: "id".into(),
            token: DeviceToken::new(&"ab".repeat(32)).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            version: 2,
            topic: "topic".into(),
        };
        let mailboxes = vec![(Mailbox::inbox(), Snapshot::default())];
        let sealed = Sealed { text, until: None };
        let registration = Registration { device, mailboxes };
        let backend = backend();
        let login = Registrant::new(&backend, Timestamp(1), Some(&sealed));
        store.register(&registration, login, 10, Timestamp(1)).await.unwrap();
    }

    async fn filled(folder: &Path) -> (Store, Vault) {
        let url = format!("sqlite://{}", folder.join("test.db").display());
        let store = Store::open(&url, Duration::from_secs(5)).await.unwrap();
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
        let rotated = rotate(&store, &vault).await.unwrap();
        assert_eq!(rotated, Rotated { resealed: ACCOUNTS as u64, unreadable: 0 });
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
    async fn what_does_not_open_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (store, vault) = filled(folder.path()).await;
        let foreign = "v1.01234567.AAAA";
        register(&store, Account::from_login("zoe"), foreign.into()).await;
        let rotated = rotate(&store, &vault).await.unwrap();
        assert_eq!(rotated, Rotated { resealed: ACCOUNTS as u64, unreadable: 1 });
        let kept =
            store.credentials(&Account::from_login("zoe"), &backend()).await.unwrap().unwrap();
        assert_eq!(kept.text, foreign);
        all_open(&store, folder.path()).await;
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
