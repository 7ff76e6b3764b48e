//! Questions: services, instances by what they say of themselves, and whose a service is.
//!
//! A reader holds the catalogue as it was when it asked, so no question stops a write. Pages bound
//! what one answer costs: a page ends when it is full, or when so many instances were looked at
//! that the client must ask again to go on.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use selvedge_registry::{
    InstanceId, InstanceStatus, ServiceName,
    api::{CatalogEntry, CatalogPage, InstanceEntry, InstancePage, MAX_PAGE, PAGE},
    wire::{InstanceRecord, MAX_LOCALITY, MAX_OWNERSHIP, MAX_TAG, MAX_VERSION, ServiceRecord},
};
use serde::Serialize;

use super::{
    App,
    poll::Wait,
    refusal::{self, Refusal},
    regions,
};
use crate::catalogue::Catalogue;

/// Instances that one question looks at. Twenty milliseconds of one core.
const LOOK_AT: usize = 10_000;
/// Services that one question may name.
const MAX_NAMED: usize = 100;
const REVISION: HeaderName = HeaderName::from_static("x-selvedge-revision");

/// `?key=value&…`, each pair taken once by whoever knows the key; what is left is refused.
#[derive(Debug)]
pub(super) struct Pairs(Vec<(String, String)>);

impl Pairs {
    pub(super) fn of(query: Query<Vec<(String, String)>>) -> Self {
        Self(query.0)
    }

    /// Every value of `key`.
    pub(super) fn all(&mut self, key: &str) -> Vec<String> {
        let (mine, others) = std::mem::take(&mut self.0)
            .into_iter()
            .partition::<Vec<_>, _>(|(name, _)| name == key);
        self.0 = others;
        mine.into_iter().map(|(_, value)| value).collect()
    }

    /// The value of `key`, which may be given once.
    pub(super) fn one(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        let mut values = self.all(key);
        if values.len() > 1 {
            return Err(Refusal::bad(format!("{key} is given more than once")));
        }
        Ok(values.pop())
    }

    /// The value of `key`, at most so many characters.
    fn short(&mut self, key: &str, most: usize) -> Result<Option<String>, Refusal> {
        let value = self.one(key)?;
        value.map(|value| short(key, value, most)).transpose()
    }

    /// Refuses what nobody has taken.
    pub(super) fn end(self, allowed: &str) -> Result<(), Refusal> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((key, _)) => {
                let key: String = key.chars().take(40).collect();
                Err(Refusal::bad(format!(
                    "there is no parameter {key:?}: allowed are {allowed}"
                )))
            }
        }
    }
}

/// Which instances.
#[derive(Debug, Default, Clone)]
pub(super) struct Filter {
    region: Option<String>,
    zone: Option<String>,
    version: Option<String>,
    tags: Vec<String>,
    status: Option<InstanceStatus>,
    health: Health,
    metadata: Vec<(String, String)>,
}

/// Source of the third: AWS Cloud Map's `HEALTHY_OR_ELSE_ALL`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// Whatever they say.
    #[default]
    Any,
    /// Those that take calls.
    Up,
    /// Those that take calls; if there are none, all: a wrong health check must not empty a list.
    UpOrAll,
}

const FILTERS: &str = "region, zone, version, tag, status, health, meta.KEY";

impl Filter {
    fn parse(pairs: &mut Pairs) -> Result<Self, Refusal> {
        let health = match pairs.one("health")?.as_deref() {
            None | Some("any") => Health::Any,
            Some("up") => Health::Up,
            Some("up_or_all") => Health::UpOrAll,
            Some(other) => {
                return Err(bad("health", other, "any, up or up_or_all"));
            }
        };
        let status = match pairs.one("status")? {
            None => None,
            Some(text) => Some(status(&text)?),
        };
        let metadata: Vec<_> = pairs
            .0
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("meta.")?.to_owned(), value.clone())))
            .collect();
        pairs.0.retain(|(key, _)| !key.starts_with("meta."));
        Ok(Self {
            region: pairs.short("region", MAX_LOCALITY)?,
            zone: pairs.short("zone", MAX_LOCALITY)?,
            version: pairs.short("version", MAX_VERSION)?,
            tags: pairs
                .all("tag")
                .into_iter()
                .map(|tag| short("tag", tag, MAX_TAG))
                .collect::<Result<_, _>>()?,
            status,
            health,
            metadata,
        })
    }

    /// Whether `instance` is asked for, its health aside.
    fn fits(&self, instance: &InstanceRecord) -> bool {
        let same =
            |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
        same(&self.region, &instance.locality.region)
            && same(&self.zone, &instance.locality.zone)
            && (self.version.is_none() || self.version == instance.version)
            && self.status.is_none_or(|status| status == instance.status)
            && self.tags.iter().all(|tag| instance.tags.contains(tag))
            && self
                .metadata
                .iter()
                .all(|(key, value)| instance.metadata.get(key) == Some(value))
    }

    /// The instances of one service that are asked for.
    fn of_service(&self, instances: impl Iterator<Item = InstanceRecord>) -> Vec<InstanceRecord> {
        let all: Vec<_> = instances.filter(|instance| self.fits(instance)).collect();
        let is_up = |instance: &InstanceRecord| instance.status == InstanceStatus::Up;
        let any_up = all.iter().any(is_up);
        match self.health {
            Health::Up => all.into_iter().filter(is_up).collect(),
            Health::UpOrAll if any_up => all.into_iter().filter(is_up).collect(),
            Health::Any | Health::UpOrAll => all,
        }
    }
}

/// What is longer than any instance's can only be a mistake.
fn short(key: &str, value: String, most: usize) -> Result<String, Refusal> {
    if value.chars().count() > most {
        return Err(bad(key, &value, &format!("at most {most} characters")));
    }
    Ok(value)
}

fn bad(key: &str, value: &str, allowed: &str) -> Refusal {
    let value: String = value.chars().take(80).collect();
    Refusal::bad(format!("{key}={value}: allowed are {allowed}"))
}

fn status(text: &str) -> Result<InstanceStatus, Refusal> {
    let quoted = serde_json::Value::from(text);
    serde_json::from_value(quoted).map_err(|_| {
        bad(
            "status",
            text,
            "STARTING, UP, DOWN, OUT_OF_SERVICE, UNKNOWN",
        )
    })
}

/// Which page.
#[derive(Debug)]
struct Page {
    limit: usize,
    /// Only what comes after this.
    after: Option<(ServiceName, Option<InstanceId>)>,
}

impl Page {
    fn parse(pairs: &mut Pairs) -> Result<Self, Refusal> {
        let limit = match pairs.one("limit")? {
            None => PAGE,
            Some(text) => text
                .parse()
                .ok()
                .filter(|n| (1..=MAX_PAGE).contains(n))
                .ok_or_else(|| bad("limit", &text, &format!("1 to {MAX_PAGE}")))?,
        };
        let after = match pairs.one("cursor")? {
            None => None,
            Some(text) => {
                let parse = || {
                    let (service, id) = match text.split_once('/') {
                        Some((service, id)) => (service, Some(InstanceId::new(id).ok()?)),
                        None => (text.as_str(), None),
                    };
                    Some((ServiceName::new(service).ok()?, id))
                };
                Some(parse().ok_or_else(|| bad("cursor", &text, "what `next` said"))?)
            }
        };
        Ok(Self { limit, after })
    }
}

/// `304` if the client has this very state, else `document` with its tag.
pub(super) fn tagged(
    headers: &HeaderMap,
    tag: &str,
    document: impl FnOnce() -> Response,
) -> Response {
    let tag = format!("\"{tag}\"");
    let given = headers.get_all(header::IF_NONE_MATCH).iter();
    let has = given
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|one| one.trim().trim_start_matches("W/"))
        .any(|one| one == tag || one == "*");
    let mut response = if has {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        document()
    };
    if let Ok(value) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// As [`tagged`], of one of the catalogue's states, which is a header of its own as well: the
/// `index` of the next long poll.
pub(super) fn revised(
    headers: &HeaderMap,
    catalogue: &Catalogue,
    tag: &str,
    document: impl Serialize,
) -> Response {
    let mut response = tagged(headers, tag, || Json(document).into_response());
    if let Ok(value) = HeaderValue::try_from(catalogue.revision().to_string()) {
        response.headers_mut().insert(REVISION, value);
    }
    response
}

pub(super) async fn list(
    State(api): App,
    headers: HeaderMap,
    query: Query<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    Pairs::of(query).end("none")?;
    api.serving()?;
    let catalogue = api.shared.catalogue();
    let tag = catalogue.revision().to_string();
    Ok(revised(&headers, &catalogue, &tag, catalogue.list()))
}

pub(super) async fn service(
    State(api): App,
    refusal::Service(name): refusal::Service,
    headers: HeaderMap,
    query: Query<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    let mut pairs = Pairs::of(query);
    let mut filter = Filter::parse(&mut pairs)?;
    // `any` is no region's name: this one, and if need be another.
    let anywhere = filter.region.as_deref() == Some("any");
    if anywhere {
        filter.region = None;
    }
    let wait = Wait::parse(&mut pairs)?;
    pairs.end(&format!("wait, index, {FILTERS}"))?;
    api.serving()?;
    if let Some(wait) = wait {
        let has_answer = |catalogue: &Catalogue| {
            let all = catalogue.service(&name).instances;
            !filter.of_service(all.into_iter()).is_empty()
        };
        wait.for_service(&api, &name, has_answer).await?;
    }
    let catalogue = api.shared.catalogue();
    let all = catalogue.service(&name);
    let known = !all.instances.is_empty();
    let record = ServiceRecord {
        instances: filter.of_service(all.instances.into_iter()),
        ..all
    };
    let mut tag = format!(
        "{:x}-{}",
        catalogue.revision().epoch,
        catalogue.changed_at(&name)
    );
    if anywhere {
        let is_up = |instance: &InstanceRecord| instance.status == InstanceStatus::Up;
        let elsewhere = api.regions.of(&name);
        if !record.instances.iter().any(is_up) && !elsewhere.is_empty() {
            tag = format!("{tag}-{:x}", api.regions.version());
            let document = regions::Elsewhere {
                record,
                fallback: elsewhere,
            };
            return Ok(revised(&headers, &catalogue, &tag, document));
        }
    }
    if !known {
        let title = "no instance of this service is registered";
        let refusal = Refusal::not_found("no-such-service", title, name.as_str());
        // Whoever waits for the first one needs to know what to wait after.
        return Err(
            match HeaderValue::try_from(catalogue.revision().to_string()) {
                Ok(revision) => refusal.header(REVISION, revision),
                Err(_) => refusal,
            },
        );
    }
    Ok(revised(&headers, &catalogue, &tag, record))
}

/// Runs where a long answer stops nobody else's.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Refusal::new(status, "failed", "the question could not be answered")
    })
}

pub(super) async fn instances(
    State(api): App,
    headers: HeaderMap,
    query: Query<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    let mut pairs = Pairs::of(query);
    let names: Vec<ServiceName> = pairs
        .all("service")
        .iter()
        .map(|name| refusal::service(name))
        .collect::<Result<_, _>>()?;
    if names.len() > MAX_NAMED {
        return Err(Refusal::bad(format!(
            "{} services named: at most {MAX_NAMED}, or none for all",
            names.len()
        )));
    }
    let filter = Filter::parse(&mut pairs)?;
    let page = Page::parse(&mut pairs)?;
    pairs.end(&format!("service, limit, cursor, {FILTERS}"))?;
    api.serving()?;
    let catalogue = api.shared.catalogue();
    let held = Arc::clone(&catalogue);
    let answer = aside(move || find(&held, names, &filter, &page)).await?;
    let tag = catalogue.revision().to_string();
    Ok(revised(&headers, &catalogue, &tag, answer))
}

fn find(
    catalogue: &Catalogue,
    mut names: Vec<ServiceName>,
    filter: &Filter,
    page: &Page,
) -> InstancePage {
    if names.is_empty() {
        names = catalogue.names();
    }
    names.sort_unstable();
    names.dedup();
    let mut answer = InstancePage {
        revision: catalogue.revision(),
        instances: Vec::new(),
        next: None,
    };
    let mut looked = 0;
    let mut names = names.into_iter().peekable();
    while let Some(name) = names.next() {
        let after = match &page.after {
            Some((service, _)) if name < *service => continue,
            Some((service, id)) if name == *service => id.as_ref(),
            Some(_) | None => None,
        };
        let all = catalogue.service(&name).instances;
        looked += all.len();
        let mine = filter.of_service(all.into_iter());
        let mine = mine
            .into_iter()
            .filter(|i| after.is_none_or(|after| i.id > *after));
        for instance in mine {
            if answer.instances.len() >= page.limit {
                let last = answer.instances.last();
                answer.next = last.map(|last| format!("{}/{}", last.service, last.instance.id));
                return answer;
            }
            answer.instances.push(InstanceEntry {
                service: name.clone(),
                instance,
            });
        }
        if looked >= LOOK_AT {
            // A service's name alone is before all of its instances.
            answer.next = names.peek().map(ToString::to_string);
            return answer;
        }
    }
    answer
}

pub(super) async fn catalog(
    State(api): App,
    headers: HeaderMap,
    query: Query<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    let mut pairs = Pairs::of(query);
    let team = pairs.short("team", MAX_OWNERSHIP)?;
    let page = Page::parse(&mut pairs)?;
    pairs.end("team, limit, cursor")?;
    api.serving()?;
    let catalogue = api.shared.catalogue();
    let held = Arc::clone(&catalogue);
    let answer = aside(move || entries(&held, team.as_deref(), &page)).await?;
    let tag = catalogue.revision().to_string();
    Ok(revised(&headers, &catalogue, &tag, answer))
}

fn entries(catalogue: &Catalogue, team: Option<&str>, page: &Page) -> CatalogPage {
    let mut answer = CatalogPage {
        revision: catalogue.revision(),
        services: Vec::new(),
        next: None,
    };
    let mut looked = 0;
    for name in catalogue.names() {
        if page.after.as_ref().is_some_and(|(after, _)| name < *after) {
            continue;
        }
        if answer.services.len() >= page.limit || looked >= LOOK_AT {
            answer.next = Some(name.to_string());
            break;
        }
        let entry = entry(catalogue, &name);
        looked += entry.instances;
        let owner = entry.ownership.as_ref().and_then(|o| o.team.as_deref());
        if team.is_none_or(|team| owner == Some(team)) {
            answer.services.push(entry);
        }
    }
    answer
}

fn entry(catalogue: &Catalogue, name: &ServiceName) -> CatalogEntry {
    let mut entry = CatalogEntry {
        name: name.clone(),
        instances: 0,
        up: 0,
        versions: BTreeMap::new(),
        zones: BTreeMap::new(),
        ownership: None,
        policy: catalogue.policy(name).map(|policy| policy.version),
    };
    let mut newest = 0;
    for instance in catalogue.service(name).instances {
        entry.instances += 1;
        entry.up += usize::from(instance.status == InstanceStatus::Up);
        if let Some(version) = instance.version {
            *entry.versions.entry(version).or_default() += 1;
        }
        let place = &instance.locality;
        if !place.zone.is_empty() {
            let zone = format!("{}/{}", place.region, place.zone);
            *entry.zones.entry(zone).or_default() += 1;
        }
        if instance.ownership.is_some() && instance.registered_ms >= newest {
            newest = instance.registered_ms;
            entry.ownership = instance.ownership;
        }
    }
    entry
}
