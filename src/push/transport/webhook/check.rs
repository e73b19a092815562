//! What `mailchime check` says of web hooks.

use super::operator;
use crate::config::Config;
use crate::net::resolve::NameResolver;
use crate::push::transport::check::{CheckLine, CheckLines};

/// Reads what each web hook needs. Nothing is sent, since the receiver would take it for an event.
pub(in crate::push::transport) fn run(
    config: &Config,
    resolver: &NameResolver,
    report: &mut dyn FnMut(CheckLine),
) {
    if config.api.address.is_some() {
        let mut lines = CheckLines::new("[api]", report);
        lines.ok("takes web hooks of users; nothing was sent to one now");
    }
    for webhook in &config.webhooks {
        let mut lines = CheckLines::new(format!("[[webhook]] {}", webhook.name), report);
        match operator::route(webhook, resolver) {
            Ok(_) => {
                let host = webhook.host();
                lines.ok(format_args!("events go to {host}; nothing was sent there now"));
            }
            Err(why) => lines.refused(why),
        }
    }
}
