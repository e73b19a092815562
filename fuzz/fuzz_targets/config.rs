//! The configuration: one that is accepted holds what its types promise; one that is not gets an error of one sentence.
#![no_main]

use std::collections::HashSet;
use std::path::Path;

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::config::Config;

/// Files that keys name are looked for here.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/config/proxy.toml");

/// In the dictionary it stands in a URL.
const PASSWORD: &str = "Zq7secret";

fuzz_target!(|text: &str| -> Corpus {
    let config = match Config::parse(text, Path::new(FOLDER)) {
        Ok(config) => config,
        Err(error) => {
            let told = error.to_string();
            assert!(!told.is_empty());
            assert!(!told.contains(PASSWORD) || !is_secret(text), "{told}");
            return Corpus::Keep;
        }
    };
    assert!(!config.listeners.is_empty());
    let mut domains = HashSet::new();
    for route in &config.routes {
        assert_eq!(route.domain, route.domain.to_lowercase());
        assert!(domains.insert(&route.domain), "{} twice", route.domain);
    }
    let mut names = HashSet::new();
    for sni in &config.tls.sni {
        assert!(names.insert(&sni.name), "{} twice", sni.name);
        assert!(
            sni.certificates.iter().all(|it| it.certificate.is_file() && it.private_key.is_file())
        );
    }
    let mut certificates = config.tls.certificates.iter();
    assert!(certificates.all(|it| it.certificate.is_file() && it.private_key.is_file()));
    let mut served = HashSet::new();
    for apns in &config.apns {
        for domain in &apns.domains {
            assert!(served.insert(domain.clone()), "{domain} twice");
        }
    }
    assert!(config.apns.iter().filter(|apns| apns.domains.is_empty()).count() <= 1);
    let watch = &config.watch;
    assert!(!watch.poll_interval.is_zero() && watch.poll_max >= watch.poll_interval);
    assert!(!watch.idle_renewal.is_zero() && !watch.idle_check.is_zero());
    assert!(!config.push.registration_ttl.is_zero());
    assert!(config.limits.capability_size > 0 && config.limits.command_size > 0);
    let shown = format!("{config:?}");
    assert!(!shown.contains(PASSWORD) || !is_secret(text), "a password is shown: {shown}");
    // It is a function of the text.
    assert_eq!(Config::parse(text, Path::new(FOLDER)).ok().as_ref(), Some(&config));
    Corpus::Keep
});

/// The password is in a URL where one belongs, and not in the name of a file, which errors repeat.
fn is_secret(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| line.contains(PASSWORD));
    lines.all(|line| line.trim_start().starts_with("url "))
}
