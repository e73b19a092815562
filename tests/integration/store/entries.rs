//! Entries at backends that mailchime has written; part of the contract.

use super::*;

pub(super) async fn an_account_with_an_entry_stays_until_that_is_removed(store: Store) {
    let now = Timestamp(1000);
    let leaving = async |now| -> Vec<(String, i64)> {
        let leaving = store.leaving(None, Timestamp(now)).await.unwrap();
        let one = store.leaving(Some(&alice()), Timestamp(now)).await.unwrap();
        assert_eq!(leaving, one);
        leaving.iter().map(|it| (it.account.as_str().to_owned(), it.since.0)).collect()
    };
    let lacks = async |since| store.lacks_entry(&alice(), Timestamp(since)).await.unwrap();
    assert!(!lacks(5).await, "of an account that is not known");
    assert!(!store.note_entry(&alice(), Some(now)).await.unwrap());
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    let login = by(&imap(), Some(&sealed("v1.alice")));
    assert!(store.save_credentials(&alice(), login, Timestamp::now()).await.unwrap());
    assert!(lacks(5).await);
    assert!(store.note_entry(&alice(), Some(now)).await.unwrap());
    assert!(!lacks(1000).await && lacks(1001).await);
    assert_eq!(leaving(1).await, []);

    let key = SubscriptionKey::from(&device(&alice(), 'a'));
    let removed = store.remove_subscription(&key, None).await.unwrap().unwrap();
    assert!(!removed.account_left);
    assert_eq!(leaving(7).await, [(alice().as_str().to_owned(), 7)]);
    assert_eq!(leaving(9).await, [(alice().as_str().to_owned(), 7)]);
    assert_eq!(kept(&store, &alice()).await.as_deref(), Some("v1.alice"));
    assert!(store.accounts(EVER).await.unwrap().is_empty());
    assert!(!store.remove_account(&alice()).await.unwrap());
    assert_eq!(leaving(9).await.len(), 1);

    // It comes back, and goes once more.
    register(&store, device(&alice(), 'b'), &["INBOX"], 5, 100).await;
    assert_eq!(leaving(10).await, []);
    assert!(store.left(&alice()).await.unwrap());
    assert!(lacks(5).await);
    store.note_entry(&alice(), Some(now)).await.unwrap();
    assert!(store.remove_account(&alice()).await.unwrap());
    assert_eq!(leaving(11).await, [(alice().as_str().to_owned(), 11)]);
    assert!(!store.left(&alice()).await.unwrap());
    assert_eq!(leaving(12).await, []);
    assert_eq!(kept(&store, &alice()).await, None);

    // What another backend has is not known any more.
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    store.note_entry(&alice(), Some(now)).await.unwrap();
    let elsewhere = BackendId::new(None, "elsewhere.example.org", 993);
    let there = registration(device(&alice(), 'a'), &["INBOX"], 5);
    store.register(&there, by(&elsewhere, None), 10, Timestamp(101)).await.unwrap();
    assert!(lacks(5).await, "it is to be written there");
    store.remove_subscription(&key, None).await.unwrap().unwrap();
    assert_eq!(leaving(13).await, []);

    // What is found to have none is not kept for it.
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    store.note_entry(&alice(), Some(now)).await.unwrap();
    store.remove_subscription(&key, None).await.unwrap().unwrap();
    store.note_entry(&alice(), None).await.unwrap();
    assert_eq!(leaving(13).await, []);
    assert!(!lacks(i64::MAX).await);
}
