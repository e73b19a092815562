//! doveadm's HTTP API: Dovecot says the state of any user's mailboxes, of many users in one call, and nobody logs
//! in (<https://doc.dovecot.org/2.3/admin_manual/doveadm_http_api/>).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use rustls::client::danger::ServerCertVerifier;
use serde_json::{Value, json};

use super::dial::Dialer;
use super::https::{self, HttpsClient};
use super::resolve::NameResolver;
use super::tls::TlsError;
use crate::config;
use crate::imap::responses::printable;
use crate::model::{Account, Mailbox, Snapshot};
use crate::secret_file::{Unfit, read_private};

/// Accounts that are asked for in one call.
pub const MOST_ACCOUNTS: usize = 200;

/// For one call.
const LIMIT: Duration = Duration::from_secs(30);

/// Bytes of an answer: of so many accounts with dozens of mailboxes each.
const LONGEST: usize = 4 * 1024 * 1024;

/// What is asked of each mailbox, by the names that Dovecot has for it.
const FIELDS: [&str; 5] = ["uidvalidity", "uidnext", "messages", "unseen", "highestmodseq"];

/// A server of doveadm's HTTP API. `Debug` does not show the key.
#[derive(Debug)]
pub struct Doveadm {
    client: HttpsClient,
    url: Uri,
    authorization: HeaderValue,
}

/// Whose mailboxes are asked for.
#[derive(Clone, Debug)]
pub struct DoveadmQuery {
    /// The user.
    pub account: Account,
    /// Their names.
    pub mailboxes: Vec<Mailbox>,
}

/// The state of each mailbox of one [`DoveadmQuery`], in their order; `None` for one that is not there. Or why
/// Dovecot says nothing of the user.
pub type DoveadmAnswer = Result<Vec<Option<Snapshot>>, String>;

/// Why the file with the key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("doveadm's key {}: {problem}; {remedy}", path.display())]
pub struct KeyFileError {
    path: PathBuf,
    problem: String,
    remedy: String,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum DoveadmError {
    /// No answer came.
    #[error("doveadm: {0}")]
    Http(#[from] https::HttpsError),
    /// Another status than 200.
    #[error("doveadm answers {0}")]
    Status(StatusCode),
    /// The answer is not what it should be.
    #[error("doveadm's answer cannot be read")]
    Unreadable,
}

impl Doveadm {
    /// Reads the key from its file. Opens no socket.
    ///
    /// # Errors
    /// [`KeyFileError`] when the file cannot be read or holds no key.
    pub fn key(config: &config::DoveadmConfig) -> Result<HeaderValue, KeyFileError> {
        let read = read_private(&config.key_file).and_then(|(text, _)| {
            let key = text.trim_end_matches(['\r', '\n']);
            if key.is_empty() || key.contains(['\r', '\n', '\0']) {
                return Err(Unfit::Malformed);
            }
            let value = format!("X-Dovecot-API {}", STANDARD.encode(key));
            let mut value = HeaderValue::try_from(value).map_err(|_| Unfit::Malformed)?;
            value.set_sensitive(true);
            Ok(value)
        });
        read.map_err(|unfit| {
            let (problem, remedy) = unfit.told(
                &config.key_file,
                "it must be a file that the user who runs mailchime can read",
                "does not hold a key on one line",
                "write Dovecot's doveadm_api_key into it, and nothing else",
            );
            KeyFileError { path: config.key_file.clone(), problem, remedy }
        })
    }

    /// A server at the configured URL, whose certificate `ca` or the system vouches for.
    ///
    /// # Errors
    /// [`TlsError`] when TLS cannot be set up.
    pub fn new(
        config: &config::DoveadmConfig,
        authorization: HeaderValue,
        verifier: Arc<dyn ServerCertVerifier>,
        resolver: &NameResolver,
    ) -> Result<Self, TlsError> {
        let dialer = Dialer::new(resolver.clone(), None, https::client_tls_with(verifier)?);
        let client = HttpsClient::or_plain_here(dialer, LIMIT).reading(LONGEST);
        Ok(Self { client, url: config.url.clone(), authorization })
    }

    /// Where it is: host, port and path.
    pub fn place(&self) -> String {
        let port = self.url.port().map_or(String::new(), |port| format!(":{port}"));
        format!("{}{port}{}", self.url.host().unwrap_or_default(), self.url.path())
    }

    /// The states of these users' mailboxes, in their order; at most [`MOST_ACCOUNTS`] of them.
    ///
    /// # Errors
    /// [`DoveadmError`] when nothing is known of any of them.
    pub async fn status(
        &self,
        queries: &[DoveadmQuery],
    ) -> Result<Vec<DoveadmAnswer>, DoveadmError> {
        let body = Bytes::from(commands(queries).to_string());
        let mut request = Request::new(body);
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = self.url.clone();
        request.headers_mut().insert(AUTHORIZATION, self.authorization.clone());
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        let response = self.client.send(request).await?;
        if response.status() != StatusCode::OK {
            return Err(DoveadmError::Status(response.status()));
        }
        answers(response.body(), queries).ok_or(DoveadmError::Unreadable)
    }
}

/// One command for each user, with its place as tag.
fn commands(queries: &[DoveadmQuery]) -> Value {
    let command = |(place, query): (usize, &DoveadmQuery)| {
        let mailboxes: Vec<_> = query.mailboxes.iter().map(|mailbox| mailbox.as_str()).collect();
        let user = query.account.as_str();
        let asked = json!({ "user": user, "field": FIELDS, "mailboxMask": mailboxes });
        json!(["mailboxStatus", asked, place.to_string()])
    };
    queries.iter().enumerate().map(command).collect()
}

/// What the answer says of each user. `None` where it is no answer to these commands.
fn answers(body: &[u8], queries: &[DoveadmQuery]) -> Option<Vec<DoveadmAnswer>> {
    let all: Vec<(String, Value, String)> = serde_json::from_slice(body).ok()?;
    let none = || Err("doveadm did not answer".to_owned());
    let mut answers: Vec<DoveadmAnswer> = queries.iter().map(|_| none()).collect();
    for (kind, said, tag) in all {
        let place: usize = tag.parse().ok()?;
        let (answer, query) = (answers.get_mut(place)?, queries.get(place)?);
        *answer = match said.as_array() {
            Some(rows) if kind == "doveadmResponse" => Ok(states(rows, &query.mailboxes)),
            _ => Err(format!("doveadm answers {}", printable(said.to_string().as_bytes()))),
        };
    }
    Some(answers)
}

/// The same for `fuzz/`: the states of these mailboxes of each user, or why there are none.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzzed(
    body: &[u8],
    queries: &[DoveadmQuery],
) -> Option<Vec<Result<Vec<Option<Snapshot>>, String>>> {
    answers(body, queries)
}

fn states(rows: &[Value], mailboxes: &[Mailbox]) -> Vec<Option<Snapshot>> {
    let named = |row: &Value, mailbox: &Mailbox| {
        // A name with a wildcard stands for others, too.
        row["mailbox"].as_str().is_some_and(|name| Mailbox::new(name) == *mailbox)
    };
    let state = |mailbox: &Mailbox| rows.iter().find(|row| named(row, mailbox)).map(snapshot);
    mailboxes.iter().map(state).collect()
}

/// The numbers come as texts. A server without CONDSTORE for the mailbox says 0 or nothing.
fn snapshot(row: &Value) -> Snapshot {
    let number = |field: &str| match &row[field] {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    let [uid_validity, uid_next, messages, unseen, highest_mod_seq] = FIELDS.map(number);
    let highest_mod_seq = highest_mod_seq.filter(|number| *number > 0);
    Snapshot { uid_validity, uid_next, messages, unseen, highest_mod_seq }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queries() -> Vec<DoveadmQuery> {
        let query = |user: &str, mailboxes: &[&str]| DoveadmQuery {
            account: Account::from_login(user),
            mailboxes: mailboxes.iter().map(|name| Mailbox::new(name)).collect(),
        };
        vec![
            query("alice", &["INBOX", "T*m"]),
            query("bob", &["INBOX"]),
            query("carol", &["INBOX"]),
        ]
    }

    #[test]
    fn each_user_has_a_command_and_its_answer_by_its_tag() {
        assert_eq!(
            commands(&queries()[..1]),
            json!([["mailboxStatus", {
                "user": "alice",
                "field": ["uidvalidity", "uidnext", "messages", "unseen", "highestmodseq"],
                "mailboxMask": ["INBOX", "T*m"],
            }, "0"]])
        );
        let body = r#"[["error",{"type":"exitCode","exitCode":67},"1"],
            ["doveadmResponse",[{"mailbox":"Team","uidnext":"9"},
              {"mailbox":"INBOX","uidvalidity":"7","uidnext":"42","messages":"35","unseen":0,"highestmodseq":"73"}],"0"]]"#;
        let inbox = Snapshot {
            uid_validity: Some(7),
            uid_next: Some(42),
            messages: Some(35),
            unseen: Some(0),
            highest_mod_seq: Some(73),
        };
        let answers = answers(body.as_bytes(), &queries()).unwrap();
        assert_eq!(answers[0], Ok(vec![Some(inbox), None]));
        let refused = answers[1].as_ref().unwrap_err();
        assert!(refused.contains("67"), "{refused}");
        assert_eq!(answers[2], Err("doveadm did not answer".to_owned()));
    }

    #[test]
    fn an_answer_that_is_none_is_refused_whole() {
        for body in ["", "{}", "[[]]", r#"[["doveadmResponse",[],"7"]]"#, r#"[["x",[],"a"]]"#] {
            assert_eq!(answers(body.as_bytes(), &queries()), None, "{body}");
        }
    }
}
