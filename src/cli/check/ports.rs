//! Where mailchime listens: whether the addresses are free, or held by a mailchime that runs.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Report;
use super::occupant::{
    self, Occupant, OccupantQuestion, at_datagrams, at_port, at_socket, reachable,
};
use crate::cli::holder;
use crate::config::{AdminAddress, Config, ListenerConfig, ListenerTls};
use crate::imap::responses::printable;
use crate::net::{dial, listen, proxy_protocol, tls, unix_socket};

/// For the greeting of the program that listens there.
pub(super) const GREETING_TIME: Duration = Duration::from_secs(5);

/// What is read of a greeting, in bytes.
const GREETING_SIZE: u64 = 1024;

/// How a mailchime serves that has another configuration.
const OTHERWISE: &str = "otherwise than this configuration says";

/// How the greeting of a mailchime ends.
const OURS: &[u8] = b"] mailchime ready\r\n";

/// Whether a mailchime with this configuration runs, by who is at the addresses of its listeners.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Running {
    Yes,
    No,
    Unknown,
}

/// What is said at a listener's address.
pub(super) struct SeenGreeting {
    said: Vec<u8>,
    /// How a mailchime that says it serves, if not as this configuration says.
    differs: Option<&'static str>,
}

impl SeenGreeting {
    /// Whether a mailchime says it.
    pub(super) fn is_ours(&self) -> bool {
        self.said.ends_with(OURS)
    }
}

/// Listens for a moment at each port of the configuration, and says whether a mailchime runs.
pub(super) async fn listeners(config: &Config, report: &mut Report) -> Running {
    let mut running = Running::Unknown;
    for listener in &config.listeners {
        running = match (running, of_listener(listener, config, report).await) {
            (_, Running::Yes) | (Running::Yes, _) => Running::Yes,
            (Running::Unknown, found) => found,
            (before, _) => before,
        };
    }
    if let Some(AdminAddress::Tcp(address)) = config.admin.address {
        port("[admin] address", address, &OccupantQuestion::ADMIN, running, report).await;
    }
    if let Some(address) = config.api.address {
        let question = OccupantQuestion::api(&config.api.proxy_protocol);
        port("[api]", address, &question, running, report).await;
    }
    if let Some(address) = config.events.address {
        let question = OccupantQuestion::events(config.events.tls);
        port("[events] address", address, &question, running, report).await;
    }
    if let Some(udp) = config.events.udp.as_ref().filter(|udp| !udp.address.ip().is_multicast()) {
        let bound = UdpSocket::bind(udp.address).await.map(drop);
        let occupant = is_to_be_asked(&bound).then(|| at_datagrams(udp.address));
        let address = (&udp.address as &dyn Display, Some(udp.address));
        beside("[events] udp_address", address, (bound, occupant), running, report);
    }
    running
}

/// Looks at the Unix sockets of the configuration, as the user that makes them.
pub(super) async fn sockets(config: &Config, running: Running, report: &mut Report) {
    if let Some(AdminAddress::Unix { path, group }) = &config.admin.address {
        let place = (path.as_path(), group.as_deref());
        socket("[admin] address", place, Some(&OccupantQuestion::ADMIN), running, report).await;
    }
    let Some(cyrus) = &config.events.cyrus else { return };
    let keys = [("cyrus_socket", &cyrus.socket), ("cyrus_stream", &cyrus.stream)];
    for (key, path) in keys.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
        let place = (path.as_path(), cyrus.group.as_deref());
        socket(&format!("[events] {key}"), place, None, running, report).await;
    }
}

const PART: &str = "[[listener]]";

/// A mailchime is at the address of a listener.
fn ours(address: SocketAddr, differs: Option<&str>, report: &mut Report) -> Running {
    match differs {
        None => report.ok(PART, format_args!("{address}: mailchime serves there already")),
        Some(how) => report.warning(
            PART,
            format_args!(
                "{address}: mailchime serves there {how}; reload it (systemctl reload mailchime)"
            ),
        ),
    }
    Running::Yes
}

/// An address that `serve` cannot have is a fault; with status 1, as it may be free later.
async fn of_listener(how: &ListenerConfig, config: &Config, report: &mut Report) -> Running {
    let address = how.address;
    let error = match listen::bind(address) {
        Ok(_) if address.port() == 0 => {
            report.ok(PART, format_args!("{address}: the system chooses a port"));
            return Running::Unknown;
        }
        Ok(_) => {
            report.ok(PART, format_args!("{address}: is free"));
            return Running::No;
        }
        Err(error) => error,
    };
    // Who may not listen there may ask who does.
    let is_forbidden = error.kind() == io::ErrorKind::PermissionDenied;
    if error.kind() != io::ErrorKind::AddrInUse && !is_forbidden {
        let remedy = remedy(&error, Some(address), PART);
        report.failed(PART, format_args!("{address}: cannot listen: {error}{remedy}"));
        return Running::Unknown;
    }
    let greeting = timeout(GREETING_TIME, greeting(how, config)).await;
    let said = match greeting {
        Ok(Ok(seen)) if seen.is_ours() => return ours(address, seen.differs, report),
        Ok(Err(refused)) if is_forbidden && refused.kind() == io::ErrorKind::ConnectionRefused => {
            let remedy = remedy(&error, Some(address), PART);
            report.warning(
                PART,
                format_args!("{address}: nobody listens there, nor may this user: {error}{remedy}"),
            );
            return Running::No;
        }
        Ok(Ok(SeenGreeting { said, .. })) if !said.is_empty() => {
            format!(", which says \"{}\"", printable(&said))
        }
        _ => String::new(),
    };
    let at = reachable(address);
    let holder = holder::of(at.ip(), at.port());
    if holder.as_ref().is_some_and(|holder| holder.program == occupant::OURS) {
        return ours(address, Some(OTHERWISE), report);
    }
    let by = holder.map(|holder| format!(" ({holder})")).unwrap_or_default();
    report.failed(
        PART,
        format_args!(
            "{address}: another program listens there{by}{said}; stop it, or change [[listener]] address"
        ),
    );
    Running::No
}

/// What the unit of the package makes at each start (RuntimeDirectory).
const RUNTIME_FOLDER: &str = "/run/mailchime";

/// A Unix socket, which is not made here.
async fn socket(
    part: &str,
    (path, group): (&Path, Option<&str>),
    question: Option<&OccupantQuestion<'_>>,
    running: Running,
    report: &mut Report,
) {
    let runtime = Path::new(RUNTIME_FOLDER);
    let is_to_be_made = path.parent() == Some(runtime) && !runtime.exists();
    // The group is known before the folder is there.
    let group_is_known = group.map_or(Ok(()), unix_socket::find_group);
    if is_to_be_made && group_is_known.is_ok() {
        let text = "is not there yet; the unit of the package makes it when the service starts";
        return report.warning(part, format_args!("{RUNTIME_FOLDER}: {text}"));
    }
    let found = group_is_known.and_then(|()| unix_socket::examine(path));
    let occupant = match &found {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Some(at_socket(path, question).await)
        }
        _ => None,
    };
    // Of a file nobody needs a right of the unit.
    match found {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            report.refused(part, format_args!("{}: cannot listen: {error}", path.display()));
        }
        found => beside(part, (&path.display(), None), (found, occupant), running, report),
    }
}

/// Whether somebody may listen there. An address that this machine does not have is another machine's.
fn is_to_be_asked(bound: &io::Result<()>) -> bool {
    let kind = bound.as_ref().map_err(io::Error::kind);
    matches!(kind, Err(io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied))
}

/// A port of what is served beside mail.
async fn port(
    part: &str,
    address: SocketAddr,
    question: &OccupantQuestion<'_>,
    running: Running,
    report: &mut Report,
) {
    let bound = listen::bind(address).map(drop);
    let occupant = match is_to_be_asked(&bound) {
        true => Some(at_port(address, question).await),
        false => None,
    };
    beside(part, (&address, Some(address)), (bound, occupant), running, report);
}

/// What is served beside mail: whether it could be bound, and else who has it. It has an address, or is a Unix socket.
fn beside(
    part: &str,
    (shown, address): (&dyn Display, Option<SocketAddr>),
    (bound, occupant): (io::Result<()>, Option<Occupant>),
    running: Running,
    report: &mut Report,
) {
    let error = match bound {
        Ok(()) => return report.ok(part, format_args!("{shown}: is free")),
        Err(error) => error,
    };
    let said = format!("{shown}: cannot listen: {error}{}", remedy(&error, address, part));
    match (error.kind(), occupant.unwrap_or(Occupant::Unknown)) {
        (io::ErrorKind::PermissionDenied, Occupant::Nobody) => report.warning(part, said),
        (io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied, occupant) => {
            taken(part, shown, &occupant, running, report);
        }
        _ if listen::may_pass(&error) => report.failed(part, said),
        _ => report.refused(part, said),
    }
}

/// An address that somebody has.
fn taken(
    part: &str,
    address: &dyn Display,
    occupant: &Occupant,
    running: Running,
    report: &mut Report,
) {
    let remedy = "stop it, or use another address here";
    match (occupant, running) {
        (Occupant::Ours, Running::Yes | Running::Unknown) => {
            report.ok(part, format_args!("{address}: mailchime serves there already"));
        }
        (Occupant::Ours, Running::No) => report.failed(
            part,
            format_args!(
                "{address}: a mailchime listens there, and none at [[listener]] address: if it runs with this \
                 configuration as it was before, restart it; else {remedy}"
            ),
        ),
        (Occupant::Other(program), _) => {
            let by = match program {
                Some(program) => format!(" ({program})"),
                None => String::new(),
            };
            let text = format!("{address}: another program listens there{by}; {remedy}");
            report.failed(part, text);
        }
        (Occupant::Unknown | Occupant::Nobody, Running::No) => {
            report.failed(part, format_args!("{address}: a program listens there; {remedy}"));
        }
        (Occupant::Unknown | Occupant::Nobody, _) => report.warning(
            part,
            format_args!(
                "{address}: a program listens there, and it is not known which (root learns it); if that is not \
                 mailchime, {remedy}"
            ),
        ),
    }
}

/// What to do, behind what the system says.
fn remedy(error: &io::Error, address: Option<SocketAddr>, part: &str) -> String {
    let key = match part.ends_with(']') {
        true => format!("{part} address"),
        false => part.to_owned(),
    };
    let remedy = listen::remedy(error, address, &key);
    remedy.map(|remedy| format!("; {remedy}")).unwrap_or_default()
}

/// The first line that is said there, whatever certificate comes before it. Where nobody speaks TLS it is the line that is
/// said in the clear.
pub(super) async fn greeting(how: &ListenerConfig, config: &Config) -> io::Result<SeenGreeting> {
    if how.tls == ListenerTls::StartTls {
        return Ok(SeenGreeting { said: first_line(connected(how).await?).await?, differs: None });
    }
    let stream = connected(how).await?;
    let client = tls::client_with(tls::any_verifier()).map_err(io::Error::other)?;
    let name = ServerName::IpAddress(reachable(how.address).ip().into());
    let Ok(stream) = dial::tls(stream, &client, name).await else {
        let said = first_line(connected(how).await?).await?;
        return Ok(SeenGreeting { said, differs: Some(OTHERWISE) });
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let is_shown =
        |file| tls::certificates(file).is_ok_and(|certificates| certificates.first() == shown);
    let is_of_config = config.tls.all_certificates().any(|it| is_shown(&it.certificate));
    let differs =
        (!is_of_config).then_some("with another certificate than those of this configuration");
    Ok(SeenGreeting { said: first_line(stream).await?, differs })
}

/// A connection, with the header that the listener expects.
async fn connected(how: &ListenerConfig) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(reachable(how.address)).await?;
    let ours = stream.local_addr()?.ip().to_canonical();
    if how.proxy_protocol.iter().any(|network| network.contains(ours)) {
        stream.write_all(&proxy_protocol::header(None)).await?;
    }
    Ok(stream)
}

async fn first_line(stream: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let (mut stream, mut said) = (stream.take(GREETING_SIZE), Vec::new());
    while !said.ends_with(b"\n") && stream.read_buf(&mut said).await? > 0 {}
    Ok(said)
}
