//! The way in of `fuzz/` to what is private here. It is in no other build.

use std::fmt;
use std::time::Duration;

use super::transcript;
use crate::imap::contract::Profile;
use crate::imap::tap::Flow;

/// A recording, without a channel and a file.
pub struct FuzzedTranscript(transcript::Transcript);

/// Who said something, and whether it went on to the other side.
#[derive(Clone, Copy, Debug)]
pub enum Said {
    /// The client said it.
    ByClient {
        /// Whether it was passed on.
        passed: bool,
    },
    /// The backend said it.
    ByBackend {
        /// Whether it was passed on.
        passed: bool,
    },
    /// mailchime said it to the client.
    ToClient,
    /// mailchime said it to the backend.
    ToBackend,
}

impl FuzzedTranscript {
    /// A session with this profile; `secure` if it is in TLS.
    pub fn new(profile: &Profile, secure: bool) -> Self {
        Self(transcript::Transcript::new(profile, secure))
    }

    /// Somebody said these bytes.
    pub fn said(&mut self, said: Said, bytes: &[u8]) {
        let flow = match said {
            Said::ByClient { passed: false } => Flow::C,
            Said::ByClient { passed: true } => Flow::CF,
            Said::ByBackend { passed: false } => Flow::B,
            Said::ByBackend { passed: true } => Flow::BS,
            Said::ToClient => Flow::S,
            Said::ToBackend => Flow::F,
        };
        self.0.said(Duration::ZERO, flow, bytes);
    }

    /// Something else happened.
    pub fn happens(&mut self, what: &str) {
        self.0.happens(Duration::ZERO, what);
    }

    /// The recording.
    pub fn end(mut self) -> String {
        self.0.end();
        self.0.text
    }
}

impl fmt::Debug for FuzzedTranscript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transcript").finish_non_exhaustive()
    }
}
