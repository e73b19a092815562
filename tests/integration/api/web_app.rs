//! The web app: its files and their headers, and the app itself in real browsers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use mailchime::config::{PreviewContent, WebPushConfig};
use mailchime::demo::fcm::FcmStandIn;
use mailchime::demo::firefox_profile;
use mailchime::demo::pki::Pki;
use mailchime::demo::push_service::PushService;
use mailchime::demo::webhook::WebhookReceiver;
use mailchime::model::Account;
use serde_json::{Value, json};

use super::{ALICE, ApiWorld, webhooks};
use crate::support::browser::BrowserScript;
use crate::support::pushing::fcm_project;
use crate::support::servers::pki;
use crate::support::world::MAIL;
use crate::support::{limited, listener, soon, until};

/// What the app is made of, and the type of each.
const FILES: [(&str, &str); 16] = [
    ("/", "text/html; charset=utf-8"),
    ("/app.js", "text/javascript; charset=utf-8"),
    ("/shared.js", "text/javascript; charset=utf-8"),
    ("/sw.js", "text/javascript; charset=utf-8"),
    ("/style.css", "text/css; charset=utf-8"),
    ("/offline.html", "text/html; charset=utf-8"),
    ("/manifest.webmanifest", "application/manifest+json"),
    ("/settings.json", "application/json"),
    ("/texts/en.json", "application/json"),
    ("/texts/de.json", "application/json"),
    ("/icon.svg", "image/svg+xml"),
    ("/icon-192.png", "image/png"),
    ("/icon-512.png", "image/png"),
    ("/maskable-512.png", "image/png"),
    ("/apple-touch-icon.png", "image/png"),
    ("/badge.png", "image/png"),
];

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/web/assets");

#[tokio::test(flavor = "multi_thread")]
async fn each_file_comes_with_its_type_its_tag_and_a_strict_policy() {
    limited(async {
        let api = ApiWorld::start().await;
        let mut tags = BTreeSet::new();
        for (path, content_type) in FILES {
            let reply = api.ask(&format!("HEAD {path}")).await;
            assert_eq!(reply.status, 200, "{path}");
            for (name, value) in [
                ("content-type", content_type),
                ("cache-control", "no-cache"),
                ("x-content-type-options", "nosniff"),
                ("referrer-policy", "no-referrer"),
                ("cross-origin-opener-policy", "same-origin"),
                ("cross-origin-resource-policy", "same-origin"),
            ] {
                assert_eq!(reply.fields(name), [value], "{path}");
            }
            assert!(reply.field("set-cookie").is_none(), "{path}");
            assert_policy(reply.field("content-security-policy").unwrap());

            let tag = reply.field("etag").unwrap();
            assert!(tag.starts_with('"') && tag.len() == 34, "{path}: {tag}");
            assert!(tags.insert(tag.to_owned()), "{path}");
            let known = api.ask(&format!("GET {path}\nIf-None-Match: \"x\", W/{tag}")).await;
            assert_eq!(
                (known.status, known.body.as_str(), known.field("etag")),
                (304, "", Some(tag))
            );
            let old = api.ask(&format!("HEAD {path}\nIf-None-Match: \"x\"")).await;
            assert_eq!(old.status, 200, "{path}");
        }
        // A form that is sent without its script puts no password into a URL, and is not answered.
        assert_eq!(api.ask("POST /").await.status, 405);
    })
    .await;
}

/// Nothing is allowed but what is this server's own.
fn assert_policy(policy: &str) {
    let mut directives = policy.split("; ");
    assert_eq!(directives.next(), Some("default-src 'none'"));
    for directive in directives {
        let (name, values) = directive.split_once(' ').unwrap();
        let allowed = match name {
            "frame-ancestors" | "base-uri" => "'none'",
            "require-trusted-types-for" => "'script'",
            "trusted-types" => "mailchime",
            _ => "'self'",
        };
        assert_eq!(values, allowed, "{name}");
    }
    for needed in
        ["frame-ancestors", "base-uri", "form-action", "require-trusted-types-for", "trusted-types"]
    {
        assert!(policy.contains(needed), "{needed}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_link_to_the_mail_is_the_operators() {
    limited(async {
        let api = ApiWorld::start().await;
        assert_eq!(api.ask("GET /settings.json").await.json()["mail_url"], Value::Null);
        let url = "https://webmail.example.org/";
        let api = ApiWorld::with(|config| config.api.mail_url = Some(url.to_owned())).await;
        assert_eq!(api.ask("GET /settings.json").await.json()["mail_url"], url);
    })
    .await;
}

/// The texts of a language, by their keys.
fn texts(language: &str) -> BTreeMap<String, String> {
    serde_json::from_str(&asset(&format!("texts/{language}.json"))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_comes_with_its_texts_in_the_language_of_the_browser() {
    limited(async {
        let api = ApiWorld::start().await;
        for path in ["/", "/offline.html"] {
            let mut tags = Vec::new();
            for (wanted, language) in
                [("fr", "en"), ("fr, de-AT;q=0.8, en;q=0.5", "de"), ("en-GB,en;q=0.9", "en")]
            {
                let page = api.ask(&format!("GET {path}\nAccept-Language: {wanted}")).await;
                assert_eq!(page.fields("vary"), ["accept-language"], "{path}");
                assert!(page.body.contains(&format!("<html lang=\"{language}\">")), "{wanted}");
                let texts = texts(language);
                let elements: Vec<_> = page.body.split(" data-text=\"").skip(1).collect();
                assert!(elements.len() > 1, "{path}");
                for element in elements {
                    let (key, rest) = element.split_once('"').unwrap();
                    let (_, text) = rest.split_once('>').unwrap();
                    assert_eq!(text.split('<').next(), texts.get(key).map(String::as_str), "{key}");
                }
                tags.push(page.field("etag").unwrap().to_owned());
            }
            assert!(tags[0] == tags[2] && tags[0] != tags[1], "{tags:?}");
            // A copy in one language is none of the other.
            let request = format!("GET {path}\nIf-None-Match: {}\nAccept-Language:", tags[1]);
            assert_eq!(api.ask(&format!("{request} de")).await.status, 304);
            assert_eq!(api.ask(&format!("{request} en")).await.status, 200);
        }
    })
    .await;
}

/// It is the same in all languages.
const NAME: &str = "mailchime";

/// Attributes that a browser shows or reads out.
const SPOKEN: [&str; 6] = ["alt", "title", "placeholder", "aria-label", "value", "label"];

#[test]
fn no_text_for_people_stands_outside_the_files_of_the_languages() {
    for page in ["index.html", "offline.html"] {
        let text = asset(page);
        assert!(text.contains(" data-text=\""), "{page}");
        for (tag, text) in text.split('<').skip(1).map(|part| part.split_once('>').unwrap()) {
            assert!(matches!(text.trim(), "" | NAME), "{page}: {text:?}");
            let spoken = SPOKEN.iter().filter_map(|it| tag.split_once(&format!(" {it}=\"")));
            for (_, value) in spoken {
                assert!(value.starts_with('"'), "{page}: <{tag}>");
            }
        }
    }
    let manifest: BTreeMap<String, Value> =
        serde_json::from_str(&asset("manifest.webmanifest")).unwrap();
    for (key, value) in &manifest {
        let is_text = matches!(&**key, "name" | "short_name" | "description" | "shortcuts");
        assert!(!is_text || value == NAME, "{key}: {value}");
    }
    for script in ["app.js", "shared.js", "sw.js"] {
        let text = asset(script);
        let literals = literals(&text);
        assert!(literals.iter().any(|it| it == "use strict"), "{script}: {literals:?}");
        for literal in literals {
            assert!(!is_prose(&literal), "{script}: {literal:?}");
        }
        // A single word may be a name. What the script shows is a text.
        for shows in ["textContent = ", "say(", "text: ", "title: ", "body: ", "'aria-label': "] {
            for (_, shown) in
                text.match_indices(shows).map(|(at, _)| text[at..].split_at(shows.len()))
            {
                let is_literal = shown.starts_with(['\'', '"', '`']) && !shown.starts_with("''");
                assert!(!is_literal, "{script}: {shows}{}", shown.lines().next().unwrap());
            }
        }
    }
}

/// What stands between quotes in a script, `${…}` left out. No comment behind code has a quote.
fn literals(script: &str) -> Vec<String> {
    let is_comment = |line: &&str| ["//", "/*", "*"].iter().any(|it| line.starts_with(it));
    let lines: Vec<_> = script.lines().map(str::trim).filter(|line| !is_comment(line)).collect();
    let (text, mut found) = (lines.join("\n"), Vec::new());
    let mut rest = &*text;
    while let Some(start) = rest.find(['\'', '"', '`']) {
        let (quote, inner) = rest[start..].split_at(1);
        let end = inner.find(quote).unwrap_or_else(|| panic!("no end: {}", &inner[..40]));
        let mut parts = inner[..end].split("${");
        let mut literal = parts.next().unwrap().to_owned();
        literal.extend(parts.map(|part| part.split_once('}').unwrap_or((part, "")).1));
        found.push(literal);
        rest = &inner[end + 1..];
    }
    found
}

/// Whether it has two words side by side, or begins with a capital as a sentence does.
fn is_prose(literal: &str) -> bool {
    let is_word = |word: &str| word.chars().all(|c| c.is_alphabetic() || ".,:;!?…’“”".contains(c));
    let words: Vec<_> = literal.split(' ').collect();
    let pair = words
        .windows(2)
        .any(|pair| pair.iter().all(|word| word.starts_with(char::is_alphabetic) && is_word(word)));
    let mut letters = literal.chars();
    let capital = letters.next().is_some_and(char::is_uppercase)
        && literal.chars().skip(1).all(|c| c.is_lowercase() || ".,!?…".contains(c))
        && literal.len() > 1;
    // Names of the language and of browsers' interfaces.
    (pair || capital) && !["use strict", "Notification"].contains(&literal)
}

#[test]
fn both_languages_have_the_same_texts_and_each_is_used() {
    let (english, german) = (texts("en"), texts("de"));
    assert_eq!(english.keys().collect::<Vec<_>>(), german.keys().collect::<Vec<_>>());
    let code = ["index.html", "offline.html", "app.js", "sw.js"].map(asset).join("\n");
    let made = ["error_", "kind_", "new_mail_more_", "newest_more_", "unread_"];
    for (key, text) in &english {
        let placeholders = |text: &str| -> BTreeSet<String> {
            let parts = text.split('{').skip(1);
            parts.map(|part| part.split('}').next().unwrap().to_owned()).collect()
        };
        assert_eq!(placeholders(text), placeholders(&german[key]), "{key}");
        let used = code.contains(&format!("texts.{key}"))
            || code.contains(&format!("data-text=\"{key}\""));
        assert!(used || made.iter().any(|it| key.starts_with(it)), "{key} is not used");
    }
}

#[test]
fn no_file_names_another_host_or_makes_markup_of_text() {
    for file in [
        "index.html",
        "offline.html",
        "app.js",
        "shared.js",
        "sw.js",
        "style.css",
        "manifest.webmanifest",
    ] {
        let text = asset(file);
        let text = text.replace("/^https:\\/\\/([^/]+)/", "").replace("base64url(", "");
        for bad in [
            "http://",
            "https://",
            "//cdn",
            "url(",
            "@import",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "style=",
            "onclick=",
        ] {
            assert!(!text.contains(bad), "{file}: {bad}");
        }
    }
    let icon = asset("icon.svg").replace("http://www.w3.org/2000/svg", "");
    assert!(!icon.contains("http") && !icon.contains("<script"), "{icon}");
    // A folder with a file that is not served would be a mistake.
    let here = |folder: &str| -> Vec<_> {
        let files = fs::read_dir(Path::new(ASSETS).join(folder)).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    };
    for name in here("").iter().chain(&here("texts")).filter(|name| *name != "texts") {
        let served = |(path, _): &(&str, &str)| {
            path.ends_with(&format!("/{name}")) || (*path == "/" && name == "index.html")
        };
        assert!(FILES.iter().any(served), "{name}");
    }
}

fn asset(file: &str) -> String {
    fs::read_to_string(Path::new(ASSETS).join(file)).unwrap()
}

// === Real browsers ===

/// A folder with the certificates of [`pki`].
fn certificates() -> tempfile::TempDir {
    let (folder, pki): (_, &Pki) = (tempfile::tempdir().unwrap(), pki());
    pki.write_to(folder.path()).unwrap();
    folder
}

/// Where the app is.
fn page(api: &ApiWorld) -> String {
    format!("https://localhost:{}", api.world.mailchime.api.unwrap().port())
}

fn web_push(folder: &Path, hosts: &[String]) -> WebPushConfig {
    let mut config = WebPushConfig::new(folder.join("vapid.key"), "mailto:admin@example.org");
    config.hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
    config.allow_private = vec!["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
    config.ca = Some(folder.join("ca.pem"));
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_each_width_and_is_usable_by_all() {
    limited(async {
        let folder = certificates();
        let test = "the_page_fits_each_width_and_is_usable_by_all";
        let script = BrowserScript::start(test, "layout.mjs", "chromium", folder.path());
        let Some(mut script) = script else { return };
        let api = ApiWorld::with(|config| {
            config.web_push = Some(web_push(folder.path(), &[]));
        })
        .await;
        for name in
            ["Archive/2026", "Entw&APw-rfe", "Lists", "x&IC4-gpj.exe <b>", &"long".repeat(40)]
        {
            api.backend.create_mailbox(ALICE, name).unwrap();
        }
        let _phone = api.world.register((ALICE, "secret"), &["INBOX", "Lists"]).await;
        script.tell(&page(&api));
        assert_eq!(script.next().await, None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tap_on_a_notification_opens_the_link_and_a_new_endpoint_is_subscribed() {
    limited(async {
        let folder = certificates();
        let test = "a_tap_on_a_notification_opens_the_link_and_a_new_endpoint_is_subscribed";
        let script = BrowserScript::start(test, "worker.mjs", "chromium", folder.path());
        let Some(mut script) = script else { return };
        let service = PushService::start(listener().await, pki()).unwrap();
        let host = format!("localhost:{}", service.address().port());
        let link = "https://webmail.example.org/";
        let api = ApiWorld::with(|config| {
            config.web_push = Some(web_push(folder.path(), &[host]));
            config.api.mail_url = Some(link.to_owned());
        })
        .await;
        api.backend.create_mailbox(ALICE, "Lists").unwrap();
        let key = api.ask("GET /v1/vapid").await.json()["applicationServerKey"].clone();
        let given = service.subscribe(key.as_str().unwrap()).to_json().to_string();
        let without_link = ApiWorld::start().await;
        for line in [&page(&api), link, &given, &page(&without_link)] {
            script.tell(line);
        }
        assert_eq!(script.next().await, None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_shows_the_last_push_of_each_kind() {
    limited(async {
        let folder = certificates();
        let test = "the_list_shows_the_last_push_of_each_kind";
        let script = BrowserScript::start(test, "list.mjs", "chromium", folder.path());
        let Some(mut script) = script else { return };
        let service = PushService::start(listener().await, pki()).unwrap();
        let fcm = FcmStandIn::start(listener().await, pki()).unwrap();
        let hooks = WebhookReceiver::start(listener().await, Some(pki())).unwrap();
        let host = format!("localhost:{}", service.address().port());
        let api = ApiWorld::with(|config| {
            config.web_push = Some(web_push(folder.path(), &[host]));
            config.fcm = vec![fcm_project(&fcm, folder.path())];
        })
        .await;
        for number in 1..=12 {
            api.backend.create_mailbox(ALICE, &format!("List {number}")).unwrap();
        }
        webhooks::allow(&api, &hooks);

        api.world.register((ALICE, "secret"), &["INBOX"]).await;
        let key = api.ask("GET /v1/vapid").await.json()["applicationServerKey"].clone();
        let browser = service.subscribe(key.as_str().unwrap());
        let id = api.subscribe_by("webpush", browser.to_json()).await;
        api.confirm(&id, service.next().await.json()["data"]["code"].clone()).await;
        let app = json!({ "app": "org.example.mail", "token": "a-token" });
        let id = api.subscribe_by("fcm", app).await;
        api.confirm(&id, json!(fcm.next().await.data()["code"])).await;
        let id = api.subscribe_by("webhook", json!({ "url": hooks.url("/") })).await;
        let event = soon("a code", hooks.next()).await;
        api.confirm(&id, event.json()["data"]["code"].clone()).await;

        script.tell(&page(&api));
        assert_eq!(script.next().await.as_deref(), Some("push"));
        api.backend.wait_until(|counters| counters.idling == 1).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let (store, alice) = (&api.world.mailchime.store, Account::from_login(ALICE));
        until(async || {
            let listed = store.subscriptions_of(&alice).await.unwrap();
            listed.len() == 4 && listed.iter().all(|it| it.pushed_at.is_some())
        })
        .await;
        script.tell("all have been pushed");
        assert_eq!(script.next().await, None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn firefox_is_notified_of_new_mail() {
    let test = "firefox_is_notified_of_new_mail";
    firefox(test, "push.mjs", PreviewContent::None, MAIL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn firefox_shows_who_wrote_about_what() {
    let test = "firefox_shows_who_wrote_about_what";
    let mail = "From: =?utf-8?q?J=C3=BCrgen_M=C3=BCller?= <j@b.example>\r\n\
                Subject: =?iso-8859-1?q?Gr=FC=DFe?=\r\n\r\nHi\r\n";
    firefox(test, "push.mjs preview", PreviewContent::Subject, mail).await;
}

/// A script with Firefox, which has this mail delivered.
async fn firefox(test: &str, script: &str, preview: PreviewContent, mail: &'static str) {
    limited(async {
        let folder = certificates();
        let script = BrowserScript::start(test, script, "firefox-esr", folder.path());
        let Some(mut script) = script else { return };
        let service = PushService::start(listener().await, pki()).unwrap();
        let door = service.serve_firefox(listener().await).unwrap();
        let host = format!("localhost:{}", service.address().port());
        let api = ApiWorld::with(|config| {
            config.web_push = Some(web_push(folder.path(), &[host]));
            config.push.preview = preview;
            // Lists is looked at meanwhile: Firefox takes a notification away after a while.
            config.watch.poll_interval = Duration::from_millis(300);
        })
        .await;
        api.backend.create_mailbox(ALICE, "Lists").unwrap();
        let app = api.world.mailchime.api.unwrap().port();
        let profile = folder.path().join("firefox");
        firefox_profile::write(&profile, &door.url(), &pki().server, app).unwrap();
        script.tell(&profile.display().to_string());
        for line in [&page(&api), ALICE, "secret"] {
            script.tell(line);
        }
        let mut delivered = None;
        while let Some(wanted) = script.next().await {
            match wanted.as_str() {
                "deliver" => {
                    api.backend.wait_until(|counters| counters.idling == 1).await;
                    delivered = Some(api.backend.deliver(ALICE, "INBOX", mail).unwrap());
                }
                "deliver to both" => {
                    for mailbox in ["INBOX", "Lists"] {
                        api.backend.deliver(ALICE, mailbox, mail).unwrap();
                    }
                }
                "read" => {
                    let uid = delivered.expect("a mail that was delivered");
                    api.backend.set_flags(ALICE, "INBOX", uid, &["\\Seen"]).unwrap();
                    script.tell("it has been read");
                }
                "end" => {
                    until(async || service.subscriptions() == 0).await;
                    script.tell("it has ended");
                }
                other => panic!("the script wants {other:?}"),
            }
        }
    })
    .await;
}
