//! What the login of a session that registers brings, and what becomes of the credentials that are kept.

use std::fmt;
use std::sync::Arc;

use crate::model::{BackendId, SubscriptionState, Timestamp};

/// The login of a session that registers a device.
#[derive(Clone, Debug)]
pub struct Registrant {
    /// Which backend has accepted it.
    pub backend: BackendId,
    /// When the session that registers logged in.
    pub logged_in_at: Timestamp,
    /// What is to be kept of its credentials, in the place of all that is kept.
    pub sealed: Option<Sealed>,
    /// Its password is not the one that is kept.
    pub other_password: bool,
    /// Says what of its credentials is kept, and what of those that are; in the place of the above.
    pub(super) keeper: Option<Keeper>,
    /// Accounts whose names differ from this one in nothing but case are the same user.
    pub names_ignore_case: bool,
    /// Whether what is registered counts at once. What is there and counts goes on counting.
    pub state: SubscriptionState,
}

/// Credentials as the database keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Of the [`super::Vault`].
    pub text: String,
    /// They are not to be kept any longer; `None` while their account lives.
    pub until: Option<Timestamp>,
}

/// Credentials as the database keeps them, with what is known of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptRow {
    pub(super) sealed: Sealed,
    pub(super) since: Timestamp,
    pub(super) proved_at: Timestamp,
}

/// What becomes of the credentials of an account.
#[derive(Clone, Debug, Default)]
pub(super) struct Keeping {
    /// All that are kept from now on, in the order of `keeping::Accepted`; `None` leaves them alone.
    pub(super) rows: Option<Vec<KeptRow>>,
    pub(super) other_password: bool,
}

/// Says what becomes of the credentials that are kept. It is asked within the transaction that changes
/// them, so of logins at the same time none undoes what another one brought.
#[derive(Clone)]
pub(super) struct Keeper(pub(super) Arc<Keep>);

/// Asked with what is kept, and of how many tries the backend has refused all of it until the account was parked.
pub(super) type Keep = dyn Fn(&[KeptRow], u32) -> Keeping + Send + Sync;

// === impl Registrant ===

impl Registrant {
    /// One whose password is the one that is kept, as far as is known.
    pub fn new(backend: &BackendId, logged_in_at: Timestamp, sealed: Option<&Sealed>) -> Self {
        let (backend, sealed) = (backend.clone(), sealed.cloned());
        let (other_password, names_ignore_case, keeper, state) = Default::default();
        Self { backend, logged_in_at, sealed, other_password, keeper, names_ignore_case, state }
    }

    /// What becomes of the credentials that are kept; `refused`: as for [`Keep`].
    pub(super) fn keeping(&self, kept: &[KeptRow], refused: u32) -> Keeping {
        if let Some(Keeper(keep)) = &self.keeper {
            return keep(kept, refused);
        }
        let rows = self.sealed.clone().map(|sealed| {
            let (since, proved_at) = (self.logged_in_at, self.logged_in_at);
            vec![KeptRow { sealed, since, proved_at }]
        });
        Keeping { rows, other_password: self.other_password }
    }

    /// Whether it may change credentials.
    pub(super) fn brings_credentials(&self) -> bool {
        self.keeper.is_some() || self.sealed.is_some() || self.other_password
    }
}

// === impl Keeper ===

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper")
    }
}
