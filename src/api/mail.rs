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

/// The answer for a tagged NO or BAD, or a BYE, to a login.
fn refused(answer: &[u8]) -> ApiError {
    if has_code(answer, "LIMIT") {
        return ApiError::too_many("There were too many logins. Try again later.");
    }
    match Refusal::of(answer) {
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
    /// the backend does not refuse for good is, in an unknown state.
    pub(super) async fn check(
        &mut self,
        mailboxes: Vec<Mailbox>,
    ) -> Result<(Vec<(Mailbox, Snapshot)>, Vec<Mailbox>), ApiError> {
        let (mut readable, mut unreadable) = (Vec::new(), Vec::new());
        for mailbox in mailboxes {
            let name = mailbox::encode(&mailbox);
            let Some(quoted) = quote(name.as_bytes()) else {
                unreadable.push(mailbox);
                continue;
            };
            let items = b" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";
            let mut state = None;
            let read = |response: &[u8]| {
                let told = mailbox_status(response);
                state = told.map(|(_, snapshot)| snapshot).or(state);
            };
            let command = [b"STATUS ", &quoted[..], items].concat();
            let refusal = self.imap.command(&command, read).await.map_err(|_| hung_up())?;
            match refusal {
                Some(refusal) if !mailbox.is_inbox() && !is_unreadable_for_now(&refusal) => {
                    unreadable.push(mailbox);
                }
                _ => readable.push((mailbox, state.unwrap_or_default())),
            }
        }
        Ok((readable, unreadable))
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
