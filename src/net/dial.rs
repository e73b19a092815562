//! Connecting: the addresses of a name, one after the other, within one deadline; through a proxy where
//! one is to be asked; and TLS.
//!
//! A backend takes the steps one by one, as it has its own to take between them. All else that mailchime
//! connects to is reached with a [`Dialer`].

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::guard::Guard;
use super::resolve::NameResolver;
use super::stream::tune;
use super::tls::RefusedCertificate;
use super::tunnel::Tunnel;

/// Addresses of a host that are tried.
pub const MOST_ADDRESSES: usize = 8;

/// One address's turn.
#[derive(Clone, Copy, Debug)]
pub struct AddressTurn {
    /// Where to connect.
    pub address: SocketAddr,
    /// An equal share of what is left of the time, so that an address that swallows packets does not use
    /// it up.
    pub limit: Duration,
    /// No other address comes after it.
    pub is_last: bool,
}

/// Connects to servers over TLS, directly or through an HTTP proxy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dialer {
    resolver: NameResolver,
    tunnel: Option<Arc<Tunnel>>,
    tls: Arc<ClientConfig>,
    guard: Option<Arc<Guard>>,
}

/// Why a [`Dialer`] did not connect. `Display` is a clause for people that names the step.
#[derive(Debug)]
pub struct DialError {
    step: &'static str,
    /// `None`: it took too long.
    source: Option<io::Error>,
}

// === impl Dialer ===

impl Dialer {
    /// `resolver` knows the names of the servers, or that of the proxy of `tunnel`, which then looks up
    /// the servers' names. `tls` says which servers are believed.
    pub fn new(resolver: NameResolver, tunnel: Option<Tunnel>, tls: Arc<ClientConfig>) -> Self {
        Self { resolver, tunnel: tunnel.map(Arc::new), tls, guard: None }
    }

    /// Goes to no address that `guard` refuses, and remembers names apart from those of others. A proxy looks up
    /// names itself, so nobody sees then where they lead.
    pub fn guarded(self, guard: Arc<Guard>) -> Self {
        Self { resolver: self.resolver.apart(), guard: Some(guard), ..self }
    }

    /// A connection to `host`, a name or an IP address without brackets, whose certificate is for
    /// that name. Name, TCP, tunnel and TLS together end at `deadline`.
    ///
    /// # Errors
    /// [`DialError`] says which step failed, and why.
    pub async fn connect(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let (at, at_port) = self.tunnel.as_ref().map_or((host, port), |tunnel| tunnel.proxy());
        let mut tcp = step("TCP", deadline, async {
            let mut addresses = self.resolver.resolve(at, at_port).await?;
            if let (Some(guard), None) = (&self.guard, &self.tunnel) {
                addresses = guard.public(host, addresses)?;
            }
            first_of(&addresses, deadline).await
        })
        .await?;
        if let Some(tunnel) = &self.tunnel {
            step("proxy", deadline, tunnel.open(&mut tcp, host, port)).await?;
        }
        step("TLS", deadline, async {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| io::Error::other(format!("{host} is no name of a server")))?;
            tls(tcp, &self.tls, name).await
        })
        .await
    }

    /// A connection in the clear, until `deadline`, to a server of this machine.
    ///
    /// # Errors
    /// [`DialError`] says which step failed, and why: `PermissionDenied` where `host` is another machine.
    pub async fn connect_here(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<TcpStream, DialError> {
        step("TCP", deadline, async {
            let mut addresses = self.resolver.resolve(host, port).await?;
            addresses.retain(|address| address.ip().is_loopback());
            if addresses.is_empty() {
                let why = format!("{host} is not this machine, so nothing is sent unencrypted");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
            first_of(&addresses, deadline).await
        })
        .await
    }
}

// === impl DialError ===

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.step),
            None => write!(f, "{}: no answer in time", self.step),
        }
    }
}

impl std::error::Error for DialError {}

async fn step<T>(
    step: &'static str,
    deadline: Instant,
    doing: impl Future<Output = io::Result<T>>,
) -> Result<T, DialError> {
    match timeout_at(deadline, doing).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(DialError { step, source: Some(error) }),
        Err(_) => Err(DialError { step, source: None }),
    }
}

/// The turns of at most [`MOST_ADDRESSES`] addresses until `deadline`. What an address leaves of its share
/// is for those after it.
pub fn turns(
    addresses: &[SocketAddr],
    deadline: Instant,
) -> impl Iterator<Item = AddressTurn> + use<'_> {
    let addresses = &addresses[..addresses.len().min(MOST_ADDRESSES)];
    addresses.iter().zip((1..=addresses.len()).rev()).map(move |(address, left)| {
        let rest = deadline.saturating_duration_since(Instant::now());
        let limit = rest / u32::try_from(left).unwrap_or(u32::MAX);
        AddressTurn { address: *address, limit, is_last: left == 1 }
    })
}

/// What is said of a name that has no address.
pub fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
}

/// A TCP connection to one address, tuned as all are.
///
/// # Errors
/// What the system says.
pub async fn address(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    tune(&stream);
    Ok(stream)
}

/// A TCP connection to the first of `addresses` that accepts one, until `deadline`.
///
/// # Errors
/// Why the last address did not accept.
pub async fn first_of(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut failure = no_address();
    for turn in turns(addresses, deadline) {
        failure = match timeout(turn.limit, address(turn.address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
    }
    Err(failure)
}

/// Begins TLS on a connection, whose certificate must be for `name`. It has no limit of time of its own.
///
/// # Errors
/// When the connection fails, or the server is not the one that it should be.
pub async fn tls(
    stream: TcpStream,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
        .map_err(RefusedCertificate::instead_of)
}
