//! The servers: how they are, how one leaves, and what their gossip is sealed with.

use std::path::Path;

use futures_util::future::join_all;
use selvedge_registry::{
    api::ServerStatus,
    client::{Call, Reply},
    wire::{MemberList, MemberState, ServiceList},
};
use selvedge_resilience::config::Millis;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Duration, Instant, sleep};

use crate::{
    agreement::Agreement,
    args::{AdminAt, Keys},
    ask::{self, Registry},
    failure::Failure,
    print::Printer,
    show::{Done, Status},
};

/// How often servers that differ are asked, and how long to wait in between: together longer than
/// a change takes to be everywhere.
const ROUNDS: usize = 10;
const ASK_AGAIN: Duration = Duration::from_millis(200);

pub(crate) async fn members(registry: &Registry) -> Result<MemberList, Failure> {
    registry.get("list the members", "/v1/members").await
}

/// Whether all is well.
pub(crate) async fn status(registry: &Registry, printer: Printer) -> Result<bool, Failure> {
    let members = members(registry).await?;
    let services: ServiceList = registry.get("list the services", "/v1/services").await?;
    let list = &services.services;
    let counts = (
        list.len(),
        list.iter().map(|service| service.instances).sum(),
        list.iter().map(|service| service.up).sum(),
    );
    let mut told = tell(registry, &members).await;
    let mut agreement = Agreement::default();
    for round in 0..ROUNDS {
        if round > 0 {
            sleep(ASK_AGAIN).await;
            told = tell(registry, &members).await;
        }
        let said = told.iter().map(|(node, told)| (node, told.as_ref()));
        agreement.hear(said.filter_map(|(node, told)| Some((node.as_str(), told.ok()?))));
        if agreement.is_reached() {
            break;
        }
    }
    let status = Status::new(members, told, counts, &agreement);
    printer.show(&status)?;
    Ok(status.well)
}

/// What each server says of itself that is there to say it: one that is cut off is found nowhere
/// else.
async fn tell(
    registry: &Registry,
    members: &MemberList,
) -> Vec<(String, Result<ServerStatus, String>)> {
    let present = members.members.iter().filter(|m| m.state.is_present());
    let asked = present.map(|member| async move {
        let told = async {
            let server = registry.server(member.http)?;
            server.get::<ServerStatus>("ask it", "/v1/status").await
        };
        let told = told.await.map_err(|failure| failure.message());
        (member.node.clone(), told)
    });
    join_all(asked).await
}

pub(crate) async fn drain(
    registry: &Registry,
    printer: Printer,
    node: &str,
    wait: Millis,
    force: bool,
) -> Result<(), Failure> {
    let list = members(registry).await?.members;
    let Some(member) = list.iter().find(|member| member.node == node) else {
        let names: Vec<&str> = list.iter().map(|m| m.node.as_str()).collect();
        let names = names.join(", ");
        return Err(Failure::No(format!(
            "drain {node}: there is no server of that name, only {names}"
        )));
    };
    let serves = |state| state == MemberState::Serving;
    let others = list.iter().filter(|m| m.node != node && serves(m.state));
    if others.count() == 0 && !force {
        return Err(Failure::No(format!(
            "drain {node}: no other server serves, so nobody would take its leases over (--force \
             drains it all the same)"
        )));
    }
    let what = format!("drain {node}");
    let server = registry.server(member.http)?;
    server.order(&what, "POST", "/v1/drain").await?;
    let ends = Instant::now() + wait.0;
    let mut left = member.owned;
    let mut waits = wait.0 > Duration::ZERO;
    while waits {
        let now = members(&server).await?.members;
        let me = now.iter().find(|member| member.node == node);
        left = me.map_or(0, |member| member.owned);
        waits = left > 0;
        if waits && Instant::now() >= ends {
            return Err(Failure::No(format!(
                "{what}: it still keeps {left} leases after {wait}"
            )));
        }
        if waits {
            sleep(Duration::from_millis(200)).await;
        }
    }
    let sentence = match left {
        0 => format!("{node} keeps no lease any more and can be stopped"),
        left => format!("{node} hands its {left} leases over"),
    };
    let document = json!({ "node": node, "left": left });
    printer.show(&Done { sentence, document })
}

/// What the admin port shows of a keyring.
#[derive(Debug, Deserialize)]
struct KeyList {
    keys: Vec<KeyInfo>,
    verify_incoming: bool,
    verify_outgoing: bool,
}

#[derive(Debug, Deserialize)]
struct KeyInfo {
    id: String,
    primary: bool,
}

/// The admin ports.
struct Ports(Vec<(String, Registry)>);

impl Ports {
    fn new(at: &AdminAt) -> Result<Self, Failure> {
        let token = ask::token(at.admin_token_file.as_deref(), "SELVEDGE_ADMIN_TOKEN")?;
        let port = |server: &String| Ok((server.clone(), Registry::admin(server, token.clone())?));
        at.servers
            .iter()
            .map(port)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The same on each of them; stops at the first that does not do it.
    async fn all(
        &self,
        what: &str,
        method: &'static str,
        call: &Call<'_>,
    ) -> Result<Vec<Reply>, Failure> {
        let mut replies = Vec::new();
        for (server, port) in &self.0 {
            let what = format!("{what} at {server}");
            replies.push(port.call(&what, method, call).await?);
        }
        Ok(replies)
    }

    async fn lists(&self) -> Result<Vec<KeyList>, Failure> {
        let call = Call {
            path: "/gossip/keys",
            ..Call::default()
        };
        let what = "list the gossip keys";
        let replies = self.all(what, "GET", &call).await?;
        replies.iter().map(|reply| ask::read(what, reply)).collect()
    }

    async fn install(&self, file: &Path) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Installed {
            id: String,
        }
        let key = ask::text(file).await?;
        let what = "install a gossip key";
        let call = Call {
            path: "/gossip/keys",
            body: serde_json::to_vec(&json!({ "key": key.trim() })).unwrap_or_default(),
            headers: vec![(http::header::CONTENT_TYPE, "application/json".to_owned())],
            ..Call::default()
        };
        let replies = self.all(what, "POST", &call).await?;
        let ids = replies
            .iter()
            .map(|reply| ask::read::<Installed>(what, reply));
        let last = ids.last().transpose()?;
        Ok(last.map(|installed| installed.id).unwrap_or_default())
    }

    async fn set(&self, what: &str, method: &'static str, path: &str) -> Result<(), Failure> {
        let call = Call {
            path,
            ..Call::default()
        };
        self.all(what, method, &call).await.map(drop)
    }

    async fn use_key(&self, id: &str) -> Result<(), Failure> {
        let path = format!("/gossip/keys/{id}/primary");
        self.set(&format!("use gossip key {id}"), "PUT", &path)
            .await
    }

    async fn remove(&self, id: &str) -> Result<(), Failure> {
        let path = format!("/gossip/keys/{id}");
        self.set(&format!("remove gossip key {id}"), "DELETE", &path)
            .await
    }
}

pub(crate) async fn keys(printer: Printer, order: &Keys) -> Result<(), Failure> {
    let at = match order {
        Keys::List(at)
        | Keys::Install { at, .. }
        | Keys::Use { at, .. }
        | Keys::Remove { at, .. }
        | Keys::Rotate { at, .. }
        | Keys::Verify { at, .. } => at,
    };
    let ports = Ports::new(at)?;
    let done = |sentence: String, document| printer.show(&Done { sentence, document });
    match order {
        Keys::List(_) => list_keys(&ports, printer).await,
        Keys::Install { key_file, .. } => {
            let id = ports.install(key_file).await?;
            done(
                format!("key {id} opens everywhere"),
                json!({ "installed": id }),
            )
        }
        Keys::Use { id, .. } => {
            ports.use_key(id).await?;
            done(
                format!("key {id} seals everywhere"),
                json!({ "primary": id }),
            )
        }
        Keys::Remove { id, .. } => {
            ports.remove(id).await?;
            done(
                format!("key {id} opens no longer"),
                json!({ "removed": id }),
            )
        }
        Keys::Rotate { key_file, .. } => rotate(&ports, printer, key_file).await,
        Keys::Verify {
            incoming, outgoing, ..
        } => {
            let document = json!({ "incoming": incoming, "outgoing": outgoing });
            let call = Call {
                path: "/gossip/verify",
                body: serde_json::to_vec(&document).unwrap_or_default(),
                headers: vec![(http::header::CONTENT_TYPE, "application/json".to_owned())],
                ..Call::default()
            };
            ports.all("verify gossip", "PUT", &call).await?;
            let (seals, refuses) = (word(*outgoing, "sealed"), word(*incoming, "refused"));
            let sentence = format!("what goes out is {seals}, what comes unsealed is {refuses}");
            done(sentence, document)
        }
    }
}

fn word(so: bool, word: &str) -> String {
    if so {
        word.to_owned()
    } else {
        format!("not {word}")
    }
}

async fn list_keys(ports: &Ports, printer: Printer) -> Result<(), Failure> {
    for ((server, _), list) in ports.0.iter().zip(ports.lists().await?) {
        let named = list.keys.iter().map(|key| {
            let seals = if key.primary { " (seals)" } else { "" };
            format!("{}{seals}", key.id)
        });
        let named = named.collect::<Vec<_>>().join(", ");
        let sentence = format!(
            "{server}: {}; {}, {}",
            if named.is_empty() { "no key" } else { &named },
            word(list.verify_outgoing, "sealing"),
            word(list.verify_incoming, "refusing what is not sealed"),
        );
        let document = json!({
            "server": server,
            "keys": list.keys.iter().map(|key| json!({ "id": key.id, "primary": key.primary }))
                .collect::<Vec<_>>(),
            "verify_incoming": list.verify_incoming,
            "verify_outgoing": list.verify_outgoing,
        });
        printer.show(&Done { sentence, document })?;
    }
    Ok(())
}

/// Install, use, remove: each on every server before the next, so that at no moment two of them do
/// not understand each other. Interrupted, it can be run again with the same key.
async fn rotate(ports: &Ports, printer: Printer, file: &Path) -> Result<(), Failure> {
    let before = ports.lists().await?;
    let id = ports.install(file).await?;
    ports.use_key(&id).await?;
    let mut removed = Vec::new();
    for ((server, port), list) in ports.0.iter().zip(before) {
        for key in list.keys.into_iter().filter(|key| key.id != id) {
            let what = format!("remove gossip key {} at {server}", key.id);
            let path = format!("/gossip/keys/{}", key.id);
            port.order(&what, "DELETE", &path).await?;
            removed.push(key.id);
        }
    }
    removed.sort_unstable();
    removed.dedup();
    let sentence = format!(
        "key {id} is the only one on {} servers, {} removed; write it into their configuration too",
        ports.0.len(),
        removed.len()
    );
    let document = json!({ "primary": id, "removed": removed });
    printer.show(&Done { sentence, document })
}
