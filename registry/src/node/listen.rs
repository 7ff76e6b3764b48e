//! Listening sockets, bound before anything else starts, so that a port in use is one clear
//! message and an exit, not a half-started process.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
};

use socket2::{Domain, Protocol, Socket, Type};

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on {addr} ({what}): {cause}")]
pub struct ListenError {
    /// What was to listen there.
    pub what: String,
    /// The address.
    pub addr: SocketAddr,
    /// Why not. Part of the message, as it is what the operator needs, and so not its source: that
    /// would be printed a second time.
    pub cause: std::io::Error,
}

/// Connections that may wait to be accepted. Source: nginx and Pingora use 511 and 65535; the
/// kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Binds a non-blocking TCP socket for `what`. Port 0 takes a free one.
///
/// # Errors
/// [`ListenError`] naming the purpose, the address and the cause.
pub fn bind(what: &str, addr: SocketAddr) -> Result<TcpListener, ListenError> {
    open(addr, false).map_err(|cause| ListenError {
        what: what.to_owned(),
        addr,
        cause,
    })
}

/// Binds `count` sockets on one address; the kernel spreads connections over them. The first bind
/// is exclusive, so that an address in use by somebody else is noticed.
///
/// # Errors
/// As [`bind`].
pub fn bind_shared(
    what: &str,
    addr: SocketAddr,
    count: usize,
) -> Result<Vec<TcpListener>, ListenError> {
    let error = |cause| ListenError {
        what: what.to_owned(),
        addr,
        cause,
    };
    // SO_REUSEPORT would share the port with any other process of this user that does the same.
    let probe = open(addr, false).map_err(error)?;
    let addr = probe.local_addr().map_err(error)?;
    drop(probe);
    (0..count.max(1))
        .map(|_| open(addr, true).map_err(error))
        .collect()
}

fn open(addr: SocketAddr, shared: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the connections of the life before.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Writes the addresses that were bound as `{"name": "addr", …}`, whole or not at all, for those
/// who asked for port 0.
///
/// # Errors
/// If the file cannot be written.
pub fn write_ports(path: &Path, ports: &[(&str, SocketAddr)]) -> std::io::Result<()> {
    let map: std::collections::BTreeMap<_, _> = ports
        .iter()
        .map(|(name, addr)| (*name, addr.to_string()))
        .collect();
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(&map)?)?;
    std::fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let addr = "127.0.0.1:0".parse().expect("addr");
        let held = bind("gossip", addr).expect("free");
        let taken = held.local_addr().expect("bound");
        for error in [
            bind("admin", taken).expect_err("taken"),
            bind_shared("edge", taken, 2).expect_err("taken"),
        ] {
            let text = error.to_string();
            assert!(
                text.contains(&taken.to_string()) && text.contains("in use"),
                "{text}"
            );
            let again = std::error::Error::source(&error);
            assert!(again.is_none(), "said twice where causes are printed");
        }
        let shared = bind_shared("edge", addr, 3).expect("free");
        let ports: Vec<_> = shared
            .iter()
            .map(|l| l.local_addr().expect("bound").port())
            .collect();
        assert!(ports.iter().all(|port| *port == ports[0]));
    }
}
