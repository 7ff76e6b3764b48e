//! What is under the domain: a question and the catalogue to an answer.

use std::net::IpAddr;

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, HINFO, NS, SOA, SRV},
    },
};
use selvedge_registry::{Locality, ServiceName};

use super::{
    DnsConfig,
    packet::Question,
    services::{Known, Services, Up},
};
use crate::catalogue::Catalogue;

/// Answers that are looked at: four times what fits into 64 KiB.
const MAX_ANSWERS: usize = 4096;

/// The domain, and from where it is seen.
#[derive(Debug)]
pub(super) struct Zone {
    domain: Name,
    ttl: u32,
    negative_ttl: u32,
    here: Locality,
    ns: IpAddr,
    services: Services,
}

/// What a name under the domain is.
enum Named {
    /// The domain itself.
    Apex,
    /// A name that only has others below it.
    Between,
    Ns,
    Service {
        up: Known,
        /// `_name._tcp` has SRV records only.
        only_srv: bool,
    },
    Instance(Up),
    Nothing,
}

impl Zone {
    /// `ns`: where this server is. `config` has been validated.
    pub(super) fn new(config: &DnsConfig, here: Locality, ns: IpAddr) -> Self {
        let mut domain = Name::from_ascii(&config.domain)
            .expect("was validated")
            .to_lowercase();
        domain.set_fqdn(true);
        Self {
            domain,
            ttl: config.ttl.0.as_secs() as u32,
            negative_ttl: config.negative_ttl.0.as_secs() as u32,
            here,
            ns,
            services: Services::default(),
        }
    }

    /// The answer; `catalogue` is `None` while this server cannot know.
    pub(super) fn answer(
        &self,
        question: Question,
        catalogue: Option<&Catalogue>,
        rng: &mut fastrand::Rng,
    ) -> Message {
        let Question {
            mut frame, query, ..
        } = question;
        if !self.domain.zone_of(&query.name) {
            frame.metadata.response_code = ResponseCode::Refused;
            return frame;
        }
        let Some(catalogue) = catalogue else {
            frame.metadata.response_code = ResponseCode::ServFail;
            return frame;
        };
        frame.metadata.authoritative = true;
        match query.query_type {
            RecordType::AXFR | RecordType::IXFR => {
                frame.metadata.authoritative = false;
                frame.metadata.response_code = ResponseCode::Refused;
                return frame;
            }
            _ => {}
        }
        let named = self.named(&query.name, catalogue);
        if matches!(named, Named::Nothing) {
            frame.metadata.response_code = ResponseCode::NXDomain;
        } else if query.query_type == RecordType::ANY {
            // RFC 8482: anything is an answer to ANY, and this one is short.
            let hinfo = HINFO::new("RFC8482".to_owned(), String::new());
            frame.add_answer(self.record(&query.name, RData::HINFO(hinfo)));
        } else {
            self.records(&mut frame, &query, named, catalogue, rng);
        }
        if frame.answers.is_empty() {
            frame.add_authority(self.soa(catalogue, self.negative_ttl));
        }
        frame
    }

    fn named(&self, name: &Name, catalogue: &Catalogue) -> Named {
        let depth = name.iter().len() - self.domain.iter().len();
        let mut labels = Vec::with_capacity(depth);
        for label in name.iter().take(depth) {
            let Ok(label) = std::str::from_utf8(label) else {
                return Named::Nothing;
            };
            labels.push(label.to_ascii_lowercase());
        }
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let service = |name: &str, zone: Option<&str>, only_srv: bool| {
            let Some(mut up) = self.find(name, catalogue) else {
                return Named::Nothing;
            };
            if let Some(zone) = zone {
                let there = |one: &&Up| one.locality.zone.eq_ignore_ascii_case(zone);
                up = up.iter().filter(there).cloned().collect();
                if up.is_empty() {
                    return Named::Nothing;
                }
            }
            Named::Service { up, only_srv }
        };
        match labels.as_slice() {
            [] => Named::Apex,
            ["ns"] => Named::Ns,
            ["_tcp" | "service" | "zone" | "instance"]
            | ["_tcp", "service"]
            | [_, "zone"]
            | ["_tcp", _, "zone"] => Named::Between,
            [name] | [name, "service"] => service(name, None, false),
            [name, "instance"] => match self.find(name, catalogue) {
                Some(_) => Named::Between,
                None => Named::Nothing,
            },
            [name, "_tcp"] | [name, "_tcp", "service"] => match name.strip_prefix('_') {
                Some(name) => service(name, None, true),
                None => Named::Nothing,
            },
            [name, "_tcp", zone, "zone"] => match name.strip_prefix('_') {
                Some(name) => service(name, Some(zone), true),
                None => Named::Nothing,
            },
            [name, zone, "zone"] => service(name, Some(zone), false),
            [instance, name, "instance"] => {
                let up = self.find(name, catalogue);
                let found = up
                    .iter()
                    .flat_map(|up| up.iter())
                    .find(|one| one.label == *instance);
                found.cloned().map_or(Named::Nothing, Named::Instance)
            }
            _ => Named::Nothing,
        }
    }

    fn find(&self, name: &str, catalogue: &Catalogue) -> Option<Known> {
        let name = ServiceName::new(name).ok()?;
        self.services.find(catalogue, &name)
    }

    fn record(&self, name: &Name, data: RData) -> Record {
        Record::from_rdata(name.clone(), self.ttl, data)
    }

    fn under(&self, labels: &[&str]) -> Option<Name> {
        let name = Name::from_labels(labels.iter().map(|label| label.as_bytes())).ok()?;
        name.append_domain(&self.domain).ok()
    }

    fn soa(&self, catalogue: &Catalogue, ttl: u32) -> Record {
        let host = |label| self.under(&[label]).unwrap_or_else(|| self.domain.clone());
        // It is never transferred: the times are what checkers want to see.
        let soa = SOA::new(
            host("ns"),
            host("hostmaster"),
            catalogue.revision().counter as u32,
            3600,
            600,
            86_400,
            self.negative_ttl,
        );
        Record::from_rdata(self.domain.clone(), ttl, RData::SOA(soa))
    }

    fn records(
        &self,
        frame: &mut Message,
        query: &Query,
        named: Named,
        catalogue: &Catalogue,
        rng: &mut fastrand::Rng,
    ) {
        let name = &query.name;
        match (named, query.query_type) {
            (Named::Apex, RecordType::SOA) => {
                frame.add_answer(self.soa(catalogue, self.ttl));
            }
            (Named::Apex, RecordType::NS) => {
                if let Some(ns) = self.under(&["ns"]) {
                    frame.add_answer(self.record(name, RData::NS(NS(ns.clone()))));
                    frame.add_additionals(self.address(&ns, self.ns));
                }
            }
            (Named::Ns, kind) if kind == kind_of(self.ns) => {
                frame.add_answers(self.address(name, self.ns));
            }
            (Named::Instance(one), kind) if kind == kind_of(one.addr.ip()) => {
                frame.add_answer(self.record(name, data_of(one.addr.ip())));
            }
            (Named::Instance(one), RecordType::SRV) => {
                self.srv(frame, name, name.clone(), &one);
            }
            (
                Named::Service {
                    up,
                    only_srv: false,
                    ..
                },
                kind @ (RecordType::A | RecordType::AAAA),
            ) => {
                let mut ips: Vec<IpAddr> = up.iter().map(|one| one.addr.ip()).collect();
                ips.retain(|ip| kind_of(*ip) == kind);
                ips.sort_unstable();
                ips.dedup();
                rng.shuffle(&mut ips);
                let ips = ips.into_iter().take(MAX_ANSWERS);
                frame.add_answers(ips.map(|ip| self.record(name, data_of(ip))));
            }
            (Named::Service { up, .. }, RecordType::SRV) => {
                let mut order: Vec<&Up> = up.iter().collect();
                rng.shuffle(&mut order);
                let service = service_of(name);
                for one in order.into_iter().take(MAX_ANSWERS) {
                    if let Some(target) = self.under(&[&one.label, &service, "instance"]) {
                        self.srv(frame, name, target, one);
                    }
                }
            }
            _ => {}
        }
    }

    fn srv(&self, frame: &mut Message, name: &Name, target: Name, one: &Up) {
        let srv = SRV::new(
            self.priority(&one.locality),
            one.weight,
            one.addr.port(),
            target.clone(),
        );
        frame.add_answer(self.record(name, RData::SRV(srv)));
        frame.add_additional(self.record(&target, data_of(one.addr.ip())));
    }

    /// Near before far. Who does not say where it is counts as near: nobody would call it else.
    fn priority(&self, there: &Locality) -> u16 {
        let same = |a: &str, b: &str| a.is_empty() || b.is_empty() || a.eq_ignore_ascii_case(b);
        match (
            same(&self.here.region, &there.region),
            same(&self.here.zone, &there.zone),
        ) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        }
    }

    fn address(&self, name: &Name, ip: IpAddr) -> Option<Record> {
        (!ip.is_unspecified()).then(|| self.record(name, data_of(ip)))
    }
}

/// The label of the service in a name that was found to be one's.
fn service_of(name: &Name) -> String {
    let first = name.iter().next().unwrap_or_default();
    let first = String::from_utf8_lossy(first).to_ascii_lowercase();
    first.trim_start_matches('_').to_owned()
}

fn kind_of(ip: IpAddr) -> RecordType {
    match ip {
        IpAddr::V4(_) => RecordType::A,
        IpAddr::V6(_) => RecordType::AAAA,
    }
}

fn data_of(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}
