//! Whether a way of watching (NOTIFY, IDLE) tells what happens. Each account finds out for itself;
//! only what several accounts have found out counts for all of a backend.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::model::Account;

/// For how long a way is not used that was given up.
const DISTRUST: Duration = Duration::from_hours(24);

/// The same where all that is known is that connections were lost.
const LOST_DISTRUST: Duration = Duration::from_hours(1);

/// Refusals in a row of what a backend lists.
const REFUSALS: u32 = 2;

/// Connections in a row that were lost as soon as this way was used on them.
const LOSSES: u32 = 5;

/// Accounts that have to agree, before what they have found out counts for a backend.
pub(in crate::watch) const AGREE: usize = 3;

/// The ways of one account.
#[derive(Debug, Default)]
pub(in crate::watch) struct MethodConfidence {
    pub(in crate::watch) idle: Confidence,
    pub(in crate::watch) notify: Confidence,
}

/// What one account has found out about one way.
///
/// One miss proves nothing, as mail may come in the moment of the look. Two misses some time apart
/// do, if this way brought nothing in between.
#[derive(Debug, Default)]
pub(in crate::watch) struct Confidence {
    /// The first miss since this way brought something.
    missed: Option<Instant>,
    /// Refusals, and lost connections, in a row.
    refused: u32,
    lost: u32,
    given_up_until: Option<Instant>,
}

/// What the accounts of one backend have found out about one way. A sign that it works with one
/// account ends what others have against it.
#[derive(Debug, Default)]
pub(in crate::watch) struct Reliability(Mutex<Evidence>);

#[derive(Debug, Default)]
struct Evidence {
    /// This way brought something, and nothing was missed since by several accounts.
    proven: bool,
    /// Accounts that have missed something once.
    doubt: Quorum,
    /// Accounts that have given it up: it told them nothing, or was refused.
    missed: Quorum,
    refused: Quorum,
    distrusted_until: Option<Instant>,
}

/// Accounts, each once, until they are enough.
#[derive(Debug, Default)]
struct Quorum(Vec<Account>);

/// Who gives a way up, to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::watch) enum GivenUp {
    ByAccount,
    /// And by all others of the backend.
    ByBackend,
}

impl Confidence {
    /// Whether it may be used now.
    pub(in crate::watch) fn holds(&self, backend: &Reliability) -> bool {
        self.is_believed() && backend.holds()
    }

    /// Whether it may be relied on, at least between two checks: it has told something to any account
    /// of the backend, and has kept nothing from this one since.
    pub(in crate::watch) fn is_proven(&self, backend: &Reliability) -> bool {
        self.missed.is_none() && backend.0.lock().proven
    }

    /// It told of something by itself.
    pub(in crate::watch) fn told(&mut self, backend: &Reliability) {
        (self.missed, self.refused, self.lost) = (None, 0, 0);
        let mut record = backend.0.lock();
        record.proven = true;
        for votes in [Evidence::doubt, Evidence::missed, Evidence::refused] {
            votes(&mut record).0.clear();
        }
    }

    /// The backend took the command, and did not undo it soon.
    pub(in crate::watch) fn accepted(&mut self, backend: &Reliability) {
        (self.refused, self.lost) = (0, 0);
        backend.0.lock().refused.0.clear();
    }

    /// A look found what it had not told; a second such look counts if it is at least `apart` from
    /// the first.
    pub(in crate::watch) fn missed(
        &mut self,
        backend: &Reliability,
        account: &Account,
        apart: Duration,
    ) -> Option<GivenUp> {
        let mut record = backend.0.lock();
        if record.doubt.add(account) {
            record.proven = false;
        }
        drop(record);
        let first = *self.missed.get_or_insert_with(Instant::now);
        let caught = first.elapsed() >= apart;
        (caught && self.give_up(DISTRUST)).then(|| backend.given_up(account, Evidence::missed))
    }

    /// The backend refused a command that it lists, or undid it soon.
    pub(in crate::watch) fn refused(
        &mut self,
        backend: &Reliability,
        account: &Account,
    ) -> Option<GivenUp> {
        self.refused += 1;
        let caught = self.refused >= REFUSALS;
        (caught && self.give_up(DISTRUST)).then(|| backend.given_up(account, Evidence::refused))
    }

    /// The connection was lost as soon as this way was used on it, which may have other reasons, too.
    /// Whether this account gives it up.
    pub(in crate::watch) fn lost(&mut self) -> bool {
        self.lost += 1;
        self.lost >= LOSSES && self.give_up(LOST_DISTRUST)
    }

    fn is_believed(&self) -> bool {
        self.given_up_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Whether it was not given up before.
    fn give_up(&mut self, time: Duration) -> bool {
        let begins = self.is_believed();
        if begins {
            // After that it begins anew.
            *self = Self { given_up_until: Some(Instant::now() + time), ..Self::default() };
        }
        begins
    }
}

impl Reliability {
    fn holds(&self) -> bool {
        self.0.lock().distrusted_until.is_none_or(|until| Instant::now() >= until)
    }

    fn given_up(&self, account: &Account, why: fn(&mut Evidence) -> &mut Quorum) -> GivenUp {
        let mut record = self.0.lock();
        if !why(&mut record).add(account) {
            return GivenUp::ByAccount;
        }
        let distrusted_until = Some(Instant::now() + DISTRUST);
        *record = Evidence { distrusted_until, ..Evidence::default() };
        GivenUp::ByBackend
    }
}

impl Evidence {
    fn doubt(&mut self) -> &mut Quorum {
        &mut self.doubt
    }

    fn missed(&mut self) -> &mut Quorum {
        &mut self.missed
    }

    fn refused(&mut self) -> &mut Quorum {
        &mut self.refused
    }
}

impl Quorum {
    /// Whether there are enough with this one.
    fn add(&mut self, account: &Account) -> bool {
        if self.0.len() < AGREE && !self.0.contains(account) {
            self.0.push(account.clone());
        }
        self.0.len() >= AGREE
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const APART: Duration = Duration::from_mins(15);

    fn account(number: usize) -> Account {
        Account::from_login(&format!("user{number}"))
    }

    #[tokio::test(start_paused = true)]
    async fn two_misses_apart_with_no_announcement_between_end_an_accounts_trust_for_a_day() {
        let (backend, alice) = (Reliability::default(), account(0));
        let mut way = Confidence::default();
        let missed = |way: &mut Confidence| way.missed(&backend, &alice, APART);
        assert_eq!([missed(&mut way), missed(&mut way)], [None, None], "two at once are one");
        advance(APART).await;
        assert!(!way.is_proven(&backend));
        way.told(&backend);
        assert!(way.is_proven(&backend));
        assert_eq!(missed(&mut way), None);
        assert!(way.holds(&backend) && !way.is_proven(&backend));
        assert!(Confidence::default().is_proven(&backend), "others rely on it still");
        advance(APART).await;
        assert_eq!(missed(&mut way), Some(GivenUp::ByAccount));
        assert_eq!(missed(&mut way), None, "said once");
        assert!(!way.holds(&backend) && Confidence::default().holds(&backend));
        advance(DISTRUST - Duration::from_secs(1)).await;
        assert!(!way.holds(&backend));
        advance(Duration::from_secs(1)).await;
        assert!(way.holds(&backend));
    }

    #[tokio::test(start_paused = true)]
    async fn two_refusals_in_a_row_end_an_accounts_trust() {
        let (backend, alice) = (Reliability::default(), account(0));
        let mut way = Confidence::default();
        assert_eq!(way.refused(&backend, &alice), None);
        way.accepted(&backend);
        assert_eq!(way.refused(&backend, &alice), None);
        way.told(&backend);
        assert_eq!(way.refused(&backend, &alice), None);
        assert!(way.holds(&backend));
        assert_eq!(way.refused(&backend, &alice), Some(GivenUp::ByAccount));
        assert_eq!(way.refused(&backend, &alice), None, "said once");
        assert!(!way.holds(&backend) && Confidence::default().holds(&backend));
    }

    #[tokio::test(start_paused = true)]
    async fn several_accounts_that_agree_end_a_backends_trust_for_a_day() {
        let backend = Reliability::default();
        let gives_up = |number: usize| {
            let mut way = Confidence::default();
            way.refused(&backend, &account(number));
            way.refused(&backend, &account(number))
        };
        for _ in 0..9 {
            assert_eq!(gives_up(0), Some(GivenUp::ByAccount), "one account is one");
        }
        assert_eq!(gives_up(1), Some(GivenUp::ByAccount));
        // It works with another.
        Confidence::default().accepted(&backend);
        assert_eq!([0, 1].map(gives_up), [Some(GivenUp::ByAccount); 2]);
        assert!(Confidence::default().holds(&backend));
        assert_eq!(gives_up(2), Some(GivenUp::ByBackend));
        assert!(!Confidence::default().holds(&backend));
        advance(DISTRUST).await;
        assert!(Confidence::default().holds(&backend));
        assert_eq!(gives_up(2), Some(GivenUp::ByAccount), "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_several_accounts_missed_is_not_relied_on_by_others() {
        let backend = Reliability::default();
        Confidence::default().told(&backend);
        for number in 0..AGREE {
            assert!(Confidence::default().is_proven(&backend));
            Confidence::default().missed(&backend, &account(number), APART);
        }
        assert!(
            !Confidence::default().is_proven(&backend) && Confidence::default().holds(&backend)
        );
        Confidence::default().told(&backend);
        assert!(Confidence::default().is_proven(&backend));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_lost_in_a_row_end_an_accounts_trust_for_an_hour_and_no_others() {
        let backend = Reliability::default();
        let mut way = Confidence::default();
        let mut lost = |accepted: bool| {
            if accepted {
                way.accepted(&backend);
            }
            (way.lost(), way.holds(&backend))
        };
        assert_eq!([(); 4].map(|()| lost(false)), [(false, true); 4]);
        assert_eq!([true, false, false, false].map(&mut lost), [(false, true); 4]);
        assert_eq!(lost(false), (true, false));
        advance(LOST_DISTRUST).await;
        assert_eq!(lost(false), (false, true));
        assert!(Confidence::default().holds(&backend));
    }
}
