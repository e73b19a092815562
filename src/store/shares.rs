//! What one user, one device, one domain and one backend may take of the database, whatever names they make up.

use std::collections::{BTreeSet, HashMap, VecDeque};

use sqlx::Row;

use super::registrations::lock;
use super::token;
use super::work::{Statement, Work};
use crate::model::{Account, BackendId, SubscriptionKey};

/// Limits of the rows that are not those of one account; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Accounts for which one device is registered.
    pub accounts_per_device: u32,
    /// Accounts with devices, and their devices, of one domain; names without one count as one domain.
    pub accounts_per_domain: u32,
    /// `[push] devices_per_domain`
    pub devices_per_domain: u32,
    /// The same of one backend.
    pub accounts_per_backend: u32,
    /// `[push] devices_per_backend`
    pub devices_per_backend: u32,
}

/// A limit that leaves no room for a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// `[push] accounts_per_domain`
    AccountsPerDomain,
    /// `[push] devices_per_domain`
    DevicesPerDomain,
    /// `[push] accounts_per_backend`
    AccountsPerBackend,
    /// `[push] devices_per_backend`
    DevicesPerBackend,
}

/// What made room for a registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MadeRoom {
    /// Devices of the account and of others whose names differ from it in nothing but case.
    pub devices: usize,
    /// Registrations of the same device for other accounts.
    pub registrations: usize,
}

/// A registration that has to go: account, token in lower case, subtopic.
type DeviceRow = (String, String, String);

// How many others there are, or none if the row is there already. Before the domain or the backend, each
// takes what names the row.
const DEVICES_OF_DOMAIN: &str = "select count(*) as others from device d \
    join account a on a.name = d.account where a.domain = $4 \
    and not exists (select 1 from device where account = $1 and token = $2 and subtopic = $3)";
const ACCOUNTS_OF_DOMAIN: &str = "select count(*) as others from account \
    where domain = $2 and not exists (select 1 from account where name = $1)";
// A row may have the backend by the address that it had before it got a name.
const DEVICES_OF_BACKEND: &str = "select count(*) as others from device d \
    join account a on a.name = d.account where a.backend in ($4, $5) \
    and not exists (select 1 from device where account = $1 and token = $2 and subtopic = $3)";
const ACCOUNTS_OF_BACKEND: &str = "select count(*) as others from account \
    where backend in ($2, $3) and not exists (select 1 from account where name = $1)";

/// By what accounts are counted together.
pub(super) fn domain(account: &Account) -> &str {
    account.domain().unwrap_or_default()
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            accounts_per_device: 20,
            accounts_per_domain: 0,
            devices_per_domain: 0,
            accounts_per_backend: 0,
            devices_per_backend: 0,
        }
    }
}

impl Shares {
    /// Whether there is no room for what would be a new row of an account of this backend.
    pub(super) async fn full(
        self,
        work: &mut Work,
        key: &SubscriptionKey,
        backend: &BackendId,
    ) -> sqlx::Result<Option<Full>> {
        let (account, domain) = (key.account.as_str(), domain(&key.account));
        let (token, subtopic) = (token(key), &*key.app);
        let (id, address) = (backend.as_str(), backend.address());
        let limits: [(u32, Full, &'static str, &[&str]); 4] = [
            (
                self.devices_per_domain,
                Full::DevicesPerDomain,
                DEVICES_OF_DOMAIN,
                &[account, &token, subtopic, domain],
            ),
            (
                self.accounts_per_domain,
                Full::AccountsPerDomain,
                ACCOUNTS_OF_DOMAIN,
                &[account, domain],
            ),
            (
                self.devices_per_backend,
                Full::DevicesPerBackend,
                DEVICES_OF_BACKEND,
                &[account, &token, subtopic, id, address],
            ),
            (
                self.accounts_per_backend,
                Full::AccountsPerBackend,
                ACCOUNTS_OF_BACKEND,
                &[account, id, address],
            ),
        ];
        for (limit, full, sql, values) in limits {
            if limit == 0 {
                continue;
            }
            let query = values.iter().fold(sqlx::query(sql), |query, value| query.bind(*value));
            let row = query.fetch_one_in(work).await?;
            if row.try_get::<i64, _>("others")? >= i64::from(limit) {
                return Ok(Some(full));
            }
        }
        Ok(None)
    }

    /// Removes what is too much now that the registration of `key` is there; never that one. Of each
    /// kind the oldest goes, of those who have most. Returns the other accounts that lost something.
    pub(super) async fn make_room(
        self,
        work: &mut Work,
        key: &SubscriptionKey,
        max_devices: u32,
    ) -> sqlx::Result<(MadeRoom, BTreeSet<String>)> {
        // To a server that tells names by their case they are others, so each keeps its own as long
        // as it has no more than the others.
        let rows = sqlx::query(
            "select d.account, d.token, d.subtopic, coalesce(d.heard_at, 0), d.registered_at \
             from device d join account a on a.name = d.account where a.folded = $1 \
             union select account, token, subtopic, coalesce(heard_at, 0), registered_at \
             from device where token = $2 order by 4, 5, 1, 2, 3",
        )
        .bind(key.account.case_folded())
        .bind(token(key))
        .fetch_all_in(work)
        .await?;
        // A row that cannot be read is not counted, and costs nobody else anything.
        let rows: Vec<_> = rows.iter().filter_map(|row| device_row(row).ok()).collect();
        let (folded, token) = (key.account.case_folded(), token(key));
        let of_account = |(account, ..): &&DeviceRow| account.to_lowercase() == folded;
        let devices = rows.iter().filter(of_account).cloned().collect();
        let too_many = excess(devices, max_devices, key, |(account, ..)| account.clone());

        let of_device = |(_, other, _): &&DeviceRow| *other == token;
        let same = rows.iter().filter(of_device).cloned().collect();
        // Somebody who registers a foreign device makes room at the cost of their own domain.
        let foreign = excess(same, self.accounts_per_device, key, |(account, ..)| {
            domain(&Account::from_login(account)).to_owned()
        });

        let made = MadeRoom { devices: too_many.len(), registrations: foreign.len() };
        let mut losers = BTreeSet::new();
        for (account, token, subtopic) in too_many.into_iter().chain(foreign) {
            if account != key.account.as_str() {
                lock(work, &account).await?;
            }
            sqlx::query("delete from device where account = $1 and token = $2 and subtopic = $3")
                .bind(account.as_str())
                .bind(token)
                .bind(subtopic)
                .execute_in(work)
                .await?;
            if account != key.account.as_str() {
                losers.insert(account);
            }
        }
        Ok((made, losers))
    }
}

fn device_row(row: &sqlx::any::AnyRow) -> sqlx::Result<DeviceRow> {
    Ok((row.try_get("account")?, row.try_get("token")?, row.try_get("subtopic")?))
}

/// Of `rows`, oldest first, those that are more than `most`: again and again the oldest of the group
/// with most rows, but for that of `key`.
fn excess(
    rows: Vec<DeviceRow>,
    most: u32,
    key: &SubscriptionKey,
    group: impl Fn(&DeviceRow) -> String,
) -> Vec<DeviceRow> {
    let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    if rows.len() <= most {
        return Vec::new();
    }
    let kept = (key.account.as_str(), token(key), &*key.app);
    let mut left = rows.len();
    let mut groups: HashMap<String, (usize, VecDeque<DeviceRow>)> = HashMap::new();
    for row in rows {
        let is_kept = (row.0.as_str(), row.1.clone(), row.2.as_str()) == kept;
        let (size, others) = groups.entry(group(&row)).or_default();
        *size += 1;
        if !is_kept {
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
    use crate::model::{PushEndpoint, TransportId};

    fn key(account: &str) -> SubscriptionKey {
        SubscriptionKey {
            account: Account::from_login(account),
            transport: TransportId::new("apns"),
            endpoint: PushEndpoint::new(&"ab".repeat(32), &"ab".repeat(32)),
            app: "s".into(),
        }
    }

    /// Rows of one device, oldest first.
    fn rows(accounts: &[&str]) -> Vec<DeviceRow> {
        accounts.iter().map(|a| ((*a).to_owned(), "ab".repeat(32), "s".to_owned())).collect()
    }

    fn gone(accounts: &[&str], most: u32, of: &str) -> Vec<String> {
        let by_domain = |row: &DeviceRow| domain(&Account::from_login(&row.0)).to_owned();
        let gone = excess(rows(accounts), most, &key(of), by_domain);
        gone.into_iter().map(|(account, ..)| account).collect()
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
