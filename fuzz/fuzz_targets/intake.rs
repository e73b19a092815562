//! What mail servers tell: the bodies of requests, notifications of Cyrus as datagrams and over a connection, URIs of
//! mailboxes, datagrams of OX mailnotify. It is understood as a second reader does, a connection's bytes alike in any
//! pieces, and nothing of a mail comes out.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::intake::fuzzing::{
    FuzzedBody, FuzzedNews, FuzzedNotification, FuzzedSource, FuzzedStream, LONGEST, datagram,
    mailnotify, stream,
};
use mailchime::model::{MailboxEvent, Snapshot};
use mailchime_fuzz::events::{self, DOMAIN, Kept, OF_A_MAIL, Told};
use serde_json::{Value, json};

/// Stands where something of a mail may stand, and where a number is missing.
const PRIVATE: &str = "Q7private";

/// What a log or an answer may show of what is refused, in bytes.
const SHOWN: usize = 600;

/// Bytes of a datagram that OX mailnotify's reader reads.
const MAILNOTIFY: usize = 1024;

thread_local! {
    static SOURCE: FuzzedSource = FuzzedSource::new(DOMAIN);
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&which, data)) = data.split_first() else { return Corpus::Reject };
    SOURCE.with(|source| match which % 8 {
        0 => body(source, FuzzedBody::Report, data),
        1 => body(source, FuzzedBody::Ox, data),
        2 => body(source, FuzzedBody::Cyrus, data),
        3 => of_datagram(source, data),
        4 => of_stream(source, data),
        5 => of_mailnotify(data),
        6 => uri_of_parts(source, data),
        _ => notification_of_parts(source, which / 8, data),
    });
    Corpus::Keep
});

/// What was told; `None` where it was refused or is of a device.
fn told(news: &FuzzedNews, longest: usize) -> Option<Vec<Told>> {
    match news {
        FuzzedNews::Hints(hints) => {
            assert!(hints.len() <= longest, "{} hints", hints.len());
            Some(hints.iter().map(Told::of).collect())
        }
        FuzzedNews::Device(..) => None,
        FuzzedNews::Refused(shown) => {
            assert!(shown.len() <= SHOWN, "{} bytes", shown.len());
            None
        }
    }
}

fn body(source: &FuzzedSource, form: FuzzedBody, bytes: &[u8]) {
    let news = source.body(form, bytes);
    let heard = told(&news, 1000);
    // What is skipped may be too deep or too large for this one.
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let expected = match form {
        FuzzedBody::Report => events::report(&value),
        FuzzedBody::Ox => events::ox(&value),
        FuzzedBody::Cyrus if value["event"] == "ApplePushService" => {
            return device(&news, &value);
        }
        FuzzedBody::Cyrus => events::cyrus(&value),
    };
    // A key that comes twice is refused, and here the last one counts.
    let again = source.body(form, value.to_string().as_bytes());
    assert_eq!(told(&again, 1000), expected, "{value}");
    assert!(heard.is_none() || heard == expected, "{value}");

    // Of what is of a mail nothing is kept, and nothing is quoted.
    let mut with_mail = value;
    mark(&mut with_mail);
    let marked = source.body(form, with_mail.to_string().as_bytes());
    assert_eq!(told(&marked, 1000), expected, "{with_mail}");
    assert!(!format!("{marked:?}").contains(PRIVATE), "{marked:?}");
    let numbers = match form {
        FuzzedBody::Ox => ["imap-uid", "unseen"],
        FuzzedBody::Report | FuzzedBody::Cyrus => ["uidnext", "messages"],
    };
    for number in numbers {
        if replace(&mut with_mail, form, number) {
            let refused = source.body(form, with_mail.to_string().as_bytes());
            assert_eq!(told(&refused, 1000), None, "{with_mail}");
            assert!(!format!("{refused:?}").contains(PRIVATE), "{refused:?}");
        }
    }
}

/// The registration itself is held against its arguments by the target `registration`.
fn device(news: &FuzzedNews, value: &Value) {
    match news {
        FuzzedNews::Hints(hints) => panic!("{hints:?}"),
        FuzzedNews::Refused(_) => {}
        FuzzedNews::Device(account, shown) => {
            let text = |key: &str| value[key].as_str().unwrap_or_default();
            let (user, token) = (text("user"), text("apsDeviceToken"));
            let expected = events::delivery(user.as_bytes(), b"inbox").expect("a user");
            assert_eq!(account.as_str(), expected[0].account);
            // Another value may spell the same.
            let once = value.to_string().matches(token).count() == 1;
            assert!(!once || !shown.contains(token), "a token is shown in full");
        }
    }
}

/// Puts something of a mail into each object.
fn mark(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(mark),
        Value::Object(fields) => {
            fields.values_mut().for_each(mark);
            for key in OF_A_MAIL {
                fields.insert(key.to_owned(), json!([{ "x": PRIVATE }, PRIVATE]));
            }
        }
        _ => {}
    }
}

/// Puts a text where a number stands at a place that is read, and says whether there was one.
fn replace(value: &mut Value, form: FuzzedBody, number: &str) -> bool {
    let in_object = |object: &mut Value| match object.get_mut(number) {
        Some(found @ Value::Number(_)) => {
            *found = PRIVATE.into();
            true
        }
        _ => false,
    };
    let in_report = |report: &mut Value| {
        let changes = report.get_mut("changes").and_then(Value::as_array_mut);
        changes.is_some_and(|changes| changes.iter_mut().any(in_object))
    };
    match (form, value) {
        (FuzzedBody::Report, Value::Array(reports)) => reports.iter_mut().any(in_report),
        (FuzzedBody::Report, report) => in_report(report),
        (FuzzedBody::Ox | FuzzedBody::Cyrus, body) => in_object(body),
    }
}

fn of_notification(
    FuzzedNotification { class, user, mailbox, message }: &FuzzedNotification,
) -> Kept {
    [class, user, mailbox, message].map(Clone::clone)
}

fn of_datagram(source: &FuzzedSource, bytes: &[u8]) {
    let read = datagram(bytes);
    assert_eq!(read.as_ref().map(of_notification), events::datagram(bytes));
    // A part of it says the same or nothing.
    for end in (0..bytes.len()).step_by(1 + bytes.len() / 40) {
        let part = datagram(&bytes[..end]);
        assert!(part.is_none() || part == read, "{end}");
    }
    if let Some(read) = read {
        notified(source, read);
    }
}

fn of_stream(source: &FuzzedSource, bytes: &[u8]) {
    let read = stream(bytes);
    let expected = events::stream(bytes);
    match &read {
        FuzzedStream::Whole(read) => assert_eq!(Some(of_notification(read)), expected),
        // Longer than any is known before the end.
        FuzzedStream::TooLarge => {}
        FuzzedStream::Incomplete | FuzzedStream::Malformed => assert_eq!(expected, None),
    }
    in_pieces(bytes, &read, 1 + bytes.len() / 60);
    // The same far on.
    if let Some(rest) = bytes.strip_prefix(b"NOTIFY %(") {
        let ahead = LONGEST - 800;
        let long = [b"NOTIFY %(X \"", &vec![b'x'; ahead][..], b"\" ", rest].concat();
        in_pieces(&long, &stream(&long), 8192 - bytes.len());
    }
    if let FuzzedStream::Whole(read) = read {
        notified(source, read);
    }
}

/// What is decided of a part is decided.
fn in_pieces(bytes: &[u8], whole: &FuzzedStream, size: usize) {
    for end in (0..bytes.len()).step_by(size) {
        let part = stream(&bytes[..end]);
        assert!(part == FuzzedStream::Incomplete || part == *whole, "{end}: {part:?}, {whole:?}");
    }
}

fn notified(source: &FuzzedSource, notification: FuzzedNotification) {
    let news = source.notified(notification.clone());
    let heard = told(&news, 4);
    match notification.class.as_slice() {
        b"EVENT" => body(source, FuzzedBody::Cyrus, &notification.message),
        b"MAIL" => {
            assert!(notification.message.is_empty());
            assert_eq!(heard, events::delivery(&notification.user, &notification.mailbox));
        }
        _ => assert_eq!(heard, Some(Vec::new())),
    }
}

fn of_mailnotify(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MAILNOTIFY)];
    let read = mailnotify(bytes, Some(DOMAIN));
    let account = |hint: &mailchime::model::Hint| {
        assert_eq!((hint.event, hint.state), (MailboxEvent::Unnamed, Snapshot::default()));
        assert_eq!(hint.mailbox, None);
        hint.account.as_str().to_owned()
    };
    let heard = read.as_ref().map(|hint| hint.as_ref().map(account));
    assert_eq!(heard.ok(), events::mailnotify(bytes));
    for end in 0..bytes.len() {
        let part = mailnotify(&bytes[..end], Some(DOMAIN));
        let same = || {
            format!("{part:?}").split("seen_at").next()
                == format!("{read:?}").split("seen_at").next()
        };
        assert!(part.is_err() || same(), "{end}");
    }
}

/// A URI as Cyrus writes it, in each of its namespaces: the owner and the folder are found again.
fn uri_of_parts(source: &FuzzedSource, data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (owner, folder) = text.split_once('\n').unwrap_or((text, ""));
    let harmless = |name: &str| !name.chars().any(char::is_control) && name.len() < 500;
    if owner.is_empty() || owner.contains(['@', '/', '^']) || !harmless(owner) || !harmless(folder)
    {
        return;
    }
    for (separator, is_virtual) in [('/', false), ('.', false), ('/', true), ('.', true)] {
        let local = if separator == '.' { owner.replace('.', "^") } else { owner.to_owned() };
        let below = match folder {
            "" => String::new(),
            folder => format!("{separator}{folder}"),
        };
        let account = format!("{owner}@{DOMAIN}");
        let (name, listed) = match is_virtual {
            true => (format!("user{separator}{local}{below}@{DOMAIN}"), account.as_str()),
            false => (format!("user{separator}{local}{below}"), owner),
        };
        let escaped: String = name
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' => {
                    char::from(byte).to_string()
                }
                byte => format!("%{byte:02X}"),
            })
            .collect();
        let event = json!({
            "event": "MessageNew",
            "uri": format!("imap://localhost/{escaped};UIDVALIDITY=7/;UID=2"),
            "uidnext": 3,
            "vnd.cmu.mailboxACL": format!("{listed}\tlrswipkxtecdan\tanyone\tlr\t"),
        });
        let heard = told(&source.body(FuzzedBody::Cyrus, event.to_string().as_bytes()), 2);
        let inbox = match folder.eq_ignore_ascii_case("inbox") {
            true => "INBOX",
            false => folder,
        };
        let below = format!("INBOX{separator}{folder}");
        let names = if folder.is_empty() { vec!["INBOX"] } else { vec![inbox, &below] };
        let expected = names.into_iter().map(|name| Told {
            account: account.clone(),
            mailbox: Some(name.to_owned()),
            is_new: true,
            numbers: [Some(7), Some(3), None, None, None],
        });
        assert_eq!(heard, Some(expected.collect()), "{event}");
    }
}

/// A notification as Cyrus writes it, in both forms: both say the same.
fn notification_of_parts(source: &FuzzedSource, forms: u8, data: &[u8]) {
    let mut parts = data.splitn(4, |byte| *byte == 0);
    let [class, user, mailbox, message] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    if message.contains(&0) {
        return;
    }
    let short =
        [b"m\0", class, b"\0\0", user, b"\0", mailbox, b"\0\x31\0x\0", message, b"\0"].concat();
    let mut dlist = b"Notify %(METHOD m OPTIONS (x {1+}\r\ny \"\\\"\") ".to_vec();
    for (place, (key, value)) in
        [("MESSAGE", message), ("CLASS", class), ("USER", user), ("MAILBOX", mailbox)]
            .into_iter()
            .enumerate()
    {
        let quoted = forms >> place & 1 == 1;
        dlist.extend(key.as_bytes());
        dlist.push(b' ');
        if quoted {
            dlist.push(b'"');
            for byte in value {
                dlist.extend(b"\\".iter().filter(|_| b"\"\\".contains(byte)));
                dlist.push(*byte);
            }
            dlist.push(b'"');
        } else {
            dlist.extend(format!("{{{}+}}\r\n", value.len()).as_bytes());
            dlist.extend(value);
        }
        dlist.push(b' ');
    }
    dlist.extend(b"FILEPATH NIL)\n");
    let read = datagram(&short).expect("a notification");
    assert_eq!(stream(&dlist), FuzzedStream::Whole(read.clone()));
    assert_eq!((&*read.class, &*read.user, &*read.mailbox), (class, user, mailbox));
    assert_eq!(read.message, if class == b"EVENT" { message } else { b"" });
    notified(source, read);
}
