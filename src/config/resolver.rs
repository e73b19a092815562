//! `[resolver]`: how names of servers become addresses.

use std::net::{IpAddr, SocketAddr};

use super::check::{Check, CheckResult};

/// `[resolver]`: how names of servers become addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolverConfig {
    /// Empty: those of `/etc/resolv.conf`.
    pub name_servers: Vec<SocketAddr>,
    /// Connections that wait for the address of one name.
    pub waiting: usize,
}

table!(RawResolver {
    name_servers: Vec<String>,
    waiting: Option<i64>,
});

impl Default for ResolverConfig {
    fn default() -> Self {
        Self { name_servers: Vec::new(), waiting: 4096 }
    }
}

impl Check<'_> {
    pub(super) fn resolver(&self, raw: RawResolver) -> CheckResult<ResolverConfig> {
        const SERVERS: &str = "[resolver] name_servers";
        let mut resolver = ResolverConfig::default();
        for text in raw.name_servers {
            let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
            let address = address.or_else(|_| text.parse::<SocketAddr>()).map_err(|_| {
                let allowed = "allowed is an IP address, also with a port, such as \"192.0.2.53\" or \
                               \"127.0.0.1:5353\"";
                self.refusal(SERVERS, format!("{text:?} is no address; {allowed}"))
            })?;
            resolver.name_servers.push(address);
        }
        self.number("[resolver] waiting", raw.waiting, 1..=1_000_000, &mut resolver.waiting)?;
        Ok(resolver)
    }
}
