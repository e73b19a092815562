//! Tables for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// Rows under a head, in columns as wide as what is in them. The last column is not filled up.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let line: String =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        line.trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

/// How far `time` is from now, in its largest unit: `12m ago`, `in 3h`; `-` for no time.
pub(super) fn from_now(time: Option<SystemTime>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    match SystemTime::now().duration_since(time) {
        Ok(ago) => format!("{} ago", short(ago)),
        Err(ahead) => format!("in {}", short(ahead.duration())),
    }
}

/// A time in milliseconds since 1970.
pub(super) fn at(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}

/// A span in milliseconds.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// How far a time of a JSON answer is from now; see [`from_now`].
pub(super) fn told(millis: &Value) -> String {
    from_now(millis.as_i64().map(at))
}

/// A word of a JSON answer; `-` for none. What a peer named cannot break the line.
pub(super) fn word(text: &Value) -> String {
    text.as_str().unwrap_or("-").escape_debug().to_string()
}

/// A span in its largest unit.
pub(super) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let shown =
            table(&["USER", "N", "LAST"], &[row(["bärbel", "1", ""]), row(["a", "22", "x"])]);
        assert_eq!(shown, "USER    N   LAST\nbärbel  1\na       22  x");
    }

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let now = SystemTime::now();
        for (seconds, expected) in [(5, "5s"), (125, "2m"), (7300, "2h"), (900_000, "10d")] {
            assert_eq!(
                from_now(Some(now - Duration::from_secs(seconds))),
                format!("{expected} ago")
            );
        }
        assert_eq!(from_now(Some(now + Duration::from_secs(3700))), "in 1h");
        assert_eq!(from_now(None), "-");
    }
}
