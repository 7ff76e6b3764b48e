use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{HashRing, Member, fingerprint32};

fn three() -> Vec<Member> {
    (3000..3003).map(on).collect()
}

fn on(port: u16) -> Member {
    Member::new(format!("127.0.0.1:{port}"))
}

fn owner(ring: &HashRing, key: &str) -> String {
    ring.lookup(key).expect("not empty").address.to_string()
}

fn ports(members: &[&Member]) -> Vec<u16> {
    let port = |m: &&Member| m.address.rsplit(':').next().and_then(|p| p.parse().ok());
    members.iter().map(|m| port(m).expect("a port")).collect()
}

#[test]
fn r1_each_point_is_owned_by_its_member() {
    let ring = HashRing::new(three());
    for port in 3000..3003 {
        for i in 0..100 {
            let address = format!("127.0.0.1:{port}");
            assert_eq!(owner(&ring, &format!("{address}{i}")), address);
        }
    }
    let ring = HashRing::new([
        on(3000).identity("id-a"),
        on(3001).identity("id-b"),
        on(3002).identity("id-c"),
    ]);
    for (identity, port) in [("id-a", 3000), ("id-b", 3001), ("id-c", 3002)] {
        for i in 0..100 {
            let key = format!("{identity}#{i}");
            assert_eq!(owner(&ring, &key), format!("127.0.0.1:{port}"), "{key}");
        }
    }
}

#[test]
fn r2_the_order_of_adds_does_not_matter() {
    let same = |members: Vec<Member>| {
        let ring = HashRing::new(members.clone());
        let back = HashRing::new(members.into_iter().rev());
        assert_eq!(ring, back);
        ring
    };
    same(three());
    let twice = same(vec![on(3000).identity("id"), on(3001).identity("id")]);
    assert_eq!(twice.members().len(), 2);
    assert_eq!(owner(&twice, "any"), "127.0.0.1:3000", "the lower address");
    let relabelled = same(vec![
        on(3000).identity("a"),
        on(3000).identity("b"),
        on(3000),
    ]);
    assert_eq!(relabelled.members(), [on(3000).identity("b")]);
}

#[test]
fn r3_lookup_n_is_distinct_in_ring_order_and_wraps() {
    let ring = HashRing::new(three());
    assert_eq!(ports(&ring.lookup_n("a", 9)), [3000, 3002, 3001]);
    assert_eq!(ports(&ring.lookup_n("a", 1)), [3000]);
    assert!(ring.lookup_n("a", 0).is_empty());
    let empty = HashRing::default();
    assert!(empty.is_empty() && empty.lookup("a").is_none() && empty.lookup_n("a", 3).is_empty());
    // A key after the last point belongs to the first one, :3001's.
    let last = 4_292_042_587;
    let beyond = (0..u64::MAX)
        .map(|i| format!("w{i}"))
        .find(|key| fingerprint32(key.as_bytes()) > last)
        .expect("one in a thousand");
    assert_eq!(owner(&ring, &beyond), "127.0.0.1:3001");
}

#[test]
fn r4_golden_ring() {
    let ring = HashRing::new(three());
    assert_eq!(ring.checksum(), 742_371_003);
    assert_eq!(ring.replica_checksum(), 742_916_552);
    let ends = [ring.points[0], *ring.points.last().expect("points")];
    assert_eq!(
        ends.map(|p| (p.hash, p.member, p.index)),
        [(8_127_232, 1, 21), (4_292_042_587, 2, 40)]
    );
    for (key, want) in [
        ("a", [3000, 3002, 3001]),
        ("b", [3001, 3002, 3000]),
        ("user:1", [3002, 3000, 3001]),
        ("key", [3000, 3002, 3001]),
    ] {
        assert_eq!(ports(&ring.lookup_n(key, 3)), want, "{key}");
    }
    assert_eq!(owner(&ring, "127.0.0.1:30010"), "127.0.0.1:3001");
    let labelled = HashRing::new([
        on(3000).identity("id-a"),
        on(3001).identity("id-b"),
        on(3002),
    ]);
    assert_eq!(owner(&labelled, "id-a#0"), "127.0.0.1:3000");
    assert_eq!(owner(&labelled, "id-b#7"), "127.0.0.1:3001");
}

#[test]
fn r4_a_fourth_takes_its_share_and_gives_it_back() {
    let ring = HashRing::new(three());
    let four = HashRing::new(three().into_iter().chain([on(3003)]));
    let moved: Vec<String> = (0..20_000)
        .map(|i| format!("k{i}"))
        .filter(|key| owner(&ring, key) != owner(&four, key))
        .collect();
    assert_eq!(moved.len(), 4549);
    assert!(
        moved
            .iter()
            .all(|key| owner(&four, key) == "127.0.0.1:3003")
    );
    assert_eq!(HashRing::new(three()), ring);
}

#[test]
fn the_shares_are_even() {
    let ring = HashRing::new(three());
    let mut counts = [0u32; 3];
    for i in 0..100_000 {
        let port = ports(&[ring.lookup(format!("k{i}")).expect("some")])[0];
        counts[usize::from(port - 3000)] += 1;
    }
    // Thousandths of the mean.
    let shares = counts.map(|n| (n * 3 + 50) / 100);
    assert_eq!(shares, [982, 959, 1059]);
}

proptest! {
    /// The slow obvious version: sort every point again for each key.
    #[test]
    fn lookup_n_equals_the_obvious(
        ports in proptest::collection::btree_set(1u16.., 0..8),
        key in "[a-z]{0,12}", n in 0usize..10, points in 1u32..40,
    ) {
        let members: Vec<Member> = ports.iter().map(|port| on(*port)).collect();
        let ring = HashRing::with_points(members.clone(), points);
        let hash = fingerprint32(key.as_bytes());
        let mut around: Vec<(bool, u32, String, u32)> = members
            .iter()
            .flat_map(|m| (0..points).map(move |i| {
                let place = fingerprint32(format!("{}{i}", m.address).as_bytes());
                (place < hash, place, m.address.to_string(), i)
            }))
            .collect();
        around.sort();
        let mut seen = BTreeSet::new();
        let want: Vec<String> = around
            .into_iter()
            .map(|(_, _, address, _)| address)
            .filter(|address| seen.insert(address.clone()))
            .take(n)
            .collect();
        let got: Vec<String> = ring.lookup_n(&key, n).iter().map(|m| m.address.to_string()).collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn only_the_leavers_keys_move(ports in proptest::collection::btree_set(1u16.., 2..8), keys in proptest::collection::vec("[a-z]{1,8}", 1..50)) {
        let members: Vec<Member> = ports.iter().map(|port| on(*port)).collect();
        let before = HashRing::new(members.clone());
        let after = HashRing::new(members[1..].to_vec());
        for key in keys {
            if owner(&before, &key) != members[0].address.as_ref() {
                prop_assert_eq!(owner(&before, &key), owner(&after, &key));
            }
        }
    }
}
