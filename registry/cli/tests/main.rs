//! The command as an operator runs it, against servers that really serve.

mod cluster;
mod events;
mod instances;
mod policies;
mod readme;
mod register;
mod security;
mod support;
