//! Podman with storage of its own, for tests that build an image and run it: nothing of it is seen by, or shared with,
//! the containers of this machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{ends, program, succeeds};
use crate::support::skip;

/// How long one command may take, in seconds.
const LIMIT: &str = "120";

/// Stands in for a program that is whole in one file: `serve` makes `/var/lib/mailchime/well` and waits for SIGTERM,
/// `health` succeeds where that file is, and `show` prints the user, whether `/var/lib/mailchime`, `/etc/mailchime` and
/// the folder of each file behind it can be written, and the capabilities.
const SMALL: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static int written(const char *name) { return fopen(name, "w") != 0; }
int main(int count, char **words) {
    if (count < 2) return 0;
    if (!strcmp(words[1], "health")) return access("/var/lib/mailchime/well", F_OK) != 0;
    if (!strcmp(words[1], "show")) {
        printf("%d %d %d", getuid(), written("/var/lib/mailchime/x"), written("/etc/mailchime/x"));
        for (int word = 2; word < count; word++) printf(" %d", written(words[word]));
        puts("");
        FILE *status = fopen("/proc/self/status", "r");
        char line[256];
        while (fgets(line, sizeof line, status))
            if (!strncmp(line, "CapEff:", 7) || !strncmp(line, "NoNewPrivs:", 11)) printf("%s", line);
        return 0;
    }
    sigset_t set;
    int signal;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, 0);
    for (int word = 1; word < count; word++) printf("%s\n", words[word]);
    fflush(stdout);
    written("/var/lib/mailchime/well");
    sigwait(&set, &signal);
    printf("stopped by %d\n", signal);
    return 0;
}
"#;

/// Where this machine has no systemd, and where limits may not be raised, containers run all the same. The file with the
/// locks is otherwise shared by all storages.
const CONFIG: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
"#;

pub(super) struct Podman(TempDir);

impl Podman {
    /// `None`, said aloud, where this machine runs no containers.
    pub(super) fn new(test: &str) -> Option<Self> {
        for needed in ["podman", "runc"] {
            program(test, "podman", needed)?;
        }
        if succeeds(Command::new("id").arg("-u")).trim() != "0" {
            skip::report(test, "podman runs as root in the tests");
            return None;
        }
        let podman = Self(tempfile::tempdir().unwrap());
        fs::write(podman.path("containers.conf"), CONFIG).unwrap();
        fs::write(podman.path("small.c"), SMALL).unwrap();
        let mut cc = Command::new("cc");
        succeeds(cc.arg("-static").arg(podman.path("small.c")).arg("-o").arg(podman.small()));
        // A container with nothing in it.
        let probe = podman.path("probe");
        fs::create_dir(&probe).unwrap();
        fs::copy(podman.small(), probe.join("small")).unwrap();
        fs::write(probe.join("Containerfile"), "FROM scratch\nCOPY small /\nCMD [\"/small\"]\n")
            .unwrap();
        let built = ends(podman.build("probe").arg(&probe));
        let (succeeded, said) =
            if built.0 { ends(podman.run().args(["--rm", "probe"])) } else { built };
        if !succeeded {
            let said = said.trim().replace('\n', " | ");
            skip::report(test, &format!("podman runs no containers on this machine: {said}"));
            return None;
        }
        Some(podman)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// The small static program.
    pub(super) fn small(&self) -> std::path::PathBuf {
        self.path("small")
    }

    /// A command of podman's.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args([
            "--kill-after=10",
            LIMIT,
            "podman",
            "--log-level=fatal",
            "--storage-driver=vfs",
        ]);
        for (option, folder) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.path(folder));
        }
        command.env("CONTAINERS_CONF", self.path("containers.conf")).args(arguments);
        command
    }

    /// Builds an image of this name; the folder is still to be given. Nothing is fetched.
    pub(super) fn build(&self, name: &str) -> Command {
        let image = ["--format=docker", "--pull=never", "--network=none", "-t", name];
        self.command(&[&["build"][..], &image].concat())
    }

    /// Runs a container; the image is still to be given.
    pub(super) fn run(&self) -> Command {
        self.command(&["run", "--network=none"])
    }

    /// The files of an image that a build copies from this folder by `COPY . /`, as this file of `.dockerignore` has it.
    pub(super) fn copied(&self, folder: &Path, ignore: &str) -> Vec<String> {
        let (file, out) = (self.path("Containerfile"), self.path("copied"));
        fs::write(&file, "FROM scratch\nCOPY . /\n").unwrap();
        fs::write(self.path("Containerfile.dockerignore"), ignore).unwrap();
        let mut build = self.command(&["build", "--pull=never", "--network=none", "--output"]);
        succeeds(build.arg(&out).arg("-f").arg(file).arg(folder));
        let found = succeeds(Command::new("find").args([".", "-type", "f"]).current_dir(out));
        let mut found: Vec<_> = found.lines().map(str::to_owned).collect();
        found.sort_unstable();
        found
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // What still runs; the folder goes by itself, for nothing is mounted there afterwards.
        ends(&mut self.command(&["rm", "--all", "--force", "--time=0"]));
    }
}
