//! With what watchers log in, and what becomes of refusals: several credentials of one account, a
//! backend that refuses everybody, and the tries that an account has.

use std::time::Duration;

use mailchime::demo::backend::{Counters, DemoBackend};
use mailchime::model::{Account, Credentials, SessionEvent, Timestamp};
use mailchime::watch::WatcherStatus;

use super::mail::{backend, idling, reconnected, world};
use crate::support::stage::{IDLE, QUIET, Stage, stop};
use crate::support::watching::{PASSWORD, WatchWorld, Watching, told};
use crate::support::{later, limited, patient, until};

/// Another client of alice's logs in with an access token.
async fn logs_in_with_a_token(watching: &Watching) {
    let account = Account::from_login("alice");
    let login = watching.login(Credentials::bearer("alice", b"opaque".to_vec()));
    watching.sessions.send(SessionEvent::LoggedIn { account, login }).await.unwrap();
}

/// Waits until this password is the last one that is known of the user.
async fn is_known(world: &WatchWorld, user: &str, password: &str) {
    until(async || world.stored_password(user).await == password.as_bytes()).await;
}

async fn with_bob(backend: &DemoBackend) -> WatchWorld {
    backend.add_account("bob", PASSWORD.as_bytes());
    let world = world(backend).await;
    world.register("bob", &[("INBOX", told(2, 1, 0, 0))]).await;
    world
}

/// The token is worth nothing any more when the watcher needs one, and so is a password that was for
/// one login.
#[tokio::test]
async fn what_lasts_less_does_not_take_the_place_of_what_lasts() {
    limited(async {
        let backend = backend().await;
        let world = with_bob(&backend).await;
        let watching = world.watch();
        backend.wait_until(|c| c.idling == 2).await;
        logs_in_with_a_token(&watching).await;
        watching.logged_in("alice", "for once").await;
        is_known(&world, "alice", "for once").await;
        for _ in 0..3 {
            reconnected(&backend).await;
        }
        assert_eq!(backend.counters().refused.get("alice"), None);
        assert_eq!(world.parked("alice").await, None);
        watching.stop().await;
        // Nor after a restart.
        let watching = world.watch();
        backend.wait_until(|c| c.idling == 2).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_changed_password_is_used_when_the_old_one_is_refused_and_then_the_old_one_goes() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let watching = idling(&world, &backend).await;
        backend.set_password("alice", b"changed").unwrap();
        watching.logged_in("alice", "changed").await;
        is_known(&world, "alice", "changed").await;
        for logins in 2..=4 {
            backend.drop_connections();
            backend.wait_until(|c| c.logins["alice"] == logins && c.idling == 1).await;
        }
        let refused = backend.counters().refused.get("alice").copied().unwrap_or_default();
        assert!(refused <= 1, "{refused} tries of the old password");
        assert_eq!(world.parked("alice").await, None);
        watching.stop().await;
        let watching = idling(&world, &backend).await;
        assert_eq!(backend.counters().refused.get("alice").copied().unwrap_or_default(), refused);
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_reload_that_changes_nothing_tries_nothing() {
    limited(async {
        let backend = backend().await;
        let world = with_bob(&backend).await;
        let watching = world.watch();
        backend.wait_until(|c| c.idling == 2).await;
        // Her login is known to the watcher, and her password is wrong since.
        watching.logged_in("alice", "changed").await;
        is_known(&world, "alice", "changed").await;
        backend.set_password("alice", b"changed again").unwrap();
        backend.drop_connections();
        watching.until_of("alice", "parked").await;
        let before = backend.wait_until(|c| c.idling == 1 && c.connections == 1).await;
        for _ in 0..5 {
            watching.reload(&world.config());
            // Bob, whose connection is lost, is back: in this time many tries would have been made.
            let logins = backend.counters().logins["bob"] + 1;
            backend.drop_connections();
            backend.wait_until(|c| c.logins["bob"] == logins).await;
            watching.until_of("bob", "watching").await;
        }
        let after = backend.counters();
        assert_eq!(after.refused.get("alice"), before.refused.get("alice"));
        assert!(world.parked("alice").await.is_some());
        watching.stop().await;
    })
    .await;
}

pub(super) const USERS: [&str; 4] = ["ann", "ben", "cat", "dan"];

pub(super) async fn four() -> (DemoBackend, WatchWorld) {
    let backend = backend().await;
    let world = WatchWorld::new(backend.address()).await;
    for (user, validity) in USERS.iter().zip(2..) {
        backend.add_account(user, PASSWORD.as_bytes());
        world.register(user, &[("INBOX", told(validity, 1, 0, 0))]).await;
    }
    (backend, world)
}

/// The directory is empty.
pub(super) fn nobody_is_known(backend: &DemoBackend) {
    USERS.iter().for_each(|user| backend.set_password(user, b"nobody").unwrap());
}

pub(super) fn everybody_is_known(backend: &DemoBackend) {
    USERS.iter().for_each(|user| backend.set_password(user, PASSWORD.as_bytes()).unwrap());
}

/// How often anybody was refused.
pub(super) fn refused(backend: &DemoBackend) -> u64 {
    backend.counters().refused.values().sum()
}

/// Waits until each of the users is in this state.
pub(super) async fn until_all(watching: &Watching, state: &str) {
    until(async || {
        let told = watching.inquirer.watchers(None).await.unwrap();
        told.len() == USERS.len() && told.iter().all(|told| told.state == state)
    })
    .await;
}

/// Waits until nobody tries for some minutes: they are parked, or wait for so long.
pub(super) async fn until_quiet(watching: &Watching) {
    until(async || {
        let told = watching.inquirer.watchers(None).await.unwrap();
        let minutes = Timestamp::now().plus(Duration::from_mins(5)).0;
        let waits = |told: &WatcherStatus| {
            told.state == "parked" || told.next_try_at.is_some_and(|at| at > minutes)
        };
        told.len() == USERS.len() && told.iter().all(waits)
    })
    .await;
}

/// Everybody is refused, until few try any more.
async fn outage(backend: &DemoBackend, world: &WatchWorld) -> Watching {
    let watching = world.watch();
    backend.wait_until(|c| c.idling == 4).await;
    nobody_is_known(backend);
    backend.drop_connections();
    until(async || refused(backend) >= 3).await;
    until_quiet(&watching).await;
    watching
}

#[tokio::test]
async fn a_directory_that_was_empty_for_a_minute_parks_nobody() {
    patient(async {
        let (backend, mut world) = four().await;
        // Nobody has a second try before all have had their first, however busy the machine is.
        let retry = Duration::from_secs(10);
        (world.watch.retry_min, world.watch.retry_max) = (retry, retry);
        let mut watching = world.watch();
        backend.wait_until(|c| c.idling == 4).await;
        nobody_is_known(&backend);
        backend.drop_connections();
        until_all(&watching, "backing_off").await;
        later(retry).await;
        until(async || refused(&backend) >= 3).await;
        later(retry).await;
        until_quiet(&watching).await;
        until_all(&watching, "backing_off").await;
        // An account that was parked before it was clear is not any more, and no phone asks for a password.
        for user in USERS {
            assert_eq!(world.parked(user).await, None, "{user}");
        }
        let tries = refused(&backend);
        assert!(tries <= 5, "{tries}");
        later(Duration::from_mins(9)).await;
        assert_eq!(refused(&backend), tries, "{:?}", backend.counters().refused);
        everybody_is_known(&backend);
        later(Duration::from_mins(5)).await;
        backend.wait_until(|c| c.idling == 4).await;
        until_all(&watching, "watching").await;
        watching.expect_nothing();
        assert_eq!(refused(&backend), tries);
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_was_refused_and_is_accepted_again_brings_all_back() {
    patient(async {
        let (backend, world) = four().await;
        let watching = outage(&backend, &world).await;
        everybody_is_known(&backend);
        // Each of them opens Mail in turn, until one comes who was refused before.
        for user in USERS {
            watching.logged_in(user, PASSWORD).await;
        }
        backend.wait_until(|c| c.idling == 4).await;
        for user in USERS {
            assert_eq!(world.parked(user).await, None, "{user}");
        }
        watching.stop().await;
    })
    .await;
}

/// The backend is asked this often, whatever comes, and however often the program starts: a backend that locks
/// accounts takes more.
#[tokio::test]
async fn a_password_that_is_refused_for_days_is_tried_four_times() {
    patient(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = idling(&world, &backend).await;
        backend.set_password("alice", b"changed").unwrap();
        backend.drop_connections();
        watching.until("parked").await;
        let tries = || backend.counters().refused["alice"];
        assert_eq!(tries(), 2);
        // Her phone is to look, but not before it is clear that she alone is refused.
        later(Duration::from_mins(4)).await;
        watching.expect_nothing();
        later(Duration::from_mins(2)).await;
        assert_eq!(watching.next().await, "alice is to log in");
        for expected in [3, 4] {
            later(Duration::from_hours(26)).await;
            until(async || tries() >= expected).await;
            watching.until("parked").await;
        }
        later(Duration::from_hours(200)).await;
        assert_eq!(watching.until("parked").await.state, "parked");
        assert_eq!(tries(), 4);
        watching.expect_nothing();
        watching.stop().await;
        let mut watching = world.watch();
        watching.until("parked").await;
        later(Duration::from_hours(200)).await;
        watching.until("parked").await;
        assert_eq!(tries(), 4);
        watching.expect_nothing();
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_lone_refusal_that_was_wrong_heals_after_hours() {
    patient(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let watching = idling(&world, &backend).await;
        backend.set_password("alice", b"nobody").unwrap();
        backend.drop_connections();
        watching.until("parked").await;
        backend.set_password("alice", PASSWORD.as_bytes()).unwrap();
        later(Duration::from_hours(3)).await;
        watching.until("parked").await;
        later(Duration::from_hours(3)).await;
        backend.wait_until(|c| c.idling == 1).await;
        assert_eq!(world.parked("alice").await, None);
        watching.stop().await;
    })
    .await;
}

/// A token that has expired, and nothing else.
#[tokio::test]
async fn a_device_whose_user_has_no_password_is_asked_to_look_and_once_a_day() {
    patient(async {
        let backend = backend().await;
        let world = world(&backend).await;
        world.store.erase_credentials(None).await.unwrap();
        let mut watching = world.watch();
        assert_eq!(watching.next().await, "alice is to log in");
        assert_eq!(world.store.owed_accounts().await.unwrap(), [Account::from_login("alice")]);
        watching.stop().await;
        // Not at the next start.
        let mut watching = world.watch();
        watching.until("parked").await;
        later(Duration::from_hours(23)).await;
        watching.until("parked").await;
        watching.expect_nothing();
        // It looks, and logs in.
        watching.logged_in("alice", PASSWORD).await;
        backend.wait_until(|c| c.idling == 1).await;
        watching.stop().await;
    })
    .await;
}

/// Two of them are to be pushed, and the second finds that the push side takes nothing.
#[tokio::test]
async fn a_login_is_heard_while_a_push_that_asks_for_it_waits() {
    limited(async {
        let backend = backend().await;
        let mut world = with_bob(&backend).await;
        world.queue = 1;
        world.store.erase_credentials(None).await.unwrap();
        let watching = world.watch();
        for user in ["alice", "bob"] {
            watching.until_of(user, "parked").await;
        }
        until(async || !world.store.owed_accounts().await.unwrap().is_empty()).await;
        for user in ["alice", "bob"] {
            watching.logged_in(user, PASSWORD).await;
        }
        backend.wait_until(|c| c.idling == 2).await;
        watching.stop().await;
    })
    .await;
}

/// What the backend says to one login of alice's with this password.
fn login(password: &str, answer: &str) -> String {
    format!(
        "S: * OK [CAPABILITY IMAP4rev1] hi\nC: m2 LOGIN \"alice\" \"{password}\"\nS: m2 {answer}\n"
    )
}

/// Alice's watcher has two passwords of hers, and the one that it used so far is refused.
async fn with_two_passwords() -> (Stage, Watching) {
    let stage = Stage::new().await;
    let (watching, peer) = stage.quiet().await;
    watching.logged_in("alice", "changed").await;
    is_known(&stage.world, "alice", "changed").await;
    drop(peer);
    let mut peer = stage.accept().await;
    peer.play(&login(PASSWORD, "NO [AUTHENTICATIONFAILED] no")).await;
    (stage, watching)
}

#[tokio::test]
async fn a_refusal_counts_when_the_next_password_fails_for_another_reason() {
    limited(async {
        let (stage, watching) = with_two_passwords().await;
        stage.accept().await.play(&login("changed", "NO [UNAVAILABLE] later")).await;
        // It is the second refusal, after which nothing more is tried.
        stage.accept().await.play(&login("changed", "NO [AUTHENTICATIONFAILED] no")).await;
        watching.until("parked").await;
        assert!(stage.world.parked("alice").await.is_some());
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_refused_password_is_tried_behind_those_that_were_not() {
    limited(async {
        let (stage, watching) = with_two_passwords().await;
        for _ in 0..2 {
            stage.accept().await.play(&login("changed", "NO [UNAVAILABLE] later")).await;
        }
        let mut peer = stage.accept().await;
        peer.play(&IDLE.replace(PASSWORD, "changed")).await;
        peer.play(QUIET).await;
        assert_eq!(stage.world.parked("alice").await, None);
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn accounts_of_which_one_of_two_passwords_is_refused_are_no_fault_of_the_backend() {
    patient(async {
        let (backend, world) = four().await;
        let watching = world.watch();
        backend.wait_until(|c| c.idling == 4).await;
        for user in USERS {
            backend.set_password(user, b"changed").unwrap();
            watching.logged_in(user, "changed").await;
            is_known(&world, user, "changed").await;
        }
        // What was accepted at the start says nothing of these any more.
        later(Duration::from_mins(1)).await;
        backend.drop_connections();
        let again = |user: &&str, c: &Counters| c.logins[*user] == 2;
        backend.wait_until(|c| c.idling == 4 && USERS.iter().all(|user| again(user, c))).await;
        assert_eq!(refused(&backend), 4);
        until_all(&watching, "watching").await;
        watching.stop().await;
    })
    .await;
}
