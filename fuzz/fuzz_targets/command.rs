//! The first bytes of lines, whole commands put together from pieces, and their arguments.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::imap::args::{
    astring, astring_list, atom_and_word, id_fields, login, quote, string, tag_and_verb,
};
use mailchime::imap::collect::{Collector, Progress};
use mailchime::imap::literal::{Announcement, ResponseEnd, Tail, end_of_response};
use mailchime::imap::peek::{self, LONGEST_HEAD};
use mailchime_fuzz::oracle::{Responses, announcement};

const LIMIT: usize = 200;

fuzz_target!(|data: &[u8]| -> Corpus {
    peeking(data);
    announcements(data);
    collecting(data);
    arguments(data);
    ends(data);
    Corpus::Keep
});

/// An early decision is the same as that on the whole line, and a whole line is always decided.
fn peeking(data: &[u8]) {
    let line = data.split_inclusive(|b| *b == b'\n').next().unwrap_or_default();
    let (command, response) = (shown(peek::command(line)), shown(peek::response(line)));
    if line.ends_with(b"\n") || line.len() > LONGEST_HEAD {
        assert!(command.is_some() && response.is_some());
    }
    // What follows the line says nothing about it.
    if line.ends_with(b"\n") {
        assert_eq!(shown(peek::command(data)), command);
        assert_eq!(shown(peek::response(data)), response);
    }
    for cut in 0..line.len().min(LONGEST_HEAD + 2) {
        let early = shown(peek::command(&line[..cut]));
        assert!(early.is_none() || early == command, "{early:?} {command:?} after {cut}");
        let early = shown(peek::response(&line[..cut]));
        assert!(early.is_none() || early == response, "{early:?} {response:?} after {cut}");
    }
}

fn shown(peeked: Option<impl std::fmt::Debug>) -> Option<String> {
    peeked.map(|peeked| format!("{peeked:?}"))
}

fn announcements(data: &[u8]) {
    for line in data.split_inclusive(|b| *b == b'\n') {
        let found = Announcement::at_end_of(line).map(|found| (found.length, found.synchronising));
        assert_eq!(found, announcement(line), "{}", line.escape_ascii());
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        for step in [1, 3, 20] {
            let mut tail = Tail::default();
            text.chunks(step).for_each(|piece| tail.push(piece));
            let found = tail.announcement(b"").map(|found| (found.length, found.synchronising));
            assert_eq!(found, announcement(line), "{step}: {}", line.escape_ascii());
        }
    }
}

fn collecting(data: &[u8]) {
    let whole = collect(data, data.len().max(1));
    for step in [1, 2, 7] {
        assert_eq!(collect(data, step), whole, "{step}");
    }
    // Nothing is lost or made up: each command is a part of the input, in order.
    let mut rest = data;
    for (command, _, _) in &whole {
        let at = rest.windows(command.len().max(1)).position(|part| part == &command[..]);
        rest = &rest[at.expect("a part of the input")..];
        rest = &rest[command.len()..];
    }
}

type Collected = (Vec<u8>, Progress, usize);

/// Commands, what was known of each, and how often a go-ahead was given.
fn collect(data: &[u8], step: usize) -> Vec<Collected> {
    let mut collector = Collector::new(LIMIT);
    let (mut commands, mut goes) = (Vec::new(), 0);
    for piece in data.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            let (used, progress) = collector.push(rest);
            assert!(used > 0, "no progress");
            rest = &rest[used..];
            match progress {
                Progress::More => assert!(rest.is_empty()),
                Progress::Continue => goes += 1,
                Progress::Whole | Progress::TooLong | Progress::Refused => {
                    assert_eq!(progress == Progress::Whole, !collector.is_too_long());
                    let command = collector.take();
                    assert!(command.len() <= LIMIT);
                    commands.push((command, progress, std::mem::take(&mut goes)));
                    assert!(collector.is_empty() && !collector.is_too_long());
                }
            }
        }
    }
    commands
}

fn arguments(data: &[u8]) {
    if let Ok((arguments, (tag, verb))) = tag_and_verb(data) {
        assert!(data.starts_with(tag) && !tag.is_empty() && !verb.is_empty());
        assert!(data.ends_with(arguments));
        assert!(!tag.iter().chain(verb).any(|b| b" \r\n(){%*\"\\\0".contains(b) || *b >= 0x7f));
        if let Some((name, password)) = login(arguments) {
            let said = [b" ", &written(&name.bytes)[..], b" ", &written(&password.bytes), b"\r\n"]
                .concat();
            let (again, secret) = login(&said).expect("it is quoted");
            assert_eq!((again.bytes, secret.bytes), (name.bytes, password.bytes));
        }
        if let Some((name, more)) = atom_and_word(arguments) {
            let said = [b" ", name, b" ", more.unwrap_or(b"x"), b"\r\n"].concat();
            assert_eq!(atom_and_word(&said), Some((name, Some(more.unwrap_or(b"x")))));
        }
        for (name, value) in id_fields(arguments).unwrap_or_default() {
            assert!(name.len() + value.map_or(0, |value| value.len()) <= arguments.len());
        }
    }
    if let Ok((rest, text)) = astring(data) {
        assert!(rest.len() < data.len() && text.len() + rest.len() <= data.len());
        let said = written(&text);
        assert_eq!(string(&said).map(|(rest, again)| (rest.len(), again)), Ok((0, text)));
    }
    if let Ok((_, items)) = astring_list(data) {
        let said: Vec<_> = items.iter().map(|item| written(item)).collect();
        let said = [b"(", &said.join(&b" "[..])[..], b")"].concat();
        assert_eq!(astring_list(&said).map(|(rest, again)| (rest.len(), again)), Ok((0, items)));
    }
    if let Some(quoted) = quote(data) {
        assert_eq!(string(&quoted).map(|(rest, text)| (rest.len(), text)), Ok((0, data.into())));
        assert!(!quoted.iter().any(|b| b"\r\n\0".contains(b)));
    }
}

fn written(text: &[u8]) -> Vec<u8> {
    quote(text).unwrap_or_else(|| [format!("{{{}}}\r\n", text.len()).as_bytes(), text].concat())
}

/// The end of a response is where another reader finds it.
fn ends(data: &[u8]) {
    // To both a response; that of a status has its own reader.
    let data = [b"* 1 ", data].concat();
    let mut responses = Responses::default();
    let mut end = None;
    for (at, byte) in data.iter().enumerate() {
        responses.feed(&[*byte]);
        if responses.at_boundary() {
            end = Some(at + 1);
            break;
        }
    }
    let found = match end_of_response(&data) {
        ResponseEnd::At(length) => Some(length),
        ResponseEnd::Beyond => None,
    };
    assert_eq!(found, end, "{}", data.escape_ascii());
}
