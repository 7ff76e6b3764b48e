//! Whether it is this server that is cut off, when everybody else seems to die at once.
//!
//! Seen from inside, a cut cable looks like the death of all others. Whoever then acts on those
//! deaths ends leases of instances that are well. That most peers die within seconds is unlikely;
//! that one's own cable was cut is not. So a server that loses most of its peers at once declares
//! *itself* isolated, and whoever ends leases asks it first.
//!
//! # Guarantees
//! Isolated from the moment that more than half of the peers of the last [`WINDOW`] have died in
//! it, until at most half of those are still missing: they are back, have left, or were forgotten.
//!
//! # What it does not do
//! Tell a cut from the real death of most servers: nobody can from inside. Then, too, it lasts
//! until the dead are forgotten.
//!
//! # Source
//! `registry.md` §7, "asymmetric loss"; the same rule protects each side of a partition.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::catalogue::NodeId;

/// Deaths this close together count as one event.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The judge of one's own isolation.
#[derive(Debug, Default)]
pub struct Isolation {
    /// When peers died, for [`WINDOW`].
    deaths: BTreeMap<NodeId, Instant>,
    /// While isolated: those whose deaths made it so or came since, and how many peers there were.
    isolated: Option<(BTreeSet<NodeId>, usize)>,
}

impl Isolation {
    /// What is seen at `now`: peers that are heard, and all that are missing (dead, not left).
    /// Returns whether this server is isolated.
    pub fn observe<'a>(
        &mut self,
        now: Instant,
        heard: usize,
        missing: impl Iterator<Item = &'a NodeId>,
        died: impl Iterator<Item = &'a NodeId>,
    ) -> bool {
        let missing: BTreeSet<NodeId> = missing.cloned().collect();
        self.deaths.extend(died.map(|node| (node.clone(), now)));
        self.deaths.retain(|node, at| {
            missing.contains(node) && now.saturating_duration_since(*at) < WINDOW
        });
        let peers = heard + self.deaths.len();
        if let Some((lost, of)) = &mut self.isolated {
            lost.extend(self.deaths.keys().cloned());
            lost.retain(|node| missing.contains(node));
            *of = peers.max(*of);
            if lost.len() * 2 <= *of {
                self.isolated = None;
            }
        }
        if self.deaths.len() * 2 > peers {
            let lost: BTreeSet<NodeId> = self.deaths.keys().cloned().collect();
            self.isolated.get_or_insert((lost, peers));
        }
        self.isolated.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_peers_lost_at_once_means_that_it_is_this_server() {
        // (what, seconds later, heard, missing, died now, isolated)
        type Case = (&'static str, u64, usize, &'static str, &'static str, bool);
        let stories: &[(&str, &[Case])] = &[
            (
                "alone from the start",
                &[("nobody there", 0, 0, "", "", false)],
            ),
            (
                "one of four dies",
                &[
                    ("all well", 0, 4, "", "", false),
                    ("one died", 1, 3, "a", "a", false),
                    ("a second, at half", 1, 2, "ab", "b", false),
                    ("a third within ten seconds", 1, 1, "abc", "c", true),
                    ("one comes back", 60, 2, "bc", "", false),
                ],
            ),
            (
                "slow deaths are deaths",
                &[
                    ("all well", 0, 3, "", "", false),
                    ("one", 1, 2, "a", "a", false),
                    ("the next after eleven seconds", 11, 1, "ab", "b", false),
                ],
            ),
            (
                "cut off, then dead for good",
                &[
                    ("all well", 0, 2, "", "", false),
                    ("cut", 1, 0, "ab", "ab", true),
                    ("still cut after ten minutes", 600, 0, "ab", "", true),
                    ("one has left", 1, 0, "a", "", false),
                ],
            ),
            (
                "those who left are not missed",
                &[
                    ("all well", 0, 2, "", "", false),
                    ("both left", 1, 0, "", "", false),
                ],
            ),
        ];
        let nodes = |text: &str| -> Vec<NodeId> {
            text.chars().map(|c| NodeId::from(c.to_string())).collect()
        };
        for (story, steps) in stories {
            let mut isolation = Isolation::default();
            let mut at = Instant::now();
            for (what, seconds, heard, missing, died, want) in *steps {
                at += Duration::from_secs(*seconds);
                let (missing, died) = (nodes(missing), nodes(died));
                let got = isolation.observe(at, *heard, missing.iter(), died.iter());
                assert_eq!(got, *want, "{story}: {what}");
            }
        }
    }
}
