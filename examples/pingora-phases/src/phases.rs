//! The phases themselves.

use std::{
    future::poll_fn,
    net::IpAddr,
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use pingora_core::{
    Error, ErrorSource,
    ErrorType::{self, HTTPStatus},
    Result,
    upstreams::peer::HttpPeer,
};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use selvedge_resilience::{
    FailureClass, Policy, Reason, Rejected, Rng,
    bulkhead::{self, Bulkhead, Entry, Queued, Waiter},
    config::PolicyError,
    context::{
        CallContext, Deadline, TraceFormat,
        attempt::{ENVOY_ATTEMPT_COUNT, ENVOY_IS_TIMEOUT_RETRY, GRPC_PREVIOUS_ATTEMPTS},
        trace::{TRACEPARENT, TRACESTATE},
    },
    retry::Tries,
    shed::Ticket,
};

use crate::{
    call::{Admitted, Call},
    policies::{Door, Policies, Route, Upstream},
    refusal::Refusal,
};

/// What a caller says of its own span and its own tries: ours stands in its place, or nothing does.
static OF_ONE_HOP: [&HeaderName; 5] = [
    &TRACEPARENT,
    &TRACESTATE,
    &ENVOY_ATTEMPT_COUNT,
    &GRPC_PREVIOUS_ATTEMPTS,
    &ENVOY_IS_TIMEOUT_RETRY,
];

/// How long an idle connection of a caller is kept. Left alone, Pingora keeps it for ever.
const KEEP_ALIVE_SECONDS: u64 = 60;

/// The proxy. Clones share all state.
#[derive(Clone)]
pub(crate) struct Proxy(Arc<State>);

pub(crate) struct State {
    pub(crate) policies: Policies,
    pub(crate) door: Door,
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    rng: Rng,
}

impl Deref for Proxy {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

/// Now, by the clock that tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Proxy {
    /// # Errors
    /// [`PolicyError`] if a policy cannot work.
    pub(crate) fn new(policies: Policies, routes: Vec<Route>) -> Result<Self, PolicyError> {
        let now = now();
        let upstream = |route| Upstream::new(route, &policies, now).map(Arc::new);
        Ok(Self(Arc::new(State {
            door: Door::new(&policies)?,
            upstreams: routes.into_iter().map(upstream).collect::<Result<_, _>>()?,
            policies,
            rng: Rng::from_entropy(),
        })))
    }

    /// Tries that a request may take.
    pub(crate) fn tries_max(&self) -> u32 {
        self.policies.retry.attempts + 1
    }

    /// Asks everybody who may refuse a request, the cheapest first.
    async fn admit(
        &self,
        head: &RequestHeader,
        caller: Option<IpAddr>,
        arrived: Instant,
    ) -> Result<Admitted, Refusal> {
        let context = CallContext::read(&head.headers, arrived, SystemTime::now(), &self.rng);
        let ticket = self
            .door
            .shedder
            .admit_since(context.priority, arrived, now())?;
        let ours = self.policies.timeouts.total();
        let ours = ours.and_then(|total| Deadline::after(arrived, total));
        let deadline = Deadline::earlier(context.deadline, ours);
        match self.enter(head, caller, deadline).await {
            Ok((upstream, place)) => {
                let now = now();
                // This long it has waited: that is what the shedder goes by.
                ticket.begun(now);
                let retry = &self.policies.retry;
                let safety = retry.safety(&head.method, &head.headers, &head.extensions);
                let tries = Tries::new(retry, safety);
                Ok(Admitted::new(
                    context, deadline, upstream, place, tries, now,
                ))
            }
            Err(refusal) => {
                Ticket::gone(ticket, now());
                Err(refusal)
            }
        }
    }

    async fn enter(
        &self,
        head: &RequestHeader,
        caller: Option<IpAddr>,
        deadline: Option<Deadline>,
    ) -> Result<(Arc<Upstream>, bulkhead::Permit), Refusal> {
        let door = &self.door;
        door.expired.admit(deadline, now())?;
        // Whoever asks for what is not there uses up his rate too.
        let caller = caller.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let grant = door.rates.try_acquire(&caller, now()).map_err(|rejected| {
            let mut refusal = Refusal::by(rejected);
            let headers = refusal.headers_mut();
            door.rate_name.write_refused(headers, door.rate, &rejected);
            refusal
        })?;
        let upstream = Upstream::find(&self.upstreams, head.uri.path())
            .ok_or_else(|| Refusal::because(StatusCode::NOT_FOUND))?;
        match place(&door.bulkhead, deadline).await {
            Ok(place) => Ok((Arc::clone(upstream), place)),
            Err(rejected) => {
                // It was not served, so it has cost him nothing.
                door.rates.refund(&caller, grant, now());
                Err(rejected.into())
            }
        }
    }
}

/// A place among the requests under way; waits for one if there is a queue.
async fn place(
    bulkhead: &Bulkhead,
    deadline: Option<Deadline>,
) -> Result<bulkhead::Permit, Rejected> {
    let mut waiter: Waiter<Bulkhead> = match bulkhead.acquire(now())? {
        Entry::Admitted(permit) => return Ok(permit),
        Entry::Waits(waiter) => waiter,
    };
    let patience = Deadline::earlier(waiter.deadline().map(Deadline), deadline);
    let turn = poll_fn(|context| waiter.poll(context.waker(), now()));
    let Some(Deadline(until)) = patience else {
        return turn.await;
    };
    match tokio::time::timeout_at(until.into(), turn).await {
        Ok(served) => served,
        Err(_elapsed) => waiter.expire(now()),
    }
}

/// How a call that failed without an answer counts.
fn class(error: &Error) -> FailureClass {
    match error.etype() {
        ErrorType::ConnectTimedout
        | ErrorType::TLSHandshakeTimedout
        | ErrorType::ReadTimedout
        | ErrorType::WriteTimedout => FailureClass::Timeout,
        ErrorType::ConnectRefused
        | ErrorType::ConnectNoRoute
        | ErrorType::ConnectError
        | ErrorType::ConnectProxyFailure
        | ErrorType::SocketError
        | ErrorType::TLSHandshakeFailure
        | ErrorType::HandshakeError => FailureClass::Connect,
        ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => {
            FailureClass::Reset
        }
        ErrorType::InvalidHTTPHeader
        | ErrorType::H1Error
        | ErrorType::H2Error
        | ErrorType::InvalidH2 => FailureClass::Protocol,
        _ => FailureClass::Other,
    }
}

/// The caller is gone, or at fault: nothing that the callee could help.
fn is_the_callers(error: &Error) -> bool {
    *error.esource() == ErrorSource::Downstream
}

/// An error for Pingora, which ends the request or, if `retry`, asks for another try.
fn end<T>(kind: ErrorType, why: impl ToString, retry: bool) -> Result<T> {
    let mut error = Error::explain(kind, why.to_string()).into_up();
    error.set_retry(retry);
    Err(error)
}

impl Call {
    fn admitted(&mut self) -> Result<&mut Admitted> {
        let missing = || Error::explain(ErrorType::InternalError, "the request was not admitted");
        self.admitted.as_mut().ok_or_else(missing)
    }

    fn refuse<T>(&mut self, rejected: Rejected) -> Result<T> {
        self.refused = Some(rejected);
        let status = Refusal::by(rejected).status();
        end(HTTPStatus(status.as_u16()), rejected, false)
    }

    /// Pingora looks at no deadline; so we do whenever it calls.
    fn check_deadline(&mut self) -> Result<()> {
        match &self.admitted {
            Some(Admitted {
                deadline: Some(deadline),
                ..
            }) if deadline.has_passed(now()) => {
                self.refused = Some(Rejected::new(Policy::Deadline, Reason::Elapsed));
                end(ErrorType::ReadTimedout, "deadline", false)
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Call;

    fn new_ctx(&self) -> Call {
        Call::default()
    }

    async fn early_request_filter(&self, session: &mut Session, call: &mut Call) -> Result<()> {
        call.arrived = Some(now());
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(KEEP_ALIVE_SECONDS));
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, call: &mut Call) -> Result<bool> {
        let arrived = call.arrived.unwrap_or_else(now);
        let caller = session.client_addr().and_then(|addr| addr.as_inet());
        let caller = caller.map(std::net::SocketAddr::ip);
        match self.admit(session.req_header(), caller, arrived).await {
            Ok(admitted) => {
                call.admitted = Some(admitted);
                Ok(false)
            }
            Err(refusal) => {
                call.refused = refusal.rejected;
                refusal.answer(session).await?;
                // Answered: nothing more to do but `logging`.
                Ok(true)
            }
        }
    }

    /// Called once a try.
    async fn upstream_peer(&self, _: &mut Session, call: &mut Call) -> Result<Box<HttpPeer>> {
        let wait = call.admitted()?.take_wait();
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        call.check_deadline()?;
        let now = now();
        let admitted = call.admitted()?;
        let addr = match admitted.begin_try(now) {
            Ok(addr) => addr,
            Err(rejected) => return call.refuse(rejected),
        };
        let mut peer = HttpPeer::new(addr, false, String::new());
        let timeouts = &self.policies.timeouts;
        let left = admitted.deadline.map(|deadline| deadline.left(now));
        // A timeout of nothing is an error, not an end.
        let within = |limit: Option<Duration>| match (limit, left) {
            (Some(limit), Some(left)) => Some(limit.min(left).max(Duration::from_millis(1))),
            (limit, left) => limit.or(left),
        };
        let per_try = timeouts.backend_request.map(|limit| limit.0);
        peer.options.connection_timeout = within(Some(timeouts.connect.0));
        peer.options.total_connection_timeout = within(Some(timeouts.connect.0));
        peer.options.read_timeout = within(per_try);
        peer.options.write_timeout = within(per_try);
        Ok(Box::new(peer))
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        peer: &HttpPeer,
        call: &mut Call,
        failed: Box<Error>,
    ) -> Box<Error> {
        let mut failed = failed.more_context(format!("peer: {peer}"));
        let retry = &self.policies.retry;
        let Some(admitted) = &mut call.admitted else {
            return failed;
        };
        // Nothing was sent: a POST is as safe to repeat as a GET, and its body has not been read.
        let judgement = retry.judge_error(class(&failed), true);
        let now = now();
        admitted.fail(&judgement, now);
        failed.set_retry(admitted.may_try_again(retry, &judgement, true, now, &self.rng));
        failed
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        head: &mut RequestHeader,
        call: &mut Call,
    ) -> Result<()> {
        let admitted = call.admitted()?;
        let mut ours = HeaderMap::new();
        let mut context = admitted.context.clone();
        context.deadline = admitted.deadline;
        context.propagate(&mut ours, now(), &[TraceFormat::W3c]);
        let (number, after_timeout) = admitted.number();
        if self.policies.retry.announce {
            number.inject(&mut ours, after_timeout);
        }
        for name in OF_ONE_HOP.into_iter().chain(ours.keys()) {
            head.remove_header::<HeaderName>(name);
        }
        for (name, value) in &ours {
            head.append_header(name, value)?;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        call: &mut Call,
    ) -> Result<()> {
        if head.status.is_informational() {
            return Ok(());
        }
        call.check_deadline()?;
        let retry = &self.policies.retry;
        let judgement = retry.judge_head(head.status, &head.headers, SystemTime::now());
        let admitted = call.admitted()?;
        if !judgement.worth_a_retry {
            admitted.has_answered(judgement.outcome);
            return Ok(());
        }
        let now = now();
        // Whatever its body says: this try has failed.
        admitted.fail(&judgement, now);
        let replayable = !session.as_ref().retry_buffer_truncated();
        if admitted.may_try_again(retry, &judgement, replayable, now, &self.rng) {
            // Nothing has gone out to the caller yet, and nothing will.
            let status = head.status.as_u16();
            return end(HTTPStatus(status), "tried again", true);
        }
        // The last one: the callee's own answer is the best there is.
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        end_of_stream: bool,
        call: &mut Call,
    ) -> Result<Option<Duration>> {
        if end_of_stream {
            if let Some(admitted) = &mut call.admitted {
                admitted.body_ended(now());
            }
        } else {
            call.check_deadline()?;
        }
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        failed: Box<Error>,
        call: &mut Call,
        _: bool,
    ) -> Box<Error> {
        if matches!(failed.etype(), HTTPStatus(_)) {
            // Our own word from `upstream_response_filter`: all has been decided there.
            return failed;
        }
        let mut failed = failed.more_context(format!("peer: {peer}"));
        // Also decides what Pingora leaves open (`ReusedOnly`), which it would panic on.
        failed.set_retry(false);
        let Some(admitted) = &mut call.admitted else {
            return failed;
        };
        let now = now();
        if is_the_callers(&failed) {
            admitted.cancel(now);
            return failed;
        }
        let retry = &self.policies.retry;
        // It may have been processed: only what is idempotent is tried again.
        let judgement = retry.judge_error(class(&failed), false);
        admitted.fail(&judgement, now);
        let nothing_sent_back = session.response_written().is_none();
        let replayable = !session.as_ref().retry_buffer_truncated();
        if nothing_sent_back {
            failed.set_retry(admitted.may_try_again(retry, &judgement, replayable, now, &self.rng));
        }
        failed
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        failed: &Error,
        call: &mut Call,
    ) -> FailToProxy {
        let refusal = match call.refused {
            Some(rejected) => Refusal::by(rejected),
            None if is_the_callers(failed) => match failed.etype() {
                // Nobody is there to be told.
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed => {
                    return FailToProxy {
                        error_code: 499,
                        can_reuse_downstream: false,
                    };
                }
                _ => Refusal::because(StatusCode::BAD_REQUEST),
            },
            None => Refusal::because(match class(failed) {
                FailureClass::Timeout => StatusCode::GATEWAY_TIMEOUT,
                FailureClass::Connect => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::BAD_GATEWAY,
            }),
        };
        let error_code = refusal.status().as_u16();
        if let Err(error) = refusal.answer_error(session).await {
            tracing::debug!(%error, "nobody heard the refusal");
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, failed: Option<&Error>, call: &mut Call) {
        if let Some(admitted) = &mut call.admitted {
            // Bodiless answers end here, and what Pingora told nobody else.
            match failed {
                None => admitted.body_ended(now()),
                Some(_) => admitted.cancel(now()),
            }
        }
        let tries = call.admitted.take().map_or(0, |it| it.tries.made());
        let status = session.response_written().map(|head| head.status.as_u16());
        let flag = call.refused.map_or("-", |rejected| rejected.flag());
        let outcome = failed.map_or_else(String::new, ToString::to_string);
        tracing::info!(
            request = session.as_ref().request_summary(),
            status,
            tries,
            flag,
            outcome,
            "request"
        );
    }
}
