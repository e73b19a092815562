//! Who may send events.

use super::Report;
use crate::app;
use crate::config::Config;
use crate::metrics::Metrics;

/// Reads the secrets of those who may send events.
pub(super) fn events(config: &Config, report: &mut Report) {
    if config.events.sources.is_empty() {
        return;
    }
    match app::event_sources(&config.events, &Metrics::default()) {
        Ok(sources) => {
            let names: Vec<_> = sources.iter().map(|source| source.name()).collect();
            let names = names.join(", ");
            match config.events.address {
                Some(address) => {
                    let how = if config.events.tls { "HTTPS" } else { "HTTP" };
                    report.ok("[events]", format_args!("{address}, {how}, for {names}"));
                }
                None => {
                    let problem = "[events] has no address, so no source can send events; add one";
                    report.warning("[events]", problem);
                }
            }
        }
        Err(why) => report.refused("[events]", why),
    }
}
