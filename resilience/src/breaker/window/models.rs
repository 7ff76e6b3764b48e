//! Loom models of the short cut: no call that went badly is ever passed over by it.

use loom::{sync::Arc, thread};

use super::*;

const FAILED: Sample = Sample {
    failed: true,
    slow: false,
};
const NOW: Tick = Tick(1);

/// A good call while another fails; then one more good one, which must be told of the failure.
fn a_failure_is_seen_by_the_next_call(config: WindowConfig) {
    loom::model(move || {
        let window = Arc::new(Window::new(config, 2));
        assert!(window.record_good(Lane::here(), 0, NOW).is_none());
        let other = {
            let window = Arc::clone(&window);
            thread::spawn(move || window.record(Lane::here(), 0, NOW, FAILED).is_some())
        };
        window.record_good(Lane::here(), 0, NOW);
        assert!(other.join().expect("no panic"), "it sees itself");
        let judged = window.record_good(Lane::here(), 0, NOW);
        let failed = judged.map_or(0.0, |judged| judged.rates.failed);
        assert!(failed > 0.0, "passed over");
        assert_eq!(window.counts(NOW).total, 4);
    });
}

#[test]
fn a_window_over_calls_passes_no_failure_over() {
    a_failure_is_seen_by_the_next_call(WindowConfig::Calls(8));
}

#[test]
fn a_fading_window_passes_no_failure_over() {
    a_failure_is_seen_by_the_next_call(WindowConfig::Fading(8));
}

#[test]
fn a_window_over_time_passes_no_failure_over() {
    a_failure_is_seen_by_the_next_call(WindowConfig::Time(crate::config::Millis::new(1000)));
}

/// The last failure leaves a window over calls while another one comes.
#[test]
fn a_failure_that_comes_as_the_last_one_leaves_is_seen() {
    loom::model(|| {
        let window = Arc::new(Window::new(WindowConfig::Calls(1), 2));
        window.record(Lane::here(), 0, NOW, FAILED);
        let other = {
            let window = Arc::clone(&window);
            thread::spawn(move || {
                window.record(Lane::here(), 0, NOW, FAILED);
            })
        };
        window.record_good(Lane::here(), 0, NOW);
        other.join().expect("no panic");
        // One of the two is in the window, whichever came last; the short cut says the same.
        let short_cut = window.stamp(window.shapes.load(Ordering::Acquire))
            == window.spotless.load(Ordering::Acquire);
        let failed = window.counts(NOW).failed > 0;
        assert!(!(short_cut && failed), "a failure in a spotless window");
    });
}
