//! Which CPUs this machine has and how near they are to each other: CPU, core, LLC, node.
//!
//! [`Topology::read`] takes it from sysfs; [`synthetic`] makes any machine up. The rest of the crate
//! asks for two things only: which CPUs exist or are online, and the [`Distance`] of two of them.

use serde::Serialize;

use crate::model::{Cpu, CpuSet};

pub mod synthetic;
mod sysfs;

pub use sysfs::TopologyError;

/// One possible CPU and the groups it is in.
///
/// The groups are opaque: equal numbers mean the same core, LLC or node, machine-wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CpuInfo {
    /// Its id.
    pub id: Cpu,
    /// Whether it runs now. The kernel tells no core and no cache of one that does not.
    pub online: bool,
    /// CPUs with the same number are SMT siblings.
    pub core: u32,
    /// CPUs with the same number share the last-level cache.
    pub llc: u32,
    /// CPUs with the same number are on one NUMA node; the kernel's number of it.
    pub node: u32,
}

/// How far apart two CPUs are, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// They are one CPU.
    Same,
    /// SMT siblings: two threads of one core.
    Sibling,
    /// Their cores share the last-level cache.
    Llc,
    /// They are on one NUMA node.
    Node,
    /// Nothing nearer is known.
    Remote,
}

/// All CPUs that may ever come online, in ascending order; ids may have holes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Topology {
    cpus: Vec<CpuInfo>,
}

impl Topology {
    /// A machine of these CPUs. Of two with one id, the first counts.
    pub fn new(mut cpus: Vec<CpuInfo>) -> Self {
        cpus.sort_by_key(|cpu| cpu.id);
        cpus.dedup_by_key(|cpu| cpu.id);
        Self { cpus }
    }

    /// A machine of which nothing is known but that it has these CPUs: all are equally far apart, and
    /// those with lower ids exist too.
    pub fn flat(cpus: &CpuSet) -> Self {
        let ids = 0..cpus.iter().last().map_or(0, |last| last + 1);
        let alone = |id| CpuInfo { id, online: true, core: id, llc: 0, node: 0 };
        Self::new(ids.map(alone).collect())
    }

    /// The possible CPUs, ascending.
    pub fn cpus(&self) -> &[CpuInfo] {
        &self.cpus
    }

    /// Rows that a table needs to have one for every CPU: the highest possible id + 1.
    pub fn rows(&self) -> u32 {
        self.cpus.last().map_or(0, |cpu| cpu.id + 1)
    }

    /// CPUs that run now.
    pub fn online(&self) -> CpuSet {
        self.cpus.iter().filter(|cpu| cpu.online).map(|cpu| cpu.id).collect()
    }

    /// CPUs that run now or may later.
    pub fn possible(&self) -> CpuSet {
        self.cpus.iter().map(|cpu| cpu.id).collect()
    }

    /// What is known of `cpu`; `None` where no such CPU can be.
    pub fn get(&self, cpu: Cpu) -> Option<&CpuInfo> {
        let index = self.cpus.binary_search_by_key(&cpu, |info| info.id).ok()?;
        self.cpus.get(index)
    }

    /// How far `a` is from `b`; [`Distance::Remote`] where one of them does not exist.
    pub fn distance(&self, a: Cpu, b: Cpu) -> Distance {
        if a == b {
            return Distance::Same;
        }
        match (self.get(a), self.get(b)) {
            (Some(a), Some(b)) if a.core == b.core => Distance::Sibling,
            (Some(a), Some(b)) if a.llc == b.llc => Distance::Llc,
            (Some(a), Some(b)) if a.node == b.node => Distance::Node,
            _ => Distance::Remote,
        }
    }
}

#[cfg(test)]
mod tests;
