//! A network in memory whose links can be cut, slow and lossy, each in one direction: for tests and
//! benchmarks of the gossip, under tokio's paused time as well.
//!
//! Messages are handed over whole. With [`Net::measure`] each is also written and read by
//! chitchat's own channel transport, so that its bytes are known and its encoding is exercised.
//! With [`Net::sealed`] what travels is the datagrams that would be on a real network, through the
//! same code; that takes some ten times as long.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use async_trait::async_trait;
use chitchat::{
    ChitchatEnvelope, ChitchatMessage,
    transport::{ChannelTransport, RecvOutcome, SendOutcome, Socket, Transport},
};
use parking_lot::Mutex;
use selvedge_registry::Locality;
use tokio::sync::mpsc;

use super::{
    Gossip, Identity,
    keyring::{Key, Keyring},
    seal,
    traffic::{Form, Traffic},
    transport::{Datagrams, SealedTransport},
};
use crate::config::GossipConfig;

const CLUSTER: &str = "test";
/// Messages that wait for a node. As the sealed transport's.
const QUEUE: usize = 256;

/// One direction between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Link {
    /// Share of messages that are lost, 0 to 1.
    pub loss: f64,
    /// How long each takes.
    pub delay: Duration,
    /// How much longer some take: messages overtake each other.
    pub jitter: Duration,
}

impl Link {
    /// Nothing comes through.
    pub const CUT: Self = Self {
        loss: 1.0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
    };
}

/// What a node has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Messages; on a sealed network, datagrams.
    pub messages: u64,
    /// Their bytes as chitchat writes them; zero if not measured.
    pub bytes: u64,
    /// Bytes of the sealed datagrams that carry them, or would with digests in full.
    pub sealed_bytes: u64,
    /// Bytes of the largest digest.
    pub largest_digest: u64,
}

#[derive(Debug)]
enum Packet {
    Whole(RecvOutcome),
    Datagram(SocketAddr, Vec<u8>),
}

#[derive(Debug)]
struct Inner {
    nodes: HashMap<SocketAddr, mpsc::Sender<Packet>>,
    links: HashMap<(SocketAddr, SocketAddr), Link>,
    all: Link,
    rng: fastrand::Rng,
    sent: BTreeMap<SocketAddr, Sent>,
    measure: bool,
    /// The key, if it is sealed.
    key: Option<String>,
    traffic: Vec<Arc<Traffic>>,
}

/// The network. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Net(Arc<Mutex<Inner>>);

impl Net {
    /// A perfect network; `seed` decides what is lost once it is not.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            nodes: HashMap::new(),
            links: HashMap::new(),
            all: Link::default(),
            rng: fastrand::Rng::with_seed(seed),
            sent: BTreeMap::new(),
            measure: false,
            key: None,
            traffic: Vec::new(),
        })))
    }

    /// Whether who joins from now on sends sealed datagrams. All of one network must do the same.
    ///
    /// # Errors
    /// If there is no randomness for a key.
    pub fn sealed(&self, on: bool) -> anyhow::Result<()> {
        let key = super::keyring::generate()?;
        self.0.lock().key = on.then_some(key);
        Ok(())
    }

    /// Digests that were sent in this form by all, on a sealed network.
    pub fn digests(&self, form: Form) -> u64 {
        let inner = self.0.lock();
        inner
            .traffic
            .iter()
            .map(|traffic| traffic.digests(form))
            .sum()
    }

    /// How messages travel from now on, where nothing else is said.
    pub fn all(&self, link: Link) {
        self.0.lock().all = link;
    }

    /// How messages travel from `from` to `to` from now on.
    pub fn link(&self, from: SocketAddr, to: SocketAddr, link: Link) {
        self.0.lock().links.insert((from, to), link);
    }

    /// Cuts every link between the two sides, both ways.
    pub fn partition(&self, one: &[SocketAddr], other: &[SocketAddr]) {
        for a in one {
            for b in other {
                self.link(*a, *b, Link::CUT);
                self.link(*b, *a, Link::CUT);
            }
        }
    }

    /// Undoes every [`link`](Self::link) and [`partition`](Self::partition).
    pub fn heal(&self) {
        self.0.lock().links.clear();
    }

    /// Whether to count bytes from now on; it costs time.
    pub fn measure(&self, on: bool) {
        self.0.lock().measure = on;
    }

    /// What each node has sent since the last time.
    pub fn take_sent(&self) -> BTreeMap<SocketAddr, Sent> {
        std::mem::take(&mut self.0.lock().sent)
    }

    /// A server of this network, with gossip every `interval`.
    ///
    /// # Errors
    /// If its address is taken.
    pub async fn join(
        &self,
        n: u16,
        generation: u64,
        seeds: &[u16],
        interval: Duration,
    ) -> anyhow::Result<Gossip> {
        let config = config(seeds, interval);
        Gossip::join_over(identity(n, generation), addr(n), self, &config, None).await
    }

    fn bind(&self, listen: SocketAddr) -> anyhow::Result<mpsc::Receiver<Packet>> {
        let (node, received) = mpsc::channel(QUEUE);
        let mut inner = self.0.lock();
        let there = inner.nodes.get(&listen);
        let taken = there.is_some_and(|node| !node.is_closed());
        anyhow::ensure!(!taken, "{listen} is taken");
        inner.nodes.insert(listen, node);
        Ok(received)
    }

    fn deliver(&self, from: SocketAddr, to: SocketAddr, packet: Packet) {
        let (link, lost, extra) = {
            let mut inner = self.0.lock();
            let link = inner.links.get(&(from, to)).copied().unwrap_or(inner.all);
            let (lost, extra) = (inner.rng.f64() < link.loss, inner.rng.f64());
            (link, lost, extra)
        };
        if lost {
            return;
        }
        let delay = link.delay + link.jitter.mul_f64(extra);
        let hand_over = {
            let net = self.clone();
            move || {
                let node = net.0.lock().nodes.get(&to).cloned();
                // A queue that is full, or a node that is gone, loses it: as UDP does.
                let _lost_or_not = node.map(|node| node.try_send(packet));
            }
        };
        if delay.is_zero() {
            hand_over();
        } else {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                hand_over();
            });
        }
    }
}

/// The address of node `n`.
pub fn addr(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 1_000 + n))
}

/// Node `n`, as it names itself.
pub fn identity(n: u16, generation: u64) -> Identity {
    Identity {
        node: format!("n{n}").into(),
        generation,
        cluster: CLUSTER.to_owned(),
        http: SocketAddr::from(([10, 0, 0, 1], 7_900)),
        locality: Locality::default(),
    }
}

/// Gossip every `interval`, with the nodes `seeds` as seeds.
pub fn config(seeds: &[u16], interval: Duration) -> GossipConfig {
    let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    GossipConfig {
        seeds: seeds.iter().map(|n| addr(*n).to_string()).collect(),
        interval: selvedge_resilience::config::Millis::new(millis),
        ..GossipConfig::default()
    }
}

#[async_trait]
impl Transport for Net {
    async fn open(&self, listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let received = self.bind(listen)?;
        let key = self.0.lock().key.clone();
        if let Some(key) = key {
            let keys = Keyring::new([Key::parse(&key)?], true, true)?;
            let traffic = Arc::new(Traffic::default());
            self.0.lock().traffic.push(Arc::clone(&traffic));
            let port = Port {
                net: self.clone(),
                local: listen,
                received,
            };
            let port = Box::new(port);
            let sealed = SealedTransport::over(port, CLUSTER, keys.into(), traffic, Vec::new());
            return sealed.open(listen).await;
        }
        let codec = ChannelTransport::with_mtu(super::fragment::MAX_MESSAGE);
        let out = codec.open(addr(0)).await?;
        let back = codec.open(addr(1)).await?;
        Ok(Box::new(MemorySocket {
            net: self.clone(),
            local: listen,
            received,
            out,
            back,
        }))
    }
}

struct MemorySocket {
    net: Net,
    local: SocketAddr,
    received: mpsc::Receiver<Packet>,
    /// The two ends of what writes and reads.
    out: Box<dyn Socket>,
    back: Box<dyn Socket>,
}

#[async_trait]
impl Socket for MemorySocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.local)
    }

    async fn send(
        &mut self,
        to: SocketAddr,
        mut envelope: ChitchatEnvelope,
    ) -> anyhow::Result<SendOutcome> {
        let digest = matches!(envelope.message, ChitchatMessage::Syn { .. });
        let mut bytes = 0;
        let measure = self.net.0.lock().measure;
        if measure {
            bytes = self.out.send(addr(1), envelope).await?.num_bytes_sent;
            envelope = self.back.recv().await?.envelope;
        }
        {
            let mut inner = self.net.0.lock();
            let sent = inner.sent.entry(self.local).or_default();
            sent.messages += 1;
            sent.bytes += bytes as u64;
            sent.sealed_bytes += seal::sealed_len(bytes) as u64;
            if digest {
                sent.largest_digest = sent.largest_digest.max(bytes as u64);
            }
        }
        let outcome = RecvOutcome {
            from_addr: self.local,
            envelope,
            num_bytes_received: bytes,
        };
        self.net.deliver(self.local, to, Packet::Whole(outcome));
        Ok(SendOutcome {
            num_bytes_sent: bytes,
        })
    }

    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        loop {
            match self.received.recv().await.context("the network is gone")? {
                Packet::Whole(outcome) => return Ok(outcome),
                // Of a network that is sealed only since.
                Packet::Datagram(..) => {}
            }
        }
    }
}

/// A node's end of a sealed network.
struct Port {
    net: Net,
    local: SocketAddr,
    received: mpsc::Receiver<Packet>,
}

#[async_trait]
impl Datagrams for Port {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    async fn recv_from(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            match self.received.recv().await {
                Some(Packet::Datagram(from, datagram)) => {
                    let length = datagram.len().min(buffer.len());
                    buffer[..length].copy_from_slice(&datagram[..length]);
                    return Ok((length, from));
                }
                Some(Packet::Whole(_)) => {}
                None => return Err(io::ErrorKind::NotConnected.into()),
            }
        }
    }

    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        {
            let mut inner = self.net.0.lock();
            let sent = inner.sent.entry(self.local).or_default();
            sent.messages += 1;
            sent.sealed_bytes += datagram.len() as u64;
        }
        let packet = Packet::Datagram(self.local, datagram.to_vec());
        self.net.deliver(self.local, to, packet);
        Ok(datagram.len())
    }
}
