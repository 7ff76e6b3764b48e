//! Both sides of a cut go on, and agree again once it is gone.

use std::{sync::atomic::Ordering, time::Duration};

use selvedge_registry::{
    InstanceStatus,
    wire::{MemberInfo, MemberState},
};
use selvedge_registry_server::{catalogue::Catalogue, server::Edit};

use super::{Cluster, Fleet, LEASE, Removals, ids, key, short_hops, text, texts, until};

/// C2, with leases that run out three times meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_serve_and_register_and_the_union_is_what_remains() {
    let cluster = Cluster::start(4, |_| {}).await;
    let fleet = Fleet::start(&cluster, 200);
    cluster.converges_to(&fleet.alive()).await;
    let removals = Removals::of(cluster.shared(3));
    fleet.restrict(0..100, &[0, 1]);
    fleet.restrict(100..200, &[2, 3]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.partition(&[0, 1], &[2, 3]);
    fleet.join(500, &[0, 1]);
    fleet.join(501, &[2, 3]);
    // One of each side's own, and one that the other side keeps renewing for a moment.
    for (server, n) in [(0, 7), (2, 107)] {
        fleet.crash(n);
        let (service, id) = key(n);
        cluster
            .shared(server)
            .deregister(&service, &id)
            .expect("known");
    }
    tokio::time::sleep(LEASE * 3).await;
    let (left, right) = (ids(cluster.shared(0)), ids(cluster.shared(3)));
    assert!(left.contains(&text(500)) && !left.contains(&text(501)));
    assert!(right.contains(&text(501)) && !right.contains(&text(500)));
    for n in (0..200).filter(|n| *n != 7 && *n != 107) {
        assert!(left.contains(&text(n)) && right.contains(&text(n)), "{n}");
    }
    assert_eq!(cluster.evictions(), 0, "silence across a cut is no death");
    // Each lost two of its three peers, and thinks first of itself.
    let held = cluster.shared(0).self_preservation();
    let why = "this server hears too few of its peers to judge anybody";
    assert_eq!((held.active, &*held.reason), (true, why));
    assert!(cluster.shared(0).staleness().is_some(), "and says so");
    let healed = tokio::time::Instant::now();
    cluster.heal();
    cluster.converges_to(&fleet.alive()).await;
    assert!(
        healed.elapsed() < Duration::from_secs(8),
        "{:?}",
        healed.elapsed()
    );
    assert!(
        !fleet.alive().contains(&text(7)),
        "what was deleted stays so"
    );
    tokio::time::sleep(LEASE).await;
    cluster.converges_to(&fleet.alive()).await;
    let mut gone = removals.seen();
    gone.sort();
    assert_eq!(
        gone,
        [text(7), text(107)],
        "only what was deleted was seen to go"
    );
}

/// C3: words and streams from the first to the second are lost, and only those. Nobody is declared
/// dead, and what the first accepts comes to the second by way of the third.
#[tokio::test(flavor = "multi_thread")]
async fn one_direction_of_one_link_is_lost_and_nobody_dies_of_it() {
    let cluster = Cluster::start(3, |_| {}).await;
    let fleet = Fleet::start(&cluster, 90);
    cluster.converges_to(&fleet.alive()).await;
    let removals = [0, 1, 2].map(|i| Removals::of(cluster.shared(i)));
    cluster.lose(0, 1);
    for n in 90..120 {
        fleet.join(n, &[0]);
    }
    fleet.crash(30);
    let (service, id) = key(30);
    cluster.shared(0).deregister(&service, &id).expect("known");
    // One that says goodbye, and one that dies.
    fleet.crash(31);
    tokio::time::sleep(LEASE * 2).await;
    cluster.converges_to(&fleet.alive()).await;
    for i in 0..3 {
        let members = cluster.shared(i).member_list().members;
        let serving = |m: &MemberInfo| m.state == MemberState::Serving;
        assert!(
            members.len() == 3 && members.iter().all(serving),
            "{members:?}"
        );
    }
    assert_eq!(cluster.evictions(), 1);
    let relayed = &cluster.shared(1).counters.relayed;
    assert!(relayed.load(Ordering::Relaxed) > 0, "by way of the third");
    cluster.heal();
    cluster.converges_to(&fleet.alive()).await;
    for watcher in &removals {
        let mut seen = watcher.seen();
        seen.sort();
        assert_eq!(seen, [text(30), text(31)]);
    }
}

/// An eviction by one side against a lease that is good on the other: whoever has heard it is
/// right. A cancellation is the instance's own word, and stands.
#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_is_taken_back_and_a_goodbye_is_not() {
    // Nothing holds evictions up on the larger side: it does evict.
    let cluster = Cluster::start(3, |config| config.leases.min_leases = 1_000).await;
    let fleet = Fleet::start(&cluster, 20);
    cluster.converges_to(&fleet.alive()).await;
    fleet.restrict(0..20, &[0]);
    until("all are the first's", || cluster.shared(0).leases() == 20).await;
    cluster.converges_to(&fleet.alive()).await;
    let removals = Removals::of(cluster.shared(0));
    cluster.partition(&[0], &[1, 2]);
    let (service, id) = key(5);
    cluster.shared(1).deregister(&service, &id).expect("known");
    until("the other side has evicted them all", || {
        ids(cluster.shared(1)).is_empty()
    })
    .await;
    assert_eq!(ids(cluster.shared(0)).len(), 20, "the first knows better");
    fleet.crash(5);
    cluster.heal();
    cluster.converges_to(&fleet.alive()).await;
    assert_eq!(removals.seen(), [text(5)], "no watcher saw another go");
    assert!(
        cluster
            .shared(0)
            .counters
            .reasserted
            .load(Ordering::Relaxed)
            >= 19
    );
}

/// Instances whose renewals come to another server than keeps their leases, while what that server
/// passes on is lost: the keeper asks before it ends them, and nobody sees them go. Who is heard
/// nowhere goes in time.
#[tokio::test(start_paused = true)]
async fn a_lease_that_was_renewed_elsewhere_does_not_end() {
    short_hops();
    let cluster = Cluster::start(3, |config| config.leases.min_leases = 1_000).await;
    let fleet = Fleet::start(&cluster, 40);
    fleet.restrict(0..40, &[0]);
    until("all are the first's", || cluster.shared(0).leases() == 40).await;
    cluster.converges_to(&fleet.alive()).await;
    let removals = [0, 1, 2].map(|i| Removals::of(cluster.shared(i)));
    // What is under way on these connections stays so until it is given up, for three seconds.
    cluster.cut_streams(&[1], &[0]);
    fleet.restrict(0..40, &[1]);
    for n in 0..5 {
        fleet.crash(n);
    }
    tokio::time::sleep(LEASE / 20 * 17).await;
    assert_eq!(cluster.shared(0).leases(), 40, "still the first's");
    cluster.heal();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.evictions(), 5, "the dead, and in time");
    until("and then they are the second's", || {
        cluster.shared(1).leases() == 35 && cluster.shared(0).leases() == 0
    })
    .await;
    cluster.converges_to(&fleet.alive()).await;
    let mut gone: Vec<_> = texts(0..5).into_iter().collect();
    gone.sort();
    for watcher in &removals {
        let mut seen = watcher.seen();
        seen.sort();
        assert_eq!(seen, gone);
    }
}

/// A server that has not heard yet that a lease is another's goes on taking renewals. What it knows
/// then outlives the word that comes late: the new keeper asks, and nobody sees the instances go.
/// Who is dead goes in time.
#[tokio::test(start_paused = true)]
async fn a_lease_that_moved_unheard_is_not_ended_by_the_word_of_it() {
    short_hops();
    let lease = Duration::from_secs(10);
    let cluster = Cluster::start(2, |config| config.leases.min_leases = 1_000).await;
    let fleet = Fleet::start_with(&cluster, 20, lease, lease / 10);
    fleet.restrict(0..20, &[0]);
    until("all are the first's", || cluster.shared(0).leases() == 20).await;
    cluster.converges_to(&fleet.alive()).await;
    let removals = [0, 1].map(|i| Removals::of(cluster.shared(i)));
    // The second cannot pass on what comes to it, and takes the leases over.
    cluster.cut_streams(&[0], &[1]);
    fleet.restrict(0..20, &[1]);
    until("the second keeps them", || cluster.shared(1).leases() == 20).await;
    // The first does not know.
    fleet.restrict(0..20, &[0]);
    tokio::time::sleep(lease / 10 * 7).await;
    assert_eq!(cluster.shared(0).leases(), 20, "as far as it knows");
    // From now on nobody is heard, until the lease is over by what the second knows.
    fleet.unheard.store(1_000, Ordering::Relaxed);
    fleet.crash(7);
    let silent = tokio::time::Instant::now();
    cluster.heal();
    until("the first knows", || cluster.shared(0).leases() == 0).await;
    tokio::time::sleep_until(silent + lease / 10 * 8).await;
    assert_eq!(cluster.evictions(), 0, "heard by the first");
    fleet.unheard.store(0, Ordering::Relaxed);
    tokio::time::sleep_until(silent + lease + Duration::from_secs(1)).await;
    assert_eq!(cluster.evictions(), 1, "the dead one, and in time");
    cluster.converges_to(&fleet.alive()).await;
    for watcher in &removals {
        assert_eq!(watcher.seen(), [text(7)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_jump_an_hour_either_way_lose_and_revive_nothing() {
    let cluster = Cluster::start(3, |_| {}).await;
    let fleet = Fleet::start(&cluster, 60);
    cluster.converges_to(&fleet.alive()).await;
    let hour = Duration::from_secs(3600);
    cluster.wall(0, hour, true);
    cluster.wall(1, hour, false);
    // Written under the clock that is ahead, changed and ended under those that are not.
    for n in 60..90 {
        fleet.join(n, &[0]);
    }
    until("registered", || {
        (1..3).all(|i| cluster.shared(i).read(Catalogue::len) == 90)
    })
    .await;
    for n in 60..70 {
        fleet.crash(n);
        let (service, id) = key(n);
        cluster.shared(1).deregister(&service, &id).expect("known");
    }
    for n in 70..80 {
        let (service, id) = key(n);
        let down = Some(InstanceStatus::OutOfService);
        cluster
            .shared(2)
            .edit_here(&service, &id, Edit::Override(down))
            .expect("known");
    }
    cluster.converges_to(&fleet.alive()).await;
    cluster.wall(0, Duration::ZERO, true);
    cluster.wall(1, hour, true);
    tokio::time::sleep(LEASE * 2).await;
    cluster.converges_to(&fleet.alive()).await;
    assert_eq!(cluster.evictions(), 0);
    for i in 0..3 {
        for n in 70..80 {
            let (service, id) = key(n);
            let instance = cluster
                .shared(i)
                .read(|c| c.live(&service, &id))
                .expect("there");
            assert_eq!(instance.status, InstanceStatus::OutOfService, "{n} at {i}");
        }
    }
    fleet.crash(0);
    cluster.converges_to(&texts((1..60).chain(70..90))).await;
}
