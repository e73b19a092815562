//! Moves bytes both ways between a client's socket and a backend's.
//!
//! Bytes are read into a buffer that the thread's sessions share, looked at there, and written on
//! from there. A direction holds bytes of its own only while the other side does not take them or their
//! meaning is not yet clear, so an idle session holds none. What the bytes mean is the session's to
//! say; nothing here knows what else it does.

mod side;

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context as Poller, Poll, ready};

use tokio::io::AsyncWrite;

pub(super) use self::side::{SessionFault, Side};
use super::read_buffer::ReadBuffer;
use crate::imap::contract::Step;
use crate::imap::tap::Tapped;
use crate::net::stream::{READ_SIZE, Stream, forget_read};

/// What is read at once of a peer that may make a session keep it: before the login, while memory is
/// scarce, or behind what cannot be dealt with yet. No client needs more to say what its next command
/// is.
const SMALL: usize = 4 * 1024;

/// What is read at once under DEFLATE, which takes its time, and while all sessions keep more than a quarter of what they may: of a
/// client that takes nothing, what was read last is kept.
const MIDDLE: usize = 64 * 1024;

/// Answers of ours that a client may leave unread before no more of its commands are looked at, and
/// before the login.
const UNREAD_SIZE: usize = 16 * 1024;
const UNREAD_BEFORE_LOGIN: usize = 4 * 1024;

/// What a session may do before other tasks have their turn, in bytes that pass. In release builds
/// that is done within half a millisecond.
const TURN: usize = 1024 * 1024;

/// What else counts as so many: a line that is looked at, a read, each byte to or from a peer under
/// DEFLATE, a command or response that does not pass, and each byte of that.
const LINE: usize = 64;
const READ: usize = 16 * 1024;
const DEFLATED: usize = 16;
const TAKEN: usize = 8 * 1024;
const TAKEN_BYTE: usize = 16;

/// A client's socket, and that of its backend if there is one.
pub(super) struct Duplex {
    pub(super) client: Endpoint,
    pub(super) backend: Option<Endpoint>,
    /// Bytes moved since the owner last took note.
    pub(super) moved: bool,
    /// Those of the backend did.
    pub(super) heard: bool,
    /// Bytes that TLS kept when it was last asked whether a peer has taken any.
    unsent: usize,
    bounds: Bounds,
}

/// What a `Duplex` may take.
struct Bounds {
    /// Most bytes that are kept of what a backend says, for the longest response that is looked at.
    backend: usize,
    /// Most bytes that are read at once of a user who is logged in.
    at_once: usize,
    /// What is left of the session's turn.
    turn: usize,
}

/// One socket, and the direction of what comes from it.
pub(super) struct Endpoint {
    pub(super) stream: Stream,
    pub(super) inbound: Inbound,
    /// Bytes were written that may not have left yet.
    dirty: bool,
    /// Our side of it is closed, or it takes no more.
    shut: bool,
}

/// The bytes that come from one peer.
pub(super) struct Inbound {
    side: Side,
    /// Bytes that were read and not dealt with.
    pub(super) buffer: ReadBuffer,
    /// How many of the next bytes go on to the other side without another look.
    pub(super) forward: usize,
    /// No more bytes will come.
    pub(super) ended: bool,
    /// Bytes that went on.
    pub(super) relayed: u64,
    /// Something was done with its bytes since this was last asked, or something was said.
    moved: bool,
    /// All that came is dealt with, and the task is woken when more comes.
    rests: bool,
}

/// Why a direction stands still.
pub(super) enum Pause {
    /// Nothing to read, or nothing that can be decided.
    Idle,
    /// The other side takes no bytes.
    Stalled,
    /// The session has an action to be carried out.
    Action,
    /// It is the turn of others.
    Turn,
}

impl Duplex {
    /// No response of a backend that is looked at as a whole is longer than `longest` bytes.
    pub(super) fn new(client: Stream, longest: usize) -> Self {
        let bounds = Bounds { backend: longest + SMALL, at_once: READ_SIZE, turn: TURN };
        Self {
            client: Endpoint::new(client, Side::Client),
            backend: None,
            moved: false,
            heard: false,
            unsent: 0,
            bounds,
        }
    }

    /// The session has its turn. All sessions together keep `kept` bytes, and may keep `most`.
    pub(super) fn begin(&mut self, kept: usize, most: usize) {
        self.bounds.turn = TURN;
        self.bounds.at_once = match kept {
            kept if kept > most => SMALL,
            kept if kept > most / 4 => MIDDLE,
            _ => READ_SIZE,
        };
    }

    /// Memory that is held for bytes on their way, in bytes.
    pub(super) fn held(&self) -> usize {
        let of = |peer: &Endpoint| peer.inbound.buffer.held() + peer.stream.held();
        of(&self.client) + self.backend.as_ref().map_or(0, of)
    }

    /// Memory that TLS holds for bytes that a peer does not take, in bytes.
    pub(super) fn unwritten(&self) -> usize {
        let of = |peer: &Endpoint| peer.stream.held_unsent();
        of(&self.client) + self.backend.as_ref().map_or(0, of)
    }

    /// Whether the client has yet to take bytes that came for it.
    pub(super) fn is_client_behind(&self) -> bool {
        self.client.stream.unsent() > 0
    }

    /// Whether a peer has taken bytes since this was last asked that were written before.
    pub(super) fn has_taken(&mut self) -> bool {
        let of = |peer: &Endpoint| peer.stream.unsent();
        let unsent = of(&self.client) + self.backend.as_ref().map_or(0, of);
        unsent < std::mem::replace(&mut self.unsent, unsent)
    }

    /// Moves bytes both ways as far as it goes.
    pub(super) fn poll_move(
        &mut self,
        cx: &mut Poller<'_>,
        session: &mut Tapped,
    ) -> Result<Pause, SessionFault> {
        // Whichever socket it is that has woken the task.
        let (mut client_due, mut backend_due) = (true, true);
        let (mut up, mut down) = (Pause::Idle, Pause::Idle);
        while client_due || backend_due {
            if !session.output.actions.is_empty() {
                return Ok(Pause::Action);
            }
            // What one direction does may free the other, unless that only waits for its socket.
            if client_due {
                up = self.poll_client(cx, session)?;
                let moved = std::mem::take(&mut self.client.inbound.moved);
                self.moved |= moved;
                let rests = self.backend.as_ref().is_none_or(|backend| backend.inbound.rests);
                backend_due |= moved && !(rests && session.output.to_client.is_empty());
                client_due = false;
            }
            if backend_due {
                let moved;
                (down, moved) = self.poll_backend(cx, session)?;
                self.moved |= moved;
                self.heard |= moved;
                client_due =
                    moved && !(self.client.inbound.rests && session.output.to_backend.is_empty());
                backend_due =
                    moved && self.backend.is_none() && !session.output.to_client.is_empty();
            }
            if self.bounds.turn == 0 {
                break;
            }
        }
        if !session.output.actions.is_empty() {
            return Ok(Pause::Action);
        }
        self.flush(cx)?;
        if self.bounds.turn == 0 {
            return Ok(Pause::Turn);
        }
        let stalled = matches!(up, Pause::Stalled) || matches!(down, Pause::Stalled);
        Ok(if stalled { Pause::Stalled } else { Pause::Idle })
    }

    fn poll_client(
        &mut self,
        cx: &mut Poller<'_>,
        session: &mut Tapped,
    ) -> Result<Pause, SessionFault> {
        let Self { client, backend, bounds, .. } = self;
        let mut pause = client.pump(cx, backend.as_mut(), session, bounds)?;
        // A half-close goes on as one.
        if let Some(backend) = backend
            && client.inbound.ended
            && client.inbound.buffer.is_empty()
            && session.output.to_backend.is_empty()
            && session.is_relaying()
            && !session.is_busy()
            && !backend.shut
        {
            match backend.poll_shutdown(cx) {
                Poll::Ready(_) => {}
                Poll::Pending => pause = Pause::Stalled,
            }
        }
        Ok(pause)
    }

    /// Also returns whether it moved anything.
    fn poll_backend(
        &mut self,
        cx: &mut Poller<'_>,
        session: &mut Tapped,
    ) -> Result<(Pause, bool), SessionFault> {
        let Self { client, backend, bounds, .. } = self;
        let Some(backend) = backend else {
            // Before there is a backend, what the session says itself must still be written.
            let output = &mut session.output.to_client;
            let before = output.len();
            let pause = match client.poll_write_own(cx, output) {
                Poll::Ready(result) => {
                    result.map_err(SessionFault::Client)?;
                    Pause::Idle
                }
                Poll::Pending => Pause::Stalled,
            };
            return Ok((pause, output.len() < before));
        };
        let pumped = backend.pump(cx, Some(client), session, bounds);
        if session.is_relaying() {
            return Ok((pumped?, std::mem::take(&mut backend.inbound.moved)));
        }
        let (pause, failed) = match pumped {
            Ok(pause) => (pause, None),
            Err(SessionFault::Backend(error)) => {
                backend.inbound.ended = true;
                (Pause::Idle, Some(error))
            }
            Err(fault) => return Err(fault),
        };
        let mut moved = std::mem::take(&mut backend.inbound.moved);
        if backend.inbound.ended {
            let why = failed.map_or_else(|| "it hung up".to_owned(), |error| error.to_string());
            // The client gets an answer, in another round, and may try again.
            moved |= session.unavailable(why);
        }
        Ok((pause, moved))
    }

    fn flush(&mut self, cx: &mut Poller<'_>) -> Result<(), SessionFault> {
        self.client.poll_flush(cx).map_err(SessionFault::Client)?;
        if let Some(backend) = &mut self.backend
            && backend.poll_flush(cx).is_err()
        {
            // It hung up. What it said before is still to be read.
            backend.shut = true;
        }
        Ok(())
    }

    /// Writes all that was said to the client, to the last byte.
    pub(super) fn poll_written(
        &mut self,
        cx: &mut Poller<'_>,
        session: &mut Tapped,
    ) -> Poll<io::Result<()>> {
        ready!(self.client.poll_write_own(cx, &mut session.output.to_client))?;
        Pin::new(&mut self.client.stream).poll_flush(cx)
    }
}

impl Endpoint {
    /// A peer that is gone: at its end, and takes nothing.
    pub(super) fn gone(side: Side) -> Self {
        let mut gone = Self::new(Stream::Taken, side);
        (gone.inbound.ended, gone.shut) = (true, true);
        gone
    }

    pub(super) fn new(stream: Stream, side: Side) -> Self {
        let inbound = Inbound {
            side,
            buffer: ReadBuffer::default(),
            forward: 0,
            ended: false,
            relayed: 0,
            moved: false,
            rests: false,
        };
        Self { stream, inbound, dirty: false, shut: false }
    }

    /// Moves what comes from this peer to `other` until it must pause.
    fn pump(
        &mut self,
        cx: &mut Poller<'_>,
        mut other: Option<&mut Self>,
        session: &mut Tapped,
        bounds: &mut Bounds,
    ) -> Result<Pause, SessionFault> {
        let Self { stream, inbound, .. } = self;
        inbound.rests = false;
        loop {
            // What was kept comes first.
            let mut kept = std::mem::take(&mut inbound.buffer);
            let dealt = inbound.step(cx, kept.as_slice(), other.as_deref_mut(), session, bounds);
            let (used, pause) = dealt?;
            kept.take(used);
            inbound.buffer = kept;
            if !matches!(pause, Pause::Idle) {
                return Ok(pause);
            }
            let mut room = inbound.room(session, bounds).min(bounds.turn.max(READ));
            if stream.is_deflated() || other.as_deref().is_some_and(|it| it.stream.is_deflated()) {
                room = room.min(MIDDLE);
            }
            if inbound.ended || room == 0 {
                return Ok(Pause::Idle);
            }
            // What comes next would have to be kept.
            if let Some(other) = other.as_deref_mut()
                && !inbound.has_left(cx, other)?
            {
                return Ok(Pause::Stalled);
            }
            let price = if stream.is_deflated() { TURN / 4 } else { READ };
            let mut read = 0;
            let dealt = stream.poll_fresh(cx, room, |cx, fresh| {
                bounds.costs(price);
                read = fresh.len();
                inbound.ended = fresh.is_empty();
                if !inbound.buffer.is_empty() {
                    inbound.buffer.append(fresh);
                    return Ok(Pause::Idle);
                }
                let (used, pause) =
                    inbound.step(cx, fresh, other.as_deref_mut(), session, bounds)?;
                if used < fresh.len() {
                    inbound.buffer.append(&fresh[used..]);
                }
                Ok(pause)
            });
            if !session.is_relaying() {
                forget_read(read);
            }
            match dealt {
                Poll::Pending => {
                    inbound.rests = inbound.buffer.is_empty();
                    return Ok(Pause::Idle);
                }
                Poll::Ready(Ok(Ok(Pause::Idle))) => {}
                Poll::Ready(Ok(pause)) => return pause,
                Poll::Ready(Err(error)) => return Err(inbound.side.read_fault(error)),
            }
        }
    }

    /// Writes what the session says to this peer.
    pub(super) fn poll_write_own(
        &mut self,
        cx: &mut Poller<'_>,
        output: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        let mut written = 0;
        while written < output.len() && !self.shut {
            match Pin::new(&mut self.stream).poll_write(cx, &output[written..]) {
                Poll::Ready(Ok(length @ 1..)) => written += length,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(closed())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    output.drain(..written);
                    self.dirty |= written > 0;
                    return Poll::Pending;
                }
            }
        }
        self.dirty |= written > 0;
        if output.capacity() > 0 {
            *output = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Writes bytes that come from the other side; returns how many. A backend that hung up loses all.
    fn poll_pass(
        &mut self,
        cx: &mut Poller<'_>,
        bytes: &[u8],
        from: Side,
    ) -> Poll<Result<usize, SessionFault>> {
        match ready!(Pin::new(&mut self.stream).poll_write(cx, bytes)) {
            Ok(0) => Poll::Ready(Err(from.write_fault(closed()))),
            Ok(written) => {
                self.dirty = true;
                Poll::Ready(Ok(written))
            }
            Err(error) if from == Side::Backend => Poll::Ready(Err(from.write_fault(error))),
            // What it said before is still to be read.
            Err(_) => {
                self.shut = true;
                Poll::Ready(Ok(bytes.len()))
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Poller<'_>) -> io::Result<()> {
        if self.dirty && !self.shut {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(result) => {
                    result?;
                    self.dirty = false;
                }
            }
        }
        Ok(())
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        self.shut = true;
        Poll::Ready(result)
    }

    /// Reads until the end and forgets what it read, in turns.
    pub(super) fn poll_discard(&mut self, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        let price = if self.stream.is_deflated() { TURN / 4 } else { READ };
        let mut turn = TURN;
        while !self.inbound.ended {
            if turn == 0 {
                let _ = pin!(tokio::task::yield_now()).poll(cx);
                return Poll::Pending;
            }
            let read = ready!(self.stream.poll_fresh(cx, MIDDLE, |_, fresh| fresh.len()))?;
            self.inbound.ended = read == 0;
            turn = turn.saturating_sub(price + read);
        }
        Poll::Ready(Ok(()))
    }
}

impl Bounds {
    fn costs(&mut self, bytes: usize) {
        self.turn = self.turn.saturating_sub(bytes);
    }
}

impl Inbound {
    /// How many bytes may be read now.
    fn room(&self, session: &Tapped, bounds: &Bounds) -> usize {
        let at_once = if session.is_relaying() { bounds.at_once } else { SMALL };
        if self.buffer.is_empty() {
            return at_once;
        }
        let most = match self.side {
            Side::Client => SMALL,
            Side::Backend => bounds.backend,
        };
        at_once.min(most.saturating_sub(self.buffer.len()))
    }

    /// Whether `other` has taken all that it was sent. A backend that hung up has.
    fn has_left(&self, cx: &mut Poller<'_>, other: &mut Endpoint) -> Result<bool, SessionFault> {
        if other.stream.unsent() == 0 || other.shut {
            return Ok(true);
        }
        match Pin::new(&mut other.stream).poll_flush(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(error)) if self.side == Side::Backend => {
                Err(self.side.write_fault(error))
            }
            // What it said before is still to be read.
            Poll::Ready(Err(_)) => {
                other.shut = true;
                Ok(true)
            }
        }
    }

    /// Deals with bytes of this direction: returns how many are done with, and why it stopped.
    fn step(
        &mut self,
        cx: &mut Poller<'_>,
        input: &[u8],
        mut other: Option<&mut Endpoint>,
        session: &mut Tapped,
        bounds: &mut Bounds,
    ) -> Result<(usize, Pause), SessionFault> {
        let side = self.side;
        let deflates = other.as_deref().is_some_and(|other| other.stream.is_deflated());
        let price = if deflates { DEFLATED } else { 1 };
        let mut used = 0;
        loop {
            while self.forward > 0 {
                let next = &input[used..used + self.forward];
                let written = match other.as_deref_mut() {
                    Some(other) if !other.shut => match other.poll_pass(cx, next, side) {
                        Poll::Pending => return Ok((used, Pause::Stalled)),
                        Poll::Ready(written) => written?,
                    },
                    _ => next.len(),
                };
                bounds.costs(written * price);
                used += written;
                self.forward -= written;
                self.relayed += written as u64;
                self.moved = true;
            }
            if let Some(other) = other.as_deref_mut() {
                let output = side.output(session);
                let before = output.len();
                let written = other.poll_write_own(cx, output);
                self.moved |= output.len() < before;
                match written {
                    Poll::Pending => return Ok((used, Pause::Stalled)),
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) if side == Side::Backend => {
                        return Err(side.write_fault(error));
                    }
                    // As above: it hung up.
                    Poll::Ready(Err(_)) => {
                        other.shut = true;
                        *output = Vec::new();
                    }
                }
            }
            // A client that does not read its answers must not pile them up here.
            let unread = match session.is_relaying() {
                true => UNREAD_SIZE,
                false => UNREAD_BEFORE_LOGIN,
            };
            if side == Side::Client && session.output.to_client.len() >= unread {
                return Ok((used, Pause::Stalled));
            }
            if !session.output.actions.is_empty() {
                return Ok((used, Pause::Action));
            }
            if bounds.turn == 0 {
                return Ok((used, Pause::Turn));
            }
            let step = side.offer(session, &input[used..], self.ended);
            bounds.costs(std::mem::take(&mut session.output.lines) as usize * LINE);
            match step {
                Step::Wait => return Ok((used, Pause::Idle)),
                Step::Forward(length) => self.forward = length,
                Step::Take(0) if input.len() == used && side.output(session).is_empty() => {
                    return Ok((used, Pause::Idle));
                }
                Step::Take(length) => {
                    bounds.costs(TAKEN + length * TAKEN_BYTE);
                    used += length;
                    self.moved = true;
                }
                Step::Close(why) => return Err(SessionFault::Bound(why)),
            }
        }
    }
}

fn closed() -> io::Error {
    io::ErrorKind::WriteZero.into()
}

#[cfg(test)]
mod tests;
