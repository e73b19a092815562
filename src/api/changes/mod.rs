//! `GET /v1/changes`: what happens to a user's mailboxes, as it happens, by Server-Sent Events or a WebSocket.
//!
//! ```text
//!   request ──▶ login, STATUS ──▶ follow ──▶ inbox: the newest state of each mailbox ──▶ stream ──▶ SSE, WebSocket
//! ```
//!
//! Nothing of it is on disk. An event's id is the state that the client knows with it ([`position`]), so one that
//! was away and comes again with its last id hears the difference at once.

mod inbox;
mod open_streams;
mod position;
mod sse;
mod stream;
mod websocket;

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::response::Response;
use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;
use tokio::time::Instant;

pub use self::inbox::StreamInbox;
pub(super) use self::open_streams::OpenStreams;
pub use self::open_streams::StreamLimits;
use self::position::ClientPosition;
use self::stream::LiveStream;
use self::websocket::WebSocketHandshake;
use super::ApiContext;
use super::caller::{Caller, Demand, is_from_script, is_own_page};
use super::error::ApiError;
use super::subscriptions::mailbox_named;
use crate::model::{FollowRequest, Mailbox, MailboxToFollow};
use crate::net::http::ConnectionHandle;

/// Most mailboxes of a stream: an id names all of them, and a header has room for so many.
const MAILBOXES: usize = 100;

/// Where the client got to, in a request that cannot have a header of its own (a browser's WebSocket).
const LAST_EVENT_ID: &str = "last_event_id";

/// What a client asks for.
struct StreamRequest {
    mailboxes: Vec<Mailbox>,
    known: ClientPosition,
}

/// Opens a stream.
pub(super) async fn changes(
    State(context): State<Arc<ApiContext>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let to_browser = is_from_script(&parts.headers);
    let opened = open(&context, &mut parts).await;
    opened.map_err(|error| error.for_browser(to_browser))
}

async fn open(context: &Arc<ApiContext>, parts: &mut Parts) -> Result<Response, ApiError> {
    let asked = StreamRequest::of(parts, context.most_mailboxes)?;
    let handshake = WebSocketHandshake::of(parts)?;
    // A browser asks for a page of any site, with the password that it remembers, too; with WebSockets it
    // always says for which.
    let by_cookie = !parts.headers.contains_key(AUTHORIZATION);
    let demand = if handshake.is_some() && by_cookie { Demand::Origin } else { Demand::Nothing };
    is_own_page(&parts.headers, context, demand)?;
    let connection = parts.extensions.get::<ConnectionHandle>().cloned();
    let connection = connection.ok_or_else(ApiError::not_found)?;
    let mut caller = Caller::from_request_parts(parts, context).await?;
    let place = context.streams.place(&caller.account)?;
    let told = |mailbox: &Mailbox| asked.known.state_of(mailbox);
    let counts_changes =
        |mailbox: &Mailbox| told(mailbox).is_some_and(|told| told.highest_mod_seq.is_some());
    let mail = caller.mail().await?;
    let (readable, unreadable) = mail.check(asked.mailboxes, counts_changes).await?;
    if readable.is_empty() {
        let message = "You have none of these mailboxes, or may not read them.";
        return Err(ApiError::invalid("mailbox", message));
    }
    let known =
        readable.iter().map(|(mailbox, now)| (mailbox.clone(), told(mailbox).unwrap_or(*now)));
    let inbox = StreamInbox::new(known);
    let mailboxes = readable.into_iter().map(|(mailbox, now)| {
        let told = told(&mailbox);
        MailboxToFollow { mailbox, told, now }
    });
    let wanted = FollowRequest {
        account: caller.account.clone(),
        backend: caller.login().backend,
        credentials: caller.credentials.clone(),
        mailboxes: mailboxes.collect(),
    };
    let follows = context.live.follow(wanted, Arc::clone(&inbox));
    if handshake.is_none() {
        place.read_by(Arc::clone(&inbox), connection);
    }
    let stream = LiveStream {
        context: Arc::clone(context),
        account: caller.account,
        inbox,
        cookie: caller.cookie,
        opening: Some(unreadable),
        next_sign: Instant::now() + context.streams.limits().keepalive,
        _place: place,
        _follows: follows,
    };
    Ok(match handshake {
        Some(handshake) => handshake.respond(stream),
        None => sse::respond(stream),
    })
}

impl StreamRequest {
    /// `mailbox` may come several times; INBOX where it does not come. An id that is none counts for nothing.
    fn of(parts: &Parts, most: usize) -> Result<Self, ApiError> {
        let (mut mailboxes, mut id) = (Vec::new(), None);
        let query = parts.uri.query().unwrap_or_default();
        let most = most.min(MAILBOXES);
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "mailbox" => {
                    let mailbox = mailbox_named(&value).ok_or_else(|| {
                        ApiError::invalid("mailbox", "This cannot be the name of a mailbox.")
                    })?;
                    if !mailboxes.contains(&mailbox) {
                        mailboxes.push(mailbox);
                    }
                    if mailboxes.len() > most {
                        let message = format!("Name at most {most} mailboxes.");
                        return Err(ApiError::invalid("mailbox", message));
                    }
                }
                LAST_EVENT_ID => id = ClientPosition::parse(&value),
                _ => {}
            }
        }
        if mailboxes.is_empty() {
            mailboxes.push(Mailbox::inbox());
        }
        let header = parts.headers.get("last-event-id").and_then(|id| id.to_str().ok());
        let known = header.and_then(ClientPosition::parse).or(id).unwrap_or_default();
        Ok(Self { mailboxes, known })
    }
}
