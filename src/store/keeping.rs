//! Which credentials of an account are kept, and in which order its watcher tries them. Pure.
//!
//! A user may have several clients: a phone with a password that lasts, another one with access tokens,
//! web mail that makes up a password for each login. So what a login brings does not take the place of
//! what lasts longer. Three are kept at most: the last password, the password that has proved good for
//! longest, and the token that expires last.

use std::cmp::Reverse;
use std::time::Duration;

use crate::model::{Credentials, SecretKind, Timestamp};

/// An older password goes when a newer one has proved good for so long and the older one was not
/// accepted meanwhile: each phone of the user has registered with the newer one by then.
const SUPERSEDES: Duration = Duration::from_hours(25);

/// Tries of a password that the backend calls wrong.
const MOST_TRIES: u32 = 2;

/// What has proved good for less is not noted.
const NOTED: Duration = Duration::from_mins(1);

/// Credentials that a backend has accepted.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What was kept.
    pub credentials: Credentials,
    /// They are not to be kept any longer; `None` while their account lives.
    pub until: Option<Timestamp>,
    /// When they were first accepted.
    pub since: Timestamp,
    /// When they were last accepted, as far as that is noted.
    pub proved_at: Timestamp,
    /// As the database has them.
    pub(super) text: Option<String>,
}

/// What is kept after a login.
#[derive(Debug)]
pub(super) struct Accepted {
    /// The last password comes first; where there is none, a token.
    pub(super) kept: Vec<Kept>,
    /// The login brought another password than the last one.
    pub(super) other_password: bool,
}

impl Kept {
    /// Of a login that was accepted at that time.
    pub fn new(credentials: Credentials, until: Option<Timestamp>, at: Timestamp) -> Self {
        Self { credentials, until, since: at, proved_at: at, text: None }
    }

    fn is_password(&self) -> bool {
        self.credentials.kind == SecretKind::Password
    }

    fn has_secret_of(&self, other: &Self) -> bool {
        let (one, other) = (&self.credentials, &other.credentials);
        one.kind == other.kind && one.expose_secret() == other.expose_secret()
    }

    /// Whether they are of use at that time.
    pub(super) fn lives(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// For how long they have proved good, in milliseconds.
    fn proved_for(&self) -> i64 {
        self.proved_at.0.saturating_sub(self.since.0).max(0)
    }

    /// Takes note that they were accepted at that time, if they have proved good for twice as long as
    /// is noted: so it is seldom written. Returns whether it took note.
    pub fn prove(&mut self, now: Timestamp) -> bool {
        let proved = now.0.saturating_sub(self.since.0);
        let enough = self.proved_for().saturating_mul(2).max(millis(NOTED));
        let notes = proved >= enough;
        if notes {
            self.proved_at = now;
        }
        notes
    }

    /// Whether `newer` has come since this password was last accepted, and has lasted.
    fn is_superseded_by(&self, newer: &Self) -> bool {
        newer.since > self.proved_at && newer.proved_for() >= millis(SUPERSEDES)
    }

    /// Whether it was refused before another password was accepted, and nobody has logged in with it since.
    fn is_doubted(&self) -> bool {
        self.is_password() && self.proved_at < self.since
    }

    /// Whether the database has them as they are here.
    fn is_as_stored(&self, stored: &Self) -> bool {
        let times = |kept: &Self| (kept.until, kept.since, kept.proved_at);
        self.text.is_some() && self.text == stored.text && times(self) == times(stored)
    }
}

/// The backend has refused the last tries with `kept`, and accepts `fresh` now: other passwords count as if
/// they had come after it, so that they are tried behind it. Where `fresh` was refused before as well, they may be as
/// good; else they are [in doubt](Kept::is_doubted).
pub(super) fn doubt(kept: &mut [Kept], fresh: &Kept) {
    let again = kept.iter().any(|it| it.has_secret_of(fresh));
    for it in kept.iter_mut().filter(|it| it.is_password() && !it.has_secret_of(fresh)) {
        it.since = Timestamp(fresh.since.0.saturating_add(1));
        if again {
            it.proved_at = it.since;
        }
    }
}

/// Of what is kept once `fresh` was accepted, passwords that are [in doubt](Kept::is_doubted) go where each of those of
/// `before` had so many of the `tries` that none may follow: another would be one too many for a backend that bans addresses
/// and locks accounts.
pub(super) fn settle_doubts(kept: &mut Vec<Kept>, before: &[Kept], fresh: &Kept, tries: u32) {
    let tried = u32::try_from(before.len()).unwrap_or(u32::MAX).max(1);
    // A token does not last.
    if fresh.is_password() && tries / tried >= MOST_TRIES {
        kept.retain(|it| !it.is_doubted());
    }
}

/// What is kept of `before` (in the order of [`Accepted::kept`]) and of `fresh`, which a backend has just
/// accepted; of tokens that have not expired by `now`.
pub(super) fn accept(before: &[Kept], mut fresh: Kept, now: Timestamp) -> Accepted {
    let at = fresh.since;
    let last = before.first().filter(|last| last.is_password());
    let other_password = fresh.is_password() && last.is_some_and(|it| !it.has_secret_of(&fresh));
    let mut others: Vec<Kept> = before.iter().filter(|kept| kept.lives(now)).cloned().collect();
    if let Some(place) = others.iter().position(|kept| kept.has_secret_of(&fresh)) {
        let known = others.remove(place);
        (fresh.since, fresh.proved_at) = (known.since, known.proved_at);
        if known.credentials.same_as(&fresh.credentials) {
            // When a token expires was known better when it came.
            (fresh.text, fresh.until) = (known.text, known.until);
        }
        // It works beside one that has come since.
        match others.iter().any(|other| other.is_password() && fresh.proved_at < other.since) {
            true => fresh.proved_at = at,
            false => drop(fresh.prove(at)),
        }
    }
    others.insert(0, fresh);
    let (mut passwords, tokens): (Vec<_>, Vec<_>) = others.into_iter().partition(Kept::is_password);
    let superseded = |it: &Kept| passwords.iter().any(|newer| it.is_superseded_by(newer));
    let stay: Vec<bool> = passwords.iter().map(|it| !superseded(it)).collect();
    let mut stay = stay.into_iter();
    passwords.retain(|_| stay.next().unwrap_or_default());
    let mut passwords = passwords.into_iter();
    let last = passwords.next();
    let proved = passwords.max_by_key(|it| (it.proved_for(), Reverse(it.since)));
    // Of two that expire together the one that has just come.
    let token = tokens.into_iter().rev().max_by_key(|token| token.until);
    Accepted { kept: [last, proved, token].into_iter().flatten().collect(), other_password }
}

/// What is kept when a watcher has logged in with `accepted`, and tried `refused` before. What is in doubt was refused
/// as well, perhaps by a program that was killed since. `None` where that changes nothing.
pub(super) fn worked(
    before: &[Kept],
    accepted: &Credentials,
    refused: &[Credentials],
    now: Timestamp,
) -> Option<Vec<Kept>> {
    let is_it = |kept: &Kept| accepted.same_as(&kept.credentials);
    // Where it is in doubt itself, the others may be as good.
    let doubts = !before.iter().any(|kept| is_it(kept) && kept.is_doubted());
    let is_refused = |kept: &Kept| {
        let tried = refused.iter().any(|it| it.same_as(&kept.credentials));
        tried || doubts && kept.is_doubted()
    };
    let mut kept: Vec<Kept> = before.iter().filter(|kept| !is_refused(kept)).cloned().collect();
    let newest = kept.iter().filter(|it| it.is_password()).map(|it| it.since).max();
    let proved = kept.iter_mut().find(|kept| is_it(kept));
    let notes = proved.is_some_and(|it| match newest.is_some_and(|newest| it.proved_at < newest) {
        true => {
            it.proved_at = now;
            true
        }
        false => it.prove(now),
    });
    (notes || kept.len() < before.len()).then_some(kept)
}

/// Whether the database has them as they are here, and no others.
pub(super) fn are_as_stored(kept: &[Kept], stored: &[Kept]) -> bool {
    kept.len() == stored.len() && kept.iter().zip(stored).all(|(one, it)| one.is_as_stored(it))
}

/// Puts what lasts longest first: passwords by how long they have proved good, and then how long they
/// are known; then tokens by when they expire.
pub(super) fn by_durability(kept: &mut [Kept]) {
    kept.sort_by_key(|it| {
        let proved_for = if it.is_password() { it.proved_for() } else { 0 };
        (!it.is_password(), Reverse(proved_for), Reverse(it.until), it.since)
    });
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn password(secret: &str, at: i64) -> Kept {
        let credentials = Credentials::password("alice", secret.as_bytes().to_vec());
        Kept::new(credentials, None, Timestamp(at))
    }

    fn token(secret: &str, at: i64, until: i64) -> Kept {
        let credentials = Credentials::bearer("alice", secret.as_bytes().to_vec());
        Kept::new(credentials, Some(Timestamp(until)), Timestamp(at))
    }

    fn secrets(kept: &[Kept]) -> Vec<&str> {
        let secrets = kept.iter().map(|it| it.credentials.expose_secret());
        secrets.map(|secret| std::str::from_utf8(secret).unwrap()).collect()
    }

    /// Logins one after the other; the secrets that are kept.
    fn after(logins: impl IntoIterator<Item = Kept>) -> Vec<Kept> {
        logins.into_iter().fold(Vec::new(), |kept, fresh| {
            let now = fresh.since;
            accept(&kept, fresh, now).kept
        })
    }

    #[test]
    fn what_lasts_less_stands_behind_what_lasts() {
        let mut kept = after([
            password("phone", 0),
            password("phone", HOUR),
            token("other client", 2 * HOUR, 3 * HOUR),
            password("web mail 1", 2 * HOUR),
            password("web mail 2", 2 * HOUR),
            password("web mail 3", 2 * HOUR),
        ]);
        assert_eq!(secrets(&kept), ["web mail 3", "phone", "other client"]);
        by_durability(&mut kept);
        assert_eq!(secrets(&kept), ["phone", "web mail 3", "other client"]);
    }

    #[test]
    fn what_was_refused_is_tried_behind_what_was_accepted_then() {
        let mut kept = after([password("old", 0), password("old", HOUR)]);
        let new = password("new", 2 * HOUR);
        doubt(&mut kept, &new);
        let mut kept = accept(&kept, new, Timestamp(2 * HOUR)).kept;
        by_durability(&mut kept);
        assert_eq!(secrets(&kept), ["new", "old"]);
        // The same one again shows that it was not wrong.
        let mut kept = after([password("old", 0), password("other", 1), password("old", HOUR)]);
        doubt(&mut kept, &password("old", 2 * HOUR));
        by_durability(&mut kept);
        assert_eq!(secrets(&kept), ["old", "other"]);
    }

    /// The program that had it refused may have been killed before it could note which one that was.
    #[test]
    fn what_was_refused_goes_once_a_watcher_has_logged_in_with_what_was_accepted_then() {
        let refused = |before: &[&str], fresh: &str| {
            let before = before.iter().zip(0..).map(|(secret, at)| password(secret, at));
            let (mut kept, fresh) = (after(before), password(fresh, 2 * HOUR));
            doubt(&mut kept, &fresh);
            accept(&kept, fresh, Timestamp(2 * HOUR)).kept
        };
        let worked = |kept: &[Kept], accepted: &str| {
            let accepted = password(accepted, 0).credentials;
            worked(kept, &accepted, &[], Timestamp(2 * HOUR + 1)).unwrap_or(kept.to_vec())
        };
        let new = refused(&["old"], "new");
        assert_eq!(secrets(&new), ["new", "old"]);
        assert_eq!(secrets(&worked(&new, "new")), ["new"]);
        // It was the backend's fault that it was refused.
        assert_eq!(secrets(&worked(&new, "old")), ["new", "old"]);
        let (two, fresh) = (after([password("old", 0), password("other", 1)]), password("new", 9));
        for (before, tries, stays) in [
            (&two[..1], 1, &["new", "old"][..]),
            (&two[..1], 2, &["new"]),
            (&two[..], 3, &["new", "old"]),
            (&two[..], 4, &["new"]),
        ] {
            let mut kept = new.clone();
            settle_doubts(&mut kept, before, &fresh, tries);
            assert_eq!(secrets(&kept), stays, "{tries} tries");
            let mut kept = new.clone();
            settle_doubts(&mut kept, before, &token("token", 9, HOUR), tries);
            assert_eq!(secrets(&kept), ["new", "old"], "{tries} tries, by a token");
        }
        let again = refused(&["old", "new"], "new");
        assert_eq!(secrets(&worked(&again, "new")), ["new", "old"]);
    }

    #[test]
    fn the_token_that_expires_last_is_kept_and_none_that_has_expired() {
        let kept = after([token("day", 0, 24 * HOUR), token("hour", HOUR, 2 * HOUR)]);
        assert_eq!(secrets(&kept), ["day"]);
        let kept = after([token("first", 0, 2 * HOUR), token("second", HOUR, 2 * HOUR)]);
        assert_eq!(secrets(&kept), ["second"]);
        let kept = after([token("old", 0, HOUR), password("phone", HOUR)]);
        assert_eq!(secrets(&kept), ["phone"]);
    }

    #[test]
    fn an_older_password_goes_when_a_newer_one_has_lasted_and_it_was_not_used_meanwhile() {
        let (old, new) = (password("old", 0), password("new", 100 * HOUR));
        let later = |hour: i64| password("new", (100 + hour) * HOUR);
        let logins = [old.clone(), password("old", 50 * HOUR), new.clone(), later(24)];
        assert_eq!(secrets(&after(logins)), ["new", "old"]);
        let logins = [old.clone(), password("old", 50 * HOUR), new.clone(), later(1), later(26)];
        assert_eq!(secrets(&after(logins)), ["new"]);
        // Two devices with a password each.
        let both = [old, new, later(1), password("old", 110 * HOUR), later(26)];
        assert_eq!(secrets(&after(both)), ["new", "old"]);
    }

    #[test]
    fn another_password_than_the_last_one_is_another_one_and_a_token_says_nothing() {
        let other =
            |before: &[Kept], fresh: Kept| accept(before, fresh, Timestamp(3)).other_password;
        let kept = after([password("one", 0), token("token", 1, HOUR), password("two", 2)]);
        assert!(!other(&[], password("one", 0)));
        assert!(!other(&kept, password("two", 3)) && !other(&kept, token("another", 3, HOUR)));
        assert!(other(&kept, password("one", 3)) && other(&kept, password("three", 3)));
        assert!(!other(&after([token("token", 1, HOUR)]), password("one", 2)));
    }

    #[test]
    fn how_long_they_have_proved_good_is_noted_seldom() {
        let mut kept = password("one", 0);
        let minutes = 1..10_000_i64;
        let noted: Vec<_> =
            minutes.filter(|minute| kept.prove(Timestamp(minute * 60_000))).collect();
        assert!(noted.len() <= 14, "{noted:?}");
        assert_eq!(kept.proved_at.0, noted.last().unwrap() * 60_000);
    }

    #[test]
    fn another_form_of_the_login_takes_the_place_of_the_former() {
        let mut other = password("one", HOUR);
        other.credentials.login = "ALICE".into();
        let accepted = accept(&[password("one", 0)], other, Timestamp(HOUR));
        assert!(!accepted.other_password);
        let [kept] = &accepted.kept[..] else { panic!("{accepted:?}") };
        assert_eq!((&*kept.credentials.login, kept.since), ("ALICE", Timestamp(0)));
    }

    #[test]
    fn what_is_refused_goes_when_something_else_works() {
        let kept = after([password("old", 0), token("token", 1, HOUR), password("new", 2)]);
        let of = |place: usize| kept[place].credentials.clone();
        assert_eq!(secrets(&kept), ["new", "old", "token"]);
        let left = worked(&kept, &of(0), &[of(1)], Timestamp(3)).unwrap();
        assert_eq!(secrets(&left), ["new", "token"]);
        assert!(worked(&kept, &of(0), &[], Timestamp(3)).is_none(), "nothing is new");
        // The older one works beside the newer one.
        let left = worked(&kept, &of(1), &[], Timestamp(3)).unwrap();
        assert_eq!((left.len(), left[1].proved_at), (3, Timestamp(3)));
    }
}
