//! Tests that need a program this machine may lack, such as a real IMAP server.
//!
//! `tests/run.sh` names in `MAILCHIME_SKIP` what it could not install. A test that needs one of
//! those passes without running, but never in silence.

use std::io::Write;

/// Whether `test` cannot run because `needed` is named in `MAILCHIME_SKIP`, a list parted by blanks.
/// If so, a line says it on standard error, past the capture of the test harness.
pub(crate) fn skipped(test: &str, needed: &str) -> bool {
    let reason = reason(&std::env::var("MAILCHIME_SKIP").unwrap_or_default(), needed);
    reason.inspect(|reason| report(test, reason)).is_some()
}

/// Says that `test` does not run, for a reason that its helper found out by itself.
pub(crate) fn report(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
}

fn reason(list: &str, needed: &str) -> Option<String> {
    let named = list.split_whitespace().any(|name| name == needed);
    named.then(|| format!("{needed} is not on this machine"))
}

#[test]
fn only_what_is_named_is_skipped() {
    assert_eq!(reason("", "dovecot"), None);
    assert_eq!(reason("dovecot2 curl", "dovecot"), None);
    assert_eq!(reason("curl dovecot", "dovecot").unwrap(), "dovecot is not on this machine");
    assert!(!skipped("only_what_is_named_is_skipped", "a program of no name"));
}
