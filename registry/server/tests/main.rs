//! The registry as its users see it: real servers, real sockets, the real client.

mod api;
#[cfg(target_os = "linux")]
mod bench;
mod client;
mod cluster;
mod described;
mod descriptors;
mod dns;
mod eureka;
mod failures;
mod gossip_sim;
mod gossip_udp;
mod policies;
mod readme;
mod regions;
mod security;
mod shipped;
mod support;
mod v1;
mod watchers;
