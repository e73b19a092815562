//! Mailboxes that are due; part of the contract.

use mailchime::store::{DueMailbox, DueMark, LookedAt, NodeMarks};

use super::*;

fn mark(
    account: &Account,
    mailbox: Option<&str>,
    state: Option<Snapshot>,
    for_another_node: bool,
) -> DueMark {
    let (account, mailbox) = (account.clone(), mailbox.map(Mailbox::new));
    let (shown_flags, is_due) = (false, true);
    DueMark { account, mailbox, state, shown_flags, is_due, for_another_node }
}

/// A mailbox that is due since [`marked`].
fn looked_at(account: &Account, mailbox: &str, count: i64) -> LookedAt {
    let marks = NodeMarks { since: Timestamp(9), count };
    LookedAt { account: account.clone(), mailbox: Mailbox::new(mailbox), marks }
}

async fn marked(store: &Store, marks: &[DueMark]) {
    store.mark_due(&[], marks, Timestamp(9)).await.unwrap();
}

/// Alice's mailbox was looked at, by a watcher that has seen so many marks.
async fn look(store: &Store, mailbox: &str, marks: i64) {
    let looked_at = looked_at(&alice(), mailbox, marks);
    store.mark_due(&[looked_at], &[], Timestamp(10)).await.unwrap();
}

/// Alice's mailboxes that are due, as `name marks uid_next`.
async fn due(store: &Store) -> Vec<String> {
    let (_, due) = store.watched_and_due(&alice(), &imap(), EVER).await.unwrap();
    let mut due: Vec<_> = due.iter().map(shown).collect();
    due.sort();
    due
}

fn shown(due: &DueMailbox) -> String {
    let state = due.state.and_then(|state| state.uid_next);
    format!(
        "{} {} {}",
        due.mailbox,
        due.marks.count,
        state.map_or("-".into(), |next| next.to_string())
    )
}

pub(super) async fn a_mailbox_is_due_until_it_was_looked_at(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX", "Team", "team "], 5, 100).await;
    assert_eq!(due(&store).await, [""; 0]);
    // Of what nobody has registered for nothing is noted.
    let unknown = [mark(&bob(), None, None, true), mark(&alice(), Some("Other"), None, true)];
    marked(&store, &unknown).await;
    assert_eq!(due(&store).await, [""; 0]);
    marked(&store, &[mark(&alice(), Some("Team"), None, false)]).await;
    assert_eq!(due(&store).await, ["Team 0 -"]);
    marked(&store, &[mark(&alice(), None, None, false)]).await;
    assert_eq!(due(&store).await, ["INBOX 0 -", "Team 0 -", "team  0 -"]);
    let looked = ["INBOX", "team ", "Other"].map(|name| looked_at(&alice(), name, 0));
    store.mark_due(&looked, &[], Timestamp(10)).await.unwrap();
    assert_eq!(due(&store).await, ["Team 0 -"]);
    // Marks are made behind that.
    let again = mark(&alice(), Some("Team"), None, false);
    let looked = looked_at(&alice(), "Team", 0);
    store.mark_due(&[looked], &[again], Timestamp(11)).await.unwrap();
    assert_eq!(due(&store).await, ["Team 0 -"]);
    // Of other mailboxes in the same call, in whatever numbers.
    let looked = ["Team", "Other", "Old"].map(|name| looked_at(&alice(), name, 0));
    let marks = [
        mark(&alice(), Some("INBOX"), Some(state(7)), true),
        mark(&alice(), Some("team "), None, false),
        mark(&alice(), Some("Unknown"), None, false),
        mark(&bob(), Some("INBOX"), None, true),
        DueMark { is_due: false, ..mark(&alice(), Some("Team"), None, false) },
    ];
    let known = store.mark_due(&looked, &marks, Timestamp(12)).await.unwrap();
    assert_eq!(known, [true, true, false, false, true]);
    assert_eq!(due(&store).await, ["INBOX 1 7", "team  0 -"]);
}

pub(super) async fn a_mark_of_another_node_outlives_a_look_that_did_not_see_it(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    let of_others = |next| mark(&alice(), Some("INBOX"), Some(state(next)), true);
    marked(&store, &[of_others(6)]).await;
    assert_eq!(due(&store).await, ["INBOX 1 6"]);
    // Word of this node says nothing of what the others have written.
    marked(&store, &[mark(&alice(), Some("INBOX"), Some(state(9)), false)]).await;
    assert_eq!(due(&store).await, ["INBOX 1 6"]);
    marked(&store, &[of_others(6)]).await;
    assert_eq!(due(&store).await, ["INBOX 2 6"]);
    // Which of two states is the later one only a look can say.
    marked(&store, &[of_others(7)]).await;
    marked(&store, &[of_others(7)]).await;
    assert_eq!(due(&store).await, ["INBOX 4 -"]);
    look(&store, "INBOX", 3).await;
    assert_eq!(due(&store).await, ["INBOX 4 -"]);
    // Two looks that are noted together count as the later one.
    let looked = [3, 4].map(|marks| looked_at(&alice(), "INBOX", marks));
    store.mark_due(&looked, &[], Timestamp(10)).await.unwrap();
    assert_eq!(due(&store).await, [""; 0]);
    // Within one call, too; and all mailboxes with one of them.
    marked(&store, &[of_others(7), of_others(8)]).await;
    assert_eq!(due(&store).await, ["INBOX 1 -"]);
    look(&store, "INBOX", 1).await;
    marked(&store, &[of_others(7), mark(&alice(), None, None, true)]).await;
    assert_eq!(due(&store).await, ["INBOX 2 -"]);
    // A sweep does not hide what the others say.
    look(&store, "INBOX", 2).await;
    marked(&store, &[mark(&alice(), None, None, false)]).await;
    marked(&store, &[of_others(8)]).await;
    assert_eq!(due(&store).await, ["INBOX 1 8"]);

    // Nor does a second look hide what they say after the first one, which it has not seen.
    let since_10 = NodeMarks { since: Timestamp(10), count: 1 };
    look(&store, "INBOX", 1).await;
    store.mark_due(&[], &[of_others(9)], Timestamp(10)).await.unwrap();
    look(&store, "INBOX", 1).await;
    assert_eq!(due(&store).await, ["INBOX 1 9"]);
    let looked = LookedAt { marks: since_10, ..looked_at(&alice(), "INBOX", 1) };
    store.mark_due(&[looked], &[], Timestamp(11)).await.unwrap();
    assert_eq!(due(&store).await, [""; 0]);
    // Of looks that are noted together the one counts that has seen these marks, whatever the nodes' clocks say.
    store.mark_due(&[], &[of_others(9)], Timestamp(8)).await.unwrap();
    let since_8 = NodeMarks { since: Timestamp(8), count: 1 };
    let looked =
        [since_8, since_10].map(|marks| LookedAt { marks, ..looked_at(&alice(), "INBOX", 1) });
    store.mark_due(&looked, &[], Timestamp(11)).await.unwrap();
    assert_eq!(due(&store).await, [""; 0]);
    // It has not seen what this node has marked since.
    marked(&store, &[mark(&alice(), Some("INBOX"), None, false)]).await;
    store.mark_due(&looked, &[], Timestamp(11)).await.unwrap();
    assert_eq!(due(&store).await, ["INBOX 0 -"]);
    look(&store, "INBOX", 0).await;

    let other = store.clone().of_node("2".into());
    other.join("b").await.unwrap();
    register(&store, device(&bob(), 'a'), &["INBOX"], 5, 100).await;
    other.take_news("b", 10).await.unwrap();
    let marks = [mark(&alice(), None, None, true), mark(&bob(), None, None, false)];
    marked(&store, &marks).await;
    let news = |account| {
        let (login, event, named) = (false, true, false);
        [NodeNews::Invalidation(Invalidation { account, login, event, named })]
    };
    assert_eq!(other.take_news("b", 10).await.unwrap(), news(alice()));
    // Nor of an account that is not there. What is not due gets no mark.
    let word = |account: &Account| DueMark { is_due: false, ..mark(account, None, None, true) };
    let word_of = [word(&bob()), word(&Account::from_login("nobody"))];
    for _ in 0..2 {
        let known = store.mark_due(&[], &word_of, Timestamp(10)).await.unwrap();
        assert_eq!(known, [true, false]);
    }
    assert_eq!(other.take_news("b", 10).await.unwrap(), news(bob()));
    let (_, of_bob) = store.watched_and_due(&bob(), &imap(), EVER).await.unwrap();
    assert_eq!(of_bob.len(), 1);
    let inbox_alone =
        [mark(&alice(), Some("INBOX"), None, false), mark(&alice(), Some("Team"), None, false)];
    assert_eq!(store.mark_due(&[], &inbox_alone, Timestamp(10)).await.unwrap(), [true, false]);
    // Nor is anything told of a mailbox for which nobody has registered.
    marked(&store, &[mark(&alice(), Some("Team"), None, true)]).await;
    assert_eq!(other.take_news("b", 10).await.unwrap(), []);
}

pub(super) async fn those_that_are_due_for_longest_come_first(store: Store) {
    let names = ["carol", "dave", "erin"].map(Account::from_login);
    for account in &names {
        register(&store, device(account, 'a'), &["INBOX", "Team"], 5, 100).await;
    }
    let [carol, dave, erin] = &names;
    for (account, mailbox, at) in [(dave, "INBOX", 3), (carol, "Team", 2), (dave, "Team", 1)] {
        let mark = mark(account, Some(mailbox), None, false);
        store.mark_due(&[], &[mark], Timestamp(at)).await.unwrap();
    }
    // A mark that is there keeps its time.
    let all: Vec<_> = names.iter().map(|account| mark(account, None, None, false)).collect();
    store.mark_due(&[], &all, Timestamp(4)).await.unwrap();
    let due = store.due_accounts().await.unwrap();
    let expected = [(dave, 1), (carol, 2), (erin, 4)];
    assert_eq!(due, expected.map(|(account, since)| (account.clone(), Timestamp(since))));
}
