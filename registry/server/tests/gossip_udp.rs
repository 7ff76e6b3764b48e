//! The gossip over real sockets: sealed, attacked, and its keys changed while it runs.

use std::{
    collections::BTreeSet,
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

use crate::support::{client, config, digest, eventually, instance, name, serving};

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

const MANY: usize = 100_000;

/// What was refused so far.
fn dropped(victim: &Gossip) -> u64 {
    let reasons = DropReason::ALL.iter();
    reasons.map(|reason| victim.traffic().count(*reason)).sum()
}

/// Sends `victim` a hundred thousand hostile datagrams, made of those that were `recorded`, and sees
/// to it that it looks at each and answers hardly any.
#[expect(
    clippy::print_stdout,
    reason = "a test's figures, for who asks for them"
)]
async fn attack(victim: &Gossip, recorded: &[Vec<u8>], seed: u64) {
    let others = Keyring::new([Key::parse(&key()).expect("a key")], true, true);
    let traffic = Arc::<Traffic>::default();
    let mut stranger =
        Sealer::new("c", Arc::new(others.expect("a ring")), traffic).expect("random");
    let (start_dropped, start_memory) = (dropped(victim), memory());
    let attacker = UdpSocket::bind(loopback()).expect("free");
    attacker.set_nonblocking(true).expect("a socket");
    let mut rng = fastrand::Rng::with_seed(seed);
    let started = Instant::now();
    for n in 0..MANY {
        let datagram = hostile(n, &mut rng, recorded, &mut stranger);
        attacker.send_to(&datagram, victim.addr()).expect("sent");
        // Not more than its socket holds: what the kernel drops attacks nobody.
        let sent = n as u64 + 1;
        while sent - (dropped(victim) - start_dropped).min(sent) > 32 {
            assert!(started.elapsed() < Duration::from_secs(60), "no progress");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    let took = started.elapsed();
    eventually("all of them are refused", || async {
        dropped(victim) - start_dropped >= MANY as u64
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
    assert!(memory() < start_memory + (16 << 20), "memory is bounded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_hostile_datagrams_change_nothing() {
    let secret = key();
    let victim = join(1, "c", &[], &[&secret]).await;
    let (tapped, recorded) = tap(victim.addr());
    let peer = join(2, "c", &[tapped], &[&secret]).await;
    all_see(&[&victim, &peer], 2).await;
    rounds(20).await;
    let recorded = recorded.lock().expect("no panic").clone();
    assert!(recorded.len() > 20, "{} recorded", recorded.len());
    let state = || {
        let members = victim.members().borrow().clone();
        (members, victim.event_counts().all())
    };
    let before = state();
    attack(&victim, &recorded, 6).await;
    rounds(10).await;
    assert_eq!(state(), before);
    nobody_missed(&[&victim, &peer], "attacked");
}

/// The same against servers that hold a catalogue, keep leases and are written to meanwhile: one of
/// three is attacked, and all three hold the same at the end, with everybody who lives in it and
/// nobody who does not.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_datagrams_cost_no_instance_its_place_and_revive_none() {
    let secret = key();
    let sealed = |node: &str, seeds: &[SocketAddr]| {
        let mut config = config(node, seeds);
        config.gossip.keys = vec![Secret::new(&*secret)];
        config
    };
    let victim = serving(&sealed("n1", &[])).await;
    let (tapped, recorded) = tap(victim.gossip_addr());
    let second = serving(&sealed("n2", &[tapped])).await;
    let third = serving(&sealed("n3", &[second.gossip_addr()])).await;
    let all = [&victim, &second, &third];
    let gossips = all.map(RegistryServer::gossip);
    all_see(&gossips, 3).await;
    rounds(20).await;
    let recorded = recorded.lock().expect("no panic").clone();
    assert!(recorded.len() > 20, "{} recorded", recorded.len());
    let clients = all.map(|server| client(&[server]));
    let register = |n: u16| {
        let one = instance("orders", &format!("i{n}"), 4_000 + n);
        clients[usize::from(n % 3)].register(one)
    };
    let mut held: Vec<_> = (0..60).map(register).collect();
    for registration in &mut held {
        registration.registered().await;
    }
    let ids = |server: &RegistryServer| -> BTreeSet<String> {
        let record = server.shared().read(|c| c.service(&name("orders")));
        record.instances.iter().map(|i| i.id.to_string()).collect()
    };
    let named =
        |of: std::ops::Range<u16>| -> BTreeSet<String> { of.map(|n| format!("i{n}")).collect() };
    eventually("all hold them", || async {
        all.iter().all(|server| ids(server) == named(0..60))
    })
    .await;
    let watchers = all.map(|server| server.shared().hub.subscribe());
    attack(victim.gossip(), &recorded, 7).await;
    // And it goes on: some leave, some come.
    drop(held.drain(..10));
    held.extend((60..70).map(register));
    for registration in held.iter_mut().skip(50) {
        registration.registered().await;
    }
    attack(victim.gossip(), &recorded, 8).await;
    eventually("all hold the same", || async {
        let mut digests = BTreeSet::new();
        for server in all {
            let digest = digest(server.shared().http).await;
            digests.insert(digest.map(|digest| (digest.hash, digest.records)));
        }
        digests.len() == 1 && all.iter().all(|server| ids(server) == named(10..70))
    })
    .await;
    nobody_missed(&gossips, "attacked");
    for mut watcher in watchers {
        let mut gone = BTreeSet::new();
        while let Ok(change) = watcher.try_recv() {
            gone.extend(change.delta.removed.iter().map(ToString::to_string));
        }
        assert_eq!(gone, named(0..10), "only those who left were seen to go");
    }
}
