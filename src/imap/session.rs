//! One client's session as a state machine: greeting, login dialogue, backend login, relay.
//!
//! ```text
//!   Command ──credentials──▶ Connect ──▶ Backend ──accepted──▶ Relay ──▶ Closed
//!     ▲  │ STARTTLS             │         │   ▲ │
//!     │  ▼                      │         │   └─▼─ Challenge (the client answers)
//!     │ Handshake               ▼         ▼
//!     └──────────────────── Refused (for a while), then NO
//! ```
//!
//! What its caller has to do is said in [`contract`](super::contract).

use std::sync::Arc;

use super::capability::Capabilities;
use super::contract::{
    Action, Authenticated, Awaited, BackendTraits, ClientConnection, LoginFailure, NOT_TAKEN,
    Output, Profile, ProvenIdentity, Step, UNAVAILABLE, tagged,
};
use super::login::{BackendLogin, LoginAttempt, LoginOptions, LoginOutcome, edited};
use super::not_authenticated::{LoginState, NotAuthenticated};
use super::peek::{Status, Verb};
use super::relay::Relay;
use crate::model::{Account, Mailbox, RegistrationResult};

/// One client's session.
#[derive(Debug)]
pub struct Session {
    profile: Arc<Profile>,
    state: SessionState,
    /// What is to be sent and done.
    pub output: Output,
}

#[derive(Debug)]
enum SessionState {
    NotAuthenticated(Box<NotAuthenticated>),
    Relay(Box<Relay>),
    Closed,
}
impl Session {
    /// A session whose greeting is in the output already.
    pub fn new(profile: Arc<Profile>, connection: ClientConnection) -> Self {
        let mut output = Output::default();
        let capabilities = profile.list_before_login(connection.secure);
        let greeting = format!("* OK [CAPABILITY {capabilities}] mailchime ready\r\n");
        output.to_client.extend_from_slice(greeting.as_bytes());
        let dialogue = NotAuthenticated::new(connection, profile.command_size);
        Self { profile, state: SessionState::NotAuthenticated(Box::new(dialogue)), output }
    }

    /// What to do with the client's bytes. `last` means that no more will follow.
    pub fn client(&mut self, input: &[u8], last: bool) -> Step {
        match &mut self.state {
            SessionState::NotAuthenticated(dialogue) => {
                let step = dialogue.client(input, &self.profile, &mut self.output);
                if matches!(self.output.actions.back(), Some(Action::Close)) {
                    self.state = SessionState::Closed;
                }
                step
            }
            SessionState::Relay(relay) => relay.client(input, last, &mut self.output),
            SessionState::Closed => Step::Take(input.len()),
        }
    }

    /// What to do with the backend's bytes. `last` means that no more will follow.
    pub fn backend(&mut self, input: &[u8], last: bool) -> Step {
        match &mut self.state {
            SessionState::NotAuthenticated(dialogue) => {
                let LoginState::Backend { login, .. } = &mut dialogue.state else {
                    // Nothing was asked: what is said now waits, and an end ends it.
                    return Step::Wait;
                };
                let (used, outcome) = login.step(input, &mut self.output.to_backend);
                match outcome {
                    // Nobody is there to answer.
                    Some(LoginOutcome::Challenge(_)) if dialogue.abandoned => {
                        login.acknowledge(&mut self.output.to_backend);
                    }
                    Some(outcome) => self.decided(outcome),
                    None if used == 0 => return Step::Wait,
                    None => {}
                }
                Step::Take(used)
            }
            SessionState::Relay(relay) => relay.backend(input, last, &mut self.output),
            SessionState::Closed => Step::Take(input.len()),
        }
    }

    /// The client's connection has TLS now (RFC 9051 section 6.2.1): what was known before does not
    /// count.
    pub fn secured(&mut self) {
        if let SessionState::NotAuthenticated(dialogue) = &mut self.state {
            dialogue.secured();
        }
    }

    /// The connection that [`Action::Connect`] asked for is open.
    pub fn connected(&mut self, reached: BackendTraits) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        // What was for a backend of before, and did not get there, is nothing to this one.
        self.output.to_backend.clear();
        let BackendTraits { greeted, send_id, .. } = reached;
        let id = send_id.then(|| dialogue.id());
        dialogue.reached = reached;
        dialogue.state = match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Connect { tag, attempt } => {
                let limit = self.profile.capability_size;
                let options = LoginOptions { greeted, id, limit };
                let mut login = Box::new(BackendLogin::new(attempt, options));
                login.start(&mut self.output.to_backend);
                LoginState::Backend { tag, login }
            }
            other => other,
        };
    }

    /// The backend cannot be reached, or its connection ended, for the reason given. During the login
    /// dialogue the client gets an answer and may try again; returns whether it was so.
    pub fn unavailable(&mut self, why: impl Into<String>) -> bool {
        let why = why.into();
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return false };
        match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Backend { tag, mut login } | LoginState::Challenge { tag, mut login } => {
                let outcome = login.unanswered(why);
                dialogue.state = LoginState::Backend { tag, login };
                self.decided(outcome);
                true
            }
            other => {
                dialogue.state = other;
                self.failed(UNAVAILABLE, LoginFailure::Unavailable(why))
            }
        }
    }

    /// The login is not tried, or its user is not let in, for this reason: too many connections,
    /// sessions or failures. `answer` begins with NO.
    pub fn turned_away(&mut self, answer: &str) -> bool {
        self.failed(answer, LoginFailure::TurnedAway)
    }

    fn failed(&mut self, answer: &str, failure: LoginFailure) -> bool {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return false };
        match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Connect { tag, .. }
            | LoginState::Backend { tag, .. }
            | LoginState::Challenge { tag, .. }
            | LoginState::Accepted { tag, .. } => {
                let mut line = Vec::new();
                tagged(&mut line, &tag, answer);
                dialogue.state = LoginState::Refused(line);
                self.output.answered.push((Verb::Login, Status::No));
                self.output.actions.push_back(Action::Failed(failure));
                true
            }
            other => {
                dialogue.state = other;
                false
            }
        }
    }

    /// No backend is asked about these credentials: they are refused as if one had refused them.
    pub fn refused(&mut self) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Connect { tag, attempt, .. } => {
                let account = match attempt {
                    LoginAttempt::Credentials { credentials, .. } => Some(credentials.account()),
                    LoginAttempt::Relayed { .. } => None,
                };
                dialogue.refuse_credentials(&tag, account, &mut self.output);
            }
            other => dialogue.state = other,
        }
    }

    /// Whether the login that waits for a connection is one that a backend may take which offers this.
    pub fn fits(&self, offered: &Capabilities) -> bool {
        match &self.state {
            SessionState::NotAuthenticated(dialogue) => match &dialogue.state {
                LoginState::Connect { attempt, .. } => attempt.fits(offered),
                _ => true,
            },
            _ => true,
        }
    }

    /// The client is gone, and the login that is under way is to be finished without it: what the
    /// backend asks is answered so that it decides.
    pub fn abandoned(&mut self) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        dialogue.abandoned = true;
        dialogue.state = match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Challenge { tag, mut login } => {
                login.acknowledge(&mut self.output.to_backend);
                LoginState::Backend { tag, login }
            }
            other => other,
        };
    }

    /// The time has come to say that a login failed.
    pub fn release(&mut self) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Refused(_) if dialogue.abandoned => {}
            LoginState::Refused(answer) => self.output.to_client.extend_from_slice(&answer),
            other => dialogue.state = other,
        }
    }

    /// The session ends: a login that is under way gets an answer. The backend may still decide on it.
    pub fn conclude(&mut self) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        if std::mem::replace(&mut dialogue.abandoned, true) {
            return;
        }
        let to_client = &mut self.output.to_client;
        match &dialogue.state {
            LoginState::Connect { tag, .. }
            | LoginState::Backend { tag, .. }
            | LoginState::Challenge { tag, .. }
            | LoginState::Accepted { tag, .. } => tagged(to_client, tag, UNAVAILABLE),
            LoginState::Refused(answer) => to_client.extend_from_slice(answer),
            LoginState::Command | LoginState::Handshake | LoginState::Authenticate { .. } => {}
        }
    }

    /// The session began under another profile than sessions do now. The route that is right for a
    /// registration now; `None` if there is none.
    pub fn renewed(&mut self, profile: Arc<Profile>) -> Option<&str> {
        match &mut self.state {
            SessionState::Relay(relay) => relay.renewed(profile),
            SessionState::NotAuthenticated(_) | SessionState::Closed => None,
        }
    }

    /// The registration of the first [`Action::Register`] without an answer is on disk, or cannot be.
    pub fn registered(&mut self, result: RegistrationResult) {
        if let SessionState::Relay(relay) = &mut self.state {
            relay.registered(result, &mut self.output);
        }
    }

    /// The word that holds up a client, if one does. When it has not come in time, call
    /// [`Session::overdue`].
    pub fn awaited(&self) -> Option<Awaited> {
        match &self.state {
            SessionState::Relay(relay) => relay.awaited(),
            SessionState::NotAuthenticated(dialogue) => {
                let asked = matches!(dialogue.state, LoginState::Backend { .. });
                (asked && !dialogue.abandoned).then_some(Awaited::Login)
            }
            SessionState::Closed => None,
        }
    }

    /// What [`Session::awaited`] named is not waited for any longer. A client whose login is not
    /// decided gets a NO and a BYE: the backend may still decide on it.
    pub fn overdue(&mut self) {
        let why = "it took too long";
        match &mut self.state {
            SessionState::Relay(relay) => relay.overdue(&mut self.output),
            SessionState::NotAuthenticated(dialogue) => match &dialogue.state {
                LoginState::Backend { login, .. } if login.is_refused() => {
                    self.unavailable(why);
                }
                LoginState::Backend { .. } => {
                    self.conclude();
                    let to_client = &mut self.output.to_client;
                    to_client.extend_from_slice(
                        b"* BYE [UNAVAILABLE] The mail server does not answer\r\n",
                    );
                    self.output.actions.push_back(Action::Close);
                }
                _ => {}
            },
            SessionState::Closed => {}
        }
    }

    /// The mailbox that the backend is asked for, to register a device.
    pub fn asked(&self) -> Option<&Mailbox> {
        match &self.state {
            SessionState::Relay(relay) => relay.asked(),
            SessionState::NotAuthenticated(_) | SessionState::Closed => None,
        }
    }

    /// Registrations ask the backend for none of these mailboxes: they are registered unseen.
    pub fn ask_not(&mut self, mailboxes: Vec<Mailbox>) {
        if let SessionState::Relay(relay) = &mut self.state {
            relay.ask_not(mailboxes);
        }
    }

    /// Whether a command that mailchime answers itself after the login is not answered yet.
    pub fn is_busy(&self) -> bool {
        matches!(&self.state, SessionState::Relay(relay) if relay.is_busy())
    }

    /// Whether nothing happens before the login until the client says more.
    pub fn awaits_client(&self) -> bool {
        match &self.state {
            SessionState::NotAuthenticated(dialogue) => dialogue.awaits_client(),
            SessionState::Relay(_) => false,
            SessionState::Closed => true,
        }
    }

    /// There is no memory to spare from now on, or there is: COMPRESS is refused meanwhile.
    pub fn spare(&mut self, scarce: bool) {
        if let SessionState::Relay(relay) = &mut self.state {
            relay.spare(scarce);
        }
    }

    /// Memory that is held for commands that are not whole or not answered, and for a login under way,
    /// in bytes.
    pub fn held(&self) -> usize {
        let Output { to_client, to_backend, .. } = &self.output;
        let state = match &self.state {
            SessionState::NotAuthenticated(dialogue) => dialogue.held(),
            SessionState::Relay(relay) => relay.held(),
            SessionState::Closed => 0,
        };
        state + to_client.capacity() + to_backend.capacity()
    }

    /// Gives up: what is still to be said is said, and nothing is heard any more.
    pub fn forget(&mut self) {
        self.state = SessionState::Closed;
    }

    /// Whether the user is logged in.
    pub fn is_relaying(&self) -> bool {
        matches!(self.state, SessionState::Relay(_))
    }

    /// Whether the user is logged in and is offered push.
    pub fn offers_push(&self) -> bool {
        matches!(&self.state, SessionState::Relay(relay) if relay.own().push)
    }

    /// Whether the client waits for nothing but news, and may be sent away without losing an
    /// answer.
    pub fn is_idle(&self) -> bool {
        match &self.state {
            SessionState::NotAuthenticated(dialogue) => dialogue.is_idle(),
            SessionState::Relay(relay) => relay.is_idle() && relay.at_response_boundary(),
            SessionState::Closed => true,
        }
    }

    /// Whether something may be said to the client now without breaking into a response that is
    /// on its way.
    pub fn at_response_boundary(&self) -> bool {
        match &self.state {
            SessionState::Relay(relay) => relay.at_response_boundary(),
            SessionState::NotAuthenticated(_) | SessionState::Closed => true,
        }
    }

    fn decided(&mut self, outcome: LoginOutcome) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        let LoginState::Backend { tag, login } =
            std::mem::replace(&mut dialogue.state, LoginState::Command)
        else {
            return;
        };
        let Output { to_client, actions, over, .. } = &mut self.output;
        match outcome {
            LoginOutcome::Challenge(text) => {
                to_client.extend_from_slice(b"+ ");
                to_client.extend_from_slice(&text);
                to_client.extend_from_slice(b"\r\n");
                dialogue.state = LoginState::Challenge { tag, login };
            }
            LoginOutcome::Accepted { untagged, answer, offered, .. } => {
                let proven = proven(&login, dialogue.reached, &self.profile);
                // Who claims to be somebody else takes no place of theirs.
                let whose = proven.map(|proven| proven.account).or_else(|| authenticated(&login));
                actions.push_back(Action::Seen(offered));
                actions.push_back(Action::Admit(whose));
                dialogue.state = LoginState::Accepted { tag, login, untagged, answer };
            }
            LoginOutcome::Refused { untagged, answer, refusal, offered } => {
                let failure = LoginFailure::Refused(claimed(&login), refusal);
                let line = [untagged, tag, answer].concat();
                dialogue.state = LoginState::Refused(line);
                actions.push_back(Action::Seen(offered));
                actions.push_back(Action::Failed(failure));
                self.output.answered.push((Verb::Login, Status::No));
            }
            LoginOutcome::NotOffered(offered) => {
                actions.push_back(Action::Seen(offered));
                dialogue.state = LoginState::Backend { tag, login };
                self.turned_away(NOT_TAKEN);
            }
            LoginOutcome::Unavailable(why) => {
                dialogue.state = LoginState::Backend { tag, login };
                self.failed(UNAVAILABLE, LoginFailure::Unavailable(why));
            }
            LoginOutcome::SentAway { answer, why } => {
                dialogue.state = LoginState::Backend { tag, login };
                let answer = answer.as_deref().unwrap_or(UNAVAILABLE);
                self.failed(answer, LoginFailure::Unavailable(why));
            }
            LoginOutcome::TooLong => {
                over.capability += 1;
                dialogue.state = LoginState::Backend { tag, login };
                let why = "an overlong answer to a login".to_owned();
                self.failed(UNAVAILABLE, LoginFailure::Unavailable(why));
            }
        }
    }

    /// Whom the backend has accepted is let in: the client hears of it, and is relayed from here on.
    pub fn admitted(&mut self) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        let (tag, login, untagged, answer) =
            match std::mem::replace(&mut dialogue.state, LoginState::Command) {
                LoginState::Accepted { tag, login, untagged, answer } => {
                    (tag, login, untagged, answer)
                }
                other => {
                    dialogue.state = other;
                    return;
                }
            };
        let Output { to_client, actions, answered, .. } = &mut self.output;
        let prefix = std::mem::take(&mut dialogue.connection.tag_prefix);
        let claimed = claimed(&login).map(|it| it.canonical(dialogue.reached.names_ignore_case));
        let proven = proven(&login, dialogue.reached, &self.profile);
        // Its watcher needs what the user has, or a master.
        let watchable =
            |proven: &&ProvenIdentity| self.profile.master || proven.credentials.is_some();
        let watched = proven.as_ref().filter(watchable).map(|it| it.account.clone());
        let relay = Relay::new(Arc::clone(&self.profile), watched, prefix);
        to_client.extend_from_slice(&edited(&untagged, relay.own()));
        let mut line = tag;
        line.extend_from_slice(&answer);
        to_client.extend_from_slice(&edited(&line, relay.own()));
        actions.push_back(Action::LoggedIn(Authenticated { claimed, proven }));
        answered.push((Verb::Login, Status::Ok));
        self.state = SessionState::Relay(Box::new(relay));
    }
}

/// Whose name and password were accepted, as whichever user they act.
fn authenticated(login: &BackendLogin) -> Option<Account> {
    match login.attempt() {
        LoginAttempt::Credentials { credentials, .. } => {
            Some(Account::from_login(&credentials.login))
        }
        LoginAttempt::Relayed { .. } => login.observed_name().map(Account::from_login),
    }
}

/// Whom the client claims to be.
fn claimed(login: &BackendLogin) -> Option<Account> {
    match login.attempt() {
        LoginAttempt::Credentials { credentials, .. } => Some(credentials.account()),
        LoginAttempt::Relayed { .. } => login.observed_name().map(Account::from_login),
    }
}

/// Who has logged in, where the backend's answer proves it.
fn proven(
    login: &BackendLogin,
    reached: BackendTraits,
    profile: &Profile,
) -> Option<ProvenIdentity> {
    let BackendTraits { checks_token_name, names_ignore_case, .. } = reached;
    match login.attempt() {
        LoginAttempt::Credentials { credentials, .. } => {
            credentials.prove_account(checks_token_name).then(|| ProvenIdentity {
                account: credentials.account().canonical(names_ignore_case),
                credentials: Some(credentials.clone()),
            })
        }
        // One backend has accepted the name, and it may be somebody else's at another.
        LoginAttempt::Relayed { .. } => {
            let account = Account::from_login(login.observed_name()?);
            let domain = account.domain_among(|domain| profile.routes(domain));
            let certain = domain == Ok(None);
            let account = account.canonical(names_ignore_case);
            certain.then_some(ProvenIdentity { account, credentials: None })
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::imap::capability::XAPPLEPUSHSERVICE;
    use crate::imap::contract::{DomainRoute, PushOffer, ShownCapabilities};
    use crate::imap::login::LoginKinds;

    #[test]
    fn clients_match_whole_or_by_their_beginning() {
        let clients = ["com.apple.mobilemail", "org.example.*"].map(str::to_owned).to_vec();
        let offer = PushOffer { routes: Vec::new(), clients, most_mailboxes: 1 };
        for (app, expected) in [
            ("com.apple.mobilemail", true),
            ("com.apple.mobilemail2", false),
            ("com.apple", false),
            ("org.example.mail", true),
            ("org.example", false),
            ("", false),
        ] {
            assert_eq!(offer.serves(app), expected, "{app}");
        }
    }

    fn profile() -> Profile {
        let routes = vec![DomainRoute { domain: None, route: Some("route".into()) }];
        Profile {
            backend: Some(Arc::new(Capabilities::parse(b"IMAP4rev1 AUTH=CRAM-MD5"))),
            logins_elsewhere: LoginKinds::default(),
            push: Some(PushOffer { routes, clients: Vec::new(), most_mailboxes: 1 }),
            relay_mechanisms: true,
            master: true,
            routed: vec!["b.example".into()],
            commands: 100,
            command_size: 1024,
            capability_size: 1024,
            compress: true,
            shown: ShownCapabilities::default(),
        }
    }

    /// What is said to who has logged in by CRAM-MD5 under this name.
    fn answer_by_cram_md5(profile: &Profile, name: &str) -> String {
        let (tag_prefix, id_fields) = ("mc".to_owned(), Vec::new());
        let connection = ClientConnection { secure: true, tag_prefix, id_fields };
        let mut session = Session::new(Arc::new(profile.clone()), connection);
        session.client(b"a AUTHENTICATE CRAM-MD5\r\n", false);
        assert!(matches!(session.output.actions.pop_back(), Some(Action::Connect(None))));
        session.connected(BackendTraits::default());
        session.backend(b"* OK [CAPABILITY IMAP4rev1 AUTH=CRAM-MD5] ready\r\n", false);
        session.backend(b"+ PDFAeD4=\r\n", false);
        let proof = STANDARD.encode(format!("{name} b913a602c7eda7a495b4e6e7334d3890"));
        session.client(format!("{proof}\r\n").as_bytes(), false);
        session.output.to_client.clear();
        session.backend(b"m2 OK [CAPABILITY IMAP4rev1] in\r\n", false);
        session.admitted();
        assert!(session.is_relaying());
        String::from_utf8(std::mem::take(&mut session.output.to_client)).unwrap()
    }

    /// The backend hangs up before what is for it was written.
    #[test]
    fn what_one_login_left_unsaid_goes_to_no_other_backend() {
        let (tag_prefix, id_fields) = ("mc".to_owned(), Vec::new());
        let connection = ClientConnection { secure: true, tag_prefix, id_fields };
        let mut session = Session::new(Arc::new(profile()), connection);
        for (login, expected) in
            [("a LOGIN alice one", "LOGIN alice one"), ("b LOGIN bob two", "LOGIN bob two")]
        {
            session.client(format!("{login}\r\n").as_bytes(), false);
            assert!(matches!(session.output.actions.pop_back(), Some(Action::Connect(_))));
            session.connected(BackendTraits::default());
            session.backend(b"* OK [CAPABILITY IMAP4rev1] ready\r\n", false);
            let said = String::from_utf8_lossy(&session.output.to_backend).into_owned();
            assert!(said.ends_with(&format!("{expected}\r\n")), "{said}");
            assert_eq!(said.matches("LOGIN").count(), 1, "{said}");
            session.unavailable("it hung up");
            session.output.actions.clear();
            session.release();
        }
    }

    #[test]
    fn whom_one_backend_accepts_is_not_watched_at_another() {
        let profile = profile();
        let offered =
            |profile: &Profile, name| answer_by_cram_md5(profile, name).contains(XAPPLEPUSHSERVICE);
        for (name, expected) in [
            ("tim", true),
            ("tim@a.example", true),
            ("tim@B.example", false),
            ("x@y@b.example", false),
            ("tim@b.example/x", false),
            ("tim@a.example/x", true),
        ] {
            assert_eq!(offered(&profile, name), expected, "{name}");
        }
        let stored = Profile { master: false, ..profile };
        assert!(!offered(&stored, "tim"));
    }
}
