//! A server's process, from its start until nothing is left of it: neither a process nor a file.
//!
//! Knows no server in particular.

use std::fs::{File, Permissions, read_to_string};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::ports::own_address;

/// From the start of a server until it accepts.
const START_LIMIT: Duration = Duration::from_secs(90);

/// From the signal until a server that does not end is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Ends whatever a server was up to.
const KILL: Stop = Stop::Group("KILL");

/// Between two looks at a process or a port.
const LOOK: Duration = Duration::from_millis(10);

/// How often a server is started anew when it ended before it accepted, as it does when somebody
/// took its port meanwhile.
const ATTEMPTS: usize = 3;

/// A server that runs, and the folder that it lives in. Dropping it ends both.
pub(super) struct Process {
    plan: Plan,
    addresses: Vec<SocketAddr>,
    running: Option<Running>,
    folder: TempDir,
}

/// What there is to know of a server to start and to stop it.
pub(super) struct Plan {
    /// Stays in the foreground. Its output goes to `output.log` in the server's folder.
    pub(super) command: Command,
    /// Succeeds when it is up, where accepting is not enough.
    pub(super) ready: Option<Command>,
    pub(super) stop: Stop,
    /// Whether it may be killed when nobody wants it any more, since it leaves nothing outside its
    /// folder. Some servers take their time to end.
    pub(super) expendable: bool,
}

/// The signal that makes a server end by itself and in order, and who must have it.
#[derive(Clone, Copy)]
pub(super) enum Stop {
    Leader(&'static str),
    Group(&'static str),
}

struct Running {
    child: Child,
    leash: Child,
}

/// Why a server is not up. Holds its log.
enum Failure {
    Ended(String),
    Late(String),
}

// === starting ===

/// Starts what `plan` plans for the folder and the addresses that it is given; for others, if that
/// ends before it accepts. The folder is new and everybody may enter it, since servers change user.
///
/// Returns once all addresses accept. Panics with the server's log when it is not up in time.
pub(super) fn start<const PORTS: usize>(
    plan: impl Fn(&Path, [SocketAddr; PORTS]) -> Plan,
) -> (Process, [SocketAddr; PORTS]) {
    for attempt in 1.. {
        let folder = tempfile::Builder::new()
            .prefix("mc-") // Short, for a Unix socket's path ends at 107 bytes.
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        let addresses = std::array::from_fn(|_| own_address());
        let plan = plan(folder.path(), addresses);
        let mut process = Process { plan, addresses: addresses.into(), running: None, folder };
        match process.start() {
            Ok(()) => return (process, addresses),
            Err(Failure::Ended(_)) if attempt < ATTEMPTS => {}
            Err(Failure::Ended(log)) => panic!("the server ended at its start:\n{log}"),
            Err(Failure::Late(log)) => panic!("the server does not accept in time:\n{log}"),
        }
    }
    unreachable!("the last attempt returns or panics");
}

impl Process {
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it again in the same folder and on the same ports.
    pub(super) fn restart(&mut self) {
        self.stop();
        if let Err(Failure::Ended(log) | Failure::Late(log)) = self.start() {
            panic!("the server does not start again:\n{log}");
        }
    }

    /// Ends it in order if it runs; kills it if that takes too long. Its folder stays.
    pub(super) fn stop(&mut self) {
        self.stop_by(self.plan.stop);
    }

    /// As [`Process::stop`], by another signal than the planned one.
    pub(super) fn stop_by(&mut self, stop: Stop) {
        if let Some(running) = self.running.take() {
            running.end(stop);
        }
    }

    fn start(&mut self) -> Result<(), Failure> {
        let output = self.folder().join("output.log");
        let open = || File::options().create(true).append(true).open(&output).unwrap();
        let command = &mut self.plan.command;
        // Of its own group, for a server may send signals to all of its group.
        command.process_group(0).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(open()).stderr(open());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let leash = leash(child.id(), self.folder());
        let running = self.running.insert(Running { child, leash });

        let deadline = Instant::now() + START_LIMIT;
        let mut waiting = self.addresses.clone();
        loop {
            waiting.retain(|address| TcpStream::connect_timeout(address, START_LIMIT).is_err());
            let up = waiting.is_empty() && self.plan.ready.as_mut().is_none_or(succeeds);
            let ended = running.child.try_wait().unwrap().is_some();
            if ended || (!up && Instant::now() > deadline) {
                let log = log(self.folder.path());
                self.running.take().expect("it was just started").end(KILL);
                return Err(if ended { Failure::Ended(log) } else { Failure::Late(log) });
            }
            if up {
                return Ok(());
            }
            sleep(LOOK);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let kill = self.plan.expendable.then_some(KILL);
        if let Some(running) = self.running.take() {
            running.end(kill.unwrap_or(self.plan.stop));
        }
    }
}

/// What a server wrote, whatever it calls its logs.
fn log(folder: &Path) -> String {
    let logs = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let logs: Vec<PathBuf> =
        logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    let read = |path: &PathBuf| {
        let text = std::fs::read(path).unwrap_or_default();
        format!("--- {}\n{}", path.display(), String::from_utf8_lossy(&text))
    };
    logs.iter().map(read).collect()
}

fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

// === stopping ===

impl Running {
    fn end(mut self, stop: Stop) {
        let group = self.child.id();
        // Until the last is gone, for it may still accept or have to take leave of its client.
        for stop in [stop, KILL] {
            match stop {
                Stop::Leader(signal) => send(signal, &group.to_string()),
                Stop::Group(signal) => send(signal, &format!("-{group}")),
            }
            let deadline = Instant::now() + STOP_LIMIT;
            while is_alive(group) && Instant::now() < deadline {
                sleep(LOOK);
            }
        }
        // Whatever became of the group: it may be gone, but its number is not free before this.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A leash that gets the word to let go does so; one that loses its holder pulls.
        let told = self.leash.stdin.take().map(|mut stdin| io::Write::write_all(&mut stdin, b"\n"));
        assert!(told.is_some_and(|told| told.is_ok()), "the leash is gone");
        let _ = self.leash.wait();
    }
}

/// Ends a process group and removes its folder when this process is gone, however it went: killed
/// by a test runner's time limit, or by Ctrl-C, which does not reach other groups.
fn leash(group: u32, folder: &Path) -> Child {
    let script = r#"read -r _ || { kill -s KILL -- "-$1"; rm -rf -- "$2"; }"#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "leash", &group.to_string()]).arg(folder).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("there is a shell")
}

/// Whether one of a group runs; those that only wait to be reaped do not (proc_pid_stat(5)).
fn is_alive(group: u32) -> bool {
    let processes = Path::new("/proc").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut stats = processes.filter_map(|process| read_to_string(process.join("stat")).ok());
    stats.any(|stat| {
        // Behind the name, which may hold anything: state, parent, group.
        let mut fields = stat.rsplit(')').next().into_iter().flat_map(str::split_whitespace);
        fields.next() != Some("Z") && fields.nth(1) == Some(&group.to_string())
    })
}

/// Sends a signal to a process, or with a minus to a group, if there is one.
fn send(signal: &str, to: &str) {
    let mut command = Command::new("sh");
    succeeds(command.args(["-c", r#"kill -s "$1" -- "$2""#, "kill", signal, to]));
}

mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "a reason")]
    fn a_server_that_ends_at_its_start_shows_its_log() {
        start(|_, [_]| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo a reason; exit 1"]);
            Plan { command, ready: None, stop: KILL, expendable: true }
        });
    }

    #[test]
    fn nothing_outlives_the_tests() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let mut leash = leash(server.id(), folder.path());
        // As when this process is killed.
        drop(leash.stdin.take());
        assert!(!server.wait().unwrap().success());
        leash.wait().unwrap();
        assert!(!folder.path().exists());
    }
}
