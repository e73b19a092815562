//! The pure core with memory in place of sockets.

use std::path::Path;

use mailchime::demo::dialogue::{Deed, Dialogue, Event, Peer, Text, Variables, What};
use mailchime::imap::contract::{Action, BackendTraits, ClientConnection, Profile, Step};
use mailchime::imap::registration::xapple::CheckedRegistration;
use mailchime::imap::session::Session;
use mailchime::model::RegistrationResult;

/// A session, and the bytes on their way around it.
pub(crate) struct Core {
    pub(crate) session: Session,
    from_client: Vec<u8>,
    from_backend: Vec<u8>,
    pub(crate) to_client: Vec<u8>,
    pub(crate) to_backend: Vec<u8>,
    backend_ended: bool,
    pub(crate) closed: bool,
    wants_backend: bool,
    reached: BackendTraits,
    registration: Option<CheckedRegistration>,
    /// The form of the client's connection is to change: to this.
    switch: Option<Deed>,
}

impl Core {
    pub(crate) fn new(profile: std::sync::Arc<Profile>, secure: bool) -> Self {
        let mut core = Self {
            session: Session::new(
                profile,
                ClientConnection { secure, tag_prefix: "mcRANDOMx".into(), id_fields: Vec::new() },
            ),
            from_client: Vec::new(),
            from_backend: Vec::new(),
            to_client: Vec::new(),
            to_backend: Vec::new(),
            backend_ended: false,
            closed: false,
            wants_backend: false,
            reached: BackendTraits::default(),
            registration: None,
            switch: None,
        };
        core.pump();
        core
    }

    pub(crate) fn says(&mut self, peer: Peer, bytes: &[u8]) {
        match peer {
            Peer::Client => self.from_client.extend_from_slice(bytes),
            Peer::Backend => self.from_backend.extend_from_slice(bytes),
        }
        self.pump();
    }

    /// Carries bytes as a driver of sockets does, until nothing moves.
    pub(crate) fn pump(&mut self) {
        loop {
            self.outputs();
            let mut moved = false;
            match self.session.client(&self.from_client, false) {
                Step::Wait => {}
                Step::Forward(length) => {
                    moved = true;
                    self.to_backend.extend(self.from_client.drain(..length));
                }
                Step::Take(length) => {
                    moved = length > 0 || !self.session.output.to_backend.is_empty();
                    self.from_client.drain(..length);
                }
                Step::Close(_) => self.closed = true,
            }
            self.outputs();
            match self.session.backend(&self.from_backend, self.backend_ended) {
                Step::Wait => {}
                Step::Forward(length) => {
                    moved |= length > 0;
                    self.to_client.extend(self.from_backend.drain(..length));
                }
                Step::Take(length) => {
                    moved |= length > 0 || !self.session.output.to_client.is_empty();
                    self.from_backend.drain(..length);
                }
                Step::Close(_) => self.closed = true,
            }
            self.outputs();
            if !moved || self.closed {
                return;
            }
        }
    }

    fn outputs(&mut self) {
        let output = &mut self.session.output;
        self.to_client.append(&mut output.to_client);
        self.to_backend.append(&mut output.to_backend);
        let actions = std::mem::take(&mut output.actions);
        for action in actions {
            match action {
                Action::Failed(_) => {
                    self.from_backend.clear();
                    self.session.release();
                    self.outputs();
                }
                Action::Admit(_) => {
                    self.session.admitted();
                    self.outputs();
                }
                Action::StartTls => self.switch = Some(Deed::Handshake),
                Action::Compress => self.switch = Some(Deed::Compress),
                Action::Connect(_) => self.wants_backend = true,
                Action::Register(registration) => self.registration = Some(registration),
                Action::Close => self.closed = true,
                Action::LoggedIn(..) | Action::Seen(_) => {}
            }
        }
    }

    /// The backend closes its connection.
    pub(crate) fn hang_up(&mut self) {
        self.backend_ended = true;
        self.pump();
    }

    pub(crate) fn connect(&mut self) {
        assert!(std::mem::take(&mut self.wants_backend), "no connection was asked for");
        self.session.connected(self.reached);
        self.pump();
    }
}

pub(crate) fn play(path: &Path, dialogue: &Dialogue, byte_by_byte: bool) {
    let settings = &dialogue.settings;
    let mut core = Core::new(super::dialogues::profile_for(settings), !settings.starttls);
    (core.reached.send_id, core.reached.checks_token_name) =
        (settings.send_id, settings.checks_token_name);
    core.reached.names_ignore_case = settings.names_ignore_case;
    let mut variables = Variables::of(settings);
    for Event { line, what } in &dialogue.events {
        let place = format!("{}:{line}", path.display());
        match what {
            What::Says(peer, text) => {
                let bytes = text.filled(&mut variables);
                let piece = if byte_by_byte { 1 } else { bytes.len().max(1) };
                for piece in bytes.chunks(piece) {
                    core.says(*peer, piece);
                }
            }
            What::Hears(peer, text) => {
                let heard = match peer {
                    Peer::Client => &mut core.to_client,
                    Peer::Backend => &mut core.to_backend,
                };
                for line in text.lines() {
                    compare(&line, heard, &mut variables, path);
                }
            }
            What::Does(what) => does(&mut core, what, &place),
        }
    }
    assert_eq!(core.to_client.escape_ascii().to_string(), "", "{}: left over", path.display());
    assert_eq!(core.to_backend.escape_ascii().to_string(), "", "{}: left over", path.display());
}

fn compare(line: &Text, heard: &mut Vec<u8>, variables: &mut Variables, path: &Path) {
    let length = line.length(variables).unwrap_or_else(|| {
        heard.iter().position(|b| *b == b'\n').map_or(heard.len(), |feed| feed + 1)
    });
    let length = length.min(heard.len());
    let line_heard: Vec<u8> = heard.drain(..length).collect();
    if let Err(difference) = line.compare(&line_heard, variables) {
        panic!("{}:{}:\n{difference}", path.display(), difference.line);
    }
}

fn does(core: &mut Core, what: &Deed, place: &str) {
    match what {
        Deed::Connect => {
            assert!(core.wants_backend, "{place}: no connection was asked for");
            core.connect();
        }
        Deed::Unreachable => {
            assert!(std::mem::take(&mut core.wants_backend), "{place}: nothing was tried");
            assert!(core.session.unavailable("unreachable"));
            core.pump();
        }
        Deed::HangUp => {
            core.backend_ended = true;
            if core.session.unavailable("it hung up") {
                core.backend_ended = false;
            }
            core.closed |= core.session.is_relaying();
            core.pump();
        }
        Deed::Store(mailboxes) => {
            let registration = core.registration.take();
            let registration = registration.unwrap_or_else(|| panic!("{place}: nothing to store"));
            let stored: Vec<_> =
                registration.mailboxes.iter().map(|(mailbox, _)| mailbox.to_string()).collect();
            assert_eq!(&stored, mailboxes, "{place}");
            let route = mailchime::demo::replay::TOPIC.into();
            core.session.registered(RegistrationResult::Stored { route });
            core.pump();
        }
        Deed::CannotStore => {
            assert!(core.registration.take().is_some(), "{place}: nothing to store");
            core.session.registered(RegistrationResult::Unavailable);
            core.pump();
        }
        Deed::Overdue => {
            assert!(core.session.awaited().is_some(), "{place}: nothing is waited for");
            core.session.overdue();
            core.pump();
        }
        Deed::Handshake => {
            assert_eq!(core.switch.take().as_ref(), Some(what), "{place}");
            core.session.secured();
            core.pump();
        }
        // The core never sees bytes in another form.
        Deed::Compress => assert_eq!(core.switch.take().as_ref(), Some(what), "{place}"),
        Deed::Close => assert!(core.closed, "{place}: still open"),
    }
}
