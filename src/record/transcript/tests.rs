//! What is written of streams that are cut short or are no text.

use proptest::prelude::*;

use super::*;
use crate::demo::dialogue::Dialogue;

fn transcript() -> Transcript {
    let profile = Profile {
        backend: None,
        logins_elsewhere: Default::default(),
        push: None,
        relay_mechanisms: false,
        master: false,
        routed: Vec::new(),
        commands: 10_000,
        command_size: 1024,
        capability_size: 1024,
        compress: true,
        shown: Default::default(),
    };
    Transcript::new(&profile, true)
}

#[test]
fn a_literal_without_its_go_ahead_is_still_a_literal() {
    let mut transcript = transcript();
    transcript.said(Duration::ZERO, Flow::CF, b"a APPEND x {11}\r\nDear secret\r\n");
    assert!(transcript.text.ends_with("CF: a APPEND x {11}\nCF: ${*11}\\\nCF: \n"));
    transcript.said(Duration::ZERO, Flow::CF, b"b APPEND x {11}\r\n");
    transcript.said(Duration::from_secs(2), Flow::BS, b"b NO none\r\n");
    transcript.said(Duration::from_secs(2), Flow::CF, b"c NOOP\r\n");
    assert!(
        transcript.text.ends_with("\n\n# 2.000 s\nBS: b NO none\nCF: c NOOP\n"),
        "{}",
        transcript.text
    );
}

#[test]
fn a_literal_without_end_is_written_as_far_as_it_comes() {
    let mut transcript = transcript();
    transcript.said(Duration::ZERO, Flow::BS, b"* 1 FETCH (BODY[] {18446744073709551615}\r\n");
    let begun = transcript.text.len();
    assert!(transcript.text.ends_with("BS: ${*16777216}\\\n"), "{}", transcript.text);
    let mebibyte = vec![b'x'; 1024 * 1024];
    for _ in 0..40 {
        transcript.said(Duration::ZERO, Flow::BS, &mebibyte);
    }
    assert_eq!(&transcript.text[begun..], "BS: ${*16777216}\\\n".repeat(2));
}

#[test]
fn what_is_not_text_comes_back_from_the_file() {
    let mut transcript = transcript();
    let said = b"* OK a\\xb \\\r\n* OK \xff\x00\x1b\xc3\xbc\n";
    transcript.said(Duration::ZERO, Flow::BS, said);
    let dialogue = Dialogue::parse(&transcript.text).unwrap();
    let crate::demo::dialogue::What::Says(_, text) = &dialogue.events[0].what else { panic!() };
    assert_eq!(text.bytes().escape_ascii().to_string(), said.escape_ascii().to_string());
}

#[test]
fn a_login_with_nothing_in_it_is_no_setting() {
    let mut transcript = transcript();
    transcript.said(Duration::ZERO, Flow::C, b"a LOGIN \"\" \"\"\r\nb LOGIN \" bob\" \" \"\r\n");
    Dialogue::parse(&transcript.text).unwrap();
    assert!(!transcript.text.contains("\n@ user"), "{}", transcript.text);
}

proptest! {
    #[test]
    fn any_conversation_is_a_dialogue(
        said in prop::collection::vec(
            (
                0usize..6,
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..30),
                    "(a |b |\\* |\\+ |m2 )(LOGIN |AUTHENTICATE PLAIN |OK |FETCH |ID |X)?[ -~]{0,20}(\\{[0-9]{1,2}\\+?\\})?\r\n"
                        .prop_map(String::into_bytes),
                ],
            ),
            1..20,
        ),
    ) {
        let mut transcript = transcript();
        transcript.happens(Duration::ZERO, "connect");
        for (flow, bytes) in said {
            let flow = [Flow::C, Flow::CF, Flow::B, Flow::BS, Flow::S, Flow::F][flow];
            transcript.said(Duration::ZERO, flow, &bytes);
        }
        transcript.end();
        let parsed = Dialogue::parse(&transcript.text);
        prop_assert!(parsed.is_ok(), "{parsed:?}\n{}", transcript.text);
    }
}
