//! What the drivers of `calls` have in common: what a caller saw, and whether it was that.

use std::time::Duration;

use selvedge_resilience::{Rejected, breaker, coalesce, config::Millis};

use super::table::{Calls, Reading, Share, Step, Want};

/// What the caller of one call saw, as far as it went.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// The head or the error, and how long it took.
    pub(super) head: Option<(Want, Duration)>,
    pub(super) retry_after: Option<Duration>,
    /// Tries that reached the callee.
    pub(super) tries: u32,
    /// What the body said, and how it broke off.
    pub(super) text: String,
    pub(super) broke: Option<String>,
    /// It is over: its body has ended, it failed, or its caller gave up.
    pub(super) over: bool,
}

pub(super) fn refusal(rejected: &Rejected) -> Want {
    let (policy, reason) = (rejected.policy.as_str(), rejected.reason.as_str());
    Want::Refusal(format!("{policy}: {reason}"))
}

/// What a call was to its caller that should have been otherwise.
pub(super) fn judge(n: usize, step: &Step, seen: &Seen) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |what: &str, same: bool, text: String| {
        if !same {
            found.push(format!("step {n}, {what}: {text}"));
        }
    };
    let dropped = step.label.is_some() && step.want.is_none();
    let got = seen.head.as_ref().map(|(want, _)| want);
    match &step.want {
        Some(want) => look(
            "the caller",
            got == Some(want),
            format!("{got:?}, want {want:?}"),
        ),
        None => look(
            "a call without a `want`",
            dropped,
            "is not dropped".to_owned(),
        ),
    }
    if !dropped {
        look("the call", seen.over, "never ended".to_owned());
    }
    if let Some(want) = step.retry_after {
        let got = seen.retry_after.map(up);
        look(
            "retry_after",
            got == Some(want),
            format!("{got:?}, want {want}"),
        );
    }
    if let Some(want) = step.tries {
        look(
            "tries",
            seen.tries == want,
            format!("{}, want {want}", seen.tries),
        );
    }
    if let Some(want) = step.took {
        let got = seen.head.as_ref().map(|(_, took)| Millis(*took));
        look("took", got == Some(want), format!("{got:?}, want {want}"));
    }
    if let Some(want) = &step.text {
        let got = &seen.text;
        look("text", got == want, format!("{got:?}, want {want:?}"));
    }
    look(
        "body",
        seen.broke == step.body,
        format!("{:?}, want {:?}", seen.broke, step.body),
    );
    found
}

/// To the next whole millisecond.
pub(super) fn up(time: Duration) -> Millis {
    Millis::new(time.as_nanos().div_ceil(1_000_000) as u64)
}

/// What a circuit says.
pub(super) fn read_breaker(into: &mut Reading, snapshot: &breaker::Snapshot) {
    into.breaker = Some(snapshot.state.as_str().to_owned());
    into.failure_rate = Some(Share(snapshot.failure_ratio));
    into.slow_rate = Some(Share(snapshot.slow_ratio));
    into.calls = Some(snapshot.window.total);
    into.failed = Some(snapshot.window.failed);
    into.slow = Some(snapshot.window.slow);
    into.rejected = Some(snapshot.rejected);
    into.stale = Some(snapshot.stale);
    into.cancelled = Some(snapshot.calls.cancelled);
    into.open_for = Some(up(snapshot.open_for));
    into.exceeded = Some(snapshot.calls.exceeded);
}

/// What coalescing says.
pub(super) fn read_coalesce(into: &mut Reading, status: &coalesce::Status) {
    into.keys = Some(status.in_flight);
    into.following = Some(status.waiting);
    into.led = Some(status.led);
    into.promoted = Some(status.promoted);
    into.followed = Some(status.followed);
    into.answered = Some(status.answered);
    into.released = Some(status.released);
    into.broken = Some(status.broken);
}

/// After the last step nobody may hold anything.
pub(super) fn leaks(seen: &Reading) -> Vec<String> {
    let few = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    [
        ("bulkhead", seen.in_flight),
        ("queue", seen.waiting),
        ("adaptive limit", seen.adaptive_in_flight),
        ("balancer", seen.pending),
        ("table of keys", seen.keys.map(few)),
        ("wait for another call", seen.following.map(few)),
    ]
    .into_iter()
    .filter(|(_, held)| held.is_some_and(|held| held > 0))
    .map(|(what, held)| format!("the {what} still holds {held:?} at the end"))
    .collect()
}

/// Refuses a script that cannot be run: this is the table's fault, not the host's.
pub(super) fn check(case: &Calls) {
    let mut last = super::table::At::default();
    for (n, step) in case.steps.iter().enumerate() {
        let name = &case.name;
        assert!(last <= step.at, "{name}: step {n} is before the one before");
        last = step.at;
        assert!(
            step.call.is_some() || step.want.is_none() && step.tries.is_none(),
            "{name}: step {n} expects something of no call"
        );
        assert!(
            step.label.is_none() || step.times == 1,
            "{name}: step {n} names many calls"
        );
    }
    case.policy
        .validate()
        .unwrap_or_else(|e| panic!("{}: {e}", case.name));
}
