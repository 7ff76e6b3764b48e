//! Who is there, from what gossip shows: one life of each server, and what became of it.
//!
//! chitchat knows *lives* (name and generation) and whether each is heard of. What a registry needs
//! to know is about *servers*: a restart is a change of one server and not a failure and a join; one
//! that said goodbye is not missed; one that is late because this very process was, is not dead.
//!
//! # Guarantees
//! - Only the highest generation of a name counts, for as long as anything of it is remembered.
//! - A server is dead when chitchat's detector says so **and** no sign of life has come for
//!   `patience`; the time in which this process stood still does not count.
//! - Who has left is never reported as failed, and a goodbye that arrives after the death turns it
//!   into a departure.
//! - The dead and the departed are forgotten after [`GRACE`].
//!
//! # Source
//! Serf's member states (alive, failed, left) and its reap; Ringpop's incarnations.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use selvedge_registry::wire::MemberState;

use super::member::Member;
use crate::catalogue::NodeId;

/// How long the dead and the departed are remembered. Source: quickwit cut both of chitchat's
/// grace periods to this after its digests grew too large.
pub const GRACE: Duration = Duration::from_secs(15 * 60);

/// The servers that are heard of, this one among them, and those that have left.
pub type Members = BTreeMap<NodeId, Member>;

/// One life as chitchat sees it.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// The server's name.
    pub node: NodeId,
    /// Its life.
    pub generation: u64,
    /// Grows while it lives.
    pub heartbeat: u64,
    /// What the failure detector says.
    pub alive: bool,
    /// What it says of itself, if that has arrived.
    pub member: Option<Member>,
}

/// What happened to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It was not there before, or had been dead or gone in an earlier life.
    Joined,
    /// It has begun a new life before its death was noticed.
    Restarted,
    /// It is no longer heard of, and did not say goodbye.
    Failed,
    /// It is heard of again, in the same life.
    Recovered,
    /// It said goodbye.
    Left,
}

impl Event {
    /// Every event, for counting.
    pub const ALL: [Self; 5] = [
        Self::Joined,
        Self::Restarted,
        Self::Failed,
        Self::Recovered,
        Self::Left,
    ];

    /// Its name in metrics and logs.
    pub fn text(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Restarted => "restarted",
            Self::Failed => "failed",
            Self::Recovered => "recovered",
            Self::Left => "left",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Heard,
    Left(Instant),
    Dead(Instant),
}

#[derive(Debug)]
struct Known {
    member: Member,
    heartbeat: u64,
    /// When its heartbeat last grew.
    progressed: Instant,
    phase: Phase,
}

/// The list of servers.
#[derive(Debug)]
pub struct Roster {
    me: NodeId,
    generation: u64,
    known: BTreeMap<NodeId, Known>,
    /// A later life of this server's name, if one is known.
    superseded: Option<u64>,
}

impl Roster {
    /// The list as the life `generation` of `me` begins it.
    pub fn new(me: NodeId, generation: u64) -> Self {
        Self {
            me,
            generation,
            known: BTreeMap::new(),
            superseded: None,
        }
    }

    /// This process did not run for so long: nobody else is to blame for it.
    pub fn stood_still(&mut self, late: Duration) {
        for known in self.known.values_mut() {
            known.progressed += late;
        }
    }

    /// Takes in everything that chitchat knows at `now`. A server that its detector gives up is
    /// still given `patience` since its last sign of life.
    pub fn observe(
        &mut self,
        now: Instant,
        sightings: impl Iterator<Item = Sighting>,
        patience: Duration,
    ) -> Vec<(NodeId, Event)> {
        let mut lives: BTreeMap<NodeId, Vec<Sighting>> = BTreeMap::new();
        for sighting in sightings {
            let node = NodeId::clone(&sighting.node);
            lives.entry(node).or_default().push(sighting);
        }
        let mine = lives.remove(&self.me).unwrap_or_default();
        self.observe_self(now, mine);
        for node in self.known.keys() {
            if *node != self.me {
                lives.entry(NodeId::clone(node)).or_default();
            }
        }
        let mut events = Vec::new();
        for (node, mut lives) in lives {
            lives.sort_by_key(|life| life.generation);
            if let Some(event) = self.observe_peer(now, &node, lives, patience) {
                events.push((node, event));
            }
        }
        self.known.retain(|_, known| match known.phase {
            Phase::Heard => true,
            Phase::Left(at) | Phase::Dead(at) => now.saturating_duration_since(at) < GRACE,
        });
        events
    }

    fn observe_self(&mut self, now: Instant, lives: Vec<Sighting>) {
        let later = lives.iter().map(|life| life.generation).max();
        self.superseded = later.filter(|later| *later > self.generation);
        let own = lives
            .into_iter()
            .find(|life| life.generation == self.generation)
            .and_then(|life| life.member);
        if let Some(member) = own {
            let known = Known {
                member,
                heartbeat: 0,
                progressed: now,
                phase: Phase::Heard,
            };
            self.known.insert(NodeId::clone(&self.me), known);
        }
    }

    /// `lives`: of one name, by generation; empty if chitchat has forgotten it.
    fn observe_peer(
        &mut self,
        now: Instant,
        node: &NodeId,
        mut lives: Vec<Sighting>,
        patience: Duration,
    ) -> Option<Event> {
        let latest = lives.pop();
        let Some(known) = self.known.get_mut(node) else {
            let Sighting {
                heartbeat,
                alive,
                member,
                ..
            } = latest?;
            // A life that is already over when it is first heard of is no news.
            let member = member.filter(|member| alive && member.is_present())?;
            let known = Known {
                member,
                heartbeat,
                progressed: now,
                phase: Phase::Heard,
            };
            self.known.insert(NodeId::clone(node), known);
            return Some(Event::Joined);
        };
        let current = known.member.generation;
        let mut sighting = latest;
        if let Some(later) = sighting.take_if(|life| life.generation > current) {
            let present = |member: &Member| member.is_present();
            if let Some(member) = later.member.filter(|m| later.alive && present(m)) {
                let event = match known.phase {
                    Phase::Heard => Event::Restarted,
                    Phase::Left(_) | Phase::Dead(_) => Event::Joined,
                };
                *known = Known {
                    member,
                    heartbeat: later.heartbeat,
                    progressed: now,
                    phase: Phase::Heard,
                };
                return Some(event);
            }
            // The later life has not shown itself yet: the earlier one counts until it has.
            sighting = lives.pop();
        }
        known.follow(now, sighting.filter(|s| s.generation == current), patience)
    }

    /// The servers that are heard of or have left.
    pub fn members(&self) -> Members {
        self.list(|known| !matches!(known.phase, Phase::Dead(_)))
    }

    /// Servers that are dead, until they are forgotten.
    pub fn dead(&self) -> Members {
        self.list(|known| matches!(known.phase, Phase::Dead(_)))
    }

    fn list(&self, which: impl Fn(&Known) -> bool) -> Members {
        let shown = self.known.iter().filter(|(_, known)| which(known));
        shown
            .map(|(node, known)| {
                let mut member = known.member.clone();
                match known.phase {
                    Phase::Heard => {}
                    Phase::Left(_) => member.state = MemberState::Left,
                    Phase::Dead(_) => member.state = MemberState::Dead,
                }
                (NodeId::clone(node), member)
            })
            .collect()
    }

    /// How long `node` has given no sign of life at `now`, not counting when this process stood
    /// still: what it is declared dead by.
    pub fn silent_for(&self, node: &str, now: Instant) -> Option<Duration> {
        let known = self.known.get(node)?;
        Some(now.saturating_duration_since(known.progressed))
    }

    /// Peers that are heard of.
    pub fn heard(&self) -> usize {
        let heard = |(node, known): &(&NodeId, &Known)| {
            **node != self.me && matches!(known.phase, Phase::Heard)
        };
        self.known.iter().filter(heard).count()
    }

    /// A later life of this server's own name, if one is known: two processes share the name.
    pub fn superseded(&self) -> Option<u64> {
        self.superseded
    }
}

impl Known {
    fn follow(
        &mut self,
        now: Instant,
        sighting: Option<Sighting>,
        patience: Duration,
    ) -> Option<Event> {
        let mut alive = false;
        if let Some(sighting) = sighting {
            alive = sighting.alive;
            if sighting.heartbeat > self.heartbeat {
                self.heartbeat = sighting.heartbeat;
                self.progressed = now;
            }
            if let Some(member) = sighting.member {
                self.member = member;
            }
        }
        if self.member.state == MemberState::Left {
            let news = !matches!(self.phase, Phase::Left(_));
            if news {
                self.phase = Phase::Left(now);
            }
            return news.then_some(Event::Left);
        }
        let recent = now.saturating_duration_since(self.progressed) < patience;
        match self.phase {
            Phase::Heard if !alive && !recent => {
                self.phase = Phase::Dead(now);
                Some(Event::Failed)
            }
            Phase::Dead(_) if alive => {
                self.phase = Phase::Heard;
                Some(Event::Recovered)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
