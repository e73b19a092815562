//! The HTTP proxy by which a push service is reached.

use std::path::PathBuf;

use super::check::{Check, CheckResult, host_and_port};

/// A proxy that is spoken to in the clear and asked for a tunnel (RFC 9110 section 9.3.6).
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    /// A name or an IP address, the latter without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// A file that exists, with `user:password` in its first line.
    pub login_file: Option<PathBuf>,
}

impl Check<'_> {
    /// `proxy` and `proxy_login_file` of `table`.
    pub(super) fn proxy(
        &self,
        table: &str,
        url: Option<String>,
        login_file: Option<String>,
    ) -> CheckResult<Option<ProxyConfig>> {
        let key = format!("{table} proxy_login_file");
        let login_file = self.file(&key, login_file)?;
        let Some(url) = url else {
            let problem = "has no meaning without proxy; remove it, or name the proxy";
            return match login_file {
                Some(_) => Err(self.refusal(&key, problem)),
                None => Ok(None),
            };
        };
        match url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')) {
            Some(address) if let Some((host, port)) = host_and_port(address) => {
                Ok(Some(ProxyConfig { host, port, login_file }))
            }
            // What is refused may hold a password.
            _ => {
                let problem = "is not understood; allowed is \"http://host:port\", without user and \
                               password, which go into the file proxy_login_file";
                Err(self.refusal(&format!("{table} proxy"), problem))
            }
        }
    }
}
