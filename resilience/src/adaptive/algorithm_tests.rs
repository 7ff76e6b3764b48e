//! The reference's cases ADP-1 to ADP-4 and THR-2, to the digit.

use super::*;
use crate::config::Ratio;

#[path = "../../cases/table/mod.rs"]
mod table;

const MS: f64 = 1e6;

fn bounds(min: u32, max: u32, initial: u32) -> Bounds {
    Bounds {
        min: f64::from(min),
        max: f64::from(max),
        initial: f64::from(initial),
    }
}

fn sample(rtt_ms: f64, in_flight: u32) -> Sample {
    Sample {
        mean: rtt_ms * MS,
        median: rtt_ms * MS,
        in_flight,
        dropped: false,
    }
}

fn drop_of(in_flight: u32) -> Sample {
    Sample {
        dropped: true,
        ..sample(1.0, in_flight)
    }
}

/// The limits after each sample.
fn run(config: &AlgorithmConfig, bounds: Bounds, samples: &[Sample]) -> Vec<u32> {
    let rng = Rng::new(1);
    let (mut algorithm, _) = Algorithm::start(config, bounds, &rng);
    samples
        .iter()
        .map(|sample| algorithm.update(sample, bounds, Tick(0), &rng).limit)
        .collect()
}

/// The third driver of the behaviour tables: this kind is about a rule alone.
#[test]
#[cfg_attr(miri, ignore = "reads files, and one thread does arithmetic")]
fn every_case_of_the_tables() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/cases");
    let cases = table::Tables::read(dir.as_ref()).adaptive;
    assert!(!cases.is_empty(), "no cases of kind adaptive");
    for case in &cases {
        let samples: Vec<_> = case
            .samples
            .iter()
            .map(|s| Sample {
                dropped: s.dropped,
                ..sample(s.rtt, s.in_flight)
            })
            .collect();
        let want: Vec<_> = case.samples.iter().map(|s| s.limit).collect();
        let bounds = bounds(case.min, case.max, case.initial);
        let got = run(&case.algorithm, bounds, &samples);
        assert_eq!(got, want, "{}", case.name);
    }
}

#[test]
fn adp_1_vegas() {
    let vegas = AlgorithmConfig::Vegas(VegasConfig::default());
    let halving = |smoothing| {
        AlgorithmConfig::Vegas(VegasConfig {
            decrease: Some(Ratio::percent(50)),
            smoothing: Ratio::percent(smoothing),
            ..VegasConfig::default()
        })
    };
    let small = bounds(1, 20, 10);
    let full = |rtt| sample(rtt, 100);
    let cases = [
        (
            "run 1",
            &vegas,
            small,
            vec![sample(10.0, 10), sample(10.0, 11)],
            vec![10, 16],
        ),
        (
            "run 2",
            &vegas,
            small,
            vec![sample(10.0, 10), sample(50.0, 11)],
            vec![10, 9],
        ),
        (
            "run 3",
            &vegas,
            small,
            vec![sample(10.0, 10), sample(14.0, 14)],
            vec![10, 10],
        ),
        (
            "default functions",
            &vegas,
            bounds(1, 20_000, 10_000),
            vec![sample(10_000.0, 5000), sample(10_000.0, 6000)],
            vec![10_000, 10_024],
        ),
        (
            "decrease x/2",
            &halving(100),
            bounds(1, 200, 100),
            vec![full(10.0), full(20.0), full(20.0)],
            vec![100, 50, 25],
        ),
        (
            "smoothing .5",
            &halving(50),
            bounds(1, 200, 100),
            vec![full(10.0), full(20.0), full(20.0)],
            vec![100, 75, 56],
        ),
    ];
    for (name, config, bounds, samples, want) in cases {
        assert_eq!(run(config, bounds, &samples), want, "{name}");
    }
}

#[test]
fn vegas_measures_the_idle_round_trip_anew() {
    let config = AlgorithmConfig::Vegas(VegasConfig {
        probe_every: 1,
        ..VegasConfig::default()
    });
    // The callee has become slower for good: within 1 × limit windows the limit grows again.
    let mut samples = vec![sample(10.0, 20)];
    samples.extend([sample(30.0, 20); 60]);
    let limits = run(&config, bounds(1, 100, 20), &samples);
    let lowest = limits.iter().min().expect("some");
    assert!(*lowest < 20 && limits.last() > Some(lowest), "{limits:?}");
}

#[test]
fn adp_2_aimd() {
    let aimd = AlgorithmConfig::Aimd(AimdConfig::default());
    let cases = [
        ("half used grows", bounds(10, 200, 20), sample(1.0, 10), 21),
        ("less is held", bounds(10, 200, 20), sample(1.0, 9), 20),
        ("a drop", bounds(10, 200, 30), drop_of(30), 27),
        ("at the top", bounds(10, 21, 21), sample(1.0, 21), 21),
        ("at the bottom", bounds(10, 200, 10), drop_of(10), 10),
    ];
    for (name, bounds, sample, want) in cases {
        assert_eq!(run(&aimd, bounds, &[sample]), [want], "{name}");
    }
}

#[test]
fn adp_3_gradient2() {
    let gradient = AlgorithmConfig::Gradient2(Gradient2Config::default());
    let mut samples = vec![sample(10.0, 20); 10];
    samples.extend([sample(100.0, 30); 5]);
    samples.extend([sample(10.0, 30); 5]);
    let want = [
        20, 21, 22, 23, 24, 24, 25, 26, 27, 28, // idle
        26, 24, 22, 21, 19, // ten times slower
        20, 21, 22, 23, 23, // and back
    ];
    assert_eq!(run(&gradient, bounds(1, 200, 20), &samples), want);
    for (in_flight, want) in [(49, 100.0), (50, 100.8)] {
        let mut algorithm = Gradient2::new(Gradient2Config::default(), bounds(1, 200, 100));
        let limit = algorithm.update(&sample(10.0, in_flight), bounds(1, 200, 100));
        assert!(
            (limit - want).abs() < 1e-9,
            "{in_flight} in flight: {limit}"
        );
        let held = algorithm.update(&sample(10.0, 50), bounds(1, 200, 100));
        if in_flight == 50 {
            assert_eq!(held, limit, "50 is less than half of 100.8");
        }
    }
}

#[test]
fn netflix_gradient2_ignores_drops_every_one_of_ours_reacts() {
    let all = [
        AlgorithmConfig::Aimd(AimdConfig::default()),
        AlgorithmConfig::Vegas(VegasConfig::default()),
        AlgorithmConfig::Gradient2(Gradient2Config::default()),
    ];
    for config in all {
        let mut samples = vec![sample(10.0, 60); 3];
        samples.extend([drop_of(60); 20]);
        let limits = run(&config, bounds(5, 200, 100), &samples);
        let falls = limits[2..].windows(2).all(|w| w[1] <= w[0]);
        assert!(falls && limits[22] < limits[2], "{config:?}: {limits:?}");
    }
    let bounds = bounds(5, 200, 100);
    let mut gradient = Gradient::new(GradientConfig::default(), bounds);
    gradient.idle_rtt = 10.0 * MS;
    gradient.measure_at.set_never();
    let verdict = gradient.update(&drop_of(50), bounds, Tick(0), &Rng::new(1));
    assert_eq!(verdict.limit, 50);
}

/// A refusal comes fast, a timeout late: neither is a round trip to learn from.
#[test]
fn dropped_calls_spoil_no_baseline() {
    let bounds = bounds(5, 200, 100);
    let mut vegas = Vegas::new(VegasConfig::default(), bounds, &Rng::new(1));
    vegas.update(&sample(10.0, 50), bounds, &Rng::new(1));
    vegas.update(&drop_of(50), bounds, &Rng::new(1));
    assert_eq!(vegas.idle_rtt, Some(10.0 * MS));
    let mut gradient = Gradient2::new(Gradient2Config::default(), bounds);
    gradient.update(&sample(10.0, 50), bounds);
    gradient.update(&drop_of(50), bounds);
    assert_eq!((gradient.long.count, gradient.long.value), (1, 10.0 * MS));
}

fn envoy(limit: u32, max: u32) -> (Gradient, Bounds) {
    let bounds = bounds(3, max, limit);
    let mut gradient = Gradient::new(GradientConfig::default(), bounds);
    gradient.idle_rtt = 10.0 * MS;
    gradient.measure_at.set_never();
    (gradient, bounds)
}

#[test]
fn adp_4_envoys_gradient() {
    let cases = [
        (100, 1000, 10.0, 136),
        (100, 1000, 12.5, 110),
        (100, 1000, 25.0, 57),
        (100, 1000, 100.0, 57),
        (100, 1000, 5.0, 214),
        (900, 1000, 10.0, 1000),
    ];
    for (limit, max, rtt, want) in cases {
        let (mut gradient, bounds) = envoy(limit, max);
        let verdict = gradient.update(&sample(rtt, limit), bounds, Tick(0), &Rng::new(1));
        assert_eq!(verdict, Verdict::limit(f64::from(want)), "{limit} {rtt}");
    }
}

#[test]
fn adp_4_measures_at_the_lowest_limit_then_goes_on_from_where_it_was() {
    let config = GradientConfig {
        measure_limit: 7,
        ..GradientConfig::default()
    };
    let (bounds, rng) = (bounds(7, 1000, 40), Rng::new(1));
    let config = AlgorithmConfig::Gradient(config);
    let (mut algorithm, verdict) = Algorithm::start(&config, bounds, &rng);
    assert_eq!((verdict.limit, verdict.next), (7, Next::Fresh(50)));
    let verdict = algorithm.update(&sample(13.0, 7), bounds, Tick(0), &rng);
    assert_eq!((verdict.limit, verdict.next), (40, Next::FreshWindow));
    let Algorithm::Gradient(gradient) = &algorithm else {
        panic!("as configured")
    };
    assert_eq!(gradient.idle_rtt, 13.0 * MS);
    let due = |after| gradient.measure_at.is_now(Tick(after));
    assert!(!due(60_000 * MS as u64 - 1), "60 s");
    assert!(due(69_000 * MS as u64), "and up to 15 % more");

    let verdict = algorithm.update(&sample(13.0, 40), bounds, Tick(u64::MAX), &rng);
    assert_eq!(verdict.next, Next::Fresh(50), "its time has come");
}

#[test]
fn adp_4_five_windows_at_the_floor_put_the_baseline_in_doubt() {
    let (mut gradient, bounds) = envoy(3, 1000);
    let slow = sample(1000.0, 3);
    for window in 1..=5 {
        let verdict = gradient.update(&slow, bounds, Tick(0), &Rng::new(1));
        assert_eq!(verdict.next == Next::Fresh(50), window == 5, "{window}");
    }
}

/// A callee that works on 16 calls at once, each 10 ms: what is beyond only waits there.
fn round_trip(limit: u32) -> f64 {
    10.0 * (f64::from(limit) / 16.0).max(1.0)
}

#[test]
fn every_algorithm_finds_the_callees_concurrency() {
    let cases = [
        // From above it would take the crowded round trip for the idle one: begin low.
        (
            "vegas",
            AlgorithmConfig::Vegas(VegasConfig::default()),
            &[4][..],
            16..=32,
        ),
        (
            "gradient",
            AlgorithmConfig::Gradient(GradientConfig::default()),
            &[4, 200],
            16..=40,
        ),
        // Its baseline drifts with what it sees: drops are what stops it.
        (
            "gradient2",
            AlgorithmConfig::Gradient2(Gradient2Config::default()),
            &[4, 200],
            16..=100,
        ),
        (
            "aimd",
            AlgorithmConfig::Aimd(AimdConfig::default()),
            &[4, 200],
            16..=100,
        ),
        (
            "cubic",
            AlgorithmConfig::Cubic(CubicConfig::default()),
            &[4, 200],
            16..=100,
        ),
    ];
    for (name, config, from, want) in cases {
        for &initial in from {
            let (bounds, rng) = (bounds(2, 400, initial), Rng::new(3));
            let (mut algorithm, mut verdict) = Algorithm::start(&config, bounds, &rng);
            let mut late = Vec::new();
            for window in 0..600u64 {
                let rtt = round_trip(verdict.limit);
                // Callers give up after 60 ms.
                let dropped = rtt > 60.0;
                let seen = Sample {
                    dropped,
                    ..sample(rtt, verdict.limit)
                };
                let now = Tick(window * 100_000_000);
                verdict = algorithm.update(&seen, bounds, now, &rng);
                if window >= 500 && !algorithm.is_measuring() {
                    late.push(verdict.limit);
                }
            }
            let mean = late.iter().sum::<u32>() / late.len() as u32;
            assert!(
                want.contains(&mean),
                "{name} from {initial}: {mean} {late:?}"
            );
        }
    }
}

type Second = (u64, Sample);

/// A second for each sample; the limits after them.
fn seconds(samples: &[Second]) -> Vec<u32> {
    let (config, bounds) = (
        AlgorithmConfig::Cubic(CubicConfig::default()),
        bounds(1, 100, 10),
    );
    let rng = Rng::new(1);
    let (mut algorithm, _) = Algorithm::start(&config, bounds, &rng);
    let at = |seconds: u64| Tick(seconds * 1_000_000_000);
    let limit =
        |(second, sample): &Second| algorithm.update(sample, bounds, at(*second), &rng).limit;
    samples.iter().map(limit).collect()
}

#[test]
fn thr_2_cubic_is_quickly_back_slowly_past_and_then_on() {
    let full = |second| (second, sample(10.0, 100));
    let idle = |second| (second, sample(10.0, 1));
    let dropped = |second| (second, drop_of(100));
    let cases: [(&str, Vec<Second>, &[u32]); 6] = [
        (
            "before any drop it feels its way",
            vec![full(1), full(2)],
            &[11, 12],
        ),
        (
            "the reference's curve",
            vec![
                dropped(5),
                full(6),
                full(7),
                full(8),
                full(9),
                full(10),
                full(11),
            ],
            &[7, 9, 10, 10, 13, 21, 36],
        ),
        (
            "two drops",
            vec![dropped(5), dropped(6), full(7), full(9)],
            &[7, 4, 6, 7],
        ),
        (
            "time that nobody needs it does not count",
            vec![dropped(5), idle(3_600), full(3_601)],
            &[7, 7, 9],
        ),
        (
            "a clock that was set back does not stop it",
            vec![dropped(7_200), full(5), full(6), full(7)],
            &[7, 7, 9, 10],
        ),
        (
            "never above the most",
            vec![dropped(5), full(500)],
            &[7, 100],
        ),
    ];
    for (name, samples, want) in cases {
        assert_eq!(seconds(&samples), want, "{name}");
    }
}
