//! The matrix: real clients at real servers, through mailchime and directly, each on a fresh copy of
//! the same mailboxes, and no difference but those that `rules` allows.
//!
//! A cell is a test by the name `SERVER_by_CLIENT`; `SERVER_over_tls_by_CLIENT` where mailchime
//! speaks TLS to the server, too; `SERVER_registers` where a phone registers and a mail arrives.
//! What a client or a server cannot do is in the cell's row of the table, which `tests/run.sh` prints.

mod clients;
mod mutt;
mod registers;
mod rules;
mod site;
mod state;
mod table;

use std::time::Duration;

use clients::{Client, Place, Run};
use site::{Behind, Kind, in_front_of};
use table::Cell;

/// How long a cell may take on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(600);

macro_rules! cells {
    ($($test:ident: $server:ident $behind:ident $client:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            compare(stringify!($test), Kind::$server, Behind::$behind, Client::$client).await;
        }
    )*};
}

cells! {
    dovecot_by_curl: Dovecot Plain Curl,
    dovecot_by_mbsync: Dovecot Plain Mbsync,
    dovecot_by_mutt: Dovecot Plain Mutt,
    dovecot_by_imaplib: Dovecot Plain Imaplib,
    dovecot_by_imapclient: Dovecot Plain Imapclient,
    dovecot_by_imapflow: Dovecot Plain Imapflow,
    dovecot_over_tls_by_imapclient: Dovecot Tls Imapclient,
    dovecot24_by_curl: Dovecot24 Plain Curl,
    dovecot24_by_mbsync: Dovecot24 Plain Mbsync,
    dovecot24_by_mutt: Dovecot24 Plain Mutt,
    dovecot24_by_imaplib: Dovecot24 Plain Imaplib,
    dovecot24_by_imapclient: Dovecot24 Plain Imapclient,
    dovecot24_by_imapflow: Dovecot24 Plain Imapflow,
    cyrus_by_curl: Cyrus Plain Curl,
    cyrus_by_mbsync: Cyrus Plain Mbsync,
    cyrus_by_mutt: Cyrus Plain Mutt,
    cyrus_by_imaplib: Cyrus Plain Imaplib,
    cyrus_by_imapclient: Cyrus Plain Imapclient,
    cyrus_by_imapflow: Cyrus Plain Imapflow,
    cyrus_over_tls_by_mbsync: Cyrus Tls Mbsync,
    courier_by_curl: Courier Plain Curl,
    courier_by_mbsync: Courier Plain Mbsync,
    courier_by_mutt: Courier Plain Mutt,
    courier_by_imaplib: Courier Plain Imaplib,
    courier_by_imapclient: Courier Plain Imapclient,
    courier_by_imapflow: Courier Plain Imapflow,
    courier_over_tls_by_imapflow: Courier Tls Imapflow,
    imap4d_by_curl: Imap4d Plain Curl,
    imap4d_by_mbsync: Imap4d Plain Mbsync,
    imap4d_by_mutt: Imap4d Plain Mutt,
    imap4d_by_imaplib: Imap4d Plain Imaplib,
    imap4d_by_imapclient: Imap4d Plain Imapclient,
    imap4d_by_imapflow: Imap4d Plain Imapflow,
    imap4d_over_tls_by_imaplib: Imap4d Tls Imaplib,
}

/// A cell: the same run twice, and what it left.
async fn compare(test: &'static str, kind: Kind, behind: Behind, client: Client) {
    let name = format!("matrix::{test}");
    let cell = Cell::begin(test).await;
    if let Some(reason) = client.absent(&name) {
        return cell.skipped(&reason);
    }
    let (Some(proxied), Some(direct)) = (kind.start(&name), kind.start(&name)) else {
        return cell.skipped(&format!("{} cannot run on this machine", kind.name()));
    };
    let compared = async {
        for server in [&proxied, &direct] {
            tokio::task::block_in_place(|| server.seed());
        }
        let mailchime = in_front_of(&proxied, behind).await;
        let ports = [mailchime.address().port(), direct.tls().port()];
        let runs = ports
            .map(|port| tokio::task::spawn_blocking(move || client.run(&Place::new(kind, port))));
        let [through, without] = runs;
        let (through, without) = (through.await.unwrap(), without.await.unwrap());
        let mut differences = differences(kind, &through, &without);
        let states = [&proxied, &direct].map(|it| tokio::task::block_in_place(|| state::state(it)));
        differences.extend(rules::difference("mailboxes at the end", &states[0], &states[1]));
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        mailchime.mailchime.stop().await;
        through.notes
    };
    let notes = tokio::time::timeout(LIMIT, compared).await.expect("the cell takes too long");
    cell.passed(&notes);
}

fn differences(kind: Kind, through: &Run, without: &Run) -> Vec<String> {
    let mut found = Vec::new();
    let [proxied, direct] = [through, without].map(|run| &run.conversations);
    if proxied.len() != direct.len() || direct.is_empty() {
        found.push(format!("{} connections and {}", proxied.len(), direct.len()));
    }
    for (number, (proxied, direct)) in proxied.iter().zip(direct).enumerate() {
        let name = format!("connection {number}");
        found.extend(rules::differences(&name, proxied, direct, kind.tells_by_the_clock()));
    }
    found.extend(rules::difference("the output", &through.outputs, &without.outputs));
    found.extend(rules::difference("the notes", &through.notes, &without.notes));
    found
}
