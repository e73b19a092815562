//! A session as the lines of a dialogue (`fixtures/README.md`), with stand-ins for what is private.
//!
//! Four streams are followed, each line by line: what the client says, what the backend says, and
//! what mailchime says to either. A literal that is content is never kept, only counted.

use std::time::Duration;

use super::mask::{Masks, shape};
use super::words::{Form, Manner, Pairs, words};
use crate::imap::contract::Profile;
use crate::imap::literal::Announcement;
use crate::imap::peek::{self, Response};
use crate::imap::tap::Flow;

/// Longest part of a line that is kept; of a longer one only the length is given.
const LONGEST_LINE: usize = 64 * 1024;

/// The most that one placeholder stands for.
const LONGEST_FILL: u64 = 16 * 1024 * 1024;

/// A pause that is worth a comment.
const PAUSE: Duration = Duration::from_millis(100);

/// Tags that are remembered, of commands that are not answered yet.
const MOST_TAGS: usize = 64;

/// What is written of one session.
pub(super) struct Transcript {
    /// Lines that were not taken yet.
    pub(super) text: String,
    masks: Masks,
    /// Of the client, the backend, mailchime to the client and mailchime to the backend.
    streams: [StreamText; 4],
    /// The client's AUTHENTICATE under way.
    sasl: Option<Sasl>,
    /// That of mailchime at the backend.
    own_sasl: Option<Sasl>,
    tags: Vec<Vec<u8>>,
    /// mailchime's questions to the backend so far, which have random tags.
    questions: Vec<Vec<u8>>,
    last: Duration,
    introduced: bool,
}

struct Sasl {
    mechanism: String,
    tag: Vec<u8>,
    /// Messages so far.
    messages: usize,
}

#[derive(Default)]
struct StreamText {
    /// Of a line whose end has not come.
    partial: Vec<u8>,
    literal: Literal,
    /// That of the command or response under way; `None` at the start of one.
    manner: Option<Manner>,
    /// Of the command under way.
    tag: Vec<u8>,
    /// A line is too long to be kept, and has not ended.
    overlong: bool,
}

#[derive(Default)]
enum Literal {
    #[default]
    None,
    /// Announced; its sender waits.
    Awaited(Announcement),
    /// Content: how much of the placeholder that stands there is to come, and of what has none yet.
    Content { part: u64, rest: u64 },
    /// A value of this length, as far as it has come.
    Value(usize, Vec<u8>),
}

/// What a dialogue without `@ mailboxes` has in its place.
pub const MAILBOXES: usize = 64;

impl Transcript {
    /// Begins with the settings of a session.
    pub(super) fn new(profile: &Profile, secure: bool) -> Self {
        let mut text = String::from("# Recorded; names, secrets and contents are replaced.\n");
        if let Some(backend) = &profile.backend {
            text.push_str(&format!("@ backend {backend}\n"));
        }
        for (holds, setting) in [
            (profile.push.is_none(), "@ push off\n"),
            (profile.relay_mechanisms, "@ relay always\n"),
            (profile.master, "@ master\n"),
            (!secure, "@ starttls\n@ live no\n"),
        ] {
            if holds {
                text.push_str(setting);
            }
        }
        if let Some(push) = &profile.push
            && push.most_mailboxes != MAILBOXES
        {
            text.push_str(&format!("@ mailboxes {}\n", push.most_mailboxes));
        }
        Self {
            text,
            masks: Masks::default(),
            streams: Default::default(),
            sasl: None,
            own_sasl: None,
            tags: Vec::new(),
            questions: Vec::new(),
            last: Duration::ZERO,
            introduced: false,
        }
    }

    /// A setting of dialogues that holds from the beginning, without the `@`.
    pub(super) fn setting(&mut self, setting: &str) {
        self.text.push_str(&format!("@ {setting}\n"));
    }

    /// Something happens, in the words of a `P:` line.
    pub(super) fn happens(&mut self, at: Duration, what: &str) {
        self.pause(at);
        let what = String::from_utf8_lossy(&self.masks.text(what.as_bytes())).replace('\n', " ");
        self.text.push_str(&format!("P: {what}\n"));
    }

    /// Somebody says something, so long after the session began.
    pub(super) fn said(&mut self, at: Duration, flow: Flow, bytes: &[u8]) {
        self.pause(at);
        let mut stream = std::mem::take(&mut self.streams[flow.stream()]);
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.step(&mut stream, flow, rest);
        }
        self.streams[flow.stream()] = stream;
    }

    /// The session has ended: half a line is all that will ever come.
    pub(super) fn end(&mut self) {
        for flow in [Flow::C, Flow::B, Flow::S, Flow::F] {
            let length = self.streams[flow.stream()].partial.len();
            if length > 0 {
                self.write(flow, format!("${{*{length}}}").as_bytes(), b"");
            }
        }
    }

    fn pause(&mut self, at: Duration) {
        if at.saturating_sub(self.last) >= PAUSE {
            self.text.push_str(&format!("\n# {:.3} s\n", at.as_secs_f64()));
        }
        self.last = at;
    }

    /// Takes a line, a literal, or what there is of either; returns what is left.
    fn step<'a>(&mut self, stream: &mut StreamText, flow: Flow, input: &'a [u8]) -> &'a [u8] {
        match &mut stream.literal {
            Literal::Awaited(announced) => {
                // Without an answer it was not refused: its octets follow.
                let announced = *announced;
                stream.literal = Literal::None;
                self.begin_literal(stream, flow, announced);
                input
            }
            Literal::Content { part, rest } => {
                let taken = usize::try_from(*part).unwrap_or(usize::MAX).min(input.len());
                *part -= taken as u64;
                if *part == 0 {
                    let rest = *rest;
                    self.begin_content(stream, flow, rest);
                }
                &input[taken..]
            }
            Literal::Value(length, value) => {
                let taken = (*length - value.len()).min(input.len());
                value.extend_from_slice(&input[..taken]);
                if value.len() == *length {
                    let value = std::mem::take(value);
                    stream.literal = Literal::None;
                    let manner = stream.manner.get_or_insert(Manner::Whole);
                    let mask = manner.word(&value, Form::Literal, &mut self.masks);
                    let fits = mask.len() == value.len();
                    let mask = if fits { mask } else { vec![b'x'; value.len()] };
                    self.write(flow, &harmless(&mask), b"");
                }
                &input[taken..]
            }
            Literal::None => {
                let end = input.iter().position(|b| *b == b'\n').map(|feed| feed + 1);
                let taken = end.unwrap_or(input.len());
                stream.partial.extend_from_slice(&input[..taken]);
                if end.is_some() && !stream.overlong {
                    let line = std::mem::take(&mut stream.partial);
                    self.line(stream, flow, &line);
                } else if end.is_some() || stream.partial.len() >= LONGEST_LINE {
                    let text = stream.partial.trim_ascii_end().len();
                    let feed: &[u8] = if end.is_some() { b"\r\n" } else { b"" };
                    self.write(flow, format!("${{*{text}}}").as_bytes(), feed);
                    stream.partial.clear();
                    stream.overlong = end.is_none();
                }
                &input[taken..]
            }
        }
    }

    fn begin_literal(&mut self, stream: &mut StreamText, flow: Flow, announced: Announcement) {
        let manner = stream.manner.get_or_insert(Manner::Whole);
        match usize::try_from(announced.length) {
            Ok(length) if length > 0 && manner.wants(announced) => {
                stream.literal = Literal::Value(length, Vec::new());
            }
            _ => self.begin_content(stream, flow, announced.length),
        }
    }

    /// Writes the next placeholder for `left` octets of content. Those behind it get theirs when it is
    /// filled: who announces more than ever comes must not fill the recording.
    fn begin_content(&mut self, stream: &mut StreamText, flow: Flow, left: u64) {
        let part = left.min(LONGEST_FILL);
        stream.literal = match part {
            0 => Literal::None,
            _ => {
                self.write(flow, format!("${{*{part}}}").as_bytes(), b"");
                Literal::Content { part, rest: left - part }
            }
        };
    }

    fn line(&mut self, stream: &mut StreamText, flow: Flow, line: &[u8]) {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let end = &line[text.len()..];
        let text = harmless(text);
        let from_client = matches!(flow, Flow::C | Flow::CF | Flow::F);
        let mut announced = Announcement::at_end_of(&text);
        let masked = if from_client {
            self.command(stream, flow, &text, &mut announced)
        } else {
            self.response(stream, flow, &text, &mut announced)
        };
        self.introduce();
        self.write(flow, &masked, end);
        match announced {
            None => stream.manner = None,
            Some(announced) => {
                if stream.manner.is_none() {
                    stream.manner = Some(Manner::Whole);
                }
                if announced.synchronising && from_client {
                    stream.literal = Literal::Awaited(announced);
                } else {
                    self.begin_literal(stream, flow, announced);
                }
            }
        }
    }

    /// A line of a command, or of what follows one.
    fn command(
        &mut self,
        stream: &mut StreamText,
        flow: Flow,
        text: &[u8],
        announced: &mut Option<Announcement>,
    ) -> Vec<u8> {
        if let Some(manner) = &mut stream.manner {
            return rest_of_line(text, *announced, manner, &mut self.masks);
        }
        let sasl = if flow == Flow::F { &mut self.own_sasl } else { &mut self.sasl };
        if let Some(Sasl { mechanism, messages, .. }) = sasl {
            *announced = None;
            *messages += 1;
            return self.masks.sasl(mechanism, text, *messages - 1);
        }
        if text.eq_ignore_ascii_case(b"DONE") || text.is_empty() {
            return text.to_vec();
        }
        let mut parts = text.splitn(3, |b| *b == b' ');
        let (tag, verb) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let verb = String::from_utf8_lossy(verb).to_ascii_uppercase();
        let mut start = text.len() - parts.next().map_or(0, |rest| rest.len() + 1);
        let shown_tag = self.own_tag(tag, flow);
        if verb == "AUTHENTICATE" {
            *announced = None;
            return self.authenticate(flow, tag, &text[start..], start, text);
        }
        let mut name = verb;
        if name == "UID" {
            let rest = text[start..].trim_ascii_start();
            let end = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
            name = String::from_utf8_lossy(&rest[..end]).to_ascii_uppercase();
            start = text.len() - (rest.len() - end);
        }
        let Some(mut manner) = Manner::of_command(&name) else {
            let mut manner = Manner::Whole;
            let masked = rest_of_line(text, *announced, &mut manner, &mut self.masks);
            stream.manner = Some(manner);
            return masked;
        };
        if let Manner::Pairs { of: of @ Pairs::Id, .. } = &mut manner
            && flow == Flow::F
        {
            *of = Pairs::OwnId;
        }
        if flow != Flow::F {
            self.remember(tag);
        }
        let mut masked = shown_tag;
        masked.extend_from_slice(&text[tag.len()..start]);
        masked.extend(rest_of_line(&text[start..], *announced, &mut manner, &mut self.masks));
        stream.tag = tag.to_vec();
        stream.manner = Some(manner);
        masked
    }

    fn authenticate(
        &mut self,
        flow: Flow,
        tag: &[u8],
        rest: &[u8],
        start: usize,
        text: &[u8],
    ) -> Vec<u8> {
        let mut arguments = rest.trim_ascii().splitn(2, |b| *b == b' ');
        let mechanism = arguments.next().unwrap_or_default();
        let known = mechanism.len() <= 30
            && mechanism.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b));
        let name = String::from_utf8_lossy(mechanism).to_ascii_uppercase();
        let mut masked = text[..start].to_vec();
        masked.push(b' ');
        masked.extend(if known { mechanism.to_vec() } else { shape(mechanism) });
        let initial = arguments.next();
        if let Some(message) = initial {
            masked.push(b' ');
            masked.extend(self.masks.sasl(&name, message.trim_ascii(), 0));
        }
        let messages = usize::from(initial.is_some());
        let sasl = Some(Sasl { mechanism: name, tag: tag.to_vec(), messages });
        if flow == Flow::F {
            self.own_sasl = sasl;
        } else {
            self.remember(tag);
            self.sasl = sasl;
        }
        masked
    }

    /// A line of a response, or of what follows one.
    fn response(
        &mut self,
        stream: &mut StreamText,
        flow: Flow,
        text: &[u8],
        announced: &mut Option<Announcement>,
    ) -> Vec<u8> {
        if let Some(manner) = &mut stream.manner {
            return rest_of_line(text, *announced, manner, &mut self.masks);
        }
        let line = [text, b"\r\n"].concat();
        match peek::response(&line) {
            Some(Response::Continuation) => {
                *announced = None;
                let challenge = text.strip_prefix(b"+ ").unwrap_or_default();
                match &self.sasl {
                    Some(sasl) if is_base64(challenge) => {
                        let scram =
                            Some(&*sasl.mechanism).filter(|name| name.starts_with("SCRAM-"));
                        let masked = self.masks.sasl(scram.unwrap_or_default(), challenge, 0);
                        [b"+ ", &masked[..]].concat()
                    }
                    _ => self.masks.human(text),
                }
            }
            Some(Response::Status { tag, .. }) => {
                *announced = None;
                if let Some(tag) = tag {
                    self.answered(tag, flow);
                }
                self.status(text, tag, flow)
            }
            _ => match text.strip_prefix(b"* ") {
                Some(data) => {
                    let (name, start) = data_name(data);
                    let mut manner = Manner::of_data(&name);
                    let rest = &data[start..];
                    let rest = rest_of_line(rest, *announced, &mut manner, &mut self.masks);
                    stream.manner = Some(manner);
                    [b"* ", &data[..start], &rest].concat()
                }
                None => {
                    let mut manner = Manner::Whole;
                    let masked = rest_of_line(text, *announced, &mut manner, &mut self.masks);
                    stream.manner = Some(manner);
                    masked
                }
            },
        }
    }

    fn status(&mut self, text: &[u8], tag: Option<&[u8]>, flow: Flow) -> Vec<u8> {
        let shown = match tag {
            Some(tag) => self.own_tag(tag, flow),
            None => b"*".to_vec(),
        };
        let rest = &text[tag.map_or(1, <[u8]>::len)..];
        // A code keeps its numbers.
        let code = rest.iter().position(|b| *b == b'[').and_then(|start| {
            let end = rest.iter().position(|b| *b == b']')?;
            (start <= 12 && start < end && !rest[start..end].contains(&b'/')).then_some(end + 1)
        });
        let (code, human) = rest.split_at(code.unwrap_or(0));
        [&shown[..], &self.masks.text(code), &self.masks.human(human)].concat()
    }

    /// A tagged answer: nothing of its command is to come.
    fn answered(&mut self, tag: &[u8], flow: Flow) {
        let sasl = if flow == Flow::B { &mut self.own_sasl } else { &mut self.sasl };
        if sasl.as_ref().is_some_and(|sasl| sasl.tag == tag) {
            *sasl = None;
        }
        if flow == Flow::B {
            return;
        }
        let client = &mut self.streams[Flow::C.stream()];
        if client.tag == tag && matches!(client.literal, Literal::Awaited(_)) {
            client.literal = Literal::None;
            client.manner = None;
        }
    }

    fn remember(&mut self, tag: &[u8]) {
        if self.tags.len() == MOST_TAGS {
            self.tags.remove(0);
        }
        self.tags.push(tag.to_vec());
    }

    /// A tag as it is written: mailchime's random ones as placeholders, unknown ones not at all.
    fn own_tag(&mut self, tag: &[u8], flow: Flow) -> Vec<u8> {
        if let Some(number) = self.questions.iter().position(|known| known == tag) {
            return format!("${{q{}}}", number + 1).into_bytes();
        }
        match flow {
            Flow::F if tag.starts_with(b"mc") => {
                self.questions.push(tag.to_vec());
                format!("${{q{}}}", self.questions.len()).into_bytes()
            }
            Flow::B | Flow::BS | Flow::S => {
                let own = tag.len() == 2 && tag[0] == b'm';
                let known = own || self.tags.iter().any(|known| known == tag);
                if known { tag.to_vec() } else { vec![b'x'; tag.len()] }
            }
            _ => tag.to_vec(),
        }
    }

    /// Says for whom the dialogue is played, once that is known.
    fn introduce(&mut self) {
        if self.introduced {
            return;
        }
        if let Some((name, secret)) = self.masks.first() {
            self.introduced = true;
            for (setting, value) in [("user", name), ("password", secret)] {
                let value = String::from_utf8_lossy(&value).into_owned();
                self.text.push_str(&format!("@ {setting} {value}\n"));
            }
        }
    }

    /// Writes a line, or a part of one that has no `end`.
    fn write(&mut self, flow: Flow, masked: &[u8], end: &[u8]) {
        self.text.push_str(&format!("{flow:?}: "));
        let bare = end == b"\n";
        let masked = if bare { [masked, b"\n"].concat() } else { masked.to_vec() };
        let mut rest = &masked[..];
        while let Some(&byte) = rest.first() {
            let valid = match std::str::from_utf8(&rest[..rest.len().min(4)]) {
                Ok(text) => text.chars().next(),
                Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()])
                    .ok()
                    .and_then(|text| text.chars().next()),
            };
            let escaped = byte == b'\\' && (rest.len() == 1 || rest[1] == b'x');
            match valid.filter(|character| !character.is_control() && !escaped) {
                Some(character) => {
                    self.text.push(character);
                    rest = &rest[character.len_utf8()..];
                }
                None => {
                    self.text.push_str(&format!("\\x{byte:02x}"));
                    rest = &rest[1..];
                }
            }
        }
        self.text.push_str(if end.is_empty() || bare { "\\\n" } else { "\n" });
    }
}

impl Flow {
    fn stream(self) -> usize {
        match self {
            Self::C | Self::CF => 0,
            Self::B | Self::BS => 1,
            Self::S => 2,
            Self::F => 3,
        }
    }
}

/// Masks what stands before an announcement, which stays.
fn rest_of_line(
    text: &[u8],
    announced: Option<Announcement>,
    manner: &mut Manner,
    masks: &mut Masks,
) -> Vec<u8> {
    let start = announced.and_then(|_| {
        let brace = text.iter().rposition(|b| *b == b'{')?;
        Some(brace - usize::from(text[..brace].ends_with(b"~")))
    });
    let (before, announcement) = text.split_at(start.unwrap_or(text.len()));
    let mut masked = words(before, manner, masks);
    masked.extend_from_slice(announcement);
    masked
}

/// `FETCH` of `1 FETCH (…)`, and where it ends; an empty name at the start if it is none.
fn data_name(data: &[u8]) -> (String, usize) {
    let start = data.iter().take_while(|b| b.is_ascii_digit() || **b == b' ').count();
    let length = data[start..].iter().take_while(|b| **b != b' ').count();
    let name = String::from_utf8_lossy(&data[start..start + length]).to_ascii_uppercase();
    let fits = |b: u8| b.is_ascii_uppercase() || b == b'-';
    match name.len() <= 20 && name.bytes().all(fits) {
        true => (name, start + length),
        false => (String::new(), 0),
    }
}

fn is_base64(text: &[u8]) -> bool {
    text.len().is_multiple_of(4)
        && text.iter().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(b))
}

/// What a peer says may look like a placeholder, and must not be taken for one.
fn harmless(text: &[u8]) -> Vec<u8> {
    match memchr::memmem::find(text, b"${") {
        Some(_) => shape(text),
        None => text.to_vec(),
    }
}

#[cfg(test)]
mod tests;
