//! What a client says of itself in ID, where that goes to the backend: servers take fields such as
//! `x-originating-ip` for the word of a proxy that they trust.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};

use crate::support::dialogues::proxy;
use crate::support::limited;
use crate::support::listener;

/// Says this ID and logs in; the names and values that the backend hears.
async fn heard(id: &str) -> Vec<(String, String)> {
    let listener = listener().await;
    let proxy = proxy(listener.local_addr().unwrap(), None, |config| {
        config.backend.send_id = true;
        config.limits.failure_delay = Duration::from_millis(1);
    })
    .await;
    let mut client = BufStream::new(proxy.connect().await.unwrap());
    let mut line = String::new();
    client.read_line(&mut line).await.unwrap();
    client.write_all(format!("i ID {id}\r\na LOGIN alice x\r\n").as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    let mut backend = BufStream::new(listener.accept().await.unwrap().0);
    backend.write_all(b"* OK [CAPABILITY IMAP4rev1 ID] ready\r\n").await.unwrap();
    backend.flush().await.unwrap();
    line.clear();
    backend.read_line(&mut line).await.unwrap();
    drop(backend);
    let fields = line.trim_end().strip_prefix("m3 ID (").unwrap().strip_suffix(')').unwrap();
    let words: Vec<_> = fields.split(' ').map(|word| word.trim_matches('"').to_owned()).collect();
    let _ = client.shutdown().await;
    let _ = client.read_to_end(&mut Vec::new()).await;
    words.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

/// The fields of RFC 2971 section 3.3.
const KNOWN: [&str; 11] = [
    "name",
    "version",
    "os",
    "os-version",
    "vendor",
    "support-url",
    "address",
    "date",
    "command",
    "arguments",
    "environment",
];

#[tokio::test]
async fn what_a_client_says_in_id_cannot_be_taken_for_a_proxys_word() {
    const OWN: [&str; 4] =
        ["x-originating-ip", "x-originating-port", "x-connected-ip", "x-connected-port"];
    limited(async {
        let claims = [
            "x-originating-ip",
            "X-Originating-IP",
            "x-originating-port",
            "x-connected-ip",
            "x-client-transport",
            "x-client-ip",
            "x-via",
            "X-Via",
            "x-real-ip",
            "x-forwarded-for",
            "x-forward-port",
            "x-proxy-ttl",
            "x-session-id",
            "x-session-ext-id",
            "x-originating-ip ",
            " x-originating-ip",
            "forwarded",
            "via",
            "client-ip",
            "remote-host",
            "",
        ];
        for claim in claims {
            let fields = heard(&format!("(\"name\" \"phone\" \"{claim}\" \"6.6.6.6\")")).await;
            assert!(fields.iter().all(|(_, value)| value != "6.6.6.6"), "{claim:?}: {fields:?}");
            let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, [&["name"][..], &OWN].concat(), "{claim:?}");
            assert_eq!(fields[1], ("x-originating-ip".to_owned(), "127.0.0.1".to_owned()));
        }
        // Whatever the RFC knows passes, each once, in any case of letters.
        let all: Vec<_> = KNOWN.iter().map(|name| format!("\"{name}\" \"mine\"")).collect();
        let again: Vec<_> =
            KNOWN.iter().map(|name| format!("\"{}\" \"again\"", name.to_uppercase())).collect();
        let fields = heard(&format!("({} {})", all.join(" "), again.join(" "))).await;
        let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [&KNOWN[..], &OWN].concat());
        assert!(fields.iter().all(|(_, value)| value != "again"), "{fields:?}");
        // A client that says nothing fit is mailchime.
        for id in ["(\"x-via\" \"6.6.6.6\")", "NIL", "(\"name\")"] {
            let fields = heard(id).await;
            assert_eq!(fields[0], ("name".to_owned(), "mailchime".to_owned()), "{id}");
            assert_eq!(fields.len(), 1 + OWN.len(), "{id}");
        }
    })
    .await;
}
