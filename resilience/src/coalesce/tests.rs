use std::{
    sync::atomic::{AtomicU32, Ordering},
    task::Wake,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use proptest::prelude::*;

use super::*;

fn key(name: &str) -> Key {
    Key::new(name.as_bytes())
}

#[derive(Default)]
struct Woken(AtomicU32);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn lead<T: Clone + fmt::Debug>(calls: &Coalescer<T>, name: &str) -> Lead<T> {
    match calls.join(key(name)) {
        Joined::Lead(lead) => lead,
        other => panic!("{other:?}"),
    }
}

fn follow<T: Clone + fmt::Debug>(calls: &Coalescer<T>, name: &str) -> Follow<T> {
    match calls.join(key(name)) {
        Joined::Follow(follow) => follow,
        other => panic!("{other:?}"),
    }
}

fn look<T: Clone>(follow: &mut Follow<T>) -> Poll<Turn<T>> {
    follow.poll(Waker::noop())
}

#[test]
fn everybody_who_waits_gets_the_answer_and_the_next_one_asks_again() {
    let calls = Coalescer::new(10);
    let first = lead(&calls, "a");
    let woken = Arc::new(Woken::default());
    let mut followers: Vec<_> = (0..3).map(|_| follow(&calls, "a")).collect();
    let other = lead(&calls, "b");
    let waker = Waker::from(Arc::clone(&woken));
    for follower in &mut followers {
        assert!(follower.poll(&waker).is_pending());
    }
    assert_eq!((calls.status().in_flight, calls.status().waiting), (2, 3));
    first.share(7);
    assert_eq!(woken.0.load(Ordering::Relaxed), 3);
    let late = lead(&calls, "a");
    for follower in &mut followers {
        assert!(matches!(look(follower), Poll::Ready(Turn::Answer(7))));
    }
    drop((late, other, followers));
    let status = calls.status();
    assert_eq!((status.in_flight, status.waiting), (0, 0));
    assert_eq!((status.led, status.followed, status.answered), (3, 3, 3));
}

#[test]
fn go_singleflight_a_leader_that_goes_away_fails_nobody() {
    let calls = Coalescer::<u32>::new(10);
    let first = lead(&calls, "a");
    let (mut one, mut two) = (follow(&calls, "a"), follow(&calls, "a"));
    drop(first);
    let Poll::Ready(Turn::Lead(second)) = look(&mut two) else {
        panic!("the first one that looks leads");
    };
    assert!(look(&mut one).is_pending());
    second.share(1);
    assert!(matches!(look(&mut one), Poll::Ready(Turn::Answer(1))));
    assert_eq!(calls.status().promoted, 1);
    assert_eq!(calls.status().in_flight, 0);
}

#[test]
fn a_vacant_lead_is_taken_by_who_comes_and_forgotten_with_who_leaves() {
    let calls = Coalescer::new(10);
    let (first, mut waits) = (lead(&calls, "a"), follow(&calls, "a"));
    drop(first);
    let second = lead(&calls, "a");
    assert!(look(&mut waits).is_pending());
    second.share(2);
    assert!(matches!(look(&mut waits), Poll::Ready(Turn::Answer(2))));

    let (first, waits) = (lead(&calls, "a"), follow(&calls, "a"));
    drop(first);
    drop(waits);
    assert_eq!((calls.status().in_flight, calls.status().waiting), (0, 0));
}

#[test]
fn an_answer_for_one_sends_the_others_on_their_own_way() {
    let calls = Coalescer::<u32>::new(10);
    let (first, mut one, mut two) = (lead(&calls, "a"), follow(&calls, "a"), follow(&calls, "a"));
    first.release();
    assert!(matches!(look(&mut one), Poll::Ready(Turn::Alone)));
    assert!(matches!(look(&mut two), Poll::Ready(Turn::Alone)));
    assert_eq!(calls.status().released, 2);
}

#[test]
fn a_leader_that_panics_ends_the_flight_and_no_other_caller() {
    let calls = Coalescer::<u32>::new(10);
    let (first, mut waits) = (lead(&calls, "a"), follow(&calls, "a"));
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _first = first;
        panic!("on purpose");
    }));
    assert!(panics.is_err());
    assert!(matches!(look(&mut waits), Poll::Ready(Turn::Broken)));
    assert_eq!(calls.status().in_flight, 0);
}

#[test]
fn keys_are_bounded_and_the_bound_can_change() {
    let calls = Coalescer::<u32>::new(1);
    let first = lead(&calls, "a");
    assert!(matches!(calls.join(key("b")), Joined::Alone));
    let _follows = follow(&calls, "a");
    calls.reconfigure(2);
    let _second = lead(&calls, "b");
    assert!(matches!(calls.join(key("c")), Joined::Alone));
    drop(first);
    assert_eq!(calls.status().full, 2);
}

/// What callers do, by number of the caller.
#[derive(Debug, Clone, Copy)]
enum Step {
    Join(u8),
    Look(usize),
    Share(usize),
    Release(usize),
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3u8).prop_map(Step::Join),
        3 => (0..8usize).prop_map(Step::Look),
        1 => (0..8usize).prop_map(Step::Share),
        1 => (0..8usize).prop_map(Step::Release),
        2 => (0..8usize).prop_map(Step::Leave),
    ]
}

enum Caller {
    Leads(u8, Lead<u32>),
    Waits(u8, Follow<u32>),
}

proptest! {
    /// Against the obvious: at most one leads a key; a wait can end at once if nobody leads; when
    /// all have left, nothing is left.
    #[test]
    fn one_leads_and_nobody_waits_for_nobody(steps in prop::collection::vec(step(), 1..80)) {
        let calls = Coalescer::new(16);
        let mut callers: Vec<Caller> = Vec::new();
        let leads = |callers: &[Caller], key| {
            let leads = |c: &&Caller| matches!(c, Caller::Leads(k, _) if *k == key);
            callers.iter().filter(leads).count()
        };
        for step in steps {
            let at = |n: usize| (!callers.is_empty()).then(|| n % callers.len());
            match step {
                Step::Join(k) => {
                    let led = leads(&callers, k);
                    match calls.join(Key::new([k])) {
                        Joined::Lead(lead) => {
                            prop_assert_eq!(led, 0);
                            callers.push(Caller::Leads(k, lead));
                        }
                        Joined::Follow(follow) => {
                            prop_assert_eq!(led, 1);
                            callers.push(Caller::Waits(k, follow));
                        }
                        Joined::Alone => prop_assert!(false, "there is room"),
                    }
                }
                Step::Look(n) => {
                    let Some(n) = at(n) else { continue };
                    let Caller::Waits(k, mut follow) = callers.swap_remove(n) else { continue };
                    let led = leads(&callers, k);
                    match look(&mut follow) {
                        Poll::Pending => {
                            prop_assert_eq!(led, 1, "waits for nobody");
                            callers.push(Caller::Waits(k, follow));
                        }
                        Poll::Ready(Turn::Lead(lead)) => {
                            prop_assert_eq!(led, 0);
                            callers.push(Caller::Leads(k, lead));
                        }
                        Poll::Ready(Turn::Answer(answer)) => prop_assert_eq!(answer, u32::from(k)),
                        Poll::Ready(Turn::Alone) => {}
                        Poll::Ready(Turn::Broken) => prop_assert!(false, "nobody panics"),
                    }
                }
                Step::Share(n) => {
                    let Some(n) = at(n) else { continue };
                    match callers.swap_remove(n) {
                        Caller::Leads(k, lead) => lead.share(u32::from(k)),
                        waits @ Caller::Waits(..) => callers.push(waits),
                    }
                }
                Step::Release(n) => {
                    let Some(n) = at(n) else { continue };
                    match callers.swap_remove(n) {
                        Caller::Leads(_, lead) => lead.release(),
                        waits @ Caller::Waits(..) => callers.push(waits),
                    }
                }
                Step::Leave(n) => {
                    let Some(n) = at(n) else { continue };
                    callers.swap_remove(n);
                }
            }
        }
        callers.clear();
        let status = calls.status();
        prop_assert_eq!((status.in_flight, status.waiting), (0, 0));
    }
}

type List = &'static [(&'static str, &'static str)];

fn headers(list: &[(&str, &str)]) -> HeaderMap {
    let mut all = HeaderMap::new();
    for (name, value) in list {
        let name: HeaderName = name.parse().expect("name");
        all.append(name, HeaderValue::from_str(value).expect("value"));
    }
    all
}

#[test]
fn what_makes_two_requests_the_same() {
    let rules = KeyRules::new(&CoalesceConfig::default()).expect("works");
    let key = |method: Method, uri: &str, list: &[(&str, &str)]| {
        rules.key(&method, &uri.parse::<Uri>().expect("uri"), &headers(list))
    };
    let base = key(Method::GET, "/a?x=1", &[("host", "h")]).expect("coalesced");
    let same: [(&str, &[(&str, &str)]); 2] = [
        ("/a?x=1", &[("host", "h"), ("x-request-id", "1")]),
        ("/a?x=1", &[("host", "h"), ("user-agent", "curl")]),
    ];
    for (uri, list) in same {
        assert_eq!(key(Method::GET, uri, list), Some(base.clone()), "{list:?}");
    }
    let others: [(Method, &str, List); 9] = [
        (Method::HEAD, "/a?x=1", &[("host", "h")]),
        (Method::GET, "/a?x=2", &[("host", "h")]),
        (Method::GET, "/a", &[("host", "h")]),
        (Method::GET, "/a?x=1", &[("host", "i")]),
        (
            Method::GET,
            "/a?x=1",
            &[("host", "h"), ("authorization", "Bearer 1")],
        ),
        (
            Method::GET,
            "/a?x=1",
            &[("host", "h"), ("range", "bytes=0-1")],
        ),
        (
            Method::GET,
            "/a?x=1",
            &[("host", "h"), ("if-none-match", "\"e\"")],
        ),
        (
            Method::GET,
            "/a?x=1",
            &[("host", "h"), ("accept", "text/html")],
        ),
        (Method::GET, "http://h/a?x=1", &[("host", "h")]),
    ];
    for (method, uri, list) in others {
        let other = key(method, uri, list).expect("coalesced");
        assert_ne!(other, base, "{uri} {list:?}");
    }
    let alone: [(Method, List); 8] = [
        (Method::POST, &[]),
        (Method::DELETE, &[]),
        (Method::OPTIONS, &[]),
        (Method::GET, &[("cookie", "a=b")]),
        (Method::GET, &[("upgrade", "websocket")]),
        (Method::GET, &[("cache-control", "max-age=0, no-cache")]),
        (Method::GET, &[("cache-control", "No-Store")]),
        (Method::GET, &[("pragma", "no-cache")]),
    ];
    for (method, list) in alone {
        assert_eq!(key(method, "/", list), None, "{list:?}");
    }
}

#[test]
fn no_two_lists_of_headers_look_the_same() {
    let config = CoalesceConfig {
        headers: vec!["a".into(), "b".into()],
        cookies: true,
        ..CoalesceConfig::default()
    };
    let rules = KeyRules::new(&config).expect("works");
    let uri = Uri::from_static("/");
    let lists: [&[(&str, &str)]; 7] = [
        &[],
        &[("a", "xy")],
        &[("a", "x"), ("a", "y")],
        &[("b", "xy")],
        &[("a", "x"), ("b", "y")],
        &[("a", "")],
        &[("cookie", "a=b")],
    ];
    let keys: std::collections::HashSet<_> = lists
        .iter()
        .map(|list| rules.key(&Method::GET, &uri, &headers(list)).expect("key"))
        .collect();
    assert_eq!(keys.len(), lists.len());
}

#[test]
fn whose_answer_it_is() {
    let rules = KeyRules::new(&CoalesceConfig::default()).expect("works");
    let cases: [(&str, u16, List, bool); 13] = [
        ("plain", 200, &[], true),
        ("not found", 404, &[], true),
        ("an error", 503, &[], true),
        (
            "public",
            200,
            &[("cache-control", "public, max-age=60")],
            true,
        ),
        ("covered", 200, &[("vary", "Accept-Encoding, Origin")], true),
        ("not covered", 200, &[("vary", "accept, x-tenant")], false),
        ("by anything", 200, &[("vary", "*")], false),
        ("a session", 200, &[("set-cookie", "s=1")], false),
        ("private", 200, &[("cache-control", "private=\"x\"")], false),
        ("no-store", 200, &[("cache-control", "no-store")], false),
        (
            "events",
            200,
            &[("content-type", "Text/Event-Stream;charset=utf-8")],
            false,
        ),
        (
            "grpc",
            200,
            &[("content-type", "application/grpc+proto")],
            false,
        ),
        ("no answer yet", 101, &[], false),
    ];
    for (name, status, list, want) in cases {
        let status = StatusCode::from_u16(status).expect("status");
        assert_eq!(rules.may_share(status, &headers(list)), want, "{name}");
    }
}

proptest! {
    #[test]
    fn keys_of_two_halves_are_equal_only_if_both_are(
        a: Vec<u8>, b: Vec<u8>, c: Vec<u8>, d: Vec<u8>,
    ) {
        let of = |one: &[u8], more: &[u8]| Key::new(one).and(more);
        prop_assert_eq!(of(&a, &b) == of(&c, &d), (&a, &b) == (&c, &d));
        // The same bytes, cut elsewhere.
        let all = [&a[..], &b].concat();
        for cut in 0..=all.len() {
            let same = cut == a.len();
            prop_assert_eq!(of(&all[..cut], &all[cut..]) == of(&a, &b), same);
        }
    }
}
