use std::sync::Arc;

use super::super::asking::MOST_OF_BACKEND;
use super::super::parked_wait::{ParkedLogin, ParkedWait};
use super::parked::PUSHING;
use super::*;
use crate::model::{Mailbox, Snapshot};
use crate::store::NodeMarks;
use crate::watch::directive::{Directive, directive_channel};
use crate::watch::hints::Hints;
use crate::watch::test_context::{context, one_backend};

#[tokio::test]
async fn a_task_that_breaks_off_is_told_with_its_account() {
    let (mut on_demand, alice) = (OnDemand::new(), Account::from_login("alice"));
    let task = on_demand.visits.spawn(async { panic!("broken off") });
    on_demand.accounts.insert(task.id(), alice.clone());
    match on_demand.next().await {
        OnDemandEvent::Broken(account) => assert_eq!(account, alice),
        other => panic!("{other:?}"),
    }
    assert!(on_demand.accounts.is_empty());
}

#[tokio::test]
async fn a_mailbox_that_is_due_again_as_its_task_ends_keeps_its_mark() {
    let (_folder, context) = context(&one_backend("localhost")).await;
    let (directive, told) = directive_channel(Directive::default());
    let status = StatusCell::new(&Arc::default(), WatcherState::Starting);
    let alice = Account::from_login("alice");
    let mut watcher = Watcher::new(alice.clone(), context, told, Hints::default(), status);
    for (name, due) in [("INBOX", true), ("Team", false)] {
        let (mailbox, marks) = (Mailbox::new(name), NodeMarks::default());
        watcher.mailboxes.push(WatchedMailbox::new(mailbox.clone(), Snapshot::default(), due));
        watcher.looked_at.push(LookedAt { account: alice.clone(), mailbox, marks });
    }
    directive.send_modify(|directive| directive.stop = true);
    let mut on_demand = OnDemand::new();
    on_demand.spawn(watcher, Box::new(WatcherStart::AtOnce), 1);
    match on_demand.next().await {
        OnDemandEvent::Ended(end) => {
            let left: Vec<_> = end.looked_at.iter().map(|it| it.mailbox.as_str()).collect();
            assert_eq!(left, ["Team"]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reading_that_fails_begins_no_sweep_but_the_one_that_it_was_about() {
    let (mut on_demand, now) = (OnDemand::new(), Instant::now());
    let every = Duration::from_hours(6);
    on_demand.sweep_at(now);
    assert_eq!(on_demand.begin_sweep(now, every), Sweep::Ours);
    on_demand.sweep_again(Sweep::None, now);
    assert_eq!(on_demand.begin_sweep(now, every), Sweep::None);
    for sweep in [Sweep::Ours, Sweep::Everybody] {
        on_demand.sweep_again(sweep, now);
        assert_eq!(on_demand.begin_sweep(now, every), sweep);
        assert_eq!(on_demand.begin_sweep(now, every), Sweep::None);
    }
}

/// Two readings may be under way at once.
#[test]
fn what_a_reading_found_does_not_replace_what_another_did() {
    let mut on_demand = OnDemand::new();
    on_demand.found_due(2, Sweep::None, vec![Account::from_login("alice")], |_| None);
    on_demand.found_due(1, Sweep::None, Vec::new(), |_| None);
    assert_eq!(on_demand.waiting(), 1);
    // Nor a sweep's batch that was marked while it read.
    on_demand.found_due(3, Sweep::Ours, Vec::new(), |_| None);
    assert!(on_demand.marked(3, vec![Account::from_login("bob")], |_| None));
    on_demand.found_due(4, Sweep::None, Vec::new(), |_| None);
    assert_eq!(on_demand.waiting(), 1);
    on_demand.found_due(5, Sweep::None, vec![Account::from_login("bob")], |_| None);
    assert_eq!(on_demand.waiting(), 1);
}

#[test]
fn a_sweep_goes_on_beside_a_reading_and_not_beside_another_sweep() {
    let mut on_demand = OnDemand::new();
    let users = |users: &[&str]| users.iter().map(|user| Account::from_login(user)).collect();
    on_demand.found_due(1, Sweep::Ours, users(&["alice"]), |_| None);
    on_demand.found_due(2, Sweep::None, users(&["alice"]), |_| None);
    assert!(on_demand.marked(1, users(&["bob"]), |_| None));
    assert_eq!(on_demand.waiting(), 2);
    on_demand.found_due(3, Sweep::Ours, users(&["bob"]), |_| None);
    assert!(!on_demand.marked(1, users(&["carol"]), |_| None));
    assert_eq!(on_demand.waiting(), 1);
}

#[test]
fn a_sweep_that_does_not_know_of_an_account_leaves_it_waiting_for_its_backend() {
    let (mut on_demand, alice) = (OnDemand::new(), Account::from_login("alice"));
    let away = WatcherState::BackingOff { next_try: None, why: "away".to_owned() };
    let status = StatusCell::new(&Arc::default(), away);
    let resting = RestingAccount { status, known_at: 1, inherited: true };
    on_demand.rest_unasked(alice.clone(), resting);
    on_demand.wait_for_backend(alice.clone(), None);
    on_demand.found_due(2, Sweep::Ours, vec![Account::from_login("bob")], |_| None);
    assert_eq!(on_demand.waiting(), 2);
    assert_eq!(on_demand.next_waiting(), Some(Account::from_login("bob")));
    assert_eq!(on_demand.next_waiting(), Some(alice));
}

#[test]
fn accounts_that_a_sweep_for_missed_events_is_to_ask_for_say_so() {
    let (mut on_demand, alice, now) =
        (OnDemand::new(), Account::from_login("alice"), Instant::now());
    let status = StatusCell::new(&Arc::default(), WatcherState::Starting);
    on_demand.rest(alice.clone(), RestingAccount { status, known_at: 1, inherited: true });
    let reason = |on_demand: &OnDemand| on_demand.statuses(None).remove(0).reason;
    assert_eq!(reason(&on_demand), None);
    on_demand.missed_events(now, MissedAt::ThisNode);
    let soon = "it is asked for soon: events of mail servers may have been missed";
    assert_eq!(reason(&on_demand).as_deref(), Some(soon));
    let due = on_demand.next_sweep() + Duration::from_mins(1);
    assert_eq!(on_demand.begin_sweep(due, Duration::from_hours(6)), Sweep::Everybody);
    assert_eq!(reason(&on_demand), None);
    on_demand.found_due(1, Sweep::Everybody, vec![alice], |_| None);
    let turn = "it waits for its turn to be asked for";
    assert_eq!(reason(&on_demand).as_deref(), Some(turn));
}

#[tokio::test]
async fn a_sweep_waits_for_room_and_hears_of_it() {
    let mut on_demand = OnDemand::new();
    let mut asking: Vec<_> = (0..MOST_OF_BACKEND).map(|_| on_demand.asking.begin(None)).collect();
    on_demand.found_due(1, Sweep::None, vec![Account::from_login("alice")], |_| None);
    assert_eq!(on_demand.next_waiting(), None);
    asking[0].set(false);
    assert!(matches!(on_demand.next().await, OnDemandEvent::Room));
    assert_eq!(on_demand.next_waiting(), Some(Account::from_login("alice")));
}

/// The task of the next account whose devices are to be pushed begins, if one may.
fn begin_push(on_demand: &mut OnDemand) -> Option<(Id, Account)> {
    let account = on_demand.next_to_push()?;
    let task = on_demand.visits.spawn(std::future::pending()).id();
    on_demand.pushes.begun(task);
    Some((task, account))
}

fn begin_pushes(on_demand: &mut OnDemand) -> Vec<(Id, Account)> {
    std::iter::from_fn(|| begin_push(on_demand)).collect()
}

/// Its devices are to be pushed now.
fn park(
    on_demand: &mut OnDemand,
    account: &Account,
    at: Option<BackendId>,
    retry: Option<Instant>,
) {
    let push = Some(Instant::now());
    let wait = ParkedLogin { retry, push, refused: None, recoveries: None };
    on_demand.parked(account, ParkedWait::Login(wait));
    on_demand.parked_until_now(account.clone(), at);
}

/// Accounts leave while their tasks push, and come again before these end.
#[tokio::test]
async fn a_task_that_ends_late_gives_back_no_place_but_its_own() {
    let mut on_demand = OnDemand::new();
    let users = |name: &str| -> Vec<Account> {
        let user = |number| Account::from_login(&format!("{name}{number}"));
        (0..PUSHING).map(user).collect()
    };
    let (mut tasks, others) = (Vec::new(), users("other"));
    for _ in 0..2 {
        for account in &users("user")[..PUSHING / 2] {
            on_demand.leave(account);
            park(&mut on_demand, account, None, None);
        }
        tasks.extend(begin_pushes(&mut on_demand));
    }
    others.iter().for_each(|account| park(&mut on_demand, account, None, None));
    assert_eq!((tasks.len(), begin_push(&mut on_demand)), (PUSHING, None));
    for (task, _) in tasks.drain(..PUSHING / 2) {
        on_demand.pushes.ended(task);
    }
    let mut begun = begin_pushes(&mut on_demand);
    assert_eq!(begun.len(), PUSHING / 2);
    tasks.into_iter().for_each(|(task, _)| on_demand.pushes.ended(task));
    begun.extend(begin_pushes(&mut on_demand));
    assert_eq!(begun.len(), PUSHING);
}

/// One backend lets its accounts wait for their turns. Another one's are pushed meanwhile, and each is tried again in time.
#[tokio::test(start_paused = true)]
async fn parked_accounts_of_a_slow_backend_hold_up_no_other_pushes_and_no_tries() {
    let mut on_demand = OnDemand::new();
    let backend = |name: &str| Some(BackendId::new(None, name, 143));
    let now = Instant::now();
    let mut park = |user: &str, at: &str, retry: Option<Duration>| {
        let account = Account::from_login(user);
        park(&mut on_demand, &account, backend(at), retry.map(|wait| now + wait));
        // Each of its sessions that ends is a reason to look at it.
        on_demand.parked_until_now(account, backend(at));
    };
    let slow: Vec<String> = (0..PUSHING + 2).map(|number| format!("user{number}@slow")).collect();
    for user in &slow {
        park(user, "slow", Some(Duration::from_mins(1)));
    }
    park("alice@quick", "quick", None);
    let mut begun = begin_pushes(&mut on_demand);
    assert_eq!(begun.len(), PUSHING + 1);
    assert!(begun.iter().any(|(_, account)| account.as_str() == "alice@quick"));
    begun.retain(|(_, account)| account.as_str().ends_with("slow"));
    on_demand.pushes.ended(begun[0].0);
    let (_, next) = begin_push(&mut on_demand).unwrap();
    assert_eq!(next, Account::from_login(&slow[PUSHING]));
    assert_eq!(begin_push(&mut on_demand), None);
    // The last one waits for its push still, and its time for another try comes.
    let last = Account::from_login(&slow[PUSHING + 1]);
    tokio::time::advance(Duration::from_mins(1)).await;
    let mut looked_at = Vec::new();
    while let OnDemandEvent::LookAgain(account) = on_demand.next().await {
        looked_at.push(account);
        if looked_at.len() == slow.len() {
            break;
        }
    }
    assert!(looked_at.contains(&last), "{looked_at:?}");
}
