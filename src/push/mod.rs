//! A change's way out: [`dispatcher`] (which devices, merge, delay, retry) -> [`transport`] (as
//! whom, to which service) -> store. [`explain`] says why it did or did not go.
//!
//! Knows the model, the store and how to set up TLS. It must not know who watches or who proxies, nor of
//! IMAP more than with what a device registers ([`crate::imap::registration`]). Changes come in through a bounded
//! channel, and what was pushed goes to the database.

pub mod dispatcher;
pub mod explain;
mod push_id;
pub mod recent;
mod scheduler;
pub mod transport;
