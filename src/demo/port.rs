//! A TCP port that can be closed and opened again: the accept loop of both servers.
//!
//! It knows no protocol. What is to be done with a connection is a function that it is given.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A port that serves until it is dropped. Dropping it closes the socket and every connection.
pub(super) struct Port {
    address: SocketAddr,
    shared: Arc<PortShared>,
    /// The accept loop, if the port is open.
    accepting: Mutex<Option<(CancellationToken, JoinHandle<()>)>>,
    /// Holds the port while it is closed, so that nobody else gets it.
    kept: Mutex<Option<TcpSocket>>,
}

struct PortShared {
    serve: Box<dyn Fn(TcpStream) -> Served + Send + Sync>,
    tasks: TaskTracker,
    /// How many connections were ever accepted.
    accepted: AtomicU64,
    /// Ends everything.
    end: CancellationToken,
    /// Ends the connections that are open now; a child of `end`.
    connections: Mutex<CancellationToken>,
}

type Served = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How long to wait when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait to be accepted, after the port was closed and opened again.
const BACKLOG: u32 = 1024;

impl Port {
    /// Serves each connection to `listener` in a task of its own.
    pub(super) fn open<F, Fut>(listener: TcpListener, serve: F) -> io::Result<Self>
    where
        F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let end = CancellationToken::new();
        let port = Self {
            address: listener.local_addr()?,
            shared: Arc::new(PortShared {
                serve: Box::new(move |stream| Box::pin(serve(stream))),
                tasks: TaskTracker::new(),
                accepted: AtomicU64::new(0),
                connections: Mutex::new(end.child_token()),
                end,
            }),
            accepting: Mutex::new(None),
            kept: Mutex::new(None),
        };
        port.accept_from(listener);
        Ok(port)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were ever accepted.
    pub(super) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Closes the listening socket: clients that connect now are refused. What is open stays open.
    pub(super) async fn close(&self) {
        let accepting = self.accepting.lock().take();
        if let Some((token, task)) = accepting {
            token.cancel();
            // The loop only waits and spawns; there is nothing to fail.
            let _ = task.await;
            // If another program has taken the port by now, opening it again shows that.
            *self.kept.lock() = keep(self.address).ok();
        }
    }

    /// Listens again on the same port. Nothing happens if it does already.
    ///
    /// Fails if another program has taken the port in the moment in which it was closed.
    pub(super) async fn reopen(&self) -> io::Result<()> {
        if self.accepting.lock().is_none() {
            let kept = self.kept.lock().take();
            self.accept_from(match kept {
                Some(socket) => socket.listen(BACKLOG)?,
                None => TcpListener::bind(self.address).await?,
            });
        }
        Ok(())
    }

    /// Closes every connection that is open now, in the middle of whatever it does.
    pub(super) fn drop_connections(&self) {
        let fresh = self.shared.end.child_token();
        std::mem::replace(&mut *self.shared.connections.lock(), fresh).cancel();
    }

    /// Closes everything and waits until it is closed.
    pub(super) async fn stop(&self) {
        self.shared.end.cancel();
        self.close().await;
        drop(self.kept.lock().take());
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn accept_from(&self, listener: TcpListener) {
        let token = self.shared.end.child_token();
        let accepting =
            token.clone().run_until_cancelled_owned(accept(listener, self.shared.clone()));
        let task = tokio::spawn(async move {
            accepting.await;
        });
        *self.accepting.lock() = Some((token, task));
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}

async fn accept(listener: TcpListener, shared: Arc<PortShared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                // Answers are written whole, so there is nothing for Nagle's algorithm to gather.
                let _ = stream.set_nodelay(true);
                let connections = shared.connections.lock().clone();
                let served = (shared.serve)(stream);
                shared.tasks.spawn(connections.run_until_cancelled_owned(served));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// A socket that has this port and does not listen: connections are refused, and the system gives
/// the port to nobody else.
fn keep(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections to the port may still be open.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
