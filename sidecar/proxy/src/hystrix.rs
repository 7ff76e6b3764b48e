//! `/hystrix.stream`: every destination, twice a second, for whoever has the old dashboard.
//!
//! The body makes its own events when its time comes, so a subscriber is neither a task nor a
//! queue: a slow one is polled later, one that leaves drops the body, and nothing is left of it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{Either, Full};
use selvedge_resilience::hystrix::Watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::{
    Destination, UpstreamKey,
    observed::{Observed, Side},
    seats::{SEATS, Seat, Seats},
};

/// Between two rounds of events. Source: Hystrix's stream servlet.
const PERIOD: Duration = Duration::from_millis(500);

/// The body of an event stream; ends when it is dropped.
#[derive(Debug)]
pub struct HystrixStream {
    observed: Arc<Observed>,
    ticks: Interval,
    watched: Vec<(Weak<Destination>, Watch<UpstreamKey>)>,
    _seat: Seat,
}

/// The stream, or why there is none.
pub type HystrixBody = Either<HystrixStream, Full<Bytes>>;

pub(crate) fn answer(observed: &Arc<Observed>, of: &Arc<Seats>) -> Response<HystrixBody> {
    let Some(seat) = Seat::take(of) else {
        let why = format!("MaxConcurrentConnections reached: {SEATS}");
        let mut refusal = Response::new(Either::Right(Full::from(why)));
        *refusal.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return refusal;
    };
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stream = HystrixStream {
        observed: Arc::clone(observed),
        ticks,
        watched: Vec::new(),
        _seat: seat,
    };
    // What happens before the first event is looked at counts already.
    stream.look();
    let mut answer = Response::new(Either::Left(stream));
    let fields = [
        (header::CONTENT_TYPE, "text/event-stream;charset=UTF-8"),
        (
            header::CACHE_CONTROL,
            "no-cache, no-store, max-age=0, must-revalidate",
        ),
        (header::PRAGMA, "no-cache"),
    ];
    for (name, value) in fields {
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    answer
}

impl HystrixStream {
    /// Watches who is there, and those only.
    fn look(&mut self) -> Vec<(Side, Arc<Destination>)> {
        let there = self.observed.destinations();
        let is = |weak: &Weak<Destination>, it: &Arc<Destination>| {
            std::ptr::eq(weak.as_ptr(), Arc::as_ptr(it))
        };
        self.watched
            .retain(|(weak, _)| there.iter().any(|(_, it)| is(weak, it)));
        // Both are in the order of sides and names.
        for (n, (_, it)) in there.iter().enumerate() {
            if !self.watched.get(n).is_some_and(|(weak, _)| is(weak, it)) {
                let watch = it.stack().watch();
                self.watched.insert(n, (Arc::downgrade(it), watch));
            }
        }
        there
    }

    fn events(&mut self) -> String {
        let (there, at) = (self.look(), SystemTime::now());
        let mut events = String::new();
        for ((side, it), (_, watch)) in there.iter().zip(&self.watched) {
            match side {
                Side::Client => watch.write("services", at, &mut events),
                // A service may have the app's name.
                Side::App => {
                    let name = format!("app_{}", it.name());
                    watch.write_as(&name, "app", at, &mut events);
                }
            }
        }
        if events.is_empty() {
            events.push_str("ping: \n\n");
        }
        events
    }
}

impl Body for HystrixStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        ready!(self.ticks.poll_tick(cx));
        Poll::Ready(Some(Ok(Frame::data(self.events().into()))))
    }
}
