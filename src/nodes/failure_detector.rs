//! Who is dead: a node whose row has been the same at so many looks in a row.
//!
//! Pure. No clock is asked, neither the nodes' nor the database's, and a look that failed does not
//! count: while the database is away nobody dies.

use std::collections::HashMap;

use crate::store::Node;

/// What was seen of the other nodes.
#[derive(Debug)]
pub(super) struct FailureDetector {
    /// So many looks at an unchanged row are too many.
    patience: u32,
    /// By name: the row as it was, and how often it has been seen so.
    seen: HashMap<String, (Node, u32)>,
}

impl FailureDetector {
    pub(super) fn new(patience: u32) -> Self {
        Self { patience, seen: HashMap::new() }
    }

    /// Takes in the rows of one look; returns those of nodes that are dead.
    pub(super) fn look<'a>(&mut self, rows: impl IntoIterator<Item = &'a Node>) -> Vec<Node> {
        let mut seen = HashMap::new();
        let mut dead = Vec::new();
        for row in rows {
            let times = match self.seen.remove(&row.name) {
                Some((before, times)) if before == *row => times + 1,
                _ => 1,
            };
            if times > self.patience {
                dead.push(row.clone());
            }
            seen.insert(row.name.clone(), (row.clone(), times));
        }
        self.seen = seen;
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, incarnation: &str, heartbeat: i64) -> Node {
        Node { name: name.into(), incarnation: incarnation.into(), heartbeat }
    }

    #[test]
    fn a_node_without_a_change_for_so_many_heartbeats_is_dead() {
        let mut detector = FailureDetector::new(3);
        for heartbeat in 0..10 {
            assert_eq!(
                detector.look(&[node("a", "1", heartbeat), node("b", "1", heartbeat / 3)]),
                []
            );
        }
        // Both have been seen as they are once.
        let rows = [node("a", "1", 9), node("b", "1", 3)];
        assert_eq!((detector.look(&rows), detector.look(&rows)), (vec![], vec![]));
        assert_eq!(detector.look(&rows), rows);
    }

    #[test]
    fn another_process_of_the_name_or_one_that_comes_back_begins_anew() {
        let mut detector = FailureDetector::new(2);
        let row = [node("a", "1", 0)];
        assert_eq!((detector.look(&row), detector.look(&row)), (vec![], vec![]));
        assert_eq!(detector.look(&[node("a", "2", 0)]), []);
        assert_eq!((detector.look(&row), detector.look(&row)), (vec![], vec![]));
        assert_eq!(detector.look(&[]), []);
        assert_eq!((detector.look(&row), detector.look(&row)), (vec![], vec![]));
        assert_eq!(detector.look(&row), row);
    }
}
