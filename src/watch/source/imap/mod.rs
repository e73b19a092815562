//! A held IMAP connection: NOTIFY, IDLE and polling, and what all watchers of one backend share.

pub(in crate::watch) mod connection;
mod flags;
pub(in crate::watch) mod health;
pub(in crate::watch) mod keepalive;
pub(in crate::watch) mod login_breaker;
pub(in crate::watch) mod mailbox_faults;
pub(in crate::watch) mod master_login;
mod overflow;
pub(in crate::watch) mod pacing;
pub(in crate::watch) mod preview_requests;
mod previews;
pub(in crate::watch) mod refresh;
pub(in crate::watch) mod reliability;
pub(in crate::watch) mod session;
pub(in crate::watch) mod status_query;
pub(in crate::watch) mod unsolicited;
