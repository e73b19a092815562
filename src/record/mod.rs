//! Recording live sessions as dialogues (`fixtures/README.md`), so that a user can show one that
//! fails: `[record]` in the configuration.
//!
//! A tap ([`Tap`]) beside a session gives copies of what is said to a channel that never waits; a task
//! turns them into lines, replaces what is private (`mask`, `words`), and writes them. When it
//! cannot keep up or the file is long enough, the recording ends, not the session. Nothing here knows
//! where sessions come from.

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod mask;
mod transcript;
mod words;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use self::transcript::MAILBOXES;
use self::transcript::Transcript;
use crate::config;
use crate::imap::contract::Profile;
use crate::imap::tap::{Flow, Tap, Taps};
use crate::model::Timestamp;

/// Pieces of a session that may wait for the writer, and bytes in all of them.
const QUEUE: usize = 4096;
const QUEUE_SIZE: usize = 4 * 1024 * 1024;

/// Pieces that are written at once.
const BATCH: usize = 256;

/// Bytes that are turned into lines before others have their turn.
const TURN: usize = 32 * 1024;

/// What makes the recording of each new session.
pub fn taps(config: &config::RecordConfig) -> Taps {
    let config = config.clone();
    Taps::new(move |profile, secure| Box::new(Recording::begin(config.clone(), profile, secure)))
}

/// Whether sessions can be recorded.
///
/// # Errors
/// Why no file can be made in the folder.
pub fn check(config: &config::RecordConfig) -> io::Result<()> {
    // It has no name, and so goes away whatever happens.
    tempfile::tempfile_in(&config.folder).map(drop)
}

/// The recording of one session: what is heard goes to the task that writes it.
#[derive(Debug)]
struct Recording {
    pieces: mpsc::Sender<(Duration, Piece)>,
    started: Instant,
    backlog: Arc<WriterQueue>,
    writer: JoinHandle<()>,
}

/// What waits for the writer.
#[derive(Debug, Default)]
struct WriterQueue {
    bytes: AtomicUsize,
    /// It was too much.
    torn: AtomicBool,
}

enum Piece {
    /// A setting that shows only now.
    Setting(&'static str),
    Said(Flow, Vec<u8>),
    Happened(String),
}

impl Recording {
    fn begin(config: config::RecordConfig, profile: &Profile, secure: bool) -> Self {
        let (pieces, waiting) = mpsc::channel(QUEUE);
        let backlog = Arc::new(WriterQueue::default());
        let transcript = Transcript::new(profile, secure);
        let writer = tokio::spawn(write(config, transcript, waiting, Arc::clone(&backlog)));
        Self { pieces, started: Instant::now(), backlog, writer }
    }

    fn add(&mut self, length: usize, piece: impl FnOnce() -> Piece) {
        let WriterQueue { bytes, torn } = &*self.backlog;
        if torn.load(Ordering::Relaxed) {
            return;
        }
        let waiting = bytes.load(Ordering::Relaxed);
        match self.pieces.try_reserve() {
            Ok(place) if waiting + length <= QUEUE_SIZE => {
                bytes.fetch_add(length, Ordering::Relaxed);
                place.send((self.started.elapsed(), piece()));
            }
            // The recording is long enough, or cannot be written.
            Err(mpsc::error::TrySendError::Closed(())) => {}
            Ok(_) | Err(mpsc::error::TrySendError::Full(())) => torn.store(true, Ordering::Relaxed),
        }
    }
}

impl Tap for Recording {
    fn setting(&mut self, setting: &'static str) {
        self.add(0, || Piece::Setting(setting));
    }

    fn said(&mut self, flow: Flow, bytes: &[u8]) {
        self.add(bytes.len(), || Piece::Said(flow, bytes.to_vec()));
    }

    fn happened(&mut self, what: &str) {
        self.add(0, || Piece::Happened(what.to_owned()));
    }

    fn finish(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let Self { pieces, writer, .. } = *self;
        drop(pieces);
        Box::pin(async move {
            // It has logged what went wrong.
            let _ = writer.await;
        })
    }
}

/// Writes a session's pieces until it ends, its file is long enough, or it comes too fast.
async fn write(
    config: config::RecordConfig,
    mut transcript: Transcript,
    mut waiting: mpsc::Receiver<(Duration, Piece)>,
    backlog: Arc<WriterQueue>,
) {
    let mut file: Option<File> = None;
    let mut room = config.max_size;
    let mut batch = Vec::with_capacity(BATCH);
    let mut client_spoke = false;
    loop {
        let count = waiting.recv_many(&mut batch, BATCH).await;
        let mut said = 0;
        for (at, piece) in batch.drain(..) {
            match piece {
                Piece::Said(flow, bytes) => {
                    said += bytes.len();
                    if said >= TURN {
                        said = 0;
                        tokio::task::yield_now().await;
                    }
                    backlog.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
                    client_spoke |= flow == Flow::C;
                    transcript.said(at, flow, &bytes);
                }
                Piece::Setting(setting) => transcript.setting(setting),
                Piece::Happened(what) => transcript.happens(at, &what),
            }
        }
        // What waited when the writer fell behind is still whole.
        let torn = backlog.torn.load(Ordering::Relaxed);
        let mut last = count == 0 || (torn && waiting.is_empty());
        if last {
            transcript.end();
        }
        if torn && last {
            transcript
                .text
                .push_str("# The recording ends here: the session was too fast for it.\n");
        }
        // A client that connects and says nothing leaves no file.
        if !client_spoke {
            if last {
                return;
            }
            continue;
        }
        let mut text = std::mem::take(&mut transcript.text);
        if text.len() as u64 > room {
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let end = text.as_bytes()[..room].iter().rposition(|b| *b == b'\n');
            text.truncate(end.map_or(0, |end| end + 1));
            text.push_str("# The recording ends here: [record] max_size is reached.\n");
            last = true;
        }
        room = room.saturating_sub(text.len() as u64);
        let folder = config.folder.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = match file {
                Some(file) => file,
                None => create(&folder)?,
            };
            file.write_all(text.as_bytes())?;
            io::Result::Ok(file)
        });
        match written.await {
            Ok(Ok(written)) if !last => file = Some(written),
            Ok(Ok(_)) => return,
            Ok(Err(error)) => {
                return tracing::warn!(
                    target: "mailchime::record::session_not_recorded",
                    %error, "[record] folder: could not record a session; the session goes on"
                );
            }
            Err(_) => return,
        }
    }
}

/// A new file that only its owner can read.
fn create(folder: &Path) -> io::Result<File> {
    let name = format!("{}-{:08x}.imap", Timestamp::now().0, rand::random::<u32>());
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::dialogue::Dialogue;
    use crate::imap::contract::{ClientConnection, Step};
    use crate::imap::session::Session;
    use crate::imap::tap::Tapped;

    fn recorded(folder: &Path, max_size: u64) -> Tapped {
        let profile = Arc::new(Profile {
            backend: None,
            logins_elsewhere: Default::default(),
            push: None,
            relay_mechanisms: false,
            master: false,
            routed: Vec::new(),
            commands: 10_000,
            command_size: 1024,
            capability_size: 1024,
            compress: true,
            shown: Default::default(),
        });
        let connection =
            ClientConnection { secure: true, tag_prefix: "mc0x".into(), id_fields: Vec::new() };
        let session = Session::new(Arc::clone(&profile), connection);
        let config = config::RecordConfig { folder: folder.into(), max_size };
        Tapped::new(session, Some(&taps(&config)), &profile, true)
    }

    fn files(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder)
            .unwrap()
            .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn a_writer_that_falls_behind_ends_the_recording_and_not_the_session() {
        let folder = tempfile::tempdir().unwrap();
        let mut session = recorded(folder.path(), 1 << 30);
        // The writer has no turn.
        for _ in 0..QUEUE {
            assert_eq!(session.client(b"a NOOP\r\n", false), Step::Take(8));
        }
        session.finish().await;
        let [text] = &files(folder.path())[..] else { panic!("one file") };
        assert!(
            text.ends_with("the session was too fast for it.\n"),
            "{}",
            &text[text.len() - 99..]
        );
        assert!(text.contains("C: a NOOP\nS: a OK NOOP completed\n"), "{text}");
        Dialogue::parse(text).unwrap();
    }

    #[tokio::test]
    async fn a_silent_client_leaves_no_recording() {
        let folder = tempfile::tempdir().unwrap();
        recorded(folder.path(), 1000).finish().await;
        assert!(files(folder.path()).is_empty());
    }

    #[tokio::test]
    async fn a_folder_that_is_gone_does_not_end_the_session() {
        let folder = tempfile::tempdir().unwrap();
        let mut session = recorded(&folder.path().join("gone"), 1000);
        for _ in 0..100 {
            assert_eq!(session.client(b"a NOOP\r\n", false), Step::Take(8));
            tokio::task::yield_now().await;
        }
        session.finish().await;
        let config = config::RecordConfig { folder: folder.path().join("gone"), max_size: 1 };
        assert!(check(&config).is_err());
    }
}
