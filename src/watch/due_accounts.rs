//! Which accounts on demand are due, as the database knows them, and the marks of a sweep.

use std::collections::HashSet;

use super::WatchContext;
use super::on_demand::Sweep;
use crate::model::{Account, Timestamp};
use crate::nodes::Assignment;
use crate::store::{DueMark, StoreError};

/// Accounts that are marked in one transaction.
const BATCH: usize = 500;

/// What is to be asked for, and what a sweep has still to mark.
#[derive(Debug)]
pub(super) struct DueAccounts {
    /// Of this node, in their order.
    pub(super) accounts: Vec<Account>,
    /// In the order in which they are to be marked.
    pub(super) unmarked: Vec<Account>,
}

/// Finds those of these accounts on demand that are due and this node's, the one that has been for longest first. A
/// sweep has the others of this node still to mark.
pub(super) async fn due(
    context: &WatchContext,
    assignment: &Assignment,
    all: Vec<Account>,
    sweep: Sweep,
) -> Result<DueAccounts, StoreError> {
    let is_ours = |account: &Account| is_ours(context, assignment, account);
    let ours: HashSet<&Account> = all.iter().filter(|account| is_ours(account)).collect();
    if ours.is_empty() {
        return Ok(DueAccounts { accounts: Vec::new(), unmarked: Vec::new() });
    }
    let due = context.store.due_accounts().await?.into_iter().map(|(account, _)| account);
    let accounts: Vec<Account> = due.filter(|account| ours.contains(account)).collect();
    let unmarked = match sweep {
        Sweep::None => Vec::new(),
        Sweep::Ours | Sweep::Everybody => {
            let found: HashSet<&Account> = accounts.iter().collect();
            let more = |account: &&Account| ours.contains(account) && !found.contains(account);
            all.iter().filter(more).cloned().collect()
        }
    };
    Ok(DueAccounts { accounts, unmarked })
}

/// Marks the first of those that a sweep has to mark; those of them that are this node's are to be asked for.
pub(super) async fn mark(
    context: &WatchContext,
    assignment: &Assignment,
    mut unmarked: Vec<Account>,
) -> Result<DueAccounts, StoreError> {
    let rest = unmarked.split_off(unmarked.len().min(BATCH));
    let marks: Vec<DueMark> = unmarked.iter().map(sweeps).collect();
    context.store.mark_due(&[], &marks, Timestamp::now()).await?;
    unmarked.retain(|account| is_ours(context, assignment, account));
    Ok(DueAccounts { accounts: unmarked, unmarked: rest })
}

fn is_ours(context: &WatchContext, assignment: &Assignment, account: &Account) -> bool {
    assignment.is_mine(account) || context.credentials.holds(account)
}

fn sweeps(account: &Account) -> DueMark {
    let account = account.clone();
    DueMark {
        account,
        mailbox: None,
        state: None,
        shown_flags: false,
        is_due: true,
        for_another_node: false,
    }
}
