//! A process of the binary: its lines as they come, its signals, its end. Dropping it kills it.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::sync::mpsc;

use super::soon;

pub(crate) struct Process {
    child: Child,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

/// What a process writes on one of its outputs, line by line.
pub(crate) struct Lines {
    incoming: mpsc::UnboundedReceiver<String>,
    /// All lines so far.
    pub(crate) seen: Vec<String>,
    /// How many of them `find` has gone through.
    searched: usize,
}

/// The binary with these arguments, and no variables that change what it does.
pub(crate) fn mailchime(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailchime"));
    command.args(arguments).stdin(Stdio::null());
    cleared(command)
}

/// The binary, run with these arguments by a shell that has done `first`, such as `umask 0`.
pub(crate) fn mailchime_after(first: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("{first}; exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_mailchime")]).args(arguments);
    command.stdin(Stdio::null());
    cleared(command)
}

fn cleared(mut command: Command) -> Command {
    for variable in
        ["RUST_LOG", "RUST_BACKTRACE", "NO_COLOR", "TMPDIR", "MAILCHIME_CONFIG", "SSL_CERT_FILE"]
    {
        command.env_remove(variable);
    }
    command
}

/// Both ends of a terminal: that of a person, and that of a program.
pub(crate) fn terminal() -> (OwnedFd, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    (ours, rustix::fs::open(name, flags, Mode::empty()).unwrap())
}

impl Process {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = Lines::of(child.stdout.take().unwrap());
        let stderr = Lines::of(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.id())])
            .status()
            .unwrap();
        assert!(sent.success(), "SIG{name} could not be sent");
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        // Outputs end with the process; then it can be waited for without blocking.
        self.stdout.rest().await;
        self.stderr.rest().await;
        self.child.wait().unwrap()
    }

    /// Ends it by SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How many files it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }

    /// How many threads it has.
    pub(crate) fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().count()
    }

    /// A number of `/proc/<id>/status`, in KiB.
    pub(crate) fn memory(&self, name: &str) -> u64 {
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
        Self { incoming, seen: Vec::new(), searched: 0 }
    }

    /// A line that nobody has seen yet; `None` at the end. `find` still goes through it.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let line = soon("a line of output", self.incoming.recv()).await;
        self.seen.extend(line.clone());
        line
    }

    /// The first line that `fits` behind the one that was found last, and what it gives. It may have been
    /// written already, or is waited for.
    pub(crate) async fn find<T>(&mut self, awaited: &str, fits: impl Fn(&str) -> Option<T>) -> T {
        let found = async {
            loop {
                while let Some(line) = self.seen.get(self.searched) {
                    self.searched += 1;
                    if let Some(found) = fits(line) {
                        return Some(found);
                    }
                }
                let line = self.incoming.recv().await?;
                self.seen.push(line);
            }
        };
        let found = tokio::time::timeout(super::SOON, found).await.ok().flatten();
        found.unwrap_or_else(|| panic!("no line with {awaited} in\n{}", self.seen.join("\n")))
    }

    /// From now on `find` begins with the first line again.
    pub(crate) fn rewind(&mut self) {
        self.searched = 0;
    }

    /// What was read so far.
    pub(crate) fn seen(&self) -> &[String] {
        &self.seen
    }

    /// All that has come so far, without waiting for more.
    pub(crate) fn so_far(&mut self) -> &[String] {
        while let Ok(line) = self.incoming.try_recv() {
            self.seen.push(line);
        }
        &self.seen
    }

    /// The lines until the end.
    pub(crate) async fn rest(&mut self) {
        while self.next().await.is_some() {}
    }
}
