//! An operator who reads `/events`, from either daemon.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// Of the services under test: one loses an endpoint, one opens and closes its circuit with every
/// other call.
pub(crate) const POLICIES: &str = r#"
[policies.loses]
retry = { attempts = 1 }
outlier = { consecutive_connect = 1, eject = "1m" }
[policies.flaps]
retry = { attempts = 0 }
breaker = { consecutive = 1, open_for = "1ms", open_for_max = "1ms", probes = 1 }
outlier = { consecutive_connect = 0 }
"#;

/// An address that nobody listens at.
pub(crate) fn nowhere() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("bound")
}

fn open(admin: SocketAddr, target: &str, fields: &str) -> (BufReader<TcpStream>, String) {
    let mut stream = TcpStream::connect(admin).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let ask = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n");
    stream.write_all(ask.as_bytes()).expect("write");
    let (mut lines, mut head) = (BufReader::new(stream), String::new());
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(lines.read_line(&mut head).expect("a head"), 0, "{head}");
    }
    (lines, head)
}

fn status(head: &str) -> u16 {
    head[9..12].parse().expect("a status")
}

/// The list, or the problem.
fn list(admin: SocketAddr, query: &str) -> (u16, Value) {
    let target = format!("/events{query}");
    let (mut rest, head) = open(admin, &target, "connection: close\r\n");
    let mut body = String::new();
    rest.read_to_string(&mut body).expect("a body");
    (status(&head), serde_json::from_str(&body).expect("JSON"))
}

fn all(admin: SocketAddr, query: &str) -> Vec<Value> {
    let (status, list) = list(admin, query);
    assert_eq!(status, 200, "{list}");
    list["events"].as_array().expect("a list").clone()
}

fn is(event: &Value, fields: &[(&str, &str)]) -> bool {
    fields.iter().all(|(field, want)| event[*field] == *want)
}

/// The first event of the list that says so; asks until there is one.
pub(crate) fn comes(admin: SocketAddr, fields: &[(&str, &str)]) -> Value {
    for _ in 0..400 {
        if let Some(event) = all(admin, "").into_iter().find(|it| is(it, fields)) {
            return event;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("never {fields:?}: {:?}", all(admin, ""));
}

/// Who follows.
struct Reader {
    lines: BufReader<TcpStream>,
    head: String,
}

impl Reader {
    fn open(admin: SocketAddr, last: Option<&str>) -> Self {
        let last = last.map(|id| format!("last-event-id: {id}\r\n"));
        let last = last.unwrap_or_default();
        let fields = format!("accept: text/event-stream\r\nconnection: close\r\n{last}");
        let (lines, head) = open(admin, "/events", &fields);
        Self { lines, head }
    }

    fn is_served(&self) -> bool {
        self.head.starts_with("HTTP/1.1 200")
    }

    /// The next event: its id, its name, its data.
    fn next(&mut self) -> (String, String, Value) {
        let (mut id, mut name) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("an event in time");
            assert_ne!(read, 0, "the stream ended");
            if let Some(text) = line.strip_prefix("id: ") {
                text.trim_end().clone_into(&mut id);
            } else if let Some(text) = line.strip_prefix("event: ") {
                text.trim_end().clone_into(&mut name);
            } else if let Some(text) = line.strip_prefix("data: ") {
                return (id, name, serde_json::from_str(text).expect("JSON"));
            }
        }
    }

    fn until(&mut self, fields: &[(&str, &str)]) -> Value {
        loop {
            let (id, _, data) = self.next();
            if is(&data, fields) {
                assert_eq!(data["id"], *id);
                return data;
            }
        }
    }
}

/// An endpoint of `loses` is `dead`, the other one lives: `ask` is answered all the same.
pub(crate) fn sees_an_ejection(admin: SocketAddr, dead: SocketAddr, ask: impl Fn() -> u16) {
    let mut reader = Reader::open(admin, None);
    let head = reader.head.to_ascii_lowercase();
    assert!(
        head.contains("content-type: text/event-stream\r\n"),
        "{head}"
    );
    assert!(head.contains("cache-control: no-cache\r\n"), "{head}");
    let dead = dead.to_string();
    let fields = [
        ("kind", "ejected"),
        ("side", "client"),
        ("service", "loses"),
        ("policy", "balancer"),
        ("cause", "consecutive_connect"),
        ("endpoint", &*dead),
    ];
    let asked = (0..400).find(|_| {
        assert_eq!(ask(), 200);
        all(admin, "").iter().any(|event| is(event, &fields))
    });
    assert!(asked.is_some(), "never ejected: {:?}", all(admin, ""));
    let listed = comes(admin, &fields);
    assert_eq!(listed["lasts_ms"], 60_000);
    assert_eq!(reader.until(&fields), listed, "list and stream agree");
    assert!(all(admin, "?service=loses").contains(&listed));
    assert!(!all(admin, "?service=flaps").contains(&listed));
}

/// `flap` is a call that opens a circuit, or finds it open.
pub(crate) fn resumes_and_counts_what_it_missed(admin: SocketAddr, flap: impl Fn()) {
    let opened = [
        ("kind", "transition"),
        ("service", "flaps"),
        ("policy", "breaker"),
        ("to", "open"),
        ("cause", "consecutive"),
    ];
    flap();
    let mut reader = Reader::open(admin, None);
    let first = reader.until(&opened);
    drop(reader);
    let first = first["id"].as_str().expect("an id");
    let (life, seq) = first.split_once('-').expect("an id");
    let since = |last: &Value| -> u64 {
        let last = last
            .as_str()
            .and_then(|last| last.strip_prefix(life))
            .expect("this life");
        last[1..].parse::<u64>().expect("a number") - seq.parse::<u64>().expect("a number")
    };
    let query = format!("?after={first}");
    let all_since = loop {
        for _ in 0..20 {
            flap();
            std::thread::sleep(Duration::from_millis(2));
        }
        let (_, after) = list(admin, &query);
        if since(&after["last"]) > 300 {
            break after;
        }
    };
    let events = all_since["events"].as_array().expect("a list");
    let happened = since(&all_since["last"]);
    assert_eq!(
        events.len() as u64 + all_since["lost"].as_u64().expect("a number"),
        happened
    );
    assert!(all_since["lost"].as_u64() > Some(0), "the first are gone");
    // A stream says the same, and where the gap is.
    let mut resumed = Reader::open(admin, Some(first));
    let (mut lost, mut read) = (0, 0);
    loop {
        let (id, name, data) = resumed.next();
        if name == "lost" {
            lost += data["events"].as_u64().expect("a number");
        } else {
            read += 1;
            assert_eq!(data["id"], *id);
        }
        if lost + read == happened {
            break;
        }
        assert!(
            lost + read < happened,
            "{lost} lost, {read} read of {happened}"
        );
    }
    assert!(lost > 0);
    // Who knows all of it is told the next, and nothing else.
    let last = all_since["last"].as_str().expect("an id");
    let mut at_the_end = Reader::open(admin, Some(last));
    std::thread::sleep(Duration::from_millis(2));
    flap();
    assert_eq!(since(&at_the_end.next().0.into()), happened + 1);
    // Of another life.
    let mut other = Reader::open(admin, Some("00000000-1"));
    let (_, name, data) = other.next();
    assert_eq!(
        (name.as_str(), data),
        ("lost", json!({ "restarted": true }))
    );
}

/// What `log` has of the circuit that flapped: the first few transitions, as lines.
pub(crate) fn has_few_lines_of_many_events(log: &str) {
    let lines: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("\"policy event\"") && line.contains("\"flaps\""))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of = |line: &Value, field: &str| line["fields"].get(field).or(line.get(field)).cloned();
    let transitions = lines
        .iter()
        .filter(|line| of(line, "kind") == Some("transition".into()));
    // Ten a minute; that many events take a few seconds.
    let n = transitions.count();
    assert!((10..=30).contains(&n), "{n} lines: {log}");
    let opened = |line: &&Value| of(line, "from") == Some("closed".into());
    let opened = lines.iter().find(opened).expect("it opened");
    assert_eq!(of(opened, "to"), Some("open".into()), "{opened}");
    assert!(of(opened, "cause").is_some(), "{opened}");
    let first = &lines[0];
    for (field, want) in [
        ("side", "client"),
        ("service", "flaps"),
        ("policy", "breaker"),
    ] {
        assert_eq!(of(first, field), Some(want.into()), "{field} of {first}");
    }
}

/// Streams are so many and no more, and bad questions are answered with what is allowed.
pub(crate) fn has_five_seats_and_manners(admin: SocketAddr) {
    let seats: Vec<_> = (0..5).map(|_| Reader::open(admin, None)).collect();
    assert!(seats.iter().all(Reader::is_served));
    let mut refused = Reader::open(admin, None);
    assert!(refused.head.starts_with("HTTP/1.1 503"), "{}", refused.head);
    let mut why = String::new();
    refused.lines.read_line(&mut why).expect("a body");
    assert!(why.contains("event streams: at most 5"), "{why}");
    drop(seats);
    let mut served = false;
    for _ in 0..400 {
        served = Reader::open(admin, None).is_served();
        if served {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(served, "a seat that is left is free");
    for (query, want) in [
        ("?after=7", "after=7: allowed is what an event's `id` said"),
        ("?service=Not+A+Name", "Not A Name"),
        (
            "?who=me",
            "there is no parameter \"who\": allowed are after, service",
        ),
    ] {
        let (status, problem) = list(admin, query);
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{query}: {problem}");
        assert!(detail.contains(want), "{query}: {problem}");
    }
}
