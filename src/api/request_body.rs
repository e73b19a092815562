//! The body of a request: bounded JSON.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::ApiContext;
use super::error::ApiError;

/// The body of a request that has to be JSON.
pub(super) struct JsonBody(pub(super) Value);

impl JsonBody {
    /// As this, which is an object; keys that it does not know are left alone.
    pub(super) fn read<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        // serde quotes what it does not understand, which may be a password.
        let wrong = |field: &str| {
            ApiError::invalid(field, "A value of the body is missing, or of another type.")
        };
        // A derived type also takes a list, by the places of its values.
        if !self.0.is_object() {
            return Err(wrong(""));
        }
        serde_path_to_error::deserialize(self.0).map_err(|error| {
            let field = error.path().to_string();
            wrong(if field == "." { "" } else { &field })
        })
    }
}

impl FromRequest<Arc<ApiContext>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, context: &Arc<ApiContext>) -> Result<Self, ApiError> {
        if !is_json(&request) {
            let message = "Send JSON, with the header Content-Type: application/json.";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(ApiError::new(status, "unsupported_media_type", message));
        }
        let body = Limited::new(request.into_body(), context.body_size).collect();
        let Ok(read) = timeout(context.request_timeout, body).await else {
            context.counters.request_timeout.hit();
            let message = "The body of the request did not come in time.";
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message));
        };
        let bytes = match read {
            Ok(body) => body.to_bytes(),
            Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
                context.counters.body_size.hit();
                let message = format!("The body has more than {} bytes.", context.body_size);
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
            }
            Err(_) => return Err(not_json()),
        };
        serde_json::from_slice(&bytes).map(Self).map_err(|_| not_json())
    }
}

fn not_json() -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "not_json", "The body is not well-formed JSON.")
}

/// Whether the body is said to be JSON (RFC 9110 section 8.3), in whatever charset.
fn is_json(request: &Request) -> bool {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct ReadCode {
        code: String,
    }

    #[test]
    fn a_body_is_an_object() {
        let read = |body: Value| JsonBody(body).read::<ReadCode>();
        assert_eq!(read(json!({ "code": "x", "more": 1 })).unwrap().code, "x");
        for body in [json!(["x"]), json!("x"), json!(null), json!({ "code": 1 }), json!({})] {
            assert!(read(body.clone()).is_err(), "{body}");
        }
    }
}
