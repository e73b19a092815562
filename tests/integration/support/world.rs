//! What surrounds the program: a folder with its files, a backend, APNs, clients.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use mailchime::demo::apns::{Apns, Push};
use mailchime::demo::backend::DemoBackend;
use mailchime::demo::phone::{Phone, PhoneError, Registered};
use mailchime::demo::pki::Pki;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::line::{Client, Line};
use super::program::{Process, mailchime};
use super::servers::User;
use super::{listener, soon};

pub(crate) const LOGIN: &str = "alice";
pub(crate) const PASSWORD: &str = "wonder land";
pub(crate) const ACCOUNT_ID: &str = "0715A26B-CA09-4730-A419-793000CA982E";
pub(crate) const TOKEN: &str = "8df2a4c18df2a4c18df2a4c18df2a4c18df2a4c18df2a4c18df2a4c18df2a4c1";
pub(crate) const MAIL: &str = "Subject: hello\r\nFrom: a <b@c>\r\n\r\nHi there, Alice\r\n";

/// The registration of the phone, behind its tag.
pub(crate) fn registration() -> String {
    registration_as(ACCOUNT_ID)
}

/// A registration under another account id is another one, which has to be written.
pub(crate) fn registration_as(account_id: &str) -> String {
    format!(
        "XAPPLEPUSHSERVICE \"aps-version\" \"2\" \"aps-account-id\" \"{account_id}\" \
         \"aps-device-token\" \"{TOKEN}\" \"aps-subtopic\" \"com.apple.mobilemail\" \
         \"mailboxes\" (\"INBOX\")"
    )
}

/// What iOS Mail does for this user and these mailboxes, as [`registration`] has it.
pub(crate) fn phone((login, password): User<'_>, mailboxes: &[&str]) -> Phone {
    Phone {
        login: login.into(),
        password: password.into(),
        account_id: ACCOUNT_ID.into(),
        device_token: TOKEN.into(),
        mailboxes: mailboxes.iter().map(|name| (*name).into()).collect(),
    }
}

pub(crate) struct World {
    folder: TempDir,
    pub(crate) pki: Pki,
    pub(crate) backend: DemoBackend,
    pub(crate) apns: Apns,
}

/// `mailchime serve`, listening.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::generate(None).unwrap();
        pki.write_to(folder.path()).unwrap();
        let backend = DemoBackend::start(listener().await, None).unwrap();
        backend.add_account(LOGIN, PASSWORD.as_bytes());
        let apns = Apns::start(listener().await, &pki).unwrap();
        let world = Self { folder, pki, backend, apns };
        fs::write(world.file("proxy.toml"), world.config()).unwrap();
        world
    }

    /// A configuration in which nothing waits longer than a test likes to.
    pub(crate) fn config(&self) -> String {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n\
             [tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
             [backend]\naddress = \"{}\"\ntls = \"none\"\n\
             [store]\nbusy_timeout = \"5s\"\n\
             [watch]\nretry_min = \"10ms\"\nretry_max = \"200ms\"\nsettle = \"10ms\"\n\
             [push]\nquiet_delay = \"100ms\"\nmin_interval = \"10ms\"\n\
             [apns]\nendpoint = \"https://localhost:{}\"\nca = \"ca.pem\"\n\
             certificate = \"apns.pem\"\nprivate_key = \"apns.key\"\n\
             [log]\nformat = \"json\"\nlevel = \"info,mailchime=debug\"\n",
            self.backend.address(),
            self.apns.address().port(),
        )
    }

    /// Changes the configuration; both must do so.
    pub(crate) fn configure(&self, old: &str, new: &str) {
        let path = self.file("proxy.toml");
        let before = fs::read_to_string(&path).unwrap();
        let after = before.replace(old, new);
        assert_ne!(before, after, "{old:?} is not in the configuration");
        fs::write(path, after).unwrap();
    }

    /// Puts the program before another backend than this world's.
    pub(crate) fn in_front_of(&self, server: SocketAddr) {
        self.configure(&self.backend.address().to_string(), &server.to_string());
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `serve --config …/proxy.toml`.
    pub(crate) fn arguments(&self) -> [String; 3] {
        let config = self.file("proxy.toml").display().to_string();
        ["serve".to_owned(), "--config".to_owned(), config]
    }

    /// The program, to be started.
    pub(crate) fn program(&self) -> Command {
        mailchime(&self.arguments().each_ref().map(String::as_str))
    }

    pub(crate) async fn serve(&self) -> Server {
        Server::of(Process::spawn(self.program())).await
    }

    pub(crate) fn phone(&self) -> Phone {
        phone((LOGIN, PASSWORD), &["INBOX"])
    }

    pub(crate) async fn register(&self, address: SocketAddr) -> Result<Registered, PhoneError> {
        self.phone().register(address, "localhost", &self.pki.ca.certificate, |_, _| {}).await
    }

    pub(crate) fn deliver(&self) {
        self.backend.deliver(LOGIN, "INBOX", MAIL).unwrap();
    }

    /// The next push, which must be for the phone.
    pub(crate) async fn push(&self) -> Push {
        let push = soon("a push", self.apns.next()).await;
        assert_eq!(push.json()["aps"]["account-id"], ACCOUNT_ID);
        push
    }

    /// Waits until a watcher is in IDLE, and so has seen all mail so far.
    pub(crate) async fn watched(&self) {
        soon("a watcher in IDLE", self.backend.wait_until(|counters| counters.idling > 0)).await;
    }

    /// A client that has heard the greeting.
    pub(crate) async fn client(&self, server: &Server) -> Client {
        let config = self.pki.client_config(None).unwrap();
        let stream = TcpStream::connect(server.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let mut client = Line::of(soon("the TLS handshake", stream).await.unwrap());
        let greeting = client.line().await;
        assert!(greeting.starts_with("* OK "), "{greeting}");
        client
    }

    /// A client that is logged in.
    pub(crate) async fn session(&self, server: &Server) -> Client {
        let mut client = self.client(server).await;
        let answer = client.log_in(LOGIN, PASSWORD).await;
        assert!(answer.starts_with("in OK"), "{answer}");
        client
    }
}

impl Server {
    /// Waits until it listens, and learns where. Lines before that one can be found all the same: which
    /// of those of a start comes first is nobody's promise.
    pub(crate) async fn of(mut process: Process) -> Self {
        let address = process.stderr.find("the address", |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == "listening").then(|| line["address"].as_str()?.parse().ok())?
        });
        let address = address.await;
        process.stderr.rewind();
        Self { process, address }
    }

    /// Where `[admin]` listens; as in [`Server::of`] no line of the start is passed over by that.
    pub(crate) async fn admin_address(&mut self) -> SocketAddr {
        let line = self.logged("serving metrics, health and status").await;
        self.process.stderr.rewind();
        line["address"].as_str().unwrap().parse().unwrap()
    }

    /// How many lines of the log have this message, and are no mere details, of those that were
    /// written by now.
    pub(crate) async fn warned(&mut self, message: &str) -> usize {
        // Lines come in their order, and this one is behind them.
        self.process.signal("HUP");
        self.logged("configuration reloaded").await;
        let message = format!("\"level\":\"WARN\",\"message\":\"{message}\"");
        self.process.stderr.seen().iter().filter(|line| line.contains(&message)).count()
    }

    /// The first line with this message behind the one that was asked for last. It may not have come yet.
    pub(crate) async fn logged(&mut self, message: &str) -> Value {
        let found = self.process.stderr.find(message, |line| {
            let line: Value = serde_json::from_str(line).expect("a line of the log is JSON");
            (line["message"] == message).then_some(line)
        });
        found.await
    }
}
