//! `[[route]]`: the backends of domains that have one of their own.

use super::backend::{BackendConfig, RawBackend, RawBackendTls};
use super::check::{Check, CheckResult, domain};
use super::watch::WatchConnection;

/// `[[route]]`: the backend of one domain's accounts.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteConfig {
    /// In lower case.
    pub domain: String,
    /// Where these users' sessions go.
    pub backend: BackendConfig,
}

// `domain` and the keys of `RawBackend`, which serde cannot flatten into a table that refuses
// unknown keys.
table!(RawRoute {
    domain: Option<String>,
    name: Option<String>,
    address: Option<String>,
    tls: Option<RawBackendTls>,
    ca: Option<String>,
    server_name: Option<String>,
    tls_pin_sha256: Option<String>,
    proxy_protocol: Option<bool>,
    send_id: Option<bool>,
    checks_token_name: Option<bool>,
    names_ignore_case: Option<bool>,
    master_user: Option<String>,
    master_password_file: Option<String>,
    login_template: Option<String>,
    doveadm_url: Option<String>,
    doveadm_key_file: Option<String>,
    connection: Option<WatchConnection>,
});

impl RawRoute {
    /// How its accounts are watched, where it says so.
    pub(super) fn connection(&self) -> Option<(String, WatchConnection)> {
        Some((domain(self.domain.as_deref()?)?, self.connection?))
    }

    pub(super) fn split(self) -> (Option<String>, RawBackend) {
        let backend = RawBackend {
            name: self.name,
            address: self.address,
            tls: self.tls,
            ca: self.ca,
            server_name: self.server_name,
            tls_pin_sha256: self.tls_pin_sha256,
            proxy_protocol: self.proxy_protocol,
            send_id: self.send_id,
            checks_token_name: self.checks_token_name,
            names_ignore_case: self.names_ignore_case,
            master_user: self.master_user,
            master_password_file: self.master_password_file,
            login_template: self.login_template,
            doveadm_url: self.doveadm_url,
            doveadm_key_file: self.doveadm_key_file,
        };
        (self.domain, backend)
    }
}

impl Check<'_> {
    pub(super) fn routes(&self, raw: Vec<RawRoute>) -> CheckResult<Vec<RouteConfig>> {
        const DOMAIN: &str = "[[route]] domain";
        let mut routes: Vec<RouteConfig> = Vec::new();
        for route in raw {
            let (name, backend) = route.split();
            let allowed =
                "give what stands behind the \"@\" of login names, such as \"example.org\"";
            let Some(name) = name else {
                return Err(self.refusal(DOMAIN, format!("missing; {allowed}")));
            };
            let Some(domain) = domain(&name) else {
                return Err(self.refusal(DOMAIN, format!("{name:?} is no domain; {allowed}")));
            };
            if routes.iter().any(|other| other.domain == domain) {
                return Err(self.refusal(DOMAIN, format!("{domain} is given twice; remove one")));
            }
            routes.push(RouteConfig { domain, backend: self.backend("[[route]]", backend)? });
        }
        Ok(routes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refused_with;

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            ("[[route]]", "[[route]] domain: missing; give what stands behind"),
            ("[[route]]\ndomain = \"*.b\"", "[[route]] domain: \"*.b\" is no domain"),
            ("[[route]]\ndomain = \"b\"", "[[route]] address: missing; give the IMAP server"),
            ("[[route]]\ndomain = 1", "[[route]] domain: invalid type"),
            (
                "[[route]]\ndomain = \"b\"\naddress = \"b:1\"\ntls = \"none\"\nca = \"certs/ca.pem\"",
                "[[route]] ca: has no meaning with tls = \"none\"",
            ),
            (
                "[[route]]\ndomain = \"b\"\naddress = \"b:1\"\n[[route]]\ndomain = \"B\"\naddress = \"c:1\"",
                "[[route]] domain: b is given twice; remove one",
            ),
            (
                "[[route]]\ndomain = \"b\"\naddress = \"b:1\"\nmaster_password_file = \"certs/ca.pem\"",
                "[[route]] master_user: missing; name the user of the IMAP server",
            ),
            (
                "[backend]\naddress = \"a:1\"\nname = \"a\"\n\
                 [[route]]\ndomain = \"b\"\naddress = \"b:1\"\nname = \"a\"",
                "[[route]] name: a is the name of a:1 and of b:1; a name is that of one server",
            ),
        ] {
            refused_with(text, expected);
        }
    }
}
