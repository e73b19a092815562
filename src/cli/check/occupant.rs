//! Who is at an address that is in use: this program, which answers as no other does, or another one.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::cli::holder::{self, PortHolder};
use crate::config::Network;
use crate::net::{dial, proxy_protocol, tls};

/// For the answer of the program that listens there.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What is read of an answer, in bytes.
const ANSWER_SIZE: u64 = 64 * 1024;

/// A socket that takes datagrams takes no connection.
const OTHER_TYPE: i32 = rustix::io::Errno::PROTOTYPE.raw_os_error();

/// The name of this program's process.
pub(super) const OURS: &str = "mailchime";

/// Who has an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Occupant {
    /// A mailchime, with whatever configuration.
    Ours,
    /// Another program, by its name where that is known.
    Other(Option<String>),
    /// A program that says nothing, and of which the system tells nothing to this user.
    Unknown,
    /// Nobody takes connections.
    Nobody,
}

/// What mailchime alone answers as it does.
pub(super) struct OccupantQuestion<'a> {
    request: &'static str,
    /// One of these is in its answer.
    answers: &'static [&'static str],
    tls: bool,
    /// From whom a header of the PROXY protocol comes first.
    proxies: &'a [Network],
}

impl<'a> OccupantQuestion<'a> {
    /// For `[admin]`: the names of its metrics.
    pub(super) const ADMIN: OccupantQuestion<'static> = OccupantQuestion {
        request: "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        answers: &["mailchime_"],
        tls: false,
        proxies: &[],
    };

    /// For `[api]`: whose name and password are asked for, or that the server has another name.
    pub(super) fn api(proxies: &'a [Network]) -> Self {
        Self {
            request: "GET /v1/session HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            answers: &["realm=\"mailchime\"", "[api] public_url"],
            tls: true,
            proxies,
        }
    }

    /// For `[events]`: that a report comes by POST. It is counted for nobody.
    pub(super) fn events(tls: bool) -> OccupantQuestion<'static> {
        OccupantQuestion {
            request: "GET /v1/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            answers: &["{\"error\":\"method_not_allowed\",\"message\":\"Use POST.\"}"],
            tls,
            proxies: &[],
        }
    }

    /// Whether the answer is mailchime's; `None` where nothing was answered.
    async fn ask(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<Option<bool>> {
        let mut stream = stream;
        stream.write_all(self.request.as_bytes()).await?;
        let (mut stream, mut heard) = (stream.take(ANSWER_SIZE), Vec::new());
        let is_ours = |heard: &[u8]| {
            let heard = String::from_utf8_lossy(heard);
            self.answers.iter().any(|answer| heard.contains(answer))
        };
        // An end without a farewell is an end.
        while !is_ours(&heard) && stream.read_buf(&mut heard).await.unwrap_or(0) > 0 {}
        Ok((!heard.is_empty()).then(|| is_ours(&heard)))
    }

    async fn ask_at(&self, address: SocketAddr) -> io::Result<Option<bool>> {
        let mut stream = TcpStream::connect(address).await?;
        let ours = stream.local_addr()?.ip().to_canonical();
        if self.proxies.iter().any(|network| network.contains(ours)) {
            stream.write_all(&proxy_protocol::header(None)).await?;
        }
        if !self.tls {
            return self.ask(stream).await;
        }
        let client = tls::client_with(tls::any_verifier()).map_err(io::Error::other)?;
        let name = ServerName::IpAddress(address.ip().into());
        self.ask(dial::tls(stream, &client, name).await?).await
    }
}

/// Who listens at a port, by what it answers; or else by the name of its process, which root alone learns.
pub(super) async fn at_port(address: SocketAddr, question: &OccupantQuestion<'_>) -> Occupant {
    let address = reachable(address);
    let answered = timeout(ANSWER_TIME, question.ask_at(address)).await;
    let holder = || holder::of(address.ip(), address.port());
    match answered {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Occupant::Nobody,
        Ok(Ok(answer)) => judged(answer, holder),
        Ok(Err(_)) | Err(_) => judged(None, holder),
    }
}

/// Who takes the datagrams of an address, which answers nothing.
pub(super) fn at_datagrams(address: SocketAddr) -> Occupant {
    let address = reachable(address);
    match holder::takes_datagrams(address.ip(), address.port()) {
        true => judged(None, || holder::of_datagrams(address.ip(), address.port())),
        false => Occupant::Nobody,
    }
}

/// Who reads from a Unix socket: by its answer or its process, whose name everybody may know, where it takes connections;
/// else by the owner of its file, where that is this user and not root.
pub(super) async fn at_socket(path: &Path, question: Option<&OccupantQuestion<'_>>) -> Occupant {
    let asked = timeout(ANSWER_TIME, async {
        let stream = UnixStream::connect(path).await?;
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let holder = process.and_then(|process| holder::of_process(process.unsigned_abs()));
        let answer = match question {
            Some(question) => question.ask(stream).await.unwrap_or(None),
            None => None,
        };
        Ok::<_, io::Error>(judged(answer, || holder))
    });
    let user = rustix::process::geteuid();
    let is_own =
        || !user.is_root() && fs::metadata(path).is_ok_and(|file| file.uid() == user.as_raw());
    match asked.await {
        Ok(Ok(occupant)) => occupant,
        Ok(Err(error)) if error.raw_os_error() == Some(OTHER_TYPE) && is_own() => Occupant::Ours,
        _ => Occupant::Unknown,
    }
}

fn judged(answer: Option<bool>, holder: impl FnOnce() -> Option<PortHolder>) -> Occupant {
    if answer == Some(true) {
        return Occupant::Ours;
    }
    match (holder(), answer) {
        (Some(holder), _) if holder.program == OURS => Occupant::Ours,
        (Some(holder), _) => Occupant::Other(Some(holder.to_string())),
        (None, Some(_)) => Occupant::Other(None),
        (None, None) => Occupant::Unknown,
    }
}

/// All addresses of the machine are heard on its loopback one.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_otherwise_is_another_program_and_what_says_nothing_is_not_known() {
        let holder = |program: &str| {
            let program = program.to_owned();
            move || Some(PortHolder { program, unit: None })
        };
        let nginx = || Occupant::Other(Some("nginx".to_owned()));
        assert_eq!(judged(Some(true), || None), Occupant::Ours);
        assert_eq!(judged(Some(false), || None), Occupant::Other(None));
        assert_eq!(judged(Some(false), holder("nginx")), nginx());
        assert_eq!(judged(None, holder("nginx")), nginx());
        // One that is busy, or has a certificate of its own.
        assert_eq!(judged(None, holder("mailchime")), Occupant::Ours);
        assert_eq!(judged(None, || None), Occupant::Unknown);
    }
}
