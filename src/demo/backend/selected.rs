//! Commands on the selected mailbox (RFC 3501 section 6.4).

use std::io;

use imap_codec::imap_types::IntoStatic;
use imap_codec::imap_types::command::CommandBody;
use imap_codec::imap_types::flag::{Flag, StoreResponse, StoreType};
use imap_codec::imap_types::mailbox::Mailbox as WireMailbox;
use imap_codec::imap_types::response::{Data, Response, StatusKind};
use imap_codec::imap_types::sequence::SequenceSet;
use tokio::io::{AsyncRead, AsyncWrite};

use super::fetch::fetch;
use super::search::{resolve, search};
use super::session::{DemoSession, Gone, TaggedResponse};
use super::state::News;

impl<S: AsyncRead + AsyncWrite + Unpin> DemoSession<'_, S> {
    /// Commands that need a selected mailbox (RFC 3501 section 6.4).
    pub(super) async fn execute_selected(
        &mut self,
        body: CommandBody<'_>,
    ) -> io::Result<Result<TaggedResponse, Gone>> {
        use CommandBody::*;

        let done = match body {
            Fetch { sequence_set, macro_or_item_names, uid } => {
                return fetch(self, &sequence_set, macro_or_item_names, uid).await;
            }
            Search { criteria, uid, .. } => self
                .with_selected(|mailbox, selected| {
                    search(mailbox, selected, criteria.as_ref(), uid)
                })
                .map(|found| match found {
                    Some(found) => {
                        self.wire.put(Response::Data(Data::Search(found)));
                        TaggedResponse::ok("SEARCH completed")
                    }
                    None => {
                        TaggedResponse::no(Some("CANNOT"), "a search key that is not supported")
                    }
                }),
            Store { .. } | Expunge | ExpungeUid { .. } | Move { .. } if self.read_only() => {
                Ok(TaggedResponse::no(None, "the mailbox is open read-only"))
            }
            Store { sequence_set, kind, response, flags, uid } => {
                self.store(&sequence_set, kind, response, flags, uid)
            }
            Copy { sequence_set, mailbox, uid } => self.copy(&sequence_set, &mailbox, uid, false),
            Move { sequence_set, mailbox, uid } if self.shared.can("MOVE") => {
                self.copy(&sequence_set, &mailbox, uid, true)
            }
            Expunge => self.expunge(None),
            ExpungeUid { sequence_set } if self.shared.can("UIDPLUS") => {
                self.expunge(Some(&sequence_set))
            }
            Close => {
                let expunged = if self.read_only() { Ok(()) } else { self.expunge(None).map(drop) };
                expunged.map(|()| {
                    self.selected = None;
                    TaggedResponse::ok("CLOSE completed")
                })
            }
            Unselect if self.shared.can("UNSELECT") => {
                self.selected = None;
                Ok(TaggedResponse::ok("UNSELECT completed"))
            }
            _ => Ok(TaggedResponse::bad("not known here")),
        };
        Ok(done)
    }

    fn store(
        &mut self,
        set: &SequenceSet,
        kind: StoreType,
        response: StoreResponse,
        flags: Vec<Flag<'_>>,
        uid: bool,
    ) -> Result<TaggedResponse, Gone> {
        let flags: Vec<Flag<'static>> = flags.into_iter().map(IntoStatic::into_static).collect();
        let told = self.with_selected(|mailbox, selected| {
            let mut told = Vec::new();
            let meant: Vec<_> = resolve(set, selected, uid).collect();
            for (sequence, number) in meant {
                let changed = mailbox.change_flags(number, |own| match kind {
                    StoreType::Replace => *own = flags.clone(),
                    StoreType::Add => {
                        let missing = flags.iter().filter(|flag| !own.contains(flag)).cloned();
                        own.extend(missing.collect::<Vec<_>>());
                    }
                    StoreType::Remove => own.retain(|flag| !flags.contains(flag)),
                });
                if changed.is_some() {
                    selected.told_flags(mailbox, sequence);
                    told.extend(mailbox.message(number).map(|m| News::Flags {
                        sequence,
                        uid: number,
                        flags: m.flags.clone(),
                        recent: selected.view[sequence as usize - 1].recent,
                    }));
                }
            }
            told
        })?;
        if response == StoreResponse::Answer {
            told.into_iter().for_each(|news| self.put_news(news));
        }
        Ok(TaggedResponse::ok("STORE completed"))
    }

    /// COPY and MOVE (RFC 6851). Both happen under one lock, so nobody sees half of it.
    fn copy(
        &mut self,
        set: &SequenceSet,
        to: &WireMailbox<'_>,
        uid: bool,
        remove: bool,
    ) -> Result<TaggedResponse, Gone> {
        let messages = self.with_selected(|mailbox, selected| {
            let uids = resolve(set, selected, uid);
            uids.filter_map(|(_, uid)| mailbox.message(uid).cloned()).collect::<Vec<_>>()
        })?;
        let answer = self.with_named(to, |mailbox| {
            for message in &messages {
                mailbox.append(message.body.clone(), message.flags.clone(), message.date);
            }
            TaggedResponse::ok("completed")
        });
        if remove && answer.kind == StatusKind::Ok {
            self.with_selected(|mailbox, _| {
                mailbox.remove(|m| messages.binary_search_by_key(&m.uid, |m| m.uid).is_ok())
            })?;
        }
        Ok(answer.or_try_create())
    }

    fn expunge(&mut self, only: Option<&SequenceSet>) -> Result<TaggedResponse, Gone> {
        self.with_selected(|mailbox, selected| {
            let only: Option<Vec<_>> =
                only.map(|set| resolve(set, selected, true).map(|(_, uid)| uid).collect());
            mailbox.remove(|message| {
                let meant =
                    only.as_ref().is_none_or(|uids| uids.binary_search(&message.uid).is_ok());
                meant && message.flags.contains(&Flag::Deleted)
            })
        })?;
        Ok(TaggedResponse::ok("EXPUNGE completed"))
    }
}
