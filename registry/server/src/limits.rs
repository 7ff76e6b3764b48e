//! How much one client, one service and all of them together may take.
//!
//! A registry without limits falls to the first service that registers itself under a new name
//! with every restart. Limits turn that into one refused client instead of a full memory
//! everywhere.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use selvedge_registry::{InstanceId, ServiceName};
use selvedge_resilience::{
    config::{PolicyError, Rate},
    rate_limit::RateLimit,
};
use serde::{Deserialize, Serialize};

use crate::{
    auth::Caller,
    catalogue::Catalogue,
    server::{Caps, Refused},
};

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Services in the catalogue. Default 20,000: a third above the 15,000 that are measured.
    pub services: usize,
    /// Live instances of one service. Default 10,000: a guess; a list of them is 3 MB.
    pub instances_per_service: usize,
    /// Live instances in all. Default 1,000,000: 1 GB of memory.
    pub instances: usize,
    /// Requests of one client (by token, certificate or address) on one server; renewals do not
    /// count. Default "500/s burst 2000": a guess; a deploy of 1,000 instances by one pipeline
    /// must pass.
    pub requests: Rate,
    /// Open watches of one server. Default 20,000: a guess, half of a common descriptor limit.
    pub watches: usize,
    /// Open watches of one client on one server. Default 2,000: a guess; behind an address
    /// translator a whole network is one client.
    pub watches_per_client: usize,
    /// Open connections of one server. Default 50,000: a guess. Fewer where the system lets the
    /// process have fewer descriptors.
    pub connections: usize,
    /// Open connections from one address (of IPv6, one /64). Default 10,000: a guess, a fifth of
    /// all; behind an address translator a whole network is one.
    pub connections_per_address: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            services: 20_000,
            instances_per_service: 10_000,
            instances: 1_000_000,
            requests: Rate {
                count: 500,
                per: Duration::from_secs(1),
                burst: 2_000,
            },
            watches: 20_000,
            watches_per_client: 2_000,
            connections: 50_000,
            connections_per_address: 10_000,
        }
    }
}

impl LimitsConfig {
    /// What the catalogue itself enforces.
    pub fn caps(&self) -> Caps {
        Caps {
            services: self.services,
            per_service: self.instances_per_service,
            total: self.instances,
        }
    }

    /// Refuses a limit of nothing.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for (field, value) in [
            ("services", self.services),
            ("instances_per_service", self.instances_per_service),
            ("instances", self.instances),
            ("watches", self.watches),
            ("watches_per_client", self.watches_per_client),
            ("connections", self.connections),
            ("connections_per_address", self.connections_per_address),
        ] {
            if value == 0 {
                let path = format!("limits.{field}");
                return Err(PolicyError::new(path, value, "at least 1"));
            }
        }
        Ok(())
    }
}

/// Whether `caller`'s services may have one instance more, if `id` of `service` is one. Two servers
/// may each let the last one in: a limit that held to the last one would need them to ask each
/// other.
///
/// # Errors
/// [`Refused::Limit`].
pub(crate) fn has_quota(
    caller: &Caller,
    catalogue: &Catalogue,
    (service, id): (&ServiceName, &InstanceId),
) -> Result<(), Refused> {
    let Some((patterns, limit)) = caller.quota() else {
        return Ok(());
    };
    if catalogue.live_record(service, id).is_some() {
        return Ok(());
    }
    let list = catalogue.list().services;
    let mine = list
        .iter()
        .filter(|s| patterns.iter().any(|p| p.fits(&s.name)));
    let there: usize = mine.map(|service| service.instances).sum();
    if there >= limit {
        let what = "instances of this client's services";
        return Err(Refused::Limit { what, limit });
    }
    Ok(())
}

/// Clients whose rate is known. Beyond, those that have not asked for longest make room.
const CLIENTS: usize = 10_000;

/// Each client's own rate, and its share of the watches.
#[derive(Debug)]
pub struct PerClient {
    rate: Rate,
    watches: usize,
    clients: Mutex<HashMap<Arc<str>, Client>>,
}

#[derive(Debug)]
struct Client {
    limit: RateLimit,
    seen: Instant,
    watches: usize,
}

impl PerClient {
    /// By the limits that are configured.
    pub fn new(config: &LimitsConfig) -> Self {
        Self {
            rate: config.requests,
            watches: config.watches_per_client,
            clients: Mutex::default(),
        }
    }

    /// Counts one request of `client` at `now`.
    ///
    /// # Errors
    /// How long it has to wait.
    pub fn request(&self, client: &Arc<str>, now: Instant) -> Result<(), Duration> {
        let limit = self.with(client, now, |client| client.limit.clone());
        limit
            .try_acquire(now)
            .map(|_what_began_has_begun| ())
            .map_err(|rejected| rejected.retry_after.unwrap_or(Duration::from_secs(1)))
    }

    /// Counts an open watch of `client`; `None` if it has as many as it may.
    pub fn watch(self: &Arc<Self>, client: &Arc<str>, now: Instant) -> Option<WatchSlot> {
        let most = self.watches;
        let taken = self.with(client, now, |client| {
            let free = client.watches < most;
            client.watches += usize::from(free);
            free
        });
        taken.then(|| WatchSlot {
            clients: Arc::clone(self),
            client: Arc::clone(client),
        })
    }

    fn with<T>(&self, name: &Arc<str>, now: Instant, f: impl FnOnce(&mut Client) -> T) -> T {
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS && !clients.contains_key(name) {
            make_room(&mut clients);
        }
        let client = clients.entry(Arc::clone(name)).or_insert_with(|| Client {
            limit: RateLimit::new(self.rate),
            seen: now,
            watches: 0,
        });
        client.seen = now;
        f(client)
    }
}

/// Lets the tenth go that has been silent for longest; whoever watches stays.
fn make_room(clients: &mut HashMap<Arc<str>, Client>) {
    let idle = clients.iter().filter(|(_, client)| client.watches == 0);
    let mut idle: Vec<_> = idle.map(|(name, c)| (c.seen, Arc::clone(name))).collect();
    idle.sort_unstable_by_key(|(seen, _)| *seen);
    for (_, name) in idle.into_iter().take(CLIENTS / 10) {
        clients.remove(&name);
    }
}

/// One watch's place; given back on drop.
#[derive(Debug)]
pub struct WatchSlot {
    clients: Arc<PerClient>,
    client: Arc<str>,
}

impl Drop for WatchSlot {
    fn drop(&mut self) {
        if let Some(client) = self.clients.clients.lock().get_mut(&self.client) {
            client.watches = client.watches.saturating_sub(1);
        }
    }
}

/// How many connections there are from each address.
#[derive(Debug)]
pub(crate) struct Addresses {
    most: usize,
    open: Mutex<HashMap<String, usize>>,
}

/// One of them; over when dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    all: Arc<Addresses>,
    address: String,
}

impl Addresses {
    /// At most so many from one.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: Mutex::default(),
        })
    }

    /// `None` if there are as many as there may be.
    pub(crate) fn one_more(self: &Arc<Self>, ip: IpAddr) -> Option<Counted> {
        let address = address(ip);
        let mut open = self.open.lock();
        let there = open.entry(address.clone()).or_default();
        if *there >= self.most {
            return None;
        }
        *there += 1;
        Some(Counted {
            all: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.all.open.lock();
        if let Some(there) = open.get_mut(&self.address) {
            *there -= 1;
            if *there == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// One host has 2⁶⁴ addresses of IPv6: its network counts.
pub(crate) fn address(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> LimitsConfig {
        serde_json::from_str(text).expect(text)
    }

    #[test]
    fn a_limit_of_nothing_is_refused() {
        assert!(LimitsConfig::default().validate().is_ok());
        let error = limits(r#"{"services":0}"#).validate().expect_err("nothing");
        assert_eq!(error.path, "limits.services");
    }

    #[test]
    fn one_client_does_not_use_up_anothers_rate() {
        let clients = PerClient::new(&limits(r#"{"requests":"1/s burst 2"}"#));
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let now = Instant::now();
        assert!(clients.request(&a, now).is_ok() && clients.request(&a, now).is_ok());
        let wait = clients.request(&a, now).expect_err("used up");
        assert_eq!(wait, Duration::from_secs(1));
        assert!(clients.request(&b, now).is_ok());
        assert!(clients.request(&a, now + wait).is_ok());
    }

    #[test]
    fn watches_are_given_back_and_memory_is_bounded() {
        let clients = Arc::new(PerClient::new(&limits(r#"{"watches_per_client":1}"#)));
        let now = Instant::now();
        let watcher: Arc<str> = "w".into();
        let held = clients.watch(&watcher, now);
        assert!(held.is_some() && clients.watch(&watcher, now).is_none());
        for n in 0..3 * CLIENTS {
            let name: Arc<str> = n.to_string().into();
            let later = now + Duration::from_millis(n as u64);
            assert!(clients.request(&name, later).is_ok());
        }
        assert!(clients.clients.lock().len() <= CLIENTS);
        assert!(
            clients.watch(&watcher, now).is_none(),
            "who watches is not forgotten"
        );
        drop(held);
        assert!(clients.watch(&watcher, now).is_some());
    }

    #[test]
    fn one_address_does_not_take_up_the_places_of_all() {
        let addresses = Addresses::new(2);
        let one = |text: &str| addresses.one_more(text.parse().expect("ip"));
        let held = [one("10.0.0.1"), one("10.0.0.1")];
        assert!(held.iter().all(Option::is_some) && one("10.0.0.1").is_none());
        assert!(one("10.0.0.2").is_some(), "another");
        let held_6 = [one("2001:db8::1"), one("2001:db8::2")];
        assert!(held_6.iter().all(Option::is_some) && one("2001:db8::3").is_none());
        drop(held);
        assert!(one("10.0.0.1").is_some(), "given back");
        drop(held_6);
        assert!(addresses.open.lock().is_empty(), "nobody is remembered");
    }

    #[test]
    fn a_host_is_one_client_however_many_addresses_it_has() {
        let text = |ip: &str| address(ip.parse().expect("ip"));
        assert_eq!(text("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(text("2001:db8::1"), text("2001:db8::2"));
        assert_ne!(text("2001:db8::1"), text("2001:db8:0:1::1"));
    }
}
