//! XAPPLEPUSHSERVICE: its arguments (nom) and its answer (PROTOCOL.md section 1).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use nom::branch::alt;
use nom::character::complete::space1;
use nom::combinator::map;
use nom::multi::many0;
use nom::sequence::{preceded, separated_pair};
use nom::{IResult, Parser};
use serde::{Deserialize, Serialize};

use crate::imap::args::{Bytes, astring, astring_list, quote, whole};
use crate::imap::refusal::Refusal;
use crate::imap::responses::has_code;
use crate::model::{
    Account, Mailbox, PushEndpoint, Registration, Snapshot, Subscription, TransportId,
};

/// The transport by which devices that register so are notified.
pub const TRANSPORT: &str = "apns";

/// A device as the push service names it: hex digits, kept as given, compared without case.
///
/// `Display` and `Debug` show the first 8 digits only, so a token cannot reach a log in full.
#[derive(Clone)]
pub struct DeviceToken(Arc<str>);

/// What the transport has to know of a device beyond its token, its mail client and its topic: the
/// [`options`](Subscription::options) of its subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApnsOptions {
    /// `aps-account-id`: the device's own name for this mail account.
    pub account_id: String,
    /// `aps-version` that was answered: with 1 only INBOX is pushed and no mailbox is named.
    pub version: u8,
}

/// What a device asks for. Mailbox names are as they came on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XAppleRegistration {
    /// 1 or 2; a higher one that the client asked for is answered as 2.
    pub version: u8,
    /// The id that the phone made up for the account.
    pub account_id: String,
    /// The device token.
    pub token: DeviceToken,
    /// The app that asks.
    pub subtopic: String,
    /// Empty with version 1, which means INBOX.
    pub mailboxes: Vec<Vec<u8>>,
}

/// A registration with those of its mailboxes that its user can read.
#[derive(Clone, Debug)]
pub struct CheckedRegistration {
    /// Whose session it is.
    pub account: Account,
    /// What the device asked for, but for the mailboxes.
    pub request: XAppleRegistration,
    /// The mailboxes that count, each with its state.
    pub mailboxes: Vec<(Mailbox, Snapshot)>,
}

/// What the device gets for a registration that is on disk.
#[derive(Debug)]
pub struct RegistrationReply {
    version: u8,
    /// The mailboxes that count, as the device spelled them.
    names: Vec<Vec<u8>>,
}

/// What the value of a key of a registration or its answer tells, for those who show dialogues to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationValue {
    /// The phone's id for the account, a UUID.
    Account,
    /// Where pushes go, in hex digits: a secret.
    Endpoint,
    /// Under whose authority they are sent, which names the operator.
    Route,
    /// Nothing of a user.
    Harmless,
    /// It is no key of this version.
    Unknown,
}

/// Why the arguments are not a registration. `Display` is fit for the text of a BAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MalformedRegistration {
    /// They are no list of keys and values.
    Arguments,
    /// A key is there twice.
    Repeated(&'static str),
    /// A key is not there.
    Missing(&'static str),
    /// The value of a key is not allowed.
    Value(&'static str),
}

/// The topic in dialogues that others read: a real one names the operator of the server.
pub const EXAMPLE_ROUTE: &str = "com.apple.mail.XServer.11111111-2222-3333-4444-555555555555";

const VERSION: &str = "aps-version";
const ACCOUNT_ID: &str = "aps-account-id";
const TOKEN: &str = "aps-device-token";
const SUBTOPIC: &str = "aps-subtopic";
const MAILBOXES: &str = "mailboxes";

enum ArgumentValue<'a> {
    One(Bytes<'a>),
    List(Vec<Bytes<'a>>),
}

// === impl DeviceToken ===

impl DeviceToken {
    /// `None` unless `hex` is an even number of 64 to 200 hex digits.
    pub fn new(hex: &str) -> Option<Self> {
        let valid = (64..=200).contains(&hex.len())
            && hex.len().is_multiple_of(2)
            && hex.bytes().all(|b| b.is_ascii_hexdigit());
        valid.then(|| Self(hex.into()))
    }

    /// As the device gave it.
    pub fn as_given(&self) -> &str {
        &self.0
    }

    /// The form that identifies the device.
    pub fn to_lowercase(&self) -> String {
        self.0.to_ascii_lowercase()
    }

    /// As the endpoint of a subscription.
    pub fn endpoint(&self) -> PushEndpoint {
        PushEndpoint::new(&self.0, &self.to_lowercase())
    }
}

impl PartialEq for DeviceToken {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for DeviceToken {}

impl Hash for DeviceToken {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        for byte in self.0.bytes() {
            state.write_u8(byte.to_ascii_lowercase());
        }
    }
}

impl fmt::Display for DeviceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", &self.0[..8])
    }
}

impl fmt::Debug for DeviceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl ApnsOptions ===

impl ApnsOptions {
    /// As a subscription has them: a JSON object.
    pub fn to_json(&self) -> String {
        // Nothing but a key that is no text could fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Those of a subscription; `None` if they are not ones of this transport.
    pub fn from_json(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }
}

// === impl XAppleRegistration ===

impl XAppleRegistration {
    /// What a device asks for with these values, which are as they came. A version above 2 is 2. `mailboxes` are
    /// names of the wire, and with version 1 none counts.
    ///
    /// # Errors
    /// [`MalformedRegistration`] when a value is not allowed.
    pub fn new(
        version: u64,
        account_id: String,
        token: &str,
        subtopic: String,
        mailboxes: Vec<Vec<u8>>,
    ) -> Result<Self, MalformedRegistration> {
        let (version, mailboxes) = match version {
            0 => return Err(MalformedRegistration::Value(VERSION)),
            1 => (1, Vec::new()),
            2.. => (2, mailboxes),
        };
        let is_text = |text: &str| {
            (1..=128).contains(&text.len()) && text.bytes().all(|b| matches!(b, b' '..=b'~'))
        };
        if !is_text(&account_id) {
            return Err(MalformedRegistration::Value(ACCOUNT_ID));
        }
        let token = DeviceToken::new(token).ok_or(MalformedRegistration::Value(TOKEN))?;
        if !is_text(&subtopic) {
            return Err(MalformedRegistration::Value(SUBTOPIC));
        }
        Ok(Self { version, account_id, token, subtopic, mailboxes })
    }

    /// The app that asks.
    pub fn app(&self) -> &str {
        &self.subtopic
    }

    /// Takes the names of the mailboxes out of it, as they came: with version 1 INBOX alone.
    pub fn take_names(&mut self) -> Vec<Vec<u8>> {
        match self.version {
            1 => vec![Mailbox::INBOX.into()],
            _ => std::mem::take(&mut self.mailboxes),
        }
    }

    /// What the device gets once it is registered for the mailboxes of these names.
    pub fn reply(&self, names: Vec<Vec<u8>>) -> RegistrationReply {
        RegistrationReply { version: self.version, names }
    }

    /// The subscription of the device for this account, whose pushes are answered for by `topic`.
    pub fn subscription(self, account: Account, topic: &str) -> Subscription {
        let Self { version, account_id, token, subtopic, .. } = self;
        Subscription {
            account,
            transport: TransportId::new(TRANSPORT),
            endpoint: token.endpoint(),
            app: subtopic.into(),
            route: topic.into(),
            options: ApnsOptions { account_id, version }.to_json().into(),
            secrets: None,
            expires_at: None,
        }
    }
}

// === impl RegistrationValue ===

impl RegistrationValue {
    /// What the value of this key tells.
    pub fn of(key: &[u8]) -> Self {
        match key {
            b"aps-account-id" => Self::Account,
            b"aps-device-token" => Self::Endpoint,
            b"aps-topic" => Self::Route,
            b"aps-version" | b"aps-subtopic" | b"mailbox" | b"mailboxes" => Self::Harmless,
            _ => Self::Unknown,
        }
    }
}

// === impl CheckedRegistration ===

impl CheckedRegistration {
    /// What is stored of it: a subscription under this route, which is a topic.
    pub fn under(self, route: &str) -> Registration {
        let Self { account, request, mailboxes } = self;
        Registration { subscription: request.subscription(account, route), mailboxes }
    }
}

// === impl RegistrationReply ===

impl RegistrationReply {
    /// The untagged answer to a registration under this route.
    pub fn answer(&self, route: &str) -> Vec<u8> {
        answer(self.version, route, self.names.iter().map(Vec::as_slice))
    }

    /// Names of mailboxes that it holds.
    pub fn names(&self) -> &[Vec<u8>] {
        &self.names
    }
}

/// Parses the arguments of a whole command: from the space behind the verb to the line end.
///
/// # Errors
/// [`MalformedRegistration`] when they are not what the protocol allows.
pub fn parse(arguments: &[u8]) -> Result<XAppleRegistration, MalformedRegistration> {
    let pairs =
        whole(many0(preceded(space1, pair)))(arguments).ok_or(MalformedRegistration::Arguments)?;
    let (mut version, mut account_id, mut token, mut subtopic) = (None, None, None, None);
    let mut mailboxes = None;
    for (key, value) in pairs {
        let key = key.to_ascii_lowercase();
        let (slot, name) = match key.as_slice() {
            b"aps-version" => (&mut version, VERSION),
            b"aps-account-id" => (&mut account_id, ACCOUNT_ID),
            b"aps-device-token" => (&mut token, TOKEN),
            b"aps-subtopic" => (&mut subtopic, SUBTOPIC),
            b"mailboxes" => {
                let ArgumentValue::List(names) = value else {
                    return Err(MalformedRegistration::Value(MAILBOXES));
                };
                if mailboxes.replace(names).is_some() {
                    return Err(MalformedRegistration::Repeated(MAILBOXES));
                }
                continue;
            }
            // A key of a version to come.
            _ => continue,
        };
        let ArgumentValue::One(value) = value else {
            return Err(MalformedRegistration::Value(name));
        };
        if slot.replace(value).is_some() {
            return Err(MalformedRegistration::Repeated(name));
        }
    }
    let version = text(version, VERSION)?.parse::<u64>();
    let version = version.map_err(|_| MalformedRegistration::Value(VERSION))?;
    let account_id = text(account_id, ACCOUNT_ID)?;
    let (token, subtopic) = (text(token, TOKEN)?, text(subtopic, SUBTOPIC)?);
    let mailboxes = match (version, mailboxes) {
        (_, Some(names)) => names.into_iter().map(Bytes::into_owned).collect(),
        (0 | 1, None) => Vec::new(),
        (_, None) => return Err(MalformedRegistration::Missing(MAILBOXES)),
    };
    XAppleRegistration::new(version, account_id, &token, subtopic, mailboxes)
}

/// Whether a refused STATUS says that the mailbox may be there and is readable at another time (RFC 5530).
/// `answer` is a whole tagged NO or BAD. A refusal without a reason does not say so.
pub fn is_unreadable_for_now(answer: &[u8]) -> bool {
    let says = |codes: &[&str]| codes.iter().any(|code| has_code(answer, code));
    !says(&["NONEXISTENT", "NOPERM", "CANNOT", "TRYCREATE"])
        && (says(&["CORRUPTION", "CONTACTADMIN"]) || Refusal::of(answer) == Refusal::Temporary)
}

/// Whether a refused STATUS says that there is no such mailbox, or that it is not the user's to read (RFC
/// 5530). `answer` is a whole tagged NO or BAD.
pub fn is_unreadable(answer: &[u8]) -> bool {
    ["NONEXISTENT", "NOPERM", "TRYCREATE"].iter().any(|code| has_code(answer, code))
}

/// The untagged answer to a registration: `echoed` are the mailboxes that will be pushed, as the
/// client spelled them (none are named with version 1).
pub fn answer<'a>(version: u8, topic: &str, echoed: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for name in echoed.filter(|_| version >= 2) {
        out.extend_from_slice(b"* XAPPLEPUSHSERVICE \"mailbox\" ");
        match quote(name) {
            Some(quoted) => out.extend_from_slice(&quoted),
            None => {
                out.extend_from_slice(format!("{{{}}}\r\n", name.len()).as_bytes());
                out.extend_from_slice(name);
            }
        }
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(
        format!("* XAPPLEPUSHSERVICE \"aps-version\" \"{version}\" \"aps-topic\" \"{topic}\"\r\n")
            .as_bytes(),
    );
    out
}

fn pair(input: &[u8]) -> IResult<&[u8], (Bytes<'_>, ArgumentValue<'_>)> {
    let value = alt((map(astring_list, ArgumentValue::List), map(astring, ArgumentValue::One)));
    separated_pair(astring, space1, value).parse(input)
}

/// A required value of printable ASCII.
fn text(value: Option<Bytes<'_>>, key: &'static str) -> Result<String, MalformedRegistration> {
    let value = value.ok_or(MalformedRegistration::Missing(key))?;
    if !value.iter().all(|b| matches!(b, b' '..=b'~')) {
        return Err(MalformedRegistration::Value(key));
    }
    String::from_utf8(value.into_owned()).map_err(|_| MalformedRegistration::Value(key))
}

impl fmt::Display for MalformedRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arguments => f.write_str("arguments are not pairs of strings"),
            Self::Repeated(key) => write!(f, "{key} is given twice"),
            Self::Missing(key) => write!(f, "{key} is missing"),
            Self::Value(key) => write!(f, "{key} has a wrong value"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";
    const ID: &str = "0715A26B-CA09-4730-A419-793000CA982E";

    /// `<T>` and `<I>` stand for a token and an account id.
    fn parsed(arguments: &str) -> Result<XAppleRegistration, MalformedRegistration> {
        parse(arguments.replace("<T>", TOKEN).replace("<I>", ID).as_bytes())
    }

    #[test]
    fn tokens_compare_without_case_and_show_eight_digits() {
        let mixed = format!("AB{TOKEN}");
        let token = DeviceToken::new(&mixed).unwrap();
        let lower = DeviceToken::new(&mixed.to_lowercase()).unwrap();
        assert_eq!((&token, token.endpoint()), (&lower, lower.endpoint()));
        assert_eq!(token.endpoint().as_given(), mixed);
        assert_eq!(format!("{token} {token:?}"), "AB001122… AB001122…");
        let odd = &TOKEN[1..];
        for bad in ["", "ab", odd, &TOKEN.replace('1', "g"), &"a".repeat(202)] {
            assert!(DeviceToken::new(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_only_this_transport_has_is_in_the_options() {
        let request = parsed(
            " aps-version 1 aps-account-id \"a\\\"b\" aps-device-token <T> aps-subtopic x\r\n",
        );
        let subscription = request.unwrap().subscription(Account::from_login("alice"), "topic");
        assert_eq!(&*subscription.options, r#"{"account_id":"a\"b","version":1}"#);
        let options = ApnsOptions { account_id: "a\"b".into(), version: 1 };
        assert_eq!(ApnsOptions::from_json(&subscription.options), Some(options));
        assert_eq!(ApnsOptions::from_json("{}"), None);
        let shown = format!("{} {}", subscription.app, subscription.route);
        assert_eq!((&*shown, subscription.transport.as_str()), ("x topic", TRANSPORT));
    }

    #[test]
    fn good_forms() {
        let full = " \"aps-version\" \"2\" \"aps-account-id\" \"<I>\" \"aps-device-token\" \"<T>\" \
                    \"aps-subtopic\" \"com.apple.mobilemail\" \"mailboxes\" (\"INBOX\" \"Notes\")\r\n";
        let expected = XAppleRegistration {
            version: 2,
            account_id: ID.into(),
            token: DeviceToken::new(TOKEN).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: vec![b"INBOX".to_vec(), b"Notes".to_vec()],
        };
        assert_eq!(parsed(full), Ok(expected.clone()));
        let id_literal = format!("{{{}}}\r\n{ID}", ID.len());
        for same in [
            full.to_uppercase()
                .replace("COM.APPLE.MOBILEMAIL", "com.apple.mobilemail")
                .replace("NOTES", "Notes"),
            full.replace('"', ""),
            full.replace("\"<I>\"", &id_literal),
            full.replace("\"<I>\"", &id_literal.replace('}', "+}")),
            full.replace("(\"INBOX\" \"Notes\")", "( {5}\r\nINBOX Notes )"),
            full.replace("\"2\"", "\"3\""),
            full.replace("\r\n", " \"aps-new\" \"thing\" \"more\" (a b)\r\n"),
            full.replace("\r\n", "\n"),
        ] {
            assert_eq!(parsed(&same), Ok(expected.clone()), "{same}");
        }
        let reversed = " mailboxes (INBOX Notes) aps-subtopic com.apple.mobilemail \
                        aps-device-token <T> aps-account-id <I> aps-version 2\r\n";
        assert_eq!(parsed(reversed), Ok(expected.clone()));
        let empty = full.replace("(\"INBOX\" \"Notes\")", "()");
        assert_eq!(parsed(&empty).unwrap().mailboxes, Vec::<Vec<u8>>::new());
        let version_1 = " aps-version 1 aps-account-id <I> aps-device-token <T> aps-subtopic x\r\n";
        assert_eq!(parsed(version_1).unwrap().version, 1);
        assert_eq!(parsed(&full.replace("\"2\"", "1")).unwrap().mailboxes, Vec::<Vec<u8>>::new());
    }

    #[test]
    fn bad_forms() {
        let full = " aps-version 2 aps-account-id <I> aps-device-token <T> aps-subtopic x \
                    mailboxes (INBOX)\r\n";
        assert!(parsed(full).is_ok());
        let five_thousand = "x".repeat(5000);
        for (bad, why) in [
            ("\r\n".to_owned(), MalformedRegistration::Missing(VERSION)),
            (" \r\n".to_owned(), MalformedRegistration::Missing(VERSION)),
            (" aps-version\r\n".to_owned(), MalformedRegistration::Arguments),
            (full.replace("mailboxes (INBOX)", "mailboxes"), MalformedRegistration::Arguments),
            (full.replace("(INBOX)", "NIL"), MalformedRegistration::Arguments),
            (full.replace("(INBOX)", "(NIL)"), MalformedRegistration::Arguments),
            (full.replace("(INBOX)", "(INBOX NIL)"), MalformedRegistration::Arguments),
            (full.replace("(INBOX)", "(INBOX"), MalformedRegistration::Arguments),
            (full.replace("(INBOX)", "((INBOX))"), MalformedRegistration::Arguments),
            (full.replace("(INBOX)", "INBOX"), MalformedRegistration::Value(MAILBOXES)),
            (full.replace("<I>", "NIL"), MalformedRegistration::Arguments),
            (full.replace("aps-version 2", "NIL NIL"), MalformedRegistration::Arguments),
            (full.replace(" mailboxes (INBOX)", ""), MalformedRegistration::Missing(MAILBOXES)),
            (full.replace("aps-version 2", "aps-other 2"), MalformedRegistration::Missing(VERSION)),
            (full.replace("aps-version 2", "aps-version 0"), MalformedRegistration::Value(VERSION)),
            (
                full.replace("aps-version 2", "aps-version two"),
                MalformedRegistration::Value(VERSION),
            ),
            (
                full.replace("aps-version 2", "aps-version (2)"),
                MalformedRegistration::Value(VERSION),
            ),
            (
                full.replace("x mail", "x aps-version 2 mail"),
                MalformedRegistration::Repeated(VERSION),
            ),
            (
                full.replace("\r\n", " mailboxes (x)\r\n"),
                MalformedRegistration::Repeated(MAILBOXES),
            ),
            (full.replace("<T>", "abcdef"), MalformedRegistration::Value(super::TOKEN)),
            (full.replace("<T>", &TOKEN[1..]), MalformedRegistration::Value(super::TOKEN)),
            (
                full.replace("<T>", &TOKEN.replace('0', "x")),
                MalformedRegistration::Value(super::TOKEN),
            ),
            (full.replace("<I>", "\"\""), MalformedRegistration::Value(ACCOUNT_ID)),
            (full.replace("<I>", &five_thousand), MalformedRegistration::Value(ACCOUNT_ID)),
            (full.replace("<I>", "\"a\u{fc}\""), MalformedRegistration::Value(ACCOUNT_ID)),
            (full.replace("<I>", "{4}\r\na\r\nb"), MalformedRegistration::Value(ACCOUNT_ID)),
            (full.replace("<I>", "{99}\r\na"), MalformedRegistration::Arguments),
            (full.replace("<I>", "\"a"), MalformedRegistration::Arguments),
            (full.replace(" aps-version 2", "aps-version 2"), MalformedRegistration::Arguments),
        ] {
            assert_eq!(parsed(&bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn the_answer_echoes_in_order_and_quotes() {
        let names: [&[u8]; 3] = [b"INBOX", b"a \"b\\", b"c\r\nd"];
        assert_eq!(
            String::from_utf8(answer(2, "com.apple.mail.XServer.x", names.into_iter())).unwrap(),
            "* XAPPLEPUSHSERVICE \"mailbox\" \"INBOX\"\r\n\
             * XAPPLEPUSHSERVICE \"mailbox\" \"a \\\"b\\\\\"\r\n\
             * XAPPLEPUSHSERVICE \"mailbox\" {4}\r\nc\r\nd\r\n\
             * XAPPLEPUSHSERVICE \"aps-version\" \"2\" \"aps-topic\" \"com.apple.mail.XServer.x\"\r\n"
        );
        assert_eq!(
            answer(1, "t", [&b"INBOX"[..]].into_iter()),
            b"* XAPPLEPUSHSERVICE \"aps-version\" \"1\" \"aps-topic\" \"t\"\r\n"
        );
    }
}
