//! Servers that stop and start: one after the other, and all at once.

use std::{collections::BTreeSet, time::Duration};

use selvedge_registry::InstanceStatus;
use selvedge_registry_server::{catalogue::Catalogue, server::Edit};

use super::{Cluster, Fleet, LEASE, Removals, ids, key, short_hops, text, until};

/// C4.
#[tokio::test(flavor = "multi_thread")]
async fn all_are_killed_and_serve_the_same_again() {
    let mut cluster = Cluster::start_on_disk(3, |_| {}).await;
    let fleet = Fleet::start(&cluster, 120);
    let (service, id) = key(11);
    let out = Some(InstanceStatus::OutOfService);
    cluster.converges_to(&fleet.alive()).await;
    cluster
        .shared(1)
        .edit_here(&service, &id, Edit::Override(out))
        .expect("known");
    let policy = selvedge_resilience::TrafficPolicy::default();
    cluster.shared(2).put_policy(service.clone(), policy, "ops");
    cluster.converges_to(&fleet.alive()).await;
    let before = fleet.alive();
    // Two periods of saving.
    tokio::time::sleep(Duration::from_millis(900)).await;
    for i in 0..3 {
        cluster.kill(i);
    }
    // Ten of them do not live to see it.
    for n in 100..110 {
        fleet.crash(n);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let killed = tokio::time::Instant::now();
    for i in 0..3 {
        cluster.add(i).await;
    }
    let removals = Removals::of(cluster.shared(0));
    until("all serve", || {
        (0..3).all(|i| cluster.shared(i).is_serving())
    })
    .await;
    assert!(
        killed.elapsed() < Duration::from_secs(3),
        "{:?}",
        killed.elapsed()
    );
    for i in 0..3 {
        assert_eq!(
            ids(cluster.shared(i)),
            before,
            "server {i} serves what it knew"
        );
        let shared = cluster.shared(i);
        let instance = shared.read(|c| c.live(&service, &id)).expect("there");
        assert_eq!(
            instance.status,
            InstanceStatus::OutOfService,
            "overrides too"
        );
        assert!(
            shared.read(|c| c.policy(&service).is_some()),
            "and policies"
        );
    }
    // The grace is three seconds: nobody goes before.
    while killed.elapsed() < Duration::from_millis(2_500) {
        assert_eq!(removals.seen(), [""; 0]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.converges_to(&fleet.alive()).await;
    assert_eq!(*fleet.lost.lock(), [0; 0], "nobody had to register again");
}

/// C7.
#[tokio::test(flavor = "multi_thread")]
async fn five_restart_one_after_the_other_and_no_renewal_is_refused() {
    let mut cluster = Cluster::start_on_disk(5, |_| {}).await;
    let fleet = Fleet::start(&cluster, 200);
    cluster.converges_to(&fleet.alive()).await;
    let mut shortest = usize::MAX;
    for i in 0..5 {
        cluster.stop(i).await;
        cluster.add(i).await;
        cluster.all_serve().await;
        for server in cluster.servers.values() {
            shortest = shortest.min(server.shared().read(Catalogue::len));
        }
        assert_eq!(cluster.evictions(), 0, "after {i}");
    }
    assert_eq!(shortest, 200, "never a shorter list");
    assert_eq!(*fleet.lost.lock(), [0; 0], "every renewal was taken");
    cluster.converges_to(&fleet.alive()).await;
    // And the dead are still found.
    fleet.crash(17);
    cluster.converges_to(&fleet.alive()).await;
    assert_eq!(cluster.evictions(), 1);
}

/// A server in a crash loop, and a rolling restart that does not end: in simulated time, each life as
/// long as it happens to be, so that many end before the server serves.
#[tokio::test(start_paused = true)]
async fn a_thousand_restarts_of_one_server_lose_and_revive_nothing() {
    short_hops();
    let mut cluster = Cluster::start(2, |config| {
        config.gossip.interval = "500ms".parse().expect("unit");
    })
    .await;
    let fleet = Fleet::start(&cluster, 60);
    cluster.converges_to(&fleet.alive()).await;
    let removals = [0, 1].map(|i| Removals::of(cluster.shared(i)));
    let mut gone = Vec::new();
    let mut served = 0;
    for n in 0..1_000 {
        cluster.add(2).await;
        let life = Duration::from_millis(fastrand::u64(..3_000));
        tokio::time::sleep(life).await;
        served += usize::from(cluster.shared(2).is_serving());
        // One goes and one comes, where it is not answered and forgotten.
        if n % 10 == 0 {
            let (service, id) = key(n / 10);
            fleet.crash(n / 10);
            let there = cluster.shared(n / 10 % 2);
            there.deregister(&service, &id).expect("known");
            gone.push(text(n / 10));
            fleet.join(60 + n / 10, &[0, 1]);
        }
        if n % 2 == 0 {
            cluster.kill(2);
        } else {
            cluster.stop(2).await;
        }
        // Its socket is closed by a task.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if n % 100 == 99 {
            cluster.converges_to(&fleet.alive()).await;
        }
    }
    assert!(
        (200..1_000).contains(&served),
        "{served} lives came to serve"
    );
    cluster.add(2).await;
    cluster.all_serve().await;
    cluster.converges_to(&fleet.alive()).await;
    gone.sort();
    for watcher in &removals {
        let mut seen = watcher.seen();
        seen.sort();
        assert_eq!(seen, gone, "only what was deleted was seen to go");
    }
    assert_eq!(*fleet.lost.lock(), [0; 0], "nobody had to register again");
}

/// One comes back with a file that is older than what the others have forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_long_ago_does_not_come_back_from_a_disk() {
    let mut cluster = Cluster::start_on_disk(3, |_| {}).await;
    let fleet = Fleet::start(&cluster, 30);
    cluster.converges_to(&fleet.alive()).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let dir = cluster.dir(2).expect("on disk");
    let file = dir.join("catalogue.snapshot");
    let old = std::fs::read(&file).expect("saved");
    let (service, id) = key(4);
    fleet.crash(4);
    cluster.shared(0).deregister(&service, &id).expect("known");
    cluster.converges_to(&fleet.alive()).await;
    cluster.kill(2);
    for name in ["catalogue.snapshot", "catalogue.previous"] {
        std::fs::write(dir.join(name), &old).expect("writes");
    }
    // Two hours later.
    cluster.wall(2, Duration::from_secs(7_200), true);
    cluster.add(2).await;
    cluster.all_serve().await;
    cluster.converges_to(&fleet.alive()).await;
    assert!(!ids(cluster.shared(2)).contains(&text(4)));
}

/// The first server's disk is full, and stays so until two writes have failed.
async fn fill_the_disk(cluster: &Cluster) {
    let dir = cluster.dir(0).expect("on disk");
    let failures = &cluster.shared(0).counters.save_failures;
    until("a write that fails", || {
        // Again and again: it is taken away after each failure.
        let _is_there_already = std::os::unix::fs::symlink("/dev/full", dir.join("catalogue.tmp"));
        failures.load(std::sync::atomic::Ordering::Relaxed) >= 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_at_one_of_three_wrongs_nobody() {
    let cluster = Cluster::start_on_disk(3, |_| {}).await;
    let fleet = Fleet::start(&cluster, 60);
    cluster.converges_to(&fleet.alive()).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    fill_the_disk(&cluster).await;
    fleet.join(60, &[0]);
    fleet.crash(7);
    cluster.converges_to(&fleet.alive()).await;
    assert_eq!(cluster.evictions(), 1, "the dead one");
    assert_eq!(*fleet.lost.lock(), [0; 0], "every renewal was taken");
}

/// A disk that is full, or a file that is damaged, stops nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_and_a_damaged_file_are_survived() {
    let mut cluster = Cluster::start_on_disk(1, |_| {}).await;
    let fleet = Fleet::start(&cluster, 20);
    tokio::time::sleep(Duration::from_millis(700)).await;
    let dir = cluster.dir(0).expect("on disk");
    fill_the_disk(&cluster).await;
    cluster.converges_to(&fleet.alive()).await;
    let served: BTreeSet<_> = fleet.alive();
    cluster.kill(0);
    let path = dir.join("catalogue.snapshot");
    let mut bytes = std::fs::read(&path).expect("the last good one");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    let _may_be_left = std::fs::remove_file(dir.join("catalogue.tmp"));
    cluster.add(0).await;
    until("it serves", || cluster.shared(0).is_serving()).await;
    assert_eq!(ids(cluster.shared(0)), served, "from the previous one");
    tokio::time::sleep(LEASE).await;
    cluster.converges_to(&fleet.alive()).await;
}
