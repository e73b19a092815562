//! Answers of the server of FCM's access tokens: a token is kept from logs and lives for a bounded time; what else it says
//! is short.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::push::transport::fuzzing::access_token;

const STATUSES: [u16; 8] = [200, 201, 302, 400, 401, 403, 429, 503];

fuzz_target!(|data: &[u8]| -> Corpus {
    let [which, body @ ..] = data else { return Corpus::Reject };
    let status = STATUSES[usize::from(*which) % STATUSES.len()];
    let Some(answer) = access_token(status, body) else { return Corpus::Reject };
    match answer {
        Ok((authorization, life)) => {
            assert_eq!(status, 200);
            assert!(authorization.is_sensitive());
            assert!(authorization.as_bytes().starts_with(b"Bearer "));
            assert!(authorization.len() > "Bearer ".len() && authorization.len() <= body.len() + 7);
            assert!((Duration::from_secs(60)..=Duration::from_secs(3600)).contains(&life));
        }
        Err(why) => {
            assert!(why.starts_with(&status.to_string()), "{why:?}");
            assert!(why.chars().count() <= 2000 && !why.chars().any(char::is_control), "{why:?}");
        }
    }
    Corpus::Keep
});
