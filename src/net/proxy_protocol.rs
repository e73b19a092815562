//! The PROXY protocol, by which a load balancer tells for whom it connects.
//!
//! Read in versions 1 and 2, written in version 2, as in "The PROXY protocol", versions 1 & 2, by
//! Willy Tarreau (proxy-protocol.txt of HAProxy). Who may send one is not decided here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Both ends of a client's connection, as they were before any load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
}

/// What a backend learns of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxiedClient {
    /// Both ends of its connection.
    pub addresses: Addresses,
    /// How it is protected.
    pub tls: ClientTls,
}

/// How a client's connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientTls {
    /// It is not.
    None,
    /// By TLS of this version, as `TLSv1.3`.
    Version(&'static str),
    /// By TLS of a version that is not known.
    Unknown,
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The shortest header there is: `PROXY UNKNOWN` and its line end (section 2.1). One of version 2 is
/// longer, so this many bytes can be read before it is known which it is.
const SHORTEST: usize = 15;

/// The longest line of version 1, CR LF included (section 2.1).
const LONGEST_LINE: usize = 107;

/// The low byte of the length in version 2 (section 2.2).
const LENGTH_AT: usize = 15;

// Section 2.2.6.
const PP2_TYPE_SSL: u8 = 0x20;
const PP2_SUBTYPE_SSL_VERSION: u8 = 0x21;
const PP2_CLIENT_SSL: u8 = 0x01;

/// Two IPv6 addresses and two ports, the most of version 2 that is looked at.
const IPV6_BLOCK: usize = 36;

/// Reads a header and not one byte more. `None`: the load balancer speaks for itself (LOCAL), or
/// does not know for whom (UNKNOWN), so the connection's own addresses count.
///
/// What it does not understand of version 2 (TLVs, at most 64 KiB) is skipped without being kept.
///
/// # Errors
/// `InvalidData` if it is no header; otherwise what reading fails with.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Addresses>> {
    let mut head = [0; SHORTEST];
    stream.read_exact(&mut head).await?;
    match head.starts_with(SIGNATURE) {
        true => binary(stream, head[12], head[13], head[14]).await,
        false if head.starts_with(b"PROXY ") => line(stream, &head).await,
        false => Err(malformed("no PROXY header")),
    }
}

/// Version 1: the rest of the line, and what it says.
async fn line(stream: &mut (impl AsyncRead + Unpin), head: &[u8]) -> io::Result<Option<Addresses>> {
    let mut line = head.to_vec();
    // A byte at a time, for what follows belongs to TLS.
    while !line.ends_with(b"\n") {
        if line.len() == LONGEST_LINE {
            return Err(malformed("PROXY line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    let text = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok());
    let text = text.ok_or_else(|| malformed("PROXY line is no text"))?;
    let words: Vec<_> = text.split(' ').collect();
    let told = match words[..] {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, from, to] => {
            let address = |ip: &str, port: &str| {
                let ip: IpAddr = ip.parse().ok().filter(|ip: &IpAddr| {
                    if family == "TCP4" { ip.is_ipv4() } else { ip.is_ipv6() }
                })?;
                let digits = port.bytes().all(|b| b.is_ascii_digit());
                Some(address(ip, port.parse().ok().filter(|_| digits)?))
            };
            address(source, from).zip(address(destination, to))
        }
        _ => None,
    };
    let (source, destination) = told.ok_or_else(|| malformed("PROXY line is malformed"))?;
    Ok(Some(Addresses { source, destination }))
}

/// Version 2: one more byte of the head, the addresses, and what is to be skipped (section 2.2).
async fn binary(
    stream: &mut (impl AsyncRead + Unpin),
    version_and_command: u8,
    family: u8,
    length_high: u8,
) -> io::Result<Option<Addresses>> {
    let local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(malformed("PROXY version or command is unknown")),
    };
    let length = usize::from(u16::from_be_bytes([length_high, stream.read_u8().await?]));
    let size = match family {
        _ if local => 0,
        // Unspecified, and a UNIX socket's path: nobody's address.
        0x00 | 0x31 => 0,
        0x11 => 12,
        0x21 => IPV6_BLOCK,
        _ => return Err(malformed("PROXY family or transport is not that of a stream")),
    };
    if length < size {
        return Err(malformed("PROXY header is too short for its addresses"));
    }
    let mut block = [0; IPV6_BLOCK];
    stream.read_exact(&mut block[..size]).await?;
    skip(stream, length - size).await?;
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    Ok(match size {
        12 => {
            let ip = |at: usize| Ipv4Addr::from_octets(std::array::from_fn(|i| block[at + i]));
            Some(Addresses {
                source: address(ip(0).into(), port(8)),
                destination: address(ip(4).into(), port(10)),
            })
        }
        IPV6_BLOCK => {
            let ip = |at: usize| Ipv6Addr::from_octets(std::array::from_fn(|i| block[at + i]));
            Some(Addresses {
                source: address(ip(0).into(), port(32)),
                destination: address(ip(16).into(), port(34)),
            })
        }
        _ => None,
    })
}

async fn skip(stream: &mut (impl AsyncRead + Unpin), mut length: usize) -> io::Result<()> {
    let mut rest = [0; 256];
    while length > 0 {
        let size = length.min(rest.len());
        stream.read_exact(&mut rest[..size]).await?;
        length -= size;
    }
    Ok(())
}

/// The header of version 2 that tells of these addresses, or, with none, that mailchime connects on
/// its own behalf (LOCAL).
pub fn header(addresses: Option<Addresses>) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    let Some(Addresses { source, destination }) = addresses else {
        header.extend_from_slice(&[0x20, 0x00, 0, 0]);
        return header;
    };
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend_from_slice(&[0x21, 0x11, 0, 12]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
        }
        // One family for both: an IPv4 address has a form in the other (RFC 4291 section 2.5.5.2).
        (from, to) => {
            header.extend_from_slice(&[0x21, 0x21, 0, IPV6_BLOCK as u8]);
            for ip in [from, to] {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                header.extend_from_slice(&ip.octets());
            }
        }
    }
    for port in [source.port(), destination.port()] {
        header.extend_from_slice(&port.to_be_bytes());
    }
    header
}

/// As [`header`], with how the client's connection is protected: behind a proxy with TLS a server may take passwords
/// that it takes from nobody in the clear.
pub fn header_for(client: Option<ProxiedClient>) -> Vec<u8> {
    let mut header = header(client.map(|client| client.addresses));
    let version = match client.map(|client| client.tls) {
        None | Some(ClientTls::None) => return header,
        Some(ClientTls::Version(version)) => Some(version),
        Some(ClientTls::Unknown) => None,
    };
    // Section 2.2.6: the client used TLS and showed no certificate, of which there is nothing to verify.
    let mut tls = vec![PP2_CLIENT_SSL, 0, 0, 0, 1];
    if let Some(version) = version {
        tls.extend_from_slice(&[PP2_SUBTYPE_SSL_VERSION, 0, version.len() as u8]);
        tls.extend_from_slice(version.as_bytes());
    }
    header.extend_from_slice(&[PP2_TYPE_SSL, 0, tls.len() as u8]);
    header.extend_from_slice(&tls);
    // No more than some dozens, as all of it.
    header[LENGTH_AT] = (header.len() - LENGTH_AT - 1) as u8;
    header
}

/// An IPv4 address in its IPv6 form is an IPv4 address.
fn address(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        })
    }

    /// What is read of `bytes`, and how many are left.
    async fn reading(bytes: &[u8]) -> (io::Result<Option<Addresses>>, usize) {
        let mut stream = bytes;
        let read = read(&mut stream).await;
        (read, stream.len())
    }

    fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, block].concat()
    }

    #[tokio::test]
    async fn version_1_is_read_to_its_line_end() {
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_LINE - 16));
        for (line, expected) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.2 56324 993\r\n",
                addresses("192.0.2.1:56324", "198.51.100.2:993"),
            ),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n",
                addresses("[2001:db8::1]:1", "[2001:db8::2]:65535"),
            ),
            (
                "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n",
                addresses("192.0.2.1:1", "[2001:db8::2]:2"),
            ),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\n", None),
            (&longest, None),
        ] {
            let (read, left) = reading(format!("{line}\x16\x03\x01").as_bytes()).await;
            assert_eq!(read.unwrap(), expected, "{line}");
            assert_eq!(left, 3, "{line}");
        }
    }

    #[tokio::test]
    async fn version_2_is_read_to_its_length() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x03, 0xe1];
        let with_tlv = [&v4[..], &[0x04, 0x02, 0x00], &[7; 512]].concat();
        let mut v6 = [0; IPV6_BLOCK];
        (v6[0], v6[15], v6[16], v6[31]) = (0x20, 1, 0x20, 2);
        (v6[33], v6[35]) = (9, 143);
        let v4_told = addresses("192.0.2.1:56324", "198.51.100.2:993");
        for (header, expected) in [
            (version_2(0x21, 0x11, &v4), v4_told),
            (version_2(0x21, 0x11, &with_tlv), v4_told),
            (version_2(0x21, 0x11, &[&v4[..], &[0; 65_000]].concat()), v4_told),
            (version_2(0x21, 0x21, &v6), addresses("[2000::1]:9", "[2000::2]:143")),
            (version_2(0x20, 0x00, b""), None),
            (version_2(0x20, 0x11, &v4), None),
            (version_2(0x20, 0xff, b"anything"), None),
            (version_2(0x21, 0x00, b"anything"), None),
            (version_2(0x21, 0x31, &[0; 216]), None),
        ] {
            let (read, left) = reading(&[&header[..], b"\x16\x03\x01"].concat()).await;
            assert_eq!(read.unwrap(), expected, "{}", header.escape_ascii());
            assert_eq!(left, 3, "{}", header.escape_ascii());
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(LONGEST_LINE));
        let v4 = [0; 12];
        for bytes in [
            b"\x16\x03\x01 a TLS ClientHello".to_vec(),
            b"a LOGIN alice wonder\r\n".to_vec(),
            endless.into_bytes(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 198.51.100.2 1 2\r\n".to_vec(),
            b"PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n".to_vec(),
            b"PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n".to_vec(),
            version_2(0x11, 0x11, &v4),
            version_2(0x22, 0x11, &v4),
            version_2(0x21, 0x12, &v4),
            version_2(0x21, 0x41, &v4),
            version_2(0x21, 0x11, &v4[..11]),
            version_2(0x21, 0x21, &v4),
        ] {
            let (read, _) = reading(&bytes).await;
            let kind = read.map_err(|error| error.kind());
            assert_eq!(kind, Err(io::ErrorKind::InvalidData), "{}", bytes.escape_ascii());
        }
        let whole = version_2(0x21, 0x11, &v4);
        for length in 0..whole.len() {
            let (read, _) = reading(&whole[..length]).await;
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{length}");
        }
    }

    #[tokio::test]
    async fn tls_of_a_client_is_told_behind_the_addresses() {
        let addresses = addresses("192.0.2.1:56324", "198.51.100.2:993").unwrap();
        let with = |tls| header_for(Some(ProxiedClient { addresses, tls }));
        assert_eq!(with(ClientTls::None), header(Some(addresses)));
        assert_eq!(header_for(None), header(None));
        let told = b"\x20\x00\x0f\x01\x00\x00\x00\x01\x21\x00\x07TLSv1.3";
        let whole = with(ClientTls::Version("TLSv1.3"));
        assert!(whole.ends_with(told), "{}", whole.escape_ascii());
        assert!(with(ClientTls::Unknown).ends_with(b"\x20\x00\x05\x01\x00\x00\x00\x01"));
        for header in [whole, with(ClientTls::Unknown)] {
            let (read, left) = reading(&header).await;
            assert_eq!((read.unwrap(), left), (Some(addresses), 0));
        }
    }

    #[tokio::test]
    async fn what_is_written_is_read_again() {
        for told in [
            None,
            addresses("192.0.2.1:56324", "198.51.100.2:993"),
            addresses("[2001:db8::1]:1", "[2001:db8::2]:993"),
            addresses("[2001:db8::1]:1", "198.51.100.2:993"),
        ] {
            let (read, left) = reading(&header(told)).await;
            assert_eq!((read.unwrap(), left), (told, 0));
        }
    }
}
