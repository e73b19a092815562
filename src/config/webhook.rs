//! `[[webhook]]`: a web hook of the operator, for all accounts or for some.

mod template;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;

pub use self::template::{BodyTemplate, TemplateValues};
use super::check::{Check, CheckResult, MINUTE, SECOND, is_loopback};
use crate::model::Account;

/// `[[webhook]]`: where changes are sent, how, and of which accounts.
#[derive(Clone, PartialEq)]
pub struct WebhookConfig {
    /// Tells it from others when its URL has changed. No two have one name.
    pub name: String,
    /// `https://`, or `http://` of this machine. A path may be a secret, so `Debug` shows the host alone.
    pub url: Uri,
    /// A PEM file that exists; `None` trusts the system's roots.
    pub ca: Option<PathBuf>,
    /// A file that exists, with the secret that signs in its first line, and perhaps older ones.
    pub secret_file: Option<PathBuf>,
    /// A file that exists, with what goes into `Authorization: Bearer` in its first line.
    pub token_file: Option<PathBuf>,
    /// What is sent in place of our JSON, and for new mail alone.
    pub template: Option<BodyTemplate>,
    /// Names of accounts, as [`Account`] has them, and domains, in any case; empty: all accounts.
    pub accounts: Vec<String>,
    /// For the connection and the whole answer to one event.
    pub timeout: Duration,
}

table!(RawWebhook {
    name: Option<String>,
    url: Option<String>,
    ca: Option<String>,
    secret_file: Option<String>,
    token_file: Option<String>,
    template: Option<String>,
    accounts: Vec<String>,
    timeout: Option<String>,
});

/// No web hook of the configuration has this name: it stands for those of users.
const OF_USERS: &str = "users";

impl WebhookConfig {
    /// One for all accounts, that signs with the secret in this file, with the defaults.
    pub fn new(name: &str, url: Uri, secret_file: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            url,
            ca: None,
            secret_file: Some(secret_file.into()),
            token_file: None,
            template: None,
            accounts: Vec::new(),
            timeout: Duration::from_secs(20),
        }
    }

    /// Whether it hears of this account.
    pub fn covers(&self, account: &Account) -> bool {
        let domain = account.domain();
        let named = |entry: &String| {
            entry == account.as_str()
                || domain.is_some_and(|domain| domain.eq_ignore_ascii_case(entry))
        };
        self.accounts.is_empty() || self.accounts.iter().any(named)
    }

    /// The host of its URL, an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        self.url.host().unwrap_or_default()
    }
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookConfig")
            .field("name", &self.name)
            .field("host", &self.host())
            .field("accounts", &self.accounts)
            .finish_non_exhaustive()
    }
}

impl Check<'_> {
    /// `canonical` says under which one name an account is known.
    pub(super) fn webhooks(
        &self,
        raw: Vec<RawWebhook>,
        canonical: impl Fn(Account) -> Account,
    ) -> CheckResult<Vec<WebhookConfig>> {
        const NAME: &str = "[[webhook]] name";
        let mut webhooks: Vec<WebhookConfig> = Vec::new();
        for raw in raw {
            let webhook = self.webhook(raw, &canonical)?;
            let name = &webhook.name;
            if webhooks.iter().any(|other| other.name == *name) {
                let problem = format!(
                    "two are called {name:?}; give one of them another name (without this key it is \
                     the host of url)"
                );
                return Err(self.refusal(NAME, problem));
            }
            webhooks.push(webhook);
        }
        Ok(webhooks)
    }

    fn webhook(
        &self,
        raw: RawWebhook,
        canonical: &impl Fn(Account) -> Account,
    ) -> CheckResult<WebhookConfig> {
        const SECRET: &str = "[[webhook]] secret_file";
        let url = self.webhook_url(raw.url)?;
        let host = url.host().unwrap_or_default().to_ascii_lowercase();
        let name = self.webhook_name(raw.name.unwrap_or(host))?;
        let mut webhook = WebhookConfig::new(&name, url, "");
        webhook.ca = self.file("[[webhook]] ca", raw.ca)?;
        webhook.secret_file = self.file(SECRET, raw.secret_file)?;
        webhook.token_file = self.file("[[webhook]] token_file", raw.token_file)?;
        if let Some(text) = raw.template {
            let template = BodyTemplate::parse(&text)
                .map_err(|problem| self.refusal("[[webhook]] template", problem))?;
            webhook.template = Some(template);
        }
        if webhook.secret_file.is_none() && webhook.template.is_none() {
            let problem = "missing; name a file with a secret, by which the receiver knows that an \
                           event is yours, or give a template for a service that knows none";
            return Err(self.refusal(SECRET, problem));
        }
        let account = |text: &String| canonical(Account::from_login(text)).as_str().to_owned();
        webhook.accounts = raw.accounts.iter().map(account).collect();
        webhook.accounts.sort();
        webhook.accounts.dedup();
        self.duration("[[webhook]] timeout", raw.timeout, SECOND..=MINUTE, &mut webhook.timeout)?;
        Ok(webhook)
    }

    fn webhook_url(&self, url: Option<String>) -> CheckResult<Uri> {
        let allowed = "allowed is \"https://host/path\", or \"http://\" and an address of this \
                       machine, such as \"http://127.0.0.1:8080/mail\"";
        let refusal =
            |problem: &str| self.refusal("[[webhook]] url", format!("{problem}; {allowed}"));
        let Some(url) = url else { return Err(refusal("missing")) };
        // What is refused may be a secret.
        let Ok(parsed) = url.parse::<Uri>() else { return Err(refusal("is not understood")) };
        let host = parsed.host().unwrap_or_default();
        let here = is_loopback(host.trim_start_matches('[').trim_end_matches(']'));
        let login = parsed.authority().is_some_and(|authority| authority.as_str().contains('@'));
        match parsed.scheme_str() {
            _ if host.is_empty() => Err(refusal("is not understood")),
            _ if login => {
                Err(refusal("has a login; put a token into a file and name it as token_file"))
            }
            Some("https") => Ok(parsed),
            Some("http") if here => Ok(parsed),
            Some("http") => Err(refusal("would be sent unencrypted")),
            _ => Err(refusal("is not understood")),
        }
    }

    fn webhook_name(&self, name: String) -> CheckResult<String> {
        let in_names = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
        let fits = (1..=64).contains(&name.len()) && name.bytes().all(in_names) && name != OF_USERS;
        match fits {
            true => Ok(name),
            false => {
                let allowed = "allowed are 1 to 64 letters, digits, \".\", \"-\" and \"_\", but not \
                               \"users\"";
                Err(self.refusal("[[webhook]] name", format!("{name:?} is no name; {allowed}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, refused_with};
    use super::*;

    fn of(accounts: &[&str]) -> WebhookConfig {
        let accounts = accounts.iter().map(|&entry| entry.to_owned()).collect();
        let url = Uri::from_static("https://hooks.example.org/secret/path?token=1");
        WebhookConfig { accounts, ..WebhookConfig::new("a", url, "file") }
    }

    #[test]
    fn it_covers_all_accounts_or_those_that_are_named_by_name_or_domain() {
        let covers =
            |accounts: &[&str], account| of(accounts).covers(&Account::from_login(account));
        assert!(covers(&[], "alice") && covers(&[], "a@b.example"));
        let some = ["alice", "bob@a.example", "b.example"];
        assert!(
            covers(&some, "alice")
                && covers(&some, "bob@A.example")
                && covers(&some, "x@b.example")
        );
        for other in ["bob", "alice@a.example", "x@sub.b.example", "b.example.org", "Alice"] {
            assert!(!covers(&some, other), "{other}");
        }
    }

    #[test]
    fn names_of_accounts_have_a_case_where_the_backend_has_one_and_domains_have_none() {
        let covers = |more: &str, account| {
            let config = parse(&format!(
                "[backend]\naddress = \"imap.example.org:143\"\n{more}\n[[webhook]]\n\
                 secret_file = \"certs/ca.pem\"\nurl = \"https://a.example/\"\n\
                 accounts = [\"Alice\", \"Bob@A.Example\", \"B.Example\"]"
            ));
            let config = config.unwrap();
            config.webhooks[0].covers(&config.canonical(Account::from_login(account)))
        };
        let spellings = ["alice", "bob@a.example", "bob@A.EXAMPLE"];
        for account in spellings {
            assert!(!covers("", account), "{account}");
            assert!(covers("names_ignore_case = true", account), "{account}");
        }
        for account in ["Alice", "Bob@a.example", "x@b.example", "X@B.EXAMPLE"] {
            assert!(covers("", account), "{account}");
            assert!(covers("names_ignore_case = true", account), "{account}");
        }
    }

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        let signed = "secret_file = \"certs/ca.pem\"\nurl = \"https://a.example/\"\n";
        for (text, expected) in [
            ("", "[[webhook]] url: missing; allowed is"),
            ("url = \"ftp://a\"", "[[webhook]] url: is not understood; allowed is"),
            ("url = \"a.example\"", "[[webhook]] url: is not understood; allowed is"),
            (
                "url = \"http://a.example/secret\"",
                "[[webhook]] url: would be sent unencrypted; allowed is",
            ),
            (
                "url = \"https://me:secret@a.example/\"",
                "[[webhook]] url: has a login; put a token into",
            ),
            (
                "url = \"http://[::1]:1/\"\ntemplate = \"{from}\"",
                "[[webhook]] template: has {from}; names",
            ),
            (
                &format!("{signed}name = \"users\""),
                "[[webhook]] name: \"users\" is no name; allowed",
            ),
            (
                &format!("{signed}timeout = \"2m\""),
                "[[webhook]] timeout: 2m is out of range; allowed",
            ),
            (
                &format!("{signed}[[webhook]]\n{signed}"),
                "[[webhook]] name: two are called \"a.example\";",
            ),
        ] {
            refused_with(&format!("[[webhook]]\n{text}"), expected);
        }
    }

    #[test]
    fn an_event_is_signed_or_has_a_template() {
        let here = "[[webhook]]\nurl = \"http://127.0.0.1:1/\"\n";
        let refused = parse(here).unwrap_err().to_string();
        assert!(refused.contains("[[webhook]] secret_file: missing; name a file"), "{refused}");
        assert!(parse(&format!("{here}template = \"New mail\"")).is_ok());
    }

    #[test]
    fn debug_shows_the_host_of_the_url_alone() {
        let shown = format!("{:?}", of(&[]));
        assert!(shown.contains("hooks.example.org"), "{shown}");
        assert!(!shown.contains("secret") && !shown.contains("token"), "{shown}");
    }
}
