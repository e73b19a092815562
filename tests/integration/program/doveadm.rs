//! What `check` says of doveadm's HTTP API, with the real Dovecot.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use tokio::task::block_in_place;

use crate::support::limited;
use crate::support::ports::own_address;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn check_asks_doveadm_and_says_what_is_wrong() {
    const TEST: &str = "program::doveadm::check_asks_doveadm_and_says_what_is_wrong";
    limited(async {
        let port = own_address().port();
        let extra = format!(
            "doveadm_api_key = sesame\nservice doveadm {{\n  inet_listener http {{\n    port = {port}\n  }}\n}}\n"
        );
        let options = Options { extra: extra.leak(), ..Options::default() };
        let Some(mut dovecot) = block_in_place(|| Dovecot::start(TEST, &options)) else { return };
        let world = World::new().await;
        world.in_front_of(dovecot.plain);
        let key = |key: &str| {
            fs::write(world.file("doveadm.key"), key).unwrap();
            fs::set_permissions(world.file("doveadm.key"), Permissions::from_mode(0o600)).unwrap();
        };
        key("sesame\n");
        world.configure(
            "tls = \"none\"",
            &format!(
                "tls = \"none\"\ndoveadm_url = \"http://127.0.0.1:{port}/doveadm/v1\"\n\
                 doveadm_key_file = \"doveadm.key\""
            ),
        );
        let place = format!("127.0.0.1:{port}/doveadm/v1");
        let said = world.command(&["check"]).await;
        said.line(&format!("ok       [backend] doveadm_url: {place}: doveadm answers, and takes"));
        let failed = async |expected: &str| {
            let said = world.command(&["check"]).await;
            assert_eq!(said.code, 1, "{}", said.stdout);
            let line = said.line("FAILED   [backend] doveadm_url: ");
            assert!(line.contains(expected), "{line}");
        };
        key("mustard\n");
        failed("answers 401 Unauthorized; write what Dovecot has as doveadm_api_key").await;
        key("sesame\n");
        world.configure("/doveadm/v1", "/doveadm/v2");
        failed("answers 404 Not Found; the path is /doveadm/v1").await;
        block_in_place(|| dovecot.stop());
        failed("see whether Dovecot's `service doveadm` has an `inet_listener http`").await;
    })
    .await;
}
