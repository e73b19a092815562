//! Where `[admin]` listens: a TCP port, or a Unix socket, which says by its mode who may ask.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use crate::config::AdminAddress;
use crate::net::listen;

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

/// The file of a Unix socket, which goes when this is dropped, unless another has its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
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
                let (listener, socket) = bind_unix(path, group.as_deref())?;
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

/// The socket is made in a folder that only this user can enter, and comes to its place when it has its
/// mode: nobody else can connect in between.
fn bind_unix(path: &Path, group: Option<&str>) -> io::Result<(UnixListener, SocketFile)> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            let problem = "there is something else than a socket, which is left alone";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
        }
        Ok(_) if Probe::connect(path).is_ok() => return Err(io::ErrorKind::AddrInUse.into()),
        _ => {}
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    let folder = tempfile::Builder::new().prefix(".").rand_bytes(6).tempdir_in(parent)?;
    let made = folder.path().join("s");
    let listener = UnixListener::bind(&made)?;
    let mode = match group {
        Some(group) => {
            chown(&made, None, Some(gid(group)?))?;
            0o660
        }
        None => 0o600,
    };
    fs::set_permissions(&made, fs::Permissions::from_mode(mode))?;
    let file = inode(&made)?;
    fs::rename(&made, path)?;
    Ok((listener, SocketFile { path: path.to_owned(), file }))
}

/// The number of a group of this machine, by its name or itself.
fn gid(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group")?;
    // group(5)
    let number = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is = fields.next() == Some(group);
        if is { fields.nth(1)?.parse().ok() } else { None }
    });
    let missing = || {
        let problem = format!("there is no group {group:?} in /etc/group");
        io::Error::new(io::ErrorKind::NotFound, problem)
    };
    number.ok_or_else(missing)
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|file| file == self.file) {
            // The next program that listens there replaces what is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}
