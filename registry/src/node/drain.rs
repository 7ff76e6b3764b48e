//! What is still under way, so that a process can leave when it is done and not before.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

/// Counts what is under way. Clones share the count.
#[derive(Debug, Clone)]
pub struct Drain(Arc<watch::Sender<usize>>);

impl Default for Drain {
    fn default() -> Self {
        Self(Arc::new(watch::channel(0).0))
    }
}

impl Drain {
    /// Marks something as under way until the guard is dropped.
    pub fn enter(&self) -> DrainGuard {
        self.0.send_modify(|n| *n += 1);
        DrainGuard(self.clone())
    }

    /// How much is under way.
    pub fn in_flight(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until nothing is under way, at most `limit`; returns what was left then.
    /// Cancel-safe.
    pub async fn wait(&self, limit: Duration) -> usize {
        let mut count = self.0.subscribe();
        let _in_time = tokio::time::timeout(limit, count.wait_for(|n| *n == 0)).await;
        self.in_flight()
    }
}

/// Something under way; see [`Drain::enter`].
#[derive(Debug)]
#[must_use = "dropped at once, it marks nothing"]
pub struct DrainGuard(Drain);

impl Drop for DrainGuard {
    fn drop(&mut self) {
        self.0.0.send_modify(|n| *n -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_last_guard_or_the_limit() {
        let drain = Drain::default();
        assert_eq!(drain.wait(Duration::ZERO).await, 0);
        let guards = [drain.enter(), drain.enter()];
        assert_eq!(drain.wait(Duration::from_secs(1)).await, 2);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(guards);
        });
        let start = tokio::time::Instant::now();
        assert_eq!(drain.wait(Duration::from_secs(60)).await, 0);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }
}
