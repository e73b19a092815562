//! What the steps say, by the server and by where it is.

use super::super::certificates::FoundCertificate;
use super::super::probe::FoundServer;
use super::*;
use crate::config::TrustConfig;

fn plan(host: &str, kind: MailServerKind, container: Option<&str>) -> SetupPlan {
    let server = FoundServer {
        host: host.to_owned(),
        port: 143,
        is_imaps: false,
        tls: BackendTls::None,
        pin: None,
        kind,
        container: container.map(str::to_owned),
        version: String::new(),
        greeting: String::new(),
    };
    SetupPlan {
        root: "/".into(),
        server,
        other: None,
        certificate: FoundCertificate::of_test(),
        credentials: WatchCredentials::Stored,
        everywhere: "[::]",
        port: 1993,
    }
}

#[test]
fn a_server_in_a_container_gets_other_ports_published_and_no_change_of_its_own() {
    let mut plan = plan("127.0.0.1", MailServerKind::DovecotUnknown, Some("docker-proxy"));
    let said = text(&plan);
    for part in [
        "docker-proxy holds its ports",
        "\"127.0.0.1:143:143\"",
        "containers.md",
        "docker compose up -d",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    for part in ["10-master.conf", "systemctl restart dovecot", "port = 0"] {
        assert!(!said.contains(part), "{part:?} is in {said}");
    }
    plan.server.is_imaps = true;
    plan.server.port = 993;
    let trust = TrustConfig { ca: None, server_name: "mail.example.org".to_owned() };
    plan.server.tls = BackendTls::Implicit(trust);
    let said = text(&plan);
    assert!(said.contains("\"127.0.0.1:9993:993\""), "{said}");
    assert!(said.contains("address = \"127.0.0.1:9993\""), "{said}");
}

#[test]
fn the_change_names_the_place_where_the_server_was_found() {
    use MailServerKind::{Courier, Cyrus, Dovecot23, Dovecot24, Other};

    let closed = "Port 1143 is then closed to other machines";
    for (host, port, kind, expected) in [
        ("127.0.0.1", 1143, Dovecot23, &["address = 127.0.0.1\n", "port = 1143\n", closed][..]),
        ("127.0.0.1", 1143, Dovecot23, &["address = \"192.0.2.1:1143\"\n"]),
        ("::1", 143, Dovecot24, &["listen = ::1\n", "port = 143\n", "for ::1 is your server's"]),
        ("localhost", 143, Dovecot24, &["listen = 127.0.0.1\n", "= 127.0.0.1/32 ::1/128\n"]),
        ("::1", 143, Cyrus, &["listen=\"[::1]:imap\""]),
        ("127.0.0.1", 1143, Cyrus, &["listen=\"127.0.0.1:1143\"", closed]),
        ("::1", 1143, Courier, &["ADDRESS=::1\n", "PORT=1143\n"]),
        ("::1", 1143, Other, &["for IMAP on ::1, port 1143, and", "for ::1 is your server's"]),
    ] {
        let mut plan = plan(host, kind, None);
        plan.server.port = port;
        let said = text(&plan);
        for part in expected {
            assert!(said.contains(part), "{kind:?} at {host}, {port}: {part:?} is not in {said}");
        }
    }
    for (host, port, published) in
        [("::1", 143, "\"[::1]:143:143\""), ("127.0.0.1", 1143, "\"127.0.0.1:1143:143\"")]
    {
        let mut plan = plan(host, MailServerKind::DovecotUnknown, Some("docker-proxy"));
        plan.server.port = port;
        let said = text(&plan);
        assert!(said.contains(published), "{published} is not in {said}");
    }
}

#[test]
fn the_limits_by_which_a_server_counts_one_address_are_named() {
    use MailServerKind::{Courier, Cyrus, Dovecot24, Other};

    let (counted, imap) = ("counts mail_max_userip_connections by", "service imap {");
    for (host, kind, expected) in [
        (
            "imap.example.org",
            Dovecot24,
            &[counted, imap, "service imap-login {", "default_client_limit", "= 192.0.2.1/32"][..],
        ),
        ("127.0.0.1", Dovecot24, &[counted, imap, "from its own address"]),
        ("imap.example.org", Courier, &["MAXPERIP=1000", "MAXDAEMONS=1000"]),
        ("imap.example.org", Cyrus, &["maxchild"]),
        ("imap.example.org", Other, &["one address"]),
        ("127.0.0.1", Courier, &["MAXPERIP=1000", "MAXDAEMONS=1000", "have 20"]),
        ("127.0.0.1", Cyrus, &["maxchild bounds all sessions and all watched accounts"]),
    ] {
        let said = text(&plan(host, kind, None));
        for part in expected {
            assert!(said.contains(part), "{kind:?} at {host}: {part:?} is not in {said}");
        }
    }
    // A login's process stays where it ends TLS alone.
    let mut plan = plan("127.0.0.1", Dovecot24, None);
    assert!(!text(&plan).contains("default_client_limit"));
    let trust = TrustConfig { ca: None, server_name: "mail.example.org".to_owned() };
    plan.server.tls = BackendTls::StartTls(trust.clone());
    assert!(text(&plan).contains("default_client_limit = 5000"));
    // It then listens for IMAP without TLS.
    plan.server.tls = BackendTls::Implicit(trust);
    assert!(!text(&plan).contains("default_client_limit"));
}

#[test]
fn a_master_user_is_recommended_where_the_server_can_have_one() {
    use MailServerKind::{Courier, Cyrus, DovecotUnknown, Other};

    for (kind, is) in [(DovecotUnknown, true), (Cyrus, true), (Courier, false), (Other, false)] {
        let mut plan = plan("127.0.0.1", kind, None);
        assert_eq!(text(&plan).contains("setup --credentials master --dry-run"), is, "{kind:?}");
        plan.credentials = WatchCredentials::Master;
        assert!(!text(&plan).contains("Recommended before"), "{kind:?}");
    }
}

#[test]
fn the_password_of_the_master_user_goes_to_no_file_of_dovecot_and_no_argument() {
    use MailServerKind::{Cyrus, Dovecot23, DovecotUnknown};

    let file = "/etc/dovecot/mailchime.master";
    for (host, container, made) in [
        ("127.0.0.1", None, "| doveadm pw -s SHA512-CRYPT)\" > /etc/dovecot/mailchime.master)"),
        (
            "127.0.0.1",
            Some("docker-proxy"),
            "$(openssl passwd -6 -stdin < /etc/mailchime/master.password)",
        ),
        ("imap.example.org", None, "$(openssl passwd -6 -stdin < /etc/mailchime/master.password)"),
    ] {
        let mut plan = plan(host, DovecotUnknown, container);
        plan.credentials = WatchCredentials::Master;
        let said = text(&plan);
        assert!(said.contains(made) && !said.contains("{PLAIN}"), "{said}");
        let (_, back) = said.split_once("To go back: ").unwrap();
        for part in [&format!("the passdb that names {file}"), &format!("rm {file}")] {
            assert!(back.contains(part.as_str()), "{part:?} is not in {back}");
        }
    }
    let mut plan = plan("127.0.0.1", Cyrus, None);
    plan.credentials = WatchCredentials::Master;
    let said = text(&plan);
    let (_, back) = said.split_once("To go back: ").unwrap();
    assert!(
        back.contains("proxyservers: mailchime") && back.contains("saslpasswd2 -d mailchime"),
        "{back}"
    );
    let mut plan = self::plan("127.0.0.1", Dovecot23, None);
    assert!(!text(&plan).contains("The master user may still"));
    plan.everywhere = "0.0.0.0";
    assert!(text(&plan).contains("address = \"0.0.0.0:993\""));
}

/// As the package has left it.
#[test]
fn a_user_that_is_there_is_not_made_again() {
    let root = tempfile::tempdir().unwrap();
    let mut plan = plan("127.0.0.1", MailServerKind::Other, None);
    plan.root = root.path().to_owned();
    assert!(text(&plan).contains("useradd --system"));
    std::fs::create_dir(root.path().join("etc")).unwrap();
    let passwd = "mailchime:x:997:997::/var/lib/mailchime:/usr/sbin/nologin\n";
    std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
    let said = text(&plan);
    assert!(!said.contains("useradd") && said.contains("install -d -m 700 -o mailchime"), "{said}");
}

#[test]
fn no_line_begins_or_ends_with_a_stray_space_and_no_two_are_empty() {
    use MailServerKind::{Courier, Cyrus, Dovecot23, Dovecot24, DovecotUnknown, Other};

    let holder = PortHolder { program: "nginx".to_owned(), unit: None };
    for kind in [Dovecot23, Dovecot24, DovecotUnknown, Courier, Cyrus, Other] {
        for (host, container) in
            [("127.0.0.1", None), ("127.0.0.1", Some("docker-proxy")), ("mail.example", None)]
        {
            for (port, other, credentials) in [
                (1993, None, WatchCredentials::Stored),
                (993, Some(&holder), WatchCredentials::Master),
            ] {
                let mut plan = plan(host, kind, container);
                (plan.port, plan.other) = (port, other.cloned());
                plan.credentials = credentials;
                let said = text(&plan);
                // What is to be written has an indent of two more.
                let is_stray = |line: &str| line.starts_with("    ") && !line.starts_with("     ");
                let stray = said.lines().find(|line| is_stray(line) || line.ends_with(' '));
                assert_eq!(stray, None, "{kind:?} at {host}");
                assert!(!said.contains("\n\n\n"), "{kind:?} at {host}: {said}");
            }
        }
    }
}
