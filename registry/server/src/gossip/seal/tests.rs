use proptest::prelude::*;

use super::*;
use crate::gossip::keyring::{KeyId, generate};

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

const A: u16 = 1;
const B: u16 = 2;
const C: u16 = 3;

fn sealer(cluster: &str, keys: &[&str]) -> Sealer {
    let keys = keys.iter().map(|text| Key::parse(text).expect("a key"));
    let ring = Keyring::new(keys, true, true).expect("a ring");
    Sealer::new(cluster, Arc::new(ring), Arc::default()).expect("random")
}

/// Two servers with one key, and what they share.
fn pair() -> (Sealer, Sealer, String) {
    let key = generate().expect("random");
    (sealer("c", &[&key]), sealer("c", &[&key]), key)
}

/// Carries `message` from `a` to `b`, hellos and all; what arrives, and every datagram on the way
/// to `b`.
fn carry(a: &mut Sealer, b: &mut Sealer, message: &[u8]) -> (Option<Vec<u8>>, Vec<Vec<u8>>) {
    let now = Instant::now();
    let mut to_b: VecDeque<Vec<u8>> = a.seal(addr(B), message, now).into();
    let (mut seen, mut got) = (Vec::new(), None);
    while let Some(datagram) = to_b.pop_front() {
        assert!(datagram.len() <= MAX_DATAGRAM);
        seen.push(datagram.clone());
        match b.open(addr(A), &mut datagram.clone(), now) {
            Opened::Nothing => {}
            Opened::Message(message) => got = Some(message),
            Opened::Answer(answers) => {
                for mut answer in answers {
                    assert!(answer.len() <= datagram.len(), "an amplifier");
                    if let Opened::Answer(again) = a.open(addr(B), &mut answer, now) {
                        to_b.extend(again);
                    }
                }
            }
        }
    }
    (got, seen)
}

fn count(sealer: &Sealer, reason: DropReason) -> u64 {
    sealer.traffic.count(reason)
}

#[test]
fn a_first_word_is_repeated_after_a_hello_and_the_next_goes_straight() {
    let (mut a, mut b, _) = pair();
    let (got, seen) = carry(&mut a, &mut b, b"hello");
    assert_eq!((got.as_deref(), seen.len()), (Some(&b"hello"[..]), 2));
    let (got, seen) = carry(&mut a, &mut b, b"again");
    assert_eq!((got.as_deref(), seen.len()), (Some(&b"again"[..]), 1));
    assert!(
        !seen[0].windows(5).any(|w| w == b"again"),
        "readable on the wire"
    );
    // The answer needs no hello: b knows a's life from what it heard.
    let now = Instant::now();
    let mut answer = b.seal(addr(A), b"answer", now);
    assert_eq!(
        a.open(addr(B), &mut answer[0], now),
        Opened::Message(b"answer".to_vec())
    );
    let large = vec![7; MAX_MESSAGE];
    let (got, seen) = carry(&mut a, &mut b, &large);
    assert!(got == Some(large), "put together");
    assert_eq!(seen.len(), 57);
    assert_eq!(
        seen.iter().map(Vec::len).sum::<usize>(),
        sealed_len(MAX_MESSAGE)
    );
    assert!(a.seal(addr(B), &vec![0; MAX_MESSAGE + 1], now).is_empty());
}

#[test]
fn what_was_recorded_is_refused_by_everybody_for_ever() {
    let (mut a, mut b, key) = pair();
    let (_, seen) = carry(&mut a, &mut b, b"once");
    let now = Instant::now();
    let mut again = seen[1].clone();
    assert_eq!(b.open(addr(A), &mut again, now), Opened::Nothing);
    assert_eq!(
        count(&b, DropReason::Replayed),
        1,
        "by the one who heard it"
    );
    let mut elsewhere = sealer("c", &[&key]);
    let mut again = seen[1].clone();
    let Opened::Answer(hello) = elsewhere.open(addr(A), &mut again, now) else {
        panic!("another server takes it for a stranger's");
    };
    assert_eq!(count(&elsewhere, DropReason::Misaddressed), 1);
    // And the hello, sealed for a, is of no use to the attacker, nor when it comes twice.
    let mut b_hello = hello[0].clone();
    assert_eq!(b.open(addr(C), &mut b_hello, now), Opened::Nothing);
    let mut first = hello[0].clone();
    assert_eq!(
        a.open(addr(C), &mut first, now),
        Opened::Nothing,
        "nothing to repeat"
    );
    let mut second = hello[0].clone();
    assert_eq!(a.open(addr(C), &mut second, now), Opened::Nothing);
    assert_eq!(count(&a, DropReason::Replayed), 1);
    // A later life of b does not know what b knew, and refuses all the same.
    b.begin_life().expect("random");
    let mut again = seen[1].clone();
    assert!(matches!(
        b.open(addr(A), &mut again, now),
        Opened::Answer(_)
    ));
    let mut own = a.seal(addr(B), b"x", now);
    assert_eq!(a.open(addr(A), &mut own[0], now), Opened::Nothing);
    assert_eq!(count(&a, DropReason::Reflected), 1);
}

#[test]
fn clusters_and_keys_do_not_mix() {
    let (mut a, mut b, key) = pair();
    let other_key = generate().expect("random");
    let now = Instant::now();
    let mut stranger = sealer("c", &[&other_key]);
    let mut elsewhere = sealer("d", &[&key]);
    let mut bare = sealer("c", &[]);
    for (what, from, reason) in [
        ("another key", &mut stranger, DropReason::UnknownKey),
        ("another cluster", &mut elsewhere, DropReason::Forged),
        ("no key", &mut bare, DropReason::Unsealed),
    ] {
        let mut datagram = from.seal(addr(B), b"x", now).remove(0);
        assert_eq!(
            b.open(addr(C), &mut datagram, now),
            Opened::Nothing,
            "{what}"
        );
        assert_eq!(count(&b, reason), 1, "{what}");
    }
    let mut bare_elsewhere = sealer("d", &[]);
    let mut datagram = bare_elsewhere.seal(addr(B), b"x", now).remove(0);
    assert_eq!(bare.open(addr(C), &mut datagram, now), Opened::Nothing);
    assert_eq!(count(&bare, DropReason::OtherCluster), 1);
    let mut datagram = a.seal(addr(C), b"x", now).remove(0);
    assert_eq!(bare.open(addr(A), &mut datagram, now), Opened::Nothing);
    assert_eq!(count(&bare, DropReason::UnknownKey), 1);
}

type Step = (&'static str, fn(&Keyring, &str, Option<KeyId>));

#[test]
fn keys_change_without_a_message_lost() {
    let (mut a, mut b, _) = pair();
    let new = generate().expect("random");
    let id = |text: &str| Key::parse(text).expect("a key").id();
    let round = |a: &mut Sealer, b: &mut Sealer, what: &str| {
        assert_eq!(carry(a, b, b"1").0.as_deref(), Some(&b"1"[..]), "{what}");
        let mut back = b.seal(addr(A), b"2", Instant::now()).remove(0);
        let got = a.open(addr(B), &mut back, Instant::now());
        assert_eq!(got, Opened::Message(b"2".to_vec()), "{what}, back");
    };
    let old = a.keys.sealing().expect("a key").id();
    round(&mut a, &mut b, "before");
    let steps: [Step; 3] = [
        ("install", |ring, new, _| {
            ring.install(Key::parse(new).expect("a key")).expect("room");
        }),
        ("use", |ring, new, _| {
            ring.use_key(Key::parse(new).expect("a key").id())
                .expect("installed");
        }),
        ("remove", |ring, _, old| {
            ring.remove(old.expect("given")).expect("not primary");
        }),
    ];
    for (what, step) in steps {
        step(&a.keys, &new, Some(old));
        round(&mut a, &mut b, what);
        step(&b.keys, &new, Some(old));
        round(&mut a, &mut b, what);
    }
    assert_eq!(a.keys.sealing().expect("a key").id(), id(&new));
}

#[test]
fn a_cluster_without_keys_gets_them_without_a_message_lost() {
    let (mut a, mut b) = (sealer("c", &[]), sealer("c", &[]));
    let key = generate().expect("random");
    let round = |a: &mut Sealer, b: &mut Sealer, what: &str| {
        assert_eq!(carry(a, b, b"1").0.as_deref(), Some(&b"1"[..]), "{what}");
        assert_eq!(
            carry(b, a, b"2").0.as_deref(),
            Some(&b"2"[..]),
            "{what}, back"
        );
    };
    round(&mut a, &mut b, "before");
    let steps: [Step; 3] = [
        ("install", |ring, key, _| {
            ring.install(Key::parse(key).expect("a key")).expect("room");
        }),
        ("outgoing", |ring, _, _| {
            ring.verify(false, true).expect("has a key")
        }),
        ("incoming", |ring, _, _| {
            ring.verify(true, true).expect("has a key")
        }),
    ];
    for (what, step) in steps {
        step(&a.keys, &key, None);
        round(&mut a, &mut b, what);
        step(&b.keys, &key, None);
        round(&mut a, &mut b, what);
    }
}

#[test]
fn a_life_ends_before_its_counters_do() {
    let (mut a, mut b, _) = pair();
    carry(&mut a, &mut b, b"first");
    let life = a.life;
    a.counter = u32::MAX - 2;
    for message in [b"one", b"two"] {
        assert_eq!(
            carry(&mut a, &mut b, message).0.as_deref(),
            Some(&message[..])
        );
    }
    assert_ne!(a.life, life);
    assert!(a.counter < 10);
}

#[test]
fn more_lives_than_are_remembered_make_all_that_was_sealed_void() {
    let (mut a, mut b, key) = pair();
    let (_, seen) = carry(&mut a, &mut b, b"recorded");
    let life = b.life;
    for _ in 0..=crate::gossip::replay::MAX_LIVES {
        let mut restarted = sealer("c", &[&key]);
        let now = Instant::now() + Duration::from_secs(3600);
        // As it would be told by a hello, which is limited.
        restarted.peers.insert(addr(B), b.life);
        let mut datagram = restarted.seal(addr(B), b"x", now).remove(0);
        b.open(addr(A), &mut datagram, now);
    }
    assert_ne!(b.life, life);
    let mut again = seen[1].clone();
    assert!(!matches!(
        b.open(addr(A), &mut again, Instant::now()),
        Opened::Message(_)
    ));
    assert_eq!(
        carry(&mut a, &mut b, b"2").0,
        None,
        "its life is not known any more"
    );
}

#[test]
fn hellos_are_limited() {
    let (mut a, mut b, _) = pair();
    let now = Instant::now();
    let hellos = (0..1_000)
        .filter(|_| {
            let mut datagram = a.seal(addr(B), b"x", now).remove(0);
            matches!(b.open(addr(A), &mut datagram, now), Opened::Answer(_))
        })
        .count();
    assert_eq!(hellos, MAX_HELLOS as usize);
    let later = now + Duration::from_secs(1);
    let mut datagram = a.seal(addr(B), b"x", later).remove(0);
    assert!(matches!(
        b.open(addr(A), &mut datagram, later),
        Opened::Answer(_)
    ));
    assert!(a.held_bytes() <= MAX_UNHEARD * MAX_UNHEARD_BYTES);
}

proptest! {
    /// Any change of any byte, any cut, any made-up datagram.
    #[test]
    fn nothing_but_what_was_sealed_opens(
        message in proptest::collection::vec(any::<u8>(), 0..1_000),
        at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<prop::sample::Index>(),
        garbage in proptest::collection::vec(any::<u8>(), 0..1_400),
    ) {
        let (mut a, mut b, _) = pair();
        carry(&mut a, &mut b, b"x");
        let now = Instant::now();
        let sealed = a.seal(addr(B), &message, now).remove(0);
        let mut changed = sealed.clone();
        changed[at.index(sealed.len())] ^= 1 << bit;
        prop_assert_eq!(b.open(addr(A), &mut changed, now), Opened::Nothing);
        let mut short = sealed[..cut.index(sealed.len())].to_vec();
        prop_assert_eq!(b.open(addr(A), &mut short, now), Opened::Nothing);
        let mut made_up = garbage;
        prop_assert_eq!(b.open(addr(A), &mut made_up, now), Opened::Nothing);
        if made_up.len() > 2 {
            made_up[..2].copy_from_slice(&[MAGIC, SEALED]);
            prop_assert_eq!(b.open(addr(A), &mut made_up, now), Opened::Nothing);
        }
        prop_assert_eq!(b.held_bytes(), 0);
        let mut whole = sealed;
        prop_assert_eq!(b.open(addr(A), &mut whole, now), Opened::Message(message));
    }
}
