use tempfile::TempDir;

use super::*;
use crate::config::WatchConnection;
use crate::model::{Credentials, Hint, Mailbox};
use crate::store::{LookedAt, NodeMarks};
use crate::watch::credential_history::CredentialHistory;
use crate::watch::parked_wait::{ParkedLogin, ParkedWait, RefusedTries};
use crate::watch::test_context::{context, one_backend, table};
use crate::watch::watcher::FailedVisit;

/// Watches on demand. The database is in the folder.
async fn supervisor() -> (TempDir, Supervisor) {
    let mut config = one_backend("localhost");
    config.watch.connection = WatchConnection::OnDemand;
    let (folder, context) = context(&config).await;
    let assignment = ClusterView::none("here").assignment;
    (folder, Supervisor::new(context, assignment))
}

/// Alice is watched, without a task.
async fn with_alice() -> (TempDir, Supervisor, Account) {
    let ((folder, mut supervisor), alice) = (supervisor().await, Account::from_login("alice"));
    let moment = supervisor.now();
    supervisor.rests(alice.clone(), &WatcherStart::AtOnce, moment);
    (folder, supervisor, alice)
}

/// Waits until the task of an account ends.
async fn task_ends(supervisor: &mut Supervisor) {
    let end = task_end(supervisor).await;
    supervisor.visit_ended(end);
}

async fn task_end(supervisor: &mut Supervisor) -> VisitEnd {
    loop {
        if let OnDemandEvent::Ended(end) = supervisor.on_demand.next().await {
            return end;
        }
    }
}

/// The backend refuses several, and then takes one of them with what it has refused.
fn was_at_fault(supervisor: &Supervisor, account: &Account) {
    let backend = supervisor.context.backends.of(account).unwrap();
    let health = supervisor.context.backend_health.of(&backend);
    let [bob, carol, dave] = ["bob", "carol", "dave"].map(Account::from_login);
    for user in [&bob, &carol, &dave] {
        health.logins.refused(user);
    }
    assert!(health.logins.accepted(&bob, true));
}

/// A database in which the account has no device answers what it was asked at that moment.
fn has_no_device(supervisor: &mut Supervisor, moment: u64, account: &Account) {
    let (account, live, news) = (account.clone(), Ok(None), None);
    let reply = StoreReply { moment, what: ReplyKind::One { account, live, news } };
    supervisor.answered(Ok(reply), Instant::now()).unwrap();
}

#[tokio::test]
async fn a_look_up_that_began_before_a_registration_does_not_stop_the_account() {
    let (_folder, mut supervisor, alice) = with_alice().await;
    let before = supervisor.now();
    let backend = supervisor.context.backends.id_of(&alice).unwrap();
    let credentials = Some(Credentials::password("alice", b"wonderland".to_vec()));
    let at = Timestamp::now();
    let login = AcceptedLogin { backend, credentials, at, names_ignore_case: false };
    supervisor.registered(alice.clone(), login.clone());
    task_ends(&mut supervisor).await;
    assert!(supervisor.on_demand.is_resting(&alice));
    has_no_device(&mut supervisor, before, &alice);
    assert!(supervisor.on_demand.is_resting(&alice));
    // Another login is no registration.
    let after = supervisor.now();
    supervisor.logged_in(alice.clone(), login);
    task_ends(&mut supervisor).await;
    has_no_device(&mut supervisor, after, &alice);
    assert!(!supervisor.on_demand.is_resting(&alice));
}

/// What it looks at is still due on disk for a while.
#[tokio::test]
async fn what_a_task_looks_at_beside_a_reading_is_not_looked_at_again() {
    let tried = [(1, true, 0), (0, true, 1), (1, false, 1)];
    for (looks, has_asked, again) in tried {
        let (_folder, mut supervisor, alice) = with_alice().await;
        let found = || DueAccounts { accounts: vec![alice.clone()], unmarked: Vec::new() };
        let directive = Directive { looks, ..Directive::default() };
        supervisor.start(alice.clone(), directive, WatcherStart::AtOnce);
        let beside = supervisor.now();
        supervisor.found_due(beside, Sweep::None, found());
        assert_eq!(supervisor.on_demand.waiting(), usize::from(looks == 0), "{looks}");
        while supervisor.on_demand.next_waiting().is_some() {}
        let mut end = task_end(&mut supervisor).await;
        if has_asked {
            end.unasked = None;
        }
        supervisor.visit_ended(end);
        supervisor.found_due(beside, Sweep::None, found());
        assert_eq!(supervisor.on_demand.waiting(), again, "{looks} {has_asked}");
        let after = supervisor.now();
        supervisor.found_due(after, Sweep::None, found());
        assert_eq!(supervisor.on_demand.waiting(), 1, "{looks} {has_asked}");
    }
}

#[tokio::test]
async fn a_parked_account_that_a_reload_gives_another_backend_waits_for_that_one() {
    let (_folder, mut supervisor, alice) = with_alice().await;
    was_at_fault(&supervisor, &alice);
    let refused = Some(RefusedTries { tries: 4, at: None });
    let recoveries = supervisor.context.recoveries(&alice).map(Box::new);
    let wait = ParkedLogin { retry: None, push: None, refused, recoveries };
    supervisor.parks(&alice, ParkedWait::Login(wait));
    supervisor.context.backends.replace(table(&one_backend("127.0.0.1")));
    supervisor.backends_are_replaced();
    assert!(supervisor.on_demand.waits_parked(&alice));
    was_at_fault(&supervisor, &alice);
    supervisor.call_parked();
    assert!(!supervisor.on_demand.waits_parked(&alice));
}

#[tokio::test]
async fn a_reload_of_the_same_backend_forgets_nothing_of_its_health() {
    let (_folder, mut supervisor, alice) = with_alice().await;
    let refused = Some(RefusedTries { tries: 4, at: None });
    let recoveries = supervisor.context.recoveries(&alice).map(Box::new);
    let wait = ParkedLogin { retry: None, push: None, refused, recoveries };
    supervisor.parks(&alice, ParkedWait::Login(wait));
    assert!(supervisor.on_demand.waits_parked(&alice));
    was_at_fault(&supervisor, &alice);
    let mut other = one_backend("localhost");
    other.backend.send_id = true;
    supervisor.context.backends.replace(table(&other));
    supervisor.backends_are_replaced();
    supervisor.call_parked();
    assert!(!supervisor.on_demand.waits_parked(&alice));
}

#[tokio::test]
async fn an_account_whose_task_ends_after_a_reload_waits_for_the_backend_that_it_has_now() {
    let (_folder, mut supervisor, alice) = with_alice().await;
    let refused = Some(RefusedTries { tries: 4, at: None });
    let recoveries = supervisor.context.recoveries(&alice).map(Box::new);
    supervisor.context.backends.replace(table(&one_backend("127.0.0.1")));
    supervisor.backends_are_replaced();
    let wait = ParkedLogin { retry: None, push: None, refused, recoveries };
    supervisor.parks(&alice, ParkedWait::Login(wait));
    assert!(supervisor.on_demand.waits_parked(&alice));
    was_at_fault(&supervisor, &alice);
    supervisor.call_parked();
    assert!(!supervisor.on_demand.waits_parked(&alice));
}

#[tokio::test]
async fn what_is_known_here_of_refusals_is_not_replaced_by_what_was_looked_up_before() {
    let (_folder, mut supervisor, alice) = with_alice().await;
    // Its backend could not be reached when it was to be tried again.
    let refused = vec![Credentials::password("alice", b"old".to_vec())];
    let known = CredentialHistory { refusals: 2, refused, ..CredentialHistory::default() };
    supervisor.on_demand.remember_credentials(&alice, Some(Box::new(known)));
    let news =
        Some(Invalidation { account: alice.clone(), login: false, event: true, named: false });
    let (backend, refused) = (None, Some((1, Timestamp::now())));
    let live = LiveAccount { account: alice.clone(), backend, parked: None, refused };
    let moment = supervisor.now();
    let what = ReplyKind::One { account: alice.clone(), live: Ok(Some(live)), news };
    supervisor.answered(Ok(StoreReply { moment, what }), Instant::now()).unwrap();
    let end = task_end(&mut supervisor).await;
    let known = end.credentials.unwrap();
    assert_eq!((known.refusals, known.refused.len()), (2, 1));
}

/// Word that comes as a task ends is for the next one, and its mark is younger than the look.
#[tokio::test]
async fn a_task_that_ends_takes_no_mark_away_of_which_there_is_word_for_another_one() {
    let (inbox, team) = (Mailbox::inbox(), Mailbox::new("Team"));
    for (word, left) in [
        (None, vec![&inbox, &team]),
        (Some(Some(&team)), vec![&inbox]),
        // Of all.
        (Some(None), vec![]),
    ] {
        let (_folder, mut supervisor, alice) = with_alice().await;
        supervisor.start(alice.clone(), Directive::default(), WatcherStart::AtOnce);
        let mut end = task_end(&mut supervisor).await;
        let look = |mailbox: &&Mailbox| LookedAt {
            account: alice.clone(),
            mailbox: (*mailbox).clone(),
            marks: NodeMarks::default(),
        };
        end.looked_at = [&inbox, &team].iter().map(look).collect();
        if let Some(mailbox) = word {
            let hint = Hint { mailbox: mailbox.cloned(), ..Hint::of_all(alice.clone()) };
            supervisor.hint(hint, false);
        }
        supervisor.visit_ended(end);
        let expected: Vec<_> = left.iter().map(look).collect();
        assert_eq!(supervisor.hint_writer.looked_at, expected);
    }
}

/// The node that has it by now looks, too.
#[tokio::test]
async fn a_task_of_an_account_that_is_not_watched_any_more_takes_no_mark_away() {
    let (_folder, mut supervisor, alice) = with_alice().await;
    supervisor.start(alice.clone(), Directive::default(), WatcherStart::AtOnce);
    let mut end = task_end(&mut supervisor).await;
    let (mailbox, marks) = (Mailbox::inbox(), NodeMarks::default());
    end.looked_at = vec![LookedAt { account: alice.clone(), mailbox, marks }];
    supervisor.watchers.remove(&alice);
    supervisor.visit_ended(end);
    assert_eq!(supervisor.hint_writer.looked_at, []);
}

#[tokio::test]
async fn an_account_that_was_put_off_is_not_looked_at_again_beside_its_task() {
    let (_folder, mut supervisor, alice) = with_alice().await;
    let failed = FailedVisit { retry_at: Instant::now(), failures: 1, refusals: 0, at: None };
    supervisor.on_demand.failed(&alice, failed);
    supervisor.start(alice.clone(), Directive::default(), WatcherStart::AtOnce);
    match supervisor.on_demand.next().await {
        OnDemandEvent::Ended(end) => assert_eq!(end.account, alice),
        other => panic!("{other:?}"),
    }
}
