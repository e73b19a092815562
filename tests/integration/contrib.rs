//! What `contrib/` has for packagers and operators: each file is taken by the program that it is for, where that is
//! on this machine, and names nothing that mailchime does not have. `tests/packages.sh` installs the package.

mod certificate;
mod container;
mod monitoring;
mod podman;
mod service;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::skip;

/// A file of the repository.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap()
}

/// A program that `test` needs; `None`, said aloud, where this machine lacks it. `named` is its name in
/// `tests/run.sh`.
fn program(test: &str, named: &str, program: &str) -> Option<Command> {
    if skip::skipped(test, named) {
        return None;
    }
    let folders = ["/usr/bin", "/usr/sbin"].map(|folder| Path::new(folder).join(program));
    let Some(path) = folders.into_iter().find(|path| path.exists()) else {
        skip::report(test, &format!("{program} is not on this machine"));
        return None;
    };
    Some(Command::new(path))
}

/// A library of Python that `test` needs, such as `check-jsonschema-0.39.0`, in a Python that has it.
fn python(test: &str, library: &str) -> Option<Command> {
    let (name, _) = library.rsplit_once('-').unwrap();
    if [name, "python3"].into_iter().any(|needed| skip::skipped(test, needed)) {
        return None;
    }
    let clients = std::env::var_os("MAILCHIME_CLIENTS").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("clients"),
        PathBuf::from,
    );
    let folder = clients.join(library);
    if !folder.join(name.replace('-', "_")).exists() {
        skip::report(test, &format!("{library} is not on this machine"));
        return None;
    }
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", folder);
    Some(command)
}

/// What it prints on both outputs, if it succeeds.
fn succeeds(command: &mut Command) -> String {
    let (succeeded, said) = ends(command);
    assert!(succeeded, "{command:?}: {said}");
    said
}

/// Whether it succeeds, and what it prints on both outputs.
fn ends(command: &mut Command) -> (bool, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}
