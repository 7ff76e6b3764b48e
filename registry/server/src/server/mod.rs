//! What one server does: its catalogue, its leases, its part in the cluster.
//!
//! | file | |
//! |---|---|
//! | `shared` | the state that its parts share |
//! | `writes`, `edits` | what instances and operators ask for |
//! | `accept` | what other servers have accepted |
//! | `sweep`, `doubts` | whose lease is over, and whether it may end |
//! | `passed_on` | renewals on their way to where the leases are kept |
//! | `ready` | when it answers as one that knows everything |

mod accept;
mod doubts;
mod edits;
mod passed_on;
pub(crate) mod ready;
mod shared;
pub(crate) mod sweep;
mod writes;

pub use self::{
    accept::Incoming,
    edits::Edit,
    shared::{Caps, Counters, Origin, Refused, Renewed, Shared, WallClock, system_clock},
};
pub(crate) use self::{
    edits::{EditAnswer, EditQuestion},
    passed_on::{Errand, PassedRenewal},
    shared::{Identity, now},
    sweep::SWEEP,
};
