//! What callers may rely on without it being written at every type.

use std::{error::Error as StdError, fmt::Debug};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use selvedge_resilience::{
    Rejected, TrafficPolicy, adaptive, balance, breaker, bulkhead,
    config::{PolicyError, UnitError},
    events,
    expired::ExpiredFilter,
    fault, hedge,
    keyed::Keyed,
    layer::{self, ReplayBody},
    rate_limit, retry, shed, throttle,
};
use tower::{Layer, Service};

/// Shared between threads, kept as long as one likes, printed.
fn shared<T: Send + Sync + Debug + 'static>() {}
fn cloned<T: Clone + Send + Sync + Debug + 'static>() {}
fn an_error<T: StdError + Send + Sync + 'static>() {}

#[test]
fn cores_are_cloned_and_shared() {
    cloned::<breaker::CircuitBreaker>();
    cloned::<bulkhead::Bulkhead>();
    cloned::<adaptive::AdaptiveLimit>();
    cloned::<adaptive::Partition>();
    cloned::<rate_limit::RateLimit>();
    cloned::<rate_limit::KeyedRateLimit<String>>();
    cloned::<shed::Shedder>();
    cloned::<throttle::Throttle>();
    cloned::<fault::Faults>();
    cloned::<hedge::Hedge>();
    cloned::<retry::budget::Budget>();
    cloned::<retry::cost::CostBucket>();
    cloned::<balance::Balancer<u32>>();
    cloned::<ExpiredFilter>();
    cloned::<events::Events>();
    shared::<Keyed<String, breaker::CircuitBreaker>>();
}

/// They are kept in the extensions of answers and in bodies, which go where tasks go.
#[test]
fn permits_cross_threads_and_outlive_their_core_s_owner() {
    shared::<breaker::Permit>();
    shared::<bulkhead::Permit>();
    shared::<adaptive::Permit>();
    shared::<rate_limit::Grant>();
    shared::<shed::Ticket>();
    shared::<throttle::Permit>();
    shared::<fault::Fault>();
    shared::<hedge::Race>();
    shared::<retry::budget::Logical>();
    shared::<retry::budget::Extra>();
    shared::<balance::Pick<u32>>();
}

#[test]
fn errors_are_errors() {
    an_error::<Rejected>();
    an_error::<PolicyError>();
    an_error::<UnitError>();
    an_error::<breaker::IllegalTransition>();
    an_error::<breaker::WindowError>();
    an_error::<layer::BodyError>();
    an_error::<layer::Error<layer::BoxError>>();
    an_error::<layer::Error<std::io::Error>>();
}

type Answer = Result<Response<Full<Bytes>>, layer::BoxError>;
type Client = tower::util::BoxCloneSyncService<
    Request<ReplayBody<Full<Bytes>>>,
    Response<Full<Bytes>>,
    layer::BoxError,
>;

/// hyper's and axum's servers, and `tokio::spawn`, ask this of a service.
fn spawnable<S>(_: &S)
where
    S: Service<Request<Full<Bytes>>, Future: Send + 'static> + Clone + Send + Sync + 'static,
    S::Response: Send,
    S::Error: Into<layer::BoxError>,
{
}

#[test]
fn a_stack_over_any_boxed_client_can_be_spawned() {
    let answer = async |_| -> Answer { Ok(Response::default()) };
    let client = Client::new(tower::service_fn(move |request| {
        Box::pin(answer(request)) as std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>
    }));
    let stack = layer::Stack::layer(TrafficPolicy::default()).expect("works");
    spawnable(&stack.layer(client));
}

/// Documents are written with `..Default::default()`; the rest only reads them.
#[test]
fn a_policy_is_data() {
    fn data<T: Clone + PartialEq + Debug + Default + serde::Serialize>() {}
    fn read<T: serde::de::DeserializeOwned>() {}
    cloned::<TrafficPolicy>();
    data::<TrafficPolicy>();
    read::<TrafficPolicy>();
}

#[test]
fn a_policy_becomes_a_stack_or_says_why_not() {
    let stack: layer::Stack<u8> = TrafficPolicy::default().try_into().expect("works");
    assert_eq!(stack.policy(), TrafficPolicy::default());
    let text = "breaker = { probes = 0 }";
    let policy: TrafficPolicy = toml::from_str(text).expect("a policy");
    let refused = layer::Stack::<u8>::try_from(policy).expect_err("no probe closes it");
    let (path, value) = (refused.path.as_str(), refused.value.as_str());
    assert_eq!((path, value), ("breaker.probes", "0"));
}

/// Whoever writes a layer around one of ours can name the future.
#[test]
fn futures_have_names() {
    fn is<S: Service<R, Future = F>, R, F>() {}
    type Asked = Request<Full<Bytes>>;
    type Calls = layer::Answer<(), Full<Bytes>>;
    type Fails = layer::Error<layer::BoxError>;
    is::<layer::StackService<Client>, Asked, layer::StackFuture<Calls, Fails>>();
}
