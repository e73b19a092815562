//! Dialogue files: all that is read can be said, and what one side says is what the other expects.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::demo::dialogue::{Dialogue, Peer, Variables, What};

fuzz_target!(|file: &str| -> Corpus {
    let lines = file.lines().count();
    let dialogue = match Dialogue::parse(file) {
        Ok(dialogue) => dialogue,
        Err(malformed) => {
            assert!((1..=lines.max(1)).contains(&malformed.line), "line {}", malformed.line);
            assert!(!malformed.problem.is_empty());
            return Corpus::Keep;
        }
    };
    assert!(!dialogue.events.is_empty());
    let windows = file.replace('\n', "\r\n").replace("\r\r\n", "\r\n");
    assert!(Dialogue::parse(&windows).is_ok());
    let mut variables = Variables::of(&dialogue.settings);
    let mut last = 0;
    // What stands for content may be sixteen million bytes long.
    let fills = file.contains("${*");
    for event in &dialogue.events {
        assert!(event.line >= last && event.line <= lines, "line {}", event.line);
        last = event.line;
        let (What::Says(peer, text) | What::Hears(peer, text)) = &event.what else { continue };
        assert!(matches!(peer, Peer::Client | Peer::Backend));
        assert!(!text.bytes().is_empty() || file.contains(":"));
        let lines = text.lines().map(|line| line.bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(lines.concat(), text.bytes());
        if fills || text.bytes().len() > 10_000 {
            continue;
        }
        let said = text.filled(&mut variables);
        if !text.bytes().windows(2).any(|part| part == b"${") {
            assert_eq!(said, text.bytes());
            let told = text.compare(&said, &mut variables);
            assert_eq!(told, Ok(()), "one side says what the other expects");
            let more = [&said[..], b"x"].concat();
            let difference = text.compare(&more, &mut variables).expect_err("more than expected");
            assert!(difference.line == text.line() && difference.expected != difference.heard);
        } else {
            // Whatever comes of it.
            let _ = text.compare(&said, &mut variables.clone());
        }
    }
    Corpus::Keep
});
