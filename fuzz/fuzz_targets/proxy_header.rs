//! The PROXY protocol: the reader takes what the writer wrote, and not one byte more.
#![no_main]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::net::proxy_protocol::{Addresses, header, read};

/// What is read, and how many bytes that took; `None` if it is no header.
fn reading(bytes: &[u8]) -> Option<(Option<Addresses>, usize)> {
    let mut stream = bytes;
    let result = {
        let future = pin!(read(&mut stream));
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("a slice is always ready"),
        }
    };
    result.ok().map(|told| (told, bytes.len() - stream.len()))
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let found = reading(data);
    assert_eq!(reading(&[data, b"\x16\x03\x01TLS"].concat()).filter(|_| found.is_some()), found);
    let Some((told, length)) = found else { return Corpus::Keep };
    let read = &data[..length];
    assert_eq!(reading(read), found, "it read more than it took");
    assert_eq!(reading(&read[..length - 1]), None, "it took more than it read");
    if read.starts_with(b"PROXY ") {
        assert!(length <= 107 && read.ends_with(b"\r\n"));
        assert_eq!(told, version_1(read));
    } else {
        assert!(read.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
        assert_eq!(length, 16 + usize::from(u16::from_be_bytes([read[14], read[15]])));
        assert_eq!(told, version_2(read));
    }
    let again = header(told);
    assert_eq!(reading(&again), Some((told, again.len())));
    Corpus::Keep
});

fn version_1(line: &[u8]) -> Option<Addresses> {
    let text = std::str::from_utf8(line).expect("text").trim_end();
    let mut words = text.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        return None;
    }
    let (source, destination) = (words.next()?, words.next()?);
    let mut address = |ip: &str| -> SocketAddr {
        let port = words.next().expect("a port").parse().expect("a port");
        match family {
            "TCP4" => (ip.parse::<Ipv4Addr>().expect("IPv4"), port).into(),
            _ => (ip.parse::<Ipv6Addr>().expect("IPv6").to_canonical(), port).into(),
        }
    };
    Some(Addresses { source: address(source), destination: address(destination) })
}

fn version_2(bytes: &[u8]) -> Option<Addresses> {
    let port = |at: usize| u16::from(bytes[at]) << 8 | u16::from(bytes[at + 1]);
    let v4 = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    let v6 = |at: usize| {
        let ip: [u8; 16] = bytes[at..at + 16].try_into().expect("16 bytes");
        Ipv6Addr::from(ip).to_canonical()
    };
    match (bytes[12], bytes[13]) {
        (0x21, 0x11) => Some(Addresses {
            source: (v4(16), port(24)).into(),
            destination: (v4(20), port(26)).into(),
        }),
        (0x21, 0x21) => Some(Addresses {
            source: (v6(16), port(48)).into(),
            destination: (v6(32), port(50)).into(),
        }),
        _ => None,
    }
}
