//! Instances that register and renew.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use selvedge_registry::api::Renewals;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, interval, sleep_until},
};

use super::{LEASE, http::Http};

/// Connections to each server.
const CONNECTIONS: usize = 8;
/// Instances renewed in one request in the background. Source: what a client library renews that
/// registers many; a hundredth of what one request may hold.
const BATCH: usize = 100;

/// Instances that register before those are renewed.
const ROUND: usize = 5_000;

/// Which server an instance talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// The one it registered at, as our client does.
    Own,
    /// Each time another.
    Any,
}

/// Where an instance runs. Not by its server: each has leases of every zone.
pub(super) fn zone(n: usize) -> &'static str {
    ["a", "b", "c"][n / 7 % 3]
}

/// All instances.
#[derive(Debug)]
pub(super) struct Fleet {
    services: usize,
    pub(super) instances: usize,
    pub(super) homes: Vec<SocketAddr>,
    /// Those below have registered.
    registered: AtomicUsize,
    turn: AtomicUsize,
}

impl Fleet {
    pub(super) fn new(services: usize, instances: usize, homes: Vec<SocketAddr>) -> Self {
        Self {
            services,
            instances,
            homes,
            registered: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) fn service(&self, n: usize) -> String {
        format!("service-{:05}", n % self.services)
    }

    pub(super) fn id(&self, n: usize) -> String {
        format!("{}-{n:06}", self.service(n))
    }

    pub(super) fn home(&self, n: usize) -> SocketAddr {
        self.homes[n % self.homes.len()]
    }

    pub(super) fn path(&self, n: usize) -> String {
        format!("/v1/services/{}/instances/{}", self.service(n), self.id(n))
    }

    /// What instance `n` says of itself; `seq` makes it a change.
    pub(super) fn document(&self, n: usize, seq: u64) -> Vec<u8> {
        let zone = zone(n);
        let (high, low) = (n >> 8 & 0xff, n & 0xff);
        format!(
            r#"{{"addr":"10.{}.{high}.{low}:8080","ttl":"{}s","version":"1.4.2","tags":["canary"],"locality":{{"region":"eu","zone":"{zone}"}},"metadata":{{"bench-seq":"{seq}","commit":"3f2a9c1d","pod":"{}"}}}}"#,
            n >> 16,
            LEASE.as_secs(),
            self.id(n)
        )
        .into_bytes()
    }

    /// Registers everybody, each at home.
    pub(super) async fn register(self: &Arc<Self>) -> anyhow::Result<()> {
        // A round at a time, so that it is known who is there.
        for round in 0..self.instances.div_ceil(ROUND) {
            let mut workers = JoinSet::new();
            for worker in 0..CONNECTIONS {
                let fleet = Arc::clone(self);
                workers.spawn(async move {
                    let mut clients = fleet.connect().await?;
                    let end = fleet.instances.min((round + 1) * ROUND);
                    for n in (round * ROUND + worker..end).step_by(CONNECTIONS) {
                        let homes = clients.len();
                        let body = fleet.document(n, 0);
                        clients[n % homes].done("PUT", &fleet.path(n), body).await?;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(worker) = workers.join_next().await {
                worker??;
            }
            let there = self.instances.min((round + 1) * ROUND);
            self.registered.store(there, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn connect(&self) -> anyhow::Result<Vec<Http>> {
        let mut clients = Vec::with_capacity(self.homes.len());
        for addr in &self.homes {
            clients.push(Http::connect(*addr).await?);
        }
        Ok(clients)
    }

    /// The next instances to renew, all of one server; none if they have not registered yet. Whoever
    /// renews goes on where others have left off, so that each comes round in time.
    fn turn(&self) -> (usize, impl Iterator<Item = usize> + use<>) {
        let homes = self.homes.len();
        let rounds = self.instances.div_ceil(homes * BATCH);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % (rounds * homes);
        let (first, home) = (turn / homes * homes * BATCH, turn % homes);
        let there = self.registered.load(Ordering::Relaxed);
        let all = (first + home..there).step_by(homes).take(BATCH);
        (home, all)
    }

    /// Renews instances in one request.
    async fn renew(
        &self,
        client: &mut Http,
        instances: impl Iterator<Item = usize>,
    ) -> anyhow::Result<u64> {
        let mut text = String::from(r#"{"leases":["#);
        let mut asked = 0;
        for n in instances {
            let comma = if asked == 0 { "" } else { "," };
            let (service, id) = (self.service(n), self.id(n));
            write!(text, r#"{comma}{{"service":"{service}","id":"{id}"}}"#)?;
            asked += 1;
        }
        text.push_str("]}");
        let answer = client.done("POST", "/v1/leases", text.into_bytes()).await?;
        let renewals: Renewals = serde_json::from_slice(&answer)?;
        let refused = renewals.refused.first();
        ensure!(renewals.renewed == asked, "not renewed: {refused:?}");
        Ok(asked as u64)
    }
}

/// Renews `rate` leases a second for `length`, many or one in a request; tells how many it were.
pub(super) async fn renew_at(
    fleet: &Arc<Fleet>,
    rate: u64,
    together: bool,
    home: Home,
    length: Duration,
) -> anyhow::Result<u64> {
    let mut workers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let fleet = Arc::clone(fleet);
        let share = rate as f64 / CONNECTIONS as f64;
        workers.spawn(async move {
            let mut clients = fleet.connect().await?;
            let began = Instant::now();
            let mut done: u64 = 0;
            while began.elapsed() < length {
                let due = Duration::from_secs_f64(done as f64 / share);
                sleep_until(began + due).await;
                let (to, turn) = fleet.turn();
                if together {
                    done += fleet.renew(&mut clients[to], turn).await?;
                    continue;
                }
                for n in turn {
                    let due = Duration::from_secs_f64(done as f64 / share);
                    // A timer is no finer than a millisecond.
                    if due > began.elapsed() + Duration::from_millis(1) {
                        sleep_until(began + due).await;
                    }
                    let to = match home {
                        Home::Own => to,
                        Home::Any => fastrand::usize(..clients.len()),
                    };
                    let path = format!("{}/lease", fleet.path(n));
                    clients[to].done("PUT", &path, Vec::new()).await?;
                    done += 1;
                }
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(worker) = workers.join_next().await {
        done += worker??;
    }
    Ok(done)
}

/// Renews everybody, `rate` a second, until it is aborted.
pub(super) fn renew_for_ever(fleet: &Arc<Fleet>, rate: u64) -> JoinHandle<()> {
    let fleet = Arc::clone(fleet);
    tokio::spawn(async move {
        if let Err(error) = renew_on_and_on(&fleet, rate).await {
            tracing::error!(%error, "renewals ended");
            report(&error);
        }
    })
}

#[expect(clippy::print_stderr, reason = "an operator's command, not a daemon")]
fn report(error: &anyhow::Error) {
    eprintln!("bench: renewals ended: {error:#}");
}

async fn renew_on_and_on(fleet: &Arc<Fleet>, rate: u64) -> anyhow::Result<()> {
    let mut clients = fleet.connect().await?;
    let mut tick = interval(Duration::from_secs_f64(BATCH as f64 / rate as f64));
    loop {
        tick.tick().await;
        let (home, turn) = fleet.turn();
        fleet.renew(&mut clients[home], turn).await?;
    }
}
