//! Certificates that were renewed on disk are read again by themselves, and the log says when those that
//! clients are shown end.
//!
//! A renewal writes two files, one after the other. So a change is taken when all files have stood still
//! from one look to the next, and only where they fit together.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use x509_parser::prelude::{FromDer, X509Certificate};

use super::server_tls::server_tls;
use super::{MailPushSetup, Server};
use crate::config::{self, Config};
use crate::files::{Stamp, stamp};
use crate::model::Timestamp;
use crate::net::tls::{self, EXPIRY_WARNING_DAYS};

/// Between two looks at the files of certificates.
pub const LOOK: Duration = Duration::from_secs(5);

const DAY: i64 = 24 * 3600;

/// Between two lines about files that do not fit.
const BETWEEN_LINES: Duration = Duration::from_hours(1);

/// What there is to know of the certificates that are in use.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    server: RenewedFiles,
    push: RenewedFiles,
    /// The certificates that clients are shown, and when each begins and ends, in seconds since 1970.
    terms: Vec<(PathBuf, i64, i64)>,
    /// For how many days each was said to be good.
    said: HashMap<PathBuf, i64>,
}

/// A set of files that is read as a whole.
#[derive(Debug, Default)]
pub(super) struct RenewedFiles {
    paths: Vec<PathBuf>,
    /// What was read; `None` for a file that was not there.
    read: Stamps,
    /// What was seen at the last look.
    seen: Stamps,
    /// What was tried and does not fit, and when the log said so.
    unfit: Option<(Stamps, Instant)>,
}

type Stamps = Vec<Option<Stamp>>;

impl RenewedFiles {
    /// To be made before they are read, so that a change in between is seen.
    fn new(paths: Vec<PathBuf>) -> Self {
        let read = stamps(&paths);
        Self { seen: read.clone(), read, paths, unfit: None }
    }

    /// The change that is to be taken, if there is one.
    fn changed(&mut self) -> Option<Stamps> {
        let now = stamps(&self.paths);
        let stood_still = std::mem::replace(&mut self.seen, now.clone()) == now;
        if now == self.read {
            self.unfit = None;
            return None;
        }
        stood_still.then_some(now)
    }

    /// Takes note of whether a change could be taken; returns whether the log is to say so.
    fn tried(&mut self, change: Stamps, fits: bool) -> bool {
        if fits {
            // What has changed again meanwhile is read again.
            (self.read, self.unfit) = (change, None);
            return true;
        }
        let is_news = self
            .unfit
            .as_ref()
            .is_none_or(|(before, said)| *before != change || said.elapsed() >= BETWEEN_LINES);
        if is_news {
            self.unfit = Some((change, Instant::now()));
        }
        is_news
    }
}

fn stamps(paths: &[PathBuf]) -> Stamps {
    paths.iter().map(|path| fs::metadata(path).ok().map(|found| stamp(&found))).collect()
}

impl Renewal {
    /// To be made before the files are read.
    pub(super) fn new(config: &Config) -> Self {
        let server =
            config.tls.all_certificates().flat_map(|it| [&it.certificate, &it.private_key]);
        let server = server.cloned().collect();
        let push = RenewedFiles::new(MailPushSetup::files(config));
        Self { server: RenewedFiles::new(server), push, ..Self::default() }
    }

    /// The same for another configuration.
    pub(super) fn go_by(&mut self, new: Self, tls: &config::TlsConfig) {
        let said = std::mem::take(&mut self.said);
        *self = Self { said, ..new };
        self.read_ends(tls);
    }

    /// Takes note of when the certificates that clients are shown end.
    pub(super) fn read_ends(&mut self, tls: &config::TlsConfig) {
        let certificates = tls.all_certificates().map(|it| &it.certificate);
        let terms = certificates.filter_map(|path| {
            let (begin, end) = term(path)?;
            Some((path.clone(), begin, end))
        });
        self.terms = terms.collect();
    }

    /// Says what ends soon, once a day.
    fn say(&mut self, now: i64) {
        for (path, begin, end) in &self.terms {
            let days = (end - now).div_euclid(DAY);
            let before = self.said.insert(path.clone(), days);
            if before == Some(days) {
                continue;
            }
            let certificate = path.display();
            if now < *begin {
                tracing::error!(
                    target: "mailchime::app::certificate_not_valid_yet",
                    %certificate,
                    "a server certificate is not valid yet, and clients refuse to connect; is the clock right?"
                );
            }
            if days >= EXPIRY_WARNING_DAYS {
                continue;
            }
            match days {
                ..0 => tracing::error!(
                    target: "mailchime::app::certificate_expired",
                    %certificate,
                    "a server certificate has expired, and clients refuse to connect; renew it"
                ),
                days => tracing::warn!(
                    target: "mailchime::app::certificate_expires_soon",
                    %certificate,
                    days,
                    "a server certificate expires soon; renew it"
                ),
            }
        }
    }
}

/// When the certificate in a file begins and ends, in seconds since 1970.
fn term(path: &Path) -> Option<(i64, i64)> {
    let chain = tls::certificates(path).ok()?;
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let validity = leaf.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

impl Server {
    /// Looks at the files of the certificates, and uses those that were renewed from now on: the ones that
    /// clients are shown in new sessions, those of push identities for new pushes. To be called every [`LOOK`].
    pub fn look_at_certificates(&mut self) {
        if let Some(change) = self.renewal.server.changed() {
            let read = server_tls(&self.config.tls, &self.tickets).map(|server_tls| {
                self.current.set(self.current.get().showing(server_tls));
                self.renewal.read_ends(&self.config.tls);
            });
            let news = self.renewal.server.tried(change, read.is_ok());
            self.tell_of_certificates();
            match read {
                Ok(()) => tracing::info!(
                    target: "mailchime::app::certificate_renewed",
                    "read a renewed server certificate; new sessions use it"
                ),
                Err(error) if news => tracing::warn!(
                    target: "mailchime::app::certificate_unreadable",
                    %error,
                    "a changed certificate cannot be read; mailchime keeps using the previous one"
                ),
                Err(_) => {}
            }
        }
        if let Some(change) = self.renewal.push.changed() {
            let read = self.mail_push.reload(&self.config);
            let news = self.renewal.push.tried(change, read.is_ok());
            self.tell_of_certificates();
            match read {
                Ok(()) => {
                    tracing::info!(
                        target: "mailchime::app::push_certificate_renewed",
                        "read a renewed push certificate; new pushes use it"
                    );
                }
                Err(error) if news => tracing::warn!(
                    target: "mailchime::app::certificate_unreadable",
                    %error,
                    "a changed certificate cannot be read; mailchime keeps using the previous one"
                ),
                Err(_) => {}
            }
        }
        self.tell_of_certificates();
    }

    /// In the metrics and the log.
    pub(super) fn tell_of_certificates(&mut self) {
        let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs());
        let ends = self.renewal.terms.iter();
        let ends = ends.map(|(path, _, end)| (path.display().to_string(), at(*end))).collect();
        let unfit = [&self.renewal.server, &self.renewal.push];
        let unread = unfit.iter().filter(|files| files.unfit.is_some()).count();
        self.metrics.server_certificates(ends, unread);
        self.renewal.say(Timestamp::now().0.div_euclid(1000));
    }
}
