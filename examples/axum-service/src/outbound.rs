//! Another service, called by name.

use std::net::SocketAddr;

use axum::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use selvedge_registry::{
    ServiceName,
    client::{Discovery, RegistryClient, ServiceWatch},
};
use selvedge_resilience::{
    TrafficPolicy,
    balance::Member,
    context::CallContext,
    layer::{BoxError, Error, ReplayBody, ServiceTransport, Stack, over_http, propagate},
};

/// An endpoint: a restart on the same address is another one, with a clean record.
type Key = (SocketAddr, u64);
type Body = ReplayBody<Full<Bytes>>;
/// Points a request at the endpoint that the balancer chose.
type Aim = fn(&Key, &mut Request<Body>);

/// A service, and the policies towards it.
pub(crate) struct Callee {
    stack: Stack<Key>,
    transport: ServiceTransport<Client<HttpConnector, Body>, Aim>,
}

impl Callee {
    /// Follows where `name` is from now on, and how it is to be called: `policy` is in force while
    /// none is published for it (`selvedge policy put`).
    pub(crate) fn new(
        name: &str,
        policy: TrafficPolicy,
        registry: &RegistryClient,
    ) -> anyhow::Result<Self> {
        let name = ServiceName::new(name)?;
        let stack = Stack::new(policy.clone())?;
        tokio::spawn(follow(stack.clone(), registry.watch(&name)));
        let published = registry.policy(&name);
        let follower = stack.clone();
        tokio::spawn(published.follow(policy, move |policy| follower.reconfigure(policy)));
        let http = Client::builder(TokioExecutor::new())
            // The stack decides what is tried again, and where.
            .retry_canceled_requests(false)
            .build(HttpConnector::new());
        Ok(Self {
            stack,
            transport: ServiceTransport::new(http, aim as Aim),
        })
    }

    /// Makes one call and reads its whole answer. `context` is that of the request that this
    /// call is made for: its trace goes on, and its deadline counts for this call too.
    ///
    /// # Errors
    /// [`Error::Rejected`] by a policy, [`Error::Service`] if the last try failed.
    pub(crate) async fn call(
        &self,
        mut request: Request<Full<Bytes>>,
        context: &CallContext,
    ) -> Result<Response<Bytes>, Error<BoxError>> {
        propagate(context, &mut request);
        let answer = self.stack.call(&self.transport, request, ()).await?;
        let (head, body) = answer.into_parts();
        // The call ends with its body: breaker and balancer count it then.
        let body = body.collect().await;
        let body = body.map_err(|error| Error::Service(error.into()))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

fn aim((addr, _): &Key, request: &mut Request<Body>) {
    over_http(addr, request);
}

/// Tells the balancer of every change.
async fn follow(stack: Stack<Key>, mut watch: ServiceWatch) {
    loop {
        let known = watch.current();
        stack.set_members(known.endpoints.iter().map(|endpoint| {
            Member::new((endpoint.addr, endpoint.incarnation)).weight(endpoint.weight)
        }));
        watch.changed().await;
    }
}
