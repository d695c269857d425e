//! Reads the topology from sysfs.
//!
//! CPUs of one core, cache, package or node all name the same set, so one file per group is read
//! instead of one per CPU: a machine with 1024 CPUs costs little more than its number of cores.
//!
//! Layout: `Documentation/admin-guide/cputopology.rst` and `Documentation/ABI/stable/sysfs-devices-system-cpu`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use crate::model::{Cpu, CpuSet, CpuSetError};

use super::{CpuInfo, Topology};

/// Why the machine's topology is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// A file that every kernel has could not be read.
    #[error("read {path}: {source} (is sysfs mounted here?)", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A file does not hold a CPU list.
    #[error("parse {path}: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CpuSetError,
    },
    /// No CPU is online, so that no plan can be made.
    #[error("{path} names no CPU (is this sysfs real?)", path = path.display())]
    NoCpu {
        /// The file.
        path: PathBuf,
    },
}

impl Topology {
    /// This machine.
    pub fn read() -> Result<Self, TopologyError> {
        Self::read_from(Path::new("/sys"))
    }

    /// Whether the CPUs that run now are those that ran when this was read: nothing else of it changes.
    pub fn is_current(&self) -> bool {
        let online = must_read_list(Path::new("/sys/devices/system/cpu/online"));
        online.is_ok_and(|online| online == self.online())
    }

    /// The machine that `root` describes, laid out as `/sys`.
    ///
    /// Only the lists of possible and online CPUs must be there. Where the caches are not told (many
    /// virtual machines), a package counts as one LLC; without NUMA all is one node.
    pub fn read_from(root: &Path) -> Result<Self, TopologyError> {
        let system = root.join("devices/system");
        let cpus = system.join("cpu");
        let possible = must_read_list(&cpus.join("possible"))?;
        let online = must_read_list(&cpus.join("online"))?;
        let nodes = read_nodes(&system.join("node"))?;

        let mut core = Groups::default();
        let mut llc = Groups::default();
        let read_cpu = |id| -> Result<CpuInfo, TopologyError> {
            let cpu = cpus.join(format!("cpu{id}"));
            let online = online.contains(id);
            if online {
                core.learn(id, || read_siblings(&cpu))?;
                llc.learn(id, || read_llc(&cpu))?;
            }
            let node = match nodes.get(&id) {
                Some(node) => *node,
                // Nodes list only online CPUs.
                None => linked_node(&cpu).or_else(|| nodes.values().min().copied()).unwrap_or(0),
            };
            Ok(CpuInfo { id, online, core: core.of(id), llc: llc.of(id), node })
        };
        // Online CPUs that are not possible would be a kernel bug; rather believe that they run.
        let all: CpuSet = possible.iter().chain(online.iter()).collect();
        Ok(Self::new(all.iter().map(read_cpu).collect::<Result<_, _>>()?))
    }
}

/// Which group each CPU is in. A group's number is its lowest CPU.
#[derive(Default)]
struct Groups(BTreeMap<Cpu, Cpu>);

impl Groups {
    /// Asks `read` for the group of `cpu`, unless another member named it already.
    fn learn(
        &mut self,
        cpu: Cpu,
        read: impl FnOnce() -> Result<Option<CpuSet>, TopologyError>,
    ) -> Result<(), TopologyError> {
        if self.0.contains_key(&cpu) {
            return Ok(());
        }
        let members = read()?.unwrap_or_default();
        // A group that leaves out the CPU that names it tells nothing.
        let members = if members.contains(cpu) { members } else { CpuSet::from([cpu]) };
        let number = members.first().unwrap_or(cpu);
        for member in members.iter() {
            self.0.entry(member).or_insert(number);
        }
        Ok(())
    }

    /// The group of `cpu`, itself alone when nothing is known.
    fn of(&self, cpu: Cpu) -> Cpu {
        self.0.get(&cpu).copied().unwrap_or(cpu)
    }
}

/// CPUs of one core. The first name is the older one and still there.
fn read_siblings(cpu: &Path) -> Result<Option<CpuSet>, TopologyError> {
    read_first_list(cpu, &["topology/thread_siblings_list", "topology/core_cpus_list"])
}

/// CPUs that share the highest unified cache, or else the package.
fn read_llc(cpu: &Path) -> Result<Option<CpuSet>, TopologyError> {
    let mut best: Option<(u32, PathBuf)> = None;
    for index in (0..).map(|index| cpu.join(format!("cache/index{index}"))) {
        let Ok(level) = fs::read_to_string(index.join("level")) else {
            break;
        };
        let Ok(level) = level.trim().parse::<u32>() else {
            continue;
        };
        let kind = fs::read_to_string(index.join("type")).unwrap_or_default();
        let higher = best.as_ref().is_none_or(|(highest, _)| level > *highest);
        if kind.trim() == "Unified" && higher {
            best = Some((level, index));
        }
    }
    if let Some((_, index)) = best
        && let Some(list) = read_list(&index.join("shared_cpu_list"))?
    {
        return Ok(Some(list));
    }
    read_first_list(cpu, &["topology/package_cpus_list", "topology/core_siblings_list"])
}

/// Node of each CPU that a node names; empty without NUMA.
fn read_nodes(dir: &Path) -> Result<BTreeMap<Cpu, u32>, TopologyError> {
    let mut nodes = BTreeMap::new();
    for (number, path) in numbered(dir, "node") {
        for cpu in read_list(&path.join("cpulist"))?.iter().flat_map(CpuSet::iter) {
            nodes.insert(cpu, number);
        }
    }
    Ok(nodes)
}

/// The node that the CPU's own directory links to; there also for one that is present but offline.
fn linked_node(cpu: &Path) -> Option<u32> {
    numbered(cpu, "node").into_iter().map(|(number, _)| number).min()
}

/// Entries of `dir` named `prefix` and a number.
fn numbered(dir: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let number = |entry: &fs::DirEntry| {
        entry.file_name().to_str()?.strip_prefix(prefix)?.parse::<u32>().ok()
    };
    entries.flatten().filter_map(|entry| Some((number(&entry)?, entry.path()))).collect()
}

fn read_first_list(dir: &Path, names: &[&str]) -> Result<Option<CpuSet>, TopologyError> {
    for name in names {
        if let Some(list) = read_list(&dir.join(name))? {
            return Ok(Some(list));
        }
    }
    Ok(None)
}

/// A list that must be there and name a CPU.
fn must_read_list(path: &Path) -> Result<CpuSet, TopologyError> {
    let text = fs::read_to_string(path)
        .map_err(|source| TopologyError::Read { path: path.to_owned(), source })?;
    let list = parse_list(path, &text)?;
    if list.is_empty() {
        return Err(TopologyError::NoCpu { path: path.to_owned() });
    }
    Ok(list)
}

/// A list that may be missing: a CPU can go offline between two reads.
fn read_list(path: &Path) -> Result<Option<CpuSet>, TopologyError> {
    fs::read_to_string(path).ok().map(|text| parse_list(path, &text)).transpose()
}

fn parse_list(path: &Path, text: &str) -> Result<CpuSet, TopologyError> {
    CpuSet::from_str(text).map_err(|source| TopologyError::Parse { path: path.to_owned(), source })
}
