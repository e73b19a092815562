//! The end of a session.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::ended::Ended;
use super::SessionTask;

/// For the last words of a session to arrive, and for the client to hang up.
const FAREWELL: Duration = Duration::from_secs(5);

/// For the registrations of a session to be written behind its end.
const WRITING: Duration = Duration::from_secs(60);
/// The same, once the program stops.
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
    /// answer may come back no sooner than in a day.
    pub(in crate::proxy) async fn finish_registrations(
        mut self: Box<Self>,
        stop: &CancellationToken,
    ) {
        let (registering, others) =
            (self.registering.take(), std::mem::take(&mut self.registrations));
        let (registrar, login) = (self.context.registrar.clone(), self.login.take());
        // Its sockets, and its places among the sessions.
        drop(self);
        let Some(registering) = registering else { return };
        let writing = async {
            registering.await;
            for (registration, login) in others.into_iter().flatten().zip(login.iter().cycle()) {
                registrar.clone().register(registration, login.clone()).await;
            }
        };
        let stopped = async {
            stop.cancelled().await;
            tokio::time::sleep(WRITING_AT_STOP).await;
        };
        tokio::select! {
            _ = tokio::time::timeout(WRITING, writing) => {}
            () = stopped => {}
        }
    }
}
