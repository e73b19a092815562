//! Requests to answers.

use std::net::IpAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue, ORIGIN,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::overview::{LookedUp, Overview};
use super::{Answered, Ask, Context, Part, page, readiness};
use crate::metrics::TextFormat;
use crate::model::{Account, Mailbox};

pub(super) type HttpResponse = Response<Full<Bytes>>;

/// Why there is no other answer.
pub(super) type Refused = (StatusCode, String);

const HTML: &str = "text/html; charset=utf-8";

/// For a part to answer from what it knows.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// For the push services to answer for all subscriptions of an account.
const PUSH_TIME: Duration = Duration::from_secs(60);

/// Whether a request is meant for this server, and is not that of a page on the web in the browser of
/// someone who may ask. `local` is the address that the connection was made to, `None` for a Unix
/// socket, to which no browser connects; `hosts` are further ones.
pub(super) fn is_meant<B>(
    request: &Request<B>,
    local: Option<IpAddr>,
    hosts: &[String],
) -> Result<(), Refused> {
    let headers = request.headers();
    // Fetch Metadata: "none" is the address bar of a browser. Nothing here is a page that asks.
    let own = |site: &HeaderValue| site == "same-origin" || site == "none";
    if headers.contains_key(ORIGIN) || !headers.get_all("sec-fetch-site").iter().all(own) {
        return Err((StatusCode::FORBIDDEN, "not for a page on the web".to_owned()));
    }
    let Some(local) = local else { return Ok(()) };
    // Before HTTP/1.1 there need not be one, and load balancers send none. Browsers do.
    let named = headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or("?"));
    let target = request.uri().authority().map(Authority::as_str);
    match named.chain(target).find(|host| !is_ours(host, local, hosts)) {
        None => Ok(()),
        Some(host) => {
            let host: String = host.chars().take(100).collect();
            let why = format!("this is not {host:?}; [admin] hosts lists names that are");
            Err((StatusCode::MISDIRECTED_REQUEST, why))
        }
    }
}

/// Whether a `Host` (RFC 9110 section 7.2) is this server, whatever its port.
fn is_ours(host: &str, local: IpAddr, hosts: &[String]) -> bool {
    let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port.strip_prefix(':').unwrap_or(port)),
        None => host.rsplit_once(':').unwrap_or((host, "")),
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        let address = address.to_canonical();
        let listed = |host: &String| host.parse() == Ok(address);
        return address == local || address.is_loopback() || hosts.iter().any(listed);
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost") || hosts.contains(&host)
}

/// The answer to a request, whose body does not matter.
pub(super) async fn to<B>(request: &Request<B>, context: &Context) -> HttpResponse {
    let path = request.uri().path();
    let allowed = match path {
        "/push" | "/subscriptions" => "POST",
        "/" | "/status.css" | "/icon.svg" | "/metrics" | "/healthz" | "/readyz" | "/watchers"
        | "/explain" => "GET, HEAD",
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
    let query = Query(request.uri().query().unwrap_or_default());
    let result = match path {
        "/" => status(context, &query).await,
        "/status.css" => Ok(text("text/css; charset=utf-8", STYLE)),
        "/icon.svg" => Ok(text("image/svg+xml", ICON)),
        "/metrics" => Ok(metrics(request, context)),
        "/healthz" => Ok(value(StatusCode::OK, &json!({ "ok": true }))),
        "/readyz" => ready(&context.parts, &query).await,
        "/watchers" => watchers(context, &query).await,
        "/push" => devices(&context.push, PUSH_TIME, &query).await,
        "/subscriptions" => changed(context, &query).await,
        _ => devices(&context.explain, ANSWER_TIME, &query).await,
    };
    result.unwrap_or_else(|(status, why)| refusal(status, &why))
}

/// What the status page may load and do (Content Security Policy Level 3): its style, its icon and its form, and
/// nothing else. It has no script.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; \
                      frame-ancestors 'none'; base-uri 'none'";

/// The style of the web app, and what the status page has besides.
const STYLE: &str =
    concat!(include_str!("../api/web/assets/style.css"), include_str!("assets/status.css"));

const ICON: &str = include_str!("../api/web/assets/icon.svg");

async fn status(context: &Context, query: &Query<'_>) -> Result<HttpResponse, Refused> {
    query.knows(&["user"])?;
    let user = query.all("user").into_iter().next().map(|user| user.trim().to_owned());
    let mut found = None;
    // A form that nothing is written in asks for nobody.
    if let Some(user) = user.filter(|user| !user.is_empty()) {
        let asking = context.explain.ask((Account::from_login(&user), None));
        let answer = timeout(ANSWER_TIME, asking).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_TIME:?}")));
        found = Some(LookedUp { user, answer });
    }
    let overview = timeout(ANSWER_TIME, Overview::of(context))
        .await
        .map_err(|_| (StatusCode::GATEWAY_TIMEOUT, format!("no answer within {ANSWER_TIME:?}")))?;
    let mut answer = text(HTML, page::page(context, &overview, found.as_ref()));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(answer)
}

fn metrics<B>(request: &Request<B>, context: &Context) -> HttpResponse {
    let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = TextFormat::accepted(accept);
    let mut answer =
        text(format.content_type(), context.metrics.text_as(format, &context.registry));
    answer.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    answer
}

async fn ready(parts: &[Part], query: &Query<'_>) -> Result<HttpResponse, Refused> {
    query.knows(&["exclude"])?;
    let excluded = query.all("exclude");
    if let Some(unknown) = excluded.iter().find(|name| parts.iter().all(|part| part.name != **name))
    {
        let known: Vec<_> = parts.iter().map(|part| part.name).collect();
        let problem = format!("there is no part {unknown:?}; there are {}", known.join(", "));
        return Err((StatusCode::BAD_REQUEST, problem));
    }
    let mut verdicts = serde_json::Map::new();
    let mut all = true;
    for (name, verdict) in readiness(parts, &excluded).await {
        all &= verdict.is_ok();
        let verdict = match verdict {
            Ok(Value::Null) => json!({ "ok": true }),
            Ok(note) => json!({ "ok": true, "note": note }),
            Err(why) => json!({ "ok": false, "why": why }),
        };
        verdicts.insert(name.to_owned(), verdict);
    }
    let status = if all { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok(value(status, &json!({ "ok": all, "parts": verdicts })))
}

async fn watchers(context: &Context, query: &Query<'_>) -> Result<HttpResponse, Refused> {
    query.knows(&["user"])?;
    let account = query.one("user")?.map(|user| Account::from_login(&user));
    answered(context.watchers.ask(account), ANSWER_TIME).await
}

async fn changed(context: &Context, query: &Query<'_>) -> Result<HttpResponse, Refused> {
    query.knows(&["user"])?;
    answered(context.subscriptions.ask(query.account()?), ANSWER_TIME).await
}

/// For a question about an account's devices.
async fn devices(
    ask: &Ask<(Account, Option<Mailbox>)>,
    limit: Duration,
    query: &Query<'_>,
) -> Result<HttpResponse, Refused> {
    query.knows(&["user", "mailbox"])?;
    let account = query.account()?;
    let mailbox = query.one("mailbox")?.map(|name| Mailbox::new(&name));
    answered(ask.ask((account, mailbox)), limit).await
}

async fn answered(answer: Answered, limit: Duration) -> Result<HttpResponse, Refused> {
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

    /// The value of a name that need not be there. An empty one would mean everything, or nothing.
    fn one(&self, name: &str) -> Result<Option<String>, Refused> {
        match self.all(name).into_iter().next() {
            Some(value) if value.is_empty() => Err((
                StatusCode::BAD_REQUEST,
                format!("{name} is empty: give a value, or leave it out"),
            )),
            value => Ok(value),
        }
    }

    /// Whom it is about.
    fn account(&self) -> Result<Account, Refused> {
        let missing = || (StatusCode::BAD_REQUEST, "say whose: ?user=USER".to_owned());
        self.one("user")?.map(|user| Account::from_login(&user)).ok_or_else(missing)
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

pub(super) fn refusal(status: StatusCode, why: &str) -> HttpResponse {
    value(status, &json!({ "error": why }))
}

fn value(status: StatusCode, value: &Value) -> HttpResponse {
    let mut answer = text("application/json", format!("{value}\n"));
    *answer.status_mut() = status;
    answer
}

fn text(kind: &'static str, text: impl Into<Bytes>) -> HttpResponse {
    let mut answer = Response::new(Full::new(text.into()));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_this_one_by_its_address_as_localhost_or_by_a_name_of_the_configuration() {
        let hosts = ["mail1.example.org".to_owned(), "192.0.2.7".to_owned()];
        for (host, ours) in [
            ("localhost", true),
            ("LOCALHOST:8143", true),
            ("localhost.:8143", true),
            ("x.localhost", true),
            ("127.0.0.1:8143", true),
            ("127.9.9.9", true),
            ("[::1]:8143", true),
            ("[::ffff:10.0.0.6]", true),
            ("10.0.0.6:1", true),
            ("192.0.2.7:8143", true),
            ("Mail1.Example.org", true),
            ("10.0.0.7", false),
            ("evil.example", false),
            ("evil.example:8143", false),
            ("localhost.evil.example", false),
            ("localhost:8143.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("[::1].evil.example", false),
            ("localhost@evil.example", false),
            ("xlocalhost", false),
            ("", false),
        ] {
            let local = "10.0.0.6".parse().unwrap();
            assert_eq!(is_ours(host, local, &hosts), ours, "{host}");
        }
    }
}
