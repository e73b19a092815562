//! MariaDB, with databases of their own for the tests that start it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::Path;

use super::process::{self, Plan, Process, Stop};
use super::{DatabaseServer, NOBODY, as_nobody, available, pki, run};

const PASSWORD: &str = "chime";

/// A user who may do all, by TCP, and a database; done at each start.
const USER: &str = "create user if not exists mc@'127.0.0.1' identified by 'chime';\n\
                    grant all privileges on *.* to mc@'127.0.0.1' with grant option;\n\
                    create database if not exists mail;\n";

pub(crate) struct MariaDb {
    pub(crate) address: SocketAddr,
    process: Process,
}

impl MariaDb {
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::start_with(test, false, &[])
    }

    /// One with these options.
    pub(crate) fn start_with_options(test: &str, options: &[&str]) -> Option<Self> {
        Self::start_with(test, false, options)
    }

    /// One that speaks TLS too, by the certificate of all servers.
    pub(crate) fn start_with_tls(test: &str) -> Option<Self> {
        Self::start_with(test, true, &[])
    }

    fn start_with(test: &str, tls: bool, options: &[&str]) -> Option<Self> {
        let (install, server) =
            (Path::new("/usr/bin/mariadb-install-db"), Path::new("/usr/sbin/mariadbd"));
        if !available(test, "mariadb", &[install, server]) {
            return None;
        }
        let (process, [address]) = process::start(|folder, [address]| {
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
            fs::write(folder.join("user.sql"), USER).unwrap();
            let mut made = as_nobody(install);
            made.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
            made.arg("--skip-test-db").arg(format!("--datadir={}", folder.join("data").display()));
            // A server that starts removes the temporary tables of others in a folder that they share.
            run(made.current_dir(folder).env("TMPDIR", folder), "");
            let mut plan = plan(folder, address);
            plan.command.args(options);
            for (option, name, text) in [
                ("--ssl-cert", "server.pem", &*pki().server.certificate),
                ("--ssl-key", "server.key", pki().server.expose_private_key()),
            ] {
                let path = folder.join(name);
                fs::write(&path, text).unwrap();
                chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
                if tls {
                    plan.command.arg(format!("{option}={}", path.display()));
                }
            }
            plan
        });
        Some(Self { address, process })
    }

    /// What `store.url` takes, for a database of this name.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("mariadb://mc:{PASSWORD}@{}/{database}", self.address)
    }
}

impl DatabaseServer for MariaDb {
    fn database_url(&self) -> String {
        self.url("mail")
    }

    fn stop(&mut self) {
        self.process.stop();
    }

    fn crash(&mut self) {
        self.process.stop_by(Stop::Group("KILL"));
    }

    fn restart(&mut self) {
        self.process.restart();
    }
}

fn plan(folder: &Path, address: SocketAddr) -> Plan {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut command = as_nobody(Path::new("/usr/sbin/mariadbd"));
    command.env("TMPDIR", folder);
    command.arg("--no-defaults").arg(format!("--datadir={}", file("data")));
    command.arg(format!("--socket={}", file("s.sock")));
    command.arg(format!("--pid-file={}", file("pid")));
    command.arg(format!("--init-file={}", file("user.sql")));
    command.arg("--bind-address=127.0.0.1").arg(format!("--port={}", address.port()));
    // A disk that is not waited for makes no other database of it.
    command.args(["--skip-name-resolve", "--innodb-flush-method=nosync"]);
    command.args(["--innodb-buffer-pool-size=32M", "--max-connections=300"]);
    Plan { command, ready: None, stop: Stop::Leader("TERM"), expendable: true }
}
