use std::net::SocketAddr;

use selvedge_registry::Locality;

use super::*;

const PATIENCE: Duration = Duration::from_millis(3_500);

fn member(generation: u64, state: MemberState) -> Member {
    let addr = SocketAddr::from(([127, 0, 0, 1], 7900));
    Member {
        generation,
        gossip: addr,
        http: addr,
        state,
        locality: Locality::default(),
        head: None,
        buckets: None,
        facts: BTreeMap::new(),
    }
}

/// A life of "a".
fn life(generation: u64, heartbeat: u64, alive: bool) -> Sighting {
    Sighting {
        node: "a".into(),
        generation,
        heartbeat,
        alive,
        member: Some(member(generation, MemberState::Serving)),
    }
}

fn leaving(generation: u64, heartbeat: u64, alive: bool) -> Sighting {
    Sighting {
        member: Some(member(generation, MemberState::Left)),
        ..life(generation, heartbeat, alive)
    }
}

fn unheard(generation: u64) -> Sighting {
    Sighting {
        member: None,
        ..life(generation, 1, false)
    }
}

/// What is seen, how many milliseconds after what was seen before, what it means, and the
/// generation of the member and its state afterwards.
type Step = (
    &'static str,
    u64,
    Vec<Sighting>,
    Option<Event>,
    Option<(u64, MemberState)>,
);

fn tell(story: &str, steps: Vec<Step>) {
    let mut roster = Roster::new("me".into(), 1);
    let mut now = Instant::now();
    for (what, ms, seen, event, after) in steps {
        now += Duration::from_millis(ms);
        let events = roster.observe(now, seen.into_iter(), PATIENCE);
        let got = events.first().map(|(_, event)| *event);
        assert_eq!(got, event, "{story}: {what}");
        assert!(events.len() < 2, "{story}: {what}: {events:?}");
        let mut all = roster.members();
        all.extend(roster.dead());
        let shown = all.get("a").map(|member| (member.generation, member.state));
        assert_eq!(shown, after, "{story}: {what}");
    }
}

use MemberState::{Dead, Left, Serving};

#[test]
fn a_kill_is_a_failure_and_a_goodbye_is_not() {
    tell(
        "killed",
        vec![
            ("first word", 0, vec![life(5, 1, false)], None, None),
            (
                "alive",
                500,
                vec![life(5, 3, true)],
                Some(Event::Joined),
                Some((5, Serving)),
            ),
            (
                "silent, not for long",
                2_000,
                vec![life(5, 3, false)],
                None,
                Some((5, Serving)),
            ),
            (
                "silent",
                2_000,
                vec![life(5, 3, false)],
                Some(Event::Failed),
                Some((5, Dead)),
            ),
            (
                "once is enough",
                500,
                vec![life(5, 3, false)],
                None,
                Some((5, Dead)),
            ),
            (
                "forgotten by chitchat",
                600_000,
                vec![],
                None,
                Some((5, Dead)),
            ),
            ("forgotten", 300_000, vec![], None, None),
        ],
    );
    tell(
        "left",
        vec![
            (
                "alive",
                0,
                vec![life(5, 3, true)],
                Some(Event::Joined),
                Some((5, Serving)),
            ),
            (
                "goodbye",
                500,
                vec![leaving(5, 4, true)],
                Some(Event::Left),
                Some((5, Left)),
            ),
            (
                "silent",
                9_000,
                vec![leaving(5, 4, false)],
                None,
                Some((5, Left)),
            ),
            (
                "forgotten by chitchat",
                600_000,
                vec![],
                None,
                Some((5, Left)),
            ),
            ("forgotten", 300_000, vec![], None, None),
        ],
    );
    tell(
        "the goodbye comes after the death",
        vec![
            (
                "alive",
                0,
                vec![life(5, 3, true)],
                Some(Event::Joined),
                Some((5, Serving)),
            ),
            (
                "silent",
                4_000,
                vec![life(5, 3, false)],
                Some(Event::Failed),
                Some((5, Dead)),
            ),
            (
                "goodbye",
                500,
                vec![leaving(5, 4, false)],
                Some(Event::Left),
                Some((5, Left)),
            ),
            (
                "not twice",
                500,
                vec![leaving(5, 4, false)],
                None,
                Some((5, Left)),
            ),
        ],
    );
}

#[test]
fn a_later_life_takes_the_earlier_ones_place() {
    let both = |earlier_beats, earlier, later_beats, later| {
        vec![life(5, earlier_beats, earlier), life(6, later_beats, later)]
    };
    tell(
        "restarted quicker than its death was noticed",
        vec![
            (
                "alive",
                0,
                vec![life(5, 3, true)],
                Some(Event::Joined),
                Some((5, Serving)),
            ),
            (
                "new life, not heard twice yet",
                1_000,
                both(3, true, 1, false),
                None,
                Some((5, Serving)),
            ),
            (
                "its facts are missing",
                500,
                vec![life(5, 3, true), unheard(6)],
                None,
                Some((5, Serving)),
            ),
            (
                "heard",
                1_000,
                both(3, true, 3, true),
                Some(Event::Restarted),
                Some((6, Serving)),
            ),
            (
                "the old one dies unnoticed",
                2_000,
                both(3, false, 5, true),
                None,
                Some((6, Serving)),
            ),
        ],
    );
    tell(
        "left and came back",
        vec![
            (
                "alive",
                0,
                vec![life(5, 3, true)],
                Some(Event::Joined),
                Some((5, Serving)),
            ),
            (
                "goodbye",
                500,
                vec![leaving(5, 4, true)],
                Some(Event::Left),
                Some((5, Left)),
            ),
            (
                "back",
                9_000,
                vec![leaving(5, 4, false), life(6, 3, true)],
                Some(Event::Joined),
                Some((6, Serving)),
            ),
        ],
    );
    tell(
        "an earlier life never takes a later one's place",
        vec![
            (
                "alive",
                0,
                vec![life(6, 3, true)],
                Some(Event::Joined),
                Some((6, Serving)),
            ),
            (
                "both",
                500,
                both(9, true, 4, true),
                None,
                Some((6, Serving)),
            ),
            (
                "the later dies",
                4_000,
                both(20, true, 4, false),
                Some(Event::Failed),
                Some((6, Dead)),
            ),
            (
                "chitchat forgot it",
                800_000,
                vec![life(5, 99, true)],
                None,
                Some((6, Dead)),
            ),
            ("forgotten", 100_000, vec![life(5, 100, true)], None, None),
            (
                "now it may",
                500,
                vec![life(5, 101, true)],
                Some(Event::Joined),
                Some((5, Serving)),
            ),
        ],
    );
}

#[test]
fn one_link_or_ones_own_pause_kills_nobody() {
    tell(
        "the detector wavers",
        vec![
            (
                "alive",
                0,
                vec![life(5, 3, true)],
                Some(Event::Joined),
                Some((5, Serving)),
            ),
            (
                "given up, but it beats",
                3_000,
                vec![life(5, 4, false)],
                None,
                Some((5, Serving)),
            ),
            (
                "and again",
                3_000,
                vec![life(5, 5, false)],
                None,
                Some((5, Serving)),
            ),
            (
                "recovered",
                3_000,
                vec![life(5, 6, true)],
                None,
                Some((5, Serving)),
            ),
        ],
    );
    tell(
        "partition",
        vec![
            (
                "alive",
                0,
                vec![life(5, 3, true)],
                Some(Event::Joined),
                Some((5, Serving)),
            ),
            (
                "cut",
                4_000,
                vec![life(5, 3, false)],
                Some(Event::Failed),
                Some((5, Dead)),
            ),
            (
                "healed",
                60_000,
                vec![life(5, 9, true)],
                Some(Event::Recovered),
                Some((5, Serving)),
            ),
        ],
    );
    let mut roster = Roster::new("me".into(), 1);
    let now = Instant::now();
    let minute = Duration::from_secs(60);
    roster.observe(now, [life(5, 3, true)].into_iter(), PATIENCE);
    roster.stood_still(minute);
    let late = now + minute + Duration::from_secs(1);
    let events = roster.observe(late, [life(5, 3, false)].into_iter(), PATIENCE);
    assert_eq!(events, vec![], "this process stood still, not that server");
    // A verdict says what it was reached by: the silence, and not that standstill.
    let later = late + PATIENCE;
    let events = roster.observe(later, [life(5, 3, false)].into_iter(), PATIENCE);
    assert_eq!(events, [("a".into(), Event::Failed)]);
    let silent = PATIENCE + Duration::from_secs(1);
    assert_eq!(roster.silent_for("a", later), Some(silent));
    assert_eq!(roster.silent_for("b", later), None);
}

#[test]
fn a_second_process_of_the_same_name_is_noticed_by_the_lower() {
    let mut roster = Roster::new("a".into(), 5);
    let now = Instant::now();
    roster.observe(now, [life(5, 1, true)].into_iter(), PATIENCE);
    assert_eq!(roster.superseded(), None);
    assert_eq!(
        (roster.members().len(), roster.heard()),
        (1, 0),
        "itself, and no peer"
    );
    roster.observe(
        now,
        [life(4, 9, true), life(5, 2, true)].into_iter(),
        PATIENCE,
    );
    assert_eq!(
        roster.superseded(),
        None,
        "an earlier life is not its concern"
    );
    roster.observe(now, [life(5, 3, true), unheard(6)].into_iter(), PATIENCE);
    assert_eq!(
        roster.superseded(),
        Some(6),
        "even one that is not alive yet"
    );
}
