//! Several identities, the forms in which they come, their end and their renewal.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use mailchime::app;
use mailchime::config::{self, ProviderFiles};
use mailchime::demo::pki;
use mailchime::model::{Account, Timestamp, TransportId};
use mailchime::push::transport::apns::ApnsIdentity;
use mailchime::push::transport::apns::certificate_watch;
use mailchime::push::transport::apns::identities::{Identities, Offer};
use mailchime::push::transport::{Route, RouteId};
use p12_keystore::{
    Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, LocalKeyId, MacAlgorithm,
    PrivateKey, PrivateKeyChain,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use super::client::{is_accepted, push};
use crate::support::pushing::{Certificates, load, reload, route_of, try_load};
use crate::support::{limited, skip};

const DAY: i64 = 24 * 3600;

impl Certificates {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a client certificate and its key as `<name>.pem` and `<name>.key`.
    fn write(&self, name: &str, identity: &pki::Identity) -> ProviderFiles {
        let (certificate, private_key) =
            (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        std::fs::write(&certificate, &identity.certificate).unwrap();
        std::fs::write(&private_key, identity.expose_private_key()).unwrap();
        ProviderFiles::Pem { certificate, private_key, topic: None }
    }

    /// A new identity for a topic, with the validity in seconds from now.
    fn issue(&self, topic: &str, from: i64, to: i64) -> ProviderFiles {
        let identity = self.pki.client(&[topic], from..to).unwrap();
        self.write(topic, &identity)
    }
}

/// The route of this topic.
fn route(identities: &Identities, topic: &str) -> Option<Route> {
    identities.routes().find(&RouteId { transport: TransportId::new("apns"), name: topic.into() })
}

/// The client's certificate and key in one file, as the `legacy` Keychain or the others write it.
fn pkcs12(
    identity: &pki::Identity,
    legacy: Option<EncryptionAlgorithm>,
    password: &str,
) -> Vec<u8> {
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.expose_private_key().as_bytes()).unwrap();
    let chain = PrivateKeyChain::new(
        LocalKeyId::from("1"),
        PrivateKey::from_der(key.secret_der()).unwrap(),
        [Certificate::from_der(&certificate).unwrap()],
    );
    let mut store = KeyStore::new();
    store.add_entry("push", KeyStoreEntry::PrivateKeyChain(chain));
    let writer = store.writer(password);
    match legacy {
        Some(cipher) => writer
            .encryption_algorithm(cipher)
            .encryption_iterations(2048)
            .mac_algorithm(MacAlgorithm::HmacSha1)
            .mac_iterations(1),
        None => writer,
    }
    .write()
    .unwrap()
}

#[tokio::test]
async fn a_pkcs12_file_is_as_good_as_two_pem_files_with_old_ciphers_too() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let (file, password_file) = (certificates.file("apns.p12"), certificates.file("password"));
        std::fs::write(&password_file, "open sesame\nnot this\n").unwrap();
        for legacy in [
            None,
            Some(EncryptionAlgorithm::PbeWithShaAnd40BitRc4Cbc),
            Some(EncryptionAlgorithm::PbeWithShaAnd3KeyTripleDesCbc),
        ] {
            std::fs::write(&file, pkcs12(&certificates.pki.client, legacy, "open sesame")).unwrap();
            let (file, password_file) = (file.clone(), Some(password_file.clone()));
            let identity = ProviderFiles::Pkcs12 { file, password_file, topic: None };
            let identity = ApnsIdentity::load(&identity).unwrap();
            assert_eq!(identity.topic(), certificates.pki.topic);
            let config = certificates.config(stand_in.address());
            let apns = route_of(&identity, &config);
            assert!(is_accepted(&push(&apns, &certificates.device("ab")).await), "{legacy:?}");
        }

        // Without a password.
        std::fs::write(&file, pkcs12(&certificates.pki.client, None, "")).unwrap();
        let load = |password_file| {
            let file = file.clone();
            ApnsIdentity::load(&ProviderFiles::Pkcs12 { file, password_file, topic: None })
        };
        load(None).unwrap();

        let message = |password_file| load(password_file).unwrap_err().to_string();
        assert!(message(Some(password_file.clone())).contains("apns.p12: cannot be opened with"));
        std::fs::write(&file, "no PKCS#12").unwrap();
        assert!(message(None).contains("apns.p12: is no PKCS#12 file that can be read"));
        std::fs::write(&password_file, "\n").unwrap();
        assert!(message(Some(password_file)).contains("password: is empty"));
    })
    .await;
}

/// The same ciphers from another hand: RC2-40 for the certificate, 3DES for the key, SHA-1.
#[test]
fn a_pkcs12_file_of_openssl_is_read() {
    const TEST: &str = "a_pkcs12_file_of_openssl_is_read";
    let certificates = Certificates::new();
    let write = |options: &[&str]| {
        Command::new("openssl")
            .args(["pkcs12", "-export", "-passout", "pass:open sesame", "-name", "push"])
            .arg("-in")
            .arg(certificates.file("apns.pem"))
            .arg("-inkey")
            .arg(certificates.file("apns.key"))
            .arg("-certfile")
            .arg(certificates.file("ca.pem"))
            .arg("-out")
            .arg(certificates.file("apns.p12"))
            .args(options)
            .output()
    };
    let password_file = certificates.file("password");
    std::fs::write(&password_file, "open sesame").unwrap();
    for options in [&[][..], &["-legacy"]] {
        match write(options) {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr);
                skip::report(TEST, &format!("openssl cannot write {options:?}: {why}"));
                continue;
            }
            Err(error) => return skip::report(TEST, &format!("there is no openssl: {error}")),
        }
        let (file, password_file) = (certificates.file("apns.p12"), Some(password_file.clone()));
        let identity = ProviderFiles::Pkcs12 { file, password_file, topic: None };
        assert_eq!(ApnsIdentity::load(&identity).unwrap().topic(), certificates.pki.topic);
    }
}

#[tokio::test]
async fn each_domain_has_its_identity_and_each_topic_its_client() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let [a, b] = ["com.apple.mail.XServer.a", "com.apple.mail.XServer.b"];
        let mut configs = [
            certificates.config(stand_in.address()),
            certificates.config(stand_in.address()),
            certificates.config(stand_in.address()),
        ];
        configs[0].identity = certificates.issue(a, -DAY, DAY);
        configs[0].domains = vec!["a.example".into(), "a2.example".into()];
        configs[1].identity = certificates.issue(b, -DAY, -60);
        configs[1].domains = vec!["b.example".into()];
        let identities = load(&configs);
        let now = Timestamp::now();
        let offer = |login: &str| {
            let offer =
                app::push_offer(identities.offers(now), &config::PushConfig::default()).unwrap();
            offer.route(&Account::from_login(login)).map(str::to_owned)
        };
        let others = certificates.pki.topic.as_str();
        for (login, topic) in [
            ("alice@A.example", Some(a)),
            ("alice@a2.example", Some(a)),
            ("bob@b.example", None),
            ("carol@c.example", Some(others)),
            ("dave", Some(others)),
        ] {
            assert_eq!(offer(login).as_deref(), topic, "{login}");
        }
        let topics: Vec<_> = identities.offers(now).into_iter().map(|offer| offer.topic).collect();
        assert_eq!(topics, [Some(a.to_owned()), None, Some(others.to_owned())]);
        let closed = route(&identities, b).unwrap().closed(now).unwrap();
        assert!(closed.ends_with("b.pem: is expired"), "{closed}");
        assert!(route(&identities, "c").is_none());
        for topic in [a, others] {
            let mut device = certificates.device("ab");
            device.route = topic.into();
            let apns = route(&identities, topic).unwrap();
            assert!(is_accepted(&push(&apns, &device).await), "{topic}");
        }
        let statuses = identities.statuses(now);
        assert_eq!(statuses.iter().map(|s| s.valid).collect::<Vec<_>>(), [true, false, true]);
        assert!(statuses[1].not_after.unwrap() < now.0);

        configs[1].identity = configs[0].identity.clone();
        let error = reload(&identities, &configs).unwrap_err().to_string();
        assert_eq!(error, format!("[[apns]]: two are for the topic {a}; remove one"));
        assert_eq!(offer("alice@a.example").as_deref(), Some(a), "as before");
    })
    .await;
}

#[test]
fn phones_are_offered_topics_of_mail_alone_and_each_identity_has_a_route() {
    let certificates = Certificates::new();
    let mail = certificates.config(([127, 0, 0, 1], 1).into());
    let mut app = mail.clone();
    app.identity = certificates.issue("org.example.app", -DAY, DAY);
    app.domains = vec!["a.example".into()];
    let identities = load(&[app, mail]);
    let topic = Some(certificates.pki.topic.clone());
    assert_eq!(identities.offers(Timestamp::now()), [Offer { topic, domains: Vec::new() }]);
    for topic in ["org.example.app", &*certificates.pki.topic] {
        assert!(route(&identities, topic).unwrap().closed(Timestamp::now()).is_none(), "{topic}");
    }
}

#[test]
fn an_error_in_an_identity_names_its_key() {
    let certificates = Certificates::new();
    let mut config = certificates.config(([127, 0, 0, 1], 1).into());
    let said = |config: &config::ApnsConfig| {
        try_load(std::slice::from_ref(config), &config::PushConfig::default())
            .unwrap_err()
            .to_string()
    };
    let ProviderFiles::Pem { certificate, private_key, .. } = config.identity.clone() else {
        panic!("no PEM")
    };
    let pem = |certificate: &PathBuf, private_key: &PathBuf, topic: Option<&str>| {
        let (certificate, private_key) = (certificate.clone(), private_key.clone());
        ProviderFiles::Pem { certificate, private_key, topic: topic.map(str::to_owned) }
    };
    let password_file = Some(certificates.file("none"));
    for (identity, key) in [
        (pem(&certificate, &certificates.file("ca.pem"), None), "private_key"),
        (pem(&certificates.file("ca.key"), &private_key, None), "certificate"),
        (pem(&certificate, &certificates.file("ca.key"), None), "certificate, private_key"),
        (pem(&certificate, &private_key, Some("other")), "topic"),
        (
            ProviderFiles::Pkcs12 { file: certificate.clone(), password_file, topic: None },
            "password_file",
        ),
    ] {
        config.identity = identity;
        let said = said(&config);
        assert!(said.starts_with(&format!("[apns] {key}: ")), "{key}: {said}");
    }
}

#[tokio::test]
async fn a_reload_loses_no_push_and_the_next_one_has_the_new_certificate() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let config = certificates.config(stand_in.address());
        let identities = load(std::slice::from_ref(&config));
        let topic = certificates.pki.topic.clone();
        let client = |identities: &Identities| route(identities, &topic).unwrap();
        let device = certificates.device("ab");

        stand_in.hold_answers(true);
        let under_way = {
            let (apns, device) = (client(&identities), device.clone());
            tokio::spawn(async move { push(&apns, &device).await })
        };
        stand_in.wait_for(1).await;
        // The file is now that of another certificate; then it is broken.
        let renewed = certificates.pki.client(&[&topic], -DAY..90 * DAY).unwrap();
        certificates.write("apns", &renewed);
        reload(&identities, std::slice::from_ref(&config)).unwrap();
        let ends = identities.statuses(Timestamp::now())[0].not_after.unwrap();
        assert!(ends < Timestamp::now().0 + 91 * DAY * 1000);
        std::fs::write(certificates.file("apns.pem"), "nothing").unwrap();
        reload(&identities, std::slice::from_ref(&config)).unwrap_err();

        let next = {
            let (apns, device) = (client(&identities), device.clone());
            tokio::spawn(async move { push(&apns, &device).await })
        };
        stand_in.wait_for(2).await;
        stand_in.hold_answers(false);
        assert!(is_accepted(&under_way.await.unwrap()) && is_accepted(&next.await.unwrap()));
        let connections: Vec<_> = stand_in.pushes().iter().map(|push| push.connection).collect();
        assert_eq!(connections, [1, 2], "the old one ends what it has begun");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_offer_is_withdrawn_when_the_certificate_ends_and_back_with_a_new_one() {
    // The clock that is stopped goes from event to event.
    let test = async {
        let certificates = Certificates::new();
        let mut config = certificates.config(([127, 0, 0, 1], 1).into());
        let topic = "com.apple.mail.XServer.a";
        config.identity = certificates.issue(topic, -DAY, 2 * DAY);
        let identities = load(std::slice::from_ref(&config));
        let (begin, start) = (Timestamp::now(), tokio::time::Instant::now());
        let clock = move || Timestamp(begin.0 + start.elapsed().as_millis() as i64);
        let published = Rc::new(RefCell::new(Vec::<(i64, Option<String>)>::new()));
        let publish = {
            let published = published.clone();
            move |offers: Vec<Offer>| {
                let hours = (clock().0 - begin.0 + 60_000) / 3_600_000;
                published.borrow_mut().push((hours, offers[0].topic.clone()));
            }
        };
        let cancel = CancellationToken::new();
        let calendar = certificate_watch::run(identities.clone(), clock, publish, cancel.clone());
        let story = async {
            tokio::time::sleep(Duration::from_secs(3 * 24 * 3600)).await;
            certificates.issue(topic, -DAY, 30 * DAY);
            reload(&identities, std::slice::from_ref(&config)).unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            cancel.cancel();
        };
        tokio::join!(calendar, story);
        let (on, off) = (Some(topic.to_owned()), None);
        assert_eq!(*published.borrow(), [(0, on.clone()), (48, off), (72, on)]);
    };
    tokio::time::timeout(Duration::from_secs(100 * 24 * 3600), test).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_looked_at_again_within_seconds_of_the_clock_being_set() {
    let test = async {
        let certificates = Certificates::new();
        let config = certificates.config(([127, 0, 0, 1], 1).into());
        let identities = load(std::slice::from_ref(&config));
        // The machine begins in 1970 until it has asked what time it is.
        let (start, set) = (tokio::time::Instant::now(), Rc::new(Cell::new(Timestamp(0))));
        let clock = {
            let set = set.clone();
            move || set.get().plus(start.elapsed())
        };
        let published = Rc::new(RefCell::new(Vec::<(u64, bool)>::new()));
        let publish = {
            let published = published.clone();
            move |offers: Vec<Offer>| {
                published.borrow_mut().push((start.elapsed().as_secs(), offers[0].topic.is_some()));
            }
        };
        let cancel = CancellationToken::new();
        let calendar = certificate_watch::run(identities.clone(), clock, publish, cancel.clone());
        let story = async {
            tokio::time::sleep(Duration::from_secs(101)).await;
            set.set(Timestamp::now());
            tokio::time::sleep(Duration::from_secs(102)).await;
            set.set(Timestamp(0));
            tokio::time::sleep(Duration::from_secs(60)).await;
            cancel.cancel();
        };
        tokio::join!(calendar, story);
        assert_eq!(*published.borrow(), [(0, false), (105, true), (205, false)]);
    };
    tokio::time::timeout(Duration::from_secs(3600), test).await.unwrap();
}
