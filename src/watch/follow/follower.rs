//! One that follows: what it hears of each of its mailboxes.

use std::fmt;
use std::sync::Arc;

use crate::model::{ChangeKind, Mailbox, MailboxToFollow, Snapshot};
use crate::watch::ledger::Consequence;
use crate::watch::snapshot::{difference, merged, only_mod_seq_differs};

/// What a follower hears.
#[derive(Clone, Copy, Debug)]
pub enum FollowEvent<'a> {
    /// A mailbox has this state now.
    State {
        /// Which one.
        mailbox: &'a Mailbox,
        /// What has happened; `None` where it is nothing that a device must know.
        kind: Option<ChangeKind>,
        /// All that is known of it.
        state: Snapshot,
    },
    /// The credentials prove nothing any more, and nothing else comes.
    Refused,
}

/// Takes what a follower hears. It must not wait, nor ask for anything of the [`super::Followers`].
#[derive(Clone)]
pub struct FollowListener(pub(super) Arc<dyn Fn(FollowEvent<'_>) + Send + Sync>);

#[derive(Debug)]
pub(super) struct Follower {
    pub(super) number: u64,
    pub(super) mailboxes: Vec<FollowedMailbox>,
    pub(super) hears: FollowListener,
}

/// A mailbox, and what its follower was told.
#[derive(Debug)]
pub(super) struct FollowedMailbox {
    pub(super) mailbox: Mailbox,
    pub(super) told: Snapshot,
    /// New mail was announced, and no look has shown it yet.
    announced: bool,
    /// It was away, and its HIGHESTMODSEQ has not been compared yet: which flags have changed meanwhile is not
    /// known, so it hears of all.
    was_away: bool,
}

impl FollowListener {
    /// Calls `hears` with each event, while locks are held.
    pub fn new(hears: impl Fn(FollowEvent<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hears))
    }
}

impl fmt::Debug for FollowListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FollowListener").finish_non_exhaustive()
    }
}

impl Follower {
    pub(super) fn wants(&self, mailbox: &Mailbox) -> bool {
        self.mailboxes.iter().any(|wanted| wanted.mailbox == *mailbox)
    }
}

impl FollowedMailbox {
    /// Tells at once what differs.
    pub(super) fn new(wanted: MailboxToFollow, hears: &FollowListener) -> Self {
        let MailboxToFollow { mailbox, told, now } = wanted;
        let was_away = told.is_some();
        let told = told.unwrap_or(now);
        let mut followed = Self { mailbox: mailbox.clone(), told, announced: false, was_away };
        // The first look tells of a mailbox whose state could not be asked, and of numbers that were not.
        if now != Snapshot::default()
            && let Some((kind, state)) = followed.hear(Consequence::Nothing, &merged(&told, &now))
        {
            (hears.0)(FollowEvent::State { mailbox: &mailbox, kind, state });
        }
        followed.was_away = was_away && now.highest_mod_seq.is_none();
        followed
    }

    /// What its follower is to hear.
    pub(super) fn hear(
        &mut self,
        follows: Consequence,
        known: &Snapshot,
    ) -> Option<(Option<ChangeKind>, Snapshot)> {
        let (kind, state) = match follows {
            Consequence::Announced { .. } => {
                self.announced = true;
                return None;
            }
            // A look follows.
            Consequence::LookDue(_) => return None,
            Consequence::Changed { kind, state, .. } => (Some(kind), state),
            Consequence::Rebased { state, .. } => (None, state),
            Consequence::Nothing if self.announced => return None,
            Consequence::Nothing => (None, *known),
        };
        let announced = std::mem::take(&mut self.announced).then_some(ChangeKind::NewMail);
        let was_away = std::mem::take(&mut self.was_away);
        if state == self.told {
            return None;
        }
        let missed =
            (was_away && only_mod_seq_differs(&self.told, &state)).then_some(ChangeKind::Quiet);
        let kind = kind.max(announced).max(difference(&self.told, &state)).max(missed);
        self.told = state;
        Some((kind, state))
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    fn state(next: u64, messages: u64, unseen: u64) -> Snapshot {
        Snapshot {
            uid_validity: Some(7),
            uid_next: Some(next),
            messages: Some(messages),
            unseen: Some(unseen),
            highest_mod_seq: None,
        }
    }

    fn followed(told: Option<Snapshot>, now: Snapshot) -> (FollowedMailbox, Vec<String>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = FollowListener::new({
            let heard = Arc::clone(&heard);
            move |event| heard.lock().push(format!("{event:?}"))
        });
        let wanted = MailboxToFollow { mailbox: Mailbox::inbox(), told, now };
        let followed = FollowedMailbox::new(wanted, &hears);
        let heard = heard.lock().clone();
        (followed, heard)
    }

    #[test]
    fn a_follower_hears_at_once_what_differs_from_what_it_knows() {
        let now = state(11, 6, 3);
        assert!(followed(None, now).1.is_empty());
        assert!(followed(Some(now), now).1.is_empty());
        let (_, heard) = followed(Some(state(10, 5, 2)), now);
        assert!(heard.len() == 1 && heard[0].contains("NewMail"), "{heard:?}");
        let (_, heard) = followed(Some(state(11, 6, 4)), now);
        assert!(heard.len() == 1 && heard[0].contains("Quiet"), "{heard:?}");
        // What could not be asked for is compared with the first look.
        let (mut later, heard) = followed(Some(state(10, 5, 2)), Snapshot::default());
        assert!(heard.is_empty());
        let looked = later.hear(Consequence::Nothing, &now);
        assert_eq!(looked, Some((Some(ChangeKind::NewMail), now)));
    }

    #[test]
    fn a_change_of_flags_alone_is_heard_by_a_client_that_was_away() {
        let counted = |mod_seq| Snapshot { highest_mod_seq: Some(mod_seq), ..state(11, 6, 3) };
        // It was asked for.
        let (mut later, heard) = followed(Some(counted(63)), counted(64));
        assert!(heard.len() == 1 && heard[0].contains("Quiet"), "{heard:?}");
        // From now on it hears of those flags that matter.
        assert_eq!(later.hear(Consequence::Nothing, &counted(65)), Some((None, counted(65))));
        // It was not: the first look says so.
        let (mut later, heard) = followed(Some(counted(63)), state(11, 6, 3));
        assert!(heard.is_empty(), "{heard:?}");
        let heard = later.hear(Consequence::Nothing, &counted(64));
        assert_eq!(heard, Some((Some(ChangeKind::Quiet), counted(64))));
        let (mut later, _) = followed(Some(counted(63)), state(11, 6, 3));
        assert_eq!(later.hear(Consequence::Nothing, &counted(63)), None);
        assert_eq!(later.hear(Consequence::Nothing, &counted(64)), Some((None, counted(64))));
    }

    #[test]
    fn each_follower_hears_a_state_once_whatever_the_others_know() {
        let (mut first, mut second) =
            (followed(None, state(10, 5, 2)).0, followed(None, state(11, 6, 3)).0);
        let changed =
            Consequence::Changed { kind: ChangeKind::NewMail, id: 1, state: state(11, 6, 3) };
        let heard = first.hear(changed, &state(11, 6, 3));
        assert_eq!(heard, Some((Some(ChangeKind::NewMail), state(11, 6, 3))));
        assert_eq!(second.hear(changed, &state(11, 6, 3)), None, "it knew that");
        // One that joined with an older state hears of it at the next look, which is no news to the first.
        let (mut late, _) = followed(None, state(10, 5, 2));
        assert_eq!(first.hear(Consequence::Nothing, &state(11, 6, 3)), None);
        assert!(late.hear(Consequence::Nothing, &state(11, 6, 3)).is_some());
    }

    #[test]
    fn new_mail_that_was_announced_is_told_with_its_numbers() {
        let (mut followed, _) = followed(None, state(10, 5, 2));
        assert_eq!(followed.hear(Consequence::Announced { id: 1 }, &state(11, 6, 3)), None);
        assert_eq!(followed.hear(Consequence::Nothing, &state(11, 6, 3)), None, "not looked at");
        let rebased = Consequence::Rebased { id: 1, state: state(11, 6, 2) };
        let heard = followed.hear(rebased, &state(11, 6, 2));
        assert_eq!(heard, Some((Some(ChangeKind::NewMail), state(11, 6, 2))));
        let keyword = Snapshot { highest_mod_seq: Some(4), ..state(11, 6, 2) };
        let rebased = Consequence::Rebased { id: 2, state: keyword };
        assert_eq!(followed.hear(rebased, &keyword), Some((None, keyword)));
    }
}
