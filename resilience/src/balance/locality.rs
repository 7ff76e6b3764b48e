//! Near first, and how much of a tier's load spills over when it can no longer carry it.
//!
//! A call that leaves its zone costs money and milliseconds; but a zone that has lost half of its
//! endpoints must not lose the other half to the load of all. Moving everything at some threshold
//! makes two cliffs of one. So each tier takes what it can carry, and only the rest goes on.
//!
//! # Source
//! Envoy's priority levels: health = min(1, factor × in ÷ all), each level takes what is left up
//! to its health, and what no level can carry is shared in the same proportion.

/// Where an endpoint, or a caller, runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Such as `eu-west`; empty if it does not matter.
    pub region: String,
    /// Such as `eu-west-1a`; empty if it does not matter.
    pub zone: String,
}

impl Locality {
    /// A zone of a region.
    pub fn new(region: impl Into<String>, zone: impl Into<String>) -> Self {
        Self {
            region: region.into(),
            zone: zone.into(),
        }
    }

    /// Whether nothing is known of the place.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty()
    }

    /// How far `self` is from `there`: 0 the same zone, 1 the same region, 2 elsewhere.
    pub(super) fn distance(&self, there: &Self) -> usize {
        let same_region = self.region == there.region;
        if !self.zone.is_empty() && self.zone == there.zone && same_region {
            0
        } else if !self.region.is_empty() && same_region {
            1
        } else {
            2
        }
    }
}

/// Zone, region, elsewhere.
pub(super) const TIERS: usize = 3;

/// The endpoints at one distance.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tier {
    /// Weight of those that are in.
    pub(super) healthy: f64,
    /// Weight of all.
    pub(super) total: f64,
    /// Those that are in, and all.
    pub(super) hosts: (u32, u32),
}

impl Tier {
    pub(super) fn add(&mut self, other: Self) {
        self.healthy += other.healthy;
        self.total += other.total;
        self.hosts.0 += other.hosts.0;
        self.hosts.1 += other.hosts.1;
    }
}

/// The share of the calls that each tier takes. Sums to 1 unless there is nobody at all.
///
/// `factor`: how much more than its part a tier can carry. `callers`: the share of all callers at
/// distance 0, if known. In panic a tier's ejections are not believed, so all of it takes part.
pub(super) fn shares(
    tiers: &[Tier; TIERS],
    factor: f64,
    callers: Option<f64>,
    panic_threshold: f64,
) -> ([f64; TIERS], [bool; TIERS]) {
    let all: f64 = tiers.iter().map(|t| t.total).sum();
    let mut health = [0.0; TIERS];
    for (n, tier) in tiers.iter().enumerate() {
        let demand = match callers {
            Some(share) if n == 0 => share * all,
            _ => tier.total,
        };
        if tier.total > 0.0 {
            health[n] = (factor * tier.healthy / demand).min(1.0);
        }
    }
    let carried: f64 = health.iter().sum();
    let mut panic = [false; TIERS];
    if carried < 1.0 {
        for (panic, tier) in panic.iter_mut().zip(tiers) {
            *panic = panics(tier.hosts, panic_threshold);
        }
    }
    let mut left = 1.0;
    let mut load = [0.0; TIERS];
    for n in 0..TIERS {
        load[n] = if carried > 0.0 {
            (health[n] / carried.min(1.0)).min(left)
        } else if all > 0.0 {
            tiers[n].total / all
        } else {
            0.0
        };
        left -= load[n];
    }
    (load, panic)
}

/// Whether so few of `all` are in that it is likelier that the judge is wrong.
pub(super) fn panics((healthy, all): (u32, u32), threshold: f64) -> bool {
    f64::from(healthy) < threshold * f64::from(all)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tier(healthy: u32, total: u32) -> Tier {
        Tier {
            healthy: f64::from(healthy),
            total: f64::from(total),
            hosts: (healthy, total),
        }
    }

    #[test]
    fn distances() {
        let home = Locality::new("eu", "a");
        let cases = [
            ("same zone", Locality::new("eu", "a"), 0),
            ("same region", Locality::new("eu", "b"), 1),
            ("no zone", Locality::new("eu", ""), 1),
            ("same zone name elsewhere", Locality::new("us", "a"), 2),
            ("nowhere", Locality::default(), 2),
        ];
        for (name, there, want) in cases {
            assert_eq!(home.distance(&there), want, "{name}");
        }
        let zone_only = Locality::new("", "a");
        assert_eq!(zone_only.distance(&Locality::new("", "a")), 0);
        assert_eq!(Locality::default().distance(&Locality::default()), 2);
    }

    #[test]
    fn load_spills_as_envoys_priorities() {
        // The table of Envoy's "priority levels" page, factor 1.4; then ours.
        let cases = [
            (
                "all well",
                [(100, 100), (100, 100), (0, 0)],
                [1.0, 0.0, 0.0],
            ),
            ("72 %", [(72, 100), (72, 100), (0, 0)], [1.0, 0.0, 0.0]),
            ("71 %", [(71, 100), (71, 100), (0, 0)], [0.994, 0.006, 0.0]),
            ("50 %", [(50, 100), (50, 100), (0, 0)], [0.7, 0.3, 0.0]),
            (
                "25 and 100",
                [(25, 100), (100, 100), (0, 0)],
                [0.35, 0.65, 0.0],
            ),
            ("25 and 25", [(25, 100), (25, 100), (0, 0)], [0.5, 0.5, 0.0]),
            (
                "25 and 20",
                [(25, 100), (20, 100), (0, 0)],
                [0.555_555, 0.444_444, 0.0],
            ),
            ("0 and 100", [(0, 100), (100, 100), (0, 0)], [0.0, 1.0, 0.0]),
            (
                "three",
                [(25, 100), (25, 100), (50, 100)],
                [0.35, 0.35, 0.3],
            ),
            ("none in", [(0, 10), (0, 30), (0, 60)], [0.1, 0.3, 0.6]),
            ("nobody", [(0, 0), (0, 0), (0, 0)], [0.0, 0.0, 0.0]),
            ("no local", [(0, 0), (4, 4), (4, 4)], [0.0, 1.0, 0.0]),
        ];
        for (name, input, want) in cases {
            let tiers = input.map(|(healthy, total)| tier(healthy, total));
            let (load, _) = shares(&tiers, 1.4, None, 0.5);
            for (got, want) in load.iter().zip(want) {
                assert!((got - want).abs() < 1e-5, "{name}: {load:?}");
            }
        }
    }

    #[test]
    fn a_small_zone_does_not_carry_the_load_of_a_third_of_the_callers() {
        // 1 of 10 endpoints is near, a third of the callers: it can carry 1.4 of 3.33 parts.
        let tiers = [tier(1, 1), tier(9, 9), Tier::default()];
        let (load, panic) = shares(&tiers, 1.4, Some(1.0 / 3.0), 0.5);
        assert!((load[0] - 0.42).abs() < 1e-9, "{load:?}");
        assert_eq!(panic, [false; 3]);
        // A rich zone may lose half and still carries all that is its own.
        let tiers = [tier(4, 8), tier(2, 2), Tier::default()];
        assert!((shares(&tiers, 1.4, Some(0.5), 0.5).0[0] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn panic_only_where_the_tiers_together_cannot_carry_the_load() {
        let (_, panic) = shares(&[tier(1, 4), tier(4, 4), Tier::default()], 1.4, None, 0.5);
        assert_eq!(panic, [false; 3], "the region carries it");
        let (_, panic) = shares(&[tier(1, 4), tier(1, 4), tier(1, 4)], 1.0, None, 0.5);
        assert_eq!(panic, [true; 3]);
        assert!(!panics((2, 4), 0.5) && panics((1, 4), 0.5) && !panics((0, 4), 0.0));
    }

    proptest! {
        #[test]
        fn the_local_share_only_falls_as_endpoints_leave_and_shares_sum_to_one(
            totals in prop::array::uniform3(0u32..50),
            parts in prop::array::uniform3(0.0f64..=1.0),
            callers in prop::option::of(0.05f64..=1.0),
        ) {
            let mut tiers = [Tier::default(); TIERS];
            for n in 0..TIERS {
                tiers[n] = tier((f64::from(totals[n]) * parts[n]) as u32, totals[n]);
            }
            let mut last = f64::INFINITY;
            for healthy in (0..=totals[0]).rev() {
                tiers[0] = tier(healthy, totals[0]);
                let (load, _) = shares(&tiers, 1.4, callers, 0.5);
                let sum: f64 = load.iter().sum();
                let anybody = totals.iter().any(|&n| n > 0);
                prop_assert!((sum - f64::from(u8::from(anybody))).abs() < 1e-9, "{load:?}");
                prop_assert!(load.iter().all(|&l| l >= 0.0));
                // With nobody in anywhere the shares are those of all, by size.
                if tiers.iter().any(|t| t.healthy > 0.0) {
                    prop_assert!(load[0] <= last + 1e-9, "{} after {last}", load[0]);
                    last = load[0];
                }
            }
        }
    }
}
