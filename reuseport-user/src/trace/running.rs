//! Traces that other processes run: what `status` and the metrics tell of them.
//!
//! Nobody publishes anything, so nothing can be left behind. The maps of a running trace are borrowed
//! from its process, as listeners are, for as long as it takes to read them; whoever may do that may
//! trace the process anyway. Only maps that a tracing program uses are believed: to load one takes
//! `CAP_BPF` and `CAP_PERFMON`, so nobody with less can have false figures told. Mount and network
//! namespaces do not matter. A trace in a pid namespace that is hidden from us, and one that runs in a
//! program of another name, are not found.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{HashMap, Map, MapData};
use reuseport_common::observe::{self, PROGRAM_ACCEPTED, PROGRAM_RETURNED};

use super::Locality;
use crate::bpf::BpfError;
use crate::discover::procfs::{self, Open};
use crate::model::{Cpu, Pid};
use crate::sys::{bpf, pidfd};
use crate::topology::Topology;

/// What the command's processes are called.
const NAME: &str = "reuseport-steer";

/// By the listener's cookie: received on, accepted on, how many.
type ByListener = BTreeMap<u64, Vec<(Cpu, Cpu, u64)>>;

/// What a trace has counted.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its process.
    pub(crate) pid: Pid,
    /// Of the program that counts: those of older traces are smaller.
    program: u32,
    by_listener: ByListener,
}

/// The traces that run and may be looked at, the oldest first.
///
/// # Minimum kernel version
///
/// 5.6; `CAP_SYS_PTRACE` for those of other users.
pub(crate) fn running() -> Vec<Running> {
    let ours = procfs::pids().into_iter().filter(|&pid| procfs::name(pid) == NAME);
    // One that ends meanwhile is none.
    let mut found: Vec<_> = ours.filter_map(|pid| Running::of(pid).ok().flatten()).collect();
    found.sort_unstable_by_key(|it| it.program);
    found
}

impl Running {
    /// What the process traces, if it does.
    fn of(pid: Pid) -> Result<Option<Self>, BpfError> {
        let files = procfs::open_files(pid)?;
        let process = pidfd::open(pid)?;
        let borrow = |kind: Open| {
            let of_kind = files.iter().filter(move |(_, open)| *open == kind);
            of_kind.filter_map(|&(fd, _)| pidfd::getfd(process.as_fd(), fd).ok())
        };
        let counts = |program: OwnedFd| {
            let info = bpf::program_info(program.as_fd()).ok()?;
            let names = [PROGRAM_ACCEPTED.0, PROGRAM_RETURNED.0];
            (info.kind == bpf::TRACING && names.contains(&info.name.as_str())).then_some(info)
        };
        let Some(program) = borrow(Open::BpfProgram).find_map(counts) else { return Ok(None) };
        let (mut listeners, mut pairs) = (None, None);
        for map in borrow(Open::BpfMap) {
            let map = MapData::from_fd(map)?;
            let info = map.info()?;
            if !program.maps.contains(&info.id()) {
                continue;
            }
            match info.name_as_str() {
                Some(observe::LISTENERS) => listeners = Some(hash(map)?),
                Some(observe::PAIRS) => pairs = Some(hash(map)?),
                _ => {}
            }
        }
        let (Some(listeners), Some(pairs)) = (listeners, pairs) else { return Ok(None) };
        let by_listener = read(&listeners, &pairs)?;
        Ok(Some(Self { pid, program: program.id, by_listener }))
    }

    /// Connections of a listener that were accepted since it is traced, by how near that was to where
    /// they were received; `None` for one that is not traced.
    pub(crate) fn locality(&self, cookie: u64, topology: &Topology) -> Option<Locality> {
        let mut locality = Locality::default();
        for &(received, accepted, connections) in self.by_listener.get(&cookie)? {
            locality.add(topology.distance(received, accepted), connections);
        }
        Some(locality)
    }
}

/// A hash, if keys and values have the right sizes.
fn hash<K: aya::Pod, V: aya::Pod>(map: MapData) -> Result<HashMap<MapData, K, V>, BpfError> {
    Ok(Map::from_map_data(map)?.try_into()?)
}

fn read(
    listeners: &HashMap<MapData, u64, u32>,
    pairs: &HashMap<MapData, u64, u64>,
) -> Result<ByListener, BpfError> {
    let indices = || listeners.iter().collect::<Result<BTreeMap<u64, u32>, _>>();
    let before = indices()?;
    let mut by_index: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for (pair, connections) in pairs.iter().collect::<Result<BTreeMap<u64, u64>, _>>()? {
        let (index, received, accepted) = observe::unpair(pair);
        by_index.entry(index).or_default().push((received, accepted, connections));
    }
    // An index may be given to another listener: these counts are of whoever had it all the while.
    let mut after = indices()?;
    after.retain(|cookie, index| before.get(cookie) == Some(index));
    let of = |(cookie, index)| (cookie, by_index.remove(&index).unwrap_or_default());
    Ok(after.into_iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_told_of_listeners_that_are_traced() {
        let by_listener = BTreeMap::from([(7, vec![(0, 0, 5), (0, 1, 2)]), (8, Vec::new())]);
        let it = Running { pid: 1, program: 1, by_listener };
        let topology = crate::topology::synthetic::machine(1, 1, 2, 1).build();
        let expected = Locality { same: 5, llc: 2, ..Locality::default() };
        assert_eq!(it.locality(7, &topology), Some(expected));
        assert_eq!(it.locality(8, &topology), Some(Locality::default()));
        assert_eq!(it.locality(9, &topology), None);
    }
}
