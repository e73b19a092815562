//! PgBouncer before a PostgreSQL, as few connections to it as make a session's state somebody else's.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::Path;

use super::postgres::{PASSWORD, Postgres};
use super::process::{self, Plan, Process, Stop};
use super::{NOBODY, as_nobody, available};

/// Where Debian has it.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// What PgBouncer must be told of sqlx, as of other drivers.
pub(crate) const IGNORES: &str = "ignore_startup_parameters = extra_float_digits\n";

pub(crate) struct PgBouncer {
    pub(crate) address: SocketAddr,
    _process: Process,
}

impl PgBouncer {
    /// In this mode of pooling: `transaction`, `statement` or `session`; with further settings.
    pub(crate) fn start(test: &str, server: &Postgres, mode: &str, settings: &str) -> Option<Self> {
        if !available(test, "pgbouncer", &[Path::new(PROGRAM)]) {
            return None;
        }
        let (process, [address]) = process::start(|folder, [address]| {
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
            let server = server.address.port();
            fs::write(folder.join("users.txt"), format!("\"mc\" \"{PASSWORD}\"\n")).unwrap();
            let ini = format!(
                "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
                 auth_type = plain\nauth_file = users.txt\npool_mode = {mode}\n\
                 default_pool_size = 3\nmax_client_conn = 1000\nserver_idle_timeout = 2\n{settings}",
                address.port()
            );
            fs::write(folder.join("pgbouncer.ini"), ini).unwrap();
            let mut command = as_nobody(Path::new(PROGRAM));
            command.arg("pgbouncer.ini");
            Plan { command, ready: None, stop: Stop::Leader("INT"), expendable: true }
        });
        Some(Self { address, _process: process })
    }

    /// What leads through it, of the server's URL.
    pub(crate) fn url(&self, url: &str, server: SocketAddr) -> String {
        url.replace(&server.to_string(), &self.address.to_string())
    }
}
