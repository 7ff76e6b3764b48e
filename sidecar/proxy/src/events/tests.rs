//! Cores that tell, a chronicle that listens, readers with and without patience.

use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::BodyExt;
use selvedge_registry::node::metrics::Metrics;
use selvedge_resilience::breaker::{BreakerConfig, CircuitBreaker, State};
use serde_json::{Value, json};

use super::{ring::Unread, *};

/// A chronicle, and a circuit of each origin that an operator's hand opens and closes.
struct Told {
    chronicle: Arc<Chronicle>,
    metrics: Metrics,
}

impl Told {
    fn new() -> Self {
        let metrics = Metrics::default();
        let chronicle = Chronicle::new(&metrics);
        Self { chronicle, metrics }
    }

    fn circuit(&self, origin: Origin, name: &str) -> CircuitBreaker {
        CircuitBreaker::builder(BreakerConfig::default())
            .name(name)
            .events(self.chronicle.hub(origin))
            .build()
            .expect("valid")
    }

    fn ask(
        &self,
        query: &[(&str, &str)],
        headers: &[(&'static str, &str)],
    ) -> Response<EventsBody> {
        let mut fields = HeaderMap::new();
        for (name, value) in headers {
            fields.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        let pairs = query.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        let query = Query::parse(pairs, &fields);
        answer(&self.chronicle, query, &fields)
    }

    async fn list(&self, query: &[(&str, &str)]) -> Value {
        let (status, text) = text(self.ask(query, &[])).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("an object")
    }

    fn stream(&self, query: &[(&str, &str)], last: Option<&str>) -> EventsBody {
        let mut headers = vec![("accept", "text/event-stream")];
        headers.extend(last.map(|id| ("last-event-id", id)));
        let response = self.ask(query, &headers);
        assert_eq!(response.status(), 200);
        response.into_body()
    }
}

/// Opens it or closes it again, as many times: an event each.
fn turn(circuit: &CircuitBreaker, times: usize) {
    for _ in 0..times {
        match circuit.state() {
            State::Closed => circuit.force_open(),
            _ => circuit.reset(),
        }
    }
}

async fn text(response: Response<EventsBody>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("infallible");
    let text = String::from_utf8(body.to_bytes().to_vec()).expect("text");
    (status, text)
}

/// The events of the next chunk: id, name, data.
async fn next(body: &mut EventsBody) -> Vec<(String, String, Value)> {
    let frame = body.frame().await.expect("no end").expect("infallible");
    let text = String::from_utf8(frame.into_data().expect("data").to_vec()).expect("text");
    assert!(text.ends_with("\n\n"), "{text:?}");
    text.split_terminator("\n\n").map(event).collect()
}

fn event(text: &str) -> (String, String, Value) {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_default().to_owned()
    };
    let data = serde_json::from_str(&field("data: ")).unwrap_or_default();
    (field("id: "), field("event: "), data)
}

fn names(list: &Value) -> Vec<&str> {
    let events = list["events"].as_array().expect("a list");
    events
        .iter()
        .map(|it| it["kind"].as_str().expect("a kind"))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn the_list_says_whose_what_and_why() {
    let told = Told::new();
    assert_eq!(told.list(&[]).await["events"], json!([]));
    for (origin, side, owner) in [
        (Origin::Client, "client", "service"),
        (Origin::App, "app", "service"),
        (Origin::Server, "server", "service"),
        (Origin::Listener, "server", "listener"),
    ] {
        told.circuit(origin, "orders").force_open();
        let list = told.list(&[]).await;
        let event = list["events"].as_array().and_then(|all| all.last());
        let event = event.expect("an event");
        for (field, want) in [
            ("side", side),
            (owner, "orders"),
            ("policy", "breaker"),
            ("kind", "transition"),
            ("from", "closed"),
            ("to", "forced_open"),
            ("cause", "operator"),
        ] {
            assert_eq!(event[field], want, "{field} of {event}");
        }
        let at = event["at"].as_str().expect("a time");
        assert!(
            at.ends_with('Z') && at.len() == "2026-11-26T08:00:00.000Z".len(),
            "{at}"
        );
        assert_eq!(event["id"], list["last"]);
    }
    let of_service = told.list(&[("service", "orders")]).await;
    assert_eq!(
        names(&of_service).len(),
        3,
        "a listener is no service: {of_service}"
    );
    assert_eq!(names(&told.list(&[("service", "stock")]).await).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_came_after_is_all_that_is_told_and_what_is_missing_is_counted() {
    let told = Told::new();
    let circuit = told.circuit(Origin::Client, "orders");
    turn(&circuit, 3);
    let first = told.list(&[]).await;
    let last = first["last"].as_str().expect("an id").to_owned();
    assert_eq!((names(&first).len(), &first["lost"]), (3, &json!(0)));
    let after = told.list(&[("after", &last)]).await;
    assert_eq!(
        (&after["events"], &after["last"]),
        (&json!([]), &first["last"])
    );
    // More than are kept, collected in time.
    for _ in 0..4 {
        turn(&circuit, 100);
        told.chronicle.collect();
    }
    let after = told.list(&[("after", &last)]).await;
    assert_eq!(names(&after).len(), KEPT);
    assert_eq!(after["lost"], 400 - KEPT as u64);
    assert_eq!(
        after["events"][0]["text"],
        "closed, was forced_open: operator"
    );
    // Who asks for the first time has missed nothing.
    let all = told.list(&[]).await;
    assert_eq!((names(&all).len(), &all["lost"]), (KEPT, &json!(0)));
    // Of another life nobody can say how many.
    for id in ["00000000-3", "ffffffff-99999"] {
        let other = told.list(&[("after", id)]).await;
        assert_eq!(
            (names(&other).len(), &other["restarted"]),
            (KEPT, &json!(true))
        );
    }
    // One that is not yet is like the last.
    let (life, _) = last.split_once('-').expect("an id");
    let future = format!("{life}-99999");
    let none = told.list(&[("after", &future)]).await;
    assert_eq!((&none["events"], &none["lost"]), (&json!([]), &json!(0)));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_between_two_looks_is_lost_and_said_to_be() {
    let told = Told::new();
    let circuit = told.circuit(Origin::App, "orders");
    turn(&circuit, KEPT + 7);
    let list = told.list(&[]).await;
    assert_eq!((names(&list).len(), &list["lost"]), (KEPT, &json!(7)));
    let text = told.metrics.text();
    let line = "selvedge_events_lost_total 7";
    assert!(text.lines().any(|it| it == line), "{text}");
    turn(&circuit, 1);
    let list = told
        .list(&[("after", list["last"].as_str().expect("an id"))])
        .await;
    assert_eq!((names(&list).len(), &list["lost"]), (1, &json!(0)));
}

#[test]
fn sides_are_put_in_order_by_time_and_each_keeps_its_own() {
    let told = Told::new();
    let (a, b) = (
        told.circuit(Origin::Client, "a"),
        told.circuit(Origin::App, "b"),
    );
    let start = Instant::now().into_std();
    let at = |ms| start + Duration::from_millis(ms);
    let config = |consecutive| BreakerConfig {
        consecutive,
        ..BreakerConfig::default()
    };
    // Both open by failures, so their events have a time.
    for (circuit, ms) in [(&b, 20), (&a, 10)] {
        circuit.reconfigure(config(1)).expect("valid");
        let permit = circuit.try_acquire(at(ms)).expect("closed");
        let failed =
            selvedge_resilience::Outcome::Failure(selvedge_resilience::FailureClass::ServerError);
        permit.complete(failed, at(ms));
    }
    // A clock that was read earlier by who came later changes nothing within one circuit.
    b.reset();
    told.chronicle.collect();
    let inner = told.chronicle.inner.lock();
    let heard: Vec<_> = inner
        .ring
        .after(0)
        .into_iter()
        .map(|it| match it {
            Unread::Event(it) => (it.event.name.to_string(), it.event.kind.as_str()),
            Unread::Lost { .. } => panic!("nothing is lost"),
        })
        .filter(|(_, kind)| *kind == "transition")
        .collect();
    let want = ["a", "b", "b"].map(|name| (name.to_owned(), "transition"));
    assert_eq!(heard, want);
}

#[tokio::test(start_paused = true)]
async fn what_a_hand_did_is_not_later_than_what_followed_it() {
    let told = Told::new();
    let circuit = told.circuit(Origin::Client, "orders");
    circuit.force_open();
    circuit.reset();
    let config = BreakerConfig {
        consecutive: 1,
        ..BreakerConfig::default()
    };
    circuit.reconfigure(config).expect("valid");
    let opened = Instant::now().into_std();
    let permit = circuit.try_acquire(opened).expect("closed");
    let failed =
        selvedge_resilience::Outcome::Failure(selvedge_resilience::FailureClass::ServerError);
    permit.complete(failed, opened);
    // Another's hand, later than all that.
    told.circuit(Origin::Client, "stock").force_open();
    tokio::time::advance(Duration::from_millis(400)).await;
    let list = told.list(&[]).await;
    let times: Vec<_> = list["events"].as_array().expect("a list").iter().collect();
    let of = |n: usize| times[n]["at"].as_str().expect("a time");
    let orders = [of(0), of(1), of(2), of(3)];
    assert_eq!((times[3]["to"].as_str(), times.len()), (Some("open"), 5));
    assert_eq!(orders, [of(3); 4], "{list}");
    assert!(of(4) > of(3), "{list}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_with_what_there_is_and_goes_on() {
    let told = Told::new();
    let circuit = told.circuit(Origin::Client, "orders");
    turn(&circuit, 2);
    let mut body = told.stream(&[], None);
    let begin = next(&mut body).await;
    assert_eq!(begin.len(), 2);
    let (id, name, data) = &begin[1];
    assert_eq!((&data["id"], name.as_str()), (&json!(id), ""));
    // Nothing happens: a comment says that the stream lives, and where it is.
    let idle = Instant::now();
    let lives = format!("id: {id}\n:");
    assert_eq!(next(&mut body).await, [event(&lives)]);
    assert_eq!(idle.elapsed(), Duration::from_secs(15));
    turn(&circuit, 1);
    let (news, ()) = tokio::join!(next(&mut body), async { told.chronicle.collect() });
    assert_eq!(news.len(), 1);
    // Another reader, that knows the first; and one that wants another service.
    let mut resumed = told.stream(&[("after", "00000000-1")], Some(&begin[0].0));
    assert_eq!(
        next(&mut resumed).await,
        [begin[1].clone(), news[0].clone()]
    );
    let mut other = told.stream(&[("service", "stock")], None);
    turn(&told.circuit(Origin::Client, "stock"), 1);
    turn(&circuit, 2);
    told.chronicle.collect();
    let of_stock = next(&mut other).await;
    assert_eq!(of_stock.len(), 1);
    assert_eq!(of_stock[0].2["service"], "stock");
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_a_quiet_service_in_a_loud_process_hears_that_the_stream_lives() {
    let told = Told::new();
    let (loud, quiet) = (
        told.circuit(Origin::Client, "loud"),
        told.circuit(Origin::Client, "quiet"),
    );
    turn(&quiet, 1);
    let mut body = told.stream(&[("service", "quiet")], None);
    assert_eq!(next(&mut body).await.len(), 1);
    let noise = async {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_secs(4)).await;
            turn(&loud, KEPT);
            told.chronicle.collect();
        }
    };
    let silence = Instant::now();
    let lives = async { (next(&mut body).await, silence.elapsed()) };
    let ((lives, after), ()) = tokio::join!(lives, noise);
    assert_eq!(after, Duration::from_secs(15));
    let [(id, name, Value::Null)] = &*lives else {
        panic!("an event: {lives:?}");
    };
    assert_eq!(name, "");
    // What went by was not for this reader: who resumes there has missed three rounds, not six.
    let mut resumed = told.stream(&[("service", "quiet")], Some(id));
    let lost = json!({ "events": 2 * KEPT });
    assert_eq!(next(&mut resumed).await[0].2, lost);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_fell_behind_is_told_how_far_and_resumes_from_there() {
    let told = Told::new();
    let circuit = told.circuit(Origin::Client, "orders");
    turn(&circuit, 1);
    let mut body = told.stream(&[], None);
    let begin = next(&mut body).await;
    for _ in 0..3 {
        turn(&circuit, 100);
        told.chronicle.collect();
    }
    let events = next(&mut body).await;
    assert_eq!(events.len(), 1 + KEPT);
    let (id, name, data) = &events[0];
    let missed = 300 - KEPT as u64;
    assert_eq!(
        (name.as_str(), data),
        ("lost", &json!({ "events": missed }))
    );
    // Who resumes after `lost` is not told of it again.
    let mut resumed = told.stream(&[], Some(id));
    assert_eq!(next(&mut resumed).await, events[1..]);
    let mut again = told.stream(&[], Some(&begin[0].0));
    assert_eq!(next(&mut again).await, events);
    // A life that nobody remembers.
    let mut other = told.stream(&[], Some("00000000-1"));
    let all = next(&mut other).await;
    assert_eq!(
        (all[0].1.as_str(), &all[0].2),
        ("lost", &json!({ "restarted": true }))
    );
    assert_eq!(all.len(), 2 + KEPT, "and how many of this life are gone");
}

#[tokio::test]
async fn five_read_at_once_and_the_sixth_is_told_so() {
    let told = Told::new();
    let readers: Vec<_> = (0..5).map(|_| told.stream(&[], None)).collect();
    let accept = [("accept", "text/html, Text/Event-Stream;q=0.9")];
    let refused = told.ask(&[], &accept);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "30");
    let (status, why) = text(refused).await;
    assert_eq!(status, 503);
    assert!(why.contains("event streams: at most 5"), "{why}");
    // A list takes no seat, and a seat that is left is free.
    told.list(&[]).await;
    drop(readers);
    assert_eq!(told.ask(&[], &accept).status(), 200);
}

#[tokio::test]
async fn what_nobody_can_mean_is_refused_with_what_is_allowed() {
    let told = Told::new();
    let table: [(&[(&str, &str)], &str); 7] = [
        (
            &[("after", "17")],
            "after=17: allowed is what an event's `id` said",
        ),
        (&[("after", "00000000-")], "after=00000000-: allowed"),
        (&[("after", "+badcafe-1")], "after=+badcafe-1: allowed"),
        (&[("after", "0BADCAFE-1")], "after=0BADCAFE-1: allowed"),
        (&[("service", "Not A Name")], "Not A Name"),
        (
            &[("service", "a"), ("service", "a")],
            "service is given more than once",
        ),
        (
            &[("servise", "a")],
            "there is no parameter \"servise\": allowed are after, service",
        ),
    ];
    for (query, want) in table {
        let (status, why) = text(told.ask(query, &[])).await;
        let problem: Value = serde_json::from_str(&why).expect("an object");
        assert_eq!(
            (status, &problem["type"]),
            (400, &json!("urn:selvedge:problem:bad-request"))
        );
        let detail = problem["detail"].as_str().expect("a sentence");
        assert!(detail.contains(want), "{detail} for {query:?}");
    }
    let (status, why) = text(told.ask(&[], &[("last-event-id", "x")])).await;
    assert_eq!(status, 400);
    assert!(why.contains("last-event-id=x"), "{why}");
}
