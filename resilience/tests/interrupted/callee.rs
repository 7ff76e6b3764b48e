//! The service below: takes its time, fails or panics where it is told to, and knows at the end
//! whether anything of it is still held.

use std::{
    error, fmt,
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use selvedge_resilience::{
    FailureClass, Rejected,
    layer::{Refusal, TransportError},
};
use tokio::time::Sleep;
use tower::Service;

/// What a call comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Good,
    /// Good, but only after [`LATE`]: a hedge overtakes it.
    Late,
    /// Good, but only after [`HANGS`]: a timeout cuts it short.
    Hangs,
    /// 503, and a body.
    Unavailable,
    /// No answer.
    Broken,
    /// A good head, and a body that breaks after its first frame.
    Cut,
}

pub(super) const LATE: Duration = Duration::from_millis(5);
pub(super) const HANGS: Duration = Duration::from_millis(60);

/// How the callee behaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Script {
    pub(super) name: &'static str,
    /// Polls before it is ready, the call's future and each frame of a body are there.
    pub(super) pending: u32,
    /// Its answers are gRPC's: a head is held until their first frame is there.
    pub(super) grpc: bool,
    /// Of each call in turn; good from then on.
    pub(super) replies: &'static [Reply],
}

impl Script {
    pub(super) fn is_healthy(&self) -> bool {
        let good = |reply: &Reply| matches!(reply, Reply::Good | Reply::Late);
        self.replies.iter().all(good)
    }
}

/// Where it panics, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// In the nth `poll_ready` of all.
    Ready(u32),
    /// In the nth `call`.
    Call(u32),
    /// In that poll of the nth call's future.
    Poll(u32, u32),
    /// In that poll of the nth call's body.
    Frame(u32, u32),
}

pub(super) const FRAMES: [&str; 3] = ["one", "two", "three"];

#[derive(Debug)]
struct Shared {
    script: Script,
    panics: Option<At>,
    panicked: AtomicBool,
    healed: AtomicBool,
    readied: AtomicU32,
    calls: AtomicU32,
    /// Futures and bodies that somebody holds.
    open: AtomicI64,
    misused: AtomicBool,
}

impl Shared {
    fn pass(&self, at: At) {
        let healed = self.healed.load(SeqCst);
        if self.panics == Some(at) && !healed && !self.panicked.swap(true, SeqCst) {
            // As a panic, but without a word on standard error.
            resume_unwind(Box::new("on purpose"));
        }
    }
}

/// Clones are the same callee, each with a readiness of its own.
#[derive(Debug)]
pub(super) struct Callee {
    shared: Arc<Shared>,
    waits: u32,
    is_ready: bool,
}

impl Clone for Callee {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            waits: self.shared.script.pending,
            is_ready: false,
        }
    }
}

impl Callee {
    pub(super) fn new(script: Script, panics: Option<At>) -> Self {
        Self {
            shared: Arc::new(Shared {
                script,
                panics,
                panicked: AtomicBool::new(false),
                healed: AtomicBool::new(false),
                readied: AtomicU32::new(0),
                calls: AtomicU32::new(0),
                open: AtomicI64::new(0),
                misused: AtomicBool::new(false),
            }),
            waits: script.pending,
            is_ready: false,
        }
    }

    /// From now on it does its work.
    pub(super) fn heal(&self) {
        self.shared.healed.store(true, SeqCst);
    }

    pub(super) fn has_panicked(&self) -> bool {
        self.shared.panicked.load(SeqCst)
    }

    /// Futures and bodies that somebody holds.
    pub(super) fn open(&self) -> i64 {
        self.shared.open.load(SeqCst)
    }

    /// Whether it was called without having been ready, or polled after its end.
    pub(super) fn was_misused(&self) -> bool {
        self.shared.misused.load(SeqCst)
    }
}

#[derive(Debug)]
pub(super) struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken")
    }
}

impl error::Error for Failed {}

impl TransportError for Failed {
    fn class(&self) -> FailureClass {
        FailureClass::Reset
    }
}

impl Refusal for Failed {
    fn refusal(&self) -> Option<Rejected> {
        None
    }
}

impl<B> Service<Request<B>> for Callee {
    type Response = Response<Frames>;
    type Error = Failed;
    type Future = Working;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let shared = &self.shared;
        shared.pass(At::Ready(shared.readied.fetch_add(1, SeqCst)));
        if self.waits > 0 {
            self.waits -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Working {
        let shared = &self.shared;
        if !std::mem::take(&mut self.is_ready) {
            shared.misused.store(true, SeqCst);
        }
        let nth = shared.calls.fetch_add(1, SeqCst);
        shared.pass(At::Call(nth));
        let script = &shared.script;
        let reply = if shared.healed.load(SeqCst) {
            Reply::Good
        } else {
            let scripted = script.replies.get(nth as usize);
            scripted.copied().unwrap_or(Reply::Good)
        };
        let takes = match reply {
            Reply::Late => Some(LATE),
            Reply::Hangs => Some(HANGS),
            _ => None,
        };
        Working {
            held: Held::new(shared, nth),
            reply,
            sleep: takes.map(|takes| Box::pin(tokio::time::sleep(takes))),
            polled: 0,
            done: false,
        }
    }
}

/// Counts as open while it lives.
#[derive(Debug)]
struct Held {
    shared: Arc<Shared>,
    nth: u32,
}

impl Held {
    fn new(shared: &Arc<Shared>, nth: u32) -> Self {
        shared.open.fetch_add(1, SeqCst);
        Self {
            shared: Arc::clone(shared),
            nth,
        }
    }

    fn misuse(&self) {
        self.shared.misused.store(true, SeqCst);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, SeqCst);
    }
}

#[derive(Debug)]
pub(super) struct Working {
    held: Held,
    reply: Reply,
    sleep: Option<Pin<Box<Sleep>>>,
    polled: u32,
    done: bool,
}

impl Future for Working {
    type Output = Result<Response<Frames>, Failed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.done {
            self.held.misuse();
        }
        let polled = self.polled;
        self.polled += 1;
        self.held.shared.pass(At::Poll(self.held.nth, polled));
        if polled < self.held.shared.script.pending {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(cx));
        }
        self.done = true;
        if self.reply == Reply::Broken {
            return Poll::Ready(Err(Failed));
        }
        let mut answer = Response::new(Frames {
            held: Held::new(&self.held.shared, self.held.nth),
            breaks: self.reply == Reply::Cut,
            polled: 0,
            sent: 0,
            done: false,
        });
        if self.reply == Reply::Unavailable {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        if self.held.shared.script.grpc {
            let kind = HeaderValue::from_static("application/grpc");
            answer.headers_mut().insert(CONTENT_TYPE, kind);
        }
        Poll::Ready(Ok(answer))
    }
}

/// Three frames, each after a while, and an end that comes as a surprise.
#[derive(Debug)]
pub(super) struct Frames {
    held: Held,
    breaks: bool,
    polled: u32,
    sent: usize,
    done: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        if self.done {
            self.held.misuse();
        }
        let polled = self.polled;
        self.polled += 1;
        self.held.shared.pass(At::Frame(self.held.nth, polled));
        if polled % (self.held.shared.script.pending + 1) != self.held.shared.script.pending {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.breaks && self.sent == 1 {
            self.done = true;
            return Poll::Ready(Some(Err(Failed)));
        }
        let Some(text) = FRAMES.get(self.sent) else {
            self.done = true;
            return Poll::Ready(None);
        };
        self.sent += 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(text.as_bytes())))))
    }
}
