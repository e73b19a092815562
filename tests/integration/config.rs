//! Whole configuration files: those of `fixtures/config/valid` are accepted, those of `invalid`
//! refused with the message in their first line, and none lets an unknown key pass.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mailchime::config::{
    self, AdminAddress, ApiConfig, BackendTls, CertificateFiles, Collapse, Config, Events,
    ListenerTls, LogFormat, Network, ProviderFiles, ProxyConfig, PublicUrl, PushType,
    RelayedLogins, RouteConfig, TrustConfig,
};
use toml::{Table, Value};

const STRAY: &str = "stray_key";

/// The configurations of a folder; there must be some.
fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config").join(folder);
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "nothing in {}", folder.display());
    files
}

#[test]
fn the_valid_are_accepted() {
    for file in files("valid") {
        if let Err(error) = Config::load(&file) {
            panic!("{error}");
        }
    }
}

#[test]
fn the_invalid_are_refused_with_the_message_in_their_first_line() {
    for file in files("invalid") {
        let text = fs::read_to_string(&file).unwrap();
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# "));
        let expected = expected.unwrap_or_else(|| panic!("{} expects nothing", file.display()));
        let message = match Config::load(&file) {
            Ok(_) => panic!("{} is accepted", file.display()),
            Err(error) => error.to_string(),
        };
        let rest = message.strip_prefix(&format!("{}: ", file.display()));
        assert!(rest.is_some_and(|rest| rest.contains(expected)), "{message}\nlacks {expected}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table of all keys")]
fn every_key_takes_effect() {
    let file = files("valid").into_iter().find(|file| file.ends_with("every-key.toml")).unwrap();
    let config = Config::load(&file).unwrap();
    let placeholder = file.parent().unwrap().join("../placeholder.pem");

    assert_eq!(config.listeners.len(), 2);
    assert_eq!(config.listeners[0].address, "0.0.0.0:0".parse().unwrap());
    let starttls = &config.listeners[1];
    assert_eq!(
        (starttls.address.to_string(), starttls.tls),
        ("[::1]:1143".into(), ListenerTls::StartTls)
    );
    let networks: Vec<_> = starttls.proxy_protocol.iter().map(Network::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "::1/128"]);
    let files = CertificateFiles::new(&placeholder, &placeholder);
    assert_eq!(config.tls.certificates, [files.clone(), files.clone()]);
    assert_eq!((config.backend.host.as_str(), config.backend.port), ("10.0.0.5", 1993));
    assert_eq!((config.backend.id().as_str(), config.backend.master.as_ref()), ("main", None));
    let trust =
        |name: &str| TrustConfig { ca: Some(placeholder.clone()), server_name: name.into() };
    assert_eq!(config.backend.tls, BackendTls::Implicit(trust("imap.example.org")));
    assert!(config.backend.proxy_protocol && config.backend.send_id);
    assert!(config.backend.checks_token_name && !config.backend.names_ignore_case);

    let names: Vec<_> = config.tls.sni.iter().map(|sni| sni.name.as_str()).collect();
    assert_eq!(names, ["imap.example.com", "*.example.net"]);
    assert_eq!(config.tls.sni[1].certificates, [files]);
    let [route] = &config.routes[..] else { panic!("{:?}", config.routes) };
    let RouteConfig { domain, backend } = route;
    assert_eq!(
        (domain.as_str(), backend.host.as_str(), backend.port),
        ("example.com", "10.0.0.6", 143)
    );
    assert_eq!(backend.tls, BackendTls::StartTls(trust("imap.example.com")));
    assert!(backend.proxy_protocol && !backend.send_id);
    assert!(!backend.checks_token_name && backend.names_ignore_case);

    assert_eq!(config.auth.relay, RelayedLogins::Always);
    let store = &config.store;
    assert_eq!(store.url.to_string(), "sqlite:///var/lib/mailchime/push.db");
    assert_eq!(store.busy_timeout, Duration::from_millis(250));
    assert_eq!(config.credentials, config::CredentialsMode::Stored);
    assert_eq!(config.key_file, Path::new("/etc/mailchime/key"));

    let watch = &config.watch;
    assert_eq!(watch.idle_renewal, Duration::from_secs(28 * 60 + 30));
    assert_eq!(watch.idle_check, Duration::from_secs(20 * 60));
    assert_eq!(watch.poll_interval, Duration::from_secs(15));
    assert_eq!(watch.poll_max, Duration::from_secs(120));
    assert_eq!(watch.answer_timeout, Duration::from_secs(60));
    assert_eq!(watch.logins_per_second, 20);
    assert_eq!(watch.connections, 5000);
    assert_eq!(watch.retry_min, Duration::from_secs(2));
    assert_eq!(watch.retry_max, Duration::from_secs(3600));
    assert_eq!(watch.settle, Duration::from_secs(1));

    let push = &config.push;
    assert_eq!(push.quiet_delay, Duration::from_secs(10));
    assert_eq!(push.min_interval, Duration::from_secs(2));
    assert_eq!(push.max_delay, Duration::from_secs(60));
    assert_eq!(push.registration_ttl, Duration::from_secs(30 * 24 * 3600));
    assert_eq!(push.clients, ["com.apple.mobilemail", "org.example.*"]);
    assert_eq!((push.mailboxes, push.subscriptions, push.accounts_per_device), (128, 10, 9));
    assert_eq!((push.accounts_per_domain, push.subscriptions_per_domain), (1000, 5000));
    assert_eq!((push.accounts_per_backend, push.subscriptions_per_backend), (20_000, 90_000));
    assert_eq!(push.pushes_per_second_per_domain, 50);
    assert_eq!(push.pushes_per_second_per_backend, 400);
    assert!(push.forget_subscriptions_on_password_change);
    assert_eq!(push.events, Events { new_mail: false, quiet: true });
    assert_eq!(push.collapse, Collapse::Account);
    assert_eq!((push.push_type, push.priority), (PushType::Alert, Some(10)));
    assert_eq!(push.expiration, Duration::from_secs(7200));

    let [apns, one_file, token] = &config.apns[..] else { panic!("not three identities") };
    assert_eq!(apns.endpoint.to_string(), "https://api.push.apple.com:2197");
    assert_eq!(apns.ca.as_ref(), Some(&placeholder));
    let (certificate, private_key) = (placeholder.clone(), placeholder.clone());
    let topic = Some("com.apple.mail.XServer.1".to_owned());
    assert_eq!(apns.identity, ProviderFiles::Pem { certificate, private_key, topic });
    assert_eq!(apns.domains, ["example.org"]);
    let (host, login_file) = ("10.0.0.6".to_owned(), Some(placeholder.clone()));
    assert_eq!(apns.proxy, Some(ProxyConfig { host, port: 3128, login_file }));
    let (file, password_file) = (placeholder.with_extension("p12"), Some(placeholder.clone()));
    assert_eq!(one_file.identity, ProviderFiles::Pkcs12 { file, password_file, topic: None });
    let (key_id, team_id) = ("ABCDE12345".to_owned(), "TEAM123456".to_owned());
    let topic = "com.apple.mail.XServer.3".to_owned();
    assert_eq!(token.identity, ProviderFiles::Key { key: placeholder, key_id, team_id, topic });
    assert_eq!((one_file.domains.len(), token.domains.len()), (1, 0));
    assert_eq!(apns.connect_timeout, Duration::from_secs(5));
    assert_eq!(apns.request_timeout, Duration::from_secs(10));
    assert_eq!(apns.ping_interval, Duration::from_secs(300));
    assert_eq!(apns.in_flight, 1000);

    let limits = &config.limits;
    assert_eq!((limits.sessions, limits.sessions_per_ip), (500, 50));
    assert_eq!((limits.connections_per_account, limits.login_failures_per_minute), (20, 5));
    assert_eq!((limits.waiting, limits.account_failures_per_minute), (100, 6));
    assert_eq!((limits.dials_per_minute, limits.dials_at_once), (70, 8));
    assert_eq!(limits.registrations_per_minute, 7);
    assert_eq!(limits.handshake_timeout, Duration::from_secs(5));
    assert_eq!(limits.login_timeout, Duration::from_secs(30));
    assert_eq!(limits.connect_timeout, Duration::from_secs(3));
    assert_eq!(limits.command_size, 1536 * 1024);
    assert_eq!(limits.capability_size, 8 * 1024);
    assert_eq!(limits.write_timeout, Duration::from_secs(60));
    assert_eq!(limits.answer_timeout, Duration::from_secs(20));
    assert_eq!(config.admin.hosts, ["mail1.example.org", "2001:db8::1"]);
    assert!(!limits.compress);
    let servers = ["192.0.2.53:53", "[2001:db8::53]:5353"].map(|text| text.parse().unwrap());
    assert_eq!(config.resolver.name_servers, servers);
    assert_eq!(config.resolver.waiting, 100);

    assert_eq!(config.admin.address, Some(AdminAddress::Tcp("10.0.0.6:9143".parse().unwrap())));
    let expected = ApiConfig {
        address: Some("[::]:8443".parse().unwrap()),
        proxy_protocol: vec!["10.0.0.0/8".parse().unwrap()],
        public_url: Some(PublicUrl::new("push.example.org", 8443)),
        mail_url: Some("message:".to_owned()),
        connections: 9,
        request_timeout: Duration::from_secs(9),
        body_size: 9 * 1024,
        sessions: 9,
        streams: 9,
        streams_per_account: 9,
        stream_keepalive: Duration::from_secs(9),
    };
    assert_eq!(config.api, expected);

    let node = &config.node;
    assert_eq!((node.name.as_deref(), node.takeover.as_secs()), (Some("mail1"), 10));

    let log = &config.log;
    assert_eq!((log.format, log.level.as_str()), (LogFormat::Json, "warn,mailchime=debug"));

    let record = config.record.as_ref().unwrap();
    assert!(record.folder.ends_with(".."), "{record:?}");
    assert_eq!(record.max_size, 64 * 1024);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn a_stray_key_in_any_table_is_refused_by_name() {
    for file in files("valid") {
        let whole: Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        let strayed = with_a_stray_key("", &whole);
        // The file itself, [tls] and [backend] at the least.
        assert!(strayed.len() >= 3, "only {} tables in {}", strayed.len(), file.display());
        for (table, content) in strayed {
            let message = match Config::parse(&toml::to_string(&content).unwrap(), &file) {
                Ok(_) => panic!("{}: {STRAY} is accepted in [{table}]", file.display()),
                Err(error) => error.to_string(),
            };
            let named = message.contains(&format!("unknown key `{STRAY}`"));
            assert!(named && message.contains(&table), "[{table}]: {message}");
        }
    }
}

#[test]
fn the_file_with_every_key_has_the_tables_of_the_manual() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let every = fs::read_to_string(root.join("fixtures/config/valid/every-key.toml")).unwrap();
    let manual = fs::read_to_string(root.join("proxy.toml")).unwrap();
    let tables = |text: &str| {
        let lines = text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
        let tables = lines.filter(|line| line.starts_with('[') && line.ends_with(']'));
        // Several identities or one: both are the same table.
        tables.map(|table| table.replace("[[apns]]", "[apns]")).collect::<BTreeSet<_>>()
    };
    assert_eq!(tables(&every), tables(&manual));
}

/// Copies of `table`, in each of which one of the tables within, or itself, has a stray key; each
/// with the name of that one. `name` is that of `table`.
fn with_a_stray_key(name: &str, table: &Table) -> Vec<(String, Table)> {
    let mut strayed = vec![(name.to_owned(), table.clone())];
    strayed[0].1.insert(STRAY.to_owned(), Value::Integer(1));
    for (key, value) in table {
        let replaced = |value: Value| {
            let mut copy = table.clone();
            copy.insert(key.clone(), value);
            copy
        };
        match value {
            Value::Table(inner) => {
                let inner = with_a_stray_key(key, inner).into_iter();
                strayed.extend(inner.map(|(name, inner)| (name, replaced(Value::Table(inner)))));
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let Value::Table(inner) = item else { continue };
                    for (name, inner) in with_a_stray_key(key, inner) {
                        let mut items = items.clone();
                        items[index] = Value::Table(inner);
                        strayed.push((name, replaced(Value::Array(items))));
                    }
                }
            }
            _ => {}
        }
    }
    strayed
}
