//! Recording live sessions as dialogues (`fixtures/README.md`), so that a user can show one that
//! fails: `[record]` in the configuration.
//!
//! A session gives copies of what is said to a channel of its own that never waits; a task turns
//! them into lines, replaces what is private (`mask`, `words`), and writes them. When it cannot
//! keep up or the file is long enough, the recording ends, not the session.

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod mask;
mod transcript;
mod words;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use self::mask::TOPIC;
pub use self::transcript::MAILBOXES;
use self::transcript::{Lane, Transcript};
use crate::config;
use crate::imap::contract::{Action, BackendTraits, Output, Profile, RegistrationResult, Step};
use crate::imap::session::Session;
use crate::model::Timestamp;

/// Pieces of a session that may wait for the writer, and bytes in all of them.
const QUEUE: usize = 4096;
const QUEUE_SIZE: usize = 4 * 1024 * 1024;

/// Pieces that are written at once.
const BATCH: usize = 256;

/// Bytes that are turned into lines before others have their turn.
const TURN: usize = 32 * 1024;

/// Fails if no file can be made in the folder.
pub fn check(config: &config::Record) -> io::Result<()> {
    // It has no name, and so goes away whatever happens.
    tempfile::tempfile_in(&config.folder).map(drop)
}

/// A session, and what of it is recorded. Says and does what [`Session`] does.
#[derive(Debug)]
pub(super) struct Recorded {
    session: Session,
    tape: Option<Tape>,
}

#[derive(Debug)]
struct Tape {
    pieces: mpsc::Sender<(Duration, Piece)>,
    started: Instant,
    backlog: Arc<Backlog>,
    /// There is a connection to the backend.
    connected: bool,
    /// Bytes of the client that are noted already and not taken yet.
    early: usize,
    /// The mailboxes of the registrations under way.
    mailboxes: VecDeque<String>,
    writer: JoinHandle<()>,
}

/// What waits for the writer.
#[derive(Debug, Default)]
struct Backlog {
    bytes: AtomicUsize,
    /// It was too much.
    torn: AtomicBool,
}

enum Piece {
    /// A setting that shows only now.
    Setting(&'static str),
    Said(Lane, Vec<u8>),
    Happened(String),
}

impl Recorded {
    /// A session that is recorded if it is configured so.
    pub(super) fn new(
        session: Session,
        config: Option<&config::Record>,
        profile: &Profile,
        secure: bool,
    ) -> Self {
        let tape = config.map(|config| {
            let (pieces, waiting) = mpsc::channel(QUEUE);
            let backlog = Arc::new(Backlog::default());
            let transcript = Transcript::new(profile, secure);
            let writer = write(config.clone(), transcript, waiting, Arc::clone(&backlog));
            let writer = tokio::spawn(writer);
            Tape {
                pieces,
                started: Instant::now(),
                backlog,
                connected: false,
                early: 0,
                mailboxes: VecDeque::new(),
                writer,
            }
        });
        let mut recorded = Self { session, tape };
        recorded.note([0, 0], 0);
        recorded
    }

    pub(super) fn client(&mut self, input: &[u8], last: bool) -> Step {
        let before = self.before();
        let step = self.session.client(input, last);
        self.stepped([Lane::C, Lane::CF], input, step);
        self.note(before.0, before.1);
        step
    }

    pub(super) fn backend(&mut self, input: &[u8], last: bool) -> Step {
        let before = self.before();
        let step = self.session.backend(input, last);
        self.stepped([Lane::B, Lane::BS], input, step);
        if last && self.session.is_relaying() {
            self.hung_up();
        }
        self.note(before.0, before.1);
        step
    }

    pub(super) fn connected(&mut self, reached: BackendTraits) {
        if let Some(tape) = &mut self.tape {
            tape.connected = true;
            let settings = [
                (reached.send_id, "send-id"),
                (reached.checks_token_name, "checks-token-name"),
                (reached.names_ignore_case, "names-ignore-case"),
            ];
            for (_, setting) in settings.into_iter().filter(|(set, _)| *set) {
                tape.add(0, || Piece::Setting(setting));
            }
            tape.happens("connect");
        }
        self.within(|session| session.connected(reached));
    }

    pub(super) fn unavailable(&mut self, why: String) -> bool {
        self.gone(|session| session.unavailable(why))
    }

    pub(super) fn turned_away(&mut self, answer: &str) {
        self.gone(|session| session.turned_away(answer));
    }

    fn gone(&mut self, tell: impl FnOnce(&mut Session) -> bool) -> bool {
        let before = self.before();
        let told = tell(&mut self.session);
        if told {
            match &mut self.tape {
                Some(tape) if !tape.connected => tape.happens("unreachable"),
                _ => self.hung_up(),
            }
        }
        self.note(before.0, before.1);
        told
    }

    pub(super) fn secured(&mut self) {
        if let Some(tape) = &mut self.tape {
            tape.happens("handshake");
        }
        self.within(Session::secured);
    }

    pub(super) fn refused(&mut self) {
        self.within(Session::refused);
    }

    pub(super) fn abandoned(&mut self) {
        self.within(Session::abandoned);
    }

    pub(super) fn admitted(&mut self) {
        self.within(Session::admitted);
    }

    pub(super) fn release(&mut self) {
        self.within(Session::release);
    }

    pub(super) fn conclude(&mut self) {
        self.within(Session::conclude);
    }

    pub(super) fn renewed(&mut self, profile: Arc<Profile>) -> Option<&str> {
        self.session.renewed(profile)
    }

    pub(super) fn overdue(&mut self) {
        if let Some(tape) = &mut self.tape {
            tape.happens("overdue");
        }
        self.within(Session::overdue);
    }

    pub(super) fn registered(&mut self, result: RegistrationResult) {
        if let Some(tape) = &mut self.tape {
            let mailboxes = tape.mailboxes.pop_front().unwrap_or_default();
            match result == RegistrationResult::Stored {
                true => tape.happens(&format!("store {mailboxes}")),
                false => tape.happens("cannot store"),
            }
        }
        self.within(|session| session.registered(result));
    }

    /// Waits until all that was recorded is written.
    pub(super) async fn finish(&mut self) {
        if let Some(Tape { pieces, writer, .. }) = self.tape.take() {
            drop(pieces);
            // It has logged what went wrong.
            let _ = writer.await;
        }
    }

    fn within(&mut self, change: impl FnOnce(&mut Session)) {
        let before = self.before();
        change(&mut self.session);
        self.note(before.0, before.1);
    }

    fn hung_up(&mut self) {
        if let Some(tape) = &mut self.tape
            && std::mem::take(&mut tape.connected)
        {
            tape.happens("hang up");
        }
    }

    /// How much there is to say and to do.
    fn before(&self) -> ([usize; 2], usize) {
        let Output { to_client, to_backend, actions, .. } = &self.session.output;
        ([to_client.len(), to_backend.len()], actions.len())
    }

    fn stepped(&mut self, [taken, forwarded]: [Lane; 2], input: &[u8], step: Step) {
        let Some(tape) = &mut self.tape else { return };
        match step {
            // A command of ours is not taken before those ahead of it are answered, but it is what
            // mailchime acts on from here.
            Step::Take(0) if taken == Lane::C && tape.early == 0 => {
                let line = memchr::memchr(b'\n', input).map_or(input.len(), |feed| feed + 1);
                tape.said(taken, &input[..line]);
                tape.early = line;
            }
            Step::Take(length) => {
                let known = if taken == Lane::C { tape.early.min(length) } else { 0 };
                tape.early -= known;
                tape.said(taken, &input[known..length]);
            }
            Step::Forward(length) => tape.said(forwarded, &input[..length]),
            Step::Wait | Step::Close(_) => {}
        }
    }

    /// Notes what has been added to the outputs.
    fn note(&mut self, [to_client, to_backend]: [usize; 2], actions: usize) {
        let Some(tape) = &mut self.tape else { return };
        let output = &self.session.output;
        tape.said(Lane::F, &output.to_backend[to_backend..]);
        for action in output.actions.iter().skip(actions) {
            match action {
                Action::Register(registration) => {
                    let names: Vec<_> = registration
                        .mailboxes
                        .iter()
                        .map(|(name, _)| name.as_str().escape_debug().to_string())
                        .collect();
                    tape.mailboxes.push_back(names.join(", "));
                }
                Action::Failed(_) => tape.connected = false,
                _ => {}
            }
        }
        tape.said(Lane::S, &output.to_client[to_client..]);
        for action in output.actions.iter().skip(actions) {
            match action {
                Action::Compress => tape.happens("compress"),
                Action::Close => tape.happens("close"),
                _ => {}
            }
        }
    }
}

impl Deref for Recorded {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Recorded {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Tape {
    fn said(&mut self, lane: Lane, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.add(bytes.len(), || Piece::Said(lane, bytes.to_vec()));
        }
    }

    fn happens(&mut self, what: &str) {
        self.add(0, || Piece::Happened(what.to_owned()));
    }

    fn add(&mut self, length: usize, piece: impl FnOnce() -> Piece) {
        let Backlog { bytes, torn } = &*self.backlog;
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

/// Writes a session's pieces until it ends, its file is long enough, or it comes too fast.
async fn write(
    config: config::Record,
    mut transcript: Transcript,
    mut waiting: mpsc::Receiver<(Duration, Piece)>,
    backlog: Arc<Backlog>,
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
                Piece::Said(lane, bytes) => {
                    said += bytes.len();
                    if said >= TURN {
                        said = 0;
                        tokio::task::yield_now().await;
                    }
                    backlog.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
                    client_spoke |= lane == Lane::C;
                    transcript.said(at, lane, &bytes);
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
        // Whoever connects and says nothing leaves no file.
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
    use crate::imap::contract::ClientConnection;

    fn recorded(folder: &Path, max_size: u64) -> Recorded {
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
        let config = config::Record { folder: folder.into(), max_size };
        Recorded::new(session, Some(&config), &profile, true)
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
        let config = config::Record { folder: folder.path().join("gone"), max_size: 1 };
        assert!(check(&config).is_err());
    }
}
