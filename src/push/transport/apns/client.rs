//! The client of Apple's push service: one request in, one response out.
//!
//! HTTP/2 on hyper over a connection of our own (`link`), because the client of the a2 crate
//! fixes host and trust roots. It must not know which device gets a push of what, or when: that is the
//! dispatcher's.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, DATE};
use hyper::{Request, Response, StatusCode};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::sign::SingleCertAndKey;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::identity::{ApnsIdentity, Proof, Validity};
use super::link::{Body, Link, Up};
use super::payload::Probe;
use super::skew::Skew;
use super::token::Tokens;
use super::{judge, message};
use crate::config::{self, ApnsServer};
use crate::model::Timestamp;
use crate::net::dial::Dialer;
use crate::net::https::causes;
use crate::net::resolve::NameResolver;
use crate::net::tls::{self, TlsError};
use crate::net::tunnel::Tunnel;
use crate::push::transport::{Exchange, Sender, Verdict};

/// How much of an answer's body is read; APNs says a reason and a time.
const MAX_ANSWER: usize = 16 * 1024;

/// A client of one APNs server under one identity. Clones share the connection, which is dialled
/// at the first push.
#[derive(Clone)]
pub struct ApnsClient {
    link: Link,
    endpoint: ApnsServer,
    identity: ApnsIdentity,
    /// `None` where a certificate says who we are.
    tokens: Option<Arc<Tokens>>,
    skew: Arc<Skew>,
    request_timeout: Duration,
}

/// Why there can be no client. The texts name the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The authorities cannot be read.
    #[error("[apns] ca: {0}")]
    Ca(TlsError),
    /// The proxy's login cannot be read.
    #[error("[apns] proxy_login_file: {0}")]
    ProxyLogin(String),
}

/// What went wrong with one attempt.
enum AttemptError {
    /// Worth one more attempt at once: nothing was processed, or the connection broke, and then a
    /// device told twice is better than one told late.
    Again(String),
    /// Trying again at once would not help.
    Final(String),
}

impl ApnsClient {
    /// A client that presents `identity` to `config.endpoint`, and believes only a server that
    /// `config.ca` vouches for, or the system's roots: never one pinned root, since Apple changes
    /// them. `resolver` knows the endpoint's name, or the proxy's. Reads the files of the CA and of the
    /// proxy's login, and opens no socket.
    ///
    /// # Errors
    /// When there is nobody to trust, a file cannot be read, or TLS cannot be set up.
    pub fn new(
        identity: &ApnsIdentity,
        config: &config::ApnsConfig,
        resolver: &NameResolver,
    ) -> Result<Self, SetupError> {
        let tls = client_tls(identity, config).map_err(SetupError::Ca)?;
        let tunnel =
            config.proxy.as_ref().map(Tunnel::of).transpose().map_err(SetupError::ProxyLogin)?;
        Ok(Self {
            link: Link::new(config, Dialer::new(resolver.clone(), tunnel, Arc::new(tls))),
            endpoint: config.endpoint.clone(),
            identity: identity.clone(),
            tokens: match &identity.proof {
                Proof::Certificate(_) => None,
                Proof::Token(tokens) => Some(tokens.clone()),
            },
            skew: Arc::default(),
            request_timeout: config.request_timeout,
        })
    }

    /// Where it sends to.
    pub fn endpoint(&self) -> &ApnsServer {
        &self.endpoint
    }

    /// Sends a push to a device that cannot be, under the topic of the identity. APNs answers it with
    /// [`Verdict::BadEndpoint`] where nothing is wrong.
    pub async fn probe(&self) -> Verdict {
        match message::request(&self.endpoint, &Probe::new(self.identity.topic()), None) {
            Ok(request) => match self.send(request).await {
                Ok(response) => judge::judge(&response),
                Err(verdict) => verdict,
            },
            Err(verdict) => verdict,
        }
    }

    /// Sends one request: within `request_timeout`, including dialling and, where the first attempt was
    /// not processed, one more on a new connection.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Verdict> {
        let mut used = None;
        let attempts = self.attempts(request.map(Body::new), &mut used);
        match timeout(self.request_timeout, attempts).await {
            Ok(response) => response,
            Err(_) => {
                // The connection may be dead behind some NAT, and a PING will find out; others
                // need not wait for that.
                if let Some(up) = used {
                    self.link.give_up(&up, "a request was not answered in time");
                }
                let why = format!("no answer within {:?}", self.request_timeout);
                Err(Verdict::unavailable(why))
            }
        }
    }

    async fn attempts(
        &self,
        request: Request<Body>,
        used: &mut Option<Up>,
    ) -> Result<Response<Bytes>, Verdict> {
        let mut retried = false;
        let mut authorization = None;
        if let Some(tokens) = &self.tokens {
            authorization = tokens.authorization(Timestamp::now());
            if authorization.is_none() {
                return Err(Verdict::route_closed("no provider token can be signed"));
            }
        }
        loop {
            let up = match self.link.up().await {
                Ok(up) => up,
                Err(down) => {
                    return Err(Verdict::RouteClosed {
                        why: format!("no connection: {}", down.why),
                        retry_after: Some(down.until.saturating_duration_since(Instant::now())),
                    });
                }
            };
            *used = Some(up.clone());
            let mut attempt = request.clone();
            attempt.headers_mut().extend(authorization.clone().map(|token| (AUTHORIZATION, token)));
            match self.attempt(&up, attempt).await {
                Ok(response) if judge::is_expired_token(&response) => {
                    let newer = authorization.as_ref().zip(self.tokens.as_ref());
                    let newer =
                        newer.and_then(|(old, tokens)| tokens.renewed(old, Timestamp::now()));
                    if newer.is_none() || retried {
                        return Ok(response);
                    }
                    (authorization, retried) = (newer, true);
                }
                Ok(response) => return Ok(response),
                Err(AttemptError::Final(why)) => return Err(Verdict::unavailable(why)),
                Err(AttemptError::Again(why)) if retried => return Err(Verdict::unavailable(why)),
                Err(AttemptError::Again(_)) => retried = true,
            }
        }
    }

    async fn attempt(
        &self,
        up: &Up,
        request: Request<Body>,
    ) -> Result<Response<Bytes>, AttemptError> {
        match up.sender.clone().try_send_request(request).await {
            Ok(response) => {
                self.link.answered(up);
                self.skew.look(response.headers().get(DATE), Timestamp::now());
                Ok(read(response).await)
            }
            Err(mut error) => {
                let never_sent = error.take_message().is_some();
                let error = error.into_error();
                let why = causes(&error);
                match cause(&error) {
                    // The connection lives; it had one stream too many.
                    Some(h2) if h2.is_reset() => match h2.reason() {
                        Some(h2::Reason::REFUSED_STREAM) => Err(AttemptError::Again(why)),
                        _ => Err(AttemptError::Final(why)),
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
}

impl Sender for ApnsClient {
    fn closed(&self, now: Timestamp) -> Option<String> {
        match self.identity.validity(now) {
            Validity::Valid => None,
            validity => Some(format!("{}: is {validity}", self.identity.file().display())),
        }
    }

    fn exchange(&self, request: Request<Bytes>) -> Exchange<'_> {
        Box::pin(self.send(request))
    }
}

impl fmt::Debug for ApnsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApnsClient")
            .field("endpoint", &self.endpoint)
            .field("topic", &self.identity.topic())
            .finish_non_exhaustive()
    }
}

/// Shows the certificate, if that is who we are.
fn client_tls(
    identity: &ApnsIdentity,
    config: &config::ApnsConfig,
) -> Result<ClientConfig, TlsError> {
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

/// What h2 said, if that is the reason.
fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// The response with its body, of which a bounded part is kept.
async fn read(response: Response<Incoming>) -> Response<Bytes> {
    let (head, body) = response.into_parts();
    // The status of a 200 says all.
    let body = match head.status {
        StatusCode::OK => Bytes::new(),
        _ => match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => Bytes::new(),
        },
    };
    Response::from_parts(head, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo;
    use crate::demo::pki::Pki;

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
            config::ApnsConfig::with(config::ProviderFiles::Key { key, key_id, team_id, topic });
        let (host, port) = ("localhost".into(), stand_in.address().port());
        (config.endpoint, config.ca) =
            (ApnsServer { host, port }, Some(folder.path().join("ca.pem")));
        let identity = ApnsIdentity::load(&config.identity).unwrap();
        let apns = ApnsClient::new(&identity, &config, &NameResolver::default()).unwrap();

        // It comes to the token before it comes to the device.
        let push = async || apns.probe().await;
        let tokens = apns.tokens.as_ref().unwrap();
        tokens.authorization(Timestamp::now().minus(Duration::from_secs(25 * 60))).unwrap();
        assert_eq!(push().await, Verdict::BadEndpoint);
        assert_eq!(stand_in.received(), 2, "refused, and sent again with a new token");
        assert_eq!(push().await, Verdict::BadEndpoint);
        assert_eq!((stand_in.received(), stand_in.connections()), (3, 1));

        stand_in.set_clock_ahead(2 * 3600);
        let why = "403 ExpiredProviderToken".to_owned();
        assert_eq!(push().await, Verdict::Misconfigured { why });
        assert_eq!(stand_in.received(), 4, "a token that is new is not replaced");
    }
}
