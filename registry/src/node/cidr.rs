//! A network, as `10.0.0.0/8`.

use std::{net::IpAddr, str::FromStr};

/// A network. IPv4 is kept as IPv4-mapped IPv6, so that a dual-stack socket's view of a client
/// makes no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    net: u128,
    mask: u128,
}

impl Cidr {
    /// Whether `ip` is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        bits(ip) & self.mask == self.net
    }
}

fn bits(ip: IpAddr) -> u128 {
    u128::from(match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    })
}

/// Why a network cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network: expected \"10.0.0.0/8\", \"fd00::/8\" or a single address")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError(text.to_owned());
        let (addr, length) = match text.split_once('/') {
            Some((addr, length)) => (addr, Some(length)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| error())?;
        let width = if addr.is_ipv4() { 32 } else { 128 };
        let length: u32 = match length {
            Some(length) => length.parse().map_err(|_| error())?,
            None => width,
        };
        if length > width {
            return Err(error());
        }
        let mask = u128::MAX.checked_shl(width - length).unwrap_or(0);
        let net = bits(addr);
        if net & !mask != 0 {
            // "10.1.2.3/8": what was meant, the host or the network?
            return Err(error());
        }
        Ok(Self { net, mask })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_what_they_should() {
        for (net, ip, want) in [
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("fd00::/8", "fd12::1", true),
        ] {
            let cidr: Cidr = net.parse().expect(net);
            assert_eq!(cidr.contains(ip.parse().expect(ip)), want, "{net} {ip}");
        }
        for text in ["", "10.0.0.0/33", "10.0.0.0/", "10.1.2.3/8", "x/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text:?}");
        }
    }
}
