//! The sockets of `[[listener]]`, and the task that serves each.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::sync::watch as cell;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::config::{self, Config};
use crate::net::listen;
use crate::proxy;

/// A listener at work. It is closed when this is dropped; its sessions go on.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    /// What the listener's new sessions go by.
    pub(super) how: cell::Sender<config::ListenerConfig>,
    pub(super) serving: JoinHandle<()>,
    /// systemd gave it, so its address is systemd's matter.
    pub(super) inherited: bool,
}

/// A listening socket, and whether systemd gave it.
pub(super) struct ListenerSocket {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) inherited: bool,
}

/// A socket for each listener.
pub(super) fn sockets(
    config: &Config,
    inherited: Vec<std::net::TcpListener>,
) -> Result<Vec<ListenerSocket>, StartError> {
    let (given, wanted) = (inherited.len(), config.listeners.len());
    if given > wanted {
        return Err(StartError::Sockets { given, wanted });
    }
    let mut inherited = inherited.into_iter();
    let socket = |how: &config::ListenerConfig| ListenerSocket::open(how.address, inherited.next());
    config.listeners.iter().map(socket).collect()
}

impl ListenerSocket {
    pub(super) fn open(
        wanted: SocketAddr,
        given: Option<std::net::TcpListener>,
    ) -> Result<Self, StartError> {
        let inherited = given.is_some();
        let failed = |source| StartError::Listen { address: wanted, source };
        let opened = given.map_or_else(|| listen::bind(wanted), listen::adopt);
        let listener = opened.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, inherited })
    }
}

impl Listening {
    pub(super) fn start(
        socket: ListenerSocket,
        how: config::ListenerConfig,
        current: proxy::CurrentContext,
        stop: CancellationToken,
    ) -> Self {
        let ListenerSocket { listener, address, inherited } = socket;
        tracing::info!(target: "mailchime::app::listening", %address, "listening");
        let (how, changes) = cell::channel(how);
        let serving = tokio::spawn(proxy::serve(listener, changes, current, stop));
        Self { address, how, serving, inherited }
    }
}
