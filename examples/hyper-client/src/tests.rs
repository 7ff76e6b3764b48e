//! The client against real backends over loopback.

use selvedge_resilience::{Policy, Reason, breaker::State};

use super::*;

async fn backends() -> anyhow::Result<(Vec<Backend>, Orders)> {
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(Backend::start().await?);
    }
    let orders = client(POLICY, backends.iter().map(Backend::addr))?;
    Ok((backends, orders))
}

async fn all_good(orders: &Orders, calls: u32) {
    for number in 0..calls {
        let answer = order(orders, number).await;
        assert_eq!(answer.expect("answered"), format!("/orders/{number}\n"));
    }
}

#[tokio::test]
async fn a_backend_that_is_killed_costs_no_call() -> anyhow::Result<()> {
    let (mut backends, orders) = backends().await?;
    all_good(&orders, 60).await;
    for backend in &backends {
        assert!(backend.asked() > 0, "each takes part");
    }
    let dead = backends.pop().expect("three").addr();
    all_good(&orders, 100).await;
    let status = orders.stack().status();
    let budget = status.budget.expect("the policy has retries");
    assert!(budget.made > 0, "its calls went elsewhere");
    assert_eq!(budget.rejected, 0, "within the budget");
    let of_dead = status.endpoints.iter().find(|it| it.key == dead);
    assert!(of_dead.expect("a member still").failed > 0);
    Ok(())
}

#[tokio::test]
async fn a_backend_that_answers_errors_is_left_out() -> anyhow::Result<()> {
    let (backends, orders) = backends().await?;
    backends[0].set_broken(true);
    all_good(&orders, 200).await;
    assert_eq!(orders.stack().balancer().ejected(), 1);
    let before = backends[0].asked();
    all_good(&orders, 30).await;
    assert_eq!(backends[0].asked(), before, "not called while it is out");
    Ok(())
}

#[tokio::test]
async fn all_broken_opens_the_circuit_which_says_when_to_come_back() -> anyhow::Result<()> {
    let (backends, orders) = backends().await?;
    for backend in &backends {
        backend.set_broken(true);
    }
    let mut refused = None;
    for number in 0..100 {
        let error = order(&orders, number).await.expect_err("all are broken");
        if let Some(rejected) = error.rejected() {
            refused = Some(*rejected);
            break;
        }
    }
    let refused = refused.expect("the circuit opens");
    assert_eq!(
        (refused.policy, refused.reason),
        (Policy::Breaker, Reason::Open)
    );
    let after = refused.retry_after.expect("known");
    assert!(after <= Duration::from_secs(2), "{after:?}");
    let asked = |backends: &[Backend]| backends.iter().map(Backend::asked).sum::<u32>();
    let before = asked(&backends);
    for number in 0..20 {
        order(&orders, number).await.expect_err("refused");
    }
    assert_eq!(
        asked(&backends),
        before,
        "nobody is called while it is open"
    );

    // Mended; after the wait that was asked for, probes find it out.
    for backend in &backends {
        backend.set_broken(false);
    }
    tokio::time::sleep(after).await;
    all_good(&orders, 30).await;
    let circuit = orders.stack().breaker().expect("written");
    assert_eq!(circuit.state(), State::Closed);
    Ok(())
}
