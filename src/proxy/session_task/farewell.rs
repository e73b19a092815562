//! The end of a session.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::ended::Ended;
use super::SessionTask;

/// For the last words of a session to arrive, and for the client to hang up.
const FAREWELL: Duration = Duration::from_secs(5);

/// For the registrations of a session to be written after its end, once the program stops. Until then each
/// takes as long as the [`Registrar`](crate::registrar::Registrar) lets it wait.
const WRITING_AT_STOP: Duration = Duration::from_secs(5);

impl SessionTask {
    /// Says goodbye where one can be said, and closes both connections in order; that to the backend
    /// only where no login is under way on it.
    pub(in crate::proxy) async fn farewell(&mut self, ended: &Ended) {
        let words: &[u8] = match ended {
            Ended::LoginTimeout => b"* BYE No login in time\r\n",
            Ended::Evicted => b"* BYE [UNAVAILABLE] Too many connections without a login\r\n",
            Ended::Stopped => b"* BYE The server is shutting down\r\n",
            Ended::Closed | Ended::Dismissed | Ended::Fault(_) => b"",
        };
        if self.duplex.backend.as_ref().is_some_and(|backend| backend.inbound.ended) {
            self.unanswered_mailbox();
        }
        self.session.conclude();
        let client = &mut self.duplex.client;
        let mut rest = std::mem::take(&mut self.session.output.to_client);
        // Not into the middle of a response.
        if self.session.at_response_boundary()
            && self.duplex.backend.as_ref().is_none_or(|backend| backend.inbound.forward == 0)
        {
            rest.extend_from_slice(words);
        }
        let (backend, trying) = (&mut self.duplex.backend, self.attempt.is_some());
        let last_words = async {
            poll_fn(|cx| client.poll_write_own(cx, &mut rest)).await?;
            poll_fn(|cx| client.poll_shutdown(cx)).await?;
            // A login that is under way is still to be decided.
            if let Some(backend) = backend
                && !trying
            {
                poll_fn(|cx| backend.poll_shutdown(cx)).await?;
            }
            // A client that still sends would meet a reset, and might lose our last words to it.
            poll_fn(|cx| client.poll_discard(cx)).await
        };
        // A client that does not take them in time or is gone already has no use for them.
        // Where its place was needed nobody waits for one.
        let patience = if matches!(ended, Ended::Evicted) { Duration::ZERO } else { FAREWELL };
        let _: Result<io::Result<()>, _> = tokio::time::timeout(patience, last_words).await;
        self.session.finish().await;
    }

    /// Writes what the session has registered and not heard of, now that it is over: a device that gets no
    /// answer may come back no sooner than in a day. It has its place among the sessions until then, so that
    /// a client that registers and hangs up, again and again, meets the limits of sessions.
    pub(in crate::proxy) async fn finish_registrations(
        mut self: Box<Self>,
        stop: &CancellationToken,
    ) {
        let Some(registering) = self.registering.take() else { return };
        let others = std::mem::take(&mut self.registrations);
        let (registrar, login) = (self.context.registrar.clone(), self.login.take());
        let _permit = self.places.take().map(|(session, _connection)| session);
        // Its sockets, and its place among the connections of the account.
        drop(self);
        let writing = async {
            registering.await;
            for (registration, login) in others.into_iter().flatten().zip(login.iter().cycle()) {
                registrar.clone().register(registration, login.clone()).await;
            }
        };
        unless_stopped(writing, stop).await;
    }
}

/// Waits for `writing`, after `stop` for [`WRITING_AT_STOP`].
async fn unless_stopped(writing: impl Future<Output = ()>, stop: &CancellationToken) {
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(WRITING_AT_STOP).await;
    };
    tokio::select! {
        () = writing => {}
        () = stopped => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Eight registrations, each of which waits a minute for the pace of its account.
    const EIGHT_MINUTES: Duration = Duration::from_secs(8 * 60);

    #[tokio::test(start_paused = true)]
    async fn all_registrations_of_an_ended_session_are_written() {
        let mut written = false;
        let writing = async {
            sleep(EIGHT_MINUTES).await;
            written = true;
        };
        unless_stopped(writing, &CancellationToken::new()).await;
        assert!(written);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_leaves_them_five_seconds() {
        for (takes, expected) in [(4, true), (6, false)] {
            let (stop, mut written) = (CancellationToken::new(), false);
            let minute = Duration::from_secs(60);
            let writing = async {
                sleep(minute + Duration::from_secs(takes)).await;
                written = true;
            };
            let began = Instant::now();
            let stopping = async {
                sleep(minute).await;
                stop.cancel();
            };
            tokio::join!(unless_stopped(writing, &stop), stopping);
            assert_eq!(written, expected, "{takes} s");
            assert_eq!(began.elapsed(), minute + Duration::from_secs(takes.min(5)));
        }
    }
}
