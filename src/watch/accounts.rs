//! What the supervisor asks the database of accounts, and has it record. It does so beside its own work.

use std::sync::Arc;

use super::WatchContext;
use crate::model::{AcceptedLogin, Account, Timestamp};
use crate::store::{LiveAccount, StoreError};

/// Accounts whose backends are recorded in one transaction.
const ADOPTED: usize = 2000;

/// The account, if it has a mailbox to be watched, now or when its backend is the one that has accepted it.
pub(super) async fn live(
    context: &WatchContext,
    account: &Account,
) -> Result<Option<LiveAccount>, StoreError> {
    let (store, alive) = (&context.store, context.alive());
    let Some(live) = store.live_account(account, alive).await? else { return Ok(None) };
    if let Some(id) = context.backends.id_of(account)
        && live.elsewhere(&id).is_none()
        && store.watched(account, &id, alive).await?.is_empty()
    {
        return Ok(None);
    }
    Ok(Some(live))
}

/// Records the backends of accounts in rows of versions that did not, and the names of those that had
/// none: their users registered at the backend that the configuration names.
pub(super) async fn adopt(
    context: &WatchContext,
    accounts: &[LiveAccount],
) -> Result<(), StoreError> {
    let to_adopt = |live: &LiveAccount| {
        let (id, recorded) = (context.backends.id_of(&live.account)?, live.backend.as_deref());
        let adopts = recorded.is_none_or(|it| it == id.address() && it != id.as_str());
        adopts.then(|| (live.account.clone(), id))
    };
    let to_adopt: Vec<_> = accounts.iter().filter_map(to_adopt).collect();
    for accounts in to_adopt.chunks(ADOPTED) {
        let adopted = context.store.adopt(accounts).await?;
        tracing::info!(
            target: "mailchime::watch::backends_recorded",
            accounts = adopted, "recorded the backend of accounts that had none"
        );
    }
    Ok(())
}

/// A user has logged in whom another node watches: if anybody is registered, stores a new password,
/// which is news to that node. Returns the login if this node alone can watch with it.
pub(super) async fn pass_on(
    context: Arc<WatchContext>,
    account: &Account,
    login: AcceptedLogin,
) -> Option<AcceptedLogin> {
    let (source, now) = (&context.credentials, Timestamp::now());
    let id = &context.backends.id_of(account)?;
    let passing_on = async {
        let live = context.store.live_account(account, context.alive()).await?;
        let live = live.filter(|live| live.elsewhere(id).is_none());
        let Some(LiveAccount { parked, .. }) = live else { return Ok(false) };
        // Of the same it is noted now and then how long it has proved good.
        let kept = source.kept(account, id, now).await.unwrap_or_default();
        let is_kept = login
            .credentials
            .as_ref()
            .is_some_and(|credentials| kept.iter().any(|it| it.credentials.same_as(credentials)));
        if parked.is_some() || !is_kept || kept.len() > 1 {
            source.save(account, &login, Timestamp::now()).await?;
        }
        Ok::<_, StoreError>(source.holds(account))
    };
    // A session may be older than the configuration.
    if !id.is(login.backend.as_str()) {
        return None;
    }
    match passing_on.await {
        Ok(here) => here.then_some(login),
        Err(error) => {
            tracing::warn!(
                target: "mailchime::watch::login_not_passed_on",
                %account, %error,
                "could not pass a login on to the node that watches the account; its next login \
                 does so"
            );
            None
        }
    }
}
