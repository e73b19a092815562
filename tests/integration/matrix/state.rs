//! What is on a server at the end, read back by a client that knows no tricks.

use super::rules::{is_count, masked};
use super::site::Server;

/// All mailboxes with all mails: numbers, flags, sizes and bytes; by the rules, so without UIDVALIDITY.
pub(super) fn state(server: &Server) -> Vec<String> {
    let mut client = server.client();
    let prefix = server.kind().prefix();
    let by_the_clock = server.kind().tells_by_the_clock();
    let mut state = Vec::new();
    let mut listed: Vec<_> = client.ask("LIST \"\" *").iter().map(|line| masked(line)).collect();
    listed.sort();
    state.extend(listed);
    for mailbox in ["INBOX", &format!("{prefix}Team"), &format!("{prefix}Copy")] {
        let opened = client.ask_raw(&format!("EXAMINE {mailbox}"));
        let mails = client.ask_raw("FETCH 1:* (UID FLAGS RFC822.SIZE BODY.PEEK[])");
        for said in [opened, mails] {
            let said: String = said.into_iter().map(char::from).collect();
            // Which session was told first has made a mail recent or not.
            let said = if by_the_clock { said.replace("\\Recent", "") } else { said };
            let lines = said.lines().filter(|line| !(by_the_clock && is_count(line)));
            state.extend(lines.map(|line| masked(&format!("{mailbox}: {line}"))));
        }
    }
    client.ask("LOGOUT");
    state
}
