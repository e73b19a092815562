//! How streams end that were opened with a cookie, and those that nobody reads.

use std::time::Duration;

use super::super::{ALICE, ApiWorld};
use crate::support::{later, limited, patient};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_session_ends_for_another_password() {
    limited(async {
        let api = ApiWorld::start().await;
        let cookie = api.cookie(ALICE).await;
        let (mut stream, _) = api.opened(&format!("\nCookie: {cookie}")).await;
        let (mut other, _) = api.opened(&format!("\nCookie: {}", api.cookie(ALICE).await)).await;
        api.backend.set_password(ALICE, b"other").unwrap();
        let ask = format!("GET /v1/mailboxes\nCookie: {cookie}");
        assert_eq!(api.ask(&ask).await.status, 401);
        assert_eq!(stream.event().await.data["data"]["reason"], "logged_out");
        assert!(stream.block().await.is_none());
        // The connection of the other session's streams still stands, and ends with its next login.
        api.backend.drop_connections();
        assert_eq!(other.event().await.data["data"]["reason"], "unauthorized");
    })
    .await;
}

#[tokio::test]
async fn a_stream_keeps_its_session_in_use_and_ends_with_it_after_12_hours() {
    patient(async {
        let api = ApiWorld::start().await;
        let cookie = api.cookie(ALICE).await;
        let (mut stream, _) = api.opened(&format!("\nCookie: {cookie}")).await;
        let pause = Duration::from_mins(10);
        for _ in 1..12 * 6 {
            later(pause).await;
            let block = stream.block().await.expect("a sign of life");
            assert_eq!(block.comment.as_deref(), Some("keep-alive"));
        }
        later(pause).await;
        assert_eq!(stream.event().await.data["data"]["reason"], "logged_out");
        assert!(stream.block().await.is_none());
        let again = api.stream(&format!("\nCookie: {cookie}")).await;
        assert!(again.head.starts_with("HTTP/1.1 401 "), "{}", again.head);
    })
    .await;
}
