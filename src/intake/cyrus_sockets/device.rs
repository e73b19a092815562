//! Devices that have registered at Cyrus itself: from here on they are mailchime's.

use tokio::sync::watch as cell;

use super::super::answer::IntakeContext;
use crate::imap::contract::PushOffer;
use crate::imap::mailbox;
use crate::imap::registration::xapple::{CheckedRegistration, XAppleRegistration};
use crate::metrics::EventRefusal;
use crate::model::{AcceptedLogin, Account, Mailbox, RegistrationResult, Snapshot, Timestamp};
use crate::registrar::Registrar;

/// Registers devices of which Cyrus tells.
#[derive(Clone, Debug)]
pub struct CyrusDevices {
    /// Stores the registrations.
    pub registrar: Registrar,
    /// Push as it is offered at the moment.
    pub offered: cell::Receiver<Option<PushOffer>>,
    /// Which one Cyrus names to devices (its `aps_topic`): by another one nothing would reach them.
    pub route: String,
}

/// Why a device is not registered.
#[derive(Debug)]
pub(super) struct DeviceRefusal {
    /// For the log.
    why: &'static str,
    counted: EventRefusal,
}

impl DeviceRefusal {
    fn new(why: &'static str, counted: EventRefusal) -> Self {
        Self { why, counted }
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
    pub(super) fn tell(self, account: &Account, context: &IntakeContext) -> EventRefusal {
        let Self { why, counted } = self;
        if let Some(left_out) = context.counters.events_refused.due(&format!("cyrus {why}")) {
            tracing::warn!(
                target: "mailchime::intake::device_refused",
                %account, why, left_out,
                "a device registered at Cyrus, and mailchime does not push to it"
            );
        }
        counted
    }
}

impl CyrusDevices {
    /// Stores what a device has registered at Cyrus, which has shown that its user can read these mailboxes.
    /// Their state is not known. To be waited for to the end.
    pub(super) async fn register(
        self,
        account: Account,
        mut request: XAppleRegistration,
        context: &IntakeContext,
    ) -> Result<(), DeviceRefusal> {
        let foreign = |why| DeviceRefusal::new(why, EventRefusal::Foreign);
        let account = context.backends.canonical(account);
        let (most, route) = {
            let offered = self.offered.borrow();
            let Some(offer) = &*offered else { return Err(foreign("push is off")) };
            if !offer.serves(request.app()) {
                return Err(foreign("[push] clients does not name this mail client"));
            }
            let route = offer.route(&account).filter(|route| *route == self.route);
            let Some(route) = route else {
                return Err(foreign("cyrus_route is not that of the account's certificate"));
            };
            (offer.most_mailboxes, route.to_owned())
        };
        let mailboxes = readable(request.take_names(), most, context);
        if mailboxes.is_empty() {
            return Err(DeviceRefusal::new("it names no mailbox", EventRefusal::Malformed));
        }
        let Ok(backend) = context.backends.of(&account) else {
            return Err(foreign("the account has no backend"));
        };
        let login = AcceptedLogin {
            backend: backend.id().clone(),
            credentials: None,
            at: Timestamp::now(),
            names_ignore_case: backend.names_ignore_case(),
        };
        let checked = CheckedRegistration { account, request, mailboxes };
        match self.registrar.register(checked.under(&route), login).await {
            RegistrationResult::Stored { .. } => Ok(()),
            RegistrationResult::Unavailable => Err(DeviceRefusal::new(
                "the database did not take it, or the account's backend has changed",
                EventRefusal::Unrecorded,
            )),
            RegistrationResult::TooMany => {
                Err(DeviceRefusal::new("the account registers too often", EventRefusal::TooMany))
            }
            RegistrationResult::DomainFull | RegistrationResult::BackendFull => {
                Err(DeviceRefusal::new("there are as many as may be", EventRefusal::TooMany))
            }
        }
    }
}

/// The mailboxes of these names of the wire, as many as are watched for a device.
fn readable(names: Vec<Vec<u8>>, most: usize, context: &IntakeContext) -> Vec<(Mailbox, Snapshot)> {
    let mut mailboxes: Vec<(Mailbox, Snapshot)> = Vec::new();
    for mailbox in names.iter().filter_map(|name| mailbox::decode(name, false)) {
        if mailboxes.iter().any(|(known, _)| *known == mailbox) {
            continue;
        }
        if mailboxes.len() >= most {
            context.counters.mailboxes.hit();
            break;
        }
        mailboxes.push((mailbox, Snapshot::default()));
    }
    mailboxes
}
