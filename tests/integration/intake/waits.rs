//! What may stand where mailchime should, and how long mail waits for it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mailchime::intake::{HintRecorder, NotRecorded, RecordingHints};
use mailchime::model::Hint;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::block_in_place;

use super::TOKEN;
use super::dovecot::{Heard, intake_with};
use crate::support::listener;

/// Has no place for any event, and counts how often it is asked.
#[derive(Debug, Default)]
struct Overloaded(AtomicUsize);

impl HintRecorder for Overloaded {
    fn record(&self, _: Vec<Hint>) -> RecordingHints<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Err(NotRecorded::Full) })
    }

    fn missed(&self) {}
}

/// What listens at the address of mailchime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listens {
    /// Nobody.
    None,
    /// Somebody who takes connections and says nothing.
    Silent,
    /// Somebody who takes a request's head and does not come to an answer.
    Slow,
    /// A mailchime that knows another secret, and answers 401.
    Refusing,
    /// A mailchime that has too much to do, and answers 503 with Retry-After.
    Busy,
}

/// Stands where mailchime should.
pub(super) struct NotTaking {
    pub(super) address: SocketAddr,
    requests: Requests,
}

enum Requests {
    Uncounted,
    Connections(Arc<AtomicUsize>),
    Recorder(Arc<Overloaded>),
}

impl NotTaking {
    pub(super) async fn start(listens: Listens, folder: &Path) -> Self {
        let secret = |name: &str, secret: &str| {
            let file = folder.join(name);
            fs::write(&file, secret).unwrap();
            file
        };
        match listens {
            Listens::Refusing => {
                let other = secret("other.token", &format!("{TOKEN}-of-another"));
                let (sender, _) = mpsc::unbounded_channel();
                let address = intake_with(&other, Arc::new(Heard(sender))).await;
                Self { address, requests: Requests::Uncounted }
            }
            Listens::Busy => {
                let recorder = Arc::new(Overloaded::default());
                let known = secret("known.token", TOKEN);
                let address = intake_with(&known, Arc::clone(&recorder) as _).await;
                Self { address, requests: Requests::Recorder(recorder) }
            }
            Listens::None | Listens::Silent | Listens::Slow => {
                let socket = listener().await;
                let address = socket.local_addr().unwrap();
                if listens == Listens::None {
                    return Self { address, requests: Requests::Uncounted };
                }
                let says: &[u8] = match listens {
                    Listens::Slow => b"HTTP/1.1 100 Continue\r\n\r\n",
                    _ => b"",
                };
                let connections = Arc::new(AtomicUsize::new(0));
                let requests = Requests::Connections(Arc::clone(&connections));
                tokio::spawn(async move {
                    let mut kept = Vec::new();
                    while let Ok((mut stream, _)) = socket.accept().await {
                        connections.fetch_add(1, Ordering::Relaxed);
                        stream.write_all(says).await.unwrap();
                        kept.push(stream);
                    }
                });
                Self { address, requests }
            }
        }
    }

    /// How many requests, or connections where none is read, have come.
    pub(super) fn requests(&self) -> usize {
        match &self.requests {
            Requests::Uncounted => 0,
            Requests::Connections(count) => count.load(Ordering::Relaxed),
            Requests::Recorder(recorder) => recorder.0.load(Ordering::Relaxed),
        }
    }
}

/// What a machine with much else to do takes for all deliveries and commands of a test together, besides what they may
/// wait. It shows a wait of some seconds at each of many, and one of Dovecot's own limits, such as a minute for a
/// request. It does not show a shorter one: for that the tests look at what ended each wait, by Dovecot's log, and at how
/// often mailchime was asked.
const BUSY_MACHINE: Duration = Duration::from_secs(30);

/// How long mail was held up in a test.
#[derive(Default)]
pub(super) struct HeldUp {
    may_wait: Duration,
    took: Duration,
}

impl HeldUp {
    /// Does what may wait so long for mailchime.
    pub(super) fn at_most<T>(&mut self, wait: Duration, doing: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = block_in_place(doing);
        self.took += began.elapsed();
        self.may_wait += wait;
        let (took, most) = (self.took, self.may_wait + BUSY_MACHINE);
        assert!(took < most, "it took {took:?} by now, and may wait for {:?}", self.may_wait);
        done
    }
}
