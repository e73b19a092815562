//! What a backend says unasked of the mailbox that is open. Pure.

use crate::imap::status::{Activity, activity};

/// What was said since it was last asked.
#[derive(Debug, Default)]
pub(super) struct News {
    /// How many messages there are, as last told; `None` when that no longer holds.
    count: Option<u64>,
    /// The number to which it rose.
    grown: Option<u64>,
    other: bool,
}

impl News {
    /// Takes note of a whole response.
    pub(super) fn read(&mut self, response: &[u8]) {
        match activity(response) {
            // Some servers repeat the number at each IDLE: that is no news, or it would be for ever.
            Some(Activity::Exists(count)) => {
                match self.count.replace(count) {
                    Some(before) if count == before => {}
                    Some(before) if count < before => self.other = true,
                    // After an expunge the same number is a message more (NEEDS.md B38).
                    _ => self.grown = Some(count),
                }
            }
            Some(Activity::Other) => (self.count, self.other) = (None, true),
            None => {}
        }
    }

    /// The number of messages, if it rose.
    pub(super) fn take_grown(&mut self) -> Option<u64> {
        self.grown.take()
    }

    /// Whether anything but that changed.
    pub(super) fn take_other(&mut self) -> bool {
        std::mem::take(&mut self.other)
    }

    /// The mailbox is about to be looked at, which tells all that was said so far.
    pub(super) fn settle(&mut self) {
        (self.grown, self.other) = (None, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_news_and_what_is_only_said_again() {
        let mut news = News::default();
        for (said, grown, other) in [
            ("* 5 EXISTS", Some(5), false),
            ("* 5 EXISTS", None, false),
            ("* 7 EXISTS", Some(7), false),
            ("* 2 FETCH (FLAGS (\\Seen))", None, true),
            ("* 1 EXPUNGE|* 7 EXISTS", Some(7), true),
            ("* 7 EXISTS|* 1 RECENT|* OK Still here", None, false),
            ("* 8 EXISTS|* 1 EXPUNGE", Some(8), true),
            ("* 8 EXISTS", Some(8), false),
            ("* 6 EXISTS", None, true),
            ("w1 OK done", None, false),
        ] {
            said.split('|').for_each(|line| news.read(format!("{line}\r\n").as_bytes()));
            assert_eq!((news.take_grown(), news.take_other()), (grown, other), "{said}");
        }
        news.read(b"* 9 EXISTS\r\n");
        news.settle();
        assert_eq!((news.take_grown(), news.take_other()), (None, false));
    }
}
