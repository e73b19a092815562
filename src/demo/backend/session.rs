//! One client's session: reads commands, checks that they may be given now, answers them.
//!
//! ```text
//!   not authenticated --LOGIN, AUTHENTICATE--> authenticated <--SELECT, CLOSE--> selected
//! ```
//! `account` is none, `account` is some, `selected` is some (RFC 3501 section 3).

use std::io;
use std::num::NonZeroU32;

use imap_codec::decode::Decoder;
use imap_codec::imap_types::command::{Command, CommandBody};
use imap_codec::imap_types::core::{IString, NString, Tag, Text, Vec1};
use imap_codec::imap_types::fetch::MessageDataItem;
use imap_codec::imap_types::flag::{Flag, FlagFetch};
use imap_codec::imap_types::mailbox::Mailbox as WireMailbox;
use imap_codec::imap_types::response::{
    Bye, Capability, Code, CodeOther, Data, Response, Status, StatusBody, StatusKind, Tagged,
};
use imap_codec::{CommandCodec, IdleDoneCodec};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::state::{DemoAccount, DemoMailbox, News, Selected};
use super::wire::{Input, Wire, WireLimits};
use super::{Shared, StateGuard};

pub(super) struct DemoSession<'a, S> {
    pub(super) shared: &'a Shared,
    pub(super) wire: Wire<S>,
    pub(super) account: Option<String>,
    pub(super) selected: Option<Selected>,
    farewells: watch::Receiver<u64>,
}

/// How a command ends: the tagged response without its tag.
#[derive(Debug)]
pub(super) struct TaggedResponse {
    pub(super) kind: StatusKind,
    pub(super) code: Option<Code<'static>>,
    pub(super) text: &'static str,
}

/// Why a session ends that its client did not end.
#[derive(Debug)]
pub(super) enum Gone {
    /// The mailbox that it has selected was deleted or renamed.
    Mailbox,
    /// See [`super::DemoBackend::say_bye`].
    Server,
}

/// What a session that is not logged in may send as one command.
const STRANGER: usize = 64 * 1024;
/// What one command may be otherwise; an APPEND of a message of 16 MiB fits.
const COMMAND: usize = 16 * 1024 * 1024 + 64 * 1024;

/// Serves one connection until it ends.
pub(super) async fn run<S>(stream: S, shared: &Shared) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let farewells = shared.farewells.subscribe();
    let wire = Wire::new(stream);
    DemoSession { shared, wire, account: None, selected: None, farewells }.serve().await
}

impl<S: AsyncRead + AsyncWrite + Unpin> DemoSession<'_, S> {
    async fn serve(mut self) -> io::Result<()> {
        let listed = self.shared.behaviour().list_in_greeting;
        let code = listed.then(|| self.capabilities()).flatten().map(Code::Capability);
        self.untagged(StatusKind::Ok, code, "mailchime demo server ready");
        loop {
            // Whole, so that a farewell is not in the middle of it.
            self.wire.flush().await?;
            let limits = self.limits();
            let input = tokio::select! {
                input = self.wire.command(limits) => input?,
                _ = self.farewells.changed() => return self.end(Gone::Server).await,
            };
            let line = match input {
                Input::Command(command) => command,
                Input::Refused(line) => {
                    self.tagged(
                        &tag_of(&line),
                        TaggedResponse::no(Some("TOOBIG"), "literal too long"),
                    );
                    continue;
                }
                Input::Overflow => {
                    self.bye("line or literal not acceptable");
                    return self.wire.close().await;
                }
                Input::Closed => return self.wire.close().await,
            };
            self.shared.count(&verb_of(&line), |c| &mut c.commands);
            let (tag, answer) = match CommandCodec::default().decode(&line) {
                Ok(([], Command { tag, body: CommandBody::Logout })) => {
                    self.bye("logging out");
                    self.tagged(&Some(tag), TaggedResponse::ok("LOGOUT completed"));
                    return self.wire.close().await;
                }
                Ok(([], Command { tag, body })) => (Some(tag), self.execute(body).await?),
                _ => {
                    (tag_of(&line), Ok(TaggedResponse::bad("command unknown or arguments invalid")))
                }
            };
            match answer {
                Ok(answer) => self.tagged(&tag, answer),
                Err(gone) => return self.end(gone).await,
            }
        }
    }

    async fn end(mut self, gone: Gone) -> io::Result<()> {
        self.bye(match gone {
            Gone::Mailbox => "the mailbox is gone",
            Gone::Server => "shutting down",
        });
        self.wire.close().await
    }

    /// Executes a command and writes its untagged responses.
    async fn execute(&mut self, body: CommandBody<'_>) -> io::Result<Result<TaggedResponse, Gone>> {
        use CommandBody::*;

        let quiet = matches!(
            body,
            Fetch { uid: false, .. } | Store { uid: false, .. } | Search { uid: false, .. }
        );
        let answer = match body {
            Capability => {
                if let Some(list) = self.capabilities() {
                    self.wire.put(Response::Data(Data::Capability(list)));
                }
                TaggedResponse::ok("CAPABILITY completed")
            }
            Noop | Check => TaggedResponse::ok("completed"),
            Id { .. } if self.shared.can("ID") => {
                let (name, value) =
                    (IString::try_from("name"), NString::try_from("mailchime demo"));
                let parameters = name.ok().zip(value.ok()).map(|pair| vec![pair]);
                self.wire.put(Response::Data(Data::Id { parameters }));
                TaggedResponse::ok("ID completed")
            }
            Login { .. } | Authenticate { .. } if self.account.is_some() => {
                TaggedResponse::bad("already logged in")
            }
            Login { .. } if self.shared.can("LOGINDISABLED") => {
                TaggedResponse::no(Some("PRIVACYREQUIRED"), "LOGIN is disabled")
            }
            Login { username, password } => {
                self.log_in(username.as_ref(), password.declassify().as_ref())
            }
            Authenticate { mechanism, initial_response } => {
                let initial = initial_response.map(|ir| ir.declassify().to_vec());
                self.authenticate(mechanism, initial).await?
            }
            _ if self.account.is_none() => TaggedResponse::bad("log in first"),
            Enable { .. } if self.shared.can("ENABLE") => {
                self.wire.put(Response::Data(Data::Enabled { capabilities: Vec::new() }));
                TaggedResponse::ok("ENABLE completed, nothing to enable")
            }
            List { reference, mailbox_wildcard } => {
                self.list(&reference, &mailbox_wildcard, false);
                TaggedResponse::ok("LIST completed")
            }
            Lsub { reference, mailbox_wildcard } => {
                self.list(&reference, &mailbox_wildcard, true);
                TaggedResponse::ok("LSUB completed")
            }
            Select { mailbox } => self.select(&mailbox, false),
            Examine { mailbox } => self.select(&mailbox, true),
            Status { mailbox, item_names } => self.status(&mailbox, &item_names),
            Create { mailbox } => self.create(&mailbox),
            Delete { mailbox } => self.delete(&mailbox),
            Rename { from, to } => self.rename(&from, &to),
            Subscribe { mailbox } => self.with_named(&mailbox, |m| {
                m.subscribed = true;
                TaggedResponse::ok("SUBSCRIBE completed")
            }),
            Unsubscribe { mailbox } => self.with_named(&mailbox, |m| {
                m.subscribed = false;
                TaggedResponse::ok("UNSUBSCRIBE completed")
            }),
            Append { mailbox, flags, date, message } => self.append(&mailbox, flags, date, message),
            Idle if self.shared.can("IDLE") => match self.idle().await? {
                Ok(answer) => answer,
                Err(gone) => return Ok(Err(gone)),
            },
            _ if self.selected.is_none() => TaggedResponse::bad("not now, or not known here"),
            command => match self.execute_selected(command).await? {
                Ok(answer) => answer,
                Err(gone) => return Ok(Err(gone)),
            },
        };
        Ok(self.tell_news(!quiet).map(|()| answer))
    }

    /// RFC 2177. The client gets changes in the selected mailbox at once.
    async fn idle(&mut self) -> io::Result<Result<TaggedResponse, Gone>> {
        self.wire.out.extend_from_slice(b"+ idling\r\n");
        self.wire.flush().await?;
        let _idling = StateGuard::new(self.shared, |c| &mut c.idling);
        loop {
            if let Err(gone) = self.tell_news(true) {
                return Ok(Err(gone));
            }
            self.wire.flush().await?;
            let line = match &mut self.selected {
                None => self.wire.line().await?,
                Some(selected) => tokio::select! {
                    line = self.wire.line() => line?,
                    // An error says that the mailbox is gone, which the next look tells as well.
                    _ = selected.changed.changed() => continue,
                    _ = self.farewells.changed() => return Ok(Err(Gone::Server)),
                },
            };
            return Ok(Ok(match IdleDoneCodec::default().decode(&line.unwrap_or_default()) {
                Ok(([], _)) => TaggedResponse::ok("IDLE completed"),
                _ => TaggedResponse::bad("expected DONE"),
            }));
        }
    }

    /// Writes what the client has not been told of its mailbox.
    fn tell_news(&mut self, expunge: bool) -> Result<(), Gone> {
        if self.selected.is_some() {
            let news = self.with_selected(|mailbox, selected| selected.update(mailbox, expunge))?;
            news.into_iter().for_each(|news| self.put_news(news));
        }
        Ok(())
    }

    pub(super) fn put_news(&mut self, news: News) {
        let data = match news {
            News::Exists(count) => Data::Exists(count),
            News::Recent(count) => Data::Recent(count),
            News::Expunge(sequence) => match NonZeroU32::new(sequence) {
                Some(sequence) => Data::Expunge(sequence),
                None => return,
            },
            News::Flags { sequence, uid, flags, recent } => {
                let Some((sequence, uid)) = NonZeroU32::new(sequence).zip(NonZeroU32::new(uid))
                else {
                    return;
                };
                let flags = MessageDataItem::Flags(flags_with_recent(flags, recent));
                let items = Vec1::unvalidated(vec![flags, MessageDataItem::Uid(uid)]);
                Data::Fetch { seq: sequence, items }
            }
        };
        self.wire.put(Response::Data(data));
    }

    // --- Access to the state ---

    pub(super) fn with_selected<R>(
        &mut self,
        f: impl FnOnce(&mut DemoMailbox, &mut Selected) -> R,
    ) -> Result<R, Gone> {
        let (Some(login), Some(selected)) = (&self.account, &mut self.selected) else {
            return Err(Gone::Mailbox);
        };
        let mut state = self.shared.state();
        let mailbox = state.account(login).and_then(|account| account.mailbox(&selected.name));
        match mailbox {
            Some(mailbox) if mailbox.uid_validity == selected.uid_validity => {
                Ok(f(mailbox, selected))
            }
            _ => Err(Gone::Mailbox),
        }
    }

    pub(super) fn with_account<R>(&self, f: impl FnOnce(&mut DemoAccount) -> R) -> Option<R> {
        let login = self.account.as_deref()?;
        self.shared.state().account(login).map(f)
    }

    /// A mailbox of the session's own account; another user's is just not there.
    pub(super) fn with_named(
        &self,
        mailbox: &WireMailbox<'_>,
        f: impl FnOnce(&mut DemoMailbox) -> TaggedResponse,
    ) -> TaggedResponse {
        let name = name_of(mailbox);
        self.with_account(|account| match account.mailbox(&name) {
            Some(mailbox) if mailbox.denied => TaggedResponse::no(Some("NOPERM"), "not for you"),
            Some(mailbox) => f(mailbox),
            None => TaggedResponse::no(Some("NONEXISTENT"), "no such mailbox"),
        })
        .unwrap_or_else(|| TaggedResponse::no(None, "the account is gone"))
    }

    pub(super) fn read_only(&self) -> bool {
        self.selected.as_ref().is_some_and(|selected| selected.read_only)
    }

    fn limits(&self) -> WireLimits {
        let non_sync = match () {
            () if self.shared.can("LITERAL+") => usize::MAX,
            // RFC 7888 section 5.
            () if self.shared.can("LITERAL-") => 4096,
            () => 0,
        };
        WireLimits { command: if self.account.is_some() { COMMAND } else { STRANGER }, non_sync }
    }

    /// What is listed in this state: the mechanisms have no use after the login.
    pub(super) fn capabilities(&self) -> Option<Vec1<Capability<'static>>> {
        let tokens = self.shared.behaviour().capabilities;
        let list = tokens
            .into_iter()
            .filter(|token| self.account.is_none() || !token.starts_with("AUTH="))
            .filter_map(|token| Capability::try_from(token).ok());
        Vec1::try_from(list.collect::<Vec<_>>()).ok()
    }

    // --- Status responses ---

    fn tagged(&mut self, tag: &Option<Tag<'_>>, answer: TaggedResponse) {
        let TaggedResponse { kind, code, text } = answer;
        let body = StatusBody { kind, code, text: Text::unvalidated(text) };
        self.wire.put(Response::Status(match tag {
            Some(tag) => Status::Tagged(Tagged { tag: tag.clone(), body }),
            None => Status::Untagged(body),
        }));
    }

    pub(super) fn untagged(
        &mut self,
        kind: StatusKind,
        code: Option<Code<'static>>,
        text: &'static str,
    ) {
        let body = StatusBody { kind, code, text: Text::unvalidated(text) };
        self.wire.put(Response::Status(Status::Untagged(body)));
    }

    fn bye(&mut self, text: &'static str) {
        let bye = Bye { code: None, text: Text::unvalidated(text) };
        self.wire.put(Response::Status(Status::Bye(bye)));
    }
}

// === impl Answer ===

impl TaggedResponse {
    pub(super) fn ok(text: &'static str) -> Self {
        Self { kind: StatusKind::Ok, code: None, text }
    }

    pub(super) fn no(code: Option<&'static str>, text: &'static str) -> Self {
        let code = code.map(|code| Code::Other(CodeOther::unvalidated(code.as_bytes())));
        Self { kind: StatusKind::No, code, text }
    }

    pub(super) fn bad(text: &'static str) -> Self {
        Self { kind: StatusKind::Bad, code: None, text }
    }

    /// For a target that is not there, the client learns that it can make it (RFC 3501 sections
    /// 6.3.11 and 6.4.7).
    pub(super) fn or_try_create(mut self) -> Self {
        if self.code == Some(Code::Other(CodeOther::unvalidated(&b"NONEXISTENT"[..]))) {
            self.code = Some(Code::TryCreate);
        }
        self
    }
}

pub(super) fn flags_with_recent(
    flags: Vec<Flag<'static>>,
    recent: bool,
) -> Vec<FlagFetch<'static>> {
    let recent = recent.then_some(FlagFetch::Recent);
    flags.into_iter().map(FlagFetch::Flag).chain(recent).collect()
}

pub(super) fn name_of(mailbox: &WireMailbox<'_>) -> String {
    match mailbox {
        WireMailbox::Inbox => "INBOX".to_owned(),
        WireMailbox::Other(other) => String::from_utf8_lossy(other.as_ref()).into_owned(),
    }
}

/// The tag of a command that could not be decoded.
fn tag_of(line: &[u8]) -> Option<Tag<'static>> {
    let word = line.split(|byte| byte.is_ascii_whitespace()).next()?;
    Tag::try_from(word.to_vec()).ok()
}

/// The verb of a command for the counters. Never an argument: that could be a password.
fn verb_of(line: &[u8]) -> String {
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).skip(1);
    let mut word =
        || String::from_utf8_lossy(words.next().unwrap_or_default()).to_ascii_uppercase();
    let verb = word();
    if verb == "UID" { format!("UID {}", word()) } else { verb }
}
