//! How long a session waits for a word of its backend or the database, and for a peer to take bytes.

use std::task::{Context as Poller, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::super::ended::Ended;
use super::SessionTask;
use crate::imap::contract::Awaited;
use crate::model::seconds;

/// For a registration to be written before its session's other commands go on. It is answered when that
/// is known.
const STORED: Duration = Duration::from_secs(1);

impl SessionTask {
    /// Ready when the backend, or the database, has held up the client for too long, and does so no
    /// more.
    pub(super) fn poll_awaited(&mut self, cx: &mut Poller<'_>) -> Poll<()> {
        let heard = std::mem::take(&mut self.duplex.heard);
        let Some(now) = self.session.awaited() else {
            self.awaited = None;
            return Poll::Pending;
        };
        let limit = match now {
            Awaited::Stored(_) => STORED,
            _ => self.context.limits.answer_timeout,
        };
        let arm = || (now, Box::pin(tokio::time::sleep(limit)));
        let (awaited, timer) = self.awaited.get_or_insert_with(arm);
        // What the backend has said is not read while the client has yet to take what it said before.
        let of_backend = matches!(now, Awaited::Turn | Awaited::Answer(_));
        let behind = of_backend && self.duplex.is_client_behind();
        if *awaited != now || (heard && now == Awaited::Turn) || behind {
            *awaited = now;
            timer.as_mut().reset(Instant::now() + limit);
        }
        ready!(timer.as_mut().poll(cx));
        self.awaited = None;
        if let Awaited::Stored(_) = now {
            self.session.overdue();
            return Poll::Ready(());
        }
        let backend = self.chosen.name();
        if self.context.counters.answer_timeout.hit() && now != Awaited::Login {
            let account = self.account();
            let account = account.map_or_else(|| "?".to_owned(), |account| account.to_string());
            tracing::warn!(
                target: "mailchime::proxy::answer_timeout_reached",
                backend,
                account,
                limit_seconds = seconds(limit),
                "[limits] answer_timeout is reached; the backend does not answer, and the client's \
                 session goes on"
            );
        }
        if now == Awaited::Login {
            self.unanswered(format!("no answer within {limit:?}"));
        }
        self.unanswered_mailbox();
        self.session.overdue();
        Poll::Ready(())
    }

    /// The backend has hung up, or said nothing for too long: what it was asked for is not asked again
    /// in a session of this account.
    pub(super) fn unanswered_mailbox(&self) {
        if let (Some(account), Some(mailbox)) = (&self.account, self.session.asked()) {
            let backend = self.chosen.name();
            tracing::warn!(
                target: "mailchime::proxy::mailbox_unanswered",
                %account, %mailbox, backend,
                "the backend closed the connection, or did not answer, when asked for this \
                 mailbox; for a day mailchime does not ask for it when this account registers. See \
                 the backend's log"
            );
            self.context.unanswered.add(account, mailbox, Instant::now());
        }
    }

    pub(super) fn poll_stall(&mut self, cx: &mut Poller<'_>, stalled: bool) -> Poll<Option<Ended>> {
        // A peer that takes bytes slowly still takes them.
        if self.duplex.has_taken() {
            self.stalled = None;
        }
        if !stalled {
            self.stalled = None;
            return Poll::Pending;
        }
        let write_timeout = self.context.limits.write_timeout;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_timeout)));
        ready!(timer.as_mut().poll(cx));
        self.context.counters.write_timeout.hit();
        Poll::Ready(Some(Ended::Fault(format!("a peer took no bytes for {write_timeout:?}"))))
    }
}
