//! Which request is answered by what.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, HOST, HeaderMap, HeaderValue, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::ApiContext;
use super::caller::{
    AskedHost, Caller, Demand, addresses, asked_host, authorization, cookie, is_from_script,
    is_own_page, password,
};
use super::changes;
use super::error::ApiError;
use super::request_body::JsonBody;
use super::subscriptions;
use super::web;
use super::web_sessions::{AGE, COOKIE};
use crate::metrics::ApiAnswer;

/// For an answer: longer than a login and the backend's answers take.
const ANSWER_TIME: Duration = Duration::from_mins(3);

/// All requests, and what goes for each of them.
pub(super) fn router(context: Arc<ApiContext>, mail_url: Option<&str>) -> Router {
    Router::new()
        .route("/v1/session", post(open_session).get(show_session).delete(close_session))
        .route("/v1/mailboxes", get(mailboxes))
        .route("/v1/changes", get(changes::changes))
        .route("/v1/vapid", get(subscriptions::vapid))
        .route("/v1/subscriptions", get(subscriptions::list).post(subscriptions::add))
        .route("/v1/subscriptions/{id}", delete(subscriptions::remove))
        .route("/v1/subscriptions/{id}/confirm", post(subscriptions::confirm))
        .route("/v1/subscriptions/{id}/test", post(subscriptions::test))
        .merge(web::routes(mail_url))
        .fallback(async || ApiError::not_found())
        .method_not_allowed_fallback(async || {
            let message = "This method is not allowed here.";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&context), each))
        .with_state(context)
}

/// What goes for each request: it is meant for this server, is answered in time, and is counted.
async fn each(
    State(context): State<Arc<ApiContext>>,
    mut request: Request,
    next: Next,
) -> Response {
    // HTTP/2 has the host in the request's target.
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
    let host = asked_host(request.headers());
    let mut response = if host.is_some_and(|AskedHost(host)| context.is_meant_by(host)) {
        let answered = timeout(ANSWER_TIME, next.run(request)).await;
        answered
            .unwrap_or_else(|_| ApiError::unavailable("Nobody answered in time.").into_response())
    } else {
        let message = "This server has another name. Its operator sets it as [api] public_url.";
        let status = StatusCode::MISDIRECTED_REQUEST;
        ApiError::new(status, "misdirected", message).into_response()
    };
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let answer = match response.status() {
        StatusCode::UNAUTHORIZED => ApiAnswer::Unauthorized,
        status if status.is_server_error() => ApiAnswer::Failed,
        status if status.is_client_error() => ApiAnswer::Refused,
        _ => ApiAnswer::Ok,
    };
    context.metrics.api_requests.of(answer).inc();
    response
}

#[derive(Deserialize)]
struct SessionRequest {
    login: String,
    password: String,
}

/// Logs in with what the body or the header says, and gives a cookie.
async fn open_session(
    State(context): State<Arc<ApiContext>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let to_browser = is_from_script(&parts.headers);
    let opened = log_in(&context, &parts, body).await;
    opened.map_err(|error| error.for_browser(to_browser))
}

async fn log_in(
    context: &Arc<ApiContext>,
    parts: &Parts,
    body: Body,
) -> Result<Response, ApiError> {
    use axum::extract::FromRequest;

    // Nobody is logged in by a page of another site.
    is_own_page(&parts.headers, context, Demand::Nothing)?;
    let credentials = if parts.headers.contains_key(hyper::header::AUTHORIZATION) {
        authorization(&parts.headers)?
    } else {
        let mut request = Request::new(body);
        *request.headers_mut() = parts.headers.clone();
        let body = JsonBody::from_request(request, context).await?;
        let SessionRequest { login, password: secret } = body.read()?;
        password(&login, secret.into_bytes())?
    };
    let mail = context.log_in(addresses(parts)?, &credentials).await?;
    if let Some(former) = cookie(&parts.headers) {
        context.sessions.close(former);
    }
    let account = mail.account.clone();
    let opened = context.sessions.open(account.clone(), mail.login.clone(), credentials);
    tracing::info!(
        target: "mailchime::api::session_opened",
        %account, "a user has logged in to the web app"
    );
    let shown = Json(json!({ "account": account.as_str() }));
    let mut response = (StatusCode::CREATED, shown).into_response();
    set_cookie(&mut response, &opened, AGE);
    Ok(response)
}

/// Whose session it is.
async fn show_session(caller: Caller) -> Json<Value> {
    Json(json!({ "account": caller.account.as_str() }))
}

/// Logs out. A session that has ended already is no error.
async fn close_session(
    State(context): State<Arc<ApiContext>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    is_own_page(&headers, &context, Demand::Origin)?;
    if let Some(cookie) = cookie(&headers) {
        context.sessions.close(cookie);
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&mut response, "", Duration::ZERO);
    Ok(response)
}

fn set_cookie(response: &mut Response, cookie: &str, age: Duration) {
    let age = age.as_secs();
    let field =
        format!("{COOKIE}={cookie}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={age}");
    // It is of base64's letters.
    if let Ok(field) = HeaderValue::from_str(&field) {
        response.headers_mut().insert(SET_COOKIE, field);
    }
}

/// The mailboxes of the user.
async fn mailboxes(mut caller: Caller) -> Result<Json<Value>, ApiError> {
    let found = caller.mail().await?.mailboxes().await?;
    let shown: Vec<_> = found
        .iter()
        .map(|listed| json!({ "name": listed.mailbox.as_str(), "role": listed.role }))
        .collect();
    Ok(Json(json!({ "account": caller.account.as_str(), "mailboxes": shown })))
}
