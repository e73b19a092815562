//! Networks as an administrator writes them: `10.0.0.0/8`, or one address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The addresses that begin with the same bits: `10.0.0.0/8`. `Display` gives that form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// How many bits count; the others of `address` are zero.
    prefix: u8,
}

impl Network {
    /// Whether `address` is one of its addresses. An IPv4 address is in no IPv6 network.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::masked(address, self.prefix) == Some(self.address)
    }

    /// `address` with all but its first `prefix` bits zero; `None` if it does not have as many.
    fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
        let mask = |width: u32| width.checked_sub(u32::from(prefix));
        Some(match address {
            IpAddr::V4(ip) => {
                let ones = u32::MAX.checked_shl(mask(32)?).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & ones))
            }
            IpAddr::V6(ip) => {
                let ones = u128::MAX.checked_shl(mask(128)?).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & ones))
            }
        })
    }
}

impl FromStr for Network {
    /// What would be right, as far as mailchime can say.
    type Err = Option<Self>;

    fn from_str(text: &str) -> Result<Self, Option<Self>> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| None)?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(whole), str::parse).map_err(|_| None)?;
        match Self::masked(address, prefix) {
            Some(masked) if masked == address => Ok(Self { address, prefix }),
            masked => Err(masked.map(|address| Self { address, prefix })),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_that_begin_as_it_does() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("192.0.2.6/31", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.0"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("::1", "::1", "::2"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::"),
            ("::/0", "ffff::", "0.0.0.0"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{inside} in {network}");
            assert!(!network.contains(outside.parse().unwrap()), "{outside} in {network}");
        }
    }

    #[test]
    fn a_value_that_is_no_network_is_refused_with_what_was_meant() {
        let meant =
            |text: &str| text.parse::<Network>().unwrap_err().map(|meant| meant.to_string());
        assert_eq!(meant("10.1.0.0/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(meant("::1/64").as_deref(), Some("::/64"));
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0/8", "host"] {
            assert_eq!(meant(text), None, "{text}");
        }
    }
}
