//! Why there is no group, or why it could not be changed.

use std::io;
use std::net::SocketAddr;

use crate::discover::DiscoverError;
use crate::model::{Cpu, CpuSet, Pid, Protocol};
use crate::plan::PlanError;
use crate::rungs::{Rung, RungError, Why};
use crate::steer::SteerError;
use crate::sys::SyscallError;

/// A group that could not be opened or changed. What had been begun was undone: no socket is left
/// open and nothing attached.
///
/// The errors that it wraps are the engine's, whose types may change with any release: go by their text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The builder was given no address.
    #[error("a group needs an address: call GroupBuilder::tcp or GroupBuilder::udp")]
    NoAddress,
    /// No worker was asked for.
    #[error("a group needs at least one worker")]
    NoWorkers,
    /// Two workers would share a CPU.
    #[error(
        "{asked} workers are more than the {} CPUs that this process may run on ({allowed}): one per \
         CPU is the most (see `taskset -p`, the cpuset, the container's CPU limit)",
        allowed.len()
    )]
    TooManyWorkers {
        /// Workers asked for.
        asked: usize,
        /// CPUs that the calling thread may run on.
        allowed: CpuSet,
    },
    /// The process may not run there.
    #[error(
        "no worker can run on CPU {refused}: this process may run on {allowed} (see `taskset -p`, the \
         cpuset)"
    )]
    CpuNotAllowed {
        /// CPUs asked for in vain.
        refused: CpuSet,
        /// CPUs that the calling thread may run on.
        allowed: CpuSet,
    },
    /// No plan for the table.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Somebody has the address.
    #[error("{protocol} {address}: {occupant}")]
    InUse {
        /// Transport.
        protocol: Protocol,
        /// The address.
        address: SocketAddr,
        /// Who has it, and what to do.
        occupant: Occupant,
    },
    /// The address cannot be listened on.
    #[error("{protocol} {address}: {source}{}", bind_hint(source))]
    Bind {
        /// Transport.
        protocol: Protocol,
        /// The address.
        address: SocketAddr,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The limit on open files is in the way.
    #[error(
        "{needed} sockets are needed and cannot be opened: {source} (raise RLIMIT_NOFILE: `ulimit -n`, \
         systemd `LimitNOFILE=`)"
    )]
    TooManyOpen {
        /// Sockets of the whole group.
        needed: usize,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The kernel takes no further listener into the group.
    #[error(
        "{address}: the kernel takes no further listener (ENOMEM; a reuseport group holds at most 32768): \
         open fewer workers, or end the older instances on this address"
    )]
    GroupFull {
        /// The address.
        address: SocketAddr,
    },
    /// A socket that was handed to this process does not fit.
    #[error("{address}: an inherited socket cannot be used: {reason}")]
    Inherited {
        /// Its address.
        address: SocketAddr,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// More sockets were handed over than there are workers.
    #[error(
        "{address}: {sockets} sockets were inherited for {workers} workers, and nobody would serve the \
         rest: pass one for each worker"
    )]
    TooManyInherited {
        /// Their address.
        address: SocketAddr,
        /// Sockets.
        sockets: usize,
        /// Workers.
        workers: usize,
    },
    /// The sockets were closed while the group was being made.
    #[error("{address}: the group's sockets were closed meanwhile, by this process itself")]
    Vanished {
        /// Their address.
        address: SocketAddr,
    },
    /// It could not be seen who else listens there.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The program that was demanded could not be attached, or what steers now not be changed.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// The mechanism that was demanded cannot be had.
    #[error("{rung} was demanded and cannot be had: {why}")]
    Rung {
        /// Which.
        rung: Rung,
        /// Why not.
        why: Why,
    },
    /// A raw call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

impl GroupError {
    pub(super) fn from_rung(rung: Rung, error: &RungError) -> Self {
        Self::Rung { rung, why: Why::Untried(error.to_string()) }
    }
}

/// Who has an address that was to be listened on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Occupant {
    /// Another user's: the kernel shares a port among sockets of one user only.
    #[error(
        "taken by user {uid}{}, and SO_REUSEPORT shares a port within one user only: run as that user, \
         or choose another port",
        process(holder.as_ref())
    )]
    OtherUser {
        /// Owner of the socket.
        uid: u32,
        /// Process and name, where they can be seen.
        holder: Option<(Pid, String)>,
    },
    /// It listens without `SO_REUSEPORT`.
    #[error(
        "taken{} without SO_REUSEPORT: end it, turn the option on there, or choose another port",
        process(holder.as_ref())
    )]
    NotReuseport {
        /// Process and name, where they can be seen.
        holder: Option<(Pid, String)>,
    },
    /// Nobody can be seen there: a connection that lingers without `SO_REUSEPORT`, or it just ended.
    #[error("taken, and nobody can be seen listening there: try again, or choose another port")]
    Unseen,
}

/// A worker that could not be pinned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this thread cannot be pinned to CPU {cpu}; it may run on {allowed} (the cpuset changed since the \
     group was opened, or the CPU went offline)"
)]
pub struct PinError {
    pub(super) cpu: Cpu,
    pub(super) allowed: CpuSet,
}

/// A listener that a worker cannot give.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// All of that kind were taken, or the builder was given no address of the kind.
    #[error("the worker has no {0} socket that was not taken already")]
    NoneLeft(Protocol),
    /// It has a socket of another kind, which would be served by nobody.
    #[error("the worker has a {0} socket too, which `serve` does not: take part with `run`")]
    NotServed(Protocol),
    /// It could not be registered with the runtime.
    #[error("register a socket with the runtime: {0}")]
    Register(#[from] io::Error),
}

impl From<PinError> for io::Error {
    fn from(error: PinError) -> Self {
        Self::other(error)
    }
}

impl From<TakeError> for io::Error {
    fn from(error: TakeError) -> Self {
        match error {
            TakeError::Register(error) => error,
            error => Self::other(error),
        }
    }
}

fn bind_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (ports below net.ipv4.ip_unprivileged_port_start take CAP_NET_BIND_SERVICE)"
        }
        io::ErrorKind::AddrNotAvailable => " (no interface of this machine has the address)",
        _ => "",
    }
}

fn process(holder: Option<&(Pid, String)>) -> String {
    holder.map_or_else(String::new, |(pid, name)| format!(" (process {pid}, {name})"))
}
