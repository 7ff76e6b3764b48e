//! DNS as dig sees it (X3), over real sockets.

use std::net::SocketAddr;

use selvedge_registry_server::{RegistryConfig, RegistryServer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    process::Command,
};

use crate::support::{client, config, eventually, instance, start_with};

async fn serving(edit: impl FnOnce(&mut RegistryConfig)) -> (RegistryServer, SocketAddr) {
    let mut config = config("n1", &[]);
    config.dns.bind = Some(([127, 0, 0, 1], 0).into());
    edit(&mut config);
    let server = start_with(&config).await;
    eventually("serves", || async { server.shared().is_serving() }).await;
    let addr = server.dns_addr().expect("was asked for");
    (server, addr)
}

/// What dig prints.
async fn dig(to: SocketAddr, args: &[&str]) -> String {
    let port = to.port().to_string();
    let common = ["@127.0.0.1", "-p", &port, "+tries=1", "+time=5"];
    let run = Command::new("dig").args(common).args(args).output().await;
    let output = run.unwrap_or_else(|error| {
        panic!("dig cannot be run ({error}): install it, bind9-dnsutils on Debian")
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// The records of a section, in order of their text.
async fn records(to: SocketAddr, args: &[&str]) -> Vec<String> {
    let mut all = args.to_vec();
    all.extend(["+noall", "+answer"]);
    let text = dig(to, &all).await;
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines: Vec<String> = text.lines().filter(|l| !l.is_empty()).map(line).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn x3_dig_finds_addresses_ports_and_nothing_that_is_not_up() {
    let (server, to) = serving(|config| config.dns.ttl = "5s".parse().expect("unit")).await;
    let registry = client(&[&server]);
    let mut kept = Vec::new();
    for (id, port) in [("w1", 4001), ("w2", 4002)] {
        kept.push(registry.register(instance("web", id, port)));
    }
    let mut starting = instance("web", "w3", 4003);
    starting.status = selvedge_registry::InstanceStatus::Starting;
    kept.push(registry.register(starting));
    eventually("three", || async { server.shared().catalogue().len() == 3 }).await;

    assert_eq!(
        records(to, &["web.service.mesh"]).await,
        ["web.service.mesh. 5 IN A 127.0.0.1"]
    );
    assert_eq!(
        records(to, &["web.mesh"]).await,
        ["web.mesh. 5 IN A 127.0.0.1"]
    );
    let want = [
        "_web._tcp.service.mesh. 5 IN SRV 0 1 4001 w1.web.instance.mesh.",
        "_web._tcp.service.mesh. 5 IN SRV 0 1 4002 w2.web.instance.mesh.",
    ];
    assert_eq!(records(to, &["SRV", "_web._tcp.service.mesh"]).await, want);
    let full = dig(to, &["SRV", "_WEB._tcp.Service.mesh", "+noedns"]).await;
    assert!(full.contains("flags: qr aa rd;"), "{full}");
    assert!(
        full.contains("ANSWER: 2, AUTHORITY: 0, ADDITIONAL: 2"),
        "{full}"
    );
    assert!(
        full.contains("_WEB._tcp.Service.mesh."),
        "as it was asked: {full}"
    );
    let target = records(to, &["w2.web.instance.mesh", "A"]).await;
    assert_eq!(target, ["w2.web.instance.mesh. 5 IN A 127.0.0.1"]);
    let unknown = dig(to, &["nobody.service.mesh"]).await;
    assert!(unknown.contains("status: NXDOMAIN"), "{unknown}");
    assert!(
        unknown.contains("IN\tSOA\tns.mesh. hostmaster.mesh."),
        "{unknown}"
    );
    let elsewhere = dig(to, &["example.com"]).await;
    assert!(elsewhere.contains("status: REFUSED"), "{elsewhere}");
    let newer = dig(to, &["web.service.mesh", "+edns=1", "+noednsnegotiation"]).await;
    assert!(newer.contains("status: BADVERS"), "{newer}");
}

#[tokio::test]
async fn x3_what_does_not_fit_is_cut_and_tcp_has_it_whole() {
    let (server, to) = serving(|_| {}).await;
    let registry = client(&[&server]);
    let kept: Vec<_> = (0..40)
        .map(|i| registry.register(instance("many", &format!("instance-{i}"), 5000 + i)))
        .collect();
    eventually("all", || async { server.shared().catalogue().len() == 40 }).await;
    let name = ["SRV", "many.service.mesh"];
    let ask = |more: &'static [&'static str]| {
        let args: Vec<_> = name.iter().chain(more).copied().collect();
        async move { dig(to, &args).await }
    };
    let cut = ask(&["+noedns", "+ignore"]).await;
    assert!(cut.contains(" tc"), "{cut}");
    assert!(!cut.contains("ANSWER: 40"), "{cut}");
    let larger = ask(&["+bufsize=1232", "+ignore"]).await;
    assert!(larger.contains(" tc"), "{larger}");
    let whole = ask(&["+noedns"]).await;
    assert!(
        whole.contains("ANSWER: 40") && !whole.contains("flags: qr aa tc"),
        "{whole}"
    );
    let tcp = ask(&["+tcp"]).await;
    assert!(
        tcp.contains("ANSWER: 40, AUTHORITY: 0, ADDITIONAL: 41"),
        "with EDNS: {tcp}"
    );
    drop(kept);
}

#[tokio::test]
async fn a_server_that_is_catching_up_says_servfail() {
    let nowhere = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let mut config = config("n1", &[nowhere.local_addr().expect("address")]);
    config.dns.bind = Some(([127, 0, 0, 1], 0).into());
    config.gossip.join_timeout = "5s".parse().expect("unit");
    let server = start_with(&config).await;
    let to = server.dns_addr().expect("bound");
    assert!(!server.shared().is_serving());
    let answer = dig(to, &["web.service.mesh"]).await;
    assert!(answer.contains("status: SERVFAIL"), "{answer}");
}

/// `web.service.mesh`, A.
fn question(id: u16) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in ["web", "service", "mesh", ""] {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 1, 0, 1]);
    packet
}

#[tokio::test]
async fn who_asks_too_much_over_udp_is_sent_to_tcp() {
    let rate = |config: &mut RegistryConfig| {
        config.dns.per_client = "1/m burst 3".parse().expect("rate");
    };
    let (_server, to) = serving(rate).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let mut buffer = [0; 600];
    for n in 0..6u16 {
        socket.send_to(&question(n), to).await.expect("send");
        let (len, _) = socket.recv_from(&mut buffer).await.expect("answer");
        let (id, truncated) = (
            u16::from_be_bytes([buffer[0], buffer[1]]),
            buffer[2] & 2 != 0,
        );
        assert_eq!((id, truncated), (n, n >= 3));
        assert!(
            !truncated || len <= question(n).len(),
            "nobody is flooded with it"
        );
    }
    let tcp = dig(to, &["web.service.mesh", "+tcp"]).await;
    assert!(tcp.contains("status: NXDOMAIN"), "{tcp}");
}

#[tokio::test]
async fn a_connection_asks_often_and_wrong_ones_end() {
    let (_server, to) = serving(|config| config.dns.connections = 1).await;
    let framed = |packet: &[u8]| {
        let mut bytes = (packet.len() as u16).to_be_bytes().to_vec();
        bytes.extend_from_slice(packet);
        bytes
    };
    let mut stream = TcpStream::connect(to).await.expect("connect");
    // Two at once, in pieces.
    let both = [framed(&question(1)), framed(&question(2))].concat();
    for piece in both.chunks(7) {
        stream.write_all(piece).await.expect("write");
    }
    for id in [1, 2] {
        let len = stream.read_u16().await.expect("length");
        let mut answer = vec![0; usize::from(len)];
        stream.read_exact(&mut answer).await.expect("answer");
        assert_eq!(u16::from_be_bytes([answer[0], answer[1]]), id);
    }
    for wrong in [framed(b"x"), vec![0xff, 0xff, 0, 0], framed(&[0xff; 40])] {
        drop(stream);
        stream = TcpStream::connect(to).await.expect("connect");
        stream.write_all(&wrong).await.expect("write");
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest).await;
        assert!(ended.is_err() || rest.is_empty(), "{rest:?}");
    }
}

#[tokio::test]
async fn one_address_leaves_connections_to_the_others() {
    let (_server, to) = serving(|config| config.dns.connections = 8).await;
    let asks = async |from: &str| {
        let socket = TcpSocket::new_v4().expect("a socket");
        let from = format!("{from}:0").parse().expect("an address");
        socket.bind(from).expect("loopback");
        let mut stream = socket.connect(to).await.expect("the kernel takes it");
        let packet = question(1);
        let asked = [&(packet.len() as u16).to_be_bytes()[..], &packet].concat();
        // Closed at once, it may not even be written to.
        let _asked = stream.write_all(&asked).await;
        let mut answer = [0; 2];
        let answered = stream.read_exact(&mut answer).await.is_ok();
        answered.then_some(stream)
    };
    let held = [asks("127.0.0.1").await, asks("127.0.0.1").await];
    assert!(held.iter().all(Option::is_some));
    assert!(asks("127.0.0.1").await.is_none(), "a quarter of eight");
    assert!(asks("127.0.0.2").await.is_some(), "another");
    drop(held);
    eventually("its places are free", || async {
        asks("127.0.0.1").await.is_some()
    })
    .await;
}
