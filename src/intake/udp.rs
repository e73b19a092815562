//! Datagrams in the form of Cyrus's notifications, as OX mailnotify takes them: a delivery to a user's mailbox.
//!
//! ```text
//! method NUL class NUL priority NUL user NUL mailbox NUL …
//! ```
//!
//! Each host that can send a datagram can forge one, and its sender's address. So only named networks are heard, and
//! a datagram is a sign to look and nothing more: no push follows from it alone.
//!
//! The look is at all mailboxes of the user, as OX mailnotify reads the user alone. The name of the mailbox does not
//! say which one a client means: a folder has other names for clients, and Cyrus names INBOX for folders, too.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::answer::IntakeContext;
use super::pace::SourcePace;
use crate::config::UdpEventsConfig;
use crate::metrics::{EventRefusal, SourceMetrics};
use crate::model::{Account, Hint, MailboxEvent, Snapshot};

/// The bytes of a datagram that are read: the names come first, and sender and subject behind them.
const LONGEST: usize = 1024;

/// Which class of notifications tells of a delivery.
const DELIVERY: &[u8] = b"MAIL";

/// Datagrams that are heard in a second, on average.
const PER_SECOND: u32 = 1000;

/// Pause after an error of the socket.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// The socket of `[events] udp_address`, and whom it hears.
#[derive(Debug)]
pub struct UdpEvents {
    socket: UdpSocket,
    config: UdpEventsConfig,
    pace: Mutex<SourcePace>,
    metrics: SourceMetrics,
}

impl UdpEvents {
    /// Listens at the address; that of a group (RFC 1112, RFC 4291 section 2.7) is joined.
    ///
    /// # Errors
    /// What the system says.
    pub async fn bind(config: &UdpEventsConfig, metrics: SourceMetrics) -> io::Result<Self> {
        let address = config.address;
        // A socket bound to a group's address receives nothing that is sent to the machine itself.
        let socket = UdpSocket::bind(address).await?;
        match address {
            SocketAddr::V4(group) if group.ip().is_multicast() => {
                let interface = config.interface.unwrap_or(Ipv4Addr::UNSPECIFIED);
                socket.join_multicast_v4(*group.ip(), interface)?;
            }
            SocketAddr::V6(group) if group.ip().is_multicast() => {
                socket.join_multicast_v6(group.ip(), group.scope_id())?;
            }
            _ => {}
        }
        let pace = Mutex::new(SourcePace::new(PER_SECOND, Instant::now()));
        Ok(Self { socket, config: config.clone(), pace, metrics })
    }

    /// The address of the socket.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Takes datagrams until `stop`.
    pub(super) async fn run(self, context: Arc<IntakeContext>, stop: CancellationToken) {
        let mut bytes = [0; LONGEST];
        let metrics = &self.metrics;
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => return,
                received = self.socket.recv_from(&mut bytes) => received,
            };
            let Ok((length, peer)) = received else {
                // It may last.
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(AFTER_ERROR) => {}
                }
                continue;
            };
            let hint = match self.hint(&bytes[..length], peer) {
                Ok(Some(hint)) => hint,
                Ok(None) => continue,
                Err(why) => {
                    if why == EventRefusal::TooMany {
                        context.recorder.missed();
                        metrics.missed(1);
                    }
                    context.refuse(Some("udp"), metrics, why);
                    continue;
                }
            };
            let (context, metrics) = (Arc::clone(&context), metrics.clone());
            // As many wait at once as there are places.
            tokio::spawn(async move {
                match context.record_hints(vec![hint]).await {
                    Ok(known) => metrics.recorded(&known),
                    Err(error) => {
                        context.recorder.missed();
                        metrics.missed(1);
                        let why = context.tell_of("udp", &error);
                        context.refuse(Some("udp"), &metrics, why);
                    }
                }
            });
        }
    }

    /// The hint of a datagram; `None` of one that is about something else than a delivery.
    fn hint(&self, datagram: &[u8], peer: SocketAddr) -> Result<Option<Hint>, EventRefusal> {
        let ip = peer.ip().to_canonical();
        if !self.config.networks.iter().any(|network| network.contains(ip)) {
            return Err(EventRefusal::Unauthorized);
        }
        if !self.pace.lock().take(1, Instant::now()) {
            return Err(EventRefusal::TooMany);
        }
        let hint = hint(datagram, self.config.default_domain.as_deref())?;
        match hint.as_ref().is_none_or(|hint| self.config.covers(&hint.account)) {
            true => Ok(hint),
            false => Err(EventRefusal::Foreign),
        }
    }
}

/// The hint of a datagram; `None` of one that is about something else than a delivery.
pub(super) fn hint(
    datagram: &[u8],
    default_domain: Option<&str>,
) -> Result<Option<Hint>, EventRefusal> {
    let mut fields = datagram.split(|byte| *byte == 0);
    let (Some(_method), Some(class), Some(_priority), Some(user)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(EventRefusal::Malformed);
    };
    if class != DELIVERY {
        return Ok(None);
    }
    // Without its end the name may have been cut off.
    let user = fields.next().and_then(|_mailbox| name(user)).ok_or(EventRefusal::Malformed)?;
    let account = match default_domain {
        Some(domain) if !user.contains('@') => Account::from_login(&format!("{user}@{domain}")),
        _ => Account::from_login(user),
    };
    Ok(Some(Hint {
        account,
        mailbox: None,
        // That mail came would be a push.
        event: MailboxEvent::Unnamed,
        state: Snapshot::default(),
        seen_at: Instant::now(),
    }))
}

fn name(bytes: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(bytes).ok()?;
    (!name.is_empty() && !name.chars().any(char::is_control)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_a_sign_to_look_at_all_mailboxes_of_the_user() {
        let shown = |datagram: &[u8]| match hint(datagram, Some("example.org")) {
            Ok(Some(hint)) => {
                assert_eq!((hint.event, hint.state), (MailboxEvent::Unnamed, Snapshot::default()));
                assert_eq!(hint.mailbox, None);
                format!("{} *", hint.account)
            }
            Ok(None) => "nothing".to_owned(),
            Err(why) => why.word().to_owned(),
        };
        // As Cyrus 3.6.1 has sent it, and cut off after each of its parts.
        let whole = b"log\0MAIL\0\0alice\0INBOX\x000\0From: private\nSubject: private\n\0";
        assert_eq!(shown(whole), "alice@example.org *");
        assert_eq!(shown(&whole[..20]), "alice@example.org *");
        assert_eq!(shown(&whole[..16]), "alice@example.org *");
        assert_eq!(shown(&whole[..15]), "malformed");
        assert_eq!(shown(b"log\0MAIL\0\0bob@Example.com\0Team\0"), "bob@example.com *");
        assert_eq!(shown(b"log\0MAIL\0\0bob@Example.com\0\0"), "bob@example.com *");
        assert_eq!(shown(b"external\0EVENT\0\0\0\x000\0{}\0"), "nothing");
        for bad in [&b""[..], b"log", b"log\0MAIL\0\0\0INBOX\0", b"log\0MAIL\0\0\xff\0INBOX\0"] {
            assert_eq!(shown(bad), "malformed", "{bad:?}");
        }
    }
}
