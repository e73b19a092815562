//! A transport for the tests of what stands above the seam: it sends nothing. Endpoints that are written
//! `NAME@HOST` have peers of their own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Request, Response};

use super::{Exchange, Notice, Route, Sender, Transport, TransportLimits, Verdict};
use crate::model::{ChangeKind, Mailbox, Subscription, Timestamp};

/// The options of a subscription that gets no push but for INBOX.
pub(in crate::push) const OF_INBOX_ALONE: &str = "of INBOX alone";

/// The options of a subscription that gets no push for a quiet change.
pub(in crate::push) const OF_NEW_MAIL_ALONE: &str = "of new mail alone";

/// Most pushes under way to one host.
pub(in crate::push) const PER_HOST: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
pub(in crate::push) struct Stub {
    pub(in crate::push) closed: Option<&'static str>,
    /// Whether there are peers.
    pub(in crate::push) hosts: bool,
    /// Whether pushes may say what is known of new mail.
    pub(in crate::push) previews: bool,
}

impl Stub {
    pub(in crate::push) fn route(self, in_flight: usize) -> Route {
        Route::new(self, self, in_flight)
    }
}

impl Transport for Stub {
    fn limits(&self) -> TransportLimits {
        let in_flight_per_peer = if self.hosts { PER_HOST } else { usize::MAX };
        let silence = Duration::from_hours(48);
        TransportLimits { mailboxes: 100, silence, in_flight_per_peer }
    }

    fn peer(&self, subscription: &Subscription) -> Arc<str> {
        match subscription.endpoint.as_given().split_once('@').filter(|_| self.hosts) {
            Some((_, host)) => host.into(),
            None => Arc::clone(&subscription.route),
        }
    }

    fn carries_preview(&self) -> bool {
        self.previews
    }

    fn withholds(&self, subscription: &Subscription, mailbox: &Mailbox) -> Option<&'static str> {
        (&*subscription.options == OF_INBOX_ALONE && !mailbox.is_inbox())
            .then_some("it registered for INBOX alone")
    }

    fn tells(&self, subscription: &Subscription, kind: ChangeKind) -> bool {
        kind == ChangeKind::NewMail || &*subscription.options != OF_NEW_MAIL_ALONE
    }

    /// The first word of the options is what is sent.
    fn covers(&self, before: &Subscription, after: &Subscription) -> bool {
        let [before, after] = [before, after].map(|it| it.options.split(' ').next());
        before == after
    }

    fn remedy(&self) -> &'static str {
        "Check the stub"
    }

    fn render(&self, _: &Subscription, _: &Notice<'_>) -> Result<Request<Bytes>, Verdict> {
        Err(Verdict::unavailable("it sends nothing"))
    }

    fn judge(&self, _: &Response<Bytes>) -> Verdict {
        Verdict::unavailable("it sends nothing")
    }
}

impl Sender for Stub {
    fn closed(&self, _: Timestamp) -> Option<String> {
        self.closed.map(str::to_owned)
    }

    fn exchange(&self, _: Request<Bytes>) -> Exchange<'_> {
        Box::pin(async { Err(Verdict::unavailable("it sends nothing")) })
    }
}
