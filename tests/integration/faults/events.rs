//! Events of mail servers, by each way that they come: what is lost, refused or wrong is found by a look.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use sqlx::{AnyConnection, Connection};
use tokio::task::JoinSet;

use super::Fault;
use super::scene::Scene;
use crate::intake::TOKEN;
use crate::support::servers::mariadb::MariaDb;
use crate::support::servers::postgres::Postgres;
use crate::support::servers::{DatabaseServer, NOBODY};
use crate::support::world::Server;
use ways::{Doors, Told, Way};

mod ways;

/// A group that nobody is in.
const GROUP: u32 = 54_321;

/// A row for each of these ways, on the database that the scene has from here.
macro_rules! by {
    ([$($way:ident $word:literal),+], $on:path, $run:path, $name:literal, $holds:literal) => {
        vec![$(Fault {
            name: concat!("event, ", $word, ": ", $name),
            holds: $holds,
            run: |scene| tokio::spawn(async {
                if let Some(scene) = $on(scene).await {
                    $run(scene, Way::$way).await;
                }
            }),
        }),+]
    };
}

/// A row for each way.
macro_rules! by_all {
    ($on:path, $run:path, $name:literal, $holds:literal) => {
        by!(
            [Http "HTTP", Ox "OX", CyrusHttp "notifyd", CyrusStream "Cyrus", CyrusDatagram "datagram", Udp "UDP"],
            $on, $run, $name, $holds
        )
    };
}

pub(super) fn faults() -> Vec<Fault> {
    [lost(), wrong()].concat()
}

/// Events that are not taken, or forgotten.
fn lost() -> Vec<Fault> {
    [
        by_all!(on_file, away, "mailchime is away", "the next start finds the mail"),
        by_all!(
            on_file,
            killed_when_on_disk,
            "SIGKILL when it is answered, or read",
            "it is on disk, and the next start pushes"
        ),
        by_all!(
            on_postgres,
            killed_when_on_disk,
            "SIGKILL when in PostgreSQL",
            "it is on disk, and the next start pushes"
        ),
        by_all!(
            on_mariadb,
            killed_when_on_disk,
            "SIGKILL when in MariaDB",
            "it is on disk, and the next start pushes"
        ),
        by_all!(
            on_file,
            killed_before_it_is_on_disk,
            "SIGKILL before it is on disk",
            "there is no answer, and the next start pushes"
        ),
        by_all!(
            on_file,
            database_away,
            "the database is away",
            "it is refused, and a sweep finds the mail"
        ),
        by_all!(
            on_postgres,
            database_away,
            "PostgreSQL is away",
            "it is refused, and a sweep finds the mail"
        ),
        by_all!(
            on_mariadb,
            database_away,
            "MariaDB is away",
            "it is refused, and a sweep finds the mail"
        ),
    ]
    .concat()
}

/// Events that are too many, or not what they should be.
fn wrong() -> Vec<Fault> {
    [
        by_all!(on_file, flood, "others flood", "it is refused, and a sweep finds the mail"),
        by_all!(
            on_postgres,
            flood,
            "others flood, with PostgreSQL",
            "it is refused, and a sweep finds the mail"
        ),
        by_all!(on_file, doubled, "it comes twice", "there is one push"),
        by_all!(on_postgres, doubled, "it comes twice, with PostgreSQL", "there is one push"),
        by_all!(
            on_file,
            late,
            "it comes behind a later one",
            "the mailbox is looked at, and there is no second push"
        ),
        by_all!(
            on_postgres,
            late,
            "it comes behind a later one, with PostgreSQL",
            "the mailbox is looked at, and there is no second push"
        ),
        by_all!(on_file, forged, "it is forged", "nothing is pushed, and the true one is"),
        by_all!(
            on_file,
            foreign,
            "its source may not speak for the user",
            "nothing is due or pushed, and the next start finds the mail"
        ),
        by_all!(on_file, truncated, "it is cut off", "nothing is pushed, and the whole one is"),
        // A datagram by UDP has no numbers. One that tells of no mail is the forged one.
        by!(
            [Http "HTTP", Ox "OX", CyrusHttp "notifyd", CyrusStream "Cyrus", CyrusDatagram "datagram"],
            on_file,
            lies,
            "its numbers lie",
            "the next sweep heals them, and what comes then is pushed"
        ),
        by!(
            [Http "HTTP", Ox "OX", CyrusHttp "notifyd", CyrusStream "Cyrus", CyrusDatagram "datagram"],
            on_postgres,
            lies,
            "its numbers lie, with PostgreSQL",
            "the next sweep heals them, and what comes then is pushed"
        ),
    ]
    .concat()
}

/// The scene as it is.
async fn on_file(scene: Scene) -> Option<Scene> {
    Some(scene)
}

async fn on_postgres(scene: Scene) -> Option<Scene> {
    on_server(scene, "postgres", |row| Some(Box::new(Postgres::start(row)?))).await
}

async fn on_mariadb(scene: Scene) -> Option<Scene> {
    on_server(scene, "mariadb", |row| Some(Box::new(MariaDb::start(row)?))).await
}

/// The scene with a database server of its own, where it can run.
async fn on_server(
    scene: Scene,
    needed: &str,
    start: fn(&'static str) -> Option<Box<dyn DatabaseServer>>,
) -> Option<Scene> {
    if scene.lacks(needed) {
        return None;
    }
    let name = scene.name();
    let server = tokio::task::spawn_blocking(move || start(name)).await.unwrap();
    match server {
        Some(server) => Some(scene.with_database(server)),
        None => {
            scene.skip("the database server cannot be started");
            None
        }
    }
}

/// Events come by all ways, for accounts without a connection.
fn configure(scene: &Scene) {
    let secret = scene.file("events.secret");
    fs::write(&secret, TOKEN).unwrap();
    fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
    // Nobody is asked for after a session, either.
    let watch = "[watch]\nconnection = \"on_demand\"\npoll_interval = \"1h\"\npoll_max = \"1h\"\n";
    scene.configure("[watch]\n", watch);
    scene.configure(
        "[store]\n",
        "[admin]\naddress = \"127.0.0.1:0\"\n[events]\naddress = \"127.0.0.1:0\"\nudp_address = \"127.0.0.1:0\"\n\
         udp_networks = [\"127.0.0.1\"]\ncyrus_socket = \"cyrus\"\ncyrus_stream = \"cyrus-stream\"\n\
         [[events.source]]\nname = \"dovecot\"\nsecret_file = \"events.secret\"\n[store]\n",
    );
}

/// The program with a phone that has registered, when nothing is due any more.
async fn registered(scene: &Scene) -> (Server, Doors) {
    let mut server = scene.serve().await;
    let doors = Doors::of(&mut server).await;
    scene.register(server.address).await.unwrap();
    scene.backend.wait_until(|c| c.commands.contains_key("STATUS") && c.connections == 0).await;
    until_due(scene, 0).await;
    (server, doors)
}

async fn due(database: &mut AnyConnection) -> i64 {
    let count = "select count(*) from mailbox where due_since is not null";
    sqlx::query_scalar(count).fetch_one(database).await.unwrap()
}

/// Waits until so many mailboxes are due on disk.
async fn until_due(scene: &Scene, count: i64) {
    let mut database = scene.database_beside().await;
    while due(&mut database).await != count {
        tokio::task::yield_now().await;
    }
}

/// Waits until nothing is due, and nobody is connected.
async fn rest(scene: &Scene) {
    until_due(scene, 0).await;
    scene.backend.wait_until(|c| c.connections == 0).await;
}

/// A look since then, which has ended.
async fn looked(scene: &Scene, visits: u64) {
    scene.backend.wait_until(|c| c.accepted > visits && c.connections == 0).await;
    rest(scene).await;
}

async fn away(scene: Scene, way: Way) {
    configure(&scene);
    let (server, doors) = registered(&scene).await;
    scene.kill(server);
    scene.deliver();
    let told = way.send(&scene, &doors, &way.event("alice", Some([2, 1, 1]))).await;
    assert_eq!(told, Told::Unanswered);
    let _server = scene.serve().await;
    scene.push().await;
}

async fn killed_when_on_disk(scene: Scene, way: Way) {
    configure(&scene);
    let (server, doors) = registered(&scene).await;
    // Nobody can look or push yet.
    scene.backend.behave(|behaviour| behaviour.unavailable = true);
    scene.apns.stall(true);
    scene.apns.drop_connections();
    scene.deliver();
    let told = way.send(&scene, &doors, &way.event("alice", None)).await;
    match way.answers() {
        true => assert_eq!(told, Told::Taken),
        false => until_due(&scene, 1).await,
    }
    scene.kill(server);
    assert_eq!(due(&mut scene.database_beside().await).await, 1, "it is on disk");
    scene.backend.behave(|behaviour| behaviour.unavailable = false);
    scene.apns.stall(false);
    let _server = scene.serve().await;
    scene.push().await;
}

async fn killed_before_it_is_on_disk(scene: Scene, way: Way) {
    configure(&scene);
    scene.configure("busy_timeout = \"5s\"", "busy_timeout = \"60s\"");
    let (server, doors) = registered(&scene).await;
    let away = scene.database_goes_away().await;
    scene.deliver();
    let event = way.event("alice", None);
    let sending = way.send(&scene, &doors, &event);
    let killing = async {
        // What comes later is refused.
        for refused in 1..=3 {
            let told = way.send(&scene, &doors, &garbage(way)).await;
            assert_eq!(told == Told::Refused, way.answers(), "{told:?}");
            doors.until_refused(refused).await;
        }
        scene.kill(server);
    };
    let (told, ()) = tokio::join!(sending, killing);
    assert_eq!(told, Told::Unanswered);
    scene.database_is_back(away).await;
    assert_eq!(due(&mut scene.database_beside().await).await, 0);
    let _server = scene.serve().await;
    scene.push().await;
}

/// What is refused at once.
fn garbage(way: Way) -> String {
    match way {
        Way::CyrusStream => way.event("%FF", None),
        _ => "{".to_owned(),
    }
}

async fn database_away(scene: Scene, way: Way) {
    configure(&scene);
    let (_server, doors) = registered(&scene).await;
    scene.fault();
    let away = scene.database_goes_away().await;
    scene.deliver();
    way.is_refused(&scene, &doors).await;
    scene.database_is_back(away).await;
    scene.push().await;
}

async fn flood(scene: Scene, way: Way) {
    configure(&scene);
    scene.configure("busy_timeout = \"5s\"", "busy_timeout = \"60s\"");
    scene.configure("[events]\n", "[events]\nwaiting = 2\n");
    let (_server, doors) = registered(&scene).await;
    scene.fault();
    let locked = scene.database_locked().await;
    scene.deliver();
    let scene = Arc::new(scene);
    let mut flood = JoinSet::new();
    for _ in 0..20 {
        let scene = Arc::clone(&scene);
        flood.spawn(async move { way.send(&scene, &doors, &way.event("bob", None)).await });
    }
    // The others wait, so there is no place left for alice's.
    doors.until_refused(18).await;
    way.is_refused(&scene, &doors).await;
    locked.close().await.unwrap();
    scene.push().await;
    flood.join_all().await;
}

async fn doubled(scene: Scene, way: Way) {
    configure(&scene);
    let (_server, doors) = registered(&scene).await;
    scene.fault();
    scene.deliver();
    way.tell(&scene, &doors, [2, 1, 1]).await;
    scene.push().await;
    rest(&scene).await;
    way.tell(&scene, &doors, [2, 1, 1]).await;
    rest(&scene).await;
    the_next_is_pushed(&scene, way, &doors, 2).await;
}

async fn late(scene: Scene, way: Way) {
    configure(&scene);
    let (_server, doors) = registered(&scene).await;
    scene.fault();
    scene.deliver();
    scene.deliver();
    way.tell(&scene, &doors, [3, 2, 2]).await;
    scene.push().await;
    rest(&scene).await;
    let visits = scene.backend.counters().accepted;
    way.tell(&scene, &doors, [2, 1, 1]).await;
    looked(&scene, visits).await;
    the_next_is_pushed(&scene, way, &doors, 2).await;
}

/// One more mail is one more push, which is this one of all.
async fn the_next_is_pushed(scene: &Scene, way: Way, doors: &Doors, push: u64) {
    scene.deliver();
    let messages = scene.backend.messages("alice", "INBOX").unwrap().len() as u64;
    way.tell(scene, doors, [messages + 1, messages, messages]).await;
    scene.push().await;
    rest(scene).await;
    assert_eq!(scene.apns.received(), push);
}

/// A user of the machine who is in this group alone reaches the socket of Cyrus, or why not.
fn reaches(scene: &Scene, way: Way, group: u32) -> io::Result<()> {
    let (stream, datagrams) = (scene.file("cyrus-stream"), scene.file("cyrus"));
    let as_user = move || {
        let group = Gid::from_raw(group);
        set_thread_groups(&[]).and_then(|()| set_thread_gid(group)).unwrap();
        set_thread_uid(Uid::from_raw(NOBODY)).unwrap();
        match way {
            Way::CyrusStream => std::os::unix::net::UnixStream::connect(stream).map(drop),
            _ => UnixDatagram::unbound()?.connect(datagrams),
        }
    };
    std::thread::spawn(as_user).join().unwrap()
}

async fn forged(scene: Scene, way: Way) {
    let by_socket = matches!(way, Way::CyrusStream | Way::CyrusDatagram);
    if by_socket && !rustix::process::geteuid().is_root() {
        return scene.skip("only root can write as another user");
    }
    configure(&scene);
    if by_socket {
        let group = format!("cyrus_group = \"{GROUP}\"\n");
        scene.configure("cyrus_socket =", &format!("{group}cyrus_socket ="));
    }
    let (_server, doors) = registered(&scene).await;
    scene.fault();
    let event = way.event("alice", Some([900, 800, 700]));
    let visits = scene.backend.counters().accepted;
    match way {
        // There is no such mail.
        Way::Udp => {
            way.send(&scene, &doors, &event).await;
            looked(&scene, visits).await;
        }
        // Nobody who is not in the group can say anything.
        Way::CyrusStream | Way::CyrusDatagram => {
            fs::set_permissions(scene.folder(), Permissions::from_mode(0o755)).unwrap();
            let refused = reaches(&scene, way, GROUP - 1).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            reaches(&scene, way, GROUP).unwrap();
        }
        _ => {
            let told = way.send_as(&scene, &doors, &event, &format!("{TOKEN}1")).await;
            assert_eq!(told, Told::Refused);
        }
    }
    the_next_is_pushed(&scene, way, &doors, 1).await;
}

async fn foreign(scene: Scene, way: Way) {
    configure(&scene);
    let for_others = "secret_file = \"events.secret\"\ndomains = [\"example.org\"]\n";
    scene.configure("secret_file = \"events.secret\"\n", for_others);
    scene.configure(
        "udp_networks = [\"127.0.0.1\"]\n",
        "udp_networks = [\"192.0.2.1\"]\ncyrus_domains = [\"example.org\"]\n",
    );
    let (server, doors) = registered(&scene).await;
    scene.fault();
    scene.deliver();
    way.is_refused(&scene, &doors).await;
    assert_eq!(due(&mut scene.database_beside().await).await, 0);
    assert_eq!(scene.apns.received(), 0);
    scene.kill(server);
    let _server = scene.serve().await;
    scene.push().await;
}

async fn truncated(scene: Scene, way: Way) {
    configure(&scene);
    let (_server, doors) = registered(&scene).await;
    scene.fault();
    let whole = way.event("alice", Some([2, 1, 1]));
    let cut = match way {
        // In the middle of the name.
        Way::Udp => &whole[..12],
        _ => &whole[..whole.len() - 20],
    };
    let told = way.send(&scene, &doors, cut).await;
    assert_ne!(told, Told::Taken);
    doors.until_refused(1).await;
    assert_eq!(due(&mut scene.database_beside().await).await, 0);
    the_next_is_pushed(&scene, way, &doors, 1).await;
}

async fn lies(scene: Scene, way: Way) {
    configure(&scene);
    let (server, doors) = registered(&scene).await;
    scene.fault();
    scene.deliver();
    lie_is_told(&scene, way, &doors).await;
    // A sweep follows.
    scene.kill(server);
    let mut server = scene.serve().await;
    let doors = Doors::of(&mut server).await;
    until_told(&scene, 2).await;
    rest(&scene).await;
    scene.deliver();
    way.tell(&scene, &doors, [3, 2, 2]).await;
    until_told(&scene, 3).await;
    assert!(scene.apns.received() >= 2);
}

/// Tells of more mail than there is until the device was told of it.
async fn lie_is_told(scene: &Scene, way: Way, doors: &Doors) {
    // The look that follows an event of Dovecot's driver heals it at once.
    let lie = if way == Way::Ox { 2 } else { 900 };
    let mut database = scene.database_beside().await;
    loop {
        way.tell(scene, doors, [900, 800, 700]).await;
        loop {
            let told = told(&mut database).await;
            if told == Some(lie) {
                return;
            }
            // Healed already, by a look that the start had left to do.
            if told == Some(2) && due(&mut database).await == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// The UIDNEXT that the device was told.
async fn told(database: &mut AnyConnection) -> Option<i64> {
    sqlx::query_scalar("select uid_next from mailbox").fetch_one(database).await.unwrap()
}

/// Waits until the device was told of this UIDNEXT: that is on disk once APNs has taken the push.
async fn until_told(scene: &Scene, uid_next: i64) {
    let mut database = scene.database_beside().await;
    while told(&mut database).await != Some(uid_next) {
        tokio::task::yield_now().await;
    }
}
