//! A network that loses a quarter of everything, for ten minutes.

use std::{sync::atomic::Ordering, time::Duration};

use selvedge_registry_server::gossip::Event;

use super::{Cluster, Fleet, Removals, short_hops, texts};

/// As it is unless somebody says otherwise.
const LEASE: Duration = Duration::from_secs(10);

/// C5, in simulated time: gossip and leases as they come configured. Renewals are lost too, and go
/// to the next server then, as a client library does it.
#[tokio::test(start_paused = true)]
async fn a_quarter_of_everything_lost_for_ten_minutes_evicts_nobody() {
    short_hops();
    let cluster = Cluster::start(4, |config| {
        config.gossip.interval = "500ms".parse().expect("unit");
        config.replication.compare_every = "10s".parse().expect("unit");
    })
    .await;
    let fleet = Fleet::start_with(&cluster, 120, LEASE, LEASE / 3);
    cluster.converges_to(&fleet.alive()).await;
    let removals = [0, 1, 2, 3].map(|i| Removals::of(cluster.shared(i)));
    cluster.lose_everywhere(0.25);
    fleet.unheard.store(250, Ordering::Relaxed);
    for minute in 1..=10 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(cluster.evictions(), 0, "minute {minute}");
        assert_eq!(*fleet.lost.lock(), [0; 0], "minute {minute}");
    }
    for (i, watcher) in removals.iter().enumerate() {
        assert_eq!(watcher.seen(), [""; 0], "at server {i}");
        let gossip = cluster.servers[&i].gossip();
        assert_eq!(gossip.event_counts().of(Event::Failed), 0, "by server {i}");
    }
    // Nothing that is wrong is only hidden by nobody being taken out any more.
    for n in 0..10 {
        fleet.crash(n);
    }
    fleet.join(500, &[]);
    tokio::time::sleep(LEASE + LEASE / 2).await;
    cluster.holds(&fleet.alive(), LEASE * 3).await;
    // Two servers may each have ended the same one, if neither knew that the other kept it.
    let mut dead: Vec<_> = texts(0..10).into_iter().collect();
    dead.sort();
    for (i, watcher) in removals.iter().enumerate() {
        let mut seen = watcher.seen();
        seen.sort();
        assert_eq!(seen, dead, "at server {i}");
    }
    cluster.lose_everywhere(0.0);
    cluster.converges_to(&fleet.alive()).await;
}
