//! A push that its service would refuse as often as it came stays owed, and its subscription rests.

use super::*;

fn rejected() -> Verdict {
    Verdict::Rejected { why: "400".into() }
}

/// After the first push of INBOX was rejected at second 0.
fn resting() -> Simulation {
    let mut sim = Simulation::with([phone("a"), phone("b")]);
    (sim.failing, sim.trouble) = (vec!["a"], rejected());
    sim.mail("INBOX", 7);
    let done = ["0 push a INBOX", "0 push b INBOX", "0 accepted b INBOX", "0 owed a INBOX"];
    let lines = sim.until(1.0);
    assert_eq!(
        (&lines[..4], &lines[4..]),
        (&done.map(str::to_owned)[..], &["0 told INBOX 7".to_owned()][..])
    );
    sim
}

impl Simulation {
    /// The database has what was written of it: the mark, and how it fails.
    fn on_disk(&mut self) {
        let failure = |verdict: Verdict| LastingFailure {
            since: NOW,
            kind: verdict.failure().into(),
            own_fault: Duration::ZERO,
        };
        self.targets[0].failing = Some(failure(rejected()));
        self.targets[0].mailboxes[0].1 = true;
    }

    fn pushes_to_a_until(&mut self, to: f64) -> Vec<String> {
        let mut lines = self.pushes_until(to);
        lines.retain(|line| line.contains("push a"));
        lines
    }
}

#[test]
fn a_rejected_push_is_not_tried_again_by_time_and_is_with_the_next_change() {
    for verdict in [rejected(), Verdict::TooLargeInShort] {
        let mut sim = Simulation::with([phone("a")]);
        sim.service = Some(verdict.clone());
        sim.mail("INBOX", 7);
        assert_eq!(sim.until(700.0), ["0 push a INBOX", "0 owed a INBOX", "0 told INBOX 7"]);
        let why = verdict.detail().unwrap_or("too-large").to_owned();
        let view = sim.scheduler.view(&sim.targets[0].subscription, sim.now);
        assert_eq!((view.rests, view.due_in), (Some(why), None));
        sim.service = Some(accepted());
        sim.mail("Notes", 3);
        let done = ["700 push a INBOX+Notes", "700 accepted a INBOX+Notes", "700 told Notes 3"];
        assert_eq!(sim.until(9999.0), done);
        assert!(sim.scheduler.accounts.is_empty());
    }
}

#[test]
fn one_that_rests_is_tried_when_it_registers_and_after_a_reload() {
    let mut sim = resting();
    sim.failing.clear();
    sim.targets[0].registered_at.0 += 1;
    sim.scheduler.event(WatchEvent::Registered { account: account() }, sim.now);
    assert_eq!(sim.until(1.0), ["1 push a INBOX", "1 accepted a INBOX"]);

    let mut sim = resting();
    sim.failing.clear();
    sim.scheduler.routes([route(ROUTE, 500)], sim.now, NOW);
    assert_eq!(sim.until(1.0), ["1 push a INBOX", "1 accepted a INBOX"]);

    // Nor does the registration of another one, or that something of the account is read, wake it.
    let mut sim = resting();
    sim.failing.clear();
    sim.targets[1].registered_at.0 += 1;
    sim.scheduler.event(WatchEvent::Registered { account: account() }, sim.now);
    sim.scheduler.doubted(vec![account()], sim.now);
    assert!(sim.until(800.0).is_empty());
}

#[test]
fn one_that_is_rejected_with_each_mail_is_tried_ever_more_slowly() {
    let mut sim = Simulation::with([phone("a")]);
    sim.service = Some(rejected());
    let mut pushes = Vec::new();
    for n in 0..360_u32 {
        sim.mail("INBOX", n.into());
        pushes.extend(sim.pushes_until(f64::from(n + 1) * 10.0));
    }
    let at = |n: u32| format!("{n} push a INBOX");
    assert_eq!(pushes, [0, 60, 180, 420, 900, 1800, 2700, 3600].map(at));
}

#[test]
fn a_change_that_comes_while_a_push_is_rejected_is_tried() {
    let mut sim = Simulation::with([phone("a")]);
    sim.service = None;
    sim.mail("INBOX", 7);
    sim.until(0.0);
    sim.mail("Notes", 3);
    sim.until(1.0);
    sim.answer(rejected());
    assert_eq!(sim.until(59.0), ["1 owed a INBOX", "1 told INBOX 7"]);
    sim.service = Some(rejected());
    let done = ["61 push a INBOX+Notes", "61 owed a Notes", "61 told Notes 3"];
    assert_eq!(sim.until(900.0), done, "and now it rests");
}

#[test]
fn one_that_rests_is_forgotten_and_only_its_own_reasons_bring_it_back() {
    let mut sim = resting();
    sim.on_disk();
    assert!(sim.until(2000.0).is_empty() && sim.scheduler.accounts.is_empty());
    // What is read for another reason finds its marks.
    sim.targets[0].mailboxes.pop();
    sim.mail("Notes", 3);
    sim.scheduler.event(WatchEvent::Registered { account: account() }, sim.now);
    sim.scheduler.doubted(vec![account()], sim.now);
    assert_eq!(sim.pushes_to_a_until(3000.0), [""; 0]);
    assert!(sim.scheduler.accounts.is_empty(), "nothing is kept of it");
    sim.targets[0].subscription.options = OF_NEW_MAIL_ALONE.into();
    sim.quiet("INBOX", 8);
    assert_eq!(sim.pushes_to_a_until(4000.0), [""; 0], "it asked for no such change");
    sim.mail("INBOX", 9);
    assert_eq!(sim.pushes_to_a_until(9000.0), ["4000 push a INBOX"], "once");
    assert!(sim.scheduler.accounts.is_empty());
    // So does a start, which asks for what is owed on disk.
    let mut sim = resting();
    sim.on_disk();
    sim.until(2000.0);
    sim.scheduler.owed(vec![account()], sim.now);
    assert_eq!(sim.pushes_to_a_until(9000.0), ["2000 push a INBOX"], "once");
    // Nor does it hold up a row.
    sim.targets[0].mailboxes.pop();
    sim.mail("Notes", 4);
    assert!(sim.until(9999.0).contains(&"9000 told Notes 4".to_owned()));
}
