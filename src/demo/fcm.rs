//! A stand-in for Firebase Cloud Messaging: a TLS server that gives access tokens for proofs that the public
//! key of its service account verifies, checks messages as the service documents, and answers what a test
//! prescribes.
//!
//! It is Google's token server and FCM at once, under two paths.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::answer_gate::AnswerGate;
use super::farewell;
use super::pki::{Pki, PkiError};
use super::port::Port;
use super::reply_body::ReplyBody;
use super::request_body::whole;

/// A running service with one project and one service account. Dropping it closes its port.
pub struct FcmStandIn {
    port: Port,
    shared: Arc<FcmShared>,
}

/// A message as it came, whatever it was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct FcmMessage {
    /// `message`, as it came.
    pub message: Value,
    /// FCM is to check it and deliver it to nobody.
    pub validate_only: bool,
    /// What it was answered; `None` for [`FcmAnswer::Hang`].
    pub status: Option<u16>,
}

/// An answer to a message that FCM would take.
#[derive(Clone, Debug, PartialEq)]
pub enum FcmAnswer {
    /// 200.
    Accept,
    /// An error.
    Refuse {
        /// The HTTP status.
        http: u16,
        /// The `status` of the error.
        status: String,
        /// The `errorCode` of FCM's own detail; `None`: there is no such detail.
        code: Option<String>,
        /// The text.
        message: String,
        /// The seconds of `Retry-After`.
        retry_after: Option<u32>,
    },
    /// 200, and the connection takes nothing else: GOAWAY.
    Farewell,
    /// 200, and a body without an end.
    Endless,
    /// Never.
    Hang,
}

/// What the token server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenAnswers {
    /// Gives a token that lives for so many seconds in return for a proof of the service account.
    Give(u64),
    /// 400 `invalid_grant`, to everybody.
    Refuse,
    /// 503.
    Fail,
    /// Nothing at all.
    Hang,
}

struct FcmShared {
    /// Never held over an await.
    state: Mutex<FcmState>,
    received: watch::Sender<u64>,
    address: SocketAddr,
    key: RsaKeyPair,
    project: &'static str,
    gate: AnswerGate,
}

struct FcmState {
    messages: VecDeque<FcmMessage>,
    handed_out: usize,
    answers: VecDeque<FcmAnswer>,
    answer_to_all: FcmAnswer,
    tokens: TokenAnswers,
    /// How often the token server was asked, and how many tokens it gave.
    asked: usize,
    given: usize,
    /// Those that count.
    good: HashSet<String>,
}

const PROJECT: &str = "demo-project";
const EMAIL: &str = "mailchime@demo-project.iam.gserviceaccount.com";
const KEY_ID: &str = "6b1f0c2d9e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c";
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const FCM_ERROR: &str = "type.googleapis.com/google.firebase.fcm.v1.FcmError";

/// More of a request is not read.
const MAX_REQUEST: usize = 64 * 1024;
/// What FCM takes of the names and values of `data`.
const MAX_DATA: usize = 4096;
/// By how much clocks may differ, in seconds.
const SKEW: u64 = 300;

const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

// === impl FcmStandIn ===

impl FcmStandIn {
    /// Serves `listener` with the server certificate of `pki`, for one project.
    ///
    /// # Errors
    /// When the listener or the certificate cannot be used, or no key can be made.
    pub fn start(listener: TcpListener, pki: &Pki) -> Result<Self, FcmStartError> {
        Self::of_project(listener, pki, PROJECT)
    }

    /// The same for the project of this name.
    ///
    /// # Errors
    /// As [`FcmStandIn::start`].
    pub fn of_project(
        listener: TcpListener,
        pki: &Pki,
        project: &'static str,
    ) -> Result<Self, FcmStartError> {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| FcmStartError::Key)?;
        let shared = Arc::new(FcmShared {
            state: Mutex::new(FcmState {
                messages: VecDeque::new(),
                handed_out: 0,
                answers: VecDeque::new(),
                answer_to_all: FcmAnswer::Accept,
                tokens: TokenAnswers::Give(3599),
                asked: 0,
                given: 0,
                good: HashSet::new(),
            }),
            received: watch::Sender::new(0),
            address: listener.local_addr()?,
            key,
            project,
            gate: AnswerGate::default(),
        });
        let tls = TlsAcceptor::from(pki.apns_config()?);
        let for_connections = shared.clone();
        let port = Port::open(listener, move |stream| {
            let (tls, shared) = (tls.clone(), for_connections.clone());
            async move {
                if let Ok(Ok(stream)) =
                    tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream)).await
                {
                    serve(stream, shared).await;
                }
            }
        })?;
        Ok(Self { port, shared })
    }

    /// Where it listens; `https://localhost:<port>` is an endpoint that its certificate covers.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// `https://localhost:<port>`.
    pub fn endpoint(&self) -> String {
        self.shared.endpoint()
    }

    /// The name of its project.
    pub fn project(&self) -> &'static str {
        self.shared.project
    }

    /// The file of its service account, as the Firebase console would make it.
    ///
    /// # Errors
    /// When the key cannot be written.
    pub fn service_account(&self) -> Result<String, FcmStartError> {
        let der: Pkcs8V1Der<'_> = self.shared.key.as_der().map_err(|_| FcmStartError::Key)?;
        let key = STANDARD.encode(der.as_ref());
        let file = json!({
            "type": "service_account",
            "project_id": self.shared.project,
            "private_key_id": KEY_ID,
            "private_key": format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n"),
            "client_email": EMAIL,
            "token_uri": self.shared.token_uri(),
        });
        Ok(file.to_string())
    }

    /// The next message that was not handed out yet. Waits for it. Cancel safe.
    pub async fn next(&self) -> FcmMessage {
        let mut received = self.shared.received.subscribe();
        loop {
            {
                let mut state = self.shared.state();
                if let Some(message) = state.messages.get(state.handed_out).cloned() {
                    state.handed_out += 1;
                    return message;
                }
            }
            // The handle holds the sender, so the wait cannot fail.
            let _ = received.changed().await;
        }
    }

    /// All messages so far.
    pub fn messages(&self) -> Vec<FcmMessage> {
        self.shared.state().messages.iter().cloned().collect()
    }

    /// The answer to the next `count` messages that would be accepted.
    pub fn answer_next(&self, count: usize, answer: FcmAnswer) {
        self.shared.state().answers.extend(std::iter::repeat_n(answer, count));
    }

    /// Takes requests, but answers none of them before `held` is false again.
    pub fn hold_answers(&self, held: bool) {
        self.shared.gate.shut(held);
    }

    /// The answer to all for which nothing else is prescribed.
    pub fn answer_all(&self, answer: FcmAnswer) {
        self.shared.state().answer_to_all = answer;
    }

    /// What the token server does from now on.
    pub fn answer_tokens(&self, tokens: TokenAnswers) {
        self.shared.state().tokens = tokens;
    }

    /// No access token that was given counts any more.
    pub fn revoke_tokens(&self) {
        self.shared.state().good.clear();
    }

    /// How often the token server was asked, and how many tokens it gave.
    pub fn tokens(&self) -> (usize, usize) {
        let state = self.shared.state();
        (state.asked, state.given)
    }

    /// How many connections were ever made.
    pub fn connections(&self) -> u64 {
        self.port.accepted()
    }

    /// Refuses new connections, and closes those that are open.
    pub async fn refuse(&self) {
        self.port.close().await;
        self.port.drop_connections();
    }

    /// Listens again on the same port.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn resume(&self) -> io::Result<()> {
        self.port.reopen().await
    }
}

impl std::fmt::Debug for FcmStandIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FcmStandIn").field("address", &self.address()).finish_non_exhaustive()
    }
}

/// Why the stand-in cannot start.
#[derive(Debug, thiserror::Error)]
pub enum FcmStartError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The listener failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No RSA key can be made or written.
    #[error("cannot make an RSA key")]
    Key,
}

// === impl FcmMessage ===

impl FcmMessage {
    /// The registration token.
    pub fn token(&self) -> &str {
        self.message["token"].as_str().unwrap_or_default()
    }

    /// The data.
    pub fn data(&self) -> BTreeMap<String, String> {
        let data = self.message["data"].as_object().into_iter().flatten();
        data.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect()
    }
}

// === impl FcmAnswer ===

impl FcmAnswer {
    /// An error with FCM's own detail.
    pub fn refuse(http: u16, status: &str, code: &str) -> Self {
        Self::error(http, status, Some(code), "")
    }

    /// An error, with FCM's own detail where there is a `code`.
    pub fn error(http: u16, status: &str, code: Option<&str>, message: &str) -> Self {
        let (status, message, retry_after) = (status.to_owned(), message.to_owned(), None);
        Self::Refuse { http, status, code: code.map(str::to_owned), message, retry_after }
    }

    /// The same with a `Retry-After` of so many seconds.
    #[must_use]
    pub fn later(mut self, seconds: u32) -> Self {
        if let Self::Refuse { retry_after, .. } = &mut self {
            *retry_after = Some(seconds);
        }
        self
    }

    fn status(&self) -> Option<u16> {
        match self {
            Self::Accept | Self::Farewell | Self::Endless => Some(200),
            Self::Refuse { http, .. } => Some(*http),
            Self::Hang => None,
        }
    }
}

// === impl FcmShared ===

impl FcmShared {
    fn state(&self) -> MutexGuard<'_, FcmState> {
        self.state.lock()
    }

    fn endpoint(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn token_uri(&self) -> String {
        format!("{}/token", self.endpoint())
    }

    /// Whether this is a proof of the service account that counts now (RFC 7523 section 3).
    fn proves(&self, assertion: &str) -> bool {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let json = |text: &str| serde_json::from_slice::<Value>(&decode(text)?).ok();
        let parts: Vec<_> = assertion.split('.').collect();
        let [header, claims, signature] = parts[..] else { return false };
        let (Some(signature), Some(header_json), Some(claims_json)) =
            (decode(signature), json(header), json(claims))
        else {
            return false;
        };
        let key =
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.key.public_key().as_ref());
        let signed = format!("{header}.{claims}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let at = claims_json["iat"].as_u64().unwrap_or(0);
        let life = claims_json["exp"].as_u64().unwrap_or(0).saturating_sub(at);
        key.verify(signed.as_bytes(), &signature).is_ok()
            && header_json == json!({ "alg": "RS256", "typ": "JWT", "kid": KEY_ID })
            && claims_json["iss"] == EMAIL
            && claims_json["scope"] == SCOPE
            && claims_json["aud"] == self.token_uri()
            && now.abs_diff(at) <= SKEW
            && (1..=3600).contains(&life)
    }
}

// --- Connections ---

async fn serve(stream: tokio_rustls::server::TlsStream<TcpStream>, shared: Arc<FcmShared>) {
    let answer = |request, farewell| {
        let shared = Arc::clone(&shared);
        async move {
            let response = answer(request, &shared, &farewell).await;
            shared.gate.open().await;
            response
        }
    };
    farewell::serve(stream, true, answer).await;
}

async fn answer(
    request: Request<Incoming>,
    shared: &FcmShared,
    farewell: &CancellationToken,
) -> Response<ReplyBody> {
    let (head, body) = request.into_parts();
    let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let (kind, authorization) = (text(CONTENT_TYPE), text(AUTHORIZATION));
    let (kind, authorization) = (kind.map(str::to_owned), authorization.map(str::to_owned));
    let body = whole(body, MAX_REQUEST).await.unwrap_or_default();
    let send = format!("/v1/projects/{}/messages:send", shared.project);
    match (&head.method, head.uri.path()) {
        (&Method::POST, "/token") => {
            let form = kind.as_deref() == Some("application/x-www-form-urlencoded");
            give_token(if form { &body } else { &[] }, shared).await
        }
        (&Method::POST, path) if path == send => {
            if kind.as_deref() != Some("application/json") {
                return refuse(400, "INVALID_ARGUMENT", Some("INVALID_ARGUMENT"), "no JSON", None);
            }
            take_message(authorization.as_deref(), &body, shared, farewell).await
        }
        _ => refuse(404, "NOT_FOUND", None, "Requested entity was not found.", None),
    }
}

async fn give_token(form: &[u8], shared: &FcmShared) -> Response<ReplyBody> {
    let form: BTreeMap<_, _> = form_urlencoded::parse(form).into_owned().collect();
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    let proves = field("grant_type") == GRANT && shared.proves(field("assertion"));
    let tokens = {
        let mut state = shared.state();
        state.asked += 1;
        state.tokens
    };
    match tokens {
        TokenAnswers::Hang => std::future::pending().await,
        TokenAnswers::Fail => respond(503, "{}".to_owned(), None),
        TokenAnswers::Give(life) if proves => {
            let mut state = shared.state();
            state.given += 1;
            let token = format!("ya29.demo-{}", state.given);
            state.good.insert(token.clone());
            let given =
                json!({ "access_token": token, "expires_in": life, "token_type": "Bearer" });
            respond(200, given.to_string(), None)
        }
        TokenAnswers::Give(_) | TokenAnswers::Refuse => {
            let error = json!({
                "error": "invalid_grant",
                "error_description": "Invalid JWT Signature.",
            });
            respond(400, error.to_string(), None)
        }
    }
}

async fn take_message(
    authorization: Option<&str>,
    body: &[u8],
    shared: &FcmShared,
    farewell: &CancellationToken,
) -> Response<ReplyBody> {
    let token = authorization.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let known = shared.state().good.contains(token);
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let fault = fault(&body);
    let answer = match &fault {
        _ if !known => FcmAnswer::error(401, "UNAUTHENTICATED", None, "invalid credentials"),
        Some(why) => FcmAnswer::error(400, "INVALID_ARGUMENT", Some("INVALID_ARGUMENT"), why),
        None => {
            let mut state = shared.state();
            state.answers.pop_front().unwrap_or_else(|| state.answer_to_all.clone())
        }
    };
    let message = FcmMessage {
        message: body["message"].clone(),
        validate_only: body["validate_only"] == true,
        status: answer.status(),
    };
    let number = {
        let mut state = shared.state();
        state.messages.push_back(message);
        state.messages.len()
    };
    shared.received.send_modify(|count| *count += 1);
    match answer {
        FcmAnswer::Hang => std::future::pending().await,
        FcmAnswer::Endless => Response::new(ReplyBody::Endless),
        accepted @ (FcmAnswer::Accept | FcmAnswer::Farewell) => {
            if accepted == FcmAnswer::Farewell {
                farewell.cancel();
            }
            let name = format!("projects/{}/messages/0:{number}", shared.project);
            respond(200, json!({ "name": name }).to_string(), None)
        }
        FcmAnswer::Refuse { http, status, code, message, retry_after } => {
            refuse(http, &status, code.as_deref(), &message, retry_after)
        }
    }
}

/// What FCM would say is wrong with a message.
fn fault(body: &Value) -> Option<&'static str> {
    let message = &body["message"];
    let targets = ["token", "topic", "condition"].iter().filter(|name| message[**name].is_string());
    if targets.count() != 1 {
        return Some("exactly one of token, topic or condition is required");
    }
    let Some(data) = message["data"].as_object() else { return Some("no data") };
    let reserved = |key: &String| {
        ["from", "message_type"].contains(&key.as_str())
            || key.starts_with("google")
            || key.starts_with("gcm")
    };
    if data.keys().any(reserved) {
        return Some("a reserved key in data");
    }
    let size = |(key, value): (&String, &Value)| Some(key.len() + value.as_str()?.len());
    let size: Option<usize> = data.iter().map(size).sum();
    match size {
        None => return Some("data holds other values than strings"),
        Some(size) if size > MAX_DATA => return Some("Android message is too big"),
        Some(_) => {}
    }
    let android = &message["android"];
    if android.is_null() {
        return None;
    }
    let ttl = android["ttl"].as_str().and_then(|ttl| ttl.strip_suffix('s')?.parse::<u32>().ok());
    let priority = android["priority"].as_str().map(str::to_ascii_lowercase);
    if !["normal", "high"].contains(&priority.as_deref().unwrap_or_default()) {
        return Some("invalid priority");
    }
    ttl.is_none_or(|ttl| ttl > 28 * 24 * 3600).then_some("invalid ttl")
}

fn refuse(
    http: u16,
    status: &str,
    code: Option<&str>,
    message: &str,
    retry_after: Option<u32>,
) -> Response<ReplyBody> {
    let mut error = json!({ "code": http, "message": message, "status": status });
    if let Some(code) = code {
        error["details"] = json!([{ "@type": FCM_ERROR, "errorCode": code }]);
    }
    respond(http, json!({ "error": error }).to_string(), retry_after)
}

fn respond(status: u16, body: String, retry_after: Option<u32>) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Text(Some(body.into())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}
