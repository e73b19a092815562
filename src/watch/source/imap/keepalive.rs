//! How long a connection lasts on which nothing is said. Networks and servers end quiet connections,
//! some after less than a minute; what that time is shows when it happens twice.
//!
//! An account learns for itself, as its server may treat it unlike others. What several accounts have
//! learnt is taken over by those that begin, so that of thousands a few are cut and not all. And since
//! a coincidence may look like a lesson, each is forgotten after about a day: then it shows again, or
//! does not.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::reliability::AGREE;
use crate::config;
use crate::model::Account;

/// For how long a lesson holds; half of it is chance, for accounts not to forget together.
const HOLDS: Duration = Duration::from_hours(24);

/// After a question that was not answered the time is learnt to be this at the least: it may have been
/// the server that was slow, and questions do not make it quicker.
const LEAST_UNANSWERED: Duration = Duration::from_secs(30);

/// Times are alike that differ by less, or by less than an eighth.
const ALIKE: Duration = Duration::from_secs(2);

/// Connections that are lost in one moment, and more of them than can have begun in one, were not lost
/// for being quiet.
const MOMENT: Duration = Duration::from_secs(1);

/// Connections in a row that ended as soon as before, although they were not quiet for so long.
const IN_VAIN: u32 = 2;

/// What one account knows. What few accounts have learnt is boxed.
#[derive(Debug, Default)]
pub(in crate::watch) struct Keepalive {
    lesson: Option<Box<Lesson>>,
    /// For how long the last connection was quiet when it ended.
    last: Option<Duration>,
    in_vain: u32,
    /// Until then nothing is learnt, as it was no use.
    useless_until: Option<Instant>,
    /// A connection has been lost.
    experienced: bool,
}

/// What several accounts of a backend have learnt.
#[derive(Debug, Default)]
pub(in crate::watch) struct SharedKeepalive(Mutex<SharedEvidence>);

#[derive(Debug, Default)]
struct SharedEvidence {
    votes: Vec<(Account, Duration)>,
    lesson: Option<Lesson>,
    /// Connections that were lost within [`MOMENT`] since then.
    moment: Option<(Instant, usize)>,
}

#[derive(Clone, Copy, Debug)]
struct Lesson {
    /// After so long the connection is used, lest it end.
    renewal: Duration,
    until: Instant,
    /// The age of the connection whose end taught it.
    age: Duration,
}

/// The end of a connection that nobody wanted to end.
#[derive(Clone, Copy, Debug)]
pub(in crate::watch) struct ConnectionLoss {
    pub(in crate::watch) age: Duration,
    /// For how long nothing had been said, until it ended or until a question was not answered.
    pub(in crate::watch) quiet: Duration,
    pub(in crate::watch) unanswered: bool,
}

/// A connection that has watched for so long was no failure, and the pause before the next is short
/// beside it. No connection is used sooner than after this time only for it to last.
pub(in crate::watch) fn least(config: &config::WatchConfig) -> Duration {
    config.retry_min.saturating_mul(5).min(Duration::from_secs(60))
}

impl Keepalive {
    /// How long a connection may be quiet, if that is known.
    pub(in crate::watch) fn renewal(&self) -> Option<Duration> {
        self.lesson.as_ref().filter(|lesson| lesson.holds()).map(|lesson| lesson.renewal)
    }

    /// A connection begins. An account that has lost none yet takes over what others know. `chance` is
    /// 0 to 1.
    pub(in crate::watch) fn begin(&mut self, shared: &SharedKeepalive, chance: f64) {
        if !self.experienced
            && self.renewal().is_none()
            && let Some(renewal) = shared.renewal()
        {
            self.lesson = Some(Box::new(Lesson::new(renewal, Duration::ZERO, chance)));
        }
    }

    /// A connection was lost while it watched. Returns how long one may be quiet from now on, if that is
    /// another time. `least` is the shortest such time, `chance` 0 to 1.
    pub(in crate::watch) fn lost(
        &mut self,
        loss: ConnectionLoss,
        account: &Account,
        shared: &SharedKeepalive,
        least: Duration,
        chance: f64,
    ) -> Option<Duration> {
        self.experienced = true;
        let known = self.lesson.as_deref().copied().filter(Lesson::holds);
        if let Some(lesson) = known
            && loss.age > lesson.renewal
            && loss.quiet < lesson.renewal
        {
            // It was used in time, and ended all the same.
            let no_later = loss.age <= lesson.age + lesson.age / 4;
            self.in_vain = if no_later { self.in_vain + 1 } else { 0 };
            if self.in_vain >= IN_VAIN {
                *self = Self {
                    useless_until: Some(Instant::now() + HOLDS),
                    experienced: true,
                    ..Self::default()
                };
                return None;
            }
        }
        let useless = self.useless_until.is_some_and(|until| Instant::now() < until);
        if useless || loss.quiet < least {
            self.last = None;
            return None;
        }
        let agreed = shared.renewal().filter(|renewal| known.is_none() && *renewal < loss.quiet);
        let renewal = match self.last.replace(loss.quiet) {
            _ if loss.unanswered => (loss.quiet / 2).max(LEAST_UNANSWERED),
            Some(last) if alike(last, loss.quiet) => loss.quiet / 4 * 3,
            _ => agreed?,
        };
        let renewal = renewal.max(least);
        if known.is_some_and(|known| known.renewal <= renewal) {
            return None;
        }
        self.lesson = Some(Box::new(Lesson::new(renewal, loss.age, chance)));
        self.in_vain = 0;
        shared.learnt(account, renewal);
        Some(renewal)
    }
}

impl SharedKeepalive {
    /// A connection was lost. Whether so many were at the same moment that it was the backend that went,
    /// where a second sees `logins` of them begin.
    pub(in crate::watch) fn lost(&self, logins: usize) -> bool {
        let mut agreed = self.0.lock();
        let now = Instant::now();
        let (since, count) = match agreed.moment {
            Some((since, count)) if now - since < MOMENT => (since, count + 1),
            _ => (now, 1),
        };
        agreed.moment = Some((since, count));
        count > logins.saturating_mul(2)
    }

    fn renewal(&self) -> Option<Duration> {
        self.0.lock().lesson.filter(Lesson::holds).map(|lesson| lesson.renewal)
    }

    fn learnt(&self, account: &Account, renewal: Duration) {
        let mut agreed = self.0.lock();
        agreed.votes.retain(|(of, _)| of != account);
        if agreed.votes.len() == AGREE {
            agreed.votes.remove(0);
        }
        agreed.votes.push((account.clone(), renewal));
        // Who needs less finds out.
        let longest = agreed.votes.iter().map(|(_, renewal)| *renewal).max();
        if agreed.votes.len() == AGREE
            && let Some(renewal) = longest
        {
            agreed.lesson = Some(Lesson::new(renewal, Duration::ZERO, 1.0));
        }
    }
}

impl Lesson {
    fn new(renewal: Duration, age: Duration, chance: f64) -> Self {
        let until = Instant::now() + HOLDS.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0);
        Self { renewal, until, age }
    }

    fn holds(&self) -> bool {
        Instant::now() < self.until
    }
}

fn alike(one: Duration, other: Duration) -> bool {
    one.abs_diff(other) <= ALIKE.max(one / 8)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LEAST: Duration = Duration::from_secs(5);

    /// One account, and what it shares with others.
    struct Scene {
        lasting: Keepalive,
        shared: SharedKeepalive,
    }

    impl Scene {
        fn new() -> Self {
            Self { lasting: Keepalive::default(), shared: SharedKeepalive::default() }
        }

        /// A connection of this age ends that was quiet for so long, in seconds.
        fn cut(&mut self, age: u64, quiet: u64) -> Option<u64> {
            self.lost("alice", age, quiet, false)
        }

        fn lost(&mut self, of: &str, age: u64, quiet: u64, unanswered: bool) -> Option<u64> {
            let [age, quiet] = [age, quiet].map(Duration::from_secs);
            let (loss, of) = (ConnectionLoss { age, quiet, unanswered }, Account::from_login(of));
            let learnt = self.lasting.lost(loss, &of, &self.shared, LEAST, 1.0);
            learnt.map(|renewal| renewal.as_secs())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_cuts_alike_teach_and_others_do_not() {
        let mut scene = Scene::new();
        assert_eq!([(400, 50), (90, 20), (300, 290)].map(|(a, q)| scene.cut(a, q)), [None; 3]);
        assert_eq!([(50, 50), (70, 3), (50, 50)].map(|(a, q)| scene.cut(a, q)), [None; 3]);
        assert_eq!(scene.cut(51, 51), Some(38));
        assert_eq!(scene.lasting.renewal().unwrap().as_secs(), 38);
        // Less, if it is to be less; and not below the least.
        assert_eq!([(20, 20), (20, 20)].map(|(a, q)| scene.cut(a, q)), [None, Some(15)]);
        assert_eq!([(6, 6), (6, 6)].map(|(a, q)| scene.cut(a, q)), [None, Some(5)]);
        advance(HOLDS).await;
        assert_eq!(scene.lasting.renewal(), None, "it has to show again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_all_connections_at_an_age_is_not_kept_off_by_using_them() {
        let mut scene = Scene::new();
        assert_eq!([(60, 60), (60, 60)].map(|(a, q)| scene.cut(a, q)), [None, Some(45)]);
        assert_eq!([(60, 15), (60, 15)].map(|(a, q)| scene.cut(a, q)), [None, None]);
        assert_eq!(scene.lasting.renewal(), None);
        assert_eq!([(60, 60), (60, 60)].map(|(a, q)| scene.cut(a, q)), [None, None]);
        advance(HOLDS).await;
        assert_eq!([(60, 60), (60, 60)].map(|(a, q)| scene.cut(a, q)), [None, Some(45)]);
        // Now and then one is lost for other reasons.
        assert_eq!([(60, 15), (9000, 3), (60, 7)].map(|(a, q)| scene.cut(a, q)), [None; 3]);
        assert!(scene.lasting.renewal().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_is_not_answered_teaches_half_and_never_very_little() {
        let mut scene = Scene::new();
        let learnt = [540, 270, 135, 67, 33].map(|quiet| scene.lost("alice", 600, quiet, true));
        assert_eq!(learnt, [Some(270), Some(135), Some(67), Some(33), Some(30)]);
        assert_eq!(scene.lost("alice", 600, 30, true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_are_lost_all_at_once_are_told_from_others() {
        let shared = SharedKeepalive::default();
        assert_eq!([(); 20].map(|()| shared.lost(10)), [false; 20]);
        assert!(shared.lost(10) && shared.lost(10));
        advance(MOMENT).await;
        assert!(!shared.lost(10));
    }

    #[tokio::test(start_paused = true)]
    async fn what_several_accounts_have_learnt_others_begin_with() {
        let mut scene = Scene::new();
        for (of, begins_with) in
            [("alice", None), ("bob", None), ("carol", None), ("dave", Some(37))]
        {
            scene.lasting = Keepalive::default();
            scene.lasting.begin(&scene.shared, 1.0);
            let renewal = scene.lasting.renewal().map(|renewal| renewal.as_secs());
            assert_eq!(renewal, begins_with, "{of}");
            if renewal.is_none() {
                assert_eq!([(); 2].map(|()| scene.lost(of, 50, 50, false)), [None, Some(37)]);
            }
        }
        // One that watches already is cut once.
        scene.lasting = Keepalive::default();
        assert_eq!(scene.cut(400, 50), Some(37));
    }
}
