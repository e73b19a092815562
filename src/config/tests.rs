//! The manual `proxy.toml` against the program, and each kind of value against its limits.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::apns::RawApns;
use super::listener::RawListener;
use super::route::RawRoute;
use super::table::OneOrMore;
use super::tls::{RawSni, RawTls};
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
fn parse(text: &str) -> Result<Config, ConfigError> {
    let folder = folder();
    let required = "tls.certificate = \"certs/server.pem\"\ntls.private_key = \"certs/server.key\"";
    let backend = match text.contains("[backend]") {
        true => "",
        false => "backend.address = \"localhost:993\"",
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
    key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then_some(key)
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
    expected.store.url = format!("sqlite://{}", at("mailchime.db").display());
    expected.credentials = CredentialsMode::Stored { key_file: at("mailchime.key") };

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

fn required_in(table: &str) -> &'static str {
    match table {
        "[apns]" => "certificate = \"certs/apns.pem\"\nprivate_key = \"certs/apns.key\"\n",
        "[backend]" => "address = \"localhost:143\"\n",
        _ => "",
    }
}

#[test]
fn a_refused_value_names_its_key_and_what_is_allowed() {
    for (text, expected) in [
        ("[push]\nquiet_delay = \"soon\"", "[push] quiet_delay: \"soon\" is no duration"),
        (
            "[push]\nquiet_delay = 30",
            "[push] quiet_delay: invalid type: integer `30`, expected a string (line 5)",
        ),
        ("[push]\nquiet_delay = \"30\"", "[push] quiet_delay: \"30\" is no duration"),
        ("[push]\nquiet_delay = \"3m\"", "[push] quiet_delay: 3m is longer than max_delay (2m)"),
        ("[push]\nmin_interval = \"3m\"", "[push] min_interval: 3m is longer than max_delay (2m)"),
        ("[push]\nclients = []", "[push] clients: the list is empty"),
        ("[push]\nclients = [\"com.*.mail\"]", "[push] clients: \"com.*.mail\" is not understood"),
        ("[push]\npriority = 10", "[push] priority: 10 is refused by APNs for background pushes"),
        ("[push]\npriority = 7", "[push] priority: 7 does not exist; allowed are 1, 5 and 10"),
        (
            "[push]\npush_type = \"voip\"",
            "[push] push_type: unknown variant `voip`, expected `background` or `alert`",
        ),
        ("[push]\ndevices = -1", "[push] devices: -1 is out of range; allowed is 1 to 10000"),
        (
            "[watch]\nidle_renewal = \"30m\"",
            "[watch] idle_renewal: 30m is out of range; allowed is 1m to 29m",
        ),
        (
            "[watch]\npoll_interval = \"10m\"",
            "[watch] poll_interval: 10m is longer than poll_max (5m)",
        ),
        ("[watch]\nretry_min = \"10m\"", "[watch] retry_min: 10m is longer than retry_max (5m)"),
        (
            "[limits]\ncommand_size = \"65536\"",
            "[limits] command_size: \"65536\" is no size with a unit",
        ),
        (
            "[limits]\ncommand_size = \"1GiB\"",
            "[limits] command_size: 1GiB is out of range; allowed is 1KiB to 16MiB",
        ),
        ("[log]\nlevel = \"inof\"", "[log] level: \"inof\" is not understood; allowed are off,"),
        ("[log]\nlevel = \"mailchime=loud\"", "[log] level: "),
        ("[log]\nlevel = \"\"", "[log] level: "),
        (
            "[store]\nurl = \"mailchime.db\"",
            "[store] url: \"mailchime.db\" is not understood; allowed is",
        ),
        ("[store]\nurl = \"sqlite://:memory:\"", "[store] url: "),
        ("[store]\nurl = \"sqlite://mail.db?mode=memory\"", "[store] url: "),
        (
            "[[listener]]\naddress = \"imap.example.org:993\"",
            "[[listener]] address: \"imap.example.org:993\" is no address",
        ),
        ("[[listener]]\n[[listener]]", "[[listener]] address: [::]:993 is given twice"),
        ("[[listener]]\ntls = \"none\"", "[[listener]] tls: unknown variant `none`"),
        (
            "[[listener]]\nadress = 1",
            "[[listener]]: unknown key `adress`, expected one of `address`, `tls`, `proxy_protocol` \
             (line 5)",
        ),
        (
            "[[listener]]\nproxy_protocol = [\"10.0.0.1/8\"]",
            "[[listener]] proxy_protocol: \"10.0.0.1/8\" has bits beyond its prefix; write \
             \"10.0.0.0/8\"",
        ),
        (
            "[[listener]]\nproxy_protocol = [\"lb.example.org\"]",
            "[[listener]] proxy_protocol: \"lb.example.org\" is no network; allowed is",
        ),
        (
            "[[listener]]\nproxy_protocol = \"::1\"",
            "[[listener]] proxy_protocol: invalid type: string \"::1\", expected a sequence",
        ),
        ("[[tls.sni]]", "[[tls.sni]] name: missing; give a host name"),
        ("[[tls.sni]]\nnme = 1", "[[tls.sni]]: unknown key `nme`"),
        ("[[tls.sni]]\nname = \"*\"", "[[tls.sni]] name: \"*\" is no host name"),
        ("[[tls.sni]]\nname = \"a.*.b\"", "[[tls.sni]] name: \"a.*.b\" is no host name"),
        ("[[tls.sni]]\nname = \"*.b\"", "[[tls.sni]] certificate: missing; name a PEM file"),
        (
            "[[tls.sni]]\nname = \"b\"\ncertificate = []",
            "[[tls.sni]] certificate: missing; name a PEM file",
        ),
        (
            "[[tls.sni]]\nname = \"b\"\ncertificate = 1",
            "[[tls.sni]] certificate: invalid type: integer `1`, expected a path or a list of paths",
        ),
        (
            "[[tls.sni]]\nname = \"b\"\ncertificate = [\"certs/server.pem\", \"certs/ca.pem\"]\n\
             private_key = \"certs/server.key\"",
            "[[tls.sni]] private_key: names 1 files, and `certificate` 2; give the private key of each \
             certificate",
        ),
        (
            "[[tls.sni]]\nname = \"b\"\ncertificate = [\"certs/server.pem\", \"certs/no.pem\"]",
            "[[tls.sni]] certificate: ",
        ),
        ("[[route]]", "[[route]] domain: missing; give what stands behind"),
        ("[[route]]\ndomain = \"*.b\"", "[[route]] domain: \"*.b\" is no domain"),
        ("[[route]]\ndomain = \"b\"", "[[route]] address: missing; give the IMAP server"),
        ("[[route]]\ndomain = 1", "[[route]] domain: invalid type"),
        (
            "[[route]]\ndomain = \"b\"\naddress = \"b:1\"\ntls = \"none\"\nca = \"certs/ca.pem\"",
            "[[route]] ca: has no meaning with tls = \"none\"",
        ),
        (
            "[[route]]\ndomain = \"b\"\naddress = \"b:1\"\n[[route]]\ndomain = \"B\"\naddress = \"c:1\"",
            "[[route]] domain: b is given twice; remove one",
        ),
        ("[wach]", "unknown key `wach`, expected one of `listener`, `tls`,"),
        ("[watch", "unclosed table"),
        ("[watch]\n[watch]", "duplicate key"),
        ("[credentials]\nmode = \"plain\"", "[credentials] mode: unknown variant `plain`"),
        (
            "[credentials]\nmode = \"memory\"\nkey_file = \"a.key\"",
            "[credentials] key_file: has no meaning with mode = \"memory\"; remove it, or set mode = \
             \"stored\"",
        ),
        (
            "[credentials]\nmode = \"master\"\nmaster_user = \"boss\"",
            "[credentials]: master_user is a key of the backend now, so that no backend is sent the \
             password of another: move it to [backend], and to each [[route]] whose accounts are to \
             be watched (line 6)",
        ),
        (
            "[backend]\naddress = \"a:1\"\nmaster_user = \"boss\"\n\
             master_password_file = \"certs/ca.pem\"",
            "[backend] master_user: has no meaning unless [credentials] mode = \"master\"",
        ),
        (
            "[credentials]\nmode = \"master\"",
            "[backend] master_user: missing, and so in each [[route]]: with [credentials] mode",
        ),
        (
            "[[route]]\ndomain = \"b\"\naddress = \"b:1\"\nmaster_password_file = \"certs/ca.pem\"",
            "[[route]] master_user: missing; name the user of the IMAP server",
        ),
        (
            "[backend]\naddress = \"a:1\"\nmaster_user = \"boss\"",
            "[backend] master_password_file: missing; name a file with nothing but the password",
        ),
        (
            "[backend]\naddress = \"a:1\"\nmaster_user = \"boss\"\n\
             master_password_file = \"certs/ca.pem\"\nlogin_template = \"{user}\"",
            "[backend] login_template: \"{user}\" is not understood; allowed is a text that holds",
        ),
        (
            "[backend]\naddress = \"a:1\"\nname = \"a:1\"",
            "[backend] name: \"a:1\" is no name; allowed are 1 to 64 letters and digits",
        ),
        (
            "[backend]\naddress = \"a:1\"\nname = \"a\"\n\
             [[route]]\ndomain = \"b\"\naddress = \"b:1\"\nname = \"a\"",
            "[[route]] name: a is the name of a:1 and of b:1; a name is that of one server",
        ),
        (
            "[store]\nurl = \"postgres://u:secret@db:5432/mail?pasword=secret\"",
            "[store] url: postgres://db:5432/mail: has an unknown parameter; allowed are application",
        ),
        (
            "[store]\nurl = \"postgres://u:secret@db/mail?sslrootcert=no.pem\"",
            "[store] url: postgres://db:5432/mail: sslrootcert: no.pem is not a file",
        ),
        ("[store]\nurl = \"postgres://u:secret@db:x/mail\"", "[store] url: postgres://…: "),
        ("[store]\nurl = \"mysql://u:secret@db/mail\"", "[store] url: the URL is not understood"),
        ("[backend]", "[backend] address: missing; give the IMAP server as \"host:port\""),
        ("[backend]\naddress = \"localhost\"", "[backend] address: \"localhost\" is no address"),
        ("[backend]\naddress = \"::1:143\"", "[backend] address: \"::1:143\" is no address"),
        ("[backend]\naddress = \"a b:143\"", "[backend] address: "),
        ("[backend]\naddress = \"localhost:0\"", "[backend] address: "),
        (
            "[backend]\naddress = \"localhost:1\"\nserver_name = \"a:b\"",
            "[backend] server_name: \"a:b\" cannot be",
        ),
        (
            "[backend]\naddress = \"localhost:1\"\ntls = \"none\"\nca = \"certs/ca.pem\"",
            "[backend] ca: has no meaning with tls = \"none\"",
        ),
        ("[apns]", "[apns] certificate: missing; name a PEM file"),
        (
            "[apns]\ncertificate = \"certs/apns.pem\"",
            "[apns] private_key: missing; name a PEM file",
        ),
        (
            "[push]\nevents = [\"MessageNews\"]",
            "[push] events: unknown variant `MessageNews`, expected one of `MessageNew`,",
        ),
        ("[push]\nevents = []", "[push] events: the list is empty, so nothing would be pushed"),
        (
            "[push]\ncollapse = \"device\"",
            "[push] collapse: unknown variant `device`, expected `none` or `account`",
        ),
        (
            "[apns]\ncertificate = \"certs/apns.p12\"\nprivate_key = \"certs/apns.key\"",
            "[apns] private_key: has no meaning with a certificate that brings its own",
        ),
        (
            "[apns]\ncertificate = \"certs/apns.pem\"\npassword_file = \"certs/ca.pem\"",
            "[apns] password_file: has no meaning with a PEM certificate",
        ),
        (
            "[apns]\ncertificate = \"certs/apns.pem\"\nkey_id = \"ABCDE12345\"",
            "[apns] key_id: has no meaning with certificate",
        ),
        (
            "[apns]\nkey = \"certs/apns.key\"\nprivate_key = \"certs/apns.key\"",
            "[apns] private_key: has no meaning with key",
        ),
        ("[apns]\nkey = \"certs/apns.key\"", "[apns] topic: missing; a key is not bound"),
        (
            "[apns]\nkey = \"certs/apns.key\"\ntopic = \"t\"\nkey_id = \"ABC\"",
            "[apns] key_id: \"ABC\" is not understood; give the ten letters",
        ),
        (
            "[apns]\nkey = \"certs/apns.key\"\ntopic = \"t\"\nkey_id = \"ABCDE12345\"",
            "[apns] team_id: missing; give the ten letters",
        ),
        ("[apns]\ntopic = \"a b\"", "[apns] topic: \"a b\" is no topic; allowed are"),
    ] {
        refused_with(text, expected);
    }
    let pem = required_in("[apns]");
    for (text, expected) in [
        ("domains = [\"a@b\"]", "[apns] domains: \"a@b\" is no domain; allowed is"),
        ("proxy = \"https://proxy:1\"", "[apns] proxy: is not understood; allowed is"),
        ("proxy = \"http://me:secret@proxy:1\"", "[apns] proxy: is not understood; allowed is"),
        (
            "proxy_login_file = \"certs/ca.pem\"",
            "[apns] proxy_login_file: has no meaning without proxy",
        ),
    ] {
        refused_with(&format!("[apns]\n{pem}{text}"), expected);
    }
    for (domains, expected) in [
        (["[]", "[]"], "[[apns]] domains: two tables have none"),
        (["[\"a.org\"]", "[\"b.org\", \"A.org\"]"], "[[apns]] domains: \"a.org\" is served by two"),
    ] {
        let table = |domains| format!("[[apns]]\n{pem}domains = {domains}\n");
        refused_with(&domains.map(table).concat(), expected);
    }
    refused_with("[[apns]]\nkez = 1", "[apns]: unknown key `kez`, expected one of `endpoint`, ");
}

fn refused_with(text: &str, expected: &str) {
    let message = refusal(text);
    assert!(message.starts_with(expected), "{text}\n    gives {message}\n instead of {expected}");
    assert!(!message.contains('\n') && !message.contains("secret"), "{message}");
}

#[test]
fn an_identity_is_two_files_or_one_or_a_key() {
    let identity = |text: &str| parse(text).unwrap().apns.remove(0).identity;
    let pem = identity(&format!("[apns]\n{}topic = \"t\"", required_in("[apns]")));
    assert!(matches!(pem, ProviderFiles::Pem { topic: Some(topic), .. } if topic == "t"));
    for password in ["", "password_file = \"certs/ca.pem\""] {
        let one = identity(&format!("[apns]\ncertificate = \"certs/apns.p12\"\n{password}"));
        let ProviderFiles::Pkcs12 { file, password_file, topic: None } = one else {
            panic!("{one:?}")
        };
        assert!(file.ends_with("certs/apns.p12"));
        assert_eq!(password_file.is_some(), !password.is_empty());
    }
    let key = "[apns]\nkey = \"certs/apns.key\"\nkey_id = \"ABCDE12345\"\n\
               team_id = \"TEAM123456\"\ntopic = \"t\"";
    let ProviderFiles::Key { key_id, team_id, topic, .. } = identity(key) else { panic!("no key") };
    assert_eq!([key_id, team_id, topic], ["ABCDE12345", "TEAM123456", "t"]);
}

#[test]
fn several_identities_serve_different_domains() {
    let pem = required_in("[apns]");
    let domains = ["[\"A.example\", \"bücher.example\"]", "[\"b.example\"]", "[]"];
    let text = domains.map(|domains| format!("[[apns]]\n{pem}domains = {domains}\n")).concat();
    let apns = parse(&text).unwrap().apns;
    let served: Vec<_> = apns.iter().map(|apns| apns.domains.join(" ")).collect();
    assert_eq!(served, ["a.example bücher.example", "b.example", ""]);
}

#[test]
fn events_are_new_mail_or_anything_else() {
    let events = |names: &str| parse(&format!("push.events = [{names}]")).unwrap().push.events;
    assert_eq!(events("\"MessageNew\""), Events { new_mail: true, quiet: false });
    assert_eq!(events("\"MessageAppend\", \"FlagsClear\""), PushConfig::default().events);
    for quiet in ["MessageRead", "MessageTrash", "MessageExpunge", "MessageExpires", "FlagsSet"] {
        assert_eq!(events(&format!("\"{quiet}\"")), Events { new_mail: false, quiet: true });
    }
}

#[test]
fn a_database_server_is_taken_as_it_is_given_and_its_password_not_shown() {
    for url in [
        "postgres://mc:sesame@127.0.0.1/mail",
        "postgresql://mc@db.example.org:5433/mail?sslmode=verify-full&password=sesame",
        "postgres:///mail?host=/run/postgresql&user=mc&password=sesame",
    ] {
        let config = parse(&format!("[store]\nurl = \"{url}\"")).unwrap();
        assert_eq!(config.store.url, url);
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
        let shown = format!("{config:?}");
        assert!(!shown.contains("sesame") && shown.contains("postgres://"), "{shown}");
    }
    for mode in ["", "?sslmode=require", "?sslmode=disable"] {
        let url = format!("postgres://mc:sesame@db.example.org/mail{mode}");
        let warnings = parse(&format!("[store]\nurl = \"{url}\"")).unwrap().warnings;
        assert!(warnings[0].starts_with("[store] url: device tokens"), "{warnings:?}");
        assert!(!warnings[0].contains("sesame"), "{warnings:?}");
    }
}

#[test]
fn credentials_have_three_modes() {
    let credentials = |text: &str| parse(&format!("[credentials]\n{text}")).unwrap().credentials;
    assert_eq!(credentials("mode = \"memory\""), CredentialsMode::Memory);
    let master = "[backend]\naddress = \"a:1\"\nmaster_user = \"boss\"\n\
                  master_password_file = \"certs/ca.pem\"\n";
    let config = |template: &str| {
        parse(&format!("{master}{template}\n[credentials]\nmode = \"master\"")).unwrap()
    };
    let Config { credentials, backend, .. } = config("");
    let MasterUser { name, password_file, login_template } = backend.master.unwrap();
    assert_eq!((credentials, &*name, login_template), (CredentialsMode::Master, "boss", None));
    assert!(password_file.ends_with("certs/ca.pem"));
    let with = config("login_template = \"{user}*{master}\"").backend.master.unwrap();
    assert_eq!(with.login_template.unwrap().login("alice", "boss"), "alice*boss");
    for bad in
        ["", "{user}", "{master}", "{user}{user}{master}", "{user}*{master}{", "{User}{master}"]
    {
        assert_eq!(LoginTemplate::new(bad), None, "{bad}");
    }
}

#[test]
fn endpoints_are_named_or_https() {
    let endpoint = |value: &str| {
        let required = required_in("[apns]");
        parse(&format!("[apns]\n{required}endpoint = \"{value}\""))
            .map(|c| c.apns[0].endpoint.clone())
    };
    assert_eq!(endpoint("production").unwrap().to_string(), "https://api.push.apple.com:443");
    assert_eq!(endpoint("sandbox").unwrap().to_string(), "https://api.sandbox.push.apple.com:443");
    for url in ["https://127.0.0.1:8443", "https://[::1]:8443", "https://localhost:2197"] {
        assert_eq!(endpoint(url).unwrap().to_string(), url);
    }
    for bad in ["prod", "http://localhost:1", "https://localhost", "https://localhost:1/3", ""] {
        let message = endpoint(bad).unwrap_err().to_string();
        assert!(message.contains("[apns] endpoint: "), "{message}");
    }
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
    let stored = CredentialsMode::Stored { key_file: folder.join("mailchime.key") };
    assert_eq!(config.credentials, stored);
    let expected = format!("sqlite://{}/50%25%20off%3F/mailchime.db", root.path().display());
    assert_eq!(config.store.url, expected);

    let absolute = parse("store.url = \"sqlite:///var/lib/mail.db\"").unwrap();
    assert_eq!(absolute.store.url, "sqlite:///var/lib/mail.db");
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

#[test]
fn a_listener_for_starttls_has_a_port_of_its_own() {
    let listeners = parse("[[listener]]\n[[listener]]\ntls = \"starttls\"").unwrap().listeners;
    let told: Vec<_> = listeners.iter().map(|l| (l.address.to_string(), l.tls)).collect();
    let expected = [("[::]:993", ListenerTls::Implicit), ("[::]:143", ListenerTls::StartTls)];
    assert_eq!(told, expected.map(|(address, tls)| (address.to_owned(), tls)));
}
