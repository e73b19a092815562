//! The client of Apple's push service: one request in, one [`Outcome`] out.
//!
//! HTTP/2 on hyper over a connection of our own (`link`), because the client of the a2 crate
//! fixes host and trust roots; what is sent is a2's model ([`PayloadLike`]). It must not know
//! which device is told of what, or when: that is the dispatcher's.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use a2::request::payload::PayloadLike;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::sign::SingleCertAndKey;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tracing::warn;
use uuid::Uuid;

use super::identity::{Identity, IdentityError, Proof};
use super::judge::{self, Outcome};
use super::link::{self, Body, Link, Up};
use super::skew::Skew;
use super::token::Tokens;
use super::tunnel::Tunnel;
use crate::config::{self, ApnsServer};
use crate::model::Timestamp;
use crate::net::resolve::NameResolver;
use crate::net::tls::{self, TlsError};

/// The reason with which APNs refuses a token that is too old.
const EXPIRED: &str = "ExpiredProviderToken";

/// How much of an answer's body is read; APNs says a reason and a time.
const MAX_ANSWER: usize = 16 * 1024;

/// A client of one APNs server under one identity. Clones share the connection, which is dialled
/// at the first push.
#[derive(Clone)]
pub struct ApnsClient {
    link: Link,
    endpoint: ApnsServer,
    topic: Arc<str>,
    /// `None` where a certificate says who we are.
    tokens: Option<Arc<Tokens>>,
    skew: Arc<Skew>,
    priority: Option<u8>,
    request_timeout: Duration,
    in_flight: usize,
}

/// Why there can be no client. The texts name the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    #[error("[apns] ca: {0}")]
    Ca(TlsError),
    #[error("[apns] proxy_login_file: {0}")]
    ProxyLogin(IdentityError),
}

/// What went wrong with one attempt.
enum AttemptError {
    /// Worth one more attempt at once: nothing was processed, or the connection broke, and then a
    /// device told twice is better than one told late.
    Again(String),
    /// Trying again at once would not help.
    Final(Outcome),
}

impl ApnsClient {
    /// A client that presents `identity` to `config.endpoint`, and believes only a server that
    /// `config.ca` vouches for, or the system's roots: never one pinned root, since Apple changes
    /// them. `priority` is the `apns-priority` of pushes that do not say their own;
    /// `None` leaves the header out. `resolver` knows the endpoint's name, or the proxy's. Reads the files of the CA and of the proxy's login, and opens no
    /// socket.
    ///
    /// # Errors
    /// When there is nobody to trust, a file cannot be read, or TLS cannot be set up.
    pub fn new(
        identity: &Identity,
        config: &config::Apns,
        priority: Option<u8>,
        resolver: &NameResolver,
    ) -> Result<Self, SetupError> {
        let tls = client_tls(identity, config).map_err(SetupError::Ca)?;
        let tunnel = config.proxy.as_ref().map(|proxy| Tunnel::new(proxy, &config.endpoint));
        let tunnel = tunnel.transpose().map_err(SetupError::ProxyLogin)?;
        Ok(Self {
            link: Link::new(config, TlsConnector::from(Arc::new(tls)), tunnel, resolver.clone()),
            endpoint: config.endpoint.clone(),
            topic: identity.topic().into(),
            tokens: match &identity.proof {
                Proof::Certificate(_) => None,
                Proof::Token(tokens) => Some(tokens.clone()),
            },
            skew: Arc::default(),
            priority,
            request_timeout: config.request_timeout,
            in_flight: config.in_flight,
        })
    }

    /// The topic that this client's identity speaks for.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    pub fn endpoint(&self) -> &ApnsServer {
        &self.endpoint
    }

    /// How many pushes may be under way at once.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Sends one push and says what APNs made of it: within `request_timeout`, including dialling
    /// and, where the first attempt was not processed, one more on a new connection.
    ///
    /// Cancel safe in so far as a push that is dropped may or may not have been sent.
    pub async fn send(&self, push: &impl PayloadLike) -> Outcome {
        let (request, apns_id) = match self.request(push) {
            Ok(built) => built,
            Err(why) => return Outcome::Refused { status: 0, reason: why },
        };
        let mut used = None;
        match timeout(self.request_timeout, self.attempts(request, &apns_id, &mut used)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // The connection may be dead behind some NAT, and a PING will find out; others
                // need not wait for that.
                if let Some(up) = used {
                    self.link.give_up(&up, "a request was not answered in time");
                }
                Outcome::unavailable(format!("no answer within {:?}", self.request_timeout))
            }
        }
    }

    async fn attempts(
        &self,
        request: Request<Body>,
        apns_id: &str,
        used: &mut Option<Up>,
    ) -> Outcome {
        let mut retried = false;
        let mut authorization = None;
        if let Some(tokens) = &self.tokens {
            authorization = tokens.authorization(Timestamp::now());
            if authorization.is_none() {
                return Outcome::cannot_send("no provider token can be signed");
            }
        }
        loop {
            let up = match self.link.up().await {
                Ok(up) => up,
                Err(down) => {
                    return Outcome::Unavailable {
                        why: format!("no connection: {}", down.why),
                        retry_after: Some(down.until.saturating_duration_since(Instant::now())),
                        of_all: true,
                    };
                }
            };
            *used = Some(up.clone());
            let mut attempt = request.clone();
            attempt.headers_mut().extend(authorization.clone().map(|token| (AUTHORIZATION, token)));
            match self.attempt(&up, attempt, apns_id).await {
                Ok(Outcome::Refused { status: 403, reason }) if reason == EXPIRED => {
                    let newer = authorization.as_ref().zip(self.tokens.as_ref());
                    let newer =
                        newer.and_then(|(old, tokens)| tokens.renewed(old, Timestamp::now()));
                    if newer.is_none() || retried {
                        return Outcome::Refused { status: 403, reason };
                    }
                    (authorization, retried) = (newer, true);
                }
                Ok(outcome) | Err(AttemptError::Final(outcome)) => return outcome,
                Err(AttemptError::Again(why)) if retried => return Outcome::unavailable(why),
                Err(AttemptError::Again(_)) => retried = true,
            }
        }
    }

    async fn attempt(
        &self,
        up: &Up,
        request: Request<Body>,
        apns_id: &str,
    ) -> Result<Outcome, AttemptError> {
        match up.sender.clone().try_send_request(request).await {
            Ok(response) => {
                self.link.answered(up);
                self.skew.look(response.headers().get(DATE), Timestamp::now());
                Ok(read(response, apns_id).await)
            }
            Err(mut error) => {
                let never_sent = error.take_message().is_some();
                let error = error.into_error();
                let why = link::causes(&error);
                match cause(&error) {
                    // The connection lives; it had one stream too many.
                    Some(h2) if h2.is_reset() => match h2.reason() {
                        Some(h2::Reason::REFUSED_STREAM) => Err(AttemptError::Again(why)),
                        _ => Err(AttemptError::Final(Outcome::unavailable(why))),
                    },
                    h2 => {
                        if h2.is_some_and(h2::Error::is_go_away) {
                            warn!(
                                target: "mailchime::push::goaway_received",
                                endpoint = %self.endpoint, why,
                                "APNs sent GOAWAY; mailchime sends the push again on a new \
                                 connection"
                            );
                        } else if !never_sent {
                            warn!(
                                target: "mailchime::push::connection_failed",
                                endpoint = %self.endpoint, why,
                                "the connection to APNs failed; mailchime sends the push again on \
                                 a new connection"
                            );
                        }
                        self.link.give_up(up, &why);
                        Err(AttemptError::Again(why))
                    }
                }
            }
        }
    }

    /// The request for `push` and its `apns-id` (PROTOCOL.md section 2, "Headers").
    fn request(&self, push: &impl PayloadLike) -> Result<(Request<Body>, String), String> {
        let options = push.get_options();
        let apns_id = options.apns_id.unwrap_or_default().to_owned();
        let body = push.to_json_string().map_err(|_| "the payload cannot be written")?;
        let uri = format!("{}/3/device/{}", self.endpoint, push.get_device_token());
        let own_priority = options.apns_priority.as_ref().map(ToString::to_string);
        let headers = [
            ("apns-id", options.apns_id.map(str::to_owned)),
            ("apns-topic", Some(options.apns_topic.unwrap_or(&self.topic).to_owned())),
            ("apns-push-type", options.apns_push_type.map(|kind| kind.to_string())),
            ("apns-priority", own_priority.or(self.priority.map(|priority| priority.to_string()))),
            ("apns-expiration", options.apns_expiration.map(|at| at.to_string())),
            ("apns-collapse-id", options.apns_collapse_id.as_ref().map(|id| id.value.to_owned())),
        ];
        // Without it the push is accepted and then dropped.
        let mut request =
            Request::post(uri).header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in headers {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        match request.body(Body::new(Bytes::from(body))) {
            Ok(request) => Ok((request, apns_id)),
            // The error's own text is about a header or the address, and that has the token.
            Err(_) => Err("the push cannot be written as a request".into()),
        }
    }
}

impl fmt::Debug for ApnsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApnsClient")
            .field("endpoint", &self.endpoint)
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

/// Shows the certificate, if that is who we are.
fn client_tls(identity: &Identity, config: &config::Apns) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(tls::verifier(config.ca.as_deref())?);
    let mut tls = match &identity.proof {
        Proof::Certificate(certified) => {
            let certificate: Arc<dyn ResolvesClientCert> =
                Arc::new(SingleCertAndKey::from(certified.clone()));
            builder.with_client_cert_resolver(certificate)
        }
        Proof::Token(_) => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

/// A fresh UUID (version 4, RFC 9562 section 5.4) for `apns-id`.
pub fn new_apns_id() -> String {
    Uuid::new_v4().to_string()
}

/// What h2 said, if that is the reason.
fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

async fn read(response: Response<Incoming>, sent_id: &str) -> Outcome {
    let text = |name: &str| response.headers().get(name)?.to_str().ok();
    let apns_id = text("apns-id").unwrap_or(sent_id).to_owned();
    let retry_after = text(RETRY_AFTER.as_str()).and_then(judge::retry_after);
    let status = response.status().as_u16();
    // The status of a 200 says all.
    let body = match status {
        200 => Bytes::new(),
        _ => match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => Bytes::new(),
        },
    };
    judge::outcome(status, &body, &apns_id, retry_after)
}

#[cfg(test)]
mod tests {
    use a2::PushType;

    use super::super::payload::{Headers, MailPush};
    use super::*;
    use crate::demo;
    use crate::demo::pki::Pki;
    use crate::imap::registration::xapple::{DeviceToken, XAppleRegistration};
    use crate::model::{Account, Mailbox};

    /// A token that APNs finds too old, though we do not: its clock is half an hour ahead.
    #[tokio::test]
    async fn an_expired_token_is_replaced_once() {
        let pki = Pki::generate(None).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stand_in = demo::apns::Apns::start(listener, &pki).unwrap();
        stand_in.set_clock_ahead(40 * 60);
        let folder = tempfile::tempdir().unwrap();
        pki.write_to(folder.path()).unwrap();
        let key = folder.path().join("apns.p8");
        std::fs::write(&key, pki.provider.expose_private_key()).unwrap();
        let (key_id, team_id) = (pki.provider.key_id.clone(), pki.provider.team_id.clone());
        let topic = pki.topic.clone();
        let mut config =
            config::Apns::with(config::ProviderFiles::Key { key, key_id, team_id, topic });
        let (host, port) = ("localhost".into(), stand_in.address().port());
        (config.endpoint, config.ca) =
            (ApnsServer { host, port }, Some(folder.path().join("ca.pem")));
        let apns = ApnsClient::new(
            &Identity::load(&config.identity).unwrap(),
            &config,
            None,
            &NameResolver::default(),
        )
        .unwrap();

        let device = XAppleRegistration {
            version: 2,
            account_id: "ID".into(),
            token: DeviceToken::new(&"ab".repeat(32)).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: Vec::new(),
        }
        .subscription(Account::from_login("alice"), &pki.topic);
        let push = async || {
            let (push_type, expiration, collapse_id) = (PushType::Background, 1, None);
            let id = new_apns_id();
            let headers = Headers { id: &id, push_type, expiration, collapse_id };
            apns.send(&MailPush::new(&device, &[Mailbox::inbox()], headers).unwrap()).await
        };
        let tokens = apns.tokens.as_ref().unwrap();
        tokens.authorization(Timestamp::now().minus(Duration::from_secs(25 * 60))).unwrap();
        assert!(matches!(push().await, Outcome::Accepted { .. }));
        assert_eq!(stand_in.received(), 2, "refused, and sent again with a new token");
        assert!(matches!(push().await, Outcome::Accepted { .. }));
        assert_eq!((stand_in.received(), stand_in.connections()), (3, 1));

        stand_in.set_clock_ahead(2 * 3600);
        let reason = EXPIRED.to_owned();
        assert_eq!(push().await, Outcome::Refused { status: 403, reason });
        assert_eq!(stand_in.received(), 4, "a token that is new is not replaced");
    }
}
