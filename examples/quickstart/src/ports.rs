//! Port numbers that nobody uses.
//!
//! Two dozen processes have to know each other's addresses before the first of them runs. Asking
//! the kernel for port 0 would draw from the ephemeral range, from which it also draws the local
//! ports of outgoing connections: a number that was free when we looked is then taken by the first
//! connection. So the numbers come from below that range, and each is tried on TCP and on UDP.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::bail;

/// Below Linux's ephemeral range (32768 and up), above what people give to servers by hand.
const RANGE: std::ops::Range<u16> = 21_000..32_000;

/// Hands out loopback addresses with distinct free ports.
#[derive(Debug)]
pub(crate) struct Ports {
    next: u16,
    left: u16,
}

impl Ports {
    /// `start`: where in the range to begin; two quickstarts side by side had better differ.
    pub(crate) fn new(start: u32) -> Self {
        let span = RANGE.end - RANGE.start;
        Self {
            next: RANGE.start + (start % u32::from(span)) as u16,
            left: span,
        }
    }

    /// The next free address.
    pub(crate) fn take(&mut self) -> anyhow::Result<SocketAddr> {
        while self.left > 0 {
            let port = self.next;
            self.left -= 1;
            self.next = if port + 1 == RANGE.end {
                RANGE.start
            } else {
                port + 1
            };
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok() {
                return Ok(addr);
            }
        }
        bail!(
            "no free port between {} and {} on loopback",
            RANGE.start,
            RANGE.end
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_the_same_twice_and_never_one_in_use() {
        let mut ports = Ports::new(u32::MAX);
        let first = ports.take().unwrap();
        let held = TcpListener::bind(first).unwrap();
        let mut again = Ports {
            next: first.port(),
            left: 10,
        };
        let second = again.take().unwrap();
        assert_ne!(first, second);
        assert_ne!(ports.take().unwrap(), first);
        drop(held);
    }

    #[test]
    fn goes_around_the_end_of_the_range_and_stops() {
        let mut ports = Ports {
            next: RANGE.end - 1,
            left: 2,
        };
        ports.take().ok();
        assert_eq!(
            ports.next % (RANGE.end - 1),
            RANGE.start % (RANGE.end - 1) + u16::from(ports.left == 0)
        );
        ports.left = 0;
        assert!(
            ports
                .take()
                .unwrap_err()
                .to_string()
                .contains("no free port")
        );
    }
}
