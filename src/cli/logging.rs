//! What the program says about itself: one line per event on standard error.
//!
//! It knows the two keys of `[log]` and nothing of what is logged. Standard output belongs to the
//! commands.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::fs::fstat;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{ParseError, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::config::LogFormat;

/// Overrides `[log] level` when it is set and not empty.
const VARIABLE: &str = "RUST_LOG";

/// Systemd sets it to the device and the inode of the socket that leads to the journal (systemd.exec(5)).
const JOURNAL: &str = "JOURNAL_STREAM";

/// Why logging did not begin.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The environment variable is not understood.
    #[error("the environment variable {VARIABLE} is not understood: {0}")]
    Variable(ParseError),
    /// The configuration checks this, so it takes a level from elsewhere.
    #[error("the log level is not understood: {0}")]
    Level(ParseError),
    /// Logging has begun already.
    #[error("logging was begun twice: {0}")]
    Twice(TryInitError),
}

/// The level of what is logged, while the process runs.
#[derive(Debug)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Logs at `level` from now on, as [`init`] would.
    ///
    /// # Errors
    /// [`LoggingError`] when the level or the variable is not understood.
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
/// goes before them. Colours appear only on a terminal, and not where `NO_COLOR` is set. Where standard
/// error is systemd's journal, text is as with [`LogFormat::Journal`], and each object of JSON has its
/// priority before it, too.
///
/// # Errors
/// [`LoggingError`] when the level or the variable is not understood, or logging has begun already.
pub fn init(format: LogFormat, level: &str) -> Result<Level, LoggingError> {
    let filter = filter(std::env::var(VARIABLE).ok().as_deref(), level)?;
    let (filter, level) = reload::Layer::new(filter);
    let colours = colours(io::stderr().is_terminal());
    let form = LineForm::new(format, is_to_journal());
    subscriber(form, filter, colours, io::stderr).try_init().map_err(LoggingError::Twice)?;
    Ok(Level(level))
}

/// Whether standard error is the journal of systemd.
pub(super) fn is_to_journal() -> bool {
    is_journal(std::env::var_os(JOURNAL).as_deref(), io::stderr())
}

/// Each line of `text` with the priority of an error before it, as the journal reads it (sd-daemon(3)).
pub(super) fn as_errors(text: &str) -> String {
    text.lines().filter(|line| !line.is_empty()).map(|line| format!("<3>{line}\n")).collect()
}

/// Whether `stream` is the one that [`JOURNAL`] names.
fn is_journal(variable: Option<&OsStr>, stream: impl AsFd) -> bool {
    let named = |name: &OsStr| {
        fstat(stream).is_ok_and(|file| name == format!("{}:{}", file.st_dev, file.st_ino).as_str())
    };
    variable.is_some_and(named)
}

/// Whether colours are wanted on an output. `NO_COLOR` (<https://no-color.org>) forbids them where it is not empty.
pub fn colours(is_terminal: bool) -> bool {
    wants_colours(is_terminal, std::env::var_os("NO_COLOR").as_deref())
}

fn wants_colours(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

fn filter(variable: Option<&str>, level: &str) -> Result<EnvFilter, LoggingError> {
    match variable {
        Some(variable) if !variable.is_empty() => {
            EnvFilter::try_new(variable).map_err(LoggingError::Variable)
        }
        _ => EnvFilter::try_new(level).map_err(LoggingError::Level),
    }
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LineForm {
    json: bool,
    /// For the journal: a line begins with its priority. The journal knows the time.
    journal: bool,
}

impl LineForm {
    fn new(format: LogFormat, to_journal: bool) -> Self {
        let journal = to_journal || format == LogFormat::Journal;
        Self { json: format == LogFormat::Json, journal }
    }
}

fn subscriber<W>(
    LineForm { json, journal }: LineForm,
    filter: impl Layer<Registry> + Send + Sync,
    colours: bool,
    writer: W,
) -> impl Subscriber + Send + Sync + for<'a> LookupSpan<'a>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match (json, journal) {
        (false, false) => lines.fmt_fields(Quoted).with_ansi(colours).boxed(),
        (false, true) => {
            let lines = lines.fmt_fields(Quoted).with_ansi(false).without_time();
            lines.map_event_format(Prioritized).boxed()
        }
        (true, false) => lines.json().flatten_event(true).boxed(),
        (true, true) => lines.json().flatten_event(true).map_event_format(Prioritized).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).with(filter_fn(may_be_told))
}

/// A line behind its priority, as the journal reads it (sd-daemon(3)).
struct Prioritized<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // Those of syslog (RFC 5424 section 6.2.1).
        let priority = match *event.metadata().level() {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            tracing::Level::DEBUG | tracing::Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// The fields of the text form: `name=value`, parted by blanks.
///
/// Numbers and truth values are bare. Whatever else stands behind `=` may hold a peer's text, so it is
/// in double quotes, with quotes, backslashes and what does not print escaped as in Rust. Bare are, too,
/// the addresses in `peer` and `address`, which the program itself has from its sockets.
struct Quoted;

struct Fields<'w> {
    writer: Writer<'w>,
    first: bool,
    result: fmt::Result,
}

impl<'w> FormatFields<'w> for Quoted {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Fields { writer, first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

impl Fields<'_> {
    fn write(&mut self, text: fmt::Arguments<'_>) {
        let blank = if std::mem::take(&mut self.first) { "" } else { " " };
        self.result = self.result.and_then(|()| write!(self.writer, "{blank}{text}"));
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.write(format_args!("{field}={value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(format_args!("{field}={value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(format_args!("{field}={value}"));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.write(format_args!("{field}={value}"));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.write(format_args!("{field}={value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(format_args!("{field}={value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(format_args!("{field}={value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            // The program's own words.
            "message" => self.write(format_args!("{}", text.replace(char::is_control, " "))),
            "peer" | "address"
                if text.parse::<SocketAddr>().is_ok() || text.parse::<IpAddr>().is_ok() =>
            {
                self.write(format_args!("{field}={text}"));
            }
            _ => self.write(format_args!("{field}={text:?}")),
        }
    }
}

/// Below `info` only mailchime is heard, which keeps secrets out of its events. Libraries trace the
/// bytes that they carry, and those are passwords and device tokens. What sqlx says of statements is
/// their whole text; the store itself says which of its calls took long.
fn may_be_told(event: &Metadata<'_>) -> bool {
    if event.target() == "sqlx::query" {
        return false;
    }
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
        written(format, colours, level, || {
            tracing::info!(account = "alice", "first");
            tracing::debug!("second");
            tracing::info!(target: "h2::client", "third");
            tracing::trace!(target: "h2::client", "fourth");
            tracing::debug!(target: "mailchimera", "fifth");
        })
    }

    /// What is written for the events of `happen`.
    fn written(format: LogFormat, colours: bool, level: &str, happen: impl FnOnce()) -> String {
        let memory = Memory::default();
        let form = LineForm::new(format, false);
        let subscriber = subscriber(form, filter(None, level).unwrap(), colours, memory.clone());
        tracing::subscriber::with_default(subscriber, happen);
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
    fn what_a_peer_chose_is_quoted_in_text_and_whole_in_json() {
        const NAMES: [&str; 6] = [
            "alice",
            "x login refused peer=203.0.113.99",
            "x\" peer=203.0.113.99 y=\"",
            "x\\",
            "x\r\n2026-01-01T00:00:00.000000Z  WARN mailchime::login: login refused peer=::1",
            "\u{1b}[31m\u{2028}\u{85}",
        ];
        let log = |format| {
            written(format, false, "info", || {
                for name in NAMES {
                    let account = crate::model::Account::from_login(name);
                    let error = io::Error::other(name);
                    tracing::warn!(%account, ?account, %error, why = name, count = 1, "said");
                }
                let peer: IpAddr = "2001:db8::7".parse().unwrap();
                let address: SocketAddr = "192.0.2.1:993".parse().unwrap();
                tracing::warn!(%peer, %address, wait = ?std::time::Duration::from_secs(1), "seen");
            })
        };
        let text = log(LogFormat::Text);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), NAMES.len() + 1, "{text}");
        for (line, name) in lines.iter().zip(NAMES) {
            let end = format!(
                " WARN mailchime::cli::logging::tests: said account={name:?} account={:?} \
                 error={name:?} why={name:?} count=1",
                format!("{name:?}"),
            );
            assert!(line.ends_with(&end), "{line}\n{end}");
        }
        let end = "seen peer=2001:db8::7 address=192.0.2.1:993 wait=\"1s\"";
        assert!(lines.last().unwrap().ends_with(end), "{text}");
        let json = log(LogFormat::Json);
        for (line, name) in json.split('\n').zip(NAMES) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&line["error"], &line["why"]), (&name.into(), &name.into()));
        }
    }

    #[test]
    fn a_line_for_the_journal_begins_with_its_priority_and_has_no_time_of_its_own() {
        let log = |form, colours| {
            let memory = Memory::default();
            let subscriber =
                subscriber(form, filter(None, "trace").unwrap(), colours, memory.clone());
            tracing::subscriber::with_default(subscriber, || {
                tracing::error!(account = "a\n<0>b", "first");
                tracing::warn!("second\n<0>third");
                tracing::info!("fourth");
                tracing::debug!("fifth");
                tracing::trace!("sixth");
            });
            String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
        };
        let here = "mailchime::cli::logging::tests:";
        let expected = format!(
            "<3>ERROR {here} first account=\"a\\n<0>b\"\n<4> WARN {here} second <0>third\n\
             <6> INFO {here} fourth\n<7>DEBUG {here} fifth\n<7>TRACE {here} sixth\n",
        );
        for form in [LineForm::new(LogFormat::Journal, false), LineForm::new(LogFormat::Text, true)]
        {
            assert_eq!(log(form, true), expected);
        }
        let json = log(LineForm::new(LogFormat::Json, true), true);
        let priorities = json.lines().map(|line| {
            let object: serde_json::Value = serde_json::from_str(&line[3..]).unwrap();
            assert!(object["timestamp"].is_string(), "{line}");
            &line[..3]
        });
        assert_eq!(priorities.collect::<Vec<_>>(), ["<3>", "<4>", "<6>", "<7>", "<7>"]);
    }

    #[test]
    fn the_journal_is_the_stream_that_systemd_names() {
        let (_reader, writer) = io::pipe().unwrap();
        let file = fstat(&writer).unwrap();
        let named =
            |device, inode| is_journal(Some(OsStr::new(&format!("{device}:{inode}"))), &writer);
        assert!(named(file.st_dev, file.st_ino));
        assert!(!named(file.st_dev, file.st_ino + 1));
        assert!(!is_journal(Some(OsStr::new("")), &writer) && !is_journal(None, &writer));
    }

    #[test]
    fn no_color_forbids_colours_on_a_terminal_where_it_is_not_empty() {
        let wants = |is_terminal, no_color: Option<&str>| {
            wants_colours(is_terminal, no_color.map(OsStr::new))
        };
        assert!(wants(true, None) && wants(true, Some("")));
        assert!(!wants(true, Some("1")) && !wants(false, None) && !wants(false, Some("")));
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
    fn a_directive_reaches_every_event_of_its_part() {
        let text = written(LogFormat::Text, false, "info,mailchime::watch=debug", || {
            tracing::debug!(target: "mailchime::watch::mailbox_changed", "first");
            tracing::trace!(target: "mailchime::watch::mailbox_changed", "second");
            tracing::debug!(target: "mailchime::push::results_written", "third");
            tracing::info!(target: "mailchime::push::attempted", "fourth");
        });
        assert!(text.contains("first") && text.contains("fourth"), "{text}");
        assert!(!text.contains("second") && !text.contains("third"), "{text}");
        let one = written(LogFormat::Text, false, "off,mailchime::push::attempted=info", || {
            tracing::info!(target: "mailchime::push::attempted", "first");
            tracing::error!(target: "mailchime::push::push_refused", "second");
        });
        assert!(one.contains("first") && !one.contains("second"), "{one}");
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
