//! What streams tell, and of whom.

use std::time::Duration;

use serde_json::json;

use super::super::{ALICE, ApiWorld, BOB, basic};
use crate::support::in_process::logins;
use crate::support::limited;

const MAIL: &str = "Subject: a secret\r\n\r\nhello\r\n";

/// Mailboxes beside INBOX are looked at often: the backend does not tell of them.
async fn polling() -> ApiWorld {
    ApiWorld::with(|config| config.watch.poll_interval = Duration::from_millis(300)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_of_what_happens_and_of_nothing_in_a_message() {
    limited(async {
        let api = polling().await;
        api.backend.create_mailbox(ALICE, "Lists").unwrap();
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let query = "?mailbox=INBOX&mailbox=Lists&mailbox=Nobody%27s";
        let (mut stream, opened) =
            api.opened(&format!("{query}\n{}", basic(ALICE, "secret"))).await;
        let head = stream.head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        for field in
            ["content-type: text/event-stream", "cache-control: no-store", "x-accel-buffering: no"]
        {
            assert!(head.contains(field), "{head}");
        }
        let data = &opened.data["data"];
        assert_eq!((&data["account"], &data["unreadable"]), (&json!(ALICE), &json!(["Nobody's"])));
        let names = data["mailboxes"].as_array().unwrap().iter();
        let names: Vec<_> = names.map(|it| (&it["mailbox"], &it["messages"])).collect();
        assert_eq!(names, [(&json!("INBOX"), &json!(1)), (&json!("Lists"), &json!(0))]);

        let uid = api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let event = stream.event().await;
        assert_eq!(event.change(), ("INBOX", "new", 2));
        assert_eq!(event.data["data"]["unseen"], 2);
        assert!(!event.data.to_string().contains("secret"));
        assert_ne!(event.id, opened.id);
        api.backend.set_flags(ALICE, "INBOX", uid, &["\\Seen"]).unwrap();
        let read = stream.event().await;
        assert_eq!(
            (read.change(), &read.data["data"]["unseen"]),
            (("INBOX", "quiet", 2), &json!(1))
        );
        api.backend.expunge(ALICE, "INBOX", uid).unwrap();
        assert_eq!(stream.event().await.change(), ("INBOX", "quiet", 1));
        api.backend.deliver(ALICE, "Lists", MAIL).unwrap();
        assert_eq!(stream.event().await.change(), ("Lists", "new", 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_again_hears_at_once_what_it_has_missed() {
    limited(async {
        let api = ApiWorld::start().await;
        api.backend.create_mailbox(ALICE, "Lists").unwrap();
        let (query, who) = ("?mailbox=INBOX&mailbox=Lists", basic(ALICE, "secret"));
        let (stream, opened) = api.opened(&format!("{query}\n{who}")).await;
        let id = opened.id.unwrap();
        drop(stream);
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        api.backend.deliver(ALICE, "Lists", MAIL).unwrap();
        let again = format!("{query}\n{who}\nLast-Event-ID: {id}");
        let mut stream = api.stream(&again).await;
        let first = stream.event().await;
        assert_eq!(first.change(), ("INBOX", "new", 1));
        assert_eq!(stream.event().await.change(), ("Lists", "new", 1));
        let opened = stream.event().await;
        assert_eq!(opened.data["type"], "stream.opened");
        drop(stream);

        // It was cut off between the two: its id is still the old one, and both come again.
        assert_eq!(first.id, None);
        let mut stream = api.stream(&format!("{query}&last_event_id={id}\n{who}")).await;
        assert_eq!(stream.event().await.change(), ("INBOX", "new", 1));
        let last = stream.event().await;
        assert_eq!(last.change(), ("Lists", "new", 1));
        assert_eq!(stream.event().await.data["type"], "stream.opened");
        drop(stream);
        // It was cut off behind them: neither does.
        let again = format!("{query}&last_event_id={}\n{who}", last.id.unwrap());
        let mut stream = api.stream(&again).await;
        assert_eq!(stream.event().await.data["type"], "stream.opened");
        drop(stream);
        // It knows everything.
        api.opened(&format!("{query}\n{who}\nLast-Event-ID: {}", opened.id.unwrap())).await;
        // What is no id is none.
        for garbage in ["", "17", "AQAA", &"A".repeat(9000), "\u{e9}"] {
            api.opened(&format!("{query}\n{who}\nLast-Event-ID: {garbage}")).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_login_share_a_connection_and_another_user_hears_nothing() {
    limited(async {
        let api = polling().await;
        api.backend.create_mailbox(ALICE, "Lists").unwrap();
        let (alice, bob) = (basic(ALICE, "secret"), basic(BOB, "secret"));
        for _ in 0..5 {
            api.backend.deliver(BOB, "INBOX", MAIL).unwrap();
        }
        let (mut bobs, _) = api.opened(&format!("\n{bob}")).await;
        let (mut first, _) = api.opened(&format!("\n{alice}")).await;
        // It watches.
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        assert_eq!(first.event().await.change(), ("INBOX", "new", 1));
        let before = logins(&api.backend, ALICE);
        let (mut second, _) = api.opened(&format!("\n{alice}")).await;
        assert_eq!(logins(&api.backend, ALICE), before + 1, "that of the request itself");
        let (mut third, _) = api.opened(&format!("?mailbox=Lists\n{alice}")).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        for stream in [&mut first, &mut second] {
            assert_eq!(stream.event().await.change(), ("INBOX", "new", 2));
        }
        api.backend.deliver(ALICE, "Lists", MAIL).unwrap();
        assert_eq!(third.event().await.change(), ("Lists", "new", 1));
        // Bob hears of his own alone.
        api.backend.deliver(BOB, "INBOX", MAIL).unwrap();
        let event = bobs.event().await;
        assert_eq!(
            (event.change(), &event.data["data"]["account"]),
            (("INBOX", "new", 6), &json!(BOB))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_backend_is_away_a_stream_stays_and_hears_afterwards() {
    limited(async {
        let api = ApiWorld::with(|config| config.watch.retry_min = Duration::from_secs(1)).await;
        let (mut stream, _) = api.opened(&format!("\n{}", basic(ALICE, "secret"))).await;
        api.backend.refuse().await;
        api.backend.drop_connections();
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        api.backend.resume().await.unwrap();
        assert_eq!(stream.event().await.change(), ("INBOX", "new", 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_what_it_was_opened_with() {
    limited(async {
        let api = ApiWorld::with(|config| config.watch.retry_min = Duration::from_secs(1)).await;
        let (mut stream, _) = api.opened(&format!("\n{}", basic(ALICE, "secret"))).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        stream.event().await;
        // Another password: the next login is refused.
        api.backend.set_password(ALICE, b"other").unwrap();
        api.backend.drop_connections();
        let ended = stream.event().await;
        assert_eq!(ended.data["type"], "stream.ended");
        assert_eq!((ended.data["data"]["reason"].as_str(), ended.id), (Some("unauthorized"), None));
        assert!(stream.block().await.is_none());
        let reply = api.ask(&format!("GET /v1/changes\n{}", basic(ALICE, "secret"))).await;
        assert_eq!(reply.error(), (401, "unauthorized".to_owned()));

        // A cookie whose session ends.
        let cookie = api.cookie(BOB).await;
        let (mut stream, _) = api.opened(&format!("\nCookie: {cookie}")).await;
        let close = format!("DELETE /v1/session\nCookie: {cookie}\nOrigin: https://localhost");
        assert_eq!(api.ask(&close).await.status, 204);
        assert_eq!(stream.event().await.data["data"]["reason"], "logged_out");
        assert!(stream.block().await.is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_streams_and_tells_them_to_come_back() {
    limited(async {
        let api = ApiWorld::start().await;
        let (mut stream, _) = api.opened(&format!("\n{}", basic(ALICE, "secret"))).await;
        let stopping = tokio::spawn(api.world.mailchime.stop());
        let again = stream.block().await.expect("when to come again");
        let wait = again.retry.expect("a time");
        assert!((5_000..15_000).contains(&wait), "{wait}");
        assert_eq!(stream.event().await.data["data"]["reason"], "restart");
        assert!(stream.block().await.is_none());
        crate::support::soon("the stop", stopping).await.unwrap();
    })
    .await;
}
