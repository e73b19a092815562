//! mailchime as a service: the unit, the jail of fail2ban, certbot's hook, configurations, manual pages.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mailchime::config::{AdminAddress, Config};

use super::{ends, file, program, succeeds, text};
use crate::support::limited;
use crate::support::program::mailchime;
use crate::support::skip;
use crate::support::world::World;

/// `tests/packages.sh` shows what the unit does; this is what it must not lose.
#[test]
fn the_unit_gives_up_at_a_wrong_configuration_alone() {
    let unit = text("contrib/systemd/mailchime.service");
    for line in [
        "Restart=on-failure",
        "RestartPreventExitStatus=64",
        "StartLimitIntervalSec=0",
        "ExecStart=mailchime serve --config /etc/mailchime/proxy.toml",
    ] {
        assert!(unit.lines().any(|it| it == line), "no {line} in {unit}");
    }
}

#[test]
fn systemd_takes_the_users_and_folders() {
    let test = "contrib::service::systemd_takes_the_users_and_folders";
    let root = tempfile::tempdir().unwrap();
    let option = format!("--root={}", root.path().display());
    let Some(mut users) = program(test, "systemd", "systemd-sysusers") else { return };
    fs::create_dir(root.path().join("etc")).unwrap();
    succeeds(users.arg(&option).arg(file("contrib/systemd/sysusers.d/mailchime.conf")));
    let passwd = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    assert!(passwd.starts_with("mailchime:x:") && passwd.contains("/nologin"), "{passwd}");
    let Some(mut folders) = program(test, "systemd", "systemd-tmpfiles") else { return };
    let rules = file("contrib/systemd/tmpfiles.d/mailchime.conf");
    let (succeeded, said) = ends(folders.args(["--create", &option]).arg(rules));
    if !is_root() {
        return; // Nobody else can give the folders away.
    }
    assert!(succeeded, "{said}");
    for (folder, mode) in [("etc/mailchime", 0o750), ("var/lib/mailchime", 0o700)] {
        let found = fs::metadata(root.path().join(folder)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, mode, "{folder}");
    }
}

/// An older one refuses rules with a colon, and the package would stay half installed.
#[test]
fn the_package_needs_the_systemd_that_its_rules_for_folders_need() {
    let rules = text("contrib/systemd/tmpfiles.d/mailchime.conf");
    let mut modes =
        rules.lines().filter_map(|line| line.strip_prefix("d ")?.split_whitespace().nth(1));
    assert!(modes.any(|mode| mode.starts_with(':')), "{rules}");
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let depends = manifest["package"]["metadata"]["deb"]["depends"].as_str().unwrap();
    let needed = "systemd (>= 252) | systemd-standalone-tmpfiles (>= 252)";
    assert!(depends.split(", ").any(|it| it == needed), "{depends}");
}

/// The filter itself is tested on real lines in `attacks::logs`.
#[test]
fn fail2ban_takes_the_jail() {
    let test = "contrib::service::fail2ban_takes_the_jail";
    let Some(mut client) = program(test, "fail2ban", "fail2ban-client") else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("fail2ban");
    succeeds(Command::new("cp").arg("-r").arg("/etc/fail2ban").arg(&config));
    // A machine's own jails read logs that this one may lack.
    let _ = fs::remove_dir_all(config.join("jail.d"));
    for part in ["jail.d", "filter.d"] {
        fs::create_dir_all(config.join(part)).unwrap();
        let from = file("contrib/fail2ban").join(part).join("mailchime.conf");
        fs::copy(from, config.join(part).join("mailchime.conf")).unwrap();
    }
    let said = succeeds(client.arg("-c").arg(&config).arg("-d"));
    for part in [
        "'add', 'mailchime'",
        "_SYSTEMD_UNIT=mailchime.service",
        "login refused",
        "1h",
        "imap,imaps,1993,8443",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
}

/// With files in the places of the certificates and keys that an operator brings.
#[test]
fn configurations_are_valid() {
    let manifest = text("contrib/kubernetes/mailchime.yaml");
    let inside = manifest.split("  proxy.toml: |\n").nth(1).unwrap();
    let inside = inside.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
    let inside: Vec<_> = inside.map(str::trim_start).collect();
    let mut packages = 0;
    for toml in
        [text("contrib/debian/proxy.toml"), text("contrib/container/proxy.toml"), inside.join("\n")]
    {
        let is_package = toml == text("contrib/debian/proxy.toml");
        let folder = tempfile::tempdir().unwrap();
        let lines = toml.lines().map(|line| match line.split_once(" = ") {
            Some((key @ ("certificate" | "private_key"), _)) => {
                fs::write(folder.path().join(key), "").unwrap();
                format!("{key} = \"{key}\"\n")
            }
            _ => format!("{line}\n"),
        });
        let toml: String = lines.collect();
        assert!(toml.contains("[backend]") && toml.contains("\ncertificate = "), "{toml}");
        let path = folder.path().join("proxy.toml");
        let config = Config::parse(&toml, &path).unwrap_or_else(|error| panic!("{error}"));
        // Nobody else on a machine reaches that of the package.
        if is_package {
            let expected = Path::new("/run/mailchime/admin.sock");
            assert!(
                matches!(&config.admin.address, Some(AdminAddress::Unix { path, group: None }) if path == expected),
                "{:?}",
                config.admin.address
            );
            packages += 1;
        }
    }
    assert_eq!(packages, 1);
}

#[test]
fn certbots_hook_copies_a_renewed_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (renewed, into) = (folder.path().join("imap.example.org"), folder.path().join("into"));
    for folder in [&renewed, &into] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(renewed.join("fullchain.pem"), "certificate").unwrap();
    fs::write(renewed.join("privkey.pem"), "key").unwrap();
    let hook = || {
        let mut hook = Command::new(file("contrib/certbot/mailchime"));
        let [owner, group] = ["-u", "-g"].map(|of| succeeds(Command::new("id").arg(of)));
        hook.env("RENEWED_LINEAGE", &renewed).env("FOLDER", &into);
        hook.env("OWNER", owner.trim()).env("GROUP", group.trim());
        hook
    };
    // That of another server is not taken.
    succeeds(hook().env("LINEAGE", "www.example.org"));
    assert_eq!(fs::read_dir(&into).unwrap().count(), 0);
    succeeds(hook().env("LINEAGE", "imap.example.org"));
    succeeds(&mut hook());
    assert_eq!(fs::read_dir(&into).unwrap().count(), 2);
    for (name, text) in [("server.pem", "certificate"), ("server.key", "key")] {
        let path = into.join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }
    // With another certificate beside it, the hook does not guess which is that of the IMAP server.
    let other = folder.path().join("www.example.org");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("fullchain.pem"), "that of the web").unwrap();
    fs::write(other.join("privkey.pem"), "its key").unwrap();
    for lineage in [&renewed, &other] {
        let (succeeded, said) = ends(hook().env("RENEWED_LINEAGE", lineage));
        assert!(
            !succeeded && said.contains("write the name of the one of the IMAP server"),
            "{said}"
        );
    }
    succeeds(hook().env("LINEAGE", "imap.example.org").env("RENEWED_LINEAGE", &other));
    assert_eq!(fs::read_to_string(into.join("server.pem")).unwrap(), "certificate");
    succeeds(hook().env("LINEAGE", "imap.example.org"));
    fs::remove_dir_all(other).unwrap();
    // mailchime reads again what is written, so the same is not.
    let written = || fs::metadata(into.join("server.pem")).unwrap().ino();
    let before = written();
    succeeds(&mut hook());
    assert_eq!(written(), before);
    // Files of another program, under other names.
    fs::write(renewed.join("cert.pem"), "another certificate").unwrap();
    fs::write(renewed.join("key.pem"), "another key").unwrap();
    succeeds(hook().env("CERTIFICATE", "cert.pem").env("PRIVATE_KEY", "key.pem"));
    for (name, text) in [("server.pem", "another certificate"), ("server.key", "another key")] {
        assert_eq!(fs::read_to_string(into.join(name)).unwrap(), text);
    }
    let (succeeded, said) = ends(hook().env_remove("RENEWED_LINEAGE"));
    assert!(!succeeded && said.contains("certbot sets it"), "{said}");
}

/// `tests/run.sh` without `--install` brings nothing.
#[test]
fn the_test_of_the_package_is_skipped_aloud_where_its_parts_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    let script = || {
        let mut script = Command::new(file("tests/packages.sh"));
        script.arg(env!("CARGO_BIN_EXE_mailchime")).arg(folder.path());
        script.env_remove("MAILCHIME_SKIP").env("MAY_DOWNLOAD", "no");
        script
    };
    let (mut bare, mut named) = (script(), script());
    for script in [&mut bare, named.env("MAILCHIME_SKIP", "x debootstrap y")] {
        let said = succeeds(script);
        assert!(said.starts_with("SKIPPED: tests/packages.sh: "), "{said}");
    }
    // In a container without privileges root can mount nothing.
    if is_root() && Path::new("/usr/bin/setpriv").exists() {
        let mut without = Command::new("setpriv");
        without.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]);
        without
            .arg(file("tests/packages.sh"))
            .arg(env!("CARGO_BIN_EXE_mailchime"))
            .arg(folder.path());
        let said = succeeds(without.env("MAY_DOWNLOAD", "no"));
        let expected = "SKIPPED: tests/packages.sh: nothing can be mounted here";
        assert!(said.starts_with(expected), "{said}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was brought");
}

/// What is there already when the archives are made.
const PACKAGE: &str = "mailchime_0.0.9-1_amd64.deb";

/// `contrib/release/archive.sh` with another program in place of mailchime.
#[test]
fn a_release_is_an_archive_its_list_and_their_checksums() {
    let test = "contrib::service::a_release_is_an_archive_its_list_and_their_checksums";
    let Some(mut git) = program(test, "git", "git") else { return };
    let git =
        git.current_dir(file(".")).args(["ls-files", "README.md", "CHANGELOG.md", "SECURITY.md"]);
    git.args(["LICENSE-MIT", "LICENSE-APACHE", "proxy.toml", "docs", "contrib"]);
    let (is_repository, kept) = ends(git);
    if !is_repository {
        return skip::report(test, "these sources are no repository of git");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("build")).unwrap();
    fs::copy("/bin/true", path("build/mailchime")).unwrap();
    fs::write(path("build/mailchime.cdx.json"), "{}").unwrap();
    let archive = |out: &str| {
        let mut script = Command::new(file("contrib/release/archive.sh"));
        script.arg(path(out)).arg(path("build"));
        script
    };
    fs::create_dir(path("out")).unwrap();
    fs::write(path("out").join(PACKAGE), "a package").unwrap();
    succeeds(&mut archive("out"));

    let check = || {
        let mut check = Command::new("sha256sum");
        check.args(["--check", "--strict", "SHA256SUMS"]).current_dir(path("out"));
        ends(&mut check)
    };
    let name = format!("mailchime-{}-linux-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let sorted = |list: &str| list.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let expected = format!("{name}.cdx.json: OK\n{name}.tar.gz: OK\n{PACKAGE}: OK");
    let (intact, said) = check();
    assert!(intact);
    assert_eq!(sorted(&said), sorted(&expected));

    // What git knows of these, and the program; the same again has the same bytes.
    succeeds(&mut archive("again"));
    let [tar, again] = ["out", "again"].map(|out| path(&format!("{out}/{name}.tar.gz")));
    assert!(fs::read(&tar).unwrap() == fs::read(again).unwrap());
    succeeds(Command::new("tar").arg("-xzf").arg(&tar).arg("-C").arg(folder.path()));
    let mut find = Command::new("find");
    find.args([".", "-not", "-type", "d", "-printf", "%P\n"]).current_dir(path(&name));
    let found = succeeds(&mut find);
    assert_eq!(sorted(&found), sorted(&(kept + "mailchime\n")));
    for one in ["LICENSE-APACHE", "docs/install.md", "contrib/systemd/mailchime.service"] {
        assert!(sorted(&found).contains(one), "{one} is not in {found}");
    }
    succeeds(&mut Command::new(path(&format!("{name}/mailchime"))));

    // It is noticed where one byte is another.
    let mut bytes = fs::read(&tar).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&tar, bytes).unwrap();
    let (intact, said) = check();
    assert!(!intact && said.contains(&format!("{name}.tar.gz: FAILED")), "{said}");
    fs::write(path("build/mailchime"), "#!/bin/sh\n# no program of a processor\n").unwrap();
    let (made, said) = ends(&mut archive("other"));
    assert!(!made && said.contains("is neither for x86-64 nor for ARM64"), "{said}");
}

#[test]
fn manual_pages_and_completions_know_the_commands() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("new/files");
    succeeds(mailchime(&["package-files"]).arg(&into));
    let help = succeeds(&mut mailchime(&["--help"]));
    let commands: Vec<_> = help
        .split("Commands:\n")
        .nth(1)
        .unwrap()
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.contains(&"serve") && commands.len() > 8, "{commands:?}");
    let read = |path: String| fs::read_to_string(into.join(path)).unwrap();
    let main = read("man/mailchime.1".to_owned());
    let completions = ["mailchime.bash", "mailchime.fish", "_mailchime"]
        .map(|name| read(format!("completions/{name}")));
    for command in commands {
        assert!(main.contains(&format!("mailchime\\-{command}(1)")), "{command}: {main}");
        assert!(read(format!("man/mailchime-{command}.1")).contains(".SH SYNOPSIS"), "{command}");
        assert!(completions.iter().all(|text| text.contains(command)), "{command}");
    }
    for part in [".SH FILES", ".SH \"EXIT STATUS\"", "/etc/mailchime/proxy.toml"] {
        assert!(main.contains(part), "no {part} in {main}");
    }
    assert!(!main.contains("package\\-files"), "it is for packagers alone");
    succeeds(Command::new("bash").arg("-n").arg(into.join("completions/mailchime.bash")));
}

#[tokio::test]
async fn health_is_an_exit_code() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve_with_admin().await;
        let address = server.admin_address().await;
        let said = world.command(&["health"]).await;
        assert_eq!((said.code, said.stdout.as_str()), (0, "mailchime answers"), "{}", said.stderr);
        let said = world.command(&["health", "--ready"]).await;
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        assert_eq!(said.line("database"), "database: ok");

        // It lives, and cannot work.
        world.backend.refuse().await;
        let said = world.command(&["health", "--ready"]).await;
        assert_eq!((said.code, said.stderr.as_str()), (1, "mailchime: not ready"));
        assert!(said.line("backend").starts_with("backend: FAILED: "), "{}", said.stdout);
        assert_eq!(said.line("database"), "database: ok");
        assert_eq!(world.command(&["health"]).await.code, 0);
        let excluded = world.command(&["health", "--ready", "--exclude", "backend"]).await;
        assert_eq!(excluded.code, 0, "{}{}", excluded.stdout, excluded.stderr);
        let said = world.command(&["health", "--ready", "--exclude", "nothing"]).await;
        assert!(said.code == 1 && said.stderr.contains("there is no part"), "{}", said.stderr);

        drop(server);
        let said = world.command(&["health"]).await;
        assert!(said.code == 1 && said.stderr.contains("is mailchime running"), "{}", said.stderr);

        // One that hangs: who supervises it does not wait long.
        let _listener = std::net::TcpListener::bind(address).unwrap();
        let hangs = tokio::time::timeout(Duration::from_secs(60), world.command(&["health"]));
        let said = hangs.await.expect("health gives up");
        assert!(said.code == 1 && said.stderr.contains("no answer in time"), "{}", said.stderr);
    })
    .await;
}

/// Whether root runs the tests.
fn is_root() -> bool {
    succeeds(Command::new("id").arg("-u")).trim() == "0"
}
