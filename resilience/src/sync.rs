//! The atomics of the cores, and the one lock of their cold paths: std's and parking_lot's, or
//! loom's under `--cfg loom`.
//!
//! Under Miri the locks are std's too: parking_lot's keep a queue in an integer and call the kernel
//! by variadic arguments of the wrong type, of which Miri says much and we can mend nothing.
//!
//! Models run with `RUSTFLAGS="--cfg loom" cargo test -p selvedge-resilience --lib models`.
//! Miri runs what threads share with `.ci/miri` (its head says what it needs; twenty minutes).

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(not(loom))]
pub(crate) use plain::{Mutex, MutexGuard};

#[cfg(loom)]
pub(crate) use modelled::{Mutex, MutexGuard};

/// Locks that no model takes apart.
#[cfg(not(miri))]
pub(crate) mod plain {
    #[cfg(not(loom))]
    pub(crate) use parking_lot::MutexGuard;
    pub(crate) use parking_lot::{Mutex, RwLock};
}

/// The same from std, with the signatures of parking_lot's.
#[cfg(miri)]
pub(crate) mod plain {
    pub(crate) use std::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
    use std::sync::{PoisonError, TryLockError};

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            match self.0.try_lock() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(std::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::sync::RwLock::new(value))
        }
        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }
        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

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

/// How often a test does something: `full` times, or few where each instruction is interpreted.
#[cfg(all(test, not(loom)))]
pub(crate) const fn rounds(full: u64, interpreted: u64) -> u64 {
    if cfg!(miri) { interpreted } else { full }
}

#[cfg(all(test, loom))]
mod models;
