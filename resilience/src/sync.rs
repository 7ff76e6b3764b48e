//! The atomics of the cores, and the one lock of their cold paths: std's and parking_lot's, or
//! loom's under `--cfg loom`.
//!
//! Models run with `RUSTFLAGS="--cfg loom" cargo test -p selvedge-resilience --lib models`.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(not(loom))]
pub(crate) use parking_lot::{Mutex, MutexGuard};

#[cfg(loom)]
pub(crate) use modelled::{Mutex, MutexGuard};

/// loom's mutex with the signatures of parking_lot's.
#[cfg(loom)]
mod modelled {
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);
    pub(crate) type MutexGuard<'a, T> = loom::sync::MutexGuard<'a, T>;

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            LOCKS.set(LOCKS.get() + 1);
            self.0.lock().expect("no model panics in a lock")
        }
        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            LOCKS.set(LOCKS.get() + 1);
            self.0.try_lock().ok()
        }
    }

    std::thread_local! {
        /// How often this thread took a lock, or tried to.
        static LOCKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    /// How many locks `call` takes.
    #[cfg(test)]
    pub(super) fn locks(call: impl FnOnce()) -> u64 {
        let before = LOCKS.get();
        call();
        LOCKS.get() - before
    }
}

#[cfg(all(test, loom))]
mod models;
