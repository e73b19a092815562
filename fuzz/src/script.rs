//! What an input of the stream targets means: who says what, in which pieces, and what happens.
//!
//! Scripts are text with some bytes that no UTF-8 text has, so that dictionaries and seeds stay
//! readable and a mutation mostly changes what is said and not who says it:
//!
//! ```text
//! F1  the client says what follows    F4  what was asked of the caller is done
//! F2  the backend does                F5  it cannot be done
//! F3  the piece ends here             F6  the digit that follows, so many times 1024 bytes of `x`
//! ```
//!
//! The first byte of a script holds options, one for each of its low bits.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Backend,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// In these pieces; none is empty.
    Says(Side, Vec<Vec<u8>>),
    Done(bool),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub options: u8,
    pub events: Vec<Event>,
}

impl Script {
    pub fn parse(data: &[u8]) -> Option<Self> {
        let (options, data) = data.split_first()?;
        let (mut events, mut pieces, mut piece) = (Vec::new(), Vec::new(), Vec::new());
        let mut side = Side::Client;
        let mut bytes = data.iter();
        while let Some(&byte) = bytes.next() {
            if matches!(byte, 0xf1..=0xf5) && !piece.is_empty() {
                pieces.push(std::mem::take(&mut piece));
            }
            if matches!(byte, 0xf1 | 0xf2 | 0xf4 | 0xf5) && !pieces.is_empty() {
                events.push(Event::Says(side, std::mem::take(&mut pieces)));
            }
            match byte {
                0xf1 => side = Side::Client,
                0xf2 => side = Side::Backend,
                0xf3 => {}
                0xf4 => events.push(Event::Done(true)),
                0xf5 => events.push(Event::Done(false)),
                0xf6 => {
                    let count = bytes.next().map_or(0, |digit| usize::from(digit % 10));
                    piece.resize(piece.len() + count * 1024, b'x');
                }
                byte => piece.push(byte),
            }
        }
        if !piece.is_empty() {
            pieces.push(piece);
        }
        if !pieces.is_empty() {
            events.push(Event::Says(side, pieces));
        }
        Some(Self { options: *options, events })
    }

    pub fn option(&self, bit: u8) -> bool {
        self.options & (1 << bit) != 0
    }

    /// All that this side says.
    pub fn said(&self, by: Side) -> Vec<u8> {
        let mut all = Vec::new();
        for event in &self.events {
            if let Event::Says(side, pieces) = event
                && *side == by
            {
                pieces.iter().for_each(|piece| all.extend_from_slice(piece));
            }
        }
        all
    }
}

/// In which pieces a script is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// What a side says in one go is one piece.
    Whole,
    /// As the script says.
    Pieces,
    Bytes,
}

impl Cut {
    pub fn apply(self, pieces: &[Vec<u8>]) -> Vec<Vec<u8>> {
        match self {
            Self::Whole => vec![pieces.concat()],
            Self::Pieces => pieces.to_vec(),
            Self::Bytes => pieces.concat().iter().map(|byte| vec![*byte]).collect(),
        }
    }
}
