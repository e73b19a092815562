//! The networks that one address counts for.

use std::net::IpAddr;

/// Addresses that count as one: they begin with the same bits. An IPv4 address counts as its mapped IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Origin {
    bits: u128,
    prefix: u8,
}

/// Prefix lengths, and how many times the allowance of one origin such a network has. One subscriber
/// gets an IPv6 network of 64 bits at least, often of 56 or 48 (RFC 6177 section 2).
const IPV6: [(u8, u32); 3] = [(64, 1), (56, 4), (48, 16)];

/// The same for IPv4: an address, and the network of 24 bits.
const IPV4: [(u8, u32); 2] = [(128, 1), (120, 16)];

impl Origin {
    /// The networks of `address` with their factors, the smallest first: that is its origin, and its
    /// factor is 1.
    pub(super) fn all(address: IpAddr) -> impl Iterator<Item = (Self, u32)> {
        let (bits, prefixes) = match address.to_canonical() {
            IpAddr::V4(ip) => (ip.to_ipv6_mapped().to_bits(), &IPV4[..]),
            IpAddr::V6(ip) => (ip.to_bits(), &IPV6[..]),
        };
        prefixes.iter().map(move |&(prefix, factor)| {
            let ones = u128::MAX << (128 - u32::from(prefix));
            (Self { bits: bits & ones, prefix }, factor)
        })
    }

    /// The smallest of them: an IPv4 address, or an IPv6 network of 64 bits.
    pub(super) fn of(address: IpAddr) -> Self {
        let mut smallest = Self { bits: 0, prefix: 0 };
        if let Some((network, _)) = Self::all(address).next() {
            smallest = network;
        }
        smallest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_count_as_one() {
        let shared = |one: &str, other: &str| {
            let networks = |text: &str| Origin::all(text.parse().unwrap()).collect::<Vec<_>>();
            let other = networks(other);
            networks(one).into_iter().filter(|n| other.contains(n)).map(|n| n.1).collect::<Vec<_>>()
        };
        assert_eq!(shared("192.0.2.1", "::ffff:192.0.2.1"), [1, 16]);
        assert_eq!(shared("192.0.2.1", "192.0.2.2"), [16]);
        assert_eq!(shared("192.0.2.1", "192.0.3.1"), [0; 0]);
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:1:2:ffff::2"), [1, 4, 16]);
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:1:ff::1"), [4, 16]);
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:1:ffff::1"), [16]);
        assert_eq!(shared("2001:db8:1:2::1", "2001:db8:2:2::1"), [0; 0]);
    }
}
