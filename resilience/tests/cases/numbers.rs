//! The kinds that are numbers: a value in, a value out.

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode};
use selvedge_resilience::{
    Outcome, Rejected, Rng,
    classify::{self, Advice},
    config::Millis,
    context::deadline,
    outcome::{FailureClass, Policy, Reason},
    rate_limit::{Status, headers::PolicyName},
    retry::backoff,
    throttle::{Throttle, ThrottleConfig},
};

use super::table::{self, HeaderLine, What};

pub(super) fn backoff(case: &table::Backoff) -> Vec<String> {
    let mut found = Vec::new();
    for (n, want) in case.waits.iter().enumerate() {
        let (range, retry) = (case.range, n as u32);
        let wait = match case.step {
            Some(step) => backoff::linear(range.base, step.0, range.max, retry),
            None => backoff::ceiling(range, retry),
        };
        if wait != want.0 {
            found.push(format!("wait {n}: {wait:?}, want {want}"));
        }
    }
    found
}

pub(super) fn cubic(case: &table::Cubic) -> Vec<String> {
    let (mut top, mut since, mut is) = (case.top, case.since, case.top);
    let mut found = Vec::new();
    for point in &case.points {
        is = if point.dropped {
            (top, since) = (is * case.config.beta.fraction(), point.at);
            top
        } else {
            case.config
                .at(top, Duration::from_secs_f64(point.at - since))
        };
        if (is - point.is).abs() > 1e-9 {
            found.push(format!("at {}: {is}, want {}", point.at, point.is));
        }
    }
    found
}

pub(super) fn throttle(case: &table::Throttle) -> Vec<String> {
    let mut found = Vec::new();
    for &(requests, accepts, want) in &case.points {
        let got = match case.max {
            None => case.form.probability(requests, accepts),
            Some(max) => {
                let config = ThrottleConfig {
                    form: case.form,
                    max,
                    ..ThrottleConfig::default()
                };
                recorded(config, requests, accepts)
            }
        };
        if (got - want).abs() > case.within {
            found.push(format!("({requests}, {accepts}): {got}, want {want}"));
        }
    }
    found
}

/// The probability that a throttle with a cap comes to. What it refuses meanwhile counts as
/// requests too, so calls are made until as many as said were admitted.
fn recorded(config: ThrottleConfig, requests: u64, accepts: u64) -> f64 {
    let throttle = Throttle::new(config, Rng::new(4)).expect("valid");
    let now = Instant::now();
    // All permits first: nothing is recorded yet, so nothing is refused.
    let permits: Vec<_> = (0..requests)
        .map(|_| throttle.try_acquire(now).expect("new"))
        .collect();
    for (n, permit) in permits.into_iter().enumerate() {
        let outcome = if (n as u64) < accepts {
            Outcome::Success
        } else {
            Outcome::Failure(FailureClass::ServerError)
        };
        permit.complete(outcome, now);
    }
    throttle.probability(now)
}

pub(super) fn headers(case: &table::Headers) -> Vec<String> {
    let mut found = Vec::new();
    for line in &case.lines {
        let differ = match case.what {
            What::GrpcTimeout => gives(line, deadline::parse_grpc(line.value.as_bytes())),
            What::RetryAfter => gives(line, retry_after(line)),
            What::Pushback => gives(line, pushback(line)),
            What::RateLimit => writes(line),
        };
        found.extend(differ.map(|text| format!("{:?}: {text}", line.value)));
    }
    found
}

fn gives(line: &HeaderLine, got: Option<Duration>) -> Option<String> {
    let got = got.map(Millis);
    (got != line.gives).then(|| format!("{got:?}, want {:?}", line.gives))
}

fn one(name: &'static str, value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_str(value).expect("a header's value");
    headers.insert(name, value);
    headers
}

fn retry_after(line: &HeaderLine) -> Option<Duration> {
    let status = StatusCode::from_u16(line.status.expect("of a status")).expect("a status");
    let cap = line.cap.map_or(Duration::MAX, |cap| cap.0);
    let headers = one("retry-after", &line.value);
    classify::retry_after(status, &headers, SystemTime::now(), cap)
}

fn pushback(line: &HeaderLine) -> Option<Duration> {
    let headers = one("grpc-retry-pushback-ms", &line.value);
    match classify::advice(StatusCode::OK, &headers) {
        Advice::Pushback(wait) => Some(wait),
        Advice::Stop => None,
        other => panic!("a pushback is no {other:?}"),
    }
}

/// `policy; rate; remaining; reset` as the fields of an answer, and of a refusal.
fn writes(line: &HeaderLine) -> Option<String> {
    let parts: Vec<&str> = line.value.split(';').map(str::trim).collect();
    let [name, rate, remaining, reset] = parts[..] else {
        panic!("{:?} is not name; rate; remaining; reset", line.value);
    };
    let name = PolicyName::new(name).expect("a name");
    let rate = rate.parse().expect("a rate");
    let reset: Millis = reset.parse().expect("a time");
    let remaining = remaining.parse().expect("a number");
    let status = Status::new(rate, remaining, reset.0);
    let mut headers = HeaderMap::new();
    name.write(&mut headers, status);
    let rejected = Rejected::after(Policy::RateLimit, Reason::Exhausted, reset.0);
    let mut refused = HeaderMap::new();
    name.write_refused(&mut refused, rate, &rejected);
    let after = refused
        .get("retry-after")
        .map(|value| value.to_str().expect("text"));
    let after: u64 = after.expect("a 429 says when").parse().expect("seconds");
    let text = |name: &str| headers[name].to_str().expect("text").to_owned();
    let got = [text("ratelimit-policy"), text("ratelimit")];
    if after < reset.0.as_secs() {
        return Some(format!("Retry-After {after} is before t"));
    }
    (got[..] != line.writes[..]).then(|| format!("{got:?}, want {:?}", line.writes))
}
