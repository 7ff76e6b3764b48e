//! Gateway API's conformance cases, as tables.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::*;

/// A rule and where it leads: `hosts | path | methods | headers | query → name`.
#[derive(Default, Clone, Copy)]
struct Row {
    hosts: &'static [&'static str],
    path: &'static str,
    methods: &'static [Method],
    headers: &'static [(&'static str, &'static str)],
    query: &'static [(&'static str, &'static str)],
    to: &'static str,
}

const ANY: Row = Row {
    hosts: &[],
    path: "/",
    methods: &[],
    headers: &[],
    query: &[],
    to: "",
};

fn rule(row: &Row) -> Rule {
    Rule {
        hosts: row.hosts.iter().map(|h| h.parse().expect(h)).collect(),
        path: row.path.parse().expect(row.path),
        methods: row.methods.to_vec(),
        headers: row.headers.iter().map(|(n, v)| header(n, v)).collect(),
        query: row
            .query
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
    }
}

fn header(name: &str, value: &str) -> (HeaderName, HeaderValue) {
    (name.parse().expect(name), value.parse().expect(value))
}

/// `METHOD host/path?query` and its headers.
fn ask(
    rows: &[Row],
    method: &Method,
    target: &str,
    headers: &[(&str, &str)],
) -> Option<&'static str> {
    let rules: Vec<_> = rows.iter().map(rule).collect();
    let table = RouteTable::build(&rules).expect("no duplicates");
    let slash = target.find('/').expect("a path");
    let (host, rest) = target.split_at(slash);
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    let map: HeaderMap = headers.iter().map(|(n, v)| header(n, v)).collect();
    table
        .find(host, path, query, method, &map)
        .map(|index| rows[index].to)
}

type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    Option<&'static str>,
);

fn check(name: &str, rows: &[Row], cases: &[Case]) {
    for (target, headers, want) in cases {
        let got = ask(rows, &Method::GET, target, headers);
        assert_eq!(got, *want, "{name}: {target} {headers:?}");
        // Precedence does not depend on the order of declaration.
        let reversed: Vec<_> = rows.iter().rev().copied().collect();
        let got = ask(&reversed, &Method::GET, target, headers);
        assert_eq!(got, *want, "{name}, reversed: {target} {headers:?}");
    }
}

#[test]
fn m1_prefix_and_header() {
    let rows = [
        Row { to: "v1", ..ANY },
        Row {
            path: "/v2",
            to: "v2",
            ..ANY
        },
        Row {
            headers: &[("version", "two")],
            to: "v2",
            ..ANY
        },
    ];
    check(
        "M1",
        &rows,
        &[
            ("h/", &[], Some("v1")),
            ("h/example", &[], Some("v1")),
            ("h/v2", &[], Some("v2")),
            ("h/v2/", &[], Some("v2")),
            ("h/v2/example", &[], Some("v2")),
            ("h/v2example", &[], Some("v1")),
            ("h/", &[("Version", "two")], Some("v2")),
        ],
    );
}

#[test]
fn m2_exact_is_to_the_letter() {
    let rows = [Row {
        path: "=/one",
        to: "v1",
        ..ANY
    }];
    check(
        "M2",
        &rows,
        &[
            ("h/one", &[], Some("v1")),
            ("h/one/example", &[], None),
            ("h/one/", &[], None),
            ("h/One", &[], None),
            ("h/two", &[], None),
        ],
    );
}

#[test]
fn m3_exact_then_longest_prefix() {
    let at = |path, to| Row { path, to, ..ANY };
    let rows = [
        at("=/match", "v1"),
        at("=/match/exact", "v2"),
        at("=/match/exact/one", "v3"),
        at("/match/", "v3"),
        at("/match/prefix/", "v1"),
        at("/match/prefix/one", "v2"),
    ];
    check(
        "M3",
        &rows,
        &[
            ("h/match", &[], Some("v1")),
            ("h/match/exact", &[], Some("v2")),
            ("h/match/exact/one", &[], Some("v3")),
            ("h/match/prefix/one/any", &[], Some("v2")),
            ("h/match/prefix/any", &[], Some("v1")),
            ("h/match/any", &[], Some("v3")),
            ("h/match/prefix", &[], Some("v1")),
            ("h/other", &[], None),
        ],
    );
}

#[test]
fn m4_headers() {
    let with = |headers, to| Row { headers, to, ..ANY };
    let rows = [
        with(&[("version", "one")], "v1"),
        with(&[("version", "two")], "v2"),
        with(&[("version", "two"), ("color", "orange")], "v1"),
        with(&[("color", "blue")], "v1"),
        with(&[("color", "green")], "v1"),
        with(&[("color", "red")], "v2"),
        with(&[("color", "yellow")], "v2"),
    ];
    check(
        "M4",
        &rows,
        &[
            ("h/", &[("version", "one")], Some("v1")),
            ("h/", &[("version", "two")], Some("v2")),
            ("h/", &[("version", "two"), ("color", "orange")], Some("v1")),
            ("h/", &[("color", "orange")], None),
            ("h/", &[("Color", "blue")], Some("v1")),
            ("h/", &[("color", "Blue")], None),
            ("h/", &[("color", "red")], Some("v2")),
            ("h/", &[("color", "purple")], None),
        ],
    );
}

#[test]
fn m5_query() {
    let with = |query, to| Row { query, to, ..ANY };
    let rows = [
        with(&[("animal", "whale")], "v1"),
        with(&[("animal", "dolphin")], "v2"),
        with(&[("animal", "dolphin"), ("color", "blue")], "v3"),
        with(&[("ANIMAL", "Whale")], "v3"),
    ];
    check(
        "M5",
        &rows,
        &[
            ("h/?animal=dolphin&color=blue", &[], Some("v3")),
            ("h/?animal=dolphin&color=yellow", &[], Some("v2")),
            ("h/?animal=whale&otherparam=irrelevant", &[], Some("v1")),
            ("h/?ANIMAL=Whale", &[], Some("v3")),
            ("h/?color=blue", &[], None),
            ("h/?animal=whaledolphin", &[], None),
            ("h/", &[], None),
            ("h/?animal=whale&animal=dolphin", &[], Some("v1")),
            ("h/?animal=wh%61le", &[], Some("v1")),
        ],
    );
}

#[test]
fn m6_path_beats_method_beats_headers_beats_query() {
    let rows = [
        Row {
            path: "/path5",
            to: "path",
            ..ANY
        },
        Row {
            query: &[("animal", "hydra")],
            to: "query",
            ..ANY
        },
        Row {
            headers: &[("version", "four")],
            to: "header",
            ..ANY
        },
        Row {
            methods: &[Method::PATCH],
            to: "method",
            ..ANY
        },
    ];
    let four: &[(&str, &str)] = &[("version", "four")];
    for (name, method, target, headers, want) in [
        (
            "path over query",
            Method::GET,
            "h/path5?animal=hydra",
            &[][..],
            "path",
        ),
        (
            "path over all",
            Method::PATCH,
            "h/path5?animal=hydra",
            four,
            "path",
        ),
        ("method over header", Method::PATCH, "h/", four, "method"),
        (
            "header over query",
            Method::GET,
            "h/?animal=hydra",
            four,
            "header",
        ),
        (
            "query alone",
            Method::GET,
            "h/?animal=hydra",
            &[][..],
            "query",
        ),
    ] {
        assert_eq!(ask(&rows, &method, target, headers), Some(want), "{name}");
    }
}

#[test]
fn m7_another_method_is_not_found() {
    let rows = [Row {
        methods: &[Method::GET],
        to: "v1",
        ..ANY
    }];
    for (method, want) in [
        (Method::GET, Some("v1")),
        (Method::HEAD, None),
        (Method::POST, None),
    ] {
        assert_eq!(ask(&rows, &method, "h/", &[]), want, "{method}");
    }
}

#[test]
fn m8_hosts() {
    let on = |hosts, to| Row { hosts, to, ..ANY };
    let rows = [
        on(&["very.specific.com"], "specific"),
        on(&["*.wildcard.io"], "wild"),
        on(&["exact.wildcard.io"], "exact"),
        on(&["*.deep.wildcard.io"], "deeper"),
        on(&["Example.COM"], "example"),
    ];
    check(
        "M8",
        &rows,
        &[
            ("very.specific.com:8080/", &[], Some("specific")),
            ("a.wildcard.io/", &[], Some("wild")),
            ("a.b.wildcard.io/", &[], Some("wild")),
            ("wildcard.io/", &[], None),
            ("exact.wildcard.io/", &[], Some("exact")),
            ("a.deep.wildcard.io/", &[], Some("deeper")),
            ("deep.wildcard.io/", &[], Some("wild")),
            ("EXAMPLE.com/", &[], Some("example")),
            ("example.com./", &[], Some("example")),
            ("other.com/", &[], None),
            ("[::1]:80/", &[], None),
        ],
    );
}

#[test]
fn m9_equal_rank_goes_to_the_earlier() {
    let rows = [
        Row {
            headers: &[("a", "1")],
            to: "first",
            ..ANY
        },
        Row {
            headers: &[("b", "1")],
            to: "second",
            ..ANY
        },
    ];
    let both: &[(&str, &str)] = &[("a", "1"), ("b", "1")];
    assert_eq!(ask(&rows, &Method::GET, "h/", both), Some("first"));
    let other = Row {
        path: "/unrelated",
        to: "other",
        ..ANY
    };
    let changed = [other, rows[0], rows[1]];
    assert_eq!(ask(&changed, &Method::GET, "h/", both), Some("first"));
}

#[test]
fn what_does_not_match_falls_to_shorter_prefixes_and_wider_hosts() {
    let rows = [
        Row {
            hosts: &["api.example.com"],
            path: "/v1/orders",
            headers: &[("x-beta", "1")],
            to: "beta",
            ..ANY
        },
        Row {
            hosts: &["api.example.com"],
            path: "/v1",
            methods: &[Method::GET],
            to: "v1",
            ..ANY
        },
        Row {
            hosts: &["*.example.com"],
            path: "/v1/orders",
            to: "wild",
            ..ANY
        },
        Row { to: "any", ..ANY },
    ];
    for (method, target, headers, want) in [
        (
            Method::GET,
            "api.example.com/v1/orders/7",
            &[("x-beta", "1")][..],
            "beta",
        ),
        (Method::GET, "api.example.com/v1/orders/7", &[], "v1"),
        (Method::POST, "api.example.com/v1/orders/7", &[], "wild"),
        (Method::POST, "api.example.com/v1/carts", &[], "any"),
    ] {
        assert_eq!(
            ask(&rows, &method, target, headers),
            Some(want),
            "{method} {target}"
        );
    }
}

#[test]
fn many_siblings_are_found_like_few() {
    let paths: Vec<String> = (0..50).map(|n| format!("/s{n}/x")).collect();
    let rules: Vec<Rule> = paths
        .iter()
        .map(|path| Rule {
            path: path.parse().expect(path),
            ..Rule::default()
        })
        .collect();
    let table = RouteTable::build(&rules).expect("no duplicates");
    for (index, path) in paths.iter().enumerate() {
        let found = table.find("h", path, None, &Method::GET, &HeaderMap::new());
        assert_eq!(found, Some(index), "{path}");
    }
}

#[test]
fn rules_that_ask_the_same_are_refused() {
    let base = Row {
        hosts: &["a.com", "b.com"],
        path: "/x",
        methods: &[Method::GET, Method::POST],
        headers: &[("p", "1"), ("q", "2")],
        ..ANY
    };
    let same = Row {
        hosts: &["b.com"],
        path: "/x/",
        methods: &[Method::POST, Method::GET],
        headers: &[("q", "2"), ("p", "1")],
        ..ANY
    };
    let other_host = Row {
        hosts: &["c.com"],
        ..same
    };
    let other_method = Row {
        methods: &[Method::GET],
        ..same
    };
    let build = |rows: &[Row]| RouteTable::build(&rows.iter().map(rule).collect::<Vec<_>>());
    assert_eq!(
        build(&[base, other_host, other_method, same]).expect_err("the fourth is the first"),
        Duplicate {
            first: 0,
            second: 3
        }
    );
    assert!(build(&[base, other_host, other_method]).is_ok());
}

#[test]
fn patterns_that_never_match_are_refused() {
    for text in ["x", "", "~ ^/x", "/a//b", "/a/../b", "/a?b", "/ä", "/a b"] {
        assert!(text.parse::<PathPattern>().is_err(), "{text:?}");
    }
    for text in ["", "*", "a..b", "a.com:80", "*.*.com", "a/b", "ä.de"] {
        assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
    }
    for (text, shown) in [("/x/", "/x"), ("/", "/"), ("=/x/", "=/x/"), ("=/", "=/")] {
        let pattern: PathPattern = text.parse().expect(text);
        assert_eq!(pattern.to_string(), shown);
    }
}
