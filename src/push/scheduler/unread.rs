//! How many messages were unread before new mail.

use crate::model::ChangeKind;

/// How many messages were unread before the new mail of two changes of one mailbox: the lower number, since what was unread
/// before the first may be read before the second comes. `None` where it is not known of one that brings new mail.
pub(super) fn unread_before(changes: [(ChangeKind, Option<u64>); 2]) -> Option<u64> {
    let new_mail = changes.into_iter().filter(|(kind, _)| *kind == ChangeKind::NewMail);
    // What is not known is lower than any number.
    new_mail.map(|(_, unread)| unread).min().flatten()
}
