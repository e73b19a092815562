//! What `mailchime check` says of FCM, web hooks and Web Push: each line, and how the command ends.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mailchime::demo::fcm::{FcmAnswer, FcmStandIn};
use mailchime::demo::push_service::PushService;
use mailchime::demo::webhook::WebhookReceiver;
use mailchime::model::{Account, BackendId, Registration, Timestamp};
use mailchime::net::guard::Guard;
use mailchime::push::transport::enrol::Enrol;
use mailchime::push::transport::webpush::WebPush;
use mailchime::push::transport::webpush::vapid::VapidKey;
use mailchime::store::{Registrant, Store};

use super::admin::Said;
use crate::support::program::Process;
use crate::support::world::{LOGIN, World};
use crate::support::{SOON, limited, listener};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const CONTACT: &str = "mailto:admin@example.org";

impl World {
    fn add_tables(&self, tables: &str) {
        self.configure("[log]\n", &format!("{tables}[log]\n"));
    }

    /// A file that nobody else can use.
    fn secret(&self, name: &str, text: &str) -> PathBuf {
        let file = self.file(name);
        fs::write(&file, text).unwrap();
        mode(&file, 0o600);
        file
    }

    /// The status of `serve`, which does not start.
    async fn serve_ends(&self) -> i32 {
        Process::spawn(self.program()).end().await.code().unwrap()
    }
}

impl Said {
    /// All lines about a part of the configuration.
    fn of(&self, part: &str) -> Vec<&str> {
        let behind = "warning  ".len();
        let is = |line: &&str| line.get(behind..).is_some_and(|text| text.starts_with(part));
        self.stdout.lines().filter(is).collect()
    }
}

fn mode(file: &Path, mode: u32) {
    fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
}

/// `[[fcm]]` with this file for these apps.
fn project(service: &FcmStandIn, file: &str, apps: &str) -> String {
    format!(
        "[[fcm]]\nservice_account_file = \"{file}\"\nendpoint = \"{}\"\nca = \"ca.pem\"\napps = [{apps}]\n",
        service.endpoint()
    )
}

fn web_push() -> String {
    format!("[webpush]\ncontact = \"{CONTACT}\"\nkey_file = \"vapid.key\"\n")
}

#[tokio::test]
async fn a_good_configuration_is_found_good_and_nobody_is_pushed() {
    limited(async {
        let world = World::new().await;
        let fcm = FcmStandIn::start(listener().await, &world.pki).unwrap();
        let receiver = WebhookReceiver::start(listener().await, Some(&world.pki)).unwrap();
        let account = world.secret("firebase.json", &fcm.service_account().unwrap());
        world.secret("hook.secret", SECRET);
        let hook = format!(
            "[[webhook]]\nname = \"tickets\"\nurl = \"{}\"\nsecret_file = \"hook.secret\"\nca = \"ca.pem\"\n",
            receiver.url("/mail")
        );
        world.add_tables(&[project(&fcm, "firebase.json", ""), hook, web_push()].concat());
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
        let takes = format!("ok       [[fcm]] demo-project: {}: FCM takes messages", account.display());
        assert_eq!(said.of("[[fcm]]"), [takes]);
        let goes = "ok       [[webhook]] tickets: events go to localhost; nothing was sent there now";
        assert_eq!(said.of("[[webhook]]"), [goes]);
        let key = world.file("vapid.key");
        let made = format!("ok       [webpush]: {}: is made at the first start", key.display());
        assert_eq!(said.of("[webpush]"), [made]);
        assert!(!key.exists(), "checking makes no key");

        let messages = fcm.messages();
        assert_eq!(messages.len(), 1);
        assert!(messages[0].validate_only && messages[0].status == Some(200), "{messages:?}");
        assert_eq!(receiver.connections(), 0);

        let (made, _) = VapidKey::open(&key, CONTACT).unwrap();
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
        let (key, fingerprint) = (key.display(), made.fingerprint());
        let used = format!("ok       [webpush]: {key}: can be used, its key is {fingerprint}");
        assert_eq!(said.of("[webpush]"), [used]);
    })
    .await;
}

/// Each beside a project that is well, which says so every time.
#[tokio::test]
async fn each_fault_of_a_firebase_project_is_named_with_what_to_do() {
    const MAKE_ONE: &str = "is the clock of this machine right, and does the account still have this key? make a \
                            new one in the Firebase console (Project settings, Service accounts)";
    const API: &str = "see whether the project has the Firebase Cloud Messaging API (V1), and the account the role \
                       for it";
    const REACH: &str = "see whether this machine reaches Google and its clock is right; `proxy` serves where only a \
                         proxy leads there";
    limited(async {
        let world = World::new().await;
        let ill = FcmStandIn::of_project(listener().await, &world.pki, "brand").unwrap();
        let well = FcmStandIn::start(listener().await, &world.pki).unwrap();
        let good = world.secret("good.json", &well.service_account().unwrap());
        let account = ill.service_account().unwrap();
        let file = world.secret("ill.json", &account);
        let apps = "\"org.example.brand\"";
        let both = [project(&ill, "ill.json", apps), project(&well, "good.json", "")];
        world.add_tables(&both.concat());
        let takes = format!("ok       [[fcm]] demo-project: {}: FCM takes messages", good.display());
        let shown = file.display();
        let is = async |line: String, code: i32| {
            let said = world.command(&["check"]).await;
            assert_eq!(said.of("[[fcm]]"), [&line, &takes], "{}", said.stderr);
            assert_eq!(said.code, code, "{line}");
        };

        fs::write(&file, b"\xff").unwrap();
        let why = "cannot be read: is not text in UTF-8";
        is(format!("FAILED   [[fcm]]: service_account_file: {shown}: {why}"), 64).await;
        assert_eq!(world.serve_ends().await, 64);
        world.secret("ill.json", "{}");
        let why = "is no service account (line 1, column 2); make a new key";
        is(format!("FAILED   [[fcm]]: service_account_file: {shown}: {why}"), 64).await;

        // The key of another project.
        let other: serde_json::Value = serde_json::from_str(&well.service_account().unwrap()).unwrap();
        let mut wrong: serde_json::Value = serde_json::from_str(&account).unwrap();
        wrong["private_key"] = other["private_key"].clone();
        world.secret("ill.json", &wrong.to_string());
        let part = format!("FAILED   [[fcm]] brand: {shown}");
        let why = "no access token: 400 invalid_grant Invalid JWT Signature.";
        is(format!("{part}: {why}; {MAKE_ONE}"), 1).await;
        assert!(ill.messages().is_empty());

        world.secret("ill.json", &account);
        ill.answer_next(1, FcmAnswer::error(403, "PERMISSION_DENIED", None, "API off"));
        is(format!("{part}: FCM answered 403 PERMISSION_DENIED; {API}"), 1).await;
        ill.answer_next(1, FcmAnswer::refuse(503, "UNAVAILABLE", "UNAVAILABLE"));
        is(format!("{part}: FCM answered 503 UNAVAILABLE; {REACH}"), 1).await;
        assert!(ill.messages().iter().all(|message| message.validate_only));
        is(format!("ok       [[fcm]] brand: {shown}: FCM takes messages"), 0).await;
        ill.refuse().await;
        let said = world.command(&["check"]).await;
        let lines = said.of("[[fcm]]");
        assert!(lines[0].starts_with(&part) && lines[0].ends_with(REACH), "{lines:?}");
        assert_eq!((said.code, lines.len(), lines[1]), (1, 2, &*takes));
        ill.resume().await.unwrap();

        mode(&file, 0o644);
        let said = world.command(&["check"]).await;
        let lines = said.of("[[fcm]]");
        let exposed = format!("FAILED   [[fcm]] service_account_file: {shown}: ");
        assert!(lines[0].starts_with(&exposed) && lines[0].contains("chmod o= "), "{lines:?}");
        assert_eq!((said.code, lines.len(), lines[2]), (1, 3, &*takes));

        // Nothing is wrong with either, but `serve` starts with neither.
        world.secret("ill.json", &well.service_account().unwrap());
        let said = world.command(&["check"]).await;
        let both = "FAILED   configuration: [[fcm]]: two tables are for the project demo-project; remove one";
        assert_eq!(said.of("configuration: [[fcm]]"), [both]);
        assert_eq!((said.code, world.serve_ends().await), (64, 64));
    })
    .await;
}

/// Each beside a web hook that is well, which says so every time.
#[tokio::test]
async fn each_fault_of_a_web_hook_is_named_with_what_to_do() {
    limited(async {
        let world = World::new().await;
        let receiver = WebhookReceiver::start(listener().await, None).unwrap();
        world.secret("good.secret", SECRET);
        let (secret, token) = (world.file("ill.secret"), world.file("ill.token"));
        let url = receiver.url("/mail");
        world.add_tables(&format!(
            "[[webhook]]\nname = \"ill\"\nurl = \"{url}\"\nsecret_file = \"ill.secret\"\n\
             token_file = \"ill.token\"\n\
             [[webhook]]\nname = \"well\"\nurl = \"{url}\"\nsecret_file = \"good.secret\"\n"
        ));
        let goes = |name| {
            format!("ok       [[webhook]] {name}: events go to 127.0.0.1; nothing was sent there now")
        };
        let is = async |key: &str, problem: String| {
            let said = world.command(&["check"]).await;
            let line = format!("FAILED   [[webhook]] ill: {key}: {problem}");
            assert_eq!(said.of("[[webhook]]"), [line, goes("well")], "{}", said.stderr);
            assert_eq!(said.code, 64, "{problem}");
        };
        let no_text = "cannot be read: is not text in UTF-8";
        world.secret("ill.token", "tk_abc\n");
        world.secret("ill.secret", "");
        fs::write(&secret, b"\xff").unwrap();
        is("secret_file", format!("{}: {no_text}", secret.display())).await;
        assert_eq!(world.serve_ends().await, 64);
        // Too short for a secret, and still none that anybody is to see.
        world.secret("ill.secret", "whsec_aHVzaGh1c2g=\n");
        let no_secret = "holds no secret, or something else; write one a line, \"whsec_\" and the base64 of 24 to 64 \
                         bytes, the newest first, at most 4";
        is("secret_file", format!("{}: {no_secret}", secret.display())).await;
        world.secret("ill.secret", SECRET);
        fs::write(&token, b"\xff").unwrap();
        is("token_file", format!("{}: {no_text}", token.display())).await;
        world.secret("ill.token", "\n");
        let no_token = "has no token in its first line; write it there";
        is("token_file", format!("{}: {no_token}", token.display())).await;

        world.secret("ill.token", "tk_abc\n");
        let said = world.command(&["check"]).await;
        assert_eq!(said.of("[[webhook]]"), [goes("ill"), goes("well")]);
        assert_eq!(said.code, 0, "{}", said.stderr);
        mode(&token, 0o644);
        let said = world.command(&["check"]).await;
        let lines = said.of("[[webhook]]");
        let exposed = format!("FAILED   [[webhook]] token_file: {}: ", token.display());
        assert!(lines[0].starts_with(&exposed) && lines[0].contains("chmod o= "), "{lines:?}");
        assert_eq!((said.code, &lines[1..]), (1, &[&*goes("ill"), &*goes("well")][..]));
        assert_eq!(receiver.connections(), 0);
    })
    .await;
}

/// Stores subscriptions of so many browsers with the key that is in the file, which is made. Returns its fingerprint.
async fn subscribe(world: &World, store: &Store, service: &PushService, browsers: usize) -> String {
    let (key, _) = VapidKey::open(&world.file("vapid.key"), CONTACT).unwrap();
    let fingerprint = key.fingerprint().to_string();
    let host = format!("localhost:{}", service.address().port()).parse().unwrap();
    let web_push = WebPush::new(Arc::new(key), Arc::new(Guard::new(&[host], &[])));
    let (backend, now) = (BackendId::new(None, "imap", 993), Timestamp::now());
    for _ in 0..browsers {
        let browser = service.subscribe(web_push.public_key());
        let enrolled = web_push.enrol(&Account::from_login(LOGIN), &browser.to_json()).unwrap();
        let registration =
            Registration { subscription: enrolled.subscription, mailboxes: Vec::new() };
        let login = Registrant::new(&backend, now, None);
        store.register(&registration, login, 10, now).await.unwrap();
    }
    fingerprint
}

#[tokio::test]
async fn a_lost_vapid_key_is_said_of_each_key_with_which_browsers_have_subscribed() {
    limited(async {
        let world = World::new().await;
        world.add_tables(&web_push());
        let service = PushService::start(listener().await, &world.pki).unwrap();
        let url = format!("sqlite://{}", world.file("mailchime.db").display());
        let store = Store::open(&url.parse().unwrap(), SOON).await.unwrap();
        let store = store.sealing(&world.file("mailchime.key"));
        let (key, aside) = (world.file("vapid.key"), world.file("aside.key"));
        let first = subscribe(&world, &store, &service, 1).await;
        fs::remove_file(&key).unwrap();
        let second = subscribe(&world, &store, &service, 2).await;
        store.close().await;

        let shown = key.display().to_string();
        let used = |key: &str| format!("ok       [webpush]: {shown}: can be used, its key is {key}");
        let lost = |is: &str, key: &str, browsers: &str| {
            let no_other = match is {
                "is not the key" => "",
                _ => "; mailchime makes no other, and pushes nothing to browsers",
            };
            format!(
                "FAILED   [webpush]: {shown}: {is} with which {browsers} subscribed ({key}); put back the key file \
                 of that time, or they get nothing until their users subscribe again{no_other}"
            )
        };
        let (one, two) = ("1 browser has", "2 browsers have");
        let is = async |mut expected: Vec<String>, told: &str| {
            let said = world.command(&["check"]).await;
            let mut lines = said.of("[webpush]");
            lines.sort_unstable();
            expected.sort_unstable();
            assert_eq!(lines, expected, "{}", said.stderr);
            assert_eq!(said.code, 1, "{}", said.stdout);
            assert!(said.stderr.contains(told), "{}", said.stderr);
        };
        let other = "is not the key";
        is(vec![lost(other, &first, one), used(&second)], "one check failed").await;

        fs::rename(&key, &aside).unwrap();
        let gone = "is not there, and was the key";
        is(vec![lost(gone, &first, one), lost(gone, &second, two)], "2 checks failed").await;
        assert!(!key.exists(), "checking makes no key");

        // What a start without the key makes.
        let (third, _) = VapidKey::open(&key, CONTACT).unwrap();
        let lines =
            vec![lost(other, &first, one), lost(other, &second, two), used(third.fingerprint())];
        is(lines, "2 checks failed").await;

        fs::rename(&aside, &key).unwrap();
        is(vec![lost(other, &first, one), used(&second)], "one check failed").await;
    })
    .await;
}

/// Nothing else is looked at then.
#[tokio::test]
async fn a_file_that_is_not_there_is_named_with_its_key() {
    limited(async {
        let world = World::new().await;
        let config = fs::read_to_string(world.file("proxy.toml")).unwrap();
        let hook = "[[webhook]]\nurl = \"https://hooks.example.org/\"\nsecret_file = \"none\"\n";
        for (key, table) in [
            ("[[fcm]] service_account_file", "[[fcm]]\nservice_account_file = \"none\"\n"),
            ("[[webhook]] secret_file", hook),
        ] {
            fs::write(world.file("proxy.toml"), format!("{config}{table}")).unwrap();
            let said = world.command(&["check"]).await;
            assert_eq!((said.code, said.stdout.as_str()), (64, ""));
            let none = world.file("none").display().to_string();
            let missing = format!("{key}: {none} does not exist; correct the path");
            assert!(said.stderr.contains(&missing), "{}", said.stderr);
            assert_eq!(world.serve_ends().await, 64);
        }
    })
    .await;
}

#[tokio::test]
async fn a_vapid_key_that_cannot_be_used_is_refused_as_serve_refuses_it() {
    limited(async {
        let world = World::new().await;
        world.add_tables(&web_push());
        let key = world.file("vapid.key");
        let shown = key.display().to_string();
        let is = async |problem: &str| {
            let said = world.command(&["check"]).await;
            let line = format!("FAILED   [webpush]: VAPID key {shown}: {problem}");
            assert_eq!(said.of("[webpush]"), [line], "{}", said.stderr);
            assert_eq!((said.code, world.serve_ends().await), (64, 64), "{problem}");
        };
        fs::create_dir(&key).unwrap();
        is("is not a file; it must be a file that the user who runs mailchime can read, in a folder that exists (and \
            that mailchime can write when it is to make the file)")
        .await;
        fs::remove_dir(&key).unwrap();
        world.secret("vapid.key", &fs::read_to_string(world.file("ca.pem")).unwrap());
        is("does not hold a private key of the curve P-256 in PEM form; restore it from a copy; or, if no browser has \
            subscribed, remove it and mailchime makes a new one")
        .await;
        fs::remove_file(&key).unwrap();
        drop(VapidKey::open(&key, CONTACT).unwrap());
        mode(&key, 0o640);
        let chmod = format!("run: chmod 600 {shown}");
        is(&format!("others than its owner can use it (mode 640); {chmod}")).await;
        mode(&key, 0o600);
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
    })
    .await;
}
