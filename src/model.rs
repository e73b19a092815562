//! The nouns that the other floors share: whose mail, which device, which mailbox, in what state.
//!
//! Nothing here does I/O, reads a clock or knows IMAP, SQL or a transport. Values that come from a peer
//! are checked where they enter (`imap`), so a constructed value is a valid one.

mod domain;
pub mod event;
mod follow;
mod hint;
mod preview;
mod subscription;

pub use self::hint::{Hint, MailboxEvent};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use secrecy::{ExposeSecret, SecretBox};

pub use self::domain::AmbiguousDomain;
pub use self::follow::{FollowRequest, MailboxToFollow};
pub use self::preview::{PREVIEW_CHARACTERS, PREVIEW_WAIT, Preview, one_line};
pub use self::subscription::{
    LastingFailure, PushEndpoint, Registration, RegistrationResult, Subscription, SubscriptionKey,
    SubscriptionSecrets, SubscriptionState, TransportId,
};

/// Whose mail: the canonical form of the login name that the backend accepted.
///
/// The domain after the last `@` is compared without case. The local part is kept as it was given:
/// a server may tell `Bob` from `bob`, and taking two users for one would show one the other's mail.
/// Where the backend is said not to, it is the name in lower case ([`Account::canonical`]).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Account(Arc<str>);

/// Which backend, as the row of an account says which one has accepted its user: by the name that the
/// configuration gives it, or else by its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendId {
    name: Option<Arc<str>>,
    /// `host:port`, the host in lower case.
    address: Arc<str>,
}

/// A mailbox name, decoded (UTF-8, not modified UTF-7); any spelling of `inbox` is `INBOX`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mailbox(Arc<str>);

/// Milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

/// What a user proves to the backend who they are with. `Debug` never shows the secret.
#[derive(Clone)]
pub struct Credentials {
    /// The login name as the user wrote it.
    pub login: String,
    /// SASL authorization identity (RFC 4616), empty when it is the login itself.
    pub authorization: String,
    /// What the secret is.
    pub kind: SecretKind,
    secret: Arc<SecretBox<[u8]>>,
}

/// What the secret of [`Credentials`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// A password.
    Password,
    /// An OAuth 2.0 access token (RFC 6750), which expires.
    Bearer,
}

/// The state of a mailbox as one STATUS tells it (RFC 9051 section 6.3.11, RFC 7162 section 3.1.7).
/// `None` is what the server did not tell; it differs from nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// UIDVALIDITY; with another value all UIDs are others.
    pub uid_validity: Option<u64>,
    /// UIDNEXT: the UID that the next message gets.
    pub uid_next: Option<u64>,
    /// MESSAGES: how many there are.
    pub messages: Option<u64>,
    /// UNSEEN: how many have no `\Seen`.
    pub unseen: Option<u64>,
    /// HIGHESTMODSEQ (RFC 7162).
    pub highest_mod_seq: Option<u64>,
}

impl Snapshot {
    /// Whether some of the mail may be unread. Where UNSEEN is unknown, any mail may be, and where MESSAGES is as well,
    /// there may be some. A state without any number has none.
    pub fn may_have_unread(&self) -> bool {
        self.unseen.or(self.messages).map_or(*self != Self::default(), |number| number > 0)
    }
}

/// The bytes in hexadecimal, two digits in lower case for each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How much a change matters to a device (RFC 5423 names in brackets).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// Read, unread, expunged or moved away (MessageRead, FlagsClear, MessageExpunge, …): the badge
    /// is to be corrected some time.
    Quiet,
    /// New mail (MessageNew, MessageAppend): the device chimes.
    NewMail,
}

/// What a watcher tells the push side, in this order for one mailbox.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// New mail came, and its mailbox is still being asked for its state: a look follows.
    Announced(Change),
    /// A look found the mailbox no longer as its devices know it, nor as was announced.
    Changed(Change),
    /// No push of its own: the devices know this state, once they have the push of what was announced.
    Rebased {
        /// The account.
        account: Account,
        /// The backend.
        backend: BackendId,
        /// The mailbox.
        mailbox: Mailbox,
        /// The number of the announcement; a new one where nothing was announced.
        id: u64,
        /// The state that it has now.
        snapshot: Snapshot,
    },
    /// What is known of the newest mail of a mailbox, for which a change with
    /// [`Change::preview_follows`] has had the push side wait for a moment.
    Previewed {
        /// The account.
        account: Account,
        /// Where it was seen.
        backend: BackendId,
        /// The mailbox.
        mailbox: Mailbox,
        /// `None` where the mail is gone, or the backend does not tell.
        preview: Option<Preview>,
    },
    /// A device of this account has registered, or is gone: a hint, which may be lost.
    Registered {
        /// The account.
        account: Account,
    },
    /// Nobody watches the account until its user has logged in, so its devices are to look. What they are
    /// owed for it is marked in the store.
    LoginWanted {
        /// The account.
        account: Account,
        /// The backend.
        backend: BackendId,
    },
}

/// A mailbox that is no longer as its devices know it.
#[derive(Clone, Debug)]
pub struct Change {
    /// Whose mailbox it is.
    pub account: Account,
    /// Where it was seen.
    pub backend: BackendId,
    /// The mailbox that changed.
    pub mailbox: Mailbox,
    /// What changed.
    pub kind: ChangeKind,
    /// Rises within one (account, mailbox) while the program runs.
    pub id: u64,
    /// The new state; `None` in [`WatchEvent::Announced`]. [`WatchEvent::Changed`] or
    /// [`WatchEvent::Rebased`] tells it later.
    pub snapshot: Option<Snapshot>,
    /// When the backend's line was read.
    pub seen_at: Instant,
    /// Of new mail: how many messages were unread before it, where that was known.
    pub unread_before: Option<u64>,
    /// The backend is asked for sender and subject of the newest mail. [`WatchEvent::Previewed`] tells them
    /// within seconds, unless the connection ends.
    pub preview_follows: bool,
}

/// A login that a backend has accepted.
#[derive(Clone, Debug)]
pub struct AcceptedLogin {
    /// The backend that accepted it.
    pub backend: BackendId,
    /// `None` where they were hidden from us.
    pub credentials: Option<Credentials>,
    /// When it accepted it.
    pub at: Timestamp,
    /// Names in any case are one user there, and the account's is the canonical one.
    pub names_ignore_case: bool,
}

/// What a session tells the watching side.
#[derive(Clone, Debug)]
pub enum SessionEvent {
    /// A registration of this account is on disk.
    Registered {
        /// The account.
        account: Account,
        /// What the client or user logged in with; without credentials where the configuration registers.
        login: AcceptedLogin,
    },
    /// A registration of this account was on disk already. The watching side may not know it: what was refused as too
    /// late may have been written all the same.
    RegisteredAgain {
        /// The account.
        account: Account,
        /// As with [`SessionEvent::Registered`].
        login: AcceptedLogin,
    },
    /// This account's user has just logged in.
    LoggedIn {
        /// The account.
        account: Account,
        /// What the client or user logged in with.
        login: AcceptedLogin,
    },
    /// A session of this account's user has ended.
    Ended {
        /// The account.
        account: Account,
    },
}

// === impl Account ===

impl Account {
    /// The account of a login name that the backend accepted.
    pub fn from_login(login: &str) -> Self {
        let Some((local, domain)) = domain::last(login) else { return Self(login.into()) };
        // What stands behind the domain, as in `user@domain\Shared`, may have a case that counts.
        let more = &login[local.len() + 1 + domain.len()..];
        Self(format!("{local}@{}{more}", domain.to_ascii_lowercase()).into())
    }

    /// The text as it is.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one name of the account at a backend to which names in any case are one user: the whole name
    /// with its ASCII letters in lower case. The account as it is where the backend tells them apart.
    pub fn canonical(self, names_ignore_case: bool) -> Self {
        if names_ignore_case { Self(self.0.to_ascii_lowercase().into()) } else { self }
    }

    /// What limits count by: names that differ in nothing but case are one user to most servers.
    pub fn case_folded(&self) -> String {
        self.0.to_lowercase()
    }
}

/// The name as it is, which is a peer's text: the log quotes it, and what else a person reads must, as
/// [`str::escape_debug`] does.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Quoted and escaped.
impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

// === impl BackendId ===

impl BackendId {
    /// The identity of a backend with this name, or else of this address.
    pub fn new(name: Option<&str>, host: &str, port: u16) -> Self {
        let address = format!("{}:{port}", host.to_ascii_lowercase());
        Self { name: name.map(Into::into), address: address.into() }
    }

    /// What is recorded.
    pub fn as_str(&self) -> &str {
        self.name.as_ref().unwrap_or(&self.address)
    }

    /// What was recorded before it had a name.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether this backend was recorded so.
    pub fn is(&self, recorded: &str) -> bool {
        [self.as_str(), &self.address].contains(&recorded)
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Mailbox ===

impl Mailbox {
    /// The name of the inbox, which has no case (RFC 9051 section 5.1).
    pub const INBOX: &str = "INBOX";

    /// From a decoded name.
    pub fn new(name: &str) -> Self {
        if name.eq_ignore_ascii_case(Self::INBOX) {
            Self(Self::INBOX.into())
        } else {
            Self(name.into())
        }
    }

    /// The inbox.
    pub fn inbox() -> Self {
        Self(Self::INBOX.into())
    }

    /// Whether it is the inbox.
    pub fn is_inbox(&self) -> bool {
        &*self.0 == Self::INBOX
    }

    /// The text as it is.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name as it is: see [`Account`].
impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Quoted and escaped.
impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// How long something took or is to take, as logs have it: in seconds, to the millisecond.
pub fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

// === impl Timestamp ===

impl Timestamp {
    /// The time of day.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// `duration` later.
    pub fn plus(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// The day in UTC, as `2027-01-31`; the first or the last where it is before 1970 or after 9999.
    pub fn date(self) -> String {
        self.rfc3339()[..10].to_owned()
    }

    /// The time in UTC as RFC 3339 has it, in seconds; bounded as [`Self::date`].
    pub fn rfc3339(self) -> String {
        humantime::format_rfc3339_seconds(self.shown()).to_string()
    }

    /// The same with milliseconds.
    pub fn rfc3339_millis(self) -> String {
        humantime::format_rfc3339_millis(self.shown()).to_string()
    }

    /// The time, or the nearest one that can be written.
    fn shown(self) -> SystemTime {
        let last = 253_402_300_799_000; // of the year 9999
        UNIX_EPOCH + Duration::from_millis(self.0.clamp(0, last).unsigned_abs())
    }

    /// `duration` earlier, not before 1970.
    pub fn minus(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(millis).max(0))
    }
}

// === impl Credentials ===

impl Credentials {
    /// Password credentials of a user who acts as themselves.
    pub fn password(login: impl Into<String>, password: Vec<u8>) -> Self {
        Self::new(login.into(), SecretKind::Password, password)
    }

    /// An access token of a user who acts as themselves.
    pub fn bearer(login: impl Into<String>, token: Vec<u8>) -> Self {
        Self::new(login.into(), SecretKind::Bearer, token)
    }

    /// A secret of a user who acts as themselves.
    pub fn new(login: String, kind: SecretKind, secret: Vec<u8>) -> Self {
        let secret = Arc::new(SecretBox::new(secret.into_boxed_slice()));
        Self { login, authorization: String::new(), kind, secret }
    }

    /// The same secret, to act as `authorization` (RFC 4616 authzid).
    pub fn acting_as(mut self, authorization: impl Into<String>) -> Self {
        self.authorization = authorization.into();
        self
    }

    /// The password or token, for the wire and the vault only.
    pub fn expose_secret(&self) -> &[u8] {
        self.secret.expose_secret()
    }

    /// The account that these credentials open: the authorization identity if there is one.
    pub fn account(&self) -> Account {
        if self.authorization.is_empty() {
            Account::from_login(&self.login)
        } else {
            Account::from_login(&self.authorization)
        }
    }

    /// Whether a backend that accepts these credentials has accepted this very account.
    ///
    /// A password proves the login name, and some backends overlook the authorization identity: then
    /// both must be one account. A token proves whom it was issued to, and some backends overlook the
    /// name that comes with it: `checks_token_name` says that this one does not.
    pub fn prove_account(&self, checks_token_name: bool) -> bool {
        let claims_nothing =
            self.authorization.is_empty() || Account::from_login(&self.login) == self.account();
        claims_nothing && (self.kind == SecretKind::Password || checks_token_name)
    }

    /// Whether both prove the same thing with the same secret.
    pub fn same_as(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.login == other.login
            && self.authorization == other.authorization
            && self.expose_secret() == other.expose_secret()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("account", &self.account())
            .field("kind", &self.kind)
            .field("secret", &"[redacted]")
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_of_a_login_has_no_case_and_its_local_part_has() {
        assert_eq!(Account::from_login("a@EXAMPLE.org"), Account::from_login("a@example.org"));
        assert_ne!(Account::from_login("A@example.org"), Account::from_login("a@example.org"));
        assert_ne!(Account::from_login("Bob"), Account::from_login("bob"));
        let shared = Account::from_login("a@EXAMPLE.org\\Shared");
        assert_eq!(shared, Account::from_login("a@example.org\\Shared"));
        assert_ne!(shared, Account::from_login("a@example.org\\shared"));
    }

    #[test]
    fn the_canonical_name_is_in_lower_case_where_names_ignore_case() {
        let account = |login| Account::from_login(login);
        assert_eq!(account("Al.ICE@Example.org").canonical(true), account("al.ice@example.org"));
        assert_eq!(account("a@b.example\\Shared").canonical(true).as_str(), "a@b.example\\shared");
        assert_eq!(
            account("\u{c4}A").canonical(true).as_str(),
            "\u{c4}a",
            "letters of ASCII alone"
        );
        assert_eq!(account("Alice").canonical(false).as_str(), "Alice");
    }

    #[test]
    fn a_backend_is_known_by_its_name_and_by_its_address() {
        let unnamed = BackendId::new(None, "IMAP.example.org", 993);
        assert_eq!(unnamed.as_str(), "imap.example.org:993");
        let named = BackendId::new(Some("main"), "imap.example.org", 993);
        assert_eq!(named.to_string(), "main");
        assert!(named.is("main") && named.is(unnamed.as_str()) && !unnamed.is("main"));
        let moved = BackendId::new(Some("main"), "imap2.example.org", 993);
        assert!(moved.is(named.as_str()) && !moved.is(unnamed.as_str()));
    }

    #[test]
    fn debug_of_credentials_has_no_password() {
        let credentials = Credentials::password("alice", b"wonder land".to_vec());
        let shown = format!("{credentials:?} {credentials:#?}");
        assert!(!shown.contains("wonder") && !shown.contains("119"), "{shown}");
    }

    #[test]
    fn credentials_prove_the_account_that_they_claim_or_none() {
        let password = |authorization: &str| {
            Credentials::password("bob@b.example", b"x".to_vec()).acting_as(authorization)
        };
        for (authorization, proven) in [
            ("", true),
            ("bob@b.example", true),
            ("bob@B.Example", true),
            ("Bob@b.example", false),
            ("bob", false),
            ("alice@b.example", false),
        ] {
            assert_eq!(password(authorization).prove_account(false), proven, "{authorization}");
        }
        let token = Credentials::bearer("bob", b"x".to_vec());
        assert!(!token.prove_account(false) && token.prove_account(true));
        assert!(!token.acting_as("alice").prove_account(true));
    }

    #[test]
    fn names_are_quoted_and_escaped_where_they_are_debugged() {
        assert_eq!(format!("{:?}", Account::from_login("a\r\n\" b")), r#""a\r\n\" b""#);
        assert_eq!(format!("{:?}", Mailbox::new("a\nb")), r#""a\nb""#);
    }
}
