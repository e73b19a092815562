//! Readers of what mail servers tell, by hand and on whole buffers, which owe nothing to mailchime's own.

use mailchime::model::{ChangeKind, Hint};
use serde_json::Value;

/// The one domain that the source may speak for, and that of users without one.
pub const DOMAIN: &str = "example.org";

/// Keys behind which something of a mail may stand.
pub const OF_A_MAIL: [&str; 7] = [
    "from",
    "subject",
    "snippet",
    "messageHeaders",
    "messageContent",
    "bodyStructure",
    "vnd.cmu.envelope",
];

const OF_NO_MATTER: [&str; 10] = [
    "aclchange",
    "annotationchange",
    "login",
    "logout",
    "mailboxsubscribe",
    "mailboxunsubscribe",
    "quotachange",
    "quotaexceed",
    "quotawithin",
    "metadatachange",
];

const MOST_NUMBER: u64 = 0xffff_ffff;
const MOST_MOD_SEQ: u64 = 0x7fff_ffff_ffff_ffff;

/// What one hint says: the account, the mailbox, whether mail is new, and UIDVALIDITY, UIDNEXT, MESSAGES, UNSEEN and
/// HIGHESTMODSEQ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub account: String,
    pub mailbox: Option<String>,
    pub is_new: bool,
    pub numbers: [Option<u64>; 5],
}

impl Told {
    pub fn of(hint: &Hint) -> Self {
        let state = hint.state;
        Self {
            account: hint.account.as_str().to_owned(),
            mailbox: hint.mailbox.as_ref().map(|mailbox| mailbox.as_str().to_owned()),
            is_new: hint.event.kind() == ChangeKind::NewMail,
            numbers: [
                state.uid_validity,
                state.uid_next,
                state.messages,
                state.unseen,
                state.highest_mod_seq,
            ],
        }
    }
}

/// What mailchime's own form says; `None` if it is to be refused.
pub fn report(body: &Value) -> Option<Vec<Told>> {
    let one = std::slice::from_ref(body);
    let reports = body.as_array().map_or(one, Vec::as_slice);
    let mut told = Vec::new();
    let mut count = 0;
    for report in reports {
        let account = account(text(report, "user")??)?;
        let changes = report.as_object()?.get("changes")?.as_array()?;
        count += changes.len();
        for change in changes {
            let mailbox = text(change, "mailbox")?;
            let numbers = ["uidvalidity", "uidnext", "messages", "unseen", "highestmodseq"];
            let [validity, next, messages, unseen, mod_seq] =
                numbers.map(|field| number(change, field));
            let none = Vec::new();
            let events = match change.as_object()?.get("events") {
                None => &none,
                Some(events) => events.as_array()?,
            };
            let mut names = Vec::new();
            for event in events {
                names.push(event.as_str()?.to_ascii_lowercase());
            }
            // What has another type is refused, whatever happened.
            let (validity, next, messages, unseen, mod_seq) =
                (validity?, next?, messages?, unseen?, mod_seq?);
            if names.len() > 64 {
                return None;
            }
            if !names.is_empty() && names.iter().all(|name| OF_NO_MATTER.contains(&name.as_str())) {
                continue;
            }
            let mailbox =
                mailbox.map(|name| named(name).map(inbox)).map_or(Some(None), |it| it.map(Some))?;
            told.push(Told {
                account: account.clone(),
                mailbox,
                is_new: names.iter().any(|name| is_new(name)),
                numbers: [
                    some(validity, MOST_NUMBER)?,
                    some(next, MOST_NUMBER)?,
                    at_most(messages, MOST_NUMBER)?,
                    at_most(unseen, MOST_NUMBER)?,
                    some(mod_seq, MOST_MOD_SEQ)?,
                ],
            });
        }
    }
    (count <= 1000).then_some(told)
}

/// What the body of Dovecot's driver `ox` says; `None` if it is to be refused.
pub fn ox(body: &Value) -> Option<Vec<Told>> {
    let account = account(text(body, "user")??)?;
    let is_new = is_new(text(body, "event")??);
    let mailbox = Some(inbox(named(text(body, "folder")??)?));
    let uid = some(number(body, "imap-uid")?, MOST_NUMBER)?;
    let next = uid.map(|uid| if uid == MOST_NUMBER { uid } else { uid + 1 });
    let validity = some(number(body, "imap-uidvalidity")?, MOST_NUMBER)?;
    let unseen = at_most(number(body, "unseen")?, MOST_NUMBER)?;
    Some(vec![Told { account, mailbox, is_new, numbers: [validity, next, None, unseen, None] }])
}

/// What an event of Cyrus says that is of a mailbox; `None` if it is to be refused.
pub fn cyrus(body: &Value) -> Option<Vec<Told>> {
    let event = text(body, "event")??.to_ascii_lowercase();
    let uri = text(body, "uri")?;
    let old = text(body, "oldMailboxID")?;
    let acl = text(body, "vnd.cmu.mailboxACL")?.unwrap_or_default();
    let flags = text(body, "flagNames")?;
    let fields = ["uidnext", "messages", "vnd.cmu.unseenMessages", "modseq"];
    let [next, messages, unseen, mod_seq] = fields.map(|field| number(body, field));
    let (next, messages, unseen, mod_seq) = (next?, messages?, unseen?, mod_seq?);
    let no_flag = |flags: &str| {
        let flags = flags.to_ascii_lowercase();
        !flags.split(' ').any(|flag| flag == "\\seen" || flag == "\\deleted")
    };
    if event == "mailboxmodseq"
        || OF_NO_MATTER.contains(&event.as_str())
        || ((event == "flagsset" || event == "flagsclear") && flags.is_some_and(no_flag))
    {
        return Some(Vec::new());
    }
    let is_new = is_new(&event) || event == "vnd.cmu.messagecopy" || event == "vnd.cmu.messagemove";
    let mut told = Vec::new();
    if let Some(place) = place(uri?, acl)? {
        let account = account(&place.owner)?;
        let validity = if next.is_some() { some(place.validity, MOST_NUMBER)? } else { None };
        let numbers = [
            validity,
            some(next, MOST_NUMBER)?,
            at_most(messages, MOST_NUMBER)?,
            at_most(unseen, MOST_NUMBER)?,
            some(mod_seq, MOST_MOD_SEQ)?,
        ];
        for mailbox in place.names()? {
            told.push(Told { account: account.clone(), mailbox: Some(mailbox), is_new, numbers });
        }
    }
    if event == "mailboxrename"
        && let Some(old) = old
        && let Some(place) = place(old, acl)?
    {
        let account = account(&place.owner)?;
        for mailbox in place.names()? {
            let (account, mailbox) = (account.clone(), Some(mailbox));
            told.push(Told { account, mailbox, is_new, numbers: [None; 5] });
        }
    }
    Some(told)
}

/// What a notification of the class MAIL says; `None` if it is to be refused.
pub fn delivery(user: &[u8], mailbox: &[u8]) -> Option<Vec<Told>> {
    let account = account(std::str::from_utf8(user).ok()?)?;
    let folder = std::str::from_utf8(mailbox).ok()?;
    let told =
        |mailbox, is_new| Told { account: account.clone(), mailbox, is_new, numbers: [None; 5] };
    if folder.eq_ignore_ascii_case("inbox") {
        return Some(vec![told(None, false)]);
    }
    let mut all = Vec::new();
    for name in [folder.to_owned(), format!("INBOX/{folder}"), format!("INBOX.{folder}")] {
        all.push(told(Some(inbox(named(&name)?)), true));
    }
    Some(all)
}

/// The user of a datagram of OX mailnotify: `None` if it is to be refused, and nobody where no mail was delivered.
pub fn mailnotify(datagram: &[u8]) -> Option<Option<String>> {
    let ends: Vec<usize> =
        datagram.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at).collect();
    let [method, class, priority, ..] = ends.as_slice() else { return None };
    if datagram[method + 1..*class] != *b"MAIL" {
        return Some(None);
    }
    let user = std::str::from_utf8(&datagram[priority + 1..*ends.get(3)?]).ok()?;
    if user.is_empty() || user.chars().any(char::is_control) {
        return None;
    }
    Some(Some(whole(user)))
}

/// The mailbox that a URI names.
#[derive(Debug)]
struct Place {
    owner: String,
    folder: String,
    separator: char,
    validity: Option<u64>,
}

impl Place {
    fn names(&self) -> Option<Vec<String>> {
        if self.folder.is_empty() {
            return Some(vec!["INBOX".to_owned()]);
        }
        let below = format!("INBOX{}{}", self.separator, self.folder);
        Some(vec![inbox(named(&self.folder)?), named(&below)?.to_owned()])
    }
}

fn place(uri: &str, acl: &str) -> Option<Option<Place>> {
    if !uri.starts_with("imap://") {
        return None;
    }
    let slash = 7 + uri[7..].find('/')?;
    let rest = &uri[slash + 1..];
    let end = rest.find(';').unwrap_or(rest.len());
    let (path, mut more) = (&rest[..end], &rest[end..]);
    let mut validity = None;
    while let Some(at) = more.find([';', '/']) {
        more = &more[at + 1..];
        let attribute = &more[..more.find([';', '/']).unwrap_or(more.len())];
        if validity.is_none() && attribute.starts_with("UIDVALIDITY=") {
            validity = attribute["UIDVALIDITY=".len()..].parse().ok();
        }
    }
    let name = String::from_utf8(decoded(path.as_bytes())).ok()?;
    let separator = match name.as_bytes() {
        [b'u', b's', b'e', b'r', separator @ (b'/' | b'.'), ..] => char::from(*separator),
        _ => return Some(None),
    };
    let name = &name[5..];
    let split = |name: &str| {
        let at = name.find(separator);
        let owner = &name[..at.unwrap_or(name.len())];
        let folder = at.map_or("", |at| &name[at + 1..]);
        let owner = if separator == '.' { owner.replace('^', ".") } else { owner.to_owned() };
        (owner, folder.to_owned())
    };
    let in_list = |who: &str| {
        let words: Vec<&str> = acl.split('\t').collect();
        words.chunks(2).any(|pair| pair[0] == who)
    };
    let plain = split(name);
    let (owner, folder) = match name.rfind('@') {
        None => plain,
        Some(at) => {
            let (local, folder) = split(&name[..at]);
            let virtual_owner = format!("{local}{}", &name[at..]);
            match in_list(&plain.0) && !in_list(&virtual_owner) {
                true => plain,
                false => (virtual_owner, folder),
            }
        }
    };
    // A name that is no owner's.
    (!owner.is_empty()).then_some(Some(Place { owner, folder, separator, validity }))
}

/// Percent-decoded; what is no two digits stays.
fn decoded(text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = Vec::new();
    let mut rest = text;
    while let [first, more @ ..] = rest {
        let escaped = match more {
            [high, low, ..] if *first == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    bytes
}

/// A text of an object: `None` of what is no object or no text, `Some(None)` where there is none.
fn text<'a>(object: &'a Value, key: &str) -> Option<Option<&'a str>> {
    match object.as_object()?.get(key) {
        None | Some(Value::Null) => Some(None),
        Some(value) => value.as_str().map(Some),
    }
}

fn number(object: &Value, key: &str) -> Option<Option<u64>> {
    match object.as_object()?.get(key) {
        None | Some(Value::Null) => Some(None),
        Some(value) => value.as_u64().map(Some),
    }
}

fn at_most(number: Option<u64>, most: u64) -> Option<Option<u64>> {
    if number.is_some_and(|number| number > most) { None } else { Some(number) }
}

/// Zero says nothing.
fn some(number: Option<u64>, most: u64) -> Option<Option<u64>> {
    at_most(number, most).map(|number| if number == Some(0) { None } else { number })
}

fn is_new(event: &str) -> bool {
    event.eq_ignore_ascii_case("messagenew") || event.eq_ignore_ascii_case("messageappend")
}

fn named(name: &str) -> Option<&str> {
    (!name.is_empty() && name.len() <= 1024 && !name.chars().any(char::is_control)).then_some(name)
}

fn inbox(name: &str) -> String {
    if name.eq_ignore_ascii_case("inbox") { "INBOX".to_owned() } else { name.to_owned() }
}

/// The account of a user of whom the source may speak.
fn account(user: &str) -> Option<String> {
    let account = whole(named(user)?);
    let behind = &account[account.rfind('@')? + 1..];
    let is_of_domain = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.".contains(c);
    let more = behind.strip_prefix(DOMAIN)?;
    (!more.starts_with(is_of_domain)).then_some(account)
}

/// With its domain, in lower case as far as it is one.
fn whole(user: &str) -> String {
    let Some(at) = user.rfind('@') else { return format!("{user}@{DOMAIN}") };
    let mut account = user[..=at].to_owned();
    let mut in_domain = true;
    for c in user[at + 1..].chars() {
        in_domain &= !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.".contains(c);
        account.push(if in_domain { c.to_ascii_lowercase() } else { c });
    }
    account
}

/// What is kept of a notification: class, user, mailbox, and the message of an event.
pub type Kept = [Vec<u8>; 4];

/// The notification of a datagram.
pub fn datagram(datagram: &[u8]) -> Option<Kept> {
    let mut fields: Vec<&[u8]> = vec![&[]];
    let mut from = 0;
    for (at, byte) in datagram.iter().enumerate() {
        if *byte == 0 {
            fields.pop();
            fields.push(&datagram[from..at]);
            fields.push(&datagram[at + 1..]);
            from = at + 1;
        }
    }
    let options: usize = std::str::from_utf8(fields.get(5)?).ok()?.parse().ok()?;
    if options > 64 || fields.len() < 8 + options {
        return None;
    }
    Some(kept([fields[1], fields[3], fields[4], fields[6 + options]].map(<[u8]>::to_vec)))
}

fn kept([class, user, mailbox, message]: Kept) -> Kept {
    let message = if class == b"EVENT" { message } else { Vec::new() };
    [class, user, mailbox, message]
}

/// The notification with which the bytes of a connection begin.
pub fn stream(bytes: &[u8]) -> Option<Kept> {
    let mut dlist = Dlist(bytes);
    let head: Vec<u8> = bytes.get(..7)?.to_ascii_uppercase();
    dlist.0 = bytes.get(7..).filter(|_| head == b"NOTIFY ")?;
    dlist.expect(b"%(")?;
    let mut found = Kept::default();
    if dlist.expect(b")").is_none() {
        loop {
            let key = dlist.atom()?;
            dlist.expect(b" ")?;
            let value = dlist.value()?;
            let names = [&b"CLASS"[..], b"USER", b"MAILBOX", b"MESSAGE"];
            if let Some(place) = names.iter().position(|name| *name == key) {
                found[place] = value;
            }
            if dlist.expect(b")").is_some() {
                break;
            }
            dlist.expect(b" ")?;
        }
    }
    if dlist.expect(b"\r\n").is_none() {
        dlist.expect(b"\n")?;
    }
    Some(kept(found))
}

struct Dlist<'a>(&'a [u8]);

impl Dlist<'_> {
    fn expect(&mut self, word: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(word)?;
        Some(())
    }

    fn atom(&mut self) -> Option<Vec<u8>> {
        let is_of_atom = |byte: &u8| matches!(byte, b'!'..=b'~') && !b"()\"{%".contains(byte);
        let length = self.0.iter().take_while(|byte| is_of_atom(byte)).count();
        let (atom, rest) = self.0.split_at(length);
        self.0 = rest;
        (length > 0).then(|| atom.to_vec())
    }

    /// A list says nothing.
    fn value(&mut self) -> Option<Vec<u8>> {
        if self.expect(b"(").is_none() {
            return self.string();
        }
        if self.expect(b")").is_some() {
            return Some(Vec::new());
        }
        loop {
            self.string()?;
            if self.expect(b")").is_some() {
                return Some(Vec::new());
            }
            self.expect(b" ")?;
        }
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        match self.0.first()? {
            b'{' => {
                let end = self.0.iter().position(|byte| *byte == b'+')?;
                let digits = std::str::from_utf8(&self.0[1..end]).ok()?;
                let length: u32 =
                    digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))?;
                let length = usize::try_from(length).ok()?;
                self.0 = &self.0[end + 1..];
                self.expect(b"}\r\n")?;
                let (text, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Some(text.to_vec())
            }
            b'"' => {
                let mut text = Vec::new();
                let mut at = 1;
                loop {
                    match self.0.get(at)? {
                        b'"' => break,
                        b'\\' => {
                            text.push(*self.0.get(at + 1)?);
                            at += 2;
                        }
                        byte => {
                            text.push(*byte);
                            at += 1;
                        }
                    }
                }
                self.0 = &self.0[at + 1..];
                Some(text)
            }
            _ => self.atom().map(|atom| if atom == b"NIL" { Vec::new() } else { atom }),
        }
    }
}
