//! Instances: which there are, how they change, and an operator's word about them.

use std::time::Duration;

use selvedge_registry::{
    InstanceId, InstanceStatus, ServiceName,
    api::{CatalogPage, InstancePage, MAX_PAGE},
    client::{Call, Reply},
    wire::{InstanceRecord, ServiceList, ServiceRecord},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::sleep};

use crate::{
    args::{Filter, Override},
    ask::{self, PATIENT, Registry, with_query},
    failure::Failure,
    print::Printer,
    show::{Done, catalogue::Seen},
};

/// How long one question of a watch stays open. Below the idle limits of proxies (30 s and more).
const WAIT: Duration = Duration::from_secs(25);

impl Filter {
    fn query(&self) -> Vec<(String, String)> {
        let status = self.status.map(|status| match json!(status) {
            Value::String(word) => word,
            other => other.to_string(),
        });
        let one = [
            ("region", &self.region),
            ("zone", &self.zone),
            ("version", &self.software),
            ("status", &status),
            ("health", &self.health),
        ];
        let one = one
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        let tags = self.tags.iter().map(|tag| ("tag".to_owned(), tag.clone()));
        let metadata = self.metadata.iter();
        let metadata = metadata.map(|(key, value)| (format!("meta.{key}"), value.clone()));
        one.chain(tags).chain(metadata).collect()
    }
}

fn path(service: &ServiceName, id: &InstanceId) -> String {
    format!("/v1/services/{service}/instances/{id}")
}

pub(crate) async fn services(registry: &Registry, printer: Printer) -> Result<(), Failure> {
    let list: ServiceList = registry.get("list the services", "/v1/services").await?;
    printer.show(&list)
}

pub(crate) async fn catalog(
    registry: &Registry,
    printer: Printer,
    team: Option<String>,
) -> Result<(), Failure> {
    let what = "list the catalogue";
    let mut query = vec![("limit".to_owned(), MAX_PAGE.to_string())];
    query.extend(team.map(|team| ("team".to_owned(), team)));
    let mut all: CatalogPage = registry
        .get(what, &with_query("/v1/catalog", &query))
        .await?;
    while let Some(cursor) = all.next.take() {
        let mut query = query.clone();
        query.push(("cursor".to_owned(), cursor));
        let page: CatalogPage = registry
            .get(what, &with_query("/v1/catalog", &query))
            .await?;
        all.services.extend(page.services);
        all.next = page.next;
    }
    printer.show(&all)
}

pub(crate) async fn list(
    registry: &Registry,
    printer: Printer,
    service: Option<&ServiceName>,
    filter: &Filter,
) -> Result<(), Failure> {
    let mut query = filter.query();
    if let Some(service) = service {
        let path = with_query(&format!("/v1/services/{service}"), &query);
        let what = format!("list the instances of {service}");
        let record: ServiceRecord = registry.get(&what, &path).await?;
        return printer.show(&record);
    }
    let what = "list the instances";
    query.push(("limit".to_owned(), MAX_PAGE.to_string()));
    let mut all: InstancePage = registry
        .get(what, &with_query("/v1/instances", &query))
        .await?;
    while let Some(cursor) = all.next.take() {
        let mut query = query.clone();
        query.push(("cursor".to_owned(), cursor));
        let page: InstancePage = registry
            .get(what, &with_query("/v1/instances", &query))
            .await?;
        all.instances.extend(page.instances);
        all.next = page.next;
    }
    printer.show(&all)
}

pub(crate) async fn one(
    registry: &Registry,
    printer: Printer,
    service: &ServiceName,
    id: &InstanceId,
) -> Result<(), Failure> {
    let what = format!("show {id} of {service}");
    let record: InstanceRecord = registry.get(&what, &path(service, id)).await?;
    printer.show(&record)
}

/// Prints each service's list as it comes, by a long poll for each: so filters are the server's.
pub(crate) async fn watch(
    registry: &Registry,
    printer: Printer,
    services: &[ServiceName],
    filter: &Filter,
    count: Option<u64>,
) -> Result<(), Failure> {
    let (tell, mut lists) = mpsc::channel(1);
    let watches = services.iter().map(|service| {
        let (tell, query) = (tell.clone(), filter.query());
        follow(registry, service, query, tell)
    });
    let watches = futures_util::future::try_join_all(watches);
    let print = async {
        let mut left = count.unwrap_or(u64::MAX);
        while left > 0
            && let Some(record) = lists.recv().await
        {
            printer.show(&Seen(record))?;
            left -= 1;
        }
        Ok(())
    };
    tokio::select! {
        failed = watches => failed.map(drop),
        done = print => done,
        stopped = tokio::signal::ctrl_c() => stopped.map_err(|source| Failure::System {
            what: "wait for Ctrl-C".to_owned(),
            source,
        }),
    }
}

/// Tells of each list that differs from the one before, for ever. Only the first question may fail.
async fn follow(
    registry: &Registry,
    service: &ServiceName,
    filter: Vec<(String, String)>,
    tell: mpsc::Sender<ServiceRecord>,
) -> Result<(), Failure> {
    let what = format!("watch {service}");
    let mut index: Option<String> = None;
    let mut shown: Option<Vec<InstanceRecord>> = None;
    loop {
        let mut query = filter.clone();
        if let Some(index) = &index {
            query.push(("wait".to_owned(), format!("{}s", WAIT.as_secs())));
            query.push(("index".to_owned(), index.clone()));
        }
        let path = with_query(&format!("/v1/services/{service}"), &query);
        let call = Call {
            path: &path,
            within: Some(WAIT + PATIENT),
            ..Call::default()
        };
        let asked = registry.send(&what, "GET", &call).await;
        let answer = asked.and_then(|reply| Ok((list_in(&what, service, &reply)?, reply)));
        let (record, reply) = match answer {
            Ok(answer) => answer,
            Err(failure) if shown.is_none() || failure.exit_code() == 4 => return Err(failure),
            Err(failure) => {
                Printer::note(&format!("{}; trying again", failure.message()));
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let revision = reply.headers.get("x-selvedge-revision");
        index = revision.and_then(|value| Some(value.to_str().ok()?.to_owned()));
        if index.is_none() {
            // Not one of ours, or something between: it must not be asked without a pause.
            sleep(Duration::from_secs(1)).await;
        }
        if shown.as_ref() != Some(&record.instances) {
            shown = Some(record.instances.clone());
            if tell.send(record).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// A service that nobody is of is a list as well: an empty one.
fn list_in(what: &str, service: &ServiceName, reply: &Reply) -> Result<ServiceRecord, Failure> {
    if reply.status.as_u16() == 404 {
        let revision = reply.headers.get("x-selvedge-revision");
        let revision = revision.and_then(|value| value.to_str().ok()?.parse().ok());
        return Ok(ServiceRecord {
            service: service.clone(),
            revision: revision.unwrap_or_default(),
            instances: Vec::new(),
        });
    }
    if !reply.status.is_success() {
        return Err(ask::refused(what, reply));
    }
    ask::read(what, reply)
}

pub(crate) async fn renew(
    registry: &Registry,
    printer: Printer,
    service: &ServiceName,
    id: &InstanceId,
) -> Result<(), Failure> {
    let what = format!("renew {id} of {service}");
    let path = format!("{}/lease", path(service, id));
    registry.order(&what, "PUT", &path).await?;
    done(printer, service, id, "renewed")
}

pub(crate) async fn deregister(
    registry: &Registry,
    printer: Printer,
    service: &ServiceName,
    id: &InstanceId,
) -> Result<(), Failure> {
    let what = format!("deregister {id} of {service}");
    registry.order(&what, "DELETE", &path(service, id)).await?;
    done(printer, service, id, "deregistered")
}

pub(crate) async fn overrule(
    registry: &Registry,
    printer: Printer,
    order: &Override,
) -> Result<(), Failure> {
    match order {
        Override::Set {
            service,
            id,
            status,
        } => {
            let what = format!("override the status of {id} of {service}");
            let path = format!("{}/override", path(service, id));
            let document = json!({ "status": status });
            registry.put(&what, "PUT", &path, &document).await?;
            done(
                printer,
                service,
                id,
                &format!("{} by override", name(*status)),
            )
        }
        Override::Clear { service, id } => {
            let what = format!("clear the override of {id} of {service}");
            let path = format!("{}/override", path(service, id));
            registry.order(&what, "DELETE", &path).await?;
            done(printer, service, id, "what it says itself")
        }
    }
}

fn name(status: InstanceStatus) -> String {
    let word = json!(status);
    word.as_str().unwrap_or_default().to_owned()
}

pub(crate) fn done(
    printer: Printer,
    service: &ServiceName,
    id: &InstanceId,
    what: &str,
) -> Result<(), Failure> {
    printer.show(&Done {
        sentence: format!("{id} of {service} is {what}"),
        document: json!({ "service": service, "id": id, "is": what }),
    })
}
