//! Apple's push service: who we are to it ([`identities`]), what is written to a phone ([`payload`]),
//! and the client that sends it. It must not know which device is told of what, or when: that is the
//! dispatcher's.

pub mod certificate_watch;
mod client;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod identities;
mod identity;
mod judge;
mod link;
pub mod payload;
mod skew;
mod token;
mod tunnel;

pub use self::client::{ApnsClient, SetupError, new_apns_id};
pub use self::identity::{Identity, IdentityError, Validity};
pub use self::judge::Outcome;
