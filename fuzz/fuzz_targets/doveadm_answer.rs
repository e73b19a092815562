//! Answers of doveadm over HTTP: each user has an answer by its own tag, each mailbox a state by its own name, and what is
//! refused is short.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::model::{Account, Mailbox};
use mailchime::net::doveadm::{DoveadmQuery, fuzzed};

fuzz_target!(|data: &[u8]| -> Corpus {
    let query = |user: &str, mailboxes: &[&str]| DoveadmQuery {
        account: Account::from_login(user),
        mailboxes: mailboxes.iter().map(|name| Mailbox::new(name)).collect(),
    };
    let queries = [query("alice", &["INBOX", "T*m"]), query("bob", &[])];
    let Some(answers) = fuzzed(data, &queries) else { return Corpus::Keep };
    assert!(serde_json::from_slice::<serde_json::Value>(data).is_ok_and(|it| it.is_array()));
    assert_eq!(answers.len(), queries.len());
    for (answer, query) in answers.iter().zip(&queries) {
        match answer {
            Ok(states) => {
                assert_eq!(states.len(), query.mailboxes.len());
                let modseqs = states.iter().flatten().filter_map(|it| it.highest_mod_seq);
                assert!(modseqs.into_iter().all(|modseq| modseq > 0));
            }
            Err(why) => {
                assert!(why.chars().count() <= 1000, "{why}");
                assert!(!why.chars().any(char::is_control), "{why:?}");
            }
        }
    }
    Corpus::Keep
});
