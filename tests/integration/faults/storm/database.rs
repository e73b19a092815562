//! The database of the storm: a file, or that of a server, which can crash.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AnyConnection, Connection, Executor};
use tokio::sync::Mutex;

use crate::support::servers::DatabaseServer;
use crate::support::world::World;

/// Restarted under one name, the program takes over at once what it left behind. Others would be found dead.
const NODE: &str = "[node]\nname = \"storm\"\n[log]\n";

pub(super) struct Database(Option<Server>);

struct Server {
    url: String,
    running: Arc<Mutex<Box<dyn DatabaseServer>>>,
}

impl Database {
    /// That of a server, or a file.
    pub(super) fn new(server: Option<Box<dyn DatabaseServer>>) -> Self {
        sqlx::any::install_default_drivers();
        Self(server.map(|server| Server {
            url: server.database_url(),
            running: Arc::new(Mutex::new(server)),
        }))
    }

    pub(super) fn configure(&self, world: &World) {
        if let Some(Server { url, .. }) = &self.0 {
            world.configure("[store]\n", &format!("[store]\nurl = \"{url}\"\n"));
            world.configure("[log]\n", NODE);
        }
    }

    /// As another program sees it.
    pub(super) async fn beside(&self, world: &World) -> AnyConnection {
        match &self.0 {
            Some(server) => AnyConnection::connect(&server.url).await.unwrap(),
            None => {
                let url = format!("sqlite://{}", world.file("mailchime.db").display());
                let mut beside = AnyConnection::connect(&url).await.unwrap();
                // Others write all the while, and a machine that is busy lets them go first for long.
                beside.execute("pragma busy_timeout = 60000").await.unwrap();
                beside
            }
        }
    }

    /// Until the connection is closed, nobody else can write; on a server nobody can use accounts.
    pub(super) async fn locked(&self, world: &World) -> AnyConnection {
        let mut locked = self.beside(world).await;
        let statements: &[&str] = match &self.0 {
            None => &["begin exclusive"],
            Some(server) if server.url.starts_with("postgres") => {
                &["begin", "lock table account in access exclusive mode"]
            }
            Some(_) => &["lock tables account write"],
        };
        for statement in statements {
            locked.execute(*statement).await.unwrap();
        }
        locked
    }

    /// Whether it has a server, which can crash.
    pub(super) fn crashes(&self) -> bool {
        self.0.is_some()
    }

    /// Its server crashes and is away for a time.
    pub(super) async fn crash(&self, away: Duration) {
        let Some(server) = &self.0 else { return };
        let mut running = server.running.clone().lock_owned().await;
        let restarted = tokio::task::spawn_blocking(move || {
            running.crash();
            std::thread::sleep(away);
            running.restart();
        });
        restarted.await.unwrap();
    }

    /// Waits until a server that has crashed runs again.
    pub(super) async fn runs(&self) {
        if let Some(server) = &self.0 {
            drop(server.running.lock().await);
        }
    }
}
