//! Calls that a policy has let through, or turned away.
//!
//! A layer's `call` must return a future either way, and its service must not be called for one that
//! is refused. So each layer that refuses on arrival has a future that holds one of two things.

use std::pin::Pin;

use pin_project_lite::pin_project;

use crate::outcome::Rejected;

pin_project! {
    /// A call under way, or why it is not.
    #[derive(Debug)]
    #[project = GateProj]
    pub(super) enum Gate<F> {
        Open {
            #[pin]
            inner: F,
        },
        Shut { rejected: Rejected },
    }
}

impl<F> Gate<F> {
    /// Makes the call if it was admitted; what it was admitted with is there while it is made, and
    /// comes back with it.
    pub(super) fn new<T>(
        admitted: Result<T, Rejected>,
        call: impl FnOnce() -> F,
    ) -> (Self, Option<T>) {
        match admitted {
            Ok(with) => (Self::Open { inner: call() }, Some(with)),
            Err(rejected) => (Self::Shut { rejected }, None),
        }
    }

    /// The call, if it is under way.
    pub(super) fn admitted(self: Pin<&mut Self>) -> Result<Pin<&mut F>, Rejected> {
        match self.project() {
            GateProj::Open { inner } => Ok(inner),
            GateProj::Shut { rejected } => Err(*rejected),
        }
    }
}
