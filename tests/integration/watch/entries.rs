//! The METADATA entry of Dovecot's driver `ox`, at a backend that a test plays by hand.

use mailchime::config::CredentialsMode;
use mailchime::model::{Account, Timestamp};
use tracing::Level;

use super::nodes::Others;
use crate::support::log::Log;
use crate::support::stage::{IDLE, Peer, QUIET, Stage, stop};
use crate::support::watching::{PASSWORD, WatchWorld, Watching};
use crate::support::{limited, until};

const ENTRY: &str = "/private/vendor/vendor.dovecot/http-notify";

fn alice() -> Account {
    Account::from_login("alice")
}

/// The next connection is one that asks for the entry, which has this value.
async fn asks(stage: &Stage, value: &str) -> Peer {
    let mut peer = stage.accept().await;
    peer.play(&format!(
        "\
S: * OK [CAPABILITY IMAP4rev1] hi
C: m2 LOGIN \"alice\" \"wonderland\"
S: m2 OK [CAPABILITY IMAP4rev1 METADATA] in
C: w1 GETMETADATA \"\" {ENTRY}
S: * METADATA \"\" ({ENTRY} {value})
S: w1 OK done
"
    ))
    .await;
    peer
}

fn set(tag: u32) -> String {
    format!("C: w{tag} SETMETADATA \"\" ({ENTRY} \"user=alice\")\n")
}

fn unset(tag: u32) -> String {
    format!("C: w{tag} SETMETADATA \"\" ({ENTRY} NIL)\n")
}

/// A command under this tag is accepted, and there is no other.
async fn accepts(mut peer: Peer, tag: u32) {
    let next = tag + 1;
    peer.play(&format!("S: w{tag} OK\nC: w{next} LOGOUT\nS: * BYE\nS: w{next} OK\n")).await;
}

/// The last device is gone, and mailchime hears of it.
async fn leaves(world: &WatchWorld, watching: &Watching) {
    world.unregister("alice").await;
    watching.unwatched.send(alice()).await.unwrap();
}

/// The next connection removes the entry, and nothing is kept of the account.
async fn is_removed(stage: &Stage) {
    let mut removes = asks(stage, "\"user=alice\"").await;
    removes.play(&unset(2)).await;
    accepts(removes, 2).await;
    until_forgotten(&stage.world).await;
}

async fn until_forgotten(world: &WatchWorld) {
    until(async || {
        let lacks = world.store.lacks_entry(&alice(), Timestamp(i64::MAX)).await.unwrap();
        !lacks && world.store.leaving(Some(&alice()), Timestamp(1)).await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_entry_does_not_stay_where_the_last_device_goes_while_it_is_written() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.entries = true;
        let (watching, held) = stage.quiet().await;
        watching.registered("alice").await;
        let mut writes = asks(&stage, "NIL").await;
        writes.play(&set(2)).await;
        leaves(&stage.world, &watching).await;
        let mut removes = asks(&stage, "NIL").await;
        removes.play("C: w2 LOGOUT\nS: * BYE\nS: w2 OK\n").await;
        until_forgotten(&stage.world).await;
        // Now it is there, and nobody else knows of it.
        writes.play(&format!("S: w2 OK\n{}", unset(3))).await;
        accepts(writes, 3).await;
        stop(watching, held).await;
    })
    .await;
}

/// The one writes the entry, as its user has registered there, and does not hear what becomes of it.
#[tokio::test]
async fn an_entry_that_one_node_may_have_written_is_removed_by_another() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.entries = true;
        let watching = stage.world.watch_beside(Others::new(false).1);
        watching.registered("alice").await;
        let mut writes = asks(&stage, "NIL").await;
        writes.play(&set(2)).await;
        drop(writes);
        // It is tried again with the next registration only.
        watching.registered("alice").await;
        let mut writes = asks(&stage, "NIL").await;
        writes.play(&set(2)).await;
        drop(writes);
        watching.stop().await;
        stage.world.unregister("alice").await;
        let watching = stage.world.watch();
        is_removed(&stage).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_removal_that_breaks_off_is_made_again_and_one_that_is_refused_is_given_up() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.entries = true;
        let store = &stage.world.store;
        store.note_entry(&alice(), Some(Timestamp::now())).await.unwrap();
        stage.world.unregister("alice").await;
        let watching = stage.world.watch();
        let mut removes = asks(&stage, "\"user=alice\"").await;
        removes.play(&unset(2)).await;
        drop(removes);
        // The program ends.
        watching.stop().await;
        assert_eq!(store.leaving(None, Timestamp::now()).await.unwrap().len(), 1);
        let watching = stage.world.watch();
        let mut removes = asks(&stage, "\"user=alice\"").await;
        removes.play(&format!("{}S: w2 NO [NOPERM] not you\n", unset(2))).await;
        until_forgotten(&stage.world).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_entry_goes_with_the_last_device_where_the_password_is_in_memory() {
    limited(async {
        let mut stage = Stage::new().await;
        (stage.world.entries, stage.world.credentials) = (true, CredentialsMode::Memory);
        let watching = stage.world.watch();
        watching.until("parked").await;
        watching.logged_in("alice", PASSWORD).await;
        let mut held = stage.accept().await;
        held.play(IDLE).await;
        held.play(QUIET).await;
        watching.registered("alice").await;
        let mut writes = asks(&stage, "NIL").await;
        writes.play(&set(2)).await;
        writes.play("S: w2 OK\nC: w3 LOGOUT\n").await;
        let (store, since) = (&stage.world.store, Timestamp(1));
        until(async || !store.lacks_entry(&alice(), since).await.unwrap()).await;
        // The last device is gone before the one that wrote the entry asks whether there is any.
        stage.world.unregister("alice").await;
        writes.play("S: * BYE\nS: w3 OK\n").await;
        writes.left().await;
        store.has_any(&alice()).await.unwrap();
        watching.unwatched.send(alice()).await.unwrap();
        let mut removes = asks(&stage, "\"user=alice\"").await;
        removes.play(&unset(2)).await;
        // A user who comes back now, perhaps after the end of the program, has the entry looked at.
        assert!(store.lacks_entry(&alice(), since).await.unwrap());
        accepts(removes, 2).await;
        until_forgotten(&stage.world).await;
        stop(watching, held).await;
    })
    .await;
}

/// Nobody has the password after the program was started anew.
#[tokio::test]
async fn an_entry_of_an_account_without_a_password_in_memory_is_removed_when_its_user_logs_in() {
    limited(async {
        let mut stage = Stage::new().await;
        (stage.world.entries, stage.world.credentials) = (true, CredentialsMode::Memory);
        let store = &stage.world.store;
        store.note_entry(&alice(), Some(Timestamp::now())).await.unwrap();
        stage.world.unregister("alice").await;
        let log = Log::default();
        let _logs = tracing::subscriber::set_default(log.subscriber(Level::DEBUG));
        let watching = stage.world.watch();
        until(async || log.count("watch::entry_not_removed") == 1).await;
        watching.logged_in("alice", PASSWORD).await;
        is_removed(&stage).await;
        watching.stop().await;
    })
    .await;
}
