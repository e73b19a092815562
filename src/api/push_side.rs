//! What the API needs of the push side, which `app` gives.

use std::fmt;
use std::pin::Pin;

use serde_json::Value;

use crate::model::{Account, Subscription, SubscriptionKey, TransportId};

/// The push side, as users' programs get at it.
pub trait PushSide: fmt::Debug + Send + Sync {
    /// The transports that a client can subscribe to, each with what a client has to know before.
    fn offers(&self) -> Vec<(TransportId, Value)>;

    /// The subscription that this request describes, and what the client is to learn of it once. `None` where
    /// there is no such transport.
    ///
    /// # Errors
    /// A sentence for the client, which begins with the key that is at fault.
    fn enrol(
        &self,
        transport: &TransportId,
        account: &Account,
        request: &Value,
    ) -> Option<Result<(Subscription, Value), String>>;

    /// Brings a code to the client of this subscription.
    fn verify(&self, subscription: Subscription, code: String) -> Delivering;

    /// Sends a test push to an active subscription.
    fn test(&self, key: SubscriptionKey) -> Delivering;

    /// The subscriptions of this account are others in the database.
    fn changed(&self, account: Account) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A push on its way.
pub type Delivering = Pin<Box<dyn Future<Output = Delivered> + Send>>;

/// What became of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The push service has it.
    Accepted,
    /// The push service does not know the endpoint, or not any more.
    BadEndpoint,
    /// There were too many.
    TooMany,
    /// It was not sent, or is refused: why, for the user.
    Failed(String),
}
