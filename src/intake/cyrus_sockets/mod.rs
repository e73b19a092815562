//! Events of Cyrus, by its `notifysocket`: datagrams, which are not answered, or a connection for each event
//! (`dlist:`), which is answered when the event is on disk.
//!
//! Imapd and lmtpd wait where nobody reads: after eleven datagrams (`net.unix.max_dgram_qlen`), and on a connection
//! for the answer, without a limit. So a thread does nothing but read datagrams, and what comes while too much
//! waits is left to the next sweep; and a connection has its answer, or its end, within seconds.
//!
//! Who may write to the sockets is for their files to say.

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::NotRecorded;
use super::answer::IntakeContext;
use super::cyrus::event::{self, CyrusNews};
use super::cyrus::notification::{self, LONGEST, Notification, Parsed};
use super::device::DeviceRefusal;
use super::source::KnownSource;
use crate::config::CyrusEventsConfig;
use crate::metrics::{EventRefusal, SourceMetrics};
use crate::net::unix_socket::{self, SocketFile};

/// For an event to get to disk before its connection is answered.
const RECORD_TIME: Duration = Duration::from_secs(10);

/// Events of datagrams that wait between the thread that reads and the rest.
const QUEUE: usize = 1024;

/// Connections that are served at once. The kernel keeps further ones.
const CONNECTIONS: usize = 256;

/// Bytes that are read at once.
const CHUNK: usize = 8 * 1024;

/// After an error that the next try would only repeat.
const PAUSE: Duration = Duration::from_millis(100);

/// The answers to a notification.
const TAKEN: &[u8] = b"OK ()\r\n";
const NOT_TAKEN: &[u8] = b"NO ()\r\n";

/// The sockets for Cyrus.
#[derive(Debug)]
pub struct CyrusEvents {
    datagrams: Option<(UnixDatagram, SocketFile)>,
    connections: Option<(UnixListener, SocketFile)>,
    source: KnownSource,
}

/// What the tasks of both sockets share.
struct CyrusIntake {
    context: Arc<IntakeContext>,
    source: KnownSource,
}

/// Ends the thread that reads when this is dropped.
struct DatagramReader {
    socket: UnixDatagram,
    ended: Arc<AtomicBool>,
}

/// A connection that brings no notification.
#[derive(Clone, Copy)]
enum Unread {
    /// It has said nothing.
    Nothing,
    /// It ended in the middle.
    BrokeOff,
    Late,
    TooLarge,
    Malformed,
}

/// What was read from datagrams.
type ReadNews = mpsc::Receiver<CyrusNews>;

impl CyrusEvents {
    /// Makes the sockets of the configuration.
    ///
    /// # Errors
    /// The key, the path, and what the system says.
    pub fn bind(
        config: &CyrusEventsConfig,
        metrics: SourceMetrics,
    ) -> Result<Self, (&'static str, &Path, io::Error)> {
        let group = config.group.as_deref();
        let datagrams = |path| {
            let made = unix_socket::datagrams(path, group);
            made.map_err(|error| ("[events] cyrus_socket", path, error))
        };
        let datagrams = config.socket.as_deref().map(datagrams).transpose()?;
        let connections = |path| {
            let made = unix_socket::listen(path, group);
            made.map_err(|error| ("[events] cyrus_stream", path, error))
        };
        let connections = config.stream.as_deref().map(connections).transpose()?;
        let source = KnownSource::without_secret(&config.source, metrics);
        Ok(Self { datagrams, connections, source })
    }

    /// Takes events until `stop`, and those that have come by then.
    pub(super) async fn run(self, context: Arc<IntakeContext>, stop: CancellationToken) {
        let Self { datagrams, connections, source } = self;
        let intake = Arc::new(CyrusIntake { context, source });
        let datagrams = async {
            if let Some((socket, file)) = datagrams {
                match DatagramReader::start(socket, Arc::clone(&intake)) {
                    Ok((reader, news)) => take_datagrams(&intake, reader, file, news, &stop).await,
                    Err(error) => tracing::error!(
                        target: "mailchime::intake::cyrus_not_read",
                        %error,
                        "mailchime cannot read [events] cyrus_socket and removes it; events of Cyrus are found \
                         by the next sweep"
                    ),
                }
            }
        };
        let connections = async {
            if let Some((listener, file)) = connections {
                take_connections(&intake, listener, file, &stop).await;
            }
        };
        tokio::join!(datagrams, connections);
    }
}

impl CyrusIntake {
    /// An event came that nothing is known of, or that is not recorded: a sweep follows.
    fn missed(&self) {
        self.context.recorder.missed();
        self.source.metrics.missed(1);
    }

    fn refuse(&self, why: EventRefusal) {
        self.context.refuse(Some(self.source.name()), &self.source.metrics, why);
    }

    /// What a notification says. What it should not say is counted.
    fn news(&self, notification: &Notification) -> Result<CyrusNews, EventRefusal> {
        let news = event::news(notification, &self.source);
        news.map_err(|refusal| refusal.counted.unwrap_or(EventRefusal::Malformed))
    }

    /// Returns when what Cyrus says is on disk.
    async fn take(self: Arc<Self>, news: CyrusNews) -> Result<(), EventRefusal> {
        match news {
            CyrusNews::Hints(hints) if hints.is_empty() => Ok(()),
            CyrusNews::Device(..) if !self.source.may_send(1) => Err(EventRefusal::TooMany),
            CyrusNews::Hints(_) if !self.source.may_send(1) => {
                self.missed();
                Err(EventRefusal::TooMany)
            }
            CyrusNews::Hints(hints) => match self.context.record_hints(hints).await {
                // They are names of one mailbox.
                Ok(known) => {
                    self.source.metrics.recorded(&[known.contains(&true)]);
                    Ok(())
                }
                Err(error) => {
                    self.missed();
                    Err(self.context.tell_of(self.source.name(), &error))
                }
            },
            CyrusNews::Device(account, request) => {
                let route = self.source.route();
                let registered = self.context.registering(route, account, *request).await;
                registered.map_err(|refusal| refusal.counted())
            }
        }
    }

    /// Counts a connection that brings no notification.
    fn not_read(&self, unread: Unread) {
        if matches!(unread, Unread::BrokeOff | Unread::Late | Unread::TooLarge) {
            self.missed();
        }
        match unread {
            Unread::Nothing => {}
            Unread::BrokeOff | Unread::Malformed => self.refuse(EventRefusal::Malformed),
            Unread::Late => self.refuse(EventRefusal::Timeout),
            Unread::TooLarge => self.refuse(EventRefusal::TooLarge),
        }
    }

    /// Reads one notification and answers it.
    async fn serve(self: Arc<Self>, mut stream: UnixStream) {
        let limit = self.context.request_timeout;
        let read = timeout(limit, notification_of(&mut stream)).await;
        let notification = match read.unwrap_or(Err(Unread::Late)) {
            Ok(notification) => notification,
            // It is closed without an answer.
            Err(unread) => return self.not_read(unread),
        };
        let taken = match self.news(&notification) {
            Ok(news) => {
                let device = news.device().cloned();
                // What has begun goes on when its time is up.
                let taking = tokio::spawn(Arc::clone(&self).take(news));
                match (timeout(RECORD_TIME, taking).await, device) {
                    (Ok(Ok(taken)), _) => taken,
                    (_, Some(account)) => {
                        Err(DeviceRefusal::late().tell(&account, &self.context.counters))
                    }
                    (_, None) => {
                        Err(self.context.tell_of(self.source.name(), &NotRecorded::late()))
                    }
                }
            }
            Err(why) => Err(why),
        };
        let answer = match taken {
            Ok(()) => TAKEN,
            Err(why) => {
                self.refuse(why);
                NOT_TAKEN
            }
        };
        // Who asked may have gone.
        let _ = timeout(limit, stream.write_all(answer)).await;
    }
}

/// The notification of a connection.
async fn notification_of(stream: &mut UnixStream) -> Result<Notification, Unread> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = match stream.read(&mut chunk).await {
            Ok(0) | Err(_) if bytes.is_empty() => return Err(Unread::Nothing),
            Ok(0) | Err(_) => return Err(Unread::BrokeOff),
            Ok(read) => read,
        };
        bytes.extend_from_slice(&chunk[..read]);
        match notification::of_stream(&bytes) {
            Parsed::Whole(notification) => return Ok(notification),
            Parsed::Incomplete => {}
            Parsed::TooLarge => return Err(Unread::TooLarge),
            Parsed::Malformed => return Err(Unread::Malformed),
        }
    }
}

/// Takes what datagrams say until `stop`, and what has come by then.
async fn take_datagrams(
    intake: &Arc<CyrusIntake>,
    reader: DatagramReader,
    file: SocketFile,
    mut read: ReadNews,
    stop: &CancellationToken,
) {
    let mut open = Some((reader, file));
    let mut taking = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled(), if open.is_some() => open = None,
            Some(_) = taking.join_next() => {}
            news = read.recv() => {
                let Some(news) = news else { break };
                let intake = Arc::clone(intake);
                let mut taken = Box::pin(async move {
                    if let Err(why) = Arc::clone(&intake).take(news).await {
                        intake.refuse(why);
                    }
                });
                // It begins here, so that events keep their order. As many wait at once as there are places.
                if poll_fn(|cx| Poll::Ready(taken.as_mut().poll(cx))).await.is_pending() {
                    taking.spawn(taken);
                }
            }
        }
    }
    while taking.join_next().await.is_some() {}
}

/// Serves connections until `stop`, and ends those that are there by then.
async fn take_connections(
    intake: &Arc<CyrusIntake>,
    listener: UnixListener,
    file: SocketFile,
    stop: &CancellationToken,
) {
    let mut serving = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = serving.join_next() => continue,
            accepted = listener.accept(), if serving.len() < CONNECTIONS => accepted,
        };
        match accepted {
            Ok((stream, _)) => drop(serving.spawn(Arc::clone(intake).serve(stream))),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    drop((file, listener));
    while serving.join_next().await.is_some() {}
}

impl DatagramReader {
    /// Reads in a thread of its own until this is dropped, and what has come by then.
    fn start(socket: UnixDatagram, intake: Arc<CyrusIntake>) -> io::Result<(Self, ReadNews)> {
        let ended = Arc::new(AtomicBool::new(false));
        let reader = Self { socket: socket.try_clone()?, ended: Arc::clone(&ended) };
        let (sender, news) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("cyrus datagrams".to_owned());
        thread.spawn(move || read_datagrams(&socket, &ended, &intake, &sender))?;
        Ok((reader, news))
    }
}

impl Drop for DatagramReader {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // The thread wakes up. Who writes from now on has an error at once.
        let _ = self.socket.shutdown(Shutdown::Read);
    }
}

fn read_datagrams(
    socket: &UnixDatagram,
    ended: &AtomicBool,
    intake: &CyrusIntake,
    sender: &mpsc::Sender<CyrusNews>,
) {
    let mut bytes = vec![0; LONGEST];
    loop {
        let length = match socket.recv(&mut bytes) {
            Ok(length) if length > 0 || !ended.load(Ordering::Acquire) => length,
            Ok(_) => return,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) if ended.load(Ordering::Acquire) => return,
            Err(_) => {
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        let read = match notification::of_datagram(&bytes[..length]) {
            // The rest of a longer one is gone.
            None if length == LONGEST => {
                intake.missed();
                Err(EventRefusal::TooLarge)
            }
            None => Err(EventRefusal::Malformed),
            Some(notification) => intake.news(&notification),
        };
        let queued = read.and_then(|news| match news {
            CyrusNews::Hints(hints) if hints.is_empty() => Ok(()),
            news => sender.try_send(news).map_err(|error| match error.into_inner().device() {
                Some(account) => DeviceRefusal::busy().tell(account, &intake.context.counters),
                None => {
                    intake.missed();
                    intake.context.tell_of(intake.source.name(), &NotRecorded::Full)
                }
            }),
        });
        if let Err(why) = queued {
            intake.refuse(why);
        }
    }
}
