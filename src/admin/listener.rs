//! Where `[admin]` listens: a TCP port, or a Unix socket, which says by its mode who may ask.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use crate::config::AdminAddress;
use crate::net::unix_socket::SocketFile;
use crate::net::{listen, unix_socket};

/// A connection.
pub(super) type AdminStream = Either<TcpStream, UnixStream>;

/// A listening socket.
#[derive(Debug)]
pub enum AdminListener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket, and its file.
    Unix(UnixListener, SocketFile),
}

impl AdminListener {
    /// Listens at `address`. A Unix socket has the mode 0600, or 0660 where it has a group; one that
    /// nobody listens at any more is replaced.
    ///
    /// # Errors
    /// What the system says; `AddrInUse` where somebody listens there.
    pub fn bind(address: &AdminAddress) -> io::Result<Self> {
        match address {
            AdminAddress::Tcp(address) => Ok(Self::Tcp(listen::bind(*address)?)),
            AdminAddress::Unix { path, group } => {
                let (listener, socket) = unix_socket::listen(path, group.as_deref())?;
                Ok(Self::Unix(listener, socket))
            }
        }
    }

    /// The address, if it is one of TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// The next connection, and the address of this machine that it was made to.
    pub(super) async fn accept(&self) -> io::Result<(AdminStream, Option<IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let local = stream.local_addr()?.ip().to_canonical();
                Ok((Either::Left(stream), Some(local)))
            }
            Self::Unix(listener, _) => Ok((Either::Right(listener.accept().await?.0), None)),
        }
    }
}

impl From<TcpListener> for AdminListener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}
