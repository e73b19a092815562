//! Logins as dialogues with a backend, and what becomes of them.

use super::*;
use crate::model::Credentials;

/// Plays `dialogue` (`B: ` the backend says, `M: ` must be said to it), a byte at a time.
fn play(attempt: impl Into<LoginAttempt>, dialogue: &[&str]) -> Option<LoginOutcome> {
    let mut login = BackendLogin::new(attempt.into(), options());
    play_on(&mut login, dialogue)
}

fn play_on(login: &mut BackendLogin, dialogue: &[&str]) -> Option<LoginOutcome> {
    let (mut input, mut out, mut outcome) = (Vec::new(), Vec::new(), None);
    for line in dialogue {
        if let Some(text) = line.strip_prefix("B: ") {
            for byte in text.bytes().chain(*b"\r\n") {
                assert!(outcome.is_none(), "more after the end: {line}");
                input.push(byte);
                let (used, end) = login.step(&input, &mut out);
                input.drain(..used);
                outcome = end;
            }
        } else {
            let text = line.strip_prefix("M: ").expect("a direction");
            let said = String::from_utf8(std::mem::take(&mut out)).unwrap();
            assert_eq!(said, format!("{text}\r\n"));
        }
    }
    assert_eq!(out, b"", "nothing more is said");
    outcome
}

fn options() -> LoginOptions {
    LoginOptions { greeted: false, id: None, limit: 4096 }
}

/// By LOGIN with two strings that were written so.
fn by_login(credentials: Credentials, name: Option<&str>, password: Option<&str>) -> LoginAttempt {
    let secret = |text: &str| Secret(text.as_bytes().to_vec());
    let written = WrittenLogin { name: name.map(secret), password: password.map(secret) };
    LoginAttempt::Credentials { credentials, written: Some(written) }
}

fn alice_by_login() -> LoginAttempt {
    by_login(alice(), None, None)
}

fn alice() -> Credentials {
    Credentials::password("alice", b"wonder land".to_vec())
}

fn accepted(outcome: Option<LoginOutcome>) -> (String, String) {
    match outcome {
        Some(LoginOutcome::Accepted { untagged, answer, .. }) => {
            (String::from_utf8(untagged).unwrap(), String::from_utf8(answer).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn plain_with_initial_response() {
    let outcome = play(
        alice(),
        &[
            "B: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi {5}",
            "M: m2 AUTHENTICATE PLAIN AGFsaWNlAHdvbmRlciBsYW5k",
            "B: * CAPABILITY IMAP4rev1 IDLE",
            "B: m2 OK Logged in",
        ],
    );
    let expected = ("* CAPABILITY IMAP4rev1 IDLE\r\n".into(), " OK Logged in\r\n".into());
    assert_eq!(accepted(outcome), expected);
}

#[test]
fn plain_without_initial_response_after_asking() {
    let outcome = play(
        alice(),
        &[
            "B: * OK hi",
            "M: m1 CAPABILITY",
            "B: * CAPABILITY IMAP4rev1 AUTH=PLAIN LOGINDISABLED",
            "B: m1 OK done",
            "M: m2 AUTHENTICATE PLAIN",
            "B: + ",
            "M: AGFsaWNlAHdvbmRlciBsYW5k",
            "B: m2 OK [CAPABILITY IMAP4rev1] in",
        ],
    );
    assert_eq!(accepted(outcome).1, " OK [CAPABILITY IMAP4rev1] in\r\n");
}

#[test]
fn login_is_sent_as_it_was_written_and_else_quoted() {
    let said = |attempt: LoginAttempt, sent: &[&str]| {
        let greeting = ["B: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi"];
        let dialogue = [&greeting[..], sent, &["B: m2 OK in"]].concat();
        play(attempt, &dialogue).expect("an outcome");
    };
    let bob = || Credentials::password("bob", b"q\"uo\\te".to_vec());
    let zip = || Credentials::password("x%y", b"Zip~ped9".to_vec());
    said(by_login(bob(), None, None), &[r#"M: m2 LOGIN "bob" "q\"uo\\te""#]);
    said(by_login(zip(), None, None), &[r#"M: m2 LOGIN "x%y" "Zip~ped9""#]);
    said(by_login(zip(), None, Some("Zip~ped9")), &[r#"M: m2 LOGIN "x%y" Zip~ped9"#]);
    let umlaut = || Credentials::password("ü", "pä".as_bytes().to_vec());
    said(by_login(umlaut(), Some("\"ü\""), Some("\"pä\"")), &["M: m2 LOGIN \"ü\" \"pä\""]);
    let literals = ["M: m2 LOGIN {2}", "B: + OK", "M: ü {3}", "B: + OK", "M: pä"];
    said(by_login(umlaut(), None, None), &literals);
    // What did not come by LOGIN goes by it where there is nothing else.
    let umlaut = LoginAttempt::from(umlaut());
    let dialogue = [&["B: * OK [CAPABILITY IMAP4rev1] hi"][..], &literals, &["B: m2 OK in"]];
    play(umlaut.clone(), &dialogue.concat()).expect("an outcome");
    said(umlaut, &["M: m2 AUTHENTICATE PLAIN", "B: + ", "M: AMO8AHDDpA=="]);
}

#[test]
fn the_mechanism_login_is_used_where_there_is_no_other() {
    for (attempt, list) in [
        (alice_by_login(), "LOGINDISABLED AUTH=LOGIN SASL-IR"),
        (alice().into(), "LOGINDISABLED AUTH=login AUTH=CRAM-MD5"),
    ] {
        let greeting = format!("B: * OK [CAPABILITY IMAP4rev1 {list}] hi");
        let dialogue = [
            &greeting,
            "M: m2 AUTHENTICATE LOGIN",
            "B: + VXNlcm5hbWU6",
            "M: YWxpY2U=",
            "B: + UGFzc3dvcmQ6",
            "M: d29uZGVyIGxhbmQ=",
            "B: m2 OK in",
        ];
        accepted(play(attempt, &dialogue));
    }
}

#[test]
fn refusals_keep_their_text() {
    let outcome = play(
        alice_by_login(),
        &[
            "B: * OK [CAPABILITY IMAP4rev1] hi",
            "M: m2 LOGIN \"alice\" \"wonder land\"",
            "B: m2 NO [AUTHENTICATIONFAILED] no {3}",
        ],
    );
    let Some(LoginOutcome::Refused { answer, refusal, .. }) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(answer, b" NO [AUTHENTICATIONFAILED] no {3}\r\n");
    assert_eq!(refusal, Refusal::Wrong);
}

/// A login that the backend has been sent and then says this to.
fn answered(said: &[&str]) -> (BackendLogin, Option<LoginOutcome>) {
    let mut login = BackendLogin::new(alice_by_login(), options());
    let sent = ["B: * OK [CAPABILITY IMAP4rev1] hi", "M: m2 LOGIN \"alice\" \"wonder land\""];
    let outcome = play_on(&mut login, &[&sent[..], said].concat());
    (login, outcome)
}

#[test]
fn what_is_said_without_a_tag_tells_why_a_login_is_refused() {
    use Refusal::{Barred, Temporary, Unexplained, Wrong};
    for (said, expected) in [
        (&["B: * NO [UNAVAILABLE] no database", "B: m2 NO Login failed"][..], Temporary),
        (&["B: * bad [serverbug] oops", "B: m2 BAD"], Temporary),
        (&["B: * BYE [UNAVAILABLE] later", "B: m2 NO Login failed"], Temporary),
        (&["B: * BYE", "B: m2 NO [AUTHENTICATIONFAILED] no"], Wrong),
        (&["B: * NO [WEBALERT x] go there", "B: m2 NO [ALERT] no (Failure)"], Barred),
        // The answer counts where it tells, and the first of the others.
        (&["B: * NO [UNAVAILABLE] x", "B: m2 NO [AUTHENTICATIONFAILED] x"], Wrong),
        (&["B: * NO [EXPIRED] x", "B: * NO [LIMIT] x", "B: m2 NO x"], Wrong),
        (&["B: * OK [UNAVAILABLE] x", "B: * NO not now", "B: m2 NO x"], Unexplained),
    ] {
        let (_, outcome) = answered(said);
        let Some(LoginOutcome::Refused { refusal, untagged, .. }) = outcome else {
            panic!("{said:?}")
        };
        assert_eq!(refusal, expected, "{said:?}");
        let kept = said.iter().filter(|line| line.starts_with("B: * ") && !line.contains("BYE"));
        let kept: String = kept.map(|line| format!("{}\r\n", &line[3..])).collect();
        assert_eq!(String::from_utf8(untagged).unwrap(), kept, "{said:?}");
    }
    // It is a warning where the login succeeds.
    let (_, outcome) = answered(&["B: * NO [OVERQUOTA] nearly full", "B: m2 OK in"]);
    assert_eq!(accepted(outcome).0, "* NO [OVERQUOTA] nearly full\r\n");
}

#[test]
fn without_a_tagged_answer_the_code_decides() {
    for (said, before, expected) in [
        (&["B: * BYE [UNAVAILABLE] down"][..], "", " NO [UNAVAILABLE] down\r\n"),
        (&["B: * bye [AuthenticationFailed]"], "", " NO [AuthenticationFailed]\r\n"),
        (&["B: * NO [LIMIT] x", "B: * BYE"], "", " NO [LIMIT] x\r\n"),
        (&["B: * BAD x", "B: * BAD [LIMIT] y"], "* BAD x\r\n", " BAD [LIMIT] y\r\n"),
        (
            &["B: * NO Login failed", "B: * NO [LIMIT] y"],
            "* NO Login failed\r\n",
            " NO [LIMIT] y\r\n",
        ),
    ] {
        let (mut login, outcome) = answered(said);
        assert!(outcome.is_none() && login.is_refused(), "{said:?}");
        let LoginOutcome::Refused { untagged, answer, refusal, .. } = login.unanswered("gone")
        else {
            panic!("{said:?}")
        };
        assert_eq!(String::from_utf8(untagged).unwrap(), before);
        assert_eq!(String::from_utf8(answer).unwrap(), expected);
        assert_ne!(refusal, Refusal::Unexplained);
    }
    // In words it is refused as by a tagged NO without a code.
    for (said, expected) in [
        ("B: * BYE Login failed", " NO Login failed\r\n"),
        ("B: * NO Invalid password", " NO Invalid password\r\n"),
    ] {
        let (mut login, _) = answered(&[said]);
        let LoginOutcome::Refused { answer, refusal, .. } = login.unanswered("gone") else {
            panic!("{said}")
        };
        assert_eq!(String::from_utf8(answer).unwrap(), expected);
        assert_eq!(refusal, Refusal::Unexplained);
    }
    for (said, why) in [(&[][..], "gone"), (&["B: * NO not now"], "gone")] {
        let (mut login, outcome) = answered(said);
        assert!(outcome.is_none(), "{said:?}");
        let outcome = login.unanswered("gone");
        assert!(matches!(&outcome, LoginOutcome::Unavailable(it) if it == why), "{outcome:?}");
    }
    let (mut login, _) = answered(&["B: * BYE Temporary problem"]);
    let LoginOutcome::SentAway { answer, why } = login.unanswered("gone") else { panic!("no BYE") };
    assert_eq!(answer.unwrap(), "NO [UNAVAILABLE] The mail server says: Temporary problem");
    assert_eq!(why, "BYE: * BYE Temporary problem");
}

#[test]
fn no_answer_is_no_refusal() {
    for dialogue in [&["B: * PREAUTH hi"][..], &["B: 220 smtp.example.org ESMTP"]] {
        let outcome = play(alice_by_login(), dialogue);
        assert!(matches!(outcome, Some(LoginOutcome::Unavailable(_))), "{outcome:?}");
    }
    // Who says BYE lets nobody in.
    let (_, outcome) = answered(&["B: * BYE Temporary problem", "B: m2 OK in"]);
    assert!(matches!(outcome, Some(LoginOutcome::SentAway { .. })), "{outcome:?}");
    let options = LoginOptions { limit: 100, ..options() };
    let mut login = BackendLogin::new(alice_by_login(), options);
    let (_, outcome) = login.step(&[b'x'; 2000], &mut Vec::new());
    assert!(outcome.is_none(), "{outcome:?}");
    let (_, outcome) = login.step(b"\r\n", &mut Vec::new());
    assert!(matches!(outcome, Some(LoginOutcome::Unavailable(_))), "{outcome:?}");
}

#[test]
fn what_a_login_does_not_need_is_skipped_whatever_its_length() {
    let options = LoginOptions { limit: 2000, ..options() };
    for piece in [1, 1000, 1 << 20] {
        let mut login = BackendLogin::new(alice_by_login(), options.clone());
        let (mut input, mut out, mut outcome, mut most) = (Vec::new(), Vec::new(), None, 0);
        let mut hear = |said: &[u8]| {
            for bytes in said.chunks(piece) {
                assert!(outcome.is_none(), "{outcome:?}");
                input.extend_from_slice(bytes);
                let (used, end) = login.step(&input, &mut out);
                input.drain(..used);
                most = most.max(input.len() + login.held());
                outcome = end;
            }
            outcome.take()
        };
        let notice = [b"* OK ", &[b'x'; 5000][..], b"\r\n"].concat();
        let data = [b"* X-NEWS ({20000}\r\n", &[b'\n'; 20000][..], b")\r\n"].concat();
        let alert = b"* NO [WEBALERT http://x] see there\r\n";
        assert!(hear(&notice).is_none());
        assert!(hear(&data).is_none());
        assert!(hear(b"m1 OK done\r\n").is_none());
        for said in [&data, &notice, &alert[..]] {
            assert!(hear(said).is_none());
        }
        let end = hear(&[b"m2 NO [LIMIT] ", &[b'y'; 5000][..], b"\r\n"].concat());
        let Some(LoginOutcome::Refused { untagged, answer, .. }) = end else { panic!("{end:?}") };
        let start = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..12]).into_owned();
        assert_eq!(untagged, alert, "{}", start(&untagged));
        assert!(start(&answer).starts_with(" NO [LIMIT] "), "{}", start(&answer));
        assert!(answer.len() < 2000 + 10 && answer.ends_with(b"y\r\n"));
        assert!(most < 3 * 2000 + 1000 || piece > 1000, "{most} bytes are held");
    }
    for list in [&b"* OK [CAPABILITY IMAP4rev1"[..], b"* CAPABILITY IMAP4rev1"] {
        let mut login = BackendLogin::new(alice_by_login(), options.clone());
        let mut out = Vec::new();
        login.step(b"* OK hi\r\n", &mut out);
        let said = [list, &b" XYZ".repeat(1000), b"] hi\r\n"].concat();
        let (_, outcome) = login.step(&said, &mut out);
        assert!(matches!(outcome, Some(LoginOutcome::TooLong)), "{outcome:?}");
    }
}

#[test]
fn a_greeting_comes_behind_blank_lines_and_sends_away_with_bye() {
    let outcome = play(alice_by_login(), &["B: ", "B:  ", "B: * BYE [LIMIT] busy"]);
    let Some(LoginOutcome::SentAway { answer, why }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(answer.as_deref(), Some("NO [LIMIT] The mail server says: busy"));
    assert_eq!(why, "the backend greets with BYE: \"* BYE [LIMIT] busy\"");
    let greeting =
        ["B: ", "B: * OK [CAPABILITY IMAP4rev1] hi", "M: m2 LOGIN \"alice\" \"wonder land\""];
    assert!(play(alice_by_login(), &greeting).is_none());
}

#[test]
fn what_is_not_offered_is_not_tried() {
    let relayed =
        |mechanism: &str| LoginAttempt::Relayed { mechanism: mechanism.into(), initial: None };
    let token = || Credentials::bearer("a@b.example", b"tok".to_vec());
    for (attempt, list) in [
        (alice_by_login(), "LOGINDISABLED STARTTLS"),
        (alice().into(), "LOGINDISABLED AUTH=XOAUTH2"),
        (alice().acting_as("bob").into(), "LOGINDISABLED AUTH=LOGIN"),
        (token().into(), "AUTH=PLAIN"),
        (relayed("OAUTHBEARER"), "AUTH=XOAUTH2"),
    ] {
        let greeting = format!("B: * OK [CAPABILITY IMAP4rev1 {list}] hi");
        let outcome = play(attempt, &[&greeting]);
        assert!(matches!(outcome, Some(LoginOutcome::NotOffered(_))), "{list}: {outcome:?}");
    }
}

#[test]
fn a_challenge_that_nothing_was_kept_for_is_somebody_elses_to_answer() {
    let mut login = BackendLogin::new(alice_by_login(), options());
    let mut out = Vec::new();
    login.step(b"* OK [CAPABILITY IMAP4rev1] hi\r\n", &mut out);
    let (_, outcome) = login.step(b"+ what?\r\n", &mut out);
    assert!(matches!(outcome, Some(LoginOutcome::Challenge(text)) if text == b"what?"));
    out.clear();
    login.acknowledge(&mut out);
    assert_eq!(out, b"*\r\n");
    let (_, outcome) = login.step(b"m2 BAD cancelled\r\n", &mut out);
    assert!(matches!(outcome, Some(LoginOutcome::Refused { .. })), "{outcome:?}");
}

#[test]
fn a_token_goes_by_the_mechanism_that_is_offered() {
    let token = Credentials::bearer("a@b.example", b"tok".to_vec());
    play(
        token.clone(),
        &[
            "B: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=OAUTHBEARER] hi",
            "M: m2 AUTHENTICATE OAUTHBEARER bixhPWFAYi5leGFtcGxlLAFhdXRoPUJlYXJlciB0b2sBAQ==",
            "B: m2 OK in",
        ],
    )
    .expect("an outcome");
    let mut login = BackendLogin::new(token.into(), options());
    let mut out = Vec::new();
    login.step(b"* OK [CAPABILITY AUTH=XOAUTH2] hi\r\n", &mut out);
    assert_eq!(out, b"m2 AUTHENTICATE XOAUTH2\r\n");
    out.clear();
    login.step(b"+ \r\n", &mut out);
    assert_eq!(out, b"dXNlcj1hQGIuZXhhbXBsZQFhdXRoPUJlYXJlciB0b2sBAQ==\r\n");
    let (_, outcome) = login.step(b"+ eyJzdGF0dXMiOiI0MDEifQ==\r\n", &mut out);
    assert!(matches!(outcome, Some(LoginOutcome::Challenge(text)) if text.starts_with(b"eyJ")));
    out.clear();
    login.acknowledge(&mut out);
    assert_eq!(out, b"\r\n");
}

#[test]
fn id_is_sent_before_and_after_where_it_is_offered() {
    let mut options = options();
    options.id = Some(b"(\"name\" \"x\")".to_vec());
    let mut login = BackendLogin::new(alice_by_login(), options);
    let mut out = Vec::new();
    login.step(b"* OK [CAPABILITY IMAP4rev1 ID] Coremail\r\n", &mut out);
    assert_eq!(out, b"m3 ID (\"name\" \"x\")\r\n");
    out.clear();
    login.step(b"* ID NIL\r\nm3 OK done\r\n", &mut out);
    assert_eq!(out, b"m2 LOGIN \"alice\" \"wonder land\"\r\n");
    out.clear();
    let (_, outcome) = login.step(b"m2 OK in\r\n", &mut out);
    assert!(outcome.is_none());
    assert_eq!(out, b"m4 ID (\"name\" \"x\")\r\n");
    let (_, outcome) = login.step(b"* ID NIL\r\nm4 OK done\r\n", &mut out);
    let (untagged, answer) = accepted(outcome);
    assert_eq!((&untagged[..], &answer[..]), ("", " OK in\r\n"));
}

#[test]
fn after_starttls_no_greeting_is_waited_for() {
    let options = LoginOptions { greeted: true, ..options() };
    let mut login = BackendLogin::new(alice_by_login(), options);
    let mut out = Vec::new();
    login.start(&mut out);
    assert_eq!(out, b"m1 CAPABILITY\r\n");
    out.clear();
    login.step(b"* CAPABILITY IMAP4rev1\r\nm1 OK\r\n", &mut out);
    assert_eq!(out, b"m2 LOGIN \"alice\" \"wonder land\"\r\n");
}

#[test]
fn a_mechanism_that_is_not_understood_passes() {
    let attempt = LoginAttempt::Relayed {
        mechanism: "SCRAM-SHA-256".into(),
        initial: Some(Secret(b"biwsbj1hLHI9eA==".to_vec())),
    };
    let mut login = BackendLogin::new(attempt, options());
    let mut out = Vec::new();
    login.step(b"* OK [CAPABILITY AUTH=SCRAM-SHA-256] hi\r\n", &mut out);
    assert_eq!(out, b"m2 AUTHENTICATE SCRAM-SHA-256\r\n");
    out.clear();
    login.step(b"+ \r\n", &mut out);
    assert_eq!(out, b"biwsbj1hLHI9eA==\r\n");
    let (_, outcome) = login.step(b"+ cj14eSxzPXE=\r\n", &mut out);
    assert!(matches!(outcome, Some(LoginOutcome::Challenge(text)) if text == b"cj14eSxzPXE="));
}

#[test]
fn debug_shows_no_password() {
    let written = by_login(alice(), None, Some("\"wonder land\""));
    let initial = Some(Secret(b"wonder".to_vec()));
    let relayed = LoginAttempt::Relayed { mechanism: "OAUTHBEARER".into(), initial };
    for attempt in [alice().into(), written, relayed] {
        let mut login = BackendLogin::new(attempt, options());
        login.step(b"* OK [CAPABILITY AUTH=PLAIN] x\r\n", &mut Vec::new());
        let shown = format!("{login:?}");
        assert!(!shown.contains("AGFs") && !shown.contains("wonder"), "{shown}");
        assert!(!shown.contains("119, 111"), "{shown}");
    }
}
