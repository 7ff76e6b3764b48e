//! Questions to the registry, as its v1 API answers them.

use anyhow::{Context, bail};
use selvedge_registry::{
    ServiceName,
    client::RegistryClient,
    wire::{MemberList, MemberState, ServiceList, ServiceRecord},
};
use serde::{Serialize, de::DeserializeOwned};

/// A server as it is written, and `host:port` as it is dialled.
pub(crate) fn server(text: &str) -> Result<String, String> {
    let uri: Option<http::Uri> = text.parse().ok();
    let http = uri.filter(|uri| uri.scheme_str() == Some("http"));
    let authority = http.as_ref().and_then(http::Uri::authority);
    let port = authority.and_then(http::uri::Authority::port_u16);
    match (authority, port) {
        (Some(authority), Some(_)) => Ok(authority.to_string()),
        _ => Err(format!(
            "{text:?} is not a registry server: expected \"http://10.0.0.5:7900\""
        )),
    }
}

/// The registry, whichever of its servers answers.
pub(crate) struct Registry<'a>(&'a RegistryClient);

/// What `selvedge status` says.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) members: MemberList,
    pub(crate) services: usize,
    pub(crate) instances: usize,
    pub(crate) up: usize,
}

impl Status {
    /// Whether every server serves.
    pub(crate) fn is_well(&self) -> bool {
        let serves = |state| state == MemberState::Serving;
        self.members.members.iter().all(|m| serves(m.state))
    }
}

impl<'a> Registry<'a> {
    pub(crate) fn new(client: &'a RegistryClient) -> Self {
        Self(client)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let reply = self.0.get(path).await?;
        if !reply.status.is_success() {
            bail!("the registry refuses {path}: {}", reply.problem());
        }
        serde_json::from_slice(&reply.body)
            .with_context(|| format!("read the registry's answer to {path}"))
    }

    pub(crate) async fn members(&self) -> anyhow::Result<MemberList> {
        self.get("/v1/members").await
    }

    pub(crate) async fn services(&self) -> anyhow::Result<ServiceList> {
        self.get("/v1/services").await
    }

    pub(crate) async fn instances(&self, service: &ServiceName) -> anyhow::Result<ServiceRecord> {
        self.get(&format!("/v1/services/{service}")).await
    }

    pub(crate) async fn status(&self) -> anyhow::Result<Status> {
        let members = self.members().await?;
        let list = self.services().await?.services;
        Ok(Status {
            members,
            services: list.len(),
            instances: list.iter().map(|service| service.instances).sum(),
            up: list.iter().map(|service| service.up).sum(),
        })
    }
}
