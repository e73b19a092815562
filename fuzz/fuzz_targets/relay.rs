//! The two lanes after login: whole against split input, and what comes out against a plain copy.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::imap::contract::{
    Action, DomainRoute, Output, Profile, PushOffer, ShownCapabilities,
};
use mailchime::imap::relay::Relay;
use mailchime::model::{Account, Snapshot};
use mailchime_fuzz::drive::{BareRelay, Happened, Log, assert_same, play};
use mailchime_fuzz::oracle::{
    Commands, Responses, announcement, contains, first_word, second_word,
};
use mailchime_fuzz::script::{Cut, Script, Side};

const PREFIX: &str = "mc7x";
const COMMAND_SIZE: usize = 600;
/// Of an answer to a question of ours that is longer, the rest is taken in pieces, as it comes.
const LONGEST_ANSWER: usize = 8 * 1024;
const OURS: [&str; 6] =
    ["XAPPLEPUSHSERVICE", "LOGIN", "AUTHENTICATE", "STARTTLS", "UNAUTHENTICATE", "COMPRESS"];
const OWN_CAPABILITIES: [&[u8]; 2] = [b"XAPPLEPUSHSERVICE", b"COMPRESS=DEFLATE"];

fn machine(script: &Script) -> BareRelay {
    let routes = vec![DomainRoute { domain: None, route: Some("com.apple.mail.XServer.x".into()) }];
    let push =
        PushOffer { routes, clients: vec!["com.apple.mobilemail".into()], most_mailboxes: 4 };
    let profile = Profile {
        backend: None,
        logins_elsewhere: Default::default(),
        push: (!script.option(0)).then_some(push),
        relay_mechanisms: false,
        master: false,
        routed: Vec::new(),
        commands: 10_000,
        command_size: COMMAND_SIZE,
        capability_size: 600,
        compress: true,
        shown: ShownCapabilities::default(),
    };
    let account = (!script.option(1)).then(|| Account::from_login("alice@example.org"));
    BareRelay {
        relay: Relay::new(Arc::new(profile), account, PREFIX.into()),
        output: Output::default(),
    }
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some(script) = Script::parse(data) else { return Corpus::Reject };
    let client = script.said(Side::Client);
    // No client can guess what our tags begin with.
    if contains(&client, PREFIX) || client.len() > 40_000 {
        return Corpus::Reject;
    }
    let backend = script.said(Side::Backend);
    let whole = play(&mut machine(&script), &script, Cut::Whole);
    // Byte by byte each is looked at again with what is kept.
    let few = client.len() + backend.len() < 4_000;
    for cut in [Cut::Pieces, Cut::Bytes].into_iter().take(1 + usize::from(few)) {
        assert_same(&whole, &play(&mut machine(&script), &script, cut), cut);
    }
    if !OURS.iter().any(|verb| contains(&client, verb)) && !contains(&backend, "CAPABILITY") {
        plain_copy(&whole, &client, &backend);
    }
    said_in_their_places(&whole, &client, &backend);
    only_ours_is_taken(&whole);
    Corpus::Keep
});

/// With nothing of ours in it, the same bytes come out that went in.
fn plain_copy(log: &Log, client: &[u8], backend: &[u8]) {
    for happened in &log.happened {
        assert!(matches!(happened, Happened::Forwarded(..)), "{happened:?}");
    }
    assert!(client.starts_with(&log.to_backend), "the backend hears what the client says");
    assert!(backend.starts_with(&log.to_client), "the client hears what the backend says");
    if log.closed.is_some() {
        assert!(client.split(|b| b" \r\n".contains(b)).any(|word| word.len() > 1024));
        return;
    }
    assert_eq!(log.to_client.len(), backend.len(), "all of it");
    // Only a go-ahead that did not come may hold the client's bytes.
    let may_wait = contains(client, "IDLE")
        || client.split_inclusive(|b| *b == b'\n').any(|l| announcement(l).is_some_and(|a| a.1));
    assert!(may_wait || log.to_backend.len() == client.len(), "all of it");
}

/// What mailchime says breaks into nothing and has the form of whole lines.
fn said_in_their_places(log: &Log, client: &[u8], backend: &[u8]) {
    let long = |bytes: &[u8]| bytes.split(|b| *b == b'\n').any(|line| line.len() > 1000);
    let waits = client
        .split_inclusive(|b| *b == b'\n')
        .any(|line| announcement(line).is_some_and(|(_, waits)| waits));
    let idles = contains(client, "IDLE");
    let follows = !waits && !idles && !long(client);
    let (mut responses, mut commands) = (Responses::default(), Commands::default());
    for happened in &log.happened {
        match happened {
            Happened::Forwarded(Side::Backend, bytes) => responses.feed(bytes),
            Happened::Forwarded(Side::Client, bytes) => commands.feed(bytes),
            Happened::Said(Side::Client, bytes) => {
                if !long(backend) {
                    assert!(responses.at_boundary(), "into a response: {}", bytes.escape_ascii());
                    responses.feed(bytes);
                    assert!(responses.at_boundary(), "half of one: {}", bytes.escape_ascii());
                }
            }
            Happened::Said(Side::Backend, bytes) => {
                assert!(!follows || commands.at_boundary(), "into a command of the client");
                let text = bytes.strip_suffix(b"\r\n").expect("a whole line");
                assert!(text.starts_with(PREFIX.as_bytes()), "{}", bytes.escape_ascii());
                assert!(!text.iter().any(|b| b"\r\n\0".contains(b)), "{}", bytes.escape_ascii());
                assert_eq!(announcement(bytes), None, "{}", bytes.escape_ascii());
                let verb = second_word(text).expect("a verb");
                assert!(verb == b"NOOP" || verb == b"STATUS", "{}", bytes.escape_ascii());
            }
            Happened::Taken(..) | Happened::Did(_) => {}
        }
    }
}

/// What does not pass is a command of ours, an answer to one of our questions, or a capability list
/// that passes edited.
fn only_ours_is_taken(log: &Log) {
    let mut commands = Vec::new();
    // Of the questions for mailboxes: those that were answered, by no for good, and with numbers.
    let (mut answered, mut denied, mut statuses) = (0, 0, 0);
    let mut question: &[u8] = b"";
    // Refused without their tags, which may come yet.
    let mut refused: Vec<&[u8]> = Vec::new();
    // The last answer that was taken is longer, and has not ended.
    let mut answer_goes_on = false;
    let mut happened = log.happened.iter().peekable();
    while let Some(now) = happened.next() {
        match now {
            Happened::Taken(Side::Client, bytes) => commands.extend_from_slice(bytes),
            Happened::Said(Side::Backend, bytes) => {
                question = bytes;
                if second_word(bytes) == Some(b"NOOP") {
                    (answered, denied, statuses) = (0, 0, 0);
                }
            }
            Happened::Taken(Side::Backend, rest) if answer_goes_on => {
                answer_goes_on = !rest.ends_with(b"\n");
            }
            Happened::Forwarded(Side::Backend, bytes) => {
                assert!(!answer_goes_on, "the rest of an answer: {}", bytes.escape_ascii());
            }
            Happened::Taken(Side::Backend, line) => {
                let tag = first_word(line);
                if !question.is_empty() && tag == first_word(question) {
                    answer_goes_on = line.len() > LONGEST_ANSWER && !line.ends_with(b"\n");
                    answered += usize::from(is_status_question(question));
                    denied += usize::from(is_denied(question, line));
                    question = b"";
                } else if let Some(place) = refused.iter().position(|refused| *refused == tag) {
                    refused.remove(place);
                } else if tag == b"*"
                    && second_word(line).is_some_and(|word| word.eq_ignore_ascii_case(b"BAD"))
                    && !contains(line, "[CAPABILITY")
                {
                    assert!(!question.is_empty(), "taken: {}", line.escape_ascii());
                    refused.push(first_word(question));
                    answered += usize::from(is_status_question(question));
                    question = b"";
                    let passes = matches!(happened.peek(), Some(Happened::Said(Side::Client, said))
                        if said.starts_with(line));
                    assert!(passes, "kept from the client: {}", line.escape_ascii());
                } else if second_word(line).is_some_and(|w| w.eq_ignore_ascii_case(b"STATUS")) {
                    statuses += 1;
                } else {
                    assert!(contains(line, "CAPABILITY"), "{}", line.escape_ascii());
                    let Some(Happened::Said(Side::Client, edited)) = happened.peek() else {
                        panic!("taken: {}", line.escape_ascii());
                    };
                    edit(line, edited);
                }
            }
            Happened::Did(Action::Register(registration)) => {
                let mailboxes = &registration.mailboxes;
                assert!(mailboxes.len() <= answered - denied, "a mailbox that was denied");
                let known = mailboxes.iter().filter(|(_, state)| *state != Snapshot::default());
                assert!(known.count() <= statuses, "numbers that nobody told");
                assert!(mailboxes.len() <= 4);
                assert_eq!(registration.account.as_str(), "alice@example.org");
            }
            _ => {}
        }
    }
    whole_commands(&commands);
}

fn is_status_question(question: &[u8]) -> bool {
    second_word(question) == Some(b"STATUS")
}

/// Whether the answer says that there is no such mailbox, or none for this user. There is always an INBOX.
fn is_denied(question: &[u8], answer: &[u8]) -> bool {
    let words: Vec<&[u8]> = answer.split(|b| b" \r\n".contains(b)).collect();
    let [_, status, code, ..] = words.as_slice() else { return false };
    is_status_question(question)
        && !contains(question, "INBOX")
        && [&b"NO"[..], b"BAD"].iter().any(|no| status.eq_ignore_ascii_case(no))
        && [&b"[NONEXISTENT]"[..], b"[NOPERM]", b"[TRYCREATE]"]
            .iter()
            .any(|known| code.eq_ignore_ascii_case(known))
}

fn edit(line: &[u8], edited: &[u8]) {
    let words = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let words = bytes.split(|b| b" []\r\n".contains(b));
        words.map(<[u8]>::to_vec).filter(|word| !word.is_empty()).collect()
    };
    let known = words(line);
    for word in words(edited) {
        assert!(
            known.contains(&word) || OWN_CAPABILITIES.contains(&&word[..]),
            "{} became {}",
            line.escape_ascii(),
            edited.escape_ascii()
        );
    }
    assert_eq!(first_word(line), first_word(edited));
}

/// These bytes are commands of ours, one after the other, and nothing else.
fn whole_commands(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let verb = second_word(bytes).unwrap_or_default();
        let ours = OURS.iter().any(|ours| verb.eq_ignore_ascii_case(ours.as_bytes()));
        assert!(ours, "taken: {}", bytes.escape_ascii());
        let mut end = 0;
        loop {
            let Some(feed) = bytes[end..].iter().position(|b| *b == b'\n') else { return };
            let line = &bytes[end..end + feed + 1];
            end += feed + 1;
            let Some((length, _)) = announcement(line) else { break };
            if length.saturating_add(end as u64) > COMMAND_SIZE as u64 {
                // Whether it goes on depends on who waits for whom.
                return;
            }
            end = bytes.len().min(end + length as usize);
        }
        bytes = &bytes[end..];
    }
}
