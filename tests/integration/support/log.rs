//! What a part of mailchime that runs inside the test writes to the log.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

/// The lines, as text. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// All of it so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// How often this stands in it.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.text().matches(what).count()
    }

    /// What writes mailchime's lines of this level and those above it.
    pub(crate) fn subscriber(&self, level: Level) -> impl tracing::Subscriber + use<> {
        let writer = self.clone();
        tracing_subscriber::registry().with(Targets::new().with_target("mailchime", level)).with(
            tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone()),
        )
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
