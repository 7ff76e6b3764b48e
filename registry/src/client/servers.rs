//! The registry servers a client knows, and which of them it prefers.
//!
//! A client in zone `a` that watches through a server in zone `b` pays for every change across the
//! zones, and is cut off with the zone that it is not in. So servers are asked once where they
//! run, and those nearby are tried first. Among equals the order is random for each client, so
//! that the clients of a server that dies do not all fall upon the same other one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use parking_lot::Mutex;

use super::{
    connect::Connector,
    http::{Http, with_causes},
};
use crate::{api::ServerStatus, instance::Locality};

/// How long a server may take to say where it runs.
const ASK: Duration = Duration::from_secs(1);

/// The servers, and which one is in favour.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) connector: Connector,
    /// Where this client runs; empty: all servers are alike.
    here: Locality,
    order: Mutex<Order>,
    pub(super) count: usize,
    ranked: AtomicBool,
}

#[derive(Debug)]
struct Order {
    /// The best first.
    list: Vec<Arc<str>>,
    at: usize,
}

impl Servers {
    pub(super) fn new(list: Vec<String>, here: Locality, connector: Connector) -> Self {
        let mut list: Vec<Arc<str>> = list.into_iter().map(Arc::from).collect();
        fastrand::shuffle(&mut list);
        Self {
            connector,
            here,
            count: list.len(),
            order: Mutex::new(Order { list, at: 0 }),
            ranked: AtomicBool::new(false),
        }
    }

    /// The one in favour.
    pub(super) fn current(&self) -> Option<Arc<str>> {
        let order = self.order.lock();
        order.list.get(order.at).cloned()
    }

    /// All of them, the best first.
    pub(super) fn all(&self) -> Vec<Arc<str>> {
        self.order.lock().list.clone()
    }

    /// Turns to another server, unless somebody has done so since `from` was current.
    pub(super) fn fail_over(&self, from: &str) {
        let mut order = self.order.lock();
        if order.list.get(order.at).is_some_and(|at| **at == *from) {
            order.at = (order.at + 1) % order.list.len();
        }
    }

    /// Whether a nearer server than the current one may be back.
    pub(super) fn is_second_choice(&self) -> bool {
        self.picks_by_place() && self.order.lock().at != 0
    }

    fn picks_by_place(&self) -> bool {
        self.count > 1 && self.here != Locality::default()
    }

    /// Ranks by place the first time that it is asked; later calls cost a load.
    pub(super) async fn rank_once(&self) {
        if self.picks_by_place() && !self.ranked.swap(true, Ordering::Relaxed) {
            self.rank().await;
        }
    }

    /// Asks every server where it runs, and prefers: this zone, this region, elsewhere, silent.
    /// Cancel-safe: the order changes at the end or not at all.
    pub(super) async fn rank(&self) {
        let list = self.all();
        let answers = list.iter().map(|server| async move {
            let mut http = Http::new(self.connector.clone());
            let reply = http.call(server, "GET", "/v1/status", Vec::new(), ASK).await;
            let class = match reply {
                Ok(reply) => match serde_json::from_slice::<ServerStatus>(&reply.body) {
                    Ok(status) if status.serving => distance(&self.here, &status.locality),
                    Ok(_) | Err(_) => 3,
                },
                Err(error) => {
                    tracing::debug!(server = %server, error = %with_causes(&error), "registry server does not say where it runs");
                    4
                }
            };
            (class, Arc::clone(server))
        });
        let mut ranked = join_all(answers).await;
        // Stable: among equals the random order stays.
        ranked.sort_by_key(|(class, _)| *class);
        let mut order = self.order.lock();
        order.list = ranked.into_iter().map(|(_, server)| server).collect();
        order.at = 0;
    }
}

fn distance(here: &Locality, there: &Locality) -> u8 {
    let same_region = here.region == there.region;
    match (same_region && here.zone == there.zone, same_region) {
        (true, _) => 0,
        (_, true) => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(region: &str, zone: &str) -> Locality {
        Locality {
            region: region.into(),
            zone: zone.into(),
        }
    }

    #[test]
    fn near_is_the_zone_then_the_region() {
        let here = place("eu", "a");
        for (there, want) in [
            (place("eu", "a"), 0),
            (place("eu", "b"), 1),
            (place("us", "a"), 2),
            (Locality::default(), 2),
        ] {
            assert_eq!(distance(&here, &there), want, "{there:?}");
        }
    }

    #[test]
    fn a_server_fails_over_once_however_many_notice() {
        let servers = Servers::new(
            vec!["a:1".into(), "b:1".into(), "c:1".into()],
            Locality::default(),
            Connector::plain(),
        );
        let first = servers.current().expect("one");
        servers.fail_over(&first);
        let second = servers.current().expect("one");
        assert_ne!(first, second);
        servers.fail_over(&first);
        assert_eq!(servers.current().expect("one"), second);
        let none = Servers::new(Vec::new(), Locality::default(), Connector::plain());
        none.fail_over("a:1");
        assert_eq!(none.current(), None);
    }

    #[test]
    fn a_client_far_from_home_looks_whether_it_can_go_back() {
        let list = || vec!["a:1".to_owned(), "b:1".to_owned()];
        let near = Servers::new(list(), place("eu", "a"), Connector::plain());
        assert!(!near.is_second_choice(), "the best there is");
        near.fail_over(&near.current().expect("one"));
        assert!(near.is_second_choice());
        near.fail_over(&near.current().expect("one"));
        assert!(!near.is_second_choice(), "once around");
        // Who does not say where it runs has no better one.
        let anywhere = Servers::new(list(), Locality::default(), Connector::plain());
        anywhere.fail_over(&anywhere.current().expect("one"));
        assert!(!anywhere.is_second_choice());
    }

    #[test]
    fn clients_of_one_server_do_not_all_turn_to_the_same_other_one() {
        let mut seconds = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let list = (0..4).map(|n| format!("s{n}:1")).collect();
            let servers = Servers::new(list, Locality::default(), Connector::plain());
            let first = servers.current().expect("one");
            servers.fail_over(&first);
            seconds.insert((first, servers.current().expect("one")));
        }
        // Twelve ways to fail over; all but the unluckiest hundred clients take most of them.
        assert!(seconds.len() > 6, "{seconds:?}");
    }
}
