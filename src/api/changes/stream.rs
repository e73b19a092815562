//! One stream, whatever carries it: what its client is to be sent next.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::inbox::{StreamChange, StreamInbox};
use super::open_streams::StreamPlace;
use crate::api::ApiContext;
use crate::api::caller::ByCookie;
use crate::api::live_side::LiveGuard;
use crate::model::event::{EventMessage, MailboxData, StateData};
use crate::model::{Account, Mailbox, Snapshot, Timestamp};

/// The `type` of what a stream begins and ends with.
const OPENED: &str = "stream.opened";
const ENDED: &str = "stream.ended";

/// A client's stream.
#[derive(Debug)]
pub(super) struct LiveStream {
    pub(super) context: Arc<ApiContext>,
    pub(super) account: Account,
    pub(super) inbox: Arc<StreamInbox>,
    /// The session of the web app that opened it.
    pub(super) cookie: Option<ByCookie>,
    /// Mailboxes that were asked for and cannot be read; nothing once the client knows.
    pub(super) opening: Option<Vec<Mailbox>>,
    pub(super) next_sign: Instant,
    pub(super) _place: StreamPlace,
    pub(super) _follows: LiveGuard,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum StreamStep {
    Messages(Vec<StreamMessage>),
    /// Nothing has happened for a while.
    Alive,
    /// The last message.
    End(StreamEnd, StreamMessage),
}

/// An event as it is sent.
#[derive(Debug)]
pub(super) struct StreamMessage {
    pub(super) id: Option<String>,
    pub(super) kind: &'static str,
    pub(super) json: String,
}

/// Why the server ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The server stops, and is back soon.
    Restart,
    /// The backend refuses the password or the token.
    Unauthorized,
    /// The session of the web app has ended.
    LoggedOut,
}

/// The JSON of an event; the id is left out where there is none.
#[derive(Serialize)]
struct StreamJson<'a, D> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(flatten)]
    event: EventMessage<D>,
}

#[derive(Serialize)]
struct OpenedData<'a> {
    account: &'a str,
    mailboxes: Vec<MailboxState<'a>>,
    unreadable: Vec<&'a str>,
}

#[derive(Serialize)]
struct MailboxState<'a> {
    mailbox: &'a str,
    #[serde(flatten)]
    state: StateData,
}

#[derive(Serialize)]
struct EndedData {
    reason: &'static str,
}

impl StreamEnd {
    /// For the client.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Unauthorized => "unauthorized",
            Self::LoggedOut => "logged_out",
        }
    }
}

impl LiveStream {
    /// Waits for what comes next. Cancel safe.
    pub(super) async fn next(&mut self) -> StreamStep {
        loop {
            if let Some(step) = self.ready() {
                return step;
            }
            let logged_out = async {
                match &self.cookie {
                    Some(cookie) => cookie.ended.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.inbox.woken() => {}
                () = self.context.stop.cancelled() => return ended(StreamEnd::Restart),
                () = logged_out => return ended(StreamEnd::LoggedOut),
                () = sleep_until(self.next_sign) => {
                    self.next_sign = Instant::now() + self.keepalive();
                    let lives = |by: &ByCookie| self.context.sessions.touch(&by.cookie);
                    return match self.cookie.as_ref().is_none_or(lives) {
                        true => StreamStep::Alive,
                        false => ended(StreamEnd::LoggedOut),
                    };
                }
            }
        }
    }

    /// What has come already.
    fn ready(&mut self) -> Option<StreamStep> {
        let (changes, refused) = self.inbox.take();
        let mut messages: Vec<_> = changes.iter().map(|change| self.changed(change)).collect();
        if let Some(unreadable) = self.opening.take() {
            messages.push(self.opened(&unreadable));
        }
        match messages.is_empty() {
            false => Some(StreamStep::Messages(messages)),
            true => refused.then(|| ended(StreamEnd::Unauthorized)),
        }
    }

    /// Between two signs of life.
    fn keepalive(&self) -> Duration {
        self.context.streams.limits().keepalive
    }

    fn changed(&self, change: &StreamChange) -> StreamMessage {
        let StreamChange { mailbox, kind, state, id } = change;
        let at = Timestamp::now();
        let event: EventMessage<MailboxData<'_>> =
            EventMessage::changed(&self.account, mailbox, (*kind, *state), at);
        message(id.clone(), event)
    }

    fn opened(&self, unreadable: &[Mailbox]) -> StreamMessage {
        let (states, id) = self.inbox.told();
        let mailboxes = states.iter().map(|(mailbox, state): &(Mailbox, Snapshot)| MailboxState {
            mailbox: mailbox.as_str(),
            state: (*state).into(),
        });
        let data = OpenedData {
            account: self.account.as_str(),
            mailboxes: mailboxes.collect(),
            unreadable: unreadable.iter().map(Mailbox::as_str).collect(),
        };
        message(Some(id), EventMessage::new(OPENED, data, Timestamp::now()))
    }
}

fn ended(end: StreamEnd) -> StreamStep {
    let data = EndedData { reason: end.reason() };
    let event = EventMessage::new(ENDED, data, Timestamp::now());
    StreamStep::End(end, message(None, event))
}

fn message<D: Serialize>(id: Option<String>, event: EventMessage<D>) -> StreamMessage {
    let kind = event.kind;
    // Names and numbers can always be written.
    let json = serde_json::to_string(&StreamJson { id: id.as_deref(), event }).unwrap_or_default();
    StreamMessage { id, kind, json }
}
