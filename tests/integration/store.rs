//! The store's contract, as functions that take an opened [`Store`] so that each database runs the
//! same ones. What is peculiar to one of them, or to bad times, is in the modules below.

use std::sync::Arc;
use std::time::Duration;

use mailchime::imap::registration::xapple::{ApnsOptions, DeviceToken, XAppleRegistration};
use mailchime::metrics::Metrics;
use mailchime::model::{
    Account, BackendId, Mailbox, Registration, Snapshot, Subscription, SubscriptionKey, Timestamp,
};
use mailchime::store::{
    Invalidation, LiveAccount, Node, NodeNews, Registrant, Sealed, Settlement, Store, StoreError,
    Target,
};
use prometheus_client::registry::Registry;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tempfile::TempDir;

mod backends;
mod bad_times;
mod copy;
mod credentials;
mod delivery;
mod due;
mod entries;
mod failover;
mod load;
mod mariadb;
mod nodes;
mod pooled;
mod postgres;
mod registrations;
mod schemas;
mod servers;
mod service;
mod sqlite;
mod users;

use self::backends::{
    a_backend_may_get_a_name, devices_outlive_a_password_by_25_hours,
    what_one_backend_accepted_is_nothing_to_another,
};
use self::credentials::{
    a_clock_that_was_ahead_holds_up_no_login, a_master, credentials_in_memory,
    devices_are_asked_for_a_login_once_a_day,
    devices_of_an_old_password_that_is_kept_are_forgotten, several_credentials_in_memory,
    several_stored_credentials, stored_credentials,
};
use self::delivery::{
    a_batch_of_any_size_is_written, all_devices_come_in_pages_of_accounts,
    each_call_is_counted_by_its_name, numbers_beyond_a_signed_column_come_back,
    only_live_devices_count, settlements_for_what_is_gone_do_nothing,
    settlements_move_what_they_name, what_many_ask_at_once_is_answered_to_each,
};
use self::due::{
    a_mailbox_is_due_until_it_was_looked_at,
    a_mark_of_another_node_outlives_a_look_that_did_not_see_it,
    those_that_are_due_for_longest_come_first,
};
use self::entries::an_account_with_an_entry_stays_until_that_is_removed;
use self::nodes::{
    a_change_is_an_invalidation_for_the_other_nodes, a_name_is_taken_over, a_node_comes_and_goes,
    news_goes_with_its_node, no_invalidation_is_lost_while_it_is_taken, one_account_is_looked_up,
};
use self::registrations::{
    a_mailbox_that_comes_back_begins_anew, a_new_registration_replaces_the_old_one,
    a_registration_brings_a_state_that_was_unknown_and_a_push_is_owed_to_the_others,
    a_registration_comes_back_as_it_was_given,
    a_registration_never_overwrites_the_state_that_devices_know,
    a_token_in_other_case_is_the_same_device, case_and_spaces_at_the_end_tell_names_apart,
    names_as_long_as_mailboxes_may_have_are_told_apart_to_their_end,
    one_token_with_another_subtopic_or_account_is_another_device, only_the_newest_devices_remain,
    owed_marks_outlive_a_registration, the_device_that_registers_remains_whatever_the_clock_says,
    two_devices_may_have_one_account_id,
};
use self::service::{
    a_clock_that_has_just_jumped_ends_no_token,
    silence_is_measured_by_the_time_in_which_phones_could_register,
};
use self::users::{
    a_browser_that_is_pushed_gives_its_place_to_none_that_is_older,
    a_pending_subscription_displaces_nothing_until_it_is_confirmed,
    a_pending_subscription_gets_nothing_until_it_is_confirmed,
    a_phone_hears_of_nothing_that_came_before_it_while_a_browser_was_pending,
    a_subscription_fails_since_its_first_failure_until_a_push_is_accepted,
    a_user_removes_any_of_their_own,
    it_is_kept_how_a_subscription_fails_and_for_how_long_by_its_own_fault,
    secrets_are_sealed_for_their_subscription, what_did_not_answer_and_what_has_ended_goes,
};

const EVER: Timestamp = Timestamp(0);

// === helpers ===

async fn open(folder: &TempDir) -> Store {
    try_open(folder, Duration::from_secs(30)).await.unwrap()
}

async fn try_open(folder: &TempDir, busy_timeout: Duration) -> Result<Store, StoreError> {
    let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
    Store::open(&url.parse().unwrap(), busy_timeout).await
}

/// A connection beside the store's own.
async fn beside(folder: &TempDir) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(folder.path().join("mailchime.db"))
        .foreign_keys(true)
        .connect()
        .await
        .unwrap()
}

/// The backend of all accounts but those that a test says otherwise of.
fn imap() -> BackendId {
    BackendId::new(None, "imap.example.org", 993)
}

/// A login that this backend has accepted.
fn by(backend: &BackendId, sealed: Option<&Sealed>) -> Registrant {
    Registrant::new(backend, EVER, sealed)
}

fn alice() -> Account {
    Account::from_login("alice@example.org")
}

fn bob() -> Account {
    Account::from_login("bob@example.org")
}

/// The token of a phone, which one digit tells from others.
fn token(digit: char) -> DeviceToken {
    DeviceToken::new(&digit.to_string().repeat(64)).unwrap()
}

fn device(account: &Account, digit: char) -> Subscription {
    XAppleRegistration {
        version: 2,
        account_id: "0715A26B-CA09-4730-A419-793000CA982E".into(),
        token: token(digit),
        subtopic: "com.apple.mobilemail".into(),
        mailboxes: Vec::new(),
    }
    .subscription(account.clone(), "com.apple.mail.XServer.1")
}

fn options(account_id: &str, version: u8) -> Arc<str> {
    ApnsOptions { account_id: account_id.into(), version }.to_json().into()
}

fn key(account: &Account, digit: char) -> SubscriptionKey {
    SubscriptionKey::from(&device(account, digit))
}

fn state(uid_next: u64) -> Snapshot {
    Snapshot {
        uid_validity: Some(7),
        uid_next: Some(uid_next),
        messages: Some(uid_next - 1),
        unseen: None,
        highest_mod_seq: None,
    }
}

fn registration(device: Subscription, mailboxes: &[&str], uid_next: u64) -> Registration {
    let mailboxes = mailboxes.iter().map(|name| (Mailbox::new(name), state(uid_next))).collect();
    Registration { subscription: device, mailboxes }
}

async fn register(
    store: &Store,
    device: Subscription,
    mailboxes: &[&str],
    uid_next: u64,
    now: i64,
) {
    let registration = registration(device, mailboxes, uid_next);
    store.register(&registration, by(&imap(), None), 10, Timestamp(now)).await.unwrap();
}

async fn owe(store: &Store, device: SubscriptionKey, mailbox: &str) {
    let mailbox = Mailbox::new(mailbox);
    store
        .settle(&[Settlement::Owed { subscription: device, mailbox, since: Timestamp(50) }])
        .await
        .unwrap();
}

/// The mailboxes of an account's only device, an owed one with a `!`.
fn mailboxes(target: &Target) -> Vec<String> {
    let shown = |(mailbox, owed): &(Mailbox, bool)| {
        format!("{}{}", mailbox.as_str(), if *owed { "!" } else { "" })
    };
    target.mailboxes.iter().map(shown).collect()
}

async fn only_target(store: &Store, account: &Account) -> Target {
    let mut targets = store.targets(account, EVER).await.unwrap();
    assert_eq!(targets.len(), 1, "{targets:?}");
    targets.remove(0)
}

async fn told(store: &Store, account: &Account, mailbox: &str) -> Option<Snapshot> {
    let watched = store.watched(account, &imap(), EVER).await.unwrap();
    watched.into_iter().find(|(name, _)| *name == Mailbox::new(mailbox)).map(|(_, told)| told)
}

// === the contract ===

/// The contract kept by a server, whose databases are opened so.
macro_rules! contract_of_server {
    ($module:ident, $server:ident, $open:ident: $($case:ident,)+) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $case() {
                    let test = concat!("store::", stringify!($module), "::", stringify!($case));
                    let Some(database) = super::$server::Database::make(test).await else { return };
                    crate::support::limited(async { super::$case(database.$open().await).await }).await;
                }
            )+
        }
    };
}

macro_rules! contract {
    ($($case:ident,)+) => {
        mod sqlite_keeps_the_contract {
            $(
                #[tokio::test]
                async fn $case() {
                    let folder = tempfile::tempdir().unwrap();
                    crate::support::limited(async { super::$case(super::open(&folder).await).await }).await;
                }
            )+
        }

        contract_of_server! { postgres_keeps_the_contract, postgres, open: $($case,)+ }
        contract_of_server! { postgres_with_kept_statements_keeps_the_contract, postgres, kept: $($case,)+ }
        contract_of_server! { mariadb_keeps_the_contract, mariadb, open: $($case,)+ }
        contract_of_server! { postgres_behind_pgbouncer_keeps_the_contract, pooled, open: $($case,)+ }
    };
}

contract! {
    a_registration_comes_back_as_it_was_given,
    a_token_in_other_case_is_the_same_device,
    case_and_spaces_at_the_end_tell_names_apart,
    names_as_long_as_mailboxes_may_have_are_told_apart_to_their_end,
    one_token_with_another_subtopic_or_account_is_another_device,
    two_devices_may_have_one_account_id,
    a_new_registration_replaces_the_old_one,
    owed_marks_outlive_a_registration,
    a_registration_never_overwrites_the_state_that_devices_know,
    a_registration_brings_a_state_that_was_unknown_and_a_push_is_owed_to_the_others,
    a_mailbox_that_comes_back_begins_anew,
    only_the_newest_devices_remain,
    the_device_that_registers_remains_whatever_the_clock_says,
    credentials_and_parking,
    only_live_devices_count,
    what_many_ask_at_once_is_answered_to_each,
    all_devices_come_in_pages_of_accounts,
    each_call_is_counted_by_its_name,
    settlements_move_what_they_name,
    settlements_for_what_is_gone_do_nothing,
    numbers_beyond_a_signed_column_come_back,
    a_device_that_registered_since_is_not_removed,
    an_account_goes_with_its_last_device,
    expiry_takes_old_devices_alone,
    an_account_can_be_removed,
    calls_run_side_by_side,
    a_node_that_joins_and_leaves_at_once_is_not_lost,
    everything_of_an_account_goes_in_one_call,
    a_batch_of_any_size_is_written,
    credentials_go_when_they_expire,
    stored_credentials,
    a_clock_that_was_ahead_holds_up_no_login,
    credentials_in_memory,
    several_stored_credentials,
    several_credentials_in_memory,
    devices_of_an_old_password_that_is_kept_are_forgotten,
    devices_are_asked_for_a_login_once_a_day,
    a_master,
    what_one_backend_accepted_is_nothing_to_another,
    a_backend_may_get_a_name,
    devices_outlive_a_password_by_25_hours,
    silence_is_measured_by_the_time_in_which_phones_could_register,
    a_clock_that_has_just_jumped_ends_no_token,
    a_node_comes_and_goes,
    a_name_is_taken_over,
    a_change_is_an_invalidation_for_the_other_nodes,
    news_goes_with_its_node,
    no_invalidation_is_lost_while_it_is_taken,
    one_account_is_looked_up,
    a_mailbox_is_due_until_it_was_looked_at,
    a_mark_of_another_node_outlives_a_look_that_did_not_see_it,
    those_that_are_due_for_longest_come_first,
    an_account_with_an_entry_stays_until_that_is_removed,
    a_pending_subscription_gets_nothing_until_it_is_confirmed,
    a_phone_hears_of_nothing_that_came_before_it_while_a_browser_was_pending,
    what_did_not_answer_and_what_has_ended_goes,
    a_pending_subscription_displaces_nothing_until_it_is_confirmed,
    a_user_removes_any_of_their_own,
    a_subscription_fails_since_its_first_failure_until_a_push_is_accepted,
    it_is_kept_how_a_subscription_fails_and_for_how_long_by_its_own_fault,
    a_browser_that_is_pushed_gives_its_place_to_none_that_is_older,
    secrets_are_sealed_for_their_subscription,
    a_closed_store_says_so,
}

fn sealed(text: &str) -> Sealed {
    Sealed { text: text.into(), until: None }
}

async fn kept(store: &Store, account: &Account) -> Option<String> {
    store.credentials(account, &imap()).await.unwrap().map(|sealed| sealed.text)
}

async fn credentials_and_parking(store: Store) {
    let parked = async || store.accounts(EVER).await.unwrap().remove(0).parked;
    let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
    let now = Timestamp(100);

    // Nobody's credentials are kept without a registration.
    assert!(
        !store
            .save_credentials(&alice(), by(&imap(), Some(&sealed("sealed 0"))), Timestamp::now())
            .await
            .unwrap()
    );
    assert_eq!(kept(&store, &alice()).await, None);
    store.refused(&alice(), &imap(), 2, Some("unknown"), now).await.unwrap();
    store.unpark(&alice(), &imap()).await.unwrap();
    assert!(store.accounts(EVER).await.unwrap().is_empty());

    store.register(&registration, by(&imap(), Some(&sealed("sealed 1"))), 10, now).await.unwrap();
    assert_eq!(kept(&store, &alice()).await.as_deref(), Some("sealed 1"));
    assert_eq!(parked().await, None);

    store.refused(&alice(), &imap(), 2, Some("AUTHENTICATIONFAILED"), now).await.unwrap();
    assert_eq!(parked().await.as_deref(), Some("AUTHENTICATIONFAILED"));
    store.register(&registration, by(&imap(), None), 10, now).await.unwrap();
    assert_eq!(parked().await, None, "a user who registers has just logged in");
    assert_eq!(kept(&store, &alice()).await.as_deref(), Some("sealed 1"));

    store.refused(&alice(), &imap(), 2, Some("NO"), now).await.unwrap();
    store.register(&registration, by(&imap(), Some(&sealed("sealed 2"))), 10, now).await.unwrap();
    assert_eq!(parked().await, None);
    assert_eq!(kept(&store, &alice()).await.as_deref(), Some("sealed 2"));

    store.refused(&alice(), &imap(), 2, Some("NO"), now).await.unwrap();
    assert!(
        store
            .save_credentials(&alice(), by(&imap(), Some(&sealed("sealed 3"))), Timestamp::now())
            .await
            .unwrap()
    );
    assert_eq!(parked().await, None);
    assert_eq!(kept(&store, &alice()).await.as_deref(), Some("sealed 3"));

    store.refused(&alice(), &imap(), 2, Some("NO"), now).await.unwrap();
    store.unpark(&alice(), &imap()).await.unwrap();
    assert_eq!(parked().await, None);
    assert_eq!(kept(&store, &alice()).await.as_deref(), Some("sealed 3"));
}

async fn credentials_go_when_they_expire(store: Store) {
    for (digit, account, until) in [('a', alice(), Some(200)), ('b', bob(), None)] {
        let registration = registration(device(&account, digit), &["INBOX"], 5);
        let sealed = Sealed { text: "sealed".into(), until: until.map(Timestamp) };
        store
            .register(&registration, by(&imap(), Some(&sealed)), 10, Timestamp(100))
            .await
            .unwrap();
        assert_eq!(store.credentials(&account, &imap()).await.unwrap(), Some(sealed));
        // A registration that brings none leaves them, and their end, alone.
        store.register(&registration, by(&imap(), None), 10, Timestamp(150)).await.unwrap();
    }
    assert_eq!(store.erase_credentials(Some(Timestamp(199))).await.unwrap(), 0);
    assert_eq!(store.erase_credentials(Some(Timestamp(200))).await.unwrap(), 1);
    assert_eq!(store.credentials(&alice(), &imap()).await.unwrap(), None);
    only_target(&store, &alice()).await;
    assert_eq!(kept(&store, &bob()).await.as_deref(), Some("sealed"));
    assert_eq!(store.erase_credentials(None).await.unwrap(), 1);
    assert_eq!(store.credentials(&bob(), &imap()).await.unwrap(), None);
    assert_eq!(store.erase_credentials(None).await.unwrap(), 0);
}

async fn a_node_that_joins_and_leaves_at_once_is_not_lost(store: Store) {
    let mut tasks = tokio::task::JoinSet::new();
    for digit in ['a', 'b', 'c'] {
        let store = store.clone();
        tasks.spawn(async move {
            for round in 0..20 {
                register(&store, device(&alice(), digit), &["INBOX", "Sent"], 5, round).await;
                let targets = store.targets(&alice(), EVER).await.unwrap();
                let own = targets
                    .iter()
                    .find(|target| target.subscription.endpoint == token(digit).endpoint());
                assert_eq!(own.expect("it was told OK").mailboxes.len(), 2, "round {round}");
                assert_eq!(told(&store, &alice(), "Sent").await, Some(state(5)));
                let removed = store.remove_subscription(&key(&alice(), digit), None).await.unwrap();
                assert!(removed.is_some(), "round {round}");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(store.accounts(EVER).await.unwrap(), []);
}

async fn everything_of_an_account_goes_in_one_call(store: Store) {
    for digit in ['a', 'b'] {
        let registration = registration(device(&alice(), digit), &["INBOX", "Sent"], 5);
        store
            .register(&registration, by(&imap(), Some(&sealed("sealed"))), 10, EVER)
            .await
            .unwrap();
        owe(&store, key(&alice(), digit), "INBOX").await;
    }
    store.refused(&alice(), &imap(), 2, Some("NO"), EVER).await.unwrap();
    assert!(store.remove_account(&alice()).await.unwrap());
    assert_eq!(store.owed_accounts().await.unwrap(), []);
    assert_eq!(store.credentials(&alice(), &imap()).await.unwrap(), None);
    // An account that comes back begins anew.
    register(&store, device(&alice(), 'a'), &["INBOX"], 9, 100).await;
    assert_eq!(store.accounts(EVER).await.unwrap()[0].parked, None);
    assert_eq!(mailboxes(&only_target(&store, &alice()).await), ["INBOX"]);
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(9)));
    assert_eq!(store.credentials(&alice(), &imap()).await.unwrap(), None);
}

async fn a_device_that_registered_since_is_not_removed(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 200).await;
    let phone = key(&alice(), 'a');
    assert_eq!(store.remove_subscription(&phone, Some(Timestamp(199))).await.unwrap(), None);
    assert_eq!(store.targets(&alice(), EVER).await.unwrap().len(), 1);
    let removed = store.remove_subscription(&phone, Some(Timestamp(200))).await.unwrap().unwrap();
    assert_eq!(removed.subscription, device(&alice(), 'a'));
    assert_eq!(store.remove_subscription(&phone, None).await.unwrap(), None);
}

async fn an_account_goes_with_its_last_device(store: Store) {
    let first = registration(device(&alice(), 'a'), &["INBOX"], 5);
    store.register(&first, by(&imap(), Some(&sealed("sealed"))), 10, Timestamp(100)).await.unwrap();
    register(&store, device(&alice(), 'b'), &["INBOX"], 5, 100).await;
    owe(&store, key(&alice(), 'b'), "INBOX").await;

    let removed = store.remove_subscription(&key(&alice(), 'a'), None).await.unwrap().unwrap();
    assert!(removed.account_left);
    assert_eq!(kept(&store, &alice()).await.as_deref(), Some("sealed"));

    let removed = store.remove_subscription(&key(&alice(), 'b'), None).await.unwrap().unwrap();
    assert!(!removed.account_left);
    assert_eq!(store.credentials(&alice(), &imap()).await.unwrap(), None);
    assert_eq!(store.accounts(EVER).await.unwrap(), []);
    assert_eq!(store.owed_accounts().await.unwrap(), []);

    register(&store, device(&alice(), 'a'), &["INBOX"], 9, 200).await;
    assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(9)));
    assert_eq!(store.credentials(&alice(), &imap()).await.unwrap(), None);
}

async fn expiry_takes_old_devices_alone(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 5, 100).await;
    register(&store, device(&alice(), 'b'), &["INBOX"], 5, 200).await;
    let bobs = registration(device(&bob(), 'c'), &["INBOX"], 5);
    store.register(&bobs, by(&imap(), Some(&sealed("sealed"))), 10, Timestamp(199)).await.unwrap();
    assert_eq!(store.expire(Timestamp(100)).await.unwrap(), []);
    assert_eq!(store.expire(Timestamp(200)).await.unwrap(), [bob()]);
    assert_eq!(store.credentials(&bob(), &imap()).await.unwrap(), None);
    assert_eq!(only_target(&store, &alice()).await.subscription, device(&alice(), 'b'));
    assert_eq!(told(&store, &alice(), "Sent").await, None);
    assert_eq!(store.accounts(EVER).await.unwrap().len(), 1);
}

async fn an_account_can_be_removed(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    register(&store, device(&bob(), 'a'), &["INBOX"], 5, 100).await;
    assert!(store.remove_account(&alice()).await.unwrap());
    assert!(!store.remove_account(&alice()).await.unwrap());
    assert!(store.targets(&alice(), EVER).await.unwrap().is_empty());
    assert!(store.watched(&alice(), &imap(), EVER).await.unwrap().is_empty());
    assert_eq!(only_target(&store, &bob()).await.subscription, device(&bob(), 'a'));
}

async fn calls_run_side_by_side(store: Store) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40 {
        let store = store.clone();
        tasks.spawn(async move {
            let account = Account::from_login(&format!("user{}@example.org", number % 8));
            register(&store, device(&account, 'a'), &["INBOX", "Sent"], 5, number).await;
            owe(&store, key(&account, 'a'), "INBOX").await;
            assert_eq!(mailboxes(&only_target(&store, &account).await), ["INBOX!", "Sent"]);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(store.owed_accounts().await.unwrap().len(), 8);
}

async fn a_closed_store_says_so(store: Store) {
    store.close().await;
    assert!(store.ping().await.is_err());
    let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
    assert!(store.register(&registration, by(&imap(), None), 10, EVER).await.is_err());
}
