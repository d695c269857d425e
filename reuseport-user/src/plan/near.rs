//! Who is near a CPU: groups of CPUs by level, from the CPU alone to the whole machine.

use std::collections::BTreeMap;

use crate::model::Cpu;
use crate::topology::{Distance, Topology};

/// Levels of groups, nearest first.
const LEVELS: [Distance; 5] =
    [Distance::Same, Distance::Sibling, Distance::Llc, Distance::Node, Distance::Remote];

/// The whole machine is group 0.
const MACHINE: usize = 0;

/// For every CPU the groups that it is in. Groups of all levels are numbered together.
#[derive(Debug)]
pub(super) struct Near {
    /// By CPU id; `None` for holes.
    of: Vec<Option<[usize; 5]>>,
    count: usize,
}

impl Near {
    pub(super) fn new(topology: &Topology) -> Self {
        let mut numbers = BTreeMap::new();
        let mut of = vec![None; topology.rows() as usize];
        for cpu in topology.cpus() {
            let names = [cpu.id, cpu.core, cpu.llc, cpu.node];
            let mut groups = [MACHINE; 5];
            for (level, name) in names.into_iter().enumerate() {
                let next = numbers.len() + 1;
                groups[level] = *numbers.entry((level, name)).or_insert(next);
            }
            of[cpu.id as usize] = Some(groups);
        }
        Self { of, count: numbers.len() + 1 }
    }

    /// Number of groups.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Groups around `cpu`, nearest first: whoever is in one and not in those before it is at that
    /// distance. A hole is near nothing.
    pub(super) fn around(&self, cpu: Cpu) -> impl Iterator<Item = (Distance, usize)> + use<> {
        let groups = self.of.get(cpu as usize).copied().flatten();
        let from = if groups.is_some() { 0 } else { LEVELS.len() - 1 };
        LEVELS.into_iter().zip(groups.unwrap_or([MACHINE; 5])).skip(from)
    }

    /// For every group the members that have their home in it, in the order given.
    pub(super) fn gather(&self, homes: impl Iterator<Item = (Cpu, usize)>) -> Vec<Vec<usize>> {
        let mut members = vec![Vec::new(); self.count];
        for (home, member) in homes {
            for (_, group) in self.around(home) {
                members[group].push(member);
            }
        }
        members
    }
}

/// Members of one group, taken in turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    members: Vec<usize>,
    next: usize,
}

impl Ring {
    pub(super) fn new(members: Vec<usize>) -> Self {
        Self { members, next: 0 }
    }

    /// The next member that is not `other`; `None` when there is none.
    pub(super) fn turn(&mut self, other: usize) -> Option<usize> {
        for _ in 0..2.min(self.members.len()) {
            let member = self.members[self.next];
            self.next = (self.next + 1) % self.members.len();
            if member != other {
                return Some(member);
            }
        }
        None
    }
}
