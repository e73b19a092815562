//! Commands about mailboxes by name (RFC 3501 section 6.3).

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use imap_codec::imap_types::IntoStatic;
use imap_codec::imap_types::datetime::DateTime;
use imap_codec::imap_types::extensions::binary::LiteralOrLiteral8;
use imap_codec::imap_types::flag::{Flag, FlagNameAttribute, FlagPerm};
use imap_codec::imap_types::mailbox::{ListMailbox, Mailbox as WireMailbox};
use imap_codec::imap_types::response::{Code, Data, Response, StatusKind};
use imap_codec::imap_types::status::{StatusDataItem, StatusDataItemName};
use tokio::io::{AsyncRead, AsyncWrite};

use super::session::{DemoSession, TaggedResponse, name_of};
use super::state::{CreateError, Selected};

impl<S: AsyncRead + AsyncWrite + Unpin> DemoSession<'_, S> {
    pub(super) fn select(&mut self, mailbox: &WireMailbox<'_>, read_only: bool) -> TaggedResponse {
        self.selected = None;
        let name = name_of(mailbox);
        let mut facts = None;
        let answer = self.with_named(mailbox, |mailbox| {
            let selected = Selected::open(&name, mailbox, read_only);
            let first_unseen = mailbox.messages().iter().position(|m| !m.seen());
            facts = Some((selected, mailbox.uid_next, first_unseen));
            let code = if read_only { Code::ReadOnly } else { Code::ReadWrite };
            TaggedResponse { code: Some(code), ..TaggedResponse::ok("mailbox selected") }
        });
        let Some((selected, uid_next, first_unseen)) = facts else { return answer };

        let flags = [Flag::Answered, Flag::Flagged, Flag::Deleted, Flag::Seen, Flag::Draft];
        let permanent = match read_only {
            true => Vec::new(),
            false => {
                let lasting = flags.iter().cloned().map(FlagPerm::Flag);
                lasting.chain([FlagPerm::Asterisk]).collect()
            }
        };
        self.wire.put(Response::Data(Data::Flags(flags.into())));
        self.wire.put(Response::Data(Data::Exists(selected.view.len() as u32)));
        self.wire.put(Response::Data(Data::Recent(selected.recent())));
        self.untagged(StatusKind::Ok, Some(Code::PermanentFlags(permanent)), "flags that stay");
        for code in [
            first_unseen.and_then(|at| Code::unseen(at as u32 + 1).ok()),
            Code::uidvalidity(selected.uid_validity).ok(),
            Code::uidnext(uid_next).ok(),
        ] {
            if code.is_some() {
                self.untagged(StatusKind::Ok, code, "noted");
            }
        }
        self.selected = Some(selected);
        answer
    }

    pub(super) fn status(
        &mut self,
        mailbox: &WireMailbox<'_>,
        names: &[StatusDataItemName],
    ) -> TaggedResponse {
        let mut items = Vec::new();
        let answer = self.with_named(mailbox, |mailbox| {
            use StatusDataItemName as Name;
            items.extend(names.iter().filter_map(|name| match name {
                Name::Messages => Some(StatusDataItem::Messages(mailbox.messages().len() as u32)),
                Name::Recent => Some(StatusDataItem::Recent(mailbox.recent() as u32)),
                Name::UidNext => NonZeroU32::new(mailbox.uid_next).map(StatusDataItem::UidNext),
                Name::UidValidity => {
                    NonZeroU32::new(mailbox.uid_validity).map(StatusDataItem::UidValidity)
                }
                Name::Unseen => Some(StatusDataItem::Unseen(mailbox.unseen() as u32)),
                _ => None,
            }));
            match items.len() == names.len() {
                true => TaggedResponse::ok("STATUS completed"),
                false => TaggedResponse::bad("a STATUS item that is not supported"),
            }
        });
        if answer.kind == StatusKind::Ok {
            let mailbox = mailbox.clone();
            self.wire.put(Response::Data(Data::Status { mailbox, items: items.into() }));
        }
        answer
    }

    pub(super) fn list(
        &mut self,
        reference: &WireMailbox<'_>,
        wanted: &ListMailbox<'_>,
        lsub: bool,
    ) {
        let wanted = match wanted {
            ListMailbox::Token(token) => token.as_ref(),
            ListMailbox::String(string) => string.as_ref(),
        };
        let delimiter = '/'.try_into().ok();
        let mut found: Vec<(Vec<FlagNameAttribute<'_>>, String)> = Vec::new();
        if wanted.is_empty() {
            // The question for the delimiter (RFC 3501 section 6.3.8).
            found.push((vec![FlagNameAttribute::Noselect], String::new()));
        } else if let Some(login) = &self.account {
            let pattern = format!("{}{}", name_of(reference), String::from_utf8_lossy(wanted));
            if let Some(account) = self.shared.state().account(login) {
                let names = account.mailboxes.iter().filter(|(_, m)| !lsub || m.subscribed);
                let names = names.map(|(name, _)| name).filter(|name| matches(&pattern, name));
                found.extend(names.map(|name| (Vec::new(), name.clone())));
            }
        }
        for (items, name) in found {
            let Ok(mailbox) = WireMailbox::try_from(name) else { continue };
            self.wire.put(Response::Data(match lsub {
                false => Data::List { items, delimiter, mailbox },
                true => Data::Lsub { items, delimiter, mailbox },
            }));
        }
    }

    pub(super) fn create(&mut self, mailbox: &WireMailbox<'_>) -> TaggedResponse {
        let name = name_of(mailbox);
        // A trailing delimiter only announces what is to come (RFC 3501 section 6.3.3).
        let name = name.strip_suffix('/').unwrap_or(&name);
        let login = self.account.as_deref().unwrap_or_default();
        match self.shared.state().create(login, name) {
            Ok(()) => TaggedResponse::ok("CREATE completed"),
            Err(CreateError::Exists) => {
                TaggedResponse::no(Some("ALREADYEXISTS"), "it is there already")
            }
            Err(_) => TaggedResponse::no(Some("CANNOT"), "no mailbox can have that name"),
        }
    }

    pub(super) fn delete(&mut self, mailbox: &WireMailbox<'_>) -> TaggedResponse {
        let name = name_of(mailbox);
        if name == "INBOX" {
            return TaggedResponse::no(Some("CANNOT"), "INBOX stays");
        }
        let answer = self.with_named(mailbox, |_| TaggedResponse::ok("DELETE completed"));
        if answer.kind == StatusKind::Ok {
            self.with_account(|account| account.mailboxes.remove(&name));
        }
        answer
    }

    pub(super) fn rename(
        &mut self,
        from: &WireMailbox<'_>,
        to: &WireMailbox<'_>,
    ) -> TaggedResponse {
        let (from_name, to_name) = (name_of(from), name_of(to));
        if from_name == "INBOX" || to_name.is_empty() {
            return TaggedResponse::no(Some("CANNOT"), "not to be renamed so");
        }
        let answer = self.with_named(from, |_| TaggedResponse::ok("RENAME completed"));
        if answer.kind != StatusKind::Ok {
            return answer;
        }
        let renamed = self.with_account(|account| {
            if account.mailbox(&to_name).is_some() {
                return false;
            }
            let mailbox = account.mailboxes.remove(&from_name);
            account.mailboxes.extend(mailbox.map(|mailbox| (to_name, mailbox)));
            true
        });
        match renamed {
            Some(true) => answer,
            _ => TaggedResponse::no(Some("ALREADYEXISTS"), "there is one of that name"),
        }
    }

    pub(super) fn append(
        &mut self,
        mailbox: &WireMailbox<'_>,
        flags: Vec<Flag<'_>>,
        date: Option<DateTime>,
        message: LiteralOrLiteral8<'_>,
    ) -> TaggedResponse {
        let message = match &message {
            LiteralOrLiteral8::Literal(literal) => Bytes::copy_from_slice(literal.data()),
            LiteralOrLiteral8::Literal8(_) => {
                return TaggedResponse::no(Some("UNKNOWN-CTE"), "no literal8");
            }
        };
        let date = date.map_or_else(SystemTime::now, |date| {
            let seconds = u64::try_from(date.as_ref().timestamp()).unwrap_or_default();
            UNIX_EPOCH + Duration::from_secs(seconds)
        });
        let flags = flags.into_iter().map(IntoStatic::into_static).collect();
        let code = self.shared.can("UIDPLUS");
        let answer = self.with_named(mailbox, |mailbox| {
            let uid = mailbox.append(message, flags, date);
            let ids = NonZeroU32::new(mailbox.uid_validity).zip(NonZeroU32::new(uid));
            let code = ids
                .filter(|_| code)
                .map(|(uid_validity, uid)| Code::AppendUid { uid_validity, uid });
            TaggedResponse { code, ..TaggedResponse::ok("APPEND completed") }
        });
        answer.or_try_create()
    }
}

/// LIST's wildcards: `*` is anything, `%` anything within one level (RFC 3501 section 6.3.8).
fn matches(pattern: &str, name: &str) -> bool {
    // `reached[i]`: the pattern so far matches the first `i` bytes of the name.
    let name = name.as_bytes();
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for wanted in pattern.bytes() {
        if wanted == b'*' || wanted == b'%' {
            for i in 0..name.len() {
                reached[i + 1] |= reached[i] && (wanted == b'*' || name[i] != b'/');
            }
        } else {
            for i in (0..name.len()).rev() {
                reached[i + 1] = reached[i] && name[i] == wanted;
            }
            reached[0] = false;
        }
    }
    reached[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_wildcards() {
        for (pattern, name, expected) in [
            ("*", "a/b", true),
            ("%", "a/b", false),
            ("%", "ab", true),
            ("a/%", "a/b", true),
            ("%/%", "a/b", true),
            ("a*b", "a/b", true),
            ("a%b", "a/b", false),
            ("INBOX", "INBOX", true),
            ("INBO", "INBOX", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
