//! What happened between two snapshots. Unit: runs of the program per second.
//!
//! Counters fall when a slot is given to another listener, and when a renewal replaces the maps:
//! they then count from 0, so what they show is what happened since.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;

use super::Snapshot;
use crate::model::{Cpu, GroupKey};
use crate::steer::GroupStatus;
use crate::steer::status::{self, Cell, SlotCounters, Steering};

/// Rates of every group that is steered in both snapshots.
#[derive(Clone, Debug, Serialize)]
pub struct Rates {
    /// Between the snapshots.
    pub elapsed: Duration,
    /// In the order of the later snapshot.
    pub groups: Vec<GroupRates>,
}

/// Rates of one group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupRates {
    /// Which.
    pub group: GroupKey,
    /// By how runs ended.
    pub paths: Paths,
    /// Selections by slot; slots without any are left out.
    pub slots: BTreeMap<u32, f64>,
    /// Selections by receiving CPU; CPUs without any are left out.
    pub cpus: BTreeMap<Cpu, f64>,
    /// Share (0 to 1) of the selections that were of a worker pinned to the receiving CPU; `None`
    /// without selections, where workers are not pinned, and where rows are no CPUs.
    pub local: Option<f64>,
}

/// Runs of the program by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Paths {
    /// First choices.
    pub first: f64,
    /// Second choices, because the first was empty.
    pub second: f64,
    /// Second choices, because the first was over its limit.
    pub spilled: f64,
    /// For connections whose listener closed.
    pub migrated: f64,
    /// No slot was selected, and the kernel's hash decided.
    pub missed: f64,
}

impl Paths {
    /// Runs that selected a slot.
    pub fn selections(&self) -> f64 {
        self.first + self.second + self.spilled + self.migrated
    }

    /// All runs.
    pub fn runs(&self) -> f64 {
        self.selections() + self.missed
    }
}

impl Rates {
    /// `None` unless `later` is later.
    pub fn between(earlier: &Snapshot, later: &Snapshot) -> Option<Self> {
        let elapsed = later.since(earlier)?;
        let rates = |now: &GroupStatus| {
            let then = earlier.group(&now.group)?;
            Some(Pair::of(then, now)?.rates(elapsed))
        };
        Some(Self { elapsed, groups: later.groups.iter().filter_map(rates).collect() })
    }

    /// Those of a group.
    pub fn group(&self, key: &GroupKey) -> Option<&GroupRates> {
        self.groups.iter().find(|rates| rates.group == *key)
    }
}

/// A group that is steered at both ends.
struct Pair<'a> {
    now: &'a GroupStatus,
    then_steering: &'a Steering,
    now_steering: &'a Steering,
    /// Whether other maps are pinned.
    renewed: bool,
    /// Who sat in a slot.
    then_seats: HashMap<u32, u64>,
    now_seats: HashMap<u32, u64>,
}

impl<'a> Pair<'a> {
    fn of(then: &'a GroupStatus, now: &'a GroupStatus) -> Option<Self> {
        let (then_steering, now_steering) = (then.steering.as_ref()?, now.steering.as_ref()?);
        let seats = |group: &GroupStatus| {
            let seat = |it: &status::ListenerStatus| Some((it.slot?, it.listener.cookie));
            group.listeners.iter().filter_map(seat).collect()
        };
        Some(Self {
            now,
            then_steering,
            now_steering,
            renewed: then_steering.program_id != now_steering.program_id,
            then_seats: seats(then),
            now_seats: seats(now),
        })
    }

    /// Whether the slot's counters began again: its listener is another one. (A slot that fell
    /// vacant keeps them.)
    fn is_reset(&self, slot: u32) -> bool {
        let sitter = self.now_seats.get(&slot);
        self.renewed || sitter.is_some_and(|now| self.then_seats.get(&slot) != Some(now))
    }

    fn grown(reset: bool, then: u64, now: u64) -> u64 {
        // One that fell was reset between, whatever else seems so.
        if reset || now < then { now } else { now - then }
    }

    /// Selections since by (receiving CPU, slot).
    fn cells(&self) -> Vec<Cell> {
        let then: HashMap<(Cpu, u32), u64> = self
            .then_steering
            .counters
            .cells()
            .map(|(cpu, slot, runs)| ((cpu, slot), runs))
            .collect();
        let grown = |(cpu, slot, now): Cell| {
            let then = then.get(&(cpu, slot)).copied().unwrap_or_default();
            (cpu, slot, Self::grown(self.is_reset(slot), then, now))
        };
        let cells = self.now_steering.counters.cells().map(grown);
        cells.filter(|&(_, _, runs)| runs > 0).collect()
    }

    /// Selections since by how, all slots together.
    fn hits(&self) -> SlotCounters {
        let mut sum = SlotCounters::default();
        for now in &self.now_steering.counters.by_slot {
            let slots = &self.then_steering.counters.by_slot;
            let then = slots.iter().find(|then| then.slot == now.slot).copied().unwrap_or_default();
            // Together: if one of them fell, all of them were reset.
            let reset = self.is_reset(now.slot) || now.total() < then.total();
            sum.first += Self::grown(reset, then.first, now.first);
            sum.second += Self::grown(reset, then.second, now.second);
            sum.spilled += Self::grown(reset, then.spilled, now.spilled);
            sum.migrated += Self::grown(reset, then.migrated, now.migrated);
        }
        sum
    }

    fn missed(&self) -> u64 {
        let misses = |it: &Steering| it.counters.misses();
        let pairs = misses(self.then_steering).into_iter().zip(misses(self.now_steering));
        pairs.map(|(then, now)| Self::grown(self.renewed, then, now)).sum()
    }

    fn rates(&self, elapsed: Duration) -> GroupRates {
        let rate = |runs: u64| runs as f64 / elapsed.as_secs_f64();
        let hits = self.hits();
        let cells = self.cells();
        let (mut slots, mut cpus) = (BTreeMap::new(), BTreeMap::new());
        for &(cpu, slot, runs) in &cells {
            *slots.entry(slot).or_default() += rate(runs);
            *cpus.entry(cpu).or_default() += rate(runs);
        }
        let sum = |cells: &[Cell]| cells.iter().map(|&(_, _, runs)| runs).sum::<u64>();
        let selections = sum(&cells);
        let policy = self.now_steering.policy;
        let local = status::local(policy, &self.now.listeners, cells.into_iter());
        GroupRates {
            group: self.now.group,
            paths: Paths {
                first: rate(hits.first),
                second: rate(hits.second),
                spilled: rate(hits.spilled),
                migrated: rate(hits.migrated),
                missed: rate(self.missed()),
            },
            slots,
            cpus,
            local: local
                .filter(|_| selections > 0)
                .map(|cells| sum(&cells) as f64 / selections as f64),
        }
    }
}

#[cfg(test)]
mod tests;
