//! Hosts, paths and candidates, put in order once.

use std::{borrow::Cow, cmp::Reverse, collections::HashMap, hash::BuildHasherDefault};

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{
    host::{HostIndex, canonical_host},
    pattern::{PathPattern, Rule},
    trie::Trie,
};
use selvedge_proxy::hash::Fx;

/// The place of a rule in the list that a table was built from.
pub type RuleIndex = usize;

/// Two rules that match exactly the same requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duplicate {
    /// The one that would always win.
    pub first: RuleIndex,
    /// The one that would never be used.
    pub second: RuleIndex,
}

/// The rules of a listener, ready to be asked.
#[derive(Debug, Default)]
pub struct RouteTable {
    hosts: HostIndex,
}

/// The rules of one host pattern.
#[derive(Debug, Default)]
pub(super) struct HostTable {
    exact: HashMap<Box<str>, Leaf, BuildHasherDefault<Fx>>,
    prefixes: Trie,
}

/// The rules of one host and path, best first.
pub(super) type Leaf = Vec<Candidate>;

/// What is left to ask once host and path are right.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Candidate {
    methods: Box<[Method]>,
    headers: Box<[(HeaderName, HeaderValue)]>,
    query: Box<[(Box<str>, Box<str>)]>,
    rule: RuleIndex,
}

impl RouteTable {
    /// Puts `rules` in order.
    ///
    /// # Errors
    /// [`Duplicate`] when two of them match exactly the same requests of one host pattern.
    pub fn build(rules: &[Rule]) -> Result<Self, Duplicate> {
        let mut hosts = HostIndex::default();
        for (index, rule) in rules.iter().enumerate() {
            let candidate = Candidate::new(rule, index);
            let mut patterns: Vec<_> = rule.hosts.iter().map(Some).collect();
            if patterns.is_empty() {
                patterns.push(None);
            }
            patterns.sort_unstable();
            patterns.dedup();
            for host in patterns {
                hosts
                    .table_mut(host)
                    .leaf_mut(&rule.path)
                    .push(candidate.clone());
            }
        }
        for leaf in hosts.tables_mut().flat_map(HostTable::leaves_mut) {
            // Stable: rules that are alike in all of this stay in the order of the file.
            leaf.sort_by_key(Candidate::precedence);
            if let Some(duplicate) = duplicate_in(leaf) {
                return Err(duplicate);
            }
        }
        Ok(Self { hosts })
    }

    /// The rule for a request, if there is one.
    ///
    /// `authority`: as in `Host`, a port and a trailing dot are ignored. `path`: normalised, begins
    /// with a slash. O(labels + segments + candidates of the paths met).
    pub fn find(
        &self,
        authority: &str,
        path: &str,
        query: Option<&str>,
        method: &Method,
        headers: &HeaderMap,
    ) -> Option<RuleIndex> {
        let host = canonical_host(authority);
        let first_fit = |leaf: &Leaf| {
            leaf.iter()
                .find(|candidate| candidate.accepts(method, headers, query))
                .map(|candidate| candidate.rule)
        };
        self.hosts.find_map(&host, |table| {
            let exact = table.exact.get(path).and_then(first_fit);
            exact.or_else(|| table.prefixes.find_map(path, first_fit))
        })
    }
}

impl HostTable {
    fn leaf_mut(&mut self, path: &PathPattern) -> &mut Leaf {
        match path {
            PathPattern::Exact(path) => self.exact.entry(path.clone()).or_default(),
            PathPattern::Prefix(prefix) => self.prefixes.leaf_mut(prefix),
        }
    }

    fn leaves_mut(&mut self) -> impl Iterator<Item = &mut Leaf> {
        self.exact.values_mut().chain(self.prefixes.leaves_mut())
    }
}

/// Two neighbours in rank that ask the same. Same asks mean the same rank, so only rules of equal
/// rank are compared.
fn duplicate_in(leaf: &Leaf) -> Option<Duplicate> {
    leaf.chunk_by(|a, b| a.precedence() == b.precedence())
        .find_map(|alike| {
            alike.iter().enumerate().find_map(|(n, second)| {
                let first = alike[..n].iter().find(|first| first.asks_as(second))?;
                Some(Duplicate {
                    first: first.rule,
                    second: second.rule,
                })
            })
        })
}

impl Candidate {
    fn new(rule: &Rule, index: RuleIndex) -> Self {
        let mut methods = rule.methods.clone();
        methods.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        methods.dedup();
        let mut headers = rule.headers.clone();
        headers.sort_by(|a, b| (a.0.as_str(), &a.1).cmp(&(b.0.as_str(), &b.1)));
        headers.dedup();
        let mut query: Vec<(Box<str>, Box<str>)> = rule
            .query
            .iter()
            .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
            .collect();
        query.sort_unstable();
        query.dedup();
        Self {
            methods: methods.into(),
            headers: headers.into(),
            query: query.into(),
            rule: index,
        }
    }

    /// Smaller is better.
    fn precedence(&self) -> impl Ord + use<> {
        (
            Reverse(!self.methods.is_empty()),
            Reverse(self.headers.len()),
            Reverse(self.query.len()),
        )
    }

    /// Whether it matches exactly the same requests.
    fn asks_as(&self, other: &Self) -> bool {
        self.methods == other.methods && self.headers == other.headers && self.query == other.query
    }

    fn accepts(&self, method: &Method, headers: &HeaderMap, query: Option<&str>) -> bool {
        (self.methods.is_empty() || self.methods.contains(method))
            && self
                .headers
                .iter()
                .all(|(name, value)| headers.get_all(name).iter().any(|line| line == value))
            && (self.query.is_empty()
                || query.is_some_and(|query| {
                    self.query
                        .iter()
                        .all(|(name, value)| first_value(query, name).as_deref() == Some(value))
                }))
    }
}

/// The first value of `name`, percent-decoded. Names and values are case-sensitive.
fn first_value<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| decode(key) == name)
        .map(|(_, value)| decode(value))
}

/// Percent-decoded; bytes that are not UTF-8 become the replacement character, which no
/// configuration asks for.
fn decode(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}
