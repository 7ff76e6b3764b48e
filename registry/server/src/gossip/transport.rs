//! chitchat's datagrams, sealed on their way out and opened on their way in.
//!
//! chitchat keeps the writing and reading of its messages to itself, so a transport of one's own
//! never sees bytes. This one borrows chitchat's own UDP socket to do it: over loopback to itself.
//!
//! ```text
//!            send: U writes to P           ┌─────────────┐ datagrams of 1,200 bytes
//! chitchat ◄──────────────────────► U ◄──► P   sealer    E ◄─────────────────────► network
//!            receive: P writes to U, U reads
//! ```
//!
//! One task owns the sockets; chitchat talks to it over two bounded queues, so giving up a receive
//! loses nothing. Two hops over loopback for each message cost some 30 µs; there are about ten
//! messages a second and server.
//!
//! A message that chitchat cannot read makes U read on without a word. So each message that goes
//! into U is followed by a short one that is known to be good, from a socket of its own: when that
//! one comes out, the one before it has come out or never will.
//!
//! # Guarantees
//! Nothing reaches U but from P and that other socket; what another process of this machine
//! sends there is dropped. Queues are bounded, and what does not fit is dropped and counted, as
//! the network would.
//!
//! # What it does not do
//! Keep other users of this machine from sending to U, where chitchat reads (though not believes)
//! what they send.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use async_trait::async_trait;
use chitchat::{
    ChitchatEnvelope, ChitchatMessage, ProtocolVersion,
    transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpTransport},
};
use parking_lot::Mutex;
use selvedge_registry::node::cidr::Cidr;
use tokio::{net::UdpSocket, sync::mpsc, time::timeout};

use super::{
    compact::{Compactor, Incoming},
    fragment::{MAX_DATAGRAM, MAX_MESSAGE, PATIENCE},
    keyring::Keyring,
    seal::{Opened, Sealer},
    traffic::{DropReason, Traffic},
};

/// Messages that may wait for chitchat, and for the network. A guess: chitchat handles thousands
/// in a second.
const QUEUE: usize = 256;
/// How long loopback is given. A guess: it takes microseconds, unless the process is stopped.
const LOOPBACK: Duration = Duration::from_secs(1);

/// Where datagrams go to and come from.
#[async_trait]
pub trait Datagrams: Send + Sync + 'static {
    /// Where it is reached.
    ///
    /// # Errors
    /// If it is not open any more.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The next datagram, as much of it as fits, and whom it is from. Cancel-safe.
    ///
    /// # Errors
    /// If there is none; the next may come.
    async fn recv_from(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Sends one.
    ///
    /// # Errors
    /// If it was not sent; the next may be.
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize>;
}

#[async_trait]
impl Datagrams for UdpSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    async fn recv_from(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        UdpSocket::recv_from(self, buffer).await
    }

    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        UdpSocket::send_to(self, datagram, to).await
    }
}

/// Sealed gossip over UDP.
pub struct SealedTransport {
    /// Taken by the first `open`.
    socket: Mutex<Option<Box<dyn Datagrams>>>,
    cluster: String,
    keys: Arc<Keyring>,
    traffic: Arc<Traffic>,
    allowed: Arc<[Cidr]>,
}

impl std::fmt::Debug for SealedTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedTransport")
            .field("keys", &self.keys)
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}

impl SealedTransport {
    /// Over `socket`, which is bound. Datagrams from elsewhere than `allowed` are dropped unread,
    /// unless it is empty.
    ///
    /// # Errors
    /// If the socket cannot be used.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn new(
        socket: std::net::UdpSocket,
        cluster: &str,
        keys: Arc<Keyring>,
        traffic: Arc<Traffic>,
        allowed: Vec<Cidr>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = Box::new(UdpSocket::from_std(socket)?);
        Ok(Self::over(socket, cluster, keys, traffic, allowed))
    }

    /// Over anything that carries datagrams.
    #[doc(hidden)]
    pub fn over(
        socket: Box<dyn Datagrams>,
        cluster: &str,
        keys: Arc<Keyring>,
        traffic: Arc<Traffic>,
        allowed: Vec<Cidr>,
    ) -> Self {
        Self {
            socket: Mutex::new(Some(socket)),
            cluster: cluster.to_owned(),
            keys,
            traffic,
            allowed: allowed.into(),
        }
    }
}

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.socket.lock().take();
        let external = socket.context("this gossip socket is open already")?;
        let local = external.local_addr()?;
        let traffic = Arc::clone(&self.traffic);
        let sealer = Sealer::new(&self.cluster, Arc::clone(&self.keys), Arc::clone(&traffic))?;
        let compactor = Compactor::new(&self.cluster, Arc::clone(&traffic));
        let codec = Codec::open().await?;
        let (to_chitchat, received) = mpsc::channel(QUEUE);
        let (outbound, to_send) = mpsc::channel(QUEUE);
        let owner = Owner {
            external,
            codec,
            compactor,
            sealer,
            traffic: Arc::clone(&traffic),
            allowed: Arc::clone(&self.allowed),
            to_chitchat,
        };
        tokio::spawn(owner.run(to_send));
        Ok(Box::new(SealedSocket {
            local,
            received,
            outbound,
            traffic,
        }))
    }
}

struct SealedSocket {
    local: SocketAddr,
    received: mpsc::Receiver<RecvOutcome>,
    outbound: mpsc::Sender<(SocketAddr, ChitchatEnvelope)>,
    traffic: Arc<Traffic>,
}

#[async_trait]
impl Socket for SealedSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.local)
    }

    async fn send(
        &mut self,
        to: SocketAddr,
        envelope: ChitchatEnvelope,
    ) -> anyhow::Result<SendOutcome> {
        use mpsc::error::TrySendError;
        match self.outbound.try_send((to, envelope)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.traffic.dropped(DropReason::QueueFull),
            Err(TrySendError::Closed(_)) => anyhow::bail!("the gossip socket's task has ended"),
        }
        // What it amounts to is not known yet; `Traffic` counts it. chitchat does not ask.
        Ok(SendOutcome { num_bytes_sent: 0 })
    }

    /// Cancel-safe.
    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        let received = self.received.recv().await;
        received.context("the gossip socket's task has ended")
    }
}

/// Owns the sockets until chitchat drops its end.
struct Owner {
    external: Box<dyn Datagrams>,
    codec: Codec,
    compactor: Compactor,
    sealer: Sealer,
    traffic: Arc<Traffic>,
    allowed: Arc<[Cidr]>,
    to_chitchat: mpsc::Sender<RecvOutcome>,
}

impl Owner {
    async fn run(mut self, mut to_send: mpsc::Receiver<(SocketAddr, ChitchatEnvelope)>) {
        // One byte more, so that what is too long is seen to be.
        let mut buffer = [0; MAX_DATAGRAM + 1];
        let mut expire = tokio::time::interval(PATIENCE / 2);
        expire.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                got = self.external.recv_from(&mut buffer) => match got {
                    Ok((length, from)) => self.receive(from, &mut buffer[..length]).await,
                    // A peer that is gone (ICMP), or no memory: the next may come.
                    Err(error) => {
                        tracing::debug!(%error, "receive gossip");
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                },
                envelope = to_send.recv() => match envelope {
                    Some((to, envelope)) => self.send(to, envelope).await,
                    None => return,
                },
                _ = expire.tick() => self.sealer.expire(now()),
            }
        }
    }

    async fn receive(&mut self, from: SocketAddr, datagram: &mut [u8]) {
        let bytes = datagram.len();
        self.traffic.received(bytes);
        let allowed = |net: &Cidr| net.contains(from.ip());
        if !self.allowed.is_empty() && !self.allowed.iter().any(allowed) {
            self.traffic.dropped(DropReason::Forbidden);
            return;
        }
        match self.sealer.open(from, datagram, now()) {
            Opened::Nothing => {}
            Opened::Answer(datagrams) => self.put_out(from, &datagrams).await,
            Opened::Message(message) => self.receive_message(from, bytes, message).await,
        }
    }

    async fn receive_message(&mut self, from: SocketAddr, bytes: usize, message: Vec<u8>) {
        match self.compactor.incoming(from, message, now()) {
            Incoming::Nothing => {}
            Incoming::Answer(message) => {
                let datagrams = self.sealer.seal(from, &message, now());
                self.put_out(from, &datagrams).await;
            }
            Incoming::Message(message) => {
                let Some(envelope) = self.codec.decode(&message).await else {
                    self.traffic.dropped(DropReason::Undecodable);
                    return;
                };
                let outcome = RecvOutcome {
                    from_addr: from,
                    envelope,
                    num_bytes_received: bytes,
                };
                if self.to_chitchat.try_send(outcome).is_err() {
                    self.traffic.dropped(DropReason::QueueFull);
                }
            }
        }
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) {
        let digest = matches!(envelope.message, ChitchatMessage::Syn { .. });
        let Some(message) = self.codec.encode(envelope).await else {
            self.traffic.dropped(DropReason::SendFailed);
            return;
        };
        if digest && self.traffic.digest_was(message.len()) {
            tracing::warn!(
                bytes = message.len(),
                "gossip's digest is large: too many servers, or too many restarts"
            );
        }
        let message = self.compactor.outgoing(to, message, now());
        let datagrams = self.sealer.seal(to, &message, now());
        self.put_out(to, &datagrams).await;
    }

    async fn put_out(&self, to: SocketAddr, datagrams: &[Vec<u8>]) {
        for datagram in datagrams {
            match self.external.send_to(datagram, to).await {
                Ok(bytes) => self.traffic.sent(bytes),
                Err(error) => {
                    tracing::debug!(peer = %to, %error, "send gossip");
                    self.traffic.dropped(DropReason::SendFailed);
                    return;
                }
            }
        }
    }
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

/// Writes and reads chitchat's messages by its own socket.
struct Codec {
    /// chitchat's: U.
    theirs: Box<dyn Socket>,
    theirs_addr: SocketAddr,
    /// P.
    ours: UdpSocket,
    ours_addr: SocketAddr,
    /// Where the short good message comes from.
    marker: UdpSocket,
    marker_addr: SocketAddr,
    good: Vec<u8>,
    buffer: Box<[u8]>,
    /// Something may be left over in a socket.
    dirty: bool,
}

impl Codec {
    async fn open() -> anyhow::Result<Self> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let theirs = UdpTransport.open(loopback).await?;
        let theirs_addr = theirs.local_addr()?;
        let socket = || async {
            let socket = UdpSocket::bind(loopback).await?;
            // From now on it hears nobody else.
            socket.connect(theirs_addr).await?;
            let addr = socket.local_addr()?;
            io::Result::Ok((socket, addr))
        };
        let (ours, ours_addr) = socket().await.context("open a loopback socket")?;
        let (marker, marker_addr) = socket().await.context("open a loopback socket")?;
        let mut codec = Self {
            theirs,
            theirs_addr,
            ours,
            ours_addr,
            marker,
            marker_addr,
            good: Vec::new(),
            buffer: vec![0; MAX_MESSAGE].into(),
            dirty: false,
        };
        let short = ChitchatEnvelope {
            version: ProtocolVersion::V0,
            message: ChitchatMessage::BadCluster,
        };
        let good = codec.encode(short).await.context("write over loopback")?;
        codec.good = good.to_vec();
        Ok(codec)
    }

    /// The bytes of a message; `None` if loopback does not work.
    async fn encode(&mut self, envelope: ChitchatEnvelope) -> Option<&[u8]> {
        // What is left of one that took too long.
        while self.ours.try_recv(&mut self.buffer).is_ok() {}
        self.theirs.send(self.ours_addr, envelope).await.ok()?;
        let received = timeout(LOOPBACK, self.ours.recv(&mut self.buffer)).await;
        let length = received.ok()?.ok()?;
        Some(&self.buffer[..length])
    }

    /// The message of these bytes; `None` if they are not one.
    async fn decode(&mut self, bytes: &[u8]) -> Option<ChitchatEnvelope> {
        if std::mem::take(&mut self.dirty) {
            while timeout(Duration::ZERO, self.theirs.recv()).await.is_ok() {}
        }
        self.ours.send(bytes).await.ok()?;
        self.marker.send(&self.good).await.ok()?;
        let mut decoded = None;
        let read_to_marker = async {
            loop {
                let outcome = self.theirs.recv().await?;
                if outcome.from_addr == self.marker_addr {
                    return anyhow::Ok(());
                }
                if outcome.from_addr == self.ours_addr {
                    decoded = Some(outcome.envelope);
                }
            }
        };
        if !matches!(timeout(LOOPBACK, read_to_marker).await, Ok(Ok(()))) {
            self.dirty = true;
            tracing::warn!(address = %self.theirs_addr, "gossip's loopback socket does not answer");
        }
        decoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_chitchat_cannot_read_does_not_hold_up_what_it_can() {
        let mut codec = Codec::open().await.expect("loopback");
        let envelope = || ChitchatEnvelope {
            version: ProtocolVersion::V0,
            message: ChitchatMessage::BadCluster,
        };
        let good = codec.encode(envelope()).await.expect("written").to_vec();
        let from_another = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        for round in 0..50u8 {
            assert_eq!(codec.decode(&[round; 30]).await, None);
            assert_eq!(codec.decode(&[]).await, None);
            from_another
                .send_to(&good, codec.theirs_addr)
                .await
                .expect("sent");
            assert_eq!(codec.decode(&[round; 3]).await, None, "not another's");
            assert_eq!(codec.decode(&good).await, Some(envelope()));
        }
    }
}
