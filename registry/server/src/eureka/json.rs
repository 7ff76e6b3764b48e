//! The strict form of Eureka's JSON: no key that Java does not know, lists that are always lists.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::model::{Application, Applications, Instance, Port, status_name};

/// How much of an instance is written. Source: `X-Eureka-Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Detail {
    Full,
    Compact,
}

/// What compact documents keep of an Amazon instance. Source: Netflix's `AmazonInfo` mini codec.
const COMPACT_AMAZON: [&str; 5] = [
    "instance-id",
    "public-ipv4",
    "public-hostname",
    "local-ipv4",
    "availability-zone",
];

impl Detail {
    /// What of a data centre's metadata is written.
    pub(crate) fn keeps(self, key: &str) -> bool {
        self == Self::Full || COMPACT_AMAZON.contains(&key)
    }
}

/// `{"applications":{…}}`.
pub(crate) fn applications(all: &Applications, detail: Detail) -> Vec<u8> {
    to_vec(&Named("applications", &AllOut(all, detail)))
}

/// `{"application":{…}}`.
pub(crate) fn application(one: &Application, detail: Detail) -> Vec<u8> {
    to_vec(&Named("application", &AppOut(one, detail)))
}

/// `{"instance":{…}}`.
pub(crate) fn instance(one: &Instance, detail: Detail) -> Vec<u8> {
    to_vec(&Named("instance", &InstanceOut(one, detail)))
}

/// An instance as it stands in a batch between servers: without a name around it.
pub(crate) fn bare(one: &Instance) -> impl Serialize {
    InstanceOut(one, Detail::Full)
}

fn to_vec(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("text keys and no float: it is JSON")
}

struct Named<'a, T>(&'static str, &'a T);

impl<T: Serialize> Serialize for Named<'_, T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(1))?;
        map.serialize_entry(self.0, self.1)?;
        map.end()
    }
}

struct AllOut<'a>(&'a Applications, Detail);

impl Serialize for AllOut<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let Self(all, detail) = self;
        let list: Vec<_> = all
            .applications
            .iter()
            .map(|a| AppOut(a, *detail))
            .collect();
        let mut map = s.serialize_map(Some(3))?;
        map.serialize_entry("versions__delta", &all.version.to_string())?;
        map.serialize_entry("apps__hashcode", &all.hash)?;
        map.serialize_entry("application", &list)?;
        map.end()
    }
}

struct AppOut<'a>(&'a Application, Detail);

impl Serialize for AppOut<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let Self(app, detail) = self;
        let list: Vec<_> = app
            .instances
            .iter()
            .map(|i| InstanceOut(i, *detail))
            .collect();
        let mut map = s.serialize_map(Some(2))?;
        map.serialize_entry("name", &app.name)?;
        map.serialize_entry("instance", &list)?;
        map.end()
    }
}

struct InstanceOut<'a>(&'a Instance, Detail);

impl Serialize for InstanceOut<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let Self(one, detail) = self;
        let full = *detail == Detail::Full;
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("instanceId", &one.id)?;
        map.serialize_entry("hostName", &one.host)?;
        map.serialize_entry("app", &one.app)?;
        map.serialize_entry("ipAddr", &one.ip)?;
        map.serialize_entry("status", status_name(one.status))?;
        if full {
            map.serialize_entry("overriddenStatus", status_name(one.overridden))?;
        }
        map.serialize_entry("port", &PortOut(one.port))?;
        map.serialize_entry("securePort", &PortOut(one.secure_port))?;
        if full {
            map.serialize_entry("countryId", &one.country)?;
        }
        map.serialize_entry("dataCenterInfo", &DataCenterOut(one, *detail))?;
        if full {
            map.serialize_entry("leaseInfo", &LeaseOut(one))?;
            map.serialize_entry("metadata", &MetadataOut(&one.metadata))?;
            let urls = [
                ("sid", &one.sid),
                ("homePageUrl", &one.urls.home),
                ("statusPageUrl", &one.urls.status),
                ("healthCheckUrl", &one.urls.health),
                ("secureHealthCheckUrl", &one.urls.secure_health),
                ("appGroupName", &one.app_group),
            ];
            some_of(&mut map, urls)?;
        }
        some_of(
            &mut map,
            [
                ("vipAddress", &one.vip),
                ("secureVipAddress", &one.secure_vip),
            ],
        )?;
        if full {
            let coordinating = one.is_coordinating.to_string();
            map.serialize_entry("isCoordinatingDiscoveryServer", &coordinating)?;
        }
        map.serialize_entry("lastUpdatedTimestamp", &millis(one.updated_ms))?;
        if full {
            map.serialize_entry("lastDirtyTimestamp", &millis(one.dirty_ms))?;
        }
        map.serialize_entry("actionType", one.action.name())?;
        some_of(&mut map, [("asgName", &one.asg)])?;
        map.end()
    }
}

pub(crate) fn millis(ms: Option<i64>) -> String {
    ms.unwrap_or_default().to_string()
}

fn some_of<'a, M: SerializeMap>(
    map: &mut M,
    fields: impl IntoIterator<Item = (&'static str, &'a Option<String>)>,
) -> Result<(), M::Error> {
    for (name, value) in fields {
        if let Some(value) = value {
            map.serialize_entry(name, value)?;
        }
    }
    Ok(())
}

struct PortOut(Port);

impl Serialize for PortOut {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(2))?;
        map.serialize_entry("$", &self.0.number)?;
        map.serialize_entry("@enabled", if self.0.enabled { "true" } else { "false" })?;
        map.end()
    }
}

struct DataCenterOut<'a>(&'a Instance, Detail);

impl Serialize for DataCenterOut<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let Self(one, detail) = self;
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("@class", one.data_center.class())?;
        map.serialize_entry("name", one.data_center.name())?;
        if one.data_center == super::model::DataCenter::Amazon {
            let kept = one.data_center_metadata.iter();
            let kept: BTreeMap<_, _> = kept.filter(|(key, _)| detail.keeps(key)).collect();
            map.serialize_entry("metadata", &kept)?;
        }
        map.end()
    }
}

struct LeaseOut<'a>(&'a Instance);

impl Serialize for LeaseOut<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let lease = self.0.lease;
        let mut map = s.serialize_map(Some(6))?;
        map.serialize_entry("renewalIntervalInSecs", &lease.renewal_secs)?;
        map.serialize_entry("durationInSecs", &lease.duration_secs)?;
        map.serialize_entry("registrationTimestamp", &lease.registered_ms)?;
        map.serialize_entry("lastRenewalTimestamp", &lease.renewed_ms)?;
        map.serialize_entry("evictionTimestamp", &0)?;
        map.serialize_entry("serviceUpTimestamp", &lease.up_ms)?;
        map.end()
    }
}

struct MetadataOut<'a>(&'a BTreeMap<String, String>);

impl Serialize for MetadataOut<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if !self.0.is_empty() {
            return self.0.serialize(s);
        }
        let mut map = s.serialize_map(Some(1))?;
        map.serialize_entry("@class", super::EMPTY_MAP)?;
        map.end()
    }
}
