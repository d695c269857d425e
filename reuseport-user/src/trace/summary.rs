//! What a reading means: by listener, by CPU, and how near to each other receiving and accepting
//! CPUs are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::histogram::{Histogram, Percentiles};
use super::reading::{Lost, OfCpu, OfListener, Reading};
use super::{Hook, Traced};
use crate::model::{Cpu, GroupKey, Served};
use crate::topology::{Distance, Topology};

/// A port's connections in some time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How long that was.
    pub seconds: f64,
    /// How accepts were seen.
    pub hook: Hook,
    /// Connections that came into an accept queue on the port, of traced listeners or not.
    pub queued: u64,
    /// All listeners together.
    pub total: Measures,
    /// In the order of groups.
    pub groups: Vec<OfGroup>,
    /// CPUs that received or accepted.
    pub cpus: Vec<CpuSummary>,
    /// What is not in the rest.
    pub lost: Lost,
    /// Listeners that are there but not traced, because there is no room for more.
    pub no_room: u64,
}

/// A group's listeners.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfGroup {
    /// The group.
    pub group: GroupKey,
    /// Its listeners, together.
    pub total: Measures,
    /// Each of them; also those that are gone.
    pub listeners: Vec<ListenerSummary>,
}

/// A listener's connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListenerSummary {
    /// `SO_COOKIE`.
    pub cookie: u64,
    /// Who accepts from it, as it was first seen.
    pub served: Served,
    /// Whether it is there.
    pub listens: bool,
    /// What was measured.
    #[serde(flatten)]
    pub measures: Measures,
    /// Connections by receiving and accepting CPU.
    pub pairs: Vec<Pair>,
    /// Waiting now.
    pub queue: u32,
    /// Most that may wait.
    pub backlog: u32,
    /// Most that waited when one was accepted, itself included, since the trace began.
    pub deepest_queue: u32,
    /// Whether it is given connections with their first data only (`TCP_DEFER_ACCEPT`); `None` where it
    /// may not be asked.
    pub defers: Option<bool>,
    /// Connections and segments for it that the kernel dropped, mostly because its queue was full;
    /// `None` where they cannot be told from what deferring drops.
    pub dropped: Option<u64>,
}

/// What is measured of connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measures {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Among them, those that were not seen to come: they waited already when the trace began, or
    /// were accepted before their handshake ended (TCP Fast Open). Nothing else is known of them.
    pub unseen: u64,
    /// How near the accepting CPU was to the receiving one.
    pub locality: Locality,
    /// From SYN-ACK to accept queue, where it had not to be sent again.
    pub handshake: Option<Percentiles>,
    /// From accept queue to accept.
    pub wait: Option<Percentiles>,
}

/// Connections by the distance of the CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locality {
    /// One CPU.
    pub same: u64,
    /// Two threads of one core.
    pub sibling: u64,
    /// Cores that share the last-level cache.
    pub llc: u64,
    /// One NUMA node.
    pub node: u64,
    /// Nothing nearer is known.
    pub remote: u64,
}

/// Connections received on one CPU and accepted on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The CPU that received the end of the handshake.
    pub received: Cpu,
    /// The CPU that accepted.
    pub accepted: Cpu,
    /// How many.
    pub connections: u64,
}

/// A CPU's connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CpuSummary {
    /// The CPU.
    pub cpu: Cpu,
    /// Received there, of those that were accepted.
    pub received: u64,
    /// Accepted there.
    #[serde(flatten)]
    pub measures: Measures,
}

impl Locality {
    /// Names of the distances, nearest first.
    pub const NAMES: [&str; 5] = ["same", "sibling", "llc", "node", "remote"];

    /// Adds so many connections.
    pub fn add(&mut self, distance: Distance, connections: u64) {
        *match distance {
            Distance::Same => &mut self.same,
            Distance::Sibling => &mut self.sibling,
            Distance::Llc => &mut self.llc,
            Distance::Node => &mut self.node,
            Distance::Remote => &mut self.remote,
        } += connections;
    }

    /// Nearest first.
    pub fn counts(&self) -> [u64; 5] {
        [self.same, self.sibling, self.llc, self.node, self.remote]
    }

    /// Adds another's connections.
    pub fn merge(&mut self, other: &Self) {
        self.same += other.same;
        self.sibling += other.sibling;
        self.llc += other.llc;
        self.node += other.node;
        self.remote += other.remote;
    }

    /// All connections.
    pub fn total(&self) -> u64 {
        self.counts().iter().sum()
    }
}

/// Adds up.
#[derive(Default)]
struct Sum {
    waits: Histogram,
    handshakes: Histogram,
    longest: u64,
    deepest: u32,
    unseen: u64,
    locality: Locality,
}

impl Sum {
    fn add(&mut self, cpu: &OfCpu) {
        self.waits.add(&cpu.waits);
        self.handshakes.add(&cpu.handshakes);
        self.longest = self.longest.max(cpu.longest);
        self.deepest = self.deepest.max(cpu.deepest);
        self.unseen += cpu.unseen;
    }

    fn measures(&self) -> Measures {
        Measures {
            accepted: self.waits.count() + self.unseen,
            unseen: self.unseen,
            locality: self.locality,
            handshake: self.handshakes.percentiles(u64::MAX),
            wait: self.waits.percentiles(self.longest),
        }
    }
}

impl Summary {
    /// Of a reading of these listeners.
    pub fn of(reading: &Reading, traced: &[Traced], hook: Hook, topology: &Topology) -> Self {
        let mut total = Sum::default();
        let mut groups: BTreeMap<GroupKey, (Sum, Vec<ListenerSummary>)> = BTreeMap::new();
        let mut cpus: BTreeMap<Cpu, (Sum, u64)> = BTreeMap::new();
        for ((of, listener), index) in reading.listeners.iter().zip(traced).zip(0..) {
            let (group, listeners) = groups.entry(listener.group).or_default();
            let mut own = Sum::default();
            for (&at, cpu) in &of.by_cpu {
                let on_cpu = &mut cpus.entry(at).or_default().0;
                for sum in [&mut own, &mut *group, &mut total, on_cpu] {
                    sum.add(cpu);
                }
            }
            let mut pairs = Vec::new();
            for (&(_, received, accepted), &connections) in
                reading.pairs.range((index, 0, 0)..=(index, Cpu::MAX, Cpu::MAX))
            {
                if connections == 0 {
                    continue;
                }
                pairs.push(Pair { received, accepted, connections });
                cpus.entry(received).or_default().1 += connections;
                let distance = topology.distance(received, accepted);
                let on_cpu = &mut cpus.entry(accepted).or_default().0;
                for sum in [&mut own, &mut *group, &mut total, on_cpu] {
                    sum.locality.add(distance, connections);
                }
            }
            listeners.push(summary(listener, of, &own, pairs));
        }
        let groups = groups.into_iter().map(|(group, (sum, listeners))| OfGroup {
            group,
            total: sum.measures(),
            listeners,
        });
        let cpus = cpus.into_iter().map(|(cpu, (sum, received))| CpuSummary {
            cpu,
            received,
            measures: sum.measures(),
        });
        // A CPU that did nothing since the reading before.
        let did = |it: &CpuSummary| it.received + it.measures.accepted > 0;
        Self {
            seconds: reading.elapsed.as_secs_f64(),
            hook,
            queued: reading.queued,
            total: total.measures(),
            groups: groups.collect(),
            cpus: cpus.filter(did).collect(),
            lost: reading.lost,
            no_room: reading.no_room,
        }
    }
}

fn summary(listener: &Traced, of: &OfListener, own: &Sum, pairs: Vec<Pair>) -> ListenerSummary {
    ListenerSummary {
        cookie: listener.cookie,
        served: listener.served.clone(),
        listens: of.queue.is_some(),
        measures: own.measures(),
        pairs,
        queue: of.queue.map_or(0, |it| it.queued),
        backlog: of.queue.map_or(0, |it| it.backlog),
        deepest_queue: own.deepest,
        defers: listener.defers,
        dropped: of.dropped,
    }
}

#[cfg(test)]
mod tests;
