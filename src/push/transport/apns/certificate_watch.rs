//! The calendar of the identities: what may be offered to devices at the moment, and a line in the
//! log each day before a certificate ends and after it has.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::identities::{Identities, IdentityStatus, Offer};
use crate::model::Timestamp;
use crate::net::tls::EXPIRY_WARNING_DAYS;

/// The clock may be set, so it is looked at this often, whatever is due when.
const LOOK: Duration = Duration::from_secs(5);
/// By so much it has been set: provider tokens that were signed by it are others now.
const SET: i64 = 30_000;

const DAY: i64 = 24 * 3600 * 1000;

/// What there is to say of an identity, no more than once for each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExpiryNotice {
    /// It can be used for so many days, or for ever.
    Good { days: Option<i64> },
    /// It ends in so many days.
    EndsSoon { days: i64 },
    /// It cannot be used; `days` since it could, or until it can.
    Unusable { days: i64 },
}

/// Calls `publish` with what devices may be offered, at once and whenever that has changed, and
/// writes the log, until `cancel`. When an identity begins or ceases to be valid, or the clock was set,
/// what was refused is tried again. `clock` is the time of day.
pub async fn run(
    identities: Identities,
    clock: impl Fn() -> Timestamp,
    publish: impl Fn(Vec<Offer>),
    cancel: CancellationToken,
) {
    let mut changes = identities.routes().changes();
    let mut said: HashMap<PathBuf, ExpiryNotice> = HashMap::new();
    let (mut offered, mut valid) = (None, None);
    let mut looked: Option<(Timestamp, Instant)> = None;
    loop {
        let (now, at) = (clock(), Instant::now());
        let expected = looked.map(|(then, since)| then.plus(at.duration_since(since)));
        let was_set = expected.is_some_and(|expected| (now.0 - expected.0).abs() > SET);
        looked = Some((now, at));
        let (mut saying, mut now_valid) = (HashMap::new(), Vec::new());
        for status in identities.statuses(now) {
            let notice = notice(&status, now);
            if said.get(&status.file).is_none_or(|before| notice.is_news_after(before)) {
                say(&status, notice);
            }
            now_valid.push((status.topic, status.valid));
            saying.insert(status.file, notice);
        }
        said = saying;
        let offers = identities.offers(now);
        if offered.as_ref() != Some(&offers) {
            publish(offers.clone());
            offered = Some(offers);
        }
        let turned = valid.replace(now_valid.clone()).is_some_and(|before| before != now_valid);
        if turned || was_set {
            identities.routes().try_again();
        }
        let turns_in = identities.turns_at(now).and_then(|at| u64::try_from(at.0 - now.0).ok());
        let wait = turns_in.map_or(LOOK, Duration::from_millis).min(LOOK);
        tokio::select! {
            () = cancel.cancelled() => return,
            () = changes.next() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl ExpiryNotice {
    /// How many days are left is no news until they are few.
    fn is_news_after(&self, before: &Self) -> bool {
        match (before, self) {
            (Self::Good { .. }, Self::Good { .. }) => false,
            (before, now) => before != now,
        }
    }
}

fn notice(status: &IdentityStatus, now: Timestamp) -> ExpiryNotice {
    let days = status.not_after.map(|at| at.saturating_sub(now.0).div_euclid(DAY));
    match days {
        days if !status.valid => ExpiryNotice::Unusable { days: days.unwrap_or_default() },
        Some(days) if days < EXPIRY_WARNING_DAYS => ExpiryNotice::EndsSoon { days },
        days => ExpiryNotice::Good { days },
    }
}

fn say(status: &IdentityStatus, notice: ExpiryNotice) {
    let IdentityStatus { topic, file, endpoint, .. } = status;
    let certificate = file.display();
    match notice {
        ExpiryNotice::Good { days } => info!(
            target: "mailchime::push::certificate_valid",
            topic, endpoint, %certificate, days, "push is on"
        ),
        ExpiryNotice::EndsSoon { days } => {
            warn!(
                target: "mailchime::push::certificate_expires_soon",
                topic, %certificate, days, "the APNs certificate expires soon; renew it"
            );
        }
        ExpiryNotice::Unusable { days: ..0 } => error!(
            target: "mailchime::push::certificate_expired",
            topic,
            %certificate,
            "the APNs certificate has expired; push is off for this topic until you renew it"
        ),
        ExpiryNotice::Unusable { .. } => error!(
            target: "mailchime::push::certificate_not_yet_valid",
            topic,
            %certificate,
            "the APNs certificate is not valid yet; push is off for this topic. Check the clock of \
             this machine"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_logged_each_day_from_30_days_before_the_end() {
        let status = |days: i64| IdentityStatus {
            topic: "t".into(),
            file: "apns.pem".into(),
            endpoint: String::new(),
            domains: Vec::new(),
            not_after: Some(days * DAY),
            valid: days >= 0,
        };
        let at = |days| notice(&status(days), Timestamp(0));
        assert_eq!(
            (at(30), at(29)),
            (ExpiryNotice::Good { days: Some(30) }, ExpiryNotice::EndsSoon { days: 29 })
        );
        assert_eq!(at(-1), ExpiryNotice::Unusable { days: -1 });
        for (before, now, news) in
            [(99, 31, false), (30, 29, true), (29, 28, true), (28, 28, false), (0, -1, true)]
        {
            assert_eq!(at(now).is_news_after(&at(before)), news, "{before} {now}");
        }
        let key = IdentityStatus { not_after: None, ..status(1) };
        assert_eq!(notice(&key, Timestamp(0)), ExpiryNotice::Good { days: None });
    }
}
