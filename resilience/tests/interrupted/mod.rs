//! Calls that do not run to their end, through every layer: dropped at every poll, or with a callee
//! that panics wherever it can. Whatever happened, nothing is held afterwards, whoever else waits
//! gets an answer, and the next call is served.
//!
//! A layer is one row of [`table::ROWS`]; a test sees to it that every layer which the crate exports
//! has one.

mod call;
mod callee;
mod table;

use std::time::Duration;

use self::{
    call::{Call, End},
    callee::{At, Callee, Reply, Script},
    table::{ROWS, Row, Under},
};

const SCRIPTS: &[Script] = &[
    Script {
        name: "at once",
        pending: 0,
        grpc: false,
        replies: &[],
    },
    Script {
        name: "after a while",
        pending: 2,
        grpc: false,
        replies: &[],
    },
    Script {
        name: "both late",
        pending: 0,
        grpc: false,
        replies: &[Reply::Late, Reply::Late],
    },
    Script {
        name: "late, and what overtakes it fails",
        pending: 1,
        grpc: false,
        replies: &[Reply::Late, Reply::Unavailable, Reply::Late, Reply::Broken],
    },
    Script {
        name: "hangs, then good",
        pending: 0,
        grpc: false,
        replies: &[Reply::Hangs, Reply::Good],
    },
    Script {
        name: "unavailable, then good",
        pending: 1,
        grpc: false,
        replies: &[Reply::Unavailable, Reply::Good],
    },
    Script {
        name: "broken, then good",
        pending: 1,
        grpc: false,
        replies: &[Reply::Broken, Reply::Good],
    },
    Script {
        name: "cut, then good",
        pending: 1,
        grpc: false,
        replies: &[Reply::Cut, Reply::Good],
    },
    Script {
        name: "gRPC, whose first frame is waited for",
        pending: 2,
        grpc: true,
        replies: &[],
    },
    Script {
        name: "gRPC, both late",
        pending: 1,
        grpc: true,
        replies: &[Reply::Late, Reply::Late],
    },
    Script {
        name: "gRPC, unavailable and cut, then good",
        pending: 1,
        grpc: true,
        replies: &[Reply::Unavailable, Reply::Cut, Reply::Good],
    },
];

/// How one of two calls is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// By its caller: that one, in that turn.
    Dropped(usize, u32),
    /// By the callee.
    Panics(At),
}

/// Turns in which everything must have ended: more than there are polls and milliseconds in it.
const PATIENCE: u32 = 1_000;

/// Two calls, the second once the first is made, so that it waits where there is something to wait
/// for; in each turn one of them goes one poll further, or a millisecond passes. Whether the
/// interruption came to pass.
async fn interrupt(row: &Row, script: &Script, cut: Cut) -> bool {
    let what = format!("{}, {}, {cut:?}", row.name, script.name);
    let callee = Callee::new(
        *script,
        match cut {
            Cut::Panics(at) => Some(at),
            Cut::Dropped(..) => None,
        },
    );
    let Under { service, books } = (row.make)(callee.clone());
    let mut calls = [(); 2].map(|()| Some(Call::new(service.clone())));
    let mut dropped = None;
    for turn in 0.. {
        for (which, call) in calls.iter_mut().enumerate() {
            let runs = call.as_ref().is_some_and(|it| it.end().is_none());
            if runs && cut == Cut::Dropped(which, turn) {
                *call = None;
                dropped = Some(which);
            }
        }
        let over = |call: &Option<Call>| call.as_ref().is_none_or(|it| it.end().is_some());
        if calls.iter().all(over) {
            break;
        }
        let is_made = calls[0].as_ref().is_none_or(Call::is_made);
        let goes = |which: usize| which == 0 || is_made;
        let turns = [turn as usize % 2, (turn as usize + 1) % 2];
        let moved = turns
            .into_iter()
            .filter(|which| goes(*which))
            .any(|which| calls[which].as_mut().is_some_and(Call::step));
        let ends = calls.each_ref().map(|it| it.as_ref().map(Call::end));
        assert!(turn < PATIENCE, "{what}: nobody is woken: {ends:?}");
        if moved {
            tokio::task::yield_now().await;
        } else {
            tokio::time::advance(Duration::from_millis(1)).await;
        }
    }
    let ends = calls.each_ref().map(|it| it.as_ref().and_then(Call::end));
    if let Some(gone) = dropped
        && script.is_healthy()
        && !row.one_at_a_time
    {
        assert!(ends[1 - gone].is_some_and(End::is_good), "{what}: {ends:?}");
    }
    if !callee.has_panicked() {
        assert!(!ends.contains(&Some(&End::Panicked)), "{what}: {ends:?}");
    }
    drop(calls);
    check(&what, "after the calls", &callee, &books);
    let happened = dropped.is_some() || callee.has_panicked();

    callee.heal();
    let mut next = Call::new(service);
    for _ in 0..PATIENCE {
        if next.end().is_some() {
            break;
        }
        if !next.step() {
            tokio::time::advance(Duration::from_millis(1)).await;
        }
    }
    if script.is_healthy() || !row.remembers_failures {
        assert!(
            next.end().is_some_and(End::is_good),
            "{what}: the next call: {:?}",
            next.end()
        );
    }
    drop(next);
    check(&what, "after the next call", &callee, &books);
    happened
}

fn check(what: &str, when: &str, callee: &Callee, books: &table::Books) {
    for (account, left) in books() {
        assert_eq!(left, 0, "{what}: {account} {when}");
    }
    assert_eq!(callee.open(), 0, "{what}: of the callee's {when}");
    assert!(!callee.was_misused(), "{what}: readied, not called twice");
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_at_any_poll_leaves_nothing_behind() {
    for (row, script) in pairs() {
        for which in 0..2 {
            let mut turn = 0;
            while interrupt(row, script, Cut::Dropped(which, turn)).await {
                turn += 1;
            }
            // Ready, made, its answer, and the frames of its body; or a refusal.
            let enough = turn >= 7 || row.one_at_a_time;
            assert!(enough, "{}, {}: {turn}", row.name, script.name);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_callee_that_panics_anywhere_leaves_nothing_behind() {
    for (row, script) in pairs() {
        let mut happened = Vec::new();
        for at in places(script) {
            if interrupt(row, script, Cut::Panics(at)).await {
                happened.push(at);
            }
        }
        // Where the first call answers by itself, nothing of it is passed over.
        for first in [At::Ready(0), At::Call(0), At::Poll(0, 0), At::Frame(0, 0)] {
            let was_there = happened.contains(&first) || !script.replies.is_empty();
            assert!(was_there, "{}, {}: {happened:?}", row.name, script.name);
        }
    }
}

fn pairs() -> impl Iterator<Item = (&'static Row, &'static Script)> {
    let rows = ROWS.iter();
    rows.flat_map(|row| SCRIPTS.iter().map(move |script| (row, script)))
}

/// Everywhere that a panic can come from in the first three calls.
fn places(script: &Script) -> impl Iterator<Item = At> {
    let polls = script.pending + 1;
    let frames = (script.pending + 1) * (callee::FRAMES.len() as u32 + 1);
    let calls = (0..3).flat_map(move |nth| {
        let polls = (0..polls).map(move |poll| At::Poll(nth, poll));
        let frames = (0..frames).map(move |frame| At::Frame(nth, frame));
        [At::Call(nth)].into_iter().chain(polls).chain(frames)
    });
    (0..3 * polls).map(At::Ready).chain(calls)
}

#[test]
fn every_layer_that_the_crate_exports_is_in_the_table() {
    let source = include_str!("../../src/layer/mod.rs");
    let exports = source
        .split_once("pub use self::{")
        .and_then(|(_, rest)| rest.split_once("};"))
        .expect("the exports of the module")
        .0;
    let words = exports.split(|c: char| !c.is_alphanumeric());
    let mut exported: Vec<&str> = words.filter(|word| word.ends_with("Layer")).collect();
    let mut listed: Vec<&str> = ROWS.iter().flat_map(|row| row.layers).copied().collect();
    for names in [&mut exported, &mut listed] {
        names.sort_unstable();
        names.dedup();
    }
    assert_eq!(listed, exported);
}
