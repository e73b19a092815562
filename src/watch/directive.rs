//! What the supervisor tells a watcher, and the channel by which it does.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::model::AcceptedLogin;

/// What the supervisor last told a watcher. Told again unchanged, other backends may be in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Directive {
    /// Counts registrations: another one means that other mailboxes may be wanted.
    pub(super) registrations: u64,
    /// What a backend last accepted here; `None` where nothing was, or where a master watches.
    pub(super) login: Option<Box<AcceptedLogin>>,
    /// Counts logins here.
    pub(super) logins: u64,
    /// Counts logins at other nodes, which store what those bring.
    pub(super) logins_elsewhere: u64,
    /// Counts times after which logins at other nodes may have been missed.
    pub(super) logins_missed: u64,
    /// Counts what has all mailboxes of an account on demand looked at.
    pub(super) looks: u64,
    /// No device is left, or the program ends.
    pub(super) stop: bool,
}

/// Tells one watcher the newest [`Directive`]. The watcher stops when this is dropped. There may be one for each account:
/// a channel of tokio's would take 400 bytes in place of 120.
#[derive(Debug)]
pub(super) struct DirectiveSender(Arc<DirectiveCell>);

/// Hears of each change of a [`Directive`], but of several at once only that there was one.
#[derive(Clone, Debug)]
pub(super) struct DirectiveReceiver {
    shared: Arc<DirectiveCell>,
    /// The version that is known here.
    seen: u32,
}

#[derive(Debug)]
struct DirectiveCell {
    told: Mutex<VersionedDirective>,
    changed: Notify,
}

#[derive(Debug)]
struct VersionedDirective {
    directive: Directive,
    /// Counts changes, and wraps around.
    version: u32,
}

/// A channel that begins with this.
pub(super) fn directive_channel(directive: Directive) -> (DirectiveSender, DirectiveReceiver) {
    let told = Mutex::new(VersionedDirective { directive, version: 0 });
    let sender = DirectiveSender(Arc::new(DirectiveCell { told, changed: Notify::new() }));
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl Default for DirectiveSender {
    fn default() -> Self {
        directive_channel(Directive::default()).0
    }
}

impl DirectiveSender {
    /// Changes what the watcher is to know, and wakes it, also where that is as before.
    pub(super) fn send_modify(&self, change: impl FnOnce(&mut Directive)) {
        let mut told = self.0.told.lock();
        change(&mut told.directive);
        told.version = told.version.wrapping_add(1);
        drop(told);
        self.0.changed.notify_waiters();
    }

    /// A receiver that has seen what was last told.
    pub(super) fn subscribe(&self) -> DirectiveReceiver {
        let seen = self.0.told.lock().version;
        DirectiveReceiver { shared: Arc::clone(&self.0), seen }
    }

    /// Reads something of what was last told.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Directive) -> T) -> T {
        read(&self.0.told.lock().directive)
    }

    /// Whether there is no receiver any more.
    pub(super) fn is_closed(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Drop for DirectiveSender {
    fn drop(&mut self) {
        self.send_modify(|directive| directive.stop = true);
    }
}

impl DirectiveReceiver {
    /// Reads something of what was last told. That does not mark it as seen.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Directive) -> T) -> T {
        read(&self.shared.told.lock().directive)
    }

    /// Whether the watcher is to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.read(|directive| directive.stop)
    }

    /// Returns what was last told, and marks it as seen.
    pub(super) fn take(&mut self) -> Directive {
        let told = self.shared.told.lock();
        self.seen = told.version;
        told.directive.clone()
    }

    /// Marks what was last told as not seen.
    pub(super) fn mark_changed(&mut self) {
        self.seen = self.shared.told.lock().version.wrapping_sub(1);
    }

    /// Waits for a change that is not seen, and marks it as seen.
    pub(super) async fn changed(&mut self) {
        loop {
            // Made before the look, it hears of each change since.
            let changed = self.shared.changed.notified();
            let version = self.shared.told.lock().version;
            if version != self.seen {
                self.seen = version;
                return;
            }
            changed.await;
        }
    }

    /// Waits until `is_so` holds of what was last told; returns at once where it does. It marks nothing as seen.
    pub(super) async fn wait_until(&self, mut is_so: impl FnMut(&Directive) -> bool) {
        loop {
            let changed = self.shared.changed.notified();
            if is_so(&self.shared.told.lock().directive) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the watcher is to stop, as it is also when the supervisor is gone.
    pub(super) async fn stopped(&self) {
        self.wait_until(|directive| directive.stop).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_change_is_heard_once_and_several_are_one() {
        let (sender, mut receiver) = directive_channel(Directive::default());
        assert!(receiver.changed().now_or_never().is_none(), "what it begins with is no change");
        sender.send_modify(|directive| directive.looks = 1);
        sender.send_modify(|directive| directive.looks = 2);
        let mut other = receiver.clone();
        assert!(receiver.changed().now_or_never().is_some());
        assert!(receiver.changed().now_or_never().is_none());
        assert_eq!(receiver.read(|directive| directive.looks), 2);
        assert!(other.changed().now_or_never().is_some(), "each hears of it by itself");
        assert!(sender.subscribe().changed().now_or_never().is_none());
    }

    #[test]
    fn what_is_told_while_one_waits_is_heard() {
        let (sender, mut receiver) = directive_channel(Directive::default());
        let mut changed = Box::pin(receiver.changed());
        assert!(changed.as_mut().now_or_never().is_none());
        sender.send_modify(|_| {});
        assert!(changed.as_mut().now_or_never().is_some(), "also where it is as before");
        drop(changed);
        let waits = receiver.clone();
        let mut stopped = Box::pin(waits.stopped());
        assert!(stopped.as_mut().now_or_never().is_none());
        sender.send_modify(|directive| directive.looks = 1);
        assert!(stopped.as_mut().now_or_never().is_none());
        sender.send_modify(|directive| directive.stop = true);
        assert!(stopped.as_mut().now_or_never().is_some());
        assert!(receiver.changed().now_or_never().is_some(), "to wait for it is not to see it");
    }

    #[test]
    fn what_was_taken_is_seen_until_it_is_marked() {
        let (sender, mut receiver) = directive_channel(Directive::default());
        receiver.mark_changed();
        assert!(receiver.changed().now_or_never().is_some());
        sender.send_modify(|directive| directive.registrations = 7);
        assert_eq!(receiver.take().registrations, 7);
        assert!(receiver.changed().now_or_never().is_none());
        receiver.mark_changed();
        assert!(receiver.changed().now_or_never().is_some());
    }

    #[test]
    fn an_end_of_either_side_is_known_to_the_other() {
        let (sender, mut receiver) = directive_channel(Directive::default());
        let second = receiver.clone();
        drop(second);
        assert!(!sender.is_closed());
        let mut changed = Box::pin(receiver.changed());
        assert!(changed.as_mut().now_or_never().is_none());
        drop(sender);
        assert!(changed.as_mut().now_or_never().is_some());
        drop(changed);
        assert!(receiver.is_stopped() && receiver.stopped().now_or_never().is_some());
        let (sender, receiver) = directive_channel(Directive::default());
        drop(receiver);
        assert!(sender.is_closed());
    }
}
