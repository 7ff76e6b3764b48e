//! The instances of a service as DNS needs them, decoded once and kept until they change.

use std::{collections::HashMap, fmt::Write as _, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use selvedge_registry::{InstanceStatus, Locality, ServiceName};

use crate::catalogue::Catalogue;

/// Services that are kept. A guess: what resolvers ask for again and again.
const KEPT: usize = 4096;

/// One instance that takes calls.
#[derive(Debug, Clone)]
pub(super) struct Up {
    pub(super) label: String,
    pub(super) addr: SocketAddr,
    pub(super) weight: u16,
    pub(super) locality: Locality,
}

/// A service that has instances, of which some take calls.
pub(super) type Known = Arc<[Up]>;

/// What has been decoded.
#[derive(Debug, Default)]
pub(super) struct Services(Mutex<HashMap<ServiceName, (u64, Known)>>);

impl Services {
    /// The instances of `name` that take calls; `None` if it has none at all.
    pub(super) fn find(&self, catalogue: &Catalogue, name: &ServiceName) -> Option<Known> {
        if catalogue.count(name).0 == 0 {
            return None;
        }
        let counter = catalogue.revision().counter;
        if let Some((of, known)) = self.0.lock().get(name)
            && *of <= counter
            && !catalogue.changed_since(name, *of)
        {
            return Some(Arc::clone(known));
        }
        let instances = catalogue.service(name).instances.into_iter();
        let up = instances.filter(|instance| instance.status == InstanceStatus::Up);
        let known: Known = up
            .map(|instance| Up {
                label: label(instance.id.as_str()),
                addr: instance.addr,
                weight: u16::try_from(instance.weight).unwrap_or(u16::MAX),
                locality: instance.locality,
            })
            .collect();
        let mut kept = self.0.lock();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(name.clone(), (counter, Arc::clone(&known)));
        Some(known)
    }
}

/// An instance's id as one label of a name: the id itself where it is one, else what is left of it
/// and a hash that keeps it apart from others.
pub(super) fn label(id: &str) -> String {
    let fits = id.len() <= 63
        && id
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !id.starts_with('-')
        && !id.ends_with('-');
    if fits {
        return id.to_owned();
    }
    let mut label: String = id
        .bytes()
        .map(|b| match b.to_ascii_lowercase() {
            b @ (b'a'..=b'z' | b'0'..=b'9') => char::from(b),
            _ => '-',
        })
        .take(54)
        .collect();
    label = label.trim_matches('-').to_owned();
    let hash = xxhash_rust::xxh3::xxh3_64(id.as_bytes()) as u32;
    write!(label, "-{hash:08x}").expect("strings take everything");
    label.trim_start_matches('-').to_owned()
}
