//! Services by name for programs that can do nothing but resolve names.
//!
//! A shell script, a database's replica list, a program in a language without a client: all of them
//! can resolve a name. So each service is one, under a domain of its own that the resolver in front
//! forwards here.
//!
//! | name, under the domain | A, AAAA | SRV |
//! |---|---|---|
//! | `<service>.service` | its addresses | ports and names of its instances |
//! | `_<service>._tcp.service` | | the same (RFC 2782) |
//! | `<service>.<zone>.zone` | those in the zone | those in the zone |
//! | `_<service>._tcp.<zone>.zone` | | the same |
//! | `<instance>.<service>.instance` | its address: what SRV points to | its port |
//! | `ns` | this server's | |
//!
//! # Guarantees
//! - Only instances that are UP, in another order each time. Weights are SRV's weights; instances
//!   of this server's zone have priority 0, of its region 1, others 2.
//! - A server that is catching up says SERVFAIL, so that resolvers ask another one; never
//!   "no such name", which they would remember.
//! - An answer that does not fit says so (TC), and TCP has it whole, up to DNS's own 64 KiB.
//! - Work is bounded: a question costs what its answer is long, what cannot be one is dropped or
//!   refused by its header, a client that asks too much is sent to TCP, and connections are
//!   counted and timed.
//!
//! # What it does not do
//! Recursion, zone transfers, updates, DNSSEC. A name outside the domain is refused.
//!
//! # Source
//! RFC 1035, 2308 (no such name), 2782 (SRV), 6891 (EDNS), 7766 (TCP), 8020, 8482 (ANY); Consul's
//! DNS interface for what people expect.

mod config;
mod packet;
mod serve;
mod services;
mod zone;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use selvedge_registry::{Locality, node::listen::ListenError};

pub use self::config::DnsConfig;
use self::{serve::Sockets, zone::Zone};
use crate::server::Shared;

/// A DNS server that is bound and not yet answering.
#[derive(Debug)]
pub struct Dns {
    sockets: Sockets,
    zone: Zone,
    shared: Arc<Shared>,
    config: DnsConfig,
}

impl Dns {
    /// Binds `config.bind` for UDP and TCP; `None` if it is not set.
    ///
    /// # Errors
    /// [`ListenError`] naming the address.
    pub fn bind(
        config: &DnsConfig,
        here: &Locality,
        shared: &Arc<Shared>,
    ) -> Result<Option<Self>, ListenError> {
        let Some(addr) = config.bind else {
            return Ok(None);
        };
        let sockets = Sockets::bind(addr)?;
        Ok(Some(Self {
            zone: Zone::new(config, here.clone(), sockets.addr().ip()),
            sockets,
            shared: Arc::clone(shared),
            config: config.clone(),
        }))
    }

    /// Where it is bound.
    pub fn addr(&self) -> SocketAddr {
        self.sockets.addr()
    }

    /// Answers for ever. Cancel-safe: dropping it closes the sockets and ends the connections.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn run(self) {
        serve::run(self.sockets, self.zone, self.shared, self.config).await;
    }
}
