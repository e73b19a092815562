//! `[apns]`: the push service, and who we are to it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// `[apns]` or `[[apns]]`: one identity, how to reach the service with it, and whom it serves.
#[derive(Clone, Debug, PartialEq)]
pub struct ApnsConfig {
    /// The server that pushes go to.
    pub endpoint: ApnsServer,
    /// A PEM file that exists; `None` trusts the system's roots.
    pub ca: Option<PathBuf>,
    /// As whom mailchime pushes.
    pub identity: ProviderFiles,
    /// The domains whose users it serves, in lower case; empty: all that no other table names.
    pub domains: Vec<String>,
    /// `None` connects directly.
    pub proxy: Option<ProxyConfig>,
    /// For the connection, TLS included.
    pub connect_timeout: Duration,
    /// For the whole answer to one push.
    pub request_timeout: Duration,
    /// An idle connection is asked for a sign of life this often.
    pub ping_interval: Duration,
    /// Most pushes under way at once.
    pub in_flight: usize,
}

/// How we prove who we are; all files exist. The topic of a certificate is written in it, so there
/// `topic` only chooses among several.
#[derive(Clone, Debug, PartialEq)]
pub enum ProviderFiles {
    /// A client certificate and its key, both PEM.
    Pem {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of its private key.
        private_key: PathBuf,
        /// The topic.
        topic: Option<String>,
    },
    /// Both in one file (RFC 7292); without `password_file` its password is empty.
    Pkcs12 {
        /// The file.
        file: PathBuf,
        /// The file of its password, if it has one.
        password_file: Option<PathBuf>,
        /// The topic.
        topic: Option<String>,
    },
    /// A key that signs provider tokens: a `.p8` file of Apple's.
    Key {
        /// The file of the key.
        key: PathBuf,
        /// The id of the key.
        key_id: String,
        /// The id of the team.
        team_id: String,
        /// The topic.
        topic: String,
    },
}

/// A host that speaks HTTP/2 over TLS. `Display` gives `https://host:port`.
#[derive(Clone, Debug, PartialEq)]
pub struct ApnsServer {
    /// A name or an IP address, the latter without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// A proxy that is spoken to in the clear and asked for a tunnel (RFC 9110 section 9.3.6).
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    /// A name or an IP address, the latter without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// A file that exists, with `user:password` in its first line.
    pub login_file: Option<PathBuf>,
}

// === impl Apns ===

impl ApnsConfig {
    /// The production service with this client certificate, and the defaults.
    pub fn new(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        let (certificate, private_key) = (certificate.into(), private_key.into());
        Self::with(ProviderFiles::Pem { certificate, private_key, topic: None })
    }

    /// The production service with this identity, and the defaults.
    pub fn with(identity: ProviderFiles) -> Self {
        Self {
            endpoint: ApnsServer::production(),
            ca: None,
            identity,
            domains: Vec::new(),
            proxy: None,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_mins(1),
            in_flight: 500,
        }
    }
}

// === impl ApnsServer ===

impl ApnsServer {
    /// Apple's service for devices.
    pub fn production() -> Self {
        Self { host: "api.push.apple.com".into(), port: 443 }
    }

    /// Apple's service for development.
    pub fn sandbox() -> Self {
        Self { host: "api.sandbox.push.apple.com".into(), port: 443 }
    }
}

impl fmt::Display for ApnsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "https://[{}]:{}", self.host, self.port),
            false => write!(f, "https://{}:{}", self.host, self.port),
        }
    }
}
