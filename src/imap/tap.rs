//! A tap beside a session: it hears what is said and done there, and changes nothing of it.
//!
//! [`Tapped`] says and does what [`Session`] does, and tells its tap. Who hears, and what becomes of it,
//! is no matter of the session.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;

use super::contract::{Action, BackendTraits, Output, Profile, Step};
use super::session::Session;
use crate::model::RegistrationResult;

/// Which way bytes go, by the letters of a dialogue (`fixtures/README.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The client to mailchime.
    C,
    /// The client to the backend.
    CF,
    /// The backend to mailchime.
    B,
    /// The backend to the client.
    BS,
    /// mailchime to the client.
    S,
    /// mailchime to the backend.
    F,
}

/// Hears one session. No call may wait.
pub trait Tap: Send + Sync + fmt::Debug {
    /// A setting of the session that shows only now.
    fn setting(&mut self, setting: &'static str);

    /// Bytes, in the order in which they are said; a part of a line or many lines.
    fn said(&mut self, flow: Flow, bytes: &[u8]);

    /// An event, as a dialogue names it.
    fn happened(&mut self, what: &str);

    /// Nothing more comes. Ready when all that was heard is dealt with.
    fn finish(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Makes the tap of each new session, of its settings and whether its connection is protected.
#[derive(Clone)]
pub struct Taps(Arc<MakeTap>);

type MakeTap = dyn Fn(&Profile, bool) -> Box<dyn Tap> + Send + Sync;

/// A session and its tap, if it has one.
#[derive(Debug)]
pub struct Tapped {
    session: Session,
    listener: Option<Listener>,
}

/// The tap, and what is known of the session for it.
#[derive(Debug)]
struct Listener {
    tap: Box<dyn Tap>,
    /// There is a connection to the backend.
    connected: bool,
    /// Bytes of the client that are noted already and not taken yet.
    early: usize,
    /// The mailboxes of the registrations under way.
    mailboxes: VecDeque<String>,
}

impl Taps {
    /// `make` gets the settings of a session, and whether its connection is protected.
    pub fn new(make: impl Fn(&Profile, bool) -> Box<dyn Tap> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }
}

impl fmt::Debug for Taps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Taps")
    }
}

impl Tapped {
    /// A session with the tap that `taps` makes for it. `secure` says whether its connection is protected.
    pub fn new(session: Session, taps: Option<&Taps>, profile: &Profile, secure: bool) -> Self {
        let listener = taps.map(|Taps(make)| Listener {
            tap: make(profile, secure),
            connected: false,
            early: 0,
            mailboxes: VecDeque::new(),
        });
        let mut tapped = Self { session, listener };
        tapped.note([0, 0], 0);
        tapped
    }

    /// As [`Session::client`].
    pub fn client(&mut self, input: &[u8], last: bool) -> Step {
        let before = self.before();
        let step = self.session.client(input, last);
        self.stepped([Flow::C, Flow::CF], input, step);
        self.note(before.0, before.1);
        step
    }

    /// As [`Session::backend`].
    pub fn backend(&mut self, input: &[u8], last: bool) -> Step {
        let before = self.before();
        let step = self.session.backend(input, last);
        self.stepped([Flow::B, Flow::BS], input, step);
        if last && self.session.is_relaying() {
            self.hung_up();
        }
        self.note(before.0, before.1);
        step
    }

    /// As [`Session::connected`].
    pub fn connected(&mut self, reached: BackendTraits) {
        if let Some(listener) = &mut self.listener {
            listener.connected = true;
            let settings = [
                (reached.send_id, "send-id"),
                (reached.checks_token_name, "checks-token-name"),
                (reached.names_ignore_case, "names-ignore-case"),
            ];
            for (_, setting) in settings.into_iter().filter(|(set, _)| *set) {
                listener.tap.setting(setting);
            }
            listener.tap.happened("connect");
        }
        self.within(|session| session.connected(reached));
    }

    /// As [`Session::unavailable`].
    pub fn unavailable(&mut self, why: String) -> bool {
        self.gone(|session| session.unavailable(why))
    }

    /// As [`Session::turned_away`].
    pub fn turned_away(&mut self, answer: &str) {
        self.gone(|session| session.turned_away(answer));
    }

    fn gone(&mut self, tell: impl FnOnce(&mut Session) -> bool) -> bool {
        let before = self.before();
        let told = tell(&mut self.session);
        if told {
            match &mut self.listener {
                Some(listener) if !listener.connected => listener.tap.happened("unreachable"),
                _ => self.hung_up(),
            }
        }
        self.note(before.0, before.1);
        told
    }

    /// As [`Session::secured`].
    pub fn secured(&mut self) {
        if let Some(listener) = &mut self.listener {
            listener.tap.happened("handshake");
        }
        self.within(Session::secured);
    }

    /// As [`Session::refused`].
    pub fn refused(&mut self) {
        self.within(Session::refused);
    }

    /// As [`Session::abandoned`].
    pub fn abandoned(&mut self) {
        self.within(Session::abandoned);
    }

    /// As [`Session::admitted`].
    pub fn admitted(&mut self) {
        self.within(Session::admitted);
    }

    /// As [`Session::release`].
    pub fn release(&mut self) {
        self.within(Session::release);
    }

    /// As [`Session::conclude`].
    pub fn conclude(&mut self) {
        self.within(Session::conclude);
    }

    /// As [`Session::renewed`].
    pub fn renewed(&mut self, profile: Arc<Profile>) -> Option<&str> {
        self.session.renewed(profile)
    }

    /// As [`Session::overdue`].
    pub fn overdue(&mut self) {
        if let Some(listener) = &mut self.listener {
            listener.tap.happened("overdue");
        }
        self.within(Session::overdue);
    }

    /// As [`Session::registered`].
    pub fn registered(&mut self, result: RegistrationResult) {
        if let Some(listener) = &mut self.listener {
            let mailboxes = listener.mailboxes.pop_front().unwrap_or_default();
            match matches!(result, RegistrationResult::Stored { .. }) {
                true => listener.tap.happened(&format!("store {mailboxes}")),
                false => listener.tap.happened("cannot store"),
            }
        }
        self.within(|session| session.registered(result));
    }

    /// Ends the tap, and waits until it has dealt with what it heard.
    pub async fn finish(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.tap.finish().await;
        }
    }

    fn within(&mut self, change: impl FnOnce(&mut Session)) {
        let before = self.before();
        change(&mut self.session);
        self.note(before.0, before.1);
    }

    fn hung_up(&mut self) {
        if let Some(listener) = &mut self.listener
            && std::mem::take(&mut listener.connected)
        {
            listener.tap.happened("hang up");
        }
    }

    /// How much there is to say and to do.
    fn before(&self) -> ([usize; 2], usize) {
        let Output { to_client, to_backend, actions, .. } = &self.session.output;
        ([to_client.len(), to_backend.len()], actions.len())
    }

    fn stepped(&mut self, [taken, forwarded]: [Flow; 2], input: &[u8], step: Step) {
        let Some(listener) = &mut self.listener else { return };
        match step {
            // A command of ours is not taken before those ahead of it are answered, but it is what
            // mailchime acts on from here.
            Step::Take(0) if taken == Flow::C && listener.early == 0 => {
                let line = memchr::memchr(b'\n', input).map_or(input.len(), |feed| feed + 1);
                listener.said(taken, &input[..line]);
                listener.early = line;
            }
            Step::Take(length) => {
                let known = if taken == Flow::C { listener.early.min(length) } else { 0 };
                listener.early -= known;
                listener.said(taken, &input[known..length]);
            }
            Step::Forward(length) => listener.said(forwarded, &input[..length]),
            Step::Wait | Step::Close(_) => {}
        }
    }

    /// Notes what has been added to the outputs.
    fn note(&mut self, [to_client, to_backend]: [usize; 2], actions: usize) {
        let Some(listener) = &mut self.listener else { return };
        let output = &self.session.output;
        listener.said(Flow::F, &output.to_backend[to_backend..]);
        for action in output.actions.iter().skip(actions) {
            match action {
                Action::Register(registration) => {
                    let names: Vec<_> = registration
                        .mailboxes
                        .iter()
                        .map(|(name, _)| name.as_str().escape_debug().to_string())
                        .collect();
                    listener.mailboxes.push_back(names.join(", "));
                }
                Action::Failed(_) => listener.connected = false,
                _ => {}
            }
        }
        listener.said(Flow::S, &output.to_client[to_client..]);
        for action in output.actions.iter().skip(actions) {
            match action {
                Action::Compress => listener.tap.happened("compress"),
                Action::Close => listener.tap.happened("close"),
                _ => {}
            }
        }
    }
}

impl Deref for Tapped {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Tapped {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Listener {
    fn said(&mut self, flow: Flow, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.tap.said(flow, bytes);
        }
    }
}
