//! The sources of a configuration that is read again.

use std::time::Duration;

use mailchime::config::EventSourceConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::Level;

use super::{ALICE, CAROL, IntakeWorld, MAIL, SIGNING, TOKEN, ask, written};
use crate::support::log::Log;
use crate::support::{later, limited, patient, soon, until};

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

/// What mailchime logs when a sweep for events that were missed begins.
const SWEEP: &str = "mailchime::watch::events_missed";

/// Refuses `event` by a configuration that `breaks`, which a reload `mends`: its mail is found.
async fn found(
    breaks: impl FnOnce(&mut EventSourceConfig),
    (token, event): (&str, &str),
    status: u16,
    mends: impl FnOnce(&mut EventSourceConfig),
) {
    limited(async {
        let mut intake = IntakeWorld::with(|config| {
            breaks(&mut config.events.sources[0]);
        })
        .await;
        intake.registered().await;
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let request = format!("POST /v1/events\nAuthorization: Bearer {token}\n\n{event}");
        assert_eq!(intake.ask(&request).await.status, status);
        let mut config = intake.world.config.clone();
        mends(&mut config.events.sources[0]);
        intake.world.mailchime.reload(&config).await.unwrap();
        soon("a push", intake.world.push_of(&["INBOX"])).await;
    })
    .await;
}

#[tokio::test]
async fn the_mail_of_an_event_with_a_secret_that_a_reload_adds_is_found() {
    let added = |source: &mut EventSourceConfig| {
        std::fs::write(&source.secret_file, "another-horse-battery").unwrap();
    };
    found(|_| {}, ("another-horse-battery", &event(ALICE)), 401, added).await;
}

#[tokio::test]
async fn the_mail_of_an_event_for_a_domain_that_a_reload_adds_is_found() {
    let foreign = |source: &mut EventSourceConfig| source.domains = vec!["example.com".to_owned()];
    let ours = |source: &mut EventSourceConfig| source.domains = vec!["example.org".to_owned()];
    found(foreign, (TOKEN, &event(ALICE)), 403, ours).await;
}

/// Such an event is taken, for a user whom nobody knows.
#[tokio::test]
async fn the_mail_of_an_event_for_a_name_to_which_a_reload_adds_the_domain_is_found() {
    let without = |source: &mut EventSourceConfig| {
        (source.domains, source.default_domain) = (Vec::new(), None);
    };
    let ours =
        |source: &mut EventSourceConfig| source.default_domain = Some("example.org".to_owned());
    found(without, (TOKEN, &event("alice")), 204, ours).await;
}

/// It goes by the sources that were there when it began.
#[tokio::test]
async fn the_mail_of_an_event_that_is_refused_behind_the_reload_is_found() {
    limited(async {
        let mut intake = IntakeWorld::with(|config| {
            config.events.sources[0].domains = vec!["example.com".to_owned()];
        })
        .await;
        intake.registered().await;
        let request = format!(
            "POST /v1/events\nAuthorization: Bearer {TOKEN}\nExpect: 100-continue\n\n{}",
            event(ALICE)
        );
        let sent = written(&request);
        let (begin, end) = sent.split_at(sent.len() - 1);
        let mut stream = TcpStream::connect(intake.address()).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        let mut heard = [0; 25];
        soon("100", stream.read_exact(&mut heard)).await.unwrap();
        assert_eq!(&heard, b"HTTP/1.1 100 Continue\r\n\r\n");

        let mut config = intake.world.config.clone();
        config.events.sources[0].domains.clear();
        intake.world.mailchime.reload(&config).await.unwrap();
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        stream.write_all(end.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        soon("a push", intake.world.push_of(&["INBOX"])).await;
    })
    .await;
}

/// Anybody can have requests refused.
#[tokio::test]
async fn refusals_have_all_accounts_asked_for_once_and_not_before_the_sources_are_others() {
    let log = Log::default();
    let _logs = tracing::subscriber::set_default(log.subscriber(Level::INFO));
    patient(async {
        let mut intake = IntakeWorld::start().await;
        intake.registered().await;
        let forge = async |intake: &IntakeWorld| {
            let forged = "POST /v1/events\nAuthorization: Bearer forged-horse-battery";
            for _ in 0..3 {
                assert_eq!(intake.ask(&format!("{forged}\n\n{{}}")).await.status, 401);
            }
        };
        // The supervisor hears of what was missed, and begins a sweep that is due, while it answers.
        let answered = async |intake: &IntakeWorld| {
            let admin = intake.world.mailchime.admin.expect("[admin] is on");
            for _ in 0..20 {
                assert_eq!(ask(admin, "GET /watchers").await.status, 200);
            }
        };
        let later_on = async |intake: &IntakeWorld| {
            answered(intake).await;
            later(Duration::from_mins(3)).await;
            answered(intake).await;
        };
        let same = intake.world.config.clone();
        let mut less = same.clone();
        less.events.sources[0].events_per_second += 1;
        less.events.sources.truncate(1);
        for (config, sweeps) in [(&same, 0), (&less, 0), (&same, 1), (&less, 1)] {
            forge(&intake).await;
            assert_eq!(intake.post(&event(CAROL)).await.status, 403);
            intake.world.mailchime.reload(config).await.unwrap();
            later_on(&intake).await;
            until(async || log.count(SWEEP) >= sweeps).await;
            assert_eq!(log.count(SWEEP), sweeps);
        }
        let mut more = less.clone();
        more.events.sources[0].domains.clear();
        for _ in 0..3 {
            intake.world.mailchime.reload(&more).await.unwrap();
            later_on(&intake).await;
            until(async || log.count(SWEEP) >= 2).await;
            assert_eq!(log.count(SWEEP), 2);
            forge(&intake).await;
        }
    })
    .await;
}
