//! What clients say before their login that no standard has: Dovecot takes much of it, and so does
//! mailchime.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::support::limited;
use crate::support::servers::ALICE;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::world::{Server, World};

/// Ends each script, and is answered in every state.
const LAST: &str = "z NOOP\r\n";

/// What of an answer counts: the tag and the word behind it.
fn head(line: &str) -> String {
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// The answers of Dovecot, but for what it tells unasked.
fn from_dovecot(dovecot: &Dovecot, script: &str) -> Vec<String> {
    let mut stream = TcpStream::connect(dovecot.plain).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    // It greets twice where its authentication has just begun.
    assert!(lines.next().unwrap().unwrap().starts_with("* OK"));
    stream.write_all(script.as_bytes()).unwrap();
    stream.write_all(LAST.as_bytes()).unwrap();
    let mut answers = Vec::new();
    for line in lines {
        answers.push(head(&line.unwrap()));
        if answers.last().unwrap() == "z OK" {
            break;
        }
    }
    answers.retain(|answer| counts(answer));
    answers
}

async fn from_mailchime(world: &World, server: &Server, script: &str) -> Vec<String> {
    let mut client = world.client(server).await;
    client.send(script.as_bytes()).await;
    client.send(LAST.as_bytes()).await;
    let mut answers = Vec::new();
    while answers.last().is_none_or(|last| last != "z OK") {
        answers.push(head(&client.line().await));
    }
    answers.retain(|answer| counts(answer));
    answers
}

fn counts(answer: &str) -> bool {
    !answer.starts_with("* CAPABILITY") && !answer.starts_with("* OK")
}

/// The base64 of `bytes` with these bits in its padding, which has room for them.
fn padded_with(bytes: &[u8], bits: u8) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let canonical = BASE64_STANDARD.encode(bytes);
    let digits = canonical.trim_end_matches('=');
    let (first, last) = digits.split_at(digits.len() - 1);
    let last = DIGITS.iter().position(|digit| *digit == last.as_bytes()[0]).unwrap();
    let last = char::from(DIGITS[last + usize::from(bits)]);
    format!("{first}{last}{}", &canonical[digits.len()..])
}

#[tokio::test]
async fn what_dovecot_takes_before_a_login_mailchime_takes() {
    const TEST: &str = "what_dovecot_takes_before_a_login_mailchime_takes";
    let Some(dovecot) = Dovecot::start(TEST, &Options::default()) else { return };
    limited(async {
        let world = World::new().await;
        world.in_front_of(dovecot.plain);
        world.configure("[log]", "[limits]\nfailure_delay = \"1ms\"\n[log]");
        let server = world.serve().await;
        let (name, password) = ALICE;
        let messages = [
            // Of each length of padding.
            format!("\0{name}\0{password}"),
            format!("{name}\0{name}\0{password}"),
            format!("\0{name}\0{password}x"),
            format!("\0{name}\0{password}xy"),
        ];
        let mut scripts: Vec<String> = [
            "\r\n",
            "\n",
            // Dovecot sends a client away at the third.
            "\r\n\r\n",
            " \r\n",
            "a ENABLE UTF8=ACCEPT\r\n",
            "a enable CONDSTORE QRESYNC\r\nb CAPABILITY\r\n",
            "a ENABLE\r\n",
            "\r\na ENABLE CONDSTORE\r\nb NOOP\r\n",
        ]
        .map(str::to_owned)
        .into();
        for message in &messages {
            let good = BASE64_STANDARD.encode(message);
            let room = good.len() - good.trim_end_matches('=').len();
            let mut forms = vec![good.clone(), format!("{good}=")];
            if room > 0 {
                forms.push(good.trim_end_matches('=').to_owned());
                forms.push(padded_with(message.as_bytes(), 1));
                forms.push(padded_with(message.as_bytes(), if room == 2 { 15 } else { 3 }));
            }
            for form in forms {
                scripts.push(format!("a AUTHENTICATE PLAIN {form}\r\n"));
                scripts.push(format!("a AUTHENTICATE PLAIN\r\n{form}\r\n"));
            }
        }
        let (by_name, by_password) = (padded_with(name.as_bytes(), 0), password.as_bytes());
        scripts.push(format!(
            "a AUTHENTICATE LOGIN\r\n{by_name}\r\n{}\r\n",
            BASE64_STANDARD.encode(by_password)
        ));
        for script in &scripts {
            let expected = from_dovecot(&dovecot, script);
            let answers = from_mailchime(&world, &server, script).await;
            assert_eq!(answers, expected, "{script:?}");
        }
    })
    .await;
}
