//! mutt, which wants a terminal and somebody who types: `script` is the one, a pipe the other.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::clients::{Place, Run, text};
use super::rules::Conversation;
use super::site::Kind;
use crate::support::servers::ALICE;
use crate::support::servers::client::Client;

/// How long mutt may take to come to a line of its log.
const LIMIT: Duration = Duration::from_secs(120);

/// How long is waited for news from a server that is known to tell none.
const SILENCE: Duration = Duration::from_secs(3);

/// Uploads a mail of 5 MB; then lists, shows, searches on the server, copies, moves, flags and
/// removes; then idles.
pub(super) fn run(place: &Place) -> Run {
    let copy = format!("={}Copy", place.kind.prefix());
    fs::write(place.path("rc"), configuration(place)).unwrap();
    let big = fs::read_to_string(place.path("big.eml")).unwrap().replace("\r\n", "\n");
    let mbox = format!("From ann@example.org Sun Mar  1 10:20:30 2026\n{big}\n");
    fs::write(place.path("big.mbox"), mbox).unwrap();
    let mut run = Run::default();

    let mutt = Mutt::start(place, "-f big.mbox", "<copy-message>=INBOX<enter><exit>");
    run.conversations.push(mutt.ended());
    let keys = format!(
        "<change-folder>?<exit>\
         <first-entry><display-message><exit>\
         <last-entry><display-message><exit>\
         <limit>=b there<enter><limit>all<enter>\
         <first-entry><copy-message>{copy}<enter>\
         <jump>2<enter><save-message>{copy}<enter>\
         <jump>3<enter><flag-message><sync-mailbox><quit>"
    );
    let mutt = Mutt::start(place, "-z", &keys);
    run.conversations.push(mutt.ended());
    run.notes.push("no MOVE in mutt: COPY + EXPUNGE".into());

    let mut mutt = Mutt::start(place, "-e 'set imap_idle=yes timeout=1 mail_check=1'", "<refresh>");
    let idle = mutt.idles(0);
    let mut other = Client::connect_tls(SocketAddr::from(([127, 0, 0, 1], place.port)));
    assert!(other.login((&place.kind.login(), ALICE.1)).starts_with("x OK"));
    // Cyrus says nothing of what comes while it begins.
    sleep(Duration::from_secs(2));
    let mail = "Message-ID: <5@matrix.example.org>\r\nSubject: news\r\n\r\nNews.\r\n";
    other.say(&format!("x APPEND INBOX {{{}}}", mail.len()));
    other.until("+");
    other.say(mail);
    other.until("x OK");
    other.ask("LOGOUT");
    let limit = if place.kind == Kind::Imap4d { SILENCE } else { LIMIT };
    match mutt.wait_for(idle, limit, |line| line.ends_with(" EXISTS")) {
        // It fetches the mail and idles again.
        Some(told) => _ = mutt.idles(told),
        None => run.notes.push("IDLE is silent".into()),
    }
    mutt.type_in("q");
    run.conversations.push(mutt.ended());
    run
}

fn configuration(place: &Place) -> String {
    format!(
        "set folder=imaps://localhost:{port}/ spoolfile=imaps://localhost:{port}/INBOX
set imap_user=\"{user}\" imap_pass=\"{password}\" imap_authenticators=login
set certificate_file=ca.pem ssl_force_tls=yes
set confirmcreate=no confirmappend=no quit=yes delete=yes move=no wait_key=no
set sort=mailbox-order mail_check=600
",
        port = place.port,
        user = place.kind.login(),
        password = ALICE.1,
    )
}

/// A mutt that runs. Its log is new.
struct Mutt<'a> {
    place: &'a Place,
    child: Child,
}

impl<'a> Mutt<'a> {
    /// With keys that are pressed for it.
    fn start(place: &'a Place, arguments: &str, keys: &str) -> Self {
        let _ = fs::remove_file(place.path(LOG));
        let command = format!("mutt -n -d 3 -F rc {arguments} -e 'push \"{keys}\"'");
        let mut script = place.limited("script");
        script.args(["-qec", &command, "/dev/null"]).env("TERM", "xterm");
        script.env("LINES", "24").env("COLUMNS", "80");
        script.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { place, child: script.spawn().unwrap() }
    }

    fn log(&self) -> String {
        text(&fs::read(self.place.path(LOG)).unwrap_or_default())
    }

    /// How many lines there are with the first behind so many that `fits`, if that comes in time.
    fn wait_for(
        &self,
        behind: usize,
        limit: Duration,
        fits: impl Fn(&str) -> bool,
    ) -> Option<usize> {
        let deadline = Instant::now() + limit;
        loop {
            let log = self.log();
            let found = traffic(&log).skip(behind).position(|(_, line)| fits(line));
            if found.is_some() || Instant::now() > deadline {
                return found.map(|at| behind + at + 1);
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it is in IDLE; how many lines there are then.
    fn idles(&self, behind: usize) -> usize {
        let asked =
            self.wait_for(behind, LIMIT, |line| line.starts_with('a') && line.ends_with(" IDLE"));
        let idles = asked.and_then(|at| self.wait_for(at, LIMIT, |line| line.starts_with('+')));
        idles.unwrap_or_else(|| panic!("it does not idle:\n{}", self.log()))
    }

    fn type_in(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for its end.
    fn ended(mut self) -> Conversation {
        let status = self.child.wait().unwrap();
        let log = self.log();
        assert!(status.success(), "{status}\n{log}");
        let mut conversation = Conversation::default();
        for (is_client, line) in traffic(&log) {
            let is_response = line.starts_with(['*', '+', 'a', ')']);
            match (is_client, conversation.server.last_mut()) {
                (true, _) => conversation.client.push(format!("{line}\r\n")),
                // A long line is in the log in pieces.
                (false, Some(last)) if !is_response => {
                    last.truncate(last.trim_end().len());
                    last.push_str(&format!("{line}\r\n"));
                }
                (false, _) => conversation.server.push(format!("{line}\r\n")),
            }
        }
        conversation
    }
}

const LOG: &str = ".muttdebug0";

/// The lines of a log that passed the connection, and whether the client said them. They begin as
/// `[2026-03-01 10:20:30] 4> a0001 NOOP`; of several commands in one go only the first does.
fn traffic(log: &str) -> impl Iterator<Item = (bool, &str)> {
    log.lines().filter_map(|line| {
        let line = line.trim_end_matches('\r');
        let (number, said) = match line.split_once("] ") {
            Some((_, rest)) => rest.split_at_checked(rest.find(['<', '>'])?)?,
            None => {
                let (tag, _) = line.split_once(' ')?;
                tag.strip_prefix('a')?.parse::<u16>().ok()?;
                return Some((true, line));
            }
        };
        number.parse::<u32>().ok()?;
        Some((said.starts_with('>'), &said[2.min(said.len())..]))
    })
}
