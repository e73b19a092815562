//! What users make themselves: subscriptions that are pending first, with secrets, and an end; part of the
//! contract.

use std::fs;

use mailchime::config;
use mailchime::model::{
    AcceptedLogin, Credentials, LastingFailure, PushEndpoint, SubscriptionSecrets,
    SubscriptionState, TransportId,
};
use mailchime::store::{
    CredentialSource, Full, ListedSubscription, MadeRoom, RegisterOutcome, Vault, rotate,
};

use super::*;

/// A browser of alice's, by its name.
fn browser(name: &str) -> Subscription {
    let url = format!("https://push.example/{name}");
    Subscription {
        account: alice(),
        transport: TransportId::new("web"),
        endpoint: PushEndpoint::new(&url, &url),
        app: "".into(),
        route: "vapid".into(),
        options: "{}".into(),
        secrets: Some(SubscriptionSecrets::new(format!("auth of {name}"))),
        expires_at: None,
    }
}

fn login() -> AcceptedLogin {
    AcceptedLogin {
        backend: imap(),
        credentials: Some(Credentials::password("alice@example.org", b"pw".to_vec())),
        at: EVER,
        names_ignore_case: false,
    }
}

async fn adds(source: &CredentialSource, subscription: Subscription, now: i64) {
    let registration = registration(subscription, &["INBOX"], 5);
    source.register_pending(&registration, &login(), 10, Timestamp(now)).await.unwrap();
}

pub(super) async fn a_phone_hears_of_nothing_that_came_before_it_while_a_browser_was_pending(
    store: Store,
) {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    let store = store.sealing(&key_file);
    let source =
        CredentialSource::open(config::CredentialsMode::Memory, &key_file, store.clone()).unwrap();
    // With UIDNEXT 5.
    adds(&source, browser("one"), 100).await;
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 9, 200).await;
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(9)), "the phone has seen it");
    // From then on it is the phone that has to be told.
    register(&store, device(&alice(), 'b'), &["INBOX"], 12, 300).await;
    register(&store, device(&alice(), 'a'), &["INBOX"], 13, 400).await;
    adds(&source, browser("two"), 500).await;
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(9)));
}

/// Confirms it, in an account with room for ten; whether there is one.
async fn confirms(store: &Store, account: &Account, id: i64) -> bool {
    store.confirm(account, id, &login(), 10).await.unwrap().is_some()
}

/// Which subscriptions of alice's there are, and whether they count.
async fn listed(store: &Store) -> Vec<ListedSubscription> {
    let listed = store.subscriptions_of(&alice()).await.unwrap();
    assert!(listed.iter().all(|it| it.subscription.secrets.is_none()));
    listed
}

pub(super) async fn a_pending_subscription_gets_nothing_until_it_is_confirmed(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    let store = store.sealing(&key_file);
    let source =
        CredentialSource::open(config::CredentialsMode::Memory, &key_file, store.clone()).unwrap();
    assert!(!key_file.exists(), "nothing is sealed yet");
    adds(&source, browser("one"), 100).await;
    assert!(key_file.exists());

    let [pending] = &listed(&store).await[..] else { panic!("it is not listed") };
    let without = Subscription { secrets: None, ..browser("one") };
    assert_eq!((&pending.subscription, pending.state), (&without, SubscriptionState::Pending));
    assert_eq!((pending.registered_at, pending.pushed_at), (Timestamp(100), None));
    assert_eq!(pending.mailboxes, [Mailbox::inbox()]);
    let id = pending.id;
    assert_eq!(store.subscription_id(&(&without).into()).await.unwrap(), Some(id));

    store.want_login(&alice(), &imap(), Duration::ZERO, Timestamp(200)).await.unwrap().unwrap();
    assert_eq!(store.accounts(EVER).await.unwrap(), []);
    assert_eq!(store.live_account(&alice(), EVER).await.unwrap(), None);
    assert_eq!(store.targets(&alice(), EVER).await.unwrap(), []);
    assert_eq!(store.watched(&alice(), &imap(), EVER).await.unwrap(), []);
    assert_eq!(store.owed_accounts().await.unwrap(), []);

    assert!(!confirms(&store, &bob(), id).await, "another account's");
    assert!(!confirms(&store, &alice(), id + 1).await);
    assert_eq!(store.targets(&alice(), EVER).await.unwrap(), []);
    assert!(confirms(&store, &alice(), id).await);
    assert!(confirms(&store, &alice(), id).await, "twice is the same");
    let target = only_target(&store, &alice()).await;
    assert_eq!(target.subscription, browser("one"), "with its secrets");
    assert_eq!(store.accounts(EVER).await.unwrap().len(), 1);
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(5)));

    // Made anew it counts all the same, with what is new.
    let renewed = Subscription {
        secrets: Some(SubscriptionSecrets::new("another".to_owned())),
        ..browser("one")
    };
    adds(&source, renewed.clone(), 300).await;
    assert_eq!(only_target(&store, &alice()).await.subscription, renewed);
    assert_eq!(listed(&store).await[0].id, id);
}

pub(super) async fn what_did_not_answer_and_what_has_ended_goes(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    let store = store.sealing(&key_file);
    let source =
        CredentialSource::open(config::CredentialsMode::Master, &key_file, store.clone()).unwrap();
    adds(&source, browser("early"), 100).await;
    adds(&source, browser("late"), 200).await;
    adds(&source, browser("confirmed"), 100).await;
    let ends = Subscription { expires_at: Some(Timestamp(500)), ..browser("ends") };
    adds(&source, ends, 100).await;
    let all = listed(&store).await;
    for confirmed in &all[2..] {
        assert!(confirms(&store, &alice(), confirmed.id).await);
    }
    assert_eq!(all[3].subscription.expires_at, Some(Timestamp(500)));

    let left = async |pending_before, now| -> Vec<String> {
        let (gone, done) = store.drop_ended(Timestamp(pending_before), Timestamp(now)).await;
        assert!(done.is_ok() && gone.is_empty());
        let listed = listed(&store).await;
        listed.iter().map(|it| it.subscription.endpoint.as_given()[21..].to_owned()).collect()
    };
    assert_eq!(left(100, 499).await, ["early", "late", "confirmed", "ends"]);
    assert_eq!(left(200, 499).await, ["late", "confirmed", "ends"]);
    // Silence ends what registers again by itself, and nothing else.
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    assert_eq!(store.targets(&alice(), Timestamp(150)).await.unwrap().len(), 2);
    assert_eq!(store.expire(Timestamp(150)).await.unwrap(), []);
    assert_eq!(left(200, 499).await, ["late", "confirmed", "ends"]);
    assert_eq!(left(200, 500).await, ["late", "confirmed"]);
    assert_eq!(left(201, 500).await, ["confirmed"]);
    assert!(store.remove_by_id(&alice(), all[2].id).await.unwrap().is_some());
    adds(&source, browser("last"), 600).await;
    assert_eq!(store.drop_ended(Timestamp(601), EVER).await.0, [alice()]);
    assert!(store.subscriptions_of(&alice()).await.unwrap().is_empty());
}

pub(super) async fn a_pending_subscription_displaces_nothing_until_it_is_confirmed(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    let store = store.sealing(&key_file);
    let source =
        CredentialSource::open(config::CredentialsMode::Master, &key_file, store.clone()).unwrap();
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    let mut became = Vec::new();
    for name in ["1", "2", "3", "4", "5", "6"] {
        let registration = registration(browser(name), &["INBOX"], 5);
        let pending = source.register_pending(&registration, &login(), 1, Timestamp(200)).await;
        became.push(pending.unwrap());
    }
    let stored = RegisterOutcome::Stored(MadeRoom::default());
    assert_eq!(became[..5], vec![stored; 5]);
    assert_eq!(became[5], RegisterOutcome::Full(Full::PendingPerAccount));
    let all = listed(&store).await;
    assert_eq!(only_target(&store, &alice()).await.subscription, device(&alice(), 'a'));

    // The first one that is confirmed takes the only place.
    let confirmed = store.confirm(&alice(), all[1].id, &login(), 1).await.unwrap();
    let made = MadeRoom { devices: 1, registrations: 0 };
    assert_eq!(confirmed, Some(RegisterOutcome::Stored(made)));
    assert_eq!(only_target(&store, &alice()).await.subscription, browser("1"));

    // What failed to be verified goes as long as it is pending with the same code.
    let removes = async |id, options: &str| {
        store.remove_pending(&alice(), id, options).await.unwrap().is_some()
    };
    assert!(!removes(all[1].id, "{}").await, "it counts");
    assert!(!removes(all[2].id, "{\"confirm\":\"another\"}").await);
    assert!(removes(all[2].id, "{}").await);
    assert_eq!(listed(&store).await.len(), 4);
}

pub(super) async fn a_user_removes_any_of_their_own(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 5, 100).await;
    register(&store, device(&bob(), 'b'), &["INBOX"], 5, 100).await;
    let phone = device(&alice(), 'a');
    let pushed = Settlement::Accepted {
        subscription: (&phone).into(),
        mailboxes: Vec::new(),
        at: Timestamp(7),
    };
    store.settle(&[pushed]).await.unwrap();
    let [listed] = &listed(&store).await[..] else { panic!("it is not listed") };
    assert_eq!((&listed.subscription, listed.state), (&phone, SubscriptionState::Active));
    assert_eq!(listed.pushed_at, Some(Timestamp(7)));
    assert_eq!(listed.mailboxes, [Mailbox::inbox(), Mailbox::new("Sent")]);
    assert_eq!(store.remove_by_id(&bob(), listed.id).await.unwrap(), None, "another account's");
    let removed = store.remove_by_id(&alice(), listed.id).await.unwrap().unwrap();
    assert_eq!((removed.subscription, removed.account_left), (phone, false));
    assert_eq!(store.remove_by_id(&alice(), listed.id).await.unwrap(), None);
    assert_eq!(store.accounts(EVER).await.unwrap().len(), 1);
}

pub(super) async fn a_subscription_fails_since_its_first_failure_until_a_push_is_accepted(
    store: Store,
) {
    let [phone, other] = ['a', 'b'].map(|digit| device(&alice(), digit));
    register(&store, phone.clone(), &["INBOX"], 5, 100).await;
    register(&store, other, &["INBOX"], 5, 100).await;
    let failing = |since| Settlement::Failing {
        subscription: (&phone).into(),
        failure: failure(since, "refused", 0),
        registered_at: Timestamp(100),
    };
    let accepted = |at| {
        let subscription = (&phone).into();
        Settlement::Accepted { subscription, mailboxes: Vec::new(), at }
    };
    let since = async |settlements: &[Settlement]| {
        store.settle(settlements).await.unwrap();
        let targets = store.targets(&alice(), EVER).await.unwrap();
        let users = store.subscriptions_of(&alice()).await.unwrap();
        let all = store.subscriptions(None, 10).await.unwrap().unwrap().1;
        let all = all.iter().map(|it| &it.failing);
        assert!(targets.iter().map(|it| &it.failing).eq(all));
        assert_eq!((&users[0].failing, &users[1].failing), (&targets[0].failing, &None));
        targets[0].failing.as_ref().map(|it| it.since)
    };
    assert_eq!(since(&[]).await, None);
    assert_eq!(since(&[failing(Timestamp(7))]).await, Some(Timestamp(7)));
    assert_eq!(since(&[failing(Timestamp(9))]).await, Some(Timestamp(7)), "the first one");
    assert_eq!(since(&[failing(Timestamp(9)), accepted(Timestamp(9))]).await, None);
    let both = [accepted(Timestamp(11)), failing(Timestamp(12))];
    assert_eq!(since(&both).await, Some(Timestamp(12)));
    assert_eq!(since(&[accepted(Timestamp(13))]).await, None);
}

fn failure(since: Timestamp, kind: &str, own_fault: u64) -> LastingFailure {
    LastingFailure { since, kind: kind.into(), own_fault: Duration::from_millis(own_fault) }
}

pub(super) async fn it_is_kept_how_a_subscription_fails_and_for_how_long_by_its_own_fault(
    store: Store,
) {
    let phone = device(&alice(), 'a');
    register(&store, phone.clone(), &["INBOX"], 5, 100).await;
    let failing = async || store.targets(&alice(), EVER).await.unwrap().remove(0).failing;
    for (kind, own_fault) in [("refused", 0), ("refused", 900_000), ("bad-endpoint", 0)] {
        let failure = failure(Timestamp(7), kind, own_fault);
        let subscription = (&phone).into();
        store
            .settle(&[Settlement::Failing {
                subscription,
                failure: failure.clone(),
                registered_at: Timestamp(100),
            }])
            .await
            .unwrap();
        assert_eq!(failing().await, Some(failure));
    }
    // Of another route than there is, until there is that one again.
    let transport = &phone.transport;
    let others = failure(Timestamp(7), "other-route", 0);
    store.only_route(transport, "another", Timestamp(9)).await.unwrap();
    assert_eq!(failing().await, Some(others));
    store.only_route(transport, &phone.route, Timestamp(10)).await.unwrap();
    assert_eq!(failing().await, None);
    store.only_route(transport, "another", Timestamp(11)).await.unwrap();
    assert_eq!(failing().await.map(|it| it.since), Some(Timestamp(11)));
    // What failed was the registration before.
    register(&store, phone.clone(), &["INBOX"], 5, 200).await;
    assert_eq!(failing().await, None);
    // Also where it is written late.
    let subscription = (&phone).into();
    let (failure, registered_at) = (failure(Timestamp(7), "refused", 9), Timestamp(199));
    store.settle(&[Settlement::Failing { subscription, failure, registered_at }]).await.unwrap();
    assert_eq!(failing().await, None);
}

/// A browser is registered once, and then it is its pushes that show that it lives.
pub(super) async fn a_browser_that_is_pushed_gives_its_place_to_none_that_is_older(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    let store = store.sealing(&key_file);
    let source =
        CredentialSource::open(config::CredentialsMode::Master, &key_file, store.clone()).unwrap();
    adds(&source, browser("one"), 100).await;
    let id = listed(&store).await[0].id;
    assert!(confirms(&store, &alice(), id).await);
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 200).await;
    let pushed = |at| Settlement::Accepted {
        subscription: (&browser("one")).into(),
        mailboxes: Vec::new(),
        at: Timestamp(at),
    };
    store.settle(&[pushed(300)]).await.unwrap();
    let comes = async |digit, now| {
        let registration = registration(device(&alice(), digit), &["INBOX"], 5);
        store.register(&registration, by(&imap(), None), 2, Timestamp(now)).await.unwrap();
        let targets = store.targets(&alice(), EVER).await.unwrap();
        targets.into_iter().map(|target| target.subscription).collect::<Vec<_>>()
    };
    let left = comes('b', 400).await;
    assert!(left.contains(&browser("one")) && left.len() == 2, "{left:?}");
    // Without a push for longer than the phone has been there it is the oldest.
    let left = comes('c', 500).await;
    assert_eq!(left, [device(&alice(), 'b'), device(&alice(), 'c')]);
}

/// The secrets of a row open for its own account, transport and endpoint only, with the key that sealed them;
/// a rotation seals them anew.
pub(super) async fn secrets_are_sealed_for_their_subscription(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    let store = store.sealing(&key_file);
    let registers = async |subscription: Subscription| {
        let registration = registration(subscription, &["INBOX", "Sent"], 5);
        store.register(&registration, by(&imap(), None), 10, Timestamp(100)).await.unwrap();
    };
    registers(browser("one")).await;
    registers(Subscription { account: bob(), ..browser("two") }).await;
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    assert_eq!(rotate(&store, &Vault::open(&key_file).unwrap()).await.unwrap(), 2);
    let secrets = async |account: &Account| -> Vec<Option<String>> {
        let targets = store.targets(account, EVER).await.unwrap();
        let secrets = targets.into_iter().map(|target| target.subscription.secrets);
        secrets.map(|it| it.map(|it| it.expose().to_owned())).collect()
    };
    let of = |name: &str| Some(format!("auth of {name}"));
    assert_eq!(secrets(&alice()).await, [None, of("one")]);
    assert_eq!(secrets(&bob()).await, [of("two")]);

    let source = |key_file| {
        let store = store.clone().sealing(key_file);
        CredentialSource::open(config::CredentialsMode::Master, key_file, store).unwrap()
    };
    assert_eq!(source(&key_file).unreadable().await.unwrap(), 0);
    let other = folder.path().join("other");
    assert_eq!(source(&other).unreadable().await.unwrap(), 2);
    assert!(!other.exists(), "nothing was sealed with it");
    // A file that cannot be read now says nothing of the rows: the phone does not wait for it, and what the
    // browser is owed stays.
    let looks = async || {
        let targets = store.clone().sealing(&other).targets(&alice(), EVER).await.unwrap();
        let shown = targets.into_iter().map(|target| {
            let Subscription { transport, secrets, .. } = target.subscription;
            (transport.as_str().to_owned(), secrets.is_some(), target.mailboxes.len())
        });
        shown.collect::<Vec<_>>()
    };
    let unopened = async |file| store.clone().sealing(file).unopened(&alice()).await.unwrap();
    let shut = [SubscriptionKey::from(&browser("one"))];
    assert_eq!(unopened(&key_file).await, []);
    assert_eq!(unopened(&other).await, shut, "there is no file");
    let (phone, browser) = (("apns".to_owned(), false, 1), ("web".to_owned(), false, 2));
    assert_eq!(looks().await, [phone.clone(), browser.clone()]);
    fs::write(&other, "no key").unwrap();
    assert_eq!(looks().await, [phone.clone(), browser]);
    assert_eq!(unopened(&other).await, shut, "the file cannot be read");
    fs::remove_file(&other).unwrap();
    drop(Vault::open(&other).unwrap());
    assert_eq!(looks().await, [phone], "the key opens no secrets of others");
    assert_eq!(unopened(&other).await, shut, "the key is another");
    fs::copy(&key_file, &other).unwrap();
    assert_eq!(source(&other).unreadable().await.unwrap(), 0);
}
