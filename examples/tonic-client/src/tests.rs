//! The client against real servers over loopback.

use std::collections::HashSet;

use selvedge_resilience::layer::BudgetStatus;
use tokio::time::Instant;
use tonic::{Code, metadata::MetadataMap};

use super::*;

fn servers(count: usize) -> Vec<Server> {
    (0..count)
        .map(|_| start((Ipv4Addr::LOCALHOST, 0).into(), POLICY))
        .collect()
}

fn start(addr: SocketAddr, policy: &str) -> Server {
    Server::start(addr, inbound(policy).expect("valid")).expect("starts")
}

fn clients(servers: &[Server]) -> (PricesClient<Callee>, Stack<SocketAddr>) {
    let endpoints: Vec<SocketAddr> = servers.iter().map(Server::addr).collect();
    let (callee, stack) = client(POLICY, &endpoints).expect("a valid policy");
    (PricesClient::new(callee), stack)
}

fn budget(stack: &Stack<SocketAddr>) -> BudgetStatus {
    stack.status().budget.expect("the policy has retries")
}

/// All must be good; says who answered.
async fn all_good(prices: &PricesClient<Callee>, calls: u32) -> HashSet<String> {
    let mut who = HashSet::new();
    for number in 0..calls {
        let price = prices.clone().quote(Sku { number }).await;
        let price = price.expect("answered").into_inner();
        assert_eq!(price.cents, number * 3);
        who.insert(price.server);
    }
    who
}

/// `grpc-timeout` in milliseconds.
fn told(metadata: &MetadataMap) -> u64 {
    let text = metadata.get("grpc-timeout").expect("told its deadline");
    let text = text.to_str().expect("text");
    let (number, unit) = text.split_at(text.len() - 1);
    let number: u64 = number.parse().expect("a number");
    match unit {
        "S" => number * 1_000,
        "m" => number,
        "u" => number / 1_000,
        "n" => number / 1_000_000,
        other => panic!("{other} is too long a unit for a policy of 2s"),
    }
}

#[tokio::test]
async fn a_server_that_is_killed_costs_no_call() {
    let mut servers = servers(3);
    let (prices, stack) = clients(&servers);
    assert_eq!(all_good(&prices, 60).await.len(), 3, "each takes part");
    servers[0].kill();
    // Until it has been picked: one that was slow is passed over for half a second.
    let elsewhere = async {
        while budget(&stack).made == 0 {
            let who = all_good(&prices, 100).await;
            assert!(!who.contains(&servers[0].addr().to_string()));
        }
    };
    let elsewhere = tokio::time::timeout(Duration::from_secs(15), elsewhere).await;
    elsewhere.expect("its calls went elsewhere");
    assert_eq!(budget(&stack).rejected, 0, "within the budget");
    // The same address again, once its time is over: it takes part again.
    servers[0] = start(servers[0].addr(), POLICY);
    let back = async {
        while !all_good(&prices, 30)
            .await
            .contains(&servers[0].addr().to_string())
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let back = tokio::time::timeout(Duration::from_secs(15), back).await;
    back.expect("it is found to be back");
}

#[tokio::test]
async fn unavailable_is_tried_elsewhere_and_other_codes_are_not() {
    let servers = servers(2);
    let (prices, stack) = clients(&servers);
    servers[0].fail(Status::unavailable("starting"), 1);
    servers[1].fail(Status::unavailable("starting"), 1);
    all_good(&prices, 20).await;
    assert_eq!(budget(&stack).made, 2);

    let before = servers.iter().map(|it| it.asked().0.len()).sum::<usize>();
    for server in &servers {
        server.fail(Status::not_found("no such thing"), 1);
    }
    let error = prices.clone().quote(Sku { number: 1 }).await;
    assert_eq!(error.expect_err("not found").code(), Code::NotFound);
    let after = servers.iter().map(|it| it.asked().0.len()).sum::<usize>();
    assert_eq!(after, before + 1, "it was asked once");
}

#[tokio::test]
async fn pushback_says_when_and_whether() {
    let servers = servers(1);
    let (prices, _stack) = clients(&servers);
    let pushed_back = |ms: &'static str| {
        let mut metadata = MetadataMap::new();
        let value = ms.parse().expect("text");
        metadata.insert("grpc-retry-pushback-ms", value);
        Status::with_metadata(Code::ResourceExhausted, "full", metadata)
    };
    // A code that is not in the policy's list: the callee itself asks for the other try.
    servers[0].fail(pushed_back("80"), 1);
    let began = Instant::now();
    all_good(&prices, 1).await;
    assert!(began.elapsed() >= Duration::from_millis(80));
    assert_eq!(servers[0].asked().0.len(), 2);

    servers[0].fail(pushed_back("-1"), 1);
    let error = prices.clone().quote(Sku { number: 1 }).await;
    assert_eq!(error.expect_err("refused").code(), Code::ResourceExhausted);
    assert_eq!(servers[0].asked().0.len(), 3, "it was left alone");
}

#[tokio::test]
async fn the_deadline_reaches_the_callee() {
    let servers = servers(1);
    let (prices, _stack) = clients(&servers);
    all_good(&prices, 1).await;
    let by_policy = told(&servers[0].asked().0[0]);
    assert!((1_500..=2_000).contains(&by_policy), "{by_policy} ms");

    // The caller gives less than the policy does: the callee stops when nobody waits any more.
    servers[0].take(Duration::from_secs(30));
    let mut request = tonic::Request::new(Sku { number: 1 });
    request.set_timeout(Duration::from_millis(150));
    let began = Instant::now();
    let error = prices.clone().quote(request).await.expect_err("too late");
    let code = error.code();
    assert!(
        matches!(code, Code::DeadlineExceeded | Code::Cancelled),
        "{error}"
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    let (asked, answered) = servers[0].asked();
    let by_caller = told(asked.last().expect("asked"));
    assert!((1..=150).contains(&by_caller), "{by_caller} ms");
    assert_eq!(answered, 1, "the late one was dropped");
}

#[tokio::test]
async fn the_breaker_opens_on_grpc_statuses_and_refuses_as_unavailable() {
    let servers = servers(2);
    let (prices, stack) = clients(&servers);
    for server in &servers {
        server.fail(Status::internal("broken"), u32::MAX);
    }
    let mut codes = Vec::new();
    for number in 0..40 {
        let error = prices.clone().quote(Sku { number }).await;
        codes.push(error.expect_err("broken").code());
    }
    assert_eq!(codes.first(), Some(&Code::Internal));
    assert_eq!(codes.last(), Some(&Code::Unavailable), "{codes:?}");
    let circuit = stack.status().breaker.expect("written");
    assert!(circuit.rejected > 0 && !circuit.open_for.is_zero());
}

#[tokio::test]
async fn a_server_refuses_with_a_status_that_says_why() {
    let policy = "inbound.rate_limit = { rate = \"1/h\", by = \"source\" }";
    let server = start((Ipv4Addr::LOCALHOST, 0).into(), policy);
    let (callee, _stack) = client("", &[server.addr()]).expect("valid");
    let prices = PricesClient::new(callee);
    all_good(&prices, 1).await;
    let refused = prices.clone().quote(Sku { number: 1 }).await;
    let refused = refused.expect_err("the rate is used up");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().starts_with("refused by rate_limit"));
    assert!(refused.metadata().contains_key("retry-after"));
    assert_eq!(server.asked().0.len(), 1, "nothing was begun");
}
