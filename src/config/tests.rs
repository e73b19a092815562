//! The manual `proxy.toml` against the program, and each kind of value against its limits.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::apns::RawApns;
use super::events::{RawEventSource, RawEvents};
use super::fcm::RawFcm;
use super::listener::RawListener;
use super::route::RawRoute;
use super::table::OneOrMore;
use super::tls::{RawSni, RawTls};
use super::webhook::RawWebhook;
use super::*;

const MANUAL: &str = include_str!("../../proxy.toml");

/// A folder with the files that the manual names, so that a fresh clone without them will do.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("certs")).unwrap();
    for name in ["server.pem", "server.key", "apns.pem", "apns.key", "apns.p12", "ca.pem"] {
        fs::write(folder.path().join("certs").join(name), "").unwrap();
    }
    folder
}

/// What `text` gives below the tables that are required.
pub(super) fn parse(text: &str) -> Result<Config, ConfigError> {
    let folder = folder();
    let required = "tls.certificate = \"certs/server.pem\"\ntls.private_key = \"certs/server.key\"";
    let backend = match text.contains("[backend]") {
        true => "",
        false => "backend.address = \"localhost:1143\"",
    };
    Config::parse(&format!("{required}\n{backend}\n{text}"), &folder.path().join("proxy.toml"))
}

fn refusal(text: &str) -> String {
    match parse(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => {
            let file = error.file.display().to_string();
            let message = error.to_string();
            assert!(message.starts_with(&file), "{message}");
            message[file.len() + ": ".len()..].to_owned()
        }
    }
}

/// The manual with its commented defaults, `#key = value`, made effective.
fn manual_uncommented() -> String {
    let is_default = |line: &str| key_of(line.strip_prefix('#').unwrap_or("")).is_some();
    let line = |line: &'static str| if is_default(line) { &line[1..] } else { line };
    MANUAL.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The key of a line `key = value` that begins in its first column.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once(" = ")?;
    let is_in_keys = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let is_key = key.starts_with(|c: char| c.is_ascii_lowercase()) && key.bytes().all(is_in_keys);
    is_key.then_some(key)
}

/// The table that a line begins, effective or example.
fn table_of(line: &str) -> Option<&str> {
    let table = line.strip_prefix("# ").unwrap_or(line);
    (table.starts_with('[') && table.ends_with(']')).then_some(table)
}

/// Each `[table] key` of the manual, whether effective, commented default or example.
fn keys_of_the_manual() -> BTreeSet<String> {
    let mut table = "";
    let mut keys = BTreeSet::new();
    for line in MANUAL.lines() {
        if let Some(begun) = table_of(line) {
            table = begun.trim_matches(['[', ']']);
        } else if let Some(key) = key_of(line.trim_start_matches("# ").trim_start_matches('#')) {
            assert!(keys.insert(format!("[{table}] {key}")), "{key} stands twice in [{table}]");
        }
    }
    keys
}

/// Each `[table] key` of the raw structs.
fn keys_of_the_program() -> BTreeSet<String> {
    let raw = RawConfig {
        listener: Some(vec![RawListener::default()]),
        tls: RawTls { sni: vec![RawSni::default()], ..RawTls::default() },
        route: vec![RawRoute::default()],
        apns: Some(OneOrMore(vec![RawApns::default()])),
        fcm: vec![RawFcm::default()],
        webhook: vec![RawWebhook::default()],
        events: RawEvents { source: vec![RawEventSource::default()], ..RawEvents::default() },
        ..RawConfig::default()
    };
    let Value::Object(tables) = serde_json::to_value(raw).unwrap() else { unreachable!() };
    let mut keys = BTreeSet::new();
    for (name, table) in tables {
        collect_keys(&name, &table, &mut keys);
    }
    keys
}

fn collect_keys(name: &str, table: &Value, keys: &mut BTreeSet<String>) {
    let Value::Object(table) = table.get(0).unwrap_or(table) else { panic!("{name} is no table") };
    for (key, value) in table {
        match value.get(0) {
            Some(inner @ Value::Object(_)) => collect_keys(&format!("{name}.{key}"), inner, keys),
            _ => assert!(keys.insert(format!("[{name}] {key}"))),
        }
    }
}

#[test]
fn the_manual_and_the_program_know_the_same_keys() {
    let keys = keys_of_the_program();
    assert!(keys.len() > 40, "{keys:?}");
    assert_eq!(keys_of_the_manual(), keys);
}

#[test]
fn the_defaults_of_the_manual_are_those_of_the_program() {
    let folder = folder();
    let at = |path: &str| folder.path().join(path);
    let parsed = |text: &str| Config::parse(text, &at("proxy.toml")).unwrap();
    let tls = TlsConfig::new(at("certs/server.pem"), at("certs/server.key"));
    let host = "imap.example.org";
    let implicit = BackendTls::Implicit(TrustConfig { ca: None, server_name: host.into() });
    let mut expected = Config::new(tls, BackendConfig::new(host, 993, implicit));
    expected.apns = vec![ApnsConfig::new(at("certs/apns.pem"), at("certs/apns.key"))];
    expected.store.url = DatabaseUrl::sqlite(&at("mailchime.db"));
    expected.key_file = at("mailchime.key");

    assert_eq!(parsed(MANUAL), expected);
    assert_eq!(parsed(&manual_uncommented()), expected);

    // Each key but the examples must be among the defaults, or the above would prove little.
    let effective: toml::Table = manual_uncommented().parse().unwrap();
    let count = |value: &toml::Value| match value {
        toml::Value::Array(tables) => tables[0].as_table().unwrap().len(),
        table => table.as_table().unwrap().len(),
    };
    let examples = MANUAL.lines().filter_map(|line| key_of(line.strip_prefix("# ")?)).count();
    let effective = effective.values().map(count).sum::<usize>();
    assert_eq!(effective + examples, keys_of_the_program().len());
}

#[test]
fn the_ranges_of_the_manual_are_those_of_the_program() {
    let mut table = "";
    let mut checked = 0;
    for paragraph in MANUAL.split("\n\n") {
        let prose = paragraph.replace("\n#", "");
        for line in paragraph.lines() {
            table = table_of(line).unwrap_or(table);
            let Some(key) = key_of(line.strip_prefix('#').unwrap_or("")) else { continue };
            let default = line.split_once(" = ").unwrap().1;
            let absurd = match default.trim_start_matches('"').starts_with(|c: char| c.is_numeric())
            {
                true if default.ends_with("iB\"") => "\"0B\"",
                true if default.ends_with('"') => "\"0s\"",
                true => "-1",
                false => continue,
            };
            let message = refusal(&format!("{table}\n{}{key} = {absurd}", required_in(table)));
            let range = message.strip_prefix(&format!("{table} {key}: ")).unwrap_or("");
            let (_, range) = range.split_once("; allowed is ").expect(&message);
            assert!(prose.contains(range), "the manual does not say that {key} is {range}");
            checked += 1;
        }
    }
    assert!(checked > 25, "{checked}");
}

pub(super) fn required_in(table: &str) -> &'static str {
    match table {
        "[apns]" => "certificate = \"certs/apns.pem\"\nprivate_key = \"certs/apns.key\"\n",
        "[backend]" => "address = \"localhost:143\"\n",
        _ => "",
    }
}

#[test]
fn a_refused_value_names_its_key_and_what_is_allowed() {
    for (text, expected) in [
        ("[wach]", "unknown key `wach`, expected one of `listener`, `tls`,"),
        ("[watch", "unclosed table"),
        ("[watch]\n[watch]", "[watch] is given twice; put all its keys into one table (line 5)"),
        (
            "[apns]\n[apns] # of the other",
            "[apns] is given twice; put its keys into one table, or write [[apns]]",
        ),
        (
            "[watch]\nretry_min = \"1s\"\nretry_min = \"2s\"",
            "retry_min is given twice in its table; remove one (line 6)",
        ),
        (
            "[listener]",
            "[[listener]]: is written [listener]; it can be given several times, so write [[listener]]",
        ),
        ("[listener] # one\n[listener]", "[[listener]]: is written [listener]"),
        ("[events.source]\nname = \"a\"", "[[events.source]]: is written [events.source]"),
        ("[[push]]", "[push]: is written [[push]]; there is one, so write [push] (line 4)"),
        (
            "[backend]\naddress = \"a:1\"\ntls = false",
            "[backend] tls: unknown variant `false`, expected one of `none`, `starttls`, `implicit` (line 6)",
        ),
        (
            "[limits]\nlogin_timeout = 60",
            "[limits] login_timeout: \"60\" is no duration (time unit needed",
        ),
        (
            "[limits]\ncommand_size = 65536",
            "[limits] command_size: \"65536\" is no size with a unit; allowed is",
        ),
        ("[watch]\nsweep = 0.5", "[watch] sweep: \"0.5\" is no duration"),
        ("[api]\naddress = 8443", "[api] address: \"8443\" is"),
        (
            "[limits]\nsessions = \"many\"",
            "[limits] sessions: invalid type: string \"many\", expected a whole number, without quotes",
        ),
        (
            "[limits]\nsessions = \"20000\"",
            "[limits] sessions: invalid type: string \"20000\", expected a whole number, without quotes (line 5)",
        ),
        (
            "[backend]\naddress = \"a:1\"\nsend_id = \"true\"",
            "[backend] send_id: invalid type: string \"true\", expected true or false, without quotes",
        ),
        ("watch = 5", "[watch]: invalid type: integer `5`, expected a table with keys of its own"),
        (
            "listener.address = \"127.0.0.1:993\"",
            "[[listener]]: is written as one table; it can be given several times, so write [[listener]] (line 4)",
        ),
        (
            "events.source.name = \"a\"",
            "[[events.source]]: is written as one table; it can be given several times, so write [[events.source]]",
        ),
    ] {
        refused_with(text, expected);
    }
}

#[test]
fn many_values_in_the_wrong_form_are_an_error_like_few() {
    let text = "[[route]]\ndomain = 1\n".repeat(10_000);
    let message = refusal(&text);
    assert!(message.starts_with("[[route]] domain: "), "{message}");
}

pub(super) fn refused_with(text: &str, expected: &str) {
    let message = refusal(text);
    assert!(message.starts_with(expected), "{text}\n    gives {message}\n instead of {expected}");
    assert!(!message.contains('\n') && !message.contains("secret"), "{message}");
}

#[test]
fn files_must_exist_and_the_message_says_where_they_were_looked_for() {
    let folder = folder();
    let file = folder.path().join("proxy.toml");
    fs::write(&file, MANUAL).unwrap();
    Config::load(&file).unwrap();

    let missing = folder.path().join("certs/apns.key");
    fs::remove_file(&missing).unwrap();
    let message = Config::load(&file).unwrap_err().to_string();
    let expected =
        format!("{}: [apns] private_key: {} does not exist;", file.display(), missing.display());
    assert!(message.starts_with(&expected), "{message}");

    fs::create_dir(&missing).unwrap();
    let message = Config::load(&file).unwrap_err().to_string();
    assert!(message.contains("apns.key is not a file"), "{message}");

    let message = Config::load(&missing.join("none.toml")).unwrap_err().to_string();
    assert!(message.ends_with("no such file; name the configuration with --config"), "{message}");
}

#[test]
fn a_relative_path_starts_at_the_folder_of_the_file() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("50% off?");
    fs::create_dir_all(folder.join("certs")).unwrap();
    for name in ["server.pem", "server.key", "apns.pem", "apns.key"] {
        fs::write(folder.join("certs").join(name), "").unwrap();
    }
    let config = Config::parse(MANUAL, &folder.join("proxy.toml")).unwrap();
    assert_eq!(config.tls.certificates[0].certificate, folder.join("certs/server.pem"));
    let stored = (CredentialsMode::Stored, folder.join("mailchime.key"));
    assert_eq!((config.credentials, config.key_file), stored);
    let database = DatabaseUrl::sqlite(&root.path().join("50% off?/mailchime.db"));
    assert_eq!(config.store.url, database);

    let absolute = parse("store.url = \"sqlite:///var/lib/mail.db\"").unwrap();
    assert_eq!(absolute.store.url, DatabaseUrl::sqlite(Path::new("/var/lib/mail.db")));
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let warnings = |address: &str, tls: &str| {
        parse(&format!("[backend]\naddress = \"{address}\"\ntls = \"{tls}\"")).unwrap().warnings
    };
    let without_apns = "there is no [apns] table";
    for local in ["localhost:143", "127.0.0.2:143", "[::1]:143"] {
        let found = warnings(local, "none");
        assert!(found.len() == 1 && found[0].starts_with(without_apns), "{found:?}");
    }
    assert_eq!(warnings("imap.example.org:993", "implicit").len(), 1);
    let found = warnings("imap.example.org:143", "none");
    assert!(found.len() == 2 && found[0].starts_with("[backend] tls = \"none\""), "{found:?}");
    let text = "[[listener]]\nproxy_protocol = [\"::/0\"]\n\
                [[route]]\ndomain = \"b\"\naddress = \"b:1\"\ntls = \"none\"";
    let found = parse(text).unwrap().warnings;
    assert!(found[0].starts_with("[[route]] b tls = \"none\""), "{found:?}");
    assert!(found[1].starts_with("[[listener]] proxy_protocol = [\"::/0\"]"), "{found:?}");
}

#[test]
fn a_backend_without_a_master_is_warned_of_where_a_master_watches() {
    let route = "[[route]]\ndomain = \"b\"\naddress = \"b:1\"\n";
    let master = "master_user = \"boss\"\nmaster_password_file = \"certs/ca.pem\"\n";
    let mode = "[credentials]\nmode = \"master\"";
    let warnings = |text: &str| {
        let mut warnings = parse(text).unwrap().warnings;
        warnings.pop();
        warnings
    };
    let found = warnings(&format!("{route}{master}{mode}"));
    assert!(
        found.len() == 1 && found[0].starts_with("[backend] has no master_user: "),
        "{found:?}"
    );
    let found = warnings(&format!("[backend]\naddress = \"a:1\"\n{master}{route}{mode}"));
    assert!(
        found.len() == 1 && found[0].starts_with("[[route]] b has no master_user: "),
        "{found:?}"
    );
    assert!(warnings(route).is_empty());
}
