//! The sockets.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::op::Message;
use selvedge_registry::node::listen::{self, ListenError};
use selvedge_resilience::{
    keyed::KeyedConfig,
    rate_limit::{KeyedRateLimit, KeyedRateLimitConfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
};

use super::{
    DnsConfig,
    packet::{self, Cut, MAX_QUESTION, Question, Read},
    zone::Zone,
};
use crate::{limits::Addresses, server::Shared};

/// How long a connection may be silent, and one exchange may take. Source: RFC 7766 §6.2.3
/// recommends seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ports that are tried where any is wanted: UDP and TCP need the same.
const TRIES: usize = 16;

/// One address, bound for UDP and TCP.
#[derive(Debug)]
pub(super) struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
    addr: SocketAddr,
}

impl Sockets {
    pub(super) fn bind(addr: SocketAddr) -> Result<Self, ListenError> {
        let error = |cause| ListenError {
            what: "DNS".to_owned(),
            addr,
            cause,
        };
        let mut tries = if addr.port() == 0 { TRIES } else { 1 };
        loop {
            let tcp = listen::bind("DNS", addr)?;
            let addr = tcp.local_addr().map_err(error)?;
            match std::net::UdpSocket::bind(addr) {
                Ok(udp) => {
                    udp.set_nonblocking(true).map_err(error)?;
                    return Ok(Self { udp, tcp, addr });
                }
                Err(cause) if tries <= 1 => return Err(error(cause)),
                Err(_) => tries -= 1,
            }
        }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// What every question needs.
struct Answerer {
    zone: Zone,
    shared: Arc<Shared>,
    config: DnsConfig,
    limit: KeyedRateLimit<IpAddr>,
}

impl Answerer {
    fn answer(&self, question: Question, rng: &mut fastrand::Rng) -> Message {
        let catalogue = self.shared.is_serving().then(|| self.shared.catalogue());
        self.zone.answer(question, catalogue.as_deref(), rng)
    }

    fn over_udp(&self, packet: &[u8], from: IpAddr, rng: &mut fastrand::Rng) -> Option<Vec<u8>> {
        let limit = self.config.udp_payload;
        match packet::read(packet, limit) {
            Read::Drop => None,
            Read::Refused(frame) => Some(packet::write(&frame, limit, Cut::Truncated)),
            Read::Question(mut question) => {
                let now = tokio::time::Instant::now().into_std();
                if self.limit.try_acquire(&client(from), now).is_err() {
                    // No longer than the question: nobody can be flooded with it. Who is not
                    // forged asks again over TCP.
                    question.frame.metadata.truncation = true;
                    return question.frame.to_vec().ok();
                }
                let payload = question.payload;
                let answer = self.answer(*question, rng);
                Some(packet::write(&answer, payload, Cut::Truncated))
            }
        }
    }

    fn over_tcp(&self, packet: &[u8], rng: &mut fastrand::Rng) -> Option<Vec<u8>> {
        let answer = match packet::read(packet, self.config.udp_payload) {
            Read::Drop => return None,
            Read::Refused(frame) => *frame,
            Read::Question(question) => self.answer(*question, rng),
        };
        Some(packet::write(&answer, u16::MAX, Cut::Silently))
    }
}

/// Whom an address stands for: a host has a whole /64 of IPv6 to itself. A socket for both kinds
/// shows all of IPv4 in one /64.
fn client(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        from @ IpAddr::V4(_) => from,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// Answers for ever.
pub(super) async fn run(sockets: Sockets, zone: Zone, shared: Arc<Shared>, config: DnsConfig) {
    let rate = KeyedRateLimitConfig {
        rate: config.per_client,
        keys: KeyedConfig::default(),
    };
    let opened = (
        UdpSocket::from_std(sockets.udp),
        TcpListener::from_std(sockets.tcp),
        KeyedRateLimit::new(rate),
    );
    let (Ok(udp), Ok(tcp), Ok(limit)) = opened else {
        tracing::error!(addr = %sockets.addr, "the runtime does not take DNS's sockets");
        return;
    };
    let connections = config.connections;
    let answerer = Arc::new(Answerer {
        zone,
        shared,
        config,
        limit,
    });
    tracing::info!(addr = %sockets.addr, "dns");
    tokio::join!(
        serve_udp(udp, Arc::clone(&answerer)),
        serve_tcp(tcp, answerer, connections)
    );
}

async fn serve_udp(socket: UdpSocket, answerer: Arc<Answerer>) {
    let mut rng = fastrand::Rng::new();
    let mut buffer = vec![0; MAX_QUESTION + 1];
    loop {
        let (len, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Such as ECONNREFUSED for an earlier answer; anything lasting must not spin.
                tracing::debug!(%error, "receive over UDP failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        if let Some(answer) = answerer.over_udp(&buffer[..len], from.ip(), &mut rng)
            && let Err(error) = socket.send_to(&answer, from).await
        {
            tracing::debug!(%error, client = %from, "answer over UDP failed");
        }
    }
}

async fn serve_tcp(listener: TcpListener, answerer: Arc<Answerer>, connections: usize) {
    let slots = Arc::new(Semaphore::new(connections));
    // Ends the connections when this is dropped.
    let mut open = JoinSet::new();
    // A resolver asks one thing after the other; whoever wants more is not one.
    let addresses = Addresses::new(connections.div_ceil(4));
    loop {
        while open.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(counted) = addresses.one_more(from.ip()) else {
                    tracing::debug!(client = %from, "too many DNS connections from this address");
                    continue;
                };
                let answerer = Arc::clone(&answerer);
                open.spawn(async move {
                    let served = serve_connection(stream, &answerer).await;
                    if let Err(error) = served {
                        tracing::debug!(%error, client = %from, "DNS connection ended");
                    }
                    // In this order: who gets the slot is counted anew.
                    drop((counted, slot));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a DNS connection failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Answers one connection's questions in turn, until it is silent, done, or wrong.
async fn serve_connection(mut stream: TcpStream, answerer: &Answerer) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut rng = fastrand::Rng::new();
    let mut buffer = Vec::new();
    loop {
        let exchange = async {
            let len = match stream.read_u16().await {
                Ok(len) => usize::from(len),
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            };
            if len > MAX_QUESTION {
                return Ok(false);
            }
            buffer.resize(len, 0);
            stream.read_exact(&mut buffer).await?;
            let Some(answer) = answerer.over_tcp(&buffer, &mut rng) else {
                return Ok(false);
            };
            let len = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
            let mut framed = len.to_be_bytes().to_vec();
            framed.extend_from_slice(&answer);
            stream.write_all(&framed).await?;
            Ok(true)
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart_whatever_the_socket_shows_them_as() {
        let of = |text: &str| client(text.parse().expect("an address"));
        assert_ne!(of("::ffff:10.0.0.1"), of("::ffff:10.0.0.2"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}
