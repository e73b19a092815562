//! What a backend says to a watcher: read in whole responses, and understood as it was said.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::imap::literal::ResponseEnd;
use mailchime::imap::responses::end_of_status_or_response;
use mailchime::imap::status::mailbox_status;
use mailchime::model::{ChangeKind, Snapshot};
use mailchime::watch::fuzzing::{difference, hear, merged, wait_after_refusal, with_new_mail};
use mailchime_fuzz::oracle::Responses;

fuzz_target!(|data: &[u8]| -> Corpus {
    let responses = responses(data);
    cuts(data, responses.first().map_or(0, |first| first.len()));
    let heard = hear(responses.iter().copied());
    assert!(heard.states.len() <= 1000);
    let said = |number: u64| {
        let number = number.to_string();
        data.windows(number.len()).any(|part| part == number.as_bytes())
    };
    if let Some(grown) = heard.grown {
        assert!(said(grown), "{grown} EXISTS came from nowhere");
    }
    for (_, state) in &heard.states {
        let Snapshot { uid_validity, uid_next, messages, unseen, highest_mod_seq } = *state;
        for number in [uid_validity, uid_next, messages, unseen, highest_mod_seq] {
            assert!(number.is_none_or(said), "{number:?} came from nowhere");
        }
    }
    let names = heard.states.iter().map(|(name, _)| name);
    for (at, name) in names.clone().enumerate() {
        assert!(!names.clone().take(at).any(|other| other == name), "{name:?} twice");
    }
    // What is only said again is no news.
    let again = hear(responses.iter().chain(responses.last()).copied());
    assert_eq!((again.grown, again.other), (heard.grown, heard.other));
    // What was said of mailboxes does not depend on what was said between.
    let statuses = responses.iter().filter(|response| mailbox_status(response).is_some());
    let apart = hear(statuses.copied());
    assert!(apart.grown.is_none() && !apart.other);
    assert_eq!(apart.states, heard.states);
    snapshots(&heard.states.iter().map(|(_, state)| *state).collect::<Vec<_>>());
    for response in &responses {
        refusals(response);
    }
    Corpus::Keep
});

/// As the watcher's connection reads them.
fn responses(data: &[u8]) -> Vec<&[u8]> {
    let (mut responses, mut rest) = (Vec::new(), data);
    let mut reader = Responses::default();
    while let ResponseEnd::At(length) = end_of_status_or_response(rest) {
        assert!(length > 0);
        let (response, after) = rest.split_at(length);
        if response.len() < 1000 {
            reader.feed(response);
            assert!(reader.at_boundary(), "another end: {}", response.escape_ascii());
        }
        responses.push(response);
        rest = after;
    }
    responses
}

/// The first response ends where it ends, however much of it and behind it is at hand.
fn cuts(data: &[u8], length: usize) {
    for cut in (0..data.len().min(300)).chain([data.len()]) {
        let expected =
            if length > 0 && cut >= length { ResponseEnd::At(length) } else { ResponseEnd::Beyond };
        assert_eq!(end_of_status_or_response(&data[..cut]), expected, "after {cut}");
    }
}

fn snapshots(states: &[Snapshot]) {
    for told in states {
        assert_eq!(difference(told, told), None, "no news");
        assert_eq!(merged(told, told), *told);
        let more = with_new_mail(told, 1);
        let counted = told.uid_next.or(told.messages).is_some_and(|number| number < u64::MAX);
        if counted {
            assert_eq!(difference(told, &more), Some(ChangeKind::NewMail), "{told:?}");
        }
        for now in states {
            let both = merged(told, now);
            // What was told last holds.
            assert_eq!(merged(&both, now), both);
            assert!(now.messages.is_none() || both.messages == now.messages);
            assert!(now.uid_next.is_none() || both.uid_next == now.uid_next);
            let new_mail = difference(told, now) == Some(ChangeKind::NewMail);
            let grew = [(told.uid_next, now.uid_next), (told.messages, now.messages)]
                .iter()
                .any(|(told, now)| told.zip(*now).is_some_and(|(told, now)| now > told));
            assert!(!new_mail || grew, "{told:?} {now:?}");
        }
    }
}

/// A password that may be wrong is not tried for ever, and no refusal is answered at once.
fn refusals(answer: &[u8]) {
    for tries in [1, 2, 3, 4, u32::MAX] {
        match wait_after_refusal(answer, tries) {
            Some(wait) => assert!(wait.as_secs() >= 1),
            None => assert!(tries >= 2),
        }
    }
    let temporary = wait_after_refusal(answer, u32::MAX).is_some();
    let text = String::from_utf8_lossy(answer).to_ascii_uppercase();
    let codes = ["UNAVAILABLE", "LIMIT", "INUSE", "SERVERBUG", "OVERQUOTA"];
    assert!(!temporary || codes.iter().any(|code| text.contains(&format!("[{code}"))));
}
