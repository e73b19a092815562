//! Requests to answers.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Answered, Ask, Context, Part};
use crate::metrics::CONTENT_TYPE as METRICS;
use crate::model::{Account, Mailbox};

type Answer = Response<Full<Bytes>>;

/// Why there is no other answer.
type Refused = (StatusCode, String);

/// For a part to say whether it is ready.
const READY_TIME: Duration = Duration::from_secs(3);

/// For a part to answer from what it knows.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// For APNs to answer for all devices of an account.
const PUSH_TIME: Duration = Duration::from_secs(60);

/// The answer to a request, whose body does not matter.
pub(super) async fn to<B>(request: &Request<B>, context: &Context) -> Answer {
    let path = request.uri().path();
    let allowed = match path {
        "/push" | "/devices" => "POST",
        "/metrics" | "/healthz" | "/readyz" | "/watchers" | "/explain" => "GET, HEAD",
        _ => return refusal(StatusCode::NOT_FOUND, "there is nothing here"),
    };
    let method = match *request.method() {
        Method::HEAD => &Method::GET,
        ref other => other,
    };
    if !allowed.split(", ").any(|allowed| method == allowed) {
        let mut answer = refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("use {allowed}"));
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        return answer;
    }
    // A browser says where a POST comes from. A page on the web must not do anything here through
    // the browser of someone on this machine.
    if method == Method::POST && request.headers().contains_key(ORIGIN) {
        return refusal(StatusCode::FORBIDDEN, "not from a browser");
    }
    let query = Query(request.uri().query().unwrap_or_default());
    let result = match path {
        "/metrics" => Ok(text(METRICS, context.metrics.text(&context.registry))),
        "/healthz" => Ok(value(StatusCode::OK, &json!({ "ok": true }))),
        "/readyz" => ready(&context.parts, &query).await,
        "/watchers" => watchers(context, &query).await,
        "/push" => devices(&context.push, PUSH_TIME, &query).await,
        "/devices" => changed(context, &query).await,
        _ => devices(&context.explain, ANSWER_TIME, &query).await,
    };
    result.unwrap_or_else(|(status, why)| refusal(status, &why))
}

async fn ready(parts: &[Part], query: &Query<'_>) -> Result<Answer, Refused> {
    query.knows(&["exclude"])?;
    let excluded = query.all("exclude");
    if let Some(unknown) = excluded.iter().find(|name| parts.iter().all(|part| part.name != **name))
    {
        let known: Vec<_> = parts.iter().map(|part| part.name).collect();
        let problem = format!("there is no part {unknown:?}; there are {}", known.join(", "));
        return Err((StatusCode::BAD_REQUEST, problem));
    }
    let asked = parts.iter().filter(|part| !excluded.iter().any(|name| name == part.name));
    let asked: Vec<_> = asked
        .map(|part| (part.name, tokio::spawn(timeout(READY_TIME, part.check.ask(())))))
        .collect();
    let mut verdicts = serde_json::Map::new();
    let mut all = true;
    for (name, verdict) in asked {
        let verdict = match verdict.await {
            Ok(Ok(Ok(_))) => json!({ "ok": true }),
            Ok(Ok(Err(why))) => json!({ "ok": false, "why": why }),
            Ok(Err(_)) => json!({ "ok": false, "why": format!("no answer in {READY_TIME:?}") }),
            Err(_) => json!({ "ok": false, "why": "it broke while it was asked" }),
        };
        all &= verdict["ok"] == true;
        verdicts.insert(name.to_owned(), verdict);
    }
    let status = if all { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok(value(status, &json!({ "ok": all, "parts": verdicts })))
}

async fn watchers(context: &Context, query: &Query<'_>) -> Result<Answer, Refused> {
    query.knows(&["user"])?;
    let account = query.one("user").map(|user| Account::from_login(&user));
    answered(context.watchers.ask(account), ANSWER_TIME).await
}

async fn changed(context: &Context, query: &Query<'_>) -> Result<Answer, Refused> {
    query.knows(&["user"])?;
    answered(context.devices.ask(query.account()?), ANSWER_TIME).await
}

/// For a question about an account's devices.
async fn devices(
    ask: &Ask<(Account, Option<Mailbox>)>,
    limit: Duration,
    query: &Query<'_>,
) -> Result<Answer, Refused> {
    query.knows(&["user", "mailbox"])?;
    let account = query.account()?;
    let mailbox = query.one("mailbox").map(|name| Mailbox::new(&name));
    answered(ask.ask((account, mailbox)), limit).await
}

async fn answered(answer: Answered, limit: Duration) -> Result<Answer, Refused> {
    match timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(value(StatusCode::OK, &answer)),
        Ok(Err(why)) => Err((StatusCode::SERVICE_UNAVAILABLE, why)),
        Err(_) => Err((StatusCode::GATEWAY_TIMEOUT, format!("no answer within {limit:?}"))),
    }
}

/// The part of a URL behind the question mark.
struct Query<'a>(&'a str);

impl Query<'_> {
    /// All values of a name.
    fn all(&self, name: &str) -> Vec<String> {
        let pairs = form_urlencoded::parse(self.0.as_bytes());
        pairs.filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
    }

    fn one(&self, name: &str) -> Option<String> {
        self.all(name).into_iter().next()
    }

    /// Whom it is about.
    fn account(&self) -> Result<Account, Refused> {
        match self.one("user") {
            Some(user) if !user.is_empty() => Ok(Account::from_login(&user)),
            _ => Err((StatusCode::BAD_REQUEST, "say whose: ?user=USER".to_owned())),
        }
    }

    /// A misspelt name would otherwise mean "all".
    fn knows(&self, names: &[&str]) -> Result<(), Refused> {
        let mut pairs = form_urlencoded::parse(self.0.as_bytes());
        match pairs.find(|(key, _)| !names.contains(&&**key)) {
            None => Ok(()),
            Some((key, _)) => {
                let problem = format!("{key:?} is not known here; known: {}", names.join(", "));
                Err((StatusCode::BAD_REQUEST, problem))
            }
        }
    }
}

fn refusal(status: StatusCode, why: &str) -> Answer {
    value(status, &json!({ "error": why }))
}

fn value(status: StatusCode, value: &Value) -> Answer {
    let mut answer = text("application/json", format!("{value}\n"));
    *answer.status_mut() = status;
    answer
}

fn text(kind: &'static str, text: String) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
