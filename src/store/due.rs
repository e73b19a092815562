//! Mailboxes that are due: somebody has said that there is news, and nobody has looked since. It is on disk
//! before the source has an answer.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::Row;
use sqlx::any::AnyRow;

use super::nodes::{NEWS, of_event};
use super::records::account;
use super::sql::statement::Statement;
use super::sql::work::Work;
use super::sql::{self, SelectBy, UpdateFrom, Upsert, rows};
use super::{Store, StoreError};
use crate::metrics::Call;
use crate::model::{Account, Mailbox, Snapshot, Timestamp};

/// Word that there is news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueMark {
    /// Whose news it is.
    pub account: Account,
    /// `None`: of all mailboxes of the account.
    pub mailbox: Option<Mailbox>,
    /// The state that the source has told, where it says enough to spare a look.
    pub state: Option<Snapshot>,
    /// The source says that flags have changed that phones show.
    pub shown_flags: bool,
    /// The mailbox becomes due. Else it is only asked whether anybody has registered for it.
    pub is_due: bool,
    /// Another node watches the account, and gets word.
    pub for_another_node: bool,
}

/// A mailbox that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueMailbox {
    /// Its name.
    pub mailbox: Mailbox,
    /// How often other nodes have marked it since it was last looked at.
    pub marks: i64,
    /// The state that those have been told, if it is the same for all marks.
    pub state: Option<Snapshot>,
    /// They were told with it that flags have changed that phones show.
    pub shown_flags: bool,
}

/// A mailbox that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookedAt {
    /// Whose it is.
    pub account: Account,
    /// Its name.
    pub mailbox: Mailbox,
    /// [`DueMailbox::marks`], as they were read before the look.
    pub marks: i64,
}

/// Behind the numbers of a state.
const SHOWN: &str = " shown";

/// By account and mailbox, so that two batches meet their rows in the same order.
type DueRows<'a> = BTreeMap<NewsKey<'a>, (bool, Option<String>)>;

/// An account, and the mailbox if it is known.
type NewsKey<'a> = (&'a str, Option<&'a str>);

/// By account: the mailboxes that somebody has registered for.
type RegisteredMailboxes = HashMap<String, HashSet<Mailbox>>;

/// A column is set before those that it is made from: some databases see what the statement has set.
const SET: &[(&str, &str)] = &[
    (
        "due_state",
        "case when v.others = 0 then mailbox.due_state \
         when mailbox.due_marks = 0 or mailbox.due_state = v.state then v.state end",
    ),
    ("due_marks", "mailbox.due_marks + v.others"),
    ("due_since", "coalesce(mailbox.due_since, v.since)"),
];

/// What is due already changes by word of other nodes alone.
const MARK: UpdateFrom<'_> = UpdateFrom {
    table: "mailbox",
    columns: &["account", "mailbox", "state", "others", "since"],
    account: "account",
    joins: &[],
    on: "mailbox.account = v.a_id and mailbox.name = v.mailbox \
         and (mailbox.due_since is null or v.others = 1)",
    set: SET,
};

const MARK_ALL: UpdateFrom<'_> = UpdateFrom {
    on: "mailbox.account = v.a_id and (mailbox.due_since is null or v.others = 1)",
    ..MARK
};

const CLEAR: UpdateFrom<'_> = UpdateFrom {
    table: "mailbox",
    columns: &["account", "mailbox", "marks"],
    account: "account",
    joins: &[],
    on: "mailbox.account = v.a_id and mailbox.name = v.mailbox and mailbox.due_marks = v.marks",
    set: &[("due_state", "null"), ("due_marks", "0"), ("due_since", "null")],
};

/// What [`Store::mailboxes_of`] asks.
const REGISTERED: SelectBy<'_> = SelectBy {
    columns: &["account"],
    select: "a.name as account, m.name as mailbox",
    of: "join account a on a.name = v.account join mailbox m on m.account = a.id",
};

impl Store {
    /// Takes the marks of mailboxes away that were looked at, unless another node has marked them since, and
    /// then makes marks, all in one transaction. Returns for each mark whether somebody has registered for its
    /// mailbox. If so, all other nodes get word of an account that one of them watches. A call that fails is
    /// not to be repeated for what was looked at: the marks may be gone, and there may be new ones.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn mark_due(
        &self,
        looked_at: &[LookedAt],
        marks: &[DueMark],
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError> {
        let accounts: BTreeSet<&str> = marks.iter().map(|mark| mark.account.as_str()).collect();
        let due = due_rows(marks);
        let mut looked_at: Vec<_> = looked_at.iter().collect();
        // Of two looks at a mailbox the later one has seen more marks.
        looked_at.sort_by(|a, b| {
            let [one, other] = [a, b].map(|it| (&it.account, &it.mailbox, Reverse(it.marks)));
            one.cmp(&other)
        });
        looked_at.dedup_by(|a, b| (&a.account, &a.mailbox) == (&b.account, &b.mailbox));
        self.write(Call::News, || async {
            let mut transaction = self.begin().await?;
            let at_once = self.at_once(&mut transaction, &looked_at, &due, &accounts, now).await?;
            let registered = match at_once {
                Some(registered) => registered,
                None => {
                    clear(&mut transaction, &looked_at).await?;
                    mark(&mut transaction, &due, now).await?;
                    self.mailboxes_of(&mut transaction, &accounts).await?
                }
            };
            let known = |mark: &DueMark| {
                let mailboxes = registered.get(mark.account.as_str());
                mailboxes.is_some_and(|mailboxes| {
                    mark.mailbox.as_ref().is_none_or(|mailbox| mailboxes.contains(mailbox))
                })
            };
            let told = marks.iter().filter(|mark| mark.for_another_node && known(mark));
            let told: BTreeSet<&str> = told.map(|mark| mark.account.as_str()).collect();
            self.tell_all(&mut transaction, &told).await?;
            transaction.commit().await?;
            Ok(marks.iter().map(known).collect())
        })
        .await
    }

    /// What [`Self::mark_due`] changes and asks, in one statement, which spares trips to a server. `None` where that cannot be:
    /// where a mailbox is marked that was looked at, as no row may change twice; where there is too little or too much of
    /// something; and where the database has no such statement.
    async fn at_once(
        &self,
        work: &mut Work,
        looked_at: &[&LookedAt],
        marks: &DueRows<'_>,
        accounts: &BTreeSet<&str>,
        now: Timestamp,
    ) -> sqlx::Result<Option<RegisteredMailboxes>> {
        let counts = [looked_at.len(), marks.len(), accounts.len()];
        let is_apart = looked_at.iter().all(|looked_at| {
            let (account, mailbox) = (looked_at.account.as_str(), looked_at.mailbox.as_str());
            !marks.contains_key(&(account, Some(mailbox)))
        });
        let names_mailboxes = marks.keys().all(|(_, mailbox)| mailbox.is_some());
        if !is_apart
            || !names_mailboxes
            || counts.iter().any(|it| !(1..=sql::MOST_ROWS).contains(it))
        {
            return Ok(None);
        }
        let rows = counts.into_iter().max().unwrap_or_default();
        let Some(query) = sql::together(work, &[&CLEAR, &MARK], &REGISTERED, rows) else {
            return Ok(None);
        };
        let query = looked_at.iter().fold(query, |query, it| bind_cleared(query, it));
        let query = query.then(MARK.columns);
        let query = marks.iter().fold(query, |query, it| bind_marked(query, it, now));
        let query = query.then(REGISTERED.columns);
        let query = accounts.iter().fold(query, |query, account| query.bind(*account));
        let mut registered = RegisteredMailboxes::new();
        self.read_registered(work, query, &mut registered).await?;
        Ok(Some(registered))
    }

    /// The mailboxes for which somebody has registered, of those of these accounts that have any.
    async fn mailboxes_of(
        &self,
        work: &mut Work,
        accounts: &BTreeSet<&str>,
    ) -> sqlx::Result<RegisteredMailboxes> {
        let mut registered = RegisteredMailboxes::new();
        let accounts: Vec<_> = accounts.iter().collect();
        for accounts in accounts.chunks(sql::MOST_ROWS) {
            let query = sql::select_by(work, &REGISTERED, accounts.len());
            let query = accounts.iter().fold(query, |query, account| query.bind(**account));
            self.read_registered(work, query, &mut registered).await?;
        }
        Ok(registered)
    }

    async fn read_registered(
        &self,
        work: &mut Work,
        query: Statement<'_>,
        registered: &mut RegisteredMailboxes,
    ) -> sqlx::Result<()> {
        let read = |row: &AnyRow| {
            let mailbox: &str = row.try_get("mailbox")?;
            Ok((row.try_get::<String, _>("account")?, Mailbox::new(mailbox)))
        };
        for (account, mailbox) in rows::readable(work, &self.metrics, query, read).await?.rows {
            registered.entry(account).or_default().insert(mailbox);
        }
        Ok(())
    }

    /// Writes news of these accounts to all nodes but this one.
    async fn tell_all(&self, work: &mut Work, accounts: &BTreeSet<&str>) -> sqlx::Result<()> {
        let accounts: Vec<_> = accounts.iter().collect();
        let named = self.can_notify(work);
        let (what, mut told) = (of_event(named), 0);
        for accounts in accounts.chunks(sql::MOST_ROWS) {
            let text = |places: &str| {
                let rows = format!(
                    "select n.name, a.name, {what} from node n cross join account a \
                     where n.incarnation <> $1 and a.name in ({places}) order by n.name, a.name"
                );
                work.dialect().upsert(&Upsert { rows: &rows, ..NEWS })
            };
            let query = sql::with_list(work, 1, accounts.len(), text).bind(&*self.incarnation);
            let query = accounts.iter().fold(query, |query, account| query.bind(**account));
            told += query.execute_in(work).await?.rows_affected();
        }
        if told > 0 && named {
            self.notify_events_after(work, &accounts);
        }
        Ok(())
    }

    /// How many mailboxes are due, and since when the first one is. Those of accounts that are parked do not
    /// count.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn due_mailboxes(&self) -> Result<(u64, Option<Timestamp>), StoreError> {
        self.read(Call::Watched, async {
            let query = sql::query(
                "select count(*) as due, min(m.due_since) as since from mailbox m \
                 join account a on a.id = m.account \
                 where m.due_since is not null and a.parked is null",
            );
            let read = |row: &AnyRow| {
                let since: Option<i64> = row.try_get("since")?;
                Ok((row.try_get::<i64, _>("due")?.unsigned_abs(), since.map(Timestamp)))
            };
            Ok(self.rows(query, read).await?.pop().unwrap_or_default())
        })
        .await
    }

    /// The accounts with a mailbox that is due, each with since when: the one that has been for longest first.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn due_accounts(&self) -> Result<Vec<(Account, Timestamp)>, StoreError> {
        self.read(Call::Watched, async {
            let query = sql::query(
                "select a.name as account, min(m.due_since) as since from mailbox m \
                 join account a on a.id = m.account \
                 where m.due_since is not null group by a.name order by since, a.name",
            );
            self.rows(query, |row| Ok((account(row, "account")?, Timestamp(row.try_get("since")?))))
                .await
        })
        .await
    }
}

/// What becomes due: one row for each mailbox.
fn due_rows(marks: &[DueMark]) -> DueRows<'_> {
    let mut due = DueRows::new();
    for mark in marks.iter().filter(|mark| mark.is_due) {
        let DueMark { account, mailbox, state, shown_flags, for_another_node, .. } = mark;
        let state = state.map(|state| write_state(&state, *shown_flags));
        let name = (account.as_str(), mailbox.as_ref().map(|mailbox| mailbox.as_str()));
        let (others, so_far) =
            due.entry(name).or_insert_with(|| (*for_another_node, state.clone()));
        *others |= for_another_node;
        if *so_far != state {
            *so_far = None;
        }
    }
    due
}

async fn clear(work: &mut Work, looked_at: &[&LookedAt]) -> sqlx::Result<()> {
    for looked_at in looked_at.chunks(sql::MOST_ROWS) {
        let mut query = sql::update_from(work, &CLEAR, looked_at.len());
        for looked_at in looked_at {
            query = bind_cleared(query, looked_at);
        }
        query.execute_in(work).await?;
    }
    Ok(())
}

async fn mark(work: &mut Work, marks: &DueRows<'_>, now: Timestamp) -> sqlx::Result<()> {
    let (all, some): (Vec<_>, Vec<_>) =
        marks.iter().partition(|((_, mailbox), _)| mailbox.is_none());
    for (update, marks) in [(&MARK_ALL, all), (&MARK, some)] {
        for marks in marks.chunks(sql::MOST_ROWS) {
            let mut query = sql::update_from(work, update, marks.len());
            for marked in marks {
                query = bind_marked(query, *marked, now);
            }
            query.execute_in(work).await?;
        }
    }
    Ok(())
}

/// A row of [`CLEAR`].
fn bind_cleared<'q>(query: Statement<'q>, looked_at: &'q LookedAt) -> Statement<'q> {
    let LookedAt { account, mailbox, marks } = looked_at;
    query.bind(account.as_str()).bind(mailbox.as_str()).bind(*marks)
}

/// A row of [`MARK`].
fn bind_marked<'q>(
    query: Statement<'q>,
    ((account, mailbox), (others, state)): (&NewsKey<'q>, &'q (bool, Option<String>)),
    now: Timestamp,
) -> Statement<'q> {
    let query = query.bind(*account).bind(*mailbox).bind(state.as_deref());
    query.bind(i64::from(*others)).bind(now.0)
}

/// The mailbox of a row, if it is due.
pub(super) fn due_mailbox(row: &AnyRow) -> sqlx::Result<Option<DueMailbox>> {
    if row.try_get::<Option<i64>, _>("due_since")?.is_none() {
        return Ok(None);
    }
    let state: Option<&str> = row.try_get("due_state")?;
    let state = state.and_then(read_state);
    Ok(Some(DueMailbox {
        mailbox: Mailbox::new(row.try_get("mailbox")?),
        marks: row.try_get("due_marks")?,
        state: state.map(|(state, _)| state),
        shown_flags: state.is_some_and(|(_, shown_flags)| shown_flags),
    }))
}

/// Five numbers, `-` for one that is not known, and a word where flags have changed that phones show.
fn write_state(state: &Snapshot, shown_flags: bool) -> String {
    let Snapshot { uid_validity, uid_next, messages, unseen, highest_mod_seq } = *state;
    let numbers = [uid_validity, uid_next, messages, unseen, highest_mod_seq];
    let numbers = numbers.map(|it| it.map_or("-".to_owned(), |number| number.to_string()));
    numbers.join(" ") + if shown_flags { SHOWN } else { "" }
}

/// `None` for what this program has not written: the mailbox is looked at.
fn read_state(text: &str) -> Option<(Snapshot, bool)> {
    let (text, shown_flags) = match text.strip_suffix(SHOWN) {
        Some(text) => (text, true),
        None => (text, false),
    };
    let number = |word: &str| match word {
        "-" => Some(None),
        number => number.parse().ok().map(Some),
    };
    let numbers: Vec<Option<u64>> = text.split(' ').map(number).collect::<Option<_>>()?;
    let [uid_validity, uid_next, messages, unseen, highest_mod_seq] = numbers.try_into().ok()?;
    let state = Snapshot { uid_validity, uid_next, messages, unseen, highest_mod_seq };
    Some((state, shown_flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_another_text_is_none() {
        let state = Snapshot { uid_next: Some(u64::MAX), unseen: Some(0), ..Snapshot::default() };
        assert_eq!(write_state(&state, false), "- 18446744073709551615 - 0 -");
        assert_eq!(write_state(&state, true), "- 18446744073709551615 - 0 - shown");
        for shown in [false, true] {
            assert_eq!(read_state(&write_state(&state, shown)), Some((state, shown)));
        }
        for text in
            ["", "1 2 3 4", "1 2 3 4 5 6", "1 2 3 4 x", "1 2 3 4 18446744073709551616", "shown"]
        {
            assert_eq!(read_state(text), None, "{text}");
        }
    }
}
