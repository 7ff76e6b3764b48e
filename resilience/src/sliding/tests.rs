//! The window against a list of everything that was ever counted.

use std::cell::Cell;

use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3_600_000_000_000;
const SECOND: u64 = 1_000_000_000;

/// One sum that grows by one a call, over ten seconds in ten steps.
struct Bench {
    sum: Cell<u64>,
    window: Sliding<1>,
}

impl Bench {
    fn new() -> Self {
        Self {
            sum: Cell::new(0),
            window: Sliding::new(10 * SECOND, 10),
        }
    }

    fn call(&self, at: u64) -> u64 {
        let end = self.window.turn(Tick(at), || [self.sum.get()]);
        self.sum.set(self.sum.get() + 1);
        let [held] = self.window.held_at(end, Tick(at), || [self.sum.get()]);
        held
    }

    fn held(&self, at: u64) -> u64 {
        let [held] = self.window.held(Tick(at), || [self.sum.get()]);
        held
    }
}

#[test]
fn a_clock_that_jumps_ahead_and_back_empties_the_window_and_does_not_stop_it() {
    for (name, jump) in [
        ("a hundred years ahead", HOUR + 100 * 365 * 24 * HOUR),
        ("as far as the clock goes", u64::MAX),
        ("almost", u64::MAX - 1),
        ("and less so", u64::MAX - 2),
    ] {
        let bench = Bench::new();
        for n in 1..=3 {
            assert_eq!(bench.call(HOUR), n, "{name}");
        }
        assert_eq!(bench.call(jump), 1, "{name}: what was before is long gone");
        assert_eq!(bench.call(jump), 2, "{name}: a clock that stands still");
        let back = HOUR + SECOND;
        assert_eq!(bench.call(back), 1, "{name}: back again, it begins anew");
        assert_eq!(bench.call(back + 9 * SECOND), 2, "{name}: and holds");
        assert_eq!(bench.call(back + 10 * SECOND), 2, "{name}: and slides");
        assert_eq!(bench.held(back + 30 * SECOND), 0, "{name}: and forgets");
    }
}

#[test]
fn the_first_instant_is_an_instant() {
    let bench = Bench::new();
    assert_eq!((bench.call(0), bench.call(0), bench.held(0)), (1, 2, 2));
    assert_eq!(bench.call(10 * SECOND), 1);
}

proptest! {
    /// Calls count in the step that they fall in; the window is that of the newest call and the
    /// nine before it.
    #[test]
    fn it_holds_what_a_list_says(
        gaps in prop::collection::vec(prop_oneof![0..SECOND, 0..30 * SECOND, 0..HOUR], 1..200),
    ) {
        let bench = Bench::new();
        let (mut now, mut steps, start) = (HOUR, Vec::new(), HOUR + gaps[0]);
        for gap in gaps {
            now += gap;
            let step = (now - start) / SECOND;
            steps.push(step);
            let expected = steps.iter().filter(|then| **then + 10 > step).count() as u64;
            prop_assert_eq!(bench.call(now), expected);
        }
    }
}
