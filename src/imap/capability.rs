//! Capability lists (RFC 9051 section 7.2.2), and the edit that mailchime makes to them.

use std::collections::HashSet;

use super::peek;

/// The most tokens of a list that count. Servers have 90 at most.
pub const MOST_TOKENS: usize = 256;

/// A capability list: tokens in their order, each once whatever its case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(Vec<String>);

/// Capability under which Apple's extension is announced.
pub const XAPPLEPUSHSERVICE: &str = "XAPPLEPUSHSERVICE";

/// Capability of compression (RFC 4978), which ends at mailchime.
pub const COMPRESS_DEFLATE: &str = "COMPRESS=DEFLATE";

/// What mailchime itself adds to the lists that a logged-in client sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// XAPPLEPUSHSERVICE.
    pub push: bool,
    /// COMPRESS=DEFLATE.
    pub compress: bool,
}

/// Where in `line`, a whole response with a capability list as [`peek::response`] told, the list
/// stands. `None` if it has none or has no end.
fn list_in(line: &[u8]) -> Option<std::ops::Range<usize>> {
    let end = line.len() - line.iter().rev().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let skip = |mut at: usize, space: bool| {
        while at < end && (line[at] == b' ') == space {
            at += 1;
        }
        at
    };
    // `*` or a tag, then the second word: CAPABILITY itself, or a status with a code behind it.
    let second = skip(skip(0, false), true);
    match peek::response(line)? {
        peek::Response::Capability => Some(skip(second, false)..end),
        peek::Response::Status { capability: true, .. } => {
            let start = skip(skip(second, false), true) + "[CAPABILITY".len();
            let length = line.get(start..end)?.iter().position(|b| *b == b']')?;
            Some(start..start + length)
        }
        _ => None,
    }
}

impl Capabilities {
    /// Tokens that are separated by spaces; what is not printable ASCII is left out, and what might
    /// announce a literal, and what comes behind the first [`MOST_TOKENS`].
    pub fn parse(list: &[u8]) -> Self {
        let tokens = list.split(|b| *b == b' ').filter(|token| !token.is_empty());
        let mut known = HashSet::new();
        let mut capabilities = Self::default();
        for token in tokens.take(MOST_TOKENS) {
            if let Ok(token) = std::str::from_utf8(token)
                && token.bytes().all(|b| b.is_ascii_graphic() && b != b'{')
                && known.insert(token.to_ascii_lowercase())
            {
                capabilities.0.push(token.to_owned());
            }
        }
        capabilities
    }

    /// The list in a whole response that has one ([`peek::Response::Capability`], or a status with
    /// `capability`).
    pub fn in_response(line: &[u8]) -> Option<Self> {
        list_in(line).map(|range| Self::parse(&line[range]))
    }

    /// Adds a token unless it is there.
    pub fn add(&mut self, token: &str) {
        if !token.is_empty() && !self.has(token) {
            self.0.push(token.to_owned());
        }
    }

    /// Whether it lists `token`, in any case.
    pub fn has(&self, token: &str) -> bool {
        self.0.iter().any(|known| known.eq_ignore_ascii_case(token))
    }

    /// Memory that is held, in bytes.
    pub(super) fn held(&self) -> usize {
        self.0.iter().map(|token| token.capacity() + size_of::<String>()).sum()
    }

    /// Leaves out what `keep` refuses.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|token| keep(token));
    }

    /// Its tokens, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// What may be shown to a client of a session through mailchime: without what the relay cannot
    /// carry or must not (DESIGN.md section 3), and with what is mailchime's own.
    pub fn edited(mut self, own: Own) -> Self {
        self.retain(|token| !is_hidden(token));
        // With its own two the list is one of which all tokens count again.
        self.0.truncate(MOST_TOKENS - 2);
        if own.compress {
            self.add(COMPRESS_DEFLATE);
        }
        if own.push {
            self.add(XAPPLEPUSHSERVICE);
        }
        self
    }
}

impl std::fmt::Display for Capabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

/// Capabilities that do not pass.
fn is_hidden(token: &str) -> bool {
    const HIDDEN: [&str; 6] = [
        // TLS ends here.
        "STARTTLS",
        // The backend's would make the stream opaque.
        COMPRESS_DEFLATE,
        // Would send the client past mailchime.
        "LOGIN-REFERRALS",
        "MAILBOX-REFERRALS",
        // Would change the user under a registration.
        "UNAUTHENTICATE",
        // The backend's own; mailchime answers it.
        XAPPLEPUSHSERVICE,
    ];
    let upper = token.to_ascii_uppercase();
    HIDDEN.contains(&upper.as_str())
        // Channel binding cannot pass a proxy; a client certificate stays at mailchime.
        || (upper.starts_with("AUTH=") && (upper.ends_with("-PLUS") || upper == "AUTH=EXTERNAL"))
}

/// A whole response with its capability list edited; everything else in it stays as it was.
///
/// A response without a well-formed list comes back as it is.
pub fn edit_response(line: &[u8], own: Own) -> Vec<u8> {
    let Some(range) = list_in(line) else { return line.to_vec() };
    let edited = Capabilities::parse(&line[range.clone()]).edited(own);
    let mut out = Vec::with_capacity(line.len() + 20);
    out.extend_from_slice(&line[..range.start]);
    for token in edited.iter() {
        out.push(b' ');
        out.extend_from_slice(token.as_bytes());
    }
    out.extend_from_slice(&line[range.end..]);
    out
}

/// Whether a whole response carries a capability list.
pub fn is_in(line: &[u8]) -> bool {
    matches!(
        peek::response(line),
        Some(peek::Response::Capability | peek::Response::Status { capability: true, .. })
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edit_touches_the_list_and_nothing_else() {
        for (line, with_push, without) in [
            (
                "* CAPABILITY IMAP4rev1 STARTTLS IDLE COMPRESS=DEFLATE\r\n",
                "* CAPABILITY IMAP4rev1 IDLE XAPPLEPUSHSERVICE\r\n",
                "* CAPABILITY IMAP4rev1 IDLE\r\n",
            ),
            (
                "* capability imap4rev1 xapplepushservice idle IDLE \r\n",
                "* capability imap4rev1 idle XAPPLEPUSHSERVICE\r\n",
                "* capability imap4rev1 idle\r\n",
            ),
            (
                "a1 OK [CAPABILITY IMAP4rev1 LOGIN-REFERRALS] in [CAPABILITY STARTTLS]\r\n",
                "a1 OK [CAPABILITY IMAP4rev1 XAPPLEPUSHSERVICE] in [CAPABILITY STARTTLS]\r\n",
                "a1 OK [CAPABILITY IMAP4rev1] in [CAPABILITY STARTTLS]\r\n",
            ),
            (
                "* OK [CAPABILITY IMAP4rev1 AUTH=SCRAM-SHA-256-PLUS AUTH=EXTERNAL AUTH=PLAIN] \r\n",
                "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN XAPPLEPUSHSERVICE] \r\n",
                "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] \r\n",
            ),
            ("* CAPABILITY\n", "* CAPABILITY XAPPLEPUSHSERVICE\n", "* CAPABILITY\n"),
            // A client might take what follows for a literal, and the relay does not.
            (
                "* CAPABILITY IMAP4rev1 {9}\r\n",
                "* CAPABILITY IMAP4rev1 XAPPLEPUSHSERVICE\r\n",
                "* CAPABILITY IMAP4rev1\r\n",
            ),
            (
                "* OK [CAPABILITY IMAP4rev1\r\n",
                "* OK [CAPABILITY IMAP4rev1\r\n",
                "* OK [CAPABILITY IMAP4rev1\r\n",
            ),
        ] {
            assert!(is_in(line.as_bytes()), "{line}");
            let edited = |line: &str, push, compress| {
                let own = Own { push, compress };
                String::from_utf8(edit_response(line.as_bytes(), own)).unwrap()
            };
            assert_eq!(edited(line, true, false), with_push);
            assert_eq!(edited(line, false, false), without);
            assert_eq!(edited(with_push, true, false), with_push);
            assert_eq!(
                edited(line, true, true).matches("COMPRESS=DEFLATE").count(),
                1 - usize::from(!line.contains("]") && line.contains("["))
            );
        }
    }

    #[test]
    fn what_a_list_costs_is_bounded_by_its_tokens() {
        let list: String = (0..5000).map(|number| format!(" X{number} x{number}")).collect();
        let parsed = Capabilities::parse(list.as_bytes());
        assert_eq!(parsed.iter().count(), MOST_TOKENS / 2);
        assert!(parsed.has("x127") && !parsed.has("X128"));
        let line = format!("* CAPABILITY{list}\r\n");
        let edited = edit_response(line.as_bytes(), Own { push: true, compress: true });
        let expected: String = (0..128).map(|number| format!(" X{number}")).collect();
        let expected = format!("* CAPABILITY{expected} {COMPRESS_DEFLATE} {XAPPLEPUSHSERVICE}\r\n");
        assert_eq!(String::from_utf8(edited).unwrap(), expected);
        let many: String = (0..300).map(|number| format!(" X{number}")).collect();
        let own = Own { push: true, compress: true };
        let once = edit_response(format!("* CAPABILITY{many}\r\n").as_bytes(), own);
        let list = Capabilities::in_response(&once).unwrap();
        assert!(list.iter().count() == MOST_TOKENS && list.has(XAPPLEPUSHSERVICE));
        assert_eq!(edit_response(&once, own), once);
    }

    #[test]
    fn a_tag_that_spells_capability_does_not_mislead() {
        for tag in ["CAPABILITY", "[CAPABILITY"] {
            let line = format!("{tag} OK [CAPABILITY IMAP4rev1 STARTTLS] in\r\n");
            let edited = edit_response(line.as_bytes(), Own { push: true, compress: false });
            let expected = format!("{tag} OK [CAPABILITY IMAP4rev1 XAPPLEPUSHSERVICE] in\r\n");
            assert_eq!(edited, expected.as_bytes());
        }
    }
}
