//! What is in the memory of the process: the password of somebody who is not pushed is gone when the
//! login has been answered.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::super::secrets::forms;
use crate::support::line::Client;
use crate::support::program::Process;
use crate::support::world::{Server, World};
use crate::support::{limited, skip, until};

/// Of a user of his own, so that no other test's words are found.
const CAROL: &str = "carol.of.the.memory.test";
const SECRET: &str = "xylophone~quagmire~74";

/// In how many places of the process's memory the bytes are. `None` if it may not be read.
fn places(server: &Server, bytes: &[u8]) -> Option<usize> {
    let process = format!("/proc/{}", server.process.id());
    let maps = fs::read_to_string(format!("{process}/maps")).ok()?;
    let [memory, pages] =
        ["mem", "pagemap"].map(|file| File::open(format!("{process}/{file}")).ok());
    let (memory, pages) = (memory?, pages?);
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        for (from, size) in held(&pages, from, to) {
            let mut piece = vec![0; size];
            // A mapping may have gone meanwhile.
            if memory.read_exact_at(&mut piece, from).is_ok() {
                found += memchr::memmem::find_iter(&piece, bytes).count();
            }
        }
    }
    Some(found)
}

/// The parts of a mapping that hold anything, each by where it begins and its size: an allocator reserves a gigabyte and
/// uses little of it. Source: `Documentation/admin-guide/mm/pagemap.rst` of Linux.
fn held(pages: &File, from: u64, to: u64) -> Vec<(u64, usize)> {
    let page = u64::try_from(rustix::param::page_size()).unwrap();
    let mut entries = vec![0; usize::try_from((to - from) / page * 8).unwrap()];
    if pages.read_exact_at(&mut entries, from / page * 8).is_err() {
        return Vec::new();
    }
    let mut parts: Vec<(u64, usize)> = Vec::new();
    for (at, entry) in (from..to).step_by(usize::try_from(page).unwrap()).zip(entries.chunks(8)) {
        // In memory, or swapped out.
        if entry[7] & 0xc0 == 0 {
            continue;
        }
        let size = usize::try_from(page).unwrap();
        match parts.last_mut() {
            Some((begins, whole)) if *begins + *whole as u64 == at => *whole += size,
            _ => parts.push((at, size)),
        }
    }
    parts
}

/// Places of the secret, in any form.
fn secrets(server: &Server) -> usize {
    let forms: BTreeSet<_> = forms(SECRET).into_iter().collect();
    forms.iter().map(|form| places(server, form).unwrap()).sum()
}

async fn world(without_push: bool) -> World {
    let world = World::new().await;
    world.backend.add_account(CAROL, SECRET.as_bytes());
    if without_push {
        let path = world.file("proxy.toml");
        let config = fs::read_to_string(&path).unwrap();
        let (before, rest) = config.split_once("[apns]").unwrap();
        let (_, after) = rest.split_once("[log]").unwrap();
        fs::write(path, format!("{before}[log]{after}")).unwrap();
    }
    world
}

/// Logs in in this way, and says what mail clients say next.
async fn logged_in(world: &World, server: &Server, way: &str) -> Client {
    let mut client = world.client(server).await;
    let plain = BASE64_STANDARD.encode(format!("\0{CAROL}\0{SECRET}"));
    let [name, word] = [CAROL, SECRET].map(|text| BASE64_STANDARD.encode(text));
    let lines = match way {
        "LOGIN" => vec![format!("in LOGIN {CAROL} \"{SECRET}\"")],
        "literal" => {
            vec![format!("in LOGIN {CAROL} {{{}}}", SECRET.len()), SECRET.to_owned()]
        }
        "PLAIN" => vec![format!("in AUTHENTICATE PLAIN {plain}")],
        _ => vec!["in AUTHENTICATE LOGIN".to_owned(), name, word],
    };
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            client.until("+").await;
        }
        client.send(format!("{line}\r\n").as_bytes()).await;
    }
    client.until("in OK").await;
    // The TLS library keeps what it last decrypted until as much has come again.
    let id = format!("i ID (\"name\" \"iPhone Mail\" \"vendor\" \"{}\")\r\n", "x".repeat(300));
    client.send(id.as_bytes()).await;
    client.until("i OK").await;
    client
}

fn may_read(test: &str, server: &Server) -> bool {
    let may = places(server, b"x").is_some();
    if !may {
        skip::report(test, "the memory of another process cannot be read here");
    }
    may
}

/// Logs in in each way, without push, with push but in the mode in which no password is needed, and
/// with push, of somebody who then hangs up.
#[tokio::test]
async fn a_password_is_gone_once_the_login_is_answered() {
    let test = "attacks::kept::memory::a_password_is_gone_once_the_login_is_answered";
    limited(async {
        let mut found = Vec::new();
        for mode in ["no push", "master"] {
            let world = world(mode == "no push").await;
            if mode == "master" {
                super::files::master(&world);
            }
            let server = world.serve().await;
            if !may_read(test, &server) {
                return;
            }
            for way in ["LOGIN", "literal", "PLAIN", "AUTHENTICATE LOGIN"] {
                let mut client = logged_in(&world, &server, way).await;
                found.push((mode, way, secrets(&server)));
                // So that the search can find something.
                let name = places(&server, CAROL.as_bytes()).unwrap();
                assert!(name > 0, "{mode} {way}: not even the name is found");
                client.send(b"z LOGOUT\r\n").await;
                client.until("z OK").await;
                client.rest().await;
            }
        }
        assert!(found.iter().all(|(_, _, places)| *places == 0), "{found:?}");
    })
    .await;
}

/// A session that can register keeps it while connected: it is what a registration stores.
#[tokio::test]
async fn a_password_is_kept_while_it_may_be_needed_and_gone_with_the_session() {
    let test = "attacks::kept::memory::a_password_is_kept_while_it_may_be_needed";
    limited(async {
        let world = world(false).await;
        let mut server = world.serve().await;
        if !may_read(test, &server) {
            return;
        }
        let mut client = logged_in(&world, &server, "LOGIN").await;
        let connected = secrets(&server);
        client.send(b"z LOGOUT\r\n").await;
        client.until("z OK").await;
        client.rest().await;
        drop(client);
        server.logged("session ended").await;
        assert_eq!(connected, 1, "places while connected");
        until(async || secrets(&server) == 0).await;
    })
    .await;
}

/// No core is written, and nobody but root may look into the process.
#[tokio::test]
async fn nobody_else_can_look_into_the_process() {
    let test = "attacks::kept::memory::nobody_else_can_look_into_the_process";
    limited(async {
        let world = World::new().await;
        let nobody = 65534;
        let mut folders = vec![world.folder().to_owned()];
        while let Some(folder) = folders.pop() {
            if chown(&folder, Some(nobody), Some(nobody)).is_err() {
                return skip::report(test, "files cannot be given to another user here");
            }
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => chown(&path, Some(nobody), Some(nobody)).unwrap(),
                }
            }
        }
        let mut program = world.program();
        program.uid(nobody).gid(nobody);
        let server = Server::of(Process::spawn(program)).await;
        let process = format!("/proc/{}", server.process.id());
        let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let core: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
        // The files of a process that may be looked into belong to its user.
        let owner = fs::metadata(format!("{process}/mem")).unwrap().uid();
        let user = fs::metadata(&process).unwrap().uid();
        assert_eq!((core, owner), (vec!["0", "0"], 0), "of a process of {nobody}: {user}");
    })
    .await;
}

/// Private keys and the key of the vault are not kept as the text that their files hold.
#[tokio::test]
async fn no_key_is_kept_as_text() {
    let test = "attacks::kept::memory::no_key_is_kept_as_text";
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        if !may_read(test, &server) {
            return;
        }
        world.register(server.address).await.unwrap();
        let mut found = Vec::new();
        for name in ["server.key", "apns.key", "mailchime.key"] {
            let text = fs::read_to_string(world.file(name)).unwrap();
            let lines =
                text.lines().filter(|line| line.len() > 20 && !line.starts_with(['-', '#']));
            for line in lines {
                found.push((name, places(&server, line.as_bytes()).unwrap()));
            }
            // So that the search can find something.
            assert!(places(&server, name.as_bytes()).unwrap() > 0, "not even {name} is found");
        }
        assert!(found.len() >= 3 && found.iter().all(|(_, places)| *places == 0), "{found:?}");
    })
    .await;
}
