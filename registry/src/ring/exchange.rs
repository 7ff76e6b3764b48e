//! One request to another instance: connections that are kept, and the certainty whether the
//! request was sent.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Idle connections kept to one instance. A guess: forwarding has bursts of about as many.
const IDLE: usize = 32;
/// Instances that idle connections are kept to; those that left leave with the next sweep.
const KEPT: usize = 1024;

type Sender = http1::SendRequest<Full<Bytes>>;

/// Why there was no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// The other has not seen the request: trying again is safe.
    NotSent(std::io::Error),
    /// The other may have acted on it.
    Unanswered(hyper::Error),
}

/// Connections to the other members.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool(Arc<Mutex<HashMap<Arc<str>, Vec<Sender>>>>);

impl Pool {
    /// Sends `request` to `address`. Dropping the future closes the connection it used.
    pub(super) async fn send(
        &self,
        address: &Arc<str>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failed> {
        loop {
            let kept = self.take(address);
            let reused = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => connect(address).await.map_err(Failed::NotSent)?,
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.give_back_when_read(address, sender);
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    // It had been closed while it was idle; nothing was sent.
                    Some(back) if reused => request = back,
                    Some(_) => {
                        return Err(Failed::NotSent(std::io::Error::other(error.into_error())));
                    }
                    None => return Err(Failed::Unanswered(error.into_error())),
                },
            }
        }
    }

    fn take(&self, address: &str) -> Option<Sender> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.get_mut(address)?;
        while let Some(sender) = senders.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    /// A connection takes its next request once the answer's body has been read.
    fn give_back_when_read(&self, address: &Arc<str>, mut sender: Sender) {
        let (pool, address) = (self.clone(), Arc::clone(address));
        tokio::spawn(async move {
            if sender.ready().await.is_err() {
                return;
            }
            let mut idle = pool.0.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() >= KEPT && !idle.contains_key(&address) {
                idle.retain(|_, senders| {
                    senders.retain(|sender| !sender.is_closed());
                    !senders.is_empty()
                });
            }
            let senders = idle.entry(address).or_default();
            if senders.len() < IDLE {
                senders.push(sender);
            }
        });
    }
}

async fn connect(address: &str) -> std::io::Result<Sender> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(std::io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a ring member ended");
        }
    });
    Ok(sender)
}
