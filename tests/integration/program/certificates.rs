//! The certificates that clients are shown: renewed ones are read by themselves, and what is wrong with
//! them is said in the log and the metrics.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mailchime::demo::pki::Pki;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::world::{Server, World};
use crate::support::{limited, soon};

const RENEWED: &str = "read a renewed server certificate; new sessions use it";
const UNFIT: &str = "a changed certificate cannot be read; mailchime keeps using the previous one";
const ENDS: &str = "a server certificate expires soon; renew it";
const ENDED: &str = "a server certificate has expired, and clients refuse to connect; renew it";

/// The value of the first metric of this name.
async fn metric(world: &World, name: &str) -> f64 {
    let text = world.get("/metrics").await;
    let line = text.lines().find(|line| line.starts_with(&format!("mailchime_{name}")));
    let value = line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value);
    value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

/// Whether a client that trusts `pki` alone takes the certificate that it is shown.
async fn shows(server: &Server, pki: &Pki) -> bool {
    let connector = TlsConnector::from(Arc::new(pki.client_config(None).unwrap()));
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    soon("the TLS handshake", connector.connect(name, stream)).await.is_ok()
}

/// Puts a file in the place of another at once, as who renews a certificate does.
fn replace(path: &Path, text: &[u8]) {
    let beside = path.with_extension("renewed");
    fs::write(&beside, text).unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&beside, path).unwrap();
}

#[tokio::test]
async fn a_renewed_certificate_is_read_by_itself_when_both_files_fit() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve_with_admin().await;
        let mut session = world.session(&server).await;
        assert!(shows(&server, &world.pki).await);
        assert_eq!(metric(&world, "certificates_unread").await, 0.0);
        let days = metric(&world, "server_certificate_expiry_seconds").await / 86_400.0;
        assert!((820.0..=825.0).contains(&days), "{days}");

        // The certificate comes first, and its key with a delay.
        let renewed = Pki::generate(None).unwrap();
        replace(&world.file("server.pem"), renewed.server.certificate.as_bytes());
        let line = server.logged(UNFIT).await;
        assert_eq!(line["level"], "WARN", "{line}");
        assert!(line["error"].as_str().unwrap().contains("do not belong together"), "{line}");
        assert_eq!(metric(&world, "certificates_unread").await, 1.0);
        assert!(shows(&server, &world.pki).await);
        let key = renewed.server.expose_private_key();
        replace(&world.file("server.key"), key.as_bytes());
        server.logged(RENEWED).await;
        assert!(shows(&server, &renewed).await);
        assert_eq!(metric(&world, "certificates_unread").await, 0.0);
        session.send(b"n NOOP\r\n").await;
        session.until("n OK").await;

        // One that is taken away is no reason to show none.
        fs::remove_file(world.file("server.key")).unwrap();
        server.logged(UNFIT).await;
        assert!(shows(&server, &renewed).await);
    })
    .await;
}

#[tokio::test]
async fn a_renewed_certificate_for_apns_is_read_by_itself() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        let renewed = world.pki.client(&[&world.pki.topic], -3600..40 * 86_400).unwrap();
        replace(&world.file("apns.key"), renewed.expose_private_key().as_bytes());
        replace(&world.file("apns.pem"), renewed.certificate.as_bytes());
        server.logged("read a renewed push certificate; new pushes use it").await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        world.deliver();
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn a_certificate_that_ends_soon_or_has_ended_is_reported() {
    limited(async {
        let world = World::new().await;
        let certificate = |days: i64| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            let by = Duration::from_secs(days.unsigned_abs() * 86_400 + 3600);
            let now = date_time_ymd(1970, 1, 1) + now;
            params.not_before = now - Duration::from_secs(90 * 86_400);
            params.not_after = if days < 0 { now - by } else { now + by };
            let certificate = params.self_signed(&key).unwrap();
            replace(&world.file("server.pem"), certificate.pem().as_bytes());
            replace(&world.file("server.key"), key.serialize_pem().as_bytes());
        };
        certificate(12);
        let mut server = world.serve_with_admin().await;
        let line = server.logged(ENDS).await;
        assert_eq!((&line["level"], &line["days"]), (&"WARN".into(), &12.into()), "{line}");
        let days = metric(&world, "server_certificate_expiry_seconds").await / 86_400.0;
        assert!((11.9..=12.1).contains(&days), "{days}");
        certificate(-2);
        let line = server.logged(ENDED).await;
        assert_eq!(line["level"], "ERROR", "{line}");
        assert!(metric(&world, "server_certificate_expiry_seconds").await < 0.0);
    })
    .await;
}
