//! What two runs of a client are compared by, and what may differ between them: the rules.
//!
//! Knows no client and no server, only IMAP's lines.

use std::collections::HashMap;

use crate::support::servers::times::without_times;

/// One connection as the client saw it: what it said and what it heard, each in units that are
/// lines with their literals.
#[derive(Clone, Debug, Default)]
pub(super) struct Conversation {
    pub(super) client: Vec<String>,
    pub(super) server: Vec<String>,
}

/// Tokens of capability lists that differ by purpose. Hidden, since TLS, compression and the user
/// end at mailchime: `STARTTLS`, `COMPRESS=DEFLATE`, the referrals, `UNAUTHENTICATE`. Added:
/// `XAPPLEPUSHSERVICE` (which Cyrus has too) and `COMPRESS=DEFLATE`. And since a backend without TLS
/// shows other ways to log in than the same with TLS: `LOGINDISABLED`, `AUTH=` and `SASL-IR`.
fn differs_by_purpose(token: &str) -> bool {
    const TOKENS: [&str; 8] = [
        "STARTTLS",
        "COMPRESS=DEFLATE",
        "LOGIN-REFERRALS",
        "MAILBOX-REFERRALS",
        "UNAUTHENTICATE",
        "XAPPLEPUSHSERVICE",
        "LOGINDISABLED",
        "SASL-IR",
    ];
    TOKENS.contains(&token) || token.starts_with("AUTH=")
}

/// A word that is another one in each run: what is before it, and what it is made of.
type Varying = (&'static str, fn(char) -> bool);

const MASKED: [Varying; 9] = [
    ("UIDVALIDITY ", is_digit),
    ("UIDVALIDITY', ", is_digit),
    ("[APPENDUID ", is_digit),
    ("[COPYUID ", is_digit),
    ("MAILBOXID (", is_id),
    ("MAILBOXID', [b'(", is_id),
    ("INTERNALDATE \"", is_date),
    // Of mbsync: a header by which it finds again what it has uploaded.
    ("X-TUID: ", is_id),
    ("X-TUID ", is_id),
];

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

fn is_id(c: char) -> bool {
    c.is_ascii_alphanumeric() || "+/-_".contains(c)
}

fn is_date(c: char) -> bool {
    c != '"'
}

/// The bytes of one side in units; `None` if the last is not whole.
pub(super) fn units(mut bytes: &[u8]) -> Option<Vec<String>> {
    let mut units = Vec::new();
    while !bytes.is_empty() {
        let mut end = 0;
        loop {
            end += bytes[end..].iter().position(|b| *b == b'\n')? + 1;
            match literal(&bytes[..end]) {
                Some(length) if bytes.len() >= end + length => end += length,
                Some(_) => return None,
                None => break,
            }
        }
        units.push(bytes[..end].iter().map(|b| char::from(*b)).collect());
        bytes = &bytes[end..];
    }
    Some(units)
}

/// The length of the literal that a line announces. The texts of status answers in these tests do
/// not end so.
fn literal(line: &[u8]) -> Option<usize> {
    let line = line.strip_suffix(b"\r\n")?.strip_suffix(b"}")?;
    let line = line.strip_suffix(b"+").unwrap_or(line);
    let start = line.iter().rposition(|b| *b == b'{')? + 1;
    std::str::from_utf8(&line[start..]).ok()?.parse().ok()
}

impl Conversation {
    /// The same without what may differ. The rules, in order:
    ///
    /// 1. The login, and what was said before it, is left out: mailchime speaks there itself.
    /// 2. So are commands that are `left_out`, with their answers.
    /// 3. Tags are counted from the login on.
    /// 4. Capability lists lack what differs by purpose.
    /// 5. Words of [`MASKED`], and how long a command took, are blotted out.
    fn by_the_rules(&self, left_out: &[&str]) -> Self {
        let words = |unit: &str| -> Vec<String> {
            unit.split_ascii_whitespace().take(2).map(str::to_owned).collect()
        };
        let is_command = |unit: &str| {
            let words = words(unit);
            words.len() == 2
                && words[0].chars().all(|c| c.is_ascii_alphanumeric())
                && (words[1].chars().all(|c| c.is_ascii_uppercase())
                    || ["NOOP\r", "LOGOUT\r"].contains(&&*words[1]))
                || words.len() == 1 && words[0] == "DONE"
        };
        let is_login = |unit: &String| {
            let words = words(unit);
            unit.contains("(* value hidden *)")
                || words.len() == 2 && ["LOGIN", "AUTHENTICATE"].contains(&&*words[1])
        };
        let (mut client, mut server) = (&self.client[..], &self.server[..]);
        let tags: Vec<_> =
            client.iter().filter_map(|unit| words(unit).into_iter().next()).collect();
        let login = client.iter().position(is_login).map(|login| {
            let tag = words(&client[login]).into_iter().next().unwrap_or_default();
            client = &client[login + 1..];
            let first = client.iter().position(|unit| is_command(unit) && !is_login(unit));
            client = &client[first.unwrap_or(client.len())..];
            tag
        });
        // Some clients hide all of the login in what they show of themselves.
        let shown = login.filter(|tag| tag.chars().all(|c| c.is_ascii_alphanumeric()));
        let accepted = server.iter().position(|unit| {
            let words = words(unit);
            words.get(1).is_some_and(|word| word == "OK")
                && words[0] != "*"
                && shown.as_ref().map_or(!tags.contains(&words[0]), |tag| words[0] == *tag)
        });
        server = &server[accepted.map_or(0, |at| at + 1)..];
        let mut tags = HashMap::new();
        let (mut left_tags, mut compress_tags) = (Vec::new(), Vec::new());
        let mut said = Vec::new();
        for unit in client {
            let words = words(unit);
            let tag = is_command(unit) && words.len() == 2;
            if tag && left_out.contains(&&*words[1]) {
                left_tags.push(words[0].clone());
                continue;
            }
            if tag && words[1] == "COMPRESS" {
                compress_tags.push(words[0].clone());
            }
            if !tag {
                said.push(masked(unit));
                continue;
            }
            let number = tags.len() + 1;
            let number = *tags.entry(words[0].clone()).or_insert(number);
            said.push(masked(&unit.replacen(&words[0], &format!("T{number}"), 1)));
        }
        let mut heard = Vec::new();
        for unit in server {
            let words = words(unit);
            let tag = words.first().cloned().unwrap_or_default();
            let untagged = match words.get(1).map(String::as_str) {
                Some("BYE") => "LOGOUT",
                Some(other) => other,
                None => "",
            };
            if left_tags.contains(&tag) || (tag == "*" && left_out.contains(&untagged)) {
                continue;
            }
            let unit = match tags.get(&tag) {
                Some(number) if untagged == "OK" && compress_tags.contains(&tag) => {
                    format!("T{number} OK")
                }
                Some(number) => unit.replacen(&tag, &format!("T{number}"), 1),
                None => unit.clone(),
            };
            heard.push(masked(&without_purpose(&unit)));
        }
        Self { client: said, server: heard }
    }
}

/// Where two connections that should be the same part, by the rules.
///
/// `COMPRESS` is left out where it was asked of mailchime alone, for mailchime offers it itself, whatever the server
/// does; where both were asked, the text of an OK to it. And so is `ID` where only one of them asked for it, which
/// imapflow repeats after login when the answer before it was short.
/// And the answer to `LOGOUT` on a compressed connection: imapflow does not wait for the inflater
/// when the connection ends. And where a server tells of new mail `by_the_clock`, when it does.
pub(super) fn differences(
    name: &str,
    proxied: &Conversation,
    direct: &Conversation,
    by_the_clock: bool,
) -> Vec<String> {
    let asked = |of: &Conversation, what: &str| {
        let commands = of.client.iter().map(|unit| unit.split_ascii_whitespace().nth(1));
        commands.filter(|command| *command == Some(what)).count()
    };
    let mut left_out = Vec::new();
    if asked(proxied, "COMPRESS") > asked(direct, "COMPRESS") {
        left_out.push("COMPRESS");
    }
    if asked(proxied, "ID") != asked(direct, "ID") {
        left_out.push("ID");
    }
    if asked(proxied, "COMPRESS") > 0 {
        left_out.push("LOGOUT");
    }
    let [proxied, direct] = [proxied, direct].map(|it| {
        let mut it = it.by_the_rules(&left_out);
        it.server.retain(|unit| !(by_the_clock && is_count(unit)));
        it
    });
    if direct.client.is_empty() || direct.server.is_empty() {
        return vec![format!("{name}: nothing was said after the login")];
    }
    let said =
        difference(&format!("{name}: what the client said"), &proxied.client, &direct.client);
    let heard =
        difference(&format!("{name}: what the client heard"), &proxied.server, &direct.server);
    said.into_iter().chain(heard).collect()
}

/// How many mails there are, or are new.
pub(super) fn is_count(line: &str) -> bool {
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    matches!(words[..], ["*", _, "EXISTS" | "RECENT"])
}

/// A unit whose capability list, if it has one, lacks what differs by purpose.
fn without_purpose(unit: &str) -> String {
    let (start, end) = match unit.find("[CAPABILITY ") {
        Some(code) if unit.starts_with("* OK [") || unit.starts_with('T') => {
            (code + "[CAPABILITY ".len(), unit[code..].find(']').map_or(unit.len(), |at| code + at))
        }
        _ if unit.starts_with("* CAPABILITY ") => ("* CAPABILITY ".len(), unit.trim_end().len()),
        _ => return unit.to_owned(),
    };
    let kept: Vec<_> =
        unit[start..end].split(' ').filter(|token| !differs_by_purpose(token)).collect();
    format!("{}{}{}", &unit[..start], kept.join(" "), &unit[end..])
}

/// A text in which the words of [`MASKED`] are blotted out.
pub(super) fn masked(text: &str) -> String {
    let mut text = text.to_owned();
    for (before, is_part) in MASKED {
        let mut at = 0;
        while let Some(found) = text[at..].find(before) {
            let start = at + found + before.len();
            let length = text[start..].find(|c| !is_part(c)).unwrap_or(text.len() - start);
            text.replace_range(start..start + length, "_");
            at = start + 1;
        }
    }
    // Whether a mailbox has mail that no session has seen is a matter of the moment.
    for word in ["\\Marked", "\\UnMarked", "\\Unmarked"] {
        text = text.replace(&format!(" {word}"), "").replace(&format!("({word} "), "(");
    }
    without_times(&text)
}

/// Where two lists of lines part, or nothing.
pub(super) fn difference(what: &str, proxied: &[String], direct: &[String]) -> Option<String> {
    let same = proxied.iter().zip(direct).take_while(|(a, b)| a == b).count();
    if same == proxied.len() && same == direct.len() {
        return None;
    }
    let short = |lines: &[String], at: usize| match lines.get(at) {
        Some(line) => line.escape_debug().to_string().chars().take(600).collect(),
        None => "(nothing more)".to_owned(),
    };
    let before = same.checked_sub(1).map_or_else(String::new, |at| short(direct, at));
    Some(format!(
        "{what}, line {}:\n  through mailchime: {}\n  directly:          {}\n  after:             {before}",
        same + 1,
        short(proxied, same),
        short(direct, same),
    ))
}

mod tests {
    use super::*;

    fn conversation(client: &str, server: &str) -> Conversation {
        let units = |text: &str| units(text.replace('\n', "\r\n").as_bytes()).unwrap();
        Conversation { client: units(client), server: units(server) }
    }

    #[test]
    fn what_may_differ_does_not_count() {
        let proxied = conversation(
            "a LOGIN x y\nb COMPRESS DEFLATE\nc SELECT INBOX\nd LOGOUT\n",
            "* OK mailchime ready\na OK [CAPABILITY IMAP4rev1 IDLE XAPPLEPUSHSERVICE] in\nb OK\n\
             * OK [UIDVALIDITY 7] x\nc OK Completed (0.003 sec)\n",
        );
        let direct = conversation(
            "1 CAPABILITY\n2 LOGIN x y\n3 SELECT INBOX\n4 LOGOUT\n",
            "* OK\n* CAPABILITY IMAP4rev1\n1 OK\n2 OK in\n* OK [UIDVALIDITY 8] x\n\
             3 OK Completed (0.004 sec)\n* BYE\n4 OK\n",
        );
        assert_eq!(differences("x", &proxied, &direct, false), Vec::<String>::new());
    }

    #[test]
    fn what_may_not_differ_does() {
        let said = "a LOGIN x y\nb FETCH 1 BODY[]\n";
        let heard = |body: &str| format!("a OK in\n* 1 FETCH (BODY[] {{4}}\n{body})\nb OK\n");
        let one = conversation(said, &heard("b OK"));
        assert_eq!(one.server.len(), 3, "a literal is part of its line");
        assert_eq!(differences("x", &one, &one, false).len(), 0);
        let other = conversation(said, &heard("b NO"));
        assert_eq!(differences("x", &one, &other, false).len(), 1);
        let offers = |list: &str| conversation(said, &format!("a OK\n* CAPABILITY {list}\nb OK\n"));
        assert_eq!(differences("x", &offers("IDLE"), &offers("IDLE MOVE"), false).len(), 1);
        assert_eq!(differences("x", &offers("IDLE"), &offers("IDLE STARTTLS"), false).len(), 0);
        // Each says in its own words that it compresses from then on.
        let asked = |answer: &str| {
            conversation("a LOGIN x y\nb COMPRESS DEFLATE\n", &format!("a OK in\nb {answer}\n"))
        };
        let [mine, theirs, refused] =
            ["OK DEFLATE active", "OK Begin compression.", "NO not now"].map(asked);
        assert_eq!(differences("x", &mine, &theirs, false), Vec::<String>::new());
        assert_eq!(differences("x", &mine, &refused, false).len(), 1);
        let not_asked = conversation("a LOGIN x y\nb NOOP\n", "a OK in\nb OK\n");
        assert!(!differences("x", &not_asked, &theirs, false).is_empty());
    }
}
