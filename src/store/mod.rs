//! What mailchime keeps: the sealed credentials of users.

mod vault;

pub use vault::{Vault, VaultError};
