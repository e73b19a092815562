//! A process of the binary: its lines as they come, its signals, its end. Dropping it kills it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use tokio::sync::mpsc;

use super::soon;

pub(super) struct Process {
    child: Child,
    pub(super) stdout: Lines,
    pub(super) stderr: Lines,
}

/// What a process writes on one of its outputs, line by line.
pub(super) struct Lines {
    incoming: mpsc::UnboundedReceiver<String>,
    /// All lines so far.
    pub(super) seen: Vec<String>,
}

/// The binary with these arguments, and no variables that change what it does.
pub(super) fn mailchime(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailchime"));
    command.args(arguments).stdin(Stdio::null());
    cleared(command)
}

/// The binary, run with these arguments by a shell that has done `first`, such as `umask 0`.
pub(super) fn mailchime_after(first: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("{first}; exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_mailchime")]).args(arguments);
    command.stdin(Stdio::null());
    cleared(command)
}

fn cleared(mut command: Command) -> Command {
    for variable in ["RUST_LOG", "RUST_BACKTRACE", "NO_COLOR", "TMPDIR"] {
        command.env_remove(variable);
    }
    command
}

impl Process {
    pub(super) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = Lines::of(child.stdout.take().unwrap());
        let stderr = Lines::of(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(super) fn signal(&self, name: &str) {
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.id())])
            .status()
            .unwrap();
        assert!(sent.success(), "SIG{name} could not be sent");
    }

    /// Waits for the process to end by itself.
    pub(super) async fn end(&mut self) -> ExitStatus {
        // Outputs end with the process; then it can be waited for without blocking.
        self.stdout.rest().await;
        self.stderr.rest().await;
        self.child.wait().unwrap()
    }

    /// Ends it by SIGKILL.
    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A number of `/proc/<id>/status`, in KiB.
    pub(super) fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lines {
    fn of(output: impl Read + Send + 'static) -> Self {
        let (sender, incoming) = mpsc::unbounded_channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                // Nobody may listen any more; the pipe is read all the same, so that it never fills.
                let _ = sender.send(line);
            }
        });
        Self { incoming, seen: Vec::new() }
    }

    /// The next line; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<String> {
        let line = soon("a line of output", self.incoming.recv()).await;
        self.seen.extend(line.clone());
        line
    }

    /// The next line that `fits`, and what it gives.
    pub(super) async fn find<T>(&mut self, awaited: &str, fits: impl Fn(&str) -> Option<T>) -> T {
        let found = async {
            while let Some(line) = self.incoming.recv().await {
                let found = fits(&line);
                self.seen.push(line);
                if found.is_some() {
                    return found;
                }
            }
            None
        };
        let found = tokio::time::timeout(super::SOON, found).await.ok().flatten();
        found.unwrap_or_else(|| panic!("no line with {awaited} in\n{}", self.seen.join("\n")))
    }

    /// The lines until the end.
    pub(super) async fn rest(&mut self) {
        while self.next().await.is_some() {}
    }
}
