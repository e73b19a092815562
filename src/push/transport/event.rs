//! What transports that tell of one mailbox at a time in the JSON of [`EventMessage`] share.

pub(super) use crate::model::event::{EventMessage, kind_name};

use super::{MailboxChange, Notice, Verdict};
use crate::model::event::MailboxData;
use crate::model::{Account, Timestamp};

/// What a notice is about, for a transport that tells of one mailbox at a time.
pub(super) fn only_change<'a>(notice: &Notice<'a>) -> Result<&'a MailboxChange, Verdict> {
    notice.mailboxes.first().ok_or_else(|| Verdict::unrenderable("the notice names no mailbox"))
}

/// What has happened to a mailbox of the account.
pub(super) fn changed<'a>(
    account: &'a Account,
    MailboxChange { mailbox, kind, state, .. }: &'a MailboxChange,
    at: Timestamp,
) -> EventMessage<MailboxData<'a>> {
    EventMessage::changed(account, mailbox, (*kind, *state), at)
}
