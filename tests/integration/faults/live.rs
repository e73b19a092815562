//! Streams of changes (`GET /v1/changes`) of the phone's user: one that nobody reads, and those that the backend or the
//! program lets down.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::scene::Scene;
use super::{Fault, fault};
use crate::admin::get;
use crate::api::basic;
use crate::api::changes::{EventStream, narrow};
use crate::support::soon;
use crate::support::world::{LOGIN, PASSWORD, Server};

pub(super) fn faults() -> Vec<Fault> {
    vec![
        fault!(
            unread,
            "stream: its client takes nothing",
            "it is cut off, the phone hears of each mail meanwhile"
        ),
        fault!(
            away,
            "stream: the backend is away, mail meanwhile",
            "it stays, and hears of the mail when the backend is back"
        ),
        fault!(
            killed,
            "stream: SIGKILL, mail meanwhile",
            "its client comes again with Last-Event-ID, and hears of the mail first"
        ),
    ]
}

/// The program with a phone, and where its `[api]` listens.
async fn with_api(scene: &Scene) -> (Server, SocketAddr) {
    scene.configure("[log]\n", "[api]\naddress = \"127.0.0.1:0\"\n[log]\n");
    let mut server = scene.registered().await;
    let api = api_address(&mut server).await;
    (server, api)
}

/// Where `[api]` listens; no line of the start is passed over by that.
async fn api_address(server: &mut Server) -> SocketAddr {
    let line = server.logged("serving users' programs over HTTPS").await;
    server.process.stderr.rewind();
    line["address"].as_str().unwrap().parse().unwrap()
}

/// A stream of INBOX of the phone's user, perhaps with a further header field.
async fn stream(scene: &Scene, connection: TcpStream, field: &str) -> EventStream {
    let tls = TlsConnector::from(Arc::new(scene.pki.client_config(None).unwrap()));
    let name = ServerName::try_from("localhost").unwrap();
    let connection = soon("the TLS handshake", tls.connect(name, connection)).await.unwrap();
    let request = format!("\n{}\n{field}", basic(LOGIN, PASSWORD));
    EventStream::open(connection, &request).await
}

/// A stream that is open, and the id of its first event.
async fn opened(scene: &Scene, connection: TcpStream) -> (EventStream, String) {
    let mut stream = stream(scene, connection, "").await;
    let opened = stream.event().await;
    assert_eq!(opened.data["type"], "stream.opened", "{}", stream.head);
    (stream, opened.id.unwrap())
}

/// The stream tells of new mail in INBOX, which has so many messages now.
async fn hears(stream: &mut EventStream, messages: u64) -> Option<String> {
    let event = stream.event().await;
    assert_eq!(event.change(), ("INBOX", "new", messages));
    event.id
}

/// Whether a stream was cut off since its client took nothing.
async fn was_cut_off(admin: SocketAddr) -> bool {
    let metrics = get(admin, "/metrics").await.body;
    let limit = "mailchime_limits_hit_total{limit=\"api_write_timeout\"} ";
    let hits = metrics.lines().find_map(|line| line.strip_prefix(limit));
    hits.unwrap().parse::<u64>().unwrap() > 0
}

async fn unread(scene: Scene) {
    let tables = "[admin]\naddress = \"127.0.0.1:0\"\n[limits]\nwrite_timeout = \"2s\"\n[log]\n";
    scene.configure("[log]\n", tables);
    let (mut server, api) = with_api(&scene).await;
    let admin = server.admin_address().await;
    let (mut unread, _) = opened(&scene, narrow(api).await).await;
    let (mut read, _) = opened(&scene, TcpStream::connect(api).await.unwrap()).await;
    scene.fault();
    // Mail after mail, until more waits than is under way.
    let mut mails = 0;
    while !was_cut_off(admin).await {
        mails += 1;
        scene.deliver();
        scene.push().await;
        hears(&mut read, mails).await;
    }
    while unread.block().await.is_some() {}
    scene.deliver();
    scene.push().await;
    hears(&mut read, mails + 1).await;
}

async fn away(scene: Scene) {
    let (mut server, api) = with_api(&scene).await;
    let (mut stream, _) = opened(&scene, TcpStream::connect(api).await.unwrap()).await;
    scene.fault();
    scene.backend.refuse().await;
    scene.backend.drop_connections();
    server.logged("watching is interrupted; mailchime tries again").await;
    scene.deliver();
    scene.backend.resume().await.unwrap();
    hears(&mut stream, 1).await;
    scene.push().await;
    scene.deliver();
    hears(&mut stream, 2).await;
    scene.push().await;
}

async fn killed(scene: Scene) {
    let (server, api) = with_api(&scene).await;
    let (mut before, _) = opened(&scene, TcpStream::connect(api).await.unwrap()).await;
    scene.deliver();
    scene.push().await;
    let id = hears(&mut before, 1).await.unwrap();
    scene.kill(server);
    while before.block().await.is_some() {}
    scene.deliver();
    let mut server = scene.serve().await;
    let connection = TcpStream::connect(api_address(&mut server).await).await.unwrap();
    let mut after = stream(&scene, connection, &format!("Last-Event-ID: {id}")).await;
    hears(&mut after, 2).await;
    assert_eq!(after.event().await.data["type"], "stream.opened");
    scene.push().await;
}
