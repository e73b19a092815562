//! A small IMAP server that keeps everything in memory (RFC 3501 with a few extensions).
//!
//! It is complete enough for curl, Python's imaplib, mutt and a phone, strict where clients must be
//! right, and can be set to behave like servers that lack something. Its mail is gone when it is.
//!
//! Mailbox names are those of the wire: `Entw&APw-rfe`, not `Entwürfe`; the hierarchy is separated
//! by `/`. A session never times out; its end is the client's or the handle's.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use imap_codec::imap_types::flag::Flag;
use parking_lot::{Mutex, MutexGuard};
use rustls::ServerConfig;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::port::Port;
use state::{Accounts, DemoMailbox};

mod fetch;
mod header;
mod login;
mod mailboxes;
mod search;
mod selected;
mod session;
mod state;
mod wire;

/// A running server. Dropping it closes its port and its connections.
pub struct DemoBackend {
    port: Port,
    shared: Arc<Shared>,
}

/// How the server behaves; may be changed while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// The capabilities as they are listed. What is not listed is refused: IDLE, ID, ENABLE,
    /// UNSELECT, MOVE, non-synchronising literals, initial responses, SASL mechanisms. What is
    /// listed and unknown to the server (COMPRESS=DEFLATE, XAPPLEPUSHSERVICE) is refused too.
    pub capabilities: Vec<String>,
    /// Whether the greeting carries the capability list.
    pub list_in_greeting: bool,
    /// Whether the tagged OK of a login carries the capability list.
    pub list_in_login: bool,
    /// Answers every login `NO [UNAVAILABLE]` (RFC 5530).
    pub unavailable: bool,
}

/// What has happened since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that are open now.
    pub connections: usize,
    /// Sessions that are in IDLE now: the continuation was sent, DONE has not come.
    pub idling: usize,
    /// Connections that were ever accepted.
    pub accepted: u64,
    /// Logins that succeeded, by login name.
    pub logins: BTreeMap<String, u64>,
    /// Logins that were refused, by login name, for whatever reason.
    pub refused: BTreeMap<String, u64>,
    /// Commands by verb in capitals (`UID FETCH` is one), known or not.
    pub commands: BTreeMap<String, u64>,
}

/// A mailbox, message or account that the server does not have, or a name it cannot have.
#[derive(Debug, Error)]
#[error("the demo server has no {0}")]
pub struct Missing(String);

/// What the sessions share with the handle.
struct Shared {
    /// Never held over an await.
    state: Mutex<Accounts>,
    behaviour: Mutex<Behaviour>,
    counters: watch::Sender<Counters>,
    /// Counts the calls of [`DemoBackend::say_bye`].
    farewells: watch::Sender<u64>,
}

/// Different names that one counter tells apart; a client that makes up more gets `OTHER`.
const NAMES_COUNTED: usize = 256;

const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

// === impl Backend ===

impl DemoBackend {
    /// Serves `listener`: with TLS from the first byte, or in the clear without `tls`.
    ///
    /// # Errors
    /// When the listener cannot be used.
    pub fn start(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(Accounts::default()),
            behaviour: Mutex::new(Behaviour::default()),
            counters: watch::Sender::new(Counters::default()),
            farewells: watch::Sender::new(0),
        });
        let acceptor = tls.map(TlsAcceptor::from);
        let for_sessions = shared.clone();
        let port = Port::open(listener, move |stream| {
            let shared = for_sessions.clone();
            let acceptor = acceptor.clone();
            async move {
                shared.counters.send_modify(|c| c.accepted += 1);
                let _open = StateGuard::new(&shared, |c| &mut c.connections);
                // How a connection fails is the client's to see; the server has nobody to tell.
                let _ = match acceptor {
                    None => session::run(stream, &shared).await,
                    Some(tls) => {
                        match tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream)).await {
                            Ok(Ok(stream)) => session::run(stream, &shared).await,
                            Ok(Err(error)) => Err(error),
                            Err(late) => Err(late.into()),
                        }
                    }
                };
            }
        })?;
        Ok(Self { port, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// A new account with an empty INBOX. An account of that name is replaced.
    pub fn add_account(&self, login: &str, password: &[u8]) {
        self.shared.state().add_account(login, password);
    }

    /// Sessions that are logged in stay so, as on most servers.
    ///
    /// # Errors
    /// [`Missing`] when there is no such account, mailbox or message.
    pub fn set_password(&self, login: &str, password: &[u8]) -> Result<(), Missing> {
        let mut state = self.shared.state();
        let account = state.account(login).ok_or_else(|| Missing(format!("account {login}")))?;
        account.set_password(password);
        Ok(())
    }

    /// How often each password that the account once had was refused since it was replaced, the
    /// oldest first.
    ///
    /// # Errors
    /// [`Missing`] when there is no such account, mailbox or message.
    pub fn stale_tries(&self, login: &str) -> Result<Vec<u64>, Missing> {
        let mut state = self.shared.state();
        let account = state.account(login).ok_or_else(|| Missing(format!("account {login}")))?;
        Ok(account.stale.iter().map(|(_, tries)| *tries).collect())
    }

    /// A new, empty mailbox.
    ///
    /// # Errors
    /// [`Missing`] when there is no such account, mailbox or message.
    pub fn create_mailbox(&self, login: &str, mailbox: &str) -> Result<(), Missing> {
        self.shared
            .state()
            .create(login, mailbox)
            .map_err(|_| Missing(format!("room for {login}: {mailbox}")))
    }

    /// Whether the account's own sessions are kept out of the mailbox: it is listed, and every use
    /// is answered `NO [NOPERM]` (RFC 4314, RFC 5530).
    ///
    /// # Errors
    /// [`Missing`] when there is no such account, mailbox or message.
    pub fn deny(&self, login: &str, mailbox: &str, denied: bool) -> Result<(), Missing> {
        self.with(login, mailbox, |mailbox| mailbox.denied = denied)
    }

    /// New mail. Sessions that idle on the mailbox hear of it at once. Returns its UID.
    ///
    /// # Errors
    /// [`Missing`] when there is no such account, mailbox or message.
    pub fn deliver(
        &self,
        login: &str,
        mailbox: &str,
        message: impl Into<Bytes>,
    ) -> Result<u32, Missing> {
        self.with(login, mailbox, |mailbox| {
            mailbox.append(message.into(), Vec::new(), SystemTime::now())
        })
    }

    /// Replaces the flags of a message, for example with `["\\Seen", "$Junk"]`.
    ///
    /// # Errors
    /// [`Missing`] when there is no such account, mailbox or message.
    pub fn set_flags(
        &self,
        login: &str,
        mailbox: &str,
        uid: u32,
        flags: &[&str],
    ) -> Result<(), Missing> {
        let flags: Vec<_> = flags
            .iter()
            .map(|flag| Flag::try_from((*flag).to_owned().as_str()).map(to_static))
            .collect::<Result<_, _>>()
            .map_err(|_| Missing(format!("such flag in {flags:?}")))?;
        self.with(login, mailbox, |mailbox| mailbox.change_flags(uid, |own| *own = flags))?
            .ok_or_else(|| Missing(format!("message {uid}")))
    }

    /// Removes a message, whatever its flags are.
    ///
    /// # Errors
    /// [`Missing`] when there is no such account, mailbox or message.
    pub fn expunge(&self, login: &str, mailbox: &str, uid: u32) -> Result<(), Missing> {
        match self.with(login, mailbox, |mailbox| mailbox.remove(|message| message.uid == uid))? {
            removed if removed.is_empty() => Err(Missing(format!("message {uid}"))),
            _ => Ok(()),
        }
    }

    /// UID, flags and bytes of each message, in order.
    ///
    /// # Errors
    /// [`Missing`] when there is no such account, mailbox or message.
    pub fn messages(
        &self,
        login: &str,
        mailbox: &str,
    ) -> Result<Vec<(u32, Vec<String>, Bytes)>, Missing> {
        self.with(login, mailbox, |mailbox| {
            let flags = |flags: &[Flag<'_>]| flags.iter().map(ToString::to_string).collect();
            mailbox.messages().iter().map(|m| (m.uid, flags(&m.flags), m.body.clone())).collect()
        })
    }

    /// The UID that the next new message gets, as STATUS tells it.
    ///
    /// # Errors
    /// [`Missing`] when there is no such account, mailbox or message.
    pub fn uid_next(&self, login: &str, mailbox: &str) -> Result<u32, Missing> {
        self.with(login, mailbox, |mailbox| mailbox.uid_next)
    }

    /// When the numbers that STATUS tells of a mailbox changed last, `None` if they never did. No
    /// session can see the change before that moment.
    ///
    /// # Errors
    /// [`Missing`] when there is no such account, mailbox or message.
    pub fn last_change(&self, login: &str, mailbox: &str) -> Result<Option<Instant>, Missing> {
        self.with(login, mailbox, |mailbox| mailbox.last_change)
    }

    /// Changes the behaviour from the next command on.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock());
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.shared.counters.borrow().clone()
    }

    /// Waits until the counters are as `reached` wants them, which they may be already.
    pub async fn wait_until(&self, reached: impl FnMut(&Counters) -> bool) -> Counters {
        let mut counters = self.shared.counters.subscribe();
        // The handle holds the sender, so the wait cannot fail.
        match counters.wait_for(reached).await {
            Ok(seen) => seen.clone(),
            Err(_) => Counters::default(),
        }
    }

    /// Closes every connection that is open now, without a BYE. New ones are welcome.
    pub fn drop_connections(&self) {
        self.port.drop_connections();
    }

    /// Ends every session with a BYE, at its next pause. New connections are welcome.
    pub fn say_bye(&self) {
        self.shared.farewells.send_modify(|count| *count += 1);
    }

    /// Refuses new connections until [`DemoBackend::resume`]. Open ones stay.
    pub async fn refuse(&self) {
        self.port.close().await;
    }

    /// Listens again on the same port.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn resume(&self) -> io::Result<()> {
        self.port.reopen().await
    }

    /// Closes everything and waits until it is closed.
    pub async fn stop(self) {
        self.port.stop().await;
    }

    fn with<R>(
        &self,
        login: &str,
        name: &str,
        f: impl FnOnce(&mut DemoMailbox) -> R,
    ) -> Result<R, Missing> {
        let mut state = self.shared.state();
        match state.account(login).and_then(|account| account.mailbox(name)) {
            Some(mailbox) => Ok(f(mailbox)),
            None => Err(Missing(format!("mailbox {name} of {login}"))),
        }
    }
}

impl std::fmt::Debug for DemoBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("address", &self.address()).finish_non_exhaustive()
    }
}

// === impl Behaviour ===

impl Behaviour {
    /// Lists a token that is not listed yet.
    pub fn add(&mut self, capability: &str) {
        if !self.has(capability) {
            self.capabilities.push(capability.to_owned());
        }
    }

    /// No longer lists a token, and no longer does what it stands for.
    pub fn remove(&mut self, capability: &str) {
        self.capabilities.retain(|own| !own.eq_ignore_ascii_case(capability));
    }

    fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|own| own.eq_ignore_ascii_case(capability))
    }
}

impl Default for Behaviour {
    /// Everything that the server can do, listed wherever a list may stand.
    fn default() -> Self {
        let capabilities = "IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE UNSELECT UIDPLUS MOVE \
                            AUTH=PLAIN AUTH=LOGIN";
        Self {
            capabilities: capabilities.split(' ').map(String::from).collect(),
            list_in_greeting: true,
            list_in_login: true,
            unavailable: false,
        }
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, Accounts> {
        self.state.lock()
    }

    fn behaviour(&self) -> Behaviour {
        self.behaviour.lock().clone()
    }

    /// Whether a capability is listed now.
    fn can(&self, capability: &str) -> bool {
        self.behaviour.lock().has(capability)
    }

    /// Adds one to a name in one of the maps of [`Counters`].
    fn count(&self, name: &str, map: impl FnOnce(&mut Counters) -> &mut BTreeMap<String, u64>) {
        self.counters.send_modify(|counters| {
            let map = map(counters);
            let name = match map.len() < NAMES_COUNTED || map.contains_key(name) {
                true => name,
                false => "OTHER",
            };
            match map.get_mut(name) {
                Some(count) => *count += 1,
                None => drop(map.insert(name.to_owned(), 1)),
            }
        });
    }
}

/// Counts something for as long as it lasts, however it ends.
struct StateGuard<'a> {
    shared: &'a Shared,
    gauge: fn(&mut Counters) -> &mut usize,
}

impl<'a> StateGuard<'a> {
    fn new(shared: &'a Shared, gauge: fn(&mut Counters) -> &mut usize) -> Self {
        shared.counters.send_modify(|counters| *gauge(counters) += 1);
        Self { shared, gauge }
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        self.shared.counters.send_modify(|counters| *(self.gauge)(counters) -= 1);
    }
}

fn to_static(flag: Flag<'_>) -> Flag<'static> {
    imap_codec::imap_types::IntoStatic::into_static(flag)
}
