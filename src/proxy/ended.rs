//! How sessions end.

use std::io;

use super::pump::SessionFault;
use crate::metrics::SessionEnd;

/// How a session ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Either side closed its connection, the client by whatever means.
    Closed,
    /// The dialogue ended: LOGOUT before login, or too many errors.
    Dismissed,
    /// No login in time.
    LoginTimeout,
    /// Its place was needed for others, who are not logged in either.
    Evicted,
    /// The program is stopping.
    Stopped,
    /// A socket failed or a bound was hit.
    Fault(String),
}

impl From<SessionFault> for Ended {
    /// A client that hangs up without a word, or whose network does, is no fault.
    fn from(fault: SessionFault) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown,
            NetworkUnreachable, NotConnected, TimedOut, UnexpectedEof, WriteZero,
        };
        match fault {
            SessionFault::Client(error) => match error.kind() {
                BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
                | WriteZero => Self::Closed,
                HostUnreachable | NetworkDown | NetworkUnreachable | TimedOut => Self::Closed,
                _ => Self::Fault(SessionFault::Client(error).to_string()),
            },
            fault => Self::Fault(fault.to_string()),
        }
    }
}

impl From<&Ended> for SessionEnd {
    fn from(ended: &Ended) -> Self {
        match ended {
            Ended::Closed => Self::Closed,
            Ended::Dismissed => Self::Dismissed,
            Ended::LoginTimeout => Self::LoginTimeout,
            Ended::Evicted => Self::Evicted,
            Ended::Stopped => Self::Stopped,
            Ended::Fault(_) => Self::Fault,
        }
    }
}
