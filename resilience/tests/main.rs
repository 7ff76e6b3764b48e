//! What is tested from outside the crate.
#![allow(
    clippy::disallowed_methods,
    reason = "tests pick an instant to start from"
)]

mod accounting;
mod allocations;
mod cases;
mod clock;
mod document;
mod interrupted;
mod orders;
mod peers;
mod stack;
mod surface;
