//! An instance as Eureka's clients know it, and how its documents are read.
//!
//! Twelve years of clients write the same field as an object, a list, a number, a string or a
//! boolean, and read it in one form only. So everything that makes sense is taken here, whatever
//! its form, and `json` and `xml` write one form.

use std::collections::BTreeMap;

use selvedge_registry::InstanceStatus;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Port of an instance that names none. Source: `InstanceInfo.DEFAULT_PORT`.
const DEFAULT_PORT: u16 = 7001;
/// The same with TLS. Source: `InstanceInfo.DEFAULT_SECURE_PORT`.
const DEFAULT_SECURE_PORT: u16 = 7002;
/// Seconds between renewals, and of the lease. Source: `LeaseInfo`, 30 and 90.
pub(crate) const RENEWAL: i32 = 30;
pub(crate) const DURATION: i32 = 90;

/// One of an instance's two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) enabled: bool,
}

/// Where it runs; the class that Java clients resolve follows from it and is never echoed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum DataCenter {
    #[default]
    MyOwn,
    Netflix,
    Amazon,
}

impl DataCenter {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MyOwn => "MyOwn",
            Self::Netflix => "Netflix",
            Self::Amazon => "Amazon",
        }
    }

    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::MyOwn | Self::Netflix => "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
            Self::Amazon => "com.netflix.appinfo.AmazonInfo",
        }
    }

    fn of(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "amazon" => Self::Amazon,
            "netflix" => Self::Netflix,
            _ => Self::MyOwn,
        }
    }
}

/// What a delta says has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Added,
    Modified,
    Deleted,
}

impl Action {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lease {
    pub(crate) renewal_secs: i32,
    pub(crate) duration_secs: i32,
    pub(crate) registered_ms: i64,
    pub(crate) renewed_ms: i64,
    pub(crate) up_ms: i64,
}

/// Everything that an `instance` document holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) host: String,
    /// Upper case.
    pub(crate) app: String,
    pub(crate) ip: String,
    pub(crate) sid: Option<String>,
    pub(crate) status: InstanceStatus,
    /// `Unknown`: none.
    pub(crate) overridden: InstanceStatus,
    pub(crate) port: Port,
    pub(crate) secure_port: Port,
    pub(crate) country: i32,
    pub(crate) data_center: DataCenter,
    pub(crate) data_center_metadata: BTreeMap<String, String>,
    pub(crate) lease: Lease,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) urls: Urls,
    pub(crate) vip: Option<String>,
    pub(crate) secure_vip: Option<String>,
    pub(crate) asg: Option<String>,
    pub(crate) app_group: Option<String>,
    pub(crate) is_coordinating: bool,
    /// Not given: when it arrived.
    pub(crate) updated_ms: Option<i64>,
    pub(crate) dirty_ms: Option<i64>,
    pub(crate) action: Action,
}

/// Where people and load balancers look.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Urls {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) home: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secure_health: Option<String>,
}

/// Instances of one name, as they are written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Application {
    pub(crate) name: String,
    pub(crate) instances: Vec<Instance>,
}

/// A whole answer of `apps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Applications {
    pub(crate) version: i64,
    pub(crate) hash: String,
    pub(crate) applications: Vec<Application>,
}

/// A status in Eureka's word.
pub(crate) fn status_name(status: InstanceStatus) -> &'static str {
    match status {
        InstanceStatus::Up => "UP",
        InstanceStatus::Down => "DOWN",
        InstanceStatus::Starting => "STARTING",
        InstanceStatus::OutOfService => "OUT_OF_SERVICE",
        InstanceStatus::Unknown => "UNKNOWN",
    }
}

/// The status that a word means; `None` if it is none of Eureka's.
pub(crate) fn status_of(word: &str) -> Option<InstanceStatus> {
    Some(match word.to_ascii_uppercase().as_str() {
        "UP" => InstanceStatus::Up,
        "DOWN" => InstanceStatus::Down,
        "STARTING" => InstanceStatus::Starting,
        "OUT_OF_SERVICE" => InstanceStatus::OutOfService,
        "UNKNOWN" => InstanceStatus::Unknown,
        _ => return None,
    })
}

/// Reads the body of a registration, `{"instance":{…}}` or the instance itself.
///
/// # Errors
/// What is missing, in the words of Netflix's server.
pub(crate) fn read(document: &Value) -> Result<Instance, String> {
    let object = match document.get("instance") {
        Some(Value::Array(list)) if list.len() == 1 => &list[0],
        Some(inner) => inner,
        None => document,
    };
    let Value::Object(object) = object else {
        return Err("expected an object: {\"instance\":{…}}".to_owned());
    };
    let fields = Fields(object);
    let host = fields.needed("hostName", "Missing hostname")?;
    let data_center = match object.get("dataCenterInfo").map(flat) {
        Some(Value::Object(info)) => Fields(info),
        _ => return Err("Missing dataCenterInfo".to_owned()),
    };
    let data_center_name = data_center.needed("name", "Missing dataCenterInfo Name")?;
    let status = |names: [&str; 3]| {
        let word = names.into_iter().find_map(|name| fields.text(name));
        word.map(|word| status_of(&word).unwrap_or(InstanceStatus::Unknown))
    };
    Ok(Instance {
        id: fields.text("instanceId").unwrap_or_else(|| host.clone()),
        app: fields
            .needed("app", "Missing appName")?
            .to_ascii_uppercase(),
        ip: fields.needed("ipAddr", "Missing ip address")?,
        host,
        sid: fields
            .text("sid")
            .filter(|sid| sid != "na" && sid != "unknown"),
        status: status(["status"; 3]).unwrap_or(InstanceStatus::Up),
        overridden: status(["overriddenStatus", "overriddenstatus", "overridden_status"])
            .unwrap_or(InstanceStatus::Unknown),
        port: port(object.get("port"), DEFAULT_PORT, true)?,
        secure_port: port(object.get("securePort"), DEFAULT_SECURE_PORT, false)?,
        country: fields.number("countryId").unwrap_or(1),
        data_center: DataCenter::of(&data_center_name),
        data_center_metadata: metadata(data_center.0.get("metadata"))?,
        lease: lease(object.get("leaseInfo")),
        metadata: metadata(object.get("metadata"))?,
        urls: Urls {
            home: fields.text("homePageUrl"),
            status: fields.text("statusPageUrl"),
            health: fields.text("healthCheckUrl"),
            secure_health: fields.text("secureHealthCheckUrl"),
        },
        vip: fields.text("vipAddress"),
        secure_vip: fields.text("secureVipAddress"),
        asg: fields.text("asgName"),
        app_group: fields.text("appGroupName"),
        is_coordinating: fields.text("isCoordinatingDiscoveryServer").as_deref() == Some("true"),
        updated_ms: fields.number("lastUpdatedTimestamp").filter(|ms| *ms > 0),
        dirty_ms: fields.number("lastDirtyTimestamp").filter(|ms| *ms > 0),
        action: Action::Added,
    })
}

/// An object's fields, in whatever form their values have.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a Map<String, Value>);

impl Fields<'_> {
    /// A field's text; `None` if it is absent, null, blank or has parts.
    pub(crate) fn text(self, name: &str) -> Option<String> {
        scalar(self.0.get(name)?).filter(|text| !text.trim().is_empty())
    }

    pub(crate) fn needed(self, name: &str, missing: &str) -> Result<String, String> {
        self.text(name).ok_or_else(|| missing.to_owned())
    }

    pub(crate) fn number<T: TryFrom<i64>>(self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        let number = text.trim().parse::<f64>().ok()?;
        // Beyond 2^53 a double is not exact; milliseconds are far below.
        let whole = text.trim().parse().unwrap_or(number as i64);
        T::try_from(whole).ok()
    }
}

/// The only item of a list of one.
fn flat(value: &Value) -> &Value {
    match value {
        Value::Array(list) if list.len() == 1 => &list[0],
        other => other,
    }
}

fn scalar(value: &Value) -> Option<String> {
    match flat(value) {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Object(object) => object.get("$").and_then(scalar),
        Value::Null | Value::Array(_) => None,
    }
}

/// `{"$":8080,"@enabled":"true"}`, or just the number.
fn port(value: Option<&Value>, default: u16, enabled: bool) -> Result<Port, String> {
    let Some(value) = value.map(flat) else {
        return Ok(Port {
            number: default,
            enabled,
        });
    };
    let number = match scalar(value) {
        None => default,
        // 0 and −1 are how clients say that there is none.
        Some(text) => match text.trim().parse::<i64>() {
            Ok(number) if number <= 0 => 0,
            Ok(number) => u16::try_from(number).map_err(|_| format!("{number} is not a port"))?,
            Err(_) => return Err(format!("{text:?} is not a port")),
        },
    };
    let flag = match value {
        Value::Object(object) => ["@enabled", "enabled"]
            .into_iter()
            .find_map(|name| Fields(object).text(name)),
        _ => None,
    };
    let enabled = flag.map_or(enabled, |flag| flag.eq_ignore_ascii_case("true"));
    Ok(Port { number, enabled })
}

fn lease(value: Option<&Value>) -> Lease {
    let none = Map::new();
    let fields = match value.map(flat) {
        Some(Value::Object(object)) => Fields(object),
        _ => Fields(&none),
    };
    let positive = |name, default| fields.number(name).filter(|n| *n > 0).unwrap_or(default);
    Lease {
        renewal_secs: positive("renewalIntervalInSecs", RENEWAL),
        duration_secs: positive("durationInSecs", DURATION),
        registered_ms: fields.number("registrationTimestamp").unwrap_or(0),
        renewed_ms: fields.number("lastRenewalTimestamp").unwrap_or(0),
        up_ms: fields.number("serviceUpTimestamp").unwrap_or(0),
    }
}

/// Keys and values; what Java adds to name its own class is left out, and what has parts becomes
/// text: one nested value would make every Spring client's fetch fail.
pub(crate) fn metadata(value: Option<&Value>) -> Result<BTreeMap<String, String>, String> {
    let object = match value.map(flat) {
        Some(Value::Object(object)) => object,
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(BTreeMap::new()),
        Some(_) => return Err("metadata must be an object".to_owned()),
    };
    let pairs = object
        .iter()
        .filter(|(key, value)| !value.is_null() && !key.is_empty())
        .filter(|(key, _)| !matches!(key.as_str(), "@class" | "class"))
        .map(|(key, value)| match value {
            Value::String(text) => (key.clone(), text.clone()),
            other => (key.clone(), other.to_string()),
        });
    Ok(pairs.collect())
}
