//! Where mailchime listens: whether the addresses are free, or held by a mailchime that runs.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Report;
use crate::config::{AdminAddress, Config, ListenerConfig, ListenerTls};
use crate::imap::responses::printable;
use crate::net::{dial, listen, proxy_protocol, tls, unix_socket};

/// For the greeting of the program that listens there.
const GREETING_TIME: Duration = Duration::from_secs(5);

/// What is read of a greeting, in bytes.
const GREETING_SIZE: u64 = 1024;

/// How the greeting of a mailchime ends.
const OURS: &[u8] = b"] mailchime ready\r\n";

/// Whether a mailchime with this configuration runs, by who is at the addresses of its listeners.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Running {
    Yes,
    No,
    Unknown,
}

/// Listens for a moment at each port of the configuration, and says whether a mailchime runs.
pub(super) async fn listeners(config: &Config, report: &mut Report) -> Running {
    let mut running = Running::Unknown;
    for listener in &config.listeners {
        let found = of_listener(listener, config, report).await;
        if running == Running::Unknown {
            running = found;
        }
    }
    if let Some(AdminAddress::Tcp(address)) = &config.admin.address {
        let bound = listen::bind(*address).map(drop);
        beside("[admin] address", address, bound, running, report);
    }
    if let Some(address) = config.api.address {
        beside("[api]", &address, listen::bind(address).map(drop), running, report);
    }
    if let Some(address) = config.events.address {
        let bound = listen::bind(address).map(drop);
        beside("[events] address", &address, bound, running, report);
    }
    if let Some(udp) = config.events.udp.as_ref().filter(|udp| !udp.address.ip().is_multicast()) {
        let bound = UdpSocket::bind(udp.address).await.map(drop);
        beside("[events] udp_address", &udp.address, bound, running, report);
    }
    running
}

/// Looks at the Unix sockets of the configuration, as the user that makes them.
pub(super) fn sockets(config: &Config, running: Running, report: &mut Report) {
    if let Some(AdminAddress::Unix { path, group }) = &config.admin.address {
        socket("[admin] address", path, group.as_deref(), running, report);
    }
    let Some(cyrus) = &config.events.cyrus else { return };
    let keys = [("cyrus_socket", &cyrus.socket), ("cyrus_stream", &cyrus.stream)];
    for (key, path) in keys.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
        socket(&format!("[events] {key}"), path, cyrus.group.as_deref(), running, report);
    }
}

/// An address that `serve` cannot have is a fault; with status 1, as it may be free later.
async fn of_listener(how: &ListenerConfig, config: &Config, report: &mut Report) -> Running {
    const PART: &str = "[[listener]]";
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
    if error.kind() != io::ErrorKind::AddrInUse {
        report.failed(PART, format_args!("{address}: cannot listen: {error}{}", remedy(&error)));
        return Running::Unknown;
    }
    match timeout(GREETING_TIME, greeting(how, config)).await {
        Ok(Ok(said)) if said.ends_with(OURS) => {
            report.ok(PART, format_args!("{address}: mailchime serves there already"));
            return Running::Yes;
        }
        Ok(Ok(said)) if !said.is_empty() => report.failed(
            PART,
            format_args!(
                "{address}: another program listens there, which says \"{}\"; stop it, or change \
                 [[listener]] address",
                printable(&said)
            ),
        ),
        _ => report.failed(
            PART,
            format_args!(
                "{address}: another program listens there; stop it, or change [[listener]] address"
            ),
        ),
    }
    Running::No
}

/// What the unit of the package makes at each start (RuntimeDirectory).
const RUNTIME_FOLDER: &str = "/run/mailchime";

/// A Unix socket, which is not made here.
fn socket(part: &str, path: &Path, group: Option<&str>, running: Running, report: &mut Report) {
    let runtime = Path::new(RUNTIME_FOLDER);
    let is_to_be_made = path.parent() == Some(runtime) && !runtime.exists();
    // The group is known before the folder is there.
    let group_is_known = group.map_or(Ok(()), unix_socket::find_group);
    if is_to_be_made && group_is_known.is_ok() {
        let text = "is not there yet; the unit of the package makes it when the service starts";
        return report.warning(part, format_args!("{RUNTIME_FOLDER}: {text}"));
    }
    let found = group_is_known.and_then(|()| unix_socket::examine(path));
    beside(part, &path.display(), found, running, report);
}

/// What is served beside mail. Where a mailchime runs, it holds these, too.
fn beside(
    part: &str,
    address: &dyn Display,
    bound: io::Result<()>,
    running: Running,
    report: &mut Report,
) {
    let error = match bound {
        Ok(()) => return report.ok(part, format_args!("{address}: is free")),
        Err(error) => error,
    };
    match (error.kind(), running) {
        (io::ErrorKind::AddrInUse, Running::Yes) => {
            report.ok(part, format_args!("{address}: is in use, and mailchime runs"));
        }
        (io::ErrorKind::AddrInUse, Running::Unknown) => report.warning(
            part,
            format_args!(
                "{address}: a program listens there; if that is not mailchime, use another address here"
            ),
        ),
        (io::ErrorKind::AddrInUse, Running::No) => report.refused(
            part,
            format_args!("{address}: another program listens there; stop it, or use another address here"),
        ),
        _ => {
            let remedy = remedy(&error);
            report.refused(part, format_args!("{address}: cannot listen: {error}{remedy}"));
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root or CAP_NET_BIND_SERVICE, which the unit gives"
        }
        _ => "",
    }
}

/// The first line that is said there. Only the certificates of the configuration count for TLS: a server that shows
/// others is not a mailchime with it.
async fn greeting(how: &ListenerConfig, config: &Config) -> io::Result<Vec<u8>> {
    let address = reachable(how.address);
    let mut stream = TcpStream::connect(address).await?;
    let ours = stream.local_addr()?.ip().to_canonical();
    if how.proxy_protocol.iter().any(|network| network.contains(ours)) {
        stream.write_all(&proxy_protocol::header(None)).await?;
    }
    if how.tls == ListenerTls::StartTls {
        return first_line(stream).await;
    }
    let leaf = |file| tls::certificates(file).ok()?.first().and_then(tls::pin_of);
    let pins = config.tls.all_certificates().filter_map(|it| leaf(&it.certificate)).collect();
    let client = tls::client_with(tls::key_verifier(pins)).map_err(io::Error::other)?;
    let name = ServerName::IpAddress(address.ip().into());
    first_line(dial::tls(stream, &client, name).await?).await
}

async fn first_line(stream: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let (mut stream, mut said) = (stream.take(GREETING_SIZE), Vec::new());
    while !said.ends_with(b"\n") && stream.read_buf(&mut said).await? > 0 {}
    Ok(said)
}

/// All addresses of the machine are heard on its loopback one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
