//! The seam between notices and the services that carry them.
//!
//! A [`Transport`] is pure: [`Transport::render`] writes a [`Notice`] for one subscription as a
//! request, [`Transport::judge`] says what the answer means. A [`Sender`] does the I/O: one request
//! out, one response in. A [`Route`] is both together, under one authority; [`Routes`] are all of them.
//!
//! ```text
//!   scheduler ─ Delivery ─> Route ─ render ─> Sender ~~> service
//!       ^                                       │
//!       └──── Verdict <──────── judge <─────────┘
//! ```
//!
//! Each service has a folder of its own here, and nothing outside it knows the service.

pub mod apns;
pub mod check;
pub mod enrol;
mod event;
pub mod fcm;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod retry_after;
mod routes;
#[cfg(test)]
pub(in crate::push) mod stub;
mod verdict;
pub mod webhook;
pub mod webpush;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Request, Response};

pub use self::routes::{Route, RouteId, Routes};
pub use self::verdict::{Blame, Verdict};
use crate::imap::registration::xapple;
use crate::model::{ChangeKind, Mailbox, Preview, Snapshot, Subscription, Timestamp};
use crate::net::https::HttpsClient;

/// The names of all services, which subscriptions have.
pub const NAMES: [&str; 4] =
    [xapple::TRANSPORT, fcm::TRANSPORT, webhook::TRANSPORT, webpush::TRANSPORT];

/// What one push tells one subscription.
#[derive(Clone, Copy, Debug)]
pub struct Notice<'a> {
    /// A UUID that names this push, for the log and for services that want one.
    pub id: &'a str,
    /// The mailboxes that have changed: at least one, and no more than [`TransportLimits::mailboxes`].
    pub mailboxes: &'a [MailboxChange],
    /// What is known of the newest mail, and the mailbox of the notice where it is. Only a transport that
    /// [carries it](Transport::carries_preview) is given it.
    pub preview: Option<(&'a Mailbox, &'a Preview)>,
    /// The time of day.
    pub at: Timestamp,
    /// How long the service keeps the push for a client that is offline.
    pub ttl: Duration,
}

/// One mailbox of a [`Notice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailboxChange {
    /// The mailbox.
    pub mailbox: Mailbox,
    /// New mail, or a quiet change only. New mail where that is not known any more.
    pub kind: ChangeKind,
    /// The state that it has now, as far as is known: nothing is where new mail was announced and the
    /// state is still being asked for, or where the change was seen before a restart.
    pub state: Snapshot,
    /// Of new mail: how many messages were unread before it, where that was known. A client takes its notice away when no
    /// more are.
    pub unread_before: Option<u64>,
}

/// What the scheduler has to respect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportLimits {
    /// Most mailboxes of one push.
    pub mailboxes: usize,
    /// A client that is well registers anew within this time, unless it is switched off. So an endpoint
    /// that the service does not know is dead when it registered longer ago.
    pub silence: Duration,
    /// Most pushes under way at once to one [`Transport::peer`]. Those to all of them together stay below
    /// [`Route::in_flight`], too. A peer that has not answered its last push gets one at a time, and all peers
    /// like it get half of the route's together. `usize::MAX` where a route has one peer.
    pub in_flight_per_peer: usize,
}

/// How one service is spoken to. Pure: no socket, no clock.
pub trait Transport: fmt::Debug + Send + Sync {
    /// What the scheduler has to respect.
    fn limits(&self) -> TransportLimits;

    /// Why this subscription gets no push for this mailbox although it registered for it: a clause for
    /// people. `None` where it gets one.
    fn withholds(&self, _subscription: &Subscription, _mailbox: &Mailbox) -> Option<&'static str> {
        None
    }

    /// Whether this subscription gets a push for a change of this kind alone: new mail always, quiet changes unless
    /// the transport or the client has no use for them. A push of new mail that waits says what it has then.
    fn tells(&self, _subscription: &Subscription, _kind: ChangeKind) -> bool {
        true
    }

    /// Which server the pushes of this subscription go to: what hangs, fails or refuses there holds up no
    /// other peer of the route. It depends on the subscription alone, and is no secret: logs show it. The
    /// whole route is one peer unless the transport says otherwise.
    fn peer(&self, subscription: &Subscription) -> Arc<str> {
        Arc::clone(&subscription.route)
    }

    /// Whether a push may hold sender and subject of a mail: only where nobody but the user's own client can
    /// read it.
    fn carries_preview(&self) -> bool {
        false
    }

    /// Whether a push that was sent for `before` has told `after` all that it says: both are registrations
    /// with one endpoint and app on one route, one after the other. Where it has not, it is sent again.
    fn covers(&self, before: &Subscription, after: &Subscription) -> bool {
        before.options == after.options
    }

    /// What an operator checks when the service knows most endpoints not: a sentence.
    fn remedy(&self) -> &'static str;

    /// The request that tells `subscription` of `notice`.
    ///
    /// # Errors
    /// [`Verdict::Unrenderable`] where no request can be written for this subscription.
    fn render(
        &self,
        subscription: &Subscription,
        notice: &Notice<'_>,
    ) -> Result<Request<Bytes>, Verdict>;

    /// The same in the fewest bytes, for a service that found the request of [`Transport::render`] too large: `None`
    /// where there is nothing shorter.
    fn render_short(
        &self,
        _subscription: &Subscription,
        _notice: &Notice<'_>,
    ) -> Option<Result<Request<Bytes>, Verdict>> {
        None
    }

    /// The request that brings `code` to the client of `subscription`, which proves by it that it gets what
    /// is sent there. `at` is the time of day.
    ///
    /// # Errors
    /// As [`Transport::render`]; always, where a subscription needs no proof.
    fn verify(
        &self,
        _subscription: &Subscription,
        _code: &str,
        _at: Timestamp,
    ) -> Result<Request<Bytes>, Verdict> {
        Err(Verdict::unrenderable("this transport verifies no subscription"))
    }

    /// The same in the fewest bytes, as [`Transport::render_short`].
    fn verify_short(
        &self,
        _subscription: &Subscription,
        _code: &str,
        _at: Timestamp,
    ) -> Option<Result<Request<Bytes>, Verdict>> {
        None
    }

    /// What the service's answer means. The body may be cut off.
    fn judge(&self, response: &Response<Bytes>) -> Verdict;
}

/// Carries requests of one route to the service and brings the responses back.
pub trait Sender: fmt::Debug + Send + Sync {
    /// Why nothing can be sent at `now`, the time of day, for people; `None` where the route is open.
    fn closed(&self, _now: Timestamp) -> Option<String> {
        None
    }

    /// Sends the request and waits for the response, in bounded time.
    ///
    /// # Errors
    /// What became of the push where there is no response.
    fn exchange(&self, request: Request<Bytes>) -> Exchange<'_>;
}

/// A response that is awaited, or the verdict where there is none.
pub type Exchange<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Verdict>> + Send + 'a>>;

/// Sends to whichever server a request names, if the client goes there.
impl Sender for HttpsClient {
    fn exchange(&self, request: Request<Bytes>) -> Exchange<'_> {
        let sending = self.send(request);
        Box::pin(async { sending.await.map_err(|error| Verdict::unavailable(error.to_string())) })
    }
}
