//! Self-preservation: when silence says more about the network, or about us, than about those who
//! are silent.
//!
//! One instance that stops renewing is dead. A quarter of a zone that stops within a few seconds
//! is a switch, a partition or a fault of ours, and taking them all out would turn it into an
//! outage. Eureka freezes evictions below 85 % of the expected renewals; its users know that flag
//! as one that sticks, that does not say why, and that small installations never leave. Ours is
//! counted per zone from the leases that live now, names its reason in a sentence, and lets go by
//! itself: whoever has been silent for fifteen minutes is no longer expected.
//!
//! # Guarantees
//! - While it is active in a zone, no lease of that zone ends there, but for those that have been
//!   silent for [`rebase_after`](super::LeasesConfig::rebase_after); of these never a service's
//!   last [`min_keep`](super::LeasesConfig::min_keep).
//! - Active or not, at most the share that would make it active ends in one
//!   [`pass`](super::LeasesConfig::pass), where the zone is large enough to speak of shares.
//!
//! # Source
//! Eureka's `renewalPercentThreshold` (0.85) and its limit of evictions per pass; what sticks about
//! them: Netflix/eureka#1247, #1127, spring-cloud-netflix#2407.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::LeasesConfig;

/// What speaks for self-preservation everywhere, whatever the zones show.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outside {
    /// This server hears too few of its peers.
    pub isolated: bool,
    /// So many servers of so many vanished within [`super::LeasesConfig::server_loss_within`].
    pub lost: Option<(usize, usize)>,
    /// What this server has just been through, and for how much longer that counts.
    pub settling: Option<(&'static str, Duration)>,
}

/// The leases of one zone at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ZoneLeases {
    /// The zone; empty for those that name none.
    pub zone: Arc<str>,
    /// Leases in all.
    pub leases: usize,
    /// Leases that are expected to be renewed.
    pub expected: usize,
    /// Those of them whose renewal is late.
    pub late: usize,
    /// Leases that have run out and are still in the catalogue.
    pub overdue: usize,
    /// Whether evictions are frozen.
    pub active: bool,
}

/// Whether evictions are frozen, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SelfPreservation {
    /// In any zone.
    pub active: bool,
    /// By zone.
    pub zones: Vec<ZoneLeases>,
    /// In one sentence, with numbers; empty if it is not active.
    pub reason: String,
    /// Since when, in Unix milliseconds; for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

/// Judges `zones`.
pub fn judge(
    mut zones: Vec<ZoneLeases>,
    outside: &Outside,
    config: &LeasesConfig,
) -> SelfPreservation {
    let everywhere = everywhere(outside, config);
    let mut reasons: Vec<String> = everywhere.iter().cloned().collect();
    for zone in &mut zones {
        let few = zone.expected < config.min_leases;
        let late = zone.late as f64 > (1.0 - config.preserve_below) * zone.expected as f64;
        zone.active = everywhere.is_some() || (!few && late);
        if zone.active && everywhere.is_none() {
            let name = match &*zone.zone {
                "" => "no zone".to_owned(),
                name => format!("zone {name}"),
            };
            reasons.push(format!(
                "{} of {} leases of {name} are late, more than {:.0} %",
                zone.late,
                zone.expected,
                (1.0 - config.preserve_below) * 100.0
            ));
        }
    }
    SelfPreservation {
        active: !reasons.is_empty(),
        zones,
        reason: reasons.join("; "),
        since: None,
    }
}

fn everywhere(outside: &Outside, config: &LeasesConfig) -> Option<String> {
    if outside.isolated {
        return Some("this server hears too few of its peers to judge anybody".to_owned());
    }
    if let Some((lost, of)) = outside.lost {
        return Some(format!(
            "{lost} of {of} registry servers vanished within {}: their clients need time to turn to others",
            config.server_loss_within
        ));
    }
    let (what, left) = outside.settling?;
    Some(format!(
        "this server {what}, and waits {} s more before it judges",
        left.as_secs().max(1)
    ))
}

/// How many leases of a zone may end in one pass.
pub fn quota(leases: usize, config: &LeasesConfig) -> usize {
    if leases < config.min_leases {
        return usize::MAX;
    }
    (((1.0 - config.preserve_below) * leases as f64) as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str, expected: usize, late: usize) -> ZoneLeases {
        ZoneLeases {
            zone: name.into(),
            leases: expected,
            expected,
            late,
            ..ZoneLeases::default()
        }
    }

    #[test]
    fn it_is_judged_by_zone_and_says_why() {
        let calm = Outside::default();
        let lost = Outside {
            lost: Some((2, 5)),
            ..Outside::default()
        };
        let isolated = Outside {
            isolated: true,
            ..Outside::default()
        };
        let woken = Outside {
            settling: Some(("stood still for 60 s", Duration::from_secs(3))),
            ..Outside::default()
        };
        for (name, zones, outside, active, reason) in [
            ("nobody", vec![], &calm, vec![], ""),
            ("few", vec![zone("a", 9, 9)], &calm, vec![false], ""),
            (
                "15 of 100",
                vec![zone("a", 100, 15)],
                &calm,
                vec![false],
                "",
            ),
            (
                "16 of 100 in one zone",
                vec![zone("a", 100, 16), zone("b", 100, 0)],
                &calm,
                vec![true, false],
                "16 of 100 leases of zone a are late, more than 15 %",
            ),
            (
                "without a zone",
                vec![zone("", 10, 2)],
                &calm,
                vec![true],
                "2 of 10 leases of no zone are late, more than 15 %",
            ),
            (
                "server loss counts for the few too",
                vec![zone("a", 3, 0)],
                &lost,
                vec![true],
                "2 of 5 registry servers vanished within 30s: their clients need time to turn to others",
            ),
            (
                "isolated",
                vec![zone("a", 3, 0)],
                &isolated,
                vec![true],
                "this server hears too few of its peers to judge anybody",
            ),
            (
                "woken",
                vec![],
                &woken,
                vec![],
                "this server stood still for 60 s, and waits 3 s more before it judges",
            ),
        ] {
            let judged = judge(zones, outside, &LeasesConfig::default());
            let by_zone: Vec<_> = judged.zones.iter().map(|zone| zone.active).collect();
            assert_eq!(by_zone, active, "{name}");
            assert_eq!(judged.reason, reason, "{name}");
            assert_eq!(judged.active, !reason.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_pass_ends_no_more_than_would_freeze_it() {
        let config = LeasesConfig::default();
        for (leases, want) in [(0, usize::MAX), (9, usize::MAX), (10, 1), (100, 15)] {
            assert_eq!(quota(leases, &config), want, "{leases}");
        }
    }
}
