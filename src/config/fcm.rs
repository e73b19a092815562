//! `[[fcm]]`: pushes to apps by Firebase Cloud Messaging, a table for each project.

use std::collections::HashSet;
use std::path::PathBuf;

use hyper::Uri;

use super::check::{Check, CheckResult};
use super::proxy::ProxyConfig;

/// `[[fcm]]`: one project, and the apps that are sent to by it.
#[derive(Clone, Debug, PartialEq)]
pub struct FcmConfig {
    /// The JSON file of a service account; it exists.
    pub service_account_file: PathBuf,
    /// Package names; empty: all apps that no other table names.
    pub apps: Vec<String>,
    /// `https://host` or `https://host:port`, without a path.
    pub endpoint: Uri,
    /// A PEM file that exists; `None` trusts the system's roots.
    pub ca: Option<PathBuf>,
    /// `None` connects directly.
    pub proxy: Option<ProxyConfig>,
}

table!(RawFcm {
    service_account_file: Option<String>,
    apps: Vec<String>,
    endpoint: Option<String>,
    ca: Option<String>,
    proxy: Option<String>,
    proxy_login_file: Option<String>,
});

impl FcmConfig {
    /// Google's service with this account, for all apps.
    pub fn new(service_account_file: impl Into<PathBuf>) -> Self {
        Self {
            service_account_file: service_account_file.into(),
            apps: Vec::new(),
            endpoint: Uri::from_static("https://fcm.googleapis.com"),
            ca: None,
            proxy: None,
        }
    }
}

impl Check<'_> {
    pub(super) fn fcm(&self, raw: Vec<RawFcm>) -> CheckResult<Vec<FcmConfig>> {
        const APPS: &str = "[[fcm]] apps";
        let mut projects: Vec<FcmConfig> = Vec::new();
        let mut served = HashSet::new();
        for raw in raw {
            let project = self.fcm_project(raw)?;
            if let Some(app) = project.apps.iter().find(|app| !served.insert((*app).clone())) {
                let problem = format!("{app:?} is in two tables; remove it from one of them");
                return Err(self.refusal(APPS, problem));
            }
            if project.apps.is_empty() && projects.iter().any(|other| other.apps.is_empty()) {
                let problem = "two tables have none, but only one can be for all other apps; say \
                               which apps each of the others is for";
                return Err(self.refusal(APPS, problem));
            }
            projects.push(project);
        }
        Ok(projects)
    }

    fn fcm_project(&self, raw: RawFcm) -> CheckResult<FcmConfig> {
        const FILE: &str = "[[fcm]] service_account_file";
        let Some(file) = self.file(FILE, raw.service_account_file)? else {
            let problem = "missing; name the JSON file that the Firebase console makes (Project \
                           settings, Service accounts)";
            return Err(self.refusal(FILE, problem));
        };
        let mut project = FcmConfig::new(file);
        let fits = |app: &&String| {
            (1..=255).contains(&app.len())
                && app.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        };
        if let Some(app) = raw.apps.iter().find(|app| !fits(app)) {
            let allowed = "allowed are letters, digits, \".\", \"-\" and \"_\", such as \
                           \"org.example.mail\"";
            return Err(self.refusal("[[fcm]] apps", format!("{app:?} is no app; {allowed}")));
        }
        project.apps = raw.apps;
        if let Some(endpoint) = raw.endpoint {
            project.endpoint = self.fcm_endpoint(&endpoint)?;
        }
        project.ca = self.file("[[fcm]] ca", raw.ca)?;
        project.proxy = self.proxy("[[fcm]]", raw.proxy, raw.proxy_login_file)?;
        Ok(project)
    }

    fn fcm_endpoint(&self, text: &str) -> CheckResult<Uri> {
        let parsed = text.parse::<Uri>().ok().filter(|uri| {
            let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
            uri.scheme_str() == Some("https") && plain && ["", "/"].contains(&uri.path())
        });
        parsed.ok_or_else(|| {
            let problem = format!("{text:?} is not understood; allowed is \"https://host:port\"");
            self.refusal("[[fcm]] endpoint", problem)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refused_with;

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        let project = "service_account_file = \"certs/ca.pem\"\n";
        for (text, expected) in [
            ("", "[[fcm]] service_account_file: missing; name the JSON file"),
            (&format!("{project}apps = [\"a b\"]"), "[[fcm]] apps: \"a b\" is no app; allowed"),
            (&format!("{project}[[fcm]]\n{project}"), "[[fcm]] apps: two tables have none"),
            (
                &format!("{project}apps = [\"a\"]\n[[fcm]]\n{project}apps = [\"b\", \"a\"]"),
                "[[fcm]] apps: \"a\" is in two tables",
            ),
            (
                &format!("{project}endpoint = \"https://a/b\""),
                "[[fcm]] endpoint: \"https://a/b\" is not understood; allowed is",
            ),
            (&format!("{project}proxy = \"a\""), "[[fcm]] proxy: is not understood; allowed is"),
        ] {
            refused_with(&format!("[[fcm]]\n{text}"), expected);
        }
    }
}
