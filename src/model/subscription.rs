//! Who is to be notified: a subscription of one account, by whatever transport.
//!
//! What an endpoint or the options say is the transport's own matter: here they are carried, compared and
//! never read.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use secrecy::{ExposeSecret, SecretString};

use super::{Account, Mailbox, Snapshot, Timestamp, hex};

/// By which transport a subscription is notified: the transport's name, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransportId(Arc<str>);

/// Where a transport sends to: a token or a URL, opaque to all but the transport.
///
/// Two endpoints are the same if their canonical forms are, which the transport says. `Display` and `Debug`
/// show the first 8 characters only, and of an `https` URL scheme, host and port, so an endpoint cannot reach a
/// log in full: who knows the path of such a URL may push to it.
#[derive(Clone)]
pub struct PushEndpoint {
    given: Arc<str>,
    /// SHA-256 of the canonical form.
    hash: [u8; 32],
}

/// What a transport has to know in secret to send to an endpoint: the transport's own text. Freed memory of it
/// is overwritten, and `Debug` shows nothing of it.
#[derive(Clone)]
pub struct SubscriptionSecrets(Arc<SecretString>);

/// Whether a subscription counts yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubscriptionState {
    /// Its endpoint has not answered yet: it gets no pushes and keeps no account watched.
    Pending,
    /// It is pushed to.
    #[default]
    Active,
}

/// That the pushes of a subscription fail for a reason that lasts: one of its own, or one that an operator mends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastingFailure {
    /// Since when, by the time of day.
    pub since: Timestamp,
    /// How the last push failed: the verdict's name, one word.
    pub kind: Arc<str>,
    /// For how long the pushes that were tried have shown the fault to be the subscription's own. It counts neither
    /// what an operator has to mend nor the time in which nothing was tried.
    pub own_fault: Duration,
}

/// One subscription of one account. `Debug` leaves out the options and the secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Whose it is.
    pub account: Account,
    /// The service that it is sent by.
    pub transport: TransportId,
    /// Where it is sent to.
    pub endpoint: PushEndpoint,
    /// Which application at the endpoint: one endpoint may have several.
    pub app: Arc<str>,
    /// Under whose authority it is sent to.
    pub route: Arc<str>,
    /// A JSON object: what else the transport has to know of it.
    pub options: Arc<str>,
    /// What the transport has to know in secret. The database has it sealed.
    pub secrets: Option<SubscriptionSecrets>,
    /// When it ends, by the time of day. `None`: not by itself, but by silence where its client registers it
    /// again.
    pub expires_at: Option<Timestamp>,
}

/// What identifies a subscription.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionKey {
    /// Whose it is.
    pub account: Account,
    /// The service that it is sent by.
    pub transport: TransportId,
    /// Where it is sent to.
    pub endpoint: PushEndpoint,
    /// The app on the device.
    pub app: Arc<str>,
}

/// A registration that was checked and is to be stored: the subscription, and each mailbox that its
/// user's own session can read with the state it was in at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// What is registered.
    pub subscription: Subscription,
    /// The mailboxes, each with its state at the registration.
    pub mailboxes: Vec<(Mailbox, Snapshot)>,
}

/// What became of a [`Registration`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationResult {
    /// It is on disk, under this route.
    Stored {
        /// Its [`route`](Subscription::route).
        route: Arc<str>,
    },
    /// It cannot be written now.
    Unavailable,
    /// The account registers too often.
    TooMany,
    /// There are as many accounts or subscriptions of its domain as there may be.
    DomainFull,
    /// There are as many accounts or subscriptions of its backend as there may be.
    BackendFull,
}

/// How many characters of an endpoint are shown, and how many of the host of a URL.
const SHOWN: usize = 8;
const HOST_SHOWN: usize = 64;
const HTTPS: &str = "https://";

// === impl SubscriptionState ===

impl SubscriptionState {
    /// Its name, in the database and for users and operators.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
        }
    }
}

// === impl TransportId ===

impl TransportId {
    /// The transport of this name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl PushEndpoint ===

impl PushEndpoint {
    /// The endpoint as it was given, and the form in which two spellings of one endpoint are alike.
    pub fn new(given: &str, canonical: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, canonical.as_bytes()).as_ref());
        Self { given: given.into(), hash }
    }

    /// The endpoint of a row: as it was given, and [`PushEndpoint::hash_hex`]. `None` if that is no hash.
    pub fn from_row(given: &str, hash_hex: &str) -> Option<Self> {
        let mut hash = [0; 32];
        if hash_hex.len() != 2 * hash.len() || !hash_hex.is_ascii() {
            return None;
        }
        for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&hash_hex[at..at + 2], 16).ok()?;
        }
        Some(Self { given: given.into(), hash })
    }

    /// As it was given: for the transport, which sends to it, and for the row.
    pub fn as_given(&self) -> &str {
        &self.given
    }

    /// The SHA-256 of the canonical form: 64 hex digits in lower case.
    pub fn hash_hex(&self) -> String {
        hex(&self.hash)
    }
}

impl PartialEq for PushEndpoint {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for PushEndpoint {}

impl Hash for PushEndpoint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl PartialOrd for PushEndpoint {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PushEndpoint {
    fn cmp(&self, other: &Self) -> Ordering {
        self.hash.cmp(&other.hash)
    }
}

impl fmt::Display for PushEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.given.split_at_checked(HTTPS.len()) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(HTTPS) => {
                // What stands before an `@` may be a password.
                let authority = rest.split(['/', '\\', '?', '#']).next().unwrap_or_default();
                let host = authority.rsplit('@').next().unwrap_or_default();
                write!(f, "{HTTPS}{}…", beginning(host, HOST_SHOWN).escape_debug())
            }
            _ => write!(f, "{}…", beginning(&self.given, SHOWN).escape_debug()),
        }
    }
}

impl fmt::Debug for PushEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn beginning(text: &str, characters: usize) -> &str {
    let end = text.char_indices().nth(characters).map_or(text.len(), |(end, _)| end);
    &text[..end]
}

// === impl SubscriptionSecrets ===

impl SubscriptionSecrets {
    /// The secrets as their transport writes them.
    pub fn new(text: String) -> Self {
        Self(Arc::new(text.into()))
    }

    /// As their transport wrote them: for the transport, and for the vault.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for SubscriptionSecrets {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for SubscriptionSecrets {}

impl fmt::Debug for SubscriptionSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubscriptionSecrets")
    }
}

// === impl Subscription ===

impl Subscription {
    /// Transport and app of the web hooks of the operator.
    pub const OF_OPERATOR: (&'static str, &'static str) = ("webhook", "operator");

    /// Whether it ended by `now`, the time of day, as its client asked.
    pub fn has_ended(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether this is the subscription of that key.
    pub fn is(&self, key: &SubscriptionKey) -> bool {
        self.account == key.account
            && self.transport == key.transport
            && self.endpoint == key.endpoint
            && self.app == key.app
    }

    /// Whether it is no user's, but a web hook of the operator.
    pub fn is_of_operator(&self) -> bool {
        (self.transport.as_str(), &*self.app) == Self::OF_OPERATOR
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, transport, endpoint, app, route, expires_at, options: _, secrets: _ } =
            self;
        f.debug_struct("Subscription")
            .field("account", account)
            .field("transport", transport)
            .field("endpoint", endpoint)
            .field("app", app)
            .field("route", route)
            .field("expires_at", expires_at)
            .finish_non_exhaustive()
    }
}

// === impl SubscriptionKey ===

impl From<&Subscription> for SubscriptionKey {
    fn from(subscription: &Subscription) -> Self {
        Self {
            account: subscription.account.clone(),
            transport: subscription.transport.clone(),
            endpoint: subscription.endpoint.clone(),
            app: Arc::clone(&subscription.app),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_compare_by_their_canonical_form_and_show_eight_characters() {
        let given = "AB12".repeat(16);
        let endpoint = PushEndpoint::new(&given, &given.to_lowercase());
        assert_eq!(endpoint, PushEndpoint::new(&given.to_lowercase(), &given.to_lowercase()));
        assert_ne!(endpoint, PushEndpoint::new(&given, &given));
        assert_eq!(format!("{endpoint} {endpoint:?}"), "AB12AB12… AB12AB12…");
        let odd = PushEndpoint::new("a\n\u{1f514}b", "");
        assert_eq!(odd.to_string(), "a\\n\u{1f514}b…");
    }

    #[test]
    fn of_a_url_the_host_is_shown_and_nothing_that_lets_others_push() {
        for (given, shown) in [
            ("https://push.example/secret", "https://push.example…"),
            ("HTTPS://push.example:8443?secret", "https://push.example:8443…"),
            ("https://push.example#secret", "https://push.example…"),
            ("https://push.example\\secret", "https://push.example…"),
            ("https://user:secret@push.example/a@b", "https://push.example…"),
            ("https://a\n\u{1b}[0m/secret", "https://a\\n\\u{1b}[0m…"),
            ("https://", "https://…"),
            ("http://secret.example/", "http://s…"),
        ] {
            let endpoint = PushEndpoint::new(given, given);
            assert_eq!(endpoint.to_string(), shown, "{given}");
            assert_eq!(format!("{endpoint:?}"), shown, "{given}");
        }
        let long = format!("https://{}/", "x".repeat(10_000));
        assert_eq!(PushEndpoint::new(&long, "").to_string().len(), 8 + HOST_SHOWN + "…".len());
    }

    #[test]
    fn a_subscription_shows_neither_its_endpoint_nor_its_options_in_full() {
        let subscription = Subscription {
            account: Account::from_login("alice"),
            transport: TransportId::new("web"),
            endpoint: PushEndpoint::new("https://push.example/1", "https://push.example/1"),
            app: "app".into(),
            route: "route".into(),
            options: "{\"auth\":\"secret\"}".into(),
            secrets: Some(SubscriptionSecrets::new("secret".to_owned())),
            expires_at: None,
        };
        let shown = format!("{subscription:?}");
        assert!(shown.contains("alice") && shown.contains("https://push.example…"), "{shown}");
        assert!(!shown.contains("secret") && !shown.contains("example/1"), "{shown}");
    }

    #[test]
    fn an_endpoint_comes_back_from_its_row() {
        let endpoint = PushEndpoint::new("abc", "abc");
        let hash = endpoint.hash_hex();
        // FIPS 180-4, the example of one block.
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(PushEndpoint::from_row("abc", &hash), Some(endpoint));
        for bad in ["", "ba", &hash.replace('b', "x"), &format!("é{}", &hash[2..])] {
            assert!(PushEndpoint::from_row("abc", bad).is_none(), "{bad}");
        }
    }
}
