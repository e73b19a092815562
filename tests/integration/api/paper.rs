//! A transport to which users' programs can subscribe: it writes down what it is to send.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper::{Request, Response};
use mailchime::model::{Account, PushEndpoint, Subscription, Timestamp, TransportId};
use mailchime::push::transport::enrol::{Enrol, Enrolled};
use mailchime::push::transport::{
    Exchange, Notice, Route, Sender, Transport, TransportLimits, Verdict,
};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiWorld;
use crate::support::soon;

/// Endpoints, each with a text.
type Posted = Vec<(String, String)>;

/// The service: what it answers, and what came to it, as endpoint and text.
#[derive(Clone, Debug)]
pub(super) struct Paper {
    post: Arc<Mutex<(u16, Posted)>>,
    /// An answer needs one.
    turns: Arc<Semaphore>,
}

/// More than there are answers under way.
const TURNS: u32 = 1000;

impl Paper {
    /// Has users' programs subscribe to it. It is called as Web Push is, too, for its key.
    pub(super) fn subscribable(api: &ApiWorld) -> Self {
        let post = Arc::new(Mutex::new((200, Vec::new())));
        let paper = Self { post, turns: Arc::new(Semaphore::new(TURNS as usize)) };
        let mailchime = &api.world.mailchime;
        for name in ["paper", "webpush"] {
            mailchime.transports.set(TransportId::new(name), Some(Arc::new(paper.clone())));
        }
        let route = Route::new(paper.clone(), paper.clone(), 1);
        mailchime.routes.publish(&TransportId::new("paper"), [("post".into(), route)]);
        paper
    }

    pub(super) fn answers(&self, status: u16) {
        self.post.lock().unwrap().0 = status;
    }

    /// Until the permit is dropped the service answers nothing.
    pub(super) async fn hold(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.turns).acquire_many_owned(TURNS).await.unwrap()
    }

    /// Waits until so many letters have come.
    pub(super) async fn has(&self, letters: usize) {
        let coming = async {
            while self.post.lock().unwrap().1.len() < letters {
                tokio::task::yield_now().await;
            }
        };
        soon("letters", coming).await;
    }

    /// What came to this endpoint, in order.
    pub(super) fn sent(&self, endpoint: &str) -> Vec<String> {
        let sent = self.post.lock().unwrap().1.clone();
        sent.into_iter().filter(|(to, _)| to == endpoint).map(|(_, text)| text).collect()
    }

    /// The code that came to this endpoint last.
    pub(super) fn code(&self, endpoint: &str) -> String {
        let sent = self.sent(endpoint);
        let code = sent.iter().rev().find_map(|text| text.strip_prefix("code "));
        code.expect("a code").to_owned()
    }
}

impl Enrol for Paper {
    fn offer(&self) -> Value {
        json!({ "applicationServerKey": "a key" })
    }

    fn enrol(&self, account: &Account, request: &Value) -> Result<Enrolled, String> {
        let to = request["to"].as_str().ok_or("to is missing; name an address")?;
        let subscription = Subscription {
            account: account.clone(),
            transport: TransportId::new("paper"),
            endpoint: PushEndpoint::new(to, to),
            app: "reader".into(),
            route: "post".into(),
            options: "{\"ink\":\"blue\"}".into(),
            secrets: None,
            expires_at: None,
        };
        Ok(Enrolled { subscription, answer: json!({ "stamp": "80c" }) })
    }
}

impl Transport for Paper {
    fn limits(&self) -> TransportLimits {
        let silence = Duration::from_secs(3600);
        TransportLimits { mailboxes: 10, silence, in_flight_per_peer: 1 }
    }

    fn remedy(&self) -> &'static str {
        "Buy paper"
    }

    fn render(&self, to: &Subscription, notice: &Notice<'_>) -> Result<Request<Bytes>, Verdict> {
        let names: Vec<_> = notice.mailboxes.iter().map(|it| it.mailbox.as_str()).collect();
        Ok(letter(to, format!("mail {}", names.join("+"))))
    }

    fn verify(
        &self,
        to: &Subscription,
        code: &str,
        _at: Timestamp,
    ) -> Result<Request<Bytes>, Verdict> {
        Ok(letter(to, format!("code {code}")))
    }

    fn judge(&self, response: &Response<Bytes>) -> Verdict {
        match response.status().as_u16() {
            200 => Verdict::Accepted { id: None },
            410 => Verdict::Gone { since: None },
            429 => Verdict::TooMany { retry_after: None },
            _ => Verdict::unavailable("the post is on strike"),
        }
    }
}

fn letter(to: &Subscription, text: String) -> Request<Bytes> {
    Request::post(format!("/{}", to.endpoint.as_given())).body(text.into()).unwrap()
}

impl Sender for Paper {
    fn exchange(&self, request: Request<Bytes>) -> Exchange<'_> {
        let text = String::from_utf8_lossy(request.body()).into_owned();
        self.post.lock().unwrap().1.push((request.uri().path()[1..].to_owned(), text));
        Box::pin(async {
            let _turn = self.turns.acquire().await.unwrap();
            let status = self.post.lock().unwrap().0;
            Ok(Response::builder().status(status).body(Bytes::new()).unwrap())
        })
    }
}
