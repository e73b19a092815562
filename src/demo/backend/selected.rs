//! Commands that change the messages of the selected mailbox (RFC 3501 section 6.4).

use imap_codec::imap_types::IntoStatic;
use imap_codec::imap_types::flag::{Flag, StoreResponse, StoreType};
use imap_codec::imap_types::mailbox::Mailbox as WireMailbox;
use imap_codec::imap_types::response::StatusKind;
use imap_codec::imap_types::sequence::SequenceSet;
use tokio::io::{AsyncRead, AsyncWrite};

use super::search::resolve;
use super::session::{Answer, Gone, Session};
use super::state::News;

impl<S: AsyncRead + AsyncWrite + Unpin> Session<'_, S> {
    pub(super) fn store(
        &mut self,
        set: &SequenceSet,
        kind: StoreType,
        response: StoreResponse,
        flags: Vec<Flag<'_>>,
        uid: bool,
    ) -> Result<Answer, Gone> {
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
        Ok(Answer::ok("STORE completed"))
    }

    /// COPY and MOVE (RFC 6851). Both happen under one lock, so nobody sees half of it.
    pub(super) fn copy(
        &mut self,
        set: &SequenceSet,
        to: &WireMailbox<'_>,
        uid: bool,
        remove: bool,
    ) -> Result<Answer, Gone> {
        let messages = self.with_selected(|mailbox, selected| {
            let uids = resolve(set, selected, uid);
            uids.filter_map(|(_, uid)| mailbox.message(uid).cloned()).collect::<Vec<_>>()
        })?;
        let answer = self.with_named(to, |mailbox| {
            for message in &messages {
                mailbox.append(message.body.clone(), message.flags.clone(), message.date);
            }
            Answer::ok("completed")
        });
        if remove && answer.kind == StatusKind::Ok {
            self.with_selected(|mailbox, _| {
                mailbox.remove(|m| messages.binary_search_by_key(&m.uid, |m| m.uid).is_ok())
            })?;
        }
        Ok(answer.or_try_create())
    }

    pub(super) fn expunge(&mut self, only: Option<&SequenceSet>) -> Result<Answer, Gone> {
        self.with_selected(|mailbox, selected| {
            let only: Option<Vec<_>> =
                only.map(|set| resolve(set, selected, true).map(|(_, uid)| uid).collect());
            mailbox.remove(|message| {
                let meant =
                    only.as_ref().is_none_or(|uids| uids.binary_search(&message.uid).is_ok());
                meant && message.flags.contains(&Flag::Deleted)
            })
        })?;
        Ok(Answer::ok("EXPUNGE completed"))
    }
}
