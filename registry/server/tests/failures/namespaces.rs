//! Servers as processes on a network of the kernel's: each in a namespace of its own, on one bridge
//! whose ports can be taken down, and whose packets are dropped by a filter where they arrive. So
//! TCP is the kernel's too, with its own ideas of when to send again.
//!
//! Needs root, `ip` and `nft` (`.ci/clients` installs the two), and so is asked for by name: `.ci/test`
//! does, where it is root. `SELVEDGE_LOSS_SECONDS` loses for longer.

use std::{
    fs::File,
    net::SocketAddr,
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use selvedge_registry::{
    api::CatalogueDigest,
    client::{Discovery, RegistryClient},
    wire::MemberList,
};
use selvedge_registry_server::gossip::keyring;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use super::paused::get;
use crate::support::{digest, instance, name};

const SERVERS: usize = 3;
const SERVICE: &str = "orders";

/// Runs a program; its end must be a good one.
fn run(command: &str) {
    let mut words = command.split(' ');
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} (as root): {error}");
}

/// Deletes the namespaces of tests that were ended from without.
fn clear() {
    let all = Command::new("ip").args(["netns", "list"]).output();
    let all = all.expect("ip, as root").stdout;
    for line in String::from_utf8_lossy(&all).lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let of = name
            .strip_prefix("selvedge")
            .and_then(|rest| rest.split_once('-'));
        if of.is_some_and(|(pid, _)| !Path::new("/proc").join(pid).exists()) {
            run(&format!("ip netns delete {name}"));
        }
    }
}

/// Three namespaces with a server each, and one with the bridge between them.
struct Lan {
    name: String,
    servers: Vec<Child>,
}

impl Lan {
    fn new() -> Self {
        clear();
        let lan = Self {
            name: format!("selvedge{}", std::process::id()),
            servers: Vec::new(),
        };
        let bridge = lan.bridge();
        run(&format!("ip netns add {bridge}"));
        run(&format!("ip -n {bridge} link add br0 type bridge"));
        run(&format!("ip -n {bridge} link set br0 up"));
        for i in 0..SERVERS {
            let host = lan.host(i);
            let n = i + 1;
            run(&format!("ip netns add {host}"));
            run(&format!(
                "ip -n {bridge} link add v{i} type veth peer name e0 netns {host}"
            ));
            run(&format!("ip -n {bridge} link set v{i} master br0 up"));
            run(&format!("ip -n {host} addr add 10.77.0.{n}/24 dev e0"));
            run(&format!("ip -n {host} link set e0 up"));
            run(&format!("ip -n {host} link set lo up"));
        }
        lan
    }

    fn bridge(&self) -> String {
        format!("{}-b", self.name)
    }

    fn host(&self, i: usize) -> String {
        format!("{}-{i}", self.name)
    }

    /// The filter that drops so many packets of a hundred; zero: none.
    fn lose(&self, percent: u32) {
        for i in 0..SERVERS {
            let nft = format!("ip netns exec {} nft", self.host(i));
            if percent == 0 {
                run(&format!("{nft} delete table inet loss"));
                continue;
            }
            let hook = "{ type filter hook input priority 0 ; }";
            run(&format!("{nft} add table inet loss"));
            run(&format!("{nft} add chain inet loss arriving {hook}"));
            run(&format!(
                "{nft} add rule inet loss arriving iifname e0 numgen random mod 100 < {percent} drop"
            ));
        }
    }

    /// Takes the port of server `i` down, or up.
    fn plug(&self, i: usize, up: bool) {
        let state = if up { "up" } else { "down" };
        run(&format!("ip -n {} link set v{i} {state}", self.bridge()));
    }

    fn serve(&mut self, dir: &Path) {
        let key = dir.join("key");
        let made = keyring::generate().expect("random");
        std::fs::write(&key, &*made).expect("writes");
        let key = key.display();
        for i in 0..SERVERS {
            let n = i + 1;
            let text = format!(
                "node = \"n{n}\"\nhttp = \"10.77.0.{n}:7900\"\n[auth]\ninsecure = true\n\
                 [gossip]\nbind = \"10.77.0.{n}:7946\"\nkeys = [{{ file = \"{key}\" }}]\n\
                 seeds = [\"10.77.0.1:7946\", \"10.77.0.2:7946\", \"10.77.0.3:7946\"]\n\
                 join_timeout = \"1s\"\n[admin]\nbind = \"127.0.0.1:7901\"\n[telemetry]\nlog = \"warn\"\n",
            );
            let config = dir.join(format!("n{n}.toml"));
            std::fs::write(&config, text).expect("writes");
            let server = Command::new("ip")
                .args(["netns", "exec", &self.host(i)])
                .arg(env!("CARGO_BIN_EXE_selvedge-registry"))
                .arg("--config")
                .arg(&config)
                .stdout(Stdio::null())
                .spawn();
            self.servers.push(server.expect("starts"));
        }
    }

    /// Runs `work` on a thread of its own whose sockets are those of server `i`'s namespace.
    fn inside<T, F>(&self, i: usize, work: impl FnOnce() -> F + Send + 'static) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let path = format!("/run/netns/{}", self.host(i));
        std::thread::spawn(move || {
            let space = File::open(path).expect("the namespace");
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(space.as_fd(), kind).expect("as root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(work())
        })
    }

    fn ask<T, F>(&self, i: usize, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.inside(i, work).join().expect("no panic")
    }

    fn digests(&self) -> Vec<Option<CatalogueDigest>> {
        let all = 0..SERVERS;
        all.map(|i| self.ask(i, move || digest(api(i)))).collect()
    }

    fn evictions(&self) -> Vec<Option<u64>> {
        let count = |i| {
            self.ask(i, || async {
                let admin = SocketAddr::from(([127, 0, 0, 1], 7901));
                let text = get(admin, "/metrics").await?;
                let name = "selvedge_registry_evictions_total";
                let line = text.lines().find(|line| line.starts_with(name))?;
                line.rsplit(' ').next()?.parse().ok()
            })
        };
        (0..SERVERS).map(count).collect()
    }

    /// Servers that each knows to serve.
    fn serving(&self) -> Vec<usize> {
        let count = |i| {
            self.ask(i, move || async move {
                let text = get(api(i), "/v1/members").await?;
                let list: MemberList = serde_json::from_str(&text).ok()?;
                let serves = |m: &&selvedge_registry::wire::MemberInfo| {
                    m.state == selvedge_registry::wire::MemberState::Serving
                };
                Some(list.members.iter().filter(serves).count())
            })
        };
        (0..SERVERS).map(|i| count(i).unwrap_or(0)).collect()
    }

    /// All say the same, and hold so many.
    fn agree(&self, records: usize, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            let digests = self.digests();
            let first = digests.first().cloned().flatten();
            let holds = first.as_ref().is_some_and(|first| first.records == records);
            if holds && digests.iter().all(|digest| *digest == first) {
                return;
            }
            assert!(Instant::now() < deadline, "not in {within:?}: {digests:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _may_be_gone = server.kill();
            let _reaped = server.wait();
        }
        for name in (0..SERVERS).map(|i| self.host(i)).chain([self.bridge()]) {
            let mut delete = Command::new("ip");
            let _may_not_be_there = delete.args(["netns", "delete", &name]).output();
        }
    }
}

fn api(i: usize) -> SocketAddr {
    SocketAddr::from(([10, 77, 0, 1 + i as u8], 7900))
}

enum Order {
    /// One more instance.
    Register(u16),
    /// The least that a watcher has seen.
    Least(oneshot::Sender<usize>),
}

/// Instances and a watcher beside server `i`, with the real client library: the nearest server
/// first, the others if that does not answer.
async fn live(i: usize, mut orders: mpsc::Receiver<Order>) {
    let servers = (0..SERVERS).map(|n| api((i + n) % SERVERS).to_string());
    let client = RegistryClient::builder(servers).spawn();
    let watch = client.watch(&name(SERVICE));
    let register = |n: u16| {
        let mut one = instance(SERVICE, &format!("i{n}"), 4_000 + n);
        one.ttl = "10s".parse().expect("unit");
        client.register(one)
    };
    let first = 10 * i as u16;
    let mut held: Vec<_> = (first..first + 10).map(register).collect();
    let mut least = usize::MAX;
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Register(n)) => held.push(register(n)),
                Some(Order::Least(tell)) => {
                    let _asked_no_more = tell.send(least);
                }
                None => return,
            },
            () = sleep(Duration::from_millis(10)) => {
                let seen = watch.current().endpoints.len();
                // Not before everybody is there.
                if least < usize::MAX || seen == 10 * SERVERS {
                    least = least.min(seen);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs root, ip and nft; .ci/test runs it"]
fn loss_and_a_cut_on_a_real_network_lose_nobody() {
    let dir = tempfile::tempdir().expect("directory");
    let mut lan = Lan::new();
    lan.serve(dir.path());
    let deadline = Instant::now() + Duration::from_secs(20);
    while lan.serving() != [SERVERS; SERVERS] {
        assert!(Instant::now() < deadline, "{:?} serve", lan.serving());
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut beside = Vec::new();
    let mut threads = Vec::new();
    for i in 0..SERVERS {
        let (order, orders) = mpsc::channel(8);
        beside.push(order);
        threads.push(lan.inside(i, move || live(i, orders)));
    }
    let all = 10 * SERVERS;
    let soon = Duration::from_secs(10);
    lan.agree(all, soon);
    let least = |what: &str| {
        for (i, order) in beside.iter().enumerate() {
            let (tell, told) = oneshot::channel();
            let sent = order.blocking_send(Order::Least(tell));
            assert!(sent.is_ok(), "the thread lives");
            let least = told.blocking_recv().expect("an answer");
            assert_eq!(least, all, "{what}: a watcher beside {i} saw somebody go");
        }
        assert_eq!(lan.evictions(), [Some(0); SERVERS], "{what}");
    };
    least("before");
    lan.lose(25);
    let seconds = std::env::var_os("SELVEDGE_LOSS_SECONDS");
    let seconds = seconds
        .and_then(|text| text.into_string().ok()?.parse().ok())
        .unwrap_or(30);
    std::thread::sleep(Duration::from_secs(seconds));
    lan.lose(0);
    lan.agree(all, soon);
    least("a quarter of all packets lost");
    lan.plug(0, false);
    // Both sides are told of somebody.
    std::thread::sleep(Duration::from_secs(6));
    for (i, n) in [(0, 100), (1, 101)] {
        let sent = beside[i].blocking_send(Order::Register(n));
        assert!(sent.is_ok(), "the thread lives");
    }
    std::thread::sleep(Duration::from_secs(5));
    let held = lan.digests();
    let records: Vec<_> = held.iter().flatten().map(|digest| digest.records).collect();
    assert_eq!(records, [all + 1; SERVERS], "each side knows its own");
    assert_ne!(held[0], held[1], "and not the other's");
    lan.plug(0, true);
    lan.agree(all + 2, soon);
    least("one server cut off");
    drop(beside);
    for thread in threads {
        thread.join().expect("no panic");
    }
}
