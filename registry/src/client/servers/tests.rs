use std::{sync::atomic::AtomicUsize, time::Instant as Clock};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

use super::*;

fn place(region: &str, zone: &str) -> Locality {
    Locality {
        region: region.into(),
        zone: zone.into(),
    }
}

#[test]
fn near_is_the_zone_then_the_region() {
    let here = place("eu", "a");
    for (there, want) in [
        (place("eu", "a"), Place::Zone),
        (place("eu", "b"), Place::Region),
        (place("us", "a"), Place::Elsewhere),
        (Locality::default(), Place::Elsewhere),
    ] {
        assert_eq!(Place::of(&here, &there), want, "{there:?}");
    }
}

#[test]
fn a_server_fails_over_once_however_many_notice() {
    let servers = Servers::new(
        vec!["a:1".into(), "b:1".into(), "c:1".into()],
        Locality::default(),
        Connector::plain(),
    );
    let first = servers.current().expect("one");
    servers.fail_over(&first);
    let second = servers.current().expect("one");
    assert_ne!(first, second);
    servers.fail_over(&first);
    assert_eq!(servers.current().expect("one"), second);
    let none = Servers::new(Vec::new(), Locality::default(), Connector::plain());
    none.fail_over("a:1");
    assert_eq!(none.current(), None);
}

#[test]
fn a_client_far_from_home_looks_whether_it_can_go_back() {
    let list = || vec!["a:1".to_owned(), "b:1".to_owned()];
    let near = Servers::new(list(), place("eu", "a"), Connector::plain());
    assert!(!near.is_second_choice(), "the best there is");
    near.fail_over(&near.current().expect("one"));
    assert!(near.is_second_choice());
    near.fail_over(&near.current().expect("one"));
    assert!(!near.is_second_choice(), "once around");
    // Who does not say where it runs has no better one.
    let anywhere = Servers::new(list(), Locality::default(), Connector::plain());
    anywhere.fail_over(&anywhere.current().expect("one"));
    assert!(!anywhere.is_second_choice());
}

#[test]
fn clients_of_one_server_do_not_all_turn_to_the_same_other_one() {
    let mut seconds = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let list = (0..4).map(|n| format!("s{n}:1")).collect();
        let servers = Servers::new(list, Locality::default(), Connector::plain());
        let first = servers.current().expect("one");
        servers.fail_over(&first);
        seconds.insert((first, servers.current().expect("one")));
    }
    // Twelve ways to fail over; all but the unluckiest hundred clients take most of them.
    assert!(seconds.len() > 6, "{seconds:?}");
}

/// A server that says where it runs, once it is let.
struct Fake {
    addr: String,
    asked: Arc<AtomicUsize>,
    may: watch::Sender<bool>,
}

impl Fake {
    async fn of(zone: &str, answers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let addr = listener.local_addr().expect("bound").to_string();
        let status = serde_json::json!({
            "node": zone, "locality": place("eu", zone), "serving": true, "instances": 0,
            "revision": crate::Revision::default(), "state": {"self_preservation": false},
            "watches": 0,
        });
        let body = status.to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let asked = Arc::new(AtomicUsize::new(0));
        let may = watch::Sender::new(answers);
        let (count, let_) = (Arc::clone(&asked), may.subscribe());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, mut let_) = (answer.clone(), let_.clone());
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _head = stream.read(&mut [0; 1024]).await;
                    if let_.wait_for(|may| *may).await.is_ok() {
                        let _sent = stream.write_all(answer.as_bytes()).await;
                    }
                });
            }
        });
        Self { addr, asked, may }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn in_zone_a(fakes: &[&Fake]) -> Arc<Servers> {
    let list = fakes.iter().map(|fake| fake.addr.clone()).collect();
    Arc::new(Servers::new(list, place("eu", "a"), Connector::plain()))
}

async fn refusing() -> Fake {
    let mut fake = Fake::of("a", true).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    fake.addr = listener.local_addr().expect("bound").to_string();
    fake
}

#[tokio::test]
async fn a_silent_server_is_not_waited_for_and_nobody_is_sent_to_it() {
    let [silent, far, near] =
        [("a", false), ("b", true), ("a", true)].map(|(zone, answers)| Fake::of(zone, answers));
    let (silent, far, near) = tokio::join!(silent, far, near);
    for (name, list, want) in [
        ("one of our zone answers", vec![&silent, &far, &near], &near),
        ("one of another zone does", vec![&silent, &far], &far),
        ("all of them do", vec![&far, &near], &near),
    ] {
        // By chance any of them is the first.
        for _ in 0..6 {
            let servers = in_zone_a(&list);
            let before: Vec<usize> = list.iter().map(|fake| fake.asked()).collect();
            let caller = || async {
                servers.ranked().await;
                servers.current().expect("one")
            };
            let begun = Clock::now();
            // The second comes while the first waits.
            let got = tokio::join!(caller(), caller());
            let took = begun.elapsed();
            assert!(took < ASK / 2, "{name}: {took:?}");
            for got in [got.0, got.1] {
                assert_ne!(*got, *silent.addr, "{name}");
            }
            // On a busy machine the nearest may have been late.
            let settled = async {
                while *servers.current().expect("one") != *want.addr {
                    tokio::task::yield_now().await;
                }
            };
            timeout(ASK, settled).await.expect(name);
            for (fake, before) in list.iter().zip(before) {
                assert!(fake.asked() <= before + 1, "{name}: asked once");
            }
        }
    }
}

#[tokio::test]
async fn a_nearer_server_that_answers_late_is_turned_to() {
    let (late, far) = (Fake::of("a", false).await, Fake::of("b", true).await);
    let servers = in_zone_a(&[&late, &far]);
    servers.ranked().await;
    let mut turns = servers.turns();
    assert_eq!(*servers.current().expect("one"), *far.addr);
    late.may.send_replace(true);
    let turned = servers.turned_from(&far.addr, &mut turns);
    timeout(ASK, turned).await.expect("turned");
    assert_eq!(*servers.current().expect("one"), *late.addr);
    assert!(!servers.is_second_choice());
    // Whoever is with the one that it was turned to stays.
    let turned = servers.turned_from(&late.addr, &mut turns);
    assert!(timeout(GRACE, turned).await.is_err());
}

#[tokio::test]
async fn a_nearer_server_that_was_away_is_found_again_and_one_that_stays_away_costs_nothing() {
    let (back, far) = (Fake::of("a", false).await, Fake::of("b", true).await);
    let servers = in_zone_a(&[&back, &far]);
    servers.ranked().await;
    let over = || async {
        while servers.asking.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
    };
    for round in ["first", "again"] {
        timeout(ASK * 3, over())
            .await
            .expect("each has answered or not");
        assert_eq!(*servers.current().expect("one"), *far.addr, "{round}");
        assert!(servers.is_second_choice(), "{round}");
        servers.look();
        // Nobody waits meanwhile.
        timeout(GRACE / 2, servers.ranked()).await.expect(round);
    }
    timeout(ASK * 3, over())
        .await
        .expect("each has answered or not");
    back.may.send_replace(true);
    let mut turns = servers.turns();
    servers.look();
    let turned = servers.turned_from(&far.addr, &mut turns);
    timeout(ASK, turned).await.expect("turned");
    assert_eq!(*servers.current().expect("one"), *back.addr);
}

#[tokio::test]
async fn where_nobody_can_be_used_the_last_answer_is_waited_for_and_no_longer() {
    let (one, other) = (refusing().await, refusing().await);
    let servers = in_zone_a(&[&one, &other]);
    timeout(ASK / 2, servers.ranked())
        .await
        .expect("both refuse");
    assert_eq!(servers.all().len(), 2);
    let (one, other) = (Fake::of("a", false).await, Fake::of("b", false).await);
    let servers = in_zone_a(&[&one, &other]);
    let begun = Clock::now();
    timeout(ASK * 3, servers.ranked())
        .await
        .expect("after a while");
    assert!(begun.elapsed() >= ASK, "{:?}", begun.elapsed());
}

#[test]
fn who_waits_is_let_go_when_the_runtime_that_asks_ends() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().expect("a runtime")
    };
    let (asking, waiting) = (runtime(), runtime());
    let fake = asking.block_on(Fake::of("a", false));
    let other = asking.block_on(Fake::of("b", false));
    let servers = in_zone_a(&[&fake, &other]);
    asking.block_on(async {
        let ranked = servers.ranked();
        assert!(timeout(GRACE, ranked).await.is_err(), "they are silent");
    });
    drop(asking);
    waiting.block_on(async {
        let ranked = servers.ranked();
        timeout(ASK, ranked).await.expect("let go");
    });
}
