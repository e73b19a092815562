//! PostgreSQL, with a database of its own for the test that starts it, and standbys of it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use super::process::{self, Plan, Process, Stop};
use super::{DatabaseServer, NOBODY, as_nobody, available, run};

pub(super) const PASSWORD: &str = "chime";

pub(crate) struct Postgres {
    pub(crate) address: SocketAddr,
    process: Process,
}

impl Postgres {
    pub(crate) fn start(test: &str) -> Option<Self> {
        let programs = programs();
        if !available(test, "postgres", &[&programs.join("initdb"), &programs.join("postgres")]) {
            return None;
        }
        let (process, [address]) = process::start(|folder, [address]| {
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
            fs::write(folder.join("password"), PASSWORD).unwrap();
            let mut initdb = as_nobody(&programs.join("initdb"));
            initdb.args(["-U", "mc", "-E", "UTF8", "--locale=C.UTF-8", "-A", "scram-sha-256"]);
            initdb.arg("--no-sync").arg("-D").arg(folder.join("data"));
            initdb.arg("--pwfile").arg(folder.join("password")).current_dir(folder);
            run(&mut initdb, "");
            plan(folder, address)
        });
        Some(Self { address, process })
    }

    /// A standby that follows this one.
    pub(crate) fn standby(&self) -> Self {
        let (process, [address]) = process::start(|folder, [address]| {
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
            let mut copy = as_nobody(&programs().join("pg_basebackup"));
            copy.arg("-d").arg(self.url()).arg("-D").arg(folder.join("data"));
            copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync"]).current_dir(folder);
            run(&mut copy, "");
            plan(folder, address)
        });
        Self { address, process }
    }

    /// Makes a primary of a standby; returns when it takes writes.
    pub(crate) fn promote(&self) {
        let mut promote = as_nobody(&programs().join("pg_ctl"));
        promote.arg("promote").arg("-w").arg("-D").arg(self.process.folder().join("data"));
        run(promote.current_dir(self.process.folder()), "");
    }

    /// What the server has written to its log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.process.folder().join("output.log")).unwrap()
    }

    /// What `store.url` takes.
    pub(crate) fn url(&self) -> String {
        format!("postgres://mc:{PASSWORD}@{}/postgres", self.address)
    }
}

impl DatabaseServer for Postgres {
    fn database_url(&self) -> String {
        self.url()
    }

    fn stop(&mut self) {
        self.process.stop();
    }

    fn crash(&mut self) {
        self.process.stop_by(Stop::Leader("QUIT"));
    }

    fn restart(&mut self) {
        self.process.restart();
    }
}

fn plan(folder: &Path, address: SocketAddr) -> Plan {
    let (programs, port) = (programs(), address.port().to_string());
    let mut command = as_nobody(&programs.join("postgres"));
    command.arg("-D").arg(folder.join("data")).arg("-k").arg(folder);
    command.args(["-h", "127.0.0.1", "-p", &port, "-c", "fsync=off"]);
    let mut ready = as_nobody(&programs.join("pg_isready"));
    ready.arg("-q").arg("-h").arg(folder).args(["-p", &port]);
    // Fast: it takes leave of its clients rather than wait for them.
    Plan { command, ready: Some(ready), stop: Stop::Leader("INT"), expendable: false }
}

/// The folder of the newest version's programs. Debian has one folder for each version.
fn programs() -> PathBuf {
    let base = Path::new("/usr/lib/postgresql");
    let versions = base.read_dir().into_iter().flatten().filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.parse::<u32>().ok().filter(|_| base.join(&name).join("bin/postgres").exists())
    });
    base.join(versions.max().unwrap_or_default().to_string()).join("bin")
}

mod tests {
    use std::time::Duration;

    use sqlx::any::AnyPoolOptions;
    use sqlx::{AnyPool, Row};

    use super::*;

    async fn select(pool: &AnyPool, sql: &'static str) -> Result<i64, sqlx::Error> {
        sqlx::query(sql).fetch_one(pool).await.map(|row| row.get(0))
    }

    #[tokio::test]
    async fn it_answers_and_keeps_what_it_got() {
        let Some(mut postgres) = Postgres::start("postgres::it_answers") else { return };
        sqlx::any::install_default_drivers();
        let options = AnyPoolOptions::new().acquire_timeout(Duration::from_secs(5));
        let pool = options.connect(&postgres.url()).await.unwrap();
        assert_eq!(select(&pool, "select cast(1 as bigint)").await.unwrap(), 1);
        sqlx::query("create table kept as select cast(7 as bigint)").execute(&pool).await.unwrap();
        postgres.stop();
        assert!(select(&pool, "select * from kept").await.is_err());
        postgres.restart();
        assert_eq!(select(&pool, "select * from kept").await.unwrap(), 7);
        pool.close().await;
    }
}
