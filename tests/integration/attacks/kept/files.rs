//! Files that the configuration names: who else can use them, what is no file at all, and what is left
//! beside them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use mailchime::store::Vault;

use crate::support::program::{Process, mailchime};
use crate::support::world::{LOGIN, World};
use crate::support::{limited, soon};

/// Makes a FIFO, in the place of the file if there is one.
fn fifo(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg("-m600").arg(path).status().unwrap().success());
}

pub(super) fn master(world: &World) {
    world.configure("[store]", "[credentials]\nmode = \"master\"\n[store]");
    let user = "master_user = \"boss\"\nmaster_password_file = \"master.password\"\n";
    world.configure("[credentials]", &format!("{user}[credentials]"));
    let file = world.file("master.password");
    fs::write(&file, "secret\n").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
}

/// Each file that is read at the start, as a FIFO that nobody writes to and as a device without end.
#[tokio::test]
async fn what_is_no_file_does_not_hold_up_the_start() {
    limited(async {
        let mut world = World::new().await;
        let mut tried = 0;
        for (name, key) in [
            ("proxy.toml", "proxy.toml"),
            ("server.pem", "[tls] certificate"),
            ("server.key", "[tls] private_key"),
            ("apns.pem", "[apns] certificate"),
            ("apns.key", "[apns] private_key"),
            ("ca.pem", "[apns] ca"),
            ("mailchime.key", "[credentials] key_file"),
            ("mailchime.db", "[store] url"),
            ("master.password", "[backend] master_password_file"),
        ] {
            for device in ["fifo", "/dev/zero", "/dev/ptmx"] {
                if name == "master.password" {
                    master(&world);
                }
                let path = world.file(name);
                match device {
                    "fifo" => fifo(&path),
                    device => {
                        let _ = fs::remove_file(&path);
                        std::os::unix::fs::symlink(device, &path).unwrap();
                    }
                }
                // A device without end would be read into memory.
                let arguments = world.arguments();
                let arguments = arguments.each_ref().map(String::as_str);
                let first = "ulimit -v 4000000";
                let mut process =
                    Process::spawn(crate::support::program::mailchime_after(first, &arguments));
                let ended = tokio::time::timeout(Duration::from_secs(90), process.stderr.rest());
                assert!(ended.await.is_ok(), "the start hangs on {name} as {device}");
                let said = process.stderr.seen.join("\n");
                assert_eq!(process.end().await.code(), Some(64), "{name} as {device}: {said}");
                let told = said.contains(key) && said.contains("is not a file");
                assert!(told, "{name} as {device}: {said}");
                tried += 1;
                world = World::new().await;
            }
        }
        assert_eq!(tried, 27);
    })
    .await;
}

/// The key file becomes a FIFO while the program serves; it is looked at with each registration.
#[tokio::test]
async fn what_is_no_file_any_more_does_not_hold_up_a_session() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        fifo(&world.file("mailchime.key"));
        soon("the registration", world.register(server.address)).await.unwrap();
        server
            .logged(
                "the key file changed and cannot be used; mailchime keeps using the previous key",
            )
            .await;
        server.process.signal("HUP");
        server.logged("configuration reloaded").await;
    })
    .await;
}

#[tokio::test]
async fn a_private_key_that_others_can_use_is_reported() {
    limited(async {
        let world = World::new().await;
        let mode = |name: &str, mode| {
            fs::set_permissions(world.file(name), Permissions::from_mode(mode)).unwrap();
        };
        // A group that may read it is how many systems share a certificate (ssl-cert).
        mode("server.key", 0o640);
        mode("apns.key", 0o604);
        let mut server = world.serve_with_admin().await;
        let message = "other users of this machine can use a file that holds a secret; restrict its owner and mode to mailchime";
        let line = server.logged(message).await;
        let why = line["why"].as_str().unwrap();
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["key"], "[apns] private_key");
        assert!(why.contains("(mode 604)") && why.contains("run: chmod o= "), "{why}");
        let told = |server: &mut crate::support::world::Server| {
            let lines = server.process.stderr.so_far().iter();
            lines.filter(|line| line.contains("a file that holds a secret")).count()
        };
        assert_eq!(told(&mut server), 1);
        assert_eq!(exposed(&world).await, 1);

        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        assert!(said.line("FAILED   [apns] private_key: ").contains("run: chmod o= "));
        let noted = said.line("ok       [tls] private_key: ");
        assert!(noted.contains("its group can read it, too (mode 640)"), "{noted}");

        // Of a foreign owner, and changed by the group.
        mode("apns.key", 0o600);
        mode("server.key", 0o660);
        chown(world.file("apns.key"), Some(12345), None).unwrap();
        server.process.signal("HUP");
        server.logged("configuration reloaded").await;
        let lines = server.process.stderr.so_far().join("\n");
        for part in [
            "its group can change it (mode 660); run: chmod g-w ",
            "it belongs to another user (12345); run: chown 0 ",
        ] {
            assert!(lines.contains(part), "{part} is not in {lines}");
        }
        assert_eq!(exposed(&world).await, 2);
    })
    .await;
}

/// The metric of files that others can use.
async fn exposed(world: &World) -> u64 {
    let config = fs::read_to_string(world.file("proxy.toml")).unwrap();
    let address = config.split("[admin]\naddress = \"").nth(1).unwrap().split('"').next().unwrap();
    let text = super::super::secrets::http(address, "/metrics").await;
    let text = String::from_utf8(text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("mailchime_exposed_files "));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[test]
fn a_password_in_a_configuration_that_others_can_read_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    mailchime::demo::pki::Pki::generate(None).unwrap().write_to(folder.path()).unwrap();
    let file = folder.path().join("proxy.toml");
    let config = |user: &str| {
        format!(
            "[tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
             [backend]\naddress = \"localhost:1\"\n\
             [store]\nurl = \"postgres://{user}@localhost/mail\"\n"
        )
    };
    for (user, mode, told) in
        [("me:secret", 0o644, true), ("me:secret", 0o640, false), ("me", 0o644, false)]
    {
        fs::write(&file, config(user)).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let config = mailchime::config::Config::load(&file).unwrap();
        let secrets = config.secret_files();
        assert_eq!(secrets.iter().any(|(key, _)| *key == "[store] url"), user != "me");
        let exposed = secrets.iter().filter_map(|(_, path)| mailchime::files::exposure(path));
        assert_eq!(exposed.count() > 0, told, "{user} {mode:o}");
    }
}

/// Files in the folder that are none of these.
fn others(folder: &Path, known: &[&str]) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !known.iter().any(|known| name.starts_with(known))).collect()
}

/// Killed as soon as there is a file beside the key, again and again. What was left is gone with the
/// next rotation, and with the next start.
#[tokio::test]
async fn a_rotation_that_is_killed_leaves_no_key_behind() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        server.process.kill();
        let known = ["server", "apns", "ca", "proxy.toml", "mailchime.db"];
        let config = world.file("proxy.toml").display().to_string();
        let mut caught = 0;
        for _ in 0..40 {
            let mut process =
                Process::spawn(mailchime(&["credentials", "rotate", "--config", &config]));
            let folder = world.folder().to_owned();
            let id = process.id().to_string();
            let killer = thread::spawn(move || {
                let began = Instant::now();
                while began.elapsed() < Duration::from_secs(20) {
                    if others(&folder, &known).len() > 1 {
                        let _ = Command::new("kill").args(["-STOP", &id]).status();
                        let left = others(&folder, &known).len() > 1;
                        let _ = Command::new("kill").args(["-KILL", &id]).status();
                        return left;
                    }
                    if !Path::new(&format!("/proc/{id}/exe")).exists() {
                        return false;
                    }
                }
                false
            });
            process.end().await;
            caught += usize::from(killer.join().unwrap());
            if caught >= 3 {
                break;
            }
        }
        let left = others(world.folder(), &known);
        let said = world.command(&["credentials", "rotate"]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert_eq!(others(world.folder(), &known), ["mailchime.key"], "{caught} caught: {left:?}");
        // As a kill leaves it, whatever the chances of the above.
        let beside = world.file("mailchime.key.new");
        fs::copy(world.file("mailchime.key"), &beside).unwrap();
        Vault::open(&world.file("mailchime.key")).unwrap();
        assert_eq!(others(world.folder(), &known), ["mailchime.key"]);
        let server = world.serve().await;
        world.session(&server).await;
        assert_eq!(fs::metadata(world.file("mailchime.key")).unwrap().mode() & 0o777, 0o600);
        assert!(said.stdout.contains("sealed with it"), "{}: {LOGIN}", said.stdout);
    })
    .await;
}
