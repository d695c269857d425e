//! Which CPU each copy is pinned to. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::model::{Cpu, CpuSet};
use crate::topology::{CpuInfo, Topology};

/// How many copies are started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One on each physical core that has an allowed CPU, wherever [`Place`] begins.
    PerCore,
    /// One for each allowed CPU.
    PerCpu,
    /// As many, chosen by [`Place`].
    Count(u32),
    /// One on each of these CPUs, in this order.
    On(Vec<Cpu>),
}

/// Which CPUs are taken first, where there are more than copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A physical core for each copy, before any core gets a second one.
    Core,
    /// All hardware threads of a core, before the next core.
    Sibling,
    /// All cores of a last-level cache, the largest first, before the next cache.
    SameLlc,
}

/// One copy's CPU and its place in the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seat {
    /// The copy's number, from 0: `%i` and `WORKER_INDEX`.
    pub worker: u32,
    /// The CPU it is pinned to: `%c` and `WORKER_CPU`.
    pub cpu: Cpu,
    /// CPUs with the same number are hardware threads of one core.
    pub core: u32,
    /// CPUs with the same number share the last-level cache.
    pub llc: u32,
    /// NUMA node.
    pub node: u32,
    /// Other copies on the same core.
    pub core_shared_with: Vec<u32>,
}

/// A placement that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// `--workers 0`, or an empty list.
    #[error("no worker to start: give --workers at least 1")]
    None,
    /// More copies than CPUs.
    #[error(
        "{asked} workers are more than the {} CPUs that this process may run on ({allowed}): each is \
         pinned to one of its own; start fewer, or allow more (cpuset, taskset, container limits)",
        allowed.len()
    )]
    TooMany {
        /// Copies asked for.
        asked: usize,
        /// CPUs there are for them.
        allowed: CpuSet,
    },
    /// A CPU that may not be used.
    #[error(
        "CPU {cpu} is not one that this process may run on ({allowed}): choose among those, or allow \
         it (cpuset, taskset, container limits)"
    )]
    Outside {
        /// As it was given.
        cpu: Cpu,
        /// CPUs that may be used.
        allowed: CpuSet,
    },
    /// A CPU for two.
    #[error("CPU {0} is named twice: each worker gets a CPU of its own")]
    Twice(Cpu),
}

/// Seats the copies on CPUs of `allowed` that are online.
pub fn place(
    topology: &Topology,
    allowed: &CpuSet,
    workers: &Workers,
    place: Place,
) -> Result<Vec<Seat>, PlacementError> {
    let allowed = allowed.intersection(&topology.online());
    let usable: Vec<CpuInfo> =
        topology.cpus().iter().copied().filter(|cpu| allowed.contains(cpu.id)).collect();
    let chosen: Vec<CpuInfo> = match workers {
        Workers::On(cpus) => named(topology, &allowed, cpus)?,
        Workers::PerCore => {
            let mut cores = BTreeSet::new();
            order(usable.into_iter().filter(|cpu| cores.insert(cpu.core)).collect(), place)
        }
        Workers::PerCpu => order(usable, place),
        Workers::Count(count) => first(order(usable, place), *count as usize, &allowed)?,
    };
    if chosen.is_empty() {
        return Err(PlacementError::None);
    }
    let sharing = |core: u32, own: u32| {
        let workers = (0..).zip(&chosen).filter(|(worker, it)| it.core == core && *worker != own);
        workers.map(|(worker, _)| worker).collect()
    };
    let seat = |(worker, cpu): (u32, &CpuInfo)| Seat {
        worker,
        cpu: cpu.id,
        core: cpu.core,
        llc: cpu.llc,
        node: cpu.node,
        core_shared_with: sharing(cpu.core, worker),
    };
    Ok((0..).zip(&chosen).map(seat).collect())
}

/// The CPUs of a list.
fn named(
    topology: &Topology,
    allowed: &CpuSet,
    cpus: &[Cpu],
) -> Result<Vec<CpuInfo>, PlacementError> {
    let mut seen = CpuSet::default();
    let mut chosen = Vec::new();
    for &cpu in cpus {
        let info = topology.get(cpu).filter(|_| allowed.contains(cpu));
        let Some(info) = info else {
            return Err(PlacementError::Outside { cpu, allowed: allowed.clone() });
        };
        if seen.contains(cpu) {
            return Err(PlacementError::Twice(cpu));
        }
        seen.insert(cpu);
        chosen.push(*info);
    }
    Ok(chosen)
}

/// The first `count`.
fn first(
    mut cpus: Vec<CpuInfo>,
    count: usize,
    allowed: &CpuSet,
) -> Result<Vec<CpuInfo>, PlacementError> {
    if count > cpus.len() {
        return Err(PlacementError::TooMany { asked: count, allowed: allowed.clone() });
    }
    cpus.truncate(count);
    Ok(cpus)
}

/// In the order in which they are taken.
fn order(mut cpus: Vec<CpuInfo>, place: Place) -> Vec<CpuInfo> {
    // Which hardware thread of its core each is, counting those that may be used.
    let mut threads: BTreeMap<u32, u32> = BTreeMap::new();
    let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
    let thread: BTreeMap<Cpu, u32> = cpus
        .iter()
        .map(|cpu| {
            *sizes.entry(cpu.llc).or_default() += 1;
            let next = threads.entry(cpu.core).or_default();
            *next += 1;
            (cpu.id, *next)
        })
        .collect();
    cpus.sort_by_key(|cpu| match place {
        Place::Core => (Reverse(0), 0, thread[&cpu.id], cpu.id),
        Place::Sibling => (Reverse(0), 0, cpu.core, cpu.id),
        Place::SameLlc => (Reverse(sizes[&cpu.llc]), cpu.llc, thread[&cpu.id], cpu.id),
    });
    cpus
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topology::synthetic::machine;

    fn cpus(seats: &[Seat]) -> Vec<Cpu> {
        seats.iter().map(|seat| seat.cpu).collect()
    }

    /// Two nodes of one cache each, two cores per cache, two threads per core: CPU 4 is the sibling
    /// of CPU 0.
    fn pc() -> Topology {
        machine(2, 1, 2, 2).build()
    }

    fn chosen(workers: &Workers, how: Place) -> Vec<Cpu> {
        let topology = pc();
        cpus(&place(&topology, &topology.online(), workers, how).unwrap())
    }

    #[test]
    fn each_way_takes_its_cpus_first() {
        assert_eq!(chosen(&Workers::PerCore, Place::Core), [0, 1, 2, 3]);
        assert_eq!(chosen(&Workers::Count(2), Place::Core), [0, 1]);
        assert_eq!(chosen(&Workers::Count(5), Place::Core), [0, 1, 2, 3, 4]);
        // One on each core whatever the order.
        assert_eq!(chosen(&Workers::PerCore, Place::Sibling), [0, 1, 2, 3]);
        assert_eq!(chosen(&Workers::PerCore, Place::SameLlc), [0, 1, 2, 3]);
        assert_eq!(chosen(&Workers::Count(3), Place::Sibling), [0, 4, 1]);
        assert_eq!(chosen(&Workers::Count(4), Place::SameLlc), [0, 1, 4, 5]);
        assert_eq!(chosen(&Workers::Count(5), Place::SameLlc), [0, 1, 4, 5, 2]);
        assert_eq!(chosen(&Workers::PerCpu, Place::Core).len(), 8);
        assert_eq!(chosen(&Workers::On(vec![5, 0]), Place::Core), [5, 0]);
    }

    #[test]
    fn what_may_not_be_used_is_left_out() {
        let topology = machine(1, 2, 2, 2).offline(&CpuSet::from([1])).build();
        // CPUs 0 to 7 but for 1; the process may not use 0 and 4: core 0 is out.
        let allowed = CpuSet::from([1, 2, 3, 5, 6, 7]);
        let seats = place(&topology, &allowed, &Workers::PerCore, Place::Core).unwrap();
        assert_eq!(cpus(&seats), [2, 3, 5]);
        // The larger cache of what is left comes first.
        let seats = place(&topology, &allowed, &Workers::Count(4), Place::SameLlc).unwrap();
        assert_eq!(cpus(&seats), [2, 3, 6, 7]);
    }

    #[test]
    fn tells_who_shares_a_core() {
        let topology = pc();
        let seats = place(&topology, &topology.online(), &Workers::Count(3), Place::Sibling);
        let shared: Vec<_> = seats.unwrap().into_iter().map(|seat| seat.core_shared_with).collect();
        assert_eq!(shared, [vec![1], vec![0], vec![]]);
    }

    #[test]
    fn refuses_what_cannot_be() {
        let topology = pc();
        let allowed = CpuSet::from([0, 1]);
        let refused = |workers| place(&topology, &allowed, &workers, Place::Core).unwrap_err();
        assert_eq!(refused(Workers::Count(0)), PlacementError::None);
        assert_eq!(refused(Workers::On(Vec::new())), PlacementError::None);
        let asked = 3;
        let too_many = PlacementError::TooMany { asked, allowed: allowed.clone() };
        assert_eq!(refused(Workers::Count(3)), too_many);
        for cpu in [2, 99] {
            let outside = PlacementError::Outside { cpu, allowed: allowed.clone() };
            assert_eq!(refused(Workers::On(vec![0, cpu])), outside);
        }
        assert_eq!(refused(Workers::On(vec![1, 1])), PlacementError::Twice(1));
        let nowhere = place(&topology, &CpuSet::default(), &Workers::PerCpu, Place::Core);
        assert_eq!(nowhere, Err(PlacementError::None));
    }

    proptest! {
        #[test]
        fn every_copy_has_an_allowed_cpu_of_its_own(
            (llcs, cores, threads) in (1u32..4, 1u32..5, 1u32..3),
            allowed in prop::collection::btree_set(0u32..24, 1..24),
            count in 1u32..24,
            how in prop::sample::select(vec![Place::Core, Place::Sibling, Place::SameLlc]),
        ) {
            let topology = machine(1, llcs, cores, threads).build();
            let allowed: CpuSet = allowed.into_iter().collect();
            let usable = allowed.intersection(&topology.online());
            match place(&topology, &allowed, &Workers::Count(count), how) {
                Ok(seats) => {
                    let used: CpuSet = seats.iter().map(|seat| seat.cpu).collect();
                    prop_assert_eq!(used.len(), count as usize);
                    prop_assert!(used.is_subset(&usable));
                    prop_assert!((0..).zip(&seats).all(|(index, seat)| seat.worker == index));
                }
                Err(PlacementError::TooMany { .. }) => prop_assert!(count as usize > usable.len()),
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}
