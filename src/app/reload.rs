//! Another configuration for a running program.
//!
//! New sessions go by it; those that are open end as they began. All that can fail comes first, so
//! that a configuration is taken over as a whole or not at all.

use super::listeners::{ListenerSocket, Listening};
use super::startup::{check_record, exposed, server_tls};
use super::tasks::Stage;
use super::{Renewal, Server, StartError};
use crate::config::Config;
use crate::net::backends::Table;
use crate::record;

/// What a listener of the new configuration gets: a listener that is there, or a new socket.
enum ListenerPlace {
    Kept(usize),
    New(ListenerSocket),
}

impl Server {
    /// Goes by `config` from now on: listeners, certificates, backends, routes, limits, recording and
    /// the push identities. What is left of it takes effect at the next start, which a log line says.
    /// Watchers whose account has another backend now move there.
    ///
    /// # Errors
    /// All stays as it was.
    pub fn reload(&mut self, config: &Config) -> Result<(), StartError> {
        let renewal = Renewal::new(config);
        let server_tls = server_tls(&config.tls, &self.tickets)?;
        let table = Table::new(config, &self.resolver)
            .map_err(|error| StartError::Configuration(error.to_string()))?;
        check_record(config)?;
        let places = self.places(config)?;
        self.identities
            .reload(&config.apns, config.push.priority)
            .map_err(|error| StartError::Configuration(error.to_string()))?;

        for warning in &config.warnings {
            tracing::warn!(target: "mailchime::config::warning", "{warning}");
        }
        self.metrics.exposed_files.set(exposed(config));
        self.tell_of_the_rest(config);
        self.backends.replace(table);
        let context = self.current.get().reloaded(server_tls, config);
        let context = context.tapped(config.record.as_ref().map(record::taps));
        self.current.set(context);
        self.renewal.go_by(renewal, &config.tls);
        self.tell_of_certificates();
        self.listen(config, places);
        self.tasks.forget_ended();
        let grace = self.config.limits.shutdown_grace;
        self.config = config.clone();
        // Sessions that began before have their own.
        let longest = &mut self.config.limits.shutdown_grace;
        *longest = grace.max(*longest);
        Ok(())
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
                        (self.current.clone(), self.tasks.stop_of(Stage::Serving));
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
            self.tasks.add(Stage::Serving, "closed listener", serving);
        }
        self.addresses = self.listening.iter().map(|listening| listening.address).collect();
    }

    fn tell_of_the_rest(&self, new: &Config) {
        let old = &self.config;
        let tables = [
            ("[store]", old.store == new.store),
            ("[credentials]", old.credentials == new.credentials),
            ("[watch]", old.watch == new.watch),
            ("[push]", old.push == new.push),
            ("[resolver]", old.resolver == new.resolver),
            ("[node]", old.node == new.node),
            ("[admin]", old.admin == new.admin),
            ("[log] format", old.log.format == new.log.format),
        ];
        let changed: Vec<_> = tables.iter().filter(|(_, same)| !same).map(|(t, _)| *t).collect();
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
