//! The gossip over a network in memory that cuts, delays and loses, in simulated time.
//!
//! What is lost is decided by a seed; whom chitchat gossips with is its own dice.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use selvedge_registry::wire::MemberState;
use selvedge_registry_server::gossip::{
    Event, Gossip,
    testing::{Link, Net, addr, config, identity},
    traffic::Form,
};
use tokio::time::{Instant, advance, sleep};

const INTERVAL: Duration = Duration::from_millis(500);
const MINUTE: Duration = Duration::from_secs(60);

fn count(gossip: &Gossip, event: Event) -> u64 {
    gossip.event_counts().of(event)
}

/// How `gossip` sees everybody who takes part.
fn present(gossip: &Gossip) -> Vec<String> {
    let members = gossip.members();
    let members = members.borrow();
    let present = members.iter().filter(|(_, member)| member.is_present());
    present.map(|(node, _)| node.to_string()).collect()
}

fn state(gossip: &Gossip, node: &str) -> Option<MemberState> {
    let of = |members: &tokio::sync::watch::Receiver<BTreeMap<_, _>>| {
        let members: &BTreeMap<std::sync::Arc<str>, selvedge_registry_server::gossip::Member> =
            &members.borrow();
        members.get(node).map(|member| member.state)
    };
    of(&gossip.members()).or_else(|| of(&gossip.dead()))
}

/// Waits, in simulated time, until it is so; says how long it took.
async fn until(what: &str, limit: Duration, mut so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < limit, "not in {limit:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

/// `n` servers that know each other; the first two are everybody's seeds.
async fn cluster(net: &Net, n: u16) -> Vec<Gossip> {
    let mut all = Vec::new();
    for i in 0..n {
        all.push(net.join(i, 1, &[0, 1], INTERVAL).await.expect("joins"));
    }
    until("everybody knows everybody", MINUTE, || {
        all.iter()
            .all(|gossip| present(gossip).len() == usize::from(n))
    })
    .await;
    all
}

fn addrs(range: std::ops::Range<u16>) -> Vec<SocketAddr> {
    range.map(addr).collect()
}

#[tokio::test(start_paused = true)]
async fn a_killed_server_failed_and_one_that_said_goodbye_left() {
    let net = Net::new(1);
    let mut all = cluster(&net, 4).await;
    drop(all.pop());
    let took = until("the death is noticed by all", 2 * MINUTE, || {
        all.iter()
            .all(|g| state(g, "n3") == Some(MemberState::Dead))
    })
    .await;
    assert!(took <= Duration::from_secs(5), "{took:?}");
    let leaver = all.pop().expect("three are left");
    let start = Instant::now();
    leaver.leave().await;
    assert!(start.elapsed() <= INTERVAL * 4, "a goodbye is short");
    for gossip in &all {
        assert_eq!(state(gossip, "n2"), Some(MemberState::Left));
    }
    sleep(MINUTE).await;
    for gossip in &all {
        assert_eq!(
            (count(gossip, Event::Failed), count(gossip, Event::Left)),
            (1, 1)
        );
        assert_eq!(
            state(gossip, "n2"),
            Some(MemberState::Left),
            "left is not dead"
        );
        assert_eq!(present(gossip), ["n0", "n1"]);
    }
    sleep(16 * MINUTE).await;
    for gossip in &all {
        assert_eq!(
            (state(gossip, "n2"), state(gossip, "n3")),
            (None, None),
            "forgotten"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_left_comes_back_alive() {
    let net = Net::new(2);
    let mut all = cluster(&net, 3).await;
    all.pop().expect("three").leave().await;
    sleep(MINUTE).await;
    let back = net.join(2, 2, &[0], INTERVAL).await.expect("joins");
    until("alive everywhere", Duration::from_secs(5), || {
        let joining = Some(MemberState::Joining);
        all.iter().all(|gossip| state(gossip, "n2") == joining) && present(&back).len() == 3
    })
    .await;
    assert!(all.iter().all(|gossip| count(gossip, Event::Failed) == 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_a_server_finds_its_peers_without_a_seed_and_after_a_goodbye_it_does_not() {
    let dir = tempfile::tempdir().expect("dir");
    let net = Net::new(3);
    let all = cluster(&net, 2).await;
    // (what, its generation, seeds, whether it leaves at the end, who is seen after a minute)
    for (what, generation, seeds, rejoin, leaves, seen) in [
        ("by its seed", 1, &[0u16][..], false, false, 3),
        ("after a crash", 2, &[], false, true, 3),
        ("after a goodbye", 3, &[], false, false, 1),
        ("by its configuration", 4, &[0], true, true, 3),
        ("after a goodbye, as it was told to", 5, &[], true, true, 3),
    ] {
        let mut config = config(seeds, INTERVAL);
        config.rejoin_after_leave = rejoin;
        let identity = identity(9, generation);
        let gossip = Gossip::join_over(identity, addr(9), &net, &config, Some(dir.path()))
            .await
            .expect(what);
        sleep(20 * INTERVAL).await;
        assert_eq!(present(&gossip).len(), seen, "{what}");
        if leaves {
            gossip.leave().await;
        } else {
            drop(gossip);
        }
        // Long enough that the others no longer look for it either.
        sleep(20 * MINUTE).await;
    }
    drop(all);
}

#[tokio::test(start_paused = true)]
async fn one_way_loss_kills_nobody() {
    let net = Net::new(4);
    let all = cluster(&net, 4).await;
    for (from, to) in [(0, 1), (2, 0), (3, 1)] {
        net.link(addr(from), addr(to), Link::CUT);
    }
    sleep(10 * MINUTE).await;
    for gossip in &all {
        assert_eq!(present(gossip).len(), 4);
        assert_eq!(count(gossip, Event::Failed), 0);
        assert!(!*gossip.is_isolated().borrow());
    }
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_of_a_quarter_lost_kill_nobody() {
    for (seed, servers) in [(5, 3), (6, 5), (7, 10)] {
        let net = Net::new(seed);
        let all = cluster(&net, servers).await;
        net.all(Link {
            loss: 0.25,
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(30),
        });
        sleep(10 * MINUTE).await;
        for gossip in &all {
            assert_eq!(count(gossip, Event::Failed), 0, "{servers} servers");
            assert_eq!(present(gossip).len(), usize::from(servers));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_is_seen_from_both_sides_and_heals() {
    let net = Net::new(8);
    let all = cluster(&net, 5).await;
    net.partition(&addrs(0..2), &addrs(2..5));
    until("both sides miss the other", Duration::from_secs(10), || {
        all[..2].iter().all(|g| present(g) == ["n0", "n1"])
            && all[2..].iter().all(|g| present(g) == ["n2", "n3", "n4"])
    })
    .await;
    let isolated = || {
        all.iter()
            .map(|g| *g.is_isolated().borrow())
            .collect::<Vec<_>>()
    };
    let minority = [true, true, false, false, false];
    assert_eq!(
        isolated(),
        minority,
        "the side that lost most of its peers says so"
    );
    sleep(2 * MINUTE).await;
    assert_eq!(isolated(), minority);
    net.heal();
    let took = until("whole again", MINUTE, || {
        all.iter().all(|g| present(g).len() == 5)
    })
    .await;
    assert!(took <= Duration::from_secs(5), "{took:?}");
    until("and nobody is isolated", INTERVAL * 2, || {
        !isolated().contains(&true)
    })
    .await;
    for gossip in &all[..2] {
        assert_eq!(count(gossip, Event::Recovered), 3, "the same lives");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_loses_everybody_is_isolated_and_its_peers_are_not() {
    let net = Net::new(9);
    let all = cluster(&net, 3).await;
    net.partition(&addrs(2..3), &addrs(0..2));
    until("it notices", Duration::from_secs(10), || {
        *all[2].is_isolated().borrow()
    })
    .await;
    sleep(MINUTE).await;
    assert!(!*all[0].is_isolated().borrow() && !*all[1].is_isolated().borrow());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stood_still_for_a_minute_accuses_nobody() {
    let net = Net::new(10);
    let all = cluster(&net, 3).await;
    let mut health = all[0].local_health();
    health.mark_unchanged();
    advance(MINUTE).await;
    health.changed().await.expect("watched");
    let score = *health.borrow();
    assert!(
        score >= 6,
        "{score}: the worst, or one timely tick after it"
    );
    sleep(MINUTE).await;
    assert_eq!(*health.borrow(), 0, "and recovers");
    for gossip in &all {
        assert_eq!(count(gossip, Event::Failed), 0);
        assert!(!*gossip.is_isolated().borrow());
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_processes_with_one_name_the_lower_generation_learns_it() {
    let net = Net::new(11);
    let all = cluster(&net, 2).await;
    let mut twin = identity(0, 2);
    twin.http.set_port(1);
    let config = config(&[1], INTERVAL);
    let twin = Gossip::join_over(twin, addr(7), &net, &config, None);
    let twin = twin.await.expect("joins");
    until("the first learns it", Duration::from_secs(5), || {
        *all[0].superseded().borrow() == Some(2)
    })
    .await;
    sleep(MINUTE).await;
    assert_eq!(*twin.superseded().borrow(), None);
    for gossip in [&all[1], &twin] {
        let members = gossip.members();
        let members = members.borrow();
        assert_eq!((members.len(), members["n0"].generation), (2, 2));
    }
    drop(twin);
    // For as long as the later life is remembered, the earlier one stays down.
    sleep(5 * MINUTE).await;
    assert_eq!(*all[0].superseded().borrow(), Some(2));
    sleep(20 * MINUTE).await;
    assert_eq!(*all[0].superseded().borrow(), None);
    assert_eq!(present(&all[1]), ["n0", "n1"]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_no_failure_and_a_thousand_are_bounded() {
    const SLOW: Duration = Duration::from_secs(2);
    let net = Net::new(12);
    let mut all = Vec::new();
    for i in 0..2 {
        all.push(net.join(i, 1, &[0, 1], SLOW).await.expect("joins"));
    }
    let largest_digest = |net: &Net| {
        let sent = net.take_sent();
        let digests = sent.values().map(|sent| sent.largest_digest);
        digests.max().unwrap_or(0)
    };
    for generation in 1..=1_000 {
        let restarted = net.join(9, generation, &[0], SLOW).await.expect("joins");
        net.measure(generation > 990);
        sleep(3 * SLOW).await;
        drop(restarted);
        // The socket is closed by a task.
        sleep(Duration::from_millis(1)).await;
    }
    // Those of the last quarter of an hour, of which half is gossiped.
    let largest = largest_digest(&net);
    assert!(
        largest < 4_000,
        "{largest} bytes, of 65,400 that chitchat can bear"
    );
    let last = net.join(9, 1_001, &[0], SLOW).await.expect("joins");
    sleep(3 * SLOW).await;
    for gossip in &all {
        assert_eq!(present(gossip), ["n0", "n1", "n9"]);
        assert_eq!(count(gossip, Event::Failed), 0);
        assert!(count(gossip, Event::Restarted) >= 900);
    }
    net.measure(false);
    sleep(16 * MINUTE).await;
    net.take_sent();
    net.measure(true);
    sleep(SLOW * 2).await;
    let small = largest_digest(&net);
    assert!(
        (1..300).contains(&small),
        "{small} bytes: they are forgotten"
    );
    drop(last);
}

#[tokio::test(start_paused = true)]
async fn facts_travel_and_those_that_are_too_large_do_not() {
    let net = Net::new(13);
    let all = cluster(&net, 3).await;
    let announcer = all[0].announcer();
    announcer.publish("head", "1:2:3:4").await.expect("small");
    announcer
        .publish("buckets", &"b".repeat(700))
        .await
        .expect("small");
    announcer.publish("sp", "on").await.expect("small");
    announcer
        .publish("head", &"x".repeat(1_025))
        .await
        .expect_err("large");
    let many = async |n: usize| {
        for i in 0..n {
            announcer.publish(&format!("x/{i}"), "v").await?;
        }
        Ok::<_, selvedge_registry_server::gossip::FactRefused>(())
    };
    many(13).await.expect("twenty together");
    let error = many(14).await.expect_err("one too many").to_string();
    assert!(error.contains("at most 20 facts"), "{error}");
    let seen = |gossip: &Gossip| gossip.members().borrow().get("n0").cloned();
    until("everybody reads them", Duration::from_secs(5), || {
        all.iter().all(|gossip| {
            seen(gossip).is_some_and(|member| {
                member.head.as_deref() == Some("1:2:3:4")
                    && member.buckets.is_some_and(|buckets| buckets.len() == 700)
                    && member.facts.get("sp").is_some_and(|value| value == "on")
                    && member.facts.len() == 14
            })
        })
    })
    .await;
    announcer.withdraw("sp").await;
    until("it is gone", Duration::from_secs(5), || {
        all.iter()
            .all(|g| seen(g).is_some_and(|m| !m.facts.contains_key("sp")))
    })
    .await;
}

/// The short version of `examples/gossip_sim.rs`.
#[tokio::test(start_paused = true)]
async fn fifty_servers_notice_a_death_in_five_seconds_and_accuse_nobody() {
    let net = Net::new(14);
    let mut all = cluster(&net, 50).await;
    net.all(Link {
        loss: 0.1,
        delay: Duration::from_millis(1),
        jitter: Duration::from_millis(5),
    });
    sleep(MINUTE).await;
    for gossip in &all {
        assert_eq!(count(gossip, Event::Failed), 0);
    }
    drop(all.pop());
    let took = until("all know", MINUTE, || {
        all.iter()
            .all(|g| state(g, "n49") == Some(MemberState::Dead))
    })
    .await;
    assert!(took <= Duration::from_secs(5), "{took:?}");
}

/// Through the datagrams of a real network: joins, a loss of a tenth, a death, a goodbye, a restart.
#[tokio::test(start_paused = true)]
async fn digests_travel_short_and_everybody_still_knows_everybody() {
    let net = Net::new(15);
    net.sealed(true).expect("random");
    let mut all = cluster(&net, 20).await;
    net.all(Link {
        loss: 0.1,
        delay: Duration::from_millis(1),
        jitter: Duration::from_millis(5),
    });
    sleep(MINUTE).await;
    let forms = || Form::ALL.map(|form| net.digests(form));
    let [full, short, again] = forms();
    sleep(MINUTE).await;
    let after = forms();
    let (full, short, again) = (after[0] - full, after[1] - short, after[2] - again);
    assert!(
        short > 10_000 && full * 10 < short && again * 100 < short,
        "{full} in full, {again} of them again, {short} short"
    );
    let announcer = all[4].announcer();
    announcer.publish("head", "1:2:3:4").await.expect("small");
    until("everybody reads it", Duration::from_secs(5), || {
        all.iter().all(|gossip| {
            let members = gossip.members();
            let members = members.borrow();
            members["n4"].head.as_deref() == Some("1:2:3:4")
        })
    })
    .await;
    for gossip in &all {
        assert_eq!(count(gossip, Event::Failed), 0);
    }
    drop(all.pop());
    let took = until("the death is noticed", MINUTE, || {
        all.iter()
            .all(|g| state(g, "n19") == Some(MemberState::Dead))
    })
    .await;
    assert!(took <= Duration::from_secs(5), "{took:?}");
    all.pop().expect("nineteen").leave().await;
    for (n, generation) in [(19, 2), (18, 2)] {
        all.push(
            net.join(n, generation, &[0], INTERVAL)
                .await
                .expect("joins"),
        );
    }
    until("they are back", Duration::from_secs(5), || {
        all.iter().all(|gossip| present(gossip).len() == 20)
    })
    .await;
}
