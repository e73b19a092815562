//! A user's subscriptions: listed, made, confirmed, tried and removed.
//!
//! A subscription that a client makes is pending until its client posts the code that a push has brought to
//! it: so nobody can have pushes sent to an endpoint of somebody else. The code itself is kept nowhere; its
//! SHA-256 stands in the subscription's options, where each node can read it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::StatusCode;
use hyper::http::request::Parts;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ApiContext;
use super::caller::Caller;
use super::error::ApiError;
use super::push_side::Delivered;
use super::request_body::JsonBody;
use crate::imap::mailbox::{LONGEST_NAME, encode};
use crate::model::{
    AcceptedLogin, Account, Mailbox, Registration, RegistrationResult, SubscriptionKey,
    SubscriptionState, Timestamp, TransportId, hex,
};
use crate::store::{ListedSubscription, StoreError};

/// The transport of browsers.
const WEB_PUSH: &str = "webpush";

/// The key of a subscription's options under which the code's hash is.
const CONFIRM: &str = "confirm";

/// From now to the latest end that a client may ask for.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// What every request for a subscription has; the rest is the transport's.
#[derive(Deserialize)]
struct SubscriptionRequest {
    transport: String,
    #[serde(default)]
    mailboxes: Option<Vec<String>>,
    /// When it is to end, in the form of RFC 3339.
    #[serde(default)]
    expires: Option<String>,
}

#[derive(Deserialize)]
struct ConfirmRequest {
    code: String,
}

/// The number in the path; `None` where what stands there is none.
pub(super) struct SubscriptionId(Option<i64>);

impl<S: Send + Sync> FromRequestParts<S> for SubscriptionId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let text = Path::<String>::from_request_parts(parts, state).await.ok();
        Ok(Self(text.and_then(|Path(text)| text.parse().ok())))
    }
}

/// The key with which browsers subscribe.
pub(super) async fn vapid(State(context): State<Arc<ApiContext>>) -> Result<Json<Value>, ApiError> {
    let offers = context.push.offers();
    let offer = offers.into_iter().find(|(transport, _)| transport.as_str() == WEB_PUSH);
    let missing = "Web Push is off: there is no [webpush] table.";
    let missing = ApiError::new(StatusCode::NOT_FOUND, "no_webpush", missing);
    offer.map(|(_, offer)| Json(offer)).ok_or(missing)
}

/// All subscriptions of the user, whatever the transport.
pub(super) async fn list(
    State(context): State<Arc<ApiContext>>,
    caller: Caller,
) -> Result<Json<Value>, ApiError> {
    let listed = context.subscriptions_of(&caller.account).await?;
    let shown: Vec<_> = listed.iter().map(shown).collect();
    Ok(Json(json!({ "account": caller.account.as_str(), "subscriptions": shown })))
}

/// Makes a subscription, or makes one anew: pending, unless it counts already.
pub(super) async fn add(
    State(context): State<Arc<ApiContext>>,
    mut caller: Caller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let request: SubscriptionRequest = JsonBody(body.clone()).read()?;
    let mailboxes = wanted(request.mailboxes, context.most_mailboxes)?;
    let expires = request.expires.map(|expires| end(&expires, Timestamp::now())).transpose()?;
    let transport = TransportId::new(&request.transport);
    let account = caller.account.clone();
    let Some(enrolled) = context.push.enrol(&transport, &account, &body) else {
        let offers = context.push.offers();
        let names: Vec<_> = offers.iter().map(|(name, _)| name.as_str()).collect();
        let message = format!("There is no such transport; there are: {}.", names.join(", "));
        return Err(ApiError::invalid("transport", message));
    };
    let (mut subscription, answer) = enrolled.map_err(|why| refusal(&why))?;
    subscription.expires_at = expires;
    let mail = caller.mail().await?;
    let (readable, unreadable) = mail.check(mailboxes, |_| false).await?;
    let login = mail.login.clone();
    if readable.is_empty() {
        let message = "You have none of these mailboxes, or may not read them.";
        return Err(ApiError::invalid("mailboxes", message));
    }
    let key = SubscriptionKey::from(&subscription);
    let before = context.subscriptions_of(&account).await?;
    let before = before.into_iter().find(|listed| listed.subscription.is(&key));
    let counts = before.as_ref().filter(|before| before.state == SubscriptionState::Active);
    let code = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
    let hash = match counts {
        // Nothing is to be confirmed, so its row stays as it is.
        Some(counts) => option(&counts.subscription.options, CONFIRM),
        None => Some(hash(&code)),
    };
    subscription.options = with_option(&subscription.options, CONFIRM, hash);
    let counts = counts.is_some();
    if !counts {
        context.sends.count(&account)?;
    }
    let named = |mailboxes: &mut dyn Iterator<Item = &Mailbox>| -> Vec<String> {
        mailboxes.map(|mailbox| mailbox.as_str().to_owned()).collect()
    };
    let shown = json!({
        "mailboxes": named(&mut readable.iter().map(|(mailbox, _)| mailbox)),
        "unreadable": named(&mut unreadable.iter()),
        "expires_at": expires.map(Timestamp::rfc3339),
    });
    let registration = Registration { subscription, mailboxes: readable };
    let code = (!counts).then_some(code);
    let making = make(Arc::clone(&context), registration, login, code);
    // To its end, also when the client hangs up: what is stored has to be verified or removed.
    let made = tokio::spawn(making).await;
    let id = made.map_err(|_| ApiError::unavailable("Try again later."))??;
    let mut shown = shown;
    shown["id"] = json!(id.to_string());
    shown["state"] = json!(if counts { "active" } else { "pending" });
    if let (Value::Object(shown), Value::Object(answer)) = (&mut shown, answer) {
        shown.extend(answer);
    }
    let status = if counts { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(shown)).into_response())
}

/// Stores a subscription, and sends the code to its client where one is to be confirmed. Returns its id.
async fn make(
    context: Arc<ApiContext>,
    registration: Registration,
    login: AcceptedLogin,
    code: Option<String>,
) -> Result<i64, ApiError> {
    let subscription = registration.subscription.clone();
    let (account, key) = (subscription.account.clone(), SubscriptionKey::from(&subscription));
    stored(context.registrar.clone().register_pending(registration, login).await)?;
    let id = context.store.subscription_id(&key).await.map_err(away)?;
    let id = id.ok_or_else(|| ApiError::unavailable("The subscription is gone already."))?;
    let Some(code) = code else { return Ok(id) };
    let options = Arc::clone(&subscription.options);
    let delivered = match context.sends.place(&subscription).await {
        Ok(_place) => accepted(context.push.verify(subscription, code).await),
        Err(full) => Err(full),
    };
    if let Err(error) = delivered {
        // It could never be confirmed. Another request may have made it anew meanwhile, or confirmed it.
        let removed = context.store.remove_pending(&account, id, &options).await;
        if removed.map_err(away)?.is_some_and(|removed| !removed.account_left) {
            context.registrar.forget(&account);
        }
        return Err(error);
    }
    Ok(id)
}

/// The client has got the code.
pub(super) async fn confirm(
    State(context): State<Arc<ApiContext>>,
    SubscriptionId(id): SubscriptionId,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    let ConfirmRequest { code } = body.read()?;
    let mut listed = context.find(&caller.account, id).await?;
    let expected = option(&listed.subscription.options, CONFIRM).unwrap_or_default();
    if verify_slices_are_equal(expected.as_bytes(), hash(&code).as_bytes()).is_err() {
        return Err(ApiError::forbidden(
            "wrong_code",
            "This is not the code that the push brought.",
        ));
    }
    let (account, login) = (caller.account.clone(), caller.login());
    let confirming = context.registrar.clone().confirm(account, listed.id, login);
    // To its end, also when the client hangs up: what counts has to be watched.
    let confirmed = tokio::spawn(confirming).await;
    let confirmed = confirmed.map_err(|_| ApiError::unavailable("Try again later."))?;
    stored(confirmed.map_err(away)?.ok_or_else(ApiError::not_found)?)?;
    listed.state = SubscriptionState::Active;
    Ok(Json(shown(&listed)))
}

/// Sends a test push.
pub(super) async fn test(
    State(context): State<Arc<ApiContext>>,
    SubscriptionId(id): SubscriptionId,
    caller: Caller,
) -> Result<Response, ApiError> {
    let listed = context.find(&caller.account, id).await?;
    if listed.state == SubscriptionState::Pending {
        let message = "The subscription is not confirmed yet.";
        return Err(ApiError::new(StatusCode::CONFLICT, "pending", message));
    }
    let key = SubscriptionKey::from(&listed.subscription);
    context.sends.count(&caller.account)?;
    let _place = context.sends.place(&listed.subscription).await?;
    accepted(context.push.test(key).await)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Removes a subscription, on all nodes at once.
pub(super) async fn remove(
    State(context): State<Arc<ApiContext>>,
    SubscriptionId(id): SubscriptionId,
    caller: Caller,
) -> Result<Response, ApiError> {
    let id = context.find(&caller.account, id).await?.id;
    let removed = context.store.remove_by_id(&caller.account, id).await.map_err(away)?;
    let removed = removed.ok_or_else(ApiError::not_found)?;
    if !removed.account_left {
        context.registrar.forget(&caller.account);
    }
    context.push.changed(caller.account.clone()).await;
    tracing::info!(
        target: "mailchime::api::subscription_removed",
        account = %caller.account, "a user removed a subscription"
    );
    Ok(StatusCode::NO_CONTENT.into_response())
}

impl ApiContext {
    /// Those of the user: a web hook of the operator is none of theirs.
    async fn subscriptions_of(
        &self,
        account: &Account,
    ) -> Result<Vec<ListedSubscription>, ApiError> {
        let mut listed = self.store.subscriptions_of(account).await.map_err(away)?;
        listed.retain(|listed| !listed.subscription.is_of_operator());
        Ok(listed)
    }

    /// The subscription of this account with this id.
    async fn find(
        &self,
        account: &Account,
        id: Option<i64>,
    ) -> Result<ListedSubscription, ApiError> {
        let id = id.ok_or_else(ApiError::not_found)?;
        let listed = self.subscriptions_of(account).await?;
        listed.into_iter().find(|listed| listed.id == id).ok_or_else(ApiError::not_found)
    }
}

/// The mailboxes that are asked for: INBOX where none is named.
fn wanted(names: Option<Vec<String>>, most: usize) -> Result<Vec<Mailbox>, ApiError> {
    let Some(names) = names else { return Ok(vec![Mailbox::inbox()]) };
    if names.is_empty() || names.len() > most {
        return Err(ApiError::invalid("mailboxes", format!("Name 1 to {most} mailboxes.")));
    }
    let mut mailboxes = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let mailbox = mailbox_named(name).ok_or_else(|| {
            let message = "This cannot be the name of a mailbox.";
            ApiError::invalid(&format!("mailboxes[{at}]"), message)
        })?;
        if !mailboxes.contains(&mailbox) {
            mailboxes.push(mailbox);
        }
    }
    Ok(mailboxes)
}

/// The mailbox of this name; `None` where it cannot be one.
pub(super) fn mailbox_named(name: &str) -> Option<Mailbox> {
    let mailbox = Mailbox::new(name);
    let fits = !name.is_empty() && encode(&mailbox).len() <= LONGEST_NAME;
    (fits && !name.chars().any(char::is_control)).then_some(mailbox)
}

/// The end that a client asks for, in milliseconds exactly: later than `now`, and within a year.
fn end(expires: &str, now: Timestamp) -> Result<Timestamp, ApiError> {
    let time = humantime::parse_rfc3339(expires).ok();
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let end = since.and_then(|since| i64::try_from(since.as_millis()).ok()).map(Timestamp);
    end.filter(|end| *end > now && *end <= now.plus(LONGEST)).ok_or_else(|| {
        let message = "Say a time within a year from now, as in 2030-01-31T12:00:00Z.";
        ApiError::invalid("expires", message)
    })
}

/// The answer to a request that the transport does not take: its sentence begins with the key, with or without
/// quotation marks.
fn refusal(why: &str) -> ApiError {
    let is_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let said = why.strip_prefix('"').unwrap_or(why);
    let end = said.find(|c| !is_key(c)).unwrap_or(said.len());
    ApiError::invalid(&said[..end], why)
}

fn stored(result: RegistrationResult) -> Result<(), ApiError> {
    match result {
        RegistrationResult::Stored { .. } => Ok(()),
        RegistrationResult::Unavailable => {
            Err(ApiError::unavailable("The subscription cannot be stored now. Try again later."))
        }
        RegistrationResult::TooMany => {
            Err(ApiError::too_many("This account subscribes too often. Try again later."))
        }
        RegistrationResult::DomainFull | RegistrationResult::BackendFull => Err(ApiError::new(
            StatusCode::CONFLICT,
            "full",
            "There are as many subscriptions as there may be. Ask your administrator.",
        )),
    }
}

fn accepted(delivered: Delivered) -> Result<(), ApiError> {
    match delivered {
        Delivered::Accepted => Ok(()),
        Delivered::BadEndpoint => {
            Err(ApiError::invalid("endpoint", "The push service does not know this endpoint."))
        }
        Delivered::TooMany => Err(ApiError::too_many("The push service takes no more now.")),
        Delivered::Failed(why) => {
            Err(ApiError::unavailable(&format!("The push was not taken: {why}.")))
        }
    }
}

fn away(error: StoreError) -> ApiError {
    tracing::warn!(
        target: "mailchime::api::database_unavailable",
        %error, "the database did not do what a user asked for; the user gets an error"
    );
    ApiError::unavailable("The database cannot be asked now. Try again later.")
}

fn hash(code: &str) -> String {
    hex(digest(&SHA256, code.as_bytes()).as_ref())
}

/// A text in the options, which are a JSON object.
fn option(options: &str, key: &str) -> Option<String> {
    let options: Value = serde_json::from_str(options).ok()?;
    Some(options.get(key)?.as_str()?.to_owned())
}

/// The options with this text under a key.
fn with_option(options: &str, key: &str, text: Option<String>) -> Arc<str> {
    let mut options: Value = serde_json::from_str(options).unwrap_or_else(|_| json!({}));
    if let (Some(options), Some(text)) = (options.as_object_mut(), text) {
        options.insert(key.to_owned(), json!(text));
    }
    options.to_string().into()
}

/// What a user sees of a subscription.
fn shown(listed: &ListedSubscription) -> Value {
    let subscription = &listed.subscription;
    let mailboxes: Vec<_> = listed.mailboxes.iter().map(Mailbox::as_str).collect();
    json!({
        "id": listed.id.to_string(),
        "transport": subscription.transport.as_str(),
        "endpoint": subscription.endpoint.to_string(),
        "app": &*subscription.app,
        "mailboxes": mailboxes,
        "state": listed.state.name(),
        "registered_at": listed.registered_at.rfc3339(),
        "pushed_at": listed.pushed_at.map(Timestamp::rfc3339),
        "failing_since": listed.failing.as_ref().map(|failing| failing.since.rfc3339()),
        "failing_kind": listed.failing.as_ref().map(|failing| &*failing.kind),
        "expires_at": subscription.expires_at.map(Timestamp::rfc3339),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_keep_what_the_transport_has_put_there() {
        let options = with_option("{\"keys\":{\"auth\":\"x\"}}", CONFIRM, Some("h".to_owned()));
        assert_eq!(&*options, "{\"confirm\":\"h\",\"keys\":{\"auth\":\"x\"}}");
        assert_eq!(option(&options, CONFIRM).as_deref(), Some("h"));
        assert_eq!(&*with_option("{\"a\":1}", CONFIRM, None), "{\"a\":1}");
        assert_eq!(option("{}", CONFIRM), None);
    }

    #[test]
    fn an_end_is_within_a_year() {
        let now = Timestamp(1_900_000_000_000);
        let end = |text: &str| end(text, now).ok().map(|end| end.0 - now.0);
        assert_eq!(end("2030-03-17T17:46:40.001Z"), Some(1));
        assert_eq!(end("2031-03-17T17:46:40Z"), Some(365 * 24 * 3_600_000));
        for bad in [
            "2030-03-17T17:46:40Z",
            "2031-03-17T17:46:41Z",
            "1960-01-01T00:00:00Z",
            "2030-04-01",
            "",
            "soon",
        ] {
            assert_eq!(end(bad), None, "{bad}");
        }
    }

    #[test]
    fn mailboxes_are_bounded_and_named_once() {
        let names = |names: &[&str]| Some(names.iter().map(|it| (*it).to_owned()).collect());
        let wanted = |it| wanted(it, 2).map_err(|error| format!("{error:?}"));
        assert_eq!(wanted(None), Ok(vec![Mailbox::inbox()]));
        assert_eq!(wanted(names(&["inbox", "INBOX"])), Ok(vec![Mailbox::inbox()]));
        for bad in [&[][..], &["a", "b", "c"], &[""], &["a\r\nb"], &[&*"x".repeat(2000)]] {
            assert!(wanted(names(bad)).is_err(), "{bad:?}");
        }
    }
}
