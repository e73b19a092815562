//! What a source other than an account's own connection says of a mailbox.

use std::time::Instant;

use super::{Account, ChangeKind, Mailbox, Snapshot};

/// Something happened in a mailbox.
#[derive(Clone, Debug)]
pub struct Hint {
    /// Whose mailbox it is.
    pub account: Account,
    /// `None` where the source does not say which one.
    pub mailbox: Option<Mailbox>,
    /// What happened.
    pub event: MailboxEvent,
    /// As much of the state after that as the source knows: each number is known or `None`.
    pub state: Snapshot,
    /// When the source said so.
    pub seen_at: Instant,
}

impl Hint {
    /// Something may have happened to any mailbox of the account, just now.
    pub fn of_all(account: Account) -> Self {
        let (event, state) = (MailboxEvent::FlagsSet, Snapshot::default());
        Self { account, mailbox: None, event, state, seen_at: Instant::now() }
    }
}

/// What happened, by the names of RFC 5423 section 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailboxEvent {
    /// Mail was delivered.
    MessageNew,
    /// Mail was added by a client.
    MessageAppend,
    /// Messages are gone.
    MessageExpunge,
    /// Messages were read.
    MessageRead,
    /// Messages were marked as deleted.
    MessageTrash,
    /// Messages got flags.
    FlagsSet,
    /// Messages lost flags.
    FlagsClear,
    /// The mailbox was made.
    MailboxCreate,
    /// The mailbox is gone.
    MailboxDelete,
    /// The mailbox has got this name, or lost it.
    MailboxRename,
    /// The source does not say, or by another name.
    Unnamed,
}

/// Each with its name.
const NAMES: [(&str, MailboxEvent); 10] = [
    ("MessageNew", MailboxEvent::MessageNew),
    ("MessageAppend", MailboxEvent::MessageAppend),
    ("MessageExpunge", MailboxEvent::MessageExpunge),
    ("MessageRead", MailboxEvent::MessageRead),
    ("MessageTrash", MailboxEvent::MessageTrash),
    ("FlagsSet", MailboxEvent::FlagsSet),
    ("FlagsClear", MailboxEvent::FlagsClear),
    ("MailboxCreate", MailboxEvent::MailboxCreate),
    ("MailboxDelete", MailboxEvent::MailboxDelete),
    ("MailboxRename", MailboxEvent::MailboxRename),
];

impl MailboxEvent {
    /// The event of this name, in any case of letters; [`MailboxEvent::Unnamed`] of one that is not known.
    pub fn named(name: &str) -> Self {
        let found = NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or(Self::Unnamed, |(_, event)| *event)
    }

    /// Whether it says by itself that a flag has changed that phones show.
    pub fn changes_shown_flags(self) -> bool {
        matches!(self, Self::MessageRead | Self::MessageTrash | Self::FlagsClear)
    }

    /// How much it matters to a device.
    pub fn kind(self) -> ChangeKind {
        match self {
            Self::MessageNew | Self::MessageAppend => ChangeKind::NewMail,
            Self::MessageExpunge
            | Self::MessageRead
            | Self::MessageTrash
            | Self::FlagsSet
            | Self::FlagsClear
            | Self::MailboxCreate
            | Self::MailboxDelete
            | Self::MailboxRename
            | Self::Unnamed => ChangeKind::Quiet,
        }
    }
}
