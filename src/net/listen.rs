//! Listening sockets.

use std::io;
use std::net::SocketAddr;
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
