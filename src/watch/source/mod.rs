//! Where news of mailboxes comes from.

pub(super) mod doveadm;
pub(super) mod imap;
pub(super) mod visit;
