//! `[log]`: what goes to standard error.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::check::{Check, CheckResult};

/// `[log]`: what goes to standard error.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// The form of a line.
    pub format: LogFormat,
    /// Directives of `tracing_subscriber::EnvFilter` that are known to parse.
    pub level: String,
}

/// The form of a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: an object a line.
    Json,
    /// Text for systemd's journal: a priority before each line, and no time.
    Journal,
}

table!(RawLog {
    format: Option<LogFormat>,
    level: Option<String>,
});

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

impl Check<'_> {
    pub(super) fn log(&self, raw: RawLog) -> CheckResult<LogConfig> {
        let mut log = LogConfig::default();
        log.format = raw.format.unwrap_or(log.format);
        if let Some(level) = raw.level {
            // EnvFilter takes a misspelt level for the name of a module, and would be silent about
            // all others; so a bare word must be a level.
            let named = |part: &str| {
                part.contains('=') || (!part.is_empty() && part.parse::<LevelFilter>().is_ok())
            };
            if !level.split(',').all(|part| named(part.trim()))
                || EnvFilter::try_new(&level).is_err()
            {
                let allowed = "allowed are off, error, warn, info, debug and trace, also by module: \
                               \"info,mailchime::watch=debug\"";
                return Err(
                    self.refusal("[log] level", format!("{level:?} is not understood; {allowed}"))
                );
            }
            log.level = level;
        }
        Ok(log)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refused_with;

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            (
                "[log]\nlevel = \"inof\"",
                "[log] level: \"inof\" is not understood; allowed are off,",
            ),
            ("[log]\nlevel = \"mailchime=loud\"", "[log] level: "),
            ("[log]\nlevel = \"\"", "[log] level: "),
        ] {
            refused_with(text, expected);
        }
    }
}
