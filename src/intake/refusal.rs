//! Answers to requests that are not taken.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::json;

use crate::metrics::EventRefusal;

pub(super) type IntakeResponse = Response<Full<Bytes>>;

/// Seconds after which a source that sends too much may try again. No other answer asks for that: while the database is
/// away, Dovecot's OX driver would hold each delivery up twice (SOURCES.md section 1).
const PAUSE: u64 = 1;

/// A request that is not taken: `{"error":code,"message":sentence}`.
#[derive(Debug)]
pub(super) struct IntakeRefusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// What it is counted as; what is no request of a source is not.
    pub(super) counted: Option<EventRefusal>,
    /// The one method that goes.
    allow: Option<&'static str>,
}

impl IntakeRefusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), counted: None, allow: None }
    }

    fn counted(self, counted: EventRefusal) -> Self {
        Self { counted: Some(counted), ..self }
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is nothing here.")
    }

    pub(super) fn method(allow: &'static str) -> Self {
        let message = format!("Use {allow}.");
        let refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        Self { allow: Some(allow), ..refusal }
    }

    /// Nobody has proved which source asks.
    pub(super) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
            .counted(EventRefusal::Unauthorized)
    }

    /// The source may not speak for this user.
    pub(super) fn foreign() -> Self {
        let message = "This source may not speak for users of this domain.";
        Self::new(StatusCode::FORBIDDEN, "foreign_domain", message).counted(EventRefusal::Foreign)
    }

    pub(super) fn media_type() -> Self {
        let message = "Send JSON, with the header Content-Type: application/json.";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
            .counted(EventRefusal::MediaType)
    }

    pub(super) fn too_large(most: usize) -> Self {
        let message = format!("The body has more than {most} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            .counted(EventRefusal::TooLarge)
    }

    pub(super) fn timeout() -> Self {
        let message = "The body of the request did not come in time.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", message).counted(EventRefusal::Timeout)
    }

    /// The body is not what is understood.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
            .counted(EventRefusal::Malformed)
    }

    /// A device is not registered, and why. What may go later is to be tried again.
    pub(super) fn device(message: String, counted: EventRefusal) -> Self {
        let status = match counted {
            EventRefusal::TooMany | EventRefusal::Waiting | EventRefusal::Unrecorded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, "device_refused", message).counted(counted)
    }

    /// The source sends more than it may.
    pub(super) fn too_many() -> Self {
        let message = "This source sends more events than it may.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many", message)
            .counted(EventRefusal::TooMany)
    }

    /// Too much waits.
    pub(super) fn full() -> Self {
        let message = "Too many events wait until they are recorded.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message)
            .counted(EventRefusal::Waiting)
    }

    /// The database does not take it.
    pub(super) fn unrecorded() -> Self {
        let message = "The event could not be recorded.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
            .counted(EventRefusal::Unrecorded)
    }

    /// Whether other sources in the configuration might have had the request taken.
    pub(super) fn is_by_sources(&self) -> bool {
        matches!(self.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
    }

    pub(super) fn into_response(self) -> IntakeResponse {
        let body = json!({ "error": self.code, "message": self.message }).to_string();
        let mut response = Response::new(Full::new(body.into()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(EventRefusal::TooMany | EventRefusal::Waiting) = self.counted {
            headers.insert(RETRY_AFTER, HeaderValue::from(PAUSE));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"mailchime\"");
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
