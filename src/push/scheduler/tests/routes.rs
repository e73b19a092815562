//! Routes and their peers: what holds up one holds up no other.

use super::*;

#[test]
fn one_route_that_is_refused_holds_up_no_other() {
    let mut other = phone("b");
    other.subscription.route = "other".into();
    let mut sim = Simulation::with([phone("a"), other.clone()]);
    let both = [ROUTE, "other"].map(|name| route(name, 500));
    sim.scheduler.routes(both, sim.now, NOW);
    sim.service = None;
    sim.mail("INBOX", 7);
    let mut lines = sim.until(0.0);
    lines.sort();
    assert_eq!(lines, ["0 push a INBOX", "0 push b INBOX"]);
    sim.under_way.sort_by_key(|subscription| subscription.route.clone());
    sim.answer(refused());
    sim.answer(accepted());
    sim.service = Some(accepted());
    sim.mail("INBOX", 8);
    assert!(sim.until(59.0).contains(&"5 accepted b INBOX".to_owned()));
    assert_eq!(sim.until(60.0), ["60 push a INBOX", "60 accepted a INBOX"]);
}

#[test]
fn a_new_certificate_is_tried_at_once_and_late_words_about_the_old_one_count_no_more() {
    let mut sim = Simulation::with([phone("a"), phone("b")]);
    sim.service = None;
    sim.mail("INBOX", 7);
    sim.until(0.0);
    sim.answer(refused());
    assert_eq!(sim.until(9.0), ["0 owed a INBOX"]);
    sim.scheduler.routes([route(ROUTE, 500)], sim.now, NOW);
    assert_eq!(sim.until(9.0), ["9 push a INBOX"]);
    // This was sent under the old one.
    sim.answer(refused());
    sim.answer(accepted());
    sim.mail("INBOX", 8);
    let lines = sim.until(14.0);
    assert!(lines.contains(&"14 push a INBOX".to_owned()), "the breaker is open: {lines:?}");
}

#[test]
fn a_push_under_a_route_that_is_gone_is_marked_as_owed() {
    let mut sim = Simulation::with([phone("a")]);
    sim.service = None;
    sim.mail("INBOX", 7);
    sim.quiet("Notes", 3);
    assert_eq!(sim.until(1.0), ["0 push a INBOX+Notes"]);
    sim.quiet("Notes", 4);
    sim.until(1.0);
    sim.scheduler.routes([route("other", 500)], sim.now, NOW);
    let mut lines = sim.until(1.0);
    lines.sort();
    assert_eq!(lines, ["1 owed a INBOX", "1 owed a Notes", "1 told INBOX 7", "1 told Notes 4"]);
    sim.answer(accepted());
    assert!(sim.until(99.0).is_empty() && sim.scheduler.accounts.is_empty());

    // And when the route is back its marks are read and pushed.
    sim.targets[0].mailboxes[0].1 = true;
    sim.scheduler.routes([route(ROUTE, 500)], sim.now, NOW);
    sim.scheduler.owed(vec![account()], sim.now);
    assert_eq!(sim.until(99.0), ["99 push a INBOX"]);
}

#[test]
fn a_subscription_that_has_ended_gets_nothing_and_is_owed_nothing() {
    let mut ended = phone("b");
    ended.subscription.expires_at = Some(NOW);
    let mut ends = phone("a");
    ends.subscription.expires_at = Some(NOW.plus(seconds(1.0)));
    let mut away = ended.clone();
    away.subscription.route = "away".into();
    let mut sim = Simulation::with([ends, ended, away]);
    sim.targets[1].mailboxes[1].1 = true;
    sim.mail("INBOX", 7);
    let done = ["0 push a INBOX", "0 accepted a INBOX", "0 told INBOX 7"];
    assert_eq!(sim.until(99.0), done);
    // Nor does one that ends while it waits for its turn.
    sim.quiet("INBOX", 8);
    sim.until(100.0);
    sim.targets[0].subscription.expires_at = Some(NOW);
    assert_eq!(sim.until(199.0), ["129 told INBOX 8"]);
    assert!(sim.scheduler.accounts.is_empty());
}

#[test]
fn a_change_is_owed_to_a_subscription_whose_route_is_away() {
    let mut away = phone("b");
    away.subscription.route = "away".into();
    away.subscription.options = OF_NEW_MAIL_ALONE.into();
    let mut sim = Simulation::with([phone("a"), away]);
    sim.scheduler.rules.events.quiet = false;
    sim.mail("INBOX", 7);
    let lines = sim.until(1.0);
    assert_eq!(lines, ["0 push a INBOX", "0 accepted a INBOX", "0 owed b INBOX", "0 told INBOX 7"]);
    sim.targets[1].mailboxes[0].1 = true;
    // One mark is enough, and a change that nobody is told of needs none.
    sim.mail("INBOX", 8);
    sim.quiet("Notes", 3);
    let lines = sim.until(9.0);
    assert!(!lines.iter().any(|line| line.contains("owed")) && lines.len() == 4, "{lines:?}");
    // It alone holds up no row, and does not live in memory.
    sim.targets.remove(0);
    sim.mail("Notes", 4);
    let Some(Effect::Read(of)) = sim.scheduler.next(sim.now) else { panic!("no read") };
    sim.scheduler.read(&of, Some(sim.targets.clone()), sim.now, NOW, NOW);
    sim.database = false;
    assert_eq!(sim.until(9.4), ["9 write fails"]);
    sim.database = true;
    assert_eq!(sim.until(99.0), ["9.5 owed b Notes", "9.5 told Notes 4"]);
    assert!(sim.scheduler.accounts.is_empty());
    sim.targets[0].mailboxes[1].1 = true;
    sim.scheduler.routes([route(ROUTE, 500), route("away", 500)], sim.now, NOW);
    sim.scheduler.owed(vec![account()], sim.now);
    assert_eq!(sim.until(199.0), ["99 push b INBOX+Notes", "99 accepted b INBOX+Notes"]);
}

/// A mark says that new mail came, which a browser would show.
#[test]
fn a_quiet_change_is_owed_to_a_client_that_renews_itself_alone() {
    let [mut phone_away, mut browser_away] = [phone("b"), phone("c")];
    browser_away.renews = false;
    for away in [&mut phone_away, &mut browser_away] {
        away.subscription.route = "away".into();
    }
    let mut sim = Simulation::with([phone_away, browser_away]);
    sim.quiet("Notes", 3);
    assert_eq!(sim.until(9.0), ["0 owed b Notes", "0 told Notes 3"]);
}

/// Each carries one push at a time, so what hangs takes all that there is for its transport.
#[test]
fn one_transport_that_hangs_delays_no_push_by_another() {
    const NAMES: [&str; 4] = ["first", "fourth", "second", "third"];
    for hanging in NAMES {
        let mut sim = Simulation::with(NAMES.map(|name| {
            let mut target = phone(name);
            target.subscription.transport = TransportId::new(name);
            target
        }));
        let routes = NAMES.map(|name| {
            let (id, route) = route(ROUTE, 1);
            (RouteId { transport: TransportId::new(name), ..id }, route)
        });
        sim.scheduler.routes(routes, sim.now, NOW);
        sim.service = None;
        for mail in 0..20 {
            let at = mail as f64 * 5.0;
            sim.until(at);
            sim.mail("INBOX", mail + 7);
            let mut lines = sim.pushes_until(at);
            lines.sort();
            let goes = |name: &&str| mail == 0 || *name != hanging;
            let pushed = NAMES.iter().copied().filter(goes);
            let expected: Vec<_> = pushed.map(|name| format!("{at} push {name} INBOX")).collect();
            assert_eq!(lines, expected, "{hanging} hangs");
            let (hang, answered): (Vec<_>, Vec<_>) =
                sim.under_way.drain(..).partition(|sent| sent.transport.as_str() == hanging);
            sim.under_way = hang;
            for sent in answered {
                sim.scheduler.answered(&sent, &accepted(), sim.now, NOW, NOW);
            }
        }
        // It hears of the last mail when its service answers at last.
        sim.service = Some(accepted());
        sim.answer(accepted());
        let late = format!("{} push {hanging} INBOX", 19 * 5);
        assert_eq!(sim.pushes_until(200.0), [late]);
        assert!(sim.until(300.0).is_empty() && sim.scheduler.accounts.is_empty());
    }
}

/// A subscription of its own account whose endpoint is at this host.
fn at_host(n: usize, host: &str) -> Target {
    let mut target = phone_of(&Account::from_login(&format!("u{n}@{host}")), "");
    let endpoint = format!("u{n}@{host}");
    target.subscription.endpoint = PushEndpoint::new(&endpoint, &endpoint);
    target
}

/// 300 subscriptions at one host and one at another, on one route that carries 8 pushes at once.
fn two_hosts() -> Simulation {
    let crowd = (0..300).map(|n| at_host(n, "ill.example"));
    let mut sim = Simulation::with(crowd.chain([at_host(300, "well.example")]));
    let (id, _) = route(ROUTE, 8);
    sim.scheduler.routes([(id, Stub { hosts: true, ..Stub::default() }.route(8))], sim.now, NOW);
    for n in 0..300 {
        sim.mail_to(n, "ill.example", 7);
    }
    sim
}

impl Simulation {
    fn mail_to(&mut self, n: usize, host: &str, uid_next: u64) {
        let account = Account::from_login(&format!("u{n}@{host}"));
        self.change_of(account, "INBOX", ChangeKind::NewMail, Some(state(uid_next)));
    }
}

#[test]
fn a_host_that_hangs_delays_no_push_to_another_host_of_the_route() {
    let mut sim = two_hosts();
    sim.service = None;
    assert_eq!(sim.pushes_until(1.0).len(), 1, "as many as one host may have that never answered");
    for second in 1..20 {
        let at = second as f64 * 5.0;
        assert!(sim.pushes_until(at).is_empty());
        sim.mail_to(300, "well.example", second);
        let lines = sim.pushes_until(at);
        assert_eq!(lines, [format!("{at} push u300@well.example INBOX")]);
        let sent = sim.under_way.pop().unwrap();
        sim.scheduler.answered(&sent, &accepted(), sim.now, NOW, NOW);
    }
    // What hung ends at last, and the others of that host have their turns.
    while let Some(sent) = sim.under_way.pop() {
        sim.scheduler.answered(&sent, &accepted(), sim.now, NOW, NOW);
    }
    sim.service = Some(accepted());
    assert_eq!(sim.pushes_until(100.0).len(), 300 - 1);
    assert!(sim.until(200.0).is_empty() && sim.scheduler.accounts.is_empty());
    assert_eq!(sim.scheduler.to_push(), 0);
}

#[test]
fn a_host_that_has_answered_gets_several_pushes_at_once_until_it_hangs() {
    let mut sim = two_hosts();
    sim.service = None;
    assert_eq!(sim.pushes_until(0.0).len(), 1);
    sim.answer(accepted());
    assert_eq!(sim.pushes_until(0.0).len(), PER_HOST);
    sim.answer(unavailable());
    assert!(sim.pushes_until(0.0).is_empty(), "the others are under way");
    while !sim.under_way.is_empty() {
        sim.answer(unavailable());
    }
    assert_eq!(sim.pushes_until(99.0).len(), 1);
}

#[test]
fn however_many_hosts_hang_half_of_the_route_is_for_those_that_answer() {
    let hosts = 100;
    let host = |n: usize| format!("{}.ill.example", n % hosts);
    let crowd = (0..300).map(|n| at_host(n, &host(n)));
    let mut sim = Simulation::with(crowd.chain([at_host(300, "well.example")]));
    let (id, _) = route(ROUTE, 8);
    sim.scheduler.routes([(id, Stub { hosts: true, ..Stub::default() }.route(8))], sim.now, NOW);
    sim.mail_to(300, "well.example", 1);
    assert_eq!(sim.pushes_until(0.0).len(), 1);
    sim.service = None;
    for n in 0..300 {
        sim.mail_to(n, &host(n), 7);
    }
    let hang = sim.pushes_until(1.0);
    assert_eq!(hang.len(), 4, "half of the route: {hang:?}");
    for second in 1..20 {
        let at = second as f64 * 5.0;
        sim.mail_to(300, "well.example", second + 1);
        assert_eq!(sim.pushes_until(at), [format!("{at} push u300@well.example INBOX")]);
        let sent = sim.under_way.pop().unwrap();
        sim.scheduler.answered(&sent, &accepted(), sim.now, NOW, NOW);
    }
    // Those that hung fail at last, and others of these hosts have their turns.
    while !sim.under_way.is_empty() {
        sim.answer(unavailable());
    }
    assert_eq!(sim.pushes_until(96.0).len(), 4);
    while !sim.under_way.is_empty() {
        sim.answer(accepted());
    }
    sim.service = Some(accepted());
    sim.until(999.0);
    assert!(sim.scheduler.accounts.is_empty(), "nothing is lost");
    assert_eq!(sim.scheduler.to_push(), 0);
}

#[test]
fn a_host_that_refuses_all_is_paused_alone() {
    for verdict in [down(None), unavailable(), refused()] {
        let mut sim = two_hosts();
        sim.service = Some(verdict.clone());
        let tries = sim.pushes_until(0.0).len();
        assert!((1..=PER_HOST).contains(&tries), "{verdict:?}: {tries}");
        let ill = sim.targets[0].subscription.clone();
        assert!(sim.scheduler.view(&ill, sim.now).shut.is_some(), "{verdict:?}");
        sim.service = Some(accepted());
        sim.mail_to(300, "well.example", 7);
        let lines = sim.pushes_until(0.5);
        assert_eq!(lines, ["0 push u300@well.example INBOX"], "{verdict:?}");
        let well = sim.targets[300].subscription.clone();
        assert_eq!(sim.scheduler.view(&well, sim.now).shut, None);
        // One tries it, and then all go.
        assert_eq!(sim.pushes_until(999.0).len(), 300, "{verdict:?}");
        assert!(sim.scheduler.accounts.is_empty());
    }
}

#[test]
fn a_subscription_that_moves_to_another_route_is_that_routes_from_then_on() {
    let mut sim = Simulation::with([phone("a")]);
    sim.scheduler.routes([route(ROUTE, 500), route("other", 500)], sim.now, NOW);
    sim.quiet("INBOX", 7);
    sim.until(1.0);
    sim.targets[0].subscription.route = "other".into();
    sim.service = Some(down(None));
    assert_eq!(sim.pushes_until(30.0), ["30 push a INBOX"]);
    assert!(sim.scheduler.view(&sim.targets[0].subscription, sim.now).shut.is_some());
}
