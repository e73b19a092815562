//! The IMAP server that is there: how it is reached, and what it is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::certificates::files_of_dovecot;
use super::{CommandFailure, IMAP, IMAPS, MailServerKind, SetupOptions, below, say};
use crate::cli::check::of_refused_certificate;
use crate::cli::holder::{self, PortHolder};
use crate::config::{BackendConfig, BackendTls, PublicKeyPin, TrustConfig};
use crate::imap::responses::printable;
use crate::net::backend::Backend;
use crate::net::resolve::NameResolver;

/// For a connection, and for its answers.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Longest answer, in bytes.
const LONGEST: usize = 8 * 1024;
/// How much of a greeting is shown, in characters.
const SHOWN: usize = 100;

/// Where a server is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: String,
    port: u16,
    /// The port is that of mail over TLS.
    is_imaps: bool,
}

/// What was found on this machine.
#[derive(Debug)]
pub(super) struct ServerSearch {
    pub(super) server: FoundServer,
    /// Who holds the port of mail over TLS and is not the server.
    pub(super) other: Option<PortHolder>,
}

/// What a look at a place has brought.
struct SeenPlace {
    server: Result<FoundServer, String>,
    holder: Option<PortHolder>,
    /// Somebody takes connections there.
    listens: bool,
}

/// A server that answers.
#[derive(Clone, Debug)]
pub(super) struct FoundServer {
    pub(super) host: String,
    pub(super) port: u16,
    /// The port is that of mail over TLS.
    pub(super) is_imaps: bool,
    /// As `[backend] tls` has it.
    pub(super) tls: BackendTls,
    /// With TLS: its certificate counts by this public key alone.
    pub(super) pin: Option<PublicKeyPin>,
    pub(super) kind: MailServerKind,
    /// A program that publishes ports of containers holds its port, so its files are not this machine's.
    pub(super) container: Option<String>,
    /// Empty where it is not known.
    pub(super) version: String,
    /// Its first line, cut off.
    pub(super) greeting: String,
}

impl FoundServer {
    /// It and mailchime are on one machine.
    pub(super) fn is_here(&self) -> bool {
        is_here(&self.host)
    }

    /// The same once it listens for IMAP without TLS alone, and for this machine alone. One that was found otherwise stays
    /// where it is.
    pub(super) fn behind(&self) -> Self {
        match self.tls {
            BackendTls::Implicit(_) => Self {
                port: IMAP,
                is_imaps: false,
                tls: BackendTls::None,
                pin: None,
                ..self.clone()
            },
            _ => self.clone(),
        }
    }

    /// HOST:PORT.
    pub(super) fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Where it listens for this machine alone, as its own configuration has it.
    pub(super) fn listens_at(&self) -> &str {
        match self.host.as_str() {
            "localhost" => "127.0.0.1",
            address => address,
        }
    }

    /// The same, before a colon and a port.
    pub(super) fn listens_in_brackets(&self) -> String {
        match self.listens_at() {
            address if address.contains(':') => format!("[{address}]"),
            address => address.to_owned(),
        }
    }

    /// The name of its service, for `systemctl`.
    pub(super) fn service(&self) -> &'static str {
        match self.kind {
            MailServerKind::Dovecot23
            | MailServerKind::Dovecot24
            | MailServerKind::DovecotUnknown => "dovecot",
            MailServerKind::Cyrus => "cyrus-imapd",
            MailServerKind::Courier => "courier-imap",
            MailServerKind::Other => "YOUR-SERVER",
        }
    }
}

impl fmt::Display for FoundServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            MailServerKind::Dovecot23 | MailServerKind::Dovecot24 => "Dovecot",
            MailServerKind::DovecotUnknown => "Dovecot of an unknown version",
            MailServerKind::Cyrus => "Cyrus",
            // Nothing of it says a version.
            MailServerKind::Courier => "Courier of an unknown version",
            MailServerKind::Other => "a server of another kind",
        };
        let place = if self.container.is_some() { " in a container" } else { "" };
        let tls = match self.tls {
            BackendTls::None => "without TLS, on this machine",
            BackendTls::StartTls(_) => "with STARTTLS",
            BackendTls::Implicit(_) => "with TLS",
        };
        let version = match self.version.as_str() {
            "" => String::new(),
            version => format!(" {version}"),
        };
        write!(f, "{kind}{version}{place} at {}, {tls}", self.address())
    }
}

impl SeenPlace {
    /// A line on it.
    fn say(&self, place: &Place) {
        let by = match &self.holder {
            Some(holder) => format!(", by the program {holder}"),
            None => String::new(),
        };
        let Place { host, port, .. } = place;
        match &self.server {
            Ok(server) if server.greeting.is_empty() => say(format_args!("{server}{by}")),
            Ok(server) => say(format_args!("{server}{by}, greets: {}", server.greeting)),
            Err(_) if !self.listens => say(format_args!("{host}:{port}: nobody listens")),
            Err(why) => {
                say(format_args!("{host}:{port}: no IMAP server that can be used{by}: {why}"));
            }
        }
    }

    /// Whether another program than the server has to give the port up.
    fn is_in_the_way_of(&self, chosen: &Self, server: &FoundServer) -> bool {
        match server.is_here() {
            true => !server.is_imaps && self.is_other_than(chosen),
            false => self.listens,
        }
    }

    /// Whether the port is held by another program than that of a server.
    fn is_other_than(&self, server: &Self) -> bool {
        match (&self.holder, &server.holder) {
            (Some(one), Some(other)) => one.program != other.program,
            // Root sees them all. Else a server of another kind is another program.
            _ => match (&self.server, &server.server) {
                (Ok(one), Ok(other)) => one.kind != other.kind,
                _ => false,
            },
        }
    }
}

/// The server of the options, or the first that can be used where one is as a rule. Each place gets a line. `name` is
/// one of this machine in its certificate.
pub(super) async fn find(
    options: &SetupOptions,
    name: &str,
) -> Result<ServerSearch, CommandFailure> {
    let imaps = Place { is_imaps: true, ..place("--imaps-at", &options.imaps_at)? };
    let first = match &options.backend {
        Some(given) => place("--backend", given)?,
        None => place("--imap-at", &options.imap_at)?,
    };
    let mut places = vec![first];
    // mailchime is to have that port of this machine, whatever the server is.
    if !(places[0].is_imaps && is_here(&places[0].host)) {
        places.push(imaps);
    }
    let mut all = Vec::new();
    for place in &places {
        let seen = look(options, place, name).await;
        seen.say(place);
        all.push(seen);
    }
    // A server that was named is the one.
    let candidates = if options.backend.is_some() { 1 } else { all.len() };
    let chosen = all[..candidates].iter().find(|seen| seen.server.is_ok());
    if let Some(chosen) = chosen
        && let Ok(server) = &chosen.server
    {
        // The last place is that port of this machine.
        let other = all.last().filter(|seen| seen.is_in_the_way_of(chosen, server));
        let other = other.map(|seen| seen.holder.clone().unwrap_or_else(PortHolder::unknown));
        return Ok(ServerSearch { server: server.clone(), other });
    }
    let problems = all[..candidates].iter().filter_map(|seen| seen.server.as_ref().err());
    let why = problems.map(String::as_str).collect::<Vec<_>>().join("\n  ");
    Err(CommandFailure::Failed(format!(
        "no IMAP server can be used:\n  {why}\nSay where it is by --backend HOST:PORT; where a private \
         authority has signed its certificate, name the authority's file (`ca`) by --backend-ca; a public key \
         (tls_pin_sha256) goes to --backend-pin"
    )))
}

fn place(flag: &str, given: &str) -> Result<Place, CommandFailure> {
    let parts = given.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts.filter(|(host, _)| !host.is_empty()).ok_or_else(|| {
        CommandFailure::Usage(format!("{flag} {given:?}: write HOST:PORT, such as 127.0.0.1:143"))
    })?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Place { host, port, is_imaps: port == IMAPS })
}

/// What is there, and whose it is.
async fn look(options: &SetupOptions, place: &Place, name: &str) -> SeenPlace {
    let host = place.host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let holder = is_here(&place.host).then(|| holder::of(host, place.port)).flatten();
    let server = server(options, place, name, holder.as_ref()).await;
    let connects = timeout(CONNECT_TIME, TcpStream::connect((&*place.host, place.port)));
    let listens = server.is_ok() || holder.is_some() || matches!(connects.await, Ok(Ok(_)));
    SeenPlace { server, holder, listens }
}

/// The server, by the first kind of TLS that works. Passwords go without TLS on this machine alone.
async fn server(
    options: &SetupOptions,
    Place { host, port, is_imaps }: &Place,
    name: &str,
    holder: Option<&PortHolder>,
) -> Result<FoundServer, String> {
    let (host, port, is_imaps) = (host.as_str(), *port, *is_imaps);
    let server_name = if is_here(host) { name } else { host };
    let trust =
        || TrustConfig { ca: options.backend_ca.clone(), server_name: server_name.to_owned() };
    let kinds = match (is_imaps, is_here(host)) {
        (true, _) => vec![BackendTls::Implicit(trust())],
        (false, true) => {
            vec![BackendTls::None, BackendTls::StartTls(trust()), BackendTls::Implicit(trust())]
        }
        (false, false) => vec![BackendTls::StartTls(trust()), BackendTls::Implicit(trust())],
    };
    let mut last = String::new();
    for tls in kinds {
        // A pin has no meaning without TLS.
        let pin = options.backend_pin.filter(|_| tls != BackendTls::None);
        let how = BackendConfig { pin, ..BackendConfig::new(host, port, tls.clone()) };
        let backend = backend(how)?;
        match backend.probe(CONNECT_TIME, LONGEST).await {
            Err(error) => match of_refused_certificate(&error) {
                // It speaks this kind of TLS, and so no other.
                Some(remedy) => return Err(format!("{error}; {remedy}")),
                None => last = error.to_string(),
            },
            Ok(()) if backend.seen().is_some_and(|seen| seen.has("LOGINDISABLED")) => {
                last = format!("{}: takes no password without TLS", backend.name());
            }
            Ok(()) => {
                let program = holder.map(|holder| holder.program.clone()).unwrap_or_default();
                let container = PUBLISHERS.contains(&&*program).then(|| program.clone());
                let said = said(host, port, &tls, pin).await.unwrap_or_default();
                let is_here = is_here(host) && container.is_none();
                let (kind, version) = kind(&options.root, &said, &program, is_here);
                let kind = options.server.unwrap_or(kind);
                let (host, greeting) = (host.to_owned(), said.greeting);
                return Ok(FoundServer {
                    host,
                    port,
                    is_imaps,
                    tls,
                    pin,
                    kind,
                    container,
                    version,
                    greeting,
                });
            }
        }
    }
    Err(last)
}

fn backend(config: BackendConfig) -> Result<Backend, String> {
    let resolver = NameResolver::new(&Default::default(), Arc::default());
    Backend::new(&config, CONNECT_TIME, &resolver).map_err(|(key, error)| format!("{key}: {error}"))
}

/// What a server says of itself before a login.
#[derive(Debug, Default)]
struct SaidBefore {
    /// Cut off.
    greeting: String,
    /// The answer to ID (RFC 2971), cut off and without escapes; empty where there is none.
    id: String,
}

/// What is said before STARTTLS, for there is no greeting behind it.
async fn said(
    host: &str,
    port: u16,
    tls: &BackendTls,
    pin: Option<PublicKeyPin>,
) -> Option<SaidBefore> {
    let (tls, pin) = match tls {
        BackendTls::Implicit(_) => (tls.clone(), pin),
        _ => (BackendTls::None, None),
    };
    let backend = backend(BackendConfig { pin, ..BackendConfig::new(host, port, tls) }).ok()?;
    let mut connected = backend.connect(None, LONGEST).await.ok()?;
    let line = connected.heard.split(|byte| *byte == b'\n').next()?.trim_ascii();
    // A list of capabilities is long, and what it is stands behind it.
    let words = line.windows(2).position(|pair| pair == b"] ").map(|at| &line[at + 2..]);
    let text = match words.filter(|_| line.starts_with(b"* OK [")) {
        Some(words) => format!("* OK {}", printable(words)),
        None => printable(line),
    };
    let greeting = text.chars().take(SHOWN).collect();
    let id = timeout(CONNECT_TIME, id(&mut connected.stream)).await;
    Some(SaidBefore { greeting, id: id.ok().flatten().unwrap_or_default() })
}

/// The answer to ID. A server that does not know it says BAD.
async fn id(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Option<String> {
    stream.write_all(b"m1 ID NIL\r\n").await.ok()?;
    let (mut stream, mut heard) = (stream.take(LONGEST as u64), Vec::new());
    let is_answered =
        |heard: &[u8]| heard.starts_with(b"m1 ") || heard.windows(4).any(|it| it == b"\nm1 ");
    while !(heard.ends_with(b"\n") && is_answered(&heard)) {
        if stream.read_buf(&mut heard).await.ok()? == 0 {
            return None;
        }
    }
    let line = heard.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"* ID "))?;
    Some(printable(line).replace('\\', ""))
}

/// Programs that hold the ports of containers: those of Docker, of it and Podman without root, and of Podman.
const PUBLISHERS: [&str; 7] =
    ["docker-proxy", "rootlesskit", "rootlessport", "slirp4netns", "conmon", "pasta", "pasta.avx2"];

/// What says so, and its version: by its greeting, which an administrator may have changed, by its answer to ID, and by the
/// program that holds its port.
fn kind(root: &Path, said: &SaidBefore, program: &str, is_here: bool) -> (MailServerKind, String) {
    let SaidBefore { greeting, id } = said;
    let says = |name: &str| greeting.contains(name) || id.contains(name);
    if says("Cyrus IMAP") || program == "cyrmaster" {
        let version = greeting.split_once("Cyrus IMAP ").map(|(_, version)| version);
        let version = version.or_else(|| Some(id.split_once("\"version\" \"")?.1));
        let end = |char: char| char.is_whitespace() || char == '"';
        let version = version.and_then(|version| version.split(end).next());
        return (MailServerKind::Cyrus, version.unwrap_or_default().to_owned());
    }
    if says("Courier-IMAP") || program == "couriertcpd" {
        return (MailServerKind::Courier, String::new());
    }
    if !says("Dovecot") && program != "dovecot" {
        return (MailServerKind::Other, String::new());
    }
    // It says no version.
    let version = is_here.then(|| version_of_dovecot(root)).flatten().unwrap_or_default();
    let is_24 = |version: &str| {
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0_u32));
        (numbers.next(), numbers.next()) >= (Some(2), Some(4))
    };
    match version.as_str() {
        // It runs in a container, or on another machine.
        "" => (MailServerKind::DovecotUnknown, version),
        known if is_24(known) => (MailServerKind::Dovecot24, version),
        _ => (MailServerKind::Dovecot23, version),
    }
}

/// By the program, or by what its configuration says it is for.
fn version_of_dovecot(root: &Path) -> Option<String> {
    let program = Command::new(below(root, "usr/sbin/dovecot"))
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let of_program = program.ok().filter(|output| output.status.success()).and_then(|output| {
        let text = String::from_utf8(output.stdout).ok()?;
        text.split_whitespace().next().map(str::to_owned)
    });
    of_program.or_else(|| {
        let version = |text: String| {
            let line = text.lines().find(|line| line.starts_with("dovecot_config_version"))?;
            Some(line.split_once('=')?.1.trim().to_owned())
        };
        files_of_dovecot(root).into_iter().find_map(version)
    })
}

fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_at_the_port_here_is_in_the_way_of_a_server_elsewhere() {
        let server = |host: &str| FoundServer {
            host: host.to_owned(),
            port: IMAPS,
            is_imaps: true,
            tls: BackendTls::None,
            pin: None,
            kind: MailServerKind::Other,
            container: None,
            version: String::new(),
            greeting: String::new(),
        };
        let seen = |listens| SeenPlace { server: Err(String::new()), holder: None, listens };
        for (host, listens, expected) in [
            ("imap.example.org", true, true),
            ("imap.example.org", false, false),
            ("127.0.0.1", true, false),
        ] {
            let server = server(host);
            let chosen = SeenPlace { server: Ok(server.clone()), holder: None, listens: true };
            assert_eq!(seen(listens).is_in_the_way_of(&chosen, &server), expected, "{host}");
        }
    }

    #[test]
    fn a_greeting_says_what_a_server_is() {
        let folder = tempfile::tempdir().unwrap();
        let said =
            |greeting: &str, id: &str| SaidBefore { greeting: greeting.into(), id: id.into() };
        let kind = |greeting| kind(folder.path(), &said(greeting, ""), "", true);
        for (greeting, expected, version) in [
            ("* OK Dovecot (Debian) ready.", MailServerKind::DovecotUnknown, ""),
            (
                "* OK mail Cyrus IMAP 3.6.1-Debian-3.6.1-4 server ready",
                MailServerKind::Cyrus,
                "3.6.1-Debian-3.6.1-4",
            ),
            ("* OK Courier-IMAP ready. Copyright 1998-2018", MailServerKind::Courier, ""),
            ("* OK IMAP4rev1", MailServerKind::Other, ""),
            ("", MailServerKind::Other, ""),
        ] {
            assert_eq!(kind(greeting), (expected, version.to_owned()), "{greeting}");
        }
        std::fs::create_dir_all(folder.path().join("etc/dovecot")).unwrap();
        let config = folder.path().join("etc/dovecot/dovecot.conf");
        std::fs::write(config, "dovecot_config_version = 2.4.1\n").unwrap();
        let dovecot = kind("* OK Dovecot ready.");
        assert_eq!(dovecot, (MailServerKind::Dovecot24, "2.4.1".to_owned()));
        let elsewhere = super::kind(folder.path(), &said("* OK Dovecot ready.", ""), "", false);
        assert_eq!(elsewhere, (MailServerKind::DovecotUnknown, String::new()));
        // With a greeting of the administrator's.
        for (id, program, expected, version) in [
            ("* ID (\"name\" \"Dovecot\")", "", MailServerKind::DovecotUnknown, ""),
            ("", "dovecot", MailServerKind::DovecotUnknown, ""),
            ("", "couriertcpd", MailServerKind::Courier, ""),
            ("", "cyrmaster", MailServerKind::Cyrus, ""),
            (
                "* ID (\"name\" \"Cyrus IMAPD\" \"version\" \"3.6.1\")",
                "",
                MailServerKind::Cyrus,
                "3.6.1",
            ),
            ("", "nginx", MailServerKind::Other, ""),
        ] {
            let found = super::kind(folder.path(), &said("* OK hello", id), program, false);
            assert_eq!(found, (expected, version.to_owned()), "{id} {program}");
        }
    }
}
