//! Connecting: the addresses of a name, one after the other, within one deadline.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, timeout};

use super::resolve::NameResolver;
use super::stream::tune;

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

/// A TCP connection to the first address of `host` that accepts one, until `deadline`. The look-up of
/// the name has no limit of its own.
///
/// # Errors
/// As [`NameResolver::resolve`], or why the last address did not accept.
pub async fn host(
    resolver: &NameResolver,
    host: &str,
    port: u16,
    deadline: Instant,
) -> io::Result<TcpStream> {
    let addresses = resolver.resolve(host, port).await?;
    let mut failure = no_address();
    for turn in turns(&addresses, deadline) {
        failure = match timeout(turn.limit, address(turn.address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
    }
    Err(failure)
}
