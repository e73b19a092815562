//! Which mailbox the client has open: that of its last SELECT or EXAMINE, once the backend has accepted it
//! (RFC 9051 section 6.3.2).

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::imap::args;
use crate::imap::mailbox;
use crate::imap::peek::{Status, Verb};
use crate::model::Mailbox;

/// Longest SELECT of which the mailbox is noted, in bytes.
const LONGEST: usize = 4 * 1024;

/// Of names only a digest is kept: a client that finds two of one digest confuses only itself.
#[derive(Debug, Default)]
pub(super) struct Selection {
    selected: Option<u64>,
    /// The last command that changes this, if it has no answer yet: its tag, and the mailbox, which is
    /// `None` for CLOSE and UNSELECT, and until the name has come.
    last: Option<(u64, Option<u64>)>,
    /// The SELECT under way, as far as it has come.
    command: Option<Vec<u8>>,
}

impl Selection {
    /// Whether the client has this mailbox open.
    pub(super) fn is(&self, mailbox: &Mailbox) -> bool {
        self.selected == Some(digest(mailbox))
    }

    /// Memory that is held, in bytes.
    pub(super) fn held(&self) -> usize {
        self.command.as_ref().map_or(0, Vec::capacity)
    }

    /// A command of the client begins.
    pub(super) fn begins(&mut self, tag: &[u8], verb: Verb) {
        let names_one = matches!(verb, Verb::Select | Verb::Examine);
        if names_one || matches!(verb, Verb::Close | Verb::Unselect) {
            self.last = Some((digest(tag), None));
            self.command = names_one.then(Vec::new);
        }
    }

    /// Bytes of the client's command, which ends with them if it is `whole`.
    pub(super) fn follow(&mut self, bytes: &[u8], whole: bool, utf8: bool) {
        let Some(command) = &mut self.command else { return };
        if command.len() + bytes.len() > LONGEST {
            self.command = None;
            return;
        }
        command.extend_from_slice(bytes);
        if whole
            && let Some(command) = self.command.take()
            && let Some((_, named)) = &mut self.last
        {
            *named = mailbox_of(&command, utf8).map(|mailbox| digest(&mailbox));
        }
    }

    /// A command of the client is answered.
    pub(super) fn answered(&mut self, tag: &[u8], status: Status) {
        if let Some((last, mailbox)) = self.last
            && last == digest(tag)
        {
            self.last = None;
            match status {
                Status::Ok => self.selected = mailbox,
                // One that fails leaves none selected.
                Status::No => self.selected = None,
                _ => {}
            }
        }
    }
}

/// The mailbox that a whole SELECT or EXAMINE names.
fn mailbox_of(command: &[u8], utf8: bool) -> Option<Mailbox> {
    let (arguments, _) = args::tag_and_verb(command).ok()?;
    let (rest, name) = args::astring(arguments.trim_ascii_start()).ok()?;
    let ends = rest.first().is_some_and(u8::is_ascii_whitespace);
    mailbox::decode(&name, utf8).filter(|_| ends)
}

fn digest(of: impl std::hash::Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(of)
}
