//! What mailchime tells systemd (sd_notify(3)). Without systemd, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// Clients can connect; also after [`reloading`].
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again. Units of `Type=notify-reload` wait for [`ready`] then.
pub fn reloading() {
    // Without the time, older versions of systemd are content all the same.
    let now = NotifyState::monotonic_usec_now().ok();
    tell(&[Some(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>());
}

/// The end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Shows systemd that the program lives, where the unit has `WatchdogSec=`: twice in that time, and
/// each time from a task of its own, which only a runtime at work comes to. Never returns.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut interval = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        interval.tick().await;
        // A task that panics tells nothing, which is what it is for.
        let _ = tokio::spawn(async { tell(&[NotifyState::Watchdog]) }).await;
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(
            target: "mailchime::app::systemd_not_notified",
            %error, "could not notify systemd"
        );
    }
}
