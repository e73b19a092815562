//! Apple's push service: who we are to it ([`identities`]), how it is spoken to (`message`, [`payload`],
//! `judge`), and the client that sends. It must not know which device gets which push, or when: that
//! is the scheduler's.

pub mod certificate_watch;
pub(super) mod check;
mod client;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod identities;
mod identity;
mod judge;
mod link;
mod message;
pub mod payload;
mod skew;
mod token;

pub use self::client::{ApnsClient, SetupError};
pub use self::identity::{ApnsIdentity, IdentityError, Validity};
pub use self::message::MessageStyle;
