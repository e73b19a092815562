//! The documents as a book: each page is in it, each command line is run here or marked as not run, and what
//! mailchime says of accounts and pushes is explained.

mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::limited;
use crate::support::program::Process;
use crate::support::skip;
use crate::support::world::{PASSWORD, TOKEN, World};
use crate::support::xapsd::database_with_certificate;

/// Where blocks of the shell are looked for; what is below their folders too.
const FOLDERS: [&str; 4] = ["docs", "benches", "fuzz", "contrib"];

/// The topic in the documents.
const TOPIC: &str = "com.apple.mail.XServer.11111111-2222-3333-4444-555555555555";

/// What begins a block of the shell.
const SHELLS: [&str; 4] = ["sh", "bash", "shell", "console"];

/// What begins a block of Python.
const PYTHONS: [&str; 3] = ["python", "python3", "py"];

/// The marks of blocks that people run.
const MARKS: [&str; 4] = ["sh run", "sh not-run", "python run", "python not-run"];

/// The mark of a line that cannot be a block, such as a row of a table.
const NOT_RUN: &str = "<!-- not-run -->";

/// Programs of which the documents have command lines. Those of mailchime itself may stand in the text: its own parser
/// takes them in `written`.
const PROGRAMS: [&str; 58] = [
    "apt",
    "apt-get",
    "cargo",
    "certbot",
    "chgrp",
    "chmod",
    "chown",
    "cp",
    "curl",
    "docker",
    "doveadm",
    "doveconf",
    "dovecot",
    "dpkg",
    "dpkg-deb",
    "fail2ban-client",
    "getent",
    "git",
    "groupadd",
    "install",
    "journalctl",
    "just",
    "kubectl",
    "ln",
    "mariadb",
    "mariadb-dump",
    "mdbook",
    "mkdir",
    "mv",
    "mysql",
    "npm",
    "npx",
    "openssl",
    "pg_dump",
    "pip",
    "podman",
    "podman-compose",
    "promtool",
    "psql",
    "python3",
    "rm",
    "rustup",
    "saslpasswd2",
    "scp",
    "setpriv",
    "sh",
    "sha256sum",
    "sqlite3",
    "ssh",
    "sudo",
    "systemctl",
    "systemd-run",
    "systemd-sysusers",
    "systemd-tmpfiles",
    "tar",
    "useradd",
    "usermod",
    "wget",
];

/// A block of a document.
struct Block {
    /// The file and the line.
    place: String,
    /// All that stands behind the fence.
    info: String,
    /// Its lines without the blanks around each.
    text: String,
    /// Its lines as they are.
    raw: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            pages(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// All documents: what a person is shown as their path, and their text.
fn documents() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        pages(&root().join(folder), &mut files);
    }
    let at_root = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    files.extend(at_root.filter(|path| path.extension().is_some_and(|it| it == "md")));
    let shown = |path: &Path| path.strip_prefix(root()).unwrap().display().to_string();
    files.iter().map(|path| (shown(path), fs::read_to_string(path).unwrap())).collect()
}

/// All blocks of all documents.
fn blocks() -> Vec<Block> {
    documents().iter().flat_map(|(shown, text)| blocks_of(shown, text)).collect()
}

fn blocks_of(shown: &str, text: &str) -> Vec<Block> {
    let (mut blocks, mut open) = (Vec::new(), None::<Block>);
    for (number, raw) in (1..).zip(text.lines()) {
        let line = raw.trim();
        match (fence(line), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(info), None) => {
                let place = format!("{shown}:{number}");
                let (text, raw) = (String::new(), String::new());
                open = Some(Block { place, info: info.to_owned(), text, raw });
            }
            (None, Some(mut block)) => {
                block.text += &format!("{line}\n");
                block.raw += &format!("{raw}\n");
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    blocks
}

/// What stands behind the fence that begins or ends a block.
fn fence(line: &str) -> Option<&str> {
    ["```", "~~~"].into_iter().find_map(|fence| line.strip_prefix(fence))
}

/// Blocks of the shell and of Python that are not marked, blocks of another name with a command line, and blocks that do
/// not say what they are.
fn unmarked(blocks: &[Block]) -> Vec<&str> {
    let is_to_be_run = |block: &&Block| {
        let name = block.info.split([' ', ',']).next().unwrap();
        name.is_empty()
            || SHELLS.contains(&name)
            || PYTHONS.contains(&name)
            || block.text.lines().any(is_command_line)
    };
    let blocks = blocks.iter().filter(|block| !MARKS.contains(&block.info.as_str()));
    blocks.filter(is_to_be_run).map(|block| block.place.as_str()).collect()
}

/// Whether this is a command line of a known program. Two words are only the name of a command: `apt purge`.
fn is_command_line(code: &str) -> bool {
    let words: Vec<_> = code.split_whitespace().filter(|word| *word != "$").collect();
    words.len() > 2 && PROGRAMS.contains(&words[0])
}

/// Command lines in the text, which are not marked.
fn loose(shown: &str, text: &str) -> Vec<String> {
    let (mut loose, mut is_block) = (Vec::new(), false);
    for (number, line) in (1..).zip(text.lines()) {
        if fence(line.trim_start()).is_some() {
            is_block = !is_block;
        } else if !is_block && !line.contains(NOT_RUN) {
            let inline = line.split('`').skip(1).step_by(2);
            // That is a block, too.
            let indented = line.starts_with("    ").then(|| line.trim());
            let found = inline.chain(indented).filter(|code| is_command_line(code));
            loose.extend(found.map(|code| format!("{shown}:{number}: {code}")));
        }
    }
    loose
}

#[test]
fn each_command_line_is_run_or_marked_as_not_run() {
    let blocks = blocks();
    assert!(blocks.len() > 40, "only {} blocks are found", blocks.len());
    let faults = unmarked(&blocks);
    assert!(faults.is_empty(), "write one of {MARKS:?}: {faults:#?}");
    let faults: Vec<_> = documents().iter().flat_map(|(shown, text)| loose(shown, text)).collect();
    assert!(faults.is_empty(), "put these into blocks that are marked: {faults:#?}");
}

#[test]
fn a_block_without_a_mark_is_found() {
    let page = "```sh run\na\n```\n- x\n  ```sh\n  b\n  ```\n```toml\n```\n```console\n```\n```sh not-run\n```\n";
    assert_eq!(unmarked(&blocks_of("page", page)), ["page:5", "page:10"]);
    let page = "```python\n```\n```text\n$ curl -v x\ncurl lists\n```\n```python not-run\n```\n";
    assert_eq!(unmarked(&blocks_of("page", page)), ["page:1", "page:3"]);
    let page = "```\na\n```\n~~~sh\nb\n~~~\n~~~\nc\n~~~\n```text\nsudo mv a b\n```\n";
    assert_eq!(unmarked(&blocks_of("page", page)), ["page:1", "page:4", "page:7", "page:10"]);
}

#[test]
fn a_command_line_in_the_text_is_found() {
    let page = "`docker compose up` and `apt purge`, `mailchime push alice --explain`, sudo is no code\n\n    \
                curl -v x\n| `podman build --format docker` `mv a b` |\n| `doveadm pw -s X` <!-- not-run --> |\n```sh not-run\ncurl -v x\n```\n";
    assert_eq!(
        loose("page", page),
        [
            "page:1: docker compose up",
            "page:3: curl -v x",
            "page:4: podman build --format docker",
            "page:4: mv a b",
        ]
    );
}

/// `enable --now` does nothing to a pilot that runs.
#[test]
fn the_take_over_of_port_993_moves_a_pilot_that_runs() {
    let page = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let section = page.split("\n## 4. Move port 993\n").nth(1).expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let blocks = blocks_of("docs/install.md", section);
    let has = |line: &str| blocks.iter().any(|block| block.text.lines().any(|it| it == line));
    assert!(has("address = \"[::]:993\""), "{section}");
    assert!(
        has("sudo systemctl enable mailchime && sudo systemctl restart mailchime"),
        "{section}"
    );
    assert!(blocks.iter().all(|block| !block.text.contains("enable --now")), "{section}");
    for server in ["dovecot", "cyrus", "courier"] {
        let page = fs::read_to_string(root().join(format!("docs/book/{server}.md"))).unwrap();
        assert!(page.contains("](../install.md#4-move-port-993)"), "docs/book/{server}.md");
    }
}

#[test]
fn the_book_has_each_page_once() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed = summary.lines().filter_map(|line| line.split_once("](")?.1.strip_suffix(')'));
    let listed: Vec<_> = listed.map(str::to_owned).collect();
    let mut files = Vec::new();
    pages(&root().join("docs"), &mut files);
    let names = files.iter().map(|path| path.strip_prefix(root().join("docs")).unwrap());
    let mut there: BTreeSet<_> = names.map(|name| name.display().to_string()).collect();
    assert!(there.remove("SUMMARY.md"));
    let once: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(once.len(), listed.len(), "a page is there twice");
    assert_eq!(once, there);
}

/// The strings of a source file between the one text and the next other one.
fn literals(path: &str, from: &str, to: &str) -> BTreeSet<String> {
    let source = fs::read_to_string(root().join(path)).unwrap();
    let part = source.split(from).nth(1).unwrap().split(to).next().unwrap();
    let literals = part.split('"').skip(1).step_by(2);
    literals.map(|text| text.split("\\\n").map(str::trim_start).collect()).collect()
}

#[test]
fn each_state_and_outcome_is_explained() {
    let page = fs::read_to_string(root().join("docs/book/troubleshooting.md")).unwrap();
    let status = "src/watch/status.rs";
    let states = literals(status, "let (state, mode, next_try, reason)", "};");
    let modes = literals(status, "fn word(self)", "\n    }\n}");
    let outcomes = literals("src/push/transport/verdict.rs", "pub fn name(&self)", "\n    }\n");
    assert_eq!(
        [states.len(), modes.len(), outcomes.len()],
        [4, 4, 9],
        "{states:?} {modes:?} {outcomes:?}"
    );
    let words: Vec<_> = [states, modes, outcomes].into_iter().flatten().collect();
    let missing: Vec<_> =
        words.iter().filter(|word| !page.contains(&format!("`{word}`"))).collect();
    assert!(missing.is_empty(), "docs/book/troubleshooting.md does not name {missing:?}");
}

/// What the page has of the log: in the answers of steps 2 and 7, and in the table of what hits many users.
#[test]
fn each_line_of_the_log_that_the_troubleshooting_names_is_in_the_list_of_them() {
    let page = fs::read_to_string(root().join("docs/book/troubleshooting.md")).unwrap();
    let logs = fs::read_to_string(root().join("docs/logs.md")).unwrap();
    // What is told apart from words of commands, states and keys by where it stands.
    let step = |from: &str, to: &str| page.split(from).nth(1).unwrap().split(to).next().unwrap();
    let parts = [
        step("look in the log for", "\n\n"),
        step("The log says `mailchime starts`", "with `routes`"),
        step("The way of one change is", ". The first"),
        step("the log says `push attempted`", "|"),
    ];
    let [first, starts, way, attempted] = parts;
    let (starts, attempted) =
        (format!("`mailchime starts`{starts}"), format!("`push attempted`{attempted}"));
    let named = [first, &starts, way, &attempted].map(|part| part.split('`').skip(1).step_by(2));
    let rows = step("| in the log |", "\u{0}").lines().skip(2);
    let rows = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    let named: BTreeSet<_> = named.into_iter().flatten().chain(rows).collect();
    assert!(named.len() >= 10, "{named:?}");
    let texts: Vec<_> = logs
        .lines()
        .filter_map(|row| row.strip_prefix("| `mailchime::")?.split(" | ").nth(2))
        .collect();
    assert!(texts.len() > 100);
    let missing: Vec<_> =
        named.iter().filter(|name| !texts.iter().any(|text| text.contains(**name))).collect();
    assert!(missing.is_empty(), "docs/logs.md has no line {missing:?}");
}

/// A file of the source, and the texts between which a part of it lies.
type Part = (&'static str, &'static str, &'static str);

/// Where `push --explain` has its reasons.
const REASONS: [Part; 3] = [
    ("src/push/explain.rs", "impl fmt::Display for Reason {", "\n}\n"),
    ("src/push/transport/apns/message.rs", "fn withholds(", "\n    }\n"),
    ("src/app/admin.rs", "fn unwatched(", "\n}\n"),
];

/// Where it has its other lines.
const LINES: [Part; 2] =
    [("src/cli/push.rs", "fn own_fault(", "\n}\n"), ("src/cli/push.rs", "fn explain(", "\n}\n")];

/// Why `import` skips a device.
const SKIPPED: [Part; 3] = [
    ("src/cli/import.rs", "Ok(_) if !seen.insert(key)", "Ok(imported)"),
    ("src/cli/import.rs", "fn checked(", "\n    }\n"),
    ("src/cli/import.rs", "fn said(", "\n}\n"),
];

/// The lines of its report.
const REPORTED: [Part; 2] = [
    ("src/cli/import.rs", "fn report(", "\n    }\n"),
    ("src/cli/import/xapsd.rs", "notes: vec![", "],"),
];

/// What ends it. Statements for the database lie between these parts.
const ENDED_BY: [Part; 6] = [
    ("src/cli/import.rs", "let has = match", "let Some(offer)"),
    ("src/cli/import/xapsd.rs", "fn users(", "false =>"),
    ("src/cli/import/notifyd.rs", "if url.holds_password()", "let text"),
    ("src/cli/import/notifyd.rs", "if url.is_in_the_clear()", "let connecting"),
    ("src/cli/import/notifyd.rs", "fn said(", "\n}\n"),
    ("src/cli/import/notifyd.rs", "left.checked_sub(1)", "let text"),
];

/// The sentences of these parts of the program, each up to its first end or semicolon, with `…` for what it fills in.
fn sentences(parts: &[Part]) -> BTreeSet<String> {
    let literals = parts.iter().flat_map(|(path, from, to)| literals(path, from, to));
    let sentences = literals.filter_map(|literal| {
        let mut sentence = String::new();
        for part in literal.split('{') {
            sentence += part.split_once('}').map_or(part, |(_, rest)| rest);
            sentence.push('…');
        }
        let sentence = sentence.split(';').next().unwrap().split(". ").next().unwrap();
        let sentence = sentence.trim_start().trim_end_matches([' ', ':', '…', '.']).to_owned();
        (sentence.split(' ').count() > 3).then_some(sentence)
    });
    sentences.collect()
}

/// The table of a document with this first cell has the sentences of these parts, at least so many, and no other.
fn has_table(document: &str, first: &str, parts: &[Part], least: usize) {
    let page = fs::read_to_string(root().join(document)).unwrap();
    let table = page.split(&format!("| {first} |")).nth(1).unwrap().split("\n\n").next().unwrap();
    let rows = table.lines().skip(2).filter_map(|row| row.strip_prefix("| ")?.split(" |").next());
    let rows: BTreeSet<_> = rows.map(|cell| cell.replace('`', "")).collect();
    let expected = sentences(parts);
    assert!(expected.len() >= least, "{expected:#?}");
    let [missing, others] = [expected.difference(&rows), rows.difference(&expected)]
        .map(|different| different.collect::<Vec<_>>());
    assert!(
        missing.is_empty() && others.is_empty(),
        "{document}, {first}: missing {missing:#?}, others {others:#?}"
    );
}

#[test]
fn each_explanation_of_no_push_is_in_the_table_of_them_and_no_other() {
    has_table("docs/book/troubleshooting.md", "it says", &REASONS, 21);
}

#[test]
fn what_the_import_says_is_in_the_tables_of_the_migration_and_no_other() {
    let document = "docs/book/migration.md";
    has_table(document, "why skipped", &SKIPPED, 17);
    has_table(document, "line of the report", &REPORTED, 7);
    has_table(document, "it ends with", &ENDED_BY, 9);
}

#[test]
fn each_line_of_an_explained_push_is_in_the_table_of_them_and_no_other() {
    has_table("docs/book/troubleshooting.md", "the line says", &LINES, 10);
}

#[tokio::test]
async fn command_lines_of_the_documents_run() {
    limited(async {
        let world = World::new().await;
        let server = world.serve_with_admin().await;
        world.register(server.address).await.unwrap();
        let database = database_with_certificate(&world.pki, "bob", TOKEN, "2026-01-31T12:00:00Z");
        fs::write(world.file("database.json"), database).unwrap();
        fs::copy(world.file("apns.pem"), world.file("former.pem")).unwrap();
        let no_jq = skip::skipped("command_lines_of_the_documents_run", "jq");
        let program = Path::new(env!("CARGO_BIN_EXE_mailchime"));
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", program.parent().unwrap().display());
        let mut ran = 0;
        let runs =
            |block: &Block| block.info == "sh run" && !(no_jq && block.text.starts_with("jq "));
        for block in blocks().into_iter().filter(runs) {
            let script = block.text.replace(TOPIC, &world.pki.topic);
            let mut command = Command::new("sh");
            command.arg("-euc").arg(&script).current_dir(world.folder()).stdin(Stdio::null());
            command.env("PATH", &path).env("MAILCHIME_PASSWORD", PASSWORD);
            let mut process = Process::spawn(command);
            let end = process.end().await;
            let said = [&process.stdout.seen[..], &process.stderr.seen[..]].concat().join("\n");
            assert!(end.success(), "{}:\n{script}{said}", block.place);
            ran += 1;
        }
        assert!(ran >= 8, "only {ran} blocks ran");
    })
    .await;
}

/// Those of a page are one after the other in one Python: they use what is in those before.
#[tokio::test]
async fn blocks_of_python_run_and_the_server_says_ok_to_each() {
    if skip::skipped("docs::blocks_of_python_run_and_the_server_says_ok_to_each", "python3") {
        return;
    }
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        let port = server.address.port().to_string();
        let (mut pages, mut blocks_that_ran) = (BTreeMap::<_, String>::new(), 0);
        for block in blocks().into_iter().filter(|block| block.info == "python run") {
            let page = block.place.split(':').next().unwrap().to_owned();
            // What a page indents for Python is not in the text of a block.
            *pages.entry(page).or_default() += &block.raw;
            blocks_that_ran += 1;
        }
        assert!(blocks_that_ran >= 2, "only {blocks_that_ran} blocks are found");
        for (page, script) in pages {
            let script = script.replace("1993", &port).replace("certs/ca.pem", "ca.pem");
            let mut command = Command::new("python3");
            command.arg("-c").arg(&script).current_dir(world.folder()).stdin(Stdio::null());
            let mut process = Process::spawn(command);
            let end = process.end().await;
            let (said, errors) = (&process.stdout.seen, process.stderr.seen.join("\n"));
            assert!(end.success(), "{page}:\n{script}{errors}");
            assert_eq!(said.len(), script.matches("print(").count(), "{page}: {said:?}");
            assert!(said.iter().all(|line| line.starts_with("('OK', ")), "{page}: {said:?}");
        }
        world.watched().await;
    })
    .await;
}

/// The preprocessor that `book.toml` names, as mdBook runs it.
#[test]
fn links_out_of_the_book_lead_to_the_repository() {
    if skip::skipped("docs::links_out_of_the_book_lead_to_the_repository", "python3") {
        return;
    }
    let text = "[a](../../proxy.toml) [b](../install.md#x) [c](https://example.org/) [d](#e) ![f](../images/g.png)";
    let chapter = |path: &str, content: &str, inside: Vec<serde_json::Value>| serde_json::json!({ "Chapter": { "name": "n", "content": content, "path": path, "sub_items": inside } });
    let inner = |content: &str| chapter("book/inner.md", content, Vec::new());
    let outer = |content: &str| chapter("outer.md", "[a](book/inner.md)", vec![inner(content)]);
    let context = serde_json::json!(
        { "config": { "output": { "html": { "git-repository-url": "https://git.example.org/m" } } } }
    );
    let separator = serde_json::json!("Separator");
    let input = serde_json::json!([context, { "items": [separator, outer(text)] }]);
    let mut links = Command::new("python3");
    links.arg(root().join("contrib/book/links.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut links = links.spawn().unwrap();
    serde_json::to_writer(links.stdin.take().unwrap(), &input).unwrap();
    let output = links.wait_with_output().unwrap();
    assert!(output.status.success());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected =
        text.replace("../../proxy.toml", "https://git.example.org/m/blob/main/proxy.toml");
    assert_eq!(said, serde_json::json!({ "items": [separator, outer(&expected)] }));
}
