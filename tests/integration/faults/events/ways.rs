//! The ways by which events come, as their sources use them.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixStream};

use crate::faults::scene::Scene;
use crate::intake::{TOKEN, ask};
use crate::support::soon;
use crate::support::world::Server;

/// The ways that events come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// mailchime's own form.
    Http,
    /// Dovecot's driver `ox`.
    Ox,
    /// What the program of Cyrus's `notifyd` posts.
    CyrusHttp,
    CyrusStream,
    CyrusDatagram,
    Udp,
}

/// Where they come in, of a program that runs, and where that is asked for its metrics.
#[derive(Clone, Copy)]
pub(super) struct Doors {
    http: SocketAddr,
    udp: SocketAddr,
    admin: SocketAddr,
}

/// What became of an event, as its source sees it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    Taken,
    Refused,
    /// There was nobody, or no answer.
    Unanswered,
}

/// What an event says of INBOX: UIDNEXT, MESSAGES and UNSEEN.
pub(super) type Numbers = [u64; 3];

impl Way {
    /// Whether the source gets an answer.
    pub(super) fn answers(self) -> bool {
        matches!(self, Self::Http | Self::Ox | Self::CyrusHttp | Self::CyrusStream)
    }

    /// An event of new mail in the INBOX of this user.
    pub(super) fn event(self, user: &str, numbers: Option<Numbers>) -> String {
        let said = |names: [&str; 3]| {
            let numbers = numbers.into_iter().flatten();
            names.iter().zip(numbers).map(|(name, it)| format!(",\"{name}\":{it}")).collect()
        };
        match self {
            Self::Http => {
                let numbers: String = said(["uidnext", "messages", "unseen"]);
                format!(
                    r#"{{"user":"{user}","changes":[{{"mailbox":"INBOX","events":["MessageNew"]{numbers}}}]}}"#
                )
            }
            Self::Ox => {
                let uid = numbers.map(|[next, ..]| format!(",\"imap-uid\":{}", next - 1));
                let uid = uid.unwrap_or_default();
                format!(r#"{{"user":"{user}","event":"messageNew","folder":"INBOX"{uid}}}"#)
            }
            Self::CyrusHttp | Self::CyrusStream | Self::CyrusDatagram => {
                let numbers: String = said(["uidnext", "messages", "vnd.cmu.unseenMessages"]);
                let json = format!(
                    r#"{{"event":"MessageNew","uri":"imap://localhost/user/{user};UIDVALIDITY=1/"{numbers}}}"#
                );
                match self {
                    Self::CyrusHttp => json,
                    Self::CyrusDatagram => format!("external\0EVENT\0\0\0\x000\0{json}\0"),
                    _ => format!(
                        "NOTIFY %(METHOD m CLASS EVENT PRIORITY NIL USER NIL MAILBOX NIL OPTIONS () \
                         MESSAGE {{{}+}}\r\n{json} FILEPATH NIL)\r\n",
                        json.len()
                    ),
                }
            }
            Self::Udp => format!("log\0MAIL\0\0{user}\0INBOX\x000\0From: a@b\n\0"),
        }
    }

    /// Sends what may be an event, and returns what came of it.
    pub(super) async fn send(self, scene: &Scene, doors: &Doors, event: &str) -> Told {
        self.send_as(scene, doors, event, TOKEN).await
    }

    pub(super) async fn send_as(
        self,
        scene: &Scene,
        doors: &Doors,
        event: &str,
        secret: &str,
    ) -> Told {
        let first = match self {
            Self::Http => "POST /v1/events",
            Self::Ox => "PUT /v1/events/ox",
            Self::CyrusHttp => "POST /v1/events/cyrus",
            Self::CyrusStream => return by_stream(scene, event).await,
            Self::CyrusDatagram => {
                // Cyrus goes on where nobody listens.
                let socket = UnixDatagram::unbound().unwrap();
                let _ = socket.send_to(event.as_bytes(), scene.file("cyrus"));
                return Told::Unanswered;
            }
            Self::Udp => {
                let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                let _ = socket.send_to(event.as_bytes(), doors.udp).await;
                return Told::Unanswered;
            }
        };
        if TcpStream::connect(doors.http).await.is_err() {
            return Told::Unanswered;
        }
        let request = format!("{first}\nAuthorization: Bearer {secret}\n\n{event}");
        match ask(doors.http, &request).await.status {
            204 => Told::Taken,
            0 => Told::Unanswered,
            _ => Told::Refused,
        }
    }

    /// Tells of new mail, which is taken.
    pub(super) async fn tell(self, scene: &Scene, doors: &Doors, numbers: Numbers) {
        let told = self.send(scene, doors, &self.event("alice", Some(numbers))).await;
        assert_eq!(told == Told::Taken, self.answers(), "{told:?}");
    }

    /// Tells of new mail without numbers, which is not taken. Returns when that is known.
    pub(super) async fn is_refused(self, scene: &Scene, doors: &Doors) {
        let before = doors.refused().await;
        let told = self.send(scene, doors, &self.event("alice", None)).await;
        assert_eq!(told == Told::Refused, self.answers(), "{told:?}");
        doors.until_refused(before + 1).await;
    }
}

impl Doors {
    pub(super) async fn of(server: &mut Server) -> Self {
        let mut address = async |message: &str| {
            let line = server.logged(message).await;
            server.process.stderr.rewind();
            line["address"].as_str().unwrap().parse().unwrap()
        };
        let http = address("taking events of mail servers over HTTP").await;
        let udp = address("taking datagrams of mail servers").await;
        Self { http, udp, admin: address("serving metrics, health and status").await }
    }

    /// How many events were refused.
    pub(super) async fn refused(&self) -> u64 {
        let metrics = ask(self.admin, "GET /metrics").await.body;
        let refused =
            metrics.lines().filter(|line| line.starts_with("mailchime_events_refused_total{"));
        refused.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    pub(super) async fn until_refused(&self, count: u64) {
        while self.refused().await < count {
            tokio::task::yield_now().await;
        }
    }
}

async fn by_stream(scene: &Scene, event: &str) -> Told {
    let Ok(mut stream) = UnixStream::connect(scene.file("cyrus-stream")).await else {
        return Told::Unanswered;
    };
    // It may be closed before all is read.
    let _ = stream.write_all(event.as_bytes()).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = soon("an answer", stream.read_to_end(&mut answer)).await;
    match answer.as_slice() {
        b"OK ()\r\n" => Told::Taken,
        b"" => Told::Unanswered,
        _ => Told::Refused,
    }
}
