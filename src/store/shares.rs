//! What one user, one device, one domain and one backend may take of the database, whatever names they make up.

use std::collections::{BTreeSet, HashMap, VecDeque};

use sqlx::Row;
use sqlx::any::AnyRow;

use super::records::{delete, lock};
use super::sql;
use super::sql::work::Work;
use crate::model::{Account, BackendId, SubscriptionKey};

/// Limits of the rows that are not those of one account; 0 is no limit, but for one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Accounts for which one device is registered, at least 1.
    pub accounts_per_device: u32,
    /// Accounts with devices, and their devices, of one domain; names without one count as one domain.
    pub accounts_per_domain: u32,
    /// `[push] subscriptions_per_domain`
    pub subscriptions_per_domain: u32,
    /// The same of one backend.
    pub accounts_per_backend: u32,
    /// `[push] subscriptions_per_backend`
    pub subscriptions_per_backend: u32,
}

/// A limit that leaves no room for a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// `[push] accounts_per_domain`
    AccountsPerDomain,
    /// `[push] subscriptions_per_domain`
    SubscriptionsPerDomain,
    /// `[push] accounts_per_backend`
    AccountsPerBackend,
    /// `[push] subscriptions_per_backend`
    SubscriptionsPerBackend,
    /// The account has as many pending subscriptions as it may have.
    PendingPerAccount,
}

/// What made room for a registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MadeRoom {
    /// Devices of the account and of others whose names differ from it in nothing but case.
    pub devices: usize,
    /// Registrations of the same device for other accounts.
    pub registrations: usize,
}

impl MadeRoom {
    /// Says in the log that others had to go for a subscription of this account.
    pub(super) fn say(&self, account: &Account, max_subscriptions: u32) {
        if let Self { devices: dropped @ 1.., .. } = *self {
            tracing::info!(
                target: "mailchime::store::oldest_subscriptions_removed",
                %account, dropped, max_subscriptions,
                "removed the oldest subscriptions of an account to make room for a new one"
            );
        }
    }
}

/// A subscription that may have to go.
#[derive(Clone, Debug)]
struct EvictionCandidate {
    id: i64,
    account: String,
    /// It is of the same endpoint as the registration.
    same_endpoint: bool,
}

/// By what accounts are counted together.
pub(super) fn domain(account: &Account) -> &str {
    account.domain().unwrap_or_default()
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            accounts_per_device: 20,
            accounts_per_domain: 0,
            subscriptions_per_domain: 0,
            accounts_per_backend: 0,
            subscriptions_per_backend: 0,
        }
    }
}

impl Shares {
    /// Whether one more subscription may be one too many.
    pub(super) fn has_limits(self) -> bool {
        let Self { accounts_per_domain, subscriptions_per_domain, .. } = self;
        let Self { accounts_per_backend, subscriptions_per_backend, .. } = self;
        [
            accounts_per_domain,
            subscriptions_per_domain,
            accounts_per_backend,
            subscriptions_per_backend,
        ] != [0; 4]
    }

    /// Whether there is no room for what would be one more subscription of an account of this backend. Pending
    /// ones are not counted.
    pub(super) async fn full(
        self,
        work: &mut Work,
        account: &Account,
        backend: &BackendId,
    ) -> sqlx::Result<Option<Full>> {
        const SUBSCRIPTIONS: &str = "select count(*) as others from subscription s \
                                     join account a on a.id = s.account where s.state = 'active' and";
        const ACCOUNTS: &str = "select count(*) as others from account a where exists (select 1 \
                                from subscription s where s.account = a.id and s.state = 'active') and";
        // A row may have the backend by the address that it had before it got a name.
        const OF_DOMAIN: &str = "a.domain in ($1, $2)";
        const OF_BACKEND: &str = "a.backend in ($1, $2)";
        let limits = [
            (self.subscriptions_per_domain, Full::SubscriptionsPerDomain, SUBSCRIPTIONS, OF_DOMAIN),
            (self.accounts_per_domain, Full::AccountsPerDomain, ACCOUNTS, OF_DOMAIN),
            (
                self.subscriptions_per_backend,
                Full::SubscriptionsPerBackend,
                SUBSCRIPTIONS,
                OF_BACKEND,
            ),
            (self.accounts_per_backend, Full::AccountsPerBackend, ACCOUNTS, OF_BACKEND),
        ];
        if limits.iter().all(|(limit, ..)| *limit == 0) {
            return Ok(None);
        }
        let known = sql::query(
            "select 1 as known from account a where a.name = $1 and exists (select 1 \
             from subscription s where s.account = a.id and s.state = 'active')",
        );
        let known = known.bind(account.as_str()).fetch_optional_in(work).await?.is_some();
        let domain = domain(account);
        for (limit, full, counted, of) in limits {
            if limit == 0 || (known && counted == ACCOUNTS) {
                continue;
            }
            let names = match of {
                OF_DOMAIN => [domain, domain],
                _ => [backend.as_str(), backend.address()],
            };
            let query = sql::query(format!("{counted} {of}")).bind(names[0]).bind(names[1]);
            let row = query.fetch_one_in(work).await?;
            if row.try_get::<i64, _>("others")? >= i64::from(limit) {
                return Ok(Some(full));
            }
        }
        Ok(None)
    }

    /// Removes what is too much now that the registration of `key` is there, with the id `own`; never that
    /// one. Of each kind the oldest goes, of those who have most. Returns the other accounts that lost
    /// something.
    pub(super) async fn make_room(
        self,
        work: &mut Work,
        key: &SubscriptionKey,
        own: i64,
        max_subscriptions: u32,
    ) -> sqlx::Result<(MadeRoom, BTreeSet<String>)> {
        // To a server that tells names by their case they are others, so each keeps its own as long
        // as it has no more than the others.
        let (folded, hash) = (key.account.case_folded(), key.endpoint.hash_hex());
        // The last sign of life by the time of service. One that nobody registers again has it from its pushes.
        const HEARD: &str = "coalesce(s.heard_at, 0) + case when s.renews = 0 and s.pushed_at > s.registered_at \
                             then s.pushed_at - s.registered_at else 0 end";
        let rows = sql::query(format!(
            "select s.id, a.name as account, s.transport, s.endpoint_hash, {HEARD} as heard, s.registered_at \
             from account a join subscription s on s.account = a.id where a.folded = $1 \
             and s.state = 'active' union select s.id, a.name, s.transport, s.endpoint_hash, \
             {HEARD}, s.registered_at from subscription s join account a on a.id = s.account \
             where s.endpoint_hash = $2 and s.transport = $3 and s.state = 'active' order by 5, 6, 2, 1",
        ))
        .bind(folded.as_str())
        .bind(hash.as_str())
        .bind(key.transport.as_str())
        .fetch_all_in(work)
        .await?;
        let read = |row: &AnyRow| -> sqlx::Result<EvictionCandidate> {
            let same_endpoint = row.try_get::<&str, _>("endpoint_hash")? == hash
                && row.try_get::<&str, _>("transport")? == key.transport.as_str();
            Ok(EvictionCandidate {
                id: row.try_get("id")?,
                account: row.try_get("account")?,
                same_endpoint,
            })
        };
        // A row that cannot be read is not counted, and costs nobody else anything.
        let rows: Vec<EvictionCandidate> = rows.iter().filter_map(|row| read(row).ok()).collect();
        let of_account = |row: &&EvictionCandidate| row.account.to_lowercase() == folded;
        let devices = rows.iter().filter(of_account).cloned().collect();
        let too_many = excess(devices, max_subscriptions, own, |row| row.account.clone());

        let same = rows.iter().filter(|row| row.same_endpoint).cloned().collect();
        // Somebody who registers a foreign device makes room at the cost of their own domain.
        let foreign = excess(same, self.accounts_per_device, own, |row| {
            domain(&Account::from_login(&row.account)).to_owned()
        });

        let made = MadeRoom { devices: too_many.len(), registrations: foreign.len() };
        let mut losers = BTreeSet::new();
        for EvictionCandidate { id, account, .. } in too_many.into_iter().chain(foreign) {
            let other = account != key.account.as_str();
            if other {
                lock(work, &account).await?;
            }
            delete(work, id).await?;
            if other {
                losers.insert(account);
            }
        }
        Ok((made, losers))
    }
}

/// How many pending subscriptions the account has, and others whose names differ in nothing but case.
pub(super) async fn pending_of(work: &mut Work, account: &Account) -> sqlx::Result<i64> {
    let query = sql::query(
        "select count(*) as pending from subscription s join account a on a.id = s.account \
         where a.folded = $1 and s.state = 'pending'",
    );
    let folded = account.case_folded();
    query.bind(folded.as_str()).fetch_one_in(work).await?.try_get("pending")
}

/// Of `rows`, oldest first, those that are more than `most`: again and again the oldest of the group
/// with most rows, but for the one with the id `own`.
fn excess(
    rows: Vec<EvictionCandidate>,
    most: u32,
    own: i64,
    group: impl Fn(&EvictionCandidate) -> String,
) -> Vec<EvictionCandidate> {
    let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    if rows.len() <= most {
        return Vec::new();
    }
    let mut left = rows.len();
    let mut groups: HashMap<String, (usize, VecDeque<EvictionCandidate>)> = HashMap::new();
    for row in rows {
        let (size, others) = groups.entry(group(&row)).or_default();
        *size += 1;
        if row.id != own {
            others.push_back(row);
        }
    }
    let mut excess = Vec::new();
    while left > most {
        // Among equals the name decides, so that it is the same one each time.
        let largest = groups.iter_mut().filter(|(_, (_, others))| !others.is_empty());
        let Some((_, (size, others))) =
            largest.max_by(|(a, (n, _)), (b, (m, _))| n.cmp(m).then_with(|| b.cmp(a)))
        else {
            break;
        };
        excess.extend(others.pop_front());
        *size -= 1;
        left -= 1;
    }
    excess
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of these accounts, oldest first, of which more than `most` are gone when the one of `of` has come.
    fn gone(accounts: &[&str], most: u32, of: &str) -> Vec<String> {
        let row = |(id, account): (i64, &&str)| EvictionCandidate {
            id,
            account: (*account).to_owned(),
            same_endpoint: true,
        };
        let rows: Vec<EvictionCandidate> = (0..).zip(accounts).map(row).collect();
        let own = rows.iter().find(|row| row.account == of).map_or(-1, |row| row.id);
        let by_domain =
            |row: &EvictionCandidate| domain(&Account::from_login(&row.account)).to_owned();
        excess(rows, most, own, by_domain).into_iter().map(|row| row.account).collect()
    }

    #[test]
    fn the_largest_group_gives_its_oldest_and_never_what_has_just_come() {
        let all = ["a@x", "m1@t", "m2@t", "b@x", "m3@t"];
        assert!(gone(&all, 5, "m3@t").is_empty());
        assert_eq!(gone(&all, 4, "m3@t"), ["m1@t"]);
        assert_eq!(gone(&all, 3, "m3@t"), ["m1@t", "m2@t"]);
        // The owner comes after the crowd, and has room all the same.
        assert_eq!(gone(&["m1@t", "m2@t", "m3@t", "a@x"], 3, "a@x"), ["m1@t"]);
        assert_eq!(gone(&["m1@t", "a@x"], 1, "m1@t"), ["a@x"]);
        assert_eq!(gone(&["m1@t", "a@x"], 0, "a@x"), ["m1@t"]);
    }
}
