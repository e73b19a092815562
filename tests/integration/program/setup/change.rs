//! The change that setup prints for the day on which mailchime takes port 993, applied.

use std::fs;

use super::{Machine, contains, printed};
use crate::support::limited;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::pki;

/// It is found over TLS, and without it afterwards.
#[tokio::test]
async fn a_server_found_at_993_alone_keeps_all_lines_of_its_backend_that_still_count() {
    let test = "a_server_found_at_993_alone_keeps_all_lines_of_its_backend_that_still_count";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let ca = machine.path("ca.pem");
        fs::write(&ca, &pki().ca.certificate).unwrap();
        let (tls, ca) = (dovecot.tls.to_string(), ca.display().to_string());
        let places = ["--imap-at", "127.0.0.1:1", "--imaps-at", &tls, "--backend-ca", &ca];
        let others = ["--credentials", "master", "--port", "0"];
        let (code, said) = machine.setup(&[&places[..], &others].concat()).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&machine.written(), &["tls = \"implicit\"", "ca = ", "server_name = "]);

        let written = machine.written();
        let (before, rest) = written.split_once("[backend]\n").unwrap();
        let (_, after) = rest.split_once("\n\n").unwrap();
        let block = printed(&said, "[backend]");
        contains(&block, &["\"127.0.0.1:143\"", "tls = \"none\"", "send_id = true"]);
        let block = block.replace("127.0.0.1:143", &dovecot.plain.to_string());
        let config = machine.path("etc/mailchime/proxy.toml");
        fs::write(config, format!("{before}{block}\n{after}")).unwrap();
        let said = machine.check().await;
        let expected = "accounts are watched as the master user mailchime";
        contains(&said, &["no TLS; before login it offers", expected]);
    })
    .await;
}
