//! The wire: what an IMAP byte stream means, without doing any I/O.
//!
//! Bytes go in, decisions and bytes come out; time and sockets belong to the caller. Nothing here
//! knows tokio, a clock, or any floor above `model`.
//!
//! - [`literal`]: literal announcements, and where a whole command or response ends
//! - `stream_position`: where in a stream of lines and literals a direction is
//! - [`peek`]: the first bytes of a line: which command, which response
//! - [`collect`]: one bounded command, with its literals, put together from pieces
//! - [`contract`]: the vocabulary of a session
//! - [`args`]: strings and lists as arguments (nom), and quoting
//! - [`capability`]: capability lists, and the edit that mailchime makes to them
//! - [`list`]: the answers that name mailboxes
//! - [`mailbox`]: modified UTF-7
//! - [`preview`]: sender and subject of a message, as FETCH answers them
//! - [`sasl`]: PLAIN and LOGIN, the client's words and the backend's
//! - [`status`]: the answers that a watcher reads
//! - [`registration`]: the arguments and the answer of XAPPLEPUSHSERVICE (nom)
//! - [`responses`]: what a backend says, response by response
//! - [`login`]: logging in at a backend, as a state machine
//! - [`metadata`]: the entry by which a server knows whose events to send
//! - [`refusal`]: what a backend's refusal of a login says
//! - [`relay`]: the two directions after login, and mailchime's own questions between them
//! - `not_authenticated`: what is said with a client before it is logged in
//! - [`session`]: one client's session as a state machine, from greeting to close
//! - [`tap`]: what hears a session, and changes nothing of it

pub mod args;
pub mod capability;
pub mod collect;
pub mod contract;
pub mod greeting;
pub mod list;
pub mod literal;
pub mod login;
pub mod mailbox;
pub mod metadata;
mod not_authenticated;
pub mod peek;
pub mod preview;
pub mod refusal;
pub mod registration;
pub mod relay;
pub mod responses;
pub mod sasl;
pub mod sasl_observer;
pub mod session;
pub mod status;
mod stream_position;
pub mod tap;
