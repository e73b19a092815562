//! Mailboxes that do not answer as others do. Pure.
//!
//! A connection that ends, or falls silent, while mailboxes are asked for puts those under suspicion.
//! The next connection asks for each of them by itself, behind all others. The one at which a connection
//! ends again, although others were answered on it, is left out for a time that grows.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::model::{Mailbox, Timestamp};

/// Those of one account.
#[derive(Debug, Default)]
pub(in crate::watch) struct MailboxFaults(BTreeMap<Mailbox, MailboxFault>);

#[derive(Debug, Default)]
struct MailboxFault {
    /// Connections that ended while it was asked for, perhaps among others.
    losses: u32,
    /// How often it was left out for that.
    left_out: u32,
    /// How often in a row its STATUS was refused; nothing else is the matter with it then.
    refused: u32,
    /// It is asked for again then; if that is not said, whenever it is due.
    until: Option<(Instant, Timestamp)>,
    why: String,
}

/// A mailbox that is not watched for now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// The mailbox's name.
    pub mailbox: String,
    /// What the backend said or did.
    pub reason: String,
    /// In milliseconds since 1970; `None` where it is asked for with the other mailboxes.
    pub next_try_at: Option<i64>,
}

impl MailboxFaults {
    /// A connection ended while these were asked for.
    pub(in crate::watch) fn suspect<'a>(&mut self, mailboxes: impl Iterator<Item = &'a Mailbox>) {
        for mailbox in mailboxes {
            let fault = self.0.entry(mailbox.clone()).or_default();
            (fault.losses, fault.refused) = (fault.losses + 1, 0);
        }
    }

    /// How many connections ended while it was asked for.
    pub(in crate::watch) fn losses(&self, mailbox: &Mailbox) -> u32 {
        self.0.get(mailbox).map_or(0, |fault| fault.losses)
    }

    /// Whether there is one under suspicion that is not left out.
    pub(in crate::watch) fn is_suspicious(&self, now: Instant) -> bool {
        self.0.values().any(|fault| fault.losses > 0 && !fault.rests(now))
    }

    /// A connection ended while this mailbox alone was asked for, and others had been answered: it is
    /// left out, once more. Returns how often that was so.
    pub(in crate::watch) fn leave_out(&mut self, mailbox: &Mailbox, why: String) -> u32 {
        let fault = self.0.entry(mailbox.clone()).or_default();
        fault.losses += 1;
        fault.left_out += 1;
        (fault.refused, fault.why) = (0, why);
        fault.left_out
    }

    /// Its STATUS was refused, on a connection that goes on. Returns how often in a row.
    pub(in crate::watch) fn refuse(&mut self, mailbox: &Mailbox, why: String) -> u32 {
        let fault = self.0.entry(mailbox.clone()).or_default();
        *fault = MailboxFault { refused: fault.refused + 1, why, ..MailboxFault::default() };
        fault.refused
    }

    /// It is not asked for until then.
    pub(in crate::watch) fn rest(&mut self, mailbox: &Mailbox, until: Instant, time: Timestamp) {
        if let Some(fault) = self.0.get_mut(mailbox) {
            fault.until = Some((until, time));
        }
    }

    /// It was answered. Returns whether it had not been watched.
    pub(in crate::watch) fn answered(&mut self, mailbox: &Mailbox) -> bool {
        self.0.remove(mailbox).is_some_and(|fault| fault.left_out + fault.refused > 0)
    }

    /// Whether it is left out now.
    pub(in crate::watch) fn rests(&self, mailbox: &Mailbox, now: Instant) -> bool {
        self.0.get(mailbox).is_some_and(|fault| fault.rests(now))
    }

    /// Whether nothing is wrong with it, as far as is known.
    pub(in crate::watch) fn is_sound(&self, mailbox: &Mailbox) -> bool {
        !self.0.contains_key(mailbox)
    }

    /// When the next one is to be asked for again.
    pub(in crate::watch) fn next_try(&self) -> Option<Instant> {
        self.0.values().filter_map(|fault| fault.until).map(|(until, _)| until).min()
    }

    /// Those that are to be asked for again by now; they are no longer left out.
    pub(in crate::watch) fn take_due(&mut self, now: Instant) -> bool {
        let due = self.0.values_mut().filter(|fault| fault.until.is_some() && !fault.rests(now));
        due.map(|fault| fault.until = None).count() > 0
    }

    /// On another connection what was refused is asked for as ever.
    pub(in crate::watch) fn forget_refusals(&mut self) {
        self.0.retain(|_, fault| fault.refused == 0);
    }

    /// The same where a connection does not ask for all mailboxes: what was refused stays known until it is answered.
    pub(in crate::watch) fn ask_refused_again(&mut self) {
        let refused = self.0.values_mut().filter(|fault| fault.refused > 0);
        refused.for_each(|fault| fault.until = None);
    }

    pub(in crate::watch) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Only these mailboxes are of interest.
    pub(in crate::watch) fn retain(&mut self, wanted: impl Fn(&Mailbox) -> bool) {
        self.0.retain(|mailbox, _| wanted(mailbox));
    }

    /// Those that are not watched for now, for people.
    pub(in crate::watch) fn shown(&self) -> Vec<LeftOut> {
        let unwatched =
            self.0.iter().filter(|(_, fault)| fault.refused > 0 || fault.until.is_some());
        unwatched
            .map(|(mailbox, fault)| LeftOut {
                mailbox: mailbox.as_str().to_owned(),
                reason: fault.why.clone(),
                next_try_at: fault.until.map(|(_, time)| time.0),
            })
            .collect()
    }
}

impl MailboxFault {
    fn rests(&self, now: Instant) -> bool {
        self.until.is_some_and(|(until, _)| now < until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_mailbox_is_suspected_left_out_tried_again_and_forgotten() {
        let mut faults = MailboxFaults::default();
        let (inbox, team, now) = (Mailbox::inbox(), Mailbox::new("Team"), Instant::now());
        let minute = Duration::from_secs(60);
        faults.suspect([&inbox, &team].into_iter());
        assert!(faults.is_suspicious(now) && !faults.is_sound(&team));
        assert!(!faults.answered(&inbox), "it was watched all the time");
        assert_eq!((faults.losses(&inbox), faults.losses(&team)), (0, 1));
        assert_eq!((faults.shown(), faults.next_try()), (vec![], None));

        assert_eq!(faults.leave_out(&team, "reset".into()), 1);
        faults.rest(&team, now + minute, Timestamp(5));
        assert!(faults.rests(&team, now) && !faults.is_suspicious(now));
        assert_eq!(faults.next_try(), Some(now + minute));
        let shown =
            LeftOut { mailbox: "Team".into(), reason: "reset".into(), next_try_at: Some(5) };
        assert_eq!(faults.shown(), [shown]);
        assert!(!faults.take_due(now));
        faults.forget_refusals();
        assert!(faults.take_due(now + minute) && !faults.take_due(now + minute));
        assert!(faults.is_suspicious(now + minute), "it is asked for by itself");
        assert_eq!(faults.leave_out(&team, "reset".into()), 2);
        assert!(faults.answered(&team) && faults.is_sound(&team));
    }

    #[test]
    fn what_is_refused_is_shown_until_it_is_answered_or_asked_for_anew() {
        let mut faults = MailboxFaults::default();
        let team = Mailbox::new("Team");
        assert_eq!((faults.refuse(&team, "NO".into()), faults.refuse(&team, "NO".into())), (1, 2));
        assert!(!faults.is_suspicious(Instant::now()) && faults.shown().len() == 1);
        assert!(faults.answered(&team) && !faults.answered(&team));
        faults.refuse(&team, "NO".into());
        faults.forget_refusals();
        assert!(faults.is_sound(&team));
        faults.refuse(&team, "NO".into());
        faults.retain(Mailbox::is_inbox);
        assert!(faults.is_sound(&team));
    }
}
