//! Tests that need a process of their own: for its memory, or for the files that it may open.

use std::process::Command;

/// Names the test that the process is for.
const APART: &str = "MAILCHIME_TEST_APART";

/// Runs `body`, which `test` is, in a process of its own that may open `files` files. Gives what that
/// wrote to standard output and error; nothing in that process itself, where it has run by then.
pub(crate) fn apart(test: &str, files: u32, body: impl FnOnce()) -> Option<[String; 2]> {
    if std::env::var(APART).is_ok_and(|name| name == test) {
        body();
        return None;
    }
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(APART, test)
        .output()
        .unwrap();
    let [said, errors] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("1 passed"), "it did not run: {said}");
    Some([said, errors])
}
