//! `[push]`: which changes are pushed, to which devices, and when.

use std::time::Duration;

use serde::Deserialize;

use super::check::{Check, CheckResult, DAY, HOUR, MILLISECOND, MINUTE};

/// `[push]`: which changes reach which devices, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct PushConfig {
    /// How long a change that is no new mail waits for others.
    pub quiet_delay: Duration,
    /// Between two pushes to one device.
    pub min_interval: Duration,
    /// No change waits longer than this; not below the two above.
    pub max_delay: Duration,
    /// A device that has not registered for this long is forgotten.
    pub registration_ttl: Duration,
    /// Bundle ids of the mail clients that may register; `*` at the end stands for anything.
    pub clients: Vec<String>,
    /// Most mailboxes of one registration.
    pub mailboxes: usize,
    /// Most subscriptions of one account.
    pub subscriptions: usize,
    /// Subscriptions do not outlive the password that they registered with, not even for a day.
    pub forget_subscriptions_on_password_change: bool,
    /// Most accounts of one device.
    pub accounts_per_device: u32,
    /// Most accounts with subscriptions of one domain; 0 for no limit.
    pub accounts_per_domain: u32,
    /// Most subscriptions of one domain; 0 for no limit.
    pub subscriptions_per_domain: u32,
    /// Most accounts with subscriptions of one backend; 0 for no limit.
    pub accounts_per_backend: u32,
    /// Most subscriptions of one backend; 0 for no limit.
    pub subscriptions_per_backend: u32,
    /// Most pushes a second to the subscriptions of one domain; 0 for no limit.
    pub pushes_per_second_per_domain: u32,
    /// Most pushes a second to the subscriptions of one backend; 0 for no limit.
    pub pushes_per_second_per_backend: u32,
    /// Which changes are pushed.
    pub events: Events,
    /// Which pushes replace one another.
    pub collapse: Collapse,
    /// The `apns-push-type` of pushes.
    pub push_type: PushType,
    /// How long a push service keeps a push for a client that is offline.
    pub expiration: Duration,
    /// `apns-priority`: 1, 5 or 10, and never 10 with [`PushType::Background`]; `None` sends none.
    pub priority: Option<u8>,
    /// What pushes say of a new mail that only the user's own client can read.
    pub preview: PreviewContent,
}

/// Which kinds of change are pushed; at least one is. What is not is taken note of all the same, so
/// that it is not told later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// New mail.
    pub new_mail: bool,
    /// Anything else: mail that was read, marked, deleted or moved elsewhere.
    pub quiet: bool,
}

/// Whether APNs keeps every push for a device that is offline, or the last one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum Collapse {
    /// No `apns-collapse-id`.
    None,
    /// One for each mail account of a device.
    Account,
}

/// `apns-push-type` (PROTOCOL.md section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum PushType {
    /// `background`
    Background,
    /// `alert`
    Alert,
}

/// What pushes say of a new mail, where nobody but the user's own client can read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum PreviewContent {
    /// Nothing.
    None,
    /// Who sent it.
    Sender,
    /// Who sent it, and its subject.
    Subject,
}

table!(RawPush {
    quiet_delay: Option<String>,
    min_interval: Option<String>,
    max_delay: Option<String>,
    registration_ttl: Option<String>,
    clients: Option<Vec<String>>,
    mailboxes: Option<i64>,
    #[serde(alias = "devices")]
    subscriptions: Option<i64>,
    #[serde(alias = "forget_devices_on_password_change")]
    forget_subscriptions_on_password_change: Option<bool>,
    accounts_per_device: Option<i64>,
    accounts_per_domain: Option<i64>,
    #[serde(alias = "devices_per_domain")]
    subscriptions_per_domain: Option<i64>,
    accounts_per_backend: Option<i64>,
    #[serde(alias = "devices_per_backend")]
    subscriptions_per_backend: Option<i64>,
    pushes_per_second_per_domain: Option<i64>,
    pushes_per_second_per_backend: Option<i64>,
    events: Option<Vec<RawEvent>>,
    collapse: Option<Collapse>,
    push_type: Option<PushType>,
    expiration: Option<String>,
    priority: Option<i64>,
    preview: Option<PreviewContent>,
});

/// The names of RFC 5423 section 4 for what happens to a mail.
#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) enum RawEvent {
    MessageNew,
    MessageAppend,
    MessageRead,
    MessageTrash,
    MessageExpunge,
    MessageExpires,
    FlagsSet,
    FlagsClear,
}

impl PushConfig {
    /// For how long a device lives that has not registered with its account's new password. One that
    /// is well registers each 23 hours.
    pub fn outdated_for(&self) -> Duration {
        match self.forget_subscriptions_on_password_change {
            true => Duration::ZERO,
            false => Duration::from_hours(25),
        }
    }
}

impl Default for PushConfig {
    fn default() -> Self {
        Self {
            quiet_delay: Duration::from_secs(30),
            min_interval: Duration::from_secs(5),
            max_delay: Duration::from_mins(2),
            registration_ttl: Duration::from_hours(10 * 24),
            clients: vec!["com.apple.mobilemail".into()],
            mailboxes: 64,
            subscriptions: 50,
            forget_subscriptions_on_password_change: false,
            accounts_per_device: 20,
            accounts_per_domain: 0,
            subscriptions_per_domain: 0,
            accounts_per_backend: 0,
            subscriptions_per_backend: 0,
            pushes_per_second_per_domain: 0,
            pushes_per_second_per_backend: 0,
            events: Events { new_mail: true, quiet: true },
            collapse: Collapse::None,
            push_type: PushType::Background,
            expiration: Duration::from_hours(24),
            priority: None,
            preview: PreviewContent::None,
        }
    }
}

impl PushType {
    /// The value of the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Background => "background",
            Self::Alert => "alert",
        }
    }
}

impl Check<'_> {
    #[rustfmt::skip] // a table: one key, one line
    pub(super) fn push(&self, raw: RawPush) -> CheckResult<PushConfig> {
        let mut push = PushConfig::default();
        self.duration("[push] quiet_delay", raw.quiet_delay, MILLISECOND..=HOUR, &mut push.quiet_delay)?;
        self.duration("[push] min_interval", raw.min_interval, MILLISECOND..=HOUR, &mut push.min_interval)?;
        self.duration("[push] max_delay", raw.max_delay, MILLISECOND..=HOUR, &mut push.max_delay)?;
        // Devices register anew every 23 hours: a shorter life would forget those that are well.
        self.duration("[push] registration_ttl", raw.registration_ttl, 2 * DAY..=365 * DAY, &mut push.registration_ttl)?;
        self.number("[push] mailboxes", raw.mailboxes, 1..=10_000, &mut push.mailboxes)?;
        self.number("[push] subscriptions", raw.subscriptions, 1..=10_000, &mut push.subscriptions)?;
        self.number("[push] accounts_per_device", raw.accounts_per_device, 1..=10_000, &mut push.accounts_per_device)?;
        self.number("[push] accounts_per_domain", raw.accounts_per_domain, 0..=100_000_000, &mut push.accounts_per_domain)?;
        self.number("[push] subscriptions_per_domain", raw.subscriptions_per_domain, 0..=100_000_000, &mut push.subscriptions_per_domain)?;
        self.number("[push] accounts_per_backend", raw.accounts_per_backend, 0..=100_000_000, &mut push.accounts_per_backend)?;
        self.number("[push] subscriptions_per_backend", raw.subscriptions_per_backend, 0..=100_000_000, &mut push.subscriptions_per_backend)?;
        self.number("[push] pushes_per_second_per_domain", raw.pushes_per_second_per_domain, 0..=1_000_000, &mut push.pushes_per_second_per_domain)?;
        self.number("[push] pushes_per_second_per_backend", raw.pushes_per_second_per_backend, 0..=1_000_000, &mut push.pushes_per_second_per_backend)?;
        self.duration("[push] expiration", raw.expiration, MINUTE..=30 * DAY, &mut push.expiration)?;
        self.not_above(("[push] quiet_delay", push.quiet_delay), ("max_delay", push.max_delay))?;
        self.not_above(("[push] min_interval", push.min_interval), ("max_delay", push.max_delay))?;
        if let Some(clients) = raw.clients {
            push.clients = self.clients(clients)?;
        }
        if let Some(events) = raw.events {
            push.events = self.events(&events)?;
        }
        push.forget_subscriptions_on_password_change = raw
            .forget_subscriptions_on_password_change
            .unwrap_or(push.forget_subscriptions_on_password_change);
        push.collapse = raw.collapse.unwrap_or(push.collapse);
        push.push_type = raw.push_type.unwrap_or(push.push_type);
        push.preview = raw.preview.unwrap_or(push.preview);
        push.priority = self.priority(raw.priority, push.push_type)?;
        Ok(push)
    }

    fn clients(&self, clients: Vec<String>) -> CheckResult<Vec<String>> {
        let allowed = "allowed are bundle ids of letters, digits, \".\", \"-\" and \"_\", exact or \
                       with \"*\" as the last character";
        let refusal = |problem: String| self.refusal("[push] clients", problem);
        if clients.is_empty() {
            return Err(refusal(format!(
                "the list is empty, so no device could register; {allowed}"
            )));
        }
        let fits = |client: &str| {
            let exact = client.strip_suffix('*').unwrap_or(client);
            !client.is_empty()
                && exact.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        };
        match clients.iter().find(|client| !fits(client)) {
            Some(client) => Err(refusal(format!("{client:?} is not understood; {allowed}"))),
            None => Ok(clients),
        }
    }

    fn priority(&self, priority: Option<i64>, push_type: PushType) -> CheckResult<Option<u8>> {
        let problem = match (priority, push_type) {
            (None, _) => return Ok(None),
            (Some(1), _) => return Ok(Some(1)),
            (Some(5), _) => return Ok(Some(5)),
            (Some(10), PushType::Alert) => return Ok(Some(10)),
            (Some(10), PushType::Background) => {
                "10 is refused by APNs for background pushes; use 5 or 1, or push_type = \"alert\""
                    .to_owned()
            }
            (Some(other), _) => format!("{other} does not exist; allowed are 1, 5 and 10"),
        };
        Err(self.refusal("[push] priority", problem))
    }

    fn events(&self, names: &[RawEvent]) -> CheckResult<Events> {
        if names.is_empty() {
            let remedy = "the list is empty, so nothing would be pushed; name at least one event, \
                          such as \"MessageNew\"";
            return Err(self.refusal("[push] events", remedy));
        }
        let is_new =
            |name: &RawEvent| matches!(name, RawEvent::MessageNew | RawEvent::MessageAppend);
        Ok(Events {
            new_mail: names.iter().any(is_new),
            quiet: names.iter().any(|name| !is_new(name)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, refused_with};
    use super::*;

    #[test]
    fn the_former_names_of_keys_still_work() {
        let push = parse(
            "[push]\ndevices = 3\nforget_devices_on_password_change = true\n\
             devices_per_domain = 4\ndevices_per_backend = 5",
        )
        .unwrap()
        .push;
        assert_eq!((push.subscriptions, push.forget_subscriptions_on_password_change), (3, true));
        assert_eq!((push.subscriptions_per_domain, push.subscriptions_per_backend), (4, 5));
    }

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            ("[push]\nquiet_delay = \"soon\"", "[push] quiet_delay: \"soon\" is no duration"),
            (
                "[push]\nquiet_delay = 30",
                "[push] quiet_delay: \"30\" is no duration (time unit needed",
            ),
            ("[push]\nquiet_delay = \"30\"", "[push] quiet_delay: \"30\" is no duration"),
            (
                "[push]\nquiet_delay = \"3m\"",
                "[push] quiet_delay: 3m is longer than max_delay (2m)",
            ),
            (
                "[push]\nmin_interval = \"3m\"",
                "[push] min_interval: 3m is longer than max_delay (2m)",
            ),
            ("[push]\nclients = []", "[push] clients: the list is empty"),
            (
                "[push]\nclients = [\"com.*.mail\"]",
                "[push] clients: \"com.*.mail\" is not understood",
            ),
            (
                "[push]\npriority = 10",
                "[push] priority: 10 is refused by APNs for background pushes",
            ),
            ("[push]\npriority = 7", "[push] priority: 7 does not exist; allowed are 1, 5 and 10"),
            (
                "[push]\npush_type = \"voip\"",
                "[push] push_type: unknown variant `voip`, expected `background` or `alert`",
            ),
            (
                "[push]\nsubscriptions = -1",
                "[push] subscriptions: -1 is out of range; allowed is 1 to 10000",
            ),
            (
                "[push]\nevents = [\"MessageNews\"]",
                "[push] events: unknown variant `MessageNews`, expected one of `MessageNew`,",
            ),
            ("[push]\nevents = []", "[push] events: the list is empty, so nothing would be pushed"),
            (
                "[push]\npreview = \"body\"",
                "[push] preview: unknown variant `body`, expected one of `none`, `sender`, `subject`",
            ),
            (
                "[push]\ncollapse = \"device\"",
                "[push] collapse: unknown variant `device`, expected `none` or `account`",
            ),
        ] {
            refused_with(text, expected);
        }
    }

    #[test]
    fn events_are_new_mail_or_anything_else() {
        let events = |names: &str| parse(&format!("push.events = [{names}]")).unwrap().push.events;
        assert_eq!(events("\"MessageNew\""), Events { new_mail: true, quiet: false });
        assert_eq!(events("\"MessageAppend\", \"FlagsClear\""), PushConfig::default().events);
        for quiet in ["MessageRead", "MessageTrash", "MessageExpunge", "MessageExpires", "FlagsSet"]
        {
            assert_eq!(events(&format!("\"{quiet}\"")), Events { new_mail: false, quiet: true });
        }
    }
}
