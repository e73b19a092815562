//! What a client of the HTTP API asks for, as a subscription.
//!
//! The API knows accounts and JSON, and no transport: it finds one by its name in [`Transports`], has it
//! read what the client sent, and sends the verification push by [`Routes::verify`].
//!
//! ```text
//!   POST {"transport":"webpush", …} ─> Transports::find ─ enrol ─> Enrolled ─> stored, pending
//!                                      Routes::verify ~~ code ~~> client ─> code comes back: active
//! ```
//!
//! [`Routes::verify`]: super::Routes::verify

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;

use crate::model::{Account, Subscription, TransportId};

/// Reads what clients ask for. Pure: no socket, no clock.
pub trait Enrol: fmt::Debug + Send + Sync {
    /// What a client has to know before it asks: a JSON object. A key of ours, for Web Push.
    fn offer(&self) -> Value;

    /// The subscription of `account` that `request` describes, a JSON object of the client of any size and
    /// content. Keys that the transport does not know are left to the API.
    ///
    /// # Errors
    /// A sentence for the client: which key is wrong, and what is allowed. It holds no secret.
    fn enrol(&self, account: &Account, request: &Value) -> Result<Enrolled, String>;
}

/// What became of a client's request. `Debug` leaves the answer out, which may hold a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// What is to be stored. When it ends is the API's to say.
    pub subscription: Subscription,
    /// What the client has to learn and gets this once: a JSON object, empty for most transports.
    pub answer: Value,
}

/// The transports to which clients can subscribe by HTTP, by name. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Transports(Arc<RwLock<BTreeMap<TransportId, Arc<dyn Enrol>>>>);

// === impl Enrolled ===

impl fmt::Debug for Enrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolled").field("subscription", &self.subscription).finish_non_exhaustive()
    }
}

// === impl Transports ===

impl Transports {
    /// Has this transport enrol from now on; `None` takes it away.
    pub fn set(&self, transport: TransportId, enrol: Option<Arc<dyn Enrol>>) {
        let mut all = self.0.write();
        match enrol {
            Some(enrol) => all.insert(transport, enrol),
            None => all.remove(&transport),
        };
    }

    /// The transport of this name, if clients can subscribe to it.
    pub fn find(&self, transport: &TransportId) -> Option<Arc<dyn Enrol>> {
        self.0.read().get(transport).cloned()
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<(TransportId, Arc<dyn Enrol>)> {
        self.0.read().iter().map(|(id, enrol)| (id.clone(), Arc::clone(enrol))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::PushEndpoint;

    #[derive(Debug)]
    struct Paper;

    impl Enrol for Paper {
        fn offer(&self) -> Value {
            json!({})
        }

        fn enrol(&self, account: &Account, request: &Value) -> Result<Enrolled, String> {
            let to = request["to"].as_str().ok_or("\"to\" is missing: name an address")?;
            let subscription = Subscription {
                account: account.clone(),
                transport: TransportId::new("paper"),
                endpoint: PushEndpoint::new(to, to),
                app: "paper".into(),
                route: "post".into(),
                options: "{}".into(),
                secrets: None,
                expires_at: None,
            };
            Ok(Enrolled { subscription, answer: json!({ "secret": "open sesame" }) })
        }
    }

    #[test]
    fn a_transport_is_found_by_its_name_until_it_is_taken_away() {
        let (transports, paper) = (Transports::default(), TransportId::new("paper"));
        assert!(transports.find(&paper).is_none());
        transports.clone().set(paper.clone(), Some(Arc::new(Paper)));
        let alice = Account::from_login("alice@example.org");
        let found = transports.find(&paper).unwrap();
        let enrolled = found.enrol(&alice, &json!({ "to": "1 High Street" })).unwrap();
        assert_eq!(enrolled.subscription.account, alice);
        assert_eq!(&*enrolled.answer["secret"].to_string(), "\"open sesame\"");
        assert!(!format!("{enrolled:?}").contains("sesame"));
        assert_eq!(
            found.enrol(&alice, &json!(["to"])).unwrap_err(),
            "\"to\" is missing: name an address"
        );
        assert_eq!(transports.all().len(), 1);
        transports.set(paper.clone(), None);
        assert!(transports.find(&paper).is_none() && transports.all().is_empty());
    }
}
