//! W3C trace context: one id for a request on its whole way, one for each span of it.
//!
//! A valid `traceparent` is continued. Anything else (missing, malformed, all zero, upper case)
//! starts a new trace, and its `tracestate` is dropped, as the specification says.
//!
//! Source: W3C Trace Context, level 1.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::rng::Rng;

/// `traceparent`.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate`.
pub static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Length of a version 00 `traceparent`.
const LEN: usize = 55;

/// The ids of one span and whether its trace is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The same for every span of a trace; never zero.
    pub trace_id: u128,
    /// This span's own; never zero.
    pub span_id: u64,
    /// Bit 0: recorded ("sampled").
    pub flags: u8,
}

impl TraceContext {
    /// A new trace with a first span.
    pub fn root(rng: &Rng, sampled: bool) -> Self {
        let trace_id = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64().max(1));
        Self {
            trace_id,
            span_id: rng.next_u64().max(1),
            flags: u8::from(sampled),
        }
    }

    /// The same trace with a span of its own.
    #[must_use]
    pub fn child(self, rng: &Rng) -> Self {
        Self {
            span_id: rng.next_u64().max(1),
            ..self
        }
    }

    /// Whether somebody upstream decided to record this trace.
    pub fn is_sampled(self) -> bool {
        self.flags & 1 == 1
    }

    /// Reads a `traceparent` value; `None` if it is not valid.
    ///
    /// A version above 00 is read as far as version 00 goes, if a dash follows.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let head: &[u8; LEN] = value.get(..LEN)?.try_into().ok()?;
        let version = hex(&head[..2])?;
        let rest = &value[LEN..];
        let length_ok = if version == 0 {
            rest.is_empty()
        } else {
            rest.is_empty() || rest[0] == b'-'
        };
        let dashes_ok = [2, 35, 52].iter().all(|&at| head[at] == b'-');
        if version == 0xFF || !length_ok || !dashes_ok {
            return None;
        }
        let trace_id = hex(&head[3..35])?;
        let span_id = hex(&head[36..52])? as u64;
        // Flags of later versions than ours mean nothing here.
        let flags = hex(&head[53..55])? as u8 & 1;
        (trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            flags,
        })
    }

    /// Reads the context that `headers` carry: exactly one valid `traceparent`.
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(only), None) => Self::parse(only.as_bytes()),
            _ => None,
        }
    }

    /// Writes this context into `headers` in place of what was there.
    pub fn inject(self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT.clone(), self.header());
    }

    /// The `traceparent` value.
    pub fn header(self) -> HeaderValue {
        let mut text = [b'-'; LEN];
        text[..2].copy_from_slice(b"00");
        write_hex(&mut text[3..35], self.trace_id);
        write_hex(&mut text[36..52], u128::from(self.span_id));
        write_hex(&mut text[53..], u128::from(self.flags));
        HeaderValue::from_bytes(&text).expect("hex digits and dashes are a header value")
    }

    /// The trace id as logs and traces write it: 32 hex digits.
    pub fn trace_hex(self) -> [u8; 32] {
        hex_id(self.trace_id)
    }
}

/// An id of 128 bits as traces, logs and request ids write it: 32 lower-case hex digits.
pub fn hex_id(id: u128) -> [u8; 32] {
    let mut text = [0; 32];
    write_hex(&mut text, id);
    text
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.span_id, self.flags
        )
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes sure that `headers` carry a valid context and returns it: theirs, untouched, or a new one.
pub fn ensure(headers: &mut HeaderMap, rng: &Rng) -> TraceContext {
    if let Some(context) = TraceContext::extract(headers) {
        return context;
    }
    let context = TraceContext::root(rng, false);
    headers.remove(&TRACESTATE);
    context.inject(headers);
    context
}

pub(super) fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            // Upper case is malformed by the specification.
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

fn write_hex(out: &mut [u8], value: u128) {
    let (_, pairs) = out.as_rchunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().rev().zip(value.to_le_bytes()) {
        *pair = HEX[usize::from(byte)];
    }
}

/// Each byte's two digits. A request writes 56 of them: one look-up a byte, not two and two shifts.
static HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 0xF]];
        byte += 1;
    }
    pairs
};

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn reads_what_is_valid_and_nothing_else() {
        let cases: &[(&str, bool)] = &[
            (VALID, true),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
                true,
            ),
            (
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes-later",
                true,
            ),
            (
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                true,
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
                false,
            ),
            (
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
                false,
            ),
            (
                "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                false,
            ),
            (
                "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
                false,
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
                false,
            ),
            (
                "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01",
                false,
            ),
            (
                "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
                false,
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
                false,
            ),
            ("", false),
        ];
        for (value, valid) in cases {
            assert_eq!(
                TraceContext::parse(value.as_bytes()).is_some(),
                *valid,
                "{value}"
            );
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let rng = Rng::new(5);
        for sampled in [false, true] {
            let context = TraceContext::root(&rng, sampled);
            let header = context.header();
            assert_eq!(TraceContext::parse(header.as_bytes()), Some(context));
            assert_eq!(header.to_str().expect("ascii"), context.to_string());
        }
        let context = TraceContext::parse(VALID.as_bytes()).expect("valid");
        assert_eq!(context.header(), VALID);
        let child = context.child(&rng);
        assert_eq!(child.trace_id, context.trace_id);
        assert_ne!(child.span_id, context.span_id);
    }

    #[test]
    fn a_valid_context_passes_untouched_and_a_broken_one_starts_anew() {
        let rng = Rng::new(5);
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT.clone(), HeaderValue::from_static(VALID));
        headers.insert(TRACESTATE.clone(), HeaderValue::from_static("a=b"));
        ensure(&mut headers, &rng);
        assert_eq!(
            (&headers[&TRACEPARENT], &headers[&TRACESTATE]),
            (
                &HeaderValue::from_static(VALID),
                &HeaderValue::from_static("a=b")
            )
        );
        headers.append(TRACEPARENT.clone(), HeaderValue::from_static(VALID));
        let fresh = ensure(&mut headers, &rng);
        assert_eq!(headers.get_all(&TRACEPARENT).iter().count(), 1);
        assert_ne!(fresh.header(), VALID);
        assert!(!headers.contains_key(&TRACESTATE), "two parents are none");
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
            let _context = TraceContext::parse(&bytes);
        }
    }
}
