//! Which domain an account is of, where that decides where its password goes.

use std::borrow::Cow;

use idna::AsciiDenyList;
use unicode_normalization::UnicodeNormalization;

use super::{Account, Credentials};

/// The name carries more than one address, or a domain in another form than `user@domain`: servers
/// read it in different ways, so it does not say which one the account is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name mentions a domain and is no plain user@domain, so the backend is not certain")]
pub struct AmbiguousDomain;

impl Account {
    /// The domain by which accounts are counted together: what stands behind the last `@`, as far as
    /// it could be one. It does not say where the account is: [`Account::domain_among`] does.
    pub fn domain(&self) -> Option<&str> {
        last(self.as_str()).map(|(_, domain)| domain)
    }

    /// The domain of this account, if it is one of those that are `served` apart (given in lower
    /// case); `None` if the name mentions none of them.
    ///
    /// It is what stands behind the last `@`. Servers also know `user@domain\shared`,
    /// `user@domain*master`, `user%domain`, `domain\user`, `domain!user`, routes of several `@`, and
    /// may overlook a final dot, blanks or the compatibility forms of Unicode. Where no domain is
    /// served apart all of that is the only server's matter.
    ///
    /// # Errors
    /// The name mentions a domain that is served apart, in any of these ways.
    pub fn domain_among(
        &self,
        served: impl Fn(&str) -> bool,
    ) -> Result<Option<&str>, AmbiguousDomain> {
        let mentions = mentions(self.as_str(), &served);
        let mut named = mentions.iter().filter_map(|mention| mention.domain.as_deref());
        if named.next().is_none() {
            return Ok(None);
        }
        let (local, own) = last(self.as_str()).ok_or(AmbiguousDomain)?;
        if !served(own) || local.len() + 1 + own.len() < self.as_str().len() {
            return Err(AmbiguousDomain);
        }
        let agrees = |mention: &Mention| match &mention.domain {
            Some(domain) => domain == own,
            None => !mention.behind_at,
        };
        if mentions.iter().all(agrees) { Ok(Some(own)) } else { Err(AmbiguousDomain) }
    }
}

impl Credentials {
    /// The domain of the account that these credentials open, as [`Account::domain_among`]. Whose
    /// password it is may be another's: both must be at one server.
    ///
    /// # Errors
    /// As there, or the two names are of different domains.
    pub fn domain_among(
        &self,
        served: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, AmbiguousDomain> {
        let (account, login) = (self.account(), Account::from_login(&self.login));
        let domain = account.domain_among(&served)?;
        match login.domain_among(&served)? {
            Some(other) if Some(other) != domain => Err(AmbiguousDomain),
            _ => Ok(domain.map(str::to_owned)),
        }
    }
}

/// What stands before the last `@` of a login name, and behind it as far as it could be a domain.
pub(super) fn last(login: &str) -> Option<(&str, &str)> {
    let (local, rest) = login.rsplit_once('@')?;
    let end = rest.find(|c| !is_of_domain(c)).unwrap_or(rest.len());
    Some((local, &rest[..end]))
}

fn is_of_domain(c: char) -> bool {
    !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.".contains(c)
}

/// A part of a name that could be a domain.
struct Mention {
    /// It follows an `@`.
    behind_at: bool,
    /// The domain that it is, if that one is served.
    domain: Option<String>,
}

/// The parts of `name` that could be domains. Nothing is looked for in a name without any.
fn mentions(name: &str, served: &impl Fn(&str) -> bool) -> Vec<Mention> {
    let name: String = match name.is_ascii() {
        true => name.to_ascii_lowercase(),
        false => name.nfkc().flat_map(char::to_lowercase).collect(),
    };
    let (mut found, mut rest, mut before) = (Vec::new(), name.as_str(), None);
    loop {
        let end = rest.find(|c| !is_of_domain(c)).unwrap_or(rest.len());
        let part = &rest[..end];
        if !part.is_empty() || before == Some('@') {
            // `%40` and `=40` are an `@` in URLs and mail headers.
            let encoded = matches!(before, Some('%' | '=')).then(|| part.strip_prefix("40"));
            let domain = domain(part, served);
            let domain = domain.or_else(|| self::domain(encoded.flatten()?, served));
            found.push(Mention { behind_at: before == Some('@'), domain });
        }
        let Some(delimiter) = rest[end..].chars().next() else { return found };
        before = Some(delimiter);
        rest = &rest[end + delimiter.len_utf8()..];
    }
}

/// Whether a part in lower case is as [`in_dns_form`] would have it, as nearly all are.
fn is_in_dns_form(part: &str) -> bool {
    part.is_ascii() && !part.contains("xn--")
}

fn in_dns_form(part: &str) -> Cow<'_, str> {
    idna::domain_to_ascii_cow(part.as_bytes(), AsciiDenyList::EMPTY)
        // What no domain can have, some servers leave out.
        .unwrap_or_else(|_| part.chars().filter(char::is_ascii).collect())
}

/// The domain that is served and that `part` is, or ends with behind a `_`.
fn domain(part: &str, served: &impl Fn(&str) -> bool) -> Option<String> {
    let ascii = match is_in_dns_form(part) {
        true => Cow::Borrowed(part),
        false => in_dns_form(part),
    };
    let mut candidate = ascii.trim_matches('.');
    loop {
        if served(candidate) {
            return Some(candidate.to_owned());
        }
        candidate = candidate.split_once('_')?.1.trim_matches('.');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_part_in_dns_form_stays_as_it_is(part in "(xn-[a-z]|--|[a-z0-9_.-]){0,30}") {
            prop_assume!(is_in_dns_form(&part));
            prop_assert_eq!(in_dns_form(&part), part.as_str());
        }

        #[test]
        fn ascii_is_folded_alike_either_way(name in "[ -~]{0,40}") {
            let folded: String = name.nfkc().flat_map(char::to_lowercase).collect();
            prop_assert_eq!(name.to_ascii_lowercase(), folded);
        }
    }

    fn served(domain: &str) -> bool {
        ["a.example", "b.example", "xn--mnchen-3ya.example", "c_d.example"].contains(&domain)
    }

    #[test]
    fn the_domain_is_certain_or_the_name_is_refused() {
        for (name, expected) in [
            ("x@a.example", Ok(Some("a.example"))),
            ("x@A.Example", Ok(Some("a.example"))),
            ("@a.example", Ok(Some("a.example"))),
            ("x%y@a.example", Ok(Some("a.example"))),
            ("CORP\\x@a.example", Ok(Some("a.example"))),
            ("a.example\\x@a.example", Ok(Some("a.example"))),
            ("x@a.example*boss@a.example", Ok(Some("a.example"))),
            ("\"x y\"@a.example", Ok(Some("a.example"))),
            ("x@c_d.example", Ok(Some("c_d.example"))),
            // No domain that is served apart is mentioned.
            ("", Ok(None)),
            ("x", Ok(None)),
            ("x@", Ok(None)),
            ("x@sub.a.example", Ok(None)),
            ("x@a.example.org", Ok(None)),
            ("x@my-a.example", Ok(None)),
            ("x@example", Ok(None)),
            ("x@c.example\\shared", Ok(None)),
            ("x*boss", Ok(None)),
            ("CORP\\x", Ok(None)),
            ("x@y@c.example", Ok(None)),
            ("x_a.example.org#EXT#@c.example", Ok(None)),
            ("x@\u{e4}.example", Ok(None)),
            // One that is, and more.
            ("x@a.example\\shared", Err(AmbiguousDomain)),
            ("x@a.example*boss", Err(AmbiguousDomain)),
            ("x@a.example/shared", Err(AmbiguousDomain)),
            ("x@a.example+tag", Err(AmbiguousDomain)),
            ("x@a.example:143", Err(AmbiguousDomain)),
            ("x%a.example", Err(AmbiguousDomain)),
            ("x%a.example@c.example", Err(AmbiguousDomain)),
            ("x%40a.example", Err(AmbiguousDomain)),
            ("x=40a.example", Err(AmbiguousDomain)),
            ("x_a.example#EXT#@c.example", Err(AmbiguousDomain)),
            ("a.example\\x", Err(AmbiguousDomain)),
            ("a.example/x", Err(AmbiguousDomain)),
            ("a.example!x", Err(AmbiguousDomain)),
            ("a.example!x@c.example", Err(AmbiguousDomain)),
            ("a.example", Err(AmbiguousDomain)),
            ("x@a.example.", Err(AmbiguousDomain)),
            ("x@.a.example", Err(AmbiguousDomain)),
            ("x@a.example@c.example", Err(AmbiguousDomain)),
            ("x@c.example@a.example", Err(AmbiguousDomain)),
            ("x@y@a.example", Err(AmbiguousDomain)),
            ("x@@a.example", Err(AmbiguousDomain)),
            ("x@a.example@", Err(AmbiguousDomain)),
            ("x@b.example*boss@a.example", Err(AmbiguousDomain)),
            ("b.example\\x@a.example", Err(AmbiguousDomain)),
            ("x@a.example ", Err(AmbiguousDomain)),
            ("x@ a.example", Err(AmbiguousDomain)),
            ("x@a.example\t", Err(AmbiguousDomain)),
            ("x@a.example\0y", Err(AmbiguousDomain)),
            ("\"x@a.example\"", Err(AmbiguousDomain)),
            ("<x@a.example>", Err(AmbiguousDomain)),
            ("x@[a.example]", Err(AmbiguousDomain)),
            // Forms that a server may take for the same.
            ("x@\u{ff41}.example", Err(AmbiguousDomain)),
            ("x\u{ff20}a.example", Err(AmbiguousDomain)),
            ("\u{fc}\u{ff20}a.example", Err(AmbiguousDomain)),
            ("x\u{ff05}a.example", Err(AmbiguousDomain)),
            ("x@a\u{3002}example", Err(AmbiguousDomain)),
            ("x@a.exam\u{ad}ple", Err(AmbiguousDomain)),
            ("x@a.example\u{200b}", Err(AmbiguousDomain)),
            ("x@a.example\u{202e}", Err(AmbiguousDomain)),
            ("x@m\u{fc}nchen.example", Err(AmbiguousDomain)),
            ("x@mu\u{308}nchen.example", Err(AmbiguousDomain)),
        ] {
            let account = Account::from_login(name);
            assert_eq!(account.domain_among(served), expected, "{name:?}");
            assert_eq!(account.domain_among(|_| false), Ok(None), "{name:?}");
        }
    }

    #[test]
    fn both_names_of_credentials_are_at_one_server() {
        for (authorization, login, expected) in [
            ("", "x@a.example", Ok(Some("a.example"))),
            ("y@a.example", "x@a.example", Ok(Some("a.example"))),
            // A master without a domain, as the server knows them.
            ("y@a.example", "boss", Ok(Some("a.example"))),
            ("y", "boss@c.example", Ok(None)),
            ("y@c.example", "x@a.example", Err(AmbiguousDomain)),
            ("y", "x@a.example", Err(AmbiguousDomain)),
            ("y@b.example", "x@a.example", Err(AmbiguousDomain)),
            ("y", "x@a.example\\shared", Err(AmbiguousDomain)),
            ("y%a.example", "x", Err(AmbiguousDomain)),
        ] {
            let credentials = Credentials::password(login, vec![1]).acting_as(authorization);
            let domain = credentials.domain_among(served);
            let expected = expected.map(|domain: Option<&str>| domain.map(str::to_owned));
            assert_eq!(domain, expected, "{authorization:?} {login:?}");
        }
    }
}
