//! A visit: a short connection that asks for the states of mailboxes. It opens none of them.

use std::collections::HashMap;
use std::time::Duration;

use super::imap::connection::{CommandRefused, ConnectionLost, ImapConnection};
use super::imap::session::quoted;
use super::imap::status_query::items;
use super::imap::unsolicited::Unsolicited;
use crate::imap::capability::Capabilities;
use crate::model::{Account, Credentials, Mailbox, Snapshot};
use crate::net::backend::LoginError;
use crate::net::backends::Backends;
use crate::watch::snapshot::merged;

/// Why a visit brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// The account's name does not say at which backend it is.
    #[error("{0}")]
    Backend(String),
    /// The backend cannot be reached, or refuses the login.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The connection ended, or fell silent, before all was answered.
    #[error("{0}")]
    Lost(String),
}

/// Logs in at the account's backend, asks for the state of each mailbox by STATUS, and logs out.
/// `answer_timeout` is for the login and for each answer, `longest` the most bytes of one response that
/// are kept.
///
/// Returns the states in the order of `mailboxes`; `None` where the backend refuses to tell.
///
/// # Errors
/// [`VisitError`] where the backend cannot be reached, refuses the login or ends the connection.
pub async fn visit(
    backends: &Backends,
    account: &Account,
    credentials: Credentials,
    mailboxes: &[Mailbox],
    answer_timeout: Duration,
    longest: usize,
) -> Result<Vec<Option<Snapshot>>, VisitError> {
    let backend = backends.of(account).map_err(|error| VisitError::Backend(error.to_string()))?;
    let logged_in = backends.log_in(&backend, account, credentials, answer_timeout, longest);
    let mut logged_in = logged_in.await?;
    let granted = logged_in.capabilities.take();
    let mut connection = ImapConnection::new(logged_in, answer_timeout, longest);
    match states(&mut connection, granted, mailboxes).await {
        Ok(states) => {
            connection.log_out().await;
            Ok(states)
        }
        Err(lost) => Err(VisitError::Lost(lost.to_string())),
    }
}

async fn states(
    connection: &mut ImapConnection,
    granted: Option<Capabilities>,
    mailboxes: &[Mailbox],
) -> Result<Vec<Option<Snapshot>>, ConnectionLost> {
    let granted = connection.capabilities(granted).await?;
    let mod_seq = granted.has("CONDSTORE") || granted.has("QRESYNC");
    let (states, bad) = ask(connection, mailboxes, mod_seq).await?;
    if bad && mod_seq {
        // It lists CONDSTORE and does not know HIGHESTMODSEQ.
        return Ok(ask(connection, mailboxes, false).await?.0);
    }
    Ok(states)
}

/// The states, and whether any STATUS was answered BAD.
async fn ask(
    connection: &mut ImapConnection,
    mailboxes: &[Mailbox],
    mod_seq: bool,
) -> Result<(Vec<Option<Snapshot>>, bool), ConnectionLost> {
    let places: HashMap<_, _> = mailboxes.iter().zip(0..).collect();
    let items = items(mod_seq);
    let status = |mailbox| format!("STATUS {} {items}", quoted(mailbox));
    let commands: Vec<_> = mailboxes.iter().map(status).collect();
    let (mut states, mut bad) = (vec![None; mailboxes.len()], false);
    let answered = |number: usize, result: Result<(), CommandRefused>, told: &mut Unsolicited| {
        for (mailbox, state) in told.take_states() {
            // Whatever a server calls it, the answer to a STATUS is about its mailbox.
            let named = mailbox.as_ref().and_then(|mailbox| places.get(mailbox));
            let known: &mut Option<Snapshot> = &mut states[named.copied().unwrap_or(number)];
            *known = Some(merged(&known.unwrap_or_default(), &state));
        }
        if let Err(refused) = result {
            bad |= refused.bad;
            states[number] = None;
        }
    };
    connection.commands(&commands, answered).await?;
    Ok((states, bad))
}
