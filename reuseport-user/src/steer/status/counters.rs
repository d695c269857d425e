//! What the program counted, added up for people and programs.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::bpf::maps::Counts;
use crate::model::Cpu;

use super::ListenerStatus;

/// Runs of the program. Not connections: a SYN cookie takes two, a stray segment one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// All of them.
    pub runs: u64,
    /// A slot was selected, by how.
    pub first: u64,
    /// The second choice, because the first was empty.
    pub second: u64,
    /// The second choice, because the first was over its limit.
    pub spilled: u64,
    /// For a connection whose listener closed.
    pub migrated: u64,
    /// `CONFIG` was not filled.
    pub no_config: u64,
    /// The CPU has no row.
    pub no_row: u64,
    /// The row points nowhere.
    pub empty_row: u64,
    /// Both choices were empty.
    pub no_socket: u64,
    /// Selections of a worker that is pinned to the receiving CPU, as it is now; `None` where workers
    /// are not pinned or rows are no CPUs.
    pub local: Option<u64>,
    /// Selections by receiving CPU (outer) and slot (inner); CPUs without any are left out.
    pub by_cpu: Vec<CpuCounters>,
    /// Selections by slot and how; slots without any are left out. They start again from 0 when
    /// another listener takes the slot.
    pub by_slot: Vec<SlotCounters>,
}

/// Selections on one receiving CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuCounters {
    /// The CPU.
    pub cpu: Cpu,
    /// By slot; slots without any are left out.
    pub slots: Vec<(u32, u64)>,
}

/// Receiving CPU, slot, and selections of the one there.
pub type Cell = (Cpu, u32, u64);

/// Selections of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotCounters {
    /// The slot.
    pub slot: u32,
    /// As first choice.
    pub first: u64,
    /// As second choice, because the first was empty.
    pub second: u64,
    /// As second choice, because the first was over its limit.
    pub spilled: u64,
    /// For connections whose listener closed.
    pub migrated: u64,
}

impl SlotCounters {
    /// In the order of [`Hit::ALL`].
    ///
    /// [`Hit::ALL`]: reuseport_common::stats::Hit::ALL
    pub fn hits(&self) -> [u64; 4] {
        [self.first, self.second, self.spilled, self.migrated]
    }

    /// However they came about.
    pub fn total(&self) -> u64 {
        self.hits().into_iter().sum()
    }
}

impl Counters {
    /// Runs that selected a slot.
    pub fn selections(&self) -> u64 {
        self.first + self.second + self.spilled + self.migrated
    }

    /// Runs that selected nothing, in the order of [`Miss::ALL`].
    ///
    /// [`Miss::ALL`]: reuseport_common::stats::Miss::ALL
    pub fn misses(&self) -> [u64; 4] {
        [self.no_config, self.no_row, self.empty_row, self.no_socket]
    }

    /// Selections.
    pub fn cells(&self) -> impl Iterator<Item = Cell> + '_ {
        self.by_cpu
            .iter()
            .flat_map(|cpu| cpu.slots.iter().map(|&(slot, runs)| (cpu.cpu, slot, runs)))
    }
}

/// Adds up the counts of all CPUs.
pub(super) fn count(
    policy: Option<&str>,
    counts: &[Counts],
    listeners: &[ListenerStatus],
) -> Counters {
    let mut total = Counts::default();
    for cpu in counts {
        total.add(cpu);
    }
    let hits = |hit: usize| total.slots.iter().map(|slot| slot[hit]).sum();
    let by_cpu: Vec<CpuCounters> = (0..)
        .zip(counts)
        .map(|(cpu, counts)| CpuCounters {
            cpu,
            slots: (0..)
                .zip(&counts.slots)
                .map(|(slot, hits)| (slot, hits.iter().sum()))
                .filter(|&(_, selections)| selections > 0)
                .collect(),
        })
        .filter(|cpu| !cpu.slots.is_empty())
        .collect();
    let by_slot = (0..)
        .zip(&total.slots)
        .map(|(slot, &[first, second, spilled, migrated])| SlotCounters {
            slot,
            first,
            second,
            spilled,
            migrated,
        })
        .filter(|slot| slot.total() > 0)
        .collect();
    let [no_config, no_row, empty_row, no_socket] = total.misses;
    let mut counters = Counters {
        runs: total.runs(),
        first: hits(0),
        second: hits(1),
        spilled: hits(2),
        migrated: hits(3),
        no_config,
        no_row,
        empty_row,
        no_socket,
        local: None,
        by_cpu,
        by_slot,
    };
    let local = local(policy, listeners, counters.cells());
    counters.local = local.map(|cells| cells.iter().map(|(_, _, runs)| runs).sum());
    counters
}

/// Those of the selections in `cells` (receiving CPU, slot, how many) that were of a worker pinned to
/// the receiving CPU, as it is now. `None` where it cannot be said: rows are no CPUs, or workers may
/// run on several.
pub(crate) fn local(
    policy: Option<&str>,
    listeners: &[ListenerStatus],
    cells: impl Iterator<Item = Cell>,
) -> Option<Vec<Cell>> {
    let mut home = HashMap::new();
    for it in listeners {
        if let Some(slot) = it.slot {
            let cpus = it.listener.cpus();
            home.insert(slot, cpus.first().filter(|_| cpus.len() == 1)?);
        }
    }
    let local = cells.filter(|(cpu, slot, _)| home.get(slot) == Some(cpu));
    (policy == Some("cpu")).then(|| local.collect())
}
