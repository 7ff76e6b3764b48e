//! All that a request carries, read once on arrival and written on every call made for it.
//!
//! A service that forwards only what it knows breaks the chain for everybody behind it. So the
//! whole of it is one value, a request extension on the way in, and one function on the way out:
//!
//! ```
//! # use std::time::{Instant, SystemTime};
//! # use http::{HeaderMap, HeaderValue};
//! # use selvedge_resilience::{Rng, context::{CallContext, TraceFormat}};
//! # #[allow(clippy::disallowed_methods)]
//! # let now = Instant::now();
//! # let inbound = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), HeaderValue::from_static("5S"))]);
//! let context = CallContext::read(&inbound, now, SystemTime::now(), &Rng::new(7));
//! let mut outbound = HeaderMap::new();
//! context.propagate(&mut outbound, now, &[TraceFormat::W3c]);
//! assert_eq!(outbound["x-envoy-expected-rq-timeout-ms"], "5000");
//! assert!(outbound.contains_key("traceparent"));
//! ```
//!
//! The time that the service itself took is taken off the deadline; the number of the try is not
//! passed on, because it belongs to one hop.

use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    attempt::AttemptNumber,
    b3::{self, B3Context, Sampling, TraceFormat},
    baggage::Baggage,
    deadline::{self, Deadline},
    priority::Priority,
    trace::{TRACEPARENT, TRACESTATE, TraceContext},
    tracestate::TraceState,
};
use crate::rng::Rng;

/// `x-request-id`.
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a request carries. Also a request extension: see
/// `layer::ContextLayer`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CallContext {
    /// The caller's span, or the root of a new trace.
    pub trace: TraceContext,
    /// Whether the caller sent no trace, so that `trace` begins here.
    pub is_root: bool,
    /// "Record it whatever samplers think": only B3 can say so.
    pub is_debug: bool,
    /// What tracing systems on the way want to find again.
    pub tracestate: TraceState,
    /// What the application sends along.
    pub baggage: Baggage,
    /// When the call must be over, if the caller said.
    pub deadline: Option<Deadline>,
    /// The caller's limit for one try, if it said.
    pub per_try: Option<std::time::Duration>,
    /// How much it matters.
    pub priority: Priority,
    /// Whether the caller said how much it matters.
    pub has_priority: bool,
    /// Which of the caller's tries this is, if it said.
    pub attempt: Option<AttemptNumber>,
    /// The caller's `x-request-id`.
    pub request_id: Option<HeaderValue>,
}

impl CallContext {
    /// Reads everything. A trace in W3C form wins over one in B3; a caller without either gets a
    /// new one, recorded if B3's decision alone says so.
    pub fn read(headers: &HeaderMap, now: Instant, wall: SystemTime, rng: &Rng) -> Self {
        let w3c = TraceContext::extract(headers);
        let b3 = match w3c {
            Some(_) => None,
            None => B3Context::extract(headers),
        };
        let sampling = b3.and_then(|b3| b3.sampling);
        let found = w3c.or(b3.and_then(|b3| b3.trace));
        let recorded = matches!(sampling, Some(Sampling::Accept | Sampling::Debug));
        let limits = deadline::limits(headers);
        let left = deadline::extract_at(headers, wall);
        Self {
            trace: found.unwrap_or_else(|| TraceContext::root(rng, recorded)),
            is_root: found.is_none(),
            is_debug: sampling == Some(Sampling::Debug),
            // Without a valid parent it says nothing of this trace.
            tracestate: w3c.map_or_else(TraceState::default, |_| TraceState::extract(headers)),
            baggage: Baggage::extract(headers),
            deadline: left.and_then(|left| Deadline::after(now, left)),
            per_try: limits.per_try,
            priority: Priority::extract(headers),
            has_priority: Priority::find(headers).is_some(),
            attempt: AttemptNumber::extract(headers),
            request_id: headers.get(&REQUEST_ID).cloned(),
        }
    }

    /// Writes it into the head of a call that is made for this one, in place of what was there.
    ///
    /// `formats`: how the trace is written. An expired deadline is written as a millisecond, which
    /// the callee will refuse.
    pub fn propagate(&self, headers: &mut HeaderMap, now: Instant, formats: &[TraceFormat]) {
        for name in [&TRACEPARENT, &TRACESTATE, &b3::B3] {
            headers.remove(name);
        }
        for format in formats {
            match format {
                TraceFormat::W3c => {
                    self.trace.inject(headers);
                    self.tracestate.clone().inject(headers);
                }
                TraceFormat::B3Single => self.b3().inject_single(headers),
                TraceFormat::B3Multi => self.b3().inject_multi(headers),
            }
        }
        self.baggage.inject(headers);
        if let Some(deadline) = self.deadline {
            deadline::inject(headers, deadline.left(now));
        }
        if self.has_priority {
            self.priority.inject(headers);
        }
        if let Some(id) = &self.request_id {
            headers.insert(REQUEST_ID.clone(), id.clone());
        }
    }

    fn b3(&self) -> B3Context {
        let plain = B3Context::from(self.trace);
        if self.is_debug {
            B3Context {
                sampling: Some(Sampling::Debug),
                ..plain
            }
        } else {
            plain
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
            .collect()
    }

    fn read(pairs: &[(&'static str, &'static str)], now: Instant) -> CallContext {
        CallContext::read(&headers(pairs), now, SystemTime::UNIX_EPOCH, &Rng::new(7))
    }

    #[test]
    fn all_of_it_passes_through_a_service_that_knows_none_of_it() {
        let now = Instant::now();
        let inbound = [
            ("traceparent", PARENT),
            ("tracestate", "rojo=1"),
            ("baggage", "tenant=acme"),
            ("x-priority", "batch"),
            ("x-request-id", "abc"),
            ("grpc-timeout", "2S"),
            ("x-envoy-attempt-count", "3"),
        ];
        let context = read(&inbound, now);
        assert_eq!(context.attempt, Some(AttemptNumber(3)));
        assert!(!context.is_root);
        let mut outbound = headers(&[("tracestate", "stale=1"), ("baggage", "stale=1")]);
        context.propagate(
            &mut outbound,
            now + Duration::from_millis(500),
            &[TraceFormat::W3c],
        );
        let want = headers(&[
            ("traceparent", PARENT),
            ("tracestate", "rojo=1"),
            ("baggage", "tenant=acme"),
            ("x-priority", "batch"),
            ("x-request-id", "abc"),
            ("x-envoy-expected-rq-timeout-ms", "1500"),
        ]);
        assert_eq!(outbound, want);
    }

    #[test]
    fn b3_comes_in_and_goes_out_in_any_form() {
        let now = Instant::now();
        let b3 = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-d";
        let context = read(&[("b3", b3), ("tracestate", "a=1")], now);
        assert!(context.is_debug && context.trace.is_sampled());
        assert!(context.tracestate.is_empty(), "of another trace");
        let mut out = HeaderMap::new();
        let all = [
            TraceFormat::W3c,
            TraceFormat::B3Single,
            TraceFormat::B3Multi,
        ];
        context.propagate(&mut out, now, &all);
        assert_eq!(out["b3"], b3);
        assert_eq!(out["x-b3-flags"], "1");
        assert_eq!(
            out["traceparent"],
            "00-80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-01"
        );
        let both = read(&[("b3", b3), ("traceparent", PARENT)], now);
        assert_eq!(both.trace.header(), PARENT, "W3C wins");
    }

    #[test]
    fn a_request_without_anything_begins_a_trace_and_says_no_more() {
        let now = Instant::now();
        let context = read(&[], now);
        assert!(context.is_root && !context.trace.is_sampled());
        assert_eq!(context.priority, Priority::DEFAULT);
        let mut out = HeaderMap::new();
        context.propagate(&mut out, now, &[TraceFormat::W3c]);
        assert_eq!(out.len(), 1, "{out:?}");
        let decided = read(&[("b3", "1")], now);
        assert!(decided.is_root && decided.trace.is_sampled());
    }

    #[test]
    fn an_expired_deadline_stays_expired() {
        let now = Instant::now();
        let context = read(&[("grpc-timeout", "100m")], now);
        let mut out = HeaderMap::new();
        context.propagate(&mut out, now + Duration::from_secs(9), &[]);
        assert_eq!(out["x-envoy-expected-rq-timeout-ms"], "1");
        assert!(!out.contains_key("traceparent"));
    }
}
