//! The gossip over real sockets: sealed, attacked, and its keys changed while it runs.

use std::{
    net::{SocketAddr, UdpSocket},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use selvedge_registry::node::{admin::Admin, config::Secret};
use selvedge_registry_server::{
    RegistryServer,
    config::GossipConfig,
    gossip::{
        Event, Gossip,
        keyring::{Key, KeyId, Keyring, generate},
        seal::Sealer,
        testing::identity,
        traffic::{DropReason, Traffic},
    },
};

use tokio::time::Instant;

use crate::support::{config, eventually};

const INTERVAL: &str = "50ms";

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn key() -> String {
    generate().expect("random")
}

fn id(key: &str) -> KeyId {
    Key::parse(key).expect("a key").id()
}

async fn join(n: u16, cluster: &str, seeds: &[SocketAddr], keys: &[&str]) -> Gossip {
    let mut identity = identity(n, 1);
    cluster.clone_into(&mut identity.cluster);
    let config = GossipConfig {
        seeds: seeds.iter().map(ToString::to_string).collect(),
        interval: INTERVAL.parse().expect("unit"),
        keys: keys.iter().map(|key| Secret::new(*key)).collect(),
        ..GossipConfig::default()
    };
    let socket = UdpSocket::bind(loopback()).expect("free");
    let gossip = Gossip::join(identity, socket, &config, None).await;
    gossip.expect("joins")
}

fn seen(gossip: &Gossip) -> usize {
    gossip.members().borrow().len()
}

async fn all_see(all: &[&Gossip], n: usize) {
    eventually("everybody knows everybody", || async {
        all.iter().all(|gossip| seen(gossip) == n)
    })
    .await;
}

/// Long enough for whatever would go wrong to show.
async fn rounds(n: u32) {
    tokio::time::sleep(Duration::from_millis(50) * n).await;
}

fn nobody_missed(all: &[&Gossip], what: &str) {
    for gossip in all {
        assert_eq!(gossip.event_counts().of(Event::Failed), 0, "{what}");
        assert_eq!(seen(gossip), all.len(), "{what}");
    }
}

#[tokio::test]
async fn keys_are_rotated_and_no_member_is_missed() {
    let (old, new) = (key(), key());
    let a = join(1, "c", &[], &[&old]).await;
    let b = join(2, "c", &[a.addr()], &[&old]).await;
    let c = join(3, "c", &[a.addr()], &[&old]).await;
    let all = [&a, &b, &c];
    all_see(&all, 3).await;
    for (what, step) in [
        (
            "install",
            (|ring, new, _| {
                ring.install(Key::parse(new).expect("a key")).expect("room");
            }) as fn(&Keyring, &str, &str),
        ),
        ("use", |ring, new, _| {
            ring.use_key(id(new)).expect("installed")
        }),
        ("remove", |ring, _, old| {
            ring.remove(id(old)).expect("not primary")
        }),
    ] {
        for gossip in all {
            step(gossip.keys(), &new, &old);
            rounds(15).await;
            nobody_missed(&all, what);
        }
    }
    let late = join(4, "c", &[a.addr()], &[&new]).await;
    let outdated = join(5, "c", &[a.addr()], &[&old]).await;
    all_see(&[&a, &b, &c, &late], 4).await;
    rounds(10).await;
    assert_eq!(
        (seen(&outdated), seen(&a)),
        (1, 4),
        "the old key opens nothing"
    );
    assert!(a.traffic().count(DropReason::UnknownKey) > 0);
}

#[tokio::test]
async fn a_cluster_without_keys_gets_them_and_no_member_is_missed() {
    let key = key();
    let a = join(1, "c", &[], &[]).await;
    let b = join(2, "c", &[a.addr()], &[]).await;
    let c = join(3, "c", &[a.addr()], &[]).await;
    let all = [&a, &b, &c];
    all_see(&all, 3).await;
    for (what, step) in [
        (
            "install",
            (|ring, key| {
                ring.install(Key::parse(key).expect("a key")).expect("room");
            }) as fn(&Keyring, &str),
        ),
        ("outgoing", |ring, _| {
            ring.verify(false, true).expect("has a key")
        }),
        ("incoming", |ring, _| {
            ring.verify(true, true).expect("has a key")
        }),
    ] {
        for gossip in all {
            step(gossip.keys(), &key);
            rounds(15).await;
            nobody_missed(&all, what);
        }
    }
    let bare = join(4, "c", &[a.addr()], &[]).await;
    rounds(10).await;
    assert_eq!((seen(&bare), seen(&a)), (1, 3));
    assert!(a.traffic().count(DropReason::Unsealed) > 0);
}

#[tokio::test]
async fn two_clusters_never_merge_though_they_reach_each_other() {
    let key = key();
    for keys in [&[&*key][..], &[]] {
        let a = join(1, "c", &[], keys).await;
        let b = join(2, "c", &[a.addr()], keys).await;
        let x = join(3, "d", &[a.addr(), b.addr()], keys).await;
        let y = join(4, "d", &[x.addr(), a.addr()], keys).await;
        all_see(&[&a, &b, &x, &y], 2).await;
        rounds(30).await;
        for gossip in [&a, &b, &x, &y] {
            assert_eq!(seen(gossip), 2);
        }
        let of_another = if keys.is_empty() {
            DropReason::OtherCluster
        } else {
            DropReason::Forged
        };
        assert!(a.traffic().count(of_another) > 0);
    }
}

#[tokio::test]
async fn only_the_allowed_networks_are_heard() {
    let a = join(1, "test", &[], &[]).await;
    let config = GossipConfig {
        seeds: vec![a.addr().to_string()],
        allowed: vec!["10.0.0.0/8".to_owned()],
        interval: INTERVAL.parse().expect("unit"),
        ..GossipConfig::default()
    };
    let socket = UdpSocket::bind(loopback()).expect("free");
    let b = Gossip::join(identity(2, 1), socket, &config, None).await;
    let b = b.expect("joins");
    rounds(10).await;
    assert_eq!(seen(&b), 1);
    assert!(b.traffic().count(DropReason::Forbidden) > 0);
}

#[tokio::test]
async fn a_seed_is_found_by_its_name() {
    let a = join(1, "test", &[], &[]).await;
    let config = GossipConfig {
        seeds: vec![format!("localhost:{}", a.addr().port())],
        interval: INTERVAL.parse().expect("unit"),
        ..GossipConfig::default()
    };
    let socket = UdpSocket::bind(loopback()).expect("free");
    let b = Gossip::join(identity(2, 1), socket, &config, None).await;
    all_see(&[&a, &b.expect("joins")], 2).await;
}

#[tokio::test]
async fn of_two_servers_with_one_name_the_earlier_steps_down_and_says_so() {
    let admin = Admin::default();
    let start = async |seeds: &[SocketAddr], admin: &Admin| {
        let server = RegistryServer::start(&config("twin", seeds), admin).await;
        server.expect("starts")
    };
    let first = start(&[], &admin).await;
    eventually("the first serves", || async { first.shared().is_serving() }).await;
    let second = start(&[first.gossip_addr()], &Admin::default()).await;
    eventually("it steps down", || async { !first.shared().is_serving() }).await;
    eventually("and says so", || async {
        let waiting = admin.readiness.waiting();
        waiting
            .get("name")
            .is_some_and(|why| why.contains("called twin too"))
    })
    .await;
    eventually("the second serves", || async {
        second.shared().is_serving()
    })
    .await;
}

#[tokio::test]
async fn the_server_names_its_life_by_its_state_directory() {
    let dir = tempfile::tempdir().expect("dir");
    let mut config = config("n1", &[]);
    config.state_dir = Some(dir.path().to_owned());
    let mut last = 0;
    for _ in 0..3 {
        let server = RegistryServer::start(&config, &Admin::default()).await;
        let generation = server.expect("starts").shared().generation;
        assert!(generation > last);
        last = generation;
    }
    std::fs::write(dir.path().join("generation.json"), "?").expect("written");
    let refused = RegistryServer::start(&config, &Admin::default()).await;
    let message = refused.expect_err("damaged").to_string();
    assert!(message.contains("generation.json"), "{message}");
}

/// Passes datagrams on between `peer` and whoever else sends, and keeps those for `peer`.
fn tap(peer: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let socket = UdpSocket::bind(loopback()).expect("free");
    let addr = socket.local_addr().expect("bound");
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    std::thread::spawn(move || {
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time");
        let (mut buffer, mut other) = ([0; 2_000], None);
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let datagram = &buffer[..length];
            let to = if from == peer {
                other
            } else {
                other = Some(from);
                keep.lock().expect("no panic").push(datagram.to_vec());
                Some(peer)
            };
            // Datagrams may be lost.
            let _sent = to.map(|to| socket.send_to(datagram, to));
        }
    });
    (addr, kept)
}

/// Resident memory of this process.
fn memory() -> u64 {
    let pages = std::fs::read_to_string(Path::new("/proc/self/statm")).expect("linux");
    let resident = pages.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    resident.expect("a number") * 4096
}

/// Every kind of datagram that an attacker can send, by turns.
fn hostile(
    n: usize,
    rng: &mut fastrand::Rng,
    recorded: &[Vec<u8>],
    stranger: &mut Sealer,
) -> Vec<u8> {
    let pick = recorded[rng.usize(..recorded.len())].clone();
    let noise = |rng: &mut fastrand::Rng, length: usize| {
        let mut bytes = vec![0; length];
        rng.fill(&mut bytes);
        bytes
    };
    match n % 8 {
        0 => {
            let length = rng.usize(..1_500);
            noise(rng, length)
        }
        1 => pick,
        2 => pick[..rng.usize(..pick.len())].to_vec(),
        3 => {
            let mut changed = pick;
            let at = rng.usize(2..changed.len());
            changed[at] ^= 1 << rng.u8(..8);
            changed
        }
        4 => {
            let to = loopback();
            let length = rng.usize(..1_000);
            let message = noise(rng, length);
            let now = Instant::now().into_std();
            stranger.seal(to, &message, now).remove(0)
        }
        // The right key's id, life and receiver, and nothing else.
        5 => {
            let mut forged = pick[..26].to_vec();
            let length = rng.usize(24..1_100);
            forged.extend(noise(rng, length));
            forged
        }
        // Not sealed: as one of a cluster without keys, and chitchat as it is.
        6 => {
            let length = rng.usize(..1_190);
            [&[0xE5, 0][..], &noise(rng, length)].concat()
        }
        _ => {
            // A spoofed acknowledgement of chitchat's, in its own format.
            let length = rng.usize(..600);
            [&[0x4c, 0x1d, 0, 2][..], &noise(rng, length)].concat()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_hostile_datagrams_change_nothing() {
    const MANY: usize = 100_000;
    let secret = key();
    let victim = join(1, "c", &[], &[&secret]).await;
    let (tapped, recorded) = tap(victim.addr());
    let peer = join(2, "c", &[tapped], &[&secret]).await;
    all_see(&[&victim, &peer], 2).await;
    rounds(20).await;
    let recorded = recorded.lock().expect("no panic").clone();
    assert!(recorded.len() > 20, "{} recorded", recorded.len());
    let others = Keyring::new([Key::parse(&key()).expect("a key")], true, true);
    let traffic = Arc::<Traffic>::default();
    let mut stranger =
        Sealer::new("c", Arc::new(others.expect("a ring")), traffic).expect("random");
    let before = (
        victim.members().borrow().clone(),
        victim.event_counts().all(),
    );
    let dropped = || {
        DropReason::ALL
            .iter()
            .map(|r| victim.traffic().count(*r))
            .sum::<u64>()
    };
    let (start_dropped, start_memory) = (dropped(), memory());
    let attacker = UdpSocket::bind(loopback()).expect("free");
    attacker.set_nonblocking(true).expect("a socket");
    let mut rng = fastrand::Rng::with_seed(6);
    let started = Instant::now();
    for n in 0..MANY {
        let datagram = hostile(n, &mut rng, &recorded, &mut stranger);
        attacker.send_to(&datagram, victim.addr()).expect("sent");
        // Not more than its socket holds: what the kernel drops attacks nobody.
        let sent = n as u64 + 1;
        while sent - (dropped() - start_dropped).min(sent) > 32 {
            assert!(started.elapsed() < Duration::from_secs(60), "no progress");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    let took = started.elapsed();
    eventually("all of them are refused", || async {
        dropped() - start_dropped >= MANY as u64
    })
    .await;
    let mut answers = 0;
    let mut buffer = [0; 2_000];
    while let Ok((length, _)) = attacker.recv_from(&mut buffer) {
        answers += 1;
        assert!(
            length <= 49,
            "{length} bytes: no answer is longer than a hello"
        );
    }
    println!(
        "{MANY} hostile datagrams: {:?} each, {answers} hellos, {} KiB more memory",
        took / MANY as u32,
        (memory().saturating_sub(start_memory)) / 1024
    );
    for reason in DropReason::ALL {
        println!("  {:14} {}", reason.text(), victim.traffic().count(reason));
    }
    for reason in [
        DropReason::Malformed,
        DropReason::Unsealed,
        DropReason::UnknownKey,
        DropReason::Forged,
        DropReason::Replayed,
    ] {
        assert!(victim.traffic().count(reason) >= 1_000, "{}", reason.text());
    }
    rounds(10).await;
    let after = (
        victim.members().borrow().clone(),
        victim.event_counts().all(),
    );
    assert_eq!(after, before);
    nobody_missed(&[&victim, &peer], "attacked");
    assert!(memory() < start_memory + (16 << 20), "memory is bounded");
}
