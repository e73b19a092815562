//! Certificates of a backend that its administrator has made with openssl alone, and named in `ca`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use mailchime::config::{self, BackendTls, TrustConfig};
use mailchime::demo::backend::DemoBackend;
use mailchime::net::backend::Backend;
use mailchime::net::resolve::NameResolver;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use crate::support::line::Line;
use crate::support::skip::skipped;
use crate::support::{limited, listener, soon};

/// For what is expected to come about at once.
const LIMIT: Duration = Duration::from_secs(90);

/// A folder in which openssl makes certificates.
pub(crate) struct Openssl(TempDir);

impl Openssl {
    /// `None` where `test` cannot run for the lack of it.
    pub(crate) fn new(test: &str) -> Option<Self> {
        (!skipped(test, "openssl")).then(|| Self(tempfile::tempdir().unwrap()))
    }

    pub(crate) fn run(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(self.0.path());
        let output = command.output().expect("openssl runs");
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}: {why}");
    }

    /// `NAME.pem` and `NAME.key`, signed by itself, as `openssl req -x509` makes them with these options.
    pub(crate) fn self_signed(&self, name: &str, options: &str) -> PathBuf {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        self.run(&format!("req -x509 {key} -keyout {name}.key -out {name}.pem {options}"));
        self.file(&format!("{name}.pem"))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    /// A server with `NAME.pem` and `NAME.key`.
    fn server(&self, name: &str) -> Arc<ServerConfig> {
        let chain = CertificateDer::pem_file_iter(self.file(&format!("{name}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key"))).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
        Arc::new(config)
    }
}

/// What mailchime makes of a server with the certificate `shown` where `ca` names a file with
/// `named`, and the certificate must bear this name.
async fn tried(openssl: &Openssl, shown: &str, named: &str, name: &str) -> Result<(), String> {
    let socket = listener().await;
    let port = socket.local_addr().unwrap().port();
    let _server = DemoBackend::start(socket, Some(openssl.server(shown))).unwrap();
    let trust = TrustConfig { ca: Some(openssl.file(named)), server_name: name.into() };
    let config = config::BackendConfig::new("127.0.0.1", port, BackendTls::Implicit(trust));
    let backend = Backend::new(&config, LIMIT, &NameResolver::default()).unwrap();
    backend.probe(LIMIT, 16 * 1024).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_self_signed_certificate_that_ca_names_can_be_used() {
    const TEST: &str = "a_self_signed_certificate_that_ca_names_can_be_used";
    let Some(openssl) = Openssl::new(TEST) else { return };
    limited(async {
        // As `openssl req -x509` makes them without a word more, CA:TRUE is in them.
        openssl.self_signed("plain", "-subj /CN=mail.example");
        openssl.self_signed("san", "-subj /CN=x -addext subjectAltName=DNS:mail.example");
        // As Proton Mail Bridge makes its own.
        openssl.self_signed(
            "bridge",
            "-subj /C=CH/O=Bridge/CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 \
             -addext keyUsage=digitalSignature,keyEncipherment,keyCertSign \
             -addext extendedKeyUsage=clientAuth,serverAuth"
                .replace("  ", "")
                .as_str(),
        );
        // The way that was always open.
        openssl.self_signed(
            "leaf",
            "-subj /CN=x -addext subjectAltName=DNS:mail.example -addext basicConstraints=CA:FALSE",
        );
        openssl
            .self_signed("leaf-plain", "-subj /CN=mail.example -addext basicConstraints=CA:FALSE");
        for (shown, name) in [
            ("plain", "mail.example"),
            ("plain", "MAIL.example"),
            ("san", "mail.example"),
            ("bridge", "127.0.0.1"),
            ("leaf", "mail.example"),
            ("leaf-plain", "mail.example"),
        ] {
            let tried = tried(&openssl, shown, &format!("{shown}.pem"), name).await;
            assert_eq!(tried, Ok(()), "{shown} for {name}");
        }
        // One of several in the file.
        let several: String = ["san", "leaf", "plain"]
            .map(|name| std::fs::read_to_string(openssl.file(&format!("{name}.pem"))).unwrap())
            .concat();
        std::fs::write(openssl.file("several.pem"), several).unwrap();
        for shown in ["plain", "san", "leaf"] {
            assert_eq!(
                tried(&openssl, shown, "several.pem", "mail.example").await,
                Ok(()),
                "{shown}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn no_other_certificate_passes_for_one_that_ca_names() {
    const TEST: &str = "no_other_certificate_passes_for_one_that_ca_names";
    let Some(openssl) = Openssl::new(TEST) else { return };
    limited(async {
        let san = "-subj /CN=mail.example -addext subjectAltName=DNS:mail.example";
        openssl.self_signed("named", san);
        // The same names, and a key of its own.
        openssl.self_signed("impostor", san);
        // The same key, and not the same certificate.
        openssl.run(&format!("req -x509 -key named.key -out again.pem -days 9 {san}"));
        std::fs::copy(openssl.file("named.key"), openssl.file("again.key")).unwrap();
        openssl.self_signed("client", &format!("{san} -addext extendedKeyUsage=clientAuth"));
        openssl.self_signed("other", "-subj /CN=mail.example -addext subjectAltName=DNS:o.example");
        openssl.self_signed("plain", "-subj /CN=mail.example");
        // A certificate with CA:TRUE that another has signed is no end-entity's, named or not.
        openssl.self_signed("root", "-subj /CN=root");
        openssl.run(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout signed.key -out signed.csr {san}"
        ));
        std::fs::write(
            openssl.file("signed.ext"),
            "basicConstraints=CA:TRUE\nsubjectAltName=DNS:mail.example\n",
        )
        .unwrap();
        openssl.run(
            "x509 -req -in signed.csr -CA root.pem -CAkey root.key -CAcreateserial -extfile signed.ext \
             -out signed.pem"
                .replace("  ", "")
                .as_str(),
        );
        for (shown, named, name, why) in [
            ("impostor", "named.pem", "mail.example", "certificate"),
            ("again", "named.pem", "mail.example", "CaUsedAsEndEntity"),
            ("client", "client.pem", "mail.example", "InvalidPurpose"),
            ("named", "named.pem", "other.example", "not valid for name"),
            ("named", "named.pem", "127.0.0.1", "not valid for name"),
            // Where there are alternative names, the common name is none.
            ("other", "other.pem", "mail.example", "not valid for name"),
            ("plain", "plain.pem", "x.mail.example", "not valid for name"),
            ("signed", "signed.pem", "mail.example", "certificate"),
            ("signed", "root.pem", "mail.example", "CaUsedAsEndEntity"),
        ] {
            let refused = tried(&openssl, shown, named, name).await.unwrap_err();
            assert!(refused.contains(why), "{shown} for {name} by {named}: {refused}");
        }
    })
    .await;
}

/// After STARTTLS, as the mail bridges of this machine do it, and by a login.
#[tokio::test]
async fn a_self_signed_certificate_is_pinned_after_starttls_as_well() {
    const TEST: &str = "a_self_signed_certificate_is_pinned_after_starttls_as_well";
    let Some(openssl) = Openssl::new(TEST) else { return };
    limited(async {
        openssl.self_signed("bridge", "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1");
        let socket = listener().await;
        let port = socket.local_addr().unwrap().port();
        let ca = Some(openssl.file("bridge.pem"));
        let tls = BackendTls::StartTls(TrustConfig { ca, server_name: "127.0.0.1".into() });
        let config = config::BackendConfig::new("127.0.0.1", port, tls);
        let backend = Backend::new(&config, LIMIT, &NameResolver::default()).unwrap();
        let acceptor = TlsAcceptor::from(openssl.server("bridge"));
        let playing = async {
            let mut line = Line::of(socket.accept().await.unwrap().0);
            line.send("* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n").await;
            assert_eq!(line.line().await, "m0 STARTTLS");
            line.send("m0 OK go\r\n").await;
            let stream =
                acceptor.accept(line.0.into_inner()).await.map_err(|error| error.to_string());
            let mut line = Line::of(stream?);
            assert_eq!(line.line().await, "m1 CAPABILITY");
            line.send("* CAPABILITY IMAP4rev1\r\nm1 OK\r\n").await;
            assert_eq!(line.line().await, "m2 LOGOUT");
            Ok::<_, String>(())
        };
        let (probed, played) =
            soon("the probe", async { tokio::join!(backend.probe(LIMIT, 1024), playing) }).await;
        assert_eq!(probed.map_err(|error| error.to_string()), Ok(()));
        assert_eq!(played, Ok(()));
    })
    .await;
}
