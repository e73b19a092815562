//! URLs of users: what is allowed is https to a public name or address, by a second reader.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::net::guard::{Guard, MAX_URL, UrlOrigin};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(url) = std::str::from_utf8(data) else { return Corpus::Reject };
    let allowed = Guard::new(&[], &[]).check(url);
    let Ok(origin) = allowed else { return Corpus::Keep };
    assert!(url.len() <= MAX_URL && url.bytes().all(|byte| byte.is_ascii_graphic()));
    let (scheme, rest) = url.split_once("://").expect("a URL");
    assert!(scheme.eq_ignore_ascii_case("https"));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    assert!(!authority.contains('@') && !rest.contains('#'));
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    assert_eq!(origin.host, host.to_ascii_lowercase());
    assert_eq!(origin.port, 443);
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => assert!(
            !address.is_loopback()
                && !address.is_private()
                && !address.is_link_local()
                && !address.is_multicast()
                && !address.is_unspecified()
        ),
        Ok(IpAddr::V6(address)) => {
            assert!(address.to_ipv4_mapped().is_none() && address.segments()[0] & 0xe000 == 0x2000);
        }
        Err(_) => assert!(!host.is_empty() && !host.ends_with('.')),
    }
    assert_eq!(UrlOrigin::of(url), Ok(origin));
    Corpus::Keep
});
