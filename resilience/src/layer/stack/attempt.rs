//! One try: what it must pass, and what its result means.

use std::net::IpAddr;

use http::{Response, header::RETRY_AFTER, request::Parts};
use tokio::time::Instant;

use super::{Stack, held::Held, hook::HashKey, plan::Plan};
use crate::{
    balance::{HashOn, Key, PickContext, stable_hash},
    classify::{self, outcome_of_head},
    layer::{Error, Patience, TransportError, slot::slot, wall_for},
    outcome::{FailureClass, Outcome, Policy, Rejected},
    retry::{Judgement, RetryConfig},
};

/// When something happens, and when it must be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time {
    pub now: Instant,
    pub deadline: Option<Instant>,
}

impl<K: Key> Stack<K> {
    /// Asks every policy that a try must pass, and puts what they give into `held`. Waits only
    /// where a limit is reached and has a queue, and not past the deadline; `now` is then when the
    /// waiting was over.
    ///
    /// What is acquired goes back with `held` where a later policy refuses: a try that was not made
    /// says nothing about the callee's health.
    pub(super) async fn admit(
        &self,
        plan: &Plan,
        (head, avoid): (&Parts, &[K]),
        time: &mut Time,
        patience: Patience,
        held: &mut Held<K>,
    ) -> Result<(), Rejected> {
        let now = time.now.into_std();
        if let Some(core) = &plan.throttle {
            held.throttle = Some(core.try_acquire(now)?);
        }
        if let Some(core) = &plan.breaker {
            held.breaker = Some(core.try_acquire(now)?);
        }
        if let Some(core) = &plan.bulkhead {
            held.bulkhead = Some(slot(core, &mut time.now, time.deadline, patience).await?);
        }
        if let Some(core) = &plan.concurrency {
            held.concurrency = Some(match plan.class(core, head) {
                Some(class) => class.try_acquire(time.now.into_std())?,
                None => slot(core, &mut time.now, time.deadline, patience).await?,
            });
        }
        let now = time.now.into_std();
        if let Some(core) = &plan.rate {
            core.try_acquire(now)?;
        }
        let mut context = PickContext::at(now).avoid(avoid);
        context.hash = hash_of(plan, head);
        held.pick = Some(self.0.balancer.pick(&context)?);
        Ok(())
    }
}

/// What a hashing policy places the request by.
fn hash_of(plan: &Plan, head: &Parts) -> Option<u64> {
    let balance = &plan.policy.balance;
    if !balance.policy.hashes() {
        return None;
    }
    if let Some(own) = head.extensions.get::<HashKey>() {
        return Some(own.0);
    }
    match balance.hash_on.as_ref()? {
        HashOn::Header(name) => {
            let value = head.headers.get(name.as_str())?;
            Some(stable_hash(value.as_bytes()))
        }
        HashOn::Cookie(name) => {
            let cookies = head.headers.get_all(http::header::COOKIE);
            let value = cookies
                .iter()
                .find_map(|all| cookie(all.as_bytes(), name))?;
            Some(stable_hash(value))
        }
        HashOn::Path => Some(stable_hash(head.uri.path().as_bytes())),
        HashOn::Source => {
            let source = head.extensions.get::<IpAddr>()?.to_canonical();
            Some(stable_hash(source.to_string().as_bytes()))
        }
    }
}

fn cookie<'a>(all: &'a [u8], name: &str) -> Option<&'a [u8]> {
    all.split(|byte| *byte == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?;
        value.strip_prefix(b"=")
    })
}

/// The head for a try that may not be the last. Extensions stay behind: a connection's upgrade can
/// be handed on only once, with the try that keeps the head itself.
pub(super) fn copy(head: &mut Parts) -> Parts {
    // Put aside, so that they are not copied to be thrown away.
    let extensions = std::mem::take(&mut head.extensions);
    let mut copy = head.clone();
    if let Some(hash) = extensions.get::<HashKey>() {
        copy.extensions.insert(*hash);
    }
    head.extensions = extensions;
    copy
}

/// What a try's result means.
pub(super) fn judge<RB, E: TransportError>(
    result: &Result<Response<RB>, Error<E>>,
    retry: Option<&RetryConfig>,
) -> Judgement {
    match (result, retry) {
        (Ok(response), retry) => {
            let (status, headers) = (response.status(), response.headers());
            let wall = wall_for(headers, &RETRY_AFTER);
            match retry {
                Some(retry) => retry.judge_head(status, headers, wall),
                None => Judgement {
                    after: classify::retry_after(status, headers, wall, RETRY_AFTER_MAX),
                    ..Judgement::last(outcome_of_head(status, headers))
                },
            }
        }
        (Err(Error::Service(error)), _) if error.is_callers_fault() => {
            Judgement::last(Outcome::Cancelled)
        }
        (Err(error), retry) => {
            // Only a deadline ends a try that was admitted, or a fault that looks like a break.
            let (class, unprocessed) = match error {
                Error::Rejected(rejected) if rejected.policy == Policy::Fault => {
                    (FailureClass::Reset, false)
                }
                Error::Rejected(_) => (FailureClass::Timeout, false),
                Error::Service(error) => (error.class(), error.is_unprocessed()),
            };
            retry.map_or(Judgement::last(Outcome::Failure(class)), |retry| {
                retry.judge_error(class, unprocessed)
            })
        }
    }
}

/// What a breaker believes of a `Retry-After` where no retry policy says so.
const RETRY_AFTER_MAX: std::time::Duration = std::time::Duration::from_secs(5);
