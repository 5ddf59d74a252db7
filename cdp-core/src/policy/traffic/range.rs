//! Ranges of addresses as people write them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Addresses of one family: `any`, `10.0.0.0/8`, `10.0.0.5`, `10.0.0.5-10.0.0.9`, and the same of IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Any,
    V4(u32, u32),
    V6(u128, u128),
}

/// Why a text is no range.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RangeError {
    /// Neither of the families.
    #[error(
        "{part:?} in {text:?} is no IPv4 or IPv6 address; a range is any, 10.0.0.0/8, 10.0.0.5 or 10.0.0.5-10.0.0.9"
    )]
    Address {
        /// The text.
        text: String,
        /// What stood where an address was expected.
        part: String,
    },
    /// No number of bits, or more than the address has.
    #[error("{bits:?} in {text:?} is no length of a prefix: 0 to {max} are")]
    Prefix {
        /// The text.
        text: String,
        /// What stood behind the slash.
        bits: String,
        /// The most bits of the family.
        max: u32,
    },
    /// The address is not the first of the prefix.
    #[error("{text:?} has bits behind its prefix: the network is {network}")]
    Bits {
        /// The text.
        text: String,
        /// The range that the prefix stands for.
        network: Range,
    },
    /// It ends before it begins.
    #[error("{text:?} ends before it begins")]
    Order {
        /// The text.
        text: String,
    },
    /// From one family to the other.
    #[error("{text:?} begins in one family of addresses and ends in the other")]
    Families {
        /// The text.
        text: String,
    },
    /// An IPv4 address written as one of IPv6.
    #[error(
        "{text:?} holds IPv4 addresses in the form of IPv6: write them as IPv4, which is what they are compared as"
    )]
    Mapped {
        /// The text.
        text: String,
    },
}

/// Whether an address is one that does not leave private networks: 10/8, 172.16/12, 192.168/16, fc00::/7, loopback and link-local.
/// Shared addresses of providers (100.64/10) are not among them.
#[must_use]
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_private() || address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

impl Range {
    /// Every address of both families.
    pub const ANY: Range = Range(Kind::Any);

    /// Whether the address is in it. An IPv4 address in the form of IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.0, address.to_canonical()) {
            (Kind::Any, _) => true,
            (Kind::V4(from, to), IpAddr::V4(address)) => (from..=to).contains(&address.to_bits()),
            (Kind::V6(from, to), IpAddr::V6(address)) => (from..=to).contains(&address.to_bits()),
            _ => false,
        }
    }
}

/// The bits that a prefix leaves open, of `width`.
fn open_bits(width: u32, bits: u32) -> u128 {
    match width - bits {
        0 => 0,
        open => u128::MAX >> (128 - open),
    }
}

fn is_mapped(address: IpAddr) -> bool {
    address.to_canonical() != address
}

fn prefix(text: &str, address: IpAddr, bits: &str) -> Result<Range, RangeError> {
    let (width, value) = match address {
        IpAddr::V4(address) => (32, u128::from(address.to_bits())),
        IpAddr::V6(address) => (128, address.to_bits()),
    };
    let digits = !bits.is_empty() && bits.len() <= 3 && bits.bytes().all(|byte| byte.is_ascii_digit());
    let length = if digits { bits.parse().ok().filter(|bits: &u32| *bits <= width) } else { None };
    let wrong = || RangeError::Prefix { text: text.into(), bits: bits.into(), max: width };
    let open = open_bits(width, length.ok_or_else(wrong)?);
    let (from, to) = (value & !open, value | open);
    let network = Range(match address {
        // Both fit: they have no more bits than the address.
        IpAddr::V4(_) => Kind::V4(from as u32, to as u32),
        IpAddr::V6(_) => Kind::V6(from, to),
    });
    if from == value { Ok(network) } else { Err(RangeError::Bits { text: text.into(), network }) }
}

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        if text == "any" {
            return Ok(Self::ANY);
        }
        let parse = |part: &str| match part.parse::<IpAddr>() {
            Err(_) => Err(RangeError::Address { text: text.into(), part: part.into() }),
            Ok(address) if is_mapped(address) => Err(RangeError::Mapped { text: text.into() }),
            Ok(address) => Ok(address),
        };
        if let Some((address, bits)) = text.split_once('/') {
            return prefix(text, parse(address)?, bits);
        }
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        match (parse(from)?, parse(to)?) {
            (from, to) if from.is_ipv4() == to.is_ipv4() && from > to => Err(RangeError::Order { text: text.into() }),
            (IpAddr::V4(from), IpAddr::V4(to)) => Ok(Self(Kind::V4(from.to_bits(), to.to_bits()))),
            (IpAddr::V6(from), IpAddr::V6(to)) => Ok(Self(Kind::V6(from.to_bits(), to.to_bits()))),
            _ => Err(RangeError::Families { text: text.into() }),
        }
    }
}

/// The shortest form, which is read back to the same range.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to, width, bits) = match self.0 {
            Kind::Any => return f.write_str("any"),
            Kind::V4(from, to) => {
                (IpAddr::V4(Ipv4Addr::from(from)), IpAddr::V4(Ipv4Addr::from(to)), 32, u128::from(from ^ to))
            }
            Kind::V6(from, to) => (IpAddr::V6(Ipv6Addr::from(from)), IpAddr::V6(Ipv6Addr::from(to)), 128, from ^ to),
        };
        let open = 128 - bits.leading_zeros();
        let first = match self.0 {
            Kind::V4(from, _) => u128::from(from),
            Kind::V6(from, _) => from,
            Kind::Any => 0,
        };
        let is_prefix = bits == open_bits(open, 0) && first & bits == 0;
        match is_prefix {
            _ if from == to => write!(f, "{from}"),
            true => write!(f, "{from}/{}", width - open),
            false => write!(f, "{from}-{to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(text: &str) -> Range {
        text.parse().expect(text)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn ranges_hold_what_they_say() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.0.0.5", "10.0.0.5", "10.0.0.6"),
            ("10.0.0.5-10.0.1.2", "10.0.1.2", "10.0.1.3"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("fc00::/7", "fdff::1", "fe00::"),
            ("::/0", "ffff::", "10.0.0.1"),
            ("2001:db8::1-2001:db8::ff", "2001:db8::80", "2001:db8::100"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
        ] {
            assert!(range(text).contains(address(inside)), "{inside} in {text}");
            assert!(!range(text).contains(address(outside)), "{outside} not in {text}");
            assert_eq!(range(text).to_string(), text);
        }
        assert!(Range::ANY.contains(address("::1")) && range("any").contains(address("1.2.3.4")));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("", "\"\" in \"\" is no IPv4 or IPv6 address; a range is any, 10.0.0.0/8, 10.0.0.5 or 10.0.0.5-10.0.0.9"),
            (
                "10.0.0/8",
                "\"10.0.0\" in \"10.0.0/8\" is no IPv4 or IPv6 address; a range is any, 10.0.0.0/8, 10.0.0.5 or 10.0.0.5-10.0.0.9",
            ),
            ("10.0.0.0/33", "\"33\" in \"10.0.0.0/33\" is no length of a prefix: 0 to 32 are"),
            ("10.0.0.0/+8", "\"+8\" in \"10.0.0.0/+8\" is no length of a prefix: 0 to 32 are"),
            ("fc00::/129", "\"129\" in \"fc00::/129\" is no length of a prefix: 0 to 128 are"),
            ("10.1.2.3/8", "\"10.1.2.3/8\" has bits behind its prefix: the network is 10.0.0.0/8"),
            ("10.0.0.9-10.0.0.5", "\"10.0.0.9-10.0.0.5\" ends before it begins"),
            ("10.0.0.9-fc00::", "\"10.0.0.9-fc00::\" begins in one family of addresses and ends in the other"),
            (
                "::ffff:10.0.0.0/104",
                "\"::ffff:10.0.0.0/104\" holds IPv4 addresses in the form of IPv6: write them as IPv4, which is what they are compared as",
            ),
        ] {
            assert_eq!(text.parse::<Range>().expect_err(text).to_string(), said);
        }
    }

    #[test]
    fn private_is_what_does_not_leave() {
        for text in [
            "10.9.8.7",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.1.1",
            "::1",
            "fe80::1",
            "fd12::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_private(address(text)), "{text}");
        }
        for text in [
            "11.0.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "2001:db8::1",
            "fec0::1",
            "::",
            "::ffff:8.8.8.8",
            "64:ff9b::a00:1",
        ] {
            assert!(!is_private(address(text)), "{text}");
        }
    }

    fn any_range() -> impl Strategy<Value = Range> {
        let v4 = (any::<u32>(), any::<u32>()).prop_map(|(a, b)| Range(Kind::V4(a.min(b), a.max(b))));
        let v6 = (any::<u128>(), any::<u128>()).prop_map(|(a, b)| Range(Kind::V6(a.min(b), a.max(b))));
        let short = (any::<u32>(), 0..=32u32).prop_map(|(a, bits)| {
            let open = open_bits(32, bits) as u32;
            Range(Kind::V4(a & !open, a | open))
        });
        let long = (any::<u128>(), 0..=128u32).prop_map(|(a, bits)| {
            let open = open_bits(128, bits);
            Range(Kind::V6(a & !open, a | open))
        });
        prop_oneof![v4, v6, short, long, Just(Range::ANY)]
    }

    proptest! {
        #[test]
        fn ranges_are_read_back(range in any_range()) {
            // Addresses of the mapped block are never written as IPv6.
            prop_assume!(!matches!(range.0, Kind::V6(from, to) if is_mapped(IpAddr::V6(from.into())) || is_mapped(IpAddr::V6(to.into()))));
            prop_assert_eq!(range.to_string().parse(), Ok(range));
        }

        #[test]
        fn any_text_is_a_range_or_an_error(text in "[0-9a-f:./-]{0,40}|\\PC{0,20}") {
            let _ = text.parse::<Range>();
        }
    }
}
