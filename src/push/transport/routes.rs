//! The routes on which a push can leave.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Request;
use tokio::sync::watch;

use super::{Notice, Sender, Transport, Verdict};
use crate::model::{Subscription, Timestamp, TransportId};

/// Under whose authority a push is sent: the name that the transport gives it, unique in the transport.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId {
    /// The transport that it belongs to.
    pub transport: TransportId,
    /// Its name in the transport.
    pub name: Arc<str>,
}

/// One way out: how the service is spoken to, and who carries it there. Clones share both.
#[derive(Clone, Debug)]
pub struct Route {
    transport: Arc<dyn Transport>,
    sender: Arc<dyn Sender>,
    in_flight: usize,
}

/// All routes of the program, which each transport publishes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Routes(Arc<watch::Sender<BTreeMap<RouteId, Route>>>);

/// Sees when routes have changed.
#[derive(Debug)]
pub(in crate::push) struct RouteChanges(watch::Receiver<BTreeMap<RouteId, Route>>);

// === impl RouteId ===

impl RouteId {
    /// The route of this subscription.
    pub fn of(subscription: &Subscription) -> Self {
        Self { transport: subscription.transport.clone(), name: Arc::clone(&subscription.route) }
    }
}

// === impl Route ===

impl Route {
    /// A route on which at most `in_flight` pushes are under way at once.
    pub fn new(
        transport: impl Transport + 'static,
        sender: impl Sender + 'static,
        in_flight: usize,
    ) -> Self {
        Self { transport: Arc::new(transport), sender: Arc::new(sender), in_flight }
    }

    /// How the service is spoken to.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Most pushes under way at once.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Why nothing can be sent at `now`; `None` while the route is open.
    pub fn closed(&self, now: Timestamp) -> Option<String> {
        self.sender.closed(now)
    }

    /// Sends one push and says what became of it: where the service finds it too large, in its short form as well.
    ///
    /// Cancel safe in so far as a push that is dropped may or may not have been sent.
    pub async fn send(&self, subscription: &Subscription, notice: &Notice<'_>) -> Verdict {
        let preview = notice.preview.filter(|_| self.transport.carries_preview());
        let notice = Notice { preview, ..*notice };
        let verdict =
            self.exchange(notice.at, || self.transport.render(subscription, &notice)).await;
        let short = || self.transport.render_short(subscription, &notice);
        self.shortened(verdict, notice.at, short).await
    }

    /// Sends the push that brings `code` and says what became of it. Cancel safe as [`Route::send`].
    pub async fn verify(&self, subscription: &Subscription, code: &str, at: Timestamp) -> Verdict {
        let verdict = self.exchange(at, || self.transport.verify(subscription, code, at)).await;
        let short = || self.transport.verify_short(subscription, code, at);
        self.shortened(verdict, at, short).await
    }

    /// What becomes of a push with this verdict, for which there may be a short form: that is sent once.
    async fn shortened(
        &self,
        verdict: Verdict,
        at: Timestamp,
        short: impl FnOnce() -> Option<Result<Request<Bytes>, Verdict>>,
    ) -> Verdict {
        if verdict != Verdict::TooLarge {
            return verdict;
        }
        match short() {
            None => verdict,
            Some(Err(_)) => Verdict::TooLargeInShort,
            Some(request) => match self.exchange(at, || request).await {
                Verdict::TooLarge => Verdict::TooLargeInShort,
                other => other,
            },
        }
    }

    async fn exchange(
        &self,
        at: Timestamp,
        request: impl FnOnce() -> Result<Request<Bytes>, Verdict>,
    ) -> Verdict {
        if let Some(why) = self.closed(at) {
            return Verdict::route_closed(why);
        }
        let request = match request() {
            Ok(request) => request,
            Err(verdict) => return verdict,
        };
        match self.sender.exchange(request).await {
            Ok(response) => self.transport.judge(&response),
            Err(verdict) => verdict,
        }
    }
}

// === impl Routes ===

impl Routes {
    /// Replaces the routes of this transport, each with its name. A push that is under way ends on the
    /// route on which it began.
    pub fn publish(
        &self,
        transport: &TransportId,
        routes: impl IntoIterator<Item = (Arc<str>, Route)>,
    ) {
        self.0.send_modify(|all| {
            all.retain(|id, _| id.transport != *transport);
            let id = |name| RouteId { transport: transport.clone(), name };
            all.extend(routes.into_iter().map(|(name, route)| (id(name), route)));
        });
    }

    /// The route of this id.
    pub fn find(&self, id: &RouteId) -> Option<Route> {
        self.0.borrow().get(id).cloned()
    }

    /// Brings `code` to the client of this subscription, by its route, and says what became of it.
    pub async fn verify(&self, subscription: &Subscription, code: &str) -> Verdict {
        match self.find(&RouteId::of(subscription)) {
            Some(route) => route.verify(subscription, code, Timestamp::now()).await,
            None => Verdict::route_closed("there is no such route"),
        }
    }

    /// Whether there is a route of this transport that [carries previews](Transport::carries_preview).
    pub fn carry_previews_by(&self, transport: &TransportId) -> bool {
        let routes = self.0.borrow();
        let mut of_it = routes.iter().filter(|(id, _)| id.transport == *transport);
        of_it.any(|(_, route)| route.transport.carries_preview())
    }

    /// Those that are open at `now`, the time of day, each `transport:name`, for the log.
    pub fn open(&self, now: Timestamp) -> String {
        let routes = self.0.borrow();
        let open = routes.iter().filter(|(_, route)| route.closed(now).is_none());
        let open: Vec<_> =
            open.map(|(RouteId { transport, name }, _)| format!("{transport}:{name}")).collect();
        match (routes.is_empty(), open.is_empty()) {
            (true, _) => "none: push is off".to_owned(),
            (false, true) => "none is open".to_owned(),
            (false, false) => open.join(" "),
        }
    }

    /// Whether there is none: push is off.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Waits until there is one; for ever if there never is. Cancel safe.
    pub async fn first(&self) {
        let _ = self.0.subscribe().wait_for(|routes| !routes.is_empty()).await;
    }

    /// All of them, open or not.
    pub(in crate::push) fn all(&self) -> Vec<(RouteId, Route)> {
        self.0.borrow().iter().map(|(id, route)| (id.clone(), route.clone())).collect()
    }

    /// As after [`Routes::publish`], though no route is another one: what was refused may be taken now.
    pub(in crate::push) fn try_again(&self) {
        self.0.send_modify(|_| {});
    }

    /// Sees each [`Routes::publish`] and [`Routes::try_again`] from now on.
    pub(in crate::push) fn changes(&self) -> RouteChanges {
        RouteChanges(self.0.subscribe())
    }
}

// === impl RouteChanges ===

impl RouteChanges {
    /// Returns after a change, or never again. Cancel safe.
    pub(in crate::push) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
