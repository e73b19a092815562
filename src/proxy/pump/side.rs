//! Which peer bytes come from, and whose fault it is where a session breaks off.

use std::io;

use crate::imap::contract::Step;
use crate::imap::tap::Tapped;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Side {
    Client,
    Backend,
}

/// Whose fault the end of a session is.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum SessionFault {
    #[error("client: {0}")]
    Client(io::Error),
    #[error("backend: {0}")]
    Backend(io::Error),
    #[error("{0}")]
    Bound(&'static str),
}

impl Side {
    pub(super) fn read_fault(self, error: io::Error) -> SessionFault {
        match self {
            Self::Client => SessionFault::Client(error),
            Self::Backend => SessionFault::Backend(error),
        }
    }

    pub(super) fn write_fault(self, error: io::Error) -> SessionFault {
        match self {
            Self::Client => SessionFault::Backend(error),
            Self::Backend => SessionFault::Client(error),
        }
    }

    pub(super) fn offer(self, session: &mut Tapped, input: &[u8], ended: bool) -> Step {
        match self {
            Self::Client => session.client(input, ended),
            Self::Backend => session.backend(input, ended),
        }
    }

    /// What the session has to say to the other side.
    pub(super) fn output(self, session: &mut Tapped) -> &mut Vec<u8> {
        match self {
            Self::Client => &mut session.output.to_backend,
            Self::Backend => &mut session.output.to_client,
        }
    }
}
