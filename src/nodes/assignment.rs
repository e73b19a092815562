//! Who watches what: rendezvous hashing (highest random weight) over the names of the nodes.
//!
//! Pure. Every node that knows the same names comes to the same assignment, in every build and on every
//! machine: the hash is FNV-1a of 64 bits, finished with the mixer of SplitMix64. Where a node comes
//! or goes, only what it watches changes hands.

use std::sync::Arc;

use crate::model::{Account, Timestamp};

/// Nodes that are gone and remembered, at most.
const MOST_GONE: usize = 8;

/// How the accounts are divided among the nodes, as one of them sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    here: Arc<str>,
    takes_part: bool,
    /// By name, each with the hash of it.
    nodes: Vec<(Arc<str>, u64)>,
    joined: u64,
    gone: Vec<(Arc<str>, Timestamp)>,
}

impl Assignment {
    /// Of a node that shares its database with no other: everything is its own.
    pub fn alone(here: Arc<str>) -> Self {
        Self::new(Arc::clone(&here), true, [here], 1)
    }

    /// Of a node that does not know the others yet: nothing is its own.
    pub fn unknown(here: Arc<str>) -> Self {
        Self::new(here, false, [], 0)
    }

    /// Of the node `here` among `nodes`, unless another process has its name and so `takes_part` in
    /// its place. See [`Assignment::joined`] for `joined`.
    pub fn new(
        here: Arc<str>,
        takes_part: bool,
        nodes: impl IntoIterator<Item = Arc<str>>,
        joined: u64,
    ) -> Self {
        let nodes = nodes.into_iter().map(|name| (Arc::clone(&name), hash(&name))).collect();
        Self { here, takes_part, nodes, joined, gone: Vec::new() }
    }

    /// The same after `before`, at this time: who was there then and is not now is [gone](Self::gone).
    pub fn after(mut self, before: &Self, now: Timestamp) -> Self {
        let left = before.nodes.iter().map(|(name, _)| (Arc::clone(name), now));
        let gone = left.chain(before.gone.iter().cloned());
        let gone = gone.filter(|(name, _)| !self.nodes.iter().any(|(there, _)| there == name));
        self.gone = gone.take(MOST_GONE).collect();
        self
    }

    /// The name of this node.
    pub fn here(&self) -> &str {
        &self.here
    }

    /// The names of all nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|(name, _)| &**name)
    }

    /// The names of nodes that this one has seen and that are not there any more, and since when; the last one first.
    pub fn gone(&self) -> impl Iterator<Item = (&str, Timestamp)> {
        self.gone.iter().map(|(name, since)| (&**name, *since))
    }

    /// The name of the node that is to watch the account; `None` while no node is known.
    pub fn owner(&self, account: &Account) -> Option<&str> {
        let account = hash(account.as_str());
        // The names decide between two of one weight.
        let heaviest = self.nodes.iter().max_by_key(|(name, node)| (mix(node ^ account), name));
        heaviest.map(|(name, _)| &**name)
    }

    /// Whether this node is to watch the account.
    pub fn is_mine(&self, account: &Account) -> bool {
        self.takes_part && self.owner(account) == Some(&*self.here)
    }

    /// Another number than before when news of other nodes may have been missed, so that everything
    /// is to be read again.
    pub fn joined(&self) -> u64 {
        self.joined
    }
}

/// FNV-1a (draft-eastlake-fnv section 2), mixed.
fn hash(text: &str) -> u64 {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

/// The end of SplitMix64: each bit of the input changes half of those of the output.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const ACCOUNTS: usize = 100_000;

    fn assignment(here: &str, nodes: &[&str]) -> Assignment {
        Assignment::new(here.into(), true, nodes.iter().map(|name| Arc::from(*name)), 1)
    }

    fn accounts() -> impl Iterator<Item = Account> {
        (0..ACCOUNTS).map(|number| Account::from_login(&format!("user{number}@example.org")))
    }

    #[test]
    fn shares_are_even_whatever_the_names() {
        for names in [
            &["a", "b"][..],
            &["mail1:993", "mail2:993", "mail3:993"],
            &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"],
            &["n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9"],
        ] {
            let assignment = assignment(names[0], names);
            let mut shares: BTreeMap<_, usize> = BTreeMap::new();
            for account in accounts() {
                *shares.entry(assignment.owner(&account).unwrap().to_owned()).or_insert(0) += 1;
            }
            let fair = ACCOUNTS / names.len();
            assert_eq!(shares.len(), names.len());
            for (name, share) in shares {
                assert!(share.abs_diff(fair) * 100 < fair * 4, "{name} of {names:?}: {share}");
            }
        }
    }

    #[test]
    fn a_node_that_joins_or_leaves_moves_only_its_own_share() {
        let three = assignment("a", &["a", "b", "c"]);
        let four = assignment("a", &["a", "b", "c", "d"]);
        let mut moved = 0;
        for account in accounts() {
            let (before, after) = (three.owner(&account), four.owner(&account));
            if before != after {
                assert_eq!(after, Some("d"), "{account}");
                moved += 1;
            }
        }
        assert!((24_000..26_000).contains(&moved), "{moved}");
    }

    #[test]
    fn each_account_is_of_exactly_one_node() {
        let names = ["a", "b", "c"];
        let views = names.map(|here| assignment(here, &names));
        for account in accounts().take(1000) {
            assert_eq!(views.iter().filter(|view| view.is_mine(&account)).count(), 1, "{account}");
        }
    }

    /// Nodes of different versions share a database while they are updated one by one.
    #[test]
    fn the_division_is_the_same_in_every_version() {
        let assignment = assignment("a", &["a", "b", "c"]);
        let owners: Vec<_> =
            ["alice@example.org", "bob@example.org", "carol", "Dan", "eve", "Ünal"]
                .map(|login| assignment.owner(&Account::from_login(login)).unwrap().to_owned())
                .into();
        assert_eq!(owners.join(" "), "a a c a a b");
        // The mixed values of the published vectors for "" and "a".
        assert_eq!((hash(""), hash("a")), (mix(0xcbf2_9ce4_8422_2325), mix(0xaf63_dc4c_8601_ec8c)));
    }

    #[test]
    fn a_node_that_is_gone_is_remembered_until_it_is_back() {
        let gone = |now: &Assignment| {
            let gone = now.gone().map(|(name, since)| (name.to_owned(), since.0));
            gone.collect::<Vec<_>>()
        };
        let both = assignment("a", &["a", "b"]);
        let alone = assignment("a", &["a"]).after(&both, Timestamp(1));
        assert_eq!(gone(&alone), [("b".to_owned(), 1)]);
        let later = assignment("a", &["a"]).after(&alone, Timestamp(2));
        assert_eq!(later, alone);
        let back = both.after(&later, Timestamp(3));
        assert_eq!(gone(&back), []);
        let mut view = back;
        for number in 0..20 {
            let name = format!("c{number}");
            view = assignment("a", &["a", &name]).after(&view, Timestamp(number));
        }
        assert_eq!(gone(&view).len(), MOST_GONE);
        assert_eq!(gone(&view)[0], ("c18".to_owned(), 19));
    }

    #[test]
    fn an_account_that_is_unknown_or_displaced_has_nothing() {
        let alice = Account::from_login("alice");
        let unknown = Assignment::unknown("a".into());
        assert_eq!((unknown.owner(&alice), unknown.is_mine(&alice)), (None, false));
        let displaced = Assignment::new("a".into(), false, ["a".into()], 1);
        assert_eq!((displaced.owner(&alice), displaced.is_mine(&alice)), (Some("a"), false));
        assert!(Assignment::alone("a".into()).is_mine(&alice));
    }
}
