//! What the fuzz targets share: scripts of what two peers say, a driver for the state machines of
//! `imap` that keeps a log, and readers of IMAP streams and of events that owe nothing to mailchime's own.

pub mod drive;
pub mod events;
pub mod oracle;
pub mod script;
pub mod sessions;
