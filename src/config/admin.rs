//! `[admin]`: HTTP for operators.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::check::{Check, CheckResult, domain};

/// `[admin]`: metrics, health and status over HTTP, without authentication.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdminConfig {
    /// `None`: there is none of it.
    pub address: Option<AdminAddress>,
    /// Names and addresses by which it is reached beside its own; in lower case, addresses without
    /// brackets.
    pub hosts: Vec<String>,
}

/// Where `[admin]` listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// Not a loopback address only where the configuration says that this is meant. Port 0 lets the
    /// system choose one.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix {
        /// The file.
        path: PathBuf,
        /// Name or number of a group that may connect, beside mailchime's user.
        group: Option<String>,
    },
}

table!(RawAdmin {
    address: Option<String>,
    group: Option<String>,
    hosts: Vec<String>,
    expose_without_authentication: Option<bool>,
});

impl From<SocketAddr> for AdminAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Check<'_> {
    pub(super) fn admin(&self, raw: RawAdmin) -> CheckResult<AdminConfig> {
        const ADDRESS: &str = "[admin] address";
        let RawAdmin { address: Some(text), group, hosts, expose_without_authentication } = raw
        else {
            return Ok(AdminConfig::default());
        };
        let hosts = hosts.iter().map(|host| self.admin_host(host)).collect::<CheckResult<_>>()?;
        if let Some(path) = text.strip_prefix("unix:") {
            let path = self.folder().join(path);
            // It is made under a longer name, and the system allows 107.
            if path.as_os_str().len() > 90 || path.file_name().is_none() {
                let allowed = "allowed is the path of a file of at most 90 bytes, behind \"unix:\"";
                return Err(self.refusal(ADDRESS, format!("{text:?} is no socket; {allowed}")));
            }
            return Ok(AdminConfig { address: Some(AdminAddress::Unix { path, group }), hosts });
        }
        let address = text.parse::<SocketAddr>().map_err(|_| {
            let allowed = "allowed is an IP address with a port, such as \"127.0.0.1:8143\", or a Unix \
                           socket, such as \"unix:/run/mailchime/admin.sock\"";
            self.refusal(ADDRESS, format!("{text:?} is no address; {allowed}"))
        })?;
        if group.is_some() {
            let problem =
                "only a Unix socket has a group; give address = \"unix:…\", or leave it out";
            return Err(self.refusal("[admin] group", problem));
        }
        if !address.ip().is_loopback() && !expose_without_authentication.unwrap_or_default() {
            let problem = format!(
                "{address} can be reached from other machines, and nobody is asked for a password \
                 there; use \"127.0.0.1:8143\", or set expose_without_authentication = true if \
                 something else keeps strangers out"
            );
            return Err(self.refusal(ADDRESS, problem));
        }
        Ok(AdminConfig { address: Some(address.into()), hosts })
    }

    fn admin_host(&self, text: &str) -> CheckResult<String> {
        let address = text.parse::<IpAddr>().map(|address| address.to_string());
        address.ok().or_else(|| domain(text)).ok_or_else(|| {
            let allowed = "allowed are names and IP addresses, without a port";
            self.refusal("[admin] hosts", format!("{text:?} is no host; {allowed}"))
        })
    }
}
