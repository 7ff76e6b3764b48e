//! A server that keeps leases dies, leaves, or is too far behind.

use std::{sync::Arc, time::Duration};

use selvedge_registry_server::catalogue::Catalogue;

use super::{BEAT, Cluster, Fleet, LEASE, Removals, key, text, texts, until};
use crate::support::name;

/// C1.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_costs_nobody_its_place() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let fleet = Fleet::start(&cluster, 1_000);
    cluster.converges_to(&fleet.alive()).await;
    assert!(cluster.shared(0).leases() > 200, "a fair share");
    let removals = [1, 2].map(|i| Removals::of(cluster.shared(i)));
    cluster.kill(0);
    tokio::time::sleep(LEASE * 2 + Duration::from_secs(1)).await;
    assert_eq!(cluster.evictions(), 0);
    for watcher in &removals {
        assert_eq!(watcher.seen(), [""; 0]);
    }
    assert_eq!(*fleet.lost.lock(), [0; 0], "nobody had to register again");
    // On its way from one to the other a lease may have two for a moment.
    until("every lease has a keeper, and one only", || {
        let kept = [1, 2].map(|i| cluster.shared(i).leases());
        kept.iter().sum::<usize>() == 1_000
    })
    .await;
    cluster.converges_to(&fleet.alive()).await;
    // The dead among them are found by whoever looks after them.
    for n in 0..20 {
        fleet.crash(n);
    }
    cluster.converges_to(&fleet.alive()).await;
    assert_eq!(cluster.evictions(), 20);
}

/// Those that die together with their server are given one lease to turn up elsewhere, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn who_dies_with_its_server_goes_too() {
    let mut cluster = Cluster::start(3, |config| config.leases.min_leases = 1_000).await;
    let fleet = Fleet::start(&cluster, 90);
    cluster.converges_to(&fleet.alive()).await;
    let dead: Vec<usize> = (0..90).step_by(9).collect();
    for n in &dead {
        fleet.crash(*n);
    }
    cluster.kill(0);
    cluster.converges_to(&fleet.alive()).await;
    assert_eq!(cluster.evictions(), dead.len() as u64);
}

/// C8: streams to one server are cut for longer than the log reaches back.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_the_log_has_outrun_fetches_what_it_missed() {
    let cluster = Cluster::start(3, |config| config.replication.log_entries = 64).await;
    let fleet = Fleet::start(&cluster, 60);
    cluster.converges_to(&fleet.alive()).await;
    cluster.cut_streams(&[2], &[0, 1]);
    for n in 60..500 {
        fleet.join(n, &[0, 1]);
    }
    for n in 0..20 {
        fleet.restrict([n], &[0, 1]);
    }
    let (service, id) = key(3);
    fleet.crash(3);
    cluster.shared(0).deregister(&service, &id).expect("known");
    until("accepted", || {
        cluster.shared(0).read(Catalogue::len) == fleet.alive().len()
    })
    .await;
    let before = cluster
        .shared(2)
        .counters
        .snapshots
        .load(std::sync::atomic::Ordering::Relaxed);
    assert!(cluster.shared(0).read_log(|log| log.size().0) <= 64);
    cluster.heal();
    cluster.converges_to(&fleet.alive()).await;
    let after = cluster
        .shared(2)
        .counters
        .snapshots
        .load(std::sync::atomic::Ordering::Relaxed);
    assert!(after > before, "a snapshot closed the gap");
    assert!(!super::ids(cluster.shared(2)).contains(&text(3)));
}

/// A balancer in front spreads each instance's renewals over all servers: that must not move a
/// lease with every renewal, nor lose one.
#[tokio::test(flavor = "multi_thread")]
async fn renewals_that_come_everywhere_move_nothing() {
    let cluster = Cluster::start(3, |_| {}).await;
    let request = |n| super::request(n);
    for n in 0..30 {
        let (service, id) = key(n);
        let shared = cluster.shared(n % 3);
        let origin = selvedge_registry_server::server::Origin::v1();
        shared
            .register(service, id, request(n), origin)
            .expect("registers");
    }
    cluster.converges_to(&texts(0..30)).await;
    let hash = cluster.shared(0).read(Catalogue::hash);
    let rounds = (LEASE * 2).as_millis() / BEAT.as_millis();
    for round in 0..usize::try_from(rounds).expect("few") {
        for n in 0..30 {
            let (service, id) = key(n);
            let shared = cluster.shared((n + round) % 3);
            shared.renew(&service, &id, None).expect("known everywhere");
        }
        tokio::time::sleep(BEAT).await;
    }
    assert_eq!(cluster.evictions(), 0);
    for i in 0..3 {
        assert_eq!(
            cluster.shared(i).read(Catalogue::hash),
            hash,
            "no lease has moved"
        );
    }
    // From now on the instances come to one server: the leases follow.
    for _ in 0..3 {
        for n in 0..30 {
            let (service, id) = key(n);
            cluster.shared(1).renew(&service, &id, None).expect("known");
        }
        tokio::time::sleep(BEAT).await;
    }
    until("all leases have moved", || cluster.shared(1).leases() == 30).await;
    until("and the others know", || {
        cluster.shared(0).leases() + cluster.shared(2).leases() == 0
    })
    .await;
    let counter = cluster.shared(0).read(|c| c.revision().counter);
    assert_eq!(counter, 30, "callers have seen nothing of it");
}

/// A lease that was handed over has the time that remained of it, and not a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_leaves_hands_over_what_remains() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let fleet = Fleet::start(&cluster, 60);
    cluster.converges_to(&fleet.alive()).await;
    let removals = Removals::of(cluster.shared(1));
    let silent = Arc::clone(&cluster.reachable.lock()[&0]);
    let (service, id) = key(999);
    let origin = selvedge_registry_server::server::Origin::v1();
    silent
        .register(service, id, super::request(999), origin)
        .expect("registers");
    let registered = tokio::time::Instant::now();
    cluster.stop(0).await;
    assert_eq!(silent.leases(), 0, "nothing is left behind");
    until("the silent one is gone", || removals.seen() == [text(999)]).await;
    let lived = registered.elapsed();
    let most = LEASE + Duration::from_secs(1);
    assert!((LEASE..most).contains(&lived), "{lived:?}");
    cluster.converges_to(&fleet.alive()).await;
    assert_eq!(cluster.evictions(), 1);
    assert_eq!(*fleet.lost.lock(), [0; 0]);
}

/// A zone that falls silent is not taken out for it, in the other one evictions go on; and when it
/// does not come back, evictions do not stay frozen for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_zone_is_kept_and_in_the_end_let_go() {
    let cluster = Cluster::start(1, |config| {
        config.leases.rebase_after = "3s".parse().expect("unit");
    })
    .await;
    let shared = cluster.shared(0);
    let fleet = Fleet::start(&cluster, 80);
    cluster.converges_to(&fleet.alive()).await;
    let before = fleet.alive();
    let silent: Vec<usize> = (0..20).map(|n| n * 2).collect();
    for n in &silent {
        fleet.crash(*n);
    }
    fleet.crash(1);
    let start = tokio::time::Instant::now();
    until("the single one is gone", || {
        !super::ids(shared).contains(&text(1))
    })
    .await;
    assert!(start.elapsed() < LEASE + Duration::from_secs(1), "in time");
    tokio::time::sleep(LEASE).await;
    let kept: std::collections::BTreeSet<_> =
        before.into_iter().filter(|id| *id != text(1)).collect();
    assert_eq!(super::ids(shared), kept, "the silent zone is whole");
    let preservation = shared.self_preservation();
    let why = "20 of 40 leases of zone even are late, more than 15 %";
    assert_eq!(preservation.reason, why);
    assert!(preservation.since.is_some());
    cluster.converges_to(&fleet.alive()).await;
    until("it has ended", || !shared.self_preservation().active).await;
    // Fifteen per cent of the zone in each pass of a second: 6, 5, 4, 3, 2.
    let took = start.elapsed();
    let least = LEASE + Duration::from_secs(3 + 3);
    assert!(took >= least, "no landslide: {took:?}");
}

/// A zone stays frozen as one after the other falls silent: those that have been silent for so long
/// that nobody expects them any more go all the same, but for the last instance of a service.
#[tokio::test(start_paused = true)]
async fn of_a_frozen_zone_the_long_silent_go_and_the_last_of_a_service_stays() {
    let cluster = Cluster::start(1, |config| {
        config.leases.rebase_after = "3s".parse().expect("unit");
    })
    .await;
    let shared = cluster.shared(0);
    let fleet = Fleet::start(&cluster, 80);
    let (service, id) = (name("only"), key(0).1);
    let origin = selvedge_registry_server::server::Origin::v1();
    let only = shared.register(service.clone(), id.clone(), super::request(0), origin);
    only.expect("registers");
    until("all are there", || shared.leases() == 81).await;
    let start = tokio::time::Instant::now();
    let wave = |from: usize| (from..from + 10).map(|n| n * 2);
    wave(0).for_each(|n| fleet.crash(n));
    tokio::time::sleep_until(start + Duration::from_secs(3)).await;
    wave(10).for_each(|n| fleet.crash(n));
    // The first are written off at five seconds, the second at eight.
    tokio::time::sleep_until(start + Duration::from_secs(7)).await;
    let there = super::ids(shared);
    let of = |from| wave(from).filter(|n| there.contains(&text(*n))).count();
    assert_eq!((of(0), of(10)), (0, 10));
    let preservation = shared.self_preservation();
    let frozen = preservation.zones.iter().filter(|zone| zone.active);
    assert_eq!(frozen.map(|zone| &*zone.zone).collect::<Vec<_>>(), ["even"]);
    let is_there = || shared.read(|c| c.live(&service, &id)).is_some();
    assert!(is_there(), "the last of its service");
    until("it goes with the second", || !is_there()).await;
    cluster.converges_to(&fleet.alive()).await;
}
