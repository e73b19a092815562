//! The one log line that a refused login makes: what programs read that ban guessers.

use std::net::IpAddr;

use crate::model::Account;

/// Logs that a login from `peer` was refused. `account` is whom the client claimed to be; `None`
/// where that was never said.
///
/// The form of the line is a promise: fail2ban and its like read it.
pub(super) fn login_refused(peer: IpAddr, account: Option<&Account>) {
    let account = account.map_or_else(|| "?".to_owned(), ToString::to_string);
    tracing::warn!(%peer, account, "login refused");
}
