//! Which backend an account belongs to, and which devices outlive its password; part of the contract.

use mailchime::config::PushConfig;
use mailchime::store::Alive;

use super::*;

const HOUR: i64 = 3_600_000;

fn other() -> BackendId {
    BackendId::new(None, "imap.example.net", 993)
}

/// The devices of alice that live at this hour, by the digits of their tokens.
async fn alive(store: &Store, hour: i64, push: &PushConfig) -> String {
    let alive = Alive::at(Timestamp(hour * HOUR), push);
    let targets = store.targets(&alice(), alive).await.unwrap();
    targets.iter().map(|target| &target.subscription.endpoint.as_given()[..1]).collect()
}

pub(super) async fn what_one_backend_accepted_is_nothing_to_another(store: Store) {
    let registration = registration(device(&alice(), 'a'), &["INBOX", "Sent"], 5);
    let login = by(&imap(), Some(&sealed("sealed")));
    store.register(&registration, login, 10, EVER).await.unwrap();
    owe(&store, key(&alice(), 'a'), "INBOX").await;

    // Nothing is found, changed or brought to an end on behalf of another backend.
    assert_eq!(store.credentials(&alice(), &other()).await.unwrap(), None);
    assert!(store.watched(&alice(), &other(), EVER).await.unwrap().is_empty());
    let fresh = by(&other(), Some(&sealed("fresh")));
    assert!(!store.save_credentials(&alice(), fresh, Timestamp::now()).await.unwrap());
    store.refused(&alice(), &other(), 2, Some("NO"), EVER).await.unwrap();
    let live = store.live_account(&alice(), EVER).await.unwrap().unwrap();
    assert_eq!((live.parked.as_deref(), live.elsewhere(&imap())), (None, None));
    assert_eq!(live.elsewhere(&other()), Some(imap().as_str()));
    store.refused(&alice(), &imap(), 2, Some("NO"), EVER).await.unwrap();
    store.unpark(&alice(), &other()).await.unwrap();
    assert!(store.live_account(&alice(), EVER).await.unwrap().unwrap().parked.is_some());
    assert!(store.is_of(&alice(), &imap()).await.unwrap());
    assert!(!store.is_of(&alice(), &other()).await.unwrap());
    assert!(!store.is_of(&bob(), &imap()).await.unwrap());

    // A registration at another one begins anew: what was kept for the former one is removed.
    register(&store, device(&bob(), 'a'), &["INBOX"], 5, 0).await;
    let namesake = super::registration(device(&alice(), 'b'), &["INBOX"], 9);
    store.register(&namesake, by(&other(), None), 10, EVER).await.unwrap();
    let target = only_target(&store, &alice()).await;
    assert_eq!(
        (target.subscription.endpoint.clone(), mailboxes(&target)),
        (token('b').endpoint(), vec!["INBOX".to_owned()])
    );
    assert_eq!(target.backend.as_deref(), Some(other().as_str()));
    assert_eq!(told(&store, &alice(), "INBOX").await, None, "it is not the former backend's");
    let watched = store.watched(&alice(), &other(), EVER).await.unwrap();
    assert_eq!(watched, [(Mailbox::inbox(), state(9))]);
    for backend in [imap(), other()] {
        assert_eq!(store.credentials(&alice(), &backend).await.unwrap(), None);
    }
    assert_eq!(store.live_account(&alice(), EVER).await.unwrap().unwrap().parked, None);
    assert_eq!(store.targets(&bob(), EVER).await.unwrap().len(), 1);
}

pub(super) async fn a_backend_may_get_a_name(store: Store) {
    let named = BackendId::new(Some("main"), "IMAP.example.org", 993);
    let moved = BackendId::new(Some("main"), "imap2.example.org", 993);
    let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
    let login = by(&imap(), Some(&sealed("sealed")));
    store.register(&registration, login, 10, EVER).await.unwrap();
    register(&store, device(&bob(), 'a'), &["INBOX"], 5, 0).await;
    assert_eq!(store.credentials(&alice(), &named).await.unwrap(), Some(sealed("sealed")));
    assert_eq!(store.credentials(&alice(), &moved).await.unwrap(), None, "not recorded yet");

    let accounts = [(alice(), named.clone()), (bob(), other())];
    assert_eq!(store.adopt(&accounts).await.unwrap(), 1, "bob's backend is another one");
    assert_eq!(store.adopt(&accounts).await.unwrap(), 0);
    assert_eq!(store.credentials(&alice(), &moved).await.unwrap(), Some(sealed("sealed")));
    assert_eq!(store.credentials(&alice(), &imap()).await.unwrap(), None);
    store.register(&registration, by(&moved, None), 10, EVER).await.unwrap();
    assert_eq!(store.credentials(&alice(), &moved).await.unwrap(), Some(sealed("sealed")));
}

/// A login with another password at this hour.
fn other_password(text: &str, hour: i64) -> Registrant {
    let mut login = Registrant::new(&imap(), Timestamp(hour * HOUR), Some(&sealed(text)));
    login.other_password = true;
    login
}

async fn registers(store: &Store, digit: char, login: Registrant, hour: i64) {
    let registration = registration(device(&alice(), digit), &["INBOX"], 5);
    store.register(&registration, login, 10, Timestamp(hour * HOUR)).await.unwrap();
}

pub(super) async fn devices_outlive_a_password_by_25_hours(store: Store) {
    let kept = PushConfig::default();
    let at_once =
        PushConfig { forget_subscriptions_on_password_change: true, ..PushConfig::default() };
    for digit in ['a', 'b', 'c'] {
        registers(&store, digit, by(&imap(), Some(&sealed("old"))), 1).await;
    }
    // One registers with the new password, which a login without a registration has brought.
    assert!(
        store.save_credentials(&alice(), other_password("new", 2), Timestamp::now()).await.unwrap()
    );
    assert_eq!((&*alive(&store, 2, &kept).await, &*alive(&store, 2, &at_once).await), ("abc", ""));
    registers(&store, 'b', Registrant::new(&imap(), Timestamp(2 * HOUR), None), 3).await;
    assert_eq!((&*alive(&store, 3, &kept).await, &*alive(&store, 3, &at_once).await), ("abc", "b"));
    let outdated = store.targets(&alice(), EVER).await.unwrap();
    let outdated: Vec<_> = outdated.iter().map(|target| target.outdated_since).collect();
    assert_eq!(outdated, [Some(Timestamp(2 * HOUR)), None, Some(Timestamp(2 * HOUR))]);

    // A session of before has the old password: it brings neither that back nor its device.
    let mut before = other_password("old", 1);
    registers(&store, 'c', before.clone(), 20).await;
    registers(&store, 'd', before.clone(), 20).await;
    assert_eq!(store.credentials(&alice(), &imap()).await.unwrap(), Some(sealed("new")));
    before.logged_in_at = Timestamp(HOUR);
    assert!(!store.save_credentials(&alice(), before, Timestamp::now()).await.unwrap());
    // Yet another password does not put the end off.
    registers(&store, 'b', other_password("newer", 21), 21).await;
    assert_eq!(alive(&store, 26, &kept).await, "abcd");
    assert_eq!(alive(&store, 27, &kept).await, "b");
    let live = store.accounts(Alive::at(Timestamp(27 * HOUR), &kept)).await.unwrap();
    assert_eq!(live.len(), 1);

    let gone = store.expire(Alive::at(Timestamp(26 * HOUR), &kept)).await.unwrap();
    assert_eq!((gone.len(), store.targets(&alice(), EVER).await.unwrap().len()), (0, 4));
    store.expire(Alive::at(Timestamp(27 * HOUR), &kept)).await.unwrap();
    assert_eq!(store.targets(&alice(), EVER).await.unwrap().len(), 1);
    // The last one takes the account along.
    store.outdate(&alice(), Timestamp(30 * HOUR), Timestamp::now()).await.unwrap();
    let gone = store.expire(Alive::at(Timestamp(55 * HOUR), &kept)).await.unwrap();
    assert_eq!(gone, [alice()]);
    assert!(store.live_account(&alice(), EVER).await.unwrap().is_none());
}
