//! Another service, called by name.

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::http::{HeaderMap, Request, Response, Uri, request::Parts, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use selvedge_registry::{
    ServiceName,
    client::{Discovery as _, RegistryClient, ServiceWatch},
    node::telemetry::context_of,
};
use selvedge_resilience::{
    Outcome, TrafficPolicy,
    balance::Member,
    layer::{Attempt, BoxError, Error, Hook, ReplayBody, ServiceTransport, Stack},
};
use serde_json::{Value, json};
use tracing::Span;

/// An endpoint: a restart on the same address is another one.
type Key = (SocketAddr, u64);
type Http = Client<HttpConnector, ReplayBody<Full<Bytes>>>;
type Aim = fn(&Key, &mut Request<ReplayBody<Full<Bytes>>>);

/// A service with the policies towards it.
#[derive(Clone)]
pub(crate) struct Callee {
    name: ServiceName,
    stack: Stack<Key>,
    transport: ServiceTransport<Http, Aim>,
}

/// What a service answered.
pub(crate) type Answer = Response<Bytes>;

impl Callee {
    /// Follows where `name` is from now on.
    pub(crate) fn new(
        name: &str,
        policy: TrafficPolicy,
        registry: &RegistryClient,
    ) -> anyhow::Result<Self> {
        let name = ServiceName::new(name)?;
        let stack = Stack::new(policy)?;
        tokio::spawn(follow(stack.clone(), registry.watch(&name)));
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new())
            // The stack decides what is tried again, and where.
            .retry_canceled_requests(false)
            .pool_idle_timeout(std::time::Duration::from_secs(4))
            .pool_timer(TokioTimer::new())
            .build(connector);
        let aim: Aim = |(addr, _), request| {
            let path = request.uri().path_and_query().cloned();
            let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
            if let Ok(uri) = format!("http://{addr}{path}").parse::<Uri>() {
                *request.uri_mut() = uri;
            }
        };
        Ok(Self {
            name,
            stack,
            transport: ServiceTransport::new(http, aim),
        })
    }

    /// Makes one call and reads its whole answer.
    ///
    /// `incoming`: the head's fields of the request that this call is made for; its trace goes on.
    pub(crate) async fn call(
        &self,
        mut request: Request<Full<Bytes>>,
        incoming: &HeaderMap,
    ) -> Result<Answer, Error<BoxError>> {
        for name in ["traceparent", "tracestate"] {
            if let Some(value) = incoming.get(name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
        let tries = Tries {
            name: &self.name,
            span: Span::none(),
        };
        let answer = self.stack.call(&self.transport, request, tries).await?;
        let (head, body) = answer.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| Error::Service(error.into()))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }

    /// Who takes the calls, in the words of the daemons' `/clusters`.
    pub(crate) fn status(&self) -> Value {
        let status = self.stack.status();
        let endpoints = status.endpoints.iter().map(|endpoint| {
            json!({
                "addr": endpoint.key.0,
                "ejected_for_ms": endpoint.ejected_for.as_millis() as u64,
                "succeeded": endpoint.succeeded,
                "failed": endpoint.failed,
            })
        });
        json!({
            "service": self.name,
            "retry": {
                "made": status.budget.map_or(0, |budget| budget.made),
                "refused": status.budget.map_or(0, |budget| budget.rejected),
            },
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}

async fn follow(stack: Stack<Key>, mut watch: ServiceWatch) {
    loop {
        let known = watch.current();
        stack.set_members(known.endpoints.iter().map(|endpoint| {
            Member::new((endpoint.addr, endpoint.incarnation)).weight(endpoint.weight)
        }));
        watch.changed().await;
    }
}

/// A span a try, so that a trace shows which one failed. Nothing where spans go nowhere.
struct Tries<'a> {
    name: &'a ServiceName,
    span: Span,
}

impl Hook<Key> for Tries<'_> {
    fn started(&mut self, attempt: Attempt<'_, Key>, head: &mut Parts) {
        if !selvedge_registry::node::telemetry::tracing_enabled() {
            return;
        }
        self.span = tracing::info_span!(
            target: "selvedge_span",
            "try",
            otel.kind = "client",
            otel.name = %format_args!("{} {}", head.method, self.name),
            attempt = attempt.number,
            server.address = %attempt.key.0.ip(),
            server.port = attempt.key.0.port(),
            outcome = tracing::field::Empty,
        );
        if let Some(context) = context_of(&self.span) {
            context.inject(&mut head.headers);
        }
    }

    fn ended(&mut self, _: Attempt<'_, Key>, outcome: Outcome, _: tokio::time::Instant) {
        self.span.record("outcome", outcome.as_str());
        self.span = Span::none();
    }
}
