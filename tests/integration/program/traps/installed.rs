//! What goes wrong where mailchime is installed: its configuration is root's, and it writes to its own folder alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;

use crate::support::limited;
use crate::support::program::Process;
use crate::support::servers::NOBODY;
use crate::support::skip;
use crate::support::world::{Server, World};

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
