//! The timer that copies a certificate which another program renews: its units, and what the documents have it copy.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{ends, file, program, succeeds, text};

const SERVICE: &str = "mailchime-certificate.service";
const TIMER: &str = "mailchime-certificate.timer";

/// What the service runs, below the root.
const SCRIPT: &str = "usr/local/lib/mailchime/certificate";

/// Blocks of a document that begin with this fence, each without it.
fn blocks(page: &str, fence: &str) -> Vec<String> {
    let (text, fence) = (text(page), format!("\n{fence}\n"));
    let blocks = text.split(&fence).skip(1);
    blocks.map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

/// The lines of these documents that say where a certificate is.
fn documented() -> Vec<String> {
    let pages = ["docs/packages.md", "docs/book/containers.md"];
    let blocks = pages.into_iter().flat_map(|page| blocks(page, "```ini"));
    blocks.filter(|block| block.contains("RENEWED_LINEAGE=")).collect()
}

/// A machine on which the documented lines were run.
fn installed() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let shown = root.path().display();
    fs::create_dir_all(root.path().join("etc/systemd/system")).unwrap();
    let blocks = blocks("docs/packages.md", "```sh not-run");
    let block = blocks.iter().find(|block| block.contains(TIMER)).expect("a block");
    let mut run = 0;
    for line in block.lines().filter_map(|line| line.strip_prefix("sudo install ")) {
        let line = line.replace("/usr/", &format!("{shown}/usr/"));
        let line = line.replace("/etc/", &format!("{shown}/etc/"));
        let mut install = Command::new("sh");
        succeeds(install.arg("-c").arg(format!("install {line}")).current_dir(file("contrib")));
        run += 1;
    }
    assert_eq!(run, 3, "{block}");
    root
}

#[test]
fn systemd_takes_the_units_as_they_are_installed() {
    let test = "contrib::certificate::systemd_takes_the_units_as_they_are_installed";
    let root = installed();
    let unit = |name: &str| root.path().join("etc/systemd/system").join(name);
    // It is no root for systemd, so the program is named below it.
    let script = format!("ExecStart={}", root.path().join(SCRIPT).display());
    let service = fs::read_to_string(unit(SERVICE)).unwrap();
    assert!(service.contains(&format!("ExecStart=/{SCRIPT}\n")), "{service}");
    fs::write(unit(SERVICE), service.replace(&format!("ExecStart=/{SCRIPT}"), &script)).unwrap();
    let verify = || {
        let mut verify = program(test, "systemd", "systemd-analyze")?;
        verify.args(["verify", "--man=no"]).args([SERVICE, TIMER].map(unit));
        Some(ends(&mut verify))
    };
    let Some((taken, said)) = verify() else { return };
    assert!(taken && said.is_empty(), "{said}");
    // It says no to what it does not know.
    let timer = fs::read_to_string(unit(TIMER)).unwrap();
    fs::write(unit(TIMER), timer.replace("OnCalendar=daily", "OnCalendar=dayly")).unwrap();
    let (taken, said) = verify().unwrap();
    assert!(!taken && said.contains("dayly"), "{said}");
}

/// The service's command with the variables of a file that has these lines.
fn copies(root: &Path, lines: &str, into: &Path) -> (bool, String) {
    let environment = root.join("certificate.env");
    fs::write(&environment, lines).unwrap();
    let [owner, group] = ["-u", "-g"].map(|of| succeeds(Command::new("id").arg(of)));
    let mut command = Command::new("env");
    // As EnvironmentFile= gives them.
    command.arg("-i").arg("PATH=/usr/sbin:/usr/bin:/sbin:/bin");
    command.args([format!("OWNER={}", owner.trim()), format!("GROUP={}", group.trim())]);
    command.arg(format!("FOLDER={}", into.display()));
    let lines = fs::read_to_string(environment).unwrap();
    ends(command.args(lines.lines()).arg(root.join(SCRIPT)))
}

/// The value of a variable in such lines.
fn value<'a>(lines: &'a str, name: &str, otherwise: &'a str) -> &'a str {
    let mut pairs = lines.lines().filter_map(|line| line.split_once('='));
    pairs.find(|(key, _)| *key == name).map_or(otherwise, |(_, value)| value)
}

#[test]
fn what_the_documents_have_it_copy_is_copied_when_it_has_changed() {
    let all = documented();
    assert_eq!(all.len(), 5, "{all:?}");
    for lines in all {
        let root = installed();
        let into = root.path().join("etc/mailchime");
        fs::create_dir(&into).unwrap();
        let place = value(&lines, "RENEWED_LINEAGE", "");
        let folder = root.path().join(place.trim_start_matches('/'));
        assert!(folder.ends_with(value(&lines, "LINEAGE", "")), "{lines}");
        let lines = lines.replace(place, &folder.display().to_string());
        let names = [("CERTIFICATE", "fullchain.pem"), ("PRIVATE_KEY", "privkey.pem")];
        let names = names.map(|(key, otherwise)| value(&lines, key, otherwise).to_owned());
        let write = |folder: &Path, what: &str| {
            fs::create_dir_all(folder).unwrap();
            for name in &names {
                fs::write(folder.join(name), format!("{what}, {name}")).unwrap();
            }
        };
        let copied = || {
            let files = ["server.pem", "server.key"].map(|name| into.join(name));
            let modes = files.each_ref().map(|path| fs::metadata(path).unwrap().permissions());
            assert_eq!(modes.map(|mode| mode.mode() & 0o777), [0o640; 2]);
            files.map(|path: PathBuf| fs::read_to_string(path).unwrap())
        };
        // One of another name beside it, as mailcow and Mailu have.
        write(&folder.with_file_name("other"), "another certificate");
        for what in ["the first one", "the first one", "a renewed one"] {
            write(&folder, what);
            let (succeeded, said) = copies(root.path(), &lines, &into);
            assert!(succeeded, "{lines}: {said}");
            assert_eq!(copied(), names.each_ref().map(|name| format!("{what}, {name}")));
        }
        assert_eq!(fs::read_dir(&into).unwrap().count(), 2);
        // A file that is not there ends it with an error, which systemd keeps.
        fs::remove_file(folder.join(&names[0])).unwrap();
        let (succeeded, said) = copies(root.path(), &lines, &into);
        assert!(!succeeded && said.contains(&names[0]), "{said}");
    }
}
