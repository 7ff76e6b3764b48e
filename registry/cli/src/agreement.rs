//! Whether the servers hold the same.
//!
//! Each says a hash of its catalogue, at the moment it is asked. While something is written the
//! servers are some milliseconds apart, and so are the moments: two different hashes say nothing
//! yet. So those who differ are asked again. Once all say the same, they agree; whoever says the
//! same again and again while others say something else is the one to look at; and if all of them
//! change all the time, the question cannot be answered in this way, and it is said so.

use std::collections::{BTreeMap, BTreeSet};

use selvedge_registry::api::{CatalogueDigest, ServerStatus};
use serde::Serialize;

/// What has been heard so far.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    last: BTreeMap<String, CatalogueDigest>,
    /// Servers that have said two different things.
    moved: BTreeSet<String>,
}

/// What it comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    /// Whether all hold the same; `None`: not to be told while they change.
    pub(crate) agree: Option<bool>,
    /// Those that differ from the others; all, if no two agree.
    pub(crate) differ: Vec<String>,
}

impl Agreement {
    /// What the servers say now, one after the other; those that are still fetching their catalogue
    /// are not compared.
    pub(crate) fn hear<'a>(&mut self, told: impl Iterator<Item = (&'a str, &'a ServerStatus)>) {
        let told = told.filter(|(_, status)| status.serving);
        let now: BTreeMap<String, CatalogueDigest> = told
            .filter_map(|(node, status)| Some((node.to_owned(), status.catalogue.clone()?)))
            .collect();
        for (node, digest) in &now {
            if self.last.get(node).is_some_and(|before| before != digest) {
                self.moved.insert(node.clone());
            }
        }
        self.last = now;
    }

    /// Whether all say the same.
    pub(crate) fn is_reached(&self) -> bool {
        let mut all = self.last.values();
        let first = all.next();
        all.all(|digest| Some(digest) == first)
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.is_reached() {
            return Verdict {
                agree: Some(true),
                differ: Vec::new(),
            };
        }
        let nodes = || self.last.keys().cloned();
        let still: Vec<String> = nodes().filter(|n| !self.moved.contains(n)).collect();
        let differ = match still.len() {
            0 => {
                return Verdict {
                    agree: None,
                    differ: Vec::new(),
                };
            }
            n if n == self.last.len() => self.minority(),
            _ => still,
        };
        Verdict {
            agree: Some(false),
            differ,
        }
    }

    /// Those outside the largest group that agrees; all, if there is no such group.
    fn minority(&self) -> Vec<String> {
        let size = |of: &CatalogueDigest| self.last.values().filter(|d| *d == of).count();
        let largest = self.last.values().map(size).max().unwrap_or(0);
        let groups = self.last.values().filter(|d| size(d) == largest).count() / largest.max(1);
        let outside = self
            .last
            .iter()
            .filter(|(_, d)| groups > 1 || size(d) < largest);
        outside.map(|(node, _)| node.clone()).collect()
    }

    /// What a server holds, for a person.
    pub(crate) fn of(&self, node: &str) -> Option<&CatalogueDigest> {
        self.last.get(node)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(hash: &str, serving: bool) -> ServerStatus {
        serde_json::from_value(json!({
            "node": "n", "serving": serving, "revision": "1-1", "state": {}, "instances": 3,
            "watches": 0, "catalogue": { "records": 3, "hash": hash, "policies": 0,
            "policies_hash": "0" },
        }))
        .expect("a status")
    }

    /// What each of the servers a, b, c says in each round; `~` before it: it does not serve yet.
    fn verdict(rounds: &[[&str; 3]]) -> (Option<bool>, String) {
        let mut agreement = Agreement::default();
        for said in rounds {
            let said =
                said.map(|hash| status(hash.trim_start_matches('~'), !hash.starts_with('~')));
            agreement.hear(["a", "b", "c"].into_iter().zip(&said));
        }
        let Verdict { agree, differ } = agreement.verdict();
        (agree, differ.concat())
    }

    #[test]
    fn who_differs_is_named_and_who_is_only_busy_is_not() {
        for (name, rounds, want) in [
            ("all the same", &[["1", "1", "1"]][..], (Some(true), "")),
            (
                "the same at last",
                &[["1", "2", "3"], ["4", "4", "4"]],
                (Some(true), ""),
            ),
            (
                "one is another",
                &[["1", "1", "2"], ["1", "1", "2"]],
                (Some(false), "c"),
            ),
            (
                "no two the same",
                &[["1", "2", "3"], ["1", "2", "3"]],
                (Some(false), "abc"),
            ),
            (
                "all change",
                &[["1", "2", "3"], ["4", "5", "6"]],
                (None, ""),
            ),
            (
                "one stands still",
                &[["1", "2", "9"], ["4", "5", "9"]],
                (Some(false), "c"),
            ),
            (
                "one fetches it",
                &[["1", "1", "~2"], ["1", "1", "~2"]],
                (Some(true), ""),
            ),
        ] {
            let (agree, differ) = verdict(rounds);
            assert_eq!((agree, differ.as_str()), want, "{name}");
        }
        assert_eq!(
            Agreement::default().verdict().agree,
            Some(true),
            "nobody differs"
        );
    }
}
