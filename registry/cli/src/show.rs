//! Answers as tables and as documents.

use std::{fmt, sync::Arc};

use selvedge_registry::{
    InstanceStatus, Locality,
    client::EndpointSnapshot,
    wire::{MemberList, ServiceList, ServiceRecord},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::ask::Status;

/// What can be shown.
pub(crate) trait Answer {
    /// For scripts.
    fn document(&self) -> Value;
    /// A line above the table.
    fn headline(&self) -> Option<String> {
        None
    }
    /// The names of the columns.
    fn columns(&self) -> &'static [&'static str];
    /// As many cells a row as there are columns.
    fn rows(&self) -> Vec<Vec<String>>;
}

/// Columns as wide as their widest cell, two spaces between them.
pub(crate) struct Table {
    headline: Option<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn of<A: Answer>(answer: &A) -> Self {
        let head = answer.columns().iter().map(|name| name.to_uppercase());
        let mut rows = vec![head.collect::<Vec<_>>()];
        rows.extend(answer.rows());
        Self {
            headline: answer.headline(),
            rows,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(headline) = &self.headline {
            writeln!(f, "{headline}")?;
        }
        let columns = self.rows.first().map_or(0, Vec::len);
        let widest = |column: usize| {
            let cells = self.rows.iter().filter_map(move |row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(widest).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let padded: Vec<_> = cells.map(|(cell, w)| format!("{cell:<w$}")).collect();
            writeln!(f, "{}", padded.join("  ").trim_end())?;
        }
        Ok(())
    }
}

fn document(answer: &impl Serialize) -> Value {
    // Our documents always serialise: their keys are strings.
    serde_json::to_value(answer).unwrap_or_default()
}

fn place(locality: &Locality) -> String {
    match (locality.region.as_str(), locality.zone.as_str()) {
        ("", "") => "-".to_owned(),
        (region, "") => region.to_owned(),
        ("", zone) => zone.to_owned(),
        (region, zone) => format!("{region}/{zone}"),
    }
}

/// A word of the wire, as it is written there.
fn word(value: &impl Serialize) -> String {
    match document(value) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

impl Answer for MemberList {
    fn document(&self) -> Value {
        document(self)
    }
    fn columns(&self) -> &'static [&'static str] {
        &["node", "state", "http", "gossip", "place", "instances"]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |m: &selvedge_registry::wire::MemberInfo| {
            vec![
                format!("{}{}", m.node, if m.me { " *" } else { "" }),
                word(&m.state),
                m.http.to_string(),
                m.gossip.to_string(),
                place(&m.locality),
                m.owned.to_string(),
            ]
        };
        self.members.iter().map(row).collect()
    }
}

impl Answer for Status {
    fn document(&self) -> Value {
        document(self)
    }
    fn headline(&self) -> Option<String> {
        let n = self.members.members.len();
        let how = if self.is_well() {
            "all serve"
        } else {
            "not all serve"
        };
        Some(format!(
            "{n} registry servers, {how}; {} services, {} instances, {} of them up\n",
            self.services, self.instances, self.up
        ))
    }
    fn columns(&self) -> &'static [&'static str] {
        self.members.columns()
    }
    fn rows(&self) -> Vec<Vec<String>> {
        self.members.rows()
    }
}

impl Answer for ServiceList {
    fn document(&self) -> Value {
        document(self)
    }
    fn columns(&self) -> &'static [&'static str] {
        &["service", "instances", "up"]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let services = self.services.iter();
        services
            .map(|s| {
                vec![
                    s.name.to_string(),
                    s.instances.to_string(),
                    s.up.to_string(),
                ]
            })
            .collect()
    }
}

impl Answer for ServiceRecord {
    fn document(&self) -> Value {
        document(self)
    }
    fn columns(&self) -> &'static [&'static str] {
        &[
            "instance", "status", "address", "protocol", "weight", "place", "lease", "kept by",
        ]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |i: &selvedge_registry::wire::InstanceRecord| {
            vec![
                i.id.to_string(),
                word(&i.status),
                i.addr.to_string(),
                word(&i.protocol),
                i.weight.to_string(),
                place(&i.locality),
                i.ttl.to_string(),
                i.owner.clone(),
            ]
        };
        self.instances.iter().map(row).collect()
    }
}

/// Endpoints as a caller sees them.
pub(crate) struct Seen(pub(crate) Arc<EndpointSnapshot>);

impl Answer for Seen {
    fn document(&self) -> Value {
        let endpoints = self.0.endpoints.iter().map(|e| {
            json!({
                "id": e.id,
                "addr": e.addr,
                "status": InstanceStatus::Up,
                "weight": e.weight,
                "protocol": e.protocol,
                "locality": e.locality,
                "incarnation": e.incarnation,
            })
        });
        json!({
            "service": self.0.service,
            "revision": self.0.revision,
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
    fn headline(&self) -> Option<String> {
        let (service, n) = (&self.0.service, self.0.endpoints.len());
        Some(format!("{service} at {}: {n} take calls", self.0.revision))
    }
    fn columns(&self) -> &'static [&'static str] {
        &["instance", "address", "protocol", "weight", "place"]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |e: &selvedge_registry::Endpoint| {
            vec![
                e.id.to_string(),
                e.addr.to_string(),
                word(&e.protocol),
                e.weight.to_string(),
                place(&e.locality),
            ]
        };
        self.0.endpoints.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let list: ServiceList = serde_json::from_value(json!({
            "revision": "1-2",
            "services": [
                {"name": "a", "instances": 10, "up": 9},
                {"name": "a-long-one", "instances": 1, "up": 0},
            ],
        }))
        .expect("a list");
        let text = Table::of(&list).to_string();
        let want =
            "SERVICE     INSTANCES  UP\na           10         9\na-long-one  1          0\n";
        assert_eq!(text, want);
    }
}
