//! What lasts: reads, marks and rows, subscriptions that change, and what can be seen of them.

use super::*;

#[test]
fn a_database_that_fails_loses_nothing_and_does_not_delay_what_is_known() {
    let mut sim = Simulation::with([phone("a")]);
    sim.database = false;
    sim.mail("INBOX", 7);
    let fails = ["0 read fails", "0.5 read fails", "1.5 read fails"];
    assert_eq!(sim.until(2.0), fails);
    sim.change("Notes", ChangeKind::NewMail, None);
    sim.database = true;
    let done = ["3.5 push a INBOX+Notes", "3.5 accepted a INBOX+Notes", "3.5 told INBOX 7"];
    assert_eq!(sim.until(4.0), done);

    // Writing fails: the push goes all the same, and only the newest of a row is kept.
    sim.until(20.0);
    sim.mail("INBOX", 8);
    sim.service = None;
    assert_eq!(sim.until(20.0), ["20 push a INBOX"]);
    sim.database = false;
    sim.answer(accepted());
    sim.service = Some(accepted());
    assert_eq!(sim.until(20.5), ["20 write fails", "20.5 write fails"]);
    sim.database = true;
    sim.mail("INBOX", 9);
    let done = ["21.5 accepted a INBOX", "21.5 told INBOX 8"];
    assert_eq!(sim.until(22.0), done);
    assert_eq!(sim.until(99.0).last().unwrap(), "25 told INBOX 9");
}

#[test]
fn pushes_owed_since_an_earlier_run_are_sent_at_once() {
    let mut owed = phone("a");
    owed.mailboxes[1].1 = true;
    let mut sim = Simulation::with([owed, phone("b")]);
    sim.scheduler.owed(vec![account(), Account::from_login("nobody")], sim.now);
    assert_eq!(sim.until(99.0), ["0 push a Notes", "0 accepted a Notes"]);
    assert!(sim.scheduler.accounts.is_empty());
}

/// The watching side has marked it, so that the user logs in.
#[test]
fn what_others_have_marked_is_pushed_to_a_subscription_that_is_known() {
    let mut sim = Simulation::with([phone("aa")]);
    sim.mail("INBOX", 5);
    let before = sim.until(1.0);
    sim.targets[0].mailboxes[0].1 = true;
    let wanted = WatchEvent::LoginWanted { account: account(), backend: home() };
    sim.scheduler.event(wanted, sim.now);
    let pushed = sim.until(10.0);
    let pushes = |lines: &[String]| lines.iter().filter(|line| line.contains("push")).count();
    assert_eq!((pushes(&before), pushes(&pushed)), (1, 1), "{before:?} {pushed:?}");
    sim.targets[0].mailboxes[0].1 = false;
    assert_eq!(pushes(&sim.until(100.0)), 0, "once");
}

/// A registration has brought the state of a mailbox, and so marked what is owed to the others.
#[test]
fn what_a_registration_has_marked_is_pushed_once() {
    let registered = || WatchEvent::Registered { account: account() };
    let pushes = |lines: &[String]| lines.iter().filter(|line| line.contains("push")).count();
    // Nothing is known of the account, or its other mailbox has been pushed.
    for known in [false, true] {
        let mut sim = Simulation::with([phone("a"), phone("b")]);
        if known {
            sim.mail("Notes", 5);
            assert_eq!(pushes(&sim.until(3.0)), 2);
        }
        sim.targets[0].mailboxes[0].1 = true;
        sim.scheduler.event(registered(), sim.now);
        let pushed = sim.until(100.0);
        assert_eq!(pushes(&pushed), 1, "{pushed:?}");
        assert!(pushed[0].ends_with("push a INBOX"), "{pushed:?}");
    }
    // What is on its way, or has come, takes the mark away.
    let mut sim = Simulation::with([phone("a")]);
    sim.service = None;
    sim.targets[0].mailboxes[0].1 = true;
    sim.mail("INBOX", 5);
    assert_eq!(pushes(&sim.until(1.0)), 1);
    sim.scheduler.event(registered(), sim.now);
    sim.until(2.0);
    sim.answer(accepted());
    sim.scheduler.event(registered(), sim.now);
    assert_eq!(pushes(&sim.until(100.0)), 0);
}

#[test]
fn at_the_end_unsent_pushes_are_marked_as_owed() {
    let mut sim = Simulation::with([phone("a"), phone("b")]);
    sim.service = None;
    sim.quiet("Notes", 3);
    sim.mail("INBOX", 7);
    assert_eq!(sim.until(1.0), ["0 push a INBOX+Notes", "0 push b INBOX+Notes"]);
    sim.answer(accepted());
    sim.quiet("Notes", 4);
    sim.change("INBOX", ChangeKind::NewMail, None);
    assert_eq!(sim.until(2.0), ["1 accepted a INBOX+Notes"]);
    let mut lines = sim.end();
    lines.sort();
    // Nobody knows the state of INBOX, so its row stays as it is.
    assert_eq!(
        lines,
        ["owed a INBOX", "owed a Notes", "owed b INBOX", "owed b Notes", "told Notes 4"]
    );
}

#[test]
fn a_subscription_is_read_again_before_it_is_pushed_late() {
    let mut sim = Simulation::with([phone("a"), phone("b")]);
    sim.service = Some(refused());
    sim.mail("INBOX", 7);
    sim.until(1.0);
    // One registers with other options, the other is taken away.
    sim.targets = vec![phone("a")];
    sim.targets[0].subscription.options = "NEW".into();
    sim.service = None;
    assert_eq!(sim.until(60.0), ["60 push a INBOX"]);
    let state = &sim.scheduler.accounts[&account()];
    let known = &state.subscriptions[0].subscription.options;
    assert_eq!((state.subscriptions.len(), &**known), (1, "NEW"));
}

#[test]
fn a_mailbox_that_is_no_longer_registered_holds_up_nothing() {
    let mut sim = Simulation::with([phone("a")]);
    sim.quiet("Notes", 3);
    sim.until(1.0);
    sim.targets[0].mailboxes.truncate(1);
    sim.quiet("INBOX", 7);
    assert_eq!(sim.until(1.0), ["1 told Notes 3"]);
}

#[test]
fn many_mailboxes_go_in_several_pushes() {
    let mut target = phone("a");
    target.mailboxes = (0..150).map(|n| (Mailbox::new(&format!("{n:03}")), false)).collect();
    let mut sim = Simulation::with([target]);
    for n in 0..150 {
        sim.mail(&format!("{n:03}"), 1);
    }
    let pushes: Vec<_> = sim.until(99.0).into_iter().filter(|line| line.contains("push")).collect();
    let named = |line: &String| line.matches('+').count() + 1;
    assert_eq!(pushes.iter().map(named).collect::<Vec<_>>(), [100, 50]);
    assert!(pushes[1].starts_with("5 "), "{pushes:?}");
}

#[test]
fn no_more_are_under_way_than_may_be() {
    let mut sim = Simulation::with((0xa0..0xaa).map(|n| phone(&format!("{n:x}f"))));
    sim.scheduler.routes([route(ROUTE, 3)], sim.now, NOW);
    sim.service = None;
    sim.mail("INBOX", 7);
    assert_eq!(sim.until(1.0).len(), 3);
    sim.answer(accepted());
    assert_eq!(sim.until(1.0).iter().filter(|line| line.contains("push")).count(), 1);
}

#[test]
fn events_are_not_taken_in_without_end_while_nobody_can_be_read() {
    let mut sim = Simulation::with([]);
    sim.database = false;
    let mut taken = 0;
    while sim.scheduler.takes_events() {
        let account = Account::from_login(&format!("user{taken}"));
        sim.change_of(account, "INBOX", ChangeKind::NewMail, Some(state(1)));
        taken += 1;
    }
    assert_eq!(taken, MAX_UNREAD);
    sim.until(0.0);
    assert!(!sim.scheduler.takes_events());
    sim.database = true;
    assert_eq!(sim.until(10.0).iter().filter(|line| line.contains("told")).count(), MAX_UNREAD);
    assert!(sim.scheduler.takes_events() && sim.scheduler.accounts.is_empty());
}

#[test]
fn events_that_are_not_chosen_move_the_row_and_push_nothing() {
    for (new_mail, quiet, pushes) in [(true, false, 1), (false, true, 1), (true, true, 1)] {
        let mut sim = Simulation::with([phone("a")]);
        sim.scheduler.rules.events = Events { new_mail, quiet };
        sim.quiet("Notes", 3);
        sim.mail("Notes", 4);
        let lines = sim.until(99.0);
        let pushed = lines.iter().filter(|line| line.contains("push")).count();
        assert_eq!(pushed, pushes, "{new_mail} {quiet}: {lines:?}");
        // Either order: what is not told must not hide what is.
        assert!(lines.last().unwrap().ends_with("told Notes 4"), "{lines:?}");
    }
    let mut sim = Simulation::with([phone("a")]);
    sim.scheduler.rules.events = Events { new_mail: true, quiet: false };
    sim.quiet("Notes", 3);
    assert_eq!(sim.until(99.0), ["0 told Notes 3"]);
    assert!(sim.scheduler.accounts.is_empty());
}

#[test]
fn a_push_names_the_changes_that_it_tells_of() {
    let mut sim = Simulation::with([phone("a")]);
    let first = sim.change("INBOX", ChangeKind::NewMail, Some(state(1)));
    sim.scheduler.next(sim.now);
    sim.scheduler.read(&account(), Some(sim.targets.clone()), sim.now, NOW, NOW);
    let Some(Effect::Send(push)) = sim.scheduler.next(sim.now) else { panic!("no push") };
    assert_eq!(
        push.changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("#{first}")]
    );
    sim.scheduler.answered(&push.subscription, &accepted(), sim.now, NOW, NOW);
    let Some(Effect::Write(batch)) = sim.scheduler.next(sim.now) else { panic!("no write") };
    assert_eq!(batch.changes, push.changes);
    // What could not be written keeps its number.
    sim.scheduler.written(batch, sim.now);
    sim.now += seconds(1.0);
    let Some(Effect::Write(again)) = sim.scheduler.next(sim.now) else { panic!("no write") };
    assert_eq!(again.changes, push.changes);
}

#[test]
fn what_is_pending_for_a_subscription_can_be_seen() {
    let mut sim = Simulation::with([phone("a")]);
    let subscription = sim.targets[0].subscription.clone();
    assert_eq!(sim.scheduler.view(&subscription, sim.now), DeliveryView::default());
    sim.quiet("Notes", 3);
    sim.until(10.0);
    let view = sim.scheduler.view(&subscription, sim.now);
    assert_eq!((view.waiting, view.due_in), (vec![Mailbox::new("Notes")], Some(seconds(20.0))));
    sim.service = None;
    sim.until(31.0);
    assert_eq!(sim.scheduler.view(&subscription, sim.now).under_way, Some(seconds(1.0)));
    sim.answer(accepted());
    assert_eq!(sim.scheduler.view(&subscription, sim.now).too_soon, Some(seconds(4.0)));
    sim.service = Some(down(Some(seconds(60.0))));
    sim.mail("INBOX", 7);
    sim.until(40.0);
    let view = sim.scheduler.view(&subscription, sim.now);
    let expected = (Some(seconds(55.0)), Some(seconds(55.0)), 1);
    assert_eq!((view.shut, view.backs_off, view.failures), expected);
}

#[test]
fn what_a_subscription_is_not_to_get_any_more_is_not_pushed_when_its_time_comes() {
    let mut sim = Simulation::with([phone("a"), phone("b"), phone("c")]);
    sim.quiet("INBOX", 2);
    sim.quiet("Notes", 3);
    assert!(sim.until(20.0).is_empty());
    // One drops a mailbox and has other options, one drops all that it waits for, one is gone.
    sim.targets[0].mailboxes.truncate(1);
    sim.targets[0].subscription.options = "NEW".into();
    sim.targets[1].mailboxes = vec![(Mailbox::new("Sent"), false)];
    sim.targets.truncate(2);
    sim.service = None;
    let lines = sim.until(40.0);
    let pushes: Vec<_> = lines.iter().filter(|line| line.contains("push")).collect();
    assert_eq!(pushes, ["30 push a INBOX"]);
    assert_eq!(&*sim.under_way[0].options, "NEW");
    sim.answer(accepted());
    let mut lines = [lines, sim.until(99.0)].concat();
    lines.retain(|line| !line.contains("push"));
    lines.sort();
    assert_eq!(lines, ["30 told Notes 3", "40 accepted a INBOX", "40 told INBOX 2"]);
    assert!(sim.scheduler.accounts.is_empty());
}

#[test]
fn what_was_accepted_under_options_that_were_replaced_meanwhile_is_pushed_again() {
    let mut sim = Simulation::with([phone("a")]);
    sim.service = None;
    sim.mail("INBOX", 7);
    sim.mail("Notes", 3);
    assert_eq!(sim.until(0.0), ["0 push a INBOX+Notes"]);
    sim.targets[0].subscription.options = "NEW".into();
    sim.targets[0].mailboxes.truncate(1);
    sim.scheduler.owed(vec![account()], sim.now);
    sim.until(1.0);
    sim.answer(accepted());
    let lines = sim.until(20.0);
    assert!(lines.contains(&"5 push a INBOX".to_owned()), "{lines:?}");
    assert_eq!(&*sim.under_way[0].options, "NEW");
    sim.answer(accepted());
    assert_eq!(sim.until(99.0), ["20 accepted a INBOX", "20 told INBOX 7"]);
}

#[test]
fn a_push_says_of_each_mailbox_what_changed_and_its_state() {
    let mut sim = Simulation::with([phone("a")]);
    let told = |sim: &mut Simulation| -> Vec<_> {
        let mut effect = sim.scheduler.next(sim.now);
        if let Some(Effect::Read(account)) = effect {
            sim.scheduler.read(&account, Some(sim.targets.clone()), sim.now, NOW, NOW);
            effect = sim.scheduler.next(sim.now);
        }
        let Some(Effect::Send(push)) = effect else { panic!("no push: {effect:?}") };
        sim.scheduler.answered(&push.subscription, &accepted(), sim.now, NOW, NOW);
        let told = |it: MailboxChange| (it.mailbox.to_string(), it.kind, it.state.uid_next);
        push.mailboxes.into_iter().map(told).collect()
    };
    let inbox = |kind, uid_next| ("INBOX".to_owned(), kind, uid_next);
    // Both kinds, and the newest state of each.
    sim.quiet("Notes", 3);
    sim.quiet("Notes", 4);
    sim.mail("INBOX", 7);
    let notes = ("Notes".to_owned(), ChangeKind::Quiet, Some(4));
    assert_eq!(told(&mut sim), [inbox(ChangeKind::NewMail, Some(7)), notes]);
    // An announcement goes without its state; one that waits learns it.
    sim.until(100.0);
    let announced = sim.change("INBOX", ChangeKind::NewMail, None);
    assert_eq!(told(&mut sim), [inbox(ChangeKind::NewMail, None)]);
    sim.confirm(announced, 8);
    let announced = sim.change("INBOX", ChangeKind::NewMail, None);
    sim.until(101.0);
    sim.confirm(announced, 9);
    // What matters less, and comes later, hides nothing.
    sim.quiet("INBOX", 10);
    sim.until(104.0);
    sim.now = sim.start + seconds(105.0);
    assert_eq!(told(&mut sim), [inbox(ChangeKind::NewMail, Some(10))]);
    // Of a mark that is on disk nothing is known but that it is there.
    let mut sim = Simulation::with([phone("a")]);
    sim.targets[0].mailboxes[0].1 = true;
    sim.scheduler.owed(vec![account()], sim.now);
    assert_eq!(told(&mut sim), [inbox(ChangeKind::NewMail, None)]);
}

#[test]
fn a_registration_for_which_no_push_can_be_written_is_left_alone_and_no_other() {
    let unusable = Verdict::Unrenderable { why: "its options cannot be read".into() };
    let logins: Vec<_> = (0..20).map(|n| Account::from_login(&format!("u{n}"))).collect();
    let broken = logins.iter().enumerate().map(|(n, of)| phone_of(of, &format!("{n:02x}f")));
    let mut sim = Simulation::with(broken.chain([phone("a11ce")]));
    sim.service = Some(unusable);
    for login in &logins {
        sim.change_of(login.clone(), "INBOX", ChangeKind::NewMail, Some(state(7)));
    }
    assert_eq!(sim.pushes_until(1.0).len(), 20, "each is tried, and none for the others");
    sim.service = Some(accepted());
    sim.mail("INBOX", 7);
    assert_eq!(sim.pushes_until(1.0), ["1 push a11ce INBOX"]);
    // It registers anew, and is well.
    sim.targets[3].registered_at.0 += 1;
    sim.scheduler.event(WatchEvent::Registered { account: logins[3].clone() }, sim.now);
    assert_eq!(sim.pushes_until(2.0), ["1 push 03f INBOX"]);
    // While one push tries the route, one that cannot be written tries nothing.
    sim.service = Some(down(None));
    sim.mail("INBOX", 8);
    sim.until(6.5);
    sim.service = Some(Verdict::Unrenderable { why: String::new() });
    sim.until(7.5);
    assert!(sim.scheduler.view(&sim.targets[20].subscription, sim.now).shut.is_some());
}

#[test]
fn options_that_change_nothing_of_what_is_sent_cost_no_push() {
    for (options, pushes) in [("SAME as before", 0), ("OTHER", 1)] {
        let mut sim = Simulation::with([phone("a")]);
        sim.targets[0].subscription.options = "SAME".into();
        sim.mail("INBOX", 7);
        assert_eq!(sim.pushes_until(1.0).len(), 1);
        sim.targets[0].subscription.options = options.into();
        sim.scheduler.event(WatchEvent::Registered { account: account() }, sim.now);
        assert_eq!(sim.pushes_until(20.0).len(), pushes, "{options}");
    }
}
