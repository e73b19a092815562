//! Access tokens: given by Google for a proof of ours, good for an hour.
//!
//! A token is renewed some minutes before it ends, and when FCM refuses it. One renewal is under way at a
//! time. While renewing fails, the token of before is used as long as it counts.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::account::ServiceAccount;
use crate::model::Timestamp;
use crate::net::backoff::Backoff;
use crate::net::https::{HttpsClient, printable};
use crate::push::transport::Verdict;

/// Before its end a token is renewed.
const AHEAD: Duration = Duration::from_mins(5);
/// Google gives tokens of an hour. One that says to live longer is not believed, nor one of no time.
const LIVES: [Duration; 2] = [Duration::from_mins(1), Duration::from_hours(1)];
const PASSING: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
const LASTING: Backoff = Backoff::new(Duration::from_mins(1), Duration::from_mins(15));

/// How much of what Google says is shown.
const MAX_WORD: usize = 120;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// The access tokens of one service account. `Debug` shows none.
pub(super) struct AccessTokens {
    pub(super) account: ServiceAccount,
    client: HttpsClient,
    /// Held while a renewal is under way.
    renewing: tokio::sync::Mutex<()>,
    /// Never held over an await.
    state: Mutex<TokenState>,
}

#[derive(Default)]
struct TokenState {
    current: Option<AccessToken>,
    failed: Option<RenewalFailure>,
}

#[derive(Clone)]
struct AccessToken {
    authorization: HeaderValue,
    until: Instant,
}

#[derive(Clone)]
struct RenewalFailure {
    why: String,
    /// Google refuses the account: the operator has to mend it.
    lasts: bool,
    /// In a row.
    failures: u32,
    /// Before then nobody asks again.
    until: Instant,
}

/// Why there is no new token.
#[derive(Debug, PartialEq, Eq)]
enum RenewalError {
    /// It may pass.
    Passing(String),
    /// The operator has to mend it.
    Lasting(String),
}

/// RFC 6749 section 5.1, and its section 5.2.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenAnswer {
    access_token: String,
    expires_in: u64,
    error: String,
    error_description: String,
}

impl AccessTokens {
    pub(super) fn new(account: ServiceAccount, client: HttpsClient) -> Self {
        Self { account, client, renewing: tokio::sync::Mutex::default(), state: Mutex::default() }
    }

    /// The value of `authorization` for a message.
    ///
    /// # Errors
    /// That the route is closed, and until when.
    pub(super) async fn authorization(&self) -> Result<HeaderValue, Verdict> {
        let (current, fresh) = self.current();
        if let Some(token) = current.filter(|_| fresh) {
            return Ok(token);
        }
        let _renewing = match self.current().0 {
            // It counts for some minutes more, and one renewal is enough.
            Some(token) => match self.renewing.try_lock() {
                Ok(renewing) => renewing,
                Err(_) => return Ok(token),
            },
            None => self.renewing.lock().await,
        };
        // Another one may have renewed it, or failed to, while this one waited.
        let (current, fresh) = self.current();
        let failed = self.state.lock().failed.clone();
        let failed = failed.filter(|failed| Instant::now() < failed.until);
        match (current, failed) {
            (Some(token), _) if fresh => Ok(token),
            (Some(token), Some(_)) => Ok(token),
            (None, Some(failed)) => Err(failed.verdict()),
            (current, None) => match self.renew().await {
                Ok(token) => Ok(token),
                Err(failed) => current.ok_or_else(|| failed.verdict()),
            },
        }
    }

    /// Whether the last renewal failed because Google refuses the account.
    pub(super) fn is_refused(&self) -> bool {
        self.state.lock().failed.as_ref().is_some_and(|failed| failed.lasts)
    }

    /// FCM refuses this value: the next message brings another one.
    pub(super) fn refused(&self, authorization: &HeaderValue) {
        let mut state = self.state.lock();
        state.current.take_if(|token| token.authorization == *authorization);
    }

    /// The token that counts, and whether it does for more than some minutes.
    fn current(&self) -> (Option<HeaderValue>, bool) {
        let state = self.state.lock();
        let left = |token: &AccessToken| token.until.saturating_duration_since(Instant::now());
        let counts = state.current.as_ref().filter(|token| !left(token).is_zero());
        let fresh = counts.is_some_and(|token| left(token) > AHEAD);
        (counts.map(|token| token.authorization.clone()), fresh)
    }

    /// Asks for a token, and takes note of what came of it.
    async fn renew(&self) -> Result<HeaderValue, RenewalFailure> {
        let project = &self.account.project;
        let asked = Instant::now();
        let error = match self.ask().await {
            Ok((authorization, life)) => {
                let token = AccessToken { authorization, until: asked + life };
                let mut state = self.state.lock();
                if state.failed.take().is_some() {
                    info!(
                        target: "mailchime::push::access_token_renewed",
                        project, "Google gives access tokens for FCM again"
                    );
                }
                return Ok(state.current.insert(token).authorization.clone());
            }
            Err(error) => error,
        };
        let mut state = self.state.lock();
        let failures = state.failed.as_ref().map_or(0, |failed| failed.failures).saturating_add(1);
        let lasts = matches!(error, RenewalError::Lasting(_));
        let (why, backoff) = match error {
            RenewalError::Lasting(why) => {
                error!(
                    target: "mailchime::push::access_token_refused",
                    project, why,
                    "Google refuses an access token for FCM; check the clock of this machine, and that \
                     [[fcm]] service_account_file is of an account that still has this key"
                );
                (why, LASTING)
            }
            RenewalError::Passing(why) => {
                warn!(
                    target: "mailchime::push::access_token_not_renewed",
                    project, why,
                    "could not get an access token for FCM; mailchime uses the previous one while it \
                     counts, and tries again"
                );
                (why, PASSING)
            }
        };
        let until = Instant::now() + backoff.wait(failures, rand::random());
        Err(state.failed.insert(RenewalFailure { why, lasts, failures, until }).clone())
    }

    /// A new token and its life.
    async fn ask(&self) -> Result<(HeaderValue, Duration), RenewalError> {
        let lasting = |why: &str| RenewalError::Lasting(why.to_owned());
        let assertion = self.account.assertion(Timestamp::now());
        let assertion = assertion.ok_or_else(|| lasting("the proof cannot be signed"))?;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", GRANT)
            .append_pair("assertion", &assertion)
            .finish();
        let request = Request::post(&self.account.token_uri)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::from(form))
            .map_err(|_| lasting("the request for a token cannot be written"))?;
        let response = self.client.send(request).await;
        let response = response.map_err(|error| RenewalError::Passing(error.to_string()))?;
        given(&response)
    }
}

/// What the answer of the token's server gives.
fn given(response: &Response<Bytes>) -> Result<(HeaderValue, Duration), RenewalError> {
    let answer: TokenAnswer = serde_json::from_slice(response.body()).unwrap_or_default();
    let status = response.status().as_u16();
    let said =
        |rest: &str| format!("{status} {}", printable(rest.trim(), MAX_WORD)).trim_end().to_owned();
    let passing = |rest: &str| RenewalError::Passing(said(rest));
    match status {
        200 if !answer.access_token.is_empty() => {
            let value = HeaderValue::try_from(format!("Bearer {}", answer.access_token));
            let mut value = value.map_err(|_| passing("with an odd token"))?;
            value.set_sensitive(true);
            let [least, most] = LIVES;
            Ok((value, Duration::from_secs(answer.expires_in).clamp(least, most)))
        }
        400 | 401 | 403 => {
            let TokenAnswer { error, error_description, .. } = answer;
            Err(RenewalError::Lasting(said(&format!("{error} {error_description}"))))
        }
        _ => Err(passing(&answer.error)),
    }
}

/// The same for `fuzz/`.
#[cfg(feature = "fuzzing")]
pub(in crate::push::transport) fn fuzzed(
    response: &Response<Bytes>,
) -> Result<(HeaderValue, Duration), String> {
    given(response).map_err(|error| match error {
        RenewalError::Passing(why) | RenewalError::Lasting(why) => why,
    })
}

impl RenewalFailure {
    fn verdict(&self) -> Verdict {
        let left = self.until.saturating_duration_since(Instant::now());
        let why = format!("no access token: {}", self.why);
        Verdict::RouteClosed { why, retry_after: Some(left) }
    }
}

impl fmt::Debug for AccessTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessTokens").field("account", &self.account).finish_non_exhaustive()
    }
}

/// What is sent to FCM with this value of `authorization`.
pub(super) fn authorized(request: &Request<Bytes>, authorization: HeaderValue) -> Request<Bytes> {
    let mut request = request.clone();
    request.headers_mut().insert(AUTHORIZATION, authorization);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_token_server_says_is_a_token_or_says_how_long_to_wait() {
        let answer = |status: u16, body: &str| {
            given(&Response::builder().status(status).body(body.to_owned().into()).unwrap())
        };
        let (value, life) =
            answer(200, r#"{"access_token":"ya29.a","expires_in":3599,"token_type":"Bearer"}"#)
                .unwrap();
        assert_eq!((value.to_str().unwrap(), life.as_secs()), ("Bearer ya29.a", 3599));
        assert!(value.is_sensitive());
        let life = |seconds: &str| {
            let body = format!(r#"{{"access_token":"a","expires_in":{seconds}}}"#);
            answer(200, &body).unwrap().1.as_secs()
        };
        assert_eq!((life("0"), life("99999999")), (60, 3600));
        let (passing, lasting) = (RenewalError::Passing, RenewalError::Lasting);
        let invalid = r#"{"error":"invalid_grant","error_description":"Invalid JWT\n"}"#;
        for (status, body, expected) in [
            (400, invalid, lasting("400 invalid_grant Invalid JWT".into())),
            (401, r#"{"error":"invalid_client"}"#, lasting("401 invalid_client".into())),
            (200, "{}", passing("200".into())),
            (200, r#"{"access_token":"a\nb"}"#, passing("200 with an odd token".into())),
            (503, "", passing("503".into())),
            (302, "<html>", passing("302".into())),
        ] {
            assert_eq!(answer(status, body).unwrap_err(), expected, "{status} {body}");
        }
    }
}
