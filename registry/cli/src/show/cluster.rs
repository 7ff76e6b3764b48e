//! The registry's servers and their keys.

use std::collections::BTreeMap;

use selvedge_registry::{
    api::ServerStatus,
    wire::{MemberInfo, MemberList, MemberState},
};
use serde::Serialize;
use serde_json::Value;

use super::{Answer, document, place, word};
use crate::agreement::{Agreement, Verdict};

impl Answer for MemberList {
    fn document(&self) -> Value {
        document(self)
    }
    fn columns(&self) -> &'static [&'static str] {
        &["node", "state", "http", "gossip", "place", "instances"]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |m: &MemberInfo| {
            vec![
                format!("{}{}", m.node, if m.me { " *" } else { "" }),
                word(&m.state),
                m.http.to_string(),
                m.gossip.to_string(),
                place(&m.locality),
                m.owned.to_string(),
            ]
        };
        self.members.iter().map(row).collect()
    }
}

/// What `selvedge status` says.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) well: bool,
    /// What is not well, as sentences.
    pub(crate) reasons: Vec<String>,
    pub(crate) members: MemberList,
    /// What each server says of itself; those that do not answer are not in it.
    pub(crate) servers: BTreeMap<String, ServerStatus>,
    /// Whether their catalogues are the same.
    pub(crate) catalogues: Verdict,
    pub(crate) services: usize,
    pub(crate) instances: usize,
    pub(crate) up: usize,
}

impl Status {
    /// `told`: what each server says of itself, or why it does not.
    pub(crate) fn new(
        members: MemberList,
        told: Vec<(String, Result<ServerStatus, String>)>,
        (services, instances, up): (usize, usize, usize),
        agreement: &Agreement,
    ) -> Self {
        let mut reasons = Vec::new();
        for member in &members.members {
            let node = &member.node;
            match member.state {
                // Who has said goodbye is not missed.
                MemberState::Serving | MemberState::Left => {}
                MemberState::Dead => reasons.push(format!(
                    "{node} is dead: it is not heard of any more, and has not said that it leaves"
                )),
                MemberState::Joining | MemberState::Draining => {
                    reasons.push(format!("{node} is {}", word(&member.state)));
                }
            }
        }
        let mut servers = BTreeMap::new();
        for (node, status) in told {
            match status {
                Ok(status) => {
                    reasons.extend(doubts(&node, &status));
                    servers.insert(node, status);
                }
                Err(why) => reasons.push(format!("{node} does not answer: {why}")),
            }
        }
        let catalogues = agreement.verdict();
        reasons.extend(difference(&catalogues, agreement));
        // Of those that change too quickly, and of servers that say no hash.
        let counts = || servers.values().map(|s| s.instances);
        if catalogues.agree != Some(false)
            && let (Some(least), Some(most)) = (counts().min(), counts().max())
            && most - least > (most / 100).max(10)
        {
            reasons.push(format!(
                "the servers disagree: one knows {least} instances, another {most}"
            ));
        }
        Self {
            well: reasons.is_empty(),
            reasons,
            members,
            servers,
            catalogues,
            services,
            instances,
            up,
        }
    }
}

/// Who differs, and what of, as a sentence.
fn difference(verdict: &Verdict, agreement: &Agreement) -> Option<String> {
    if verdict.agree != Some(false) {
        return None;
    }
    let holds = verdict.differ.iter().filter_map(|node| {
        let digest = agreement.of(node)?;
        Some(format!(
            "{node} has {} instances ({}) and {} policies ({})",
            digest.records,
            short(&digest.hash),
            digest.policies,
            short(&digest.policies_hash)
        ))
    });
    let holds: Vec<String> = holds.collect();
    Some(format!(
        "the servers do not hold the same: {}",
        holds.join(", ")
    ))
}

/// The beginning of a hash: enough to see a difference.
fn short(hash: &str) -> &str {
    hash.get(..8).unwrap_or(hash)
}

/// Why `status` is not to be believed without thought.
fn doubts(node: &str, status: &ServerStatus) -> Vec<String> {
    let mut doubts = Vec::new();
    let state = &status.state;
    if state.self_preservation {
        let reason = state.reason.as_deref().unwrap_or("it does not say why");
        doubts.push(format!("{node} takes nobody out: {reason}"));
    }
    if let Some(ms) = state.staleness_ms {
        let seconds = ms.div_ceil(1000);
        doubts.push(format!("{node} has not heard its peers for {seconds} s"));
    }
    if !status.serving {
        doubts.push(format!("{node} is still fetching the catalogue"));
    }
    doubts
}

impl Answer for Status {
    fn document(&self) -> Value {
        document(self)
    }
    fn headline(&self) -> Option<String> {
        let members = self.members.members.iter();
        let states = members.map(|member| member.state);
        let missed: Vec<_> = states.filter(|s| *s != MemberState::Left).collect();
        let serving = missed.iter().filter(|s| **s == MemberState::Serving);
        let how = match serving.count() {
            n if n == missed.len() => "all serve".to_owned(),
            n => format!("{n} of them serve"),
        };
        let agree = match self.catalogues.agree {
            Some(true) => "yes".to_owned(),
            Some(false) => format!("NO ({})", self.catalogues.differ.join(", ")),
            None => "not to be told, they change all the time".to_owned(),
        };
        Some(format!(
            "{} registry servers, {how}; {} services, {} instances, {} of them up; \
             catalogues agree: {agree}\n",
            missed.len(),
            self.services,
            self.instances,
            self.up
        ))
    }
    fn columns(&self) -> &'static [&'static str] {
        &[
            "node",
            "state",
            "http",
            "place",
            "keeps",
            "knows",
            "catalogue",
            "watches",
            "evicts",
            "in touch",
        ]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let yes = |so: bool| if so { "yes" } else { "NO" }.to_owned();
        let row = |m: &MemberInfo| {
            let told = self.servers.get(&m.node);
            let number = |of: fn(&ServerStatus) -> usize| {
                told.map_or("?".to_owned(), |status| of(status).to_string())
            };
            let whether = |of: fn(&ServerStatus) -> bool| {
                told.map_or("?".to_owned(), |status| yes(of(status)))
            };
            vec![
                m.node.clone(),
                word(&m.state),
                m.http.to_string(),
                place(&m.locality),
                m.owned.to_string(),
                number(|s| s.instances),
                told.and_then(|status| status.catalogue.as_ref())
                    .map_or("?".to_owned(), |digest| short(&digest.hash).to_owned()),
                number(|s| s.watches),
                whether(|s| !s.state.self_preservation),
                whether(|s| s.state.staleness_ms.is_none()),
            ]
        };
        self.members.members.iter().map(row).collect()
    }
    fn notes(&self) -> Vec<String> {
        let reasons = self.reasons.iter().map(|reason| format!("! {reason}"));
        match self.reasons.len() {
            0 => Vec::new(),
            _ => std::iter::once(String::new()).chain(reasons).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(state: &Value, instances: usize) -> ServerStatus {
        serde_json::from_value(json!({
            "node": "n", "serving": true, "revision": "1-1", "state": state,
            "instances": instances, "watches": 0,
        }))
        .expect("a status")
    }

    fn with_hash(records: usize, hash: &str) -> ServerStatus {
        let mut status = status(&json!({}), records);
        let digest = json!({
            "records": records, "hash": hash, "policies": 1, "policies_hash": "abcdef0123456789",
        });
        status.catalogue = serde_json::from_value(digest).expect("a digest");
        status
    }

    fn summary(state: &str, told: Vec<Result<ServerStatus, String>>) -> Status {
        let member = json!({
            "node": "n1", "http": "127.0.0.1:1", "gossip": "127.0.0.1:2", "state": state,
            "owned": 0, "me": true,
        });
        let members = serde_json::from_value(json!({ "members": [member] })).expect("members");
        let named = told.into_iter().enumerate();
        let told: Vec<_> = named
            .map(|(n, told)| (format!("n{}", n + 1), told))
            .collect();
        let mut agreement = Agreement::default();
        let said = told
            .iter()
            .filter_map(|(n, told)| Some((n.as_str(), told.as_ref().ok()?)));
        agreement.hear(said);
        Status::new(members, told, (1, 5, 5), &agreement)
    }

    #[test]
    fn what_is_not_well_is_said_in_a_sentence() {
        let paused = json!({"self_preservation": true, "reason": "4 of 20 leases are late"});
        let (one, other) = ("0123456789abcdef", "fedcba9876543210");
        for (name, state, told, want) in [
            ("well", "serving", vec![Ok(status(&json!({}), 5))], None),
            (
                "leaves",
                "draining",
                vec![Ok(status(&json!({}), 5))],
                Some("n1 is draining"),
            ),
            (
                "preserves",
                "serving",
                vec![Ok(status(&paused, 5))],
                Some("n1 takes nobody out: 4 of 20 leases are late"),
            ),
            (
                "cut off",
                "serving",
                vec![Ok(status(&json!({"staleness_ms": 1500}), 5))],
                Some("n1 has not heard its peers for 2 s"),
            ),
            (
                "silent",
                "serving",
                vec![Err("refused".to_owned())],
                Some("n1 does not answer: refused"),
            ),
            (
                "servers that say no hash",
                "serving",
                vec![Ok(status(&json!({}), 5)), Ok(status(&json!({}), 500))],
                Some("the servers disagree: one knows 5 instances, another 500"),
            ),
            (
                "agree",
                "serving",
                vec![Ok(with_hash(5, one)), Ok(with_hash(5, one))],
                None,
            ),
            (
                "differ",
                "serving",
                vec![
                    Ok(with_hash(5, one)),
                    Ok(with_hash(5, one)),
                    Ok(with_hash(4, other)),
                ],
                Some(
                    "the servers do not hold the same: \
                     n3 has 4 instances (fedcba98) and 1 policies (abcdef01)",
                ),
            ),
        ] {
            let status = summary(state, told);
            let reasons: Vec<&str> = status.reasons.iter().map(String::as_str).collect();
            assert_eq!(reasons, Vec::from_iter(want), "{name}");
            assert_eq!(status.well, want.is_none(), "{name}");
        }
    }

    #[test]
    fn the_headline_says_whether_the_servers_agree() {
        let differ = summary(
            "serving",
            vec![Ok(with_hash(5, "0a")), Ok(with_hash(5, "0b"))],
        );
        for (status, part) in [
            (
                summary("serving", vec![Ok(with_hash(5, "0a"))]),
                "catalogues agree: yes",
            ),
            (differ, "catalogues agree: NO (n1, n2)"),
        ] {
            let headline = status.headline().expect("one");
            assert!(headline.contains(part), "{headline}");
        }
    }
}
