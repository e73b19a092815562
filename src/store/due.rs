//! Mailboxes that are due: somebody has said that there is news, and nobody has looked since. It is on disk
//! before the one who said so has an answer.

use std::collections::HashSet;

use sqlx::Row;

use super::records::account;
use super::sql;
use super::{Store, StoreError};
use crate::metrics::Call;
use crate::model::{Account, Mailbox, Timestamp};

impl Store {
    /// Marks these mailboxes as due, in one transaction; without a mailbox, all of the account. Those for which
    /// nobody has registered are left out. With `tell` all other nodes read the accounts again. Returns for each
    /// whether somebody has registered for it.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn mark_due(
        &self,
        mailboxes: &[(Account, Option<Mailbox>)],
        tell: bool,
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError> {
        // Two transactions that meet in the database then wait for each other in one direction.
        let mut in_order: Vec<_> = mailboxes.iter().enumerate().collect();
        in_order.sort_by(|(_, one), (_, other)| one.cmp(other));
        self.write(Call::News, || async {
            let mut known = vec![false; mailboxes.len()];
            let mut transaction = self.begin().await?;
            for (place, (account, mailbox)) in &in_order {
                let done = sql::query(
                    "update mailbox set due_since = coalesce(due_since, $3) where account = \
                     (select id from account where name = $1) and name = coalesce($2, name)",
                )
                .bind(account.as_str())
                .bind(mailbox.as_ref().map(|mailbox| mailbox.as_str()))
                .bind(now.0)
                .execute_in(&mut transaction)
                .await?;
                known[*place] = done.rows_affected() > 0;
                if tell && known[*place] {
                    self.tell(&mut transaction, account.as_str(), false).await?;
                }
            }
            transaction.commit().await?;
            Ok(known)
        })
        .await
    }

    /// The mailboxes of an account that are due.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn due(&self, account: &Account) -> Result<HashSet<Mailbox>, StoreError> {
        self.read(Call::Watched, async {
            let query = sql::query(
                "select m.name as mailbox from mailbox m join account a on a.id = m.account \
                 where a.name = $1 and m.due_since is not null",
            )
            .bind(account.as_str());
            let due = self.rows(query, |row| Ok(Mailbox::new(row.try_get("mailbox")?))).await?;
            Ok(due.into_iter().collect())
        })
        .await
    }

    /// The accounts with a mailbox that is due, the one that has been for longest first.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn due_accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.read(Call::Watched, async {
            let query = sql::query(
                "select a.name as account from mailbox m join account a on a.id = m.account \
                 where m.due_since is not null group by a.name order by min(m.due_since), a.name",
            );
            self.rows(query, |row| account(row, "account")).await
        })
        .await
    }

    /// These mailboxes of an account were looked at then: they are not due any more, unless they are since.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn looked_at(
        &self,
        account: &Account,
        mailboxes: &[Mailbox],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        if mailboxes.is_empty() {
            return Ok(());
        }
        self.write(Call::News, || async {
            let mut transaction = self.begin().await?;
            for mailbox in mailboxes {
                sql::query(
                    "update mailbox set due_since = null where account = \
                     (select id from account where name = $1) and name = $2 and due_since <= $3",
                )
                .bind(account.as_str())
                .bind(mailbox.as_str())
                .bind(at.0)
                .execute_in(&mut transaction)
                .await?;
            }
            transaction.commit().await
        })
        .await
    }
}
