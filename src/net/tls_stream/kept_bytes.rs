//! The bytes of a TLS connection between two calls, and what rustls makes of those that come.

use std::io;

use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};
use tokio::io::ReadBuf;

use super::side::TlsSide;

/// What is kept between two calls.
#[derive(Default)]
pub(super) struct KeptBytes {
    /// What came and could not be dealt with yet: a record in part, or parts of a handshake message.
    pub(super) incoming: Vec<u8>,
    /// Plaintext that was not read, and how much of it was.
    pub(super) plain: Vec<u8>,
    pub(super) read: usize,
    /// Ciphertext that is to be sent, and how much of it was.
    pub(super) outgoing: Vec<u8>,
    pub(super) sent: usize,
    /// The peer has said close_notify, or hung up.
    pub(super) ended: bool,
    /// We have said close_notify, or TLS was broken off.
    pub(super) closed: bool,
    /// What a reader hears behind the plaintext that came before it.
    pub(super) failure: Option<io::Error>,
}

impl KeptBytes {
    /// Gives plaintext that was kept to a reader.
    pub(super) fn give(&mut self, into: &mut ReadBuf<'_>) {
        let rest = &self.plain[self.read..];
        if rest.is_empty() {
            return;
        }
        let length = rest.len().min(into.remaining());
        into.put_slice(&rest[..length]);
        self.read += length;
        if self.read == self.plain.len() {
            (self.plain, self.read) = (Vec::new(), 0);
        }
    }

    /// Keeps ciphertext that is to be sent, behind what TLS itself has to say. What was sent before goes when it is half
    /// of what is kept, so that each byte is moved once.
    pub(super) fn wait(&mut self, made: &[u8]) {
        if self.sent >= self.outgoing.len() - self.sent {
            self.outgoing.drain(..self.sent);
            self.sent = 0;
        }
        self.outgoing.extend_from_slice(made);
    }

    /// TLS is broken off: nothing more comes, and nothing more is taken.
    pub(super) fn failed(&mut self, why: rustls::Error) -> io::Error {
        (self.ended, self.closed) = (true, true);
        invalid(why)
    }

    /// Puts what TLS says of an error behind what is to be sent. `rest` is what was not dealt with, and is not touched:
    /// while something is to be said, rustls looks at nothing else.
    pub(super) fn take_alert<C: TlsSide>(&mut self, tls: &mut C, rest: &mut [u8]) {
        while tls.common().wants_write() {
            let Ok(ConnectionState::EncodeTlsData(mut message)) = tls.process(rest).state else {
                return;
            };
            if encode(&mut message, &mut self.outgoing).is_err() {
                return;
            }
        }
    }

    /// Has rustls deal with `incoming`, and returns how much of that is dealt with. Plaintext goes `into` that, what TLS
    /// itself has to say to what is to be sent; where application data may be sent, `traffic` sends it.
    pub(super) fn process<C: TlsSide>(
        &mut self,
        tls: &mut C,
        incoming: &mut [u8],
        into: &mut ReadBuf<'_>,
        mut traffic: impl FnMut(&mut WriteTraffic<'_, C::Data>),
    ) -> (usize, Result<(), rustls::Error>) {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state, .. } = tls.process(&mut incoming[used..]);
            let is_done = match state {
                Ok(ConnectionState::ReadTraffic(mut records)) => loop {
                    match records.next_record() {
                        Some(Ok(record)) => {
                            discard += record.discard;
                            let fits = match self.plain.is_empty() {
                                true => record.payload.len().min(into.remaining()),
                                false => 0,
                            };
                            into.put_slice(&record.payload[..fits]);
                            self.plain.extend_from_slice(&record.payload[fits..]);
                        }
                        Some(Err(why)) => return (used + discard, Err(why)),
                        None => break false,
                    }
                },
                Ok(ConnectionState::EncodeTlsData(mut message)) => {
                    if let Err(why) = encode(&mut message, &mut self.outgoing) {
                        return (used + discard, Err(why));
                    }
                    false
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    false
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.ended = true;
                    false
                }
                Ok(ConnectionState::WriteTraffic(mut writing)) => {
                    traffic(&mut writing);
                    true
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => true,
                // Data before the handshake's end is not offered.
                Ok(_) => return (used + discard, Err(rustls::Error::HandshakeNotComplete)),
                Err(why) => return (used + discard, Err(why)),
            };
            used += discard;
            if is_done {
                return (used, Ok(()));
            }
        }
    }
}

/// Puts a message of TLS itself behind what is to be sent.
fn encode<D>(
    message: &mut EncodeTlsData<'_, D>,
    outgoing: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let before = outgoing.len();
    let encoded = match message.encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            outgoing.resize(before + required_size, 0);
            message.encode(&mut outgoing[before..])
        }
        encoded => encoded,
    };
    encoded.map(|length| outgoing.truncate(before + length)).map_err(|why| {
        outgoing.truncate(before);
        rustls::Error::General(why.to_string())
    })
}

/// As an error of reading or writing.
pub(super) fn invalid(why: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
