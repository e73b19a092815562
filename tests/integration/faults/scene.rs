//! Where a fault happens: a world of its own, and a count of what happens in it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use mailchime::demo::apns::Push;
use mailchime::model::{Subscription, SubscriptionKey};
use mailchime::store::Vault;
use serde_json::Value;
use sqlx::{AnyConnection, Connection, SqliteConnection};

use super::storm::database::Database;
use crate::support::servers::DatabaseServer;
use crate::support::world::{Server, World};
use crate::support::{skip, soon};

/// What happened to a scene.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) deliveries: AtomicU64,
    pub(super) pushes: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) skipped: AtomicBool,
}

pub(super) struct Scene {
    name: &'static str,
    world: World,
    /// A file, unless a row has it otherwise.
    database: Database,
    tally: Arc<Tally>,
}

impl Scene {
    pub(super) async fn new(name: &'static str, tally: Arc<Tally>) -> Self {
        let (world, database) = (World::new().await, Database::new(None));
        Self { name, world, database, tally }
    }

    /// The row's.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The same on a database server.
    pub(super) fn with_database(mut self, server: Box<dyn DatabaseServer>) -> Self {
        self.database = Database::new(Some(server));
        self.database.configure(&self.world);
        self
    }

    /// The database, whichever it is, as another program sees it.
    pub(super) async fn database_beside(&self) -> AnyConnection {
        self.database.beside(&self.world).await
    }

    /// See [`Database::goes_away`].
    pub(super) async fn database_goes_away(&self) -> Option<AnyConnection> {
        self.database.goes_away(&self.world).await
    }

    /// See [`Database::locked`].
    pub(super) async fn database_locked(&self) -> AnyConnection {
        self.database.locked(&self.world).await
    }

    /// See [`Database::is_back`].
    pub(super) async fn database_is_back(&self, locked: Option<AnyConnection>) {
        self.database.is_back(locked).await;
    }

    /// The program with a phone that has registered, its mailbox being watched.
    pub(super) async fn registered(&self) -> Server {
        let server = self.serve().await;
        self.register(server.address).await.unwrap();
        self.watched().await;
        server
    }

    pub(super) fn deliver(&self) {
        self.tally.deliveries.fetch_add(1, Relaxed);
        self.world.deliver();
    }

    /// Another fault was done.
    pub(super) fn fault(&self) {
        self.tally.faults.fetch_add(1, Relaxed);
    }

    pub(super) fn kill(&self, server: Server) {
        self.fault();
        server.process.kill();
    }

    /// The next push that APNs takes; those that it does not take are passed over.
    pub(super) async fn accepted(&self) -> Push {
        loop {
            let push = soon("a push", self.apns.next()).await;
            if push.status == Some(200) {
                return push;
            }
        }
    }

    /// The database as another program sees it.
    pub(super) async fn beside(&self) -> SqliteConnection {
        let url = format!("sqlite://{}", self.file("mailchime.db").display());
        SqliteConnection::connect(&url).await.unwrap()
    }

    /// Gives the account of the phone this subscription for the same mailboxes, with its secrets sealed.
    pub(super) async fn subscribe(&self, subscription: &Subscription) {
        let vault = Vault::open_existing(&self.file("mailchime.key")).unwrap();
        let key = SubscriptionKey::from(subscription);
        let sealed = subscription.secrets.as_ref().map(|it| vault.seal_secrets(&key, it));
        let mut database = self.beside().await;
        let row = "insert into subscription (account, transport, endpoint_hash, endpoint, app, route, options, \
                   secrets, registered_at, heard_at, renews) select account, $1, $2, $3, $4, $5, $6, $7, \
                   registered_at, heard_at, 0 from subscription limit 1";
        sqlx::query(row)
            .bind(subscription.transport.as_str())
            .bind(subscription.endpoint.hash_hex())
            .bind(subscription.endpoint.as_given())
            .bind(&*subscription.app)
            .bind(&*subscription.route)
            .bind(&*subscription.options)
            .bind(sealed)
            .execute(&mut database)
            .await
            .unwrap();
        let mailboxes = "insert into subscription_mailbox (subscription, mailbox) select s.id, m.id from \
                         subscription s join mailbox m on m.account = s.account where s.endpoint_hash = $1";
        let mailboxes = sqlx::query(mailboxes).bind(subscription.endpoint.hash_hex());
        mailboxes.execute(&mut database).await.unwrap();
    }

    /// Waits until the subscription by this transport is owed a push on disk.
    pub(super) async fn owed(&self, transport: &str) {
        let owed = "select count(*) from subscription s join subscription_mailbox m on m.subscription = s.id \
                    where s.transport = $1 and m.owed_since is not null";
        let mut database = self.beside().await;
        loop {
            let owed = sqlx::query_scalar(owed).bind(transport).fetch_one(&mut database).await;
            if owed.is_ok_and(|owed: i64| owed == 1) {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until there are so many subscriptions, all by this transport.
    pub(super) async fn left_with(&self, count: usize, transport: &str) {
        let mut database = self.beside().await;
        loop {
            let left = sqlx::query_scalar("select transport from subscription");
            let left: Vec<String> = left.fetch_all(&mut database).await.unwrap();
            if left == vec![transport; count] {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The row is not carried out, for this reason.
    pub(super) fn skip(&self, reason: &str) {
        skip::report(self.name, reason);
        self.tally.skipped.store(true, Relaxed);
    }

    /// Whether the row cannot be carried out without a program that is not on this machine.
    pub(super) fn lacks(&self, needed: &str) -> bool {
        let lacks = skip::skipped(self.name, needed);
        self.tally.skipped.store(lacks, Relaxed);
        lacks
    }
}

impl Deref for Scene {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.tally.pushes.store(self.world.apns.received(), Relaxed);
    }
}

/// Waits for a line of the log that says this of a push: `accepted`, `unavailable`, …
pub(super) async fn push_logged(server: &mut Server, outcome: &str) -> Value {
    loop {
        let line = server.logged("push attempted").await;
        if line["outcome"] == outcome {
            return line;
        }
    }
}

/// Waits for a line of the log that says this of a push to an endpoint that begins so.
pub(super) async fn push_to(server: &mut Server, endpoint: &str, outcome: &str) {
    loop {
        let line = push_logged(server, outcome).await;
        if line["endpoint"].as_str().is_some_and(|it| it.starts_with(endpoint)) {
            return;
        }
    }
}

/// Waits for a line of the log with these words.
pub(super) async fn said(server: &mut Server, words: &str) {
    server.process.stderr.find(words, |line| line.contains(words).then_some(())).await;
}
