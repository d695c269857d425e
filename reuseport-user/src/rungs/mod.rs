//! The ladder: by which mechanism a connection finds the worker of its CPU, best first.
//!
//! | rung | takes | gives |
//! | --- | --- | --- |
//! | [`Rung::Ebpf`] | `CAP_BPF`, a bpffs | a row for every CPU, second choices, weights, draining, counters |
//! | [`Rung::IncomingCpu`] | Linux 6.2 (or a stable 6.1) | each listener gets the connections of exactly one CPU; the rest are hashed |
//! | [`Rung::ClassicBpf`] | nothing, and a known order of `listen()` | a row for every CPU; wrong as soon as a member leaves |
//! | [`Rung::Hash`] | nothing | what the kernel does without us |
//!
//! [`Rung::Ebpf`] is [`crate::steer`]'s work. The others need nothing but the listeners themselves,
//! and here is what sets them, finds them again and undoes them, on descriptors that the caller
//! holds. Whether a kernel has a rung is asked by trying it ([`probe`]), never by its version.
//!
//! # Whose is it?
//!
//! Nothing of ours runs or keeps a file on these rungs, so the listeners themselves remember what was
//! done to them, for as long as they live, in two places that mean nothing otherwise:
//!
//! - A listener whose `SO_INCOMING_CPU` **we** set has `SIGIO` as its `F_SETSIG` signal. That is what
//!   the kernel sends by default; a server that turned `O_ASYNC` on would see no difference. A
//!   listener that has a CPU without that mark got it from its server, and is left alone.
//! - A listener of a group that runs our classic program has a number of -2 or less in
//!   `SO_INCOMING_CPU`, which the kernel takes for "no CPU": the listener's [`Place`] in the order
//!   that the program goes by.
//!
//! Both are kept by the socket, not by a process: they outlive us, are shared by all who hold it, and
//! go when it goes. A server that sets the option again after us cannot be told from us; one that
//! attaches a classic program of its own over ours cannot either.

use std::fmt;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::model::Cpu;
use crate::sys::{SyscallError, sockopt};

pub mod classic;
mod mark;
mod order;
mod probe;

pub use mark::{Place, Trace, inspect};
pub use order::{OrderError, keep};
pub use probe::{Choice, PassedOver, Why, best, probe};

/// A mechanism that decides which listener gets a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rung {
    /// A program of type `SK_REUSEPORT` and its maps.
    Ebpf,
    /// `SO_INCOMING_CPU` on each listener.
    IncomingCpu,
    /// A classic BPF program that returns a place in the group's order.
    ClassicBpf,
    /// The kernel's own choice.
    Hash,
}

impl Rung {
    /// Best first.
    pub const LADDER: [Self; 4] = [Self::Ebpf, Self::IncomingCpu, Self::ClassicBpf, Self::Hash];

    /// As on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::IncomingCpu => "incoming-cpu",
            Self::ClassicBpf => "classic-bpf",
            Self::Hash => "hash",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why listeners could not be put on a rung. What had been done to some of them was undone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RungError {
    /// Loading and pinning is [`crate::steer`]'s work.
    #[error("the eBPF program is attached by `steer::attach`, not listener by listener")]
    NotHere,
    /// The mark of one rung would overwrite the server's own option.
    #[error(
        "the server sets SO_INCOMING_CPU on its listeners itself, which classic BPF would have to \
         overwrite; leave it at that"
    )]
    ServersOwn,
    /// More rows than a classic program has room for.
    #[error(
        "a classic BPF program for these {rows} CPUs would have {steps} instructions, the kernel \
         takes {most}",
        most = classic::LONGEST
    )]
    TooLong {
        /// CPUs with a listener.
        rows: usize,
        /// Instructions.
        steps: usize,
    },
    /// A call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

/// What came of putting listeners on a rung.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Listeners that were set.
    pub set: usize,
    /// Listeners whose server chose their CPU itself; they were left alone.
    pub left: usize,
}

/// Puts the listeners of one group on `rung`, each with the CPU whose connections it is to get; with
/// `None` it is to get no CPU's. What another rung of ours had set is replaced; on [`Rung::Hash`] it
/// is removed.
///
/// For [`Rung::ClassicBpf`] these must be **all** listeners of the group, in the order in which they
/// began to listen, none of which has left since; it must be done again whenever one joins or leaves.
/// On kernels with CVE-2026-52910 (before 6.1.176, 6.12.94) replacing a classic program under traffic
/// is a use after free in the kernel: do it rarely, or not at all.
///
/// Takes no privilege, and changes nothing but these sockets and their group.
///
/// # Minimum kernel version
///
/// What [`probe`] says.
pub fn apply(
    rung: Rung,
    listeners: &[(BorrowedFd<'_>, Option<Cpu>)],
) -> Result<Applied, RungError> {
    let all: Vec<BorrowedFd<'_>> = listeners.iter().map(|&(fd, _)| fd).collect();
    match rung {
        Rung::Ebpf => Err(RungError::NotHere),
        Rung::IncomingCpu => {
            leave_classic(&all)?;
            let mut applied = Applied::default();
            for &(fd, cpu) in listeners {
                match prefer(fd, cpu) {
                    Ok(true) => applied.set += 1,
                    Ok(false) => applied.left += 1,
                    Err(error) => {
                        // Best effort: the failure that is told is the first.
                        let _undone = remove(&all);
                        return Err(error.into());
                    }
                }
            }
            Ok(applied)
        }
        Rung::ClassicBpf => {
            let seats: Vec<_> = listeners.iter().map(|&(_, cpu)| cpu).collect();
            classic::apply(&all, &classic::rows(&seats))
        }
        Rung::Hash => remove(&all).map(|_| Applied::default()),
    }
}

/// What was found and undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Listeners that have no CPU any more.
    pub unset: usize,
    /// Listeners whose server chose their CPU itself; they were left alone.
    pub left: usize,
    /// Whether a classic program of ours was attached.
    pub classic: bool,
}

/// Takes off the listeners of one group what any of these rungs had set on them. Idempotent, and
/// never what their server set itself.
pub fn remove(listeners: &[BorrowedFd<'_>]) -> Result<Removed, RungError> {
    let mut removed = Removed { classic: leave_classic(listeners)?, ..Removed::default() };
    for &fd in listeners {
        match forget(fd)? {
            Trace::IncomingCpu { ours: false, .. } => removed.left += 1,
            Trace::IncomingCpu { ours: true, .. } => removed.unset += 1,
            Trace::Nothing | Trace::Place(_) => {}
        }
    }
    Ok(removed)
}

/// Takes off a listener what we had set on it, and says what it was; what its server set stays. Its
/// group's program stays too: [`detach_classic`].
pub fn forget(listener: BorrowedFd<'_>) -> Result<Trace, SyscallError> {
    let trace = inspect(listener)?;
    if !matches!(trace, Trace::Nothing | Trace::IncomingCpu { ours: false, .. }) {
        mark::clear(listener)?;
    }
    Ok(trace)
}

/// Detaches whatever program the listener's group runs, if the listener says that it is a classic one
/// of ours. Kernels with CVE-2026-52910 free it while it may still run.
///
/// # Minimum kernel version
///
/// 5.3.
pub fn detach_classic(listener: BorrowedFd<'_>) -> Result<bool, SyscallError> {
    match inspect(listener)? {
        Trace::Place(_) => sockopt::detach_reuseport(listener),
        Trace::Nothing | Trace::IncomingCpu { .. } => Ok(false),
    }
}

/// Sets a listener's CPU; false, and nothing done, where its server chose one itself.
pub fn prefer(listener: BorrowedFd<'_>, cpu: Option<Cpu>) -> Result<bool, SyscallError> {
    match (inspect(listener)?, cpu) {
        (Trace::IncomingCpu { ours: false, .. }, _) => return Ok(false),
        (Trace::IncomingCpu { cpu: now, .. }, Some(cpu)) if now == cpu => {}
        (Trace::Nothing, None) => {}
        (_, Some(cpu)) => mark::set_cpu(listener, cpu)?,
        (_, None) => mark::clear(listener)?,
    }
    Ok(true)
}

/// Detaches the group's classic program if one of these listeners says that it is ours.
fn leave_classic(listeners: &[BorrowedFd<'_>]) -> Result<bool, SyscallError> {
    for &fd in listeners {
        if detach_classic(fd)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
