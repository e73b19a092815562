//! The time in which phones could register, and whether the time of day can be believed.
//!
//! How long a device has been silent is not told by the time of day, which may be set and which goes on
//! while mailchime is away. So the database holds a time of its own, the time of service: it began as the
//! time of day, and goes on only while a program serves phones and writes here ([`Store::count_service`]).
//! Between two such writes the monotonic clock counts.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use sqlx::Row;
use tokio::time::Instant;

use crate::metrics::Call;
use crate::model::Timestamp;

use super::sql::{self, Shaped, Upsert};
use super::{Store, StoreError};

/// How often [`Store::count_service`] is to be called.
pub const TICK: Duration = Duration::from_mins(1);

/// A gap of this length is one between two ticks, or a restart.
const GAP: Duration = Duration::from_mins(2);

/// A time of day that is another one than was to be expected is believed when it has gone on for so long.
const DOUBT: Duration = Duration::from_mins(10);
/// What is put down to clocks as they are.
const TOLERATED: Duration = Duration::from_secs(30);

/// What a program knows that serves phones; nothing before it has read the database.
#[derive(Default)]
pub(super) struct Service(Mutex<Option<KnownTimes>>);

/// What was known at some moments.
#[derive(Clone, Debug)]
struct KnownTimes {
    served: Timestamp,
    /// When that was.
    at: Instant,
    /// Whether phones could register since.
    open: bool,
    belief: Belief,
}

/// The time of day as it was last believed.
#[derive(Clone, Debug)]
struct Belief {
    time: Timestamp,
    at: Instant,
    /// Another time of day that was seen since, first at this moment.
    other: Option<(Timestamp, Instant)>,
}

static COUNT: Shaped = Shaped::new(|dialect| {
    dialect.upsert(&Upsert {
        table: "service",
        columns: "id, served, seen_at",
        rows: "values (1, $1, $2)",
        key: "id",
        set: &[
            ("seen_at", "new.seen_at"),
            ("served", "case when new.served > old.served then new.served else old.served end"),
        ],
        returning: "",
    })
});

impl Store {
    /// The same for a program that serves phones. Others take the time of day for that of service.
    pub async fn serving(self) -> Self {
        let store = Self { service: Some(Default::default()), ..self.asking_alone() };
        // A server that is not there yet is asked before the first other call.
        if store.up_to_date.initialized()
            && let Err(error) =
                store.limited(async { store.named(store.know_service().await) }).await
        {
            tracing::warn!(
                target: "mailchime::store::service_time_unreadable",
                %error,
                "could not read the time of service from the database yet; mailchime removes no \
                 device until it can"
            );
        }
        store
    }

    /// The time of service at this time of day. Before the database could be read it is 1970, at which
    /// every device lives.
    pub fn served(&self, now: Timestamp) -> Timestamp {
        match &self.service {
            None => now,
            Some(service) => {
                let known = service.known();
                known.as_ref().map(|known| known.served(Instant::now())).unwrap_or_default()
            }
        }
    }

    /// The time by which is judged what is not to be kept any longer: `now`, or an earlier one while the
    /// clock has just jumped ahead, or is ahead of what the database says by more than a restart takes.
    pub fn believed(&self, now: Timestamp) -> Timestamp {
        match &self.service {
            None => now,
            Some(service) => {
                let known = service.known();
                known
                    .as_ref()
                    .map_or(Timestamp::default(), |known| known.belief.judge(now, Instant::now()))
            }
        }
    }

    /// Counts the time since the last call as time of service, if phones could register (`open`). To be
    /// called every [`TICK`] by a program that [serves](Store::serving).
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn count_service(&self, now: Timestamp, open: bool) -> Result<(), StoreError> {
        let Some(service) = &self.service else { return Ok(()) };
        let seen = Instant::now();
        let row = self.read(Call::Service, self.service_row()).await?;
        let (served, seen_at) = {
            let mut known = service.known();
            let Some(known) = &mut *known else { return Ok(()) };
            known.tick(now, seen, row.map(|(written, _)| written), open);
            (known.served, known.belief.judge(now, seen))
        };
        if !open {
            return Ok(());
        }
        self.write(Call::Service, || async {
            let mut transaction = self.begin().await?;
            // Nodes agree on the latest.
            sql::query(COUNT.of(transaction.dialect()))
                .bind(served.0)
                .bind(seen_at.0)
                .execute_in(&mut transaction)
                .await?;
            transaction.commit().await
        })
        .await
    }

    /// The time of service as it was last written, and the time of day then.
    async fn service_row(&self) -> sqlx::Result<Option<(Timestamp, Timestamp)>> {
        let row = sql::query("select served, seen_at from service where id = 1")
            .fetch_optional_in(&mut self.read_once().await?)
            .await?;
        // One that cannot be read is none.
        Ok(row.and_then(|row| {
            Some((Timestamp(row.try_get("served").ok()?), Timestamp(row.try_get("seen_at").ok()?)))
        }))
    }

    /// Reads what is to be known before any device is judged or registered.
    pub(super) async fn know_service(&self) -> sqlx::Result<()> {
        let Some(service) = &self.service else { return Ok(()) };
        if service.known().is_some() {
            return Ok(());
        }
        let row = self.service_row().await?;
        let newest = sql::query("select max(heard_at) as newest from subscription");
        let newest = newest.fetch_one_in(&mut self.read_once().await?).await?;
        let newest = newest.try_get::<Option<i64>, _>("newest").ok().flatten().map(Timestamp);
        let (now, at) = (Timestamp::now(), Instant::now());
        // Without a row it begins anew, behind no device.
        let known = KnownTimes::begin(now, at, row.or(newest.map(|newest| (newest, newest))));
        if let Some((_, last)) = row
            && now.0.abs_diff(last.0) > GAP.as_millis().try_into().unwrap_or(u64::MAX)
        {
            let seconds = now.0.saturating_sub(last.0) / 1000;
            tracing::info!(
                target: "mailchime::store::service_gap",
                seconds,
                "by the clock mailchime has not served for this time; it does not count against \
                 devices, and mailchime does not trust the clock for some minutes"
            );
        }
        service.known().get_or_insert(known);
        Ok(())
    }
}

impl Service {
    fn known(&self) -> MutexGuard<'_, Option<KnownTimes>> {
        self.0.lock()
    }
}

impl KnownTimes {
    fn begin(now: Timestamp, at: Instant, row: Option<(Timestamp, Timestamp)>) -> Self {
        // The first start of all: any time will do, as nothing is older.
        let (written, last) = row.unwrap_or((now, now));
        let belief = Belief { time: last, at, other: None };
        // Since then another program has served, or this one before a restart. Only now is that counted:
        // the clocks of programs that serve beside each other differ, and with each tick the difference
        // would count once more.
        let gap = u64::try_from(now.0.saturating_sub(last.0)).ok().map(Duration::from_millis);
        let gap = gap.filter(|gap| *gap <= GAP && belief.is_near(now, at));
        let served = written.plus(gap.unwrap_or_default());
        let mut known = Self { served, at, open: false, belief };
        known.tick(now, at, None, true);
        known
    }

    fn served(&self, now: Instant) -> Timestamp {
        match self.open {
            // If nothing could be written for longer, phones could not register either.
            true => self.served.plus(now.saturating_duration_since(self.at).min(GAP)),
            false => self.served,
        }
    }

    /// It is this time of day, and the database has this time of service.
    fn tick(&mut self, now: Timestamp, at: Instant, written: Option<Timestamp>, open: bool) {
        let served = self.served(at).max(written.unwrap_or_default());
        self.belief.see(now, at);
        (self.served, self.at, self.open) = (served, at, open);
    }
}

impl Belief {
    /// What time it should be.
    fn expected(&self, at: Instant) -> Timestamp {
        self.time.plus(at.saturating_duration_since(self.at))
    }

    fn is_near(&self, now: Timestamp, at: Instant) -> bool {
        let expected = self.expected(at);
        // At the start it is what the database says, which may have been written a moment before.
        let late = if self.at == at { GAP } else { TOLERATED };
        expected.minus(TOLERATED) <= now && now <= expected.plus(late)
    }

    fn see(&mut self, now: Timestamp, at: Instant) {
        let goes_on = |(time, since): &(Timestamp, Instant)| {
            let expected = time.plus(at.saturating_duration_since(*since));
            now.0.abs_diff(expected.0) <= u64::try_from(TOLERATED.as_millis()).unwrap_or(u64::MAX)
        };
        match self.other.filter(goes_on) {
            _ if self.is_near(now, at) => *self = Self { time: now, at, other: None },
            Some((_, since)) if at.saturating_duration_since(since) >= DOUBT => {
                *self = Self { time: now, at, other: None };
            }
            Some(_) => {}
            None => self.other = Some((now, at)),
        }
    }

    fn judge(&self, now: Timestamp, at: Instant) -> Timestamp {
        if self.is_near(now, at) { now } else { now.min(self.expected(at)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const START: Timestamp = Timestamp(1_800_000_000_000);

    /// A program that ticks, and the row that it writes.
    struct Program {
        known: KnownTimes,
        row: Option<(Timestamp, Timestamp)>,
        at: Instant,
    }

    impl Program {
        fn start(now: Timestamp, at: Instant, row: Option<(Timestamp, Timestamp)>) -> Self {
            let known = KnownTimes::begin(now, at, row);
            Self { row: Some((known.served, now)), known, at }
        }

        /// Ticks for so long, with the time of day being this at the beginning.
        fn serve(&mut self, mut now: Timestamp, long: Duration) -> Timestamp {
            let end = self.at + long;
            while self.at < end {
                (self.at, now) = (self.at + TICK, now.plus(TICK));
                self.known.tick(now, self.at, self.row.map(|(written, _)| written), true);
                self.row = Some((self.known.served, self.known.belief.judge(now, self.at)));
            }
            now
        }
    }

    #[test]
    fn only_time_in_which_phones_could_register_counts() {
        let mut program = Program::start(START, Instant::now(), None);
        assert_eq!(program.known.served, START);
        let now = program.serve(START, DAY);
        assert_eq!(program.known.served, START.plus(DAY));

        // Off for eleven days, and the monotonic clock begins anew.
        let now = now.plus(11 * DAY);
        let mut program = Program::start(now, Instant::now(), program.row);
        assert_eq!(program.known.served, START.plus(DAY));
        let now = program.serve(now, DAY);
        assert_eq!(program.known.served, START.plus(2 * DAY));

        // A restart counts; nobody could do that without end.
        let now = now.plus(TICK);
        let mut program = Program::start(now, Instant::now(), program.row);
        assert_eq!(program.known.served, START.plus(2 * DAY + TICK));

        // The clock is set, ahead or back.
        let served = program.known.served;
        for jumped in [now.plus(20 * DAY), now.minus(20 * DAY), Timestamp(0)] {
            program.serve(jumped, TICK);
        }
        assert_eq!(program.known.served, served.plus(3 * TICK));

        // The database is away, or the certificate has ended.
        let later = program.at + DAY;
        assert_eq!(program.known.served(later), program.known.served.plus(GAP));
        program.known.tick(now, program.at, program.row.map(|row| row.0), false);
        assert_eq!(program.known.served(later), program.known.served);
    }

    #[test]
    fn nodes_agree_to_within_a_moment() {
        let start = Instant::now();
        let mut one = Program::start(START, start, None);
        one.serve(START, DAY);
        let second = Duration::from_secs(1);
        let (now, at) = (START.plus(DAY + 45 * second), start + DAY + 45 * second);
        let other = Program::start(now, at, one.row);
        assert_eq!(other.known.served(at + second), one.known.served(at + second));
        assert_eq!(other.known.served, now);
    }

    #[test]
    fn nodes_whose_clocks_differ_count_no_faster_than_one() {
        let (start, behind) = (Instant::now(), Duration::from_secs(50));
        let mut one = Program::start(START, start, None);
        let mut other = Program::start(START.minus(behind), start, one.row);
        // In turn, half a tick apart, for a day.
        let mut now = START;
        for _ in 0..24 * 60 {
            other.row = one.row;
            other.serve(now.minus(behind), TICK);
            one.row = other.row;
            now = one.serve(now, TICK);
        }
        let counted = one.known.served.0 - START.0;
        let day = i64::try_from(DAY.as_millis()).unwrap();
        assert!((day..=day + 2 * 60_000).contains(&counted), "{counted} ms in a day");
    }

    #[test]
    fn a_clock_that_has_just_jumped_ahead_is_not_believed_until_it_has_gone_on_for_a_while() {
        let mut program = Program::start(START, Instant::now(), None);
        let now = program.serve(START, DAY);
        let judge = |program: &Program, now| program.known.belief.judge(now, program.at);
        assert_eq!(judge(&program, now), now);
        // Even if it has not been looked at since.
        let ahead = now.plus(20 * DAY);
        assert_eq!(judge(&program, ahead), now);
        let ahead = program.serve(ahead, DOUBT);
        assert_eq!(judge(&program, ahead), now.plus(DOUBT));
        // And set back.
        let now = program.serve(now.plus(DOUBT), TICK);
        assert_eq!(judge(&program, now), now);
        let ahead = program.serve(ahead, DOUBT + TICK);
        assert_eq!(judge(&program, ahead), ahead, "so it is");

        // The same at a start: the machine was off, or its clock is wrong.
        let later = ahead.plus(20 * DAY);
        let mut program = Program::start(later, Instant::now(), program.row);
        assert_eq!(judge(&program, later), ahead);
        let later = program.serve(later, DOUBT + TICK);
        assert_eq!(judge(&program, later), later);
        // By a clock that is behind nothing has ended that has not.
        let program = Program::start(Timestamp(0), Instant::now(), program.row);
        assert_eq!(judge(&program, Timestamp(0)), Timestamp(0));
    }
}
