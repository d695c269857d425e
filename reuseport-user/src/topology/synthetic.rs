//! Machines that nobody has to own: any shape, numbered as Linux numbers it.

use crate::model::{Cpu, CpuSet};

use super::{CpuInfo, Topology};

/// A machine under construction.
#[derive(Clone, Debug)]
pub struct Machine {
    cpus: Vec<CpuInfo>,
}

/// A machine of `nodes` nodes with `llcs` last-level caches each, `cores` cores per cache and
/// `threads` threads per core, all online.
///
/// SMT siblings are numbered as on most PCs: the first threads of all cores, then the second ones,
/// so that with two threads CPU `n` and CPU `n + cpus / 2` share a core.
pub fn machine(nodes: u32, llcs: u32, cores: u32, threads: u32) -> Machine {
    let all_cores = nodes * llcs * cores;
    let cpu = |id| {
        let core = id % all_cores;
        let llc = core / cores;
        CpuInfo { id, online: true, core, llc, node: llc / llcs }
    };
    Machine { cpus: (0..all_cores * threads).map(cpu).collect() }
}

impl Machine {
    /// Takes `cpus` offline: like the kernel, it then knows their node but not their core or cache.
    #[must_use]
    pub fn offline(mut self, cpus: &CpuSet) -> Self {
        for cpu in self.cpus.iter_mut().filter(|cpu| cpus.contains(cpu.id)) {
            // Beyond every real group's number, and unique.
            let alone = u32::MAX - cpu.id;
            (cpu.online, cpu.core, cpu.llc) = (false, alone, alone);
        }
        self
    }

    /// Gives every CPU the id that `id` makes of its present one, for instance to leave holes.
    #[must_use]
    pub fn renumber(mut self, id: impl Fn(Cpu) -> Cpu) -> Self {
        for cpu in &mut self.cpus {
            cpu.id = id(cpu.id);
        }
        self
    }

    /// The machine as the planner takes it.
    pub fn build(self) -> Topology {
        Topology::new(self.cpus)
    }
}
