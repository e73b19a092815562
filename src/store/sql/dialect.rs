//! What a database says in words of its own. All other SQL is written once, for all of them.

use std::fmt::Write;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Dialect {
    Sqlite,
    Postgres,
    MariaDb,
}

/// How many there are.
pub(super) const DIALECTS: usize = 3;

/// Most rows of one statement. All databases take ten times as many, but SQLite looks for each
/// parameter among all before it.
pub(in crate::store) const MOST_ROWS: usize = 100;

/// An insert of one or more rows each of which may be there, and is changed then.
///
/// In what is set, `new.x` is the column of what would be inserted, and `old.x` that of the row that is there.
/// What is set is not to be read behind that (`old.x`): databases differ in which value they see.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Upsert<'a> {
    pub(in crate::store) table: &'a str,
    pub(in crate::store) columns: &'a str,
    /// `values (…)` or `select …`.
    pub(in crate::store) rows: &'a str,
    /// The columns that tell rows apart.
    pub(in crate::store) key: &'a str,
    /// Columns, and what they become.
    pub(in crate::store) set: &'a [(&'a str, &'a str)],
    /// A column of the row as it is then; empty: none.
    pub(in crate::store) returning: &'a str,
}

/// An update of the rows of a table by rows of arguments, which are called `v`. A row of nulls must lead to no row of the
/// table.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct UpdateFrom<'a> {
    pub(in crate::store) table: &'a str,
    /// The columns of `v`.
    pub(in crate::store) columns: &'a [&'a str],
    /// The one of them that names an account, whose id is `v.a_id` then; empty: none.
    pub(in crate::store) account: &'a str,
    /// What else leads from `v` to the table, each `name x on …`.
    pub(in crate::store) joins: &'a [&'a str],
    /// Which row of the table belongs to a row of `v`.
    pub(in crate::store) on: &'a str,
    /// Columns, and what they become.
    pub(in crate::store) set: &'a [(&'a str, &'a str)],
}

/// An insert of rows that come from rows of arguments, which are called `v`. A row of nulls must lead to no row.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct UpsertBy<'a> {
    /// The columns of `v`.
    pub(in crate::store) columns: &'a [&'a str],
    /// The one of them that names an account, whose id is `v.a_id` then.
    pub(in crate::store) account: &'a str,
    /// Its rows are a `select … from v …`.
    pub(in crate::store) upsert: Upsert<'a>,
}

/// A part of a statement that changes several tables.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) enum TableChange<'a> {
    Update(&'a UpdateFrom<'a>),
    Insert(&'a UpsertBy<'a>),
}

/// A query that asks for several things at once, by a row of arguments for each; the rows are called `v`. A row of nulls
/// must have no answer.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct SelectBy<'a> {
    /// The columns of `v`.
    pub(in crate::store) columns: &'a [&'a str],
    /// What is selected, with `distinct` if need be.
    pub(in crate::store) select: &'a str,
    /// What follows `from v`: joins, conditions, the order.
    pub(in crate::store) of: &'a str,
}

/// A delete that says what it took: the first rows by a column, of those that fit.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Take<'a> {
    pub(in crate::store) table: &'a str,
    pub(in crate::store) fitting: &'a str,
    pub(in crate::store) by: &'a str,
    pub(in crate::store) most: &'a str,
    pub(in crate::store) returning: &'a str,
}

/// What sqlx's own migrator makes in each, which takes a lock for the session and so cannot pass a pooler.
const APPLIED_SQLITE: &str = "create table if not exists _sqlx_migrations (\
                              version bigint primary key, description text not null, \
                              installed_on timestamp not null default current_timestamp, \
                              success boolean not null, checksum blob not null, \
                              execution_time bigint not null)";
const APPLIED_POSTGRES: &str = "create table if not exists _sqlx_migrations (\
                                version bigint primary key, description text not null, \
                                installed_on timestamptz not null default now(), \
                                success boolean not null, checksum bytea not null, \
                                execution_time bigint not null)";

const APPLIED_MARIADB: &str = "create table if not exists _sqlx_migrations (\
                               version bigint primary key, description text not null, \
                               installed_on timestamp not null default current_timestamp, \
                               success boolean not null, checksum blob not null, \
                               execution_time bigint not null) engine = InnoDB";

/// The number is ours alone.
const LOCK_POSTGRES: &str = "select pg_advisory_xact_lock(4918724086124113)";

impl Dialect {
    /// A primary key whose values the database makes, none of them twice.
    pub(in crate::store) fn id(self) -> &'static str {
        match self {
            Self::Sqlite => "integer not null primary key autoincrement",
            Self::Postgres => "bigint generated always as identity primary key",
            Self::MariaDb => "bigint not null auto_increment primary key",
        }
    }

    /// Makes the table of migrations that have been applied.
    pub(in crate::store) fn applied(self) -> &'static str {
        match self {
            Self::Sqlite => APPLIED_SQLITE,
            Self::Postgres => APPLIED_POSTGRES,
            Self::MariaDb => APPLIED_MARIADB,
        }
    }

    /// What a transaction that changes the schema has to do first, so that others wait for it.
    pub(in crate::store) fn lock_schema(self) -> Option<&'static str> {
        match self {
            // It began with the lock of the file, or with one of the session.
            Self::Sqlite | Self::MariaDb => None,
            Self::Postgres => Some(LOCK_POSTGRES),
        }
    }

    /// Asks whether nothing can be written: a number, 0 if it can.
    pub(in crate::store) fn asks_read_only(self) -> &'static str {
        match self {
            Self::Sqlite => "pragma query_only",
            Self::Postgres => {
                "select case when current_setting('transaction_read_only') = 'off' then 0 else 1 end"
            }
            // It was a number, and has names in later versions.
            Self::MariaDb => {
                "select case when cast(@@global.read_only as char) in ('0', 'OFF') then 0 else 1 end"
            }
        }
    }

    /// Counts what the tables hold by which statements are planned; `None` where the database does so when they are filled.
    pub(in crate::store) fn take_statistics(self) -> Option<&'static str> {
        match self {
            Self::Postgres => Some("analyze account, mailbox, subscription, subscription_mailbox"),
            Self::Sqlite | Self::MariaDb => None,
        }
    }

    /// The statement of an [`Upsert`].
    pub(in crate::store) fn upsert(self, upsert: &Upsert<'_>) -> String {
        let Upsert { table, columns, rows, key, set, returning } = *upsert;
        let returning = match returning {
            "" => String::new(),
            column => format!(" returning {column}"),
        };
        let (before, after) = match self {
            Self::Sqlite | Self::Postgres => ("excluded.", ""),
            Self::MariaDb => ("values(", ")"),
        };
        let becomes = |text: &str| {
            renamed(&renamed(text, "new.", before, after), "old.", &format!("{table}."), "")
        };
        let set: Vec<String> =
            set.iter().map(|(column, text)| format!("{column} = {}", becomes(text))).collect();
        let set = set.join(", ");
        let conflict = match self {
            Self::Sqlite | Self::Postgres => format!("on conflict ({key}) do update set"),
            Self::MariaDb => "on duplicate key update".to_owned(),
        };
        format!("insert into {table} ({columns}) {rows} {conflict} {set}{returning}")
    }

    /// An insert that leaves alone what is there; `same` is a column with its table.
    pub(in crate::store) fn insert_new(self, insert: &str, same: &str) -> String {
        match self {
            Self::Sqlite | Self::Postgres => format!("{insert} on conflict do nothing"),
            // `insert ignore` would take what does not fit, too.
            Self::MariaDb => format!("{insert} on duplicate key update {same} = {same}"),
        }
    }

    /// An insert of these rows with the numbers that they have, also where the database makes them.
    pub(in crate::store) fn insert_with_keys(
        self,
        table: &str,
        columns: &str,
        rows: &str,
    ) -> String {
        let overriding = match self {
            Self::Postgres => " overriding system value",
            Self::Sqlite | Self::MariaDb => "",
        };
        format!("insert into {table} ({columns}){overriding} values {rows}")
    }

    /// A query that has the ids of new rows of a table begin behind those that are there; `None` where they do
    /// so anyway.
    pub(in crate::store) fn continue_ids(self, table: &str) -> Option<String> {
        match self {
            Self::Postgres => Some(format!(
                "select setval(pg_get_serial_sequence('{table}', 'id'), coalesce(max(id), 1), \
                 max(id) is not null) as id from {table}"
            )),
            Self::Sqlite | Self::MariaDb => None,
        }
    }

    /// The statement of an [`UpdateFrom`] for this number of rows.
    pub(in crate::store) fn update_from(self, update: &UpdateFrom<'_>, rows: usize) -> String {
        self.update_from_at(1, update, rows)
    }

    /// The same with arguments from this one on.
    fn update_from_at(self, first: usize, update: &UpdateFrom<'_>, rows: usize) -> String {
        let UpdateFrom { table, columns, account, joins, on, set } = *update;
        let of = match self {
            Self::Sqlite | Self::Postgres => String::new(),
            Self::MariaDb => format!("{table}."),
        };
        let set: Vec<String> =
            set.iter().map(|(column, becomes)| format!("{of}{column} = {becomes}")).collect();
        let set = set.join(", ");
        let joins: String = joins.iter().map(|join| format!(" join {join}")).collect();
        let (names, rows_of) = (columns.join(", "), values(first, columns.len(), rows));
        if self == Self::Postgres && !account.is_empty() {
            let v = rows_of_accounts(columns, account, first, rows);
            return format!("with {v} update {table} set {set} from v{joins} where {on}");
        }
        let to_account = match account {
            "" => String::new(),
            account => format!(" join account a on a.name = v.{account}"),
        };
        let [joins, on] = [&*joins, on].map(|text| text.replace("v.a_id", "a.id"));
        let joins = to_account + &joins;
        match self {
            Self::Sqlite | Self::Postgres => format!(
                "with v ({names}) as (values {rows_of}) \
                 update {table} set {set} from v{joins} where {on}"
            ),
            // Of `values` the first row alone would say how long a text may be.
            Self::MariaDb => {
                let selected = selected(columns, rows);
                format!("update ({selected}) v{joins} join {table} on {on} set {set}")
            }
        }
    }

    /// A condition of a statement that is always met, and without a value on a server that takes no writes, so that the
    /// statement fails there; `None` where the database has none. What the server's log says then is its text.
    pub(super) fn is_writable(self) -> Option<&'static str> {
        match self {
            // The text that is no number must not be a constant of the cast, which the planner would look at.
            Self::Postgres => Some(
                "0 = (select cast(case when current_setting('transaction_read_only') = 'off' then '0' \
                 else 'mailchime needs a server that takes writes' end as integer))",
            ),
            Self::Sqlite | Self::MariaDb => None,
        }
    }

    /// The statement of a [`SelectBy`] for this number of rows. With `only_if`, a condition, it has no rows where that is
    /// not met.
    pub(in crate::store) fn select_by(
        self,
        query: &SelectBy<'_>,
        rows: usize,
        only_if: Option<&str>,
    ) -> String {
        let SelectBy { columns, select, of } = *query;
        match self {
            Self::Sqlite | Self::Postgres => {
                let (names, values) = (columns.join(", "), values(1, columns.len(), rows));
                let rows = match only_if {
                    None => format!("values {values}"),
                    Some(met) => format!("select * from (values {values}) r where {met}"),
                };
                format!("with v ({names}) as ({rows}) select {select} from v {of}")
            }
            Self::MariaDb => {
                format!("select {select} from ({}) v {of}", selected(columns, rows))
            }
        }
    }

    /// One statement for these changes and the query, each with this number of rows, and with the arguments of one behind
    /// those of the other. No two changes may meet a row, and the query sees nothing of them. `None` where the database has
    /// no such statement.
    pub(in crate::store) fn together(
        self,
        changes: &[TableChange<'_>],
        query: Option<&SelectBy<'_>>,
        rows: usize,
    ) -> Option<String> {
        if self != Self::Postgres {
            return None;
        }
        let mut first = 1;
        let mut parts = Vec::with_capacity(changes.len() + 1);
        for (number, change) in changes.iter().enumerate() {
            let text = match change {
                TableChange::Update(update) => self.update_from_at(first, update, rows),
                TableChange::Insert(UpsertBy { columns, account, upsert }) => {
                    let v = rows_of_accounts(columns, account, first, rows);
                    format!("with {v} {}", self.upsert(upsert))
                }
            };
            parts.push(format!("c{number} as ({text})"));
            first += change.columns().len() * rows;
        }
        // PostgreSQL runs the last of them first (`ExecInitModifyTable` in its `nodeModifyTable.c`). Run in the order given, they
        // take their locks as other transactions do.
        parts.reverse();
        let selected = match query {
            None => "select 1".to_owned(),
            Some(SelectBy { columns, select, of }) => {
                let (names, values) = (columns.join(", "), values(first, columns.len(), rows));
                parts.push(format!("v ({names}) as (values {values})"));
                format!("select {select} from v {of}")
            }
        };
        Some(format!("with {} {selected}", parts.join(", ")))
    }

    /// The statement of a [`Take`].
    pub(in crate::store) fn take(self, take: &Take<'_>) -> String {
        let Take { table, fitting, by, most, returning } = *take;
        match self {
            Self::Sqlite | Self::Postgres => format!(
                "delete from {table} where {fitting} and {by} in \
                 (select {by} from {table} where {fitting} order by {by} limit {most}) \
                 returning {returning}"
            ),
            Self::MariaDb => format!(
                "delete from {table} where {fitting} order by {by} limit {most} returning {returning}"
            ),
        }
    }

    /// Whether arguments are `?`, in the order in which they occur, in place of `$1`, `$2`, ….
    pub(super) fn counts_arguments(self) -> bool {
        self == Self::MariaDb
    }
}

impl<'a> TableChange<'a> {
    /// The columns of its rows of arguments.
    pub(super) fn columns(self) -> &'a [&'a str] {
        match self {
            Self::Update(update) => update.columns,
            Self::Insert(insert) => insert.columns,
        }
    }
}

/// Rows of arguments as `v`, each with the id of its account as `a_id`. Accounts come first: without statistics, as tables are
/// that were filled just now, PostgreSQL would join all mailboxes of one name with each row that has that name.
fn rows_of_accounts(columns: &[&str], account: &str, first: usize, rows: usize) -> String {
    let (names, values) = (columns.join(", "), values(first, columns.len(), rows));
    format!(
        "r ({names}) as (values {values}), v as materialized \
         (select r.*, a.id as a_id from r join account a on a.name = r.{account})"
    )
}

/// `prefix` with the name behind it becomes `before`, the name, `after`.
fn renamed(text: &str, prefix: &str, before: &str, after: &str) -> String {
    let mut parts = text.split(prefix);
    let mut renamed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(part.len());
        let (name, rest) = part.split_at(end);
        renamed.extend([before, name, after, rest]);
    }
    renamed
}

/// `select $1 as a, $2 as b union all select $3, $4 …`: rows of parameters with names.
fn selected(columns: &[&str], rows: usize) -> String {
    let mut text = String::new();
    for row in 0..rows {
        text.push_str(if row == 0 { "select " } else { " union all select " });
        for (place, column) in columns.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            // Writing to a string does not fail.
            let _ = write!(text, "{comma}${}", 1 + row * columns.len() + place);
            if row == 0 {
                let _ = write!(text, " as {column}");
            }
        }
    }
    text
}

/// `($first, $first+1), …`: `rows` rows of `columns` parameters each.
pub(in crate::store) fn values(first: usize, columns: usize, rows: usize) -> String {
    let mut text = String::with_capacity(rows * columns * 6);
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            let comma = if column == 0 { "" } else { ", " };
            // Writing to a string does not fail.
            let _ = write!(text, "{comma}${}", first + row * columns + column);
        }
        text.push(')');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_on() {
        assert_eq!(values(1, 2, 2), "($1, $2), ($3, $4)");
        assert_eq!(values(4, 1, 3), "($4), ($5), ($6)");
        assert_eq!(values(1, 2, 0), "");
    }

    #[test]
    fn an_upsert_names_what_is_new_and_what_is_old() {
        let upsert = Upsert {
            table: "service",
            columns: "id, served",
            rows: "values (1, $1)",
            key: "id",
            set: &[(
                "served",
                "case when new.served > old.served then new.served else old.served end",
            )],
            returning: "id",
        };
        assert_eq!(
            Dialect::MariaDb.upsert(&upsert),
            "insert into service (id, served) values (1, $1) on duplicate key update served = \
             case when values(served) > service.served then values(served) else service.served end \
             returning id"
        );
        assert_eq!(
            Dialect::Postgres.upsert(&upsert),
            "insert into service (id, served) values (1, $1) on conflict (id) do update set served = \
             case when excluded.served > service.served then excluded.served else service.served end \
             returning id"
        );
    }

    #[test]
    fn rows_are_updated_by_rows() {
        let update = UpdateFrom {
            table: "mailbox",
            columns: &["account", "mailbox", "messages"],
            account: "account",
            joins: &[],
            on: "mailbox.account = v.a_id and mailbox.name = v.mailbox",
            set: &[("messages", "v.messages")],
        };
        assert_eq!(
            Dialect::MariaDb.update_from(&update, 2),
            "update (select $1 as account, $2 as mailbox, $3 as messages union all select $4, $5, $6) v \
             join account a on a.name = v.account \
             join mailbox on mailbox.account = a.id and mailbox.name = v.mailbox \
             set mailbox.messages = v.messages"
        );
        assert_eq!(
            Dialect::Sqlite.update_from(&update, 2),
            "with v (account, mailbox, messages) as (values ($1, $2, $3), ($4, $5, $6)) \
             update mailbox set messages = v.messages from v join account a on a.name = v.account \
             where mailbox.account = a.id and mailbox.name = v.mailbox"
        );
        assert_eq!(
            Dialect::Postgres.update_from(&update, 1),
            "with r (account, mailbox, messages) as (values ($1, $2, $3)), v as materialized \
             (select r.*, a.id as a_id from r join account a on a.name = r.account) \
             update mailbox set messages = v.messages from v \
             where mailbox.account = v.a_id and mailbox.name = v.mailbox"
        );
    }

    #[test]
    fn changes_and_a_query_are_one_statement_where_the_database_has_such() {
        let update = UpdateFrom {
            table: "mailbox",
            columns: &["mailbox"],
            account: "",
            joins: &[],
            on: "mailbox.name = v.mailbox",
            set: &[("due_since", "null")],
        };
        let insert = UpsertBy {
            columns: &["account"],
            account: "account",
            upsert: Upsert {
                table: "note",
                columns: "n",
                rows: "select v.a_id from v",
                key: "n",
                set: &[("n", "new.n")],
                returning: "",
            },
        };
        let changes = [TableChange::Update(&update), TableChange::Insert(&insert)];
        let query = SelectBy { columns: &["n"], select: "v.n", of: "" };
        assert_eq!(
            Dialect::Postgres.together(&changes, Some(&query), 1).unwrap(),
            "with c1 as (with r (account) as (values ($2)), v as materialized \
             (select r.*, a.id as a_id from r join account a on a.name = r.account) \
             insert into note (n) select v.a_id from v on conflict (n) do update set n = excluded.n), \
             c0 as (with v (mailbox) as (values ($1)) \
             update mailbox set due_since = null from v where mailbox.name = v.mailbox), \
             v (n) as (values ($3)) select v.n from v "
        );
        assert!(Dialect::Postgres.together(&changes, None, 1).unwrap().ends_with(") select 1"));
        assert_eq!(Dialect::Sqlite.together(&changes, Some(&query), 1), None);
    }

    #[test]
    fn rows_are_selected_by_rows() {
        let query = SelectBy {
            columns: &["n", "account"],
            select: "v.n, a.id",
            of: "join account a on a.name = v.account order by v.n",
        };
        assert_eq!(
            Dialect::MariaDb.select_by(&query, 2, None),
            "select v.n, a.id from (select $1 as n, $2 as account union all select $3, $4) v \
             join account a on a.name = v.account order by v.n"
        );
        assert_eq!(
            Dialect::Postgres.select_by(&query, 2, None),
            "with v (n, account) as (values ($1, $2), ($3, $4)) select v.n, a.id from v \
             join account a on a.name = v.account order by v.n"
        );
        assert_eq!(
            Dialect::Postgres.select_by(&query, 1, Some("1 = 1")),
            "with v (n, account) as (select * from (values ($1, $2)) r where 1 = 1) \
             select v.n, a.id from v join account a on a.name = v.account order by v.n"
        );
    }
}
