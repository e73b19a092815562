//! Word for `push` that the devices of an account are others now. The supervisor does not wait for `push`, and loses no
//! word: what `push` has no room for waits here, each account once, so there is no more of it than there are accounts.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::pin::Pin;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{SendError, TrySendError};

use crate::model::{Account, WatchEvent};

type Reservation =
    Pin<Box<dyn Future<Output = Result<mpsc::OwnedPermit<WatchEvent>, SendError<()>>> + Send>>;

/// Accounts of which `push` has still to hear, in their order.
pub(super) struct DeviceNews {
    events: mpsc::Sender<WatchEvent>,
    waiting: VecDeque<Account>,
    /// Those of `waiting`.
    accounts: HashSet<Account>,
    /// Its place among those that wait for room.
    reservation: Option<Reservation>,
}

impl DeviceNews {
    pub(super) fn new(events: mpsc::Sender<WatchEvent>) -> Self {
        Self { events, waiting: VecDeque::new(), accounts: HashSet::new(), reservation: None }
    }

    /// The account's devices are others now: at once, where there is room and nothing waits.
    pub(super) fn add(&mut self, account: Account) {
        let full = match self.waiting.is_empty() {
            true => self.events.try_send(WatchEvent::Registered { account }),
            false => Err(TrySendError::Full(WatchEvent::Registered { account })),
        };
        // A push side that has ended reads all when it begins anew.
        let Err(TrySendError::Full(WatchEvent::Registered { account })) = full else { return };
        if self.accounts.insert(account.clone()) {
            self.waiting.push_back(account);
        }
    }

    /// Tells the next of what waits, when there is room. Cancel safe: its place in the queue stays.
    pub(super) async fn tell_next(&mut self) {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        let events = &self.events;
        let reservation =
            self.reservation.get_or_insert_with(|| Box::pin(events.clone().reserve_owned()));
        let permit = reservation.await;
        self.reservation = None;
        match permit {
            Ok(permit) => {
                let Some(account) = self.waiting.pop_front() else { return };
                self.accounts.remove(&account);
                permit.send(WatchEvent::Registered { account });
            }
            Err(_) => {
                self.waiting.clear();
                self.accounts.clear();
            }
        }
    }
}

impl fmt::Debug for DeviceNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceNews").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}
