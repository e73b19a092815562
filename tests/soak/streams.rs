//! What goes on and what goes wrong, each kind in a stream of its own. Each ends at the end of
//! whatever it is doing when all is over, so that it is known of every change that it was made.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailchime::demo::apns::Answer;
use tokio::task::spawn_blocking;

use crate::session::Session;
use crate::site::{FIRST, Site, User};
use crate::support::chance::Chance;

pub(crate) type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One kind of what goes on, in the time that there is for all.
pub(crate) type Kind = fn(Arc<Site>, Chance, Duration) -> Stream;

/// All that goes on; what is there twice happens twice as often.
pub(crate) fn all() -> Vec<Kind> {
    let sessions = [idling as Kind].repeat(24).into_iter().chain([reading as Kind].repeat(6));
    let changes: [Kind; 4] = [mail, mail, flags, flags];
    let faults: [Kind; 6] = [passwords, new_logins, dovecot, mailchime, apns, reloads];
    sessions.chain(changes).chain(faults).collect()
}

// === changes ===

fn mail(site: Arc<Site>, mut chance: Chance, _: Duration) -> Stream {
    Box::pin(async move {
        while site.goes_on(&mut chance, 50..350).await {
            let user = chance.of(&site.users);
            let mailbox = chance.of(user.mailboxes);
            site.deliver(user, mailbox).await;
        }
    })
}

/// Mail is read or deleted. No mail ever becomes unread, so a mailbox never becomes again what it
/// was before, and there is always something to tell.
fn flags(site: Arc<Site>, mut chance: Chance, _: Duration) -> Stream {
    Box::pin(async move {
        while site.goes_on(&mut chance, 200..1_200).await {
            let user = chance.of(&site.users);
            let mailbox = chance.of(user.mailboxes);
            let delete = chance.below(3) == 0;
            if let Ok(Some(uid)) = candidate(&site, user, mailbox, delete, &mut chance).await {
                // When the first try may have done it.
                user.changes(mailbox, false);
                while change(&site, user, mailbox, uid, delete).await.is_err() {
                    site.tally.lost_sessions.add();
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                site.tally.flags.add();
            }
        }
    })
}

/// A mail that may be read or deleted, if there is one.
async fn candidate(
    site: &Site,
    user: &User,
    mailbox: &str,
    delete: bool,
    chance: &mut Chance,
) -> io::Result<Option<u32>> {
    let mut session = open(site, user).await?;
    session.command(&format!("EXAMINE {mailbox}")).await?;
    let kind = if delete { "ALL" } else { "UNSEEN" };
    let lines = session.command(&format!("UID SEARCH UID {}:* {kind}", FIRST + 1)).await?;
    session.command("LOGOUT").await?;
    let found = lines.iter().find_map(|line| line.strip_prefix("* SEARCH"));
    let found = found.unwrap_or_default().split_whitespace();
    // `2:*` is also the last one, if that is the first.
    let uids: Vec<u32> =
        found.filter_map(|uid| uid.parse().ok()).filter(|uid| *uid > FIRST).collect();
    Ok((!uids.is_empty()).then(|| *chance.of(&uids)))
}

async fn change(site: &Site, user: &User, mailbox: &str, uid: u32, delete: bool) -> io::Result<()> {
    let mut session = open(site, user).await?;
    session.command(&format!("SELECT {mailbox}")).await?;
    if delete {
        session.command(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)")).await?;
        session.command(&format!("UID EXPUNGE {uid}")).await?;
    } else {
        session.command(&format!("UID STORE {uid} +FLAGS (\\Seen)")).await?;
    }
    // Done, whatever becomes of the session.
    let _ = session.command("LOGOUT").await;
    Ok(())
}

// === sessions ===

async fn open(site: &Site, user: &User) -> io::Result<Session> {
    let session = Session::open(site, user).await?;
    site.tally.sessions.add();
    Ok(session)
}

/// Sessions that read the same message again and again, some compressed, some cut off.
fn reading(site: Arc<Site>, mut chance: Chance, _: Duration) -> Stream {
    Box::pin(async move {
        while site.goes_on(&mut chance, 100..1_500).await {
            let user = chance.of(&site.users);
            if read(&site, user, &mut chance).await.is_err() {
                site.tally.lost_sessions.add();
            }
        }
    })
}

async fn read(site: &Site, user: &User, chance: &mut Chance) -> io::Result<()> {
    let mut session = open(site, user).await?;
    if chance.below(3) == 0 {
        session.compress().await?;
    }
    session.command(&format!("SELECT {}", chance.of(user.mailboxes))).await?;
    for _ in 0..1 + chance.below(20) {
        session.fetch(&site.text).await?;
        site.tally.read.add();
        if !site.goes_on(chance, 5..200).await {
            break;
        }
    }
    if chance.below(4) == 0 {
        site.tally.cut.add();
        // In the middle of an answer.
        return session.begin_fetch().await;
    }
    session.command("LOGOUT").await.map(drop)
}

/// A mail client that stays connected, and leaves with or without a word.
fn idling(site: Arc<Site>, mut chance: Chance, _: Duration) -> Stream {
    Box::pin(async move {
        while site.goes_on(&mut chance, 100..5_000).await {
            let user = chance.of(&site.users);
            if idle(&site, user, &mut chance).await.is_err() {
                site.tally.lost_sessions.add();
            }
        }
    })
}

async fn idle(site: &Site, user: &User, chance: &mut Chance) -> io::Result<()> {
    let mut session = open(site, user).await?;
    if chance.below(3) == 0 {
        session.compress().await?;
    }
    session.command("SELECT INBOX").await?;
    while chance.below(4) > 0 {
        let over = async {
            site.goes_on(chance, 1_000..40_000).await;
        };
        let news = session.idle(over).await?;
        site.tally.news.add_all(news);
        session.command("NOOP").await?;
        if site.over.is_cancelled() {
            break;
        }
    }
    if chance.below(3) == 0 {
        site.tally.cut.add();
        return Ok(());
    }
    session.command("LOGOUT").await.map(drop)
}

// === faults ===

/// Users change their passwords elsewhere.
fn passwords(site: Arc<Site>, mut chance: Chance, _: Duration) -> Stream {
    Box::pin(async move {
        while site.goes_on(&mut chance, 5_000..20_000).await {
            site.change_password(chance.below(site.users.len())).await;
        }
    })
}

/// And some time later they tell their phones, which log in anew or also register.
fn new_logins(site: Arc<Site>, mut chance: Chance, _: Duration) -> Stream {
    Box::pin(async move {
        while site.goes_on(&mut chance, 2_000..20_000).await {
            let stale: Vec<&User> = site.users.iter().filter(|user| user.is_stale()).collect();
            if stale.is_empty() {
                continue;
            }
            let user = chance.of(&stale);
            let registers = chance.below(2) == 0;
            let told = match registers {
                true => site.register(user).await.is_ok(),
                false => log_in(&site, user).await.is_ok(),
            };
            if told {
                user.healed();
            }
        }
    })
}

/// The user's phone logs in with the newest password, as at each look for mail.
pub(crate) async fn log_in(site: &Site, user: &User) -> io::Result<()> {
    open(site, user).await?.command("LOGOUT").await.map(drop)
}

fn dovecot(site: Arc<Site>, mut chance: Chance, time: Duration) -> Stream {
    Box::pin(async move {
        let began = Instant::now();
        while site.goes_on(&mut chance, 45_000..150_000).await {
            if began.elapsed() + Duration::from_secs(20) > time {
                return;
            }
            let (dovecot, away) = (site.dovecot.clone(), chance.below(5));
            let restart = move || {
                let mut dovecot = dovecot.lock().unwrap();
                dovecot.stop();
                std::thread::sleep(Duration::from_secs(away as u64));
                dovecot.restart();
            };
            spawn_blocking(restart).await.unwrap();
            site.tally.dovecot.add();
        }
    })
}

/// Restarts, in order and by SIGKILL in turn, for the first third: then one run of mailchime lasts
/// until the end, and what it loses is seen, and what it gathers.
fn mailchime(site: Arc<Site>, mut chance: Chance, time: Duration) -> Stream {
    Box::pin(async move {
        let began = Instant::now();
        for kill in [true, false].into_iter().cycle() {
            if !site.goes_on(&mut chance, 15_000..60_000).await || began.elapsed() > time / 3 {
                return;
            }
            site.restart(kill).await;
        }
    })
}

fn apns(site: Arc<Site>, mut chance: Chance, _: Duration) -> Stream {
    Box::pin(async move {
        let apns = &site.apns;
        while site.goes_on(&mut chance, 4_000..16_000).await {
            match chance.below(5) {
                0 => apns.go_away(),
                1 => apns.drop_connections(),
                2 => apns.answer_next(2, Answer::Disconnect),
                3 => {
                    apns.refuse().await;
                    apns.drop_connections();
                    chance.pause(200..3_000).await;
                    apns.resume().await.unwrap();
                }
                _ => {
                    apns.answer_all(Answer::refuse(503, "ServiceUnavailable"));
                    chance.pause(200..3_000).await;
                    apns.answer_all(Answer::Accept);
                }
            }
            site.tally.apns.add();
        }
    })
}

fn reloads(site: Arc<Site>, mut chance: Chance, _: Duration) -> Stream {
    Box::pin(async move {
        while site.goes_on(&mut chance, 20_000..60_000).await {
            site.reload().await;
        }
    })
}
