//! `[push]` and `[apns]`: which changes are pushed, and as whom.

use std::collections::HashSet;
use std::path::Path;

use rustls::pki_types::ServerName;

use super::super::raw::{OneOrMore, RawApns, RawEvent, RawPush};
use super::super::{
    ApnsConfig, ApnsServer, Events, ProviderFiles, ProxyConfig, PushConfig, PushType,
};
use super::{Check, DAY, HOUR, MILLISECOND, MINUTE, Result, SECOND, host_and_port};

impl Check<'_> {
    #[rustfmt::skip] // a table: one key, one line
    pub(super) fn push(&self, raw: RawPush) -> Result<PushConfig> {
        let mut push = PushConfig::default();
        self.duration("[push] quiet_delay", raw.quiet_delay, MILLISECOND..=HOUR, &mut push.quiet_delay)?;
        self.duration("[push] min_interval", raw.min_interval, MILLISECOND..=HOUR, &mut push.min_interval)?;
        self.duration("[push] max_delay", raw.max_delay, MILLISECOND..=HOUR, &mut push.max_delay)?;
        // Devices register anew every 23 hours: a shorter life would forget those that are well.
        self.duration("[push] registration_ttl", raw.registration_ttl, 2 * DAY..=365 * DAY, &mut push.registration_ttl)?;
        self.number("[push] mailboxes", raw.mailboxes, 1..=10_000, &mut push.mailboxes)?;
        self.number("[push] devices", raw.devices, 1..=10_000, &mut push.devices)?;
        self.number("[push] accounts_per_device", raw.accounts_per_device, 1..=10_000, &mut push.accounts_per_device)?;
        self.number("[push] accounts_per_domain", raw.accounts_per_domain, 0..=100_000_000, &mut push.accounts_per_domain)?;
        self.number("[push] devices_per_domain", raw.devices_per_domain, 0..=100_000_000, &mut push.devices_per_domain)?;
        self.number("[push] accounts_per_backend", raw.accounts_per_backend, 0..=100_000_000, &mut push.accounts_per_backend)?;
        self.number("[push] devices_per_backend", raw.devices_per_backend, 0..=100_000_000, &mut push.devices_per_backend)?;
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
        push.forget_devices_on_password_change = raw
            .forget_devices_on_password_change
            .unwrap_or(push.forget_devices_on_password_change);
        push.collapse = raw.collapse.unwrap_or(push.collapse);
        push.push_type = raw.push_type.unwrap_or(push.push_type);
        push.priority = self.priority(raw.priority, push.push_type)?;
        Ok(push)
    }

    fn clients(&self, clients: Vec<String>) -> Result<Vec<String>> {
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

    fn priority(&self, priority: Option<i64>, push_type: PushType) -> Result<Option<u8>> {
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

    fn events(&self, names: &[RawEvent]) -> Result<Events> {
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

    pub(super) fn identities(&self, raw: Option<OneOrMore<RawApns>>) -> Result<Vec<ApnsConfig>> {
        let mut identities: Vec<ApnsConfig> = Vec::new();
        let mut served = HashSet::new();
        for raw in raw.map(|OneOrMore(tables)| tables).unwrap_or_default() {
            let apns = self.apns(raw)?;
            let twice = apns.domains.iter().find(|domain| !served.insert((*domain).clone()));
            if let Some(domain) = twice {
                let problem = format!("{domain:?} is served by two; remove it from one of them");
                return Err(self.refusal("[[apns]] domains", problem));
            }
            if apns.domains.is_empty() && identities.iter().any(|other| other.domains.is_empty()) {
                let problem = "two tables have none, but only one can serve all other users; say \
                               which domains each of the others serves";
                return Err(self.refusal("[[apns]] domains", problem));
            }
            identities.push(apns);
        }
        Ok(identities)
    }

    #[rustfmt::skip] // a table: one key, one line
    fn apns(&self, mut raw: RawApns) -> Result<ApnsConfig> {
        let mut apns = ApnsConfig::with(self.identity(&mut raw)?);
        if let Some(endpoint) = raw.endpoint {
            apns.endpoint = self.endpoint(&endpoint)?;
        }
        apns.ca = self.file("[apns] ca", raw.ca)?;
        apns.domains = self.domains(raw.domains)?;
        apns.proxy = self.proxy(raw.proxy, raw.proxy_login_file)?;
        self.duration("[apns] connect_timeout", raw.connect_timeout, SECOND..=10 * MINUTE, &mut apns.connect_timeout)?;
        self.duration("[apns] request_timeout", raw.request_timeout, SECOND..=10 * MINUTE, &mut apns.request_timeout)?;
        self.duration("[apns] ping_interval", raw.ping_interval, SECOND..=HOUR, &mut apns.ping_interval)?;
        self.number("[apns] in_flight", raw.in_flight, 1..=100_000, &mut apns.in_flight)?;
        Ok(apns)
    }

    /// A certificate with its key, both in one file, or a key that signs tokens; what belongs to
    /// another of the three is refused.
    fn identity(&self, raw: &mut RawApns) -> Result<ProviderFiles> {
        let topic = self.topic(raw.topic.take())?;
        let refuse = |found: &[(&str, &Option<String>)], kind: &str| {
            let given = found.iter().find(|(_, value)| value.is_some());
            given.map_or(Ok(()), |(key, _)| {
                let problem = format!("has no meaning with {kind}; remove one of the two");
                Err(self.refusal(&format!("[apns] {key}"), problem))
            })
        };
        if let Some(key) = raw.key.take() {
            let certificate =
                [("certificate", &raw.certificate), ("private_key", &raw.private_key)];
            refuse(&certificate, "key")?;
            refuse(&[("password_file", &raw.password_file)], "key")?;
            let key = self.required_file("[apns] key", Some(key))?;
            let Some(topic) = topic else {
                let problem = "missing; a key is not bound to a topic, so name yours";
                return Err(self.refusal("[apns] topic", problem));
            };
            return Ok(ProviderFiles::Key {
                key,
                key_id: self.apple_id("[apns] key_id", raw.key_id.take())?,
                team_id: self.apple_id("[apns] team_id", raw.team_id.take())?,
                topic,
            });
        }
        let token = [("key_id", &raw.key_id), ("team_id", &raw.team_id)];
        let certificate = raw.certificate.take();
        let is_pkcs12 =
            certificate.as_deref().map(Path::new).and_then(Path::extension).is_some_and(
                |extension| {
                    ["p12", "pfx"].iter().any(|known| extension.eq_ignore_ascii_case(known))
                },
            );
        let certificate = self.required_file("[apns] certificate", certificate)?;
        refuse(&token, "certificate")?;
        if is_pkcs12 {
            refuse(&[("private_key", &raw.private_key)], "a certificate that brings its own")?;
            let password_file = self.file("[apns] password_file", raw.password_file.take())?;
            return Ok(ProviderFiles::Pkcs12 { file: certificate, password_file, topic });
        }
        refuse(&[("password_file", &raw.password_file)], "a PEM certificate")?;
        let private_key = self.required_file("[apns] private_key", raw.private_key.take())?;
        Ok(ProviderFiles::Pem { certificate, private_key, topic })
    }

    fn topic(&self, topic: Option<String>) -> Result<Option<String>> {
        let fits = |topic: &String| {
            (1..=255).contains(&topic.len()) && topic.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match topic {
            Some(topic) if !fits(&topic) => {
                let allowed = "allowed are 1 to 255 letters, digits and signs without blanks, such \
                               as \"com.apple.mail.XServer.…\"";
                let problem = format!("{topic:?} is no topic; {allowed}");
                Err(self.refusal("[apns] topic", problem))
            }
            topic => Ok(topic),
        }
    }

    /// The names that Apple gives to keys and teams: ten letters and digits.
    fn apple_id(&self, key: &str, id: Option<String>) -> Result<String> {
        let allowed = "give the ten letters and digits that Apple's developer site shows";
        let problem = match id {
            Some(id) if id.len() == 10 && id.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                return Ok(id);
            }
            Some(id) => format!("{id:?} is not understood; {allowed}"),
            None => format!("missing; {allowed}"),
        };
        Err(self.refusal(key, problem))
    }

    fn domains(&self, domains: Vec<String>) -> Result<Vec<String>> {
        let fits = |domain: &String| {
            let in_names = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b) || b >= 128;
            !domain.is_empty() && domain.bytes().all(in_names)
        };
        match domains.iter().find(|domain| !fits(domain)) {
            Some(domain) => {
                let allowed = "allowed is what stands after the \"@\" of a login: \"example.org\"";
                let problem = format!("{domain:?} is no domain; {allowed}");
                Err(self.refusal("[apns] domains", problem))
            }
            None => Ok(domains.into_iter().map(|domain| domain.to_ascii_lowercase()).collect()),
        }
    }

    fn proxy(
        &self,
        url: Option<String>,
        login_file: Option<String>,
    ) -> Result<Option<ProxyConfig>> {
        let login_file = self.file("[apns] proxy_login_file", login_file)?;
        let Some(url) = url else {
            let problem = "has no meaning without proxy; remove it, or name the proxy";
            return match login_file {
                Some(_) => Err(self.refusal("[apns] proxy_login_file", problem)),
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
                Err(self.refusal("[apns] proxy", problem))
            }
        }
    }

    fn endpoint(&self, text: &str) -> Result<ApnsServer> {
        let address = match text {
            "production" => return Ok(ApnsServer::production()),
            "sandbox" => return Ok(ApnsServer::sandbox()),
            other => other.strip_prefix("https://").and_then(host_and_port),
        };
        match address {
            Some((host, port)) if ServerName::try_from(host.as_str()).is_ok() => {
                Ok(ApnsServer { host, port })
            }
            _ => {
                let allowed = "allowed are \"production\", \"sandbox\" and \"https://host:port\"";
                Err(self
                    .refusal("[apns] endpoint", format!("{text:?} is not understood; {allowed}")))
            }
        }
    }
}
