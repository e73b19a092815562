//! What goes on and what goes wrong, each kind in a stream of its own.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mailchime::demo::apns::Answer;
use mailchime::imap::registration::xapple::DeviceToken;
use sqlx::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Tally;
use super::site::{FIRST, MAIL, Site, User};
use crate::intake::{TOKEN, written};
use crate::support::chance::Chance;

/// Goes on until it is dropped.
pub(super) type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// After this part of the storm the program is not killed any more: a start looks at everything, and would hide
/// what a program that runs has forgotten.
const KILLS: f64 = 0.66;

/// After this part APNs no longer answers that it gets too many pushes for a device. It may be left alone for
/// minutes then, unless the program is killed.
const TOO_OFTEN: f64 = 0.4;

/// To how many devices that is said at once.
const MANY: usize = 50;

/// For an event to be answered. A mail server does not wait longer, and does not try again.
const ANSWERED: Duration = Duration::from_millis(500);

/// Mail comes, is read, is deleted, and with events the mail server tells of it once, half of the times with the
/// numbers of the mailbox: they never become again what they were, so that there is always something to tell.
pub(super) fn mail(site: Arc<Site>, mut chance: Chance) -> Stream {
    Box::pin(async move {
        let backend = &site.world.backend;
        loop {
            let user = chance.of(&site.users);
            let mailbox = chance.of(user.mailboxes);
            let messages = backend.messages(&user.login, mailbox).unwrap();
            // The first one stays, to be read.
            let others: Vec<_> = messages.iter().filter(|(uid, ..)| *uid > FIRST).collect();
            let event = match chance.below(10) {
                0 | 1 if !others.is_empty() => {
                    let (uid, ..) = chance.of(&others);
                    backend.set_flags(&user.login, mailbox, *uid, &["\\Seen"]).unwrap();
                    site.tally.quiet.fetch_add(1, Relaxed);
                    "MessageRead"
                }
                2 if !others.is_empty() => {
                    let (uid, ..) = chance.of(&others);
                    backend.expunge(&user.login, mailbox, *uid).unwrap();
                    site.tally.quiet.fetch_add(1, Relaxed);
                    "MessageExpunge"
                }
                _ => {
                    backend.deliver(&user.login, mailbox, MAIL).unwrap();
                    site.tally.deliveries.fetch_add(1, Relaxed);
                    "MessageNew"
                }
            };
            if site.takes_events() {
                let has_numbers = chance.below(2) == 0;
                let numbers =
                    if has_numbers { numbers(&site, user, mailbox) } else { String::new() };
                let body = format!(
                    r#"{{"user":"{}","changes":[{{"mailbox":"{mailbox}","events":["{event}"]{numbers}}}]}}"#,
                    user.login
                );
                let site = site.clone();
                tokio::spawn(async move {
                    let taken = tell(site.events().await, &body).await.unwrap_or(false);
                    let Tally { events, numbered_events, lost_events, .. } = &site.tally;
                    let count = match (taken, has_numbers) {
                        (false, _) => lost_events,
                        (true, false) => events,
                        (true, true) => numbered_events,
                    };
                    count.fetch_add(1, Relaxed);
                });
            }
            chance.pause(5..40).await;
        }
    })
}

/// What the mail server says of the mailbox as it is now.
fn numbers(site: &Site, user: &User, mailbox: &str) -> String {
    let messages = site.world.backend.messages(&user.login, mailbox).unwrap();
    let is_unread =
        |flags: &[String]| !flags.iter().any(|flag| flag.eq_ignore_ascii_case("\\Seen"));
    let unseen = messages.iter().filter(|(_, flags, _)| is_unread(flags)).count();
    let next = site.world.backend.uid_next(&user.login, mailbox).unwrap();
    format!(r#","uidnext":{next},"messages":{},"unseen":{unseen}"#, messages.len())
}

/// Whether the event is taken. The one who sends it waits for the answer alone no longer than it is to come.
async fn tell(address: SocketAddr, body: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("POST /v1/events\nAuthorization: Bearer {TOKEN}\n\n{body}");
    stream.write_all(written(&request).as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(ANSWERED, stream.read_to_string(&mut answer)).await??;
    Ok(answer.starts_with("HTTP/1.1 204"))
}

/// The program is killed and started again, half of the times while pushes are under way of which
/// APNs says nothing.
pub(super) fn kills(site: Arc<Site>, mut chance: Chance) -> Stream {
    Box::pin(async move {
        let began = Instant::now();
        loop {
            chance.pause(6_000..14_000).await;
            if began.elapsed() > site.lasts.mul_f64(KILLS) {
                return std::future::pending().await;
            }
            site.tally.kills.fetch_add(1, Relaxed);
            let silent = chance.below(2) == 0;
            if silent {
                site.world.apns.stall(true);
                site.world.apns.drop_connections();
                chance.pause(300..1_500).await;
            }
            // Goes on when the storm ends in the middle of it.
            let site = site.clone();
            let restarted = tokio::spawn(async move {
                site.restart().await;
                if silent {
                    site.world.apns.stall(false);
                }
            });
            restarted.await.unwrap();
        }
    })
}

pub(super) fn backend(site: Arc<Site>, mut chance: Chance) -> Stream {
    Box::pin(async move {
        let backend = &site.world.backend;
        loop {
            chance.pause(3_000..9_000).await;
            site.tally.backend.fetch_add(1, Relaxed);
            match chance.below(4) {
                0 => backend.drop_connections(),
                1 => backend.say_bye(),
                2 => {
                    backend.refuse().await;
                    backend.drop_connections();
                    chance.pause(200..3_000).await;
                    backend.resume().await.unwrap();
                }
                _ => {
                    backend.behave(|behaviour| behaviour.unavailable = true);
                    backend.drop_connections();
                    chance.pause(200..3_000).await;
                    backend.behave(|behaviour| behaviour.unavailable = false);
                }
            }
        }
    })
}

pub(super) fn apns(site: Arc<Site>, mut chance: Chance) -> Stream {
    Box::pin(async move {
        let apns = &site.world.apns;
        let began = Instant::now();
        loop {
            chance.pause(1_000..4_000).await;
            site.tally.apns.fetch_add(1, Relaxed);
            match chance.below(8) {
                0 => {
                    apns.refuse().await;
                    apns.drop_connections();
                    chance.pause(200..3_000).await;
                    apns.resume().await.unwrap();
                }
                1 => {
                    apns.stall(true);
                    apns.drop_connections();
                    chance.pause(200..3_000).await;
                    apns.stall(false);
                }
                2 => {
                    apns.hold_answers(true);
                    chance.pause(200..3_000).await;
                    apns.go_away();
                    apns.hold_answers(false);
                }
                3 => apns.drop_connections(),
                4 => {
                    apns.answer_all(Answer::Hang);
                    chance.pause(200..3_000).await;
                    apns.answer_all(Answer::Accept);
                }
                // None may be left over for long: while APNs fails, it is tried ever more rarely.
                5 => apns.answer_next(2, Answer::Disconnect),
                6 if began.elapsed() < site.lasts.mul_f64(TOO_OFTEN) => {
                    let first = chance.below(site.users.len() - MANY);
                    let busy = &site.users[first..first + MANY];
                    let answer = |answer: Answer| {
                        for user in busy {
                            let token = DeviceToken::new(&user.token).unwrap();
                            apns.answer_token(&token, answer.clone());
                        }
                    };
                    answer(Answer::refuse(429, "TooManyRequests"));
                    chance.pause(200..3_000).await;
                    answer(Answer::Accept);
                }
                _ => {
                    apns.answer_all(Answer::refuse(503, "ServiceUnavailable"));
                    chance.pause(200..3_000).await;
                    apns.answer_all(Answer::Accept);
                }
            }
        }
    })
}

/// Another program has the database for itself, or its server crashes.
pub(super) fn database(site: Arc<Site>, mut chance: Chance) -> Stream {
    Box::pin(async move {
        for turn in 0.. {
            chance.pause(5_000..12_000).await;
            site.tally.database.fetch_add(1, Relaxed);
            let for_long = chance.time(200..3_000);
            if turn % 2 == 0 && site.database.crashes() {
                // Goes on when the storm ends in the middle of it.
                let site = site.clone();
                tokio::spawn(async move { site.database.crash(for_long).await }).await.unwrap();
            } else {
                // Undone when it is dropped, in the middle of it at the end of the storm too.
                let locked = site.database.locked(&site.world).await;
                tokio::time::sleep(for_long).await;
                locked.close().await.unwrap();
            }
        }
    })
}
