//! New mail of which the watcher asks for sender and subject: which pushes wait for it, and which carry it.

use super::*;
use crate::model::Preview;

/// Its pushes may say what is known of new mail.
const CARRIES: &str = "second";

/// A browser whose endpoint begins with `name`, beside phones that must not know.
fn browser(name: &str) -> Target {
    let mut browser = phone(name);
    browser.subscription.route = CARRIES.into();
    browser
}

fn simulation(targets: impl IntoIterator<Item = Target>) -> Simulation {
    let mut sim = Simulation::with(targets);
    let (carries, _) = route(CARRIES, 500);
    let stub = Stub { previews: true, ..Stub::default() };
    sim.scheduler.routes([route(ROUTE, 500), (carries, stub.route(500))], sim.start, NOW);
    sim.previews = true;
    sim
}

impl Simulation {
    fn previewed(&mut self, mailbox: &str, sender: Option<&str>, messages: u64) {
        let (account, backend, mailbox) = (account(), home(), Mailbox::new(mailbox));
        let preview = Preview::new(sender, None, messages);
        let event = WatchEvent::Previewed { account, backend, mailbox, preview };
        self.scheduler.event(event, self.now);
    }
}

#[test]
fn who_may_carry_it_waits_for_it_and_nobody_else_does() {
    let mut sim = simulation([phone("a"), browser("b")]);
    let id = sim.change("INBOX", ChangeKind::NewMail, None);
    assert_eq!(sim.until(0.5), ["0 push a INBOX", "0 accepted a INBOX"]);
    sim.confirm(id, 7);
    sim.previewed("INBOX", Some("Bob"), 1);
    let told = ["0.5 push b INBOX: Bob in INBOX, 1", "0.5 accepted b INBOX", "0.5 told INBOX 7"];
    assert_eq!(sim.until(60.0), told);
    assert!(sim.scheduler.accounts.is_empty(), "nothing of a mail is kept");
}

#[test]
fn a_push_goes_without_where_nothing_comes_or_nothing_is_known() {
    let mut sim = simulation([browser("b")]);
    sim.mail("INBOX", 7);
    assert!(sim.until(2.9).is_empty());
    assert_eq!(sim.pushes_until(60.0), ["3 push b INBOX"]);
    // It came too late, and is of no later mail.
    sim.previewed("INBOX", Some("Bob"), 1);
    sim.previews = false;
    sim.mail("INBOX", 8);
    assert_eq!(sim.pushes_until(61.0), ["60 push b INBOX"]);
    sim.previews = true;
    sim.mail("INBOX", 9);
    sim.until(80.0);
    sim.mail("INBOX", 10);
    sim.previewed("INBOX", None, 1);
    assert_eq!(sim.pushes_until(99.0), ["80 push b INBOX"], "nobody waits for what does not come");
}

#[test]
fn it_may_come_before_the_subscriptions_are_read() {
    let mut sim = simulation([phone("a"), browser("b")]);
    sim.database = false;
    sim.mail("INBOX", 7);
    assert_eq!(sim.until(0.1), ["0 read fails"]);
    sim.previewed("INBOX", Some("Bob"), 1);
    sim.database = true;
    assert_eq!(sim.pushes_until(9.0), ["0.5 push a INBOX", "0.5 push b INBOX: Bob in INBOX, 1"]);
}

#[test]
fn of_several_new_mails_the_newest_is_named_and_they_are_counted() {
    let mut sim = simulation([browser("b")]);
    sim.mail("INBOX", 7);
    sim.previewed("INBOX", Some("Bob"), 1);
    assert_eq!(sim.pushes_until(1.0), ["0 push b INBOX: Bob in INBOX, 1"]);
    // The next push waits for its time.
    for (n, sender) in [(8, "Carol"), (9, "Dave")] {
        sim.mail("INBOX", n);
        sim.previewed("INBOX", Some(sender), 2);
        assert!(sim.pushes_until(f64::from(n as u32) / 4.0).is_empty());
    }
    sim.mail("Notes", 3);
    assert_eq!(sim.pushes_until(9.0), ["5 push b INBOX+Notes: Dave in INBOX, 4"]);
    sim.until(20.0);
    sim.mail("INBOX", 10);
    sim.mail("Notes", 4);
    sim.previewed("INBOX", Some("Bob"), 1);
    sim.previewed("Notes", Some("Erin"), 1);
    assert_eq!(sim.pushes_until(30.0), ["20 push b INBOX+Notes: Erin in Notes, 1"]);
}

#[test]
fn other_changes_do_not_put_off_a_push_that_waits_for_it_and_carry_nothing() {
    let mut sim = simulation([browser("b")]);
    sim.mail("INBOX", 7);
    sim.until(1.0);
    sim.quiet("Notes", 3);
    assert_eq!(sim.pushes_until(20.0), ["3 push b INBOX+Notes"]);
    sim.quiet("INBOX", 8);
    sim.previewed("INBOX", Some("Bob"), 1);
    assert_eq!(sim.pushes_until(99.0), ["50 push b INBOX"]);
}

#[test]
fn a_push_that_failed_says_it_again_with_what_came_since() {
    let mut sim = simulation([browser("b")]);
    sim.service = None;
    sim.mail("INBOX", 7);
    sim.previewed("INBOX", Some("Bob"), 1);
    assert_eq!(sim.pushes_until(1.0), ["0 push b INBOX: Bob in INBOX, 1"]);
    sim.mail("INBOX", 8);
    sim.previewed("INBOX", Some("Carol"), 1);
    sim.answer(unavailable());
    assert_eq!(sim.pushes_until(9.0), ["2 push b INBOX: Carol in INBOX, 2"]);
    sim.answer(accepted());
    assert!(sim.pushes_until(99.0).is_empty());
}

#[test]
fn of_an_older_mail_nothing_is_said_when_a_newer_one_is_unknown() {
    let mut sim = simulation([browser("b")]);
    sim.service = None;
    sim.mail("INBOX", 7);
    sim.previewed("INBOX", Some("Bob"), 1);
    assert_eq!(sim.pushes_until(1.0), ["0 push b INBOX: Bob in INBOX, 1"]);
    sim.mail("INBOX", 8);
    sim.previewed("INBOX", None, 1);
    sim.answer(unavailable());
    assert_eq!(sim.pushes_until(9.0), ["2 push b INBOX"]);
    sim.answer(accepted());
    // The same while the push waits for its time.
    sim.mail("INBOX", 9);
    sim.previewed("INBOX", Some("Bob"), 1);
    sim.previewed("INBOX", None, 1);
    assert_eq!(sim.pushes_until(99.0), ["9 push b INBOX"]);
}

#[test]
fn what_is_known_of_a_mail_is_forgotten_when_its_push_fails_for_long() {
    let mut sim = simulation([browser("b")]);
    sim.service = Some(unavailable());
    sim.mail("INBOX", 7);
    sim.previewed("INBOX", Some("Bob"), 1);
    let pushes = sim.pushes_until(3600.0);
    assert!(pushes.iter().any(|push| push.contains("Bob")), "{pushes:?}");
    assert!(pushes.last().is_some_and(|push| !push.contains("Bob")), "{pushes:?}");
}

#[test]
fn a_mailbox_that_was_dropped_is_not_named() {
    let mut sim = simulation([browser("b")]);
    sim.mail("INBOX", 7);
    sim.until(0.5);
    sim.previewed("INBOX", Some("Bob"), 1);
    sim.targets[0].mailboxes.retain(|(mailbox, _)| !mailbox.is_inbox());
    let event = WatchEvent::Registered { account: account() };
    sim.scheduler.event(event, sim.now);
    sim.mail("Notes", 3);
    assert_eq!(sim.pushes_until(9.0), ["3.5 push b Notes"]);
}
