//! Logging in at a hostile backend: whole against split input, bounded output, no secret told.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::imap::capability::Own;
use mailchime::imap::login::{
    BackendLogin, LoginAttempt, LoginOptions, LoginOutcome, Secret, WrittenLogin, edited,
};
use mailchime::imap::responses::{has_code, printable};
use mailchime::model::Credentials;
use mailchime_fuzz::oracle::{Responses, contains, is_status};

const SECRET: &str = "Zq7-very-secret";
/// The same in base64, wherever it stands in a message.
const ENCODED: [&str; 3] = ["WnE3LXZlcnktc2VjcmV0", "pxNy12ZXJ5LXNlY3JldA", "acTctdmVyeS1zZWNyZX"];
const LIMIT: usize = 700;

fn attempt(options: u8) -> LoginAttempt {
    let secret = SECRET.as_bytes().to_vec();
    let credentials = match options % 5 {
        0 => Credentials::password("alice@example.org", secret),
        1 => Credentials::password("al\"ice", [&secret[..], b"\xff\""].concat()),
        2 => Credentials::password("boss", secret).acting_as("alice"),
        3 => Credentials::bearer("alice@example.org", secret),
        _ => {
            let initial = Some(Secret(b"biws".to_vec()));
            return LoginAttempt::Relayed { mechanism: "SCRAM-SHA-256".into(), initial };
        }
    };
    let password = options.is_multiple_of(5).then(|| Secret(format!("\"{SECRET}\"").into_bytes()));
    let written = (options & 0x20 != 0).then_some(WrittenLogin { name: None, password });
    LoginAttempt::Credentials { credentials, written }
}

#[derive(Debug, Default, PartialEq)]
struct Played {
    out: Vec<u8>,
    outcome: String,
    challenges: usize,
}

fn play<'a>(options: u8, pieces: impl Iterator<Item = &'a [u8]>) -> Played {
    let settings = LoginOptions {
        greeted: options & 0x40 != 0,
        id: (options & 0x80 == 0).then(|| b"(\"name\" \"mailchime\")".to_vec()),
        limit: LIMIT,
    };
    let mut login = BackendLogin::new(attempt(options), settings);
    let (mut input, mut played) = (Vec::new(), Played::default());
    login.start(&mut played.out);
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let (used, outcome) = login.step(&input, &mut played.out);
            input.drain(..used);
            assert!(input.len() <= LIMIT || outcome.is_some(), "more is kept than the limit");
            if used > 0 {
                not_told(format!("{login:?}{outcome:?}").as_bytes());
            }
            match outcome {
                None => break,
                Some(LoginOutcome::Challenge(text)) => {
                    assert!(text.len() <= LIMIT);
                    played.challenges += 1;
                    match played.challenges % 2 {
                        0 => login.respond(b"abcd\r\n", &mut played.out),
                        _ => login.acknowledge(&mut played.out),
                    }
                }
                Some(end) => {
                    ended(&end);
                    played.outcome = format!("{end:?}");
                    return played;
                }
            }
        }
    }
    played
}

fn not_told(shown: &[u8]) {
    let text = String::from_utf8_lossy(shown);
    let numbers = format!("{:?}", SECRET.as_bytes());
    assert!(!text.contains(SECRET) && !ENCODED.iter().any(|e| text.contains(e)), "{text}");
    assert!(!text.contains(numbers.trim_matches(['[', ']'])), "{text}");
}

fn ended(end: &LoginOutcome) {
    match end {
        LoginOutcome::Accepted { untagged, answer, .. } => {
            assert!(untagged.len() <= LIMIT && answer.len() <= LIMIT);
            assert!(answer.ends_with(b"\n") && (untagged.is_empty() || untagged.ends_with(b"\n")));
            let own = Own { push: true, compress: true };
            let shown = edited(untagged, own);
            assert!(shown.len() <= 2 * untagged.len() + 40 * (1 + lines(untagged)));
            assert_eq!(edited(&shown, own), shown, "edited twice");
        }
        LoginOutcome::Refused { untagged, answer, .. } => {
            assert!(untagged.len() <= LIMIT && !has_list(untagged));
            assert!(answer.len() <= LIMIT && answer.ends_with(b"\n"));
            let wrong = has_code(answer, "AUTHENTICATIONFAILED");
            assert!(!wrong || contains(answer, "[AUTHENTICATIONFAILED"));
        }
        LoginOutcome::Unavailable(why) | LoginOutcome::SentAway { why, .. } => {
            assert!(why.len() < 1000 && !why.chars().any(char::is_control), "{why}");
        }
        LoginOutcome::TooLong | LoginOutcome::Challenge(_) | LoginOutcome::NotOffered(_) => {}
    }
}

/// Whether one of the responses is a status with a capability list.
fn has_list(responses: &[u8]) -> bool {
    let mut followed = Responses::default();
    responses.split_inclusive(|b| *b == b'\n').any(|line| {
        let begins = followed.at_boundary();
        followed.feed(line);
        let mut words = line.split(|b| b" \r\n".contains(b)).filter(|word| !word.is_empty());
        let code = words.nth(2).unwrap_or_default();
        begins && is_status(line) && code.eq_ignore_ascii_case(b"[CAPABILITY")
    })
}

fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b == b'\n').count()
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&options, data)) = data.split_first() else { return Corpus::Reject };
    // What a backend says may be shown, were it the secret itself.
    let text = data.split(|b| *b == 0xf3).collect::<Vec<_>>().concat();
    let numbers = format!("{:?}", SECRET.as_bytes());
    if [SECRET, numbers.trim_matches(['[', ']'])].iter().chain(&ENCODED).any(|s| contains(&text, s))
    {
        return Corpus::Reject;
    }
    let whole = play(options, [&text[..]].into_iter());
    assert_eq!(whole, play(options, data.split(|b| *b == 0xf3)), "in pieces");
    assert_eq!(whole, play(options, text.chunks(1)), "in bytes");
    // What is said does not grow with what is heard, but for the answers to challenges.
    assert!(whole.out.len() <= 500 + 10 * whole.challenges, "{}", whole.out.escape_ascii());
    let out = String::from_utf8_lossy(&whole.out);
    let told = [SECRET].iter().chain(&ENCODED).map(|s| out.matches(s).count()).sum::<usize>();
    assert!(told <= 1, "the backend gets the secret twice: {out}");
    if matches!(options % 5, 3 | 4) {
        assert!(!out.contains("m2 LOGIN") && !out.contains(SECRET), "{out}");
    }
    if told > 0 && options & 0x40 == 0 {
        assert!(contains(&text, " OK"), "the backend gets the secret without a greeting");
    }
    for line in text.split_inclusive(|b| *b == b'\n') {
        assert!(printable(line).bytes().all(|b| matches!(b, b' '..=b'~')));
    }
    Corpus::Keep
});
