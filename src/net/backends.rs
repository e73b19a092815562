//! All backends: which one has an account's mail, and how many connections an account may have.
//!
//! Sessions and watchers share this, so that an account's connections are counted once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::account_connections::{AccountConnections, ConnectionPermit};
use super::backend::{Backend, BackendError, ConnectError, Connected, LoggedIn, LoginError};
use super::counters::LimitCounters;
use super::proxy_protocol::ProxiedClient;
use super::resolve::NameResolver;
use crate::config::{self, Config};
use crate::imap::login::LoginKinds;
use crate::model::{Account, AmbiguousDomain, BackendId, Credentials};

/// A handle to all backends. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backends(Arc<BackendsShared>);

#[derive(Debug)]
struct BackendsShared {
    table: watch::Sender<Table>,
    /// Each watcher waits for that all the time, and takes half as much room for it as for a channel.
    replaced: Notify,
    connections: AccountConnections,
    counters: Arc<LimitCounters>,
}

/// The backends of one configuration; [`Backends::replace`] puts it to use.
#[derive(Debug)]
pub struct Table {
    default: (config::BackendConfig, Backend),
    /// By domain, in lower case.
    routes: HashMap<String, (config::BackendConfig, Backend)>,
    connections_per_account: usize,
}

/// What is wrong with a backend as it is configured.
#[derive(Debug, thiserror::Error)]
#[error("{table} {key}: {problem}")]
pub struct Unusable {
    table: &'static str,
    key: &'static str,
    problem: BackendError,
}

// === impl Table ===

impl Table {
    /// The backends of `config`, whose names `resolver` knows.
    ///
    /// # Errors
    /// [`Unusable`] names the backend whose TLS or master user cannot be set up.
    pub fn new(config: &Config, resolver: &NameResolver) -> Result<Self, Unusable> {
        let backend = |table, backend: &config::BackendConfig| match Backend::new(
            backend,
            config.limits.connect_timeout,
            resolver,
        ) {
            Ok(built) => Ok((backend.clone(), built)),
            Err((key, problem)) => Err(Unusable { table, key, problem }),
        };
        let mut routes = HashMap::new();
        for route in &config.routes {
            routes.insert(route.domain.clone(), backend("[[route]]", &route.backend)?);
        }
        let connections_per_account = config.limits.connections_per_account;
        Ok(Self {
            default: backend("[backend]", &config.backend)?,
            routes,
            connections_per_account,
        })
    }

    /// Backends that are configured as in `old` keep what is known of them.
    fn succeeding(mut self, old: &Self) -> Self {
        let routes = old.routes.iter().map(|(domain, backend)| (Some(domain), backend));
        for (domain, (config, backend)) in routes.chain([(None, &old.default)]) {
            let new = match domain {
                Some(domain) => self.routes.get_mut(domain),
                None => Some(&mut self.default),
            };
            if let Some((same, new)) = new
                && same == config
            {
                *new = new.clone().succeeding(backend);
            }
        }
        self
    }

    fn of(&self, account: &Account) -> Result<&Backend, AmbiguousDomain> {
        let domain = account.domain_among(|domain| self.routes.contains_key(domain))?;
        let route = domain.and_then(|domain| self.routes.get(domain));
        Ok(&route.unwrap_or(&self.default).1)
    }

    /// Whether this is the backend of the account, or of nobody in particular.
    fn is_of(&self, account: Option<&Account>, backend: &Backend) -> bool {
        match account {
            Some(account) => self.of(account).is_ok_and(|of| of.is(backend)),
            None => self.default.1.is(backend),
        }
    }
}

// === impl Backends ===

impl Backends {
    /// The backends of `table`; `counters` count their limits.
    pub fn new(table: Table, counters: Arc<LimitCounters>) -> Self {
        let (table, connections) = (watch::Sender::new(table), AccountConnections::default());
        Self(Arc::new(BackendsShared { table, replaced: Notify::new(), connections, counters }))
    }

    /// From now on new connections go by `table`. Those that are open stay, but clients that can come back
    /// hear of it by [`Backends::moved`] or [`Backends::replacements`].
    pub fn replace(&self, table: Table) {
        self.0.table.send_modify(|current| *current = table.succeeding(current));
        self.0.replaced.notify_waiters();
    }

    /// Tells of each [`Backends::replace`] from now on.
    pub fn replacements(&self) -> watch::Receiver<Table> {
        self.0.table.subscribe()
    }

    /// Waits until the account's backend, or that of nobody in particular, is another one than
    /// `from`, or is not certain.
    pub async fn moved(&self, account: Option<&Account>, from: &Backend) {
        loop {
            // Before the look: what is replaced behind it is heard of.
            let replaced = self.0.replaced.notified();
            if !self.0.table.borrow().is_of(account, from) {
                return;
            }
            replaced.await;
        }
    }

    /// How often each limit was hit.
    pub fn counters(&self) -> Arc<LimitCounters> {
        Arc::clone(&self.0.counters)
    }

    /// The backend of this account: by its domain, or else the default one.
    ///
    /// # Errors
    /// The name of the account leaves open which one it is.
    pub fn of(&self, account: &Account) -> Result<Backend, AmbiguousDomain> {
        self.0.table.borrow().of(account).cloned()
    }

    /// The account under the one name that it has where its backend ignores the case of names; as it is
    /// at any other backend, and where the name leaves open which one it is.
    pub fn canonical(&self, account: Account) -> Account {
        match self.of(&account) {
            Ok(backend) => account.canonical(backend.names_ignore_case()),
            Err(AmbiguousDomain) => account,
        }
    }

    /// What the backend of this account is recorded with; `None` where its name leaves open which one
    /// it is.
    pub fn id_of(&self, account: &Account) -> Option<BackendId> {
        self.of(account).ok().map(|backend| backend.id().clone())
    }

    /// Whether `backend` is still that of this account.
    pub fn is_of(&self, account: &Account, backend: &Backend) -> bool {
        self.0.table.borrow().is_of(Some(account), backend)
    }

    /// The backend of accounts without a route, and of sessions before the account is known.
    pub fn default(&self) -> Backend {
        self.0.table.borrow().default.1.clone()
    }

    /// Whether accounts have a master user who watches for them: those of each domain with a route, and
    /// all others.
    pub fn masters(&self) -> (Vec<(String, bool)>, bool) {
        let table = self.0.table.borrow();
        let has = |(_, backend): &(config::BackendConfig, Backend)| backend.master().is_some();
        let routes = table.routes.iter().map(|(domain, backend)| (domain.clone(), has(backend)));
        (routes.collect(), has(&table.default))
    }

    /// In which ways backends of routes take logins, as far as they were seen.
    pub fn routed_logins(&self) -> LoginKinds {
        let table = self.0.table.borrow();
        let all = LoginKinds { passwords: true, tokens: true };
        let mut some = LoginKinds::default();
        for (_, backend) in table.routes.values() {
            if some == all {
                break;
            }
            some = some.or(backend.logins());
        }
        some
    }

    /// The backends of routes.
    pub fn of_routes(&self) -> Vec<Backend> {
        self.0.table.borrow().routes.values().map(|(_, backend)| backend.clone()).collect()
    }

    /// The domains, in lower case, whose users are not on the backend of users who are not known yet.
    pub fn routed(&self) -> Vec<String> {
        self.0.table.borrow().routes.keys().cloned().collect()
    }

    /// Connects a client to `backend`, whose greeting is no longer than `longest` bytes.
    ///
    /// # Errors
    /// As [`Backend::connect`].
    pub async fn connect(
        &self,
        backend: &Backend,
        client: ProxiedClient,
        longest: usize,
    ) -> Result<Connected, ConnectError> {
        backend.connect(Some(client), longest).await.inspect_err(|error| self.count(error))
    }

    /// Connects to the account's backend and logs in, with a place among the account's connections,
    /// which is taken when the backend has accepted; where there is none, nothing is dialled. The name
    /// in the credentials may be another one: a master's. The limits are those of
    /// [`Backend::log_in`].
    ///
    /// # Errors
    /// As [`Backend::log_in`], and [`ConnectError::TooMany`] where the account has all the
    /// connections that it may have.
    pub async fn log_in(
        &self,
        backend: &Backend,
        account: &Account,
        credentials: Credentials,
        limit: Duration,
        longest: usize,
    ) -> Result<LoggedIn, LoginError> {
        drop(self.place(account)?);
        let logged_in = backend.log_in(credentials, limit, longest).await;
        let logged_in = logged_in.inspect_err(|error| {
            if let LoginError::Connect(error) = error {
                self.count(error);
            }
        })?;
        Ok(LoggedIn { place: Some(self.place(account)?), ..logged_in })
    }

    /// A place among the connections of the account, which its backend has accepted.
    ///
    /// # Errors
    /// [`ConnectError::TooMany`] where `[limits] connections_per_account` are taken.
    pub fn place(&self, account: &Account) -> Result<ConnectionPermit, ConnectError> {
        let limit = self.0.table.borrow().connections_per_account;
        self.0.connections.permit(account, limit).ok_or_else(|| {
            if self.0.counters.connections_per_account.hit() {
                tracing::warn!(
                    target: "mailchime::net::connections_per_account_reached",
                    %account, limit,
                    "[limits] connections_per_account is reached; mailchime opens no further \
                     connection for this account until one ends"
                );
            }
            ConnectError::TooMany { account: account.clone(), limit }
        })
    }

    fn count(&self, error: &ConnectError) {
        // Each failure has a log line of its own.
        if matches!(error, ConnectError::Timeout { .. }) {
            self.0.counters.connect_timeout.hit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BackendTls, RouteConfig, TlsConfig};

    /// Routes are pairs of a domain and the port that stands for its backend.
    fn table(default: u16, routes: &[(&str, u16)], connections_per_account: usize) -> Table {
        let backend = |port| config::BackendConfig::new("127.0.0.1", port, BackendTls::None);
        let mut config = Config::new(TlsConfig::new("", ""), backend(default));
        let route = |(domain, port): &(&str, u16)| RouteConfig {
            domain: (*domain).to_owned(),
            backend: backend(*port),
        };
        config.routes = routes.iter().map(route).collect();
        config.limits.connections_per_account = connections_per_account;
        Table::new(&config, &NameResolver::default()).unwrap()
    }

    fn backends(table: Table) -> Backends {
        Backends::new(table, Arc::default())
    }

    fn account(login: &str) -> Account {
        Account::from_login(login)
    }

    #[test]
    fn an_account_is_on_the_backend_of_its_domain() {
        let backends = backends(table(1, &[("a.example", 2), ("b.example", 3)], 0));
        for (login, port) in [
            ("x@a.example", 2),
            ("x@A.Example", 2),
            ("x@sub.a.example", 1),
            ("x*boss", 1),
            ("x@c.example\\shared", 1),
            ("@a.example", 2),
            ("x@", 1),
        ] {
            let name = backends.of(&account(login)).unwrap().name();
            assert_eq!(name, format!("127.0.0.1:{port}"), "{login}");
        }
        assert!(backends.of(&account("x@a.example\\shared")).is_err());
        assert_eq!(backends.default().name(), "127.0.0.1:1");
        let mut routed = backends.routed();
        routed.sort();
        assert_eq!(routed, ["a.example", "b.example"]);
    }

    #[test]
    fn an_account_has_one_name_where_its_backend_ignores_case() {
        let backend = || config::BackendConfig::new("127.0.0.1", 1, BackendTls::None);
        let mut config = Config::new(TlsConfig::new("", ""), backend());
        config.routes = vec![RouteConfig { domain: "a.example".into(), backend: backend() }];
        config.routes[0].backend.names_ignore_case = true;
        let backends = backends(Table::new(&config, &NameResolver::default()).unwrap());
        for (login, expected) in [
            ("Bob@A.Example", "bob@a.example"),
            ("Bob@b.example", "Bob@b.example"),
            ("Bob", "Bob"),
            ("Bob@a.example\\Shared", "Bob@a.example\\Shared"),
        ] {
            assert_eq!(backends.canonical(account(login)).as_str(), expected);
            assert_eq!(config.canonical(account(login)).as_str(), expected);
        }
    }

    #[test]
    fn places_are_counted_by_account_and_come_back() {
        let backends = backends(table(1, &[], 2));
        let (alice, bob) = (account("alice"), account("bob"));
        let first = backends.place(&alice).unwrap();
        let _second = backends.place(&alice).unwrap();
        let refused = backends.place(&alice).unwrap_err().to_string();
        assert_eq!(refused, "alice has 2 connections already");
        assert!(backends.place(&account("ALICE")).is_err(), "another spelling is no other user");
        let bobs = backends.place(&bob).unwrap();
        drop((first, bobs));
        let _third = backends.place(&alice).unwrap();
        assert!(backends.place(&alice).is_err());
        assert_eq!(backends.counters().connections_per_account.hits(), 3);
        // A limit that falls takes nobody's place, and one that goes is none.
        backends.replace(table(1, &[], 1));
        assert!(backends.place(&alice).is_err());
        backends.replace(table(1, &[], 0));
        let _more: Vec<_> = (0..10).map(|_| backends.place(&alice).unwrap()).collect();
        assert_eq!(backends.0.connections.accounts(), 1, "who has no connection is forgotten");
    }

    #[tokio::test]
    async fn known_backends_stay_and_accounts_that_move_are_listed() {
        let backends = backends(table(1, &[("a.example", 2)], 0));
        let (a, b) = (account("x@a.example"), account("x@b.example"));
        let (of_a, of_b) = (backends.of(&a).unwrap(), backends.of(&b).unwrap());
        of_b.saw(crate::imap::capability::Capabilities::parse(b"IMAP4rev1 X-KNOWN"));

        // The same backends, and a route that none had: b moves, a does not.
        let told = |backends: &Backends| {
            let backends = backends.clone();
            let (a, b, of_a, of_b) = (a.clone(), b.clone(), of_a.clone(), of_b.clone());
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = backends.moved(Some(&a), &of_a) => "a",
                    () = backends.moved(Some(&b), &of_b) => "b",
                }
            })
        };
        let waiting = told(&backends);
        backends.replace(table(1, &[("a.example", 2)], 7));
        assert!(backends.default().seen().is_some_and(|seen| seen.has("X-KNOWN")));
        assert!(backends.is_of(&a, &of_a) && backends.is_of(&b, &of_b));
        backends.replace(table(1, &[("a.example", 2), ("b.example", 3)], 7));
        assert_eq!(waiting.await.unwrap(), "b");
        backends.replace(table(1, &[("b.example", 3)], 7));
        assert_eq!(told(&backends).await.unwrap(), "a");
        backends.replace(table(4, &[], 7));
        assert!(backends.default().seen().is_none(), "another backend, of which nothing is known");
    }
}
