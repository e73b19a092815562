//! What registrations leave in the database, on each database.

use mailchime::imap::mailbox::LONGEST_NAME;

use super::*;

pub(super) async fn a_registration_comes_back_as_it_was_given(store: Store) {
    store.ping().await.unwrap();
    register(&store, device(&alice(), 'a'), &["INBOX", "Entwürfe/\"日本\""], 5, 100).await;
    let target = only_target(&store, &alice()).await;
    assert_eq!(target.subscription, device(&alice(), 'a'));
    assert_eq!(target.registered_at, Timestamp(100));
    assert_eq!(target.pushed_at, None);
    assert_eq!(mailboxes(&target), ["Entwürfe/\"日本\"", "INBOX"]);
    let watched = store.watched(&alice(), &imap(), EVER).await.unwrap();
    let expected = [("Entwürfe/\"日本\"", state(5)), ("INBOX", state(5))];
    assert_eq!(watched, expected.map(|(name, told)| (Mailbox::new(name), told)));
    assert!(store.targets(&bob(), EVER).await.unwrap().is_empty());
    assert!(store.watched(&bob(), &imap(), EVER).await.unwrap().is_empty());
}
/// Names of accounts and mailboxes that differ in nothing but case or a space at their end are others.
pub(super) async fn case_and_spaces_at_the_end_tell_names_apart(store: Store) {
    let names = ["Alice", "alice", "alice ", "alice  "];
    let mailboxes = ["Work", "work", "work ", "work  ", "\u{1f514}", "\u{1f514} "];
    for (number, name) in (2_u64..).zip(names) {
        let account = Account::from_login(name);
        let phone = device(&account, char::from_digit(number as u32, 16).unwrap());
        let mut registration = registration(phone, &[], 5);
        registration.mailboxes = (number..)
            .zip(mailboxes)
            .map(|(next, name)| (Mailbox::new(name), state(next)))
            .collect();
        store.register(&registration, by(&imap(), None), 10, Timestamp(100)).await.unwrap();
    }
    for (number, name) in (2_u64..).zip(names) {
        let account = Account::from_login(name);
        let target = only_target(&store, &account).await;
        assert_eq!(target.mailboxes.len(), mailboxes.len(), "{name:?}: {target:?}");
        for (next, mailbox) in (number..).zip(mailboxes) {
            assert_eq!(told(&store, &account, mailbox).await, Some(state(next)), "{name:?}");
        }
    }
    // What happens to one is nothing to another.
    let account = Account::from_login("alice ");
    owe(&store, SubscriptionKey::from(&device(&account, '4')), "work ").await;
    assert!(store.remove_account(&Account::from_login("alice")).await.unwrap());
    let owed: Vec<_> = store.owed_accounts().await.unwrap();
    assert_eq!(owed, std::slice::from_ref(&account));
    let target = only_target(&store, &account).await;
    let owed: Vec<_> = target.mailboxes.iter().filter(|(_, owed)| *owed).collect();
    assert_eq!(owed, [&(Mailbox::new("work "), true)]);
    assert_eq!(store.accounts(EVER).await.unwrap().len(), 3);
}

pub(super) async fn names_as_long_as_mailboxes_may_have_are_told_apart_to_their_end(store: Store) {
    let long = |end: &str| "m".repeat(LONGEST_NAME - end.len()) + end;
    let names = [long(""), long("x"), long("X"), long(" "), "\u{1f514}".repeat(LONGEST_NAME / 4)];
    let names = names.each_ref().map(String::as_str);
    let account = Account::from_login(&"\u{130}".repeat(512));
    for next in [5, 9] {
        register(&store, device(&account, 'a'), &names, next, 100).await;
    }
    for name in names {
        assert_eq!(told(&store, &account, name).await, Some(state(5)));
        let told = Settlement::Told {
            account: account.clone(),
            mailbox: Mailbox::new(name),
            snapshot: state(u64::try_from(name.chars().count()).unwrap()),
        };
        store.settle(&[told]).await.unwrap();
    }
    owe(&store, key(&account, 'a'), names[3]).await;
    let target = only_target(&store, &account).await;
    let owed: Vec<_> = target.mailboxes.iter().filter(|(_, owed)| *owed).collect();
    assert_eq!((target.mailboxes.len(), owed), (5, vec![&(Mailbox::new(names[3]), true)]));
    for name in names {
        let next = u64::try_from(name.chars().count()).unwrap();
        assert_eq!(told(&store, &account, name).await, Some(state(next)));
    }
}

pub(super) async fn a_token_in_other_case_is_the_same_device(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    register(&store, device(&alice(), 'A'), &["INBOX"], 5, 200).await;
    let target = only_target(&store, &alice()).await;
    assert_eq!(
        target.subscription.endpoint.as_given(),
        token('A').as_given(),
        "kept as given last"
    );
    assert!(store.remove_subscription(&key(&alice(), 'a'), None).await.unwrap().is_some());
    assert!(store.targets(&alice(), EVER).await.unwrap().is_empty());
}

pub(super) async fn one_token_with_another_subtopic_or_account_is_another_device(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    let other = Subscription { app: "com.example.mail".into(), ..device(&alice(), 'a') };
    register(&store, other.clone(), &["Sent"], 5, 100).await;
    register(&store, device(&bob(), 'a'), &["INBOX"], 5, 100).await;
    assert_eq!(store.targets(&alice(), EVER).await.unwrap().len(), 2);
    let removed =
        store.remove_subscription(&SubscriptionKey::from(&other), None).await.unwrap().unwrap();
    assert_eq!((removed.subscription, removed.account_left), (other, true));
    assert_eq!(mailboxes(&only_target(&store, &alice()).await), ["INBOX"]);
    assert_eq!(mailboxes(&only_target(&store, &bob()).await), ["INBOX"]);
}

pub(super) async fn two_devices_may_have_one_account_id(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    register(&store, device(&alice(), 'b'), &["INBOX"], 5, 100).await;
    let targets = store.targets(&alice(), EVER).await.unwrap();
    assert_eq!(targets.len(), 2);
    assert_eq!(targets[0].subscription.options, targets[1].subscription.options);
    store.remove_subscription(&key(&alice(), 'a'), None).await.unwrap();
    assert_eq!(only_target(&store, &alice()).await.subscription, device(&alice(), 'b'));
}

pub(super) async fn a_new_registration_replaces_the_old_one(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 5, 100).await;
    let pushed = Settlement::Accepted {
        subscription: key(&alice(), 'a'),
        mailboxes: vec![],
        at: Timestamp(150),
    };
    store.settle(&[pushed]).await.unwrap();
    let newer = Subscription {
        options: options("another", 1),
        route: "com.apple.mail.XServer.2".into(),
        ..device(&alice(), 'a')
    };
    register(&store, newer.clone(), &["INBOX"], 5, 200).await;
    let target = only_target(&store, &alice()).await;
    assert_eq!(target.subscription, newer);
    assert_eq!(target.registered_at, Timestamp(200));
    assert_eq!(target.pushed_at, Some(Timestamp(150)));
    assert_eq!(mailboxes(&target), ["INBOX"]);
}

pub(super) async fn owed_marks_outlive_a_registration(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent", "Notes"], 5, 100).await;
    owe(&store, key(&alice(), 'a'), "INBOX").await;
    owe(&store, key(&alice(), 'a'), "Sent").await;
    let renamed = Subscription { options: options("another", 2), ..device(&alice(), 'A') };
    register(&store, renamed, &["INBOX", "Notes", "Drafts"], 5, 200).await;
    assert_eq!(mailboxes(&only_target(&store, &alice()).await), ["Drafts", "INBOX!", "Notes"]);
    assert_eq!(store.owed_accounts().await.unwrap(), [alice()]);
}

pub(super) async fn a_registration_never_overwrites_the_state_that_devices_know(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    register(&store, device(&alice(), 'a'), &["INBOX"], 6, 200).await;
    register(&store, device(&alice(), 'b'), &["INBOX", "Sent"], 7, 300).await;
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(5)));
    assert_eq!(told(&store, &alice(), "Sent").await, Some(state(7)));
    register(&store, device(&bob(), 'a'), &["INBOX"], 8, 400).await;
    assert_eq!(told(&store, &bob(), "INBOX").await, Some(state(8)), "each account its own");
}

pub(super) async fn a_registration_brings_a_state_that_was_unknown_and_a_push_is_owed_to_the_others(
    store: Store,
) {
    let owed = async || -> Vec<Vec<String>> {
        store.targets(&alice(), EVER).await.unwrap().iter().map(mailboxes).collect()
    };
    let unknown = ["INBOX", "Sent"].map(|name| (Mailbox::new(name), Snapshot::default())).to_vec();
    let registration = Registration { subscription: device(&alice(), 'a'), mailboxes: unknown };
    for now in [100, 200] {
        store.register(&registration, by(&imap(), None), 10, Timestamp(now)).await.unwrap();
    }
    assert_eq!(owed().await, [["INBOX", "Sent"]]);
    register(&store, device(&alice(), 'b'), &["INBOX", "Notes"], 5, 300).await;
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(5)));
    assert_eq!(told(&store, &alice(), "Sent").await, Some(Snapshot::default()));
    assert_eq!(owed().await, [["INBOX!", "Sent"], ["INBOX", "Notes"]]);
    // It is known from then on.
    register(&store, device(&alice(), 'c'), &["INBOX", "Notes"], 6, 400).await;
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(5)));
    assert_eq!(owed().await, [["INBOX!", "Sent"], ["INBOX", "Notes"], ["INBOX", "Notes"]]);
    // Its own state is its own business.
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 7, 500).await;
    assert_eq!(told(&store, &alice(), "Sent").await, Some(state(7)));
    assert_eq!(owed().await[0], ["INBOX!", "Sent"]);
    let owed_once_known = async |account: &Account, state| -> Vec<Vec<String>> {
        for (letter, state) in [('a', Snapshot::default()), ('b', state)] {
            let mailboxes = vec![(Mailbox::inbox(), state)];
            let registration = Registration { subscription: device(account, letter), mailboxes };
            store.register(&registration, by(&imap(), None), 10, Timestamp(600)).await.unwrap();
        }
        store.targets(account, EVER).await.unwrap().iter().map(mailboxes).collect()
    };
    // Of mail that is read already nobody needs a push.
    let read = Snapshot { unseen: Some(0), ..state(5) };
    assert_eq!(owed_once_known(&bob(), read).await, [["INBOX"], ["INBOX"]]);
    assert_eq!(told(&store, &bob(), "INBOX").await.unwrap().messages, Some(4));
    // Where it is not told whether there is any, there may be some.
    let uncounted = Snapshot { messages: None, ..state(5) };
    let carol = Account::from_login("carol@example.org");
    assert_eq!(owed_once_known(&carol, uncounted).await, [["INBOX!"], ["INBOX"]]);
}

pub(super) async fn a_mailbox_that_comes_back_begins_anew(store: Store) {
    // Dropped by the registration of its only device.
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 5, 100).await;
    register(&store, device(&alice(), 'a'), &["INBOX"], 6, 200).await;
    assert_eq!(told(&store, &alice(), "Sent").await, None);
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 7, 300).await;
    assert_eq!(told(&store, &alice(), "Sent").await, Some(state(7)));
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(5)));
    // Still another device's.
    register(&store, device(&alice(), 'b'), &["Sent"], 8, 400).await;
    register(&store, device(&alice(), 'a'), &["INBOX"], 9, 500).await;
    assert_eq!(told(&store, &alice(), "Sent").await, Some(state(7)));
    // Gone with the device.
    store.remove_subscription(&key(&alice(), 'b'), None).await.unwrap();
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 10, 600).await;
    assert_eq!(told(&store, &alice(), "Sent").await, Some(state(10)));
}

pub(super) async fn only_the_newest_devices_remain(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 5, 100).await;
    register(&store, device(&alice(), 'b'), &["INBOX"], 5, 50).await;
    register(&store, device(&bob(), 'd'), &["INBOX"], 5, 1).await;
    let third = registration(device(&alice(), 'c'), &["INBOX"], 5);
    store.register(&third, by(&imap(), None), 2, Timestamp(300)).await.unwrap();
    let left = |targets: Vec<Target>| -> Vec<String> {
        targets
            .iter()
            .map(|target| target.subscription.endpoint.as_given()[..1].to_owned())
            .collect()
    };
    assert_eq!(left(store.targets(&alice(), EVER).await.unwrap()), ["a", "c"]);
    assert_eq!(left(store.targets(&bob(), EVER).await.unwrap()), ["d"]);
    store.register(&third, by(&imap(), None), 0, Timestamp(400)).await.unwrap();
    assert_eq!(left(store.targets(&alice(), EVER).await.unwrap()), ["c"], "one at least");
    assert_eq!(told(&store, &alice(), "Sent").await, None, "nobody is registered for it");
}

pub(super) async fn the_device_that_registers_remains_whatever_the_clock_says(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 1000).await;
    let late = registration(device(&alice(), 'b'), &["INBOX"], 5);
    store.register(&late, by(&imap(), None), 1, Timestamp(10)).await.unwrap();
    assert_eq!(only_target(&store, &alice()).await.subscription, late.subscription);
}
