//! What Cyrus says, in whatever form it comes.

pub(super) mod event;
pub(super) mod notification;
