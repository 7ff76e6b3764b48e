//! Whether the app can take calls: asked of the app itself, at a steady pace.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use selvedge_registry::AppProtocol;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::config::HealthFile;

/// Asks `app` until nobody listens any more; `verdict` holds what to make of it.
///
/// Begins with "not healthy": an app is put in by a good answer, never by the lack of a bad one.
pub(crate) async fn probe(
    app: SocketAddr,
    protocol: AppProtocol,
    health: HealthFile,
    verdict: watch::Sender<Result<(), String>>,
) {
    let mut ticks = interval(health.interval.0);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut good, mut bad) = (0, 0);
    while !verdict.is_closed() {
        ticks.tick().await;
        match ask(app, protocol, &health).await {
            Ok(()) => {
                (good, bad) = (good + 1, 0);
                if good >= health.healthy {
                    verdict.send_if_modified(|now| std::mem::replace(now, Ok(())).is_err());
                }
            }
            Err(why) => {
                (good, bad) = (0, bad + 1);
                if bad >= health.unhealthy {
                    verdict.send_if_modified(|now| {
                        let was_good = now.is_ok();
                        *now = Err(why);
                        was_good
                    });
                }
            }
        }
    }
}

async fn ask(app: SocketAddr, protocol: AppProtocol, health: &HealthFile) -> Result<(), String> {
    let limit = health.timeout.0;
    let answer = async {
        let stream = TcpStream::connect(app)
            .await
            .map_err(|error| format!("connect to {app}: {error}"))?;
        match &health.http {
            Some(path) => get(stream, app, protocol, path).await,
            None => Ok(()),
        }
    };
    let late = |_| Err(format!("{app} did not answer within {}", seconds(limit)));
    timeout(limit, answer).await.unwrap_or_else(late)
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

async fn get(
    stream: TcpStream,
    app: SocketAddr,
    protocol: AppProtocol,
    path: &str,
) -> Result<(), String> {
    let broke = |error: hyper::Error| format!("GET {path} of {app}: {error}");
    let request = |uri: String| {
        Request::get(uri)
            .header(header::USER_AGENT, "selvedge-sidecar probe")
            .body(Empty::<Bytes>::new())
            .map_err(|error| format!("GET {path} of {app}: {error}"))
    };
    let io = TokioIo::new(stream);
    let status = match protocol {
        AppProtocol::Http1 => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
                .await
                .map_err(broke)?;
            let driver = tokio::spawn(connection);
            let mut request = request(path.to_owned())?;
            let host = app.to_string().parse();
            request
                .headers_mut()
                .insert(header::HOST, host.map_err(|_| "no host".to_owned())?);
            let answer = sender.send_request(request).await.map_err(broke);
            driver.abort();
            answer?.status()
        }
        AppProtocol::H2c => {
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
                .await
                .map_err(broke)?;
            let driver = tokio::spawn(connection);
            let request = request(format!("http://{app}{path}"))?;
            let answer = sender.send_request(request).await.map_err(broke);
            driver.abort();
            answer?.status()
        }
    };
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!(
        "GET {path} of {app}: answered {status}, expected 200 to 399"
    ))
}
