//! When others see a change.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use super::{
    Args,
    fill::{Fleet, zone},
    http::Http,
    ms, quantiles,
    report::Report,
};

/// What a change is known by.
const MARK: &[u8] = br#""bench-seq":""#;
/// What the removal of one that crashes is known by.
const REMOVED: &[u8] = br#""removed":["crashing-"#;
/// How many crash, at most.
const CRASHES: usize = 30;
/// Their leases. Source: short enough to wait for, and none is judged by less than a second.
const CRASHING: Duration = Duration::from_secs(5);
/// Connections that write to each server.
const WRITERS: usize = 4;
/// Changes that the watchers of one service are shown.
const SHOWN: u64 = 20;

/// When each change was seen by one watcher, in nanoseconds after the start; 0: not yet.
struct Seen {
    base: Instant,
    at: Vec<AtomicU64>,
}

impl Seen {
    fn new(base: Instant, changes: usize) -> Arc<Self> {
        let at = (0..changes).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { base, at })
    }

    fn note(&self, seq: usize) {
        if let Some(at) = self.at.get(seq) {
            let now = self.base.elapsed().as_nanos() as u64;
            // The first time counts.
            let _seen_before = at.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn at(&self, seq: usize) -> Option<Duration> {
        let at = self.at[seq].load(Ordering::Relaxed);
        (at > 0).then(|| Duration::from_nanos(at))
    }
}

/// Opens a watch; returns once it is in step, and from then on notes the number after each `mark`.
async fn watch(
    addr: SocketAddr,
    what: &str,
    mark: &'static [u8],
    seen: Arc<Seen>,
) -> anyhow::Result<JoinHandle<()>> {
    let path = format!("/v1/watch?service={what}");
    let mut body = Http::connect(addr).await?.stream(&path).await?;
    let mut rest = Vec::new();
    while !next(&mut body, &mut rest)
        .await?
        .windows(13)
        .any(|w| w == b"event: synced")
    {}
    Ok(tokio::spawn(async move {
        while let Ok(events) = next(&mut body, &mut rest).await {
            let mut events = &events[..];
            while let Some(at) = events.windows(mark.len()).position(|w| w == mark) {
                events = &events[at + mark.len()..];
                let digits = events.iter().take_while(|b| b.is_ascii_digit());
                let seq = digits.fold(0, |n, b| n * 10 + usize::from(b - b'0'));
                seen.note(seq);
            }
        }
    }))
}

/// Whole events, as many as there are.
async fn next(body: &mut Incoming, rest: &mut Vec<u8>) -> anyhow::Result<Vec<u8>> {
    loop {
        let frame = body.frame().await.context("the watch ended")??;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        if let Some(end) = rest.windows(2).rposition(|w| w == b"\n\n") {
            let after = rest.split_off(end + 2);
            return Ok(std::mem::replace(rest, after));
        }
    }
}

/// Writes to all servers, watched on all of them.
pub(super) async fn everywhere(
    report: &mut Report,
    args: &Args,
    fleet: &Arc<Fleet>,
) -> anyhow::Result<()> {
    let changes = usize::try_from(args.writes * args.seconds)? + 1;
    let base = Instant::now();
    let mut watches = Vec::new();
    let mut by_server = Vec::new();
    for addr in &fleet.homes {
        let seen = Seen::new(base, changes);
        watches.push(watch(*addr, "*", MARK, Arc::clone(&seen)).await?);
        by_server.push(seen);
    }
    let sent = Seen::new(base, changes);
    let answered = Seen::new(base, changes);
    let mut writers = JoinSet::new();
    let writing = fleet.homes.len() * WRITERS;
    let began = Instant::now();
    for writer in 0..writing {
        let (fleet, sent, answered) = (Arc::clone(fleet), Arc::clone(&sent), Arc::clone(&answered));
        let rate = args.writes as f64;
        writers.spawn(async move {
            let addr = fleet.home(writer);
            let mut client = Http::connect(addr).await?;
            // From 1 on, as everybody has registered with 0. Each change is due at its own time,
            // and counted from when it was really sent.
            for seq in (writer + 1..changes).step_by(writing) {
                tokio::time::sleep_until(began + Duration::from_secs_f64(seq as f64 / rate)).await;
                // An instance of this server, each once.
                let homes = fleet.homes.len();
                let n = (seq * 7919 % (fleet.instances / homes)) * homes + writer % homes;
                sent.note(seq);
                let body = fleet.document(n, seq as u64);
                client.done("PUT", &fleet.path(n), body).await?;
                answered.note(seq);
            }
            anyhow::Ok(())
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    let took = began.elapsed();
    sleep(Duration::from_secs(2)).await;
    let (mut latest, mut local, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for seq in 1..changes {
        let from = sent.at(seq).context("a change was not sent")?;
        let seen: Option<Vec<_>> = by_server.iter().map(|seen| seen.at(seq)).collect();
        let seen = seen.with_context(|| format!("change {seq} was not seen everywhere"))?;
        let since = |at: Duration| at.saturating_sub(from);
        latest.push(seen.iter().copied().map(since).max().unwrap_or_default());
        local.push(seen.iter().copied().map(since).min().unwrap_or_default());
        answers.push(since(
            answered.at(seq).context("a change was not answered")?,
        ));
    }
    for task in watches {
        task.abort();
    }
    let (p50, p99) = quantiles(&mut latest);
    let rate = (changes - 1) as f64 / took.as_secs_f64();
    let renewals = args.renewals;
    let what =
        format!("a change seen on all servers, at {rate:.0} writes/s and {renewals} renewals/s");
    report.most(&format!("{what}, p50"), p50, 20.0, "ms");
    report.most("… p99", p99, 100.0, "ms");
    let (p50, p99) = quantiles(&mut local);
    report.note(
        "… on the first of them, p50 / p99",
        &format!("{p50:.1} / {p99:.1} ms"),
    );
    let (p50, p99) = quantiles(&mut answers);
    report.note("… answered, p50 / p99", &format!("{p50:.1} / {p99:.1} ms"));
    Ok(())
}

/// One service and many who watch it, spread over the servers.
pub(super) async fn to_watchers(
    report: &mut Report,
    args: &Args,
    fleet: &Arc<Fleet>,
) -> anyhow::Result<()> {
    const FIRST: u64 = 1;
    let base = Instant::now();
    let changes = usize::try_from(SHOWN)? + 1;
    let service = fleet.service(0);
    let (mut watches, mut all) = (Vec::new(), Vec::new());
    for n in 0..args.watchers {
        let seen = Seen::new(base, changes);
        let opened = watch(fleet.home(n), &service, MARK, Arc::clone(&seen)).await;
        watches.push(opened.with_context(|| format!("open watch {n}"))?);
        all.push(seen);
    }
    let mut client = Http::connect(fleet.home(0)).await?;
    let (mut each, mut last) = (Vec::new(), Vec::new());
    for seq in FIRST..=SHOWN {
        sleep(Duration::from_millis(300)).await;
        let sent = base.elapsed();
        client
            .done("PUT", &fleet.path(0), fleet.document(0, seq))
            .await?;
        let seq = usize::try_from(seq)?;
        let complete = async {
            while all.iter().any(|seen| seen.at(seq).is_none()) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let complete = timeout(Duration::from_secs(5), complete).await;
        ensure!(complete.is_ok(), "a watcher did not see change {seq}");
        let seen = all.iter().filter_map(|seen| seen.at(seq));
        let took: Vec<_> = seen.map(|at| at.saturating_sub(sent)).collect();
        last.push(took.iter().max().copied().unwrap_or_default());
        each.extend(took);
    }
    for task in watches {
        task.abort();
    }
    let worst = last.iter().max().copied().unwrap_or_default();
    let watchers = args.watchers;
    report.most(
        &format!("{watchers} watchers of one service, the last of them, worst of {SHOWN} changes"),
        ms(worst),
        150.0,
        "ms",
    );
    let (p50, p99) = quantiles(&mut each);
    report.note(
        "… each of them, p50 / p99",
        &format!("{p50:.1} / {p99:.1} ms"),
    );
    Ok(())
}

/// Instances that renew their lease once and then never again: when each is gone from every server.
pub(super) async fn of_crashes(report: &mut Report, fleet: &Arc<Fleet>) -> anyhow::Result<()> {
    let base = Instant::now();
    // More at once would be taken for a fault of the network.
    let crashes = (fleet.instances / 100).clamp(1, CRASHES);
    let (mut watches, mut by_server) = (Vec::new(), Vec::new());
    for addr in &fleet.homes {
        let seen = Seen::new(base, crashes);
        watches.push(watch(*addr, "crashing", REMOVED, Arc::clone(&seen)).await?);
        by_server.push(seen);
    }
    let mut last = Vec::new();
    for n in 0..crashes {
        // Spread over more than a round of whatever looks for them.
        sleep(Duration::from_millis(37)).await;
        let mut client = Http::connect(fleet.home(n)).await?;
        let path = format!("/v1/services/crashing/instances/crashing-{n:06}");
        let ttl = CRASHING.as_secs();
        let zone = zone(n * 7);
        let document = format!(
            r#"{{"addr":"10.255.0.{n}:80","ttl":"{ttl}s","locality":{{"region":"eu","zone":"{zone}"}}}}"#
        );
        client.done("PUT", &path, document.into_bytes()).await?;
        last.push(base.elapsed());
        client
            .done("PUT", &format!("{path}/lease"), Vec::new())
            .await?;
    }
    let gone = async {
        let all = |seen: &Arc<Seen>| (0..crashes).all(|n| seen.at(n).is_some());
        while !by_server.iter().all(all) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let gone = timeout(CRASHING * 4, gone).await;
    ensure!(gone.is_ok(), "one that crashed was not removed everywhere");
    for task in watches {
        task.abort();
    }
    let mut took = Vec::new();
    for (n, last) in last.into_iter().enumerate() {
        let seen = by_server.iter().filter_map(|seen| seen.at(n));
        let (first, all) = seen.fold((Duration::MAX, Duration::ZERO), |(least, most), at| {
            (least.min(at), most.max(at))
        });
        ensure!(
            first >= last + CRASHING,
            "removed before its lease was over"
        );
        took.push(all.saturating_sub(last + CRASHING));
    }
    let worst = took.iter().max().copied().unwrap_or_default();
    report.most(
        &format!("one that crashed is gone everywhere, after its lease, worst of {crashes}"),
        worst.as_secs_f64(),
        1.0,
        "s",
    );
    Ok(())
}
