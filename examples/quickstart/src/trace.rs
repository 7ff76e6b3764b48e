//! One request's trace, found again in everybody's log.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::load::HOST;

/// Who a look at a product goes through. One of each must have seen the trace.
const WAY: [&str; 6] = [
    "gateway-",
    "storefront-",
    "catalog-*.sidecar",
    "catalog-*.app",
    "pricing-*.sidecar",
    "pricing-*.app",
];
/// Access logs are written at least once a second.
const PATIENCE: Duration = Duration::from_secs(4);

/// A trace and who has seen it.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) id: String,
    /// In the order of the way.
    pub(crate) seen_by: Vec<String>,
    /// Those of the way that nobody stands for.
    pub(crate) missing: Vec<&'static str>,
}

/// Looks at a product through `gateway` under a trace of its own, and finds that in `logs`.
///
/// # Errors
/// If the request itself fails.
pub(crate) async fn follow(gateway: SocketAddr, logs: &Path) -> anyhow::Result<Trace> {
    let id = format!("{:016x}{:016x}", fastrand::u64(1..), fastrand::u64(1..));
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let request = Request::get(format!("http://{gateway}/products/1"))
        .header(header::HOST, HOST)
        .header(
            "traceparent",
            format!("00-{id}-{:016x}-01", fastrand::u64(1..)),
        )
        .body(Empty::new())?;
    let status = client.request(request).await?.status();
    anyhow::ensure!(status.is_success(), "look at a product: {status}");
    let started = tokio::time::Instant::now();
    loop {
        let trace = find(&id, logs)?;
        if trace.missing.is_empty() || started.elapsed() > PATIENCE {
            return Ok(trace);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn find(id: &str, logs: &Path) -> anyhow::Result<Trace> {
    let mut names = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(logs)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = name.strip_suffix(".log") else {
            continue;
        };
        if std::fs::read_to_string(&path).is_ok_and(|text| text.contains(id)) {
            names.insert(name.strip_suffix(".access").unwrap_or(name).to_owned());
        }
    }
    let mut trace = Trace {
        id: id.to_owned(),
        seen_by: Vec::new(),
        missing: Vec::new(),
    };
    for stop in WAY {
        match names.iter().find(|name| is(name, stop)) {
            Some(name) => trace.seen_by.push(name.clone()),
            None => trace.missing.push(stop),
        }
    }
    Ok(trace)
}

fn is(name: &str, stop: &str) -> bool {
    match stop.split_once('*') {
        Some((start, end)) => name.starts_with(start) && name.ends_with(end),
        None => name.starts_with(stop),
    }
}
