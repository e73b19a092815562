//! What to do about a backend that cannot be used: by what it says, and by what it says where it is asked in another
//! way.

use std::io;
use std::time::Duration;

use rustls::CertificateError;
use rustls::pki_types::ServerName;

use super::{ANSWER_TIME, resolver};
use crate::config::{BackendConfig, BackendTls, Config, PublicKeyPin, TrustConfig};
use crate::imap::greeting::Greeting;
use crate::imap::refusal::Refusal;
use crate::net::backend::{Backend, ConnectError, LoginError};
use crate::net::tls::RefusedCertificate;

/// For a connection by which it is found out what the server speaks.
const TRIAL_TIME: Duration = Duration::from_secs(5);

/// Most names of a certificate that are shown.
const NAMES: usize = 5;

/// What to do about a backend that could not be asked what it offers.
pub(super) async fn of_backend(error: &LoginError, how: &BackendConfig, config: &Config) -> String {
    if let Some(remedy) = of_refused_certificate(error) {
        return remedy;
    }
    let spoken = match (error, &how.tls) {
        // Asked in the clear it says what it is.
        (LoginError::Connect(ConnectError::Io { source, .. }), BackendTls::Implicit(_))
            if tls_error(source).is_some() || is_hang_up(source) =>
        {
            in_the_clear(how, config).await
        }
        (
            LoginError::Connect(ConnectError::Timeout { missing: "TLS handshake", .. }),
            BackendTls::Implicit(_),
        ) => in_the_clear(how, config).await,
        (LoginError::Connect(ConnectError::Timeout { missing: "greeting", .. }), _) => {
            in_tls(how, config).await
        }
        (LoginError::Connect(ConnectError::Io { source, .. }), _) if is_hang_up(source) => {
            in_tls(how, config).await
        }
        (LoginError::Connect(ConnectError::Unfit { said, .. }), _)
            if Greeting::of(said) == Greeting::Other =>
        {
            in_tls(how, config).await
        }
        _ => None,
    };
    if let Some(spoken) = spoken {
        return spoken;
    }
    let remedy = of_login(error);
    match error {
        LoginError::Connect(
            ConnectError::Timeout { missing: "greeting" | "TLS handshake", .. }
            | ConnectError::Io { .. },
        ) if how.proxy_protocol => format!(
            "with proxy_protocol = true the server must expect a PROXY header from mailchime's address \
             (Dovecot: haproxy = yes in its inet_listener, and haproxy_trusted_networks); send_id = true needs \
             neither; {remedy}"
        ),
        LoginError::Connect(ConnectError::Io { source, .. }) if is_hang_up(source) => {
            format!("it may expect a PROXY header (proxy_protocol = true); {remedy}")
        }
        _ => remedy.to_owned(),
    }
}

/// The same by the error alone.
pub(super) fn of_login(error: &LoginError) -> &'static str {
    match error {
        LoginError::Connect(ConnectError::Io { source, .. }) => match source.kind() {
            io::ErrorKind::ConnectionRefused => "is it running, and are host and port right?",
            io::ErrorKind::InvalidData => {
                "see whether the port speaks TLS from the first byte, and TLS 1.2 or newer"
            }
            _ if source.to_string().contains("refuses STARTTLS") => {
                "switch TLS on in the server (Dovecot: ssl = yes), or set tls = \"implicit\" with the port \
                 that has it, 993 in most cases; tls = \"none\" is right on one machine alone"
            }
            _ => "see whether host and port are right and this machine reaches them",
        },
        LoginError::Connect(ConnectError::Timeout { missing: "greeting", .. }) => {
            "it takes connections and says nothing: see whether it is an IMAP server, and whether it wants \
             another `tls`"
        }
        LoginError::Connect(ConnectError::Unfit { said, .. }) => match Greeting::of(said) {
            Greeting::Bye => "it serves nobody at the moment: see what its own log says",
            Greeting::Preauth => "name a port at which users log in",
            _ => of_words(said),
        },
        LoginError::Connect(_) => "see whether this machine reaches it, a firewall may be between",
        LoginError::Refused { refusal: Refusal::Temporary, .. } => {
            "the server has trouble of its own, which may pass: see what it logs"
        }
        LoginError::Refused { refusal: Refusal::Barred, .. } => {
            "name and password are not the reason: see what the server allows this user"
        }
        LoginError::Refused { .. } => "see whether login name and password are right",
        LoginError::Unavailable(_) => {
            "see whether it is an IMAP server, and whether it wants another `tls`"
        }
    }
}

/// Of a server that speaks something else than IMAP.
fn of_words(said: &[u8]) -> &'static str {
    let starts = |with: &[&[u8]]| with.iter().any(|with| said.starts_with(with));
    if starts(&[b"220", b"554"]) {
        "that is SMTP or FTP: name the port of IMAP"
    } else if starts(&[b"+OK", b"-ERR"]) {
        "that is POP3: name the port of IMAP"
    } else if starts(&[b"HTTP/"]) {
        "that is HTTP: name the port of IMAP"
    } else if starts(&[b"SSH-"]) {
        "that is SSH: name the port of IMAP"
    } else if starts(&[b"\"IMPLEMENTATION\""]) {
        "that is ManageSieve: name the port of IMAP"
    } else if starts(&[b"\x15\x03"]) {
        "that is TLS: set tls = \"implicit\""
    } else {
        "see whether it is an IMAP server, and what its own log says"
    }
}

/// What to do about a server whose certificate is not trusted; `None` where that is not what is wrong.
pub(in crate::cli) fn of_refused_certificate(error: &LoginError) -> Option<String> {
    refused_certificate(error).map(of_certificate)
}

fn of_certificate(certificate: &RefusedCertificate) -> String {
    let pin = match certificate.pin {
        Some(pin) => format!(
            "; or, if it is the right server and its public key is this one, trust that alone: tls_pin_sha256 = \
             \"{pin}\""
        ),
        None => String::new(),
    };
    let remedy = match &certificate.why {
        _ if certificate.is_outdated => {
            "the server's certificate is of X.509 version 1: make one of version 3 there (openssl req -x509 \
             -addext subjectAltName=DNS:HOST)"
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<_> = presented.iter().take(NAMES).map(|name| plain(name)).collect();
            return format!(
                "the certificate is for {}: set server_name to that name{pin}",
                if names.is_empty() { "no name".to_owned() } else { names.join(", ") }
            );
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "renew the server's certificate, or is this machine's clock wrong?"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is the clock of this machine or of the server wrong?"
        }
        _ if certificate.is_self_issued => {
            "the certificate has signed itself: name a copy of it in `ca`"
        }
        CertificateError::UnknownIssuer => {
            "name the authority that has signed it in `ca`, or have the server send the certificates between \
             its own and that authority"
        }
        _ => "name the authority in `ca` or the certificate's name in `server_name`",
    };
    format!("{remedy}{pin}")
}

/// A name of a certificate as rustls shows it, such as `DnsName("imap.example.org")`.
fn plain(name: &str) -> String {
    let inside = name.split_once('(').and_then(|(_, name)| name.strip_suffix(')'));
    short(inside.unwrap_or(name).trim_matches('"'))
}

fn short(name: &str) -> String {
    name.chars().take(100).collect::<String>().escape_debug().to_string()
}

/// What a server that does not shake hands says in the clear.
async fn in_the_clear(how: &BackendConfig, config: &Config) -> Option<String> {
    Some(match tried(how, BackendTls::None, config).await? {
        Ok(true) => "the port does not speak TLS from the first byte, and has STARTTLS: set tls = \"starttls\", \
                     or name the port that does, 993 in most cases"
            .to_owned(),
        Ok(false) => "the port does not speak TLS: name the port that does, 993 in most cases; or, if the server \
                      is on this machine, set tls = \"none\""
            .to_owned(),
        Err(error @ LoginError::Connect(ConnectError::Unfit { .. })) => {
            format!("in the clear it says otherwise: {error}; {}", of_login(&error))
        }
        Err(_) => return None,
    })
}

/// Whether a server that says nothing, or nothing of IMAP, in the clear waits for TLS.
async fn in_tls(how: &BackendConfig, config: &Config) -> Option<String> {
    let name = ServerName::try_from(how.host.as_str()).ok()?;
    let trust = TrustConfig { ca: None, server_name: name.to_str().into_owned() };
    match tried(how, BackendTls::Implicit(trust), config).await? {
        Ok(_) => {}
        // A server that shows a certificate speaks TLS.
        Err(error) if refused_certificate(&error).is_some() => {}
        Err(_) => return None,
    }
    Some("the port speaks TLS from the first byte: set tls = \"implicit\"".to_owned())
}

/// What becomes of a connection with this TLS; where it greets, whether it offers STARTTLS. `None` where there is no
/// saying.
async fn tried(
    how: &BackendConfig,
    tls: BackendTls,
    config: &Config,
) -> Option<Result<bool, LoginError>> {
    // The pin is nobody's: no certificate is believed, and that one is shown is enough to know.
    let pin = Some(PublicKeyPin([0; 32]));
    let how = BackendConfig { tls, pin, master: None, doveadm: None, ..how.clone() };
    let backend = Backend::new(&how, TRIAL_TIME, &resolver(config)).ok()?;
    let probed = backend.probe(ANSWER_TIME, config.limits.capability_size).await;
    Some(probed.map(|()| backend.seen().is_some_and(|seen| seen.has("STARTTLS"))))
}

fn refused_certificate(error: &LoginError) -> Option<&RefusedCertificate> {
    let LoginError::Connect(ConnectError::Io { source, .. }) = error else { return None };
    source.get_ref()?.downcast_ref()
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}
