//! A subscription that fails for good is removed, and none is for what an operator has to mend.

use super::*;

const DAY: f64 = 24.0 * 3600.0;

fn of_key() -> Verdict {
    Verdict::Refused { why: "403".into() }
}

fn rejected() -> Verdict {
    Verdict::Rejected { why: "400".into() }
}

/// One by the API at this host, as a browser's is, of an account of its own.
fn browser(name: &str, host: &str) -> Target {
    let mut target = phone_of(&Account::from_login(name), "");
    let endpoint = format!("{name}@{host}");
    target.subscription.endpoint = PushEndpoint::new(&endpoint, &endpoint);
    Target { renews: false, ..target }
}

impl Simulation {
    /// Of these browsers, on one route with a peer for each host. The service has this trouble with the first.
    fn of_browsers(trouble: Verdict, browsers: [(&'static str, &str); 3]) -> Self {
        let mut sim = Self::with(browsers.map(|(name, host)| browser(name, host)));
        sim.new_route();
        let endpoint = sim.targets[0].subscription.endpoint.as_given().to_owned();
        sim.trouble = trouble;
        sim.failing = vec![&*endpoint.leak()];
        sim
    }

    fn new_route(&mut self) {
        let (id, _) = route(ROUTE, 8);
        let hosts = Stub { hosts: true, ..Stub::default() };
        self.scheduler.routes([(id, hosts.route(8))], self.now, NOW);
    }

    /// A mail to each of them at the begin of each of these days. Returns how often the first was pushed, and on
    /// which day it was removed.
    fn days(&mut self, days: std::ops::Range<u32>) -> (usize, Option<u32>) {
        let logins: Vec<_> =
            self.targets.iter().map(|it| it.subscription.account.clone()).collect();
        let mut pushes = 0;
        for day in days {
            for login in &logins {
                self.id += 1;
                let state = state(self.id);
                self.change_of(login.clone(), "INBOX", ChangeKind::NewMail, Some(state));
            }
            let lines = self.until(f64::from(day + 1) * DAY);
            pushes += lines.iter().filter(|line| line.contains(" push a@")).count();
            if lines.iter().any(|line| line.contains("remove a@")) {
                return (pushes, Some(day));
            }
            assert!(!lines.iter().any(|line| line.contains("remove")), "{lines:?}");
        }
        (pushes, None)
    }
}

#[test]
fn a_browser_that_its_service_refuses_alone_is_removed_after_seven_days() {
    let browsers = [("a", "one.example"), ("b", "one.example"), ("c", "other.example")];
    let mut sim = Simulation::of_browsers(of_key(), browsers);
    let (pushes, removed) = sim.days(0..20);
    assert_eq!(removed, Some(7), "the first try counts nothing");
    assert!(pushes > 7 * 90, "it is tried until then: {pushes}");
}

#[test]
fn an_endpoint_that_a_service_of_one_alone_does_not_know_goes_after_seven_days_in_which_others_push()
 {
    let browsers = [("a", "small.example"), ("b", "one.example"), ("c", "other.example")];
    let mut sim = Simulation::of_browsers(Verdict::BadEndpoint, browsers);
    assert_eq!(sim.days(0..20).1, Some(7));
}

#[test]
fn a_browser_that_its_service_refuses_and_that_has_no_other_goes_after_seven_days_in_which_others_push()
 {
    let browsers = [("a", "small.example"), ("b", "one.example"), ("c", "other.example")];
    let mut sim = Simulation::of_browsers(of_key(), browsers);
    assert_eq!(sim.days(0..20).1, Some(7));
}

#[test]
fn what_the_operator_has_to_mend_removes_nothing() {
    // All at the service are refused: a contact that this service does not take.
    let browsers = [("a", "one.example"), ("b", "one.example"), ("c", "third.example")];
    let mut sim = Simulation::of_browsers(of_key(), browsers);
    let endpoints = sim.targets.iter().map(|it| it.subscription.endpoint.as_given().to_owned());
    sim.failing = endpoints.take(2).map(|it| &*it.leak()).collect();
    assert_eq!(sim.days(0..30).1, None);
    // Nobody is taken: a proxy says 404, a key is wrong, the clock is.
    for trouble in
        [Verdict::BadEndpoint, of_key(), refused(), rejected(), down(None), unavailable()]
    {
        let browsers = [("a", "one.example"), ("b", "one.example"), ("c", "other.example")];
        let mut sim = Simulation::of_browsers(trouble.clone(), browsers);
        sim.service = Some(trouble.clone());
        assert_eq!(sim.days(0..30).1, None, "{trouble:?}");
        // Nor when all is well again.
        (sim.service, sim.failing) = (Some(accepted()), Vec::new());
        assert_eq!(sim.days(30..31).1, None, "{trouble:?}");
    }
    // What cannot be written at all, as without the key file.
    let browsers = [("a", "one.example"), ("b", "one.example"), ("c", "other.example")];
    let unfit = Verdict::unrenderable("its secrets cannot be opened");
    for trouble in [unfit, Verdict::TooLarge, refused(), rejected()] {
        let mut sim = Simulation::of_browsers(trouble.clone(), browsers);
        assert_eq!(sim.days(0..30).1, None, "{trouble:?}");
    }
}

#[test]
fn the_days_that_an_operator_broke_do_not_count_and_a_restart_goes_on_with_what_is_written() {
    let browsers = [("a", "one.example"), ("b", "one.example"), ("c", "other.example")];
    let mut sim = Simulation::of_browsers(of_key(), browsers);
    assert_eq!(sim.days(0..5).1, None);
    // Something else: what has been counted stays.
    sim.trouble = unavailable();
    assert_eq!(sim.days(5..15).1, None);
    sim.trouble = of_key();
    assert_eq!(sim.days(15..30).1, Some(17));

    let mut sim = Simulation::of_browsers(of_key(), browsers);
    sim.targets[0].failing = Some(LastingFailure {
        since: NOW,
        kind: "refused".into(),
        own_fault: OWN_FAULT - seconds(DAY),
    });
    assert_eq!(sim.days(0..9).1, Some(1), "a day is left");

    // What rests is not tried, and counts no day.
    let mut sim = Simulation::of_browsers(of_key(), browsers);
    assert_eq!(sim.days(0..1).1, None);
    sim.trouble = rejected();
    assert_eq!(sim.days(1..2).1, None);
    let quiet = sim.start + seconds(20.0 * DAY);
    assert!(sim.until(20.0 * DAY).is_empty() && sim.now == quiet);
    sim.trouble = of_key();
    assert_eq!(sim.days(20..30).1, Some(27), "the days in which it rested do not count");

    // Everybody is refused for a while: then nothing that was counted is believed.
    let mut sim = Simulation::of_browsers(of_key(), browsers);
    assert_eq!(sim.days(0..5).1, None);
    sim.service = Some(of_key());
    assert_eq!(sim.days(5..7).1, None);
    sim.service = Some(accepted());
    assert_eq!(sim.days(7..12).1, None);
}

#[test]
fn what_is_written_of_a_failure_is_for_how_long_it_was_its_own_fault() {
    let browsers = [("a", "one.example"), ("b", "one.example"), ("c", "other.example")];
    let mut sim = Simulation::of_browsers(of_key(), browsers);
    sim.shows_failing = true;
    let b = Account::from_login("b");
    sim.change_of(b, "INBOX", ChangeKind::NewMail, Some(state(1)));
    sim.until(10.0);
    let a = Account::from_login("a");
    sim.change_of(a, "INBOX", ChangeKind::NewMail, Some(state(1)));
    let mut lines = sim.until(500.0);
    lines.retain(|line| line.contains("failing"));
    let at = |n: u32| format!("{} failing a@one.example {n} s", n + 10);
    let expected = [vec!["10 failing a@one.example".to_owned()], [60, 180, 420].map(at).to_vec()];
    assert_eq!(lines, expected.concat());
    // What its client does anew begins anew.
    sim.targets[0].registered_at.0 += 1;
    sim.scheduler.event(WatchEvent::Registered { account: Account::from_login("a") }, sim.now);
    let lines = sim.until(500.0);
    assert!(lines.contains(&"500 failing a@one.example".to_owned()), "{lines:?}");
}

#[test]
fn a_subscription_that_registers_by_itself_is_left_to_its_silence() {
    let browsers = [("a", "one.example"), ("b", "one.example"), ("c", "other.example")];
    let mut sim = Simulation::of_browsers(of_key(), browsers);
    sim.targets[0].renews = true;
    assert_eq!(sim.days(0..20).1, None);
}
