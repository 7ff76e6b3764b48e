use proptest::prelude::*;

use super::*;

const CLUSTER: &str = "c";

fn addr(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], n))
}

fn id(name: u16, life: u64) -> Vec<u8> {
    let text = format!("n{name}");
    let mut bytes = (text.len() as u16).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.extend(life.to_le_bytes());
    bytes.extend([4, 10, 0, 0, 1]);
    bytes.extend(name.to_le_bytes());
    bytes
}

/// As chitchat would write it; an empty delta.
fn message(kind: Kind, entries: &[(Vec<u8>, Numbers)]) -> Vec<u8> {
    let numbers: Vec<Numbers> = entries.iter().map(|(_, numbers)| *numbers).collect();
    let bytes = message::entries(entries.iter().map(|(id, _)| id.as_slice()), &numbers);
    let tail: &[u8] = match kind {
        Kind::Syn => b"\x01\0c",
        Kind::SynAck => &[0],
    };
    message::write(kind, &bytes, tail)
}

fn servers(n: u16, heartbeat: u64) -> Vec<(Vec<u8>, Numbers)> {
    (0..n).map(|i| (id(i, 1), [heartbeat, 0, 6])).collect()
}

fn compactor() -> Compactor {
    Compactor::new(CLUSTER, Arc::default())
}

/// Sends `message` from `a` (at address 1) to `b` (at 2) over a network that loses nothing. What
/// arrives, and whether it was asked for again.
fn pass(a: &mut Compactor, b: &mut Compactor, message: &[u8]) -> (Vec<u8>, usize, bool) {
    let now = Instant::now();
    let sent = a.outgoing(addr(2), message, now);
    let bytes = sent.len();
    match b.incoming(addr(1), sent, now) {
        Incoming::Message(got) => (got, bytes, false),
        Incoming::Answer(again) => {
            let Incoming::Answer(full) = a.incoming(addr(2), again, now) else {
                panic!("asked for again, and not sent");
            };
            let Incoming::Message(got) = b.incoming(addr(1), full, now) else {
                panic!("in full, and not understood");
            };
            (got, bytes, true)
        }
        Incoming::Nothing => panic!("nothing arrives"),
    }
}

/// Both have told each other what they know.
fn acquainted(n: u16) -> (Compactor, Compactor) {
    let (mut a, mut b) = (compactor(), compactor());
    let syn = message(Kind::Syn, &servers(n, 100));
    assert_eq!(pass(&mut a, &mut b, &syn).0, syn);
    let now = Instant::now();
    let ack = message(Kind::SynAck, &servers(n, 101));
    let answer = b.outgoing(addr(1), &ack, now);
    assert!(answer.len() < ack.len(), "who has used the list has it");
    assert_eq!(a.incoming(addr(2), answer, now), Incoming::Message(ack));
    (a, b)
}

#[test]
fn fifty_servers_take_little_more_than_a_byte_each() {
    let (mut a, mut b) = acquainted(50);
    let mut later = servers(50, 110);
    later[7].1 = [131, 0, 7];
    let syn = message(Kind::Syn, &later);
    let (got, bytes, again) = pass(&mut a, &mut b, &syn);
    assert_eq!((got, again), (syn, false));
    assert_eq!(bytes, 11 + 50, "eight bits each");
}

#[test]
fn what_cannot_be_made_out_is_asked_for_again_and_comes_in_full() {
    type Change = fn(&mut Vec<(Vec<u8>, Numbers)>);
    let cases: [(&str, Change); 4] = [
        ("far ahead", |all| all[3].1[0] += 5_000),
        ("facts far ahead", |all| all[3].1[2] += 100),
        ("something was forgotten", |all| all[3].1[1] = 4),
        ("far behind", |all| all[3].1[0] = 1),
    ];
    for (what, change) in cases {
        let (mut a, mut b) = acquainted(10);
        let mut all = servers(10, 120);
        change(&mut all);
        let syn = message(Kind::Syn, &all);
        assert_eq!(pass(&mut a, &mut b, &syn).0, syn, "{what}");
        assert!(pass(&mut a, &mut b, &syn).0 == syn, "{what}, once more");
    }
    // Another list goes in full at once, and is then known.
    let (mut a, mut b) = acquainted(10);
    let mut joined = servers(11, 120);
    joined[4].0 = id(4, 2);
    let syn = message(Kind::Syn, &joined);
    let (got, bytes, again) = pass(&mut a, &mut b, &syn);
    assert_eq!((got, bytes, again), (syn.clone(), syn.len() + 2, false));
    let (got, bytes, again) = pass(&mut a, &mut b, &syn);
    assert!(got == syn && bytes < 30 && !again, "{bytes}");
    // A restart forgets everything.
    let mut b = compactor();
    let (got, _, again) = pass(&mut a, &mut b, &syn);
    assert!(got == syn && again);
}

#[test]
fn an_earlier_version_gets_what_it_understands() {
    let now = Instant::now();
    let (mut a, mut b) = acquainted(10);
    let syn = message(Kind::Syn, &servers(10, 102));
    // It answers without a word about itself.
    assert_eq!(
        a.incoming(addr(2), syn.clone(), now),
        Incoming::Message(syn.clone())
    );
    let (got, bytes, _) = pass(&mut a, &mut b, &syn);
    assert!(got == syn && bytes > syn.len());
    // It took the place of a later one and has not spoken yet.
    let (mut a, _) = acquainted(10);
    let mut lengths = Vec::new();
    for _ in 0..4 {
        lengths.push(a.outgoing(addr(2), &syn, now).len() < syn.len());
    }
    assert_eq!(lengths, [true, true, false, false]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let now = Instant::now();
    let mut a = compactor();
    for life in 0..5_000u16 {
        let mut all = servers(5, 100);
        all[2].0 = id(2, life.into());
        let syn = message(Kind::Syn, &all);
        let from = addr(life);
        let sent = [syn.as_slice(), &UNDERSTOOD].concat();
        assert_eq!(a.incoming(from, sent, now), Incoming::Message(syn.clone()));
        a.outgoing(from, &syn, now);
    }
    assert!(a.peers.len() <= MAX_PEERS && a.sent.len() <= MAX_SENT);
    let (lists, known) = a.lists.held();
    assert!(lists <= 16 && known <= 32, "{lists} lists, {known} names");
}

#[test]
fn a_large_digest_is_read_and_written() {
    for (n, short) in [(900, true), (3_000, false)] {
        let syn = message(Kind::Syn, &servers(n, 1 << 40));
        let (mut a, mut b) = (compactor(), compactor());
        for turn in 0..2 {
            let (got, bytes, again) = pass(&mut a, &mut b, &syn);
            assert!(got == syn && !again, "{n}");
            if turn == 1 {
                // Nobody has said that it understands.
                assert!(bytes >= syn.len(), "{n}");
            }
            let now = Instant::now();
            let answer = b.outgoing(addr(1), &syn, now);
            assert_eq!(answer.len() < syn.len(), short, "{n}: {}", answer.len());
        }
    }
}

proptest! {
    /// Two servers whose views differ at random, over a network that loses, repeats and reorders:
    /// whatever reaches chitchat is what the other's chitchat sent.
    #[test]
    fn nothing_arrives_that_was_not_sent(
        steps in proptest::collection::vec(
            (any::<bool>(), any::<bool>(), 0u8..8, any::<u16>(), 0u64..300), 1..200),
    ) {
        let now = Instant::now();
        let mut ends = [compactor(), compactor()];
        let mut views = [servers(6, 100), servers(6, 100)];
        let mut sent: Vec<Vec<u8>> = Vec::new();
        let mut flying: Vec<(usize, Vec<u8>)> = Vec::new();
        for (second, syn, what, which, by) in steps {
            let me = usize::from(second);
            let view = &mut views[me];
            let at = usize::from(which) % view.len();
            match what {
                0 | 1 => view[at].1[0] += by,
                2 => view[at].1[2] += by % 5,
                3 => view[at] = (id(which % 9, by % 3), [by, 0, 1]),
                4 => ends[me] = compactor(),
                _ => {}
            }
            let kind = if syn { Kind::Syn } else { Kind::SynAck };
            let message = message(kind, view);
            let bytes = ends[me].outgoing(addr(2 - which_end(me)), &message, now);
            sent.push(message);
            flying.push((1 - me, bytes));
            for _ in 0..which % 3 {
                let next = usize::from(which) % flying.len().max(1);
                let Some((to, bytes)) = flying.get(next).cloned() else { break };
                // Seldom it comes twice, seldom not at all.
                if by % 10 != 0 {
                    flying.swap_remove(next);
                }
                if by % 7 == 0 {
                    continue;
                }
                match ends[to].incoming(addr(2 - which_end(to)), bytes, now) {
                    Incoming::Message(got) => prop_assert!(sent.contains(&got)),
                    Incoming::Answer(answer) => flying.push((1 - to, answer)),
                    Incoming::Nothing => {}
                }
            }
        }
    }

    /// Whatever bytes come, nothing breaks; and what is no short digest goes to chitchat as it is.
    #[test]
    fn garbage_is_survived(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        begin in 0usize..5, flips in proptest::collection::vec((0usize..80, 0u8..8), 0..4),
    ) {
        let now = Instant::now();
        let (mut a, mut b) = acquainted(10);
        let syn = message(Kind::Syn, &servers(10, 110));
        match begin {
            0 => bytes.insert(0, SHORT),
            1 => bytes = [&START_OF_A_MESSAGE, bytes.as_slice()].concat(),
            2 | 3 => {
                bytes = if begin == 2 { syn.clone() } else { a.outgoing(addr(2), &syn, now) };
                let whole = bytes.clone();
                for (at, bit) in flips {
                    let at = at % bytes.len();
                    bytes[at] ^= 1 << bit;
                }
                if begin == 3 && bytes != whole {
                    let got = b.incoming(addr(1), bytes.clone(), now);
                    prop_assert!(!matches!(got, Incoming::Message(m) if m != syn && bytes[0] == SHORT));
                }
            }
            _ => {}
        }
        let short = bytes.first() == Some(&SHORT);
        if let Incoming::Message(got) = b.incoming(addr(1), bytes.clone(), now) {
            prop_assert!(short || bytes.starts_with(&got));
        }
        // And it still hears what is said.
        let (got, ..) = pass(&mut a, &mut b, &syn);
        prop_assert_eq!(got, syn);
    }
}

const START_OF_A_MESSAGE: [u8; 4] = [0x53, 0xB0, 1, 0];

fn which_end(end: usize) -> u16 {
    u16::from(end == 1)
}
