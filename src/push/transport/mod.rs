//! The services through which a push leaves, one folder each.

pub mod apns;
