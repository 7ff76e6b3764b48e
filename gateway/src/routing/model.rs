//! The slow and obvious router: every rule against every request, then the best by the text of
//! Gateway API. The tables must never disagree with it.

use http::{HeaderMap, Method};
use proptest::prelude::*;

use super::{HostPattern, PathPattern, RouteTable, Rule};

fn host_rank(rule: &Rule, host: &str) -> Option<(u8, usize)> {
    if rule.hosts.is_empty() {
        return Some((0, 0));
    }
    rule.hosts
        .iter()
        .filter_map(|pattern| match pattern {
            HostPattern::Exact(exact) => (**exact == *host).then_some((2, 0)),
            HostPattern::Wildcard(suffix) => host
                .ends_with(&format!(".{suffix}"))
                .then_some((1, suffix.len())),
        })
        .max()
}

fn path_rank(rule: &Rule, path: &str) -> Option<(u8, usize)> {
    match &rule.path {
        PathPattern::Exact(exact) => (**exact == *path).then_some((1, 0)),
        PathPattern::Prefix(prefix) => (path == &**prefix
            || path.starts_with(&format!("{prefix}/")))
        .then_some((0, prefix.len())),
    }
}

fn find(
    rules: &[Rule],
    host: &str,
    path: &str,
    query: &[(String, String)],
    method: &Method,
    headers: &HeaderMap,
) -> Option<usize> {
    rules
        .iter()
        .enumerate()
        .filter_map(|(index, rule)| {
            let host = host_rank(rule, host)?;
            let path = path_rank(rule, path)?;
            let method_fits = rule.methods.is_empty() || rule.methods.contains(method);
            let headers_fit = rule
                .headers
                .iter()
                .all(|(name, value)| headers.get_all(name).iter().any(|v| v == value));
            let query_fits = rule.query.iter().all(|(name, value)| {
                query.iter().find(|(n, _)| n == name).map(|(_, v)| v) == Some(value)
            });
            (method_fits && headers_fit && query_fits).then_some((
                (
                    host,
                    path,
                    !rule.methods.is_empty(),
                    rule.headers.len(),
                    rule.query.len(),
                    std::cmp::Reverse(index),
                ),
                index,
            ))
        })
        .max()
        .map(|(_, index)| index)
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]{1,2}", 0..4).prop_map(|segments| format!("/{}", segments.join("/")))
}

fn host() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]", 1..4).prop_map(|labels| labels.join("."))
}

fn pairs() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::btree_map("[xy]", "[01]", 0..3).prop_map(|map| map.into_iter().collect())
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        prop::collection::btree_set((any::<bool>(), host()), 0..3),
        (any::<bool>(), path()),
        prop::sample::subsequence(vec![Method::GET, Method::POST], 0..=2),
        pairs(),
        pairs(),
    )
        .prop_map(|(hosts, (exact, path), methods, headers, query)| Rule {
            hosts: hosts
                .into_iter()
                .map(|(wild, host)| {
                    let text = if wild { format!("*.{host}") } else { host };
                    text.parse().expect("a host")
                })
                .collect(),
            path: if exact { format!("={path}") } else { path }
                .parse()
                .expect("a path"),
            methods,
            headers: headers
                .into_iter()
                .map(|(n, v)| (n.parse().expect("a name"), v.parse().expect("a value")))
                .collect(),
            query,
        })
}

proptest! {
    #[test]
    fn the_table_is_the_model(
        rules in prop::collection::vec(rule(), 0..12),
        host in host(),
        path in path(),
        method in prop::sample::select(vec![Method::GET, Method::POST, Method::HEAD]),
        headers in pairs(),
        query in pairs(),
    ) {
        // Rules that ask the same are refused; which of them comes first is another test's matter.
        let Ok(table) = RouteTable::build(&rules) else { return Ok(()) };
        let header_map: HeaderMap = headers
            .iter()
            .map(|(n, v)| (n.parse().expect("a name"), v.parse().expect("a value")))
            .collect::<HeaderMap>();
        let text: Vec<_> = query.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let text = text.join("&");
        prop_assert_eq!(
            table.find(&host, &path, Some(&text), &method, &header_map),
            find(&rules, &host, &path, &query, &method, &header_map)
        );
    }
}
