//! The certificate that phones see: what is missing in its file, and its dates.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

use crate::support::limited;
use crate::support::world::World;

/// SEQUENCE { SEQUENCE { caIssuers, [6] "u:a" } }: where the authority's certificate can be downloaded (RFC 5280
/// section 4.2.2.1).
const ACCESS: &[u8] = b"\x30\x11\x30\x0f\x06\x08\x2b\x06\x01\x05\x05\x07\x30\x02\x86\x03u:a";

fn params(name: &str, is_ca: bool) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    } else {
        let oid = [1, 3, 6, 1, 5, 5, 7, 1, 1];
        params.custom_extensions.push(CustomExtension::from_oid_content(&oid, ACCESS.to_vec()));
    }
    params
}

#[tokio::test]
async fn a_certificate_without_its_intermediate_is_not_ok() {
    limited(async {
        let world = World::new().await;
        let keys: [KeyPair; 3] = std::array::from_fn(|_| KeyPair::generate().unwrap());
        let [root_key, middle_key, leaf_key] = keys;
        let root = params("Root", true);
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let root = Issuer::new(root, root_key);
        let middle = params("Middle", true);
        let middle_pem = middle.signed_by(&middle_key, &root).unwrap().pem();
        let middle = Issuer::new(middle, middle_key);
        let leaf_pem = params("leaf", false).signed_by(&leaf_key, &middle).unwrap().pem();
        fs::write(world.file("root.pem"), &root_pem).unwrap();
        fs::write(world.file("server.key"), leaf_key.serialize_pem()).unwrap();
        let trusted = world.file("root.pem").display().to_string();
        let variables = [("SSL_CERT_FILE", &*trusted)];

        // As certbot's cert.pem and fullchain.pem are.
        fs::write(world.file("server.pem"), &leaf_pem).unwrap();
        let said = world.command_with(&["check"], &variables).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        let line = said.line("FAILED   [tls]: ");
        for part in ["server.pem", "CN=Middle", "phones refuse it", "fullchain.pem"] {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
        fs::write(world.file("server.pem"), format!("{leaf_pem}{middle_pem}")).unwrap();
        let said = world.command_with(&["check"], &variables).await;
        assert_eq!(said.code, 0, "{}", said.stdout);
        said.line("ok       [tls]: ");
        assert!(!said.stdout.contains("warning  [tls]"), "{}", said.stdout);

        // An authority that this system does not know may be installed on the phones.
        let other = world.file("ca.pem").display().to_string();
        let said = world.command_with(&["check"], &[("SSL_CERT_FILE", &*other)]).await;
        assert_eq!(said.code, 0, "{}", said.stdout);
        assert!(said.line("warning  [tls]: ").contains("CN=Root"), "{}", said.stdout);
    })
    .await;
}

/// A server certificate that is valid from so many days from now, or before, to so many.
fn valid(world: &World, days: std::ops::Range<i64>) {
    let now = date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let at = |days: i64| {
        let by = Duration::from_secs(days.unsigned_abs() * 86_400);
        if days < 0 { now - by } else { now + by }
    };
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (at(days.start), at(days.end));
    let key = KeyPair::generate().unwrap();
    fs::write(world.file("server.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(world.file("server.key"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn a_start_with_a_server_certificate_out_of_its_dates_is_not_silent() {
    limited(async {
        for (days, message, checked) in [
            (
                -90..-2,
                "a server certificate has expired, and clients refuse to connect; renew it",
                "expired on",
            ),
            (
                2..90,
                "a server certificate is not valid yet, and clients refuse to connect; is the clock right?",
                "is valid from",
            ),
        ] {
            let world = World::new().await;
            valid(&world, days);
            let mut server = world.serve().await;
            let line = server.logged(message).await;
            assert_eq!(line["level"], "ERROR", "{line}");
            assert!(line["certificate"].as_str().unwrap().ends_with("server.pem"), "{line}");
            let said = world.command(&["check"]).await;
            assert_eq!(said.code, 1, "{}", said.stdout);
            assert!(said.line("FAILED   [tls]: ").contains(checked), "{}", said.stdout);
        }
    })
    .await;
}
