//! How long a command took, which servers say in the text of an OK, and which no two runs share.

/// A text without the brackets that say how long a command took. Each server has forms of its own, and
/// adds to them: `(0.001 + 0.000 secs)` of Dovecot; `(0.003 sec)`, `(0.001 secs 2 calls)` and `(1 msgs in 0.001 secs)` of
/// Cyrus.
pub(crate) fn without_times(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(" (") {
        let inside = &rest[start + 2..];
        let length = inside.find(['(', ')']).filter(|end| inside[*end..].starts_with(')'));
        let took = length.filter(|length| is_time(&inside[..*length]));
        kept.push_str(&rest[..start]);
        match took {
            Some(length) => rest = &inside[length + 1..],
            None => {
                kept.push_str(" (");
                rest = inside;
            }
        }
    }
    kept + rest
}

/// Whether words say a time in seconds: a number with a point right before `sec` or `secs`.
fn is_time(inside: &str) -> bool {
    let is_number = |digits: &str| !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
    let is_seconds = |word: &str| {
        word.split_once('.').is_some_and(|(whole, part)| is_number(whole) && is_number(part))
    };
    let words: Vec<_> = inside.split(' ').collect();
    words.windows(2).any(|pair| is_seconds(pair[0]) && ["sec", "secs"].contains(&pair[1]))
}

mod tests {
    use super::*;

    #[test]
    fn how_long_a_command_took_does_not_count() {
        for (took, without) in [
            ("T1 OK Completed (0.001 secs 2 calls)", "T1 OK Completed"),
            ("T1 OK Completed (0.003 sec)", "T1 OK Completed"),
            ("T1 OK Completed (1 msgs in 0.071 secs)", "T1 OK Completed"),
            ("T1 OK List completed (0.001 + 0.000 + 0.002 secs).", "T1 OK List completed."),
            ("OK (1.000 secs) OK (12.000 secs)", "OK OK"),
            ("T1 OK ((0.001 secs))", "T1 OK ((0.001 secs))"),
            ("* LIST (\\HasNoChildren) \"/\" secs", "* LIST (\\HasNoChildren) \"/\" secs"),
            ("T1 OK 2 calls (2 calls)", "T1 OK 2 calls (2 calls)"),
            ("T1 OK Completed (0.001 secs", "T1 OK Completed (0.001 secs"),
        ] {
            assert_eq!(without_times(took), without);
        }
    }
}
