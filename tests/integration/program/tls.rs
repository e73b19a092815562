//! Certificates of two kinds for one name, and clients that are too old for any: openssl speaks for them.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::listeners::pinned::Openssl;
use crate::support::world::{Server, World};
use crate::support::{limited, soon};

/// A handshake by `openssl s_client` with these options; the subject of the certificate that it was shown,
/// which must be one that it can use.
async fn shown(openssl: &Openssl, server: SocketAddr, options: &str) -> Result<String, String> {
    let mut command = Command::new("openssl");
    command.arg("s_client").arg("-connect").arg(server.to_string()).arg("-brief");
    command.args(options.split_whitespace()).current_dir(openssl.folder());
    command.stdin(Stdio::null());
    let running = tokio::task::spawn_blocking(move || command.output().expect("openssl runs"));
    let output = soon("openssl", running).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let subject = said.lines().find_map(|line| line.strip_prefix("Peer certificate: "));
    match subject {
        Some(subject) if output.status.success() => Ok(subject.replace(' ', "")),
        _ => Err(said),
    }
}

fn rsa(openssl: &Openssl, name: &str, options: &str) {
    openssl.run(&format!(
        "req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.pem {options}"
    ));
}

/// A world whose folder has the certificates that `openssl` made.
async fn world(openssl: &Openssl) -> World {
    let world = World::new().await;
    for entry in std::fs::read_dir(openssl.folder()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, world.file(path.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    world
}

/// What clients can do: those that know both kinds, and those of one, of TLS 1.3 and 1.2.
const BOTH: [&str; 2] = ["-tls1_3", "-tls1_2"];
const ECDSA_ALONE: [&str; 2] =
    ["-tls1_3 -sigalgs ECDSA+SHA256", "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256"];
const RSA_ALONE: [&str; 3] = [
    "-tls1_3 -sigalgs RSA-PSS+SHA256",
    "-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256",
    "-tls1_2 -sigalgs RSA+SHA256",
];

#[tokio::test]
async fn a_client_is_shown_the_certificate_of_the_kind_that_it_can_use() {
    const TEST: &str = "a_client_is_shown_the_certificate_of_the_kind_that_it_can_use";
    let Some(openssl) = Openssl::new(TEST) else { return };
    limited(async {
        openssl.self_signed("ec", "-subj /CN=ec");
        rsa(&openssl, "rsa", "-subj /CN=rsa");
        let for_name = "-addext subjectAltName=DNS:imap.example";
        openssl.self_signed("sni-ec", &format!("-subj /CN=sni-ec {for_name}"));
        rsa(&openssl, "sni-rsa", &format!("-subj /CN=sni-rsa {for_name}"));
        rsa(&openssl, "new-rsa", "-subj /CN=new-rsa");
        rsa(&openssl, "newer-rsa", "-subj /CN=newer-rsa");
        let world = world(&openssl).await;
        world.configure(
            "certificate = \"server.pem\"\nprivate_key = \"server.key\"\n",
            "certificate = [\"ec.pem\", \"rsa.pem\"]\nprivate_key = [\"ec.key\", \"rsa.key\"]\n\
             [[tls.sni]]\nname = \"imap.example\"\ncertificate = [\"sni-ec.pem\", \"sni-rsa.pem\"]\n\
             private_key = [\"sni-ec.key\", \"sni-rsa.key\"]\n",
        );
        let mut server = world.serve().await;
        let expect = async |server: &Server, options: &str, subject: &str| {
            let shown = shown(&openssl, server.address, options).await;
            assert_eq!(shown, Ok(format!("CN={subject}")), "{options}");
        };
        for (clients, kind) in [(&BOTH[..], "ec"), (&ECDSA_ALONE, "ec"), (&RSA_ALONE, "rsa")] {
            for options in clients {
                // Old clients name no server.
                expect(&server, &format!("{options} -noservername"), kind).await;
                let named = format!("{options} -servername imap.example");
                expect(&server, &named, &format!("sni-{kind}")).await;
            }
        }
        // The second one is renewed as the first is, by a reload or by itself; those of the name stay.
        let renew = |name: &str| {
            for kind in ["pem", "key"] {
                let (from, to) = (format!("{name}.{kind}"), format!("rsa.{kind}"));
                std::fs::copy(world.file(&from), world.file(&to)).unwrap();
            }
        };
        renew("new-rsa");
        server.process.signal("HUP");
        server.logged("configuration reloaded").await;
        expect(&server, &format!("{} -noservername", RSA_ALONE[0]), "new-rsa").await;
        expect(&server, &format!("{} -noservername", BOTH[0]), "ec").await;
        expect(&server, &format!("{} -servername imap.example", RSA_ALONE[1]), "sni-rsa").await;
        renew("newer-rsa");
        server.logged("read a renewed server certificate; new sessions use it").await;
        expect(&server, &format!("{} -noservername", RSA_ALONE[0]), "newer-rsa").await;
    })
    .await;
}

#[tokio::test]
async fn clients_that_are_too_old_have_a_line_in_the_log_that_says_why() {
    const TEST: &str = "clients_that_are_too_old_have_a_line_in_the_log_that_says_why";
    let Some(openssl) = Openssl::new(TEST) else { return };
    limited(async {
        let world = World::new().await;
        let starttls = "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = \"starttls\"\n[tls]";
        world.configure("[tls]", starttls);
        let mut server = world.serve().await;
        let first = server.address;
        let second = server.process.stderr.find("the other address", |line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let address = (line["message"] == "listening").then(|| line["address"].as_str())??;
            address.parse().ok().filter(|address| *address != first)
        });
        let starttls: SocketAddr = second.await;
        // What no client can have that speaks TLS 1.2 with CBC alone, or nothing newer than TLS 1.1, or RSA
        // where the certificate is for ECDSA.
        const CBC: &str = "-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0";
        const TLS_1_1: &str = "-tls1_1 -cipher DEFAULT:@SECLEVEL=0";
        const RSA: &str = "-tls1_3 -sigalgs RSA-PSS+SHA256";
        for (options, why) in [
            (CBC, "it has no cipher suite in common"),
            (TLS_1_1, "it speaks no version of TLS that mailchime speaks"),
            (RSA, "it cannot use the kind of key"),
        ] {
            for _ in 0..2 {
                shown(&openssl, server.address, options).await.unwrap_err();
            }
            let line = server
                .logged("a client cannot use TLS as mailchime offers it; mailchime closes the connection")
                .await;
            let said = line["why"].as_str().unwrap();
            assert!(said.starts_with(why), "{options}: {said}");
            assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1"), "{line}");
        }
        // After STARTTLS it is the same, and the hour has not gone by.
        let after = format!("{CBC} -starttls imap");
        shown(&openssl, starttls, &after).await.unwrap_err();
        server.logged("TLS handshake failed").await;
        // Somebody who is no client of TLS has none.
        drop(tokio::net::TcpStream::connect(server.address).await.unwrap());
        server.process.signal("TERM");
        let ended = tokio::time::timeout(Duration::from_secs(90), server.process.end()).await;
        assert_eq!(ended.unwrap().code(), Some(0));
        let old = |line: &&String| {
            line.contains("a client cannot use TLS as mailchime offers it; mailchime closes the connection")
        };
        assert_eq!(server.process.stderr.seen.iter().filter(old).count(), 3);
    })
    .await;
}
