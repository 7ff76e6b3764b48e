//! What a host says of its policies, and how it is compared with what a table says.

use selvedge_resilience::config::{Millis, Ratio};
use serde::{Deserialize, Deserializer, de::Error as _};

/// A host's readings. What a table leaves out is not looked at; what a host cannot tell stays out.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reading {
    /// The circuit's state.
    pub breaker: Option<String>,
    /// Shares in the breaker's window; "none" below the minimum of calls.
    pub failure_rate: Option<Share>,
    pub slow_rate: Option<Share>,
    /// Calls in its window.
    pub calls: Option<u32>,
    pub failed: Option<u32>,
    pub slow: Option<u32>,
    /// Calls that it refused.
    pub rejected: Option<u64>,
    /// Results that came after their epoch.
    pub stale: Option<u64>,
    /// Calls that it was told of as cancelled.
    pub cancelled: Option<u64>,
    /// Time left before it probes.
    pub open_for: Option<Millis>,
    /// Thresholds reached while it only measures.
    pub exceeded: Option<u64>,
    /// Tries that hold a slot of the bulkhead, and calls that wait for one.
    pub in_flight: Option<u32>,
    pub waiting: Option<u32>,
    /// The adaptive limit, and tries that hold a slot of it.
    pub limit: Option<u32>,
    pub adaptive_in_flight: Option<u32>,
    /// Retries made, and those that the budget refused.
    pub retries: Option<u64>,
    pub retries_refused: Option<u64>,
    /// Retries that the budget would still pay for.
    pub balance: Option<u64>,
    /// What is left of the rate.
    pub remaining: Option<u32>,
    /// Probability of the throttle, to four digits.
    pub throttle: Option<f64>,
    /// Tries under way towards endpoints.
    pub pending: Option<u32>,
    /// Coalescing: keys under way, calls that wait for another one.
    pub keys: Option<u64>,
    pub following: Option<u64>,
    /// Calls made for all who asked, those that another one had begun among them; calls that waited.
    pub led: Option<u64>,
    pub promoted: Option<u64>,
    pub followed: Option<u64>,
    /// How waiting ended: with the answer, with a call of one's own, with the leader's panic.
    pub answered: Option<u64>,
    pub released: Option<u64>,
    pub broken: Option<u64>,
}

/// A share, or that there is none yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(pub Option<f64>);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text == "none" {
            return Ok(Self(None));
        }
        let ratio: Ratio = text.parse().map_err(D::Error::custom)?;
        Ok(Self(Some(ratio.fraction())))
    }
}

impl Reading {
    /// What differs from `seen`: empty is well. A reading that the host cannot give differs.
    pub fn differences(&self, seen: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut look = |what: &str, same: bool, text: String| {
            if !same {
                found.push(format!("{what}: {text}"));
            }
        };
        macro_rules! exact {
            ($($field:ident)+) => {
                $(if let Some(want) = &self.$field {
                    let got = &seen.$field;
                    let same = got.as_ref() == Some(want);
                    look(stringify!($field), same, format!("{got:?}, want {want:?}"));
                })+
            };
        }
        exact!(breaker calls failed slow rejected stale cancelled open_for exceeded);
        exact!(in_flight waiting limit adaptive_in_flight retries retries_refused balance);
        exact!(remaining pending keys following led promoted followed answered released broken);
        for (what, want, got) in [
            ("failure_rate", self.failure_rate, seen.failure_rate),
            ("slow_rate", self.slow_rate, seen.slow_rate),
        ] {
            let Some(Share(want)) = want else { continue };
            let same = match (want, got) {
                (None, Some(Share(None))) => true,
                (Some(want), Some(Share(Some(got)))) => (want - got).abs() < 1e-4,
                _ => false,
            };
            look(what, same, format!("{got:?}, want {want:?}"));
        }
        if let Some(want) = self.throttle {
            let same = seen.throttle.is_some_and(|got| (want - got).abs() < 5e-5);
            look(
                "throttle",
                same,
                format!("{:?}, want {want}", seen.throttle),
            );
        }
        found
    }
}
