//! The labels of what is counted, each with its words.

use std::fmt::Debug;
use std::hash::Hash;

/// A fixed set of values of one or more labels.
pub trait Labels: Copy + Debug + Eq + Hash + Send + Sync + 'static {
    /// How many values there are.
    const COUNT: usize;

    /// All values, in the order of [`Labels::index`].
    fn all() -> Vec<Self>;

    /// From 0 on.
    fn index(self) -> usize;

    /// Names of labels and their values.
    fn pairs(self) -> Vec<(&'static str, &'static str)>;
}

/// A label: its name, and its values with their words.
macro_rules! label {
    ($(#[$about:meta])* $name:ident as $label:literal { $($(#[$of:meta])* $value:ident: $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$of])* #[doc = concat!("`", $word, "`")] $value,)*
        }

        impl Labels for $name {
            const COUNT: usize = [$($word),*].len();

            fn all() -> Vec<Self> {
                vec![$(Self::$value),*]
            }

            fn index(self) -> usize {
                self as usize
            }

            fn pairs(self) -> Vec<(&'static str, &'static str)> {
                vec![($label, match self { $(Self::$value => $word,)* })]
            }
        }
    };
}

label!(
    /// How a session ended.
    SessionEnd as "how" {
        /// Nobody was logged in, and others needed the place.
        Evicted: "evicted",
        /// TLS did not come about.
        Handshake: "handshake",
        /// Either side closed its connection.
        Closed: "closed",
        /// LOGOUT before login, or too many errors.
        Dismissed: "dismissed",
        LoginTimeout: "login_timeout",
        /// The program is stopping.
        Stopped: "stopped",
        /// A socket failed, or a bound was hit.
        Fault: "fault",
    }
);

label!(
    /// How a request to `[api]` was answered.
    ApiAnswer as "answer" {
        Ok: "ok",
        /// 401
        Unauthorized: "unauthorized",
        /// Another 4xx.
        Refused: "refused",
        /// 5xx
        Failed: "failed",
    }
);

label!(
    /// Why a request with events was refused.
    EventRefusal as "why" {
        /// 401
        Unauthorized: "unauthorized",
        /// 403: the source may not speak for the user.
        Foreign: "foreign",
        /// 413
        TooLarge: "too_large",
        /// 415
        MediaType: "media_type",
        /// 422
        Malformed: "malformed",
        /// 408
        Timeout: "timeout",
        /// 503: the source sends more than it may.
        TooMany: "too_many",
        /// 503: too much waits.
        Waiting: "waiting",
        /// 503: the database does not take it.
        Unrecorded: "unrecorded",
    }
);

label!(
    /// How far a session is.
    Phase as "phase" {
        Login: "login",
        /// The user is logged in.
        Session: "session",
    }
);

label!(
    /// A command that mailchime itself answers.
    Verb as "verb" {
        /// And AUTHENTICATE.
        Login: "login",
        Register: "xapplepushservice",
        Compress: "compress",
        StartTls: "starttls",
        /// What would break the session, and is refused after login.
        Other: "other",
    }
);

label!(
    /// How a command was answered.
    Answer as "result" {
        Ok: "ok",
        No: "no",
        Bad: "bad",
    }
);

label!(
    /// Which way bytes go.
    Direction as "direction" {
        ToBackend: "to_backend",
        ToClient: "to_client",
    }
);

label!(
    /// The two forms of compressed data.
    Form as "form" {
        Plain: "plain",
        Compressed: "compressed",
    }
);

label!(
    /// What a change was.
    Kind as "kind" {
        NewMail: "new_mail",
        Quiet: "quiet",
    }
);

label!(
    /// How an account without a connection was asked for.
    VisitBy as "by" {
        /// On a short connection.
        Login: "login",
        /// By a call of doveadm's HTTP API.
        Doveadm: "doveadm",
    }
);

label!(
    /// Why an account was parked.
    Parked as "why" {
        /// What its user logged in with is refused.
        Refused: "refused",
        /// There is nothing to log in with, as a token that has expired.
        NoPassword: "no_password",
    }
);

label!(
    /// What became of a push.
    PushOutcome as "outcome" {
        Accepted: "accepted",
        Gone: "gone",
        BadEndpoint: "bad_endpoint",
        OtherRoute: "other_route",
        TooLarge: "too_large",
        Refused: "refused",
        Unrenderable: "unrenderable",
        TooMany: "too_many",
        Unavailable: "unavailable",
    }
);

label!(
    /// Something that waits for its turn.
    Queue as "queue" {
        /// From sessions to the watching side.
        SessionEvents: "session_events",
        /// From watchers to the push side.
        ChangeEvents: "change_events",
        /// Accounts with a device that has to get a push, and pushes that are under way.
        Pushes: "pushes",
        /// Rows about pushes that are still to be written.
        Settlements: "settlements",
    }
);

label!(
    /// A call of the database.
    Call as "call" {
        Register: "register",
        /// Whether a registration is stored as it is.
        Registered: "registered",
        RemoveDevice: "remove_device",
        /// What a user has made, shown to that user.
        Listed: "listed",
        /// An endpoint has answered.
        Confirm: "confirm",
        /// Subscriptions that have not answered, or are over.
        DropEnded: "drop_ended",
        RemoveAccount: "remove_account",
        Expire: "expire",
        Accounts: "accounts",
        Account: "account",
        Credentials: "credentials",
        Adopt: "adopt",
        /// Entries that mailchime writes at backends.
        Entries: "entries",
        SaveCredentials: "save_credentials",
        EraseCredentials: "erase_credentials",
        Seals: "seals",
        SealedAfter: "sealed_after",
        Reseal: "reseal",
        Park: "park",
        Unpark: "unpark",
        Watched: "watched",
        /// How many accounts and subscriptions there are.
        Counted: "counted",
        Targets: "targets",
        Owed: "owed",
        Settle: "settle",
        Devices: "devices",
        /// A node comes, goes or gives a sign of life.
        Beat: "beat",
        Nodes: "nodes",
        News: "news",
        /// How long phones could register.
        Service: "service",
        Ping: "ping",
        Scrub: "scrub",
    }
);

/// What a watcher does, and for one at work, how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Watching {
    /// It has not logged in yet.
    Starting,
    /// It asks STATUS now and then.
    Poll,
    /// It waits in IDLE (RFC 2177).
    Idle,
    /// It has asked for NOTIFY (RFC 5465).
    Notify,
    /// It logs in when there is a reason.
    OnDemand,
    /// It waits before it tries again.
    BackingOff,
    /// It waits until its user logs in.
    Parked,
}

// === impl Labels ===

impl<A: Labels, B: Labels> Labels for (A, B) {
    const COUNT: usize = A::COUNT * B::COUNT;

    fn all() -> Vec<Self> {
        A::all().into_iter().flat_map(|a| B::all().into_iter().map(move |b| (a, b))).collect()
    }

    fn index(self) -> usize {
        self.0.index() * B::COUNT + self.1.index()
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        [self.0.pairs(), self.1.pairs()].concat()
    }
}

impl Labels for Watching {
    const COUNT: usize = 7;

    fn all() -> Vec<Self> {
        let at_work = [Self::Poll, Self::Idle, Self::Notify, Self::OnDemand];
        [&[Self::Starting][..], &at_work, &[Self::BackingOff, Self::Parked]].concat()
    }

    fn index(self) -> usize {
        self as usize
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        let (state, mode) = match self {
            Self::Starting => ("starting", ""),
            Self::Poll => ("watching", "poll"),
            Self::Idle => ("watching", "idle"),
            Self::Notify => ("watching", "notify"),
            Self::OnDemand => ("watching", "on_demand"),
            Self::BackingOff => ("backing_off", ""),
            Self::Parked => ("parked", ""),
        };
        vec![("state", state), ("mode", mode)]
    }
}
