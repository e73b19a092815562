//! The rules as dialogues: what happens, and at which second what is done about it.

mod lasting;
mod own_fault;
mod previews;
mod resting;
mod routes;
mod unread;
mod verdicts;

use super::*;
use crate::config::Events;
use crate::model::{Change, ChangeKind, LastingFailure, PushEndpoint, Snapshot, TransportId};
use crate::push::transport::stub::{OF_INBOX_ALONE, OF_NEW_MAIL_ALONE, PER_HOST, Stub};
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
    /// The endpoints for which it always has trouble, and which.
    failing: Vec<&'static str>,
    trouble: Verdict,
    under_way: Vec<Arc<Subscription>>,
    id: u64,
    /// The watcher asks for the sender and the subject of new mail.
    previews: bool,
    /// How many messages are unread before new mail, as the watcher says it.
    unread_before: Option<u64>,
    /// Whether lines say since when a subscription fails.
    shows_failing: bool,
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

/// A subscription whose endpoint begins with `name`, for INBOX and Notes.
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
        state: Default::default(),
        registered_at: REGISTERED,
        heard_at: REGISTERED,
        renews: true,
        backend,
        outdated_since: None,
        outdated_at: None,
        pushed_at: None,
        failing: None,
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
            trouble: unavailable(),
            under_way: Vec::new(),
            id: 0,
            previews: false,
            unread_before: None,
            shows_failing: false,
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

    fn pushes_until(&mut self, to: f64) -> Vec<String> {
        let mut lines = self.until(to);
        lines.retain(|line| line.contains("push"));
        lines
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
                self.scheduler.read(&account, targets, self.now, NOW, NOW);
            }
            Effect::Send(push) => {
                let names: Vec<_> = push.mailboxes.iter().map(|it| it.mailbox.as_str()).collect();
                let name = name(&push.subscription.endpoint);
                let newest = push.newest.map_or_else(String::new, |it| {
                    let sender = it.preview.sender().unwrap_or_default();
                    format!(": {sender} in {}, {}", it.mailbox, it.preview.messages)
                });
                let before = push.mailboxes.iter().filter_map(|it| it.unread_before);
                let before: String = before.map(|it| format!(", {it} before")).collect();
                self.say(format!("push {name} {}{newest}{before}", names.join("+")));
                let fails = self.failing.contains(&name).then(|| self.trouble.clone());
                match fails.or_else(|| self.service.clone()) {
                    Some(outcome) => {
                        self.scheduler.answered(&push.subscription, &outcome, self.now, NOW, NOW)
                    }
                    None => self.under_way.push(push.subscription),
                }
            }
            Effect::Write(batch) if self.database => {
                let failing = self.shows_failing;
                for line in written(&batch).into_iter().filter(|it| failing || !is_failing(it)) {
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

    /// The service answers the push that has been under way for longest.
    fn answer(&mut self, outcome: Verdict) {
        let subscription = self.under_way.remove(0);
        self.scheduler.answered(&subscription, &outcome, self.now, NOW, NOW);
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
        let preview_follows = self.previews;
        let backend = home();
        let change = Change {
            account,
            backend,
            mailbox,
            kind,
            id,
            snapshot,
            seen_at,
            unread_before: self.unread_before,
            preview_follows,
        };
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

fn is_failing(line: &str) -> bool {
    line.starts_with("failing")
}

fn written(batch: &Batch) -> Vec<String> {
    let settlement = |settlement: &Settlement| match settlement {
        Settlement::Told { mailbox, snapshot, .. } => {
            format!("told {mailbox} {}", snapshot.uid_next.unwrap())
        }
        Settlement::Owed { subscription, mailbox, .. } => {
            format!("owed {} {mailbox}", name(&subscription.endpoint))
        }
        Settlement::Failing { subscription, failure, .. } => {
            let own_fault = failure.own_fault.as_secs();
            let by_itself = if own_fault > 0 { format!(" {own_fault} s") } else { String::new() };
            format!("failing {}{by_itself}", name(&subscription.endpoint))
        }
        Settlement::Accepted { subscription, mailboxes, .. } => {
            let mut names: Vec<_> = mailboxes.iter().map(Mailbox::as_str).collect();
            names.sort_unstable();
            format!("accepted {} {}", name(&subscription.endpoint), names.join("+"))
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
fn new_mail_goes_at_once_and_its_row_moves_when_all_subscriptions_have_accepted() {
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
        "the scheduler forgets the accounts of subscriptions that it pushed"
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
fn a_subscription_that_hears_of_new_mail_alone_holds_up_no_quiet_change_and_is_owed_none() {
    let mut quiet = phone("a");
    quiet.subscription.options = OF_NEW_MAIL_ALONE.into();
    let mut sim = Simulation::with([quiet, phone("b")]);
    sim.quiet("INBOX", 2);
    assert_eq!(sim.until(99.0), ["30 push b INBOX", "30 accepted b INBOX", "30 told INBOX 2"]);
    sim.targets.truncate(1);
    sim.quiet("INBOX", 3);
    assert_eq!(sim.until(199.0), ["99 told INBOX 3"]);
    // What waits for it has the newest state, whatever has changed.
    sim.service = Some(down(None));
    sim.mail("INBOX", 4);
    sim.until(199.5);
    sim.quiet("INBOX", 5);
    sim.until(199.6);
    let mut pushed = None;
    while pushed.is_none() {
        let wake_at = sim.scheduler.wake_at(sim.now).expect("a push waits");
        sim.now = wake_at.max(sim.now);
        match sim.scheduler.next(sim.now) {
            Some(Effect::Send(push)) => pushed = Some(push),
            Some(other) => sim.act(other),
            None => {}
        }
    }
    let [change] = &pushed.unwrap().mailboxes[..] else { panic!("not one mailbox") };
    assert_eq!((change.kind, change.state), (ChangeKind::NewMail, state(5)));
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
fn a_push_that_is_sent_again_has_the_state_that_came_while_it_was_under_way() {
    let mut sim = Simulation::with([phone("a")]);
    sim.service = None;
    let id = sim.change("INBOX", ChangeKind::NewMail, None);
    assert_eq!(sim.until(1.0), ["0 push a INBOX"]);
    sim.confirm(id, 7);
    sim.answer(unavailable());
    sim.until(1.5);
    sim.now = sim.start + seconds(2.0);
    let again = loop {
        match sim.scheduler.next(sim.now) {
            Some(Effect::Send(push)) => break push,
            Some(other) => sim.act(other),
            None => panic!("it is not sent again"),
        }
    };
    assert_eq!(again.mailboxes[0].state, state(7));
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
fn only_subscriptions_of_this_route_and_mailbox_are_pushed_and_the_others_hold_up_nothing() {
    let mut asleep = phone("a");
    asleep.subscription.route = "old".into();
    let mut other = phone("b");
    other.mailboxes.remove(0);
    let mut limited = phone("c");
    limited.subscription.options = OF_INBOX_ALONE.into();
    let mut sim = Simulation::with([asleep, other, limited]);
    sim.mail("INBOX", 7);
    let done = ["0 push c INBOX", "0 accepted c INBOX", "0 owed a INBOX", "0 told INBOX 7"];
    assert_eq!(sim.until(9.0), done);
    sim.mail("Notes", 3);
    let done = ["9 push b Notes", "9 accepted b Notes", "9 owed a Notes", "9 told Notes 3"];
    assert_eq!(sim.until(19.0), done);
    sim.mail("Elsewhere", 1);
    assert_eq!(sim.until(29.0), ["19 told Elsewhere 1"], "a row that concerns nobody moves");
    assert!(sim.scheduler.accounts.is_empty());
}
