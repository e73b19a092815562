//! One check per kind of value: durations, sizes, numbers, files, addresses. The tables use them for
//! what the file says.
//!
//! A value that is refused is an error that names its key and what is allowed instead. The methods
//! take the key for the message, and leave the default in `value` when the file is silent.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;

use super::error::ConfigError;
use crate::files;

pub(super) type CheckResult<T> = Result<T, ConfigError>;

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_mins(1);
pub(super) const HOUR: Duration = Duration::from_hours(1);
pub(super) const DAY: Duration = Duration::from_hours(24);
pub(super) const KIB: u64 = bytesize::KIB;
pub(super) const MIB: u64 = bytesize::MIB;

/// The checks of one file: a method per kind of value here, one per table in the table's own file.
pub(super) struct Check<'a> {
    pub(super) origin: &'a Path,
}

impl Check<'_> {
    pub(super) fn duration(
        &self,
        key: &str,
        text: Option<String>,
        allowed: RangeInclusive<Duration>,
        value: &mut Duration,
    ) -> CheckResult<()> {
        let Some(text) = text else { return Ok(()) };
        let range = format!("allowed is {} to {}", shown(*allowed.start()), shown(*allowed.end()));
        *value = humantime::parse_duration(&text).map_err(|error| {
            self.refusal(key, format!("{text:?} is no duration ({error}); {range}"))
        })?;
        self.in_range(key, &text, allowed.contains(value), range)
    }

    pub(super) fn size(
        &self,
        key: &str,
        text: Option<String>,
        allowed: RangeInclusive<u64>,
        value: &mut usize,
    ) -> CheckResult<()> {
        let Some(text) = text else { return Ok(()) };
        let shown = |bytes: u64| match bytes {
            bytes if bytes.is_multiple_of(MIB) => format!("{}MiB", bytes / MIB),
            bytes => format!("{}KiB", bytes / KIB),
        };
        let range = format!("allowed is {} to {}", shown(*allowed.start()), shown(*allowed.end()));
        // A number without a unit is a guess what was meant.
        let bytes = match text.parse::<ByteSize>() {
            Ok(bytes) if text.ends_with(|c: char| c.is_ascii_alphabetic()) => bytes.as_u64(),
            _ => return Err(self.refusal(key, format!("{text:?} is no size with a unit; {range}"))),
        };
        *value = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.in_range(key, &text, allowed.contains(&bytes), range)
    }

    pub(super) fn number<T: TryFrom<i64>>(
        &self,
        key: &str,
        number: Option<i64>,
        allowed: RangeInclusive<i64>,
        value: &mut T,
    ) -> CheckResult<()> {
        let Some(number) = number else { return Ok(()) };
        let range = format!("allowed is {} to {}", allowed.start(), allowed.end());
        let fits = allowed.contains(&number);
        if let (true, Ok(number)) = (fits, T::try_from(number)) {
            *value = number;
        }
        self.in_range(key, &number.to_string(), fits, range)
    }

    pub(super) fn in_range(
        &self,
        key: &str,
        value: &str,
        fits: bool,
        range: String,
    ) -> CheckResult<()> {
        match fits {
            true => Ok(()),
            false => Err(self.refusal(key, format!("{value} is out of range; {range}"))),
        }
    }

    pub(super) fn not_above(
        &self,
        low: (&str, Duration),
        high: (&str, Duration),
    ) -> CheckResult<()> {
        if low.1 <= high.1 {
            return Ok(());
        }
        let [value, limit] = [low.1, high.1].map(shown);
        let problem = format!("{value} is longer than {} ({limit}); lower it", high.0);
        Err(self.refusal(low.0, problem))
    }

    pub(super) fn required_file(&self, key: &str, path: Option<String>) -> CheckResult<PathBuf> {
        self.file(key, path)?.ok_or_else(|| {
            let remedy = "name a PEM file; `mailchime certs dev` makes one to try with";
            self.refusal(key, format!("missing; {remedy}"))
        })
    }

    /// The path from the folder of the configuration, of a file that can be read.
    pub(super) fn file(&self, key: &str, path: Option<String>) -> CheckResult<Option<PathBuf>> {
        let Some(path) = path else { return Ok(None) };
        let path = self.folder().join(path);
        let problem = match files::open(&path) {
            Ok(_) => return Ok(Some(path)),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                "is not a file; name a PEM file".to_owned()
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                "does not exist; correct the path, which starts at the folder of the configuration \
                 file, or make the file"
                    .to_owned()
            }
            Err(error) => {
                format!("cannot be read ({error}); {}", files::remedy(&error))
            }
        };
        Err(self.refusal(key, format!("{} {problem}", path.display())))
    }

    pub(super) fn folder(&self) -> &Path {
        self.origin.parent().unwrap_or(Path::new(""))
    }

    pub(super) fn refusal(&self, key: &str, problem: impl fmt::Display) -> ConfigError {
        ConfigError {
            file: self.origin.to_owned(),
            key: Some(key.to_owned()),
            problem: problem.to_string(),
        }
    }
}

/// A duration in the largest unit of which it is a multiple.
fn shown(duration: Duration) -> String {
    let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (SECOND, "s"), (MILLISECOND, "ms")];
    let fitting =
        units.iter().find(|(unit, _)| duration.as_nanos().is_multiple_of(unit.as_nanos()));
    match fitting {
        Some((unit, name)) => format!("{}{name}", duration.as_nanos() / unit.as_nanos()),
        None => format!("{duration:?}"),
    }
}

/// `host:port` or `[IPv6]:port`; the host comes without brackets.
pub(super) fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let valid = match bracketed {
        Some(inner) => inner.contains(':') && inner.bytes().all(|b| b.is_ascii_graphic()),
        None => {
            let in_names = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
            !host.is_empty() && host.bytes().all(in_names)
        }
    };
    valid.then(|| (bracketed.unwrap_or(host).to_owned(), port))
}

/// A host name in lower case (RFC 1123 section 2.1).
pub(super) fn domain(text: &str) -> Option<String> {
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        (1..=63).contains(&label.len()) && label.bytes().all(inner)
    };
    let valid = text.len() <= 253 && text.split('.').all(label);
    valid.then(|| text.to_ascii_lowercase())
}

pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
