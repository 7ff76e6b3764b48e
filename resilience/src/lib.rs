//! Policies that keep a service answering while the ones it calls do not.
//!
//! Every call over a network fails in one of a few ways, and each way has its answer. Calling others:
//!
//! | what goes wrong | what helps | here |
//! |---|---|---|
//! | one try fails, the next would not | retry with backoff, on a budget | [`retry`] |
//! | many ask the same at the same time | one call for all of them | [`coalesce`] |
//! | one try of many is far slower than the rest | a second one beside it, on the same budget | [`hedge`] |
//! | the callee is down and calls pile up | circuit breaker | [`breaker`] |
//! | the callee is slow and calls pile up | deadline, bulkhead | [`TimeoutLayer`], [`bulkhead`] |
//! | one method, tenant or key of many is bad | a core for each key | [`keyed`] |
//! | one endpoint of many is bad | balancing by cost, outlier ejection | [`balance`] |
//! | the callee refuses most of what it is asked | asking less | [`throttle`] |
//! | a worse answer would do | fallback | [`fallback`] |
//! | nobody knows whether any of this works | faults on purpose | [`fault`] |
//!
//! Being called:
//!
//! | what goes wrong | what helps | here |
//! |---|---|---|
//! | one caller asks for more than its share | a rate for each caller | [`rate_limit`] |
//! | more is asked than can be done | shedding what matters least | [`shed`] |
//! | too much is under way at once | bulkhead with a short queue | [`bulkhead`] |
//! | nobody knows how much is too much | a limit that finds itself | [`adaptive`] |
//! | nobody waits for the answer any more | a deadline that travels, refusal on arrival | [`context::deadline`], [`expired`] |
//! | all of these | one document, one layer | [`inbound`], [`InboundLayer`] |
//!
//! Both: nobody knows where the time went → a trace that travels, [`context::trace`].
//!
//! # In a service
//!
//! ```toml
//! [dependencies]
//! selvedge-resilience = "0.1"
//! tokio      = { version = "1", features = ["full"] }
//! toml       = "1"                    # or any other serde format
//! tower      = { version = "0.5", features = ["util"] }
//! axum       = "0.8"                  # to be called
//! hyper-util = { version = "0.1", features = ["client-legacy", "http1", "tokio"] }  # to call
//! http = "1"
//! http-body-util = "0.1"
//! bytes = "1"
//! ```
//!
//! A policy is a document, the same for a library, a sidecar and a gateway. What is not written is
//! not enforced; what cannot work is refused with its path, its value and what is allowed.
//!
//! # Calling others
//!
//! ```no_run
//! # use std::net::SocketAddr;
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::{BodyExt, Empty};
//! use hyper_util::{client::legacy::{Client, connect::HttpConnector}, rt::TokioExecutor};
//! use selvedge_resilience::{
//!     TrafficPolicy, balance::Member,
//!     layer::{Error, ServiceTransport, Stack, over_http},
//! };
//! use tower::ServiceExt;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let policy: TrafficPolicy = toml::from_str(r#"
//!     timeouts = { request = "2s", backendRequest = "500ms" }
//!     retry    = { attempts = 2, codes = [502, 503, 504], budget = "20% min 3/s" }
//!     breaker  = { failure_rate = "50%", min_requests = 20, open_for = "5s" }
//!     bulkhead = 200
//! "#)?;
//! let mut connector = HttpConnector::new();
//! connector.set_connect_timeout(Some(policy.timeouts.connect.0));
//! let http = Client::builder(TokioExecutor::new())
//!     .retry_canceled_requests(false)   // the stack decides what is tried again, and where
//!     .build(connector);
//!
//! let stack = Stack::<SocketAddr>::new(policy)?;
//! stack.set_members(["10.0.0.1:80".parse()?, "10.0.0.2:80".parse()?].map(Member::new));
//! let orders = stack.client(ServiceTransport::new(http, over_http));
//!
//! match orders.clone().oneshot(Request::get("/orders/1").body(Empty::<Bytes>::new())?).await {
//!     Ok(answer) => println!("{:?}", answer.into_body().collect().await?.to_bytes()),
//!     Err(Error::Rejected(refused)) => println!("{refused}: again in {:?}", refused.retry_after),
//!     Err(error) => println!("the last try failed: {error}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `orders` is a [`tower::Service`] that clones share; keep `stack` to change the policy
//! ([`reconfigure`]), the endpoints ([`set_members`]), or to read its [`status`]. An answer that no
//! retry could better is the callee's own, also if it is a 503. Read bodies to their end: a call is
//! over when its body is.
//!
//! - One destination that the client reaches by itself (a host name, a socket): [`Stack::layer`] is the
//!   whole stack as a Tower layer, and needs no members.
//! - A client whose requests have another body or error: `map_request`, `map_response` and `map_err` of
//!   [`tower::ServiceExt`]. Tonic wants a channel for each endpoint: see [gRPC](#grpc).
//! - What arrived with a request (trace, deadline, priority) goes on with [`propagate`].
//! - Endpoints from a registry, tonic, a whole service: `examples/` in the repository.
//!
//! [`tower::Service`]: tower_service::Service
//! [`tower::ServiceExt`]: https://docs.rs/tower/0.5/tower/trait.ServiceExt.html
//! [`reconfigure`]: layer::Stack::reconfigure
//! [`set_members`]: layer::Stack::set_members
//! [`status`]: layer::Stack::status
//! [`Stack::layer`]: layer::Stack::layer
//! [`propagate`]: layer::propagate
//!
//! # Being called
//!
//! ```no_run
//! use std::{convert::Infallible, net::SocketAddr, time::Duration};
//! use axum::{
//!     Router, error_handling::HandleErrorLayer, extract::{ConnectInfo, Request},
//!     http::StatusCode, middleware::map_request, routing::get,
//! };
//! use selvedge_resilience::{
//!     TrafficPolicy,
//!     layer::{ContextLayer, Error, Inbound, InboundLayer, TimeoutLayer},
//! };
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let policy: TrafficPolicy = toml::from_str(r#"
//!     [inbound]
//!     shed       = { target = "20ms" }                       # batch first, critical last
//!     rate_limit = { rate = "100/s", by = "source" }
//!     bulkhead   = { max = 200, queue = { max = 50, wait = "100ms" } }
//! "#)?;
//! let inbound = Inbound::new(policy.inbound)?;               // keep it to reconfigure it later
//! let layers = ServiceBuilder::new()
//!     .layer(map_request(caller))                            // who asks, for `by = "source"`
//!     .layer(ContextLayer::new())                            // trace, deadline, priority
//!     .layer(InboundLayer::new(inbound))                     // answers 429 and 503 by itself
//!     .layer(HandleErrorLayer::new(late))                    // axum wants answers, not errors
//!     .layer(TimeoutLayer::new(Duration::from_secs(5)));     // or what the caller has left
//! let app = Router::new().route("/orders", get(async || "[]")).layer(layers);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
//! # Ok(())
//! # }
//!
//! async fn caller(ConnectInfo(from): ConnectInfo<SocketAddr>, mut request: Request) -> Request {
//!     request.extensions_mut().insert(from.ip());
//!     request
//! }
//!
//! async fn late(error: Error<Infallible>) -> (StatusCode, String) {
//!     (StatusCode::GATEWAY_TIMEOUT, error.to_string())
//! }
//! ```
//!
//! Whoever is refused gets 429 or 503 with a problem document (who speaks gRPC: a gRPC status),
//! `Retry-After` and `RateLimit` fields.
//! Behind a proxy all callers have its address: tell them apart by a header that the proxy writes
//! (`by = { header = "x-api-key" }`). Single policies are layers too: see [`layer`].
//!
//! # gRPC
//!
//! gRPC answers 200 to everything and puts its verdict behind the body; the stack reads it there
//! (`retry.grpc` lists what is tried again), obeys pushback, and tells callees what is left of the
//! deadline in `grpc-timeout`. With `tonic` beside what is above:
//!
//! ```no_run
//! use std::{collections::HashMap, net::SocketAddr, time::Duration};
//! use selvedge_resilience::{
//!     TrafficPolicy, balance::Member,
//!     layer::{BoxError, ByEndpoint, ContextLayer, Error, Inbound, InboundLayer, ReplayBody, Stack},
//! };
//! use tonic::{
//!     Status, body::Body, codegen::http::Request,
//!     transport::{Channel, Endpoint, Server, server::TcpConnectInfo},
//! };
//! use tower::{ServiceExt, util::MapRequestLayer};
//!
//! # // What `tonic-build` makes of a `.proto`.
//! # #[derive(Clone)] struct Greeter;
//! # #[derive(Clone)] struct GreeterServer;
//! # impl GreeterServer { fn new(_: Greeter) -> Self { Self } }
//! # impl tonic::server::NamedService for GreeterServer { const NAME: &str = "greet.Greeter"; }
//! # impl tower::Service<Request<Body>> for GreeterServer {
//! #     type Response = http::Response<Body>;
//! #     type Error = std::convert::Infallible;
//! #     type Future = std::future::Ready<Result<Self::Response, Self::Error>>;
//! #     fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> { Ok(()).into() }
//! #     fn call(&mut self, _: Request<Body>) -> Self::Future { std::future::ready(Ok(http::Response::default())) }
//! # }
//! # struct GreeterClient<T>(std::marker::PhantomData<T>);
//! # impl<T> GreeterClient<T>
//! # where
//! #     T: tonic::client::GrpcService<Body>,
//! #     T::Error: Into<tonic::codegen::StdError>,
//! #     T::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
//! #     <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
//! # { fn new(_: T) -> Self { Self(std::marker::PhantomData) } }
//! # fn client(policy: TrafficPolicy, endpoints: Vec<SocketAddr>) -> Result<(), BoxError> {
//! let stack = Stack::<SocketAddr>::new(policy)?;
//! let mut channels = HashMap::<SocketAddr, Channel>::new();    // one for each endpoint
//! for addr in &endpoints {
//!     channels.insert(*addr, Endpoint::new(format!("http://{addr}"))?.connect_lazy());
//! }
//! stack.set_members(endpoints.into_iter().map(Member::new));
//! let transport = ByEndpoint::new(move |addr: &SocketAddr| {
//!     let channel = channels[addr].clone();
//!     channel.map_request(|call: Request<ReplayBody<Body>>| call.map(Body::new))
//! });
//! let greeter = GreeterClient::new(stack.client(transport).map_err(status));
//! # let _: GreeterClient<_> = greeter;
//! # Ok(())
//! # }
//!
//! fn status(error: Error<BoxError>) -> Status {    // tonic would call every refusal `UNKNOWN`
//!     match error {
//!         Error::Rejected(refused) => {
//!             Status::new(refused.grpc_code().number().into(), refused.to_string())
//!         }
//!         Error::Service(error) => Status::from_error(error),
//!         other => Status::unknown(other.to_string()),
//!     }
//! }
//!
//! # async fn serve(policy: TrafficPolicy) -> Result<(), BoxError> {
//! let inbound = Inbound::new(policy.inbound)?;
//! Server::builder()
//!     .timeout(Duration::from_secs(5))         // or `grpc-timeout`, if that is less
//!     .layer(MapRequestLayer::new(caller))     // who asks, for `by = "source"`
//!     .layer(ContextLayer::new())
//!     .layer(InboundLayer::new(inbound))       // refuses with a gRPC status
//!     .add_service(GreeterServer::new(Greeter))
//!     .serve("127.0.0.1:50051".parse()?)
//!     .await?;
//! # Ok(())
//! # }
//!
//! fn caller<B>(mut request: Request<B>) -> Request<B> {
//!     let connection = request.extensions().get::<TcpConnectInfo>();
//!     if let Some(from) = connection.and_then(TcpConnectInfo::remote_addr) {
//!         request.extensions_mut().insert(from.ip());
//!     }
//!     request
//! }
//! ```
//!
//! - gRPC's calls are POSTs, which are tried again only if they were never sent, or pushed back:
//!   `retry.non_idempotent = true` says that a second one does no harm.
//! - A server's time limit is tonic's own: [`TimeoutLayer`] fails with an error that tonic does not
//!   know, and the stream is reset instead of answered.
//!
//! # The order
//!
//! ```text
//! calling:    fallback → coalesce → total deadline → retry and hedge on one budget
//!               → each try: throttle → breaker → bulkhead, adaptive limit → rate limit
//!                           → balancer + outlier → per-try timeout → fault → transport
//! being called: shed → reject expired → rate limit → bulkhead → adaptive limit → handler
//! ```
//!
//! A [`layer::Stack`] and an [`InboundLayer`] are in this order. For those who put single layers on
//! each other, [`layer`] has the table of what goes wrong otherwise. Why:
//!
//! - Retry *outside* the breaker: every try counts, and an open circuit ends the retries at once.
//!   The other way round, a breaker sees three failures as one and opens three times too late.
//! - The per-try timeout *inside* the breaker: otherwise a hang is a cancellation, and the circuit
//!   never learns of it.
//! - The total deadline *outside* retry: otherwise waiting between tries is bounded by nothing.
//! - The balancer *inside* retry: the next try goes elsewhere. The breaker is for the service, the
//!   outlier ejection for one endpoint of it; neither can do the other's work.
//! - Faults innermost, fallback outermost: a fault must pass everything that is to be tested with it,
//!   and a fallback must see everything that can fail.
//! - Coalescing outside the deadline and retry: who waits for another's call makes no try and pays
//!   for none; it waits no longer than its own deadline.
//! - Shedding first: it is cheapest, and looks at the wait of all that follows.
//!
//! # The traps
//!
//! - **Retries multiply.** Three tries over three tiers are twenty-seven calls. An attempt count
//!   bounds one call; only a budget bounds the sum. Retry at one tier, the lowest that can still
//!   choose another endpoint, and let the others pass the failure on.
//! - **A retry may act twice.** Only what is idempotent is tried again unless it was never sent. The
//!   same holds for hedges, which *always* send twice.
//! - **A client that gives up early makes work, not time.** If the caller's timeout is shorter than the
//!   callee's, the callee works for nobody. Let deadlines travel; refuse what has expired on arrival.
//! - **Slow calls that are cut first.** `slow_after` must be less than the timeouts: a call that
//!   is cut at two seconds is never slower than ten. It counts as failed then, which may be enough.
//! - **Two that retry.** A client that retries by itself (hyper-util's legacy one, most SDKs) is not seen
//!   by any budget: switch it off below a stack.
//! - **Timeouts above the 99th percentile, not at the mean.** A timeout that one call in ten meets is a
//!   retry storm with a fuse.
//! - **A breaker before a fan-out** opens for all shards because one is down: give each its own
//!   ([`keyed`]), and let outlier ejection deal with endpoints.
//! - **A bulkhead's size is Little's law**: calls a second × seconds a call. Twice that is comfort; ten
//!   times that is no bulkhead. Its queue costs latency for everybody in it: make it short and bounded
//!   in time. Where the numbers drift, let an adaptive limit find them.
//! - **A rate limit per process is no limit of a service**: two instances let twice as much through. It
//!   protects the process; quotas of customers need a count that all share.
//! - **A call ends with its body.** A permit given back at the headers limits nothing for a service
//!   that streams. All layers here hold theirs to the last byte.
//! - **Coalesced callers must be alike.** One answer for two people is a leak. The key holds host, path,
//!   `Authorization` and the headers that answers vary by, and cookies are left alone; if your service
//!   looks at anything else (`x-tenant`, a client certificate), say so in `headers` or do not coalesce.
//! - **A fallback that nobody sees is an outage that nobody sees.** Answers are marked, and counted.
//! - **Failing fast is not free**: callers that get an error in a millisecond ask again in a
//!   millisecond. Refusals carry `Retry-After`, and [`throttle`] makes a client obey what it feels.
//!
//! # Cores and layers
//!
//! Each policy is a *core*: it takes `now`, decides, and hands out a permit; it never sleeps,
//! spawns, logs or reads a clock. Dropping a permit means that the call was cancelled. The module
//! [`layer`] carries the decisions out as Tower layers, and [`layer::Stack`] puts all of them in
//! front of one destination in the order that works. The Selvedge gateway and sidecar run this very
//! code, from the same [`TrafficPolicy`] document. `deploy/config/policy.toml` in the repository has
//! every key of it.
//!
//! # Features
//! - `tower` (default): the module [`layer`].
//! - `tracing`: what policies do as events of `tracing`, with fields that keep their names; see
//!   [`events`].
//! - `schema`: JSON Schema of [`TrafficPolicy`], as `TrafficPolicy::json_schema_text()` prints it.
//!
//! # What it costs
//! Nanoseconds a call, beside peers, with the aims that are missed: the page `numbers`. What peers
//! get wrong, and the test that keeps each of it from happening here: the page `peers`.
//!
//! # What is not promised
//! State is per process: two gateways have two circuits. Nothing here speaks to a network.
//!
//! Documents grow: a minor version may add a key to any section. Who writes a configuration in Rust
//! ends it with `..Default::default()`; what is only read (statuses, counters, events) and every
//! enumeration that may grow is `#[non_exhaustive]`.
//!
//! [`InboundLayer`]: layer::InboundLayer
//! [`TimeoutLayer`]: layer::TimeoutLayer
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests pick an instant to start from"
    )
)]

// The table types of `cases/table` name the crate as drivers outside it do.
#[cfg(test)]
extern crate self as selvedge_resilience;

pub mod adaptive;
pub mod balance;
pub mod breaker;
pub mod bulkhead;
pub mod classify;
mod clock;
pub mod coalesce;
pub mod config;
pub mod context;
mod due;
pub mod events;
pub mod expired;
pub mod fallback;
pub mod fault;
pub mod hedge;
#[cfg(feature = "tower")]
pub mod hystrix;
pub mod inbound;
pub mod keyed;
mod lanes;
#[cfg(feature = "tower")]
pub mod layer;
pub mod metrics;
#[cfg(doc)]
#[doc = include_str!("numbers.md")]
pub mod numbers {}
pub mod outcome;
#[cfg(doc)]
#[doc = include_str!("peers.md")]
pub mod peers {}
mod policy;
pub mod rate_limit;
pub mod retry;
mod rng;
mod shared;
pub mod shed;
mod slices;
mod sliding;
mod sync;
pub mod throttle;

pub use outcome::{FailureClass, Outcome, Policy, Reason, Rejected};
pub use policy::{Timeouts, TrafficPolicy};
pub use rng::Rng;
