//! Whether a backend is mailchime itself, which its name may hide.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::ports::{GREETING_TIME, greeting};
use super::resolver;
use crate::config::{Config, takes};
use crate::net::dial;

/// The listener of this configuration to which a backend's host and port lead: mailchime greets there, or nobody does yet.
pub(super) async fn listener_at(host: &str, port: u16, config: &Config) -> Option<SocketAddr> {
    let of_port = || config.listeners.iter().filter(|listener| listener.address.port() == port);
    of_port().next()?;
    let resolver = resolver(config);
    let addresses = timeout(GREETING_TIME, resolver.resolve(host, port)).await.ok()?.ok()?;
    for address in addresses.into_iter().take(dial::MOST_ADDRESSES) {
        let listener = of_port().find(|listener| takes(listener.address, address));
        let listener = listener.filter(|_| is_here(address));
        let connected = timeout(GREETING_TIME, TcpStream::connect(address)).await;
        match (listener, connected) {
            (Some(listener), Ok(Ok(_))) => {
                let seen = timeout(GREETING_TIME, greeting(listener, config)).await.ok()?.ok()?;
                return seen.is_ours().then_some(listener.address);
            }
            (None, Ok(Ok(_))) => return None,
            (Some(listener), Ok(Err(error)))
                if error.kind() == io::ErrorKind::ConnectionRefused =>
            {
                return Some(listener.address);
            }
            // The next one's turn.
            _ => {}
        }
    }
    None
}

/// Whether an address is this machine's: what the system sends there comes from it. Nothing is sent.
fn is_here(address: SocketAddr) -> bool {
    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    address.ip().is_loopback() || source.is_ok_and(|source| source.ip() == address.ip())
}
