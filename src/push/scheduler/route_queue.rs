//! The way out for the subscriptions of one route. Each of its peers has a queue of its own: what holds
//! up one holds up no other.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::super::transport::{Blame, Route, RouteId, Transport, TransportLimits, Verdict};
use super::circuit_breaker::{
    BadEndpointMonitor, BadEndpoints, BreakerPass, CircuitBreaker, FailureScope,
};
use super::schedule::{Schedule, Tenant, TenantPart};
use super::{REFUSED, UNAVAILABLE, at_least};
use crate::model::{Account, Subscription};

/// With so many peers those of which there is nothing to remember are forgotten; with so many times as many,
/// that a peer has answered is forgotten, too.
const SWEEP: usize = 1024;
const MOST: usize = 16 * SWEEP;
/// For so long a push that a service accepted shows that it knows who mailchime is. A subscription is removed for its
/// own fault after several times as long, so what an operator breaks is seen before.
const LATELY: Duration = Duration::from_hours(24);
/// Of the pushes that may be under way, the part for peers that have not shown that they answer.
const UNPROVEN_PART: usize = 2;

pub(super) struct RouteQueue {
    id: RouteId,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) limits: TransportLimits,
    peers: HashMap<Arc<str>, PeerQueue>,
    /// When each peer has something to send, soonest first: those that are proven, and the others.
    proven: Agenda,
    unproven: Agenda,
    /// Pushes that are under way or have their turns, and how many may be.
    sending: usize,
    in_flight: usize,
    /// Those of them to peers that are not proven.
    sending_unproven: usize,
    /// Accounts in the queues of the peers.
    queued: usize,
    sweep_at: usize,
    /// The last moment that a push began or was answered.
    now: Option<Instant>,
    /// When a push of the route was last accepted, by any peer.
    accepted_at: Option<Instant>,
}

type Agenda = BTreeSet<(Instant, Arc<str>)>;

/// What is for one peer.
#[derive(Default)]
struct PeerQueue {
    /// The last push to it was answered. One that is not proven gets one push at a time, and all of those
    /// together a part of the route's: however many hang, the others have room.
    proven: bool,
    pushes: Schedule,
    sending: usize,
    breaker: CircuitBreaker,
    monitor: BadEndpointMonitor,
    /// When a push to it was last accepted.
    accepted_at: Option<Instant>,
    /// Where it stands in the agenda.
    due_at: Option<(Instant, bool)>,
}

/// What an answer says besides what becomes of its push.
#[derive(Default)]
pub(super) struct AnswerNews {
    /// Of endpoints, if it says something of them.
    pub(super) bad: Option<BadEndpoints>,
    /// Whose fault a failure that lasts is, as far as the other pushes of the route show that.
    pub(super) fault: Option<Fault>,
}

/// Whose fault a failure that lasts is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The subscription's own: its service takes the pushes of others.
    Subscription,
    /// Its own or the operator's: its service is asked for no other, and other services take pushes. It counts as its
    /// own, for the service took the push that confirmed it.
    Alone,
    /// One that an operator mends.
    Operator,
}

/// A push that is under way and was answered.
pub(super) struct PushAnswer<'a> {
    pub(super) sent: &'a Subscription,
    pub(super) verdict: &'a Verdict,
    /// How it came through the breaker; `None` where that is no longer known.
    pub(super) pass: Option<BreakerPass>,
    /// For the jitter of waits.
    pub(super) chance: f64,
}

impl Fault {
    /// Whether it counts as the subscription's own.
    pub(super) fn counts(self) -> bool {
        matches!(self, Self::Subscription | Self::Alone)
    }
}

// === impl RouteQueue ===

impl RouteQueue {
    /// `before` is the queue of the route that was there before: its pushes that are under way count.
    pub(super) fn new(id: RouteId, route: &Route, before: Option<Self>) -> Self {
        let before = before.into_iter().flat_map(|before| before.peers);
        let peers: HashMap<_, _> = before
            .filter(|(_, queue)| queue.sending > 0 || queue.proven)
            .map(|(peer, PeerQueue { sending, proven, .. })| {
                (peer, PeerQueue { sending, proven, ..PeerQueue::default() })
            })
            .collect();
        let unproven = peers.values().filter(|queue| !queue.proven);
        Self {
            id,
            transport: Arc::clone(route.transport()),
            limits: route.transport().limits(),
            sending: peers.values().map(|queue| queue.sending).sum(),
            sending_unproven: unproven.map(|queue| queue.sending).sum(),
            peers,
            proven: BTreeSet::new(),
            unproven: BTreeSet::new(),
            in_flight: route.in_flight().max(1),
            queued: 0,
            sweep_at: SWEEP,
            now: None,
            accepted_at: None,
        }
    }

    /// The account has a push for this peer at this time, or none any more.
    pub(super) fn schedule(&mut self, peer: &Arc<str>, account: &Account, at: Option<Instant>) {
        if at.is_some() || self.peers.contains_key(peer) {
            self.change(peer, |queue| queue.pushes.set(account, at));
        }
    }

    /// Takes the account whose turn it is off the queue of the peer for which it is, if a push may go:
    /// `wait` is as for [`Schedule::take_unless`].
    pub(super) fn take(
        &mut self,
        now: Instant,
        share: impl Fn(&Account) -> Tenant,
        mut wait: impl FnMut(TenantPart<'_>) -> Option<Instant>,
    ) -> Option<(Arc<str>, Account, Tenant)> {
        loop {
            let (due_at, peer) = self.first()?;
            if *due_at > now {
                return None;
            }
            let peer = Arc::clone(peer);
            let taken =
                self.change(&peer, |queue| queue.pushes.take_unless(now, &share, &mut wait));
            if let Some((account, share)) = taken {
                return Some((peer, account, share));
            }
        }
    }

    /// A push to this peer begins.
    pub(super) fn begin(&mut self, peer: &Arc<str>, now: Instant) -> Option<BreakerPass> {
        self.now = Some(now);
        self.change(peer, |queue| {
            let pass = queue.breaker.pass(now)?;
            queue.sending += 1;
            Some(pass)
        })
    }

    /// A push that was begun is not sent.
    pub(super) fn release(&mut self, peer: &Arc<str>, pass: BreakerPass) {
        self.change(peer, |queue| {
            queue.sending = queue.sending.saturating_sub(1);
            queue.breaker.release(pass);
        });
    }

    /// Takes note of what an answer says of the peer and of the route; returns what else it says.
    pub(super) fn answered(&mut self, answer: PushAnswer<'_>, now: Instant) -> AnswerNews {
        self.now = Some(now);
        let PushAnswer { verdict, pass, .. } = answer;
        // What was sent under another identity says nothing of this one.
        let counts = pass.is_some_and(|pass| pass != BreakerPass::Late);
        let is_accepted = counts && matches!(verdict, Verdict::Accepted { .. });
        if is_accepted {
            self.accepted_at = Some(now);
        }
        let (route, route_accepted_at) = (self.id.clone(), self.accepted_at);
        let peer = self.transport.peer(answer.sent);
        self.change(&peer, |queue| {
            queue.sending = queue.sending.saturating_sub(1);
            if is_accepted {
                queue.accepted_at = Some(now);
            }
            let bad = queue.answered(answer, &route, &peer, now);
            let fault = counts.then(|| queue.fault(verdict, route_accepted_at, now)).flatten();
            AnswerNews { bad, fault }
        })
    }

    /// For how long all subscriptions of this peer wait: zero while one push tries, `None` while none does.
    pub(super) fn shut(&self, subscription: &Subscription, now: Instant) -> Option<Duration> {
        let queue = self.peers.get(&self.transport.peer(subscription))?;
        let left = |at: Instant| at.saturating_duration_since(now);
        let shut = !queue.breaker.is_open();
        shut.then(|| queue.breaker.opens_at().map(left).unwrap_or_default())
    }

    /// When there is something to send, if time alone brings it.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.first().map(|(at, _)| *at)
    }

    /// Accounts with a subscription to be pushed, each counted once a peer, and pushes that are under way.
    pub(super) fn to_push(&self) -> usize {
        self.queued + self.sending
    }

    /// The peer whose push is due first, of those that may have one more under way.
    fn first(&self) -> Option<&(Instant, Arc<str>)> {
        if self.sending >= self.in_flight {
            return None;
        }
        let part = (self.in_flight / UNPROVEN_PART).max(1);
        let has_room = !self.has_peers() || self.sending_unproven < part;
        let unproven = self.unproven.first().filter(|_| has_room);
        [self.proven.first(), unproven].into_iter().flatten().min()
    }

    /// Whether there may be more than one peer, as where users say where to.
    pub(super) fn has_peers(&self) -> bool {
        self.limits.in_flight_per_peer < usize::MAX
    }

    /// Changes what is for one peer, and with it what is known of all.
    fn change<T>(&mut self, peer: &Arc<str>, change: impl FnOnce(&mut PeerQueue) -> T) -> T {
        if !self.peers.contains_key(peer) && self.peers.len() >= self.sweep_at {
            let now = self.now;
            self.peers.retain(|_, queue| !queue.is_idle(now) || queue.proven);
            if self.peers.len() >= MOST {
                self.peers.retain(|_, queue| !queue.is_idle(now));
            }
            self.sweep_at = SWEEP.max(2 * self.peers.len());
        }
        let has_peers = self.has_peers();
        let queue = self.peers.entry(Arc::clone(peer)).or_default();
        self.queued -= queue.pushes.len();
        self.sending -= queue.sending;
        self.sending_unproven -= if queue.proven { 0 } else { queue.sending };
        let changed = change(queue);
        self.queued += queue.pushes.len();
        self.sending += queue.sending;
        self.sending_unproven += if queue.proven { 0 } else { queue.sending };
        let most = if has_peers && !queue.proven { 1 } else { self.limits.in_flight_per_peer };
        let due_at = queue.next(most).map(|at| (at, queue.proven));
        let before = std::mem::replace(&mut queue.due_at, due_at);
        if before != due_at {
            if let Some((at, proven)) = before {
                let agenda = if proven { &mut self.proven } else { &mut self.unproven };
                agenda.remove(&(at, Arc::clone(peer)));
            }
            if let Some((at, proven)) = due_at {
                let agenda = if proven { &mut self.proven } else { &mut self.unproven };
                agenda.insert((at, Arc::clone(peer)));
            }
        }
        changed
    }
}

// === impl PeerQueue ===

impl PeerQueue {
    fn answered(
        &mut self,
        PushAnswer { sent, verdict, pass, chance }: PushAnswer<'_>,
        route: &RouteId,
        peer: &str,
        now: Instant,
    ) -> Option<BadEndpoints> {
        self.proven = match verdict {
            // Nothing was sent.
            Verdict::Unrenderable { .. } => self.proven,
            Verdict::Unavailable { .. } | Verdict::RouteClosed { .. } => false,
            _ => true,
        };
        let pass = pass?;
        if let Verdict::Unrenderable { .. } = verdict {
            // Nothing was sent, so it says nothing of the service.
            self.breaker.release(pass);
            return None;
        }
        let failure = match (verdict, verdict.blames()) {
            (Verdict::Accepted { .. }, _) | (_, Blame::Subscription) => {
                if self.breaker.answered(pass, &sent.endpoint) {
                    info!(
                        target: "mailchime::push::route_resumed",
                        transport = %route.transport, route = %route.name, peer,
                        "the push service accepts pushes of this route again"
                    );
                }
                let bad = *verdict == Verdict::BadEndpoint;
                return Some(self.monitor.answered(&sent.account, &sent.endpoint, bad, now));
            }
            (_, Blame::Route) => FailureScope::Route,
            (_, Blame::Nobody | Blame::Us) => FailureScope::One(&sent.endpoint),
        };
        let backoff = if verdict.blames() == Blame::Us { REFUSED } else { UNAVAILABLE };
        if self.breaker.failed(pass, failure, now, backoff, at_least(verdict), chance) {
            warn!(
                target: "mailchime::push::route_paused",
                transport = %route.transport,
                route = %route.name,
                peer,
                outcome = verdict.name(),
                "pushes of this route fail; mailchime holds them back and tries one at a time"
            );
        }
        None
    }

    /// Whose fault this is. Nothing counts that was accepted longer ago than lately, by the peer or by the route.
    fn fault(
        &self,
        verdict: &Verdict,
        route_accepted_at: Option<Instant>,
        now: Instant,
    ) -> Option<Fault> {
        let (mostly, accepted_at, fault) = match verdict {
            Verdict::TooLarge
            | Verdict::TooLargeInShort
            | Verdict::Rejected { .. }
            | Verdict::Misconfigured { .. } => return Some(Fault::Operator),
            Verdict::Refused { .. } if self.breaker.has_one_endpoint() => {
                (false, route_accepted_at, Fault::Alone)
            }
            // Where the service has others, it says nothing that another one takes pushes: some take them from
            // anybody.
            Verdict::Refused { .. } => {
                (self.breaker.fails_mostly(), self.accepted_at, Fault::Subscription)
            }
            // Something that answers in the place of the services would do so for all of them.
            Verdict::BadEndpoint => {
                (!self.monitor.is_only_bad_one(), route_accepted_at, Fault::Subscription)
            }
            _ => return None,
        };
        let lately = |at: Instant| now.saturating_duration_since(at) < LATELY;
        match mostly {
            true => Some(Fault::Operator),
            false => accepted_at.is_some_and(lately).then_some(fault),
        }
    }

    /// When a push may go, of which `most` may be under way.
    fn next(&self, most: usize) -> Option<Instant> {
        if self.sending >= most {
            return None;
        }
        let next = self.pushes.next()?;
        match self.breaker.is_open() {
            true => Some(next),
            false => Some(next.max(self.breaker.opens_at()?)),
        }
    }

    /// Whether there is nothing to remember of it at `now`.
    fn is_idle(&self, now: Option<Instant>) -> bool {
        let waits = || self.breaker.opens_at().is_none_or(|at| now.is_none_or(|now| now < at));
        let is_shut = !self.breaker.is_open() && waits();
        self.pushes.len() == 0 && self.sending == 0 && !is_shut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PushEndpoint, TransportId};
    use crate::push::transport::stub::Stub;

    #[test]
    fn a_peer_whose_wait_is_over_and_that_gets_nothing_is_forgotten() {
        let route = Stub { hosts: true, ..Stub::default() }.route(8);
        let subscription = |n: usize| {
            let endpoint = format!("u@{n}.example");
            Subscription {
                account: Account::from_login("u"),
                transport: TransportId::new("stub"),
                endpoint: PushEndpoint::new(&endpoint, &endpoint),
                app: "".into(),
                route: "stub".into(),
                options: "{}".into(),
                secrets: None,
                expires_at: None,
            }
        };
        let mut queue = RouteQueue::new(RouteId::of(&subscription(0)), &route, None);
        let closed = Verdict::RouteClosed { why: "gone".to_owned(), retry_after: None };
        let start = Instant::now();
        for n in 0..4 * SWEEP {
            // Each waits for less than that.
            let now = start + n as u32 * Duration::from_secs(1);
            let sent = subscription(n);
            let pass = queue.begin(&queue.transport.peer(&sent), now);
            assert!(pass.is_some());
            let answer = PushAnswer { sent: &sent, verdict: &closed, pass, chance: 0.0 };
            queue.answered(answer, now);
            assert!(queue.shut(&sent, now).is_some());
        }
        assert!(queue.peers.len() <= 2 * SWEEP, "{}", queue.peers.len());
    }
}
