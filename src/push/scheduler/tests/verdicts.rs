//! What follows from each answer of the service.

use super::*;

#[test]
fn an_outage_is_marked_the_row_moves_and_one_push_after_another_tries() {
    let bob = Account::from_login("bob");
    let mut sim = Simulation::with([phone("a"), phone_of(&bob, "b")]);
    sim.service = Some(down(None));
    sim.mail("INBOX", 7);
    let done = ["0 push a INBOX", "0 owed a INBOX", "0 told INBOX 7"];
    assert_eq!(sim.until(0.5), done);
    // The breaker is shut for everybody.
    sim.change_of(bob, "INBOX", ChangeKind::NewMail, Some(state(3)));
    assert!(sim.until(0.9).is_empty());
    let done = ["1 push b INBOX", "1 owed b INBOX", "1 told INBOX 3", "3 push a INBOX"];
    assert_eq!(sim.until(4.0)[..], done, "a wait that grows, and no mark twice");
    // A change during the outage is covered by the mark that is there.
    sim.mail("INBOX", 8);
    assert_eq!(sim.until(4.5), ["4 told INBOX 8"]);
    sim.service = Some(accepted());
    let done = ["7 push b INBOX", "7 push a INBOX", "7 accepted a INBOX", "7 accepted b INBOX"];
    let mut lines = sim.until(99.0);
    lines[2..].sort();
    lines[..2].sort_by_key(|line| line.contains(" a "));
    assert_eq!(lines, done);
    assert!(sim.scheduler.accounts.is_empty());
}

#[test]
fn one_subscription_whose_pushes_fail_delays_no_other() {
    let bob = Account::from_login("bob");
    let mut sim = Simulation::with([phone("a"), phone_of(&bob, "b")]);
    sim.failing = vec!["a"];
    let mut pushes = Vec::new();
    for n in 0..30 {
        sim.mail("INBOX", n);
        sim.change_of(bob.clone(), "INBOX", ChangeKind::NewMail, Some(state(n)));
        pushes.extend(sim.until(10.0 * n as f64 + 9.0));
        sim.now = sim.start + seconds(10.0 * n as f64 + 10.0);
    }
    let of = |name: &str| -> Vec<String> {
        pushes.iter().filter(|line| line.contains(&format!("push {name} "))).cloned().collect()
    };
    let at_once: Vec<_> = (0..30).map(|n| format!("{} push b INBOX", n * 10)).collect();
    assert_eq!(of("b"), at_once);
    assert!((5..12).contains(&of("a").len()), "it is left alone for longer and longer: {pushes:?}");
}

#[test]
fn the_wait_in_an_outage_has_a_cap_and_what_the_service_asks_for_counts() {
    let mut sim = Simulation::with([phone("a")]);
    sim.service = Some(unavailable());
    sim.mail("INBOX", 7);
    let pushes: Vec<_> =
        sim.until(1200.0).into_iter().filter(|line| line.contains("push")).collect();
    let at = |n: f64| format!("{n} push a INBOX");
    let times = [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 127.0, 255.0, 511.0, 811.0, 1111.0];
    assert_eq!(pushes, times.map(at));

    sim.service = Some(down(Some(seconds(900.0))));
    assert_eq!(sim.until(1411.0), ["1411 push a INBOX"]);
    sim.service = Some(accepted());
    assert_eq!(sim.until(2310.0), Vec::<String>::new());
    assert_eq!(sim.until(2400.0), ["2311 push a INBOX", "2311 accepted a INBOX"]);
}

#[test]
fn an_endpoint_that_is_gone_loses_its_row_only_if_that_is_older() {
    let mut sim = Simulation::with([phone("a")]);
    for (since, removed) in [
        (None, true),
        (Some(Timestamp(REGISTERED.0 + 1)), true),
        (Some(REGISTERED), true),
        (Some(Timestamp(REGISTERED.0 - 1)), false),
    ] {
        sim.service = Some(Verdict::Gone { since });
        sim.mail("INBOX", 7);
        let what = if removed { "remove a" } else { "owed a INBOX" };
        let lines = sim.until(sim.now.duration_since(sim.start).as_secs_f64() + 20.0);
        assert!(lines.iter().any(|line| line.ends_with(what)), "{since:?}: {lines:?}");
        assert!(lines.iter().any(|line| line.ends_with("told INBOX 7")), "{lines:?}");
        assert_eq!(sim.scheduler.accounts.is_empty(), removed);
    }
}

#[test]
fn a_bad_token_is_removed_unless_most_tokens_are_called_bad() {
    let renewed = |name: &str| Target { heard_at: NOW.minus(SILENCE), ..phone(name) };
    let mut sim = Simulation::with(["a", "b", "c"].map(renewed));
    sim.service = None;
    sim.mail("INBOX", 7);
    assert_eq!(sim.until(1.0).len(), 3);
    sim.answer(accepted());
    sim.answer(accepted());
    sim.answer(Verdict::BadEndpoint);
    let told = ["1 accepted a INBOX", "1 accepted b INBOX", "1 owed c INBOX", "1 told INBOX 7"];
    assert_eq!(sim.until(10.0), [&told[..], &["1 remove c"]].concat());

    // Somebody puts in a certificate of the wrong environment.
    sim.targets = (0xd0..0xe0).map(|n| renewed(&format!("{n:x}f"))).collect();
    sim.service = Some(Verdict::BadEndpoint);
    sim.mail("INBOX", 8);
    let lines = sim.until(11.0);
    let count = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(count("push"), 16, "{lines:?}");
    // 3 of 6 answers are half of them, 4 of 7 are most.
    assert_eq!((count("remove"), count("owed"), count("told INBOX 8")), (1, 16, 1), "{lines:?}");
}

#[test]
fn the_only_phone_of_all_is_removed_too() {
    // It was good, and is not any more.
    let renewed = Target { heard_at: NOW, ..phone("a") };
    let mut sim = Simulation::with([renewed.clone()]);
    sim.mail("INBOX", 7);
    sim.until(9.0);
    sim.service = Some(Verdict::BadEndpoint);
    sim.mail("INBOX", 8);
    let done = ["9 push a INBOX", "9 owed a INBOX", "9 told INBOX 8", "9 remove a"];
    assert_eq!(sim.until(10.0), done);

    // Nothing is known of it: perhaps the certificate is wrong. It registers again if it lives.
    let mut sim = Simulation::with([renewed]);
    sim.service = Some(Verdict::BadEndpoint);
    sim.mail("INBOX", 7);
    assert_eq!(sim.until(9.0), ["0 push a INBOX", "0 owed a INBOX", "0 told INBOX 7"]);
    sim.targets[0].heard_at = NOW.minus(SILENCE).minus(seconds(1.0));
    let lines = sim.until(9999.0);
    assert_eq!(lines.last().unwrap().split_once(' ').unwrap().1, "remove a", "{lines:?}");
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn a_tenant_with_many_accounts_delays_no_other() {
    let of = |login: &str, name: &str| phone_of(&Account::from_login(login), name);
    let crowd = (0..40).flat_map(|number| {
        let login = format!("m{number}@tenant.example");
        (0..5).map(move |subscription| of(&login, &format!("{number:02x}{subscription}f")))
    });
    let mut sim = Simulation::with(crowd.chain([of("alice@example.org", "a11ce")]));
    sim.scheduler.routes([route(ROUTE, 2)], sim.now, NOW);
    sim.service = None;
    for number in 0..40 {
        let account = Account::from_login(&format!("m{number}@tenant.example"));
        sim.change_of(account, "INBOX", ChangeKind::NewMail, Some(state(7)));
    }
    assert_eq!(sim.until(1.0).len(), 2);
    let alice = Account::from_login("alice@example.org");
    sim.change_of(alice, "INBOX", ChangeKind::NewMail, Some(state(7)));
    assert!(sim.until(1.0).is_empty());
    sim.answer(accepted());
    sim.answer(accepted());
    let lines = sim.until(1.0);
    let pushes: Vec<_> = lines.iter().filter(|line| line.contains("push")).collect();
    assert!(pushes.len() == 2 && pushes.contains(&&"1 push a11ce INBOX".to_owned()), "{pushes:?}");
}

#[test]
fn a_subscription_under_many_accounts_is_pushed_as_often_as_one_under_few() {
    let of = |login: &str| phone_of(&Account::from_login(login), "a11ce");
    let logins: Vec<_> = (0..20).map(|number| format!("m{number}@tenant.example")).collect();
    let mut sim = Simulation::with(logins.iter().map(|login| of(login)));
    sim.targets.push(of("alice@example.org"));
    let mut pushes = 0;
    for second in 0..22 {
        for login in &logins {
            let account = Account::from_login(login);
            sim.change_of(account, "INBOX", ChangeKind::NewMail, Some(state(second + 10)));
        }
        let lines = sim.until(second as f64 + 0.9);
        pushes += lines.iter().filter(|line| line.contains("push")).count();
    }
    assert_eq!(pushes, 8, "of 100 that one account at a time would be allowed");
    assert!(sim.scheduler.take_held() > 0);
    let alice = Account::from_login("alice@example.org");
    sim.change_of(alice, "INBOX", ChangeKind::NewMail, Some(state(7)));
    let lines = sim.until(22.0);
    assert!(lines.iter().any(|line| line.contains("push a11ce")), "hers is not put off: {lines:?}");
    // All of them have their turn some time.
    let lines = sim.until(22.0 + 25.0 * 5.0);
    assert!(lines.iter().filter(|line| line.contains("told")).count() >= 20, "{lines:?}");
}

#[test]
fn a_token_that_was_bad_twice_waits_until_it_registers_anew() {
    let renewed = Target { heard_at: NOW, ..phone("a") };
    let mut sim = Simulation::with([renewed]);
    sim.service = Some(Verdict::BadEndpoint);
    sim.mail("INBOX", 7);
    let done = ["0 push a INBOX", "0 owed a INBOX", "0 told INBOX 7", "60 push a INBOX"];
    assert_eq!(sim.until(5000.0), done);
    assert!(sim.scheduler.view(&sim.targets[0].subscription, sim.now).suspended);
    sim.mail("INBOX", 8);
    assert_eq!(sim.until(5000.0), ["5000 told INBOX 8"], "what is owed is marked already");
    // It registers, and is looked at within a quarter of an hour.
    sim.targets[0].registered_at.0 += 1;
    sim.service = Some(accepted());
    assert_eq!(sim.until(9000.0), ["5900 push a INBOX", "5900 accepted a INBOX"]);
    assert!(sim.scheduler.accounts.is_empty());

    // One that registers no more is removed after two days.
    sim.service = Some(Verdict::BadEndpoint);
    sim.scheduler.routes([route(ROUTE, 500)], sim.now, NOW);
    sim.mail("INBOX", 9);
    assert_eq!(sim.until(9100.0)[3..], ["9060 push a INBOX"]);
    let late = NOW.plus(SILENCE).plus(seconds(1.0));
    sim.scheduler.owed(vec![account()], sim.now);
    let Some(Effect::Read(of)) = sim.scheduler.next(sim.now) else { panic!("no read") };
    sim.scheduler.read(&of, Some(sim.targets.clone()), sim.now, NOW, late);
    assert_eq!(sim.until(9101.0), ["9100 remove a"]);
}

#[test]
fn a_certificate_of_another_kind_is_tried_with_tokens_that_were_bad_twice() {
    let mut sim = Simulation::with([Target { heard_at: NOW, ..phone("a") }]);
    sim.service = Some(Verdict::BadEndpoint);
    sim.mail("INBOX", 7);
    assert_eq!(sim.until(300.0).len(), 4);
    sim.service = Some(accepted());
    sim.scheduler.routes([route(ROUTE, 500)], sim.now, NOW);
    assert_eq!(sim.until(300.0), ["300 push a INBOX", "300 accepted a INBOX"]);
}

#[test]
fn a_subscription_that_is_removed_elsewhere_gets_no_more_pushes() {
    let mut sim = Simulation::with([phone("a")]);
    sim.mail("INBOX", 7);
    sim.until(1.0);
    sim.mail("INBOX", 8);
    assert!(sim.until(2.0).is_empty(), "too soon after the last");
    sim.targets.clear();
    sim.scheduler.owed(vec![account()], sim.now);
    assert_eq!(sim.until(99.0), ["2 told INBOX 8"]);
}

#[test]
fn a_subscription_that_does_not_take_the_route_is_owed_its_push_until_it_does() {
    let mut sim = Simulation::with([phone("a"), phone("b")]);
    sim.service = None;
    sim.mail("INBOX", 7);
    sim.until(0.0);
    sim.answer(Verdict::OtherRoute);
    sim.answer(accepted());
    assert_eq!(sim.until(1.0), ["0 accepted b INBOX", "0 owed a INBOX", "0 told INBOX 7"]);
    sim.service = Some(Verdict::OtherRoute);
    sim.targets.truncate(1);
    let tries = sim.until(9999.0);
    let at = |n: u32| format!("{n} push a INBOX");
    assert_eq!(tries, [60, 180, 420, 900, 1860, 3780, 7380].map(at));
    // It registers, and is pushed at once.
    sim.targets[0].registered_at.0 += 1;
    sim.service = Some(accepted());
    sim.scheduler.event(WatchEvent::Registered { account: account() }, sim.now);
    assert_eq!(sim.until(9999.0), ["9999 push a INBOX", "9999 accepted a INBOX"]);
}

#[test]
fn what_the_service_says_of_a_registration_that_was_renewed_meanwhile_costs_nothing() {
    for outcome in [Verdict::Gone { since: None }, Verdict::BadEndpoint, Verdict::OtherRoute] {
        let mut sim = Simulation::with([phone("a")]);
        sim.service = None;
        sim.mail("INBOX", 7);
        sim.until(0.0);
        sim.targets[0].registered_at.0 += 1;
        sim.scheduler.event(WatchEvent::Registered { account: account() }, sim.now);
        sim.until(0.5);
        sim.answer(outcome.clone());
        let lines = sim.until(1.5);
        assert_eq!(lines, ["0.5 owed a INBOX", "0.5 told INBOX 7", "1.5 push a INBOX"]);
        sim.answer(accepted());
        assert_eq!(sim.until(99.0), ["1.5 accepted a INBOX"], "{outcome:?}");
    }
}

#[test]
fn a_push_goes_by_a_registration_that_came_while_its_account_was_read() {
    let mut sim = Simulation::with([phone("a")]);
    sim.mail("INBOX", 7);
    let Some(Effect::Read(of)) = sim.scheduler.next(sim.now) else { panic!("no read") };
    let before = sim.targets.clone();
    sim.targets[0].subscription.options = "NEW".into();
    sim.scheduler.event(WatchEvent::Registered { account: account() }, sim.now);
    sim.scheduler.read(&of, Some(before), sim.now, NOW, NOW);
    sim.service = None;
    assert_eq!(sim.until(0.0), ["0 push a INBOX"]);
    assert_eq!(&*sim.under_way[0].options, "NEW");
}

#[test]
fn a_turn_that_cannot_be_used_goes_to_others() {
    let bob = Account::from_login("bob");
    let mut sim = Simulation::with([phone("a"), phone_of(&bob, "b")]);
    sim.scheduler.routes([route(ROUTE, 1)], sim.now, NOW);
    sim.quiet("INBOX", 2);
    sim.change_of(bob.clone(), "INBOX", ChangeKind::Quiet, Some(state(2)));
    sim.until(10.0);
    // Each way in which there is nothing to push when it is a subscription's turn.
    sim.targets.remove(0);
    sim.database = false;
    assert_eq!(
        sim.until(31.0),
        ["30 read fails", "30 read fails", "30.5 read fails", "30.5 read fails"]
    );
    sim.database = true;
    let lines = sim.until(40.0);
    assert_eq!(lines.iter().filter(|line| line.contains("push b")).count(), 1, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains("told")).count(), 2, "{lines:?}");
    assert_eq!(sim.scheduler.to_push(), 0);
}

#[test]
fn who_says_too_many_without_a_time_is_left_alone_for_a_minute_at_least() {
    let mut sim = Simulation::with([phone("a")]);
    sim.scheduler.rules.chance = || 0.0;
    sim.service = Some(Verdict::TooMany { retry_after: None });
    sim.mail("INBOX", 7);
    sim.until(0.0);
    sim.service = Some(accepted());
    assert_eq!(sim.pushes_until(59.0), [""; 0]);
    assert_eq!(sim.pushes_until(61.0), ["60 push a INBOX"]);
}

#[test]
fn too_many_pushes_pause_that_subscription_and_keep_its_mark() {
    let mut sim = Simulation::with([phone("a"), phone("b")]);
    sim.service = None;
    sim.mail("INBOX", 7);
    sim.until(0.0);
    sim.answer(Verdict::TooMany { retry_after: None });
    sim.answer(accepted());
    let done = ["0 accepted b INBOX", "0 owed a INBOX", "0 told INBOX 7"];
    assert_eq!(sim.until(10.0), done);
    sim.service = Some(accepted());
    sim.mail("INBOX", 8);
    assert_eq!(sim.until(59.0)[0], "10 push b INBOX");
    assert_eq!(sim.until(99.0), ["60 push a INBOX", "60 accepted a INBOX"]);

    sim.service = Some(Verdict::TooMany { retry_after: Some(seconds(600.0)) });
    sim.mail("INBOX", 9);
    sim.until(100.0);
    sim.service = Some(accepted());
    assert!(sim.until(698.0).is_empty());
    assert_eq!(sim.until(700.0).len(), 4);
}

#[test]
fn a_refusal_keeps_everything_and_is_tried_again_ever_more_slowly() {
    // It may be about that push alone.
    for verdict in [refused(), Verdict::TooLarge] {
        let mut sim = Simulation::with([phone("a"), phone_of(&Account::from_login("bob"), "b")]);
        sim.service = Some(verdict.clone());
        sim.mail("INBOX", 7);
        assert_eq!(sim.until(1.0), ["0 push a INBOX", "0 owed a INBOX", "0 told INBOX 7"]);
        sim.service = None;
        sim.change_of(Account::from_login("bob"), "INBOX", ChangeKind::NewMail, Some(state(1)));
        assert_eq!(sim.until(2.0).len(), 1, "{verdict:?}");
    }
    // When several are refused it is about all: one after the other tries.
    let logins: Vec<_> = (0..20).map(|n| Account::from_login(&format!("u{n}"))).collect();
    let targets: Vec<_> =
        logins.iter().enumerate().map(|(n, of)| phone_of(of, &format!("{n:02x}f"))).collect();
    let mut sim = Simulation::with(targets);
    sim.service = Some(refused());
    for login in &logins {
        sim.change_of(login.clone(), "INBOX", ChangeKind::NewMail, Some(state(7)));
    }
    let tries = |sim: &mut Simulation, until| {
        sim.until(until).iter().filter(|line| line.contains("push")).count()
    };
    assert_eq!(tries(&mut sim, 1.0), 3);
    assert_eq!((tries(&mut sim, 61.0), tries(&mut sim, 1000.0)), (1, 3));
    sim.service = Some(accepted());
    assert!(tries(&mut sim, 2000.0) >= 20 && sim.scheduler.accounts.is_empty());
    let mut sim = Simulation::with([phone("a")]);
    sim.service = Some(refused());
    sim.mail("INBOX", 7);
    let pushes: Vec<_> =
        sim.until(3600.0).into_iter().filter(|line| line.contains("push")).collect();
    let at = |n: u32| format!("{n} push a INBOX");
    assert_eq!(pushes, [0, 60, 180, 420, 900, 1800, 2700, 3600].map(at));
}

#[test]
fn a_subscription_fails_from_its_first_failure_until_a_push_of_it_is_accepted() {
    let mut sim = Simulation::with([phone("a")]);
    sim.shows_failing = true;
    for verdict in [Verdict::TooMany { retry_after: None }, unavailable(), down(None)] {
        sim.service = Some(verdict);
        sim.mail("INBOX", sim.id);
        let lines = sim.until(sim.now.duration_since(sim.start).as_secs_f64() + 400.0);
        assert!(!lines.iter().any(|line| line.contains("failing")), "{lines:?}");
    }
    sim.service = Some(accepted());
    sim.until(3000.0);
    let unfit = Verdict::unrenderable("odd");
    for (at, verdict) in [(3000.0, refused()), (6000.0, Verdict::OtherRoute), (9000.0, unfit)] {
        sim.service = Some(verdict);
        sim.mail("INBOX", sim.id);
        let mut lines = sim.until(at + 1000.0);
        lines.retain(|line| line.contains("failing"));
        assert_eq!(lines, [format!("{at} failing a")], "once");
        sim.service = Some(accepted());
        let lines = sim.until(at + 3000.0);
        assert_eq!(lines.len(), 2, "{lines:?}");
    }
}

/// One by the API, as a browser's is.
#[test]
fn a_subscription_that_nobody_registers_again_is_kept_while_endpoints_are_doubted() {
    let old = NOW.minus(10 * SILENCE);
    let mut sim = Simulation::with([Target { heard_at: old, renews: false, ..phone("a") }]);
    sim.service = Some(Verdict::BadEndpoint);
    sim.mail("INBOX", 7);
    let at = |n: u32| format!("{n} push a INBOX");
    let tries = sim.pushes_until(1000.0);
    assert_eq!(tries, [0, 60, 180, 420, 900].map(at), "it is not left alone for good");
    sim.service = Some(accepted());
    assert_eq!(sim.until(2000.0), ["1800 push a INBOX", "1800 accepted a INBOX"]);

    // It was good, and is not any more.
    sim.service = Some(Verdict::BadEndpoint);
    sim.mail("INBOX", 8);
    assert!(sim.until(2001.0).contains(&"2000 remove a".to_owned()));
}
