use tempfile::TempDir;

use super::*;
use crate::config::WatchConnection;
use crate::model::Credentials;
use crate::watch::test_context::{context, one_backend};

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
    loop {
        if let OnDemandEvent::Ended(end) = supervisor.on_demand.next().await {
            return supervisor.visit_ended(end);
        }
    }
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
