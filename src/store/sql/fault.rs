//! Why no connection to a server comes about. A pool tries again and again, and says in the end only that its time is
//! over.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::AnyConnectOptions;
use sqlx::{AnyConnection, Connection};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::store::error::is_temporary;

/// For one try.
const PATIENCE: Duration = Duration::from_secs(1);

/// So long what a try said goes for all callers, so that many of them make one connection.
const FRESH: Duration = Duration::from_secs(1);

/// What the last try said, and when.
#[derive(Clone, Default)]
pub(in crate::store) struct ConnectionFault(Arc<Mutex<Option<LastTry>>>);

struct LastTry {
    at: Instant,
    said: Option<Arc<sqlx::Error>>,
}

impl ConnectionFault {
    /// Why such a connection does not come about; `None` where it does, or where nobody answers.
    pub(super) async fn of(&self, options: &AnyConnectOptions) -> Option<sqlx::Error> {
        let mut last = self.0.lock().await;
        if last.as_ref().is_none_or(|last| last.at.elapsed() > FRESH) {
            let said = said(options).await.map(Arc::new);
            *last = Some(LastTry { at: Instant::now(), said });
        }
        let said = last.as_ref()?.said.clone()?;
        Some(sqlx::Error::Io(match &*said {
            sqlx::Error::Io(error) => io::Error::new(error.kind(), error.to_string()),
            _ => io::Error::other(said),
        }))
    }
}

async fn said(options: &AnyConnectOptions) -> Option<sqlx::Error> {
    let tried = timeout(PATIENCE, AnyConnection::connect_with(options)).await.ok()?;
    match tried {
        Ok(connection) => {
            // A farewell, whether it arrives or not.
            let _ = timeout(PATIENCE, connection.close()).await;
            None
        }
        // What does not pass by itself, the pool itself says.
        Err(error) => is_temporary(&error).then_some(error),
    }
}
