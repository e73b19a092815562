//! Who asks: by Basic, Bearer or the web app's cookie; and whether a page of another site does.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::http::request::Parts;
use tokio_util::sync::CancellationToken;

use super::ApiContext;
use super::error::ApiError;
use super::mail::MailClient;
use super::web_sessions::{self, WebSession};
use crate::model::{AcceptedLogin, Account, Credentials};
use crate::net::proxy_protocol::Addresses;

/// The header that names the account of an access token.
pub(super) const LOGIN: &str = "mailchime-login";

/// The one who asks, proved.
pub(super) struct Caller {
    pub(super) account: Account,
    /// What the backend has accepted, now or for the session of the web app.
    pub(super) credentials: Credentials,
    /// The session of the web app that asks.
    pub(super) cookie: Option<ByCookie>,
    context: Arc<ApiContext>,
    addresses: Addresses,
    proof: ProvenBy,
}

/// A session of the web app.
#[derive(Debug)]
pub(super) struct ByCookie {
    pub(super) cookie: String,
    /// Cancelled when the session ends.
    pub(super) ended: CancellationToken,
}

/// By what.
enum ProvenBy {
    /// The backend has just accepted the login.
    Backend(Box<MailClient>),
    /// The cookie of this session.
    Cookie { cookie: String, session: Box<WebSession> },
}

/// The host that was asked.
pub(super) struct AskedHost<'a>(pub(super) &'a str);

impl Caller {
    /// What the backend has accepted.
    pub(super) fn login(&self) -> AcceptedLogin {
        match &self.proof {
            ProvenBy::Backend(mail) => mail.login.clone(),
            ProvenBy::Cookie { session, .. } => session.login.clone(),
        }
    }

    /// The session of this user at the backend. With a cookie it begins when this is called, and the cookie
    /// ends where the backend refuses what was logged in with.
    pub(super) async fn mail(&mut self) -> Result<&mut MailClient, ApiError> {
        if let ProvenBy::Cookie { cookie, session } = &self.proof {
            let opened = log_in_again(&self.context, self.addresses, cookie, session).await?;
            self.proof = ProvenBy::Backend(Box::new(opened));
        }
        match &mut self.proof {
            ProvenBy::Backend(mail) => Ok(mail),
            ProvenBy::Cookie { .. } => Err(ApiError::not_found()),
        }
    }
}

impl FromRequestParts<Arc<ApiContext>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        context: &Arc<ApiContext>,
    ) -> Result<Self, ApiError> {
        let to_browser = is_from_script(&parts.headers);
        let caller = Self::of(parts, context).await;
        caller.map_err(|error| error.for_browser(to_browser))
    }
}

impl Caller {
    async fn of(parts: &Parts, context: &Arc<ApiContext>) -> Result<Self, ApiError> {
        let addresses = addresses(parts)?;
        let context = Arc::clone(context);
        if parts.headers.contains_key(AUTHORIZATION) {
            // A browser sends the password that it remembers for a page of any site.
            if !parts.method.is_safe() {
                is_own_page(&parts.headers, &context, Demand::Nothing)?;
            }
            let credentials = authorization(&parts.headers)?;
            let mail = context.log_in(addresses, &credentials).await?;
            let account = mail.account.clone();
            return Ok(Self {
                account,
                credentials,
                cookie: None,
                context,
                addresses,
                proof: ProvenBy::Backend(Box::new(mail)),
            });
        }
        let cookie = cookie(&parts.headers);
        let found = cookie.and_then(|cookie| Some((cookie, context.sessions.used(cookie)?)));
        let Some((cookie, session)) = found else {
            return Err(match cookie {
                Some(_) => ended(),
                None => ApiError::unauthorized(
                    "Log in with the name and the password of your mail account.",
                ),
            });
        };
        if !parts.method.is_safe() {
            is_own_page(&parts.headers, &context, Demand::Origin)?;
        }
        let (cookie, account) = (cookie.to_owned(), session.account.clone());
        let credentials = session.credentials.clone();
        let by_cookie = ByCookie { cookie: cookie.clone(), ended: session.ended.clone() };
        let proof = match prove(&context, addresses, &cookie, &session).await? {
            Some(mail) => ProvenBy::Backend(Box::new(mail)),
            None => ProvenBy::Cookie { cookie, session: Box::new(session) },
        };
        Ok(Self { account, credentials, cookie: Some(by_cookie), context, addresses, proof })
    }
}

fn ended() -> ApiError {
    ApiError::unauthorized("This session has ended. Log in again.")
}

/// Logs in anew for a session of the web app where its last proof is old, or the account has had another
/// password accepted since. Ends the session where the account has another backend.
async fn prove(
    context: &ApiContext,
    addresses: Addresses,
    cookie: &str,
    session: &WebSession,
) -> Result<Option<MailClient>, ApiError> {
    let WebSession { account, login, .. } = session;
    if !context.registrar.has_backend(account, &login.backend) {
        context.sessions.close(cookie);
        return Err(ended());
    }
    let since = context.store.password_since(account).await;
    // Where the database cannot say it, the backend can.
    let same = since.is_ok_and(|since| since.is_none_or(|since| since <= login.at));
    if same && session.is_proved() {
        return Ok(None);
    }
    log_in_again(context, addresses, cookie, session).await.map(Some)
}

/// A session at the backend with what a session of the web app was opened with, which ends where that is
/// refused.
async fn log_in_again(
    context: &ApiContext,
    addresses: Addresses,
    cookie: &str,
    session: &WebSession,
) -> Result<MailClient, ApiError> {
    let opened = context.log_in(addresses, &session.credentials).await;
    let mail = opened.inspect_err(|error| {
        if error.is_unauthorized() {
            context.sessions.close(cookie);
        }
    })?;
    if mail.account != session.account {
        context.sessions.close(cookie);
        return Err(ended());
    }
    context.sessions.proved(cookie, mail.login.clone());
    Ok(mail)
}

/// What must say where a request comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// `Origin` (RFC 6454), which browsers send with each request that may change something.
    Origin,
    /// Nothing; what is there must name us.
    Nothing,
}

/// Refuses a request that comes from a page of another site: its `Origin` says so, or its `Sec-Fetch-Site` (Fetch
/// Metadata). A program that is no browser sends neither.
pub(super) fn is_own_page(
    headers: &HeaderMap,
    context: &ApiContext,
    demand: Demand,
) -> Result<(), ApiError> {
    let own = |site: &HeaderValue| site == "same-origin" || site == "none";
    if !headers.get_all("sec-fetch-site").iter().all(own) {
        return Err(foreign());
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return match demand {
            Demand::Nothing => Ok(()),
            Demand::Origin => Err(foreign()),
        };
    };
    let asked = asked_host(headers).map(|AskedHost(host)| format!("https://{host}"));
    let public = context.public_url.as_ref().map(|url| url.origin());
    let is = |ours: &Option<String>| {
        ours.as_ref().is_some_and(|ours| origin.as_bytes().eq_ignore_ascii_case(ours.as_bytes()))
    };
    if is(&asked) || is(&public) { Ok(()) } else { Err(foreign()) }
}

fn foreign() -> ApiError {
    ApiError::forbidden("foreign_origin", "A page of another site may not ask this.")
}

/// The host that was asked: HTTP/2's authority was put there by the server.
pub(super) fn asked_host(headers: &HeaderMap) -> Option<AskedHost<'_>> {
    headers.get(HOST).and_then(|host| host.to_str().ok()).map(AskedHost)
}

/// Whether a script in a browser asks (Fetch Metadata): for it a browser would show its own dialogue.
pub(super) fn is_from_script(headers: &HeaderMap) -> bool {
    headers.contains_key("sec-fetch-mode")
}

/// The addresses of the connection.
pub(super) fn addresses(parts: &Parts) -> Result<Addresses, ApiError> {
    parts.extensions.get().copied().ok_or_else(ApiError::not_found)
}

/// The value of the web app's cookie.
pub(super) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let fields = headers.get_all(COOKIE).iter().filter_map(|field| field.to_str().ok());
    let pairs = fields.flat_map(|field| field.split(';')).map(str::trim);
    pairs
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(name, value)| (name == web_sessions::COOKIE).then_some(value))
}

/// The credentials of the `Authorization` header: Basic (RFC 7617) in UTF-8, or Bearer (RFC 6750) with the
/// name in a header of its own.
pub(super) fn authorization(headers: &HeaderMap) -> Result<Credentials, ApiError> {
    let malformed = || ApiError::unauthorized("The Authorization header is not well-formed.");
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return Err(malformed()) };
    let field = field.to_str().map_err(|_| malformed())?;
    let (scheme, value) = field.split_once(' ').ok_or_else(malformed)?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = STANDARD.decode(value).map_err(|_| malformed())?;
        let colon = decoded.iter().position(|b| *b == b':').ok_or_else(malformed)?;
        let login = std::str::from_utf8(&decoded[..colon]).map_err(|_| malformed())?;
        return password(login, decoded[colon + 1..].to_vec());
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        let login = headers.get(LOGIN).and_then(|login| std::str::from_utf8(login.as_bytes()).ok());
        let Some(login) = login.filter(|login| !login.is_empty()) else {
            return Err(ApiError::unauthorized(
                "With an access token, name the mail account in the header Mailchime-Login.",
            ));
        };
        return Ok(Credentials::bearer(login, value.as_bytes().to_vec()));
    }
    Err(ApiError::unauthorized("Use Basic with a name and a password, or Bearer."))
}

/// Credentials that IMAP can carry (RFC 4616 section 2).
pub(super) fn password(login: &str, password: Vec<u8>) -> Result<Credentials, ApiError> {
    if login.is_empty() || login.contains('\0') || password.is_empty() || password.contains(&0) {
        return Err(ApiError::unauthorized("Name and password must not be empty."));
    }
    Ok(Credentials::password(login, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn authorization_is_basic_or_bearer_with_a_name() {
        let basic = |text: &str| format!("bAsic {}", STANDARD.encode(text));
        let read = |fields: &[(&'static str, &str)]| {
            let read = authorization(&headers(fields)).ok()?;
            Some((read.login.clone(), String::from_utf8_lossy(read.expose_secret()).into_owned()))
        };
        let given = |login: &str, secret: &str| Some((login.to_owned(), secret.to_owned()));
        let one = |value: &str| read(&[("authorization", value)]);
        assert_eq!(one(&basic("al\u{ef}ce:se:c ret")), given("al\u{ef}ce", "se:c ret"));
        for bad in [
            "",
            "Basic",
            "Basic !",
            "Digest x",
            &basic("alice"),
            &basic(":x"),
            &basic("a:"),
            &basic("a\0b:x"),
            "Bearer x",
        ] {
            assert_eq!(one(bad), None, "{bad}");
        }
        let token = [("authorization", "Bearer t.o-k"), (LOGIN, "alice@example.org")];
        assert_eq!(read(&token), given("alice@example.org", "t.o-k"));
        let (first, second) = (basic("a:b"), basic("c:d"));
        assert_eq!(read(&[("authorization", &first), ("authorization", &second)]), None);
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let fields = headers(&[("cookie", "a=b; __Host-mailchime=x=y"), ("cookie", "c=d")]);
        assert_eq!(cookie(&fields), Some("x=y"));
        assert_eq!(cookie(&headers(&[("cookie", "mailchime=x; __host-mailchime=y")])), None);
    }
}
