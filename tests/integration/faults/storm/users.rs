//! What users do meanwhile: read their mail, change their passwords.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::faults::Stream;
use super::site::{FIRST, Site, User};
use crate::support::chance::Chance;

/// These keep their passwords, and read all the while.
pub(super) const READERS: usize = 16;

/// A session that gets no answer for so long is given up; its user opens another.
const PATIENCE: Duration = Duration::from_secs(10);

/// Users open sessions and read the same message again and again, until they lose the connection.
pub(super) fn reading(site: Arc<Site>, mut chance: Chance) -> Stream {
    Box::pin(async move {
        loop {
            let user = &site.users[chance.below(READERS)];
            if read(&site, user, &mut chance).await.is_err() {
                site.tally.lost.fetch_add(1, Relaxed);
            }
            chance.pause(20..200).await;
        }
    })
}

async fn read(site: &Site, user: &User, chance: &mut Chance) -> io::Result<()> {
    let mut session = Session::open(site, user, &user.password()).await?;
    session.command("SELECT INBOX").await?;
    for _ in 0..chance.below(50) {
        session.fetch(&site.first).await?;
        site.tally.read.fetch_add(1, Relaxed);
        chance.pause(5..100).await;
    }
    session.command("LOGOUT").await
}

/// Users change their passwords elsewhere, and some time later tell their phones.
pub(super) fn changed_passwords(site: Arc<Site>, mut chance: Chance) -> Stream {
    Box::pin(async move {
        loop {
            chance.pause(100..900).await;
            let stale: Vec<&User> = site.users.iter().filter(|user| user.is_stale()).collect();
            if !stale.is_empty() && chance.below(2) == 0 {
                let user = chance.of(&stale);
                if log_in(&site, user).await.is_ok() {
                    user.healed();
                }
            } else {
                site.tally.passwords.fetch_add(1, Relaxed);
                chance.of(&site.users[READERS..]).change_password(&site.world.backend);
            }
        }
    })
}

/// The user's phone logs in with the newest password, as at each look for mail.
pub(super) async fn log_in(site: &Site, user: &User) -> io::Result<()> {
    let mut session = Session::open(site, user, &user.password()).await?;
    session.command("LOGOUT").await
}

/// A mail client. Whatever goes wrong is an error but bytes that are others than those of the
/// message, which is a panic.
struct Session(BufStream<TlsStream<TcpStream>>);

impl Session {
    async fn open(site: &Site, user: &User, password: &str) -> io::Result<Self> {
        let stream = in_time(TcpStream::connect(site.address())).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(site.client_config.clone());
        let stream = in_time(connector.connect(name, stream)).await?;
        let mut session = Self(BufStream::new(stream));
        session.line().await?;
        session.command(&format!("LOGIN {} \"{password}\"", user.login)).await?;
        Ok(session)
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match in_time(self.0.read_line(&mut line)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }

    async fn send(&mut self, command: &str) -> io::Result<()> {
        in_time(self.0.write_all(format!("t {command}\r\n").as_bytes())).await?;
        in_time(self.0.flush()).await
    }

    async fn command(&mut self, command: &str) -> io::Result<()> {
        self.send(command).await?;
        self.completed().await
    }

    async fn completed(&mut self) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            if line.starts_with("t OK") {
                return Ok(());
            }
            if line.starts_with("t ") || line.starts_with("* BYE") && !line.contains("logging out")
            {
                return Err(io::Error::other(line));
            }
        }
    }

    async fn fetch(&mut self, expected: &[u8]) -> io::Result<()> {
        self.send(&format!("UID FETCH {FIRST} BODY.PEEK[]")).await?;
        let announced = format!("{{{}}}\r\n", expected.len());
        loop {
            let line = self.line().await?;
            if line.contains("BODY[]") {
                assert!(line.ends_with(&announced), "{line:?} is not the message");
                break;
            }
            if !line.starts_with("* ") || line.starts_with("* BYE") {
                return Err(io::Error::other(line));
            }
        }
        let mut body = vec![0; expected.len()];
        in_time(self.0.read_exact(&mut body)).await?;
        assert!(body == expected, "a session read other bytes than those of the message");
        self.completed().await
    }
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, step).await?
}
