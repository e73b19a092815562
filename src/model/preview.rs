//! What a notification may say of a new mail.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Most characters of each text of a [`Preview`].
pub const PREVIEW_CHARACTERS: usize = 200;

/// For how long a push waits for the preview that it may say.
pub const PREVIEW_WAIT: Duration = Duration::from_secs(3);

/// Sender and subject of a new mail, in memory alone: they are in no log and no database, and `Debug` shows
/// neither.
///
/// Both are one line of text that changes nothing of what stands around it: no controls, nothing that turns
/// the direction of writing, nothing that is not seen. Each has at most [`PREVIEW_CHARACTERS`] characters.
#[derive(Clone, PartialEq, Eq)]
pub struct Preview {
    sender: Option<Arc<str>>,
    subject: Option<Arc<str>>,
    /// How many new mails this is the newest of.
    pub messages: u64,
}

impl Preview {
    /// Of the newest of so many `messages`. What cannot be shown is taken out of both texts, and what is too
    /// long ends in `…`. `None` where nothing is left.
    pub fn new(sender: Option<&str>, subject: Option<&str>, messages: u64) -> Option<Self> {
        let line = |text| one_line(text, PREVIEW_CHARACTERS);
        let (sender, subject) = (sender.and_then(line), subject.and_then(line));
        let is_empty = sender.is_none() && subject.is_none();
        (!is_empty).then_some(Self { sender, subject, messages })
    }

    /// The name of the sender, or the address where there is no name.
    pub fn sender(&self) -> Option<&str> {
        self.sender.as_deref()
    }

    /// What the mail says that it is about.
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }
}

impl fmt::Debug for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preview").field("messages", &self.messages).finish_non_exhaustive()
    }
}

/// The text as one line that can be shown, of at most so many characters: without controls,
/// what turns the direction of writing, and what is not seen. `None` where nothing is left.
pub fn one_line(text: &str, most: usize) -> Option<Arc<str>> {
    let (mut line, mut characters, mut space) = (String::new(), 0, false);
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        if next.is_whitespace() {
            space = !line.is_empty();
            continue;
        }
        // These join and part letters of some scripts, and the parts of some pictures. Elsewhere nobody sees
        // them.
        let is_joiner = matches!(next, '\u{200c}' | '\u{200d}');
        let joins = is_joiner
            && !space
            && line.chars().next_back().is_some_and(|before| !before.is_ascii())
            && rest.peek().is_some_and(|after| !after.is_ascii() && !is_unseen(*after));
        if is_unseen(next) && !joins {
            continue;
        }
        let room = most - characters;
        let takes = 1 + usize::from(space);
        // The last place is for the dots, unless this is the end.
        if takes > room || takes == room && rest.any(|after| !after.is_whitespace()) {
            line.push('…');
            break;
        }
        if std::mem::take(&mut space) {
            line.push(' ');
        }
        line.push(next);
        characters += takes;
    }
    (!line.is_empty()).then(|| line.into())
}

/// Controls, and what Unicode has to be ignored where it is not known: marks that turn the direction of
/// writing, spaces of no width, fillers, tags.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Option<String> {
        one_line(text, PREVIEW_CHARACTERS).map(|line| line.to_string())
    }

    #[test]
    fn a_text_becomes_one_line_of_what_is_seen() {
        for (text, line) in [
            ("Hello", Some("Hello")),
            (" Lunch\r\n\tat\u{a0}noon\u{2028}? ", Some("Lunch at noon ?")),
            ("a\u{0}b\u{7f}c\u{85}d\u{9f}", Some("abc d")),
            ("\u{202e}evil\u{2066}\u{200f}\u{61c}", Some("evil")),
            ("Pay\u{200b}Pal\u{2060}\u{feff}\u{ad}\u{200d}x", Some("PayPalx")),
            // Persian, and a family.
            ("می\u{200c}خواهم", Some("می\u{200c}خواهم")),
            ("👩\u{200d}👧 ❤\u{fe0f}", Some("👩\u{200d}👧 ❤\u{fe0f}")),
            ("é\u{200d}\u{200d}\u{200d}", Some("é")),
            ("\u{3164}\u{115f} \u{e0041}", None),
            ("", None),
            (" \r\n ", None),
        ] {
            assert_eq!(shown(text).as_deref(), line, "{text:?}");
        }
    }

    #[test]
    fn a_text_that_is_too_long_ends_in_dots() {
        let long = |count| "ä".repeat(count);
        assert_eq!(shown(&long(200)), Some(long(200)));
        assert_eq!(shown(&format!("{}\r\n ", long(200))), Some(long(200)));
        assert_eq!(shown(&long(201)), Some(long(199) + "…"));
        assert_eq!(shown(&format!("{} b", long(199))), Some(long(199) + "…"));
        assert_eq!(shown(&format!("{} b", long(198))), Some(long(198) + " b"));
        assert_eq!(shown(&format!("{} bc", long(198))), Some(long(198) + "…"));
    }

    #[test]
    fn debug_shows_nothing_of_the_mail() {
        let preview = Preview::new(Some("Bob"), Some("Secret plans"), 2).unwrap();
        let debugged = format!("{preview:?} {preview:#?}");
        assert!(!debugged.contains("Bob") && !debugged.contains("Secret"), "{debugged}");
        assert_eq!(Preview::new(Some("\u{200b}"), None, 1), None);
    }

    proptest! {
        #[test]
        fn any_text_is_short_and_harmless(text in any::<String>(), many in 0usize..300) {
            let text = text.repeat(many);
            let Some(line) = shown(&text) else { return Ok(()) };
            prop_assert!((1..=PREVIEW_CHARACTERS).contains(&line.chars().count()));
            let joiners = ['\u{200c}', '\u{200d}'];
            prop_assert!(line.chars().all(|c| joiners.contains(&c) || !is_unseen(c)), "{line:?}");
            prop_assert!(!line.starts_with(joiners) && !line.ends_with(joiners), "{line:?}");
            prop_assert!(line == line.trim() && !line.contains("  "), "{line:?}");
            prop_assert_eq!(shown(&line), Some(line));
        }
    }
}
