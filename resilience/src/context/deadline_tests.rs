use super::*;

#[test]
fn numbers_are_their_digits() {
    for n in [0, 1, 9, 10, 1_500, 99_999_999, u64::MAX] {
        assert_eq!(number(n), n.to_string().as_str());
    }
}

fn headers(pairs: &[(&HeaderName, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| ((*name).clone(), value.parse().expect("value")))
        .collect()
}

type Said<'a> = &'a [(&'a HeaderName, &'a str)];
type Ms = Option<u64>;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn hdr_1_grpc_timeout() {
    let cases: &[(&str, Option<u64>)] = &[
        ("5S", Some(5_000)),
        ("1500u", Some(2)),
        ("1n", Some(1)),
        ("0n", Some(0)),
        ("1H", Some(3_600_000)),
        ("2M", Some(120_000)),
        ("100m", Some(100)),
        ("99999999H", Some(359_999_996_400_000)),
        ("123456789m", None),
        ("1.5S", None),
        ("10", None),
        ("S", None),
        ("-1S", None),
        ("+1S", None),
        (" 1S", None),
        ("1s", None),
        ("", None),
    ];
    for (text, want) in cases {
        assert_eq!(
            parse_grpc(text.as_bytes()),
            want.map(Duration::from_millis),
            "{text}"
        );
    }
}

#[test]
fn the_shortest_of_what_is_said_counts() {
    let cases: &[(Said<'_>, Ms, Ms)] = &[
        (&[], None, None),
        (&[(&GRPC_TIMEOUT, "5S")], Some(5_000), None),
        (&[(&EXPECTED_TIMEOUT_MS, "200")], Some(200), None),
        (&[(&EXPECTED_TIMEOUT_MS, "0")], None, None),
        (&[(&EXPECTED_TIMEOUT_MS, "+5")], None, None),
        (&[(&EXPECTED_TIMEOUT_MS, "soon")], None, None),
        (
            &[(&UPSTREAM_TIMEOUT_MS, "700"), (&PER_TRY_TIMEOUT_MS, "90")],
            Some(700),
            Some(90),
        ),
        (
            &[(&GRPC_TIMEOUT, "5S"), (&EXPECTED_TIMEOUT_MS, "200")],
            Some(200),
            None,
        ),
        (
            &[(&GRPC_TIMEOUT, "5S"), (&EXPECTED_TIMEOUT_MS, "0")],
            Some(5_000),
            None,
        ),
    ];
    for (pairs, total, per_try) in cases {
        let want = Limits {
            total: total.map(Duration::from_millis),
            per_try: per_try.map(Duration::from_millis),
        };
        assert_eq!(limits(&headers(pairs)), want, "{pairs:?}");
        assert_eq!(extract(&headers(pairs)), want.total, "{pairs:?}");
    }
}

#[test]
fn what_is_passed_on_never_grants_more_than_there_is() {
    let mut plain = HeaderMap::new();
    inject(&mut plain, ms(300));
    assert_eq!(plain.len(), 1, "no more headers than needed: {plain:?}");
    assert_eq!(plain[&EXPECTED_TIMEOUT_MS], "300");

    let mut all = headers(&[
        (&GRPC_TIMEOUT, "5S"),
        (&UPSTREAM_TIMEOUT_MS, "5000"),
        (&PER_TRY_TIMEOUT_MS, "400"),
    ]);
    inject(&mut all, ms(300));
    let want = Limits {
        total: Some(ms(300)),
        per_try: Some(ms(300)),
    };
    assert_eq!(limits(&all), want);
    assert_eq!(all[&GRPC_TIMEOUT], "300m");
    inject(&mut all, Duration::from_micros(150));
    assert_eq!(extract(&all), Some(ms(1)), "never for ever");
    inject(&mut all, Duration::from_secs(1_000_000));
    assert_eq!(all[&GRPC_TIMEOUT], "1000000S");
    inject(&mut all, Duration::MAX);
    assert_eq!(all[&GRPC_TIMEOUT], "99999999S");

    let mut grpc = headers(&[(&http::header::CONTENT_TYPE, "application/grpc+proto")]);
    inject(&mut grpc, ms(40));
    assert_eq!(grpc[&GRPC_TIMEOUT], "40m");
}

#[test]
fn what_one_try_is_told_follows_envoy() {
    let cases: &[(&str, Ms, Ms, bool, Ms)] = &[
        ("for ever", None, None, false, None),
        ("total", Some(300), None, false, Some(300)),
        ("try", None, Some(90), false, Some(90)),
        ("both", Some(300), Some(90), false, Some(90)),
        ("little left", Some(40), Some(90), false, Some(40)),
        ("out of time", Some(0), Some(90), false, Some(1)),
        ("hedged", Some(300), Some(90), true, Some(300)),
    ];
    for (name, total, per_try, hedged, want) in cases {
        let of = |ms: &Option<u64>| ms.map(Duration::from_millis);
        assert_eq!(
            expected(of(total), of(per_try), *hedged),
            of(want),
            "{name}"
        );
    }
}

#[test]
fn finagle_s_header_is_two_points_of_the_wall_clock() {
    let wall = UNIX_EPOCH + Duration::from_secs(1_000);
    let ours = FinagleDeadline::new(wall, ms(250));
    assert_eq!(ours.header(), "1000000000000 1000250000000");
    let mut map = headers(&[(&FINAGLE, "1000000000000 1000250000000")]);
    assert_eq!(FinagleDeadline::find(&map), Some(ours));
    assert_eq!(extract(&map), None);
    assert_eq!(extract_at(&map, wall), Some(ms(250)));
    assert_eq!(
        extract_at(&map, wall + ms(900)),
        Some(Duration::ZERO),
        "expired"
    );
    let merged = ours.merge(FinagleDeadline {
        timestamp_ns: 7,
        deadline_ns: 9,
    });
    assert_eq!(
        (merged.timestamp_ns, merged.deadline_ns),
        (1_000_000_000_000, 9)
    );
    inject_at(&mut map, ms(100), wall + ms(50));
    assert_eq!(map[&FINAGLE], "1000050000000 1000150000000");
    inject_at(&mut map, ms(900), wall + ms(50));
    assert_eq!(map[&FINAGLE], "1000050000000 1000150000000", "never later");
    for text in ["", "1", "1 x", "-1 5", "1  5", "1 2 3"] {
        assert_eq!(
            FinagleDeadline::find(&headers(&[(&FINAGLE, text)])),
            None,
            "{text}"
        );
    }
}

#[test]
fn a_deadline_stands_still_while_time_goes_on() {
    let now = Instant::now();
    let deadline = Deadline::after(now, ms(100)).expect("soon");
    assert_eq!(deadline.left(now + ms(40)), ms(60));
    assert!(!deadline.has_passed(now + ms(99)) && deadline.has_passed(now + ms(100)));
    assert_eq!(deadline.left(now + ms(500)), Duration::ZERO);
    assert_eq!(Deadline::after(now, Duration::MAX), None);
    let later = Deadline::after(now, ms(200));
    assert_eq!(Deadline::earlier(later, Some(deadline)), Some(deadline));
    assert_eq!(Deadline::earlier(None, later), later);
}
