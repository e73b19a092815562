//! IMAP with the user's own backend, through the proxy's door inside this process.
//!
//! The door is the proxy's session with everything that a mail client's has: admission, delays and log
//! lines. So a login here is one like any other.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

use super::error::ApiError;
use crate::imap::args::quote;
use crate::imap::list::listed;
use crate::imap::mailbox;
use crate::imap::peek::{self, Response, Status};
use crate::imap::refusal::Refusal;
use crate::imap::registration::xapple::is_unreadable_for_now;
use crate::imap::responses::{Responses, has_code};
use crate::imap::sasl::{self, Mechanism};
use crate::imap::status::mailbox_status;
use crate::model::{AcceptedLogin, Account, Credentials, Mailbox, SecretKind, Snapshot};
use crate::net::door::{DoorSession, SessionDoor};
use crate::net::proxy_protocol::Addresses;

/// Most mailboxes that are listed.
const MAILBOXES: usize = 5_000;

/// What STATUS is asked for.
const ITEMS: &[u8] = b"(MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";
const ITEMS_MOD_SEQ: &[u8] = b"(MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)";

/// Bytes of their names.
const NAMES: usize = 1024 * 1024;

/// Bytes of one response that are kept.
const RESPONSE: usize = 16 * 1024;

/// For the session to hear which account the backend has accepted, once it said OK.
const PROOF: Duration = Duration::from_secs(5);

/// A user's session, logged in.
pub(super) struct MailClient {
    imap: ImapExchange,
    pub(super) account: Account,
    pub(super) login: AcceptedLogin,
}

/// A mailbox that the user has.
pub(super) struct ListedMailbox {
    pub(super) mailbox: Mailbox,
    /// What it is for (RFC 6154), as one word in lower case.
    pub(super) role: Option<&'static str>,
}

/// A dialogue with an IMAP server.
struct ImapExchange {
    stream: DuplexStream,
    input: Responses,
    commands: u32,
    /// For the whole answer to a command.
    answer_timeout: Duration,
}

/// Special uses of mailboxes, and their attributes.
const ROLES: [(&str, &str); 7] = [
    ("\\All", "all"),
    ("\\Archive", "archive"),
    ("\\Drafts", "drafts"),
    ("\\Flagged", "flagged"),
    ("\\Junk", "junk"),
    ("\\Sent", "sent"),
    ("\\Trash", "trash"),
];

/// A session of the user whom these credentials prove, at the backend behind `door`.
pub(super) async fn log_in(
    door: &dyn SessionDoor,
    addresses: Addresses,
    credentials: &Credentials,
    answer_timeout: Duration,
) -> Result<MailClient, ApiError> {
    let DoorSession { stream, login } = door.open(addresses);
    let input = Responses::new(Vec::new(), RESPONSE);
    let mut imap = ImapExchange { stream, input, commands: 0, answer_timeout };
    // How long it may take is the proxy's matter.
    let refusal = imap.authenticate(credentials).await.map_err(|_| hung_up())?;
    if let Some(refusal) = refusal {
        return Err(refused(&refusal));
    }
    let Ok(Ok((account, login))) = timeout(PROOF, login).await else {
        return Err(ApiError::forbidden(
            "not_proven",
            "The mail server accepts this login, and does not prove whose it is: it does not check \
                 the name beside an access token. Use a password, or ask your administrator.",
        ));
    };
    Ok(MailClient { imap, account, login })
}

fn hung_up() -> ApiError {
    ApiError::unavailable("The mail server cannot be asked now. Try again later.")
}

/// The answer for a tagged NO or BAD to a login, or for a BYE in place of it or of the greeting.
fn refused(answer: &[u8]) -> ApiError {
    if has_code(answer, "LIMIT") {
        return ApiError::too_many("There were too many logins. Try again later.");
    }
    let refusal = match answer.starts_with(b"* ") {
        // Most of what is said so is about no login: it took too long, or the program stops.
        true => Refusal::without_a_tag(answer).unwrap_or(Refusal::Temporary),
        false => Refusal::of(answer),
    };
    match refusal {
        Refusal::Wrong | Refusal::Unexplained => {
            ApiError::unauthorized("The mail server refuses this name and password.")
        }
        Refusal::Barred => ApiError::forbidden(
            "barred",
            "The mail server refuses this account, and not for its name or password. Ask your \
             administrator.",
        ),
        Refusal::Temporary => hung_up(),
    }
}

impl MailClient {
    /// The mailboxes that the user has and may open, INBOX first.
    pub(super) async fn mailboxes(&mut self) -> Result<Vec<ListedMailbox>, ApiError> {
        let (mut found, mut left) = (Vec::new(), NAMES);
        let add = |response: &[u8]| {
            let Some(listed) = listed(response) else { return };
            let unusable = ["\\Noselect", "\\NonExistent"].iter().any(|it| listed.has(it));
            let Some(mailbox) = mailbox::decode(&listed.name, false) else { return };
            let length = mailbox.as_str().len();
            if !unusable && found.len() < MAILBOXES && length <= left {
                left -= length;
                let role = ROLES.iter().find(|(attribute, _)| listed.has(attribute));
                found.push(ListedMailbox { mailbox, role: role.map(|(_, role)| *role) });
            }
        };
        let refusal = self.imap.command(b"LIST \"\" \"*\"", add).await.map_err(|_| hung_up())?;
        if refusal.is_some() {
            return Err(hung_up());
        }
        found.sort_by(|a, b| {
            let inbox = |it: &ListedMailbox| !it.mailbox.is_inbox();
            inbox(a).cmp(&inbox(b)).then_with(|| a.mailbox.cmp(&b.mailbox))
        });
        found.dedup_by(|a, b| a.mailbox == b.mailbox);
        Ok(found)
    }

    /// Which of these the user may read, each with its state, and which not. INBOX always is readable; what
    /// the backend does not refuse for good is, in an unknown state. So are those for which it does not answer in
    /// time, and those behind them, for which it is not asked. `with_mod_seq` says of which the backend has told
    /// HIGHESTMODSEQ before (RFC 7162 section 3.1.7).
    pub(super) async fn check(
        &mut self,
        mailboxes: Vec<Mailbox>,
        with_mod_seq: impl Fn(&Mailbox) -> bool,
    ) -> Result<(Vec<(Mailbox, Snapshot)>, Vec<Mailbox>), ApiError> {
        let (mut readable, mut unreadable, mut answers) = (Vec::new(), Vec::new(), true);
        for mailbox in mailboxes {
            if !answers {
                readable.push((mailbox, Snapshot::default()));
                continue;
            }
            let name = mailbox::encode(&mailbox);
            let Some(quoted) = quote(name.as_bytes()) else {
                unreadable.push(mailbox);
                continue;
            };
            let mut asked = match with_mod_seq(&mailbox) {
                true => self.status(&quoted, ITEMS_MOD_SEQ).await,
                false => self.status(&quoted, ITEMS).await,
            };
            // It may know that item no longer.
            if with_mod_seq(&mailbox) && matches!(asked, Ok((Some(_), _))) {
                asked = self.status(&quoted, ITEMS).await;
            }
            match asked {
                Ok((Some(refusal), _))
                    if !mailbox.is_inbox() && !is_unreadable_for_now(&refusal) =>
                {
                    unreadable.push(mailbox);
                }
                Ok((_, state)) => readable.push((mailbox, state)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    answers = false;
                    readable.push((mailbox, Snapshot::default()));
                }
                Err(_) => return Err(hung_up()),
            }
        }
        Ok((readable, unreadable))
    }

    /// What STATUS says of these items, or how it is refused.
    async fn status(
        &mut self,
        quoted: &[u8],
        items: &[u8],
    ) -> io::Result<(Option<Vec<u8>>, Snapshot)> {
        let mut state = None;
        let read = |response: &[u8]| {
            let told = mailbox_status(response);
            state = told.map(|(_, snapshot)| snapshot).or(state);
        };
        let command = [b"STATUS ", quoted, b" ", items].concat();
        let refusal = self.imap.command(&command, read).await?;
        Ok((refusal, state.unwrap_or_default()))
    }
}

impl ImapExchange {
    /// Logs in. Some: the words of the refusal.
    async fn authenticate(&mut self, credentials: &Credentials) -> io::Result<Option<Vec<u8>>> {
        let mechanism = match credentials.kind {
            SecretKind::Password => Mechanism::Plain,
            SecretKind::Bearer => Mechanism::OAuthBearer,
        };
        if let Some(bye) = self.greeting().await? {
            return Ok(Some(bye));
        }
        let message = sasl::messages(mechanism, credentials).concat();
        let command = format!("AUTHENTICATE {} {message}", mechanism.name());
        self.say(command.as_bytes()).await?;
        loop {
            self.response().await?;
            let said = self.input.current();
            match peek::response(said) {
                // Why a token is refused (RFC 7628 section 3.2.3); the answer says no more.
                Some(Response::Continuation) => self.stream.write_all(b"AQ==\r\n").await?,
                Some(Response::Status { tag: Some(_), status: Status::Ok, .. }) => return Ok(None),
                Some(Response::Status { tag: Some(_), .. })
                | Some(Response::Status { status: Status::Bye, .. }) => {
                    return Ok(Some(said.to_vec()));
                }
                _ => {}
            }
        }
    }

    /// Reads the greeting. Some: it is a BYE.
    async fn greeting(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.response().await?;
        let said = self.input.current();
        let bye =
            matches!(peek::response(said), Some(Response::Status { status: Status::Bye, .. }));
        Ok(bye.then(|| said.to_vec()))
    }

    /// Sends a command and gives each untagged response until its answer to `untagged`. Some: the words of
    /// the refusal.
    async fn command(
        &mut self,
        command: &[u8],
        untagged: impl FnMut(&[u8]),
    ) -> io::Result<Option<Vec<u8>>> {
        let limit = self.answer_timeout;
        timeout(limit, self.answer(command, untagged)).await?
    }

    async fn answer(
        &mut self,
        command: &[u8],
        mut untagged: impl FnMut(&[u8]),
    ) -> io::Result<Option<Vec<u8>>> {
        self.say(command).await?;
        loop {
            self.response().await?;
            let said = self.input.current();
            match peek::response(said) {
                Some(Response::Status { tag: Some(_), status, .. }) => {
                    return Ok((status != Status::Ok).then(|| said.to_vec()));
                }
                Some(Response::Status { status: Status::Bye, .. }) => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                _ => untagged(said),
            }
        }
    }

    /// Sends a command; no other one is under way.
    async fn say(&mut self, command: &[u8]) -> io::Result<()> {
        self.commands += 1;
        let tag = format!("a{} ", self.commands);
        self.stream.write_all(&[tag.as_bytes(), command, b"\r\n"].concat()).await
    }

    /// Goes to the next response.
    async fn response(&mut self) -> io::Result<()> {
        while !self.input.advance() {
            if self.stream.read_buf(self.input.more()).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use hyper::StatusCode;
    use tokio::sync::oneshot;

    use super::*;
    use crate::model::{BackendId, Timestamp};

    /// Says these one after the other: the greeting, and one after each command, and hangs up where there is
    /// none.
    fn scripted(said: &[&'static str]) -> DuplexStream {
        let (stream, mut peer) = tokio::io::duplex(1024);
        let said = said.to_vec();
        tokio::spawn(async move {
            let mut command = [0; 1024];
            for text in said {
                peer.write_all(text.as_bytes()).await.unwrap();
                let _ = peer.read(&mut command).await;
            }
        });
        stream
    }

    /// A session that says this: the greeting, and what comes after a command. Nobody is proved.
    #[derive(Debug)]
    struct ScriptedDoor(&'static str, &'static str);

    impl SessionDoor for ScriptedDoor {
        fn open(&self, _addresses: Addresses) -> DoorSession {
            let (_proof, login) = oneshot::channel();
            let said = [self.0, self.1].into_iter().filter(|text| !text.is_empty());
            DoorSession { stream: scripted(&said.collect::<Vec<_>>()), login }
        }
    }

    /// The states that are known of these mailboxes, where the backend says this.
    async fn checked(mailboxes: &[&str], said: &[&'static str]) -> Result<Vec<Option<u64>>, u16> {
        let (input, answer_timeout) =
            (Responses::new(Vec::new(), RESPONSE), Duration::from_secs(30));
        let backend = BackendId::new(None, "localhost", 993);
        let at = Timestamp(0);
        let mut mail = MailClient {
            imap: ImapExchange { stream: scripted(said), input, commands: 0, answer_timeout },
            account: Account::from_login("alice"),
            login: AcceptedLogin { backend, credentials: None, at, names_ignore_case: false },
        };
        let mailboxes = mailboxes.iter().map(|name| Mailbox::new(name)).collect();
        let (readable, unreadable) = mail
            .check(mailboxes, |_| false)
            .await
            .map_err(|error| error.into_response().status().as_u16())?;
        assert!(unreadable.is_empty());
        Ok(readable.into_iter().map(|(_, state)| state.messages).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn a_mailbox_that_the_backend_is_slow_about_is_readable_in_an_unknown_state() {
        const FIRST: &str = "* STATUS a (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 3 UNSEEN 0)\r\na1 OK\r\n";
        let states = checked(&["a", "slow", "b"], &["", FIRST, "", "a3 OK\r\n"]).await;
        assert_eq!(states, Ok(vec![Some(1), None, None]));
        assert_eq!(checked(&["a", "b"], &["", FIRST]).await, Err(503), "it has hung up");
    }

    #[tokio::test]
    async fn a_login_that_gets_no_ok_is_answered_by_what_is_said() {
        const READY: &str = "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready\r\n";
        for (greeting, answer, expected) in [
            ("* BYE [LIMIT] Too many connections\r\n", "", StatusCode::TOO_MANY_REQUESTS),
            ("* BYE [UNAVAILABLE] Too many\r\n", "", StatusCode::SERVICE_UNAVAILABLE),
            ("* BYE The server is shutting down\r\n", "", StatusCode::SERVICE_UNAVAILABLE),
            ("", "", StatusCode::SERVICE_UNAVAILABLE),
            (READY, "", StatusCode::SERVICE_UNAVAILABLE),
            (READY, "* BYE The server is shutting down\r\n", StatusCode::SERVICE_UNAVAILABLE),
            (READY, "* BYE No login in time\r\n", StatusCode::SERVICE_UNAVAILABLE),
            (READY, "* BYE [LIMIT] Come later\r\n", StatusCode::TOO_MANY_REQUESTS),
            (READY, "* BYE [AUTHENTICATIONFAILED] no\r\n", StatusCode::UNAUTHORIZED),
            (READY, "a1 NO [UNAVAILABLE] later\r\n", StatusCode::SERVICE_UNAVAILABLE),
            (READY, "a1 NO [NOPERM] not by IMAP\r\n", StatusCode::FORBIDDEN),
            (READY, "a1 NO no\r\n", StatusCode::UNAUTHORIZED),
            (READY, "a1 OK and nobody is proved\r\n", StatusCode::FORBIDDEN),
        ] {
            let door = ScriptedDoor(greeting, answer);
            let here = "127.0.0.1:1".parse().unwrap();
            let addresses = Addresses { source: here, destination: here };
            let alice = Credentials::password("alice", b"secret".to_vec());
            let opened = log_in(&door, addresses, &alice, Duration::from_secs(60)).await;
            let refused = opened.err().expect("a refusal");
            assert_eq!(refused.into_response().status(), expected, "{greeting}{answer}");
        }
    }
}
