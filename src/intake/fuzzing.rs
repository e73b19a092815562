//! The way in of `fuzz/` to what is private here. It is in no other build.

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use super::cyrus::event::{self, CyrusNews};
use super::cyrus::notification::{self, Notification, Parsed};
use super::refusal::IntakeRefusal;
use super::report;
use super::source::{KnownSource, SourceProof};
use super::{ox, udp};
use crate::config::EventSourceConfig;
use crate::metrics::Metrics;
use crate::model::{Account, Hint, Timestamp};

/// The most bytes of a notification.
pub const LONGEST: usize = notification::LONGEST;

/// What comes over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuzzedBody {
    /// mailchime's own.
    Report,
    /// That of Dovecot's driver `ox`.
    Ox,
    /// An event of Cyrus.
    Cyrus,
}

/// What was said.
#[derive(Debug)]
pub enum FuzzedNews {
    /// Of mailboxes.
    Hints(Vec<Hint>),
    /// Of a device of this account, with all that a log could show of it.
    Device(Account, String),
    /// Nothing that is taken: all that a log or an answer could show of that.
    Refused(String),
}

/// A notification, with all that is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuzzedNotification {
    /// Its class.
    pub class: Vec<u8>,
    /// Whose mailbox it is, of the class `MAIL`.
    pub user: Vec<u8>,
    /// Which mailbox it is, of the class `MAIL`.
    pub mailbox: Vec<u8>,
    /// JSON, of the class `EVENT`.
    pub message: Vec<u8>,
}

/// What bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FuzzedStream {
    /// All of a notification is there.
    Whole(FuzzedNotification),
    /// More is to come.
    Incomplete,
    /// It is longer than any.
    TooLarge,
    /// It is none.
    Malformed,
}

/// Who sends events, without a secret.
#[derive(Debug)]
pub struct FuzzedSource(KnownSource);

/// Who sends events, with the secrets that prove it.
#[derive(Debug)]
pub struct FuzzedSenders(Vec<KnownSource>);

impl FuzzedSource {
    /// One that may speak for this domain, of which users without a domain are.
    pub fn new(domain: &str) -> Self {
        let mut config = EventSourceConfig::new("fuzzed", "");
        config.domains = vec![domain.to_owned()];
        config.default_domain = Some(domain.to_owned());
        Self(KnownSource::without_secret(&config, Metrics::default().source("fuzzed")))
    }

    /// What the body of a request says.
    pub fn body(&self, form: FuzzedBody, body: &[u8]) -> FuzzedNews {
        match form {
            FuzzedBody::Report => report::hints(body, &self.0).map(CyrusNews::Hints),
            FuzzedBody::Ox => ox::hints(body, &self.0).map(CyrusNews::Hints),
            FuzzedBody::Cyrus => event::event_news(body, &self.0),
        }
        .into()
    }

    /// What a notification of Cyrus says.
    pub fn notified(&self, notification: FuzzedNotification) -> FuzzedNews {
        let FuzzedNotification { class, user, mailbox, message } = notification;
        event::news(&Notification { class, user, mailbox, message }, &self.0).into()
    }
}

impl FuzzedSenders {
    /// Those of the configuration, with the secrets in their files.
    ///
    /// # Errors
    /// What is wrong with a file.
    pub fn load(configs: &[EventSourceConfig]) -> Result<Self, String> {
        let load = |config| KnownSource::load(config, Metrics::default().source("fuzzed"));
        configs.iter().map(load).collect::<Result<_, _>>().map(Self)
    }

    /// The place of the one who has proved by these headers that the body is theirs; `None` within if it is nobody, and
    /// alone if these are no headers.
    pub fn sender(
        &self,
        headers: &[(&str, &[u8])],
        body: &[u8],
        now: Timestamp,
    ) -> Option<Option<usize>> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().ok()?;
            map.append(name, HeaderValue::from_bytes(value).ok()?);
        }
        Some(match SourceProof::of(&map) {
            Some(SourceProof::Secret(presented)) => presented.source(&self.0),
            Some(SourceProof::Signature(signed)) => signed.source(&self.0, body, now),
            None => None,
        })
    }
}

/// The notification of a datagram.
pub fn datagram(datagram: &[u8]) -> Option<FuzzedNotification> {
    notification::of_datagram(datagram).map(FuzzedNotification::from)
}

/// What the bytes that a connection has brought so far say.
pub fn stream(bytes: &[u8]) -> FuzzedStream {
    match notification::of_stream(bytes) {
        Parsed::Whole(notification) => FuzzedStream::Whole(notification.into()),
        Parsed::Incomplete => FuzzedStream::Incomplete,
        Parsed::TooLarge => FuzzedStream::TooLarge,
        Parsed::Malformed => FuzzedStream::Malformed,
    }
}

/// The hint of a datagram of OX mailnotify; an error's word where it is none.
///
/// # Errors
/// As it is counted.
pub fn mailnotify(
    datagram: &[u8],
    default_domain: Option<&str>,
) -> Result<Option<Hint>, &'static str> {
    udp::hint(datagram, default_domain).map_err(|why| why.word())
}

impl From<Result<CyrusNews, IntakeRefusal>> for FuzzedNews {
    fn from(news: Result<CyrusNews, IntakeRefusal>) -> Self {
        match news {
            Ok(CyrusNews::Hints(hints)) => Self::Hints(hints),
            Ok(CyrusNews::Device(account, request)) => {
                Self::Device(account, format!("{request:?}"))
            }
            Err(refusal) => Self::Refused(format!("{refusal:?}")),
        }
    }
}

impl From<Notification> for FuzzedNotification {
    fn from(notification: Notification) -> Self {
        let Notification { class, user, mailbox, message } = notification;
        Self { class, user, mailbox, message }
    }
}
