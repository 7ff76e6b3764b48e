//! Comparing endpoints with one another, once an interval.

use std::time::Duration;

use super::{Cause, OutlierConfig};

/// What one endpoint did in the interval.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::balance) struct Sample {
    pub(in crate::balance) calls: u64,
    pub(in crate::balance) failed: u64,
    /// Answers that were timed, and their latency at the configured quantile.
    pub(in crate::balance) timed: (u64, Duration),
}

impl Sample {
    fn success_rate(&self) -> f64 {
        1.0 - self.failed as f64 / self.calls as f64
    }
}

/// Who should go, by index into `samples`, each once, for the first cause that holds.
pub(in crate::balance) fn judge(samples: &[Sample], config: &OutlierConfig) -> Vec<(usize, Cause)> {
    let mut out = success_rate(samples, config);
    let others = [
        failure_percentage(samples, config),
        latency(samples, config),
    ];
    for found in others.into_iter().flatten() {
        if out.iter().all(|(n, _)| *n != found.0) {
            out.push(found);
        }
    }
    out
}

/// The samples that hold at least `min` of what `count` counts; none if they are too few.
fn enough(
    samples: &[Sample],
    (hosts, min): (u32, u32),
    count: impl Fn(&Sample) -> u64,
) -> Vec<(usize, &Sample)> {
    let judged: Vec<_> = samples
        .iter()
        .enumerate()
        .filter(|(_, s)| count(s) >= u64::from(min))
        .collect();
    if judged.len() < hosts as usize {
        Vec::new()
    } else {
        judged
    }
}

fn success_rate(samples: &[Sample], config: &OutlierConfig) -> Vec<(usize, Cause)> {
    let config = &config.success_rate;
    let judged = enough(samples, (config.min_hosts, config.min_requests), |s| {
        s.calls
    });
    if !config.enforce || judged.is_empty() {
        return Vec::new();
    }
    let n = judged.len() as f64;
    let mean = judged.iter().map(|(_, s)| s.success_rate()).sum::<f64>() / n;
    let variance = judged
        .iter()
        .map(|(_, s)| (s.success_rate() - mean).powi(2))
        .sum::<f64>()
        / n;
    let threshold = mean - config.deviations * variance.sqrt();
    let gap = config.min_gap.fraction();
    judged
        .into_iter()
        .filter(|(_, s)| s.success_rate() < threshold && mean - s.success_rate() >= gap)
        .map(|(n, _)| (n, Cause::SuccessRate))
        .collect()
}

fn failure_percentage(samples: &[Sample], config: &OutlierConfig) -> Vec<(usize, Cause)> {
    let config = &config.failure_percentage;
    if !config.enforce {
        return Vec::new();
    }
    enough(samples, (config.min_hosts, config.min_requests), |s| {
        s.calls
    })
    .into_iter()
    .filter(|(_, s)| s.failed as f64 >= config.threshold.fraction() * s.calls as f64)
    .map(|(n, _)| (n, Cause::FailurePercentage))
    .collect()
}

fn latency(samples: &[Sample], config: &OutlierConfig) -> Vec<(usize, Cause)> {
    let config = &config.latency;
    let judged = enough(samples, (config.min_hosts, config.min_requests), |s| {
        s.timed.0
    });
    if !config.enforce || judged.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<Duration> = judged.iter().map(|(_, s)| s.timed.1).collect();
    all.sort_unstable();
    // Of an even number the lower of the two in the middle.
    let median = all[(all.len() - 1) / 2];
    let limit = median
        .mul_f64(config.factor)
        .max(median.saturating_add(config.min_gap.0));
    judged
        .into_iter()
        .filter(|(_, s)| s.timed.1 > limit)
        .map(|(n, _)| (n, Cause::Latency))
        .collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn rates(failed_of_200: &[u64]) -> Vec<Sample> {
        let sample = |&failed: &u64| Sample {
            calls: 200,
            failed,
            ..Sample::default()
        };
        failed_of_200.iter().map(sample).collect()
    }

    #[test]
    fn success_rates() {
        // Failed of 200 → who goes. Mean and σ by hand.
        let cases: &[(&str, &[u64], &[usize])] = &[
            // mean .98, σ .04, threshold .904
            ("one at 90 %", &[0, 0, 0, 0, 20], &[4]),
            // mean .994, σ .012, threshold .9712: below it, but by 2.4 % only
            ("a near-equal", &[0, 0, 0, 0, 6], &[]),
            ("too few hosts", &[0, 0, 0, 100], &[]),
            // z of two of five is at most 1.22: they mask each other
            ("two equally bad of five", &[0, 0, 0, 100, 100], &[]),
            // mean .9, σ .2, threshold .52
            (
                "two bad of ten",
                &[0, 0, 0, 0, 0, 0, 0, 0, 100, 100],
                &[8, 9],
            ),
            ("all bad alike", &[150; 6], &[]),
        ];
        for (name, failed, want) in cases {
            let got = judge(&rates(failed), &OutlierConfig::default());
            let got: Vec<_> = got
                .into_iter()
                .map(|(n, cause)| {
                    assert_eq!(cause, Cause::SuccessRate, "{name}");
                    n
                })
                .collect();
            assert_eq!(got, *want, "{name}");
        }
    }

    #[test]
    fn out_1_failure_percentage() {
        let mut samples = vec![
            Sample {
                calls: 300,
                failed: 250,
                ..Sample::default()
            };
            5
        ];
        let config = OutlierConfig::default();
        assert_eq!(judge(&samples, &config), [], "83.3 %");
        (samples[2].calls, samples[2].failed) = (350, 300);
        assert_eq!(judge(&samples, &config), [(2, Cause::FailurePercentage)]);
        let mut off = config.clone();
        off.failure_percentage.enforce = false;
        assert_eq!(judge(&samples, &off), []);
        samples[0].calls = 49;
        assert_eq!(judge(&samples, &config), [], "too few hosts called enough");
    }

    #[test]
    fn latencies() {
        let mut config = OutlierConfig::default();
        config.latency.enforce = true;
        let ms = Duration::from_millis;
        let cases: &[(&str, &[u64], &[usize])] = &[
            ("one slow", &[10, 11, 12, 10, 100], &[4]),
            ("three times, but 20 ms", &[10, 10, 10, 10, 35], &[]),
            (
                "60 ms more, but not three times",
                &[100, 100, 100, 100, 160],
                &[],
            ),
            ("too few", &[10, 10, 10, 1000], &[]),
            ("two slow", &[10, 10, 10, 10, 500, 900], &[4, 5]),
            (
                "most slow: they are the median",
                &[10, 500, 500, 500, 500],
                &[],
            ),
        ];
        for (name, latencies, want) in cases {
            let samples: Vec<_> = latencies
                .iter()
                .map(|&n| Sample {
                    calls: 50,
                    failed: 0,
                    timed: (50, ms(n)),
                })
                .collect();
            let got = judge(&samples, &config);
            assert!(got.iter().all(|g| g.1 == Cause::Latency), "{name}");
            let got: Vec<_> = got.into_iter().map(|g| g.0).collect();
            assert_eq!(got, *want, "{name}");
            assert_eq!(
                judge(&samples, &OutlierConfig::default()),
                [],
                "{name}: off"
            );
        }
    }

    #[test]
    fn one_cause_each_and_nobody_without_calls() {
        let mut samples = rates(&[0, 0, 0, 0, 0, 0, 0, 200]);
        let got = judge(&samples, &OutlierConfig::default());
        assert_eq!(got, [(7, Cause::SuccessRate)]);
        samples.fill(Sample::default());
        assert_eq!(judge(&samples, &OutlierConfig::default()), []);
    }
}
