//! From a watcher's change to the push and the row.

use std::time::Duration;

use mailchime::config;
use mailchime::demo::apns::Answer;
use mailchime::model::{
    ChangeKind, Mailbox, Registration, Subscription, SubscriptionSecrets, Timestamp, WatchEvent,
};
use mailchime::push::transport::apns::payload::mailbox_hash;
use mailchime::store::{Settlement, Vault};
use tokio::time::resume;
use tracing::Level;

use crate::support::log::Log;
use crate::support::pushing::{
    Certificates, Disk, EVER, Running, account_id, alice, backends, load, options, register,
    reload, rows, state, token, try_load,
};
use crate::support::{limited, stop_clock, until};

#[tokio::test]
async fn a_change_becomes_a_push_to_each_device_and_then_the_row_moves() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let mut asleep = certificates.device("cc");
        asleep.route = "com.apple.mail.XServer.old".into();
        let devices = [certificates.device("aa"), certificates.device("bb"), asleep];
        let disk = Disk::with(&devices).await;
        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));

        let id = running.change("INBOX", None).await;
        let mut tokens = Vec::new();
        for _ in 0..2 {
            let push = stand_in.next().await;
            assert_eq!(push.json()["aps"].get("m"), None);
            tokens.push(push.token.unwrap().as_given()[..2].to_owned());
        }
        tokens.sort();
        assert_eq!(tokens, ["aa", "bb"]);

        let (account, mailbox) = (alice(), Mailbox::inbox());
        let backend = backends().default().id().clone();
        let event = WatchEvent::Rebased { account, backend, mailbox, id, snapshot: state(2) };
        running.events.send(event).await.unwrap();
        running.mail("Notes", 3).await;
        let push = stand_in.next().await;
        assert_eq!(push.json()["aps"]["m"][0], mailbox_hash(&Mailbox::new("Notes")));
        stand_in.next().await;
        running.end().await;
        assert_eq!(disk.told().await, rows(2, 3));
        assert_eq!(disk.owed().await, ["cc INBOX", "cc Notes"], "for when it has a route");
        assert_eq!(stand_in.received(), 4);
    })
    .await;
}

/// Events of mail servers wait for the same writer.
#[tokio::test]
async fn what_became_of_pushes_gathers_for_some_time_after_a_write() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let disk = Disk::with(&[certificates.device("aa")]).await;
        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));
        let clock = stop_clock();
        running.mail("INBOX", 2).await;
        stand_in.next().await;
        // The first one is written at once.
        until(async || disk.told().await == rows(2, 1)).await;
        running.mail("Notes", 2).await;
        stand_in.next().await;
        for _ in 0..50 {
            assert_eq!(disk.told().await, rows(2, 1), "no time has passed");
        }
        drop(clock);
        resume();
        until(async || disk.told().await == rows(2, 2)).await;
        running.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_dead_device_is_removed_and_an_account_without_devices_is_reported_to_the_watching_side()
{
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let device = certificates.device("aa");
        let disk = Disk::with(std::slice::from_ref(&device)).await;
        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));

        // Dead before it registered: the registration is the newer truth.
        stand_in.answer_next(1, Answer::gone(1_600_000_000_000));
        running.mail("INBOX", 2).await;
        stand_in.next().await;
        running.end().await;
        assert_eq!((disk.told().await, disk.owed().await), (rows(2, 1), vec!["aa INBOX".into()]));

        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));
        stand_in.answer_next(1, Answer::gone(Timestamp::now().0 + 1000));
        assert_eq!(running.removed.recv().await, Some(alice()));
        running.end().await;
        assert!(disk.store.targets(&alice(), EVER).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn what_apns_did_not_take_is_owed_and_pushed_after_the_next_start() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let disk = Disk::with(&[certificates.device("aa"), certificates.device("bb")]).await;
        stand_in.answer_next(2, Answer::refuse(503, "Shutdown"));
        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));
        running.mail("INBOX", 2).await;
        stand_in.wait_for(2).await;
        running.end().await;
        assert_eq!(disk.told().await, rows(2, 1));
        assert_eq!(disk.owed().await, ["aa INBOX", "bb INBOX"]);

        // Nobody there at all: the marks stay.
        stand_in.refuse().await;
        stand_in.drop_connections();
        Running::start(&disk, certificates.identities(stand_in.address())).end().await;
        assert_eq!(disk.owed().await, ["aa INBOX", "bb INBOX"]);

        stand_in.resume().await.unwrap();
        let running = Running::start(&disk, certificates.identities(stand_in.address()));
        stand_in.wait_for(4).await;
        running.end().await;
        assert_eq!((disk.told().await, disk.owed().await), (rows(2, 1), Vec::<String>::new()));
    })
    .await;
}

/// What APNs answers beside 200 (PROTOCOL.md section 2), and what a gateway in its place may: none of
/// these says that the device is gone.
const NOT_GONE: [(u16, &str); 32] = [
    (400, "BadCollapseId"),
    (400, "BadExpirationDate"),
    (400, "BadMessageId"),
    (400, "BadPriority"),
    (400, "BadTopic"),
    (400, "DeviceTokenNotForTopic"),
    (400, "DuplicateHeaders"),
    (400, "IdleTimeout"),
    (400, "InvalidPushType"),
    (400, "MissingDeviceToken"),
    (400, "MissingTopic"),
    (400, "PayloadEmpty"),
    (400, "TopicDisallowed"),
    (403, "BadCertificate"),
    (403, "BadCertificateEnvironment"),
    (403, "Forbidden"),
    (403, "InvalidProviderToken"),
    (403, "MissingProviderToken"),
    (403, "BadEnvironmentKeyIdInToken"),
    (403, "BadDeviceToken"),
    (404, "BadPath"),
    (405, "MethodNotAllowed"),
    (410, "NeverHeardOf"),
    (413, "PayloadTooLarge"),
    (429, "TooManyProviderTokenUpdates"),
    (429, "TooManyRequests"),
    (500, "InternalServerError"),
    (503, "ServiceUnavailable"),
    (503, "Shutdown"),
    (400, "NeverHeardOf"),
    (302, ""),
    (599, "NeverHeardOf"),
];

#[tokio::test]
async fn a_push_stays_owed_for_every_answer_that_does_not_say_that_the_device_is_gone() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let disk = Disk::with(&[certificates.device("aa")]).await;
        let identities = certificates.identities(stand_in.address());
        for (n, (status, reason)) in (2..).zip(NOT_GONE) {
            let mut running = Running::start(&disk, identities.clone());
            stand_in.answer_next(1, Answer::refuse(status, reason));
            running.mail("INBOX", n).await;
            assert_eq!(stand_in.next().await.status, Some(status));
            running.end().await;
            let (told, owed) = (disk.told().await, disk.owed().await);
            assert_eq!((told, owed), (rows(n, 1), vec!["aa INBOX".into()]), "{status} {reason}");
            // It is pushed after the next start.
            let running = Running::start(&disk, identities.clone());
            assert_eq!(stand_in.next().await.status, Some(200), "{status} {reason}");
            running.end().await;
            assert!(disk.owed().await.is_empty(), "{status} {reason}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_subscription_whose_secrets_cannot_be_opened_would_not_be_pushed_and_what_to_do_is_said()
{
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let identities = certificates.identities(stand_in.address());
        let mut disk = Disk::with(&[]).await;
        let file = |name: &str| certificates.folder.path().join(name);
        disk.store = disk.store.clone().sealing(&file("key"));
        let secrets = Some(SubscriptionSecrets::new("a secret".to_owned()));
        let registration = Registration {
            subscription: Subscription { secrets, ..certificates.device("aa") },
            mailboxes: vec![(Mailbox::inbox(), state(1))],
        };
        register(&disk.store, &registration, Timestamp::now()).await;
        std::fs::write(file("no key"), "no key").unwrap();
        let other = file("another");
        drop(Vault::open(&other).unwrap());
        for (key, opens) in [("key", true), ("none", false), ("no key", false), ("another", false)]
        {
            disk.store = disk.store.clone().sealing(&file(key));
            let running = Running::start(&disk, identities.clone());
            let explained = running.inquirer.explain(alice(), None).await.unwrap().unwrap();
            assert_eq!(explained[0].would_push, opens, "{key}: {explained:?}");
            if !opens {
                let said = explained[0].reasons[0].to_string();
                assert!(
                    said.contains("[credentials] key_file cannot be read, or does not"),
                    "{said}"
                );
                assert!(said.contains("put the file back"), "{said}");
            }
            running.end().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_push_that_waits_goes_by_the_registration_as_it_is_when_it_is_sent() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let [gone, mut renewed] = ["aa", "bb"].map(|name| certificates.device(name));
        let disk = Disk::with(&[gone.clone(), renewed.clone()]).await;
        let identities = certificates.identities(stand_in.address());
        let quiet_delay = Duration::from_secs(5);
        let config = config::PushConfig { quiet_delay, ..config::PushConfig::default() };
        let mut running = Running::with(&disk, identities, config);
        for mailbox in ["INBOX", "Notes"] {
            running.changed(mailbox, ChangeKind::Quiet, Some(state(2))).await;
        }
        let waiting = async || {
            let explained = running.inquirer.explain(alice(), None).await.unwrap().unwrap();
            explained.iter().map(|device| device.waiting.len()).sum::<usize>()
        };
        until(async || waiting().await >= 4).await;
        renewed.options = options("22222222-CA09-4730-A419-793000CA982E");
        let registration = Registration {
            subscription: renewed.clone(),
            mailboxes: vec![(Mailbox::inbox(), state(1))],
        };
        register(&disk.store, &registration, Timestamp::now()).await;
        disk.store.remove_subscription(&(&gone).into(), None).await.unwrap().unwrap();

        let push = stand_in.next().await;
        assert_eq!(push.token, Some(token(&renewed)));
        assert_eq!(push.json()["aps"]["account-id"], account_id(&renewed));
        assert_eq!(push.json()["aps"].get("m"), None, "Notes was dropped");
        running.end().await;
        assert_eq!(stand_in.received(), 1);
        assert!(disk.owed().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_push_that_was_under_way_when_its_device_registered_under_another_account_id_goes_again()
{
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let mut device = certificates.device("aa");
        let disk = Disk::with(std::slice::from_ref(&device)).await;
        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));
        stand_in.hold_answers(true);
        running.mail("INBOX", 2).await;
        let first = stand_in.next().await;
        assert_eq!(first.json()["aps"]["account-id"], account_id(&device));
        device.options = options("22222222-CA09-4730-A419-793000CA982E");
        let mailboxes = vec![(Mailbox::inbox(), state(1))];
        let registration = Registration { subscription: device.clone(), mailboxes };
        register(&disk.store, &registration, Timestamp::now()).await;
        running.inquirer.changed(alice()).await.unwrap();
        stand_in.hold_answers(false);
        let second = stand_in.next().await;
        assert_eq!(second.json()["aps"]["account-id"], account_id(&device));
        running.end().await;
        assert_eq!(disk.told().await, [("INBOX".to_owned(), 2)]);
    })
    .await;
}

#[tokio::test]
async fn a_device_that_registers_while_apns_calls_it_gone_keeps_what_it_is_owed() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let device = certificates.device("aa");
        let disk = Disk::with(std::slice::from_ref(&device)).await;
        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));
        let start = Timestamp::now();
        for (n, gone) in (2..).zip([
            Answer::refuse(410, "Unregistered"),
            Answer::refuse(400, "BadDeviceToken"),
            Answer::gone(start.0 + 3500),
        ]) {
            stand_in.answer_next(1, gone);
            stand_in.hold_answers(true);
            running.mail("INBOX", n).await;
            stand_in.next().await;
            let mailboxes = vec![(Mailbox::inbox(), state(1))];
            let registration = Registration { subscription: device.clone(), mailboxes };
            let later = start.plus(Duration::from_secs(n));
            register(&disk.store, &registration, later).await;
            if n == 3 {
                // The answer comes first, or the word of the registration does.
                running.inquirer.changed(alice()).await.unwrap();
            }
            stand_in.hold_answers(false);
            assert_eq!(stand_in.next().await.status, Some(200), "{n}");
        }
        running.end().await;
        assert_eq!(disk.told().await, [("INBOX".to_owned(), 4)]);
        assert!(disk.owed().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn one_device_whose_pushes_fail_with_500_delays_no_other() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let [failing, other] = ["aa", "bb"].map(|name| certificates.device(name));
        let disk = Disk::with(&[failing.clone(), other.clone()]).await;
        let mailboxes = vec![(Mailbox::new("Notes"), state(1))];
        let registration = Registration { subscription: other.clone(), mailboxes };
        register(&disk.store, &registration, Timestamp::now()).await;
        let answer = Answer::refuse(500, "InternalServerError");
        stand_in.answer_token(&token(&failing), answer);
        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));
        running.mail("INBOX", 2).await;
        for _ in 0..4 {
            assert_eq!(stand_in.next().await.token, Some(token(&failing)));
        }
        // It is left alone for four seconds at least, and the other one is pushed before.
        running.mail("Notes", 2).await;
        let push = stand_in.next().await;
        assert_eq!((push.token, push.status), (Some(token(&other)), Some(200)));
        assert_eq!(stand_in.received(), 5);
        running.end().await;
        assert_eq!(disk.told().await, rows(2, 2));
        assert_eq!(disk.owed().await, ["aa INBOX", "aa Notes"]);
    })
    .await;
}

#[tokio::test]
async fn killed_while_a_push_is_under_way_the_row_has_not_moved() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let disk = Disk::with(&[certificates.device("aa")]).await;
        stand_in.answer_next(1, Answer::Hang);
        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));
        running.mail("INBOX", 2).await;
        stand_in.next().await;
        running.task.abort();
        assert!(running.task.await.unwrap_err().is_cancelled());
        assert_eq!((disk.told().await, disk.owed().await), (rows(1, 1), Vec::<String>::new()));
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_locked_delays_no_push_and_one_that_cannot_be_read_loses_none() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let disk = Disk::with(&[certificates.device("aa")]).await;
        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));
        let mut beside = disk.beside().await;
        sqlx::query("begin immediate").execute(&mut beside).await.unwrap();
        running.mail("INBOX", 2).await;
        stand_in.next().await;
        running.mail("INBOX", 3).await;
        stand_in.next().await;
        assert_eq!(disk.told().await, rows(1, 1));
        sqlx::query("rollback").execute(&mut beside).await.unwrap();

        // No table, no devices: an error for each read.
        sqlx::query("alter table subscription rename to hidden")
            .execute(&mut beside)
            .await
            .unwrap();
        running.mail("Notes", 2).await;
        until(async || running.events.capacity() >= running.events.max_capacity()).await;
        sqlx::query("alter table hidden rename to subscription")
            .execute(&mut beside)
            .await
            .unwrap();
        stand_in.next().await;
        running.end().await;
        assert_eq!((disk.told().await, disk.owed().await), (rows(3, 2), Vec::<String>::new()));
    })
    .await;
}

#[tokio::test]
async fn a_push_has_one_line_in_the_log_and_no_line_has_a_token() {
    limited(async {
        let log = Log::default();
        // Where there is one subscriber only, a line that a test on another thread comes to first
        // would be taken for one that nobody wants.
        let _another = tracing::Dispatch::new(tracing_subscriber::registry());
        // The runtime of this test has one thread, this one.
        let _guard = tracing::subscriber::set_default(log.subscriber(Level::TRACE));

        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let disk = Disk::with(&[certificates.device("aa")]).await;
        let mut running = Running::start(&disk, certificates.identities(stand_in.address()));
        stand_in.answer_next(1, Answer::refuse(403, "BadCertificate"));
        running.mail("INBOX", 2).await;
        stand_in.next().await;
        running.end().await;
        for (status, reason) in [(400, "BadDeviceToken"), (400, "TopicDisallowed")] {
            let mut running = Running::start(&disk, certificates.identities(stand_in.address()));
            stand_in.answer_next(1, Answer::refuse(status, reason));
            running.mail("INBOX", 3).await;
            stand_in.next().await;
            running.end().await;
        }
        stand_in.refuse().await;
        stand_in.drop_connections();
        let running = Running::start(&disk, certificates.identities(stand_in.address()));
        running.end().await;

        let log = log.text();
        let pushes: Vec<_> =
            log.lines().filter(|line| line.contains("attempted: push attempted account")).collect();
        assert_eq!(pushes.len(), 3, "{log}");
        for part in ["INFO", "account=alice@example.org", "endpoint=aa000000…", "mailboxes=1"] {
            assert!(pushes[0].contains(part), "{part}: {}", pushes[0]);
        }
        for part in ["outcome=\"refused\"", "403 BadCertificate", "message_id=", " seconds="] {
            assert!(pushes[0].contains(part), "{part}: {}", pushes[0]);
        }
        // The way of one change.
        for line in
            ["change received account=alice@example.org change=#1 mailbox=INBOX", "push attempted "]
        {
            assert!(log.lines().any(|found| found.contains(line) && found.contains("#1")), "{log}");
        }
        assert!(log.lines().any(|line| line.ends_with("change recorded change=\"#1\"")), "{log}");
        assert!(log.contains("ERROR"), "a refusal is said loudly: {log}");
        assert!(!log.contains(&certificates.device("aa").endpoint.as_given()[..12]), "{log}");
    })
    .await;
}

#[tokio::test]
async fn nothing_is_lost_while_the_certificate_is_expired() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let topic = certificates.pki.topic.clone();
        let write = |validity| {
            let identity = certificates.pki.client(&[&topic], validity).unwrap();
            let file = |name| certificates.folder.path().join(name);
            std::fs::write(file("apns.pem"), &identity.certificate).unwrap();
            std::fs::write(file("apns.key"), identity.expose_private_key()).unwrap();
        };
        write(-7200..-3600);
        let config = [certificates.config(stand_in.address())];
        let identities = load(&config);
        let disk = Disk::with(&[certificates.device("aa")]).await;
        let mut running = Running::start(&disk, identities.clone());
        running.mail("INBOX", 2).await;
        until(async || !disk.owed().await.is_empty()).await;
        let why = running.why("INBOX").await;
        assert!(why[0].contains("apns.pem: is expired"), "{why:?}");
        assert!(why[1].starts_with("the push service did not answer or refused us"), "{why:?}");
        assert_eq!((disk.told().await, stand_in.connections()), (rows(2, 1), 0));

        write(-3600..3600);
        reload(&identities, &config).unwrap();
        stand_in.next().await;
        running.end().await;
        assert_eq!((disk.told().await, disk.owed().await), (rows(2, 1), Vec::<String>::new()));
    })
    .await;
}

#[tokio::test]
async fn a_device_of_a_topic_that_is_added_later_gets_its_owed_push() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let identities = certificates.identities(stand_in.address());
        let other = "com.apple.mail.XServer.other";
        let mut device = certificates.device("aa");
        device.route = other.into();
        let disk = Disk::with(std::slice::from_ref(&device)).await;
        let owed = Settlement::Owed {
            subscription: (&device).into(),
            mailbox: Mailbox::new("Notes"),
            since: Timestamp::now(),
        };
        disk.store.settle(&[owed]).await.unwrap();
        let running = Running::start(&disk, identities.clone());
        let why = running.why("Notes").await;
        assert!(why.len() == 1 && why[0].contains("listens to another route"), "{why:?}");
        assert!(running.why("Spam").await[0].contains("did not register for"));

        let client = certificates.pki.client(&[other], -60..3600).unwrap();
        let file = |name| certificates.folder.path().join(name);
        std::fs::write(file("other.pem"), &client.certificate).unwrap();
        std::fs::write(file("other.key"), client.expose_private_key()).unwrap();
        let first = certificates.config(stand_in.address());
        let mut second = config::ApnsConfig {
            identity: config::ApnsConfig::new(file("other.pem"), file("other.key")).identity,
            ..first.clone()
        };
        second.domains = vec!["example.org".into()];
        reload(&identities, &[first, second]).unwrap();
        let push = stand_in.next().await;
        assert_eq!((push.header("apns-topic"), push.status), (Some(other), Some(200)));
        running.end().await;
        assert!(disk.owed().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn pushes_collapse_and_quiet_changes_are_left_out_as_configured() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let disk = Disk::with(&[certificates.device("aa")]).await;
        let config = config::PushConfig {
            collapse: config::Collapse::Account,
            events: config::Events { new_mail: true, quiet: false },
            quiet_delay: Duration::ZERO,
            ..config::PushConfig::default()
        };
        let identities = try_load(&[certificates.config(stand_in.address())], &config).unwrap();
        let mut running = Running::with(&disk, identities, config);
        running.changed("Notes", ChangeKind::Quiet, Some(state(2))).await;
        running.mail("INBOX", 2).await;
        let push = stand_in.next().await;
        assert_eq!(push.header("apns-collapse-id"), Some(&*account_id(&certificates.device("aa"))));
        assert_eq!(push.json()["aps"].get("m"), None, "INBOX alone");
        running.end().await;
        assert_eq!((disk.told().await, stand_in.received()), (rows(2, 2), 1));
    })
    .await;
}
