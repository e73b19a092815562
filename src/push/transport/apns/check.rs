//! What `mailchime check` says of APNs: each identity, and whether the service takes it.

use super::{ApnsClient, ApnsIdentity, Validity};
use crate::config::{self, Config};
use crate::model::Timestamp;
use crate::net::resolve::NameResolver;
use crate::net::tls::EXPIRY_WARNING_DAYS;
use crate::push::transport::Verdict;
use crate::push::transport::check::{CheckLine, CheckLines};

const DAY: i64 = 24 * 3600 * 1000;

/// Checks each identity of the configuration, and asks its service.
pub(in crate::push::transport) async fn run(
    config: &Config,
    resolver: &NameResolver,
    report: &mut dyn FnMut(CheckLine),
) {
    let mut lines = CheckLines::new("[apns]", report);
    if config.apns.is_empty() {
        return lines.ok("there is none: iOS Mail gets no push");
    }
    for apns in &config.apns {
        match ApnsIdentity::load(&apns.identity) {
            Ok(identity) => {
                let mut lines = lines.part(format!("[apns] {}", identity.topic().escape_debug()));
                of_identity(&identity, &mut lines);
                match ApnsClient::new(&identity, apns, resolver) {
                    Ok(client) => of_service(&client, &apns.endpoint, &mut lines).await,
                    Err(error) => lines.failed(error),
                }
            }
            Err(error) => lines.refused(error),
        }
    }
}

fn of_identity(identity: &ApnsIdentity, lines: &mut CheckLines<'_>) {
    let file = identity.file().display();
    let now = Timestamp::now();
    let left = identity.not_after().map(|end| (end.0 - now.0).div_euclid(DAY));
    match (identity.validity(now), left) {
        (Validity::Valid, Some(days @ ..EXPIRY_WARNING_DAYS)) => {
            lines.warning(format_args!("{file}: expires in {days} days; renew it"));
        }
        (Validity::Valid, _) => {
            let until = identity.not_after().map(|end| format!(", until {}", end.date()));
            lines.ok(format_args!("{file}: can be used{}", until.unwrap_or_default()));
        }
        (validity, _) => {
            let remedy = "get a new one from Apple; or is the clock wrong?";
            lines.failed(format_args!("{file}: is {validity}; {remedy}"));
        }
    }
    if !identity.is_for_mail() {
        lines.warning(
            "iOS drops pushes of this topic: it takes those that begin with \
             com.apple.mobilemail.push. or com.apple.mail.",
        );
    }
}

/// A push to a device that does not exist: a service that takes our identity says just that.
async fn of_service(
    client: &ApnsClient,
    endpoint: &config::ApnsServer,
    lines: &mut CheckLines<'_>,
) {
    match client.probe().await {
        Verdict::BadEndpoint => {
            lines.ok(format_args!("{endpoint} takes it: BadDeviceToken, as it should be"));
        }
        Verdict::Unavailable { why, .. } | Verdict::RouteClosed { why, .. } => {
            let remedy = "see whether this machine reaches it; port 2197 serves where 443 is \
                          blocked, and `proxy` where everything is";
            lines.failed(format_args!("{endpoint}: {why}; {remedy}"));
        }
        Verdict::Misconfigured { why } => {
            let remedy = "does the certificate belong to this endpoint, and is it still in force?";
            lines.failed(format_args!("{endpoint} refuses it: {why}; {remedy}"));
        }
        Verdict::OtherRoute => {
            let remedy = "the certificate is not for this topic";
            lines.failed(format_args!("{endpoint} refuses the topic; {remedy}"));
        }
        other => {
            let outcome = other.name();
            lines.failed(format_args!(
                "{endpoint} says {outcome} to a token that cannot be; is it APNs?"
            ));
        }
    }
}
