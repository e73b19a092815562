//! Another configuration for a running program.
//!
//! New sessions go by it; those that are open end as they began. All that can fail comes first, so
//! that a configuration is taken over as a whole or not at all.

use super::listeners::{ListenerSocket, Listening};
use super::server_tls::server_tls;
use super::services::ServicesSetup;
use super::startup::{check_record, exposed, notices};
use super::tasks::StopStage;
use super::webpush::{self, Browsers, KeyNews, WebPushSetup};
use super::{Renewal, Server, StartError, intake};
use crate::config::{
    AuthConfig, Config, EventsConfig, LimitsConfig, LogConfig, PushConfig, WebhookConfig,
};
use crate::net::backends::Table;
use crate::record;

/// What a listener of the new configuration gets: a listener that is there, or a new socket.
enum ListenerPlace {
    Kept(usize),
    New(ListenerSocket),
}

impl Server {
    /// Goes by `config` from now on: listeners, certificates, backends, routes, limits, recording,
    /// the push identities, Web Push, FCM and web hooks, and the sources of events. The rest takes effect at the next start; a log line
    /// says so.
    /// Watchers whose account has another backend now move there. Where the sources may accept events that those before refused,
    /// all accounts without a connection are asked for.
    ///
    /// Where the key file of Web Push is missing, it waits for the database, 2 seconds at most.
    ///
    /// # Errors
    /// All stays as it was.
    pub async fn reload(&mut self, config: &Config) -> Result<(), StartError> {
        let renewal = Renewal::new(config);
        let server_tls = server_tls(&config.tls, &self.tickets)?;
        let table = Table::new(config, &self.resolver)
            .map_err(|error| StartError::Configuration(error.to_string()))?;
        check_record(config)?;
        let places = self.places(config)?;
        let services = ServicesSetup::load(config, self.api.is_some(), &self.resolver)?;
        let event_sources =
            intake::sources(&config.events, &self.metrics).map_err(StartError::Configuration)?;
        let identities = self.mail_push.prepare(config)?;
        // Last, since it makes the key file where there is none.
        let browsers = Browsers::of(config.web_push.as_ref(), &self.store).await;
        let web_push = WebPushSetup::new(config.web_push.as_ref(), &self.resolver, browsers)?;
        let news = web_push.as_ref().map(WebPushSetup::news);
        self.awaits_vapid_key = browsers == Browsers::NotKnown;
        self.mail_push.replace(identities);
        webpush::publish(web_push, &self.routes, &self.transports);
        services.publish(&self.routes, &self.transports);
        if self.event_sources.replace(event_sources) {
            self.watchers.missed_events();
        }
        self.webhooks.send_if_modified(|webhooks| {
            for webhook in changed_webhooks(webhooks, &config.webhooks) {
                tracing::info!(
                    target: "mailchime::app::webhook_changed",
                    webhook,
                    "a web hook has changed in the configuration; events go by the new one from now on, those that are \
                     due, too"
                );
            }
            let changed = **webhooks != *config.webhooks;
            *webhooks = config.webhooks.as_slice().into();
            changed
        });

        for warning in &config.warnings {
            tracing::warn!(target: "mailchime::config::warning", "{warning}");
        }
        self.metrics.exposed_files.set(exposed(config));
        self.metrics.notice(notices(config));
        self.tell_of_the_rest(config);
        self.backends.replace(table);
        let context = self.current.get().reloaded(server_tls, config);
        let context = context.tapped(config.record.as_ref().map(record::taps));
        self.current.set(context);
        self.registrar.limit(&config.limits);
        self.renewal.go_by(renewal, &config.tls);
        self.tell_of_certificates();
        if let Some(news) = news {
            self.tell_of_key(news);
        }
        self.listen(config, places);
        self.tasks.forget_ended();
        let grace = self.config.limits.shutdown_grace;
        self.config = config.clone();
        // Sessions that began before have their own.
        let longest = &mut self.config.limits.shutdown_grace;
        *longest = grace.max(*longest);
        Ok(())
    }

    fn tell_of_key(&mut self, news: KeyNews) {
        let store = self.store.clone();
        let told = async move { news.tell(&store).await };
        self.tasks.start(StopStage::Serving, "web push key", told);
    }

    /// Makes the VAPID key that a start or a reload did not make, once the database says that no browser has subscribed with
    /// another. It waits for the database, 2 seconds at most.
    pub async fn look_at_vapid_key(&mut self) {
        if !self.awaits_vapid_key {
            return;
        }
        let config = self.config.web_push.as_ref();
        let browsers = Browsers::of(config, &self.store).await;
        if browsers == Browsers::NotKnown {
            return;
        }
        self.awaits_vapid_key = false;
        match WebPushSetup::new(config, &self.resolver, browsers) {
            Ok(web_push) => {
                let news = web_push.as_ref().map(WebPushSetup::news);
                webpush::publish(web_push, &self.routes, &self.transports);
                if let Some(news) = news {
                    self.tell_of_key(news);
                }
            }
            Err(error) => tracing::error!(
                target: "mailchime::push::vapid_key_unusable",
                %error,
                "could not make the VAPID key; mail goes on, and nothing is pushed to browsers; see what is wrong and \
                 reload mailchime"
            ),
        }
    }

    /// A place for each listener: one with its address that is there already, or a new socket. The
    /// sockets that systemd gave stay where they are in the order.
    fn places(&self, config: &Config) -> Result<Vec<ListenerPlace>, StartError> {
        let given = self.listening.iter().filter(|listening| listening.inherited).count();
        let wanted = config.listeners.len();
        if given > wanted {
            return Err(StartError::Sockets { given, wanted });
        }
        let mut free: Vec<_> = (given..self.listening.len()).collect();
        let mut places = Vec::new();
        for (index, how) in config.listeners.iter().enumerate() {
            let has_address = |at: &usize| self.listening[*at].how.borrow().address == how.address;
            places.push(match free.iter().position(has_address) {
                _ if index < given => ListenerPlace::Kept(index),
                Some(at) => ListenerPlace::Kept(free.remove(at)),
                None => ListenerPlace::New(ListenerSocket::open(how.address, None)?),
            });
        }
        Ok(places)
    }

    fn listen(&mut self, config: &Config, places: Vec<ListenerPlace>) {
        let mut before: Vec<_> =
            std::mem::take(&mut self.listening).into_iter().map(Some).collect();
        for (how, place) in config.listeners.iter().zip(places) {
            let listening = match place {
                ListenerPlace::Kept(index) => before[index].take().inspect(|listening| {
                    listening.how.send_replace(how.clone());
                }),
                ListenerPlace::New(socket) => {
                    let (current, stop) =
                        (self.current.clone(), self.tasks.stop_of(StopStage::Serving));
                    Some(Listening::start(socket, how.clone(), current, stop))
                }
            };
            self.listening.extend(listening);
        }
        for Listening { address, serving, .. } in before.into_iter().flatten() {
            tracing::info!(
                target: "mailchime::app::listener_closed",
                %address,
                "listener closed; it is no longer in the configuration"
            );
            self.tasks.add(StopStage::Serving, "closed listener", serving);
        }
        self.addresses = self.listening.iter().map(|listening| listening.address).collect();
    }

    fn tell_of_the_rest(&self, new: &Config) {
        let changed = restart_needed(&self.config, new);
        if !changed.is_empty() {
            let tables = changed.join(", ");
            tracing::warn!(
                target: "mailchime::config::restart_needed",
                tables,
                "these tables changed, and the changes take effect at the next start; restart \
                 mailchime to apply them"
            );
        }
    }
}

/// The names of the web hooks that are there as before, but otherwise.
fn changed_webhooks<'a>(
    old: &'a [WebhookConfig],
    new: &'a [WebhookConfig],
) -> impl Iterator<Item = &'a str> {
    let is_other = |webhook: &&WebhookConfig| {
        old.iter().any(|before| before.name == webhook.name && before != *webhook)
    };
    new.iter().filter(is_other).map(|webhook| &*webhook.name)
}

/// The tables and keys that changed and take effect at the next start.
///
/// Every field is named, so that a new one does not compile before it is decided here what a reload does
/// with it.
fn restart_needed(old: &Config, new: &Config) -> Vec<&'static str> {
    let Config {
        // These take effect at once.
        listeners: _,
        tls: _,
        backend: _,
        routes: _,
        auth,
        apns: _,
        web_push: _,
        fcm: _,
        webhooks: _,
        record: _,
        // These describe the file.
        secret_origin: _,
        warnings: _,
        store,
        credentials,
        key_file,
        watch,
        push,
        limits,
        resolver,
        admin,
        api,
        events,
        node,
        log,
    } = new;
    let AuthConfig { relay: _ } = auth;
    let LogConfig { format, level: _ } = log;
    // Each key of it but this one.
    let push_of_before = PushConfig { priority: push.priority, ..old.push.clone() };
    // Its sources count at once, but watchers have read for which of them there is to be an entry.
    let events_of_before = EventsConfig { sources: events.sources.clone(), ..old.events.clone() };
    let same_entries = old.events.with_metadata().eq(events.with_metadata());
    let tables = [
        ("[store]", old.store == *store),
        ("[credentials]", old.credentials == *credentials && old.key_file == *key_file),
        ("[watch]", old.watch == *watch),
        ("[push]", push_of_before == *push),
        ("[limits] capability_size", limits_that_wait(&old.limits) == limits_that_wait(limits)),
        ("[resolver]", old.resolver == *resolver),
        ("[node]", old.node == *node),
        ("[admin]", old.admin == *admin),
        ("[api]", old.api == *api),
        ("[events]", events_of_before == *events),
        ("[[events.source]] metadata", same_entries),
        ("[log] format", old.log.format == *format),
    ];
    tables.into_iter().filter(|(_, same)| !same).map(|(table, _)| table).collect()
}

/// The one limit of which a change waits for a restart: `capability_size`. New sessions go by each of the
/// others at once.
fn limits_that_wait(limits: &LimitsConfig) -> usize {
    let LimitsConfig {
        // Sessions go by it at once, watchers and probes from the next start on.
        capability_size,
        sessions: _,
        sessions_per_ip: _,
        waiting: _,
        connections_per_account: _,
        login_failures_per_minute: _,
        account_failures_per_minute: _,
        dials_per_minute: _,
        dials_at_once: _,
        registrations_per_minute: _,
        handshake_timeout: _,
        login_timeout: _,
        shutdown_grace: _,
        failure_delay: _,
        connect_timeout: _,
        commands_before_login: _,
        command_size: _,
        login_memory: _,
        session_memory: _,
        write_timeout: _,
        compress: _,
        answer_timeout: _,
    } = limits;
    *capability_size
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{
        BackendConfig, BackendTls, BodyTemplate, CredentialsMode, EventSourceConfig, FcmConfig,
        ListenerConfig, LogFormat, RecordConfig, RelayedLogins, RouteConfig, TlsConfig,
        WebPushConfig,
    };

    #[test]
    fn a_web_hook_that_has_another_template_is_named_and_those_that_come_and_go_are_not() {
        let webhook = |name| WebhookConfig::new(name, "https://a.example/".parse().unwrap(), "x");
        let old = [webhook("same"), webhook("text"), webhook("gone")];
        let mut new = [webhook("new"), webhook("same"), webhook("text")];
        new[2].template = Some(BodyTemplate::parse("{mailbox}").unwrap());
        assert_eq!(changed_webhooks(&old, &new).collect::<Vec<_>>(), ["text"]);
    }

    /// One change for each table, and for the tables of which a part needs a restart one for each part.
    #[test]
    fn a_change_takes_effect_at_once_or_is_named() {
        let backend = || BackendConfig::new("127.0.0.1", 1, BackendTls::None);
        let old = Config::new(TlsConfig::new("a", "b"), backend());
        type ConfigChange = fn(&mut Config);
        let changes: &[(ConfigChange, &[&str])] = &[
            (|_| {}, &[]),
            (|new| new.listeners.push(ListenerConfig::default()), &[]),
            (|new| new.tls = TlsConfig::new("c", "d"), &[]),
            (|new| new.backend.port = 2, &[]),
            (
                |new| {
                    let backend = new.backend.clone();
                    new.routes = vec![RouteConfig { domain: "a.example".into(), backend }];
                },
                &[],
            ),
            (|new| new.auth.relay = RelayedLogins::Always, &[]),
            (|new| new.record = Some(RecordConfig { folder: "x".into(), max_size: 1 }), &[]),
            (|new| new.web_push = Some(WebPushConfig::new("key", "mailto:a@example.org")), &[]),
            (|new| new.limits.sessions = 1, &[]),
            (|new| new.push.priority = Some(5), &[]),
            (|new| new.log.level = "debug".into(), &[]),
            (|new| new.store.busy_timeout = Duration::from_secs(1), &["[store]"]),
            (|new| new.credentials = CredentialsMode::Memory, &["[credentials]"]),
            (|new| new.watch.connections = 1, &["[watch]"]),
            (|new| new.push.subscriptions = 1, &["[push]"]),
            (|new| new.fcm = vec![FcmConfig::new("a")], &[]),
            (
                |new| {
                    let url = "https://a.example/".parse().unwrap();
                    new.webhooks = vec![WebhookConfig::new("a", url, "b")];
                },
                &[],
            ),
            (|new| new.limits.capability_size = 1, &["[limits] capability_size"]),
            (|new| new.resolver.waiting = 1, &["[resolver]"]),
            (|new| new.node.name = Some("a".into()), &["[node]"]),
            (|new| new.admin.hosts = vec!["a".into()], &["[admin]"]),
            (|new| new.api.sessions = 1, &["[api]"]),
            (|new| new.events.waiting = 1, &["[events]"]),
            (|new| new.events.sources = vec![EventSourceConfig::new("a", "b")], &[]),
            (
                |new| {
                    let source = EventSourceConfig::new("a", "b");
                    new.events.sources = vec![EventSourceConfig { metadata: true, ..source }];
                },
                &["[[events.source]] metadata"],
            ),
            (|new| new.log.format = LogFormat::Json, &["[log] format"]),
        ];
        for (change, named) in changes {
            let mut new = old.clone();
            change(&mut new);
            assert_eq!(restart_needed(&old, &new), *named);
        }
    }
}
