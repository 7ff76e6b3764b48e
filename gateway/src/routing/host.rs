//! From a host to the tables that may serve it, most specific first.

use std::{borrow::Cow, collections::HashMap, hash::BuildHasherDefault};

use super::{pattern::HostPattern, table::HostTable};
use selvedge_proxy::hash::Fx;

/// The hosts of a table, level by level.
#[derive(Debug, Default)]
pub(super) struct HostIndex {
    exact: HashMap<Box<str>, HostTable, BuildHasherDefault<Fx>>,
    wild: HashMap<Box<str>, HostTable, BuildHasherDefault<Fx>>,
    any: Option<HostTable>,
}

impl HostIndex {
    /// The table of one pattern (`None`: of any host), made when it is not there yet.
    pub(super) fn table_mut(&mut self, host: Option<&HostPattern>) -> &mut HostTable {
        match host {
            None => self.any.get_or_insert_default(),
            Some(HostPattern::Exact(host)) => self.exact.entry(host.clone()).or_default(),
            Some(HostPattern::Wildcard(suffix)) => self.wild.entry(suffix.clone()).or_default(),
        }
    }

    pub(super) fn tables_mut(&mut self) -> impl Iterator<Item = &mut HostTable> {
        self.exact
            .values_mut()
            .chain(self.wild.values_mut())
            .chain(self.any.as_mut())
    }

    /// The first answer of `find`, asked level by level: the exact host, then the wildcards from
    /// the longest suffix, then any host. At most one probe a label.
    pub(super) fn find_map<T>(
        &self,
        host: &str,
        mut find: impl FnMut(&HostTable) -> Option<T>,
    ) -> Option<T> {
        if let Some(found) = self.exact.get(host).and_then(&mut find) {
            return Some(found);
        }
        if !self.wild.is_empty() {
            let mut rest = host;
            while let Some((_, suffix)) = rest.split_once('.') {
                if let Some(found) = self.wild.get(suffix).and_then(&mut find) {
                    return Some(found);
                }
                rest = suffix;
            }
        }
        self.any.as_ref().and_then(find)
    }
}

/// A host as it is compared: without port and trailing dot, in lower case. Allocates only for
/// upper-case letters.
pub fn canonical_host(authority: &str) -> Cow<'_, str> {
    let host = if authority.starts_with('[') {
        authority
            .find(']')
            .map_or(authority, |end| &authority[..=end])
    } else {
        authority.split(':').next().unwrap_or(authority)
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}
