//! The client-side throttle around any HTTP service.

use super::{Admission, AnyFailure, Moment, PolicyLayer};
use crate::{
    outcome::Rejected,
    throttle::{self, Throttle},
};

impl Admission for Throttle {
    type Permit = throttle::Permit;
    fn admit(&self, now: &mut Moment) -> Result<throttle::Permit, Rejected> {
        self.try_acquire(now.instant())
    }
}

/// Keeps calls back while the callee refuses most of them.
///
/// It counts what the callee makes of a call, so it stands outside the breaker and the limits; with
/// layers of this module further in, say [`judge(ByClass)`](PolicyLayer::judge), or their refusals
/// count as the callee's.
pub type ThrottleLayer<J = AnyFailure> = PolicyLayer<Throttle, J>;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        convert::Infallible,
        panic::AssertUnwindSafe,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        time::{Duration, Instant},
    };

    use bytes::Bytes;
    use futures_util::FutureExt;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

    use super::*;
    use crate::{
        Reason, Rng,
        bulkhead::Bulkhead,
        layer::{BulkheadLayer, ByClass, Error},
        throttle::{Counts, Form, ThrottleConfig},
    };

    fn throttle() -> Throttle {
        let config = ThrottleConfig {
            form: Form::Accepts { k: 2.0 },
            ..ThrottleConfig::default()
        };
        Throttle::new(config, Rng::new(7)).expect("valid")
    }

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn answers(status: u16) -> Response<Full<Bytes>> {
        let body = Full::from("x");
        let answer = Response::builder().status(status);
        answer.body(body).expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn a_callee_that_refuses_is_asked_less_and_one_that_is_back_is_noticed() {
        let (core, asked) = (throttle(), Arc::new(AtomicU64::new(0)));
        let status = Arc::new(AtomicU64::new(429));
        let service = {
            let (asked, status) = (Arc::clone(&asked), Arc::clone(&status));
            ThrottleLayer::new(core.clone()).layer(service_fn(move |_: Request<()>| {
                asked.fetch_add(1, Ordering::Relaxed);
                let status = status.load(Ordering::Relaxed) as u16;
                async move { Ok::<_, Infallible>(answers(status)) }
            }))
        };
        let call = || async {
            let answer = service.clone().oneshot(Request::new(())).await?;
            answer.into_body().collect().await.expect("a body");
            Ok::<_, Error<Infallible>>(())
        };
        for _ in 0..1_000 {
            if let Err(Error::Rejected(rejected)) = call().await {
                assert_eq!(rejected.reason, Reason::Throttled);
            }
        }
        let (sent, refused) = (asked.load(Ordering::Relaxed), core.rejected());
        assert_eq!(sent + refused, 1_000);
        assert!(sent < 200, "one in ten gets through: {sent}");
        status.store(200, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(60)).await;
        for _ in 0..30_000 {
            drop(call().await);
        }
        let before = core.rejected();
        for _ in 0..100 {
            drop(call().await);
        }
        assert_eq!(core.rejected(), before, "half and more are accepted again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_counts_when_its_body_has_ended_and_not_if_it_was_given_up() {
        let core = throttle();
        let layer = ThrottleLayer::new(core.clone());
        let good = layer.layer(service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(answers(200))
        }));
        let answer = good.clone().oneshot(Request::new(())).await;
        assert_eq!(core.counts(now()), Counts::default(), "it is not over");
        answer
            .expect("an answer")
            .into_body()
            .collect()
            .await
            .expect("a body");
        let one = Counts {
            requests: 1,
            accepts: 1,
        };
        assert_eq!(core.counts(now()), one);
        drop(good.oneshot(Request::new(())).await);
        assert_eq!(core.counts(now()), one, "nobody waited for its end");
        let hangs = layer.layer(service_fn(|_: Request<()>| async {
            std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
        }));
        let call = hangs.oneshot(Request::new(()));
        assert!(
            tokio::time::timeout(Duration::from_secs(1), call)
                .await
                .is_err()
        );
        assert_eq!(core.counts(now()), one);
        let falls = layer.layer(service_fn(|request: Request<()>| async move {
            assert!(request.headers().contains_key("nothing"), "on purpose");
            Ok::<_, Infallible>(answers(200))
        }));
        let call = AssertUnwindSafe(falls.oneshot(Request::new(()))).catch_unwind();
        assert!(call.await.is_err());
        assert_eq!(core.counts(now()), one);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_policy_further_in_refuses_is_not_the_callee_s_word() {
        let core = throttle();
        let service = ServiceBuilder::new()
            .layer(ThrottleLayer::new(core.clone()).judge(ByClass))
            .layer(BulkheadLayer::new(Bulkhead::new(0)))
            .map_err(|never: Infallible| match never {})
            .service(service_fn(|_: Request<()>| async {
                Ok::<_, Infallible>(answers(200))
            }));
        let service = service.map_err(|error: Error<Error<Infallible>>| Error::flat(error));
        for _ in 0..50 {
            let refused = service.clone().oneshot(Request::new(())).await;
            assert_eq!(
                refused.expect_err("full").rejected().map(|r| r.reason),
                Some(Reason::Full)
            );
        }
        assert_eq!(
            (core.counts(now()), core.rejected()),
            (Counts::default(), 0)
        );
    }
}
