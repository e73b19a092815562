//! What `mailchime check` says of FCM: each project checks a message, and delivers it to nobody.

use super::FcmProject;
use crate::config::Config;
use crate::net::resolve::NameResolver;
use crate::push::transport::Verdict;
use crate::push::transport::check::{CheckLine, CheckLines};

/// Checks each project of the configuration, and asks FCM.
pub(in crate::push::transport) async fn run(
    config: &Config,
    resolver: &NameResolver,
    report: &mut dyn FnMut(CheckLine),
) {
    let mut lines = CheckLines::new("[[fcm]]", report);
    for table in &config.fcm {
        let project = match FcmProject::load(table, resolver) {
            Ok(project) => project,
            Err(why) => {
                lines.refused(why);
                continue;
            }
        };
        let mut lines = lines.part(format!("[[fcm]] {}", project.name));
        let file = project.file.display();
        match project.probe().await {
            Verdict::Accepted { .. } => lines.ok(format_args!("{file}: FCM takes messages")),
            Verdict::Rejected { why } => {
                let remedy = "see whether the project has the Firebase Cloud Messaging API (V1), and \
                              the account the role for it";
                lines.failed(format_args!("{file}: {why}; {remedy}"));
            }
            other => {
                let why = other.detail().unwrap_or(other.name());
                let remedy = match project.is_refused() {
                    true => {
                        "is the clock of this machine right, and does the account still have this key? make \
                         a new one in the Firebase console (Project settings, Service accounts)"
                    }
                    false => {
                        "see whether this machine reaches Google and its clock is right; `proxy` serves \
                         where only a proxy leads there"
                    }
                };
                lines.failed(format_args!("{file}: {why}; {remedy}"));
            }
        }
    }
}
