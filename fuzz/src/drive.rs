//! Plays a script against a state machine as the proxy's session task does, and keeps a log.

use mailchime::imap::contract::{Action, BackendTraits, Output, Step};
use mailchime::imap::relay::Relay;
use mailchime::imap::session::Session;
use mailchime::model::RegistrationResult;

use crate::script::{Cut, Event, Script, Side};

/// What can be driven: a session, or the part of it that is behind the login.
pub trait Machine {
    fn step(&mut self, side: Side, input: &[u8], last: bool) -> Step;
    fn output(&mut self) -> &mut Output;
    /// What the caller was asked to do is done, or cannot be.
    fn done(&mut self, asked: &Action, well: bool);
}

#[derive(Debug)]
pub struct BareRelay {
    pub relay: Relay,
    pub output: Output,
}

impl Machine for BareRelay {
    fn step(&mut self, side: Side, input: &[u8], last: bool) -> Step {
        match side {
            Side::Client => self.relay.client(input, last, &mut self.output),
            Side::Backend => self.relay.backend(input, last, &mut self.output),
        }
    }

    fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    fn done(&mut self, asked: &Action, well: bool) {
        if let Action::Register(_) = asked {
            self.relay.registered(result(well), &mut self.output);
        }
    }
}

impl Machine for Session {
    fn step(&mut self, side: Side, input: &[u8], last: bool) -> Step {
        match side {
            Side::Client => self.client(input, last),
            Side::Backend => self.backend(input, last),
        }
    }

    fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    fn done(&mut self, asked: &Action, well: bool) {
        match asked {
            Action::Register(_) => self.registered(result(well)),
            Action::StartTls => self.secured(),
            Action::Connect(_) if well => {
                self.connected(BackendTraits { send_id: true, ..BackendTraits::default() });
            }
            Action::Connect(_) => drop(self.unavailable("unreachable")),
            Action::Failed(_) => self.release(),
            Action::Admit(_) => self.admitted(),
            _ => {}
        }
    }
}

/// Something that happened, in order.
#[derive(Debug)]
pub enum Happened {
    /// Bytes of this side went on to the other.
    Forwarded(Side, Vec<u8>),
    /// Bytes of this side were used up.
    Taken(Side, Vec<u8>),
    /// Bytes of ours to this side.
    Said(Side, Vec<u8>),
    Did(Action),
}

/// What came of a script.
#[derive(Debug, Default)]
pub struct Log {
    pub happened: Vec<Happened>,
    pub to_client: Vec<u8>,
    pub to_backend: Vec<u8>,
    /// Actions, each with how much had been said to either side before it.
    pub actions: Vec<(usize, usize, String)>,
    pub closed: Option<&'static str>,
    /// Bytes that nobody wanted until the end.
    pub left: [usize; 2],
}

struct Drive<'a, M> {
    machine: &'a mut M,
    kept: [Vec<u8>; 2],
    ended: [bool; 2],
    asked: Option<Action>,
    log: Log,
}

/// Plays all of the script; both sides hang up at its end.
pub fn play(machine: &mut impl Machine, script: &Script, cut: Cut) -> Log {
    let mut drive = Drive {
        machine,
        kept: Default::default(),
        ended: [false; 2],
        asked: None,
        log: Log::default(),
    };
    drive.flush();
    drive.run();
    for event in &script.events {
        match event {
            Event::Says(side, pieces) => {
                // What the backend answers may let the client's waiting bytes go on, and an answer
                // to those cannot come before them: whatever the cut, a line at a time then.
                let lines = *side == Side::Backend && !drive.kept[Side::Client as usize].is_empty();
                for piece in cut.apply(pieces) {
                    let longest = if lines { &b"\n"[..] } else { b"" };
                    for part in piece.split_inclusive(|b| longest.contains(b)) {
                        drive.kept[*side as usize].extend_from_slice(part);
                        drive.run();
                    }
                }
            }
            Event::Done(well) => {
                if let Some(asked) = drive.asked.take() {
                    drive.machine.done(&asked, *well);
                    drive.flush();
                    drive.run();
                }
            }
        }
        if drive.log.closed.is_some() {
            break;
        }
    }
    for side in [Side::Backend, Side::Client] {
        if drive.log.closed.is_none() {
            drive.ended[side as usize] = true;
            drive.run();
        }
    }
    let Drive { mut log, kept, .. } = drive;
    log.left = kept.map(|kept| kept.len());
    log
}

impl<M: Machine> Drive<'_, M> {
    /// Both lanes until neither moves.
    fn run(&mut self) {
        while self.log.closed.is_none() && (self.pump(Side::Client) | self.pump(Side::Backend)) {}
    }

    fn pump(&mut self, side: Side) -> bool {
        let lane = side as usize;
        let mut moved = false;
        // Each step uses bytes, says something, or is the last but one.
        let mut idle_steps = 0;
        while self.log.closed.is_none() {
            let input = std::mem::take(&mut self.kept[lane]);
            let step = self.machine.step(side, &input, self.ended[lane]);
            self.kept[lane] = input;
            let said = {
                let output = self.machine.output();
                output.to_client.len() + output.to_backend.len() + output.actions.len()
            };
            match step {
                Step::Wait => {
                    self.flush();
                    return moved;
                }
                Step::Forward(length) => {
                    assert!(length > 0, "a forward of nothing");
                    assert_eq!(said, 0, "a forward that also says something");
                    let bytes: Vec<u8> = self.kept[lane].drain(..length).collect();
                    match side {
                        Side::Client => self.log.to_backend.extend_from_slice(&bytes),
                        Side::Backend => self.log.to_client.extend_from_slice(&bytes),
                    }
                    self.log.happened.push(Happened::Forwarded(side, bytes));
                    moved = true;
                }
                Step::Take(length) => {
                    let bytes: Vec<u8> = self.kept[lane].drain(..length).collect();
                    if length > 0 {
                        self.log.happened.push(Happened::Taken(side, bytes));
                        moved = true;
                    } else if said == 0 && self.kept[lane].is_empty() {
                        return moved;
                    } else if said > 0 {
                        moved = true;
                    } else {
                        idle_steps += 1;
                        assert!(idle_steps < 3, "steps that do nothing");
                    }
                }
                Step::Close(why) => {
                    self.flush();
                    self.log.closed = Some(why);
                }
            }
            self.flush();
        }
        moved
    }

    /// Writes what the machine says, and notes what it wants done.
    fn flush(&mut self) {
        let output = self.machine.output();
        let to_client = std::mem::take(&mut output.to_client);
        let to_backend = std::mem::take(&mut output.to_backend);
        let actions = std::mem::take(&mut output.actions);
        output.answered.clear();
        let log = &mut self.log;
        log.to_client.extend_from_slice(&to_client);
        log.to_backend.extend_from_slice(&to_backend);
        for (side, bytes) in [(Side::Client, to_client), (Side::Backend, to_backend)] {
            if !bytes.is_empty() {
                log.happened.push(Happened::Said(side, bytes));
            }
        }
        let mut admitted = None;
        for action in actions {
            let places = (log.to_client.len(), log.to_backend.len());
            log.actions.push((places.0, places.1, format!("{action:?}")));
            match &action {
                Action::Close => log.closed = Some("closed"),
                Action::Register(_) | Action::StartTls | Action::Connect(_) | Action::Failed(_) => {
                    self.asked = Some(copy(&action))
                }
                // There is always room.
                Action::Admit(account) => admitted = Some(Action::Admit(account.clone())),
                _ => {}
            }
            log.happened.push(Happened::Did(action));
        }
        if let Some(admitted) = admitted {
            self.machine.done(&admitted, true);
            self.flush();
        }
    }
}

/// Actions are no `Clone`, and only some are asked to be done.
fn copy(action: &Action) -> Action {
    match action {
        Action::Register(registration) => Action::Register(registration.clone()),
        Action::StartTls => Action::StartTls,
        Action::Connect(account) => Action::Connect(account.clone()),
        Action::Failed(failure) => Action::Failed(failure.clone()),
        _ => Action::Close,
    }
}

/// Both logs say the same; of a session that was closed, as far as either got.
pub fn assert_same(whole: &Log, other: &Log, cut: Cut) {
    let shown = |bytes: &[u8], most: usize| bytes[..most].escape_ascii().to_string();
    assert_eq!(whole.closed, other.closed, "closed, {cut:?}");
    let ended = whole.closed.is_some();
    for (to, whole, other) in [
        ("client", &whole.to_client, &other.to_client),
        ("backend", &whole.to_backend, &other.to_backend),
    ] {
        let both = whole.len().min(other.len());
        let [one, two] = if ended { [both, both] } else { [whole.len(), other.len()] };
        assert_eq!(shown(whole, one), shown(other, two), "to the {to}, {cut:?}");
    }
    assert_eq!(whole.actions, other.actions, "actions, {cut:?}");
    assert!(ended || whole.left == other.left, "left, {cut:?}");
}

fn result(well: bool) -> RegistrationResult {
    if well {
        RegistrationResult::Stored { route: "com.apple.mail.XServer.x".into() }
    } else {
        RegistrationResult::Unavailable
    }
}
