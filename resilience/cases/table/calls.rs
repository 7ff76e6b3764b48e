//! Calls through a whole policy: what is sent, what the callee does, what the caller sees.

use std::collections::BTreeMap;

use selvedge_resilience::{TrafficPolicy, config::Millis, outcome::FailureClass};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::Reading;

/// Calls through a whole policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calls {
    pub name: String,
    pub source: String,
    pub policy: TrafficPolicy,
    pub steps: Vec<Step>,
}

/// What happens at one time: first a change, then a call, then a reading.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Since the case began; never earlier than the step before.
    #[serde(default)]
    pub at: At,
    /// A new policy takes force.
    pub policy: Option<TrafficPolicy>,
    /// The body that the call of this label holds open ends well.
    pub ends: Option<String>,
    /// The caller of this label gives up.
    pub drop: Option<String>,
    /// A call: what the callee does at each try; at tries beyond the last, as at the last.
    pub call: Option<Tries>,
    /// Makes that many calls, one after the other has ended or hangs.
    #[serde(default = "one")]
    pub times: u32,
    /// What other steps call it.
    #[serde(rename = "as")]
    pub label: Option<String>,
    /// The request's method. Default GET.
    pub method: Option<String>,
    /// Its path and query. Default "/".
    pub path: Option<String>,
    /// The request's headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The request's body. Default none.
    pub sends: Option<String>,
    /// What its caller sees; must be said unless the call is dropped.
    pub want: Option<Want>,
    /// With a refusal: when to come back, to the millisecond, rounded up.
    pub retry_after: Option<Millis>,
    /// How many tries reached the callee.
    pub tries: Option<u32>,
    /// How long the caller waited for the head or the error.
    pub took: Option<Millis>,
    /// How the held body breaks off, if it does: `"deadline"`.
    pub body: Option<String>,
    /// What the body says.
    pub text: Option<String>,
    /// What the host says of its policies then.
    pub read: Option<Reading>,
}

/// What a step is done with, if it does not say how often.
pub(super) fn one() -> u32 {
    1
}

/// A time since the case began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub struct At(pub Millis);

impl Default for At {
    fn default() -> Self {
        Self(Millis::new(0))
    }
}

/// What the callee does, try by try.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Tries {
    One(Act),
    Each(Vec<Act>),
}

impl Tries {
    /// What it does at try `n` (the first is 0).
    pub fn nth(&self, n: usize) -> &Act {
        match self {
            Self::One(act) => act,
            Self::Each(acts) => {
                let last = acts.last().expect("a callee does something");
                acts.get(n).unwrap_or(last)
            }
        }
    }
}

/// What the callee does at one try.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Act {
    /// Answers at once with this status and no body.
    Status(u16),
    /// Does that at once.
    Fault(Fault),
    /// The same with more to say.
    Answer(Answer),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// No connection.
    Connect,
    /// The connection breaks.
    Reset,
    /// Nothing ever comes.
    Hang,
    /// What makes the call panics.
    Panic,
}

impl Fault {
    /// What a policy takes it for; `None` for what is no result at all.
    pub fn class(self) -> Option<FailureClass> {
        match self {
            Self::Connect => Some(FailureClass::Connect),
            Self::Reset => Some(FailureClass::Reset),
            Self::Hang | Self::Panic => None,
        }
    }
}

/// An answer or a failure.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Exactly one of the two.
    pub status: Option<u16>,
    pub fault: Option<Fault>,
    /// Until the head or the failure.
    #[serde(default)]
    pub took: At,
    /// The answer's headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The body.
    #[serde(default)]
    pub text: String,
    /// Sent after the body.
    #[serde(default)]
    pub trailers: BTreeMap<String, String>,
    /// Keeps the body open until the call's label is in `ends` or `drop`.
    #[serde(default)]
    pub held: bool,
}

impl Act {
    /// The long form.
    pub fn answer(&self) -> Answer {
        let plain = |status, fault| Answer {
            status,
            fault,
            took: At::default(),
            headers: BTreeMap::new(),
            text: String::new(),
            trailers: BTreeMap::new(),
            held: false,
        };
        match self {
            Self::Status(status) => plain(Some(*status), None),
            Self::Fault(fault) => plain(None, Some(*fault)),
            Self::Answer(answer) => {
                let one = answer.status.is_some() != answer.fault.is_some();
                assert!(one, "either a status or a fault: {answer:?}");
                answer.clone()
            }
        }
    }
}

/// What a caller sees: a status, a failure of the callee (`"reset"`), its own panic, a refusal of
/// ours (`"breaker: open"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// The answer's status.
    Status(u16),
    /// The callee's failure, by [`Fault`]'s name.
    Failure(String),
    /// `policy: reason`, by their names.
    Refusal(String),
}

impl<'de> Deserialize<'de> for Want {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Status(u16),
            Text(String),
        }
        match Raw::deserialize(d)? {
            Raw::Status(status) => Ok(Self::Status(status)),
            Raw::Text(text) if text.contains(": ") => Ok(Self::Refusal(text)),
            Raw::Text(text) if matches!(text.as_str(), "reset" | "connect" | "panic") => {
                Ok(Self::Failure(text))
            }
            Raw::Text(text) => Err(D::Error::custom(format!(
                "{text:?} is neither \"reset\", \"connect\", \"panic\" nor \"policy: reason\""
            ))),
        }
    }
}
