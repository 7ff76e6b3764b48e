//! Bulkhead: how many calls may be under way at once.
//!
//! One slow callee must not drown the whole ship: without a limit, every caller's task, socket and
//! buffer ends up waiting for it. A bulkhead gives each destination its own share and refuses the
//! rest at once, while there is still time to answer.
//!
//! # Guarantees
//! Never more permits out than the limit; a slot comes back on drop, whatever happened. One
//! compare-and-swap in, one subtraction out. Lowering the limit below what is under way makes debt
//! that drains; it never panics, underflows or cancels.

use std::sync::Arc;

use crate::{
    outcome::{Policy, Reason, Rejected},
    sync::{AtomicU32, AtomicU64, Ordering},
};

#[derive(Debug)]
struct Core {
    limit: AtomicU32,
    in_flight: AtomicU32,
    rejected: AtomicU64,
}

/// A limit on concurrent calls. Clones share one limit.
#[derive(Debug, Clone)]
pub struct Bulkhead(Arc<Core>);

impl Bulkhead {
    /// At most `limit` calls at once; 0 refuses every call.
    pub fn new(limit: u32) -> Self {
        Self(Arc::new(Core {
            limit: AtomicU32::new(limit),
            in_flight: AtomicU32::new(0),
            rejected: AtomicU64::new(0),
        }))
    }

    /// Takes a slot.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Full`] if every slot is taken.
    pub fn try_acquire(&self) -> Result<Permit, Rejected> {
        let core = &self.0;
        let mut held = core.in_flight.load(Ordering::Relaxed);
        loop {
            // Not add-then-undo: that refuses callers who would have fitted.
            if held >= core.limit.load(Ordering::Relaxed) {
                core.rejected.fetch_add(1, Ordering::Relaxed);
                return Err(Rejected::new(Policy::Bulkhead, Reason::Full));
            }
            match core.in_flight.compare_exchange_weak(
                held,
                held + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(Permit(Arc::clone(core))),
                Err(seen) => held = seen,
            }
        }
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u32 {
        self.0.in_flight.load(Ordering::Relaxed)
    }

    /// The limit now.
    pub fn limit(&self) -> u32 {
        self.0.limit.load(Ordering::Relaxed)
    }

    /// Calls refused so far.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(Ordering::Relaxed)
    }

    /// Takes a new limit at once; calls under way stay.
    pub fn reconfigure(&self, limit: u32) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }
}

/// A slot; dropping it gives it back.
#[derive(Debug)]
#[must_use = "a slot that is dropped at once limits nothing"]
pub struct Permit(Arc<Core>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn full_is_full_and_a_slot_comes_back_on_drop() {
        let bulkhead = Bulkhead::new(2);
        let (a, _b) = (
            bulkhead.try_acquire().expect("1"),
            bulkhead.try_acquire().expect("2"),
        );
        assert_eq!(bulkhead.try_acquire().expect_err("3").reason, Reason::Full);
        drop(a);
        assert!(bulkhead.try_acquire().is_ok());
        assert!(Bulkhead::new(0).try_acquire().is_err());
    }

    #[test]
    fn lowering_the_limit_makes_debt() {
        let bulkhead = Bulkhead::new(3);
        let held: Vec<_> = (0..3)
            .map(|_| bulkhead.try_acquire().expect("free"))
            .collect();
        bulkhead.reconfigure(1);
        assert!(bulkhead.try_acquire().is_err());
        drop(held);
        assert_eq!(bulkhead.in_flight(), 0);
        let _one = bulkhead.try_acquire().expect("free");
        assert!(bulkhead.try_acquire().is_err());
    }

    #[test]
    fn threads_never_exceed_the_limit_and_leave_nothing_behind() {
        let bulkhead = Bulkhead::new(3);
        let admitted: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..50_000)
                            .filter(|_| {
                                let permit = bulkhead.try_acquire();
                                assert!(bulkhead.in_flight() <= 3);
                                permit.is_ok()
                            })
                            .count() as u64
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .sum()
        });
        assert_eq!(admitted + bulkhead.rejected(), 200_000);
        assert_eq!(bulkhead.in_flight(), 0);
    }
}
