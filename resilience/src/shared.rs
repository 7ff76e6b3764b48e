//! Handles by which permits keep their core alive.
//!
//! A permit must own its core: it travels with a future that outlives everything. But the count of
//! references is one word, which every thread that makes and drops a permit writes to. So a core
//! has a few handles, on lines of their own, and a permit clones that of its thread's lane. How
//! often the handles are cloned is also how many permits are out, and costs nothing to know.

use std::{ops::Deref, sync::Arc};

use crate::lanes::{Lane, Line};

/// Handles of one core; a power of two.
const HANDLES: usize = 4;

#[derive(Debug)]
struct Owner<C> {
    core: Arc<C>,
    handles: [Arc<Line<Arc<C>>>; HANDLES],
}

impl<C> Owner<C> {
    fn new(core: C) -> Arc<Self> {
        let core = Arc::new(core);
        let handles = std::array::from_fn(|_| Arc::new(Line(Arc::clone(&core))));
        Arc::new(Self { core, handles })
    }

    #[inline]
    fn lend(&self, lane: Lane) -> Lent<C> {
        Lent(Arc::clone(&self.handles[lane.index() % HANDLES]))
    }
}

/// A core that is lent to permits. Clones share it.
#[derive(Debug)]
pub(crate) struct Shared<C>(Arc<Owner<C>>);

impl<C> Shared<C> {
    pub(crate) fn new(core: C) -> Self {
        Self(Owner::new(core))
    }

    /// The core for one permit, on behalf of the thread in `lane`.
    #[inline]
    pub(crate) fn lend(&self, lane: Lane) -> Lent<C> {
        self.0.lend(lane)
    }

    /// How often it is lent.
    pub(crate) fn lent(&self) -> u64 {
        let out = |handle: &Arc<Line<Arc<C>>>| Arc::strong_count(handle) as u64 - 1;
        self.0.handles.iter().map(out).sum()
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<C> Clone for Shared<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> Deref for Shared<C> {
    type Target = C;

    #[inline]
    fn deref(&self) -> &C {
        &self.0.core
    }
}

/// A core, lent to a permit.
#[derive(Debug)]
pub(crate) struct Lent<C>(Arc<Line<Arc<C>>>);

impl<C> Clone for Lent<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> Deref for Lent<C> {
    type Target = C;

    #[inline]
    fn deref(&self) -> &C {
        &self.0.0
    }
}

/// What is lent, and replaced as a whole: who has borrowed keeps what there was.
#[cfg(feature = "tower")]
#[derive(Debug)]
pub(crate) struct Replaced<C>(arc_swap::ArcSwap<Owner<C>>);

#[cfg(feature = "tower")]
impl<C> Replaced<C> {
    pub(crate) fn new(first: C) -> Self {
        Self(arc_swap::ArcSwap::new(Owner::new(first)))
    }

    /// What there is at this moment.
    #[inline]
    pub(crate) fn lend(&self) -> Lent<C> {
        self.0.load().lend(Lane::here())
    }

    pub(crate) fn replace(&self, by: C) {
        self.0.store(Owner::new(by));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_counted_and_outlives_its_owner() {
        let shared = Shared::new(7);
        let lent = [shared.lend(Lane::here()), shared.lend(Lane::here())];
        assert_eq!((shared.lent(), shared.is_same(&shared.clone())), (2, true));
        let [one, other] = lent;
        drop(one);
        assert_eq!(shared.lent(), 1);
        drop(shared);
        assert_eq!(*other, 7);
    }
    #[cfg(feature = "tower")]
    #[test]
    fn who_has_borrowed_keeps_what_there_was() {
        let all = Replaced::new(1);
        let before = all.lend();
        all.replace(2);
        assert_eq!((*before, *all.lend()), (1, 2));
    }
}
