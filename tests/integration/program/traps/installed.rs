//! What goes wrong where mailchime is installed: its configuration is root's, and it writes to its own folder alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::program::Process;
use crate::support::servers::NOBODY;
use crate::support::skip;
use crate::support::world::{Server, World};
use crate::support::{limited, listener, soon};

/// The first block of TOML in a page of the documents.
fn block(page: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let page = fs::read_to_string(page).unwrap();
    page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap().to_owned()
}

/// The folder of the configuration is root's, and `state` is the user's that mailchime runs as.
fn as_packaged(world: &World) {
    world.configure(
        "[store]\n",
        "[credentials]\nkey_file = \"state/mailchime.key\"\n\
         [store]\nurl = \"sqlite://state/mailchime.db\"\n",
    );
    fs::create_dir(world.file("state")).unwrap();
    for name in ["state", "server.key", "apns.key"] {
        chown(world.file(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(world.folder(), Permissions::from_mode(0o755)).unwrap();
}

/// `serve`, as the user of the service.
fn serve(world: &World) -> Process {
    let mut program = world.program();
    program.uid(NOBODY).gid(NOBODY);
    Process::spawn(program)
}

#[tokio::test]
async fn the_web_app_as_documented_starts_in_the_layout_of_the_package() {
    const TEST: &str = "the_web_app_as_documented_starts_in_the_layout_of_the_package";
    if !rustix::process::geteuid().is_root() {
        return skip::report(TEST, "only root can start another user's process");
    }
    limited(async {
        let world = World::new().await;
        as_packaged(&world);
        let documented = block("web-app.md").replace("\"[::]:443\"", "\"127.0.0.1:0\"");
        let documented = documented.replace("//push.example.org", "//localhost");
        assert!(documented.contains("127.0.0.1:0") && documented.contains("[webpush]\ncontact"));
        world.configure("[log]", &format!("{documented}[log]"));
        let said = world.command(&["check", "--user", "nobody"]).await;
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        let line = said.line("ok       [webpush]: ");
        assert!(line.contains("state/mailchime-webpush.key: is made at the first start"), "{line}");
        drop(Server::of(serve(&world)).await);
        let made = fs::metadata(world.file("state/mailchime-webpush.key")).unwrap();
        assert_eq!((made.uid(), made.mode() & 0o777), (NOBODY, 0o600));

        // Where it cannot be made both say so.
        world.configure("contact = ", "key_file = \"mailchime-webpush.key\"\ncontact = ");
        let said = world.command(&["check", "--user", "nobody"]).await;
        assert_eq!(said.code, 64, "{}{}", said.stdout, said.stderr);
        said.line("FAILED   [webpush]: ");
        assert_eq!(serve(&world).end().await.code(), Some(64));

        // One that an earlier version has made there goes on being used.
        world.configure("key_file = \"mailchime-webpush.key\"\ncontact = ", "contact = ");
        let before = world.file("mailchime-webpush.key");
        fs::rename(world.file("state/mailchime-webpush.key"), &before).unwrap();
        let said = world.command(&["check", "--user", "nobody"]).await;
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        let line = said.line("ok       [webpush]: ");
        let expected = format!("{}: can be used", before.display());
        assert!(line.contains(&expected), "{line}");
        drop(Server::of(serve(&world)).await);
        assert!(!world.file("state/mailchime-webpush.key").exists(), "another key was made");
    })
    .await;
}

/// A server of PostgreSQL that asks for a password, and what it hears.
async fn asks_for_a_password() -> (u16, tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = listener().await;
    let port = listener.local_addr().unwrap().port();
    let (heard, passwords) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heard = heard.clone();
            tokio::spawn(async move {
                // The first message is a length and a number: the one that asks for TLS, or a version.
                let mut head = [0; 8];
                stream.read_exact(&mut head).await?;
                if head[4..] == 80_877_103_u32.to_be_bytes() {
                    stream.write_all(b"N").await?;
                    stream.read_exact(&mut head).await?;
                }
                let length = u32::from_be_bytes(head[..4].try_into().unwrap());
                let mut rest = vec![0; usize::try_from(length).unwrap() - head.len()];
                stream.read_exact(&mut rest).await?;
                // AuthenticationCleartextPassword
                stream.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]).await?;
                let mut answer = vec![0; 256];
                let length = stream.read(&mut answer).await?;
                answer.truncate(length);
                let _ = heard.send(answer);
                Ok::<_, std::io::Error>(())
            });
        }
    });
    (port, passwords)
}

#[tokio::test]
async fn root_looks_for_the_passwords_of_the_service_in_its_home() {
    const TEST: &str = "root_looks_for_the_passwords_of_the_service_in_its_home";
    let can_mount = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["-m", "true"]).stderr(Stdio::null());
        unshare.status().is_ok_and(|status| status.success())
    };
    if !rustix::process::geteuid().is_root() || !can_mount() {
        return skip::report(TEST, "only root, who may mount, gives a user another home");
    }
    limited(async {
        let world = World::new().await;
        as_packaged(&world);
        let (port, mut passwords) = asks_for_a_password().await;
        let url = format!("url = \"postgres://mailchime@127.0.0.1:{port}/mailchime\"");
        world.configure("url = \"sqlite://state/mailchime.db\"", &url);
        world.configure("busy_timeout = \"5s\"", "busy_timeout = \"1s\"");
        let state = world.file("state");
        let passwd = format!(
            "root:x:0:0::/root:/bin/sh\nnobody:x:{NOBODY}:{NOBODY}::{}:/x\n",
            state.display()
        );
        fs::write(world.file("passwd"), passwd).unwrap();
        fs::write(state.join(".pgpass"), "*:*:*:*:of-the-service\n").unwrap();
        fs::set_permissions(state.join(".pgpass"), Permissions::from_mode(0o600)).unwrap();
        chown(state.join(".pgpass"), Some(NOBODY), Some(NOBODY)).unwrap();
        let script = "mount --bind \"$0\" /etc/passwd && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(world.file("passwd"));
        command.args([env!("CARGO_BIN_EXE_mailchime"), "check", "--user", "nobody", "--config"]);
        command.arg(world.file("proxy.toml")).env("HOME", world.folder()).stdin(Stdio::null());
        let mut process = Process::spawn(command);
        let heard = soon("a password", passwords.recv()).await.unwrap();
        process.end().await;
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(heard.contains("of-the-service"), "{heard:?}\n{:?}", process.stdout.seen);
    })
    .await;
}
