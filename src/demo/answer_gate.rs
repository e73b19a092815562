//! Answers that are held back: a service that is slow.

use tokio::sync::watch;

/// Lets answers through unless it is shut.
#[derive(Debug)]
pub(super) struct AnswerGate(watch::Sender<bool>);

impl Default for AnswerGate {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl AnswerGate {
    /// Shuts it, or opens it again.
    pub(super) fn shut(&self, shut: bool) {
        self.0.send_replace(shut);
    }

    /// Waits until it is open.
    pub(super) async fn open(&self) {
        // The sender is here, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|shut| !shut).await;
    }
}
