//! The time of service, by which the silence of devices is counted, and the clock that is believed; part of
//! the contract.

use mailchime::config;
use mailchime::store::{Alive, CredentialSource};

use super::*;

const DAY: Duration = Duration::from_hours(24);

pub(super) async fn silence_is_measured_by_the_time_in_which_phones_could_register(store: Store) {
    let (now, push) = (Timestamp::now(), config::PushConfig::default());
    let off = now.minus(11 * DAY);
    // A program that serves, eleven days ago; then the machine is off.
    let before = store.clone().serving().await;
    register(&before, device(&alice(), 'a'), &["INBOX"], 5, off.0).await;
    let changed = off.plus(Duration::from_secs(1));
    let mut login = Registrant::new(&imap(), changed, Some(&sealed("other")));
    login.other_password = true;
    let other = registration(device(&alice(), 'b'), &["INBOX"], 5);
    before.register(&other, login, 10, changed).await.unwrap();
    before.count_service(off, true).await.unwrap();

    let later = store.clone().serving().await;
    let served = later.served(now);
    let alive = Alive::at(served, &push);
    assert_eq!(later.expire(alive).await.unwrap(), []);
    let targets = later.targets(&alice(), alive).await.unwrap();
    assert_eq!((targets.len(), targets[0].registered_at), (2, off));
    assert!(targets[0].outdated_since.is_some(), "and has a day left");
    // With a day of service it has had its time, and in ten days the other one.
    let end = |days| Alive::at(served.plus(days * DAY + Duration::from_hours(2)), &push);
    assert_eq!(later.targets(&alice(), end(0)).await.unwrap().len(), 2);
    assert_eq!(later.expire(end(1)).await.unwrap(), []);
    assert_eq!(later.targets(&alice(), EVER).await.unwrap().len(), 1);
    assert_eq!(later.expire(end(9)).await.unwrap(), []);
    assert_eq!(later.expire(end(10)).await.unwrap(), [alice()]);
}

pub(super) async fn a_clock_that_has_just_jumped_ends_no_token(store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let (mode, key) = (config::CredentialsMode::Stored, folder.path().join("key"));
    let now = Timestamp::now();
    let before = store.clone().serving().await;
    let until = Some(now.minus(DAY));
    let token = Sealed { until, ..sealed("token") };
    let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
    before.register(&registration, by(&imap(), Some(&token)), 10, now).await.unwrap();
    before.count_service(now.minus(20 * DAY), true).await.unwrap();

    // By the clock twenty days have gone by: it may be wrong.
    let later = store.clone().serving().await;
    let source = CredentialSource::open(mode, &key, later.clone()).unwrap();
    assert!(later.believed(now) < now.minus(19 * DAY));
    assert_eq!(source.tidy(now).await.unwrap(), 0);
    assert_eq!(store.credentials(&alice(), &imap()).await.unwrap(), Some(token));
    // It has gone on for a while (or this is no program that serves).
    let source = CredentialSource::open(mode, &key, store.clone()).unwrap();
    assert_eq!(source.tidy(now).await.unwrap(), 1);
    assert_eq!(store.credentials(&alice(), &imap()).await.unwrap(), None);
}
