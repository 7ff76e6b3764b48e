//! B3: Zipkin's trace context, in one header or in several.
//!
//! Services older than W3C trace context speak it and nothing else. A mesh that does not would end
//! their traces at its edge; one that writes it unasked would send eight headers where one does. So
//! both forms are read, and written where a [`TraceFormat`] says so.
//!
//! | form | headers |
//! |---|---|
//! | single | `b3: {trace}-{span}-{sampled}-{parent}`, or only `0`, `1`, `d` |
//! | multi | `X-B3-TraceId`, `X-B3-SpanId`, `X-B3-ParentSpanId`, `X-B3-Sampled`, `X-B3-Flags` |
//!
//! Trace ids of 64 bits are read as the lower half of 128; they are written with 128.
//! The single form wins where both are there.
//!
//! Source: openzipkin/b3-propagation.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::trace::{TraceContext, hex};

/// `b3`.
pub static B3: HeaderName = HeaderName::from_static("b3");
/// `x-b3-traceid`.
pub static TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
/// `x-b3-spanid`.
pub static SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
/// `x-b3-parentspanid`.
pub static PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
/// `x-b3-sampled`.
pub static SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
/// `x-b3-flags`.
pub static FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// A way to write a trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TraceFormat {
    /// `traceparent` and `tracestate`.
    W3c,
    /// `b3`.
    B3Single,
    /// `X-B3-*`.
    B3Multi,
}

/// Whether a trace is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// No.
    Deny,
    /// Yes.
    Accept,
    /// Yes, whatever any sampler thinks.
    Debug,
}

impl Sampling {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "0" | "false" => Some(Self::Deny),
            "1" | "true" => Some(Self::Accept),
            "d" => Some(Self::Debug),
            _ => None,
        }
    }

    const fn letter(self) -> &'static str {
        match self {
            Self::Deny => "0",
            Self::Accept => "1",
            Self::Debug => "d",
        }
    }
}

/// What B3 headers say: ids, a decision, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct B3Context {
    /// Trace and span; `None` where only a decision was sent.
    pub trace: Option<TraceContext>,
    /// Whether it is recorded; `None` leaves it to the receiver.
    pub sampling: Option<Sampling>,
    /// The span above.
    pub parent: Option<u64>,
}

impl B3Context {
    /// Reads the single form, or else the several; `None` if neither says anything that can be
    /// read.
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        match one(headers, &B3) {
            Some(text) => Self::parse(text),
            None => Self::parse_multi(headers),
        }
    }

    /// Reads the value of `b3`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(sampling) = Sampling::parse(text).filter(|_| text.len() == 1) {
            return Some(Self {
                sampling: Some(sampling),
                ..Self::default()
            });
        }
        let mut parts = text.split('-');
        let (trace_id, span_id) = (parts.next()?, parts.next()?);
        let sampling = match parts.next() {
            Some(text) => Some(Sampling::parse(text).filter(|_| text.len() == 1)?),
            None => None,
        };
        let parent = match parts.next() {
            Some(text) => Some(span(text)?),
            None => None,
        };
        if parts.next().is_some() {
            return None;
        }
        Some(Self::of(trace(trace_id)?, span(span_id)?, sampling, parent))
    }

    fn parse_multi(headers: &HeaderMap) -> Option<Self> {
        let debug = one(headers, &FLAGS) == Some("1");
        let sampling = match one(headers, &SAMPLED) {
            _ if debug => Some(Sampling::Debug),
            Some(text) => Some(Sampling::parse(text)?),
            None => None,
        };
        let ids = one(headers, &TRACE_ID)
            .and_then(trace)
            .zip(one(headers, &SPAN_ID).and_then(span));
        match ids {
            Some((trace_id, span_id)) => {
                let parent = one(headers, &PARENT_SPAN_ID).and_then(span);
                Some(Self::of(trace_id, span_id, sampling, parent))
            }
            None => sampling.map(|sampling| Self {
                sampling: Some(sampling),
                ..Self::default()
            }),
        }
    }

    fn of(trace_id: u128, span_id: u64, sampling: Option<Sampling>, parent: Option<u64>) -> Self {
        let recorded = matches!(sampling, Some(Sampling::Accept | Sampling::Debug));
        Self {
            trace: Some(TraceContext {
                trace_id,
                span_id,
                flags: u8::from(recorded),
            }),
            sampling,
            parent,
        }
    }

    /// Writes the single form in place of what was there.
    pub fn inject_single(self, headers: &mut HeaderMap) {
        let text = match (self.trace, self.letter()) {
            (None, None) => return,
            (None, Some(letter)) => letter.to_owned(),
            (Some(trace), letter) => {
                let mut text = format!("{:032x}-{:016x}", trace.trace_id, trace.span_id);
                if let Some(letter) = letter {
                    text = format!("{text}-{letter}");
                    if let Some(parent) = self.parent {
                        text = format!("{text}-{parent:016x}");
                    }
                }
                text
            }
        };
        put(headers, &B3, &text);
    }

    /// Writes the several headers in place of what was there.
    pub fn inject_multi(self, headers: &mut HeaderMap) {
        for name in [&TRACE_ID, &SPAN_ID, &PARENT_SPAN_ID, &SAMPLED, &FLAGS] {
            headers.remove(name);
        }
        if let Some(trace) = self.trace {
            put(headers, &TRACE_ID, &format!("{:032x}", trace.trace_id));
            put(headers, &SPAN_ID, &format!("{:016x}", trace.span_id));
        }
        if let Some(parent) = self.parent {
            put(headers, &PARENT_SPAN_ID, &format!("{parent:016x}"));
        }
        // Debug is said by the flags, and implies the rest.
        match self.letter() {
            Some("d") => put(headers, &FLAGS, "1"),
            Some(letter) => put(headers, &SAMPLED, letter),
            None => {}
        }
    }

    fn letter(self) -> Option<&'static str> {
        self.sampling.map(Sampling::letter)
    }
}

/// A context that came in another format. W3C has no "undecided": not sampled is a decision.
impl From<TraceContext> for B3Context {
    fn from(trace: TraceContext) -> Self {
        let sampling = if trace.is_sampled() {
            Sampling::Accept
        } else {
            Sampling::Deny
        };
        Self {
            trace: Some(trace),
            sampling: Some(sampling),
            parent: None,
        }
    }
}

/// The only value of `name`, as text.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(only), None) => only.to_str().ok(),
        _ => None,
    }
}

fn put(headers: &mut HeaderMap, name: &HeaderName, text: &str) {
    let value = HeaderValue::try_from(text).expect("hex digits and dashes are a header value");
    headers.insert(name.clone(), value);
}

/// 16 or 32 hex digits, not all zero.
fn trace(text: &str) -> Option<u128> {
    if text.len() != 16 && text.len() != 32 {
        return None;
    }
    hex(text.as_bytes()).filter(|&id| id != 0)
}

/// 16 hex digits, not all zero.
fn span(text: &str) -> Option<u64> {
    if text.len() != 16 {
        return None;
    }
    hex(text.as_bytes())
        .map(|id| id as u64)
        .filter(|&id| id != 0)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const TRACE: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const SPAN: &str = "e457b5a2e4d86bd1";
    const PARENT: &str = "05e3ac9a4f6e3b90";

    fn context(sampling: Option<Sampling>, parent: bool) -> B3Context {
        B3Context::of(
            0x80f1_98ee_5634_3ba8_64fe_8b2a_57d3_eff7,
            0xe457_b5a2_e4d8_6bd1,
            sampling,
            parent.then_some(0x05e3_ac9a_4f6e_3b90),
        )
    }

    #[test]
    fn the_single_form() {
        let only = |sampling| B3Context {
            sampling: Some(sampling),
            ..B3Context::default()
        };
        let long = format!("{TRACE}-{SPAN}");
        let cases: &[(String, Option<B3Context>)] = &[
            ("0".into(), Some(only(Sampling::Deny))),
            ("1".into(), Some(only(Sampling::Accept))),
            ("d".into(), Some(only(Sampling::Debug))),
            (long.clone(), Some(context(None, false))),
            (
                format!("{long}-1"),
                Some(context(Some(Sampling::Accept), false)),
            ),
            (
                format!("{long}-d-{PARENT}"),
                Some(context(Some(Sampling::Debug), true)),
            ),
            (format!("{long}-{PARENT}"), None),
            (format!("{long}-true"), None),
            (format!("{long}-1-{PARENT}-x"), None),
            (format!("{TRACE}-{}", "0".repeat(16)), None),
            (format!("{}-{SPAN}", "0".repeat(32)), None),
            (long.to_uppercase(), None),
            (TRACE.into(), None),
            (format!("abc-{SPAN}"), None),
            ("true".into(), None),
            (String::new(), None),
        ];
        for (text, want) in cases {
            assert_eq!(B3Context::parse(text), *want, "{text}");
        }
        let short = B3Context::parse(&format!("64fe8b2a57d3eff7-{SPAN}")).expect("64 bits");
        assert_eq!(short.trace.expect("ids").trace_id, 0x64fe_8b2a_57d3_eff7);
    }

    #[test]
    fn what_is_written_is_read_back_in_both_forms() {
        let decisions = [
            None,
            Some(Sampling::Deny),
            Some(Sampling::Accept),
            Some(Sampling::Debug),
        ];
        for sampling in decisions {
            for parent in [false, true] {
                let context = context(sampling, parent);
                let mut multi = HeaderMap::new();
                context.inject_multi(&mut multi);
                assert_eq!(B3Context::extract(&multi), Some(context));
                let mut single = HeaderMap::new();
                context.inject_single(&mut single);
                // The single form has no place for a parent without a decision.
                let want = B3Context {
                    parent: context.parent.filter(|_| sampling.is_some()),
                    ..context
                };
                assert_eq!(B3Context::extract(&single), Some(want));
            }
        }
    }

    #[test]
    fn the_single_form_wins_and_a_broken_several_is_nothing() {
        let mut headers = HeaderMap::new();
        put(&mut headers, &TRACE_ID, TRACE);
        put(&mut headers, &SPAN_ID, SPAN);
        put(&mut headers, &SAMPLED, "true");
        let lenient = B3Context::extract(&headers).expect("valid");
        assert_eq!(lenient, context(Some(Sampling::Accept), false));
        put(&mut headers, &B3, "0");
        let single = B3Context::extract(&headers).expect("valid");
        assert_eq!(
            (single.trace, single.sampling),
            (None, Some(Sampling::Deny))
        );
        headers.remove(&B3);
        put(&mut headers, &SAMPLED, "perhaps");
        assert_eq!(B3Context::extract(&headers), None);
        headers.remove(&SAMPLED);
        headers.remove(&SPAN_ID);
        assert_eq!(B3Context::extract(&headers), None, "half a context is none");
        assert_eq!(B3Context::extract(&HeaderMap::new()), None);
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(text in "[ -~]{0,80}") {
            let _context = B3Context::parse(&text);
        }
    }
}
