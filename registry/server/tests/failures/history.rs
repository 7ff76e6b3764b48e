//! A history of what was asked for and answered, and what must be true of it at the end.
//!
//! Clients register, change and deregister at servers of their choice while links are cut and
//! servers are killed. Each operation that was answered is written down. Then everything heals, and:
//!
//! - *convergence*: all servers hold the same;
//! - *nothing lost*: who was registered last and renews is there, as it last said;
//! - *nothing resurrected*: who was deregistered last is not;
//! - *read your writes*: what a server has answered it also shows, at once.
//!
//! An instance has one client, as in life; its operations are in order. After an operation whose
//! server was cut off or killed the client goes on with another server, as a library would.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use selvedge_registry_server::server::{Origin, Refused, Shared};
use tokio::time::Instant;

use super::{Cluster, Reachable, key, request, text, texts};

/// The last answered word about an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Registered { port: u16 },
    Gone,
}

struct Client {
    n: usize,
    incarnation: u64,
    said: Said,
    /// Which of the servers it talks to.
    server: usize,
}

impl Client {
    fn server(&self, reachable: &Reachable) -> Option<Arc<Shared>> {
        let reachable = reachable.lock();
        let mut all: Vec<_> = reachable
            .values()
            .filter(|s| s.is_serving())
            .cloned()
            .collect();
        let n = self.server % all.len().max(1);
        (!all.is_empty()).then(|| all.swap_remove(n))
    }

    /// One operation, and what reading at the same server says right after it.
    fn act(&mut self, reachable: &Reachable, rng: &mut fastrand::Rng) -> Result<(), String> {
        let Some(server) = self.server(reachable) else {
            return Ok(());
        };
        let (service, id) = key(self.n);
        let read = || server.read(|c| c.live(&service, &id).map(|i| i.addr.port()));
        match (self.said, rng.u8(..10)) {
            (Said::Registered { .. }, 0) => {
                match server.deregister(&service, &id) {
                    Ok(()) | Err(Refused::Unknown) => self.said = Said::Gone,
                    Err(_) => return Ok(()),
                }
                if read().is_some() {
                    return Err(format!("{} is there after it was deregistered", self.n));
                }
            }
            (Said::Registered { .. }, 1..=7) => {
                match server.renew(&service, &id, Some(self.incarnation)) {
                    Err(Refused::Unknown) => self.register(&server, rng),
                    _ => return Ok(()),
                }
            }
            (_, 8..) => {
                self.incarnation += 1;
                self.register(&server, rng);
                let want = match self.said {
                    Said::Registered { port } => Some(port),
                    Said::Gone => return Ok(()),
                };
                if read() != want {
                    return Err(format!("{} reads {:?} after {want:?}", self.n, read()));
                }
            }
            (Said::Gone, _) => {}
        }
        Ok(())
    }

    fn register(&mut self, server: &Shared, rng: &mut fastrand::Rng) {
        let (service, id) = key(self.n);
        let mut request = request(self.n);
        let port = rng.u16(1_024..);
        request.addr.set_port(port);
        request.incarnation = Some(self.incarnation);
        match server.register(service, id, request, Origin::v1()) {
            Ok(_) => self.said = Said::Registered { port },
            Err(Refused::Later { incarnation }) => self.incarnation = incarnation,
            Err(_) => {}
        }
    }
}

async fn trouble(cluster: &mut Cluster, rng: &mut fastrand::Rng, step: usize) {
    match step % 6 {
        0 => cluster.cut_streams(&[rng.usize(..2)], &[2, 3]),
        1 | 4 => cluster.heal(),
        2 => cluster.partition(&[0, 1], &[2, 3]),
        3 => {
            cluster.heal();
            cluster.kill(3);
        }
        _ => cluster.add(3).await,
    }
}

/// How long clients act; each step of trouble takes its share.
const STEPS: usize = 12;

async fn history(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start(4, |config| {
        // The short leases are for the other tests: here nobody is to die of a busy machine.
        config.leases.min_leases = 1;
    })
    .await;
    let mut clients: BTreeMap<usize, Client> = (0..80)
        .map(|n| {
            let client = Client {
                n,
                incarnation: 1,
                said: Said::Gone,
                server: n % 4,
            };
            (n, client)
        })
        .collect();
    for step in 0..STEPS {
        let end = Instant::now() + Duration::from_millis(700);
        while Instant::now() < end {
            for client in clients.values_mut() {
                if rng.u8(..40) == 0 {
                    client.server = rng.usize(..4);
                }
                if let Err(wrong) = client.act(&cluster.reachable, &mut rng) {
                    panic!("seed {seed}, step {step}: {wrong}");
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        trouble(&mut cluster, &mut rng, step).await;
    }
    cluster.heal();
    settle(&cluster, &mut clients, seed).await;
}

/// Everybody who is registered renews, and every server comes to the same.
async fn settle(cluster: &Cluster, clients: &mut BTreeMap<usize, Client>, seed: u64) {
    let registered = |clients: &BTreeMap<usize, Client>| -> BTreeSet<String> {
        let live = clients.values().filter(|c| c.said != Said::Gone);
        texts(live.map(|client| client.n))
    };
    let want = registered(clients);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut rng = fastrand::Rng::with_seed(seed);
    loop {
        for client in clients.values_mut().filter(|c| c.said != Said::Gone) {
            let Some(server) = client.server(&cluster.reachable) else {
                continue;
            };
            let (service, id) = key(client.n);
            let renewed = server.renew(&service, &id, Some(client.incarnation));
            if matches!(renewed, Err(Refused::Unknown)) {
                client.register(&server, &mut rng);
            }
        }
        let wrong = wrong(cluster, clients, &want);
        let Some(wrong) = wrong else {
            return;
        };
        assert!(Instant::now() < deadline, "seed {seed}: {wrong}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn wrong(
    cluster: &Cluster,
    clients: &BTreeMap<usize, Client>,
    want: &BTreeSet<String>,
) -> Option<String> {
    let mut hashes = BTreeSet::new();
    for server in cluster.servers.values() {
        let catalogue = server.shared().catalogue();
        hashes.insert(catalogue.hash());
        let has = super::ids(server.shared());
        let node = &server.shared().node;
        if let Some(lost) = want.difference(&has).next() {
            return Some(format!("{lost} is lost at {node}"));
        }
        if let Some(risen) = has.difference(want).next() {
            return Some(format!("{risen} has risen at {node}"));
        }
        for client in clients.values() {
            let (service, id) = key(client.n);
            let port = catalogue.live(&service, &id).map(|i| i.addr.port());
            if let Said::Registered { port: said } = client.said
                && port != Some(said)
            {
                return Some(format!(
                    "{} said {said}, {node} has {port:?}",
                    text(client.n)
                ));
            }
        }
    }
    (hashes.len() > 1).then(|| format!("{} different catalogues", hashes.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_rises_whatever_is_cut() {
    let seed = fastrand::u64(..);
    history(seed).await;
}
