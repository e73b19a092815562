//! FETCH (RFC 3501 section 6.4.5), and as much of RFC 5322 as it needs.
//!
//! Messages are taken to have one part, whatever their type says.

use std::io;
use std::num::NonZeroU32;
use std::time::SystemTime;

use bytes::Bytes;
use imap_codec::ResponseCodec;
use imap_codec::encode::Encoder;
use imap_codec::imap_types::body::{BasicFields, Body, BodyStructure, SpecificFields};
use imap_codec::imap_types::core::{AString, IString, NString, Vec1};
use imap_codec::imap_types::envelope::{Address, Envelope};
use imap_codec::imap_types::fetch::{
    MacroOrMessageDataItemNames, MessageDataItem, MessageDataItemName, Section,
};
use imap_codec::imap_types::flag::Flag;
use imap_codec::imap_types::response::{Data, Response};
use imap_codec::imap_types::sequence::SequenceSet;
use tokio::io::{AsyncRead, AsyncWrite};

use super::header::{field_name, fields, header_of, header_values};
use super::search::resolve;
use super::session::{DemoSession, Gone, TaggedResponse, flags_with_recent};
use super::state::Message;
use crate::demo::date_time;

/// Writes what is asked for of each message in `set`. Unless the mailbox is open read-only,
/// whatever shows the text without PEEK sets \Seen.
pub(super) async fn fetch<S: AsyncRead + AsyncWrite + Unpin>(
    session: &mut DemoSession<'_, S>,
    set: &SequenceSet,
    wanted: MacroOrMessageDataItemNames<'_>,
    uid: bool,
) -> io::Result<Result<TaggedResponse, Gone>> {
    let mut names = match &wanted {
        MacroOrMessageDataItemNames::Macro(shorthand) => shorthand.expand(),
        MacroOrMessageDataItemNames::MessageDataItemNames(names) => names.clone(),
    };
    if uid && !names.contains(&MessageDataItemName::Uid) {
        names.push(MessageDataItemName::Uid);
    }
    let Some(labels) = names.iter().filter(|name| is_text(name)).map(label).collect() else {
        return Ok(Ok(TaggedResponse::bad("a FETCH item that is not supported")));
    };
    let labels: Vec<Vec<u8>> = labels;
    let reads = names.iter().any(shows);

    let rows = session.with_selected(|mailbox, selected| {
        let meant: Vec<_> = resolve(set, selected, uid).collect();
        let mut rows: Vec<Row> = Vec::with_capacity(meant.len());
        for (sequence, uid) in meant {
            let Some(message) = mailbox.message(uid).cloned() else { continue };
            let newly_seen = reads && !selected.read_only && !message.seen();
            if newly_seen {
                mailbox.change_flags(uid, |flags| flags.push(Flag::Seen));
                selected.told_flags(mailbox, sequence);
            }
            let message = mailbox.message(uid).cloned().unwrap_or(message);
            let recent = selected.view[sequence as usize - 1].recent;
            rows.push(Row { sequence, message, recent, newly_seen });
        }
        rows
    });
    let rows = match rows {
        Ok(rows) => rows,
        Err(gone) => return Ok(Err(gone)),
    };

    for row in rows {
        // The items that imap-codec writes, then the texts: they may hold bytes that its types
        // refuse, and need not be copied.
        let Some((sequence, items)) = row.items(&names) else { continue };
        let wire = &mut session.wire;
        if items.is_empty() {
            wire.out.extend_from_slice(format!("* {sequence} FETCH (").as_bytes());
        } else {
            let items = Vec1::unvalidated(items);
            wire.put(Response::Data(Data::Fetch { seq: sequence, items }));
            wire.out.truncate(wire.out.len() - b")\r\n".len());
        }
        let mut first = wire.out.ends_with(b"(");
        if names.contains(&MessageDataItemName::InternalDate) {
            separate(&mut wire.out, &mut first);
            let date = internal_date(row.message.date);
            wire.out.extend_from_slice(format!("INTERNALDATE \"{date}\"").as_bytes());
        }
        for (name, label) in names.iter().filter(|name| is_text(name)).zip(&labels) {
            separate(&mut wire.out, &mut first);
            wire.out.extend_from_slice(label);
            wire.out.push(b' ');
            wire.put_literal(&text(&row.message.body, name)).await?;
        }
        wire.out.extend_from_slice(b")\r\n");
        wire.flush_if_full().await?;
    }
    Ok(Ok(TaggedResponse::ok("FETCH completed")))
}

struct Row {
    sequence: u32,
    message: Message,
    recent: bool,
    newly_seen: bool,
}

impl Row {
    fn items(
        &self,
        names: &[MessageDataItemName<'_>],
    ) -> Option<(NonZeroU32, Vec<MessageDataItem<'_>>)> {
        use MessageDataItemName as Name;

        let message = &self.message;
        let uid = NonZeroU32::new(message.uid)?;
        let flags =
            || MessageDataItem::Flags(flags_with_recent(message.flags.clone(), self.recent));
        let mut items: Vec<_> = names
            .iter()
            .filter_map(|name| match name {
                Name::Uid => Some(MessageDataItem::Uid(uid)),
                Name::Flags => Some(flags()),
                Name::Rfc822Size => Some(MessageDataItem::Rfc822Size(message.body.len() as u32)),
                Name::Envelope => Some(MessageDataItem::Envelope(envelope(&message.body))),
                Name::Body => Some(MessageDataItem::Body(structure(&message.body)?)),
                Name::BodyStructure => {
                    Some(MessageDataItem::BodyStructure(structure(&message.body)?))
                }
                _ => None,
            })
            .collect();
        if self.newly_seen && !names.contains(&Name::Flags) {
            items.push(flags());
        }
        Some((NonZeroU32::new(self.sequence)?, items))
    }
}

/// Whether an item is a piece of the message as it is.
fn is_text(name: &MessageDataItemName<'_>) -> bool {
    use MessageDataItemName as Name;
    matches!(
        name,
        Name::BodyExt { .. }
            | Name::Rfc822
            | Name::Rfc822Header
            | Name::Rfc822Text
            | Name::Binary { .. }
            | Name::BinarySize { .. }
    )
}

/// Whether an item sets \Seen.
fn shows(name: &MessageDataItemName<'_>) -> bool {
    use MessageDataItemName as Name;
    matches!(name, Name::BodyExt { peek: false, .. } | Name::Rfc822 | Name::Rfc822Text)
}

/// How an item is named in the response; `None` if it is not supported.
fn label(name: &MessageDataItemName<'_>) -> Option<Vec<u8>> {
    use MessageDataItemName as Name;

    let nil = NString::NIL;
    let item = match name {
        Name::BodyExt { section, partial, .. } => MessageDataItem::BodyExt {
            section: section.clone(),
            origin: partial.map(|(start, _)| start),
            data: nil,
        },
        Name::Rfc822 => MessageDataItem::Rfc822(nil),
        Name::Rfc822Header => MessageDataItem::Rfc822Header(nil),
        Name::Rfc822Text => MessageDataItem::Rfc822Text(nil),
        _ => return None,
    };
    let response = Data::Fetch { seq: NonZeroU32::MIN, items: Vec1::from(item) };
    let encoded = ResponseCodec::default().encode(&Response::Data(response)).dump();
    let label = encoded.strip_prefix(b"* 1 FETCH (")?.strip_suffix(b" NIL)\r\n")?;
    Some(label.to_vec())
}

/// The piece of a message that an item names.
fn text(message: &Bytes, name: &MessageDataItemName<'_>) -> Bytes {
    use MessageDataItemName as Name;

    let header = header_of(message).len();
    match name {
        Name::Rfc822Header => message.slice(..header),
        Name::Rfc822Text => message.slice(header..),
        Name::BodyExt { section, partial, .. } => {
            let piece = match section {
                None => message.clone(),
                Some(Section::Header(None)) => message.slice(..header),
                Some(Section::Text(None)) => message.slice(header..),
                Some(Section::Part(part)) if part.0.as_ref() == [NonZeroU32::MIN] => {
                    message.slice(header..)
                }
                Some(Section::HeaderFields(None, names)) => {
                    some_fields(&message[..header], names.as_ref(), true)
                }
                Some(Section::HeaderFieldsNot(None, names)) => {
                    some_fields(&message[..header], names.as_ref(), false)
                }
                // Other parts: there are none.
                Some(_) => Bytes::new(),
            };
            match partial {
                Some((start, length)) => {
                    let start = piece.len().min(*start as usize);
                    let end = piece.len().min(start.saturating_add(length.get() as usize));
                    piece.slice(start..end)
                }
                None => piece,
            }
        }
        _ => message.clone(),
    }
}

fn separate(out: &mut Vec<u8>, first: &mut bool) {
    if !std::mem::take(first) {
        out.push(b' ');
    }
}

/// A date-time of RFC 3501 section 9: `17-Jul-1996 09:44:25 +0000`.
fn internal_date(date: SystemTime) -> String {
    date_time(date).replacen(' ', "-", 2)
}

// --- RFC 5322 ---

/// The fields that `names` names, or all others, with the empty line at the end.
fn some_fields(header: &[u8], names: &[AString<'_>], wanted: bool) -> Bytes {
    let mut some = Vec::new();
    for field in fields(header) {
        let field = &header[field];
        let named = names.iter().any(|n| n.as_ref().eq_ignore_ascii_case(field_name(field)));
        if named == wanted {
            some.extend_from_slice(field);
        }
    }
    some.extend_from_slice(b"\r\n");
    some.into()
}

fn envelope(message: &[u8]) -> Envelope<'static> {
    let header = header_of(message);
    let text = |name| {
        let value = header_values(header, name).into_iter().next();
        value.map_or(NString::NIL, nstring)
    };
    let addresses = |name| addresses(&header_values(header, name).join(&b','));
    let from = addresses("from");
    // Sender and Reply-To are as From where they are not given (RFC 3501 section 7.4.2).
    let or_from =
        |given: Vec<Address<'static>>| if given.is_empty() { from.clone() } else { given };
    Envelope {
        date: text("date"),
        subject: text("subject"),
        sender: or_from(addresses("sender")),
        reply_to: or_from(addresses("reply-to")),
        to: addresses("to"),
        cc: addresses("cc"),
        bcc: addresses("bcc"),
        in_reply_to: text("in-reply-to"),
        message_id: text("message-id"),
        from,
    }
}

/// `Name <local@host>, local@host`; neither groups nor comments.
fn addresses(list: &[u8]) -> Vec<Address<'static>> {
    let address = |text: &[u8]| {
        let (name, address) = match memchr::memchr(b'<', text) {
            Some(at) => (text[..at].trim_ascii(), &text[at + 1..]),
            None => (&b""[..], text.trim_ascii()),
        };
        let address = address.split(|byte| *byte == b'>').next().unwrap_or_default();
        let at = memchr::memrchr(b'@', address)?;
        let name = name.strip_prefix(b"\"").and_then(|n| n.strip_suffix(b"\"")).unwrap_or(name);
        Some(Address {
            name: if name.is_empty() { NString::NIL } else { nstring(name.to_vec()) },
            adl: NString::NIL,
            mailbox: nstring(address[..at].to_vec()),
            host: nstring(address[at + 1..].to_vec()),
        })
    };
    list.split(|byte| *byte == b',').filter_map(address).collect()
}

/// NIL for what IMAP cannot say: text with a NUL.
fn nstring(text: Vec<u8>) -> NString<'static> {
    NString::try_from(text).unwrap_or(NString::NIL)
}

/// One part of plain text.
fn structure(message: &[u8]) -> Option<BodyStructure<'static>> {
    let text = &message[header_of(message).len()..];
    let string = |text: &'static str| IString::try_from(text).ok();
    let body = Body {
        basic: BasicFields {
            parameter_list: vec![(string("charset")?, string("utf-8")?)],
            id: NString::NIL,
            description: NString::NIL,
            content_transfer_encoding: string("8bit")?,
            size: text.len() as u32,
        },
        specific: SpecificFields::Text {
            subtype: string("plain")?,
            number_of_lines: memchr::memchr_iter(b'\n', text).count() as u32,
        },
    };
    Some(BodyStructure::Single { body, extension_data: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &[u8] = b"Subject: a\r\n folded\r\nFrom: \"A, B\" <a@b>\r\nTo: c@d\r\n\r\n";

    #[test]
    fn fields_are_found_whole() {
        assert_eq!(header_values(HEADER, "SUBJECT"), [b"a folded".to_vec()]);
        assert!(header_values(HEADER, "x").is_empty());
        let names = [AString::try_from("subject").unwrap()];
        assert_eq!(&some_fields(HEADER, &names, true)[..], b"Subject: a\r\n folded\r\n\r\n");
        assert!(some_fields(HEADER, &names, false).starts_with(b"From:"));
    }

    #[test]
    fn dates_are_of_rfc_3501() {
        let date = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(837_596_665);
        assert_eq!(internal_date(date), "17-Jul-1996 09:44:25 +0000");
    }
}
