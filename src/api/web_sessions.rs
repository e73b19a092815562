//! The sessions of the web app: a cookie of 256 random bits, and what was logged in with.
//!
//! They live in memory only, where a cookie is known by its SHA-256 alone. A session ends when it was not
//! used for a while, at an age, by logout, and when others need its place.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::model::{AcceptedLogin, Account, Credentials};
use crate::net::counters::HttpCounters;

/// The name of the cookie. Browsers take one with this prefix for this host alone, over TLS.
pub(super) const COOKIE: &str = "__Host-mailchime";

/// From a session's last request to its end, and from its beginning.
pub(super) const IDLE: Duration = Duration::from_mins(15);
pub(super) const AGE: Duration = Duration::from_hours(12);

/// From a proof at the backend to the next one.
const PROOF: Duration = Duration::from_hours(1);

/// Sessions of one account.
const PER_ACCOUNT: usize = 20;

/// The SHA-256 of a cookie.
type CookieHash = [u8; 32];

/// All sessions of this node.
#[derive(Debug)]
pub(super) struct WebSessions {
    most: usize,
    open: Mutex<HashMap<CookieHash, OpenSession>>,
    counters: Arc<HttpCounters>,
}

/// A session, and what tells others that it has ended.
#[derive(Debug)]
struct OpenSession {
    session: WebSession,
    _ends: DropGuard,
}

/// A user of the web app who is logged in.
#[derive(Clone, Debug)]
pub(super) struct WebSession {
    pub(super) account: Account,
    /// As the backend last accepted it.
    pub(super) login: AcceptedLogin,
    /// What the backend accepted; overwritten when the last copy goes.
    pub(super) credentials: Credentials,
    /// Cancelled when the session ends.
    pub(super) ended: CancellationToken,
    began: Instant,
    used: Instant,
    proved: Instant,
}

impl WebSessions {
    /// At most so many.
    pub(super) fn new(most: usize, counters: Arc<HttpCounters>) -> Self {
        Self { most, open: Mutex::default(), counters }
    }

    /// A new session; its cookie.
    pub(super) fn open(
        &self,
        account: Account,
        login: AcceptedLogin,
        credentials: Credentials,
    ) -> String {
        let cookie = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let now = Instant::now();
        let mut open = self.open.lock();
        open.retain(|_, open| open.session.lives(now));
        let of_account = open.values().filter(|open| open.session.account == account).count();
        if of_account >= PER_ACCOUNT {
            end_oldest(&mut open, |session| session.account == account);
        } else if open.len() >= self.most {
            end_oldest(&mut open, |_| true);
            if self.counters.sessions.hit() {
                tracing::warn!(
                    target: "mailchime::api::sessions_reached",
                    limit = self.most,
                    "[api] sessions is reached; mailchime ends the sessions of the web app that were \
                     not used for longest"
                );
            }
        }
        let ended = CancellationToken::new();
        let _ends = ended.clone().drop_guard();
        let (began, used, proved) = (now, now, now);
        let session = WebSession { account, login, credentials, ended, began, used, proved };
        open.insert(hash(&cookie), OpenSession { session, _ends });
        cookie
    }

    /// The session of this cookie, which is used now.
    pub(super) fn used(&self, cookie: &str) -> Option<WebSession> {
        let now = Instant::now();
        let mut open = self.open.lock();
        let OpenSession { session, .. } =
            open.get_mut(&hash(cookie)).filter(|open| open.session.lives(now))?;
        session.used = now;
        Some(session.clone())
    }

    /// The session of this cookie is used now. Whether it goes on.
    pub(super) fn touch(&self, cookie: &str) -> bool {
        let now = Instant::now();
        let mut open = self.open.lock();
        let session = open.get_mut(&hash(cookie)).map(|open| &mut open.session);
        session.filter(|session| session.lives(now)).map(|session| session.used = now).is_some()
    }

    /// The backend has accepted what this session was opened with once more.
    pub(super) fn proved(&self, cookie: &str, login: AcceptedLogin) {
        if let Some(OpenSession { session, .. }) = self.open.lock().get_mut(&hash(cookie)) {
            (session.login, session.proved) = (login, Instant::now());
        }
    }

    /// Ends the session of this cookie.
    pub(super) fn close(&self, cookie: &str) {
        self.open.lock().remove(&hash(cookie));
    }

    /// Ends those whose time is over.
    pub(super) fn tidy(&self) {
        let now = Instant::now();
        self.open.lock().retain(|_, open| open.session.lives(now));
    }
}

impl WebSession {
    /// Whether its last proof is of late.
    pub(super) fn is_proved(&self) -> bool {
        self.proved.elapsed() < PROOF
    }

    fn lives(&self, now: Instant) -> bool {
        now.duration_since(self.used) < IDLE && now.duration_since(self.began) < AGE
    }
}

/// Ends the session among these that was not used for longest.
fn end_oldest(open: &mut HashMap<CookieHash, OpenSession>, among: impl Fn(&WebSession) -> bool) {
    let oldest = open.iter().filter(|(_, open)| among(&open.session));
    let oldest = oldest.min_by_key(|(_, open)| open.session.used).map(|(hash, _)| *hash);
    oldest.and_then(|hash| open.remove(&hash));
}

fn hash(cookie: &str) -> CookieHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, cookie.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BackendId, Timestamp};

    fn open(sessions: &WebSessions, name: &str) -> String {
        let credentials = Credentials::password(name, b"secret".to_vec());
        let login = AcceptedLogin {
            backend: BackendId::new(None, "localhost", 993),
            credentials: None,
            at: Timestamp(0),
            names_ignore_case: false,
        };
        sessions.open(Account::from_login(name), login, credentials)
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_unused_at_its_age_and_by_logout() {
        let sessions = WebSessions::new(10, Arc::default());
        let cookie = open(&sessions, "alice");
        assert_eq!(cookie.len(), 43);
        assert_eq!(sessions.used(&cookie).unwrap().account.as_str(), "alice");
        assert!(sessions.used("other").is_none() && sessions.used("").is_none());
        let minute = Duration::from_mins(1);
        for _ in 0..12 * 6 - 1 {
            tokio::time::advance(10 * minute).await;
            assert!(sessions.touch(&cookie));
        }
        tokio::time::advance(10 * minute).await;
        assert!(sessions.used(&cookie).is_none() && !sessions.touch(&cookie), "after 12 hours");
        let cookie = open(&sessions, "alice");
        tokio::time::advance(15 * minute).await;
        assert!(sessions.used(&cookie).is_none(), "unused for 15 minutes");
        sessions.tidy();
        assert!(sessions.open.lock().is_empty());
        let cookie = open(&sessions, "alice");
        let ended = sessions.used(&cookie).unwrap().ended;
        assert!(!ended.is_cancelled());
        sessions.close(&cookie);
        assert!(sessions.used(&cookie).is_none() && ended.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_holds_for_an_hour() {
        let sessions = WebSessions::new(10, Arc::default());
        let cookie = open(&sessions, "alice");
        for _ in 0..5 {
            tokio::time::advance(Duration::from_mins(11)).await;
            assert!(sessions.used(&cookie).unwrap().is_proved());
        }
        tokio::time::advance(Duration::from_mins(5)).await;
        let session = sessions.used(&cookie).unwrap();
        assert!(!session.is_proved());
        sessions.proved(&cookie, AcceptedLogin { at: Timestamp(7), ..session.login });
        let session = sessions.used(&cookie).unwrap();
        assert!(session.is_proved() && session.login.at == Timestamp(7));
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_has_twenty_sessions_and_the_oldest_makes_room() {
        let sessions = WebSessions::new(30, Arc::default());
        let other = open(&sessions, "bob");
        let mut cookies = Vec::new();
        for _ in 0..PER_ACCOUNT + 1 {
            tokio::time::advance(Duration::from_secs(1)).await;
            cookies.push(open(&sessions, "alice"));
        }
        assert!(sessions.used(&cookies[0]).is_none() && sessions.used(&cookies[1]).is_some());
        assert!(sessions.used(&other).is_some());
        for name in 0..11 {
            open(&sessions, &name.to_string());
        }
        assert!(sessions.used(&cookies[2]).is_none(), "30 in all");
        assert_eq!(sessions.counters.sessions.hits(), 2);
    }
}
