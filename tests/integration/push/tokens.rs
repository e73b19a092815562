//! Provider tokens in place of a certificate.

use mailchime::config::{self, ProviderFiles};
use mailchime::demo::apns::Answer;
use mailchime::demo::pki::ProviderKey;
use mailchime::push::transport::Verdict;
use mailchime::push::transport::apns::ApnsIdentity;

use super::client::{is_accepted, push};
use crate::support::limited;
use crate::support::pushing::{Certificates, StandIn, route_of};

/// Identity and configuration of a provider with this key.
fn provider(
    certificates: &Certificates,
    stand_in: &StandIn,
    key: &ProviderKey,
    change: impl FnOnce(&mut String, &mut String),
) -> (ApnsIdentity, config::ApnsConfig) {
    let file = certificates.folder.path().join("apns.p8");
    std::fs::write(&file, key.expose_private_key()).unwrap();
    let (mut key_id, mut team_id) = (key.key_id.clone(), key.team_id.clone());
    change(&mut key_id, &mut team_id);
    let topic = certificates.pki.topic.clone();
    let identity = ProviderFiles::Key { key: file, key_id, team_id, topic };
    let config = config::ApnsConfig { identity, ..certificates.config(stand_in.address()) };
    (ApnsIdentity::load(&config.identity).unwrap(), config)
}

#[tokio::test]
async fn a_key_signs_one_token_for_all_pushes() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let (identity, config) =
            provider(&certificates, &stand_in, &certificates.pki.provider, |_, _| {});
        assert_eq!((identity.topic(), identity.not_after()), (&*certificates.pki.topic, None));
        let apns = route_of(&identity, &config);
        let device = certificates.device("ab");
        for _ in 0..3 {
            assert!(is_accepted(&push(&apns, &device).await));
        }
        // Another token on this connection would have been too many.
        assert_eq!((stand_in.received(), stand_in.connections()), (3, 1));

        let mut other = certificates.device("ab");
        other.route = "com.apple.mail.XServer.other".into();
        let why = "400 TopicDisallowed".to_owned();
        assert_eq!(push(&apns, &other).await, Verdict::Misconfigured { why });

        stand_in.answer_next(1, Answer::refuse(429, "TooManyProviderTokenUpdates"));
        let outcome = push(&apns, &device).await;
        let Verdict::RouteClosed { retry_after: Some(wait), .. } = outcome else {
            panic!("it is about us, not about the device: {outcome:?}")
        };
        assert!(wait.as_secs() >= 60, "{wait:?}");
    })
    .await;
}

#[tokio::test]
async fn a_key_or_a_name_that_apple_does_not_know_is_refused_and_sent_once() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let ours = &certificates.pki.provider;
        let stranger = ProviderKey::generate().unwrap();
        let device = certificates.device("ab");
        for (n, (identity, config)) in [
            provider(&certificates, &stand_in, &stranger, |_, _| {}),
            provider(&certificates, &stand_in, ours, |key_id, _| *key_id = "OTHER12345".into()),
            provider(&certificates, &stand_in, ours, |_, team| *team = "OTHER12345".into()),
        ]
        .into_iter()
        .enumerate()
        {
            let apns = route_of(&identity, &config);
            let why = "403 InvalidProviderToken".to_owned();
            assert_eq!(push(&apns, &device).await, Verdict::Misconfigured { why });
            assert_eq!(stand_in.received(), n as u64 + 1);
        }
    })
    .await;
}

#[test]
fn a_file_without_a_key_is_named() {
    let certificates = Certificates::new();
    let key = certificates.folder.path().join("apns.pem");
    let (key_id, team_id, topic) = ("k".into(), "t".into(), "t".into());
    let identity = ProviderFiles::Key { key, key_id, team_id, topic };
    let error = ApnsIdentity::load(&identity).unwrap_err().to_string();
    assert!(error.contains("apns.pem: holds no key for provider tokens"), "{error}");
}
