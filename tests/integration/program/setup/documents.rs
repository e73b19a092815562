//! What the documents have for Dovecot is what setup prints, and Dovecot takes it.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{contains, line, printed};
use crate::support::servers::dovecot24::doveconf;
use crate::support::skip;

/// The first line of the change to Dovecot.
const LOGIN: &str = "service imap-login {";

/// The first line of what lets more connections in.
const LIMITS: &str = "service imap {";

/// Mailchime may come by either address of loopback.
const TRUSTED: &str = "login_trusted_networks = 127.0.0.1/32 ::1/128";

/// Dovecot 2.4 itself reads the block that setup has printed for it.
pub(super) fn dovecot_2_4_takes_the_change(test: &str, said: &str, port: u16) {
    let of = |word: &str| {
        let blocks = said.split("service imap-login {").skip(1);
        let blocks = blocks.map(|rest| printed(&format!("service imap-login {{{rest}"), LOGIN));
        blocks.into_iter().find(|block| block.contains(word))
    };
    let trusted = said.lines().find(|line| line.contains("login_trusted_networks = ")).unwrap();
    let block = of("listen = ").expect("a block of 2.4");
    let change = format!("ssl = no\n{block}{trusted}\n{}", printed(said, LIMITS));
    let Some((taken, read)) = doveconf(test, &change) else { return };
    assert!(taken && !read.contains("Warning"), "{read}");
    let port = format!("port = {port}\n");
    contains(&read, &["listen = 127.0.0.1", &port, "port = 0", TRUSTED, "process_limit = 4000"]);
    // It says no to what it does not know, such as the block of 2.3.
    let (taken, read) = doveconf(test, &change.replace("listen = ", "address = ")).unwrap();
    assert!(!taken && read.contains("address"), "{read}");
}

/// Dovecot itself reads the block that setup has printed.
pub(super) fn dovecot_takes_the_change(said: &str, port: u16) {
    let block = printed(said, LOGIN);
    let trusted = said.lines().find(|line| line.contains("login_trusted_networks = ")).unwrap();
    let (taken, read) = doveconf_2_3(&format!("{block}{trusted}\n{}", printed(said, LIMITS)));
    assert!(taken && !read.contains("Warning"), "{read}");
    let port = format!("port = {port}\n");
    contains(&read, &["address = 127.0.0.1", &port, TRUSTED, "process_limit = 4000"]);
}

/// The lines that let more connections with TLS in. Dovecot of either version reads them, and finds nothing too low.
pub(super) fn dovecot_takes_the_limits_with_tls(test: &str, said: &str) {
    let limits = printed(said, LIMITS);
    contains(&limits, &["service imap-login {", "default_client_limit = 5000"]);
    // It counts the services of its protocols.
    let limits = format!("protocols = imap\n{limits}");
    let mut all = vec![doveconf_2_3(&limits)];
    all.extend(doveconf(test, &format!("ssl = no\n{limits}")));
    for (taken, read) in all {
        assert!(taken && !read.contains("Warning"), "{read}");
        assert_eq!(read.matches("process_limit = 4000").count(), 2, "{read}");
        contains(&read, &["default_client_limit = 5000"]);
    }
    // Without the last line it finds two of its services too low.
    let (_, read) = doveconf_2_3(limits.split("default_client_limit").next().unwrap());
    contains(&read, &["service auth { client_limit=1000 } is lower", "service anvil {"]);
}

/// What has Dovecot believe the addresses of clients, and lets more connections in.
pub(super) fn trust_and_limits(said: &str) -> String {
    format!("{}\n{}", line(said, "login_trusted_networks = "), printed(said, LIMITS))
}

/// The blocks for Dovecot in these documents, less those with the PROXY protocol, are what setup prints for one version
/// or the other. Dovecot itself reads that.
pub(super) fn the_documents_have_what_is_printed(said: &str) {
    let trimmed =
        |text: &str| text.lines().map(|line| format!("{}\n", line.trim())).collect::<String>();
    let said = trimmed(said);
    for (file, expected) in [("install.md", 2), ("book/dovecot.md", 4), ("book/master-user.md", 2)]
    {
        let blocks = blocks_of_conf(file).into_iter().filter(|block| !block.contains("haproxy"));
        let blocks: Vec<_> = blocks.map(|block| trimmed(&block)).collect();
        assert_eq!(blocks.len(), expected, "docs/{file}: {blocks:?}");
        for block in blocks {
            assert!(said.contains(&block), "docs/{file} has\n{block}\nsetup prints\n{said}");
        }
    }
}

/// The blocks of configurations of Dovecot in a document.
fn blocks_of_conf(file: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file);
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let mut blocks = Vec::new();
    while lines.by_ref().any(|line| line.trim() == "```conf") {
        let block = lines.by_ref().take_while(|line| line.trim() != "```");
        blocks.push(block.map(|line| format!("{line}\n")).collect());
    }
    blocks
}

/// What docs/install.md has for the PROXY protocol is read by Dovecot of either version.
#[test]
fn dovecot_takes_the_block_of_the_documents_for_the_proxy_protocol() {
    let test = "dovecot_takes_the_block_of_the_documents_for_the_proxy_protocol";
    let blocks = blocks_of_conf("install.md");
    let block = blocks.iter().find(|block| block.contains("haproxy")).expect("a block");
    let expected =
        ["haproxy_trusted_networks = 127.0.0.1", "haproxy = yes", "login_trusted_networks"];
    if !skip::skipped(test, "dovecot") && Path::new("/usr/bin/doveconf").exists() {
        let (taken, read) = doveconf_2_3(block);
        assert!(taken, "{read}");
        contains(&read, &expected);
        contains(&read, &["address = 127.0.0.1"]);
    }
    let block =
        block.replace("address = 127.0.0.1     # listen, in Dovecot 2.4", "listen = 127.0.0.1");
    let Some((taken, read)) = doveconf(test, &format!("ssl = no\n{block}")) else { return };
    assert!(taken, "{read}");
    contains(&read, &expected);
    contains(&read, &["listen = 127.0.0.1"]);
}

/// Whether Dovecot 2.3 takes these lines of a configuration, and what its `doveconf -n` says.
pub(super) fn doveconf_2_3(lines: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("dovecot.conf");
    fs::write(&config, format!("ssl = no\n{lines}")).unwrap();
    let output = Command::new("doveconf").arg("-n").arg("-c").arg(&config).output().unwrap();
    let read = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), read)
}
