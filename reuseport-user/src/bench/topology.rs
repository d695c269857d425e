//! How packets reach the server, and on which CPUs: made for each run of the bench, and gone with it.
//!
//! Namespaces without a name, kept by a descriptor alone: they go, with their interfaces and with what
//! is pinned in their BPF file system, when this process and its server do, whatever ends them.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mechanism::{Unknown, find};
use crate::model::{Cpu, CpuSet, Pid};
use crate::sys::netns::{self, NetnsError};
use crate::sys::sched;

/// A topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// Loopback, a client thread on each CPU: packets arrive on all of them.
    T1,
    /// Loopback, all clients on one CPU: packets arrive there only, as from one RX queue.
    T2,
    /// veth with a queue for each CPU, polled by a thread pinned there: as a NIC with RSS.
    T3,
    /// veth with one queue, polled on the first CPU, and RPS to all.
    T4,
    /// veth with one queue, polled on the first CPU, and no RPS: as virtio with a single queue.
    T5,
}

impl Topology {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::T1, Self::T2, Self::T3, Self::T4, Self::T5];

    /// As on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::T1 => "t1",
            Self::T2 => "t2",
            Self::T3 => "t3",
            Self::T4 => "t4",
            Self::T5 => "t5",
        }
    }

    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::T1 => "loopback, clients on every CPU",
            Self::T2 => "loopback, clients on one CPU (skew)",
            Self::T3 => "veth, a queue and a NAPI thread per CPU (RSS-like)",
            Self::T4 => "veth, one queue, RPS to every CPU",
            Self::T5 => "veth, one queue",
        }
    }

    pub(super) const fn is_veth(self) -> bool {
        matches!(self, Self::T3 | Self::T4 | Self::T5)
    }

    /// Whether packets arrive on all CPUs.
    pub const fn is_spread(self) -> bool {
        matches!(self, Self::T1 | Self::T3 | Self::T4)
    }

    /// CPUs that clients run on.
    pub(super) fn clients(self, cpus: &[Cpu]) -> Vec<Cpu> {
        if self == Self::T1 { cpus.to_vec() } else { cpus[..1].to_vec() }
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Topology {
    type Err = Unknown;

    fn from_str(name: &str) -> Result<Self, Unknown> {
        find("topology", &Self::ALL, Self::name, name)
    }
}

/// Why there is no such topology here.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// No namespace can be made.
    #[error("a network namespace cannot be made: CAP_SYS_ADMIN is missing; run it as root")]
    NotPermitted,
    /// A namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No BPF file system can be mounted.
    #[error("mount a BPF file system of the bench's own on {path}: {source}")]
    Bpffs {
        /// Where.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: NetnsError,
    },
    /// A program that sets interfaces up is not there.
    #[error(
        "`{0}` is needed to set up the network and is not there: install it (Debian: iproute2 and \
         ethtool)"
    )]
    NoTool(&'static str),
    /// A program that sets interfaces up failed.
    #[error("`{command}` failed: {output}")]
    Tool {
        /// What was run.
        command: String,
        /// What it said.
        output: String,
    },
    /// A file of the kernel's could not be written.
    #[error("write {path}: {source}")]
    Write {
        /// Which.
        path: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The threads that are to poll the queues are not there.
    #[error(
        "{found} threads poll the {expected} queues of {device}; this kernel has no threaded NAPI for veth"
    )]
    Napi {
        /// The interface.
        device: String,
        /// Threads found.
        found: usize,
        /// Queues.
        expected: usize,
    },
    /// A system call.
    #[error(transparent)]
    Syscall(#[from] crate::sys::SyscallError),
}

/// A topology, set up.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) topology: Topology,
    server: File,
    /// With a BPF file system of its own.
    mounts: File,
    /// The same as the server's on loopback.
    pub(super) clients: File,
    /// Where the server listens.
    pub(super) address: IpAddr,
    /// Threads that poll the server's interface.
    pub(super) napi: Vec<Pid>,
}

/// How many there were in this process.
static SCENES: AtomicU8 = AtomicU8::new(0);

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

impl Scene {
    /// Sets it up.
    pub(super) fn new(
        topology: Topology,
        cpus: &[Cpu],
        bpffs: &Path,
    ) -> Result<Self, TopologyError> {
        let server = fresh()?;
        let mounts = netns::fresh_bpffs(bpffs).map_err(|error| match error {
            NetnsError::NotPermitted(_) => TopologyError::NotPermitted,
            source => TopologyError::Bpffs { path: bpffs.to_owned(), source },
        })?;
        up(&server)?;
        if !topology.is_veth() {
            let clients = server.try_clone().map_err(|source| crate::sys::SyscallError {
                call: "fcntl(F_DUPFD_CLOEXEC)",
                source,
            })?;
            let (address, napi) = (Ipv4Addr::LOCALHOST.into(), Vec::new());
            return Ok(Self { topology, server, mounts, clients, address, napi });
        }
        let clients = fresh()?;
        up(&clients)?;
        let (address, napi) = (SERVER.into(), Vec::new());
        let mut scene = Self { topology, server, mounts, clients, address, napi };
        scene.connect(cpus)?;
        Ok(scene)
    }

    /// Does something where the server is.
    pub(super) fn inside<R: Send>(
        &self,
        work: impl FnOnce() -> R + Send,
    ) -> Result<R, TopologyError> {
        Ok(netns::inside_with_mounts(&self.server, &self.mounts, work)?)
    }

    /// Two ends of a cable.
    fn connect(&mut self, cpus: &[Cpu]) -> Result<(), TopologyError> {
        // The kernel calls polling threads after the interface: a name that no other has, not even the
        // one before, which may take a moment to go.
        let letter = char::from(b'a' + SCENES.fetch_add(1, Ordering::Relaxed) % 26);
        let (ours, theirs) = (format!("s{:x}{letter}", std::process::id()), "client0");
        let queues = if self.topology == Topology::T3 { cpus.len() } else { 1 };
        let number = queues.to_string();
        let there = format!("/proc/{}/fd/{}", std::process::id(), self.clients.as_raw_fd());
        let (from, to) = (format!("{CLIENT}/24"), format!("{SERVER}/24"));
        let many = ["numrxqueues", number.as_str(), "numtxqueues", number.as_str()];
        let add = ["link", "add", &ours].into_iter().chain(many).chain(["type", "veth", "peer"]);
        ip(&self.server, add.chain(["name", theirs, "netns", &there]).chain(many))?;
        ip(&self.server, ["address", "add", &to, "dev", &ours])?;
        ip(&self.clients, ["address", "add", &from, "dev", theirs])?;
        // Packets that are segmented late are not given to a polling thread at all.
        tool(&self.clients, "ethtool", ["-K", theirs, "tso", "off"])?;
        tool(&self.server, "ethtool", ["-K", &ours, "gro", "on"])?;
        ip(&self.server, ["link", "set", &ours, "up"])?;
        ip(&self.clients, ["link", "set", theirs, "up"])?;
        if self.topology == Topology::T4 {
            let mask = hex_mask(&cpus.iter().copied().collect());
            self.write(&format!("/sys/class/net/{ours}/queues/rx-0/rps_cpus"), &mask)?;
        }
        // Without a thread, whichever CPU sends last polls the queue, a server's included.
        self.write(&format!("/sys/class/net/{ours}/threaded"), "1")?;
        self.pin_napi(&ours, &cpus[..queues])
    }

    fn write(&self, path: &str, value: &str) -> Result<(), TopologyError> {
        let written = netns::inside_with_sysfs(&self.server, || fs::write(path, value))?;
        written.map_err(|source| TopologyError::Write { path: path.to_owned(), source })
    }

    /// Pins the thread of each queue to its CPU.
    fn pin_napi(&mut self, device: &str, cpus: &[Cpu]) -> Result<(), TopologyError> {
        let mut threads = Vec::new();
        // They are started by the write, and named a little later.
        for _ in 0..50 {
            threads = napi_threads(device);
            if threads.len() >= cpus.len() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if threads.len() != cpus.len() {
            let (found, expected) = (threads.len(), cpus.len());
            return Err(TopologyError::Napi { device: device.to_owned(), found, expected });
        }
        for (&thread, &cpu) in threads.iter().zip(cpus) {
            sched::set_affinity(thread, &CpuSet::from([cpu]))?;
        }
        self.napi = threads;
        Ok(())
    }
}

fn fresh() -> Result<File, TopologyError> {
    netns::fresh().map_err(|error| match error {
        NetnsError::NotPermitted(_) => TopologyError::NotPermitted,
        error => error.into(),
    })
}

/// Loopback, and ports enough.
fn up(netns: &File) -> Result<(), TopologyError> {
    ip(netns, ["link", "set", "lo", "up"])?;
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let written = netns::inside(netns, || fs::write(path, "1024 65000"))?;
    written.map_err(|source| TopologyError::Write { path: path.to_owned(), source })
}

fn ip<'a>(netns: &File, args: impl IntoIterator<Item = &'a str>) -> Result<(), TopologyError> {
    tool(netns, "ip", args)
}

fn tool<'a>(
    netns: &File,
    program: &'static str,
    args: impl IntoIterator<Item = &'a str>,
) -> Result<(), TopologyError> {
    let mut command = Command::new(program);
    command.args(args);
    let path = std::env::var("PATH").unwrap_or_default();
    // Where an unprivileged user's path does not lead.
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let text = format!("{command:?}").replace('"', "");
    let output = match netns::inside(netns, || command.output())? {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(TopologyError::NoTool(program));
        }
        Err(error) => error.to_string(),
    };
    Err(TopologyError::Tool { command: text, output })
}

/// The kernel threads that poll an interface, in order of its queues.
fn napi_threads(device: &str) -> Vec<Pid> {
    let prefix = format!("napi/{device}-");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<(u64, Pid)> = processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            Some((name.trim().strip_prefix(&prefix)?.parse().ok()?, pid))
        })
        .collect();
    found.sort_unstable();
    // Their ids are given in order of the queues.
    found.into_iter().map(|(_, pid)| pid).collect()
}

/// As `rps_cpus` takes it: words of 32 bits, the highest first.
fn hex_mask(cpus: &CpuSet) -> String {
    let words = cpus.iter().last().map_or(1, |last| last / 32 + 1);
    let word = |index: u32| {
        let bits = (0..32).filter(|bit| cpus.contains(index * 32 + bit));
        format!("{:08x}", bits.fold(0u32, |word, bit| word | 1 << bit))
    };
    (0..words).rev().map(word).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_the_kernels() {
        assert_eq!(hex_mask(&CpuSet::from([0, 1])), "00000003");
        assert_eq!(hex_mask(&CpuSet::from([1, 33])), "00000002,00000002");
    }
}
