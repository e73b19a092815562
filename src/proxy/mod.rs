//! A client's session: listener, TLS, login dialogue, backend, relay.
//!
//! What a session says and does is decided by [`crate::imap::session`]; here are its sockets, its
//! deadlines and its side tasks. A session is one task. Nothing here knows watchers or pushes: what
//! they must know of it leaves through a bounded channel of [`SessionEvent`](crate::model::SessionEvent)s.

mod admission;
mod context;
mod ended;
mod handshake;
mod local_sessions;
mod login_refused;
mod memory_share;
mod pump;
mod read_buffer;
mod serve;
mod session_metrics;
mod session_task;
mod unanswered_mailboxes;

pub use self::context::{CurrentContext, SessionContext};
pub use self::local_sessions::LocalSessions;
pub use self::serve::serve;
