use selvedge_registry::Locality;

use super::*;
use crate::gossip::Member;

const WITHIN: Duration = Duration::from_secs(60);

/// Nine servers, of which some are in another state or not heard of at all (`None`).
fn nine(but: &[(usize, Option<MemberState>)]) -> Members {
    let mut members: Members = (0..9)
        .map(|n| (name(n), member(MemberState::Serving)))
        .collect();
    for (n, state) in but {
        match state {
            Some(state) => members.insert(name(*n), member(*state)),
            None => members.remove(&name(*n)),
        };
    }
    members
}

fn name(n: usize) -> NodeId {
    format!("n{n}").into()
}

fn member(state: MemberState) -> Member {
    let addr = ([127, 0, 0, 1], 1).into();
    Member {
        generation: 1,
        gossip: addr,
        http: addr,
        state,
        locality: Locality::default(),
        head: None,
        buckets: None,
        facts: std::collections::BTreeMap::new(),
    }
}

#[test]
fn servers_are_missed_that_vanish_and_for_a_while() {
    let start = Instant::now();
    let at = |secs| start + Duration::from_secs(secs);
    let gone: Vec<_> = (1..5).map(|n| (n, None)).collect();
    let left: Vec<_> = (1..5).map(|n| (n, Some(MemberState::Left))).collect();
    let joining: Vec<_> = (1..5).map(|n| (n, Some(MemberState::Joining))).collect();
    let mut three = gone.clone();
    three.pop();
    for (case, then, at_secs, lost) in [
        ("four of nine", nine(&gone), 1, Some((4, 9))),
        (
            "three of nine are a third, and no more",
            nine(&three),
            1,
            None,
        ),
        ("who has left is not missed", nine(&left), 1, None),
        ("nor who begins again", nine(&joining), 1, None),
        (
            "this server does not miss itself",
            nine(&[(0, None)]),
            1,
            None,
        ),
    ] {
        let mut judgement = Judgement::default();
        judgement.look_at(&nine(&[]), &name(0), start, WITHIN);
        assert_eq!(judgement.outside(start).lost, None, "{case}");
        judgement.look_at(&then, &name(0), at(at_secs), WITHIN);
        assert_eq!(judgement.outside(at(at_secs)).lost, lost, "{case}");
    }
    let mut judgement = Judgement::default();
    judgement.look_at(&nine(&[]), &name(0), start, WITHIN);
    judgement.look_at(&nine(&gone), &name(0), at(1), WITHIN);
    judgement.look_at(&nine(&gone), &name(0), at(60), WITHIN);
    assert_eq!(judgement.outside(at(60)).lost, Some((4, 9)), "still");
    judgement.look_at(&nine(&gone), &name(0), at(61), WITHIN);
    assert_eq!(judgement.outside(at(61)).lost, None, "for so long");
    judgement.look_at(&nine(&[]), &name(0), at(70), WITHIN);
    judgement.look_at(&nine(&gone), &name(0), at(71), WITHIN);
    judgement.look_at(&nine(&three), &name(0), at(72), WITHIN);
    assert_eq!(judgement.outside(at(72)).lost, None, "one of them is back");
}

#[test]
fn the_longest_wait_counts_and_is_over_in_time() {
    let start = Instant::now();
    let at = |secs| start + Duration::from_secs(secs);
    let mut judgement = Judgement::default();
    assert_eq!(judgement.outside(start).settling, None);
    judgement.settle("short", at(5));
    judgement.settle("long", at(9));
    judgement.settle("shorter", at(2));
    let left = |secs| Some(("long", Duration::from_secs(secs)));
    assert_eq!(judgement.outside(start).settling, left(9));
    assert_eq!(judgement.outside(at(8)).settling, left(1));
    assert_eq!(judgement.outside(at(9)).settling, None);
    judgement.settle("again", at(20));
    assert!(judgement.outside(at(9)).settling.is_some());
}
