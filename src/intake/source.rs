//! Who sends events, and how that is proved: a Bearer token (RFC 6750), Basic (RFC 7617), or a signature of
//! Standard Webhooks.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap};
use parking_lot::{Mutex, RwLock};
use secrecy::zeroize::Zeroizing;

use super::pace::SourcePace;
use crate::config::EventSourceConfig;
use crate::files;
use crate::metrics::SourceMetrics;
use crate::model::{Account, Timestamp};
use crate::net::webhook_signature::{WebhookSecret, is_signed};

/// Most bytes of a file with secrets.
const MAX_FILE: u64 = 4096;

/// How many secrets count while they are replaced.
const MOST_SECRETS: usize = 4;

/// Fewer characters could be guessed.
const SHORTEST: usize = 16;

/// What a secret begins with that also signs.
const SIGNS: &str = "whsec_";

/// Seconds by which the time of a signed request may differ from ours.
const TOLERANCE: i64 = 5 * 60;

/// Bytes of the id of a signed request.
const LONGEST_ID: usize = 256;

/// A source of the configuration, with its secrets. `Debug` shows its name alone.
pub struct KnownSource {
    config: EventSourceConfig,
    /// The SHA-256 of each secret as it is sent.
    tokens: Vec<[u8; 32]>,
    signing: Vec<WebhookSecret>,
    pace: Mutex<SourcePace>,
    pub(super) metrics: SourceMetrics,
}

/// The sources of the configuration of now. Clones share them.
#[derive(Clone, Debug)]
pub struct KnownSources(Arc<RwLock<Arc<SourceTable>>>);

/// The sources of one configuration.
#[derive(Debug)]
pub(super) struct SourceTable {
    sources: Vec<KnownSource>,
    /// Those of the next configuration share it, unless they accept more.
    refusals: Arc<Mutex<SourceRefusals>>,
}

/// Whether sources refuse what later ones may accept.
#[derive(Debug, Default)]
struct SourceRefusals {
    /// They have refused events.
    refused: bool,
    /// Sources that accept more have replaced them.
    replaced: bool,
}

/// How a request says who sends it.
pub(super) enum SourceProof<'a> {
    /// By a secret.
    Secret(Presented),
    /// By a signature, for which the body is needed.
    Signature(SignedRequest<'a>),
}

/// A secret that was sent.
pub(super) struct Presented {
    /// The user name of Basic.
    name: Option<String>,
    token: [u8; 32],
}

/// The headers of Standard Webhooks.
pub(super) struct SignedRequest<'a> {
    id: &'a str,
    seconds: i64,
    signature: &'a str,
}

impl KnownSources {
    /// These, for now.
    pub fn new(sources: Vec<KnownSource>) -> Self {
        let table = SourceTable { sources, refusals: Arc::default() };
        Self(Arc::new(RwLock::new(Arc::new(table))))
    }

    /// These from now on. A request that has begun goes by those before. Whether events were missed: those before refused
    /// events that these may accept, or took events for other users.
    #[must_use]
    pub fn replace(&self, sources: Vec<KnownSource>) -> bool {
        let mut now = self.0.write();
        let with = |means: fn(&KnownSource, &[KnownSource]) -> bool| {
            sources.iter().any(|source| means(source, &now.sources))
        };
        let means_others = with(KnownSource::means_other_users);
        let accept_more = means_others || with(KnownSource::accepts_more);
        let refusals = if accept_more { Arc::default() } else { Arc::clone(&now.refusals) };
        let before = std::mem::replace(&mut *now, Arc::new(SourceTable { sources, refusals }));
        let refused = accept_more && before.refusals.lock().replaced();
        refused || means_others
    }

    /// Those of now.
    pub(super) fn now(&self) -> Arc<SourceTable> {
        Arc::clone(&self.0.read())
    }
}

impl SourceTable {
    /// All of them, each in its place.
    pub(super) fn all(&self) -> &[KnownSource] {
        &self.sources
    }

    /// They have refused events. Whether those were missed: sources that may accept them are there by now. It is said once,
    /// since one sweep finds all that requests told of that began before those sources were there.
    pub(super) fn refused(&self) -> bool {
        self.refusals.lock().refused()
    }
}

impl SourceRefusals {
    fn refused(&mut self) -> bool {
        !std::mem::replace(&mut self.refused, true) && self.replaced
    }

    /// Whether events were refused until now.
    fn replaced(&mut self) -> bool {
        self.replaced = true;
        self.refused
    }
}

impl KnownSource {
    /// Reads its secrets.
    ///
    /// # Errors
    /// What is wrong with the file, and what belongs there.
    pub fn load(config: &EventSourceConfig, metrics: SourceMetrics) -> Result<Self, String> {
        let file = config.secret_file.display();
        let failed = |why: String| format!("[[events.source]] secret_file: {file}: {why}");
        let (text, _) = files::read_text(&config.secret_file, MAX_FILE)
            .map_err(|error| failed(format!("cannot be read: {error}")))?;
        let (mut tokens, mut signing) = (Vec::new(), Vec::new());
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line.len() < SHORTEST || !line.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(failed(format!(
                    "a secret needs at least {SHORTEST} characters of ASCII without blanks, one secret a \
                     line; `openssl rand -hex 32` makes one"
                )));
            }
            if line.starts_with(SIGNS) {
                let secret = WebhookSecret::parse(line).ok_or_else(|| {
                    failed(format!("{SIGNS} must be followed by the base64 of 24 to 64 bytes"))
                })?;
                signing.push(secret);
            }
            tokens.push(hashed(line.as_bytes()));
        }
        if !(1..=MOST_SECRETS).contains(&tokens.len()) {
            let problem =
                format!("has {} secrets; write 1 to {MOST_SECRETS}, one a line", tokens.len());
            return Err(failed(problem));
        }
        let pace = Mutex::new(SourcePace::new(config.events_per_second, Instant::now()));
        Ok(Self { config: config.clone(), tokens, signing, pace, metrics })
    }

    /// One that comes by a way of its own, and has to prove nothing.
    pub(super) fn without_secret(config: &EventSourceConfig, metrics: SourceMetrics) -> Self {
        let pace = Mutex::new(SourcePace::new(config.events_per_second, Instant::now()));
        let (tokens, signing) = (Vec::new(), Vec::new());
        Self { config: config.clone(), tokens, signing, pace, metrics }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Which route its Cyrus names to devices; without one it registers none.
    pub(super) fn route(&self) -> Option<String> {
        self.config.route.clone()
    }

    /// Whether it has a secret in common with another one.
    pub fn shares_secret(&self, other: &Self) -> bool {
        self.tokens.iter().any(|token| other.tokens.contains(token))
    }

    /// Whether it may accept what was refused while these were there.
    fn accepts_more(&self, before: &[Self]) -> bool {
        let Some(before) = self.among(before) else { return true };
        let (domains, of_before) = (&self.config.domains, &before.config.domains);
        let is_wider = domains.is_empty() || domains.iter().any(|it| !of_before.contains(it));
        let is_wider = is_wider && !of_before.is_empty();
        is_wider || self.tokens.iter().any(|token| !before.tokens.contains(token))
    }

    /// Whether it was there, and its names without a domain were those of other users.
    fn means_other_users(&self, before: &[Self]) -> bool {
        let before = self.among(before);
        before.is_some_and(|it| it.config.default_domain != self.config.default_domain)
    }

    /// The one of its name.
    fn among<'a>(&self, sources: &'a [Self]) -> Option<&'a Self> {
        sources.iter().find(|source| source.config.name == self.config.name)
    }

    /// Whose mail a user's name is, if the source may speak for that account.
    pub(super) fn account(&self, user: &str) -> Option<Account> {
        let account = match &self.config.default_domain {
            Some(domain) if !user.contains('@') => Account::from_login(&format!("{user}@{domain}")),
            _ => Account::from_login(user),
        };
        self.config.covers(&account).then_some(account)
    }

    /// Whether it may send so many events now.
    pub(super) fn may_send(&self, events: usize) -> bool {
        self.pace.lock().take(events, Instant::now())
    }

    fn is_proved_by(&self, presented: &Presented) -> bool {
        let named = presented.name.as_ref().is_none_or(|name| *name == self.config.name);
        let is = |token: &[u8; 32]| verify_slices_are_equal(token, &presented.token).is_ok();
        named && self.tokens.iter().any(is)
    }
}

impl fmt::Debug for KnownSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownSource").field("name", &self.config.name).finish_non_exhaustive()
    }
}

impl<'a> SourceProof<'a> {
    /// What the headers say; `None` where there is nothing, or nothing well-formed.
    pub(super) fn of(headers: &'a HeaderMap) -> Option<Self> {
        if headers.contains_key(AUTHORIZATION) {
            return presented(headers).map(Self::Secret);
        }
        let one = |name: &str| {
            let mut fields = headers.get_all(name).iter();
            let field = fields.next().filter(|_| fields.next().is_none())?;
            field.to_str().ok()
        };
        let id = one("webhook-id").filter(|id| id.len() <= LONGEST_ID)?;
        let seconds = one("webhook-timestamp")?.parse().ok()?;
        let signature = one("webhook-signature")?;
        Some(Self::Signature(SignedRequest { id, seconds, signature }))
    }
}

impl Presented {
    /// The source whose secret it is.
    pub(super) fn source(&self, sources: &[KnownSource]) -> Option<usize> {
        sources.iter().position(|source| source.is_proved_by(self))
    }
}

impl SignedRequest<'_> {
    /// The source that has signed this body, not long ago.
    pub(super) fn source(
        &self,
        sources: &[KnownSource],
        body: &[u8],
        Timestamp(now): Timestamp,
    ) -> Option<usize> {
        let age = now.div_euclid(1000).saturating_sub(self.seconds);
        if age.saturating_abs() > TOLERANCE {
            return None;
        }
        let signed = (self.id, self.seconds);
        let is = |source: &KnownSource| is_signed(&source.signing, self.signature, signed, body);
        sources.iter().position(is)
    }
}

/// What the one `Authorization` header presents.
fn presented(headers: &HeaderMap) -> Option<Presented> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let field = fields.next().filter(|_| fields.next().is_none())?;
    let (scheme, value) = field.to_str().ok()?.split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Presented { name: None, token: hashed(value.as_bytes()) });
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(value).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let name = std::str::from_utf8(&decoded[..colon]).ok()?.to_owned();
    Some(Presented { name: Some(name), token: hashed(&decoded[colon + 1..]) })
}

/// The newest secret in a file, for one who sends events.
///
/// # Errors
/// What is wrong with the file.
pub fn first_secret(file: &Path) -> Result<Zeroizing<String>, String> {
    let (text, _) = files::read_text(file, MAX_FILE)
        .map_err(|error| format!("{}: cannot be read: {error}", file.display()))?;
    let first = text.lines().map(str::trim).find(|line| !line.is_empty());
    let first = first.map(|line| Zeroizing::new(line.to_owned()));
    first.ok_or_else(|| format!("{}: has no secret", file.display()))
}

fn hashed(secret: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, secret).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use std::fs;

    use hyper::header::HeaderValue;

    use super::*;
    use crate::metrics::Metrics;
    use crate::net::webhook_signature::signature;

    const TOKEN: &str = "correct-horse-battery";
    const OTHER: &str = "another-horse-battery";
    const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn load(name: &str, text: &str) -> Result<KnownSource, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, text).unwrap();
        KnownSource::load(&EventSourceConfig::new(name, file), Metrics::default().source(name))
    }

    fn sources() -> [KnownSource; 2] {
        [
            load("dovecot", TOKEN).unwrap(),
            load("script", &format!("{SIGNING}\n{TOKEN}2\n")).unwrap(),
        ]
    }

    fn headers(fields: &[(&'static str, String)]) -> HeaderMap {
        let fields = fields.iter();
        fields
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    /// Who an `Authorization` header is.
    fn who(value: &str) -> Option<usize> {
        let headers = headers(&[("authorization", value.to_owned())]);
        match SourceProof::of(&headers)? {
            SourceProof::Secret(presented) => presented.source(&sources()),
            SourceProof::Signature(_) => panic!("{value}"),
        }
    }

    #[test]
    fn a_source_is_known_by_its_secrets() {
        let basic = |text: &str| format!("basic {}", STANDARD.encode(text));
        assert_eq!(who(&format!("bearer {TOKEN}")), Some(0));
        assert_eq!(who(&format!("Bearer {SIGNING}")), Some(1));
        assert_eq!(who(&basic(&format!("dovecot:{TOKEN}"))), Some(0));
        assert_eq!(who(&basic(&format!("script:{TOKEN}2"))), Some(1));
        for bad in [
            "",
            "Bearer",
            "Bearer x",
            &format!("Bearer {TOKEN}3"),
            &format!("Digest {TOKEN}"),
            "Basic !",
            &basic(TOKEN),
            &basic("dovecot:"),
            &basic(&format!("script:{TOKEN}")),
            &basic(&format!("Dovecot:{TOKEN}")),
        ] {
            assert_eq!(who(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_source_is_known_by_its_signature_while_that_is_fresh() {
        let secret = WebhookSecret::parse(SIGNING).unwrap();
        let signed = |seconds: i64| {
            let signature = signature(std::slice::from_ref(&secret), "m1", seconds, b"{}");
            let id = ("webhook-id", "m1".to_owned());
            let timestamp = ("webhook-timestamp", seconds.to_string());
            headers(&[id, timestamp, ("webhook-signature", signature)])
        };
        let now = Timestamp(1_700_000_000_900);
        let who = |headers: &HeaderMap, body: &[u8]| match SourceProof::of(headers) {
            Some(SourceProof::Signature(signed)) => signed.source(&sources(), body, now),
            _ => panic!("no signature"),
        };
        assert_eq!(who(&signed(1_700_000_000), b"{}"), Some(1));
        assert_eq!(who(&signed(1_700_000_000), b"{} "), None);
        assert_eq!(who(&signed(1_700_000_300), b"{}"), Some(1));
        assert_eq!(who(&signed(1_700_000_301), b"{}"), None);
        assert_eq!(who(&signed(1_699_999_699), b"{}"), None);
        assert_eq!(who(&signed(i64::MIN), b"{}"), None);
        assert!(SourceProof::of(&HeaderMap::new()).is_none());
    }

    /// A source of this name: its secrets, its domains, and its default domain.
    fn source(name: &str, secrets: &str, domains: &str, default_domain: &str) -> KnownSource {
        let mut source = load(name, secrets).unwrap();
        source.config.domains = domains.split_whitespace().map(str::to_owned).collect();
        source.config.default_domain = Some(default_domain.to_owned());
        source
    }

    #[test]
    fn events_were_missed_when_sources_come_that_may_accept_what_was_refused() {
        let dovecot = || source("dovecot", TOKEN, "a.example", "a.example");
        let both = format!("{TOKEN}\n{OTHER}");
        for was_refused in [false, true] {
            for (new, missed) in [
                (vec![dovecot()], false),
                (vec![], false),
                (vec![source("dovecot", &both, "a.example", "a.example")], was_refused),
                (vec![source("dovecot", OTHER, "a.example", "a.example")], was_refused),
                (vec![source("dovecot", TOKEN, "b.example", "a.example")], was_refused),
                (vec![source("dovecot", TOKEN, "b.example a.example", "a.example")], was_refused),
                (vec![source("dovecot", TOKEN, "", "a.example")], was_refused),
                (vec![source("Dovecot", TOKEN, "a.example", "a.example")], was_refused),
                (vec![dovecot(), source("script", OTHER, "", "")], was_refused),
                (vec![source("script", TOKEN, "a.example", "b.example")], was_refused),
                // Its events were taken, for users who are not there.
                (vec![source("dovecot", TOKEN, "a.example", "b.example")], true),
            ] {
                let shown = format!("{was_refused}: {new:?}");
                let known = KnownSources::new(vec![dovecot()]);
                assert!(!was_refused || !known.now().refused(), "{shown}");
                assert_eq!(known.replace(new), missed, "{shown}");
            }
        }
        let all = || vec![source("dovecot", TOKEN, "", "a.example")];
        let known = KnownSources::new(all());
        assert!(!known.now().refused());
        assert!(!known.replace(vec![dovecot()]), "they accept less");
        assert!(known.replace(all()), "what was refused is remembered");
        assert!(
            !known.replace(vec![dovecot()]) && !known.replace(all()),
            "nothing was refused since"
        );
    }

    #[test]
    fn a_refusal_that_comes_behind_the_sources_that_may_accept_it_counts_once() {
        let mends = || vec![load("dovecot", OTHER).unwrap()];
        for (refused_before, missed_later) in [(false, true), (true, false)] {
            let known = KnownSources::new(vec![load("dovecot", TOKEN).unwrap()]);
            let first = known.now();
            assert!(!known.replace(vec![load("dovecot", TOKEN).unwrap()]));
            let second = known.now();
            assert!(!refused_before || !second.refused());
            assert_eq!(known.replace(mends()), refused_before);
            assert_eq!(first.refused(), missed_later, "one that is under way since the first ones");
            assert!(!first.refused() && !second.refused(), "one sweep is enough");
            assert!(!known.replace(mends()), "these have refused nothing");
        }
    }

    #[test]
    fn a_file_has_secrets_that_are_long_enough_and_nobody_is_shown_them() {
        for (text, expected) in [
            ("", "has 0 secrets; write 1 to 4"),
            ("s3cret", "at least 16 characters"),
            ("correct horse battery", "without blanks"),
            ("whsec_short-and-no-base64", "must be followed by the base64"),
            (&format!("{TOKEN}\n{TOKEN}2\n{TOKEN}3\n{TOKEN}4\n{TOKEN}5"), "has 5 secrets"),
        ] {
            let error = load("a", text).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(error.starts_with("[[events.source]] secret_file: /"), "{error}");
            assert!(!error.contains("horse") && !error.contains("s3cret"), "{error}");
        }
        let [dovecot, script] = sources();
        assert!(!dovecot.shares_secret(&script));
        assert!(dovecot.shares_secret(&load("b", &format!("{TOKEN}9\n{TOKEN}")).unwrap()));
        assert!(!format!("{dovecot:?}").contains("horse"));
    }
}
