//! Nouns without behaviour: what discovery finds and what the other stages speak of.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use reuseport_common::abi::RawGroupKey;
use serde::{Deserialize, Serialize};

mod cpuset;

pub use cpuset::{CpuSet, CpuSetError};

/// A logical CPU's id, as in `/proc/cpuinfo` and `taskset`.
pub type Cpu = u32;

/// A process or thread id.
pub type Pid = u32;

/// The transport of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Listeners.
    Tcp,
    /// Bound, unconnected sockets.
    Udp,
}

impl Protocol {
    /// The `IPPROTO_*` number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A network namespace, by what identifies it and what opens it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Netns {
    /// `SO_NETNS_COOKIE`: unique until reboot. The inode where the kernel has none (before 5.14).
    pub cookie: u64,
    /// Inode of the namespace file, as `lsns` and `ls -l /proc/PID/ns/net` show it.
    pub inode: u64,
    /// A process that lives in it, for messages and `--pid`; `None` when it was given by path.
    pub pid: Option<Pid>,
    /// Whether it is the namespace this process runs in.
    pub own: bool,
}

/// Everything that makes two reuseport groups distinct (`inet_reuseport_add_sock`), and the
/// namespace and protocol. Never just a port: two containers with the same address are two groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupKey {
    /// [`Netns::cookie`].
    pub netns: u64,
    /// Transport.
    pub protocol: Protocol,
    /// Local address and port.
    pub address: SocketAddr,
    /// IPv6 only; always false for IPv4.
    pub v6only: bool,
    /// Bound device's index, 0 for none.
    pub device: u32,
    /// Owner of the sockets.
    pub uid: u32,
}

impl GroupKey {
    /// The layout stored in the pinned `CONFIG`.
    pub fn to_raw(&self) -> RawGroupKey {
        let (family, address) = match self.address.ip() {
            IpAddr::V4(ip) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&ip.octets());
                (4, bytes)
            }
            IpAddr::V6(ip) => (6, ip.octets()),
        };
        RawGroupKey {
            netns: self.netns,
            address,
            uid: self.uid,
            device: self.device,
            port: self.address.port(),
            family,
            protocol: self.protocol.number(),
            v6only: u8::from(self.v6only),
            padding: [0; 3],
        }
    }

    /// The inverse of [`GroupKey::to_raw`]; `None` for bytes that no group has.
    pub fn from_raw(raw: &RawGroupKey) -> Option<Self> {
        let ip = match raw.family {
            4 => {
                let [a, b, c, d, ..] = raw.address;
                IpAddr::from([a, b, c, d])
            }
            6 => IpAddr::from(raw.address),
            _ => return None,
        };
        let protocol = [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .find(|protocol| protocol.number() == raw.protocol)?;
        Some(Self {
            netns: raw.netns,
            protocol,
            address: SocketAddr::new(ip, raw.port),
            v6only: raw.v6only != 0,
            device: raw.device,
            uid: raw.uid,
        })
    }
}

/// `tcp 0.0.0.0:6432`, with what else sets it apart where it is not the usual.
impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.address)?;
        if self.v6only {
            f.write_str(" v6only")?;
        }
        if self.device != 0 {
            write!(f, " dev {}", self.device)?;
        }
        Ok(())
    }
}

/// A process that has a listener open. Not every holder serves it (nginx's master never does).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: Pid,
    /// The descriptor's number there.
    pub fd: i32,
}

/// How we know that a worker serves a listener, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The user said so (`--worker`, `--order`).
    Told,
    /// A thread was seen blocked in `accept` on it.
    Accepting,
    /// A thread was seen waiting on an epoll set (or poll, select) that watches it.
    Polling,
    /// The process's epoll set watches it; which thread waits was not seen or does not matter.
    EpollSet,
    /// Only one process has it open.
    SoleHolder,
    /// It has it open, as a sibling of those that were seen or because nobody was seen.
    Family,
}

/// A process or thread that accepts from a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// The process.
    pub pid: Pid,
    /// The thread, where one thread alone serves; `None` for the whole process.
    pub tid: Option<Pid>,
    /// `comm` of the thread or process.
    pub name: String,
    /// CPUs it may run on (the union over the process's threads when `tid` is `None`).
    pub cpus: CpuSet,
    /// How we know.
    pub evidence: Evidence,
}

/// `pgbouncer 4711`, `haproxy 12/13`.
impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.pid)?;
        match self.tid {
            Some(tid) => write!(f, "/{tid}"),
            None => Ok(()),
        }
    }
}

/// Who accepts from a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Served {
    /// These workers; several for a pre-forked family that shares one listener.
    By(Vec<Worker>),
    /// It cannot be known from outside, for this reason.
    Unknown(String),
}

/// The first few of them, and how many more there are.
impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FEW: usize = 3;
        let Self::By(workers) = self else { return f.write_str("unknown") };
        for (place, worker) in workers.iter().take(FEW).enumerate() {
            write!(f, "{}{worker}", if place > 0 { ", " } else { "" })?;
        }
        match workers.len().saturating_sub(FEW) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// `SO_COOKIE`: unique until reboot, and what the sockarray reads back.
    pub cookie: u64,
    /// Inode of the socket file, as in `/proc/PID/fd`.
    pub inode: u64,
    /// Connections waiting to be accepted.
    pub queued: u32,
    /// Most that may wait.
    pub backlog: u32,
    /// Who has it open.
    pub holders: Vec<Holder>,
    /// Who accepts from it.
    pub served: Served,
}

impl Listener {
    /// CPUs that its workers may run on, together; empty when nobody is known to serve it.
    pub fn cpus(&self) -> CpuSet {
        match &self.served {
            Served::By(workers) => workers.iter().flat_map(|worker| worker.cpus.iter()).collect(),
            Served::Unknown(_) => CpuSet::default(),
        }
    }
}

/// Listeners that the kernel balances among.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// What sets it apart.
    #[serde(rename = "group")]
    pub key: GroupKey,
    /// Where it is.
    pub netns: Netns,
    /// Its members in order of their first holder's process and descriptor, mostly that of creation.
    /// (Cookies are made when first asked for, so their order means nothing.)
    pub listeners: Vec<Listener>,
}
