//! Cyrus as it may be laid out: separators, namespaces, virtual domains, and `notifyd`. Each is a real run in which
//! a delivery becomes a push.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use mailchime::config::{
    CredentialsMode, CyrusEventsConfig, EventSourceConfig, MasterUser, WatchConnection,
};
use mailchime::model::Account;
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::TOKEN;
use super::cyrus::{EVENTS, GROUP};
use crate::support::in_process::{InProcess, loopback};
use crate::support::servers::client::Client;
use crate::support::servers::cyrus::{ADMIN, Cyrus};
use crate::support::servers::{ALICE, User, mail, pki};
use crate::support::world::registration;
use crate::support::{limited, soon, until};

/// Of a virtual domain.
const ERIN: User<'static> = ("erin@example.org", "s3cret word");

const PROGRAM: &str = include_str!("../../../contrib/cyrus/mailchime-notify");

/// A folder that Cyrus can enter.
fn open_folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("mc-").tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

async fn looked_at(world: &InProcess, user: User<'_>) {
    let (store, account) = (&world.mailchime.store, Account::from_login(user.0));
    until(async || {
        let due = store.due_accounts().await.unwrap();
        due.iter().all(|(other, _)| *other != account)
    })
    .await;
}

/// The user's session, in which there is a folder now. mailchime is not there yet: it would look at what is new.
fn with_folder(cyrus: &Cyrus, user: User<'_>, folder: &str) -> Client {
    let mut client = Client::connect(cyrus.plain);
    assert!(client.login(user).starts_with("x OK"));
    let made = client.ask(&format!("CREATE {folder}"));
    assert!(made[0].starts_with("x OK"), "{made:?}");
    client
}

/// What comes into INBOX by LMTP, and into the folder by APPEND, is a push, although mailchime could not log in
/// any more.
async fn changes_are_pushes(
    cyrus: &Cyrus,
    world: &InProcess,
    (user, mut client): (User<'_>, Client),
    folder: &str,
) {
    world.register(user, &["INBOX", folder]).await;
    looked_at(world, user).await;
    cyrus.set_password((user.0, "another"));
    block_in_place(|| cyrus.deliver(user.0, &mail("hello")));
    soon("a push of INBOX", world.push_of(&["INBOX"])).await;
    let append = format!("APPEND {folder} {{24+}}\r\nSubject: four\r\n\r\nHello\r\n");
    let answer = block_in_place(|| client.ask(&append));
    assert!(answer.last().unwrap().starts_with("x OK"), "{answer:?}");
    soon("a push of the folder", world.push_of(&[folder])).await;
}

/// Events come by connections.
async fn laid_out(test: &str, lines: &str, separator: char, user: User<'_>, folder: &str) {
    limited(async {
        let sockets = open_folder();
        let stream = sockets.path().join("stream");
        let lines = format!(
            "{EVENTS}event_notifier: mailchime\nnotifysocket: dlist:{}\n{lines}",
            stream.display()
        );
        let Some(cyrus) = Cyrus::with_users(test, &lines, separator, &[user]) else { return };
        let client = with_folder(&cyrus, user, folder);
        let world = InProcess::pushing(cyrus.plain, |config| {
            config.watch.connection = WatchConnection::OnDemand;
            let mut events = CyrusEventsConfig::new();
            (events.stream, events.group) = (Some(stream), Some(GROUP.to_owned()));
            config.events.cyrus = Some(events);
        });
        let world = world.await;
        changes_are_pushes(&cyrus, &world, (user, client), folder).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_below_inbox_with_slashes() {
    let test = "intake::cyrus_layouts::folders_below_inbox_with_slashes";
    let lines = "unixhierarchysep: yes\naltnamespace: no\n";
    laid_out(test, lines, '/', ALICE, "INBOX/Team").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_below_inbox_with_dots() {
    let test = "intake::cyrus_layouts::folders_below_inbox_with_dots";
    let lines = "unixhierarchysep: no\naltnamespace: no\n";
    laid_out(test, lines, '.', ALICE, "INBOX.Team.Sub").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_beside_inbox_with_dots() {
    let test = "intake::cyrus_layouts::folders_beside_inbox_with_dots";
    let lines = "unixhierarchysep: no\naltnamespace: yes\n";
    laid_out(test, lines, '.', ALICE, "Team.Sub").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_a_virtual_domain() {
    let test = "intake::cyrus_layouts::a_user_of_a_virtual_domain";
    let lines = "virtdomains: userid\ndefaultdomain: localhost\n";
    laid_out(test, lines, '/', ERIN, "Team/Sub").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_a_virtual_domain_with_dots() {
    let test = "intake::cyrus_layouts::a_user_of_a_virtual_domain_with_dots";
    let lines =
        "virtdomains: userid\ndefaultdomain: localhost\nunixhierarchysep: no\naltnamespace: no\n";
    laid_out(test, lines, '.', ERIN, "INBOX.Team").await;
}

/// The program of `notify_external`, with the paths of a test.
fn program(folder: &TempDir, url: &str) {
    let file = |name: &str| folder.path().join(name);
    let (binary, ours) = (file("mailchime"), env!("CARGO_BIN_EXE_mailchime"));
    // Cyrus may not be allowed to enter the folder in which it was built.
    if fs::hard_link(ours, &binary).is_err() {
        fs::copy(ours, &binary).unwrap();
    }
    fs::write(file("secret"), TOKEN).unwrap();
    let text = PROGRAM
        .replace("/usr/bin/mailchime", &binary.display().to_string())
        .replace("https://mail.example.org:8144", url)
        .replace("/etc/mailchime-events.secret", &file("secret").display().to_string());
    assert!(text.contains(url) && !text.contains("/etc/"), "{text}");
    fs::write(file("notify"), text).unwrap();
    fs::set_permissions(file("notify"), Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_registers_at_cyrus_comes_by_notifyd() {
    limited(async {
        let test = "intake::cyrus_layouts::a_device_that_registers_at_cyrus_comes_by_notifyd";
        let folder = open_folder();
        let notify = folder.path().join("notify").display().to_string();
        let lines = format!("{EVENTS}event_notifier: external\nnotify_external: {notify}\n");
        let Some(cyrus) = Cyrus::with_events(test, &lines) else { return };
        let file = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            file
        };
        let (secret, password) = (file("known.secret", TOKEN), file("password", ADMIN.1));
        let world = InProcess::pushing(cyrus.plain, |config| {
            config.watch.connection = WatchConnection::OnDemand;
            config.events.address = Some(loopback());
            let source = EventSourceConfig::new("cyrus", secret);
            let route = Some(pki().topic.clone());
            config.events.sources = vec![EventSourceConfig { route, ..source }];
            config.credentials = CredentialsMode::Master;
            let name = ADMIN.0.to_owned();
            config.backend.master =
                Some(MasterUser { name, password_file: password, login_template: None });
        });
        let world = world.await;
        program(&folder, &format!("http://{}", world.mailchime.events.unwrap()));
        let mut phone = Client::connect_tls(cyrus.tls);
        assert!(phone.login(ALICE).starts_with("x OK"));
        let answer = phone.ask(&registration());
        assert!(answer.last().unwrap().starts_with("x OK"), "{answer:?}");
        // Cyrus does not wait for the program.
        let (store, alice) = (&world.mailchime.store, Account::from_login(ALICE.0));
        until(async || store.all_targets(&alice).await.unwrap().len() == 1).await;
        block_in_place(|| cyrus.deliver(ALICE.0, &mail("hello")));
        soon("a push", world.push_of(&["INBOX"])).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notifyd_runs_mailchime_event_for_each_event() {
    limited(async {
        let test = "intake::cyrus_layouts::notifyd_runs_mailchime_event_for_each_event";
        let folder = open_folder();
        let lines = format!(
            "{EVENTS}event_notifier: external\nnotify_external: {}\nvirtdomains: userid\n\
             defaultdomain: localhost\n",
            folder.path().join("notify").display()
        );
        let Some(cyrus) = Cyrus::with_users(test, &lines, '/', &[ERIN]) else { return };
        let client = with_folder(&cyrus, ERIN, "Team");
        let secret = folder.path().join("known.secret");
        fs::write(&secret, TOKEN).unwrap();
        let world = InProcess::pushing(cyrus.plain, |config| {
            config.watch.connection = WatchConnection::OnDemand;
            config.events.address = Some(loopback());
            let mut source = EventSourceConfig::new("cyrus", secret);
            source.domains = vec!["example.org".to_owned()];
            config.events.sources = vec![source];
        });
        let world = world.await;
        program(&folder, &format!("http://{}", world.mailchime.events.unwrap()));
        changes_are_pushes(&cyrus, &world, (ERIN, client), "Team").await;
    })
    .await;
}
