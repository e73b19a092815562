//! The rules as dialogues: what happens, and at which second what is done about it.

use super::*;
use crate::model::{Change, PushEndpoint, Snapshot, TransportId};
use crate::push::transport::stub::{OF_INBOX_ALONE, PER_HOST, Stub};
use crate::store::Settlement;

const ROUTE: &str = "first";
const NOW: Timestamp = Timestamp(1_800_000_000_000);
const SILENCE: Duration = Duration::from_hours(48);
const REGISTERED: Timestamp = Timestamp(1_700_000_000_000);

/// The rules with a clock of their own, a database and a service that gives prescribed answers.
struct Simulation {
    scheduler: Scheduler,
    start: Instant,
    now: Instant,
    targets: Vec<Target>,
    database: bool,
    /// What the service makes of a push; while `None` it does not answer.
    service: Option<Verdict>,
    /// The endpoints for which it always has trouble.
    failing: Vec<&'static str>,
    under_way: Vec<Arc<Subscription>>,
    id: u64,
    lines: Vec<String>,
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn accepted() -> Verdict {
    Verdict::Accepted { id: None }
}

fn unavailable() -> Verdict {
    Verdict::unavailable("trouble")
}

/// Nothing can be sent to anybody.
fn down(retry_after: Option<Duration>) -> Verdict {
    Verdict::RouteClosed { why: "down".into(), retry_after }
}

fn refused() -> Verdict {
    Verdict::Misconfigured { why: "Bad".into() }
}

fn home() -> BackendId {
    BackendId::new(None, "imap", 993)
}

fn account() -> Account {
    Account::from_login("alice@example.org")
}

/// A device whose endpoint begins with `name`, for INBOX and Notes.
fn phone(name: &str) -> Target {
    phone_of(&account(), name)
}

fn route(name: &str, in_flight: usize) -> (RouteId, Route) {
    let id = RouteId { transport: TransportId::new("stub"), name: name.into() };
    (id, Stub::default().route(in_flight))
}

fn phone_of(account: &Account, name: &str) -> Target {
    let endpoint = format!("{name:0<64}");
    let subscription = Subscription {
        account: account.clone(),
        transport: TransportId::new("stub"),
        endpoint: PushEndpoint::new(&endpoint, &endpoint),
        app: "mail".into(),
        route: ROUTE.into(),
        options: "OLD".into(),
        secrets: None,
        expires_at: None,
    };
    let mailboxes = ["INBOX", "Notes"].map(|name| (Mailbox::new(name), false)).to_vec();
    let backend = Some(home().as_str().to_owned());
    Target {
        subscription,
        registered_at: REGISTERED,
        heard_at: REGISTERED,
        backend,
        outdated_since: None,
        outdated_at: None,
        pushed_at: None,
        mailboxes,
    }
}

/// The state of a mailbox after `n` mails.
fn state(n: u64) -> Snapshot {
    Snapshot { uid_next: Some(n), ..Snapshot::default() }
}

impl Simulation {
    fn with(targets: impl IntoIterator<Item = Target>) -> Self {
        Self::at_rates(0, 0, targets)
    }

    /// With so many pushes a second for a domain, and for a backend.
    fn at_rates(
        per_domain: u32,
        per_backend: u32,
        targets: impl IntoIterator<Item = Target>,
    ) -> Self {
        let rules = Rules {
            per_domain,
            per_backend,
            quiet_delay: seconds(30.0),
            min_interval: seconds(5.0),
            max_delay: seconds(120.0),
            events: Events { new_mail: true, quiet: true },
            chance: || 1.0,
            backend_of: BackendOf::new(|_| "backend".into()),
        };
        let start = Instant::now();
        let mut scheduler = Scheduler::new(rules);
        scheduler.routes([route(ROUTE, 500)], start, NOW);
        Self {
            scheduler,
            start,
            now: start,
            targets: targets.into_iter().collect(),
            database: true,
            service: Some(accepted()),
            failing: Vec::new(),
            under_way: Vec::new(),
            id: 0,
            lines: Vec::new(),
        }
    }

    /// Lets the time pass up to second `to` and returns what was done meanwhile.
    fn until(&mut self, to: f64) -> Vec<String> {
        let to = self.start + seconds(to);
        loop {
            while let Some(effect) = self.scheduler.next(self.now) {
                self.act(effect);
            }
            match self.scheduler.wake_at(self.now) {
                Some(at) if at <= to => {
                    assert!(at > self.now, "awake without anything to do");
                    self.now = at;
                }
                _ => break,
            }
        }
        self.now = to;
        std::mem::take(&mut self.lines)
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Read(account) => {
                let mine = |target: &&Target| target.subscription.account == account;
                let targets = self.targets.iter().filter(mine).cloned().collect();
                let targets = self.database.then_some(targets);
                if targets.is_none() {
                    self.say("read fails".into());
                }
                self.scheduler.read(&account, targets, self.now, NOW);
            }
            Effect::Send(push) => {
                let names: Vec<_> = push.mailboxes.iter().map(|it| it.mailbox.as_str()).collect();
                let name = name(&push.device.endpoint);
                self.say(format!("push {name} {}", names.join("+")));
                let fails = self.failing.contains(&name).then(unavailable);
                match fails.or_else(|| self.service.clone()) {
                    Some(outcome) => {
                        self.scheduler.answered(&push.device, &outcome, self.now, NOW, NOW)
                    }
                    None => self.under_way.push(push.device),
                }
            }
            Effect::Write(batch) if self.database => {
                for line in written(&batch) {
                    self.say(line);
                }
                self.scheduler.written(Batch::default(), self.now);
            }
            Effect::Write(batch) => {
                self.say("write fails".into());
                self.scheduler.written(batch, self.now);
            }
        }
    }

    /// APNs answers the push that has been under way for longest.
    fn answer(&mut self, outcome: Verdict) {
        let device = self.under_way.remove(0);
        self.scheduler.answered(&device, &outcome, self.now, NOW, NOW);
    }

    fn say(&mut self, line: String) {
        let at = self.now.duration_since(self.start).as_secs_f64();
        self.lines.push(format!("{at} {line}"));
    }

    fn change(&mut self, mailbox: &str, kind: ChangeKind, snapshot: Option<Snapshot>) -> u64 {
        self.change_of(account(), mailbox, kind, snapshot)
    }

    fn change_of(
        &mut self,
        account: Account,
        mailbox: &str,
        kind: ChangeKind,
        snapshot: Option<Snapshot>,
    ) -> u64 {
        self.id += 1;
        let mailbox = Mailbox::new(mailbox);
        let (id, seen_at) = (self.id, self.now);
        let change = Change { account, backend: home(), mailbox, kind, id, snapshot, seen_at };
        let event = match change.snapshot {
            None => WatchEvent::Announced(change),
            Some(_) => WatchEvent::Changed(change),
        };
        self.scheduler.event(event, self.now);
        id
    }

    fn mail(&mut self, mailbox: &str, n: u64) {
        self.change(mailbox, ChangeKind::NewMail, Some(state(n)));
    }

    fn quiet(&mut self, mailbox: &str, n: u64) {
        self.change(mailbox, ChangeKind::Quiet, Some(state(n)));
    }

    fn confirm(&mut self, id: u64, n: u64) {
        let (account, mailbox, snapshot) = (account(), Mailbox::inbox(), state(n));
        let event = WatchEvent::Rebased { account, backend: home(), mailbox, id, snapshot };
        self.scheduler.event(event, self.now);
    }

    fn end(self) -> Vec<String> {
        written(&self.scheduler.end(self.now, NOW))
    }
}

fn name(token: &PushEndpoint) -> &str {
    token.as_given().trim_end_matches('0')
}

fn written(batch: &Batch) -> Vec<String> {
    let settlement = |settlement: &Settlement| match settlement {
        Settlement::Told { mailbox, snapshot, .. } => {
            format!("told {mailbox} {}", snapshot.uid_next.unwrap())
        }
        Settlement::Owed { subscription: device, mailbox, .. } => {
            format!("owed {} {mailbox}", name(&device.endpoint))
        }
        Settlement::Accepted { subscription: device, mailboxes, .. } => {
            let mut names: Vec<_> = mailboxes.iter().map(Mailbox::as_str).collect();
            names.sort_unstable();
            format!("accepted {} {}", name(&device.endpoint), names.join("+"))
        }
    };
    let mut lines: Vec<_> = batch.settlements.iter().map(settlement).collect();
    // The order among equals is none; that told comes last is what counts.
    lines.sort_by_key(|line| (line.starts_with("told"), line.clone()));
    assert!(
        batch.settlements.is_sorted_by_key(|line| matches!(line, Settlement::Told { .. })),
        "a row must not move before the marks that it relies on: {batch:?}"
    );
    lines.extend(batch.removals.iter().map(|(key, _)| format!("remove {}", name(&key.endpoint))));
    lines
}

#[test]
fn new_mail_goes_at_once_and_its_row_moves_when_all_devices_have_accepted() {
    let mut sim = Simulation::with([phone("a"), phone("b")]);
    sim.service = None;
    sim.mail("INBOX", 7);
    assert_eq!(sim.until(0.0), ["0 push a INBOX", "0 push b INBOX"]);
    sim.answer(accepted());
    assert_eq!(sim.until(1.0), ["0 accepted a INBOX"]);
    sim.answer(accepted());
    assert_eq!(sim.until(99.0), ["1 accepted b INBOX", "1 told INBOX 7"]);
    assert!(
        sim.scheduler.accounts.is_empty(),
        "the scheduler forgets the accounts of devices that it pushed"
    );
}

#[test]
fn a_quiet_change_waits_and_new_mail_takes_it_along() {
    let mut sim = Simulation::with([phone("a")]);
    sim.quiet("Notes", 3);
    assert_eq!(sim.until(99.0), ["30 push a Notes", "30 accepted a Notes", "30 told Notes 3"]);
    sim.quiet("Notes", 4);
    assert!(sim.until(109.0).is_empty());
    sim.mail("INBOX", 7);
    let done = ["109 push a INBOX+Notes", "109 accepted a INBOX+Notes", "109 told INBOX 7"];
    assert_eq!(sim.until(109.0)[..3], done);
    assert!(sim.until(300.0).is_empty());
}

#[test]
fn a_domain_over_its_rate_waits_for_its_turns_and_another_does_not() {
    let login = |n: usize| Account::from_login(&format!("u{n}@tenant.example"));
    let crowd = (0..6).map(|n| phone_of(&login(n), &format!("f{n}f")));
    let mut sim = Simulation::at_rates(2, 0, crowd.chain([phone("a")]));
    for n in 0..6 {
        sim.change_of(login(n), "INBOX", ChangeKind::NewMail, Some(state(7)));
    }
    let pushes = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter(|line| line.contains("push")).collect()
    };
    assert_eq!(pushes(sim.until(0.0)), ["0 push f0f INBOX", "0 push f1f INBOX"]);
    sim.mail("INBOX", 7);
    assert_eq!(pushes(sim.until(0.0)), ["0 push a INBOX"]);
    // What comes while it waits goes into the push that waits.
    sim.change_of(login(5), "Notes", ChangeKind::NewMail, Some(state(3)));
    sim.change_of(login(5), "INBOX", ChangeKind::NewMail, Some(state(8)));
    let waited = ["0.5 push f2f INBOX", "1 push f3f INBOX", "1.5 push f4f INBOX"];
    assert_eq!(pushes(sim.until(1.9)), waited);
    let last = sim.until(99.0);
    assert_eq!(last[..1], ["2 push f5f INBOX+Notes"]);
    assert!(last.contains(&"2 told INBOX 8".to_owned()), "{last:?}");
    assert!(sim.scheduler.accounts.is_empty());
    assert!(sim.scheduler.take_waits().domains > 0);
}

#[test]
fn domains_of_a_backend_over_its_rate_take_turns_and_nothing_is_lost_at_the_end() {
    let login = |n: usize| Account::from_login(&format!("u{n}@tenant.example"));
    let crowd = (0..4).map(|n| phone_of(&login(n), &format!("f{n}f")));
    let mut sim = Simulation::at_rates(0, 1, crowd.chain([phone("a")]));
    for n in 0..4 {
        sim.change_of(login(n), "INBOX", ChangeKind::NewMail, Some(state(7)));
    }
    sim.mail("INBOX", 7);
    let lines = sim.until(2.0);
    let pushes: Vec<_> = lines.iter().filter(|line| line.contains("push")).collect();
    assert_eq!(pushes, ["0 push f0f INBOX", "1 push a INBOX", "2 push f1f INBOX"]);
    assert!(sim.scheduler.take_waits().backends > 0);
    assert_eq!(sim.end(), ["owed f2f INBOX", "owed f3f INBOX", "told INBOX 7", "told INBOX 7"]);
}

#[test]
fn a_delay_that_begins_anew_has_an_end() {
    let mut sim = Simulation::with([phone("a")]);
    let mut pushes = Vec::new();
    for second in 0..240 {
        sim.quiet("INBOX", second);
        let lines = sim.until(second as f64 + 1.0);
        pushes.extend(lines.into_iter().filter(|line| line.contains("push")));
    }
    assert_eq!(pushes, ["120 push a INBOX", "240 push a INBOX"]);
}

#[test]
fn a_change_after_a_push_is_put_off_and_never_dropped() {
    let mut sim = Simulation::with([phone("a")]);
    sim.mail("INBOX", 1);
    sim.until(1.0);
    for n in 2..10 {
        sim.mail("INBOX", n);
        assert!(sim.until(1.0 + n as f64 / 10.0).is_empty());
    }
    assert_eq!(sim.until(99.0), ["5 push a INBOX", "5 accepted a INBOX", "5 told INBOX 9"]);
}

#[test]
fn a_change_while_a_push_is_under_way_causes_another() {
    let mut sim = Simulation::with([phone("a")]);
    sim.service = None;
    sim.mail("INBOX", 1);
    assert_eq!(sim.until(1.0), ["0 push a INBOX"]);
    sim.mail("INBOX", 2);
    assert!(sim.until(3.0).is_empty());
    sim.answer(accepted());
    // The push that was accepted was sent before the change, so the row stays.
    assert_eq!(sim.until(5.0), ["3 accepted a INBOX", "5 push a INBOX"]);
    sim.answer(accepted());
    assert_eq!(sim.until(9.0), ["5 accepted a INBOX", "5 told INBOX 2"]);
}

#[test]
fn what_is_announced_is_pushed_and_its_row_waits_for_the_state() {
    let mut sim = Simulation::with([phone("a")]);
    let id = sim.change("INBOX", ChangeKind::NewMail, None);
    assert_eq!(sim.until(1.0), ["0 push a INBOX", "0 accepted a INBOX"]);
    sim.confirm(id + 1, 99);
    assert!(sim.until(1.0).is_empty());
    sim.confirm(id, 7);
    assert_eq!(sim.until(99.0), ["1 told INBOX 7"]);

    // The state may also be there before the push is accepted.
    sim.service = None;
    let id = sim.change("INBOX", ChangeKind::NewMail, None);
    sim.confirm(id, 8);
    assert_eq!(sim.until(100.0), ["99 push a INBOX"]);
    sim.answer(accepted());
    assert_eq!(sim.until(101.0), ["100 accepted a INBOX", "100 told INBOX 8"]);

    // One that never comes is not waited for for ever.
    sim.service = Some(accepted());
    sim.change("INBOX", ChangeKind::NewMail, None);
    assert_eq!(sim.until(9999.0).len(), 2);
    assert!(sim.scheduler.accounts.is_empty());
}

#[test]
fn a_state_of_which_nothing_was_announced_moves_the_row_and_pushes_nothing() {
    let mut sim = Simulation::with([phone("a")]);
    sim.confirm(1, 7);
    assert_eq!(sim.until(99.0), ["0 told INBOX 7"]);
    assert!(sim.scheduler.accounts.is_empty());
    // But not while there is something to tell.
    sim.id = 1;
    sim.quiet("INBOX", 8);
    sim.confirm(3, 9);
    sim.until(128.0);
    sim.service = None;
    assert_eq!(sim.until(129.0), ["129 push a INBOX"]);
    sim.confirm(4, 9);
    assert!(sim.until(130.0).is_empty());
    sim.answer(accepted());
    assert_eq!(sim.until(131.0), ["130 accepted a INBOX", "130 told INBOX 8"]);
}

#[test]
fn a_state_that_is_being_pushed_is_not_pushed_again() {
    let mut sim = Simulation::with([phone("a")]);
    sim.service = None;
    sim.mail("INBOX", 7);
    sim.mail("INBOX", 7);
    assert_eq!(sim.until(1.0), ["0 push a INBOX"]);
    sim.mail("INBOX", 7);
    sim.answer(accepted());
    assert_eq!(sim.until(99.0), ["1 accepted a INBOX", "1 told INBOX 7"]);
}

#[test]
fn only_devices_of_this_route_and_mailbox_are_pushed_and_the_others_hold_up_nothing() {
    let mut asleep = phone("a");
    asleep.subscription.route = "old".into();
    let mut other = phone("b");
    other.mailboxes.remove(0);
    let mut limited = phone("c");
    limited.subscription.options = OF_INBOX_ALONE.into();
    let mut sim = Simulation::with([asleep, other, limited]);
    sim.mail("INBOX", 7);
    assert_eq!(sim.until(9.0), ["0 push c INBOX", "0 accepted c INBOX", "0 told INBOX 7"]);
    sim.mail("Notes", 3);
    assert_eq!(sim.until(19.0), ["9 push b Notes", "9 accepted b Notes", "9 told Notes 3"]);
    sim.mail("Elsewhere", 1);
    assert_eq!(sim.until(29.0), ["19 told Elsewhere 1"], "a row that concerns nobody moves");
    assert!(sim.scheduler.accounts.is_empty());
}

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
fn one_device_whose_pushes_fail_delays_no_other() {
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
fn the_wait_in_an_outage_has_a_cap_and_what_apns_asks_for_counts() {
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
fn status_410_removes_the_row_only_if_it_is_older() {
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
        (0..5).map(move |device| of(&login, &format!("{number:02x}{device}f")))
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
fn a_device_under_many_accounts_is_pushed_as_often_as_one_under_few() {
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
    sim.scheduler.read(&of, Some(sim.targets.clone()), sim.now, late);
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
fn a_device_that_is_removed_elsewhere_gets_no_more_pushes() {
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
fn a_device_that_does_not_take_the_route_is_owed_its_push_until_it_does() {
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
fn what_apns_says_of_a_registration_that_was_renewed_meanwhile_costs_nothing() {
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
    sim.scheduler.read(&of, Some(before), sim.now, NOW);
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
    // Each way in which there is nothing to push when it is a device's turn.
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
fn status_429_pauses_that_device_and_keeps_its_mark() {
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
fn what_others_have_marked_is_pushed_to_a_device_that_is_known() {
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
fn a_device_is_read_again_before_it_is_pushed_late() {
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
    let known = &state.devices[0].device.options;
    assert_eq!((state.devices.len(), &**known), (1, "NEW"));
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
    sim.under_way.sort_by_key(|device| device.route.clone());
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

    // And when the route is back what is owed is read and pushed.
    sim.targets[0].mailboxes[0].1 = true;
    sim.scheduler.routes([route(ROUTE, 500)], sim.now, NOW);
    sim.scheduler.owed(vec![account()], sim.now);
    assert_eq!(sim.until(99.0), ["99 push a INBOX"]);
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
    sim.scheduler.read(&account(), Some(sim.targets.clone()), sim.now, NOW);
    let Some(Effect::Send(push)) = sim.scheduler.next(sim.now) else { panic!("no push") };
    assert_eq!(
        push.changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("#{first}")]
    );
    sim.scheduler.answered(&push.device, &accepted(), sim.now, NOW, NOW);
    let Some(Effect::Write(batch)) = sim.scheduler.next(sim.now) else { panic!("no write") };
    assert_eq!(batch.changes, push.changes);
    // What could not be written keeps its number.
    sim.scheduler.written(batch, sim.now);
    sim.now += seconds(1.0);
    let Some(Effect::Write(again)) = sim.scheduler.next(sim.now) else { panic!("no write") };
    assert_eq!(again.changes, push.changes);
}

#[test]
fn what_is_pending_for_a_device_can_be_seen() {
    let mut sim = Simulation::with([phone("a")]);
    let device = sim.targets[0].subscription.clone();
    assert_eq!(sim.scheduler.view(&device, sim.now), DeliveryView::default());
    sim.quiet("Notes", 3);
    sim.until(10.0);
    let view = sim.scheduler.view(&device, sim.now);
    assert_eq!((view.waiting, view.due_in), (vec![Mailbox::new("Notes")], Some(seconds(20.0))));
    sim.service = None;
    sim.until(31.0);
    assert_eq!(sim.scheduler.view(&device, sim.now).under_way, Some(seconds(1.0)));
    sim.answer(accepted());
    assert_eq!(sim.scheduler.view(&device, sim.now).too_soon, Some(seconds(4.0)));
    sim.service = Some(down(Some(seconds(60.0))));
    sim.mail("INBOX", 7);
    sim.until(40.0);
    let view = sim.scheduler.view(&device, sim.now);
    let expected = (Some(seconds(55.0)), Some(seconds(55.0)), 1);
    assert_eq!((view.shut, view.backs_off, view.failures), expected);
}

#[test]
fn what_a_device_is_not_to_get_any_more_is_not_pushed_when_its_time_comes() {
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
    sim.scheduler.routes([(id, Stub { hosts: true, closed: None }.route(8))], sim.now, NOW);
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

    fn pushes_until(&mut self, to: f64) -> Vec<String> {
        let mut lines = self.until(to);
        lines.retain(|line| line.contains("push"));
        lines
    }
}

#[test]
fn a_host_that_hangs_delays_no_push_to_another_host_of_the_route() {
    let mut sim = two_hosts();
    sim.service = None;
    assert_eq!(sim.pushes_until(1.0).len(), PER_HOST, "as many as one host may have");
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
    assert_eq!(sim.pushes_until(100.0).len(), 300 - PER_HOST);
    assert!(sim.until(200.0).is_empty() && sim.scheduler.accounts.is_empty());
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
fn a_push_says_of_each_mailbox_what_changed_and_its_state() {
    let mut sim = Simulation::with([phone("a")]);
    let told = |sim: &mut Simulation| -> Vec<_> {
        let mut effect = sim.scheduler.next(sim.now);
        if let Some(Effect::Read(account)) = effect {
            sim.scheduler.read(&account, Some(sim.targets.clone()), sim.now, NOW);
            effect = sim.scheduler.next(sim.now);
        }
        let Some(Effect::Send(push)) = effect else { panic!("no push: {effect:?}") };
        sim.scheduler.answered(&push.device, &accepted(), sim.now, NOW, NOW);
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

#[test]
fn a_device_that_moves_to_another_route_is_that_routes_from_then_on() {
    let mut sim = Simulation::with([phone("a")]);
    sim.scheduler.routes([route(ROUTE, 500), route("other", 500)], sim.now, NOW);
    sim.quiet("INBOX", 7);
    sim.until(1.0);
    sim.targets[0].subscription.route = "other".into();
    sim.service = Some(down(None));
    assert_eq!(sim.pushes_until(30.0), ["30 push a INBOX"]);
    assert!(sim.scheduler.view(&sim.targets[0].subscription, sim.now).shut.is_some());
}
