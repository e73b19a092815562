//! Mailboxes that are due: somebody has said that there is news, and nobody has looked since. It is on disk
//! before the source has an answer.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::Row;
use sqlx::any::AnyRow;
use tokio::time::timeout;

use super::nodes::{NEWS, of_event};
use super::records::account;
use super::sql::statement::Statement;
use super::sql::work::{SIGN_OF_LIFE, Work};
use super::sql::{self, SelectBy, TableChange, UpdateFrom, Upsert, UpsertBy, rows};
use super::{Store, StoreError, error};
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
    /// What other nodes have marked since it was last looked at.
    pub marks: NodeMarks,
    /// The state that those have been told, if it is the same for all marks.
    pub state: Option<Snapshot>,
    /// They were told with it that flags have changed that phones show.
    pub shown_flags: bool,
}

/// Marks that other nodes have made at a mailbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeMarks {
    /// Since when the mailbox is due. It tells these marks from as many that are made once these are taken away.
    pub since: Timestamp,
    /// How many there are.
    pub count: i64,
}

/// A mailbox that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookedAt {
    /// Whose it is.
    pub account: Account,
    /// Its name.
    pub mailbox: Mailbox,
    /// [`DueMailbox::marks`], as they were read before the look; none where it was not due then.
    pub marks: NodeMarks,
}

/// Behind the numbers of a state.
const SHOWN: &str = " shown";

/// By account and mailbox, so that two batches meet their rows in the same order.
type DueRows<'a> = BTreeMap<NewsKey<'a>, (bool, Option<String>)>;

/// An account, and the mailbox if it is known.
type NewsKey<'a> = (&'a str, Option<&'a str>);

/// By account: the mailboxes that somebody has registered for.
#[derive(Default)]
struct RegisteredMailboxes(HashMap<String, HashSet<Mailbox>>);

/// What a call of [`Store::mark_due`] writes and asks.
struct Marking<'a> {
    /// Each once, sorted.
    looked_at: Vec<&'a LookedAt>,
    marks: &'a [DueMark],
    due: DueRows<'a>,
    accounts: BTreeSet<&'a str>,
    now: Timestamp,
}

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

/// What was marked since it was read stays. Of marks of this node the caller knows the order.
const CLEAR: UpdateFrom<'_> = UpdateFrom {
    table: "mailbox",
    columns: &["account", "mailbox", "marks", "since"],
    account: "account",
    joins: &[],
    on: "mailbox.account = v.a_id and mailbox.name = v.mailbox and mailbox.due_marks = v.marks \
         and (v.marks = 0 or mailbox.due_since = v.since)",
    set: &[("due_state", "null"), ("due_marks", "0"), ("due_since", "null")],
};

/// The columns of the rows of arguments of [`tell`].
const TELL: &[&str] = &["account", "mailbox", "incarnation"];

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
        let marking = Marking::of(looked_at, marks, now);
        self.write(Call::News, || async {
            let registered = match self.mark_alone(&marking).await? {
                Some(registered) => registered,
                None => self.mark_in_transaction(&marking).await?,
            };
            Ok(marks.iter().map(|mark| registered.have(mark)).collect())
        })
        .await
    }

    /// Marks by a statement without a transaction. Marks may be made twice, and late; what was looked at may not. `None` where
    /// it cannot be, has failed, or has not answered in time: a transaction marks then.
    async fn mark_alone(&self, marking: &Marking<'_>) -> sqlx::Result<Option<RegisteredMailboxes>> {
        if !marking.looked_at.is_empty() || !marking.fits_in_one_statement() {
            return Ok(None);
        }
        let Some(mut work) = self.connections.write_alone() else { return Ok(None) };
        let marked = async {
            let registered = self.mark_at_once(&mut work, marking).await?;
            work.commit().await?;
            Ok(registered)
        };
        match timeout(SIGN_OF_LIFE, marked).await {
            // The begin of a transaction finds out what is wrong with the server, if anything is.
            Ok(Err(error)) if error::is_temporary(&error) && !error::is_conflict(&error) => {
                Ok(None)
            }
            Ok(marked) => marked,
            Err(_) => Ok(None),
        }
    }

    async fn mark_in_transaction(
        &self,
        marking: &Marking<'_>,
    ) -> sqlx::Result<RegisteredMailboxes> {
        let Marking { looked_at, due, accounts, now, .. } = marking;
        let mut transaction = self.begin().await?;
        let at_once = match marking.fits_in_one_statement() {
            true => self.mark_at_once(&mut transaction, marking).await?,
            false => None,
        };
        let registered = match at_once {
            Some(registered) => registered,
            None => {
                clear(&mut transaction, looked_at).await?;
                mark(&mut transaction, due, *now).await?;
                let registered = self.mailboxes_of(&mut transaction, accounts).await?;
                self.tell_all(&mut transaction, &marking.told(&registered)).await?;
                registered
            }
        };
        transaction.commit().await?;
        Ok(registered)
    }

    /// Changes and asks all by one statement, which spares trips to a server. `None` where the database has no such statement.
    async fn mark_at_once(
        &self,
        work: &mut Work,
        marking: &Marking<'_>,
    ) -> sqlx::Result<Option<RegisteredMailboxes>> {
        let Marking { looked_at, due, accounts, now, .. } = marking;
        let told: Vec<_> = marking.for_other_nodes().collect();
        let named = self.can_notify(work);
        let text = tell(named);
        let upsert = Upsert { rows: &text, ..NEWS };
        let tell = UpsertBy { columns: TELL, account: "account", upsert };
        let changes = [
            (!looked_at.is_empty()).then_some(TableChange::Update(&CLEAR)),
            (!due.is_empty()).then_some(TableChange::Update(&MARK)),
            (!told.is_empty()).then_some(TableChange::Insert(&tell)),
        ];
        let changes: Vec<_> = changes.into_iter().flatten().collect();
        let select = (!accounts.is_empty()).then_some(&REGISTERED);
        let Some(mut query) = sql::together(work, &changes, select, marking.most_rows()) else {
            return Ok(None);
        };
        if !looked_at.is_empty() {
            query =
                looked_at.iter().fold(query.then(CLEAR.columns), |it, row| bind_cleared(it, row));
        }
        if !due.is_empty() {
            query = due.iter().fold(query.then(MARK.columns), |it, row| bind_marked(it, row, *now));
        }
        if !told.is_empty() {
            query = query.then(TELL);
            for (account, mailbox) in &told {
                query = query.bind(*account).bind(*mailbox).bind(&*self.incarnation);
            }
        }
        let mut registered = RegisteredMailboxes::default();
        if accounts.is_empty() {
            query.execute_in(work).await?;
            return Ok(Some(registered));
        }
        query = query.then(REGISTERED.columns);
        query = accounts.iter().fold(query, |query, account| query.bind(*account));
        self.read_registered(work, query, &mut registered).await?;
        let told = marking.told(&registered);
        if named && !told.is_empty() {
            self.notify_events_after(work, &told);
        }
        Ok(Some(registered))
    }

    /// The mailboxes for which somebody has registered, of those of these accounts that have any.
    async fn mailboxes_of(
        &self,
        work: &mut Work,
        accounts: &BTreeSet<&str>,
    ) -> sqlx::Result<RegisteredMailboxes> {
        let mut registered = RegisteredMailboxes::default();
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
            registered.0.entry(account).or_default().insert(mailbox);
        }
        Ok(())
    }

    /// Writes news of these accounts to all nodes but this one.
    async fn tell_all(&self, work: &mut Work, accounts: &BTreeSet<&str>) -> sqlx::Result<()> {
        let named = self.can_notify(work);
        let (what, mut told) = (of_event(named), 0);
        let all: Vec<_> = accounts.iter().collect();
        for accounts in all.chunks(sql::MOST_ROWS) {
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
            self.notify_events_after(work, accounts);
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

impl<'a> Marking<'a> {
    fn of(looked_at: &'a [LookedAt], marks: &'a [DueMark], now: Timestamp) -> Self {
        let mut looked_at: Vec<_> = looked_at.iter().collect();
        // Two looks at a mailbox may have seen other marks, of which those of one are there.
        looked_at.sort_by_key(|it| (&it.account, &it.mailbox, it.marks));
        looked_at.dedup();
        let accounts = marks.iter().map(|mark| mark.account.as_str()).collect();
        Self { looked_at, marks, due: due_rows(marks), accounts, now }
    }

    /// The mailboxes that another node gets word of where somebody has registered for them.
    fn for_other_nodes(&self) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
        let told = self.marks.iter().filter(|mark| mark.for_another_node);
        let mailbox = |mark: &'a DueMark| mark.mailbox.as_ref().map(Mailbox::as_str);
        told.map(move |mark| (mark.account.as_str(), mailbox(mark)))
    }

    /// The accounts that it has got word of.
    fn told(&self, registered: &RegisteredMailboxes) -> BTreeSet<&'a str> {
        let told = self.marks.iter().filter(|mark| mark.for_another_node && registered.have(mark));
        told.map(|mark| mark.account.as_str()).collect()
    }

    /// The rows of the longest part of its statement.
    fn most_rows(&self) -> usize {
        let told = self.marks.iter().filter(|mark| mark.for_another_node).count();
        let counts = [self.looked_at.len(), self.due.len(), self.accounts.len(), told];
        counts.into_iter().max().unwrap_or_default()
    }

    /// There is something to write and not too much of anything, and all marks name a mailbox, none one that was looked at:
    /// no row changes twice.
    fn fits_in_one_statement(&self) -> bool {
        let is_written = |mark: &DueMark| mark.is_due || mark.for_another_node;
        let writes = !self.looked_at.is_empty() || self.marks.iter().any(is_written);
        writes
            && self.most_rows() <= sql::MOST_ROWS
            && self.marks.iter().all(|mark| mark.mailbox.is_some())
            && self.looked_at.iter().all(|LookedAt { account, mailbox, .. }| {
                !self.due.contains_key(&(account.as_str(), Some(mailbox.as_str())))
            })
    }
}

impl RegisteredMailboxes {
    /// Whether somebody has registered for what is marked.
    fn have(&self, mark: &DueMark) -> bool {
        self.0.get(mark.account.as_str()).is_some_and(|mailboxes| {
            mark.mailbox.as_ref().is_none_or(|mailbox| mailboxes.contains(mailbox))
        })
    }
}

/// The rows of news for all nodes but the one that tells, about mailboxes that somebody has registered for.
fn tell(named: bool) -> String {
    format!(
        "select distinct n.name, v.account, {} from v \
         join mailbox m on m.account = v.a_id and m.name = v.mailbox \
         join node n on n.incarnation <> v.incarnation order by n.name, v.account",
        of_event(named)
    )
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
    query.bind(account.as_str()).bind(mailbox.as_str()).bind(marks.count).bind(marks.since.0)
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
    let Some(since) = row.try_get("due_since")? else { return Ok(None) };
    // One that cannot be read is as good as none.
    let state: Option<&str> = row.try_get("due_state").unwrap_or_default();
    let state = state.and_then(read_state);
    Ok(Some(DueMailbox {
        mailbox: Mailbox::new(row.try_get("mailbox")?),
        marks: NodeMarks { since: Timestamp(since), count: row.try_get("due_marks")? },
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
