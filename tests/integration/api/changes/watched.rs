//! Streams of accounts that are watched for their devices.

use super::super::{ALICE, ApiWorld, basic};
use crate::support::in_process::logins;
use crate::support::limited;

const MAIL: &str = "Subject: x\r\n\r\nx\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_an_account_that_is_watched_has_no_connection_of_its_own() {
    limited(async {
        let api = ApiWorld::start().await;
        let phone = api.world.register((ALICE, "secret"), &["INBOX"]).await;
        api.backend.wait_until(|c| c.idling == 1 && c.connections == 1).await;
        let before = logins(&api.backend, ALICE);
        let (mut stream, _) = api.opened(&format!("\n{}", basic(ALICE, "secret"))).await;
        let (mut other, _) = api.opened(&format!("\n{}", basic(ALICE, "secret"))).await;
        for messages in [1, 2] {
            api.backend.wait_until(|c| c.idling == 1 && c.connections == 1).await;
            api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
            for stream in [&mut stream, &mut other] {
                assert_eq!(stream.event().await.change(), ("INBOX", "new", messages));
            }
        }
        assert_eq!(logins(&api.backend, ALICE), before + 2, "those of the requests");
        drop(phone);
    })
    .await;
}
