//! What a call holds while it runs, and gives back when its body has ended.

use std::time::{Duration, Instant};

use crate::{
    adaptive, balance::Pick, breaker, bulkhead, outcome::Outcome, retry::budget, throttle,
};

/// A point in time that nobody may want to know: the clock is read when it is first asked for,
/// because reading it costs as much as a policy.
#[derive(Debug)]
pub struct Moment(Option<Instant>);

impl Moment {
    /// Now, give or take what happens before it is asked for.
    pub const fn now() -> Self {
        Self(None)
    }

    /// The instant; from the first answer on, the same one.
    pub fn instant(&mut self) -> Instant {
        let read = || tokio::time::Instant::now().into_std();
        *self.0.get_or_insert_with(read)
    }
}

impl From<Instant> for Moment {
    fn from(known: Instant) -> Self {
        Self(Some(known))
    }
}

/// Something acquired for a call that wants to know how the call ended.
pub trait Completes {
    /// The call has ended. `retry_after`: what the callee asked for, if it did.
    fn complete(self, outcome: Outcome, ended: &mut Moment, retry_after: Option<Duration>);
}

impl Completes for () {
    fn complete(self, _: Outcome, _: &mut Moment, _: Option<Duration>) {}
}

impl Completes for breaker::Permit {
    fn complete(self, outcome: Outcome, ended: &mut Moment, retry_after: Option<Duration>) {
        self.complete_with(outcome, ended.instant(), retry_after);
    }
}

impl Completes for bulkhead::Permit {
    fn complete(self, _: Outcome, _: &mut Moment, _: Option<Duration>) {}
}

impl Completes for adaptive::Permit {
    fn complete(self, outcome: Outcome, ended: &mut Moment, _: Option<Duration>) {
        adaptive::Permit::complete(self, outcome, ended.instant());
    }
}

impl<K> Completes for Pick<K> {
    fn complete(self, outcome: Outcome, ended: &mut Moment, _: Option<Duration>) {
        Pick::complete(self, outcome, ended.instant());
    }
}

/// The budget is told of the end by the drop, however the call ended.
impl Completes for budget::Logical {
    fn complete(self, _: Outcome, _: &mut Moment, _: Option<Duration>) {}
}

impl Completes for budget::Extra {
    fn complete(self, _: Outcome, _: &mut Moment, _: Option<Duration>) {}
}

impl Completes for throttle::Permit {
    fn complete(self, outcome: Outcome, ended: &mut Moment, _: Option<Duration>) {
        throttle::Permit::complete(self, outcome, ended.instant());
    }
}

macro_rules! all_complete {
    ($($held:ident $at:tt),+) => {
        impl<$($held: Completes),+> Completes for ($($held,)+) {
            fn complete(self, outcome: Outcome, ended: &mut Moment, retry_after: Option<Duration>) {
                $(self.$at.complete(outcome, ended, retry_after);)+
            }
        }
    };
}

all_complete!(A 0, B 1);
all_complete!(A 0, B 1, C 2);
all_complete!(A 0, B 1, C 2, D 3);

impl<G: Completes> Completes for Option<G> {
    fn complete(self, outcome: Outcome, ended: &mut Moment, retry_after: Option<Duration>) {
        if let Some(guard) = self {
            guard.complete(outcome, ended, retry_after);
        }
    }
}

/// Holds permits until the call ends; dropped before that, the call was cancelled *now*, so that a
/// hang which a timeout cut short is seen as one.
#[derive(Debug)]
#[must_use = "dropped, the call counts as cancelled"]
pub struct CallGuard<G: Completes>(Option<G>);

impl<G: Completes> CallGuard<G> {
    /// Guards a call that begins.
    pub fn new(held: G) -> Self {
        Self(Some(held))
    }

    /// Guards nothing yet.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Ends the call. Later ends change nothing.
    pub fn complete(&mut self, outcome: Outcome, retry_after: Option<Duration>) {
        self.end(outcome, Moment::now(), retry_after);
    }

    /// The same, where the time is known already.
    pub fn complete_at(&mut self, outcome: Outcome, now: Instant, retry_after: Option<Duration>) {
        self.end(outcome, now.into(), retry_after);
    }

    fn end(&mut self, outcome: Outcome, mut ended: Moment, retry_after: Option<Duration>) {
        if let Some(held) = self.0.take() {
            held.complete(outcome, &mut ended, retry_after);
        }
    }
}

impl<G: Completes> Drop for CallGuard<G> {
    fn drop(&mut self) {
        self.complete(Outcome::Cancelled, None);
    }
}
