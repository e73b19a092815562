//! Requests to answers.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::time::timeout;

use super::cyrus::event::{CyrusNews, event_news};
use super::device::{self, CyrusDevices, DeviceRefusal};
use super::refusal::{IntakeRefusal, IntakeResponse};
use super::source::{KnownSource, KnownSources, SourceProof};
use super::{HintRecorder, NotRecorded, ox, report};
use crate::imap::registration::xapple::XAppleRegistration;
use crate::metrics::{EventRefusal, SourceMetrics};
use crate::model::{Account, Hint, Timestamp};
use crate::net::backends::Backends;
use crate::net::counters::LimitCounters;

/// For hints to get to disk.
const RECORD_TIME: Duration = Duration::from_secs(10);

/// What requests share.
#[derive(Debug)]
pub(super) struct IntakeContext {
    pub(super) sources: KnownSources,
    pub(super) backends: Backends,
    pub(super) recorder: Arc<dyn HintRecorder>,
    pub(super) request_timeout: Duration,
    pub(super) body_size: usize,
    pub(super) counters: Arc<LimitCounters>,
    /// `None`: no device is registered.
    pub(super) devices: Option<Arc<CyrusDevices>>,
    /// Counts requests of which nobody knows whose they are.
    pub(super) strangers: SourceMetrics,
}

/// The request of a source that has proved itself, until its events are recorded or refused. Dropped before, they are
/// missed: the source went away meanwhile, or sent them in part, or there was no room for them.
struct UntakenEvents<'a> {
    recorder: &'a dyn HintRecorder,
    metrics: &'a SourceMetrics,
    /// How many they are, as far as they are read.
    events: usize,
}

impl UntakenEvents<'_> {
    /// They are recorded, or refused.
    fn over(mut self) {
        self.events = 0;
    }
}

impl Drop for UntakenEvents<'_> {
    fn drop(&mut self) {
        if self.events > 0 {
            self.recorder.missed();
            self.metrics.missed(self.events);
        }
    }
}

/// The form of a body.
#[derive(Clone, Copy)]
enum BodyForm {
    Report,
    Ox,
    Cyrus,
}

/// A refusal, and the place of the source that it is for, if one has proved itself.
type RefusedRequest = (Option<usize>, IntakeRefusal);

impl IntakeContext {
    /// The answer to a request.
    pub(super) async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> IntakeResponse {
        let table = self.sources.now();
        let sources = table.all();
        let (source, refusal) = match self.take(request, sources).await {
            Ok(()) => {
                let mut response = Response::new(Full::new(Bytes::new()));
                *response.status_mut() = StatusCode::NO_CONTENT;
                return response;
            }
            Err(refused) => refused,
        };
        if refusal.is_by_sources() && table.refused() {
            self.recorder.missed();
        }
        let source = source.and_then(|source| sources.get(source));
        if let Some(why) = refusal.counted {
            let metrics = source.map_or(&self.strangers, |source| &source.metrics);
            self.refuse(source.map(KnownSource::name), metrics, why);
        }
        refusal.into_response()
    }

    /// Returns when the hints are on disk, with whether somebody has registered for each mailbox.
    pub(super) async fn record_hints(
        &self,
        mut hints: Vec<Hint>,
    ) -> Result<Vec<bool>, NotRecorded> {
        for hint in &mut hints {
            hint.account = self.backends.canonical(hint.account.clone());
        }
        self.recorder.record(hints).await
    }

    /// Takes a request's events in; an error where none of them is.
    async fn take(
        self: &Arc<Self>,
        request: Request<Incoming>,
        sources: &[KnownSource],
    ) -> Result<(), RefusedRequest> {
        let form = form(&request).map_err(|refusal| (None, refusal))?;
        let (parts, body) = request.into_parts();
        let proof = SourceProof::of(&parts.headers);
        let stranger = |refusal| (None, refusal);
        let untaken = |source: usize| {
            let metrics = sources.get(source).map_or(&self.strangers, |known| &known.metrics);
            UntakenEvents { recorder: &*self.recorder, metrics, events: 1 }
        };
        let (source, untaken, body) = match proof {
            // Of a stranger no body is read.
            Some(SourceProof::Secret(presented)) => {
                let source = presented.source(sources).ok_or_else(unknown)?;
                let of_source = |refusal| (Some(source), refusal);
                is_json(&parts.headers).map_err(of_source)?;
                (source, untaken(source), self.body(body).await.map_err(of_source)?)
            }
            Some(SourceProof::Signature(signed)) => {
                is_json(&parts.headers).map_err(stranger)?;
                let body = self.body(body).await.map_err(stranger)?;
                let source = signed.source(sources, &body, Timestamp::now());
                let source = source.ok_or_else(unknown)?;
                (source, untaken(source), body)
            }
            None => return Err(unknown()),
        };
        let Some(known) = sources.get(source) else { return Err(unknown()) };
        self.record(&body, known, form, untaken).await.map_err(|refusal| (Some(source), refusal))
    }

    async fn record(
        self: &Arc<Self>,
        body: &[u8],
        source: &KnownSource,
        form: BodyForm,
        mut untaken: UntakenEvents<'_>,
    ) -> Result<(), IntakeRefusal> {
        let hints = match form.read(body, source) {
            Ok(CyrusNews::Hints(hints)) if !hints.is_empty() => hints,
            other => {
                untaken.over();
                return match other? {
                    CyrusNews::Hints(_) => Ok(()),
                    CyrusNews::Device(account, request) => {
                        self.register(source, account, *request).await
                    }
                };
            }
        };
        // Those of Cyrus are one event, of a mailbox that may have several names.
        let is_one = matches!(form, BodyForm::Cyrus);
        untaken.events = if is_one { 1 } else { hints.len() };
        if !source.may_send(untaken.events) {
            return Err(IntakeRefusal::too_many());
        }
        let recorded = timeout(RECORD_TIME, self.record_hints(hints)).await;
        match recorded.unwrap_or_else(|_| Err(NotRecorded::late())) {
            Ok(known) => {
                untaken.over();
                let known = if is_one { vec![known.contains(&true)] } else { known };
                source.metrics.recorded(&known);
                Ok(())
            }
            Err(error) => {
                self.tell_of(source.name(), &error);
                Err(match error {
                    NotRecorded::Full => IntakeRefusal::full(),
                    NotRecorded::Failed(_) => IntakeRefusal::unrecorded(),
                })
            }
        }
    }

    /// Registers a device of which Cyrus tells.
    async fn register(
        self: &Arc<Self>,
        source: &KnownSource,
        account: Account,
        request: XAppleRegistration,
    ) -> Result<(), IntakeRefusal> {
        if !source.may_send(1) {
            return Err(IntakeRefusal::too_many());
        }
        let registering = self.registering(source.route(), account.clone(), request);
        // What has begun goes on when its time is up, or nobody waits for it any longer.
        match timeout(RECORD_TIME, tokio::spawn(registering)).await {
            Ok(Ok(registered)) => registered.map_err(IntakeRefusal::from),
            _ => {
                let late = DeviceRefusal::late();
                late.tell(&account, &self.counters);
                Err(late.into())
            }
        }
    }

    /// Registers a device by a source with this route. To be waited for to the end.
    pub(super) fn registering(
        &self,
        route: Option<String>,
        account: Account,
        request: XAppleRegistration,
    ) -> impl Future<Output = Result<(), DeviceRefusal>> + Send + 'static {
        let (devices, counters) = (self.devices.clone(), Arc::clone(&self.counters));
        device::register(devices, counters, route, account, request)
    }

    /// Events of a source were not recorded: says so to the log, once in a while, and how that is counted.
    pub(super) fn tell_of(&self, source: &str, error: &NotRecorded) -> EventRefusal {
        let why = match error {
            NotRecorded::Full => EventRefusal::Waiting,
            NotRecorded::Failed(_) => EventRefusal::Unrecorded,
        };
        let key = format!("{source} {}", why.word());
        if let Some(left_out) = self.counters.events_unrecorded.due(&key) {
            tracing::warn!(
                target: "mailchime::intake::not_recorded",
                source, %error, left_out,
                "could not record events in the database; mailchime refuses them, and finds the changes when it \
                 looks at the mailboxes again"
            );
        }
        why
    }

    async fn body(&self, body: Incoming) -> Result<Bytes, IntakeRefusal> {
        let reading = Limited::new(body, self.body_size).collect();
        match timeout(self.request_timeout, reading).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
                Err(IntakeRefusal::too_large(self.body_size))
            }
            // The connection broke.
            Ok(Err(_)) => Err(IntakeRefusal::malformed("The body is not whole.")),
            Err(_) => Err(IntakeRefusal::timeout()),
        }
    }

    /// Counts what is refused, and tells operators of it, once in a while for each source and reason.
    pub(super) fn refuse(&self, source: Option<&str>, metrics: &SourceMetrics, why: EventRefusal) {
        metrics.refused(why);
        match why {
            EventRefusal::TooLarge => drop(self.counters.events.body_size.hit()),
            EventRefusal::Timeout => drop(self.counters.events.request_timeout.hit()),
            EventRefusal::TooMany => drop(self.counters.events_per_second.hit()),
            EventRefusal::Waiting => drop(self.counters.events_waiting.hit()),
            _ => {}
        }
        // They have a line of their own.
        if matches!(why, EventRefusal::Waiting | EventRefusal::Unrecorded) {
            return;
        }
        let (name, why) = (source.unwrap_or_default(), why.word());
        if let Some(left_out) = self.counters.events_refused.due(&format!("{name} {why}")) {
            tracing::warn!(
                target: "mailchime::intake::refused",
                source = name, why, left_out,
                "refused events of a source; correct the source or its table [[events.source]]"
            );
        }
    }
}

fn unknown() -> RefusedRequest {
    let message = "Send the secret of an [[events.source]]: as Bearer token, by Basic with the source's name, \
                   or as a signature of Standard Webhooks.";
    (None, IntakeRefusal::unauthorized(message))
}

impl BodyForm {
    /// What a body of this form says.
    fn read(self, body: &[u8], source: &KnownSource) -> Result<CyrusNews, IntakeRefusal> {
        match self {
            Self::Report => report::hints(body, source).map(CyrusNews::Hints),
            Self::Ox => ox::hints(body, source).map(CyrusNews::Hints),
            Self::Cyrus => event_news(body, source),
        }
    }
}

/// How the body of a request is to be read.
fn form<B>(request: &Request<B>) -> Result<BodyForm, IntakeRefusal> {
    let (method, form) = match request.uri().path() {
        "/v1/events" => (Method::POST, BodyForm::Report),
        "/v1/events/cyrus" => (Method::POST, BodyForm::Cyrus),
        "/v1/events/ox" => (Method::PUT, BodyForm::Ox),
        _ => return Err(IntakeRefusal::not_found()),
    };
    if *request.method() == method {
        return Ok(form);
    }
    Err(IntakeRefusal::method(if method == Method::POST { "POST" } else { "PUT" }))
}

/// Whether the body is said to be JSON (RFC 9110 section 8.3), in whatever charset.
fn is_json(headers: &HeaderMap) -> Result<(), IntakeRefusal> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    match essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        true => Ok(()),
        false => Err(IntakeRefusal::media_type()),
    }
}
