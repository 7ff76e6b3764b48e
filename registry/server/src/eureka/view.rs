//! The catalogue in Eureka's shape, and its answers kept until something changes.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use selvedge_registry::{InstanceStatus, ServiceName, wire::InstanceRecord};

use super::{
    feed::Feed,
    json::Detail,
    model::{Action, Application, Applications, Instance, status_name},
    record,
};
use crate::catalogue::Catalogue;

/// `UP_2_`, `DOWN_1_UP_2_`: how many instances have which status, by name. Clients compute the
/// same of what they hold and fetch everything where it differs.
///
/// Source: `Applications.getReconcileHashCode`.
pub(crate) fn hash(statuses: impl IntoIterator<Item = InstanceStatus>) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for status in statuses {
        *counts.entry(status_name(status)).or_default() += 1;
    }
    let mut text = String::new();
    for (status, count) in counts {
        write!(text, "{status}_{count}_").expect("strings take everything");
    }
    text
}

/// Instances by application, both by name.
pub(crate) fn grouped(instances: impl IntoIterator<Item = Instance>) -> Vec<Application> {
    let mut apps = BTreeMap::<String, Vec<Instance>>::new();
    for instance in instances {
        apps.entry(instance.app.clone()).or_default().push(instance);
    }
    let application = |(name, instances)| Application { name, instances };
    apps.into_iter().map(application).collect()
}

/// Every live instance.
pub(crate) fn everything(catalogue: &Catalogue) -> Vec<Instance> {
    let mut all = Vec::with_capacity(catalogue.len());
    for (service, records) in catalogue.services() {
        all.extend(records.map(|r| record::instance(service, &r, Action::Added)));
    }
    all
}

/// The instances of one application.
pub(crate) fn of_app(catalogue: &Catalogue, service: &ServiceName, app: &str) -> Vec<Instance> {
    let records = catalogue.service(service).instances;
    let of_app = |r: &&InstanceRecord| record::app_of(service, r) == app;
    let records = records.iter().filter(of_app);
    records
        .map(|r| record::instance(service, r, Action::Added))
        .collect()
}

fn full_hash(catalogue: &Catalogue) -> String {
    let services = catalogue.services();
    hash(services.flat_map(|(_, records)| records.map(|r| record::shown(&r))))
}

/// A whole answer.
pub(crate) fn full(catalogue: &Catalogue, version: i64) -> Applications {
    let all = everything(catalogue);
    Applications {
        version,
        hash: hash(all.iter().map(|instance| instance.status)),
        applications: grouped(all),
    }
}

/// What has changed of late.
pub(crate) fn delta(catalogue: &Catalogue, feed: &Feed, version: i64) -> Applications {
    let hash = full_hash(catalogue);
    if feed.is_distrusted() {
        // All there is, for who applies it blindly; and a hash that nobody computes, so that
        // everybody else fetches everything.
        let modified = |instance| Instance {
            action: Action::Modified,
            ..instance
        };
        return Applications {
            version,
            hash: format!("LOST_1_{hash}"),
            applications: grouped(everything(catalogue).into_iter().map(modified)),
        };
    }
    let changed = feed.changed(catalogue);
    let changed = changed
        .into_iter()
        .map(|c| record::instance(&c.key.0, &c.record, c.action));
    Applications {
        version,
        hash,
        applications: grouped(changed),
    }
}

/// Which of the answers that everybody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    pub(crate) delta: bool,
    pub(crate) json: bool,
    pub(crate) gzip: bool,
    pub(crate) detail: Detail,
}

/// Of which state an answer is: the catalogue's counter and the feed's.
pub(crate) type Of = (u64, u64);

/// An answer of this size is worth keeping for a moment although something has changed.
const LARGE: usize = 1 << 20;
/// How many times as long as it took to make a large answer is given: what making them costs is
/// then a tenth of one core for each kind, however many ask and however much changes.
const REUSE: u32 = 10;

#[derive(Debug, Clone)]
struct Made {
    of: Of,
    bytes: Bytes,
    /// Given until then, whatever has changed.
    until: Option<Instant>,
}

/// The last answer of each kind. A mesh of a thousand clients asks for the same bytes a thousand
/// times between two changes.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<HashMap<Asked, Made>>);

impl Answers {
    pub(crate) fn get(&self, asked: Asked, of: Of, now: Instant) -> Option<Bytes> {
        let answers = self.0.lock();
        let made = answers.get(&asked)?;
        let good = made.of == of || made.until.is_some_and(|until| now < until);
        good.then(|| made.bytes.clone())
    }

    /// `cost`: how long it took to make.
    pub(crate) fn keep(&self, asked: Asked, of: Of, bytes: &Bytes, cost: Duration, now: Instant) {
        let made = Made {
            of,
            bytes: bytes.clone(),
            until: (bytes.len() >= LARGE).then(|| now + cost * REUSE),
        };
        // Sixteen kinds at most.
        self.0.lock().insert(asked, made);
    }

    /// Frees what is not given any more.
    pub(crate) fn forget_other_than(&self, counter: u64, now: Instant) {
        let good = |made: &Made| made.of.0 == counter || made.until.is_some_and(|at| now < at);
        self.0.lock().retain(|_, made| good(made));
    }
}

/// Instances that name `vip` among their (secure) VIP addresses.
pub(crate) fn by_vip(catalogue: &Arc<Catalogue>, vip: &str, secure: bool) -> Vec<Instance> {
    let mut found = everything(catalogue);
    found.retain(|instance| {
        let vips = if secure {
            &instance.secure_vip
        } else {
            &instance.vip
        };
        let mut vips = vips.as_deref().unwrap_or_default().split(',');
        vips.any(|one| one == vip)
    });
    found
}
