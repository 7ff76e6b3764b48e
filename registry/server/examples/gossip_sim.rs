//! What the gossip does in a cluster of up to fifty servers, in simulated time.
//!
//! ```text
//! cargo run --profile quick -p selvedge-registry-server --example gossip_sim
//! cargo run --profile quick -p selvedge-registry-server --example gossip_sim -- traffic death
//! ```
//!
//! Parts: `traffic` (bytes and messages by the number of servers), `death` (how long until everybody
//! knows of a killed server), `hour` (an hour with a tenth of all messages lost: who is wrongly
//! accused), `restarts` (a thousand restarts of one server within a grace period). All by default.
//! The network loses by a seed; whom chitchat gossips with is its own dice, so figures differ a
//! little from run to run. Figures of ours: `registry/docs/numbers.md`.
#![expect(clippy::print_stdout, reason = "this program prints a report")]

use std::time::Duration;

use anyhow::Context;
use selvedge_registry_server::gossip::{
    Event, Gossip,
    testing::{Link, Net, addr},
    traffic::Form,
};
use tokio::time::{Instant, sleep};

const INTERVAL: Duration = Duration::from_millis(500);
const MINUTE: Duration = Duration::from_secs(60);
const LOSSY: Link = Link {
    loss: 0.1,
    delay: Duration::from_millis(1),
    jitter: Duration::from_millis(5),
};

type Part = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> anyhow::Result<()> {
    let parts: [Part; 4] = [
        ("traffic", || simulate(traffic())),
        ("death", || simulate(death())),
        ("hour", || simulate(hour())),
        ("restarts", || simulate(restarts())),
    ];
    let asked: Vec<String> = std::env::args().skip(1).collect();
    for (name, part) in parts {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            part().context(name)?;
        }
    }
    Ok(())
}

fn simulate(part: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()?
        .block_on(part)
}

/// Datagrams as they are on a real network.
fn net(seed: u64) -> anyhow::Result<Net> {
    let net = Net::new(seed);
    net.sealed(true)?;
    Ok(net)
}

fn heard(gossip: &Gossip) -> usize {
    let members = gossip.members();
    let members = members.borrow();
    members
        .values()
        .filter(|member| member.is_present())
        .count()
}

async fn until(mut so: impl FnMut() -> bool) -> anyhow::Result<Duration> {
    let start = Instant::now();
    while !so() {
        anyhow::ensure!(start.elapsed() < 5 * MINUTE, "not in five minutes");
        sleep(Duration::from_millis(10)).await;
    }
    Ok(start.elapsed())
}

/// `n` servers, started over one interval; the first three are everybody's seeds.
async fn cluster(net: &Net, n: u16) -> anyhow::Result<Vec<Gossip>> {
    let mut all = Vec::new();
    for i in 0..n {
        all.push(net.join(i, 1, &[0, 1, 2], INTERVAL).await?);
        sleep(INTERVAL / u32::from(n)).await;
    }
    until(|| all.iter().all(|gossip| heard(gossip) == usize::from(n))).await?;
    Ok(all)
}

fn failures(all: &[Gossip]) -> u64 {
    all.iter().map(|g| g.event_counts().of(Event::Failed)).sum()
}

async fn traffic() -> anyhow::Result<()> {
    println!("traffic of one server, without loss, gossip every {INTERVAL:?}, over a minute:");
    println!(
        "servers  datagrams/s  sealed bytes/s  with UDP and IP  digests in full, again of 1000"
    );
    for n in [3, 10, 20, 35, 50] {
        let net = net(u64::from(n))?;
        let all = cluster(&net, n).await?;
        sleep(MINUTE).await;
        net.take_sent();
        let digests = || [Form::Full, Form::Again, Form::Short].map(|form| net.digests(form));
        let before = digests();
        sleep(MINUTE).await;
        let sent = net.take_sent();
        let after = digests();
        let form = |i: usize| (after[i] - before[i]) as f64;
        let of_1000 = |i| form(i) / (form(0) + form(2)) * 1e3;
        let each = |of: fn(&selvedge_registry_server::gossip::testing::Sent) -> u64| {
            sent.values().map(of).sum::<u64>() as f64 / f64::from(n) / MINUTE.as_secs_f64()
        };
        println!(
            "{n:7}  {:11.1}  {:14.0}  {:15.0}  {:15.1}  {:14.1}",
            each(|sent| sent.messages),
            each(|sent| sent.sealed_bytes),
            each(|sent| sent.sealed_bytes + 28 * sent.messages),
            of_1000(0),
            of_1000(1),
        );
        drop(all);
    }
    Ok(())
}

async fn death() -> anyhow::Result<()> {
    println!("until everybody knows that one of 50 was killed, at a tenth of messages lost:");
    let net = net(50)?;
    let mut all = cluster(&net, 50).await?;
    net.all(LOSSY);
    let mut rng = fastrand::Rng::with_seed(50);
    let mut took = Vec::new();
    let mut expected = failures(&all);
    for generation in 2..22 {
        sleep(MINUTE + INTERVAL.mul_f64(rng.f64())).await;
        let before = failures(&all) - expected;
        anyhow::ensure!(before == 0, "{before} accusations before a kill");
        let n = rng.u16(3..50);
        drop(all.remove(usize::from(n)));
        let accused = failures(&all);
        let there: Vec<usize> = all.iter().map(heard).collect();
        took.push(until(|| all.iter().all(|gossip| heard(gossip) == 49)).await?);
        let accusations = failures(&all) - accused;
        anyhow::ensure!(
            accusations == 49,
            "{accusations} accusations instead of 49; {there:?} were heard of before"
        );
        let back = net.join(n, generation, &[0, 1, 2], INTERVAL).await?;
        all.insert(usize::from(n), back);
        until(|| all.iter().all(|gossip| heard(gossip) == 50)).await?;
        expected = failures(&all);
    }
    took.sort();
    let (least, median, most) = (took[0], took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{} kills: least {least:?}, median {median:?}, most {most:?}",
        took.len()
    );
    anyhow::ensure!(most <= Duration::from_secs(5), "more than five seconds");
    Ok(())
}

async fn hour() -> anyhow::Result<()> {
    let net = net(60)?;
    let all = cluster(&net, 50).await?;
    net.all(LOSSY);
    sleep(60 * MINUTE).await;
    let wrongly = failures(&all);
    println!("an hour of 50 servers at a tenth of messages lost: {wrongly} wrong accusations");
    anyhow::ensure!(wrongly == 0, "somebody was accused");
    Ok(())
}

async fn restarts() -> anyhow::Result<()> {
    let net = Net::new(70);
    let all = cluster(&net, 3).await?;
    net.measure(true);
    for generation in 1..=1_000 {
        let restarted = net.join(9, generation, &[0], INTERVAL).await?;
        sleep(INTERVAL / 2).await;
        drop(restarted);
        sleep(Duration::from_millis(1)).await;
    }
    let last = net.join(9, 1_001, &[0], INTERVAL).await?;
    let digest = |net: &Net| {
        let sent = net.take_sent();
        let of_seed = sent.get(&addr(0)).copied().unwrap_or_default();
        of_seed.largest_digest
    };
    let largest = digest(&net);
    let known = until(|| all.iter().all(|gossip| heard(gossip) == 4)).await?;
    sleep(16 * MINUTE).await;
    digest(&net);
    sleep(MINUTE).await;
    println!(
        "1000 restarts of one server in four minutes, without its backoff: largest digest {largest} \
         bytes of 65,400; the last life known after {known:?}; {} bytes 16 minutes later",
        digest(&net)
    );
    anyhow::ensure!(largest < 60_000, "too near to what chitchat can bear");
    drop(last);
    Ok(())
}
