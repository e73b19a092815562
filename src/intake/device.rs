//! Devices that have registered at Cyrus itself: from here on they are mailchime's.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch as cell};

use super::refusal::IntakeRefusal;
use crate::imap::contract::PushOffer;
use crate::imap::mailbox;
use crate::imap::registration::xapple::{CheckedRegistration, XAppleRegistration};
use crate::metrics::EventRefusal;
use crate::model::{AcceptedLogin, Account, Mailbox, RegistrationResult, Snapshot, Timestamp};
use crate::net::backends::Backends;
use crate::net::counters::LimitCounters;
use crate::registrar::Registrar;

/// Registrations under way at once.
const REGISTRATIONS: usize = 64;

/// Registers devices of which Cyrus tells.
#[derive(Debug)]
pub struct CyrusDevices {
    registrar: Registrar,
    offered: cell::Receiver<Option<PushOffer>>,
    backends: Backends,
    places: Semaphore,
}

/// Why a device is not registered.
#[derive(Debug)]
pub(super) struct DeviceRefusal {
    /// For the log, and who asked.
    why: &'static str,
    counted: EventRefusal,
}

impl DeviceRefusal {
    fn new(why: &'static str, counted: EventRefusal) -> Self {
        Self { why, counted }
    }

    /// How it is counted.
    pub(super) fn counted(&self) -> EventRefusal {
        self.counted
    }

    /// Others are registering.
    pub(super) fn busy() -> Self {
        Self::new("too many register at once", EventRefusal::Waiting)
    }

    /// Nobody waits for it any longer.
    pub(super) fn late() -> Self {
        Self::new("it takes too long", EventRefusal::Unrecorded)
    }

    /// Says so to the log, once in a while.
    pub(super) fn tell(&self, account: &Account, counters: &LimitCounters) -> EventRefusal {
        let Self { why, counted } = *self;
        if let Some(left_out) = counters.events_refused.due(&format!("cyrus {why}")) {
            tracing::warn!(
                target: "mailchime::intake::device_refused",
                %account, why, left_out,
                "a device registered at Cyrus, and mailchime does not push to it"
            );
        }
        counted
    }
}

impl From<DeviceRefusal> for IntakeRefusal {
    fn from(refusal: DeviceRefusal) -> Self {
        let why = format!("mailchime does not push to the device: {}.", refusal.why);
        Self::device(why, refusal.counted)
    }
}

/// Stores what a device has registered at Cyrus, by a source for which Cyrus names this route to devices. Why it is
/// not stored is told to the log. To be waited for to the end.
pub(super) async fn register(
    devices: Option<Arc<CyrusDevices>>,
    counters: Arc<LimitCounters>,
    route: Option<String>,
    account: Account,
    request: XAppleRegistration,
) -> Result<(), DeviceRefusal> {
    let registered = match (&devices, route) {
        (Some(devices), Some(route)) => match devices.places.try_acquire() {
            Ok(_place) => devices.register(&route, account.clone(), request).await,
            Err(_) => Err(DeviceRefusal::busy()),
        },
        _ => Err(DeviceRefusal::new("cyrus_route is not set", EventRefusal::Foreign)),
    };
    registered.inspect_err(|refusal| {
        refusal.tell(&account, &counters);
    })
}

impl CyrusDevices {
    /// `offered` is push as it is offered at the moment.
    pub fn new(
        registrar: Registrar,
        offered: cell::Receiver<Option<PushOffer>>,
        backends: Backends,
    ) -> Self {
        Self { registrar, offered, backends, places: Semaphore::new(REGISTRATIONS) }
    }

    /// Stores what a device has registered at Cyrus, which has shown that its user can read these mailboxes.
    /// Their state is not known. `named` is the route that Cyrus names to devices (its `aps_topic`): by another
    /// one nothing would reach them.
    async fn register(
        &self,
        named: &str,
        account: Account,
        mut request: XAppleRegistration,
    ) -> Result<(), DeviceRefusal> {
        let foreign = |why| DeviceRefusal::new(why, EventRefusal::Foreign);
        let account = self.backends.canonical(account);
        let (most, route) = {
            let offered = self.offered.borrow();
            let Some(offer) = &*offered else { return Err(foreign("push is off")) };
            if !offer.serves(request.app()) {
                return Err(foreign("[push] clients does not name this mail client"));
            }
            let route = offer.route(&account).filter(|route| *route == named);
            let Some(route) = route else {
                return Err(foreign("cyrus_route is not that of the account's certificate"));
            };
            (offer.most_mailboxes, route.to_owned())
        };
        let mailboxes = self.readable(request.take_names(), most);
        if mailboxes.is_empty() {
            return Err(DeviceRefusal::new("it names no mailbox", EventRefusal::Malformed));
        }
        let Ok(backend) = self.backends.of(&account) else {
            return Err(foreign("the account has no backend"));
        };
        let login = AcceptedLogin {
            backend: backend.id().clone(),
            credentials: None,
            at: Timestamp::now(),
            names_ignore_case: backend.names_ignore_case(),
        };
        let checked = CheckedRegistration { account, request, mailboxes };
        match self.registrar.clone().register(checked.under(&route), login).await {
            RegistrationResult::Stored { .. } => Ok(()),
            RegistrationResult::Unavailable => Err(DeviceRefusal::new(
                "the database did not take it, or the account's backend has changed",
                EventRefusal::Unrecorded,
            )),
            RegistrationResult::TooMany => {
                Err(DeviceRefusal::new("the account registers too often", EventRefusal::TooMany))
            }
            RegistrationResult::DomainFull => {
                Err(foreign("[push] accounts_per_domain or subscriptions_per_domain is reached"))
            }
            RegistrationResult::BackendFull => {
                Err(foreign("[push] accounts_per_backend or subscriptions_per_backend is reached"))
            }
        }
    }

    /// The mailboxes of these names of the wire, as many as are watched for a device.
    fn readable(&self, names: Vec<Vec<u8>>, most: usize) -> Vec<(Mailbox, Snapshot)> {
        let mut mailboxes: Vec<(Mailbox, Snapshot)> = Vec::new();
        for mailbox in names.iter().filter_map(|name| mailbox::decode(name, false)) {
            if mailboxes.iter().any(|(known, _)| *known == mailbox) {
                continue;
            }
            if mailboxes.len() >= most {
                self.backends.counters().mailboxes.hit();
                break;
            }
            mailboxes.push((mailbox, Snapshot::default()));
        }
        mailboxes
    }
}
