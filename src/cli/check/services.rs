//! Push services beside APNs: FCM, and the web hooks of the operator; and who may send events.

use super::Report;
use super::peers::resolver;
use crate::app;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::push::transport::Verdict;
use crate::push::transport::fcm::FcmProject;
use crate::push::transport::webhook::operator;

/// FCM checks a message of each project, and delivers it to nobody.
pub(super) async fn fcm(config: &Config, report: &mut Report) {
    for table in &config.fcm {
        let project = match FcmProject::load(table, &resolver(config)) {
            Ok(project) => project,
            Err(why) => {
                report.failed("[[fcm]]", why);
                continue;
            }
        };
        let (part, file) = (format!("[[fcm]] {}", project.name), project.file.display());
        match project.probe().await {
            Verdict::Accepted { .. } => {
                report.ok(&part, format_args!("{file}: FCM takes messages"))
            }
            Verdict::Misconfigured { why } => {
                let remedy = "see whether the project has the Firebase Cloud Messaging API (V1), and \
                              the account the role for it";
                report.failed(&part, format_args!("{file}: {why}; {remedy}"));
            }
            other => {
                let why = other.detail().unwrap_or(other.name());
                let remedy = "see whether this machine reaches Google and its clock is right; \
                              `proxy` serves where only a proxy leads there";
                report.failed(&part, format_args!("{file}: {why}; {remedy}"));
            }
        }
    }
}

/// Reads what each web hook needs. Nothing is sent, since the receiver would take it for an event.
pub(super) fn webhooks(config: &Config, report: &mut Report) {
    for webhook in &config.webhooks {
        let part = format!("[[webhook]] {}", webhook.name);
        match operator::route(webhook, &resolver(config)) {
            Ok(_) => {
                let host = webhook.host();
                report.ok(&part, format_args!("events go to {host}; nothing was sent there now"));
            }
            Err(why) => report.failed(&part, why),
        }
    }
}

/// Reads the secrets of those who may send events.
pub(super) fn events(config: &Config, report: &mut Report) {
    if let Some(cyrus) = &config.events.cyrus {
        let keys = [("cyrus_socket", &cyrus.socket), ("cyrus_stream", &cyrus.stream)];
        for (key, path) in keys {
            let Some(path) = path else { continue };
            let part = format!("[events] {key}");
            match path.parent() {
                Some(folder) if folder.is_dir() => report.ok(&part, path.display()),
                _ => {
                    let problem = format!("{} is in no folder; make it", path.display());
                    report.failed(&part, problem);
                }
            }
        }
    }
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
        Err(why) => report.failed("[events]", why),
    }
}
