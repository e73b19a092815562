//! SASL: what a client says is read as its mechanism demands, and said to a backend alike.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::imap::sasl::{self, Mechanism, SaslStep, is_relayable};
use mailchime::model::{Credentials, SecretKind};

const MECHANISMS: [Mechanism; 4] =
    [Mechanism::Plain, Mechanism::Login, Mechanism::XOAuth2, Mechanism::OAuthBearer];

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&options, data)) = data.split_first() else { return Corpus::Reject };
    let mechanism = MECHANISMS[usize::from(options & 3)];
    // Half of the inputs are what is behind the base64.
    let encoded = match options & 4 {
        0 => data.to_vec(),
        _ => STANDARD.encode(data).into_bytes(),
    };
    let mut lines = encoded.split(|b| *b == b'\n');
    let (mut exchange, challenge) = mechanism.start();
    assert!(STANDARD.decode(challenge).is_ok());
    let mut said: Vec<&[u8]> = Vec::new();
    loop {
        let Some(line) = lines.next() else { return Corpus::Keep };
        said.push(line);
        match exchange.respond(line) {
            SaslStep::Challenge(next, challenge) => {
                assert!(mechanism == Mechanism::Login && said.len() == 1);
                assert!(STANDARD.decode(challenge).is_ok());
                exchange = next;
            }
            SaslStep::Credentials(credentials) => {
                understood(mechanism, &said, &credentials);
                break;
            }
            SaslStep::Nameless(message) => {
                assert_eq!(mechanism, Mechanism::OAuthBearer);
                assert!(STANDARD.decode(message).is_ok());
                break;
            }
            SaslStep::Cancelled => {
                assert_eq!(line, b"*");
                break;
            }
            SaslStep::Malformed => {
                assert_ne!(line, b"*");
                not_plain(mechanism, line);
                break;
            }
        }
    }
    if let Ok(name) = std::str::from_utf8(data)
        && is_relayable(name)
    {
        assert!(Mechanism::named(name.as_bytes()).is_none());
        assert!(!name.to_ascii_uppercase().ends_with("-PLUS"));
    }
    Corpus::Keep
});

fn decoded(line: &[u8]) -> Option<Vec<u8>> {
    STANDARD.decode(if line == b"=" { b"" } else { line }).ok()
}

fn understood(mechanism: Mechanism, said: &[&[u8]], credentials: &Credentials) {
    let secret = credentials.expose_secret();
    let messages: Vec<Vec<u8>> = said.iter().map(|line| decoded(line).expect("base64")).collect();
    match mechanism {
        Mechanism::Plain => {
            let parts: Vec<&[u8]> = messages[0].split(|b| *b == 0).collect();
            let [authorization, login, password] = parts[..] else { panic!("three parts") };
            assert_eq!((login, password), (credentials.login.as_bytes(), secret));
            let itself = authorization == login || authorization.is_empty();
            let acting = if itself { b"" } else { authorization };
            assert_eq!(credentials.authorization.as_bytes(), acting);
        }
        Mechanism::Login => {
            assert_eq!(messages, [credentials.login.as_bytes(), secret]);
        }
        Mechanism::XOAuth2 | Mechanism::OAuthBearer => {
            assert_eq!(credentials.kind, SecretKind::Bearer);
            assert!(!secret.is_empty() && secret.iter().all(u8::is_ascii_graphic));
            assert!(messages[0].windows(secret.len()).any(|part| part == secret));
            assert!(credentials.authorization.is_empty());
        }
    }
    // A backend that hears this understands the same.
    if let [told] = &sasl::messages(mechanism, credentials)[..] {
        let (exchange, _) = mechanism.start();
        let SaslStep::Credentials(again) = exchange.respond(told.as_bytes()) else {
            panic!("not understood again");
        };
        assert!(again.same_as(credentials));
    }
    if secret.len() >= 8 {
        // A name may hold what is a secret besides.
        let shown = format!("{credentials:?}").replace(&credentials.account().to_string(), "");
        assert!(!shown.contains(&*String::from_utf8_lossy(secret)), "{shown}");
    }
}

/// What was refused as PLAIN is none.
fn not_plain(mechanism: Mechanism, line: &[u8]) {
    if mechanism != Mechanism::Plain {
        return;
    }
    if let Some(message) = decoded(line) {
        let parts: Vec<&[u8]> = message.split(|b| *b == 0).collect();
        let texts = parts.iter().take(2).all(|part| std::str::from_utf8(part).is_ok());
        assert!(parts.len() != 3 || !texts, "refused: {}", message.escape_ascii());
    }
}
