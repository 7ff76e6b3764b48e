//! Events in the log: the first few of a kind, then how many more there were.
//!
//! A circuit that opens and closes all day, or a thousand endpoints ejected at once, must not make
//! the log the next thing that fails. So of one kind of one service a minute has [`BURST`] lines;
//! the rest is counted, and told when the minute is over.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use selvedge_resilience::events::{Event, EventKind, trace::Owner};

use super::Origin;

/// Lines of one kind in [`WINDOW`]. A guess: who reads them has understood by then.
const BURST: u32 = 10;
/// How long lines are counted for.
const WINDOW: Duration = Duration::from_mins(1);

type Key = (Origin, Arc<str>, &'static str);

/// Who has had lines of late.
#[derive(Debug, Default)]
pub(super) struct Lines(HashMap<Key, Had>);

#[derive(Debug)]
struct Had {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

/// What was not written of somebody.
#[derive(Debug, PartialEq)]
struct Suppressed {
    origin: Origin,
    name: Arc<str>,
    kind: &'static str,
    events: u64,
}

impl Lines {
    /// Writes a line, if there have not been many of the kind.
    pub(super) fn tell(&mut self, origin: Origin, event: &Event, now: Instant) {
        // Who put a policy in force has told of it.
        let quiet = matches!(event.kind, EventKind::Reconfigured { .. });
        let key = (origin, Arc::clone(&event.name), event.kind.as_str());
        if quiet || self.has_room(key, now) {
            write(origin, event);
        }
    }

    /// Tells what was suppressed, and forgets who has been quiet for long.
    pub(super) fn tidy(&mut self, now: Instant) {
        for it in self.over(now) {
            tracing::warn!(
                side = it.origin.side(),
                service = it.origin.service(&it.name),
                listener = it.origin.listener(&it.name),
                kind = it.kind,
                suppressed = it.events,
                "policy events were too many for the log"
            );
        }
    }

    fn has_room(&mut self, key: Key, now: Instant) -> bool {
        let had = self.0.entry(key).or_insert(Had {
            since: now,
            lines: 0,
            suppressed: 0,
        });
        let room = had.lines < BURST;
        if room {
            had.lines += 1;
        } else {
            had.suppressed += 1;
        }
        room
    }

    fn over(&mut self, now: Instant) -> Vec<Suppressed> {
        let is_over = |_: &Key, had: &mut Had| now.saturating_duration_since(had.since) >= WINDOW;
        let over = self.0.extract_if(is_over);
        let suppressed = over.filter(|(_, had)| had.suppressed > 0);
        let told = suppressed.map(|((origin, name, kind), had)| Suppressed {
            origin,
            name,
            kind,
            events: had.suppressed,
        });
        told.collect()
    }
}

fn write(origin: Origin, event: &Event) {
    event.trace_of(Owner {
        side: Some(origin.side()),
        service: origin.service(&event.name),
        listener: origin.listener(&event.name),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (Origin::Client, name.into(), "ejected")
    }

    #[test]
    fn a_kind_has_ten_lines_a_minute_and_then_a_number() {
        let start = tokio::time::Instant::now().into_std();
        let mut lines = Lines::default();
        let at = |second| start + Duration::from_secs(second);
        let written = |lines: &mut Lines, name, n, second| {
            (0..n)
                .filter(|_| lines.has_room(key(name), at(second)))
                .count()
        };
        assert_eq!(written(&mut lines, "orders", 25, 0), 10);
        assert_eq!(written(&mut lines, "orders", 5, 59), 0);
        // Of another the first ones are written; nothing is said of those who had room.
        assert_eq!(written(&mut lines, "stock", 3, 0), 3);
        assert_eq!(lines.over(at(59)), []);
        let told = Suppressed {
            origin: Origin::Client,
            name: "orders".into(),
            kind: "ejected",
            events: 20,
        };
        assert_eq!(lines.over(at(60)), [told]);
        assert!(lines.0.is_empty(), "nobody is kept");
        assert_eq!(written(&mut lines, "orders", 1, 60), 1);
    }
}
