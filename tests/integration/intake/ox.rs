//! The real Dovecot, whose driver `ox` tells of deliveries to users who have an entry in METADATA. mailchime writes
//! it and removes it.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use mailchime::app;
use mailchime::config::{Config, CredentialsMode, EventSourceConfig, WatchConnection};
use mailchime::demo::apns::Answer;
use mailchime::model::{Account, SubscriptionKey, Timestamp};
use mailchime::store::Store;
use tempfile::TempDir;
use tracing::Level;

use super::TOKEN;
use super::dovecot::deliver_by_lda;
use super::waits::{HeldUp, Listens, NotTaking};
use crate::support::in_process::{InProcess, loopback};
use crate::support::log::Log;
use crate::support::servers::client::Client;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::{ALICE, BOB, User, mail};
use crate::support::{limited, soon, until};

pub(super) const ENTRY: &str = "/private/vendor/vendor.dovecot/http-notify";

/// Dovecot, and what it has beside its mail.
struct OxSite {
    /// METADATA of all users, and the part of the configuration that knows where mailchime is.
    folder: TempDir,
    dovecot: Dovecot,
}

impl OxSite {
    /// Dovecot as docs/events.md says, but for the driver.
    fn start(test: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        let path = folder.path().display();
        let extra = format!(
            "mail_attribute_dict = file:{path}/%u\nprotocol imap {{\n  imap_metadata = yes\n}}\n\
             mail_plugins = $mail_plugins notify push_notification\n!include_try {path}/ox.conf\n"
        );
        let extra: &'static str = Box::leak(extra.into_boxed_str());
        let dovecot = Dovecot::start(test, &Options { extra, ..Options::default() })?;
        Some(Self { folder, dovecot })
    }

    /// The driver sends to this address from now on.
    fn tell(&mut self, address: SocketAddr) {
        let driver = format!(
            "plugin {{\n  push_notification_driver = \
             ox:url=http://dovecot:{TOKEN}@{address}/v1/events/ox user_from_metadata\n}}\n"
        );
        fs::write(self.folder.path().join("ox.conf"), driver).unwrap();
        self.dovecot.stop();
        self.dovecot.restart();
    }

    /// mailchime, with a source that needs the entry.
    async fn mailchime(&self) -> InProcess {
        self.mailchime_with(CredentialsMode::Stored).await
    }

    async fn mailchime_with(&self, credentials: CredentialsMode) -> InProcess {
        let world = InProcess::pushing(self.dovecot.plain, |config: &mut Config| {
            config.credentials = credentials;
            let folder = config.key_file.parent().unwrap();
            let secret = folder.join("events.secret");
            fs::write(&secret, TOKEN).unwrap();
            config.watch.connection = WatchConnection::OnDemand;
            config.events.address = Some(loopback());
            let source = EventSourceConfig::new("dovecot", secret);
            config.events.sources = vec![EventSourceConfig { metadata: true, ..source }];
        });
        world.await
    }

    /// The user's entry.
    fn entry(&self, user: User<'_>) -> String {
        let mut client = Client::connect(self.dovecot.plain);
        assert!(client.login(user).starts_with("x OK"));
        let answer = client.ask(&format!("GETMETADATA \"\" {ENTRY}"));
        assert!(answer.last().unwrap().starts_with("x OK"), "{answer:?}");
        // The value is a literal, on a line of its own.
        let answer = answer.concat();
        let (_, value) = answer.split_once(ENTRY).unwrap();
        value
            .split([' ', '}', ')'])
            .rfind(|word| word.starts_with("user=") || *word == "NIL")
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    async fn has(&self, user: User<'_>, entry: &str) {
        until(async || self.entry(user) == entry).await;
    }
}

/// Nothing is kept of the account.
async fn is_forgotten(store: &Store, account: &Account) -> bool {
    let ever = Timestamp(i64::MIN);
    store.live_account(account, ever).await.unwrap().is_none()
        && store.leaving(Some(account), Timestamp::now()).await.unwrap().is_empty()
}

async fn looked_at(store: &Store) {
    until(async || store.due_accounts().await.unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_tells_of_a_user_from_the_registration_to_the_last_device_s_end() {
    let test = "intake::ox::the_driver_tells_of_a_user_from_the_registration_to_the_last_device";
    from_registration_to_end(test, CredentialsMode::Stored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_entry_goes_where_the_password_is_in_memory_alone() {
    let test = "intake::ox::the_entry_goes_where_the_password_is_in_memory_alone";
    from_registration_to_end(test, CredentialsMode::Memory).await;
}

async fn from_registration_to_end(test: &str, credentials: CredentialsMode) {
    limited(async {
        let Some(mut site) = OxSite::start(test) else { return };
        let world = site.mailchime_with(credentials).await;
        site.tell(world.mailchime.events.unwrap());
        assert_eq!(site.entry(ALICE), "NIL");
        world.register(ALICE, &["INBOX"]).await;
        site.has(ALICE, "user=alice").await;
        let store = &world.mailchime.store;
        looked_at(store).await;
        site.dovecot.deliver_by_lmtp(ALICE.0, &mail("hello"));
        soon("a push", world.push_of(&["INBOX"])).await;
        // The device is gone, says Apple.
        world.apns.answer_next(1, Answer::gone(Timestamp::now().0 + 60_000));
        looked_at(store).await;
        site.dovecot.deliver_by_lmtp(ALICE.0, &mail("hello again"));
        site.has(ALICE, "NIL").await;
        let alice = Account::from_login(ALICE.0);
        until(async || is_forgotten(store, &alice).await).await;
        // The user comes back.
        world.register(ALICE, &["INBOX"]).await;
        site.has(ALICE, "user=alice").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_goes_although_the_device_was_removed_while_mailchime_was_away() {
    limited(async {
        let test =
            "intake::ox::an_entry_goes_although_the_device_was_removed_while_mailchime_was_away";
        let Some(site) = OxSite::start(test) else { return };
        let world = site.mailchime().await;
        world.register(ALICE, &["INBOX"]).await;
        site.has(ALICE, "user=alice").await;
        world.mailchime.stop().await;
        let (url, timeout) = (&world.config.store.url, world.config.store.busy_timeout);
        let store = Store::open(url, timeout).await.unwrap();
        let alice = Account::from_login(ALICE.0);
        let target = store.all_targets(&alice).await.unwrap().remove(0);
        let key = SubscriptionKey::from(&target.subscription);
        let removed = store.remove_subscription(&key, None).await.unwrap().unwrap();
        assert!(!removed.account_left);
        assert!(!store.remove_account(&alice).await.unwrap(), "nothing else is left of it");
        assert_eq!(store.all_targets(&alice).await.unwrap(), []);
        store.close().await;
        assert_eq!(site.entry(ALICE), "user=alice");
        let again = app::start(&world.config).await.unwrap();
        site.has(ALICE, "NIL").await;
        until(async || is_forgotten(&again.store, &alice).await).await;
        again.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_entry_of_another_program_stays() {
    let log = Log::default();
    let _logs = tracing::subscriber::set_default(log.subscriber(Level::WARN));
    limited(async {
        let test = "intake::ox::an_entry_of_another_program_stays";
        let Some(site) = OxSite::start(test) else { return };
        let mut bob = Client::connect(site.dovecot.plain);
        assert!(bob.login(BOB).starts_with("x OK"));
        let set = bob.ask(&format!("SETMETADATA \"\" ({ENTRY} \"user=3@7\")"));
        assert!(set[0].starts_with("x OK"), "{set:?}");
        let world = site.mailchime().await;
        world.register(BOB, &["INBOX"]).await;
        let said = "could not write the METADATA entry";
        until(async || log.count(said) == 1).await;
        assert!(log.text().contains("the value of another program"), "{}", log.text());
        assert!(!log.text().contains("3@7"), "{}", log.text());
        assert_eq!(site.entry(BOB), "user=3@7");
        // Once.
        world.register(BOB, &["INBOX", "Team"]).await;
        let store = &world.mailchime.store;
        let account = Account::from_login(BOB.0);
        let target = store.all_targets(&account).await.unwrap().remove(0);
        let key = SubscriptionKey::from(&target.subscription);
        store.remove_subscription(&key, None).await.unwrap().unwrap();
        // Nothing is to be removed.
        assert!(is_forgotten(store, &account).await);
        world.mailchime.stop().await;
        assert_eq!(site.entry(BOB), "user=3@7");
        assert_eq!(log.count(said), 1);
    })
    .await;
}

/// Mails come, by LMTP and by lda, and each delivery waits so long at most. How many requests have come, and what
/// Dovecot's log says.
async fn mail_goes_on(
    test: &str,
    listens: Listens,
    (deliveries, wait): (usize, Duration),
) -> Option<(usize, String)> {
    let mut site = OxSite::start(test)?;
    let mailchime = NotTaking::start(listens, site.folder.path()).await;
    site.tell(mailchime.address);
    let mut client = Client::connect(site.dovecot.plain);
    assert!(client.login(ALICE).starts_with("x OK"));
    let set = client.ask(&format!("SETMETADATA \"\" ({ENTRY} \"user=alice\")"));
    assert!(set[0].starts_with("x OK"), "{set:?}");
    let mut held_up = HeldUp::default();
    for _ in 1..deliveries {
        held_up.at_most(wait, || site.dovecot.deliver_by_lmtp(ALICE.0, &mail("by LMTP")));
    }
    held_up.at_most(wait, || deliver_by_lda(&site.dovecot, "INBOX"));
    assert_eq!(client.messages("INBOX") as usize, deliveries);
    Some((mailchime.requests(), site.dovecot.log()))
}

/// Two seconds, twice.
const TWICE_IN_VAIN: (usize, Duration) = (3, Duration::from_secs(4));

/// So many that a wait of two seconds for each would be seen.
const AT_ONCE: (usize, Duration) = (16, Duration::ZERO);

/// Dovecot tells of each mail twice, in vain.
async fn mail_goes_on_without_an_answer(test: &str, listens: Listens) {
    let Some((requests, log)) = mail_goes_on(test, listens, TWICE_IN_VAIN).await else { return };
    assert_eq!(requests, 2 * TWICE_IN_VAIN.0, "{log}");
    assert_eq!(log.matches("Request timed out ").count(), TWICE_IN_VAIN.0, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_mailchime_says_nothing() {
    let test = "intake::ox::mail_goes_on_where_mailchime_says_nothing";
    limited(mail_goes_on_without_an_answer(test, Listens::Silent)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_mailchime_is_slow() {
    let test = "intake::ox::mail_goes_on_where_mailchime_is_slow";
    limited(mail_goes_on_without_an_answer(test, Listens::Slow)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_nobody_listens() {
    limited(async {
        let test = "intake::ox::mail_goes_on_where_nobody_listens";
        let Some((_, log)) = mail_goes_on(test, Listens::None, AT_ONCE).await else { return };
        assert_eq!(log.matches("Connection refused").count(), AT_ONCE.0, "{log}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_mailchime_refuses() {
    limited(async {
        let test = "intake::ox::mail_goes_on_where_mailchime_refuses";
        let Some((_, log)) = mail_goes_on(test, Listens::Refusing, AT_ONCE).await else { return };
        assert_eq!(log.matches("401 Unauthorized").count(), AT_ONCE.0, "{log}");
    })
    .await;
}

/// It is asked once more, after the second that it names.
#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_mailchime_has_too_much_to_do() {
    limited(async {
        let test = "intake::ox::mail_goes_on_where_mailchime_has_too_much_to_do";
        let once_more = (8, Duration::from_secs(1));
        let found = mail_goes_on(test, Listens::Busy, once_more).await;
        let Some((requests, log)) = found else { return };
        assert_eq!(requests, 2 * once_more.0, "{log}");
    })
    .await;
}
