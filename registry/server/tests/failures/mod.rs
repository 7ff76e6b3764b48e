//! What goes wrong, and what must be so afterwards: every server has the same catalogue, no live
//! instance is missing from it, and no dead one remains.
//!
//! Real servers in one process: HTTP over loopback through links that can be cut, gossip over the
//! network in memory. Leases are seconds, so that a minute of the real thing fits into a test.

mod catching_up;
mod history;
mod lossy;
#[cfg(target_os = "linux")]
mod namespaces;
mod owners;
mod partitions;
mod paused;
mod restarts;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use selvedge_registry::{
    InstanceId, ServiceName,
    node::admin::Admin,
    wire::{MemberState, RegisterRequest},
};
use selvedge_registry_server::{
    RegistryConfig, RegistryServer,
    gossip::testing::{self, Net, addr},
    replicate::peer::{Connect, Io, Peers},
    server::{Origin, Refused, Shared, system_clock},
    start::Environment,
};
use selvedge_resilience::config::Millis;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, Sleep},
};

use crate::support::name;

/// Long enough for a busy machine, short enough for a test.
pub(crate) const LEASE: Duration = Duration::from_millis(2_000);
const BEAT: Duration = Duration::from_millis(400);

/// The TCP links between servers, each direction of which can be cut: then nothing comes through,
/// and nobody is told.
#[derive(Debug, Default)]
struct Links {
    cut: Mutex<HashSet<(usize, usize)>>,
    /// Segments that are lost, of a thousand.
    loss: AtomicU32,
    at: Mutex<BTreeMap<SocketAddr, usize>>,
}

impl Links {
    fn is_cut(&self, a: usize, b: usize) -> bool {
        let cut = self.cut.lock();
        cut.contains(&(a, b)) || cut.contains(&(b, a))
    }

    /// How late something comes that was first sent again after `first`, then twice as late each time.
    fn resent_after(&self, first: Duration) -> Duration {
        let (mut late, mut next) = (Duration::ZERO, first);
        while fastrand::u32(..1_000) < self.loss.load(Ordering::Relaxed) {
            late += next;
            next *= 2;
        }
        late
    }

    fn connect(self: &Arc<Self>, from: usize) -> Connect {
        let links = Arc::clone(self);
        Arc::new(move |addr| {
            let links = Arc::clone(&links);
            Box::pin(async move {
                let to = links.at.lock().get(&addr).copied();
                let to = to.ok_or(io::ErrorKind::ConnectionRefused)?;
                if links.is_cut(from, to) {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(links.resent_after(Duration::from_secs(1))).await;
                let stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                let link = Link {
                    stream,
                    links,
                    ends: (from, to),
                    broken: AtomicBool::new(false),
                    reading: Segment::default(),
                    writing: Segment::default(),
                };
                Ok(Box::new(link) as Box<dyn Io>)
            })
        })
    }
}

/// A segment on its way: what TCP makes of one that is lost.
#[derive(Default)]
struct Segment {
    decided: bool,
    resent: Option<Pin<Box<Sleep>>>,
}

impl Segment {
    /// Once it has come through.
    fn poll_arrived(&mut self, links: &Links, cx: &mut Context<'_>) -> Poll<()> {
        if !std::mem::replace(&mut self.decided, true) {
            // Source: Linux' TCP_RTO_MIN.
            let after = links.resent_after(Duration::from_millis(200));
            self.resent = (!after.is_zero()).then(|| Box::pin(tokio::time::sleep(after)));
        }
        if let Some(resent) = &mut self.resent {
            ready!(resent.as_mut().poll(cx));
            self.resent = None;
        }
        Poll::Ready(())
    }
}

/// A connection over such a link. What was cut once stays broken; what is lost is sent again.
struct Link {
    stream: TcpStream,
    links: Arc<Links>,
    ends: (usize, usize),
    broken: AtomicBool,
    reading: Segment,
    writing: Segment,
}

impl Link {
    fn is_broken(&self) -> bool {
        if self.links.is_cut(self.ends.0, self.ends.1) {
            self.broken.store(true, Ordering::Relaxed);
        }
        self.broken.load(Ordering::Relaxed)
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let link = &mut *self;
        ready!(link.stream.poll_read_ready(cx))?;
        ready!(link.reading.poll_arrived(&link.links, cx));
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut link.stream).poll_read(cx, buf));
        if link.is_broken() {
            buf.set_filled(before);
            return Poll::Pending;
        }
        link.reading.decided = false;
        Poll::Ready(read)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_broken() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let link = &mut *self;
        ready!(link.writing.poll_arrived(&link.links, cx));
        let written = ready!(Pin::new(&mut link.stream).poll_write(cx, bytes));
        link.writing.decided = false;
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Servers that can be killed, cut off and started again.
pub(crate) struct Cluster {
    net: Net,
    links: Arc<Links>,
    pub(crate) servers: BTreeMap<usize, RegistryServer>,
    /// How far each server's wall clock is off, in milliseconds.
    walls: BTreeMap<usize, Arc<AtomicI64>>,
    dirs: Option<tempfile::TempDir>,
    config: fn(&mut RegistryConfig),
    generation: u64,
    /// Those that clients reach.
    pub(crate) reachable: Reachable,
}

pub(crate) type Reachable = Arc<Mutex<BTreeMap<usize, Arc<Shared>>>>;

impl Cluster {
    pub(crate) async fn start(n: usize, config: fn(&mut RegistryConfig)) -> Self {
        let mut cluster = Self::empty(config);
        for i in 0..n {
            cluster.add(i).await;
        }
        cluster.all_serve().await;
        cluster
    }

    fn empty(config: fn(&mut RegistryConfig)) -> Self {
        Self {
            net: Net::new(fastrand::u64(..)),
            links: Arc::default(),
            servers: BTreeMap::new(),
            walls: BTreeMap::new(),
            dirs: None,
            config,
            generation: 1,
            reachable: Arc::default(),
        }
    }

    /// With something to write to.
    pub(crate) async fn start_on_disk(n: usize, config: fn(&mut RegistryConfig)) -> Self {
        let mut cluster = Self::empty(config);
        cluster.dirs = Some(tempfile::tempdir().expect("directory"));
        for i in 0..n {
            cluster.add(i).await;
        }
        cluster.all_serve().await;
        cluster
    }

    pub(crate) fn dir(&self, i: usize) -> Option<std::path::PathBuf> {
        self.dirs
            .as_ref()
            .map(|dirs| Path::new(dirs.path()).join(i.to_string()))
    }

    /// Starts server `i`; does not wait until it serves.
    pub(crate) async fn add(&mut self, i: usize) {
        let mut config = crate::support::config(&format!("n{i}"), &[]);
        config.gossip.bind = addr(u16::try_from(i).expect("small"));
        config.gossip.seeds = [0, 1, 2]
            .iter()
            .filter(|n| usize::from(**n) != i)
            .map(|n| addr(*n).to_string())
            .collect();
        // The first has nobody to wait for.
        config.gossip.join_timeout = if self.servers.is_empty() {
            "100ms"
        } else {
            "3s"
        }
        .parse()
        .expect("unit");
        config.leases.settle = "500ms".parse().expect("unit");
        config.leases.pass = "1s".parse().expect("unit");
        config.leases.restart_grace = "3s".parse().expect("unit");
        config.leases.server_loss_within = "1s".parse().expect("unit");
        config.replication.compare_every = "500ms".parse().expect("unit");
        config.storage.snapshot_every = "300ms".parse().expect("unit");
        config.state_dir = self.dir(i);
        (self.config)(&mut config);
        let offset = Arc::clone(self.walls.entry(i).or_default());
        let real = system_clock();
        self.generation += 1;
        let environment = Environment {
            wall: Arc::new(move || real().saturating_add_signed(offset.load(Ordering::Relaxed))),
            peers: Peers::new(self.links.connect(i), None),
            gossip: Some(Arc::new(self.net.clone())),
        };
        let server = RegistryServer::start_in(&config, &Admin::default(), environment)
            .await
            .expect("starts");
        self.links.at.lock().insert(server.shared().http, i);
        self.reachable.lock().insert(i, Arc::clone(server.shared()));
        self.servers.insert(i, server);
    }

    pub(crate) async fn all_serve(&self) {
        let n = self.servers.len();
        until("all serve and know each other", || {
            self.servers.values().all(|server| {
                let members = server.shared().member_list().members;
                let serving = |m: &&_| -> bool {
                    let m: &selvedge_registry::wire::MemberInfo = m;
                    m.state == MemberState::Serving
                };
                members.iter().filter(serving).count() == n
            })
        })
        .await;
    }

    /// As SIGKILL does it: no word to anybody.
    pub(crate) fn kill(&mut self, i: usize) {
        self.reachable.lock().remove(&i);
        let server = self.servers.remove(&i).expect("runs");
        self.links.at.lock().remove(&server.shared().http);
        drop(server);
    }

    /// As SIGTERM does it.
    pub(crate) async fn stop(&mut self, i: usize) {
        let server = self.servers.remove(&i).expect("runs");
        let http = server.shared().http;
        server.shutdown().await;
        self.reachable.lock().remove(&i);
        self.links.at.lock().remove(&http);
    }

    pub(crate) fn partition(&self, one: &[usize], other: &[usize]) {
        let gossip = |side: &[usize]| -> Vec<SocketAddr> {
            let addr = |i: &usize| addr(u16::try_from(*i).expect("small"));
            side.iter().map(addr).collect()
        };
        self.net.partition(&gossip(one), &gossip(other));
        self.cut_streams(one, other);
    }

    /// Only what goes over HTTP: gossip goes on.
    pub(crate) fn cut_streams(&self, one: &[usize], other: &[usize]) {
        let mut cut = self.links.cut.lock();
        for a in one {
            cut.extend(other.iter().map(|b| (*a, *b)));
        }
    }

    /// What server `from` says does not reach server `to`. A connection does not work in one
    /// direction only: there it is both.
    pub(crate) fn lose(&self, from: usize, to: usize) {
        let at = |i: usize| addr(u16::try_from(i).expect("small"));
        self.net.link(at(from), at(to), testing::Link::CUT);
        self.cut_streams(&[from], &[to]);
    }

    pub(crate) fn gossip_by(&self, link: testing::Link) {
        self.net.all(link);
    }

    /// So much of everything between servers is lost, late and out of order: datagrams for good,
    /// streams until they are sent again.
    pub(crate) fn lose_everywhere(&self, loss: f64) {
        self.gossip_by(testing::Link {
            loss,
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(30),
        });
        let of_a_thousand = (loss * 1_000.0) as u32;
        self.links.loss.store(of_a_thousand, Ordering::Relaxed);
    }

    pub(crate) fn heal(&self) {
        self.net.heal();
        self.links.cut.lock().clear();
    }

    pub(crate) fn wall(&self, i: usize, off_by: Duration, ahead: bool) {
        let ms = i64::try_from(off_by.as_millis()).expect("small");
        self.walls[&i].store(if ahead { ms } else { -ms }, Ordering::Relaxed);
    }

    pub(crate) fn shared(&self, i: usize) -> &Arc<Shared> {
        self.servers[&i].shared()
    }

    pub(crate) fn evictions(&self) -> u64 {
        let all = self.servers.values();
        all.map(|s| s.shared().counters.evictions.load(Ordering::Relaxed))
            .sum()
    }

    /// Every server comes to hold exactly `want`, whoever keeps the leases: in a network that loses
    /// so much that they move with every renewal, there is no moment when all agree on that.
    pub(crate) async fn holds(&self, want: &BTreeSet<String>, within: Duration) {
        let deadline = Instant::now() + within;
        while let Some(server) = self.servers.values().find(|s| ids(s.shared()) != *want) {
            let (node, has) = (&server.shared().node, ids(server.shared()));
            let differ: Vec<_> = has.symmetric_difference(want).take(5).collect();
            let late = Instant::now() >= deadline;
            assert!(!late, "not in {within:?}: {node} differs by {differ:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Every server holds exactly `want`, and nothing about any two of them differs: not in
    /// process, and not by what each says over HTTP.
    pub(crate) async fn converges_to(&self, want: &BTreeSet<String>) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Some(wrong) = self.differs_from(want).await {
            assert!(Instant::now() < deadline, "not in ten seconds: {wrong}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What is not as `want` and the same everywhere.
    async fn differs_from(&self, want: &BTreeSet<String>) -> Option<String> {
        let mut hashes = BTreeSet::new();
        for server in self.servers.values() {
            let shared = server.shared();
            let has = ids(shared);
            if has != *want {
                let missing: Vec<_> = want.difference(&has).take(5).collect();
                let surplus: Vec<_> = has.difference(want).take(5).collect();
                let node = &shared.node;
                return Some(format!("{node} misses {missing:?} and has {surplus:?}"));
            }
            hashes.insert(shared.read(|c| (c.hash(), c.policies_hash())));
        }
        if hashes.len() > 1 {
            return Some(format!("{} different catalogues", hashes.len()));
        }
        let mut said = Vec::new();
        for server in self.servers.values() {
            let http = server.shared().http;
            let Some(digest) = crate::support::digest(http).await else {
                return Some(format!("{http} does not answer"));
            };
            if digest.records != want.len() || said.last().is_some_and(|last| *last != digest) {
                said.push(digest);
                return Some(format!("over HTTP: {said:?}"));
            }
            said.push(digest);
        }
        None
    }
}

/// What a server holds, as `service/id`.
pub(crate) fn ids(shared: &Shared) -> BTreeSet<String> {
    shared.read(|catalogue| {
        let live = catalogue.records().filter(|record| record.is_live());
        live.map(|record| format!("{}/{}", record.service, record.id))
            .collect()
    })
}

pub(crate) fn key(n: usize) -> (ServiceName, InstanceId) {
    let id = InstanceId::new(format!("i{n}")).expect("id");
    (name(&format!("s{}", n % 7)), id)
}

pub(crate) fn text(n: usize) -> String {
    let (service, id) = key(n);
    format!("{service}/{id}")
}

pub(crate) fn texts(of: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
    of.into_iter().map(text).collect()
}

/// Every second one runs in the other zone.
fn zone(n: usize) -> &'static str {
    if n.is_multiple_of(2) { "even" } else { "odd" }
}

pub(crate) fn request(n: usize) -> RegisterRequest {
    let port = 1_024 + n;
    let ttl = LEASE.as_millis();
    let zone = zone(n);
    let text = format!(
        r#"{{"addr":"10.0.0.1:{port}","ttl":"{ttl}ms","locality":{{"zone":"{zone}"}},"metadata":{{"n":"{n}"}}}}"#
    );
    serde_json::from_str(&text).expect("a request")
}

/// In simulated time what is ready on a socket is seen when the next timer is due: with this running
/// no hop takes longer than 5 ms.
pub(crate) fn short_hops() {
    tokio::spawn(async {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

/// Waits until it is so; fails after ten seconds.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < deadline, "not in ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Instances that register and renew as a client library does: at a server of their own, at
/// another if that is not to be reached, and again from the start if their lease was lost.
pub(crate) struct Fleet {
    alive: Arc<Mutex<BTreeMap<usize, Instance>>>,
    /// Registrations that a 404 made necessary.
    pub(crate) lost: Arc<Mutex<Vec<usize>>>,
    /// Renewals that do not arrive, of a thousand: the next server is tried.
    pub(crate) unheard: Arc<AtomicU32>,
    lease: Duration,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone)]
struct Instance {
    incarnation: u64,
    registered: bool,
    /// Servers it can reach; all if empty.
    side: Vec<usize>,
    lease: Duration,
}

impl Fleet {
    /// `n` instances at the servers that are reachable.
    pub(crate) fn start(cluster: &Cluster, n: usize) -> Self {
        Self::start_with(cluster, n, LEASE, BEAT)
    }

    /// With another lease, renewed every `beat`.
    pub(crate) fn start_with(cluster: &Cluster, n: usize, lease: Duration, beat: Duration) -> Self {
        let alive: Arc<Mutex<BTreeMap<usize, Instance>>> = Arc::default();
        let lost: Arc<Mutex<Vec<usize>>> = Arc::default();
        let unheard: Arc<AtomicU32> = Arc::default();
        let beating = (Arc::clone(&alive), Arc::clone(&lost), Arc::clone(&unheard));
        let reachable = Arc::clone(&cluster.reachable);
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(beat);
            loop {
                tick.tick().await;
                let unheard = beating.2.load(Ordering::Relaxed);
                beat_once(&beating.0, &beating.1, &reachable, unheard);
            }
        });
        let fleet = Self {
            alive,
            lost,
            unheard,
            lease,
            task,
        };
        for i in 0..n {
            fleet.join(i, &[]);
        }
        beat_once(&fleet.alive, &fleet.lost, &cluster.reachable, 0);
        fleet
    }

    /// One more; it reaches those of `side` only.
    pub(crate) fn join(&self, n: usize, side: &[usize]) {
        let instance = Instance {
            incarnation: 1,
            registered: false,
            side: side.to_vec(),
            lease: self.lease,
        };
        self.alive.lock().insert(n, instance);
    }

    pub(crate) fn restrict(&self, of: impl IntoIterator<Item = usize>, side: &[usize]) {
        let mut alive = self.alive.lock();
        for n in of {
            alive.get_mut(&n).expect("alive").side = side.to_vec();
        }
    }

    /// Falls silent.
    pub(crate) fn crash(&self, n: usize) {
        self.alive.lock().remove(&n);
    }

    pub(crate) fn alive(&self) -> BTreeSet<String> {
        texts(self.alive.lock().keys().copied())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn beat_once(
    alive: &Mutex<BTreeMap<usize, Instance>>,
    lost: &Mutex<Vec<usize>>,
    reachable: &Mutex<BTreeMap<usize, Arc<Shared>>>,
    unheard: u32,
) {
    let servers = reachable.lock().clone();
    for (n, instance) in alive.lock().iter_mut() {
        let mine: Vec<_> = servers
            .iter()
            .filter(|(i, _)| instance.side.is_empty() || instance.side.contains(i))
            .map(|(_, shared)| shared)
            .collect();
        let (service, id) = key(*n);
        for turn in 0..mine.len() {
            let server = mine[(n + turn) % mine.len()];
            if fastrand::u32(..1_000) < unheard {
                continue;
            }
            if instance.registered {
                match server.renew(&service, &id, Some(instance.incarnation)) {
                    Ok(_) => break,
                    Err(Refused::NotServing) => continue,
                    Err(_) => lost.lock().push(*n),
                }
            }
            let mut request = request(*n);
            request.incarnation = Some(instance.incarnation);
            request.ttl = Millis(instance.lease);
            match server.register(service.clone(), id.clone(), request, Origin::v1()) {
                Ok(_) => {
                    instance.registered = true;
                    break;
                }
                Err(Refused::Later { incarnation }) => instance.incarnation = incarnation + 1,
                Err(_) => {}
            }
        }
    }
}

/// Counts what a watcher of everything sees go.
pub(crate) struct Removals {
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Removals {
    pub(crate) fn of(shared: &Shared) -> Self {
        let mut changes = shared.hub.subscribe();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let writing = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            use tokio::sync::broadcast::error::RecvError;
            loop {
                match changes.recv().await {
                    Ok(change) => {
                        let gone = change.delta.removed.iter();
                        writing
                            .lock()
                            .extend(gone.map(|id| format!("{}/{id}", change.service)));
                    }
                    Err(RecvError::Lagged(n)) => writing.lock().push(format!("missed {n}")),
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Self { seen, task }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().clone()
    }
}

impl Drop for Removals {
    fn drop(&mut self) {
        self.task.abort();
    }
}
