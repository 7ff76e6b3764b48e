//! A server that has just come: what it does not know yet, it does not judge by.

use std::{collections::BTreeSet, time::Duration};

use selvedge_registry_server::server::{Origin, Shared};
use selvedge_resilience::config::Millis;

use super::{Cluster, LEASE, ids, key, request, short_hops, text, texts, until};

const SETTLE: Duration = Duration::from_secs(20);

async fn two_and_one_that_joins() -> Cluster {
    short_hops();
    let mut cluster = Cluster::start(2, |config| {
        config.leases.min_leases = 1_000;
        config.leases.settle = "20s".parse().expect("unit");
    })
    .await;
    // Of these two the second has just caught up as well.
    tokio::time::sleep(SETTLE).await;
    until("they judge", || {
        (0..2).all(|i| !cluster.shared(i).self_preservation().active)
    })
    .await;
    cluster.add(2).await;
    cluster
}

fn reason(shared: &Shared) -> String {
    shared.self_preservation().reason.clone()
}

/// Leases that it is handed, and that end before it has settled, end when it has: their instances
/// may have renewed where it has not heard of it. The other server, which has been there all the
/// time, ends its share in time.
#[tokio::test(start_paused = true)]
async fn who_has_just_caught_up_settles_before_it_judges() {
    let mut cluster = two_and_one_that_joins().await;
    cluster.all_serve().await;
    let served = tokio::time::Instant::now();
    let all = texts(0..40);
    for n in 0..40 {
        let (service, id) = key(n);
        let mut request = request(n);
        request.ttl = Millis(LEASE * 4);
        let shared = cluster.shared(0);
        let registered = shared.register(service, id, request, Origin::v1());
        registered.expect("registers");
    }
    cluster.converges_to(&all).await;
    cluster.stop(0).await;
    let (there, new) = (cluster.shared(1), cluster.shared(2));
    assert!(
        reason(new).contains("has just caught up"),
        "{}",
        reason(new)
    );
    until("handed over", || there.leases() + new.leases() == 40).await;
    let handed: usize = new.leases();
    assert!(handed > 5, "{handed} went to the new one");
    until("the other one ends its share", || there.leases() == 0).await;
    assert!(served.elapsed() < SETTLE / 2, "in time");
    let kept: BTreeSet<_> = ids(there);
    assert_eq!((kept.len(), new.leases()), (handed, handed));
    tokio::time::sleep_until(served + SETTLE / 20 * 19).await;
    assert_eq!(new.leases(), handed, "not before it has settled");
    until("then too", || new.leases() == 0).await;
    cluster.converges_to(&BTreeSet::new()).await;
}

/// It keeps time while it cannot fetch the catalogue: when it begins to serve, that was no
/// standstill of its own.
#[tokio::test(start_paused = true)]
async fn a_long_wait_for_the_catalogue_is_no_standstill() {
    let mut cluster = two_and_one_that_joins().await;
    let origin = Origin::v1();
    let (service, id) = key(1);
    let kept = cluster
        .shared(0)
        .register(service.clone(), id.clone(), request(1), origin);
    kept.expect("registers");
    cluster.kill(2);
    // Its socket is closed by a task.
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.cut_streams(&[2], &[0, 1]);
    cluster.add(2).await;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!cluster.shared(2).is_serving(), "it cannot know anything");
        let renewed = cluster.shared(0).renew(&service, &id, None);
        renewed.expect("known");
    }
    cluster.heal();
    let mut reasons = BTreeSet::new();
    until("it serves", || cluster.shared(2).is_serving()).await;
    for _ in 0..20 {
        let renewed = cluster.shared(0).renew(&service, &id, None);
        renewed.expect("known");
        reasons.insert(reason(cluster.shared(2)));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        reasons.iter().any(|why| why.contains("has just caught up")),
        "{reasons:?}"
    );
    assert!(
        !reasons.iter().any(|why| why.contains("stood still")),
        "{reasons:?}"
    );
    cluster.converges_to(&BTreeSet::from([text(1)])).await;
}
