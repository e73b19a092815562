//! What `mailchime check` says of push: each transport checks its own configuration and its service.

use super::{apns, fcm, webhook, webpush};
use crate::config::Config;
use crate::net::resolve::NameResolver;
use crate::store::Store;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckLine {
    /// Where in the configuration it is.
    pub part: String,
    /// How it is.
    pub result: CheckOutcome,
    /// What was found, and where it is not well, what to do: a sentence without its end.
    pub text: String,
}

/// How something is that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// It is well.
    Ok,
    /// It works, and may not be what is wanted.
    Warning,
    /// It does not work.
    Failed,
    /// mailchime does not start with it.
    Refused,
}

/// The lines about one part of the configuration.
pub(super) struct CheckLines<'a> {
    part: String,
    report: &'a mut dyn FnMut(CheckLine),
}

/// Checks all transports. `report` gets each line as soon as it is known; `store` is the database, if it can be
/// read. Nothing is pushed to anybody.
pub async fn run(
    config: &Config,
    store: Option<&Store>,
    resolver: &NameResolver,
    mut report: impl FnMut(CheckLine),
) {
    // Users register web hooks by [api].
    let is_off = config.apns.is_empty() && config.fcm.is_empty() && config.api.address.is_none();
    if is_off && config.web_push.is_none() && config.webhooks.is_empty() {
        let why = "there is none of [apns], [webpush], [[fcm]], [[webhook]] and [api]: push is off";
        return CheckLines::new("push", &mut report).warning(why);
    }
    apns::check::run(config, resolver, &mut report).await;
    fcm::check::run(config, resolver, &mut report).await;
    webhook::check::run(config, resolver, &mut report);
    webpush::check::run(config, store, &mut report).await;
}

// === impl CheckLines ===

impl<'a> CheckLines<'a> {
    pub(super) fn new(part: impl Into<String>, report: &'a mut dyn FnMut(CheckLine)) -> Self {
        Self { part: part.into(), report }
    }

    /// Those about another part.
    pub(super) fn part(&mut self, part: impl Into<String>) -> CheckLines<'_> {
        CheckLines { part: part.into(), report: &mut *self.report }
    }

    pub(super) fn ok(&mut self, text: impl ToString) {
        self.say(CheckOutcome::Ok, &text);
    }

    pub(super) fn warning(&mut self, text: impl ToString) {
        self.say(CheckOutcome::Warning, &text);
    }

    pub(super) fn failed(&mut self, text: impl ToString) {
        self.say(CheckOutcome::Failed, &text);
    }

    /// mailchime does not start with it.
    pub(super) fn refused(&mut self, text: impl ToString) {
        let text = text.to_string();
        // What reads a table names it, as the part does.
        let table = self.part.split(' ').next().unwrap_or_default();
        let text = text.strip_prefix(table).map_or(&*text, str::trim_start);
        self.say(CheckOutcome::Refused, &text);
    }

    fn say(&mut self, result: CheckOutcome, text: &impl ToString) {
        (self.report)(CheckLine { part: self.part.clone(), result, text: text.to_string() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[tokio::test]
    async fn without_apns_push_is_off_only_where_nothing_else_pushes() {
        let backend = config::BackendConfig::new("imap", 993, config::BackendTls::None);
        let mut config = Config::new(config::TlsConfig::new("", ""), backend);
        config.apns.clear();
        let gets_none = (CheckOutcome::Ok, "iOS Mail gets no push");
        for (fcm, api, expected) in [
            (Vec::new(), None, (CheckOutcome::Warning, "push is off")),
            (vec![config::FcmConfig::new("/none/firebase.json")], None, gets_none),
            (Vec::new(), Some("127.0.0.1:8443".parse().unwrap()), gets_none),
        ] {
            (config.fcm, config.api.address) = (fcm, api);
            let mut lines = Vec::new();
            run(&config, None, &NameResolver::default(), |line| lines.push(line)).await;
            assert_eq!(lines[0].result, expected.0, "{lines:?}");
            assert!(lines[0].text.ends_with(expected.1), "{lines:?}");
            let users = lines.iter().any(|line| line.text.contains("web hooks of users"));
            assert_eq!(users, config.api.address.is_some(), "{lines:?}");
        }
    }
}
