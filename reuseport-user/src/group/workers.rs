//! Which CPUs get a worker.

use std::collections::BTreeSet;

use reuseport_common::abi::{Policy, Role};

use super::GroupError;
use crate::model::{Cpu, CpuSet};
use crate::plan::{NORMAL_WEIGHT, Request, Seat, plan};
use crate::topology::Topology;

/// How many workers a group has, and on which CPUs: one on each, unless a list says otherwise.
///
/// CPUs that the process may not run on (its cpuset, `taskset`) get none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Workers {
    /// One on each CPU that the calling thread may run on.
    #[default]
    PerCpu,
    /// One on each physical core: of SMT siblings, the allowed one with the lowest id.
    PerCore,
    /// One on each CPU of this list; on one that it names twice, two, who share its connections.
    On(Vec<Cpu>),
    /// This many, as far apart as the machine allows: on cores of their own first, then siblings.
    Count(usize),
}

impl Workers {
    /// The CPUs, ascending; at least one.
    pub(super) fn choose(
        &self,
        allowed: &CpuSet,
        topology: &Topology,
    ) -> Result<Vec<Cpu>, GroupError> {
        let chosen = match self {
            Self::PerCpu => allowed.iter().collect(),
            Self::PerCore => first_of_cores(allowed, topology),
            Self::On(cpus) => {
                let all = cpus.iter().copied();
                let refused: CpuSet = all.filter(|cpu| !allowed.contains(*cpu)).collect();
                if !refused.is_empty() {
                    return Err(GroupError::CpuNotAllowed { refused, allowed: allowed.clone() });
                }
                let mut sorted = cpus.clone();
                sorted.sort_unstable();
                sorted
            }
            Self::Count(count) if *count > allowed.len() => {
                let allowed = allowed.clone();
                return Err(GroupError::TooManyWorkers { asked: *count, allowed });
            }
            Self::Count(count) => spread(*count, allowed, topology)?,
        };
        if chosen.is_empty() { Err(GroupError::NoWorkers) } else { Ok(chosen) }
    }
}

fn first_of_cores(allowed: &CpuSet, topology: &Topology) -> Vec<Cpu> {
    let mut cores = BTreeSet::new();
    // A CPU that the topology does not know counts as a core of its own.
    allowed.iter().filter(|&cpu| topology.get(cpu).is_none_or(|it| cores.insert(it.core))).collect()
}

/// The homes that the planner would give to so many workers who may run anywhere.
fn spread(count: usize, allowed: &CpuSet, topology: &Topology) -> Result<Vec<Cpu>, GroupError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let (weight, role) = (NORMAL_WEIGHT, Role::Active);
    let seat = |slot| Seat { slot, cpus: allowed.clone(), weight, role };
    let seats = (0..count as u32).map(seat).collect();
    let request = Request { policy: Policy::Cpu, seats, hot: CpuSet::default() };
    let plan = plan(topology, &request)?;
    let mut homes: Vec<Cpu> = plan.seats.iter().filter_map(|seat| seat.home).collect();
    homes.sort_unstable();
    Ok(homes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::synthetic;

    /// Two nodes of one LLC each, two cores of two threads: CPUs 0 to 7.
    fn machine() -> Topology {
        synthetic::machine(2, 1, 2, 2).build()
    }

    fn chosen(workers: &Workers, allowed: &str) -> Vec<Cpu> {
        workers.choose(&allowed.parse().unwrap(), &machine()).unwrap()
    }

    #[test]
    fn per_cpu_takes_what_is_allowed() {
        assert_eq!(chosen(&Workers::PerCpu, "0-7"), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(chosen(&Workers::default(), "2,5"), [2, 5]);
    }

    #[test]
    fn per_core_takes_one_sibling_of_each() {
        let cores: Vec<_> = chosen(&Workers::PerCore, "0-7")
            .iter()
            .map(|&it| machine().get(it).unwrap().core)
            .collect();
        assert_eq!(cores.len(), 4);
        assert_eq!(cores.iter().collect::<BTreeSet<_>>().len(), 4);
        // Of a core whose first thread is forbidden, the other.
        let all = chosen(&Workers::PerCore, "0-7");
        let rest: Vec<Cpu> = (0..8).filter(|cpu| !all.contains(cpu)).collect();
        let rest_list: CpuSet = rest.iter().copied().collect();
        assert_eq!(chosen(&Workers::PerCore, &rest_list.to_string()), rest);
    }

    #[test]
    fn a_list_is_taken_as_it_is() {
        assert_eq!(chosen(&Workers::On(vec![5, 2]), "0-7"), [2, 5]);
        assert_eq!(chosen(&Workers::On(vec![3, 1, 3]), "0-7"), [1, 3, 3]);
    }

    #[test]
    fn a_number_is_spread_over_nodes_and_cores_before_siblings() {
        let places = |count| -> Vec<(u32, u32)> {
            let (cpus, machine) = (chosen(&Workers::Count(count), "0-7"), machine());
            assert_eq!(cpus.len(), count);
            cpus.iter().filter_map(|&cpu| machine.get(cpu)).map(|it| (it.node, it.core)).collect()
        };
        let nodes: BTreeSet<u32> = places(2).into_iter().map(|(node, _)| node).collect();
        assert_eq!(nodes.len(), 2);
        let cores: BTreeSet<u32> = places(4).into_iter().map(|(_, core)| core).collect();
        assert_eq!(cores.len(), 4);
        assert_eq!(chosen(&Workers::Count(8), "0-7"), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(chosen(&Workers::Count(1), "6"), [6]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let choose =
            |workers: Workers| workers.choose(&CpuSet::from([1, 3]), &machine()).unwrap_err();
        assert!(matches!(choose(Workers::Count(0)), GroupError::NoWorkers));
        assert!(matches!(choose(Workers::On(Vec::new())), GroupError::NoWorkers));
        let error = choose(Workers::Count(3));
        assert!(matches!(error, GroupError::TooManyWorkers { asked: 3, .. }));
        assert!(error.to_string().contains("1,3"), "{error}");
        let error = choose(Workers::On(vec![1, 2, 9]));
        assert!(error.to_string().contains("2,9"), "{error}");
    }
}
