//! One home CPU for every seat.
//!
//! An online semi-matching: seats take a CPU one after the other, the most constrained first, and
//! where all CPUs of a seat are taken, seats that could live elsewhere move along an augmenting path.
//! Every step keeps the property that no move can even out two CPUs (Harvey, Ladner, Lovász and
//! Tamir, "Semi-matchings for bipartite graphs and load balancing", 2003), so that the largest number
//! of seats on one CPU is as small as can be, and where each seat can have a CPU of its own, it does.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{Cpu, CpuSet};
use crate::topology::Topology;

use super::near::Near;

/// Gives every set one of its CPUs. The sets must not be empty and name online CPUs only.
///
/// Among CPUs that are home to equally few, the one whose core, then LLC, then node is, then the
/// lowest id.
pub(super) fn assign(topology: &Topology, near: &Near, sets: &[CpuSet]) -> Vec<Cpu> {
    let mut classes: BTreeMap<&CpuSet, usize> = BTreeMap::new();
    let mut cpus: Vec<Vec<Cpu>> = Vec::new();
    let mut class_of = Vec::with_capacity(sets.len());
    for set in sets {
        class_of.push(*classes.entry(set).or_insert_with(|| {
            cpus.push(set.iter().collect());
            cpus.len() - 1
        }));
    }
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.sort_by_key(|seat| (cpus[class_of[*seat]].len(), *seat));

    let rows = topology.rows() as usize;
    let mut state = State {
        near,
        online: topology.online().iter().collect(),
        cpus,
        load: vec![0; near.count()],
        tenants: vec![BTreeMap::new(); rows],
        homes: vec![0; sets.len()],
    };
    for seat in order {
        state.house(seat, class_of[seat]);
    }
    state.homes
}

struct State<'a> {
    near: &'a Near,
    online: Vec<Cpu>,
    /// CPUs of each class; seats with equal sets are one class.
    cpus: Vec<Vec<Cpu>>,
    /// Seats that live in each group of CPUs.
    load: Vec<u32>,
    /// By CPU: the seats that live there, by class.
    tenants: Vec<BTreeMap<usize, Vec<usize>>>,
    homes: Vec<Cpu>,
}

impl State<'_> {
    /// Seats at `cpu`, and then around it.
    fn loads(&self, cpu: Cpu) -> [u32; 5] {
        let mut loads = [0; 5];
        for (load, (_, group)) in loads.iter_mut().zip(self.near.around(cpu)) {
            *load = self.load[group];
        }
        loads
    }

    fn seats_at(&self, cpu: Cpu) -> u32 {
        self.near.around(cpu).next().map_or(0, |(_, group)| self.load[group])
    }

    /// Finds a home for one more seat.
    fn house(&mut self, seat: usize, class: usize) {
        let candidates = self.cpus[class].iter().copied();
        let Some(direct) = candidates.min_by_key(|cpu| (self.loads(*cpu), *cpu)) else {
            return;
        };
        let emptiest = self.online.iter().map(|cpu| self.seats_at(*cpu)).min().unwrap_or(0);
        let mut grown = direct;
        let (mut mover, mut mover_class) = (seat, class);
        if self.seats_at(direct) > emptiest
            && let Some(path) = self.find_path(class, self.seats_at(direct), emptiest)
        {
            // Everyone on the path moves one on; only the last CPU gets one more.
            for (cpu, moving_class) in path.moves {
                self.settle(mover, mover_class, cpu);
                // The path was found through these tenants: there is one of that class.
                let tenants = self.tenants[cpu as usize].entry(moving_class).or_default();
                (mover, mover_class) = (tenants.remove(0), moving_class);
            }
            grown = path.end;
        }
        self.settle(mover, mover_class, grown);
        for (_, group) in self.near.around(grown) {
            self.load[group] += 1;
        }
    }

    fn settle(&mut self, seat: usize, class: usize, cpu: Cpu) {
        self.homes[seat] = cpu;
        self.tenants[cpu as usize].entry(class).or_default().push(seat);
    }

    /// The shortest chain of moves to a CPU with fewer than `taken` seats, the emptiest in reach;
    /// `emptiest` is as good as it gets.
    fn find_path(&self, class: usize, taken: u32, emptiest: u32) -> Option<Path> {
        let mut seen = vec![false; self.cpus.len()];
        // By CPU: from where, and by moving a seat of which class; itself for where the path starts.
        let mut from: Vec<Option<(Cpu, usize)>> = vec![None; self.tenants.len()];
        let mut queue = VecDeque::new();
        let mut best: Option<(u32, Cpu)> = None;
        seen[class] = true;
        for cpu in &self.cpus[class] {
            from[*cpu as usize] = Some((*cpu, class));
            queue.push_back(*cpu);
        }
        'search: while let Some(cpu) = queue.pop_front() {
            for (next_class, seats) in &self.tenants[cpu as usize] {
                if seats.is_empty() || std::mem::replace(&mut seen[*next_class], true) {
                    continue;
                }
                for next in &self.cpus[*next_class] {
                    if from[*next as usize].is_some() {
                        continue;
                    }
                    from[*next as usize] = Some((cpu, *next_class));
                    queue.push_back(*next);
                    let seats = self.seats_at(*next);
                    if seats < best.map_or(taken, |(fewest, _)| fewest) {
                        best = Some((seats, *next));
                    }
                    if seats == emptiest {
                        break 'search;
                    }
                }
            }
        }
        let (_, end) = best?;
        let mut moves = Vec::new();
        let mut at = end;
        while let Some((cpu, moving_class)) = from[at as usize]
            && cpu != at
        {
            moves.push((cpu, moving_class));
            at = cpu;
        }
        moves.reverse();
        Some(Path { moves, end })
    }
}

/// At each CPU a seat of the class moves on to the next, the last one to `end`.
struct Path {
    moves: Vec<(Cpu, usize)>,
    end: Cpu,
}

#[cfg(test)]
mod tests;
