//! Listening sockets.

use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::time::Duration;

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::stream::tune;

/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: i32 = 1024;

/// Pause after an error that accepting again at once would only repeat: no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// Binds `address`. An IPv6 wildcard takes IPv4 as well.
///
/// # Errors
/// What the system says; the caller names the address.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of its predecessor to time out.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether the address at which nobody could listen may be free later: another program may give it up, and a network may
/// come up.
pub fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, NetworkDown, NetworkUnreachable};

    matches!(error.kind(), AddrInUse | AddrNotAvailable | NetworkDown | NetworkUnreachable)
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// What to do where nobody could listen at the address of this key; `None` where what the system says is all. A Unix socket
/// has no `address` here.
pub fn remedy(error: &io::Error, address: Option<SocketAddr>, key: &str) -> Option<String> {
    if let Some(SocketAddr::V6(address)) = address
        && let Some(instead) = without_ipv6(error, address)
    {
        return Some(format!("this machine has no IPv6: write {instead}"));
    }
    let is_of_root = address.is_some_and(|address| (1..1024).contains(&address.port()));
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            Some(format!("another program listens there: stop it, or change {key}"))
        }
        io::ErrorKind::AddrNotAvailable => {
            Some(format!("this machine has no such address: correct {key}"))
        }
        io::ErrorKind::PermissionDenied if is_of_root => {
            let remedy = "ports below 1024 need root or CAP_NET_BIND_SERVICE, which the unit gives";
            Some(remedy.to_owned())
        }
        _ => None,
    }
}

/// What to write in place of an address that a kernel without IPv6 does not have.
fn without_ipv6(error: &io::Error, address: SocketAddrV6) -> Option<String> {
    let is_unknown = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    let is_missing = error.kind() == io::ErrorKind::AddrNotAvailable;
    let (ip, port) = (address.ip(), address.port());
    if ip.is_unspecified() && (is_unknown || is_missing) {
        Some(format!("0.0.0.0:{port}"))
    } else if ip.is_loopback() && (is_unknown || is_missing) {
        Some(format!("127.0.0.1:{port}"))
    } else {
        is_unknown.then(|| "an IPv4 address".to_owned())
    }
}

/// The sockets that systemd hands over (LISTEN_FDS of sd_listen_fds(3)), in the order of its unit.
///
/// To be called before there are threads, for it clears the variables: a child of this process must
/// not take them for its own.
///
/// # Errors
/// If one of them is no TCP socket.
pub fn inherited() -> io::Result<Vec<std::net::TcpListener>> {
    let mut sockets = ListenFd::from_env();
    (0..sockets.len()).filter_map(|index| sockets.take_tcp_listener(index).transpose()).collect()
}

/// A socket that [`inherited`] gave, which listens already.
///
/// # Errors
/// When the runtime cannot take the socket.
pub fn adopt(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

/// The next connection. Errors are survived: a peer that is gone again does not matter, and where
/// descriptors are short `make_room` is asked to free some before the next try. Cancel safe.
pub async fn accept(listener: &TcpListener, make_room: impl Fn()) -> (TcpStream, SocketAddr) {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tune(&stream);
                return (stream, canonical(peer));
            }
            Err(error) if is_peers_fault(&error) => {}
            Err(error) => {
                // Once: it may last, and the log must not fill up with it.
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(
                        target: "mailchime::net::accept_failed",
                        %error,
                        "could not accept connections; mailchime keeps trying. If too many files \
                         are open, raise the limit (LimitNOFILE)"
                    );
                }
                make_room();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// An IPv4 address that came in over an IPv6 socket, as IPv4.
pub fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

fn is_peers_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::config::takes;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_machine_without_ipv6_is_named_with_what_to_write() {
        let said = |error: Errno, text: &str| {
            let error = io::Error::from_raw_os_error(error.raw_os_error());
            remedy(&error, Some(address(text)), "[api] address").unwrap_or_default()
        };
        for (error, text, expected) in [
            (Errno::AFNOSUPPORT, "[::]:993", "this machine has no IPv6: write 0.0.0.0:993"),
            (Errno::ADDRNOTAVAIL, "[::]:993", "this machine has no IPv6: write 0.0.0.0:993"),
            (Errno::AFNOSUPPORT, "[::1]:8143", "this machine has no IPv6: write 127.0.0.1:8143"),
            (Errno::ADDRNOTAVAIL, "[::1]:8143", "this machine has no IPv6: write 127.0.0.1:8143"),
            (
                Errno::AFNOSUPPORT,
                "[2001:db8::1]:993",
                "this machine has no IPv6: write an IPv4 address",
            ),
            (
                Errno::ADDRNOTAVAIL,
                "[2001:db8::1]:993",
                "this machine has no such address: correct [api] address",
            ),
            (
                Errno::ADDRNOTAVAIL,
                "192.0.2.1:993",
                "this machine has no such address: correct [api] address",
            ),
            (
                Errno::ADDRINUSE,
                "[::]:993",
                "another program listens there: stop it, or change [api] address",
            ),
            (
                Errno::ACCESS,
                "[::]:993",
                "ports below 1024 need root or CAP_NET_BIND_SERVICE, which the unit gives",
            ),
            (Errno::ACCESS, "[::]:8143", ""),
        ] {
            assert_eq!(said(error, text), expected, "{error} at {text}");
        }
        let forbidden = io::Error::from_raw_os_error(Errno::ACCESS.raw_os_error());
        assert_eq!(remedy(&forbidden, None, "[admin] address"), None);
    }

    /// What the configuration refuses is what the system would.
    #[tokio::test]
    async fn addresses_exclude_each_other_where_the_configuration_says_so() {
        let hosts = ["[::]", "0.0.0.0", "127.0.0.1", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]"];
        for first in hosts {
            // A machine without IPv6 says nothing of it.
            let Ok(bound) = bind(address(&format!("{first}:0"))) else { continue };
            let first = bound.local_addr().unwrap();
            for second in hosts.map(|host| address(&format!("{host}:{}", first.port()))) {
                let excludes = takes(first, second) || takes(second, first);
                match bind(second) {
                    Ok(_) => assert!(!excludes, "{first} and {second}"),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        assert!(excludes, "{first} and {second}");
                    }
                    Err(_) => {}
                }
            }
        }
    }
}
