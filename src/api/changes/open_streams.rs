//! The streams that are open: how many there may be, and which of them are not read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::task::TaskTracker;

use super::inbox::StreamInbox;
use crate::api::error::ApiError;
use crate::metrics::Held;
use crate::model::Account;
use crate::net::counters::HttpCounters;
use crate::net::http::ConnectionHandle;

/// All streams of this node.
#[derive(Debug)]
pub(in crate::api) struct OpenStreams {
    limits: StreamLimits,
    counters: Arc<HttpCounters>,
    open: Mutex<OpenTable>,
    gauge: Gauge,
    /// The tasks of WebSockets.
    pub(super) tasks: TaskTracker,
}

/// Limits of streams.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// In all.
    pub streams: usize,
    /// Of one account.
    pub streams_per_account: usize,
    /// Between two signs of life.
    pub keepalive: Duration,
    /// How long a client may take none of what waits for it.
    pub write_timeout: Duration,
}

#[derive(Debug, Default)]
struct OpenTable {
    last: u64,
    by_account: HashMap<Account, usize>,
    /// Those that a connection of the server carries, by number; one that was cut off is gone from here.
    carried: HashMap<u64, ReadBy>,
}

/// What a stream waits for, and the connection that reads it.
#[derive(Debug)]
struct ReadBy {
    inbox: Arc<StreamInbox>,
    connection: ConnectionHandle,
}

/// A place among the open streams.
#[derive(Debug)]
pub(super) struct StreamPlace {
    of: Arc<OpenStreams>,
    account: Account,
    number: u64,
    _counted: Held,
}

impl OpenStreams {
    pub(in crate::api) fn new(
        limits: StreamLimits,
        counters: Arc<HttpCounters>,
        gauge: Gauge,
    ) -> Arc<Self> {
        let (open, tasks) = (Mutex::default(), TaskTracker::new());
        Arc::new(Self { limits, counters, open, gauge, tasks })
    }

    pub(in crate::api) fn limits(&self) -> StreamLimits {
        self.limits
    }

    /// A place for a stream of this account.
    pub(super) fn place(self: &Arc<Self>, account: &Account) -> Result<StreamPlace, ApiError> {
        let mut open = self.open.lock();
        let OpenTable { last, by_account, .. } = &mut *open;
        let StreamLimits { streams: most, streams_per_account, .. } = self.limits;
        let of_account = by_account.get(account).copied().unwrap_or(0);
        if of_account >= streams_per_account {
            self.counters.streams_per_account.hit();
            return Err(ApiError::too_many("The account has too many streams. Close one of them."));
        }
        if by_account.values().sum::<usize>() >= most {
            if self.counters.streams.hit() {
                tracing::warn!(
                    target: "mailchime::api::streams_reached",
                    limit = most,
                    "[api] streams is reached; mailchime refuses further streams until one ends"
                );
            }
            return Err(ApiError::unavailable("There are too many streams. Try again later."));
        }
        *last += 1;
        *by_account.entry(account.clone()).or_default() += 1;
        let number = *last;
        Ok(StreamPlace {
            of: Arc::clone(self),
            account: account.clone(),
            number,
            _counted: Held::new(&self.gauge),
        })
    }

    /// Ends the connections that have taken nothing for too long of what waits for them.
    pub(in crate::api) fn cut_off(&self) {
        let limit = self.limits.write_timeout;
        self.open.lock().carried.retain(|_, ReadBy { inbox, connection }| {
            let reads = inbox.waits_since().is_none_or(|since| since.elapsed() < limit);
            if !reads {
                self.counters.write_timeout.hit();
                connection.close();
            }
            reads
        });
    }

    /// The client of a WebSocket has taken nothing for too long.
    pub(super) fn web_socket_cut_off(&self) {
        self.counters.write_timeout.hit();
    }

    /// Waits for the streams that are no answers of the server any more.
    pub(in crate::api) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl StreamPlace {
    /// The client reads the stream on this connection of the server. One that was upgraded is not: it has
    /// its own limit.
    pub(super) fn read_by(&self, inbox: Arc<StreamInbox>, connection: ConnectionHandle) {
        self.of.open.lock().carried.insert(self.number, ReadBy { inbox, connection });
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut open = self.of.open.lock();
        open.carried.remove(&self.number);
        if let Some(streams) = open.by_account.get_mut(&self.account) {
            *streams -= 1;
            if *streams == 0 {
                open.by_account.remove(&self.account);
            }
        }
    }
}
