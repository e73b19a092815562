//! The database of a storm, and of rows that are done on each of them: a file, or that of a server, which can crash.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AnyConnection, Connection, Executor};
use tokio::sync::Mutex;

use crate::support::servers::DatabaseServer;
use crate::support::world::World;

/// Restarted under one name, the program takes over at once what it left behind. Others would be found dead.
const NODE: &str = "[node]\nname = \"storm\"\n[log]\n";

pub(in crate::faults) struct Database(Option<Server>);

struct Server {
    url: String,
    running: Arc<Mutex<Box<dyn DatabaseServer>>>,
}

impl Database {
    /// That of a server, or a file.
    pub(in crate::faults) fn new(server: Option<Box<dyn DatabaseServer>>) -> Self {
        sqlx::any::install_default_drivers();
        Self(server.map(|server| Server {
            url: server.database_url(),
            running: Arc::new(Mutex::new(server)),
        }))
    }

    pub(in crate::faults) fn configure(&self, world: &World) {
        if let Some(Server { url, .. }) = &self.0 {
            world.configure("[store]\n", &format!("[store]\nurl = \"{url}\"\n"));
            world.configure("[log]\n", NODE);
        }
    }

    /// As another program sees it.
    pub(in crate::faults) async fn beside(&self, world: &World) -> AnyConnection {
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
    pub(in crate::faults) async fn locked(&self, world: &World) -> AnyConnection {
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

    /// Nobody can write to it: a file is locked, which is returned, and a server has crashed.
    pub(in crate::faults) async fn goes_away(&self, world: &World) -> Option<AnyConnection> {
        let Some(server) = &self.0 else { return Some(self.locked(world).await) };
        let mut running = server.running.clone().lock_owned().await;
        tokio::task::spawn_blocking(move || running.crash()).await.unwrap();
        None
    }

    /// It is back after that.
    pub(in crate::faults) async fn is_back(&self, locked: Option<AnyConnection>) {
        if let Some(locked) = locked {
            locked.close().await.unwrap();
        }
        if let Some(server) = &self.0 {
            let mut running = server.running.clone().lock_owned().await;
            tokio::task::spawn_blocking(move || running.restart()).await.unwrap();
        }
    }

    /// Whether it has a server, which can crash.
    pub(in crate::faults) fn crashes(&self) -> bool {
        self.0.is_some()
    }

    /// Its server crashes and is away for a time.
    pub(in crate::faults) async fn crash(&self, away: Duration) {
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
    pub(in crate::faults) async fn runs(&self) {
        if let Some(server) = &self.0 {
            drop(server.running.lock().await);
        }
    }
}
