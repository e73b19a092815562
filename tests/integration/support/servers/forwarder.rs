//! An address that leads to one server and then to another, as that of a cluster does; and a network
//! that loses what it is given.

use std::net::SocketAddr;

use crate::support::listener;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Passes bytes on, as a task of the runtime that it was started in.
pub(crate) struct Forwarder {
    pub(crate) address: SocketAddr,
    road: watch::Sender<Road>,
}

#[derive(Clone, Copy)]
struct Road {
    to: SocketAddr,
    frozen: bool,
    /// How often it was frozen.
    lost: u32,
}

impl Forwarder {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let (road, roads) = watch::channel(Road { to, frozen: false, lost: 0 });
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(pass(client, roads.clone()));
            }
        });
        Self { address, road }
    }

    /// New connections lead to this server; those that there are stay where they are.
    pub(crate) fn move_to(&self, to: SocketAddr) {
        self.road.send_modify(|road| road.to = to);
    }

    /// Nothing passes any more, and nothing ends: neither what there is nor what is new.
    pub(crate) fn freeze(&self) {
        self.road.send_modify(|road| {
            road.frozen = true;
            road.lost += 1;
        });
    }

    /// New connections work again. Those from before never do.
    pub(crate) fn thaw(&self) {
        self.road.send_modify(|road| road.frozen = false);
    }

    /// What leads through this address, of a URL that names the server's own.
    pub(crate) fn url(&self, url: &str, server: SocketAddr) -> String {
        let through = url.replace(&server.to_string(), &self.address.to_string());
        assert_ne!(through, url, "{server} is not in {url}");
        through
    }
}

/// Neither end hears anything any more.
async fn drop_never<T>(_held: T) {
    std::future::pending::<()>().await;
}

async fn pass(mut client: TcpStream, mut roads: watch::Receiver<Road>) {
    let Road { to, frozen, lost } = *roads.borrow();
    if !frozen {
        let Ok(mut server) = TcpStream::connect(to).await else { return };
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = async { roads.wait_for(|road| road.lost != lost).await.map(drop) } => {}
        }
        return drop_never((client, server)).await;
    }
    drop_never(client).await;
}
