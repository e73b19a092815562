//! `Retry-After` and `Date` as raw bytes: seconds are what a second reader reads, a date is one behind the other, and
//! nothing else is a wait.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::push::transport::fuzzing::wait;

/// From the first year to the last that a date may have.
const LONGEST: Duration = Duration::from_secs(10_000 * 366 * 24 * 3600);

fuzz_target!(|data: &[u8]| -> Corpus {
    let [first, data @ ..] = data else { return Corpus::Reject };
    let (value, date) = match usize::from(*first) {
        0..128 => (data, None),
        more => {
            let (value, date) = data.split_at((more - 128).min(data.len()));
            (value, Some(date))
        }
    };
    let Some(wait) = wait(value, date) else { return Corpus::Reject };
    let text = value.iter().all(u8::is_ascii).then(|| String::from_utf8_lossy(value));
    let text = text.as_deref().unwrap_or_default().trim();
    let digits = text.strip_prefix('+').unwrap_or(text);
    let seconds = digits.bytes().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    });
    match (seconds.filter(|_| !digits.is_empty()), wait) {
        (Some(seconds), wait) => assert_eq!(wait, Some(Duration::from_secs(seconds)), "{text}"),
        (None, Some(wait)) => {
            assert!(date.is_some() && wait <= LONGEST, "{text}");
            assert!(text.bytes().filter(u8::is_ascii_digit).count() >= 8, "no date: {text}");
        }
        (None, None) => {}
    }
    Corpus::Keep
});
