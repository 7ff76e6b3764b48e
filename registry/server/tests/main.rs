//! The registry as its users see it: real servers, real sockets, the real client.

mod api;
mod cluster;
mod shipped;
mod support;
