//! What of a relay mailchime's own answers and questions touch.

use super::pending_replies::{PendingReplies, ReplyTo};
use super::selection::Selection;
use crate::imap::contract::{Action, Output};

/// Bytes for the client that wait for the end of a response that is on its way.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    bytes: Vec<u8>,
    /// COMPRESS takes effect behind them.
    compresses: bool,
}

/// What a command that mailchime answers itself may touch of the relay.
pub(super) struct Wires<'a> {
    pub(super) pending: &'a mut PendingReplies,
    pub(super) deferred: &'a mut Deferred,
    pub(super) selection: &'a Selection,
    /// No response of the backend is under way to the client.
    pub(super) at_boundary: bool,
    pub(super) out: &'a mut Output,
}

impl Deferred {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Memory that is held, in bytes.
    pub(super) fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// The response that they waited for has ended.
    pub(super) fn release(&mut self, out: &mut Output) {
        out.to_client.append(&mut self.bytes);
        if std::mem::take(&mut self.compresses) {
            out.actions.push_back(Action::Compress);
        }
    }
}

impl Wires<'_> {
    /// To the client, but not into the middle of a response that is on its way.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        if self.at_boundary && self.deferred.is_empty() {
            self.out.to_client.extend_from_slice(bytes);
        } else {
            self.deferred.bytes.extend_from_slice(bytes);
        }
    }

    /// Compresses what the client gets behind all that was said to it.
    pub(super) fn compress(&mut self) {
        if self.deferred.is_empty() {
            self.out.actions.push_back(Action::Compress);
        } else {
            self.deferred.compresses = true;
        }
    }

    /// Puts a question of mailchime's own to the backend.
    pub(super) fn ask(&mut self, tag: &[u8], command: &[u8]) {
        self.pending.begin(tag, ReplyTo::Question);
        for part in [tag, b" ", command, b"\r\n"] {
            self.out.to_backend.extend_from_slice(part);
        }
    }
}
