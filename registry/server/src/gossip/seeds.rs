//! Where to find the others: seeds by address or by name, and those that were there last time.
//!
//! chitchat resolves names once a minute, and waits for it before it starts. A server that comes up
//! before its peers have names would be alone for that minute; one whose name server does not
//! answer would not come up. So names are resolved here, beside the gossip: often while nobody is
//! heard, seldom afterwards, so that two halves that lost each other find together again.
//!
//! A server that crashed knows who was there: their addresses are kept in its state directory and
//! tried beside the seeds. One that left on purpose forgets them, unless it is told not to: it
//! does not come back by itself, only by its configuration.
//!
//! # Source
//! Serf's snapshot file and `rejoin_after_leave`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chitchat::ChitchatHandle;
use tokio::{net::lookup_host, sync::watch};

use super::{generation::write_durably, roster::Members};
use crate::catalogue::NodeId;

/// Between two tries while nobody is heard. A guess: a name appears when its server has started.
const ALONE: Duration = Duration::from_secs(2);
/// Between two tries otherwise. Source: chitchat's own `DNS_POLLING_DURATION`.
const CALM: Duration = Duration::from_secs(60);
/// How long a name may take to be resolved. Source: the resolver's own default for one try.
const RESOLVE: Duration = Duration::from_secs(5);
/// Addresses that one name may stand for. A guess: servers of a large cluster.
const MAX_ADDRESSES: usize = 128;
const FILE: &str = "gossip-peers.json";

/// Those that were there last time, kept on disk.
#[derive(Debug, Clone)]
pub(super) struct LastPeers(Option<PathBuf>);

impl LastPeers {
    pub(super) fn in_dir(state_dir: Option<&Path>) -> Self {
        Self(state_dir.map(|dir| dir.join(FILE)))
    }

    /// Damaged or missing, it is empty: the seeds remain.
    pub(super) fn load(&self) -> Vec<SocketAddr> {
        let bytes = self.0.as_ref().and_then(|path| std::fs::read(path).ok());
        let peers: Option<BTreeMap<String, SocketAddr>> =
            bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        peers.unwrap_or_default().into_values().collect()
    }

    fn save(&self, peers: &BTreeMap<NodeId, SocketAddr>) {
        let Some(path) = &self.0 else { return };
        let peers: BTreeMap<&str, SocketAddr> = peers.iter().map(|(n, a)| (&**n, *a)).collect();
        if let Err(error) = write_durably(path, &peers) {
            tracing::warn!(path = %path.display(), %error, "keep the peers' addresses");
        }
    }

    pub(super) fn forget(&self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "forget the peers' addresses");
        }
    }

    /// Keeps who is heard, for as long as it is followed. Nobody heard is no reason to forget
    /// whom to look for.
    pub(super) async fn follow(self, me: NodeId, mut members: watch::Receiver<Members>) {
        let mut kept = BTreeMap::new();
        if self.0.is_none() {
            return;
        }
        loop {
            let now: BTreeMap<NodeId, SocketAddr> = members
                .borrow_and_update()
                .iter()
                .filter(|(node, member)| **node != me && member.is_present())
                .map(|(node, member)| (NodeId::clone(node), member.gossip))
                .collect();
            if !now.is_empty() && now != kept {
                let (to, peers) = (self.clone(), now.clone());
                let saved = tokio::task::spawn_blocking(move || to.save(&peers));
                if saved.await.is_ok() {
                    kept = now;
                }
            }
            if members.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Seeds that are addresses, and those that are names.
pub(super) fn split(seeds: &[String]) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut addresses, mut names) = (Vec::new(), Vec::new());
    for seed in seeds {
        match seed.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(seed.clone()),
        }
    }
    (addresses, names)
}

/// Gossips with what `names` and `addresses` stand for, again and again.
pub(super) async fn knock(
    handle: Arc<ChitchatHandle>,
    me: SocketAddr,
    names: Vec<String>,
    addresses: Vec<SocketAddr>,
    members: watch::Receiver<Members>,
) {
    loop {
        let mut found: BTreeSet<SocketAddr> = addresses.iter().copied().collect();
        for name in &names {
            match tokio::time::timeout(RESOLVE, lookup_host(name)).await {
                Ok(Ok(resolved)) => found.extend(resolved.take(MAX_ADDRESSES)),
                Ok(Err(error)) => tracing::warn!(seed = %name, %error, "resolve seed"),
                Err(_) => tracing::warn!(seed = %name, "resolve seed: no answer"),
            }
        }
        let heard: BTreeSet<SocketAddr> = {
            let members = members.borrow();
            let present = members.values().filter(|member| member.is_present());
            present.map(|member| member.gossip).collect()
        };
        for address in found.difference(&heard).filter(|address| **address != me) {
            if handle.gossip(*address).is_err() {
                return;
            }
        }
        let alone = heard.len() < 2;
        tokio::time::sleep(if alone { ALONE } else { CALM }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_addresses_or_names() {
        let seeds = ["10.0.0.1:7946", "[::1]:7946", "registry.internal:7946"];
        let (addresses, names) = split(&seeds.map(str::to_owned));
        assert_eq!(addresses.len(), 2);
        assert_eq!(names, ["registry.internal:7946"]);
    }

    #[test]
    fn peers_are_kept_and_forgotten_and_damage_is_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let peers = LastPeers::in_dir(Some(dir.path()));
        assert_eq!(peers.load(), vec![]);
        let addr: SocketAddr = "10.0.0.1:7946".parse().expect("addr");
        peers.save(&BTreeMap::from([("n1".into(), addr)]));
        assert_eq!(peers.load(), [addr]);
        peers.forget();
        peers.forget();
        assert_eq!(peers.load(), vec![]);
        std::fs::write(dir.path().join(FILE), b"{\"n1\":").expect("written");
        assert_eq!(peers.load(), vec![]);
        LastPeers::in_dir(None).save(&BTreeMap::new());
    }
}
