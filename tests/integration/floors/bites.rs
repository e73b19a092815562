//! The finder bites: what is forbidden is found, and nothing else.

use super::{FLOORS, File, ModulePath, circles};

/// The faults of `text` as the file `src/<module>.rs`.
fn faults(module: &str, text: &str) -> Vec<String> {
    let module = module.split('/').map(str::to_owned).collect();
    File { name: String::new(), module, text: text.to_owned() }.faults(false)
}

/// The circles of these files, each `one/other: text`.
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let file = |(module, text): &(&str, &str)| File {
        name: String::new(),
        module: module.split('/').map(str::to_owned).collect(),
        text: (*text).to_owned(),
    };
    let files: Vec<_> = files.iter().map(file).collect();
    let shown = |circle: &Vec<ModulePath>| {
        circle.iter().map(|module| module.join("/")).collect::<Vec<_>>().join(" ")
    };
    circles(&files).iter().map(shown).collect()
}

#[test]
fn circles_are_found_and_nothing_else() {
    for (files, expected) in [
        (
            &[("net/a", "use super::b::X;"), ("net/b", "use crate::net::a;")][..],
            &["net/a net/b"][..],
        ),
        (
            &[("net/a", "fn f() { super::b::g(); }"), ("net/b", "use super::{a::Y, c};")],
            &["net/a net/b"],
        ),
        (&[("imap", "mod a; use self::a::X;"), ("imap/a", "use super::Y;")], &["imap imap/a"]),
        (&[("imap", "mod a; fn f() { a::g(); }"), ("imap/a", "use super::Y;")], &["imap imap/a"]),
        // What is re-exported is used where it lies.
        (
            &[
                ("net", "pub use self::a::X;"),
                ("net/a", "use super::Z; use super::b::W;"),
                ("net/b", "use super::X;"),
            ],
            &["net/a net/b"],
        ),
        (
            &[("proxy", "pub(super) use self::a::X; fn f(x: X) {}"), ("proxy/a", "use super::Z;")],
            &["proxy proxy/a"],
        ),
        (&[("net", "mod a; pub use self::a::X;"), ("net/a", "use super::Z;")], &[]),
        // Longer ones.
        (
            &[
                ("net/a", "use super::b::X;"),
                ("net/b", "use super::c::Y;"),
                ("net/c", "fn f() { crate::net::a::g(); }"),
                ("net/d", "use super::a::X;"),
            ],
            &["net/a net/b net/c"],
        ),
        (
            &[
                ("store/a", "use super::sql::b::X;"),
                ("store/sql/b", "use super::c;"),
                ("store/sql/c", "use crate::store::d::Z;"),
                ("store/d", "use super::a;"),
            ],
            &["store/a store/d store/sql/b store/sql/c"],
        ),
        (&[("net/a", "use super::b;"), ("net/b", "use super::c;"), ("net/c", "fn f() {}")], &[]),
        (&[("imap", "mod a; use self::a::X;"), ("imap/a", "pub(super) fn f() {}")], &[]),
        (&[("net", "mod a; use self::a::X;"), ("net/a", "use super::Y;")], &[]),
        (&[("net/a", "use super::b::X;"), ("net/b", "/// [`super::a`]\nfn f() {}")], &[]),
        (
            &[
                ("net/a", "use super::b::X;"),
                ("net/b", "#[cfg(test)] mod tests { use super::super::a; }"),
            ],
            &[],
        ),
    ] {
        assert_eq!(circles_of(files), expected, "{files:?}");
    }
}

/// Which part must not name which others, written out beside [`FLOORS`]: `part: others`.
const FORBIDDEN: &str = "\
    app: cli demo
    proxy: cli app watch push admin api intake record demo
    watch: cli app proxy push admin api intake record demo
    push: cli app proxy watch admin api intake record demo
    admin: cli app proxy watch push api intake record demo
    api: cli app proxy watch push admin intake record demo
    intake: cli app proxy watch push admin api record demo
    record: cli app proxy watch push admin api intake demo
    registrar: cli app proxy watch push admin api intake record demo
    nodes: cli app proxy watch push admin api intake record registrar demo
    store: cli app proxy watch push admin api intake record registrar nodes net demo
    net: cli app proxy watch push admin api intake record registrar nodes store demo
    imap: cli app proxy watch push admin api intake record registrar nodes store net demo
    config: cli app proxy watch push admin api intake record registrar nodes store net imap demo
    model: cli app proxy watch push admin api intake record registrar nodes store net imap config metrics secret_file demo
    metrics: cli app proxy watch push admin api intake record registrar nodes store net imap config model secret_file demo
    secret_file: cli app proxy watch push admin api intake record registrar nodes store net imap config model metrics demo
    files: cli app proxy watch push admin api intake record registrar nodes store net imap config model metrics secret_file demo";

#[test]
fn each_part_may_name_those_below_it_and_no_other() {
    let parts = || FLOORS.iter().copied().flatten().copied().chain(["demo"]);
    let rows: Vec<(&str, Vec<&str>)> = FORBIDDEN
        .lines()
        .map(|row| row.trim().split_once(": ").expect("part: others"))
        .map(|(part, others)| (part, others.split(' ').collect()))
        .collect();
    assert!(rows.iter().all(|(part, _)| parts().any(|known| known == *part)), "{rows:?}");
    for from in parts() {
        let row = rows.iter().find(|(part, _)| *part == from);
        for to in parts() {
            let found = faults(from, &format!("use crate::{to};"));
            let forbidden = row.is_some_and(|(_, others)| others.contains(&to));
            assert_eq!(found.is_empty(), !forbidden, "{from} names {to}: {found:?}");
        }
    }
}

#[test]
fn what_is_pure_reaches_nothing_outside() {
    for pure in
        ["imap", "imap/relay", "watch/ledger", "push/scheduler", "push/scheduler/subscription"]
    {
        for outside in [
            "use tokio::sync::mpsc;",
            "use tokio_util::sync::CancellationToken;",
            "use tokio_rustls::TlsConnector;",
            "use rustls::ClientConfig;",
            "use hyper::Request;",
            "use hyper_util::rt::TokioIo;",
            "use socket2::Socket;",
            "fn f() { sqlx::query(x); }",
            "fn f() { std::env::var(x); }",
            "use std::fs;",
            "use std::{fmt, net::IpAddr};",
            "use std::os::fd::AsFd;",
            "use std::process::exit;",
            "fn f() { std::thread::yield_now(); }",
            "fn f() { Instant::now(); }",
            "fn f() { crate::model::Timestamp::now(); }",
        ] {
            assert_eq!(faults(pure, outside).len(), 1, "{pure}: {outside}");
        }
    }
    for beside in ["watch/supervisor", "push/dispatcher", "net", "proxy"] {
        assert_eq!(faults(beside, "use tokio::sync::mpsc;"), Vec::<String>::new(), "{beside}");
    }
}

#[test]
fn what_is_forbidden_is_found() {
    for (module, text) in [
        ("imap/frame", "use crate::net;"),
        ("imap/frame", "use crate::net::Stream as S;"),
        ("imap/frame", "use crate::{model::Mailbox, store};"),
        (
            "imap/frame",
            "use crate::{\n    model::{Mailbox, Snapshot},\n    config,\n    admin::{self},\n};",
        ),
        ("imap/frame", "fn f() { crate::app::run() }"),
        ("imap/frame", "fn f(x: &'a crate::proxy::Session) {}"),
        ("imap/frame", "pub(in crate::watch) fn f() {}"),
        ("imap/frame", "use super::super::push;"),
        ("imap/frame", "use super::{super::push};"),
        ("imap", "use super::cli;"),
        ("imap", "mod inner { use super::super::cli; }"),
        ("imap/frame", "mod a { mod b { fn f() {} } use super::super::super::cli; }"),
        ("imap", "use self::super::cli;"),
        ("imap", "use ::mailchime::demo;"),
        ("imap", "use crate::*;"),
        ("imap", "use super::*;"),
        ("imap", "#[cfg(test)] mod tests { use crate::demo; }"),
        ("imap", "#[cfg(test)] mod tests { use crate::net; }"),
        ("imap", "use tokio::io::AsyncRead;"),
        ("imap", "async fn f() { tokio::spawn(g()) }"),
        ("imap", "use std::{fmt, net::IpAddr};"),
        ("imap", "use std::fs;"),
        ("imap", "fn f() { ::std::fs::read(x); }"),
        ("imap", "let now = std::time::Instant::now();"),
        ("imap", "use std::time::Instant; fn f() { Instant::now(); }"),
        ("imap", "let t = crate::model::Timestamp::now();"),
        ("imap", "#[cfg(test)] mod tests {} use std::fs;"),
        ("imap", "let a = '\"'; use crate::net; let b = '\"';"),
        ("imap", "let a = r#\"\"\"#; use crate::net;"),
        ("imap", "let a = b\"\\\"\"; use crate::net;"),
        ("imap", "/* /* */ */ use crate::net;"),
        ("watch/idle", "use super::super::push;"),
        ("cellar", "fn f() {}"),
    ] {
        assert_eq!(faults(module, text).len(), 1, "{module}: {text}: {:?}", faults(module, text));
    }
}

#[test]
fn what_is_allowed_passes() {
    for (module, text) in [
        ("imap/frame", "use crate::model::{Mailbox, Snapshot}; use super::capability;"),
        ("imap/frame", "use crate::imap::sasl; use crate::config::LimitsConfig;"),
        ("imap/frame", "#[cfg(test)] mod tests { use super::*; use super::super::frame; }"),
        ("imap/frame", "// use crate::net;\n/// See [`crate::net`].\n//! crate::app"),
        ("imap/frame", "/* use crate::net; /* nested */ use crate::app; */"),
        ("imap/frame", "let a = \"crate::net \\\" crate::app\";"),
        ("imap/frame", "let a = r#\"crate::net \" crate::app\"#;"),
        ("imap/frame", "use std::time::{Duration, Instant}; fn f(now: Instant) {}"),
        ("imap/frame", "#[cfg(test)] mod tests { fn f() { std::fs::read(x); } }"),
        ("imap/frame", "let network = crate::imap::network; let tokios = tokios::x;"),
        ("proxy", "use crate::{net, store, imap, config, model};"),
        ("push", "#[cfg(test)] mod tests { use crate::demo::Apns; }"),
        ("app", "use crate::{proxy, watch, push, admin, store, net};"),
        ("cli/demo", "use crate::{app, demo}; use super::super::demo::Phone;"),
        ("demo", "use crate::{app, push, net, imap};"),
    ] {
        assert_eq!(faults(module, text), Vec::<String>::new(), "{module}: {text}");
    }
}

#[test]
fn modules_of_tests_in_their_own_files_are_known() {
    for text in ["#[cfg(test)]\nmod tests;", "#[cfg(test)] pub(super) mod tests;"] {
        let file = File { name: String::new(), module: vec!["push".into()], text: text.into() };
        assert_eq!(file.uses().test_files, [["push", "tests"]], "{text}");
    }
    let file = File { name: String::new(), module: vec!["push".into()], text: "mod tests;".into() };
    assert!(file.uses().test_files.is_empty());
}
