//! What is read for pushes and written of them, on each database.

use tokio::task::JoinSet;

use super::*;

pub(super) async fn a_batch_of_any_size_is_written(store: Store) {
    // More than one statement takes.
    let names: Vec<String> = (0..1203).map(|number| format!("Folder {number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    register(&store, device(&alice(), 'a'), &names, 5, 100).await;
    let owed = |name: &&str| Settlement::Owed {
        subscription: key(&alice(), 'a'),
        mailbox: Mailbox::new(name),
        since: Timestamp(1),
    };
    let now_told = |name: &&str| Settlement::Told {
        account: alice(),
        mailbox: Mailbox::new(name),
        snapshot: state(6),
    };
    let batch: Vec<_> = names.iter().map(owed).chain(names.iter().map(now_told)).collect();
    store.settle(&batch).await.unwrap();
    let target = only_target(&store, &alice()).await;
    assert_eq!(target.mailboxes.len(), names.len());
    assert!(target.mailboxes.iter().all(|(_, owed)| *owed));
    let watched = store.watched(&alice(), &imap(), EVER).await.unwrap();
    assert_eq!(watched.len(), names.len());
    assert!(watched.iter().all(|(_, told)| *told == state(6)));
}

pub(super) async fn only_live_devices_count(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 5, 100).await;
    register(&store, device(&alice(), 'b'), &["INBOX"], 5, 200).await;
    register(&store, device(&bob(), 'c'), &["INBOX"], 5, 100).await;
    let live = LiveAccount {
        account: alice(),
        backend: Some(imap().as_str().to_owned()),
        parked: None,
        refused: None,
    };
    assert_eq!(store.accounts(Timestamp(200)).await.unwrap(), [live]);
    assert_eq!(store.accounts(Timestamp(100)).await.unwrap().len(), 2);
    assert_eq!(store.accounts(Timestamp(201)).await.unwrap(), []);
    let watched = store.watched(&alice(), &imap(), Timestamp(200)).await.unwrap();
    assert_eq!(watched, [(Mailbox::inbox(), state(5))]);
    let targets = store.targets(&alice(), Timestamp(200)).await.unwrap();
    assert_eq!(targets.len(), 1);
    assert_eq!(targets[0].subscription, device(&alice(), 'b'));
}

/// The store asks for all of them by one statement.
pub(super) async fn what_many_ask_at_once_is_answered_to_each(store: Store) {
    let accounts: Vec<Account> =
        (0..100).map(|number| Account::from_login(&format!("user{number}@example.org"))).collect();
    // One device is for so many accounts at most.
    for account in &accounts[..10] {
        register(&store, device(account, 'a'), &["INBOX", "Sent"], 5, 100).await;
        register(&store, device(account, 'b'), &["INBOX"], 5, 200).await;
        owe(&store, key(account, 'b'), "INBOX").await;
    }
    let elsewhere = BackendId::new(None, "other.example.org", 993);
    // PostgreSQL takes no such text, and refuses the statement: all others have their answers all the same.
    let (refused, refusing) = (Account::from_login("user\0@example.org"), store.clone());
    tokio::spawn(async move {
        for _ in 0..20 {
            let _ = refusing.targets(&refused, Timestamp(100)).await;
        }
    });
    let mut asked = JoinSet::new();
    for (number, account) in accounts.into_iter().enumerate() {
        let since = Timestamp(if number % 2 == 0 { 100 } else { 150 });
        let backend = if number % 5 == 0 { elsewhere.clone() } else { imap() };
        let store = store.clone();
        asked.spawn(async move {
            let (targets, watched) = tokio::join!(
                store.targets(&account, since),
                store.watched(&account, &backend, since)
            );
            (number, targets.unwrap(), watched.unwrap())
        });
    }
    for (number, targets, watched) in asked.join_all().await {
        let shown: Vec<_> = targets
            .iter()
            .map(|target| {
                let device = &target.subscription;
                format!("{} {} {}", device.account, device.endpoint, mailboxes(target).join(" "))
            })
            .collect();
        let first = format!("user{number}@example.org aaaaaaaa… INBOX Sent");
        let second = format!("user{number}@example.org bbbbbbbb… INBOX!");
        let (inbox, sent) = ((Mailbox::inbox(), state(5)), (Mailbox::new("Sent"), state(5)));
        let (devices, states) = match number {
            10.. => (vec![], vec![]),
            _ if number % 2 == 0 => (vec![first, second], vec![inbox, sent]),
            _ => (vec![second], vec![inbox]),
        };
        assert_eq!(shown, devices);
        assert_eq!(watched, if number % 5 == 0 { vec![] } else { states });
    }
}

pub(super) async fn all_devices_come_in_pages_of_accounts(store: Store) {
    let carol = Account::from_login("carol@example.org");
    for (account, digit) in [(&alice(), 'a'), (&alice(), 'b'), (&bob(), 'a'), (&carol, 'c')] {
        register(&store, device(account, digit), &["INBOX", "Notes"], 5, 100).await;
    }
    owe(&store, key(&bob(), 'a'), "Notes").await;
    let mut seen = Vec::new();
    let mut after = None;
    while let Some((last, page)) = store.subscriptions(after.as_ref(), 2).await.unwrap() {
        after = Some(last);
        let shown = |target: &Target| {
            let device = &target.subscription;
            format!("{} {} {}", device.account, device.endpoint, mailboxes(target).join(" "))
        };
        seen.push(page.iter().map(shown).collect::<Vec<_>>());
    }
    let line = |line: &str| line.to_owned();
    let first = [
        line("alice@example.org aaaaaaaa… INBOX Notes"),
        line("alice@example.org bbbbbbbb… INBOX Notes"),
        line("bob@example.org aaaaaaaa… INBOX Notes!"),
    ];
    assert_eq!(seen, [first.to_vec(), vec![line("carol@example.org cccccccc… INBOX Notes")]]);
}

pub(super) async fn each_call_is_counted_by_its_name(store: Store) {
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let store = store.counting(Arc::clone(&metrics));
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    store.ping().await.unwrap();
    store.close().await;
    store.ping().await.unwrap_err();
    let text = metrics.text(&registry);
    for line in [
        "mailchime_database_seconds_count{call=\"register\"} 1",
        "mailchime_database_seconds_count{call=\"ping\"} 2",
        "mailchime_database_seconds_count{call=\"settle\"} 0",
        "mailchime_database_errors_total{call=\"register\"} 0",
        "mailchime_database_errors_total{call=\"ping\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

pub(super) async fn settlements_move_what_they_name(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent", "Notes"], 5, 100).await;
    register(&store, device(&alice(), 'b'), &["INBOX", "Sent"], 5, 100).await;
    register(&store, device(&bob(), 'a'), &["INBOX"], 5, 100).await;
    let of = |digit| key(&alice(), digit);
    store.settle(&[]).await.unwrap();
    store
        .settle(&[
            Settlement::Owed {
                subscription: of('a'),
                mailbox: Mailbox::inbox(),
                since: Timestamp(110),
            },
            Settlement::Owed {
                subscription: of('a'),
                mailbox: Mailbox::new("Sent"),
                since: Timestamp(110),
            },
            Settlement::Owed {
                subscription: of('b'),
                mailbox: Mailbox::inbox(),
                since: Timestamp(110),
            },
            Settlement::Told { account: alice(), mailbox: Mailbox::inbox(), snapshot: state(6) },
        ])
        .await
        .unwrap();
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(6)));
    assert_eq!(told(&store, &alice(), "Sent").await, Some(state(5)));
    assert_eq!(told(&store, &bob(), "INBOX").await, Some(state(5)));
    let targets = store.targets(&alice(), EVER).await.unwrap();
    assert_eq!(mailboxes(&targets[0]), ["INBOX!", "Notes", "Sent!"]);
    assert_eq!(mailboxes(&targets[1]), ["INBOX!", "Sent"]);
    assert_eq!(store.owed_accounts().await.unwrap(), [alice()]);

    let accepted = Settlement::Accepted {
        subscription: key(&alice(), 'A'),
        mailboxes: vec![Mailbox::inbox(), Mailbox::new("Notes")],
        at: Timestamp(120),
    };
    store.settle(std::slice::from_ref(&accepted)).await.unwrap();
    let targets = store.targets(&alice(), EVER).await.unwrap();
    assert_eq!(mailboxes(&targets[0]), ["INBOX", "Notes", "Sent!"]);
    assert_eq!(targets[0].pushed_at, Some(Timestamp(120)));
    assert_eq!(mailboxes(&targets[1]), ["INBOX!", "Sent"]);
    assert_eq!(targets[1].pushed_at, None);

    // In the order given: a mark after the push it outlives stays.
    let again = Settlement::Owed {
        subscription: of('a'),
        mailbox: Mailbox::inbox(),
        since: Timestamp(115),
    };
    store.settle(&[again.clone(), accepted.clone()]).await.unwrap();
    assert_eq!(mailboxes(&store.targets(&alice(), EVER).await.unwrap()[0])[0], "INBOX");
    store.settle(&[accepted, again]).await.unwrap();
    assert_eq!(mailboxes(&store.targets(&alice(), EVER).await.unwrap()[0])[0], "INBOX!");
}

pub(super) async fn settlements_for_what_is_gone_do_nothing(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    let nobody = Account::from_login("nobody");
    store
        .settle(&[
            Settlement::Told { account: nobody, mailbox: Mailbox::inbox(), snapshot: state(9) },
            Settlement::Told {
                account: alice(),
                mailbox: Mailbox::new("Sent"),
                snapshot: state(9),
            },
            Settlement::Owed {
                subscription: key(&alice(), 'a'),
                mailbox: Mailbox::new("Sent"),
                since: Timestamp(1),
            },
            Settlement::Accepted {
                subscription: key(&alice(), 'b'),
                mailboxes: vec![Mailbox::inbox()],
                at: Timestamp(1),
            },
        ])
        .await
        .unwrap();
    assert_eq!(mailboxes(&only_target(&store, &alice()).await), ["INBOX"]);
    // A late "told" must not be the baseline of a mailbox that is registered afterwards.
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 20, 200).await;
    assert_eq!(told(&store, &alice(), "Sent").await, Some(state(20)));
}

pub(super) async fn numbers_beyond_a_signed_column_come_back(store: Store) {
    let extreme = Snapshot {
        uid_validity: Some(u64::MAX),
        uid_next: Some(i64::MAX as u64 + 1),
        messages: Some(0),
        unseen: Some(i64::MAX as u64),
        highest_mod_seq: None,
    };
    let mailboxes = vec![(Mailbox::inbox(), extreme)];
    let registration = Registration { subscription: device(&alice(), 'a'), mailboxes };
    store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap();
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(extreme));
    let nothing = Snapshot::default();
    let settlement =
        Settlement::Told { account: alice(), mailbox: Mailbox::inbox(), snapshot: nothing };
    store.settle(&[settlement]).await.unwrap();
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(nothing));
}
