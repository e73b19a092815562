//! What `[admin]` tells, and how the parts are asked for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::watch as cell;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{MailPushSetup, StartError};
use crate::admin::{self, AdminListener, Ask, Context, Part};
use crate::config;
use crate::metrics::Metrics;
use crate::model::{Account, BackendId, Mailbox, Subscription, Timestamp, seconds};
use crate::net::backends::Backends;
use crate::nodes::{self, Assignment};
use crate::push::dispatcher::{self, DispatcherHandle};
use crate::push::explain::Explanation;
use crate::push::transport::{Routes, Verdict};
use crate::store::{Alive, Store, Target};
use crate::watch::{self, WatcherStatus};

/// For a backend that is asked whether it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// For the database to count what is in it.
const CENSUS_TIME: Duration = Duration::from_secs(2);

pub(super) const PUSH_OFF: &str = "push is off: no way to push is configured";

/// The server of `[admin]`, listening.
#[derive(Debug)]
pub(super) struct Socket {
    listener: AdminListener,
    /// Where it is, in words.
    name: String,
    hosts: Vec<String>,
}

/// Who is asked.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) registry: Registry,
    pub(super) metrics: Arc<Metrics>,
    pub(super) store: Store,
    pub(super) backends: Backends,
    pub(super) mail_push: MailPushSetup,
    pub(super) routes: Routes,
    pub(super) assignment: cell::Receiver<Assignment>,
    pub(super) watchers: watch::SupervisorHandle,
    pub(super) pushes: DispatcherHandle,
    pub(super) push: config::PushConfig,
    /// The longest capability list of a backend.
    pub(super) capability_size: usize,
    /// Cancelled when clients are no longer served.
    pub(super) stopping: CancellationToken,
}

impl Socket {
    pub(super) fn open(config: &config::AdminConfig) -> Result<Option<Self>, StartError> {
        let Some(wanted) = &config.address else { return Ok(None) };
        let key = "[admin] address";
        let failed = |error| match wanted {
            config::AdminAddress::Tcp(address) => StartError::address(key, *address, &error),
            config::AdminAddress::Unix { .. } => StartError::socket(key, wanted, &error),
        };
        let listener = AdminListener::bind(wanted).map_err(failed)?;
        let machine = nodes::machine().map(|name| name.to_ascii_lowercase());
        let hosts = config.hosts.iter().cloned().chain(machine).collect();
        let name = listener.address().map_or_else(|| wanted.to_string(), |at| at.to_string());
        Ok(Some(Self { listener, name, hosts }))
    }

    /// The address, if it is one of TCP.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.listener.address()
    }

    /// Answers until `stop`.
    pub(super) fn serve(self, parts: Parts, stop: CancellationToken) -> JoinHandle<()> {
        tracing::info!(
            target: "mailchime::admin::listening",
            address = self.name, "serving metrics, health and status"
        );
        tokio::spawn(admin::serve(self.listener, Arc::new(parts.context(self.hosts)), stop))
    }
}

impl Parts {
    fn context(self, hosts: Vec<String>) -> Context {
        self.mail_push.watch_certificates(&self.metrics);
        let parts = vec![
            listening(self.stopping),
            database(self.store.clone()),
            backend(self.backends.clone(), self.capability_size),
            self.mail_push.health(self.routes.clone()),
        ];
        let (watchers, pushes, assignment) = (self.watchers.clone(), self.pushes, self.assignment);
        let (assigned, changed) = (assignment.clone(), pushes.clone());
        let (shares, of_status) = (assignment.clone(), pushes.clone());
        let (counted, counts) = (self.store.clone(), Arc::clone(&self.metrics));
        let of_service = self.routes.clone();
        let on = WhileOn(self.routes.clone());
        let (store, routes, push) = (self.store, self.routes, self.push);
        let backends = self.backends.clone();
        let one = |backends: &Backends| {
            let backends = backends.clone();
            move |account| backends.canonical(account)
        };
        let [of_watchers, of_push, of_explain] = std::array::from_fn(|_| one(&backends));
        Context {
            registry: self.registry,
            counters: self.backends.counters(),
            hosts,
            metrics: self.metrics,
            parts,
            watchers: on.ask(move |account: Option<Account>| {
                let account = account.map(&of_watchers);
                watching(self.watchers.clone(), assigned.clone(), account)
            }),
            push: on.ask(move |(account, mailbox)| {
                let account = of_push(account);
                let home = backends.id_of(&account);
                test(store.clone(), routes.clone(), push.clone(), home, (account, mailbox))
            }),
            subscriptions: on.ask(move |account: Account| {
                let pushes = changed.clone();
                async move {
                    let shown = json!({ "account": account.as_str() });
                    pushes.changed(account).await.map(|()| shown).ok_or(PUSH_OFF.to_owned())
                }
            }),
            status: Ask::new(move |()| {
                let (pushes, shared) = (of_status.recent(), shares.borrow().clone());
                let (store, metrics) = (counted.clone(), Arc::clone(&counts));
                let open = of_service.open(Timestamp::now());
                async move {
                    // Those of a minute ago will do where the database does not answer.
                    if let Ok(Ok(census)) = timeout(CENSUS_TIME, store.census()).await {
                        metrics.registered(census.accounts, &census.subscriptions);
                    }
                    let nodes: Vec<_> = shared.nodes().collect();
                    let gone = shared.gone().map(|(node, at)| json!({ "node": node, "at": at.0 }));
                    let gone: Vec<_> = gone.collect();
                    Ok(json!({
                        "node": shared.here(), "nodes": nodes, "gone": gone, "pushes": pushes,
                        "routes": open
                    }))
                }
            }),
            started_at: Timestamp::now(),
            explain: on.ask(move |(account, mailbox)| {
                let account = of_explain(account);
                explain(watchers.clone(), pushes.clone(), assignment.clone(), account, mailbox)
            }),
        }
    }
}

/// Questions that have an answer while there is a route.
struct WhileOn(Routes);

impl WhileOn {
    fn ask<Q, F>(&self, ask: impl Fn(Q) -> F + Send + Sync + 'static) -> Ask<Q>
    where
        Q: Send + 'static,
        F: Future<Output = Result<Value, String>> + Send + 'static,
    {
        let routes = self.0.clone();
        Ask::new(move |question| {
            let answer = (!routes.is_empty()).then(|| ask(question));
            async move {
                match answer {
                    Some(answer) => answer.await,
                    None => Err(PUSH_OFF.to_owned()),
                }
            }
        })
    }
}

// === what is ready ===

fn listening(stopping: CancellationToken) -> Part {
    Part::new("listening", move || {
        let stopping = stopping.is_cancelled();
        async move { if stopping { Err("mailchime is stopping".to_owned()) } else { Ok(()) } }
    })
}

fn database(store: Store) -> Part {
    Part::new("database", move || {
        let store = store.clone();
        async move { store.ping().await.map_err(|error| error.to_string()) }
    })
}

fn backend(backends: Backends, longest: usize) -> Part {
    Part::new("backend", move || {
        let backend = backends.default();
        async move { backend.probe(PROBE_TIMEOUT, longest).await.map_err(|error| error.to_string()) }
    })
}

// === what is asked ===

async fn watching(
    supervisor: watch::SupervisorHandle,
    assignment: cell::Receiver<Assignment>,
    account: Option<Account>,
) -> Result<Value, String> {
    let watchers = supervisor.watchers(account).await.ok_or(PUSH_OFF)?;
    let assignment = assignment.borrow();
    let nodes: Vec<_> = assignment.nodes().collect();
    Ok(json!({ "node": assignment.here(), "nodes": nodes, "watchers": watchers }))
}

async fn explain(
    watchers: watch::SupervisorHandle,
    pushes: DispatcherHandle,
    assignment: cell::Receiver<Assignment>,
    account: Account,
    mailbox: Option<Mailbox>,
) -> Result<Value, String> {
    let watcher = watchers.watchers(Some(account.clone())).await.ok_or(PUSH_OFF)?;
    let devices = pushes.explain(account.clone(), mailbox.clone()).await.ok_or(PUSH_OFF)?;
    let mut devices = devices.map_err(|error| error.to_string())?;
    let watcher = watcher.into_iter().next();
    // Nobody watches an account without devices.
    let owner = {
        let assignment = assignment.borrow();
        let owner = assignment.owner(&account).filter(|_| !devices.is_empty());
        owner.map(str::to_owned)
    };
    let here = assignment.borrow().here().to_owned();
    // What another node knows of it is not known here.
    if owner.as_deref().is_none_or(|owner| owner == here)
        && let Some(why) = unwatched(watcher.as_ref(), mailbox.as_ref())
    {
        devices.iter_mut().for_each(|device| device.hinder(&why));
    }
    let device = |explanation: &Explanation| {
        let obstacles: Vec<_> = explanation.reasons.iter().map(ToString::to_string).collect();
        let mut device = json!(explanation);
        device["obstacles"] = json!(obstacles);
        device
    };
    let devices: Vec<Value> = devices.iter().map(device).collect();
    Ok(json!({
        "account": account.as_str(),
        "node": &here,
        "watched_by": if watcher.is_some() { Some(here) } else { owner },
        "watcher": watcher,
        "subscriptions": devices,
    }))
}

/// Why new mail in the mailbox, or in any, is not seen at the moment.
fn unwatched(watcher: Option<&WatcherStatus>, mailbox: Option<&Mailbox>) -> Option<String> {
    let Some(watcher) = watcher else {
        return Some("its account is not watched, so no new mail is seen".to_owned());
    };
    let why = watcher.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    match watcher.state {
        "watching" => {
            let mailbox = mailbox?.as_str();
            let left_out = watcher.left_out.iter().find(|it| it.mailbox == mailbox)?;
            Some(format!("the mailbox is not watched for now: {}", left_out.reason))
        }
        "starting" => {
            Some("its account is not watched yet; mailchime is about to log in".to_owned())
        }
        "parked" => Some(format!(
            "its account is parked, so no new mail is seen until its user logs in{why}"
        )),
        _ => Some(format!("its account is not watched until the next try{why}")),
    }
}

/// Sends a push to each device of the account, whatever is or is not due, all at once: they are few.
/// Devices that registered at another backend than `home` get none.
async fn test(
    store: Store,
    routes: Routes,
    config: config::PushConfig,
    home: Option<BackendId>,
    (account, mailbox): (Account, Option<Mailbox>),
) -> Result<Value, String> {
    let alive = Alive::at(store.served(Timestamp::now()), &config);
    let targets = store.targets(&account, alive).await.map_err(|error| error.to_string())?;
    let Some(home) = home else {
        return Err(format!("{account}: the name leaves open which backend it is on"));
    };
    if let Some(recorded) = targets.first().and_then(|target| target.elsewhere(&home)) {
        return Err(format!(
            "{account} is parked: it registered at {recorded}, and its backend is {home} now"
        ));
    }
    let mut sending = JoinSet::new();
    for (place, Target { subscription, mailboxes, .. }) in targets.into_iter().enumerate() {
        let (routes, mailbox) = (routes.clone(), mailbox.clone());
        sending.spawn(async move {
            let told = mailbox.unwrap_or_else(Mailbox::inbox);
            let registered = told.is_inbox() || mailboxes.iter().any(|(name, _)| *name == told);
            (place, test_device(&routes, config.expiration, subscription, told, registered).await)
        });
    }
    let mut devices = sending.join_all().await;
    devices.sort_by_key(|(place, _)| *place);
    let devices: Vec<Value> = devices.into_iter().map(|(_, device)| device).collect();
    Ok(json!({ "account": account.as_str(), "subscriptions": devices }))
}

async fn test_device(
    routes: &Routes,
    ttl: Duration,
    device: Subscription,
    mailbox: Mailbox,
    registered: bool,
) -> Value {
    let began = tokio::time::Instant::now();
    let mut shown = json!({
        "transport": device.transport.as_str(),
        "endpoint": device.endpoint.to_string(),
        "app": &*device.app,
        "route": &*device.route,
        "accepted": false,
        "outcome": "not-sent",
        "detail": null,
        "message_id": null,
    });
    if registered {
        let verdict = dispatcher::send_now(routes, ttl, device, vec![mailbox]).await;
        shown["outcome"] = json!(verdict.name());
        shown["detail"] = json!(verdict.detail());
        if let Verdict::Accepted { id } = verdict {
            (shown["accepted"], shown["message_id"]) = (json!(true), json!(id));
        }
    } else {
        shown["detail"] = json!(format!("it did not register for {mailbox:?}"));
    }
    shown["seconds"] = json!(seconds(began.elapsed()));
    shown
}
