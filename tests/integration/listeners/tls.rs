//! Implicit TLS and STARTTLS, certificates by name, versions, ALPN and resumption.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use mailchime::config::{self, ListenerTls};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::support::in_process::{InProcess, demo_backend, logins, loopback};
use crate::support::line::Line;
use crate::support::skip::report;
use crate::support::{limited, soon};

/// Writes a certificate for these names, and its key.
pub(super) fn write_certificate(folder: &Path, file: &str, names: &[&str]) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
    std::fs::write(folder.join(format!("{file}.pem")), cert.pem()).unwrap();
    std::fs::write(folder.join(format!("{file}.key")), signing_key.serialize_pem()).unwrap();
}

pub(super) fn sni(folder: &Path, file: &str, name: &str) -> config::Sni {
    config::Sni {
        name: name.into(),
        certificates: vec![config::CertificateFiles::new(
            folder.join(format!("{file}.pem")),
            folder.join(format!("{file}.key")),
        )],
    }
}

/// What trusts each of these certificates.
pub(super) fn trusting(
    files: &[&Path],
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for file in files {
        roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Whether a client that asks for `name` is shown a certificate for it that `config` trusts; how
/// the handshake went, if so.
pub(super) async fn handshake(
    address: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> Option<HandshakeKind> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::clone(config));
    let mut stream = soon("the TLS handshake", connector.connect(name, stream)).await.ok()?;
    // Tickets come with the first bytes.
    let mut greeting = [0; 4];
    soon("the greeting", stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"* OK");
    stream.get_ref().1.handshake_kind()
}

#[tokio::test]
async fn several_listeners_serve_each_in_its_way() {
    limited(async {
        let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await;
        if let Err(error) = &has_ipv6 {
            let why = format!("its listener for IPv6: {error}");
            report("listeners::tls::several_listeners_serve_each_in_its_way", &why);
        }
        let backend = demo_backend(&["alice"]).await;
        let world = InProcess::start(backend.address(), |config| {
            let mut starttls = config.listeners[0].clone();
            starttls.tls = ListenerTls::StartTls;
            starttls.address = loopback();
            let mut ipv6 = starttls.clone();
            ipv6.address = (Ipv6Addr::LOCALHOST, 0).into();
            config.listeners.push(starttls);
            config.listeners.extend(has_ipv6.is_ok().then_some(ipv6));
        })
        .await;
        world.session("alice").await;
        let addresses = &world.mailchime.addresses;
        assert_eq!(addresses.iter().any(SocketAddr::is_ipv6), has_ipv6.is_ok());
        for address in &addresses[1..] {
            let mut client = Line::of(TcpStream::connect(address).await.unwrap());
            let greeting = client.line().await;
            assert!(greeting.contains(" STARTTLS LOGINDISABLED]"), "{greeting}");
            let refusal = client.log_in("alice", "secret").await;
            assert!(refusal.starts_with("in NO [PRIVACYREQUIRED]"), "{refusal}");
            assert_eq!(client.command("s STARTTLS").await, "s OK Begin TLS negotiation now");
            let mut client = Line::of(world.secured(client.0.into_inner()).await.unwrap());
            assert!(client.log_in("alice", "secret").await.starts_with("in OK"));
        }
        assert_eq!(logins(&backend, "alice"), addresses.len() as u64);
    })
    .await;
}

#[tokio::test]
async fn what_comes_before_the_handshake_closes_the_connection() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        let world = InProcess::start(backend.address(), |config| {
            config.listeners[0].tls = ListenerTls::StartTls;
        })
        .await;
        let mut client = Line::of(TcpStream::connect(world.address()).await.unwrap());
        client.line().await;
        client.send("s STARTTLS\r\ni LOGIN alice secret\r\n").await;
        let rest = client.rest().await;
        assert!(!rest.contains("i OK"), "{rest}");
        assert_eq!(logins(&backend, "alice"), 0);
    })
    .await;
}

#[tokio::test]
async fn a_client_is_shown_the_certificate_of_the_name_it_asks_for() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write_certificate(folder, "exact", &["imap.example.com"]);
        write_certificate(folder, "wild", &["*.example.com", "example.net"]);
        let backend = demo_backend(&[]).await;
        let world = InProcess::start(backend.address(), |config| {
            let names = [
                sni(folder, "exact", "imap.example.com"),
                sni(folder, "wild", "*.example.com"),
                sni(folder, "wild", "example.net"),
            ];
            config.tls.sni.extend(names);
        })
        .await;
        for version in [&TLS12, &TLS13] {
            let shown = async |name: &str| {
                let mut shown = Vec::new();
                for file in
                    [folder.join("exact.pem"), folder.join("wild.pem"), world.file("ca.pem")]
                {
                    let trusted = Arc::new(trusting(&[&file], &[version]));
                    if handshake(world.address(), name, &trusted).await.is_some() {
                        shown.push(file.file_stem().unwrap().to_str().unwrap().to_owned());
                    }
                }
                shown.join(" ")
            };
            assert_eq!(shown("imap.example.com").await, "exact");
            assert_eq!(shown("IMAP.Example.com").await, "exact");
            assert_eq!(shown("mail.example.com").await, "wild");
            assert_eq!(shown("example.net").await, "wild");
            assert_eq!(shown("localhost").await, "ca");
            assert_eq!(shown("127.0.0.1").await, "ca", "no name is asked for");
            // These are shown the default one, which is not for them.
            assert_eq!(shown("a.b.example.com").await, "");
            assert_eq!(shown("example.com").await, "");
        }
    })
    .await;
}

#[tokio::test]
async fn a_certificate_must_be_for_the_name_that_it_is_given() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        write_certificate(folder.path(), "exact", &["imap.example.com"]);
        let backend = demo_backend(&[]).await;
        let mut world = InProcess::start(backend.address(), |_| {}).await;
        for name in ["imap.example.org", "*.example.com"] {
            let mut config = world.config.clone();
            config.tls.sni.push(sni(folder.path(), "exact", name));
            let error = world.mailchime.reload(&config).await.unwrap_err().to_string();
            let file = folder.path().join("exact.pem");
            let expected =
                format!("[[tls.sni]] certificate: {}: is not for {name};", file.display());
            assert!(error.starts_with(&expected), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn alpn_refuses_nobody() {
    limited(async {
        let backend = demo_backend(&[]).await;
        let world = InProcess::start(backend.address(), |_| {}).await;
        for offered in [&["imap"][..], &["h2", "http/1.1"], &["imap", "h2"]] {
            let mut config = world.client_config();
            config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
            let kind = handshake(world.address(), "localhost", &Arc::new(config)).await;
            assert_eq!(kind, Some(HandshakeKind::Full), "{offered:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_is_resumed_also_after_the_configuration_was_read_again() {
    limited(async {
        let backend = demo_backend(&[]).await;
        let mut world = InProcess::start(backend.address(), |_| {}).await;
        for version in [&TLS12, &TLS13] {
            let config = Arc::new(trusting(&[&world.file("ca.pem")], &[version]));
            let address = world.address();
            let kind = handshake(address, "localhost", &config).await;
            assert_eq!(kind, Some(HandshakeKind::Full));
            let kind = handshake(address, "localhost", &config).await;
            assert_eq!(kind, Some(HandshakeKind::Resumed));
            let again = world.config.clone();
            world.mailchime.reload(&again).await.unwrap();
            let kind = handshake(address, "localhost", &config).await;
            assert_eq!(kind, Some(HandshakeKind::Resumed));
        }
    })
    .await;
}
