//! The time of day jumps.

use std::fs;
use std::path::{Path, PathBuf};

use mailchime::demo::apns::Answer;
use mailchime::demo::phone::Phone;

use super::scene::{Scene, said};
use super::{Fault, fault};
use crate::support::program::Process;
use crate::support::soon;
use crate::support::world::Server;

pub(super) fn faults() -> Vec<Fault> {
    vec![
        fault!(
            jumps,
            "clock: three days forward, then one day back",
            "all mail is pushed, registrations stay and can be renewed"
        ),
        fault!(
            ahead_at_the_start,
            "clock: 20 days ahead at a start, then off for 11 days",
            "no registration goes, all mail is pushed"
        ),
        fault!(
            behind_at_the_start,
            "clock: 30 days behind at the start, then set",
            "push is off until the clock is set, and on within seconds"
        ),
        fault!(
            expired,
            "clock: half an hour forward, APNs calls the token expired",
            "a new one is signed, and the mail is pushed"
        ),
    ]
}

const ANOTHER_ID: &str = "22222222-CA09-4730-A419-793000CA982E";

async fn jumps(scene: Scene) {
    if scene.lacks("faketime") {
        return;
    }
    let Some(library) = library() else { return scene.skip("there is no libfaketime") };
    set_clock(&scene, "+0d");
    let server = serve(&scene, &library).await;
    scene.register(server.address).await.unwrap();
    scene.watched().await;
    scene.deliver();
    scene.push().await;

    scene.fault();
    set_clock(&scene, "+3d");
    scene.deliver();
    scene.push().await;
    scene.kill(server);
    scene.deliver();
    let server = serve(&scene, &library).await;
    scene.push().await;
    scene.register(server.address).await.unwrap();

    scene.fault();
    set_clock(&scene, "+2d");
    scene.deliver();
    scene.push().await;
    scene.kill(server);
    scene.deliver();
    let server = serve(&scene, &library).await;
    scene.push().await;
    // By its clock this is before the last registration, and it counts all the same.
    let phone = Phone { account_id: ANOTHER_ID.into(), ..scene.phone() };
    let ca = &scene.pki.ca.certificate;
    phone.register(server.address, "localhost", ca, |_, _| {}).await.unwrap();
    scene.watched().await;
    scene.deliver();
    // What was pushed when the program was killed may have been pushed again, under the id of then.
    let pushed =
        async { while scene.apns.next().await.json()["aps"]["account-id"] != ANOTHER_ID {} };
    soon("a push under the newest id", pushed).await;
}

async fn ahead_at_the_start(scene: Scene) {
    if scene.lacks("faketime") {
        return;
    }
    let Some(library) = library() else { return scene.skip("there is no libfaketime") };
    set_clock(&scene, "+0d");
    let mut server = serve(&scene, &library).await;
    scene.register(server.address).await.unwrap();
    scene.watched().await;
    // The clock is set while it runs; later the machine is off for longer than a phone is silent.
    for (at_the_start, then) in [("+20d", "+0d"), ("+11d", "+11d")] {
        scene.kill(server);
        set_clock(&scene, at_the_start);
        scene.deliver();
        server = serve(&scene, &library).await;
        scene.push().await;
        scene.fault();
        set_clock(&scene, then);
        scene.deliver();
        scene.push().await;
    }
}

async fn behind_at_the_start(scene: Scene) {
    if scene.lacks("faketime") {
        return;
    }
    let Some(library) = library() else { return scene.skip("there is no libfaketime") };
    scene.fault();
    set_clock(&scene, "-30d");
    let mut server = serve(&scene, &library).await;
    said(&mut server, "Check the clock of this machine").await;
    scene.fault();
    set_clock(&scene, "+0d");
    soon("push", said(&mut server, "push is on")).await;
    scene.register(server.address).await.unwrap();
    scene.watched().await;
    scene.deliver();
    scene.push().await;
}

async fn expired(scene: Scene) {
    if scene.lacks("faketime") {
        return;
    }
    let Some(library) = library() else { return scene.skip("there is no libfaketime") };
    let key = &scene.pki.provider;
    fs::write(scene.file("apns.p8"), key.expose_private_key()).unwrap();
    let identity = format!(
        "key = \"apns.p8\"\nkey_id = \"{}\"\nteam_id = \"{}\"\ntopic = \"{}\"\n",
        key.key_id, key.team_id, scene.pki.topic
    );
    let certificate = "certificate = \"apns.pem\"\nprivate_key = \"apns.key\"\n";
    scene.configure(certificate, &identity);
    set_clock(&scene, "+0d");
    let server = serve(&scene, &library).await;
    scene.register(server.address).await.unwrap();
    scene.watched().await;
    scene.deliver();
    assert_eq!(scene.push().await.status, Some(200));

    scene.fault();
    set_clock(&scene, "+30m");
    scene.apns.set_clock_ahead(30 * 60);
    scene.apns.answer_next(1, Answer::refuse(403, "ExpiredProviderToken"));
    scene.deliver();
    assert_eq!(scene.push().await.status, Some(403));
    assert_eq!(scene.push().await.status, Some(200));
}

fn set_clock(scene: &Scene, ahead: &str) {
    // Whole or not at all, since it is read at any moment.
    fs::write(scene.file("clock.new"), ahead).unwrap();
    fs::rename(scene.file("clock.new"), scene.file("clock")).unwrap();
}

/// The program with the time of day of the file `clock`; what measures time goes on.
async fn serve(scene: &Scene, library: &Path) -> Server {
    let mut command = scene.program();
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", scene.file("clock"));
    command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    Server::of(Process::spawn(command)).await
}

fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}
