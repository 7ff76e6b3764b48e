//! The registry as its users see it: real servers, real sockets, the real client.

mod api;
mod cluster;
mod gossip_sim;
mod gossip_udp;
mod shipped;
mod support;
