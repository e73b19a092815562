//! Dialogue files (`fixtures/*.imap`): what client, mailchime and backend say, line by line.
//!
//! The format is described in `fixtures/README.md`. Here it is read; who plays it against what is
//! the caller's.

mod text;

pub use self::text::{Difference, Text, Variables};

/// A dialogue, ready to be played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// What its first lines set.
    pub settings: Settings,
    /// What happens, in order.
    pub events: Vec<Event>,
}

/// The `@` lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What the backend was seen to offer before login; `None` before it was seen.
    pub backend: Option<String>,
    /// A push identity is configured.
    pub push: bool,
    /// Mechanisms that hide the password are relayed.
    pub relay: bool,
    /// A master user watches.
    pub master: bool,
    /// The client's ID goes on to the backend.
    pub send_id: bool,
    /// The backend checks the name that comes with an access token.
    pub checks_token_name: bool,
    /// Names in any case are one user to the backend.
    pub names_ignore_case: bool,
    /// The most mailboxes that a device can have watched, where that matters.
    pub mailboxes: Option<usize>,
    /// The client connects without TLS.
    pub starttls: bool,
    /// It makes sense against a live server.
    pub live: bool,
    /// Who logs in, unless the dialogue is played for somebody else.
    pub user: String,
    /// The user's password.
    pub password: String,
}

/// Something that happens, and the line of the file where it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its line in the file.
    pub line: usize,
    /// What happens.
    pub what: What,
}

/// What happens in a dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A peer says this to mailchime, in one packet.
    Says(Peer, Text),
    /// A peer hears this from mailchime.
    Hears(Peer, Text),
    /// Something that mailchime does or that happens to it.
    Does(Deed),
}

/// A side of mailchime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// The client.
    Client,
    /// The backend.
    Backend,
}

/// What mailchime does, or what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It connects to the backend, which accepts.
    Connect,
    /// It tries, and the backend closes the connection without a word.
    Unreachable,
    /// The backend closes the connection.
    HangUp,
    /// It has waited for the backend's answer for as long as it does.
    Overdue,
    /// It stores a registration for these mailboxes (decoded names), and can.
    Store(Vec<String>),
    /// It cannot store it.
    CannotStore,
    /// It shakes hands with the client, which begins TLS.
    Handshake,
    /// Both directions between client and mailchime are compressed from here on.
    Compress,
    /// It closes the connection to the client.
    Close,
}

/// A line that is not of the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Malformed {
    /// The line in the file.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

const LANES: [&str; 7] = ["C", "S", "F", "B", "CF", "BS", "P"];

const NO_LANE: &str = "begins with none of C: S: F: B: CF: BS: P: @ #";

impl Default for Settings {
    fn default() -> Self {
        Self {
            backend: None,
            push: true,
            relay: false,
            master: false,
            send_id: false,
            checks_token_name: false,
            names_ignore_case: false,
            mailboxes: None,
            starttls: false,
            live: true,
            user: "alice".into(),
            password: "wonder land".into(),
        }
    }
}

impl Dialogue {
    /// Reads a dialogue file.
    ///
    /// # Errors
    /// [`Malformed`] names the line that is not understood.
    pub fn parse(file: &str) -> Result<Self, Malformed> {
        let mut settings = Settings::default();
        // Neighbouring lines of a lane are one packet.
        let mut groups: Vec<(usize, &str, Text)> = Vec::new();
        let mut deeds = Vec::new();
        for (index, line) in file.lines().enumerate() {
            let number = index + 1;
            let malformed = |problem: String| Malformed { line: number, problem };
            if line.trim().is_empty() {
                // An empty line ends a packet, so that a pause can be shown.
                groups.push((number, "", Text::default()));
                continue;
            }
            if line.starts_with('#') {
                continue;
            }
            if let Some(setting) = line.strip_prefix("@ ") {
                settings.set(setting).map_err(malformed)?;
                continue;
            }
            let (lane, said) = line
                .split_once(':')
                .filter(|(lane, _)| LANES.contains(lane))
                .ok_or_else(|| malformed(NO_LANE.into()))?;
            let said = said.strip_prefix(' ').unwrap_or(said);
            if lane == "P" {
                let deed = Deed::parse(said.trim());
                deeds.push(deed.ok_or_else(|| malformed(format!("P: does not know {said:?}")))?);
                groups.push((number, lane, Text::default()));
                continue;
            }
            match groups.last_mut() {
                Some((_, last, packet)) if *last == lane => {
                    packet.add(number, said).map_err(malformed)?;
                }
                _ => {
                    let mut packet = Text::default();
                    packet.add(number, said).map_err(malformed)?;
                    groups.push((number, lane, packet));
                }
            }
        }
        let mut events = Vec::new();
        let mut deeds = deeds.into_iter();
        for (line, lane, text) in groups {
            let mut event = |what| events.push(Event { line, what });
            match lane {
                "C" => event(What::Says(Peer::Client, text)),
                "S" => event(What::Hears(Peer::Client, text)),
                "F" => event(What::Hears(Peer::Backend, text)),
                "B" => event(What::Says(Peer::Backend, text)),
                "CF" => {
                    event(What::Says(Peer::Client, text.clone()));
                    event(What::Hears(Peer::Backend, text));
                }
                "BS" => {
                    event(What::Says(Peer::Backend, text.clone()));
                    event(What::Hears(Peer::Client, text));
                }
                "P" => deeds.next().into_iter().for_each(|deed| event(What::Does(deed))),
                _ => {}
            }
        }
        if events.is_empty() {
            return Err(Malformed { line: 1, problem: "nothing is said".into() });
        }
        Ok(Self { settings, events })
    }
}

impl Settings {
    fn set(&mut self, setting: &str) -> Result<(), String> {
        let (name, value) = setting.split_once(' ').unwrap_or((setting, ""));
        match (name, value.trim()) {
            ("backend", list) => self.backend = Some(list.to_owned()),
            ("push", "off") => self.push = false,
            ("relay", "always") => self.relay = true,
            ("master", "") => self.master = true,
            ("send-id", "") => self.send_id = true,
            ("checks-token-name", "") => self.checks_token_name = true,
            ("names-ignore-case", "") => self.names_ignore_case = true,
            ("mailboxes", number) => {
                let number = number.parse().ok().filter(|number| *number > 0);
                self.mailboxes = Some(number.ok_or_else(|| format!("@ {setting} has no number"))?);
            }
            ("starttls", "") => self.starttls = true,
            ("live", "no") => self.live = false,
            ("user", name) if !name.is_empty() => self.user = name.to_owned(),
            ("password", word) if !word.is_empty() => self.password = word.to_owned(),
            _ => return Err(format!("@ does not know {setting:?}")),
        }
        Ok(())
    }
}

impl Deed {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "connect" => Self::Connect,
            "unreachable" => Self::Unreachable,
            "hang up" => Self::HangUp,
            "overdue" => Self::Overdue,
            "store" => Self::Store(Vec::new()),
            "cannot store" => Self::CannotStore,
            "handshake" => Self::Handshake,
            "compress" => Self::Compress,
            "close" => Self::Close,
            _ => {
                let mailboxes = text.strip_prefix("store ")?;
                Self::Store(mailboxes.split(", ").map(str::to_owned).collect())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_become_events() {
        let dialogue = Dialogue::parse(
            "# a comment\n@ backend IDLE\nC: a NOOP\nC: b {3}\nS: x\\x00y\\\nCF: c\n\nC: d\nC: \n\nC: e\nP: connect\nP: store A, B c",
        )
        .unwrap();
        assert_eq!(dialogue.settings.backend.as_deref(), Some("IDLE"));
        let shown: Vec<_> = dialogue
            .events
            .iter()
            .map(|event| match &event.what {
                What::Says(peer, text) => {
                    format!("{} {peer:?} says {}", event.line, text.bytes().escape_ascii())
                }
                What::Hears(peer, text) => {
                    format!("{} {peer:?} hears {}", event.line, text.bytes().escape_ascii())
                }
                What::Does(deed) => format!("{} {deed:?}", event.line),
            })
            .collect();
        assert_eq!(
            shown,
            [
                r"3 Client says a NOOP\r\nb {3}\r\n",
                r"5 Client hears x\x00y",
                r"6 Client says c\r\n",
                r"6 Backend hears c\r\n",
                r"8 Client says d\r\n\r\n",
                r"11 Client says e\r\n",
                "12 Connect",
                r#"13 Store(["A", "B c"])"#,
            ]
        );
    }

    #[test]
    fn a_line_that_breaks_the_format_is_named_with_its_number() {
        for (file, line) in [
            ("C: x\nX: y\n", 2),
            ("C: \\xg0", 1),
            ("C: ${*99999999999}", 1),
            ("# nothing", 1),
            ("C: x\n\nP: dance", 3),
            ("@ backend X\n@ push on\nC: x", 2),
            ("@ user\nC: x", 1),
        ] {
            assert_eq!(Dialogue::parse(file).unwrap_err().line, line, "{file}");
        }
    }
}
