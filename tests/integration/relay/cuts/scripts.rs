//! What clients say in the sessions whose packets are cut.

/// Stands for a registration: mailchime gets one, and the server nothing.
pub(super) const REGISTER: &str = "REGISTER\r\n";

pub(super) const REGISTRATION: &str = "reg XAPPLEPUSHSERVICE aps-version 2 aps-account-id \
     0715A26B-CA09-4730-A419-793000CA982E aps-device-token \
     0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef aps-subtopic \
     com.apple.mobilemail mailboxes (INBOX NoSuchBox)\r\n";

/// What a client does.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// Says this.
    Say(&'static str),
    /// Waits for a go-ahead. Without one it leaves out what it would say next, up to the next
    /// [`Part::Until`], as RFC 9051 section 4.3 has it.
    GoAhead,
    /// Waits for the answer with this tag.
    Until(&'static str),
}

use Part::{GoAhead, Say, Until};

pub(super) struct Script {
    /// Begins before the login.
    pub(super) fresh: bool,
    pub(super) parts: &'static [Part],
}

const fn script(parts: &'static [Part]) -> Script {
    Script { fresh: false, parts }
}

const fn login(parts: &'static [Part]) -> Script {
    Script { fresh: true, parts }
}

pub(super) const SCRIPTS: &[Script] = &[
    // APPEND that waits, to mailboxes that are there and that are not.
    script(&[
        Say("a APPEND Cuts (\\Seen) {11}\r\n"),
        GoAhead,
        Say("A: b\r\n\r\nc\r\n\r\n"),
        Until("a"),
        Say("b APPEND NoSuchBox (\\Seen) {11}\r\n"),
        GoAhead,
        Say("A: b\r\n\r\nc\r\n\r\n"),
        Until("b"),
    ]),
    // The client goes on at once, whatever became of it.
    script(&[
        Say("a APPEND NoSuchBox {300}\r\n"),
        GoAhead,
        Until("a"),
        Say("b NOOP\r\nREGISTER\r\nc APPEND NoSuchBox {300}\r\n"),
        GoAhead,
        Until("c"),
        Say("REGISTER\r\n"),
    ]),
    // APPEND that does not wait.
    script(&[
        Say(
            "a APPEND Cuts {11+}\r\nA: b\r\n\r\nc\r\n\r\nb APPEND NoSuchBox (\\Seen) {11+}\r\nA: b\r\n\r\n",
        ),
        Say("c\r\n\r\nREGISTER\r\nc NOOP\r\n"),
        Until("c"),
    ]),
    // Several messages in one command.
    script(&[
        Say("a APPEND Cuts {11}\r\n"),
        GoAhead,
        Say("A: b\r\n\r\nc\r\n (\\Seen) {11}\r\n"),
        GoAhead,
        Say("A: b\r\n\r\nd\r\n\r\n"),
        Until("a"),
        Say("b APPEND Cuts {11+}\r\nA: b\r\n\r\nc\r\n {11}\r\n"),
        GoAhead,
        Say("A: b\r\n\r\nd\r\n\r\n"),
        Until("b"),
        Say("c APPEND NoSuchBox {11+}\r\nA: b\r\n\r\nc\r\n {11}\r\n"),
        GoAhead,
        Say("A: b\r\n\r\nd\r\n\r\n"),
        Until("c"),
    ]),
    // BINARY, and a message in parts.
    script(&[
        Say("a APPEND Cuts ~{11}\r\n"),
        GoAhead,
        Say("A: b\r\n\r\nc\r\n\r\n"),
        Until("a"),
        Say("b APPEND Cuts ~{11+}\r\nA: b\r\n\r\nc\r\n\r\nc APPEND Cuts CATENATE (TEXT {8}\r\n"),
        GoAhead,
        Say("A: b\r\n\r\n TEXT {3+}\r\nc\r\n)\r\n"),
        Until("c"),
        Say("d APPEND Cuts CATENATE (URL \"/NoSuchBox/;UID=1\" TEXT {3}\r\n"),
        GoAhead,
        Say("c\r\n)\r\n"),
        Until("d"),
    ]),
    // SEARCH with words in literals.
    script(&[
        Say("a EXAMINE INBOX\r\n"),
        Until("a"),
        Say("b SEARCH SUBJECT {3}\r\n"),
        GoAhead,
        Say("one FROM {3}\r\n"),
        GoAhead,
        Say("ann\r\n"),
        Until("b"),
        Say("c SEARCH SUBJECT {3+}\r\none FROM {3}\r\n"),
        GoAhead,
        Say("ann TEXT {0+}\r\n\r\nREGISTER\r\nd CLOSE\r\n"),
        Until("d"),
    ]),
    // There is nothing to search in.
    script(&[
        Say("a CLOSE\r\nb SEARCH SUBJECT {3}\r\n"),
        GoAhead,
        Say("one\r\n"),
        Until("b"),
        Say("c FETCH 1 (BODY[HEADER.FIELDS ({4+}\r\nFrom)])\r\nREGISTER\r\nd NOOP\r\n"),
        Until("d"),
    ]),
    // IDLE, in order and all at once.
    script(&[
        Say("a IDLE\r\n"),
        GoAhead,
        Say("DONE\r\n"),
        Until("a"),
        Say("b IDLE\r\nDONE\r\nc APPEND Cuts {11}\r\n"),
        Until("b"),
        GoAhead,
        Say("A: b\r\n\r\nc\r\n\r\n"),
        Until("c"),
    ]),
    script(&[
        Say("a IDLE\r\nDONE\r\nREGISTER\r\nb IDLE\r\nDONE\r\nc NOOP\r\nd IDLE\r\n"),
        Until("c"),
        GoAhead,
        Say("DONE\r\ne APPEND NoSuchBox {30}\r\n"),
        GoAhead,
        Until("e"),
        Say("REGISTER\r\n"),
    ]),
    // What is no DONE ends IDLE, too.
    script(&[
        Say("a IDLE\r\n"),
        GoAhead,
        Say("b STARTTLS\r\n"),
        Until("a"),
        Say("DONE\r\nREGISTER\r\n"),
    ]),
    // Commands that the server does not know, and words that are none.
    script(&[
        Say("a FROBNICATE (x) {5}\r\n"),
        GoAhead,
        Until("a"),
        Say("b FROBNICATE {7+}\r\nx NOOP\r\n\r\nc NOOP {5}\r\n"),
        GoAhead,
        Until("c"),
        Say("REGISTER\r\n"),
    ]),
    script(&[
        Say("\r\n x y\r\na\r\nb+c NOOP\r\n{5}\r\nDONE\r\nd APPEND Cuts {11}\r\n"),
        // Six refusals come before it.
        Until("DONE"),
        GoAhead,
        Say("A: b\r\n\r\nc\r\n\r\nREGISTER\r\n"),
        Until("d"),
    ]),
    // What only looks like an announcement.
    script(&[
        Say("a LIST \"\" \"{5}\"\r\nb LIST \"\" \"{5}\r\nc LIST \"{5+}\" x{5}\r\n"),
        GoAhead,
        Until("c"),
        Say("d LIST \"\" {5} \r\nREGISTER\r\ne LIST (x) {3+}\r\nfoo\r\n"),
        Until("e"),
    ]),
    // Announcements that are too long, before what would be a registration.
    script(&[
        Say("a APPEND NoSuchBox {99999999999}\r\n"),
        GoAhead,
        Until("a"),
        Say("REGISTER\r\nb APPEND NoSuchBox {4294967297}\r\n"),
        GoAhead,
        Until("b"),
        Say("REGISTER\r\n"),
    ]),
    script(&[Say("a LIST \"\" {70000}\r\n"), GoAhead, Until("a"), Say("REGISTER\r\nb NOOP\r\n")]),
    script(&[
        Say("a APPEND Cuts {99999999999999999999}\r\n"),
        GoAhead,
        Until("a"),
        Say("REGISTER\r\nb NOOP\r\n"),
    ]),
    // Names of mailboxes as literals.
    script(&[
        Say("a STATUS {4}\r\n"),
        GoAhead,
        Say(
            "Cuts (UIDVALIDITY)\r\nb STATUS {9+}\r\nNoSuchBox (MESSAGES)\r\nREGISTER\r\nc DELETE {5}\r\n",
        ),
        Until("b"),
        GoAhead,
        Say("Gone1\r\n"),
        Until("c"),
    ]),
    // The login itself.
    login(&[
        Say("a LOGIN {5}\r\n"),
        GoAhead,
        Say("alice {11}\r\n"),
        GoAhead,
        Say("wonder land\r\n"),
        Until("a"),
        Say("REGISTER\r\n"),
    ]),
    login(&[
        Say("a LOGIN {5+}\r\nalice {5+}\r\nwrong\r\n"),
        Until("a"),
        Say("b LOGIN {5+}\r\nalice {11}\r\n"),
        GoAhead,
        Say("wonder land\r\n"),
        Until("b"),
        Say("c APPEND NoSuchBox {5}\r\n"),
        GoAhead,
        Until("c"),
        Say("REGISTER\r\n"),
    ]),
    login(&[
        Say(
            "a LOGIN {5+}\r\nalice \"wonder land\"\r\nb IDLE\r\nDONE\r\nREGISTER\r\nc STATUS {5+}\r\nINBOX (MESSAGES)\r\n",
        ),
        Until("c"),
    ]),
];
