//! Answers that are no success.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::json;

/// What to ask a person for: a name and a password, or a program for a token.
const CHALLENGES: [&str; 2] =
    ["Basic realm=\"mailchime\", charset=\"UTF-8\"", "Bearer realm=\"mailchime\""];

/// For a client to wait after a limit, or while a part is away.
const PAUSE: Duration = Duration::from_secs(60);

/// A request that is refused: `{"error":code,"message":sentence}`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// What of the request is at fault.
    field: Option<String>,
    retry_after: Option<Duration>,
    /// The answer goes to a script in a browser, which would ask its user for a password.
    to_browser: bool,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, code, message, field: None, retry_after: None, to_browser: false }
    }

    /// Nobody has proved who asks.
    pub(super) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// Whether it says that nobody has proved who asks.
    pub(super) fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// The one who asks may not.
    pub(super) fn forbidden(code: &'static str, message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is nothing here.")
    }

    /// A value of the body, by its path, is not what is allowed.
    pub(super) fn invalid(field: &str, message: impl Into<String>) -> Self {
        let field = (!field.is_empty()).then(|| field.to_owned());
        let invalid = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message);
        Self { field, ..invalid }
    }

    pub(super) fn too_many(message: &str) -> Self {
        let limit = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many", message);
        Self { retry_after: Some(PAUSE), ..limit }
    }

    pub(super) fn unavailable(message: &str) -> Self {
        let unavailable = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message);
        Self { retry_after: Some(PAUSE), ..unavailable }
    }

    /// The same for a script in a browser: it does not make the browser ask for a password.
    pub(super) fn for_browser(self, to_browser: bool) -> Self {
        Self { to_browser, ..self }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": self.code, "message": self.message });
        if let Some(field) = self.field {
            body["field"] = json!(field);
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(pause) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(pause.as_secs()));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            for challenge in &CHALLENGES[usize::from(self.to_browser)..] {
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
        }
        response
    }
}
