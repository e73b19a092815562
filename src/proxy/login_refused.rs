//! The one log line that a refused login makes: what programs read that ban guessers.

use std::net::IpAddr;

use crate::model::Account;

/// Logs that a login from `peer` was refused. `account` is what the client said of itself; `None` where
/// it said nothing of that.
///
/// docs/install.md promises the form of this line, and `contrib/fail2ban` reads it: the level, the target, the
/// message and the order of the fields stay as they are. In the text form it is
///
/// ```text
/// 2026-01-31T12:00:00.000000Z  WARN mailchime::login: login refused peer=203.0.113.7 account="alice"
/// ```
pub(super) fn login_refused(peer: IpAddr, account: Option<&Account>) {
    let account = account.map_or("?", Account::as_str);
    tracing::warn!(target: "mailchime::login", %peer, account, "login refused");
}
