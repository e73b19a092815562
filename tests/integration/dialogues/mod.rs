//! Every dialogue in `fixtures/`, played three ways: through the pure core in one piece, through
//! the pure core byte by byte, and over real TLS sockets.

use mailchime::demo::replay::against_mailchime;

use crate::support::core;
use crate::support::dialogues::{PKI, all};

#[test]
fn dialogues_hold_in_one_piece() {
    for (path, dialogue) in all() {
        core::play(&path, &dialogue, false);
    }
}

#[test]
fn dialogues_hold_byte_by_byte() {
    for (path, dialogue) in all() {
        core::play(&path, &dialogue, true);
    }
}

#[tokio::test]
async fn dialogues_hold_over_tls_sockets() {
    for (path, dialogue) in all() {
        if let Err(failure) = against_mailchime(&dialogue, &PKI).await {
            panic!("{}: {failure:?}", path.display());
        }
    }
}
