//! Services and instances.

use std::collections::BTreeMap;

use selvedge_registry::{
    api::{CatalogPage, InstancePage},
    wire::{InstanceRecord, ServiceList, ServiceRecord},
};
use serde_json::Value;

use super::{Answer, document, moment, or_dash, place, word};

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

impl Answer for CatalogPage {
    fn document(&self) -> Value {
        document(self)
    }
    fn columns(&self) -> &'static [&'static str] {
        &[
            "service", "up", "of", "versions", "zones", "team", "on call", "policy",
        ]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let counted = |counts: &BTreeMap<String, usize>| {
            let all = counts.iter().map(|(what, n)| format!("{what}×{n}"));
            or_dash(Some(&all.collect::<Vec<_>>().join(" ")))
        };
        let services = self.services.iter();
        services
            .map(|s| {
                let ownership = s.ownership.as_ref();
                vec![
                    s.name.to_string(),
                    s.up.to_string(),
                    s.instances.to_string(),
                    counted(&s.versions),
                    counted(&s.zones),
                    or_dash(ownership.and_then(|o| o.team.as_deref())),
                    or_dash(ownership.and_then(|o| o.on_call.as_deref())),
                    s.policy
                        .map_or("-".to_owned(), |version| format!("v{version}")),
                ]
            })
            .collect()
    }
}

const INSTANCE: [&str; 9] = [
    "instance", "status", "address", "protocol", "weight", "place", "version", "lease", "kept by",
];

fn row(instance: &InstanceRecord) -> Vec<String> {
    let mut status = word(&instance.status);
    if instance.overridden.is_some() {
        status.push_str(" (override)");
    }
    vec![
        instance.id.to_string(),
        status,
        instance.addr.to_string(),
        word(&instance.protocol),
        instance.weight.to_string(),
        place(&instance.locality),
        or_dash(instance.version.as_deref()),
        instance.ttl.to_string(),
        or_dash(Some(&instance.owner)),
    ]
}

impl Answer for ServiceRecord {
    fn document(&self) -> Value {
        document(self)
    }
    fn columns(&self) -> &'static [&'static str] {
        &INSTANCE
    }
    fn rows(&self) -> Vec<Vec<String>> {
        self.instances.iter().map(row).collect()
    }
}

/// One of a series: which service, and when.
pub(crate) struct Seen(pub(crate) ServiceRecord);

impl Answer for Seen {
    fn document(&self) -> Value {
        document(&self.0)
    }
    fn headline(&self) -> Option<String> {
        let ServiceRecord {
            service,
            revision,
            instances,
        } = &self.0;
        Some(format!("{service} at {revision}: {}", instances.len()))
    }
    fn columns(&self) -> &'static [&'static str] {
        self.0.columns()
    }
    fn rows(&self) -> Vec<Vec<String>> {
        self.0.rows()
    }
}

impl Answer for InstancePage {
    fn document(&self) -> Value {
        document(self)
    }
    fn columns(&self) -> &'static [&'static str] {
        &[
            "service", "instance", "status", "address", "protocol", "weight", "place", "version",
            "lease", "kept by",
        ]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let entries = self.instances.iter();
        entries
            .map(|entry| {
                let mut cells = vec![entry.service.to_string()];
                cells.extend(row(&entry.instance));
                cells
            })
            .collect()
    }
}

impl Answer for InstanceRecord {
    fn document(&self) -> Value {
        document(self)
    }
    fn columns(&self) -> &'static [&'static str] {
        &["field", "value"]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let tags: Vec<&str> = self.tags.iter().map(String::as_str).collect();
        let mut rows = vec![
            ("instance", self.id.to_string()),
            ("status", word(&self.status)),
            ("reported", word(&self.reported)),
            (
                "override",
                self.overridden.map_or("-".to_owned(), |s| word(&s)),
            ),
            ("address", self.addr.to_string()),
            ("protocol", word(&self.protocol)),
            ("weight", self.weight.to_string()),
            ("place", place(&self.locality)),
            ("version", or_dash(self.version.as_deref())),
            ("tags", or_dash(Some(&tags.join(" ")))),
            ("lease", self.ttl.to_string()),
            ("kept by", or_dash(Some(&self.owner))),
            ("incarnation", self.incarnation.to_string()),
            ("registered", moment(self.registered_ms)),
            ("changed", moment(self.changed_ms)),
        ];
        let ownership = self.ownership.iter().flat_map(|o| o.fields());
        rows.extend(ownership.map(|(name, text)| (name, text.to_owned())));
        let rows = rows
            .into_iter()
            .map(|(name, text)| vec![name.to_owned(), text]);
        let metadata = self.metadata.iter();
        rows.chain(metadata.map(|(key, value)| vec![format!("meta.{key}"), value.clone()]))
            .collect()
    }
}
