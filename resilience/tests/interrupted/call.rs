//! A call that is made one poll at a time, and only when somebody has woken it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{Full, combinators::UnsyncBoxBody};
use selvedge_resilience::layer::BoxError;
use tower::{Service, util::BoxCloneService};

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;
/// Any service of the table.
pub(super) type Subject = BoxCloneService<Request<Full<Bytes>>, Answer, String>;

type Future = <Subject as Service<Request<Full<Bytes>>>>::Future;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Status, and all of its body.
    Answered(u16, String),
    /// Refused by a policy, broken, or with a body that broke.
    Failed(String),
    Panicked,
}

impl End {
    pub(super) fn is_good(&self) -> bool {
        let whole = super::callee::FRAMES.concat();
        matches!(self, Self::Answered(200, text) if *text == whole)
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

enum At {
    Readying(Subject),
    Ready(Subject),
    Calling(Future),
    Reading(u16, String, UnsyncBoxBody<Bytes, BoxError>),
    Over,
}

pub(super) struct Call {
    at: At,
    woken: Arc<Woken>,
    waker: Waker,
    end: Option<End>,
}

impl Call {
    pub(super) fn new(service: Subject) -> Self {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        Self {
            at: At::Readying(service),
            waker: Waker::from(Arc::clone(&woken)),
            woken,
            end: None,
        }
    }

    /// Whether it has been handed to the service.
    pub(super) fn is_made(&self) -> bool {
        !matches!(self.at, At::Readying(_) | At::Ready(_))
    }

    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Goes one poll further, if it has been woken; whether it did.
    pub(super) fn step(&mut self) -> bool {
        if self.end.is_some() || !self.woken.0.swap(false, SeqCst) {
            return false;
        }
        match catch_unwind(AssertUnwindSafe(|| self.advance())) {
            Ok(None) => {}
            Ok(Some(end)) => self.end = Some(end),
            // What is left of it is dropped now, as a task's is.
            Err(_) => self.end = Some(End::Panicked),
        }
        if self.end.is_some() {
            self.at = At::Over;
        }
        true
    }

    fn again(&self) -> Option<End> {
        self.woken.0.store(true, SeqCst);
        None
    }

    fn advance(&mut self) -> Option<End> {
        let waker = self.waker.clone();
        let cx = &mut Context::from_waker(&waker);
        match &mut self.at {
            At::Readying(service) => match service.poll_ready(cx) {
                Poll::Pending => None,
                Poll::Ready(Err(error)) => Some(End::Failed(error)),
                Poll::Ready(Ok(())) => {
                    let At::Readying(service) = std::mem::replace(&mut self.at, At::Over) else {
                        unreachable!("just looked at");
                    };
                    self.at = At::Ready(service);
                    self.again()
                }
            },
            At::Ready(service) => {
                let request = Request::get("http://callee/x").body(Full::default());
                let future = service.call(request.expect("valid"));
                self.at = At::Calling(future);
                self.again()
            }
            At::Calling(future) => match future.as_mut().poll(cx) {
                Poll::Pending => None,
                Poll::Ready(Err(error)) => Some(End::Failed(error)),
                Poll::Ready(Ok(answer)) => {
                    let (head, body) = answer.into_parts();
                    self.at = At::Reading(head.status.as_u16(), String::new(), body);
                    self.again()
                }
            },
            At::Reading(status, text, body) => match Pin::new(body).poll_frame(cx) {
                Poll::Pending => None,
                Poll::Ready(None) => Some(End::Answered(*status, std::mem::take(text))),
                Poll::Ready(Some(Err(error))) => Some(End::Failed(error.to_string())),
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        text.push_str(&String::from_utf8_lossy(&data));
                    }
                    self.again()
                }
            },
            At::Over => unreachable!("it has ended"),
        }
    }
}
