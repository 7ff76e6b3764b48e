//! Whether a call is tried again: what a try came to, what the call allows, what time is left.
//!
//! A retry is right only if all of these hold, and each failed system got one of them wrong: the
//! try's result may be better next time; repeating the call is harmless; the callee did not ask to
//! be left alone; the body can be had again; the wait ends before the deadline; and the
//! [budget](super::budget) pays. [`Tries::next_wait`] decides all but the last.

use std::time::{Duration, Instant, SystemTime};

use http::{Extensions, HeaderMap, Method, StatusCode, header};

use super::{RetryConfig, backoff::Backoff};
use crate::{
    classify::{Advice, GrpcCode, advice, outcome_of, retry_after},
    outcome::{FailureClass, Outcome},
    rng::Rng,
};

/// What a try came to, as a retry sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Judgement {
    /// How it counts.
    pub outcome: Outcome,
    /// Whether another try may come out better.
    pub worth_a_retry: bool,
    /// The callee did nothing, or asks for the repetition itself: harmless whatever the method.
    pub harmless: bool,
    /// How long the callee asks to be left alone; zero asks for no wait at all.
    pub after: Option<Duration>,
}

impl Judgement {
    const fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            worth_a_retry: false,
            harmless: false,
            after: None,
        }
    }

    /// A result that no retry can better: a success, the caller's own fault, a local refusal.
    pub const fn last(outcome: Outcome) -> Self {
        Self::of(outcome)
    }

    /// Whether it is an answer worth having: what ends a race of hedges.
    pub fn is_good(&self) -> bool {
        !self.worth_a_retry && matches!(self.outcome, Outcome::Success | Outcome::Ignored)
    }
}

impl RetryConfig {
    /// Judges the head of an answer.
    ///
    /// `wall`: for a `Retry-After` that is a date.
    pub fn judge_head(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        wall: SystemTime,
    ) -> Judgement {
        let code = GrpcCode::of_head(status, headers);
        let by_status = Judgement {
            worth_a_retry: self.retries_status(status) || self.retries_grpc(code),
            after: retry_after(status, headers, wall, self.retry_after_max.0),
            ..Judgement::of(outcome_of(status, code))
        };
        self.advised(by_status, status, headers)
    }

    /// Judges the trailers of a gRPC answer whose body was empty; `None` if they say nothing.
    pub fn judge_trailers(&self, trailers: &HeaderMap) -> Option<Judgement> {
        let code = GrpcCode::find(trailers)?;
        let by_status = Judgement {
            worth_a_retry: self.retries_grpc(Some(code)),
            ..Judgement::of(code.outcome())
        };
        Some(self.advised(by_status, StatusCode::OK, trailers))
    }

    /// Judges a try that failed without an answer. `unprocessed`: the callee cannot have begun it.
    pub fn judge_error(&self, class: FailureClass, unprocessed: bool) -> Judgement {
        Judgement {
            worth_a_retry: self.retries_error(class),
            harmless: unprocessed,
            ..Judgement::of(Outcome::Failure(class))
        }
    }

    fn retries_grpc(&self, code: Option<GrpcCode>) -> bool {
        code.is_some_and(|code| self.grpc.contains(&code))
    }

    fn advised(&self, found: Judgement, status: StatusCode, headers: &HeaderMap) -> Judgement {
        // Advice on how to repeat a success is none.
        if found.outcome == Outcome::Success {
            return found;
        }
        match advice(status, headers) {
            Advice::None => Judgement {
                // Finagle: "come again now" is how it says that it refused a call. Unlike a nack it
                // does not promise that nothing was processed.
                worth_a_retry: found.worth_a_retry
                    || status == StatusCode::SERVICE_UNAVAILABLE
                        && found.after == Some(Duration::ZERO),
                ..found
            },
            Advice::Stop => Judgement {
                worth_a_retry: false,
                ..found
            },
            Advice::Nack => Judgement {
                worth_a_retry: true,
                harmless: true,
                ..found
            },
            Advice::Pushback(wait) => Judgement {
                worth_a_retry: true,
                harmless: true,
                after: Some(wait.min(self.retry_after_max.0)),
                ..found
            },
        }
    }

    /// Whether repeating this request is harmless.
    pub fn safety(&self, method: &Method, headers: &HeaderMap, extensions: &Extensions) -> Safety {
        Safety::of(method, headers, extensions, self.non_idempotent)
    }
}

/// A request extension: the caller knows whether repeating this one call is harmless, whatever its
/// method and the policy say. It does not make a tunnel repeatable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotent(pub bool);

/// When a call may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safety {
    /// Whatever became of the last try.
    Always,
    /// Only if the callee did nothing.
    IfUnprocessed,
    /// Not at all: an upgrade or a tunnel.
    Never,
}

impl Safety {
    /// Whether repeating this request is harmless. `non_idempotent`: so is every method.
    pub(crate) fn of(
        method: &Method,
        headers: &HeaderMap,
        extensions: &Extensions,
        non_idempotent: bool,
    ) -> Self {
        // A tunnel is a conversation: its bytes cannot be had again, and neither can its upgrade.
        if method == Method::CONNECT || headers.contains_key(header::UPGRADE) {
            return Self::Never;
        }
        let idempotent = match extensions.get::<Idempotent>() {
            Some(Idempotent(says)) => *says,
            None => non_idempotent || is_idempotent(method),
        };
        if idempotent {
            Self::Always
        } else {
            Self::IfUnprocessed
        }
    }
}

/// Source: RFC 9110 §9.2.2.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::PUT | Method::DELETE | Method::OPTIONS | Method::TRACE
    )
}

/// Why a try is the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Final {
    /// Its result is good, or no retry would better it.
    NotWorthIt,
    /// As many were made as may be.
    Attempts,
    /// It may have been processed, and repeating it is not harmless.
    Unsafe,
    /// Its body is too long to be had again, or broke.
    Body,
    /// The wait would outlast the deadline.
    Deadline,
}

/// What the next try would meet, beside what the last one came to.
///
/// ```
/// use std::time::{Duration, Instant};
/// use selvedge_resilience::retry::RetryContext;
///
/// let now = Instant::now();
/// let context = RetryContext::at(now).deadline(Some(now + Duration::from_secs(1)));
/// assert!(context.replayable && !context.elsewhere);
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RetryContext {
    /// The present.
    pub now: Instant,
    /// When the call must be over.
    pub deadline: Option<Instant>,
    /// Whether the body can be had again.
    pub replayable: bool,
    /// Whether it goes to another endpoint, of which this one's `Retry-After` says nothing.
    pub elsewhere: bool,
}

impl RetryContext {
    /// No deadline, a body that can be had again, the same endpoint.
    pub fn at(now: Instant) -> Self {
        Self {
            now,
            deadline: None,
            replayable: true,
            elsewhere: false,
        }
    }

    /// When the call must be over.
    #[must_use]
    pub fn deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Whether the body can be had again.
    #[must_use]
    pub fn replayable(mut self, replayable: bool) -> Self {
        self.replayable = replayable;
        self
    }

    /// Whether it goes to another endpoint.
    #[must_use]
    pub fn elsewhere(mut self, elsewhere: bool) -> Self {
        self.elsewhere = elsewhere;
        self
    }
}

/// The tries of one call.
///
/// Another one is made only if the last one's result may be better next time, repeating the call is
/// harmless, the callee did not ask to be left alone, the body can be had again, and the wait ends
/// before the deadline. Whether there may be one more *of all calls* is the
/// [budget](super::budget)'s affair: ask it then, and [`count`](Self::count) once it has paid.
#[derive(Debug, Clone)]
pub struct Tries {
    safety: Safety,
    made: u32,
    backoff: Backoff,
}

impl Tries {
    /// Before the first one.
    pub fn new(config: &RetryConfig, safety: Safety) -> Self {
        Self {
            safety,
            made: 1,
            backoff: Backoff::new(config.backoff, config.jitter),
        }
    }

    /// Tries made or under way.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// Whether the try under way could be followed by another one at all.
    pub fn may_continue(&self, config: &RetryConfig) -> bool {
        self.made <= config.attempts && self.safety != Safety::Never
    }

    /// How long to wait before the next try. Asks no budget.
    ///
    /// # Errors
    /// [`Final`]: why there is none.
    pub fn next_wait(
        &mut self,
        config: &RetryConfig,
        judgement: &Judgement,
        context: &RetryContext,
        rng: &Rng,
    ) -> Result<Duration, Final> {
        if !judgement.worth_a_retry {
            return Err(Final::NotWorthIt);
        }
        if self.made > config.attempts {
            return Err(Final::Attempts);
        }
        match self.safety {
            Safety::Always => {}
            Safety::IfUnprocessed if judgement.harmless => {}
            Safety::IfUnprocessed | Safety::Never => return Err(Final::Unsafe),
        }
        if !context.replayable {
            return Err(Final::Body);
        }
        let wait = self.wait(judgement, context.elsewhere, rng);
        // Never sleep past the deadline: the answer at hand is the better one.
        match (context.now.checked_add(wait), context.deadline) {
            (None, _) => Err(Final::Deadline),
            (Some(then), Some(deadline)) if then >= deadline => Err(Final::Deadline),
            _ => Ok(wait),
        }
    }

    fn wait(&mut self, judgement: &Judgement, elsewhere: bool, rng: &Rng) -> Duration {
        // A pushback is about this call, wherever it goes next; `Retry-After` about that endpoint.
        let binding = judgement.harmless || !elsewhere;
        match judgement.after.filter(|_| binding) {
            // The callee's own word, zero too: exactly that long.
            Some(wait) if judgement.harmless || wait.is_zero() => wait,
            Some(wait) => self.backoff.next_wait(rng).max(wait),
            // Nothing was processed, and somebody else may be there: no reason to wait once.
            None if judgement.harmless && self.made == 1 => Duration::ZERO,
            None => self.backoff.next_wait(rng),
        }
    }

    /// The next try begins.
    pub fn count(&mut self) {
        self.made = self.made.saturating_add(1);
    }
}

#[cfg(all(test, not(loom)))]
#[path = "tries_tests.rs"]
mod tests;
