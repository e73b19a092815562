//! A second transport: a table of endpoints, and of the service's answer to each.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper::{Request, Response};
use mailchime::model::Subscription;
use mailchime::push::transport::{Exchange, Notice, Sender, Transport, TransportLimits, Verdict};

/// Each endpoint; all others are not known to the service.
const TABLE: [(&str, u16); 6] =
    [("well", 200), ("gone", 410), ("moved", 421), ("busy", 429), ("large", 413), ("ill", 503)];

/// The service, and the requests that have come to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Fake(pub(super) Arc<Mutex<Vec<String>>>);

impl Transport for Fake {
    fn limits(&self) -> TransportLimits {
        let silence = Duration::from_secs(3600);
        TransportLimits { mailboxes: 1, silence, in_flight_per_peer: 1 }
    }

    fn remedy(&self) -> &'static str {
        "Check the table"
    }

    fn render(&self, to: &Subscription, notice: &Notice<'_>) -> Result<Request<Bytes>, Verdict> {
        let names: Vec<_> = notice.mailboxes.iter().map(|it| it.mailbox.as_str()).collect();
        let request = Request::post(format!("/{}", to.endpoint.as_given()));
        Ok(request.body(names.join("+").into()).unwrap())
    }

    fn judge(&self, response: &Response<Bytes>) -> Verdict {
        match response.status().as_u16() {
            200 => Verdict::Accepted { id: None },
            404 => Verdict::BadEndpoint,
            410 => Verdict::Gone { since: None },
            413 => Verdict::TooLarge,
            421 => Verdict::OtherRoute,
            429 => Verdict::TooMany { retry_after: None },
            _ => Verdict::unavailable("it is ill"),
        }
    }
}

impl Sender for Fake {
    fn exchange(&self, request: Request<Bytes>) -> Exchange<'_> {
        let endpoint = &request.uri().path()[1..];
        let body = String::from_utf8_lossy(request.body());
        self.0.lock().unwrap().push(format!("{endpoint} {body}"));
        let known = TABLE.iter().find(|(known, _)| *known == endpoint);
        let status = known.map_or(404, |(_, status)| *status);
        let response = Response::builder().status(status).body(Bytes::new()).unwrap();
        Box::pin(async { Ok(response) })
    }
}
