use std::{collections::BTreeSet, net::IpAddr};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};
use proptest::prelude::*;
use selvedge_registry::{InstanceStatus, Locality, wire::InstanceRecord};

use super::{
    DnsConfig,
    packet::{self, Cut, Read},
    services::label,
    zone::Zone,
};
use crate::catalogue::{Body, Catalogue, Live, Record, Stamp, Store, plain};

fn store(instances: impl IntoIterator<Item = (&'static str, InstanceRecord)>) -> Store {
    let mut store = Store::new(1);
    for (hlc, (service, mut instance)) in instances.into_iter().enumerate() {
        instance.reported = instance.status;
        instance.settle();
        let record = Record {
            service: service.parse().unwrap(),
            id: instance.id.clone(),
            stamp: Stamp {
                incarnation: 1,
                hlc: hlc as u64 + 1,
                owner: "n".into(),
            },
            body: Body::Live(Live::of(&instance)),
        };
        store.merge(record, 0);
    }
    store
}

fn at(id: &str, addr: &str) -> InstanceRecord {
    plain(&id.parse().unwrap(), addr.parse().unwrap())
}

fn in_zone(instance: InstanceRecord, region: &str, zone: &str) -> InstanceRecord {
    InstanceRecord {
        locality: Locality {
            region: region.to_owned(),
            zone: zone.to_owned(),
        },
        ..instance
    }
}

fn web() -> Store {
    let down = InstanceRecord {
        status: InstanceStatus::Down,
        ..at("w3", "10.0.0.3:8080")
    };
    let heavy = InstanceRecord {
        weight: 7,
        ..in_zone(at("w1", "10.0.0.1:8080"), "eu", "eu-1")
    };
    store([
        ("web", heavy),
        ("web", in_zone(at("W2:8081", "10.0.0.2:8081"), "eu", "eu-2")),
        ("web", down),
        ("web", in_zone(at("w4", "[2001:db8::4]:8080"), "us", "us-1")),
        (
            "asleep",
            InstanceRecord {
                status: InstanceStatus::Starting,
                ..at("a", "10.0.0.9:1")
            },
        ),
    ])
}

fn zone() -> Zone {
    let here = Locality {
        region: "eu".to_owned(),
        zone: "eu-1".to_owned(),
    };
    Zone::new(&DnsConfig::default(), here, [127, 0, 0, 1].into())
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    query.add_query(Query::query(name, kind));
    query
}

fn answer(zone: &Zone, catalogue: Option<&Catalogue>, question: &Message) -> Message {
    let bytes = question.to_vec().unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    match packet::read(&bytes, 1232) {
        Read::Question(question) => zone.answer(*question, catalogue, &mut rng),
        Read::Refused(message) => *message,
        Read::Drop => panic!("dropped"),
    }
}

fn ask(catalogue: &Catalogue, name: &str, kind: RecordType) -> Message {
    answer(&zone(), Some(catalogue), &question(name, kind))
}

fn ips(message: &Message) -> BTreeSet<IpAddr> {
    let ip = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
        _ => None,
    };
    message.answers.iter().filter_map(|r| ip(&r.data)).collect()
}

#[test]
fn x3_names_and_what_they_are() {
    let store = web();
    let catalogue = store.catalogue();
    let (a, aaaa, srv) = (RecordType::A, RecordType::AAAA, RecordType::SRV);
    let (ok, nx, refused) = (
        ResponseCode::NoError,
        ResponseCode::NXDomain,
        ResponseCode::Refused,
    );
    for (name, kind, code, answers) in [
        ("web.mesh", a, ok, 2),
        ("web.mesh", aaaa, ok, 1),
        ("web.mesh", srv, ok, 3),
        ("_web._tcp.mesh", srv, ok, 3),
        ("_web._tcp.mesh", a, ok, 0),
        ("web._tcp.mesh", srv, nx, 0),
        ("_tcp.mesh", srv, ok, 0),
        ("nobody.mesh", a, nx, 0),
        ("web.service.mesh", a, ok, 2),
        ("web.service.mesh", aaaa, ok, 1),
        ("web.service.mesh", srv, ok, 3),
        ("WEB.Service.MESH", srv, ok, 3),
        ("web.service.mesh", RecordType::TXT, ok, 0),
        ("web.service.mesh", RecordType::ANY, ok, 1),
        ("_web._tcp.service.mesh", srv, ok, 3),
        ("_web._tcp.service.mesh", a, ok, 0),
        ("web._tcp.service.mesh", srv, nx, 0),
        ("web.eu-1.zone.mesh", a, ok, 1),
        ("web.EU-1.zone.mesh", srv, ok, 1),
        ("_web._tcp.eu-2.zone.mesh", srv, ok, 1),
        ("web.eu-9.zone.mesh", a, nx, 0),
        ("w1.web.instance.mesh", a, ok, 1),
        ("w1.web.instance.mesh", aaaa, ok, 0),
        ("w1.web.instance.mesh", srv, ok, 1),
        ("w4.web.instance.mesh", aaaa, ok, 1),
        ("w3.web.instance.mesh", a, nx, 0),
        ("nobody.service.mesh", a, nx, 0),
        ("no_name.service.mesh", a, nx, 0),
        ("asleep.service.mesh", a, ok, 0),
        ("a.b.c.mesh", a, nx, 0),
        ("mesh", RecordType::SOA, ok, 1),
        ("mesh", RecordType::NS, ok, 1),
        ("mesh", a, ok, 0),
        ("ns.mesh", a, ok, 1),
        ("service.mesh", a, ok, 0),
        ("web.instance.mesh", a, ok, 0),
        ("example.com", a, refused, 0),
        ("notmesh", a, refused, 0),
        ("mesh", RecordType::AXFR, refused, 0),
    ] {
        let message = ask(catalogue, name, kind);
        let got = (message.metadata.response_code, message.answers.len());
        assert_eq!(got, (code, answers), "{name} {kind}");
        let negative = answers == 0 && code != refused;
        assert_eq!(message.authorities.len(), usize::from(negative), "{name}");
        assert_eq!(message.metadata.authoritative, code != refused, "{name}");
        assert!(message.metadata.recursion_desired && !message.metadata.recursion_available);
        assert_eq!(message.metadata.id, 4711);
    }
}

#[test]
fn x3_srv_has_ports_weights_priorities_and_names_that_resolve() {
    let store = web();
    let message = ask(store.catalogue(), "web.service.mesh", RecordType::SRV);
    let mut seen = Vec::new();
    for record in &message.answers {
        let RData::SRV(srv) = &record.data else {
            panic!("{record}");
        };
        let kind = if srv.priority == 2 {
            RecordType::AAAA
        } else {
            RecordType::A
        };
        let target = srv.target.to_ascii();
        let resolved = ips(&ask(store.catalogue(), &target, kind));
        let extra = message
            .additionals
            .iter()
            .find(|r| r.name == srv.target)
            .unwrap();
        let mut offered = Message::query();
        offered.add_answer(extra.clone());
        assert_eq!(ips(&offered), resolved, "{target}");
        seen.push((
            srv.priority,
            srv.weight,
            srv.port,
            resolved.into_iter().next().unwrap(),
        ));
    }
    seen.sort_unstable();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(
        seen,
        [
            (0, 7, 8080, ip("10.0.0.1")),
            (1, 1, 8081, ip("10.0.0.2")),
            (2, 1, 8080, ip("2001:db8::4")),
        ]
    );
}

#[test]
fn x3_times_are_as_configured_and_the_question_comes_back_as_it_was() {
    let config = DnsConfig {
        ttl: "7s".parse().unwrap(),
        negative_ttl: "3s".parse().unwrap(),
        domain: "mesh.example.com".to_owned(),
        ..DnsConfig::default()
    };
    config.validate().unwrap();
    let zone = Zone::new(&config, Locality::default(), [127, 0, 0, 1].into());
    let store = web();
    let odd = "wEb.SerVice.MeSh.eXample.com";
    let found = answer(
        &zone,
        Some(store.catalogue()),
        &question(odd, RecordType::A),
    );
    assert_eq!(found.answers[0].ttl, 7);
    let sent = Message::from_vec(&packet::write(&found, 512, Cut::Truncated)).unwrap();
    let asked = format!("{odd}.");
    assert_eq!(sent.queries[0].name.to_ascii(), asked, "0x20");
    assert_eq!(sent.answers[0].name.to_ascii(), asked);
    let none = answer(
        &zone,
        Some(store.catalogue()),
        &question("x.mesh.example.com", RecordType::A),
    );
    let RData::SOA(soa) = &none.authorities[0].data else {
        panic!("SOA");
    };
    assert_eq!((none.authorities[0].ttl, soa.minimum), (3, 3));
}

#[test]
fn a_server_that_cannot_know_says_servfail() {
    let message = answer(&zone(), None, &question("web.service.mesh", RecordType::A));
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert!(message.answers.is_empty() && message.authorities.is_empty());
}

#[test]
fn x3_answers_come_in_another_order_each_time() {
    let many = (1..=9).map(|i| ("web", at(&format!("i{i}"), &format!("10.0.0.{i}:80"))));
    let store = store(many);
    let zone = zone();
    let mut rng = fastrand::Rng::with_seed(7);
    let bytes = question("web.service.mesh", RecordType::A)
        .to_vec()
        .unwrap();
    let mut first = BTreeSet::new();
    for _ in 0..200 {
        let Read::Question(asked) = packet::read(&bytes, 1232) else {
            panic!("a question");
        };
        let found = zone.answer(*asked, Some(store.catalogue()), &mut rng);
        assert_eq!(ips(&found).len(), 9);
        first.insert(found.answers[0].data.to_string());
    }
    assert_eq!(first.len(), 9, "each was first at some time");
}

#[test]
fn what_has_changed_is_seen_at_once() {
    let mut store = web();
    let zone = zone();
    let query = question("web.service.mesh", RecordType::A);
    assert_eq!(
        ips(&answer(&zone, Some(store.catalogue()), &query)).len(),
        2
    );
    let record = Record {
        service: "web".parse().unwrap(),
        id: "w1".parse().unwrap(),
        stamp: Stamp {
            incarnation: 1,
            hlc: 99,
            owner: "n".into(),
        },
        body: Body::Cancelled,
    };
    store.merge(record, 0);
    assert_eq!(
        ips(&answer(&zone, Some(store.catalogue()), &query)).len(),
        1
    );
}

#[test]
fn x3_what_does_not_fit_is_cut_and_says_so() {
    let many = (0..60).map(|i| {
        let addr = format!("10.0.{}.{}:80", i / 250, i % 250 + 1);
        ("web", at(&format!("instance-number-{i}"), &addr))
    });
    let store = store(many);
    let full = ask(store.catalogue(), "web.service.mesh", RecordType::SRV);
    for limit in [512, 600, 1232, 4096] {
        let bytes = packet::write(&full, limit, Cut::Truncated);
        assert!(bytes.len() <= usize::from(limit));
        let sent = Message::from_vec(&bytes).unwrap();
        let cut = sent.answers.len() < 60;
        assert_eq!(sent.metadata.truncation, cut, "{limit}");
        assert!(
            sent.answers.len() > 5,
            "as many as fit: {}",
            sent.answers.len()
        );
        if !cut {
            assert!(sent.additionals.len() < 60, "an offer that may be left out");
        }
    }
    let whole = Message::from_vec(&packet::write(&full, u16::MAX, Cut::Silently)).unwrap();
    assert_eq!((whole.answers.len(), whole.additionals.len()), (60, 60));
    assert!(!whole.metadata.truncation);
}

#[test]
fn x3_more_than_dns_can_say_is_a_sample() {
    let many = (0..6000).map(|i| {
        let addr = format!("10.{}.{}.{}:80", i / 62_500, i / 250 % 250, i % 250 + 1);
        ("web", at(&format!("i{i}"), &addr))
    });
    let store = store(many);
    for kind in [RecordType::A, RecordType::SRV] {
        let full = ask(store.catalogue(), "web.service.mesh", kind);
        let bytes = packet::write(&full, u16::MAX, Cut::Silently);
        let sent = Message::from_vec(&bytes).unwrap();
        assert!(!sent.metadata.truncation && bytes.len() <= 65_535);
        assert!(sent.answers.len() > 1000, "{kind}: {}", sent.answers.len());
    }
}

#[test]
fn headers_decide_what_is_looked_at() {
    let good = question("web.service.mesh", RecordType::A)
        .to_vec()
        .unwrap();
    let with = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    let code = |packet: &[u8]| match packet::read(packet, 1232) {
        Read::Refused(message) => Some(message.metadata.response_code),
        Read::Drop => None,
        Read::Question(_) => Some(ResponseCode::NoError),
    };
    assert_eq!(code(&good), Some(ResponseCode::NoError));
    assert_eq!(code(&good[..11]), None, "no header");
    assert_eq!(code(&with(2, 0x80)), None, "an answer");
    assert_eq!(
        code(&with(2, 0x28)),
        Some(ResponseCode::NotImp),
        "an update"
    );
    for (at, what) in [
        (5, "two questions"),
        (7, "answers"),
        (9, "authorities"),
        (11, "records"),
    ] {
        assert_eq!(code(&with(at, 9)), Some(ResponseCode::FormErr), "{what}");
    }
    assert_eq!(
        code(&with(5, 0)),
        Some(ResponseCode::FormErr),
        "no question"
    );
    assert_eq!(code(&good[..20]), Some(ResponseCode::FormErr), "cut");
    assert_eq!(code(&vec![0; 5000]), None, "too long");
    let mut chaos = question("web.service.mesh", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos.to_vec().unwrap()), Some(ResponseCode::Refused));
    let mut edns = question("web.service.mesh", RecordType::A);
    edns.set_edns(Edns::new());
    assert_eq!(code(&edns.to_vec().unwrap()), Some(ResponseCode::NoError));
    let mut newer = Edns::new();
    newer.set_version(1);
    edns.set_edns(newer);
    assert_eq!(code(&edns.to_vec().unwrap()), Some(ResponseCode::BADVERS));
}

#[test]
fn labels_are_labels_and_stay_apart() {
    for (id, want) in [
        ("w1", Some("w1")),
        ("a-b", Some("a-b")),
        ("W1", None),
        ("10.0.0.1:80", None),
    ] {
        let got = label(id);
        assert!(want.is_none_or(|want| got == want), "{id}: {got}");
    }
    assert_ne!(label("a.b"), label("a-b"));
    assert_ne!(label("A"), label("a"));
    for odd in [":::", "-", &"x".repeat(128), "_", "A"] {
        let label = label(odd);
        assert!((1..=63).contains(&label.len()), "{odd}: {label}");
        assert!(!label.starts_with('-') && !label.ends_with('-'), "{label}");
    }
}

#[test]
fn what_cannot_work_is_refused() {
    let with = |edit: fn(&mut DnsConfig)| {
        let mut config = DnsConfig::default();
        edit(&mut config);
        config.validate().map_err(|error| error.path)
    };
    assert!(with(|_| {}).is_ok());
    for (field, edit) in [
        (
            "dns.domain",
            (|c| c.domain = String::new()) as fn(&mut DnsConfig),
        ),
        ("dns.domain", |c| c.domain = "a..b".into()),
        ("dns.domain", |c| c.domain = ".".into()),
        ("dns.ttl", |c| c.ttl = "1500ms".parse().unwrap()),
        ("dns.negative_ttl", |c| {
            c.negative_ttl = "48h".parse().unwrap()
        }),
        ("dns.udp_payload", |c| c.udp_payload = 100),
        ("dns.connections", |c| c.connections = 0),
    ] {
        assert_eq!(with(edit), Err(field.to_owned()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever arrives, it is answered within bounds or dropped, and an answer is one.
    #[test]
    fn hostile_packets_do_no_harm(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        flip in proptest::collection::vec((0usize..200, any::<u8>()), 0..6),
        from_good: bool,
    ) {
        let store = web();
        if from_good {
            bytes = question("web.service.mesh", RecordType::SRV).to_vec().unwrap();
            for (at, value) in flip {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
        }
        let message = match packet::read(&bytes, 1232) {
            Read::Drop => return Ok(()),
            Read::Refused(message) => *message,
            Read::Question(question) => {
                zone().answer(*question, Some(store.catalogue()), &mut fastrand::Rng::with_seed(1))
            }
        };
        for limit in [512, 1232, u16::MAX] {
            let sent = packet::write(&message, limit, Cut::Truncated);
            prop_assert!(sent.len() >= 12 && sent.len() <= usize::from(limit));
            let sent = Message::from_vec(&sent).unwrap();
            prop_assert_eq!(sent.metadata.message_type, MessageType::Response);
            prop_assert_eq!(sent.metadata.id, u16::from_be_bytes([bytes[0], bytes[1]]));
        }
    }
}
