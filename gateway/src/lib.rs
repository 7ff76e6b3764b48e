//! The gateway at the edge: Pingora runs the process, hyper carries the bytes, Tower decides.

pub mod config;
mod hash;
pub mod routing;
