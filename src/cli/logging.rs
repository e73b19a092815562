//! What the program says about itself: one line per event on standard error.
//!
//! It knows the two keys of `[log]` and nothing of what is logged. Standard output belongs to the
//! commands.

use std::io::{self, IsTerminal};

use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{ParseError, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::LogFormat;

/// Overrides `[log] level` when it is set and not empty.
const VARIABLE: &str = "RUST_LOG";

/// Why logging did not begin.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("the environment variable {VARIABLE} is not understood: {0}")]
    Variable(ParseError),
    /// The configuration checks this, so it takes a level from elsewhere.
    #[error("the log level is not understood: {0}")]
    Level(ParseError),
    #[error("logging was begun twice: {0}")]
    Twice(TryInitError),
}

/// The level of what is logged, while the process runs.
#[derive(Debug)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Logs at `level` from now on, as [`init`] would.
    pub fn set(&self, level: &str) -> Result<(), LoggingError> {
        let filter = filter(std::env::var(VARIABLE).ok().as_deref(), level)?;
        // It fails only where nobody logs any more.
        let _ = self.0.reload(filter);
        Ok(())
    }
}

/// Logs to standard error from now on, to the end of the process.
///
/// `level` are directives as in `info,mailchime::watch=debug`; the environment variable `RUST_LOG`
/// goes before them. Colours appear only on a terminal, and not where `NO_COLOR` is set.
pub fn init(format: LogFormat, level: &str) -> Result<Level, LoggingError> {
    let filter = filter(std::env::var(VARIABLE).ok().as_deref(), level)?;
    let (filter, level) = reload::Layer::new(filter);
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    subscriber(format, filter, colours, io::stderr).try_init().map_err(LoggingError::Twice)?;
    Ok(Level(level))
}

fn filter(variable: Option<&str>, level: &str) -> Result<EnvFilter, LoggingError> {
    match variable {
        Some(variable) if !variable.is_empty() => {
            EnvFilter::try_new(variable).map_err(LoggingError::Variable)
        }
        _ => EnvFilter::try_new(level).map_err(LoggingError::Level),
    }
}

fn subscriber<W>(
    format: LogFormat,
    filter: impl Layer<Registry> + Send + Sync,
    colours: bool,
    writer: W,
) -> impl Subscriber + Send + Sync + for<'a> LookupSpan<'a>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = match format {
        LogFormat::Text => fmt::layer().with_ansi(colours).with_writer(writer).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).with(filter_fn(may_be_told))
}

/// Below `info` only mailchime is heard, which keeps secrets out of its events. Libraries trace the
/// bytes that they carry, and those are passwords and device tokens.
fn may_be_told(event: &Metadata<'_>) -> bool {
    let ours = event.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
    ours || *event.level() <= tracing::Level::INFO
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Memory {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// What is written for a few events with these settings.
    fn told(format: LogFormat, colours: bool, level: &str) -> String {
        let memory = Memory::default();
        let subscriber = subscriber(format, filter(None, level).unwrap(), colours, memory.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(account = "alice", "first");
            tracing::debug!("second");
            tracing::info!(target: "h2::client", "third");
            tracing::trace!(target: "h2::client", "fourth");
            tracing::debug!(target: "mailchimera", "fifth");
        });
        let written = memory.0.lock().unwrap().clone();
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn text_is_one_line_per_event_and_coloured_only_when_asked() {
        let text = told(LogFormat::Text, false, "info");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("first account=\"alice\"") && !text.contains('\x1b'), "{text}");
        assert!(told(LogFormat::Text, true, "info").contains('\x1b'));
    }

    #[test]
    fn json_is_one_object_per_line() {
        let text = told(LogFormat::Json, true, "info");
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((&first["message"], &first["account"]), (&"first".into(), &"alice".into()));
        assert_eq!(first["level"], "INFO");
    }

    #[test]
    fn below_info_only_mailchime_is_heard() {
        let text = told(LogFormat::Text, false, "trace");
        assert!(text.contains("second") && text.contains("third"), "{text}");
        assert!(!text.contains("fourth") && !text.contains("fifth"), "{text}");
        assert_eq!(told(LogFormat::Text, false, "off"), "");
    }

    #[test]
    fn the_variable_goes_before_the_configuration_unless_it_is_empty() {
        assert_eq!(filter(None, "warn").unwrap().to_string(), "warn");
        assert_eq!(filter(Some(""), "warn").unwrap().to_string(), "warn");
        assert_eq!(filter(Some("debug"), "warn").unwrap().to_string(), "debug");
        assert!(matches!(filter(Some("mailchime=loud"), "warn"), Err(LoggingError::Variable(_))));
        assert!(matches!(filter(None, "mailchime=loud"), Err(LoggingError::Level(_))));
    }
}
