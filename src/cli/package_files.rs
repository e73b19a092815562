//! `mailchime package-files`: manual pages and completions of shells, for those who make packages.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

use super::{CommandFailure, say};

/// What the manual page of the program has beside what `--help` says, in the language of roff.
const MORE: &str = include_str!("package_files.roff");

#[derive(Debug, clap::Args)]
pub(super) struct PackageFilesOptions {
    /// Where they go; files of the same names are replaced
    folder: PathBuf,
}

pub(super) fn run(options: &PackageFilesOptions, program: Command) -> Result<(), CommandFailure> {
    let folder = &options.folder;
    write(folder, program).map_err(|error| {
        CommandFailure::Failed(format!("{}: could not be written: {error}", folder.display()))
    })?;
    say(format_args!("manual pages and completions are in {}", folder.display()));
    Ok(())
}

fn write(folder: &Path, mut program: Command) -> io::Result<()> {
    let (manual, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&manual, &completions] {
        fs::create_dir_all(folder)?;
    }
    clap_mangen::generate_to(program.clone(), &manual)?;
    let page = manual.join("mailchime.1");
    fs::OpenOptions::new().append(true).open(page)?.write_all(MORE.as_bytes())?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut program, "mailchime", &completions)?;
    }
    Ok(())
}
