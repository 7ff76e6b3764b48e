//! An Eureka instance as a record of the catalogue, and any record as an Eureka instance.

use std::{collections::BTreeMap, net::IpAddr};

use selvedge_registry::{
    AppProtocol, InstanceId, InstanceStatus, Locality, ServiceName,
    wire::{InstanceRecord, MAX_LOCALITY, MAX_VERSION, RegisterRequest, TTL},
};
use selvedge_resilience::config::Millis;
use serde::{Deserialize, Serialize};

use super::{
    DIALECT,
    model::{Action, DataCenter, Instance, Lease, Port, Urls},
    names,
};

/// Bytes that one text of an instance may have.
const MAX_TEXT: usize = 2048;

/// What Eureka's clients must be given back and v1 does not know: kept with the record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Extra {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    host: String,
    /// As it was written, if that is not how addresses are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip: Option<String>,
    port: (u16, bool),
    secure: (u16, bool),
    country: i32,
    #[serde(default)]
    dc: DataCenter,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    dcm: BTreeMap<String, String>,
    renewal: i32,
    duration: i32,
    #[serde(default)]
    urls: Urls,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vip: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    svip: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asg: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    #[serde(default)]
    coordinating: bool,
    pub(crate) dirty: i64,
    updated: i64,
    /// When it was first up.
    pub(crate) up: i64,
    /// Known from a Eureka beside us, which hears of it from its clients and tells its peers.
    #[serde(default)]
    pub(crate) from_peer: bool,
}

impl Extra {
    pub(crate) fn of(record: &InstanceRecord) -> Option<Self> {
        serde_json::from_str(record.dialects.get(DIALECT)?).ok()
    }

    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(self).expect("texts, numbers and maps of texts serialise")
    }
}

/// What a registration becomes.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) service: ServiceName,
    pub(crate) id: InstanceId,
    pub(crate) request: RegisterRequest,
    pub(crate) extra: Extra,
}

/// Where callers reach it: the port that is switched on, the plain one first.
fn main_port(instance: &Instance) -> Result<u16, String> {
    let (plain, secure) = (instance.port, instance.secure_port);
    let choices = [
        (plain.enabled, plain.number),
        (secure.enabled, secure.number),
        (true, plain.number),
    ];
    let chosen = choices.into_iter().find(|(on, number)| *on && *number > 0);
    let chosen = chosen.ok_or("port is 0 or off: an instance must be reachable")?;
    Ok(chosen.1)
}

fn check_lengths(instance: &Instance) -> Result<(), String> {
    let urls = &instance.urls;
    for (name, text) in [
        ("hostName", Some(&instance.host)),
        ("ipAddr", Some(&instance.ip)),
        ("sid", instance.sid.as_ref()),
        ("homePageUrl", urls.home.as_ref()),
        ("statusPageUrl", urls.status.as_ref()),
        ("healthCheckUrl", urls.health.as_ref()),
        ("secureHealthCheckUrl", urls.secure_health.as_ref()),
        ("vipAddress", instance.vip.as_ref()),
        ("secureVipAddress", instance.secure_vip.as_ref()),
        ("asgName", instance.asg.as_ref()),
        ("appGroupName", instance.app_group.as_ref()),
    ] {
        let len = text.map_or(0, String::len);
        if len > MAX_TEXT {
            return Err(format!("{name} has {len} bytes: at most {MAX_TEXT}"));
        }
    }
    for (name, text) in [("app", &instance.app), ("instanceId", &instance.id)] {
        if text.len() > names::MAX_NAME {
            let (len, max) = (text.len(), names::MAX_NAME);
            return Err(format!("{name} has {len} bytes: at most {max}"));
        }
    }
    let bytes: usize = instance
        .data_center_metadata
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if bytes > 4 * MAX_TEXT {
        return Err(format!("dataCenterInfo has {bytes} bytes of metadata"));
    }
    Ok(())
}

/// Makes a registration of what an instance says.
///
/// # Errors
/// What of it cannot be taken, as a sentence.
pub(crate) fn registration(instance: &Instance, now_ms: i64) -> Result<Registration, String> {
    check_lengths(instance)?;
    let bare = instance.ip.trim_start_matches('[').trim_end_matches(']');
    let ip: IpAddr = bare
        .parse()
        .map_err(|_| format!("ipAddr {:?} is not an address", instance.ip))?;
    let service = names::service(&instance.app);
    let id = names::instance(&instance.id);
    let lease = instance.lease;
    let seconds = u64::from(lease.duration_secs.unsigned_abs());
    let ttl = std::time::Duration::from_secs(seconds).clamp(*TTL.start(), *TTL.end());
    let said = |key: &str| instance.metadata.get(key).map(String::as_str);
    let fits = |text: &str, max: usize| (1..=max).contains(&text.len());
    let zone = said("zone").or_else(|| {
        let place = instance.data_center_metadata.get("availability-zone");
        place.map(String::as_str)
    });
    let locality = |text: Option<&str>| {
        let text = text.filter(|text| fits(text, MAX_LOCALITY));
        text.unwrap_or_default().to_owned()
    };
    let weight = said("weight").and_then(|text| text.parse().ok());
    let request = RegisterRequest {
        addr: (ip, main_port(instance)?).into(),
        ttl: Millis(ttl),
        weight: weight.filter(|n| (1..=1000).contains(n)).unwrap_or(1),
        status: instance.status,
        protocol: AppProtocol::default(),
        locality: Locality {
            region: locality(said("region")),
            zone: locality(zone),
        },
        incarnation: None,
        version: said("version")
            .filter(|text| fits(text, MAX_VERSION))
            .map(str::to_owned),
        tags: std::collections::BTreeSet::new(),
        ownership: None,
        metadata: instance.metadata.clone(),
    };
    request.validate()?;
    let extra = Extra {
        app: (names::app(&service) != instance.app).then(|| instance.app.clone()),
        id: (id.as_str() != instance.id).then(|| instance.id.clone()),
        host: instance.host.clone(),
        ip: (ip.to_string() != instance.ip).then(|| instance.ip.clone()),
        port: (instance.port.number, instance.port.enabled),
        secure: (instance.secure_port.number, instance.secure_port.enabled),
        country: instance.country,
        dc: instance.data_center,
        dcm: instance.data_center_metadata.clone(),
        renewal: lease.renewal_secs,
        duration: lease.duration_secs,
        urls: instance.urls.clone(),
        vip: instance.vip.clone(),
        svip: instance.secure_vip.clone(),
        asg: instance.asg.clone(),
        group: instance.app_group.clone(),
        sid: instance.sid.clone(),
        coordinating: instance.is_coordinating,
        dirty: instance.dirty_ms.unwrap_or(now_ms),
        updated: instance.updated_ms.unwrap_or(now_ms),
        up: 0,
        from_peer: false,
    };
    Ok(Registration {
        service,
        id,
        request,
        extra,
    })
}

/// The status that Eureka shows: what the instance says if that is not "takes calls" or "taken
/// out", for then an operator's word does not make it better; else the operator's word.
///
/// Source: `DownOrStartingRule`, `OverrideExistsRule`.
pub(crate) fn shown(record: &InstanceRecord) -> InstanceStatus {
    match record.reported {
        InstanceStatus::Up | InstanceStatus::OutOfService => {
            record.overridden.unwrap_or(record.reported)
        }
        own => own,
    }
}

/// What an instance's own lastDirtyTimestamp is; of one that never said one, its incarnation.
pub(crate) fn dirty_of(record: &InstanceRecord, extra: Option<&Extra>) -> i64 {
    match extra {
        Some(extra) => extra.dirty,
        None => i64::try_from(record.incarnation).unwrap_or(i64::MAX),
    }
}

/// Any record as Eureka's clients see it.
pub(crate) fn instance(service: &ServiceName, record: &InstanceRecord, action: Action) -> Instance {
    let millis = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let known = Extra::of(record);
    let native = known.is_none();
    let dirty = dirty_of(record, known.as_ref());
    let extra = known.unwrap_or_else(|| defaults(service, record));
    let mut metadata = record.metadata.clone();
    if native {
        // What Eureka's clients look for, where v1 has it elsewhere.
        let mut offer = |key: &str, value: String| {
            metadata.entry(key.to_owned()).or_insert(value);
        };
        if !record.locality.zone.is_empty() {
            offer("zone", record.locality.zone.clone());
        }
        if record.weight != 1 {
            offer("weight", record.weight.to_string());
        }
        if let Some(version) = &record.version {
            offer("version", version.clone());
        }
    }
    Instance {
        id: extra.id.unwrap_or_else(|| record.id.as_str().to_owned()),
        host: extra.host,
        app: extra.app.unwrap_or_else(|| names::app(service)),
        ip: extra.ip.unwrap_or_else(|| record.addr.ip().to_string()),
        sid: extra.sid,
        status: shown(record),
        overridden: record.overridden.unwrap_or(InstanceStatus::Unknown),
        port: Port {
            number: extra.port.0,
            enabled: extra.port.1,
        },
        secure_port: Port {
            number: extra.secure.0,
            enabled: extra.secure.1,
        },
        country: extra.country,
        data_center: extra.dc,
        data_center_metadata: extra.dcm,
        lease: Lease {
            renewal_secs: extra.renewal,
            duration_secs: extra.duration,
            registered_ms: millis(record.registered_ms),
            // Renewals touch one server's memory only; this is when it was last heard of by all.
            renewed_ms: millis(record.changed_ms.max(record.registered_ms)),
            up_ms: extra.up,
        },
        metadata,
        urls: extra.urls,
        vip: extra.vip,
        secure_vip: extra.svip,
        asg: extra.asg,
        app_group: extra.group,
        is_coordinating: extra.coordinating,
        updated_ms: Some(extra.updated.max(millis(record.changed_ms))),
        dirty_ms: Some(dirty),
        action,
    }
}

/// What an instance that came by v1 says in Eureka's words.
fn defaults(service: &ServiceName, record: &InstanceRecord) -> Extra {
    let ttl = record.ttl.0.as_secs().clamp(1, 3600) as i32;
    Extra {
        app: None,
        id: None,
        host: record.addr.ip().to_string(),
        ip: None,
        port: (record.addr.port(), true),
        secure: (7002, false),
        country: 1,
        dc: DataCenter::MyOwn,
        dcm: BTreeMap::new(),
        renewal: (ttl / 3).max(1),
        duration: ttl,
        urls: Urls {
            home: Some(format!("http://{}/", record.addr)),
            ..Urls::default()
        },
        vip: Some(service.as_str().to_owned()),
        svip: None,
        asg: None,
        group: None,
        sid: None,
        coordinating: false,
        dirty: 0,
        updated: 0,
        up: i64::try_from(record.registered_ms).unwrap_or(i64::MAX),
        from_peer: false,
    }
}

/// The application that a record belongs to.
pub(crate) fn app_of(service: &ServiceName, record: &InstanceRecord) -> String {
    Extra::of(record)
        .and_then(|extra| extra.app)
        .unwrap_or_else(|| names::app(service))
}
