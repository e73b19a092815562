//! The forms in which a mail client registers for push.

pub mod xapple;
pub mod xapple_cyrus;
