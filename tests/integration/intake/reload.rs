//! The sources of a configuration that is read again.

use mailchime::config::EventSourceConfig;

use super::{ALICE, CAROL, IntakeWorld, SIGNING, TOKEN};
use crate::support::limited;

fn event(user: &str) -> String {
    format!(r#"{{"user":"{user}","changes":[{{"mailbox":"INBOX"}}]}}"#)
}

#[tokio::test]
async fn secrets_domains_and_sources_count_at_once() {
    limited(async {
        let mut intake = IntakeWorld::start().await;
        let (alice, carol) = (event(ALICE), event(CAROL));
        assert_eq!(intake.post(&alice).await.status, 204);
        assert_eq!(intake.post(&carol).await.status, 403);
        let with = |token: &str, body: &str| {
            format!("POST /v1/events\nAuthorization: Bearer {token}\n\n{body}")
        };

        // Another domain, another secret, and a source less.
        let mut config = intake.world.config.clone();
        let file = config.events.sources[0].secret_file.clone();
        std::fs::write(&file, "another-horse-battery").unwrap();
        let dovecot = EventSourceConfig::new("dovecot", &file);
        let domains = vec!["example.com".to_owned()];
        config.events.sources = vec![EventSourceConfig { domains, ..dovecot }];
        intake.world.mailchime.reload(&config).await.unwrap();
        for (token, body, status) in [
            (TOKEN, &carol, 401),
            (SIGNING, &carol, 401),
            ("another-horse-battery", &alice, 403),
            ("another-horse-battery", &carol, 204),
        ] {
            assert_eq!(intake.ask(&with(token, body)).await.status, status, "{token} {body}");
        }

        // One that cannot be read changes nothing.
        std::fs::write(&file, "short").unwrap();
        let refused = intake.world.mailchime.reload(&config).await.unwrap_err().to_string();
        assert!(refused.starts_with("[[events.source]] secret_file: "), "{refused}");
        let answer = intake.ask(&with("another-horse-battery", &carol)).await;
        assert_eq!(answer.status, 204);
    })
    .await;
}
