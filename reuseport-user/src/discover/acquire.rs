//! Taking one listener over for a moment: duplicate, verify, use, close.
//!
//! **A duplicate keeps a dead worker's listener alive**: clients would connect to it and hang. So
//! between `pidfd_getfd` and `close` there is nothing that may block: getters of socket options and
//! what the caller does, which is to be as short.

use std::os::fd::{AsFd as _, BorrowedFd};

use super::procfs;
use crate::model::{GroupKey, Holder, Listener, Pid, Protocol};
use crate::sys::{SyscallError, inherited, pidfd, sockopt};

mod denial;

pub use denial::Denial;

/// Why a listener could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// Everybody who held it is gone, or closed it.
    #[error(
        "the listener is gone: its worker exited or closed it meanwhile; run the command again"
    )]
    Gone,
    /// The descriptor means another file by now.
    #[error("descriptor {fd} of process {pid} is no longer the listener that was found ({difference})", pid = holder.pid, fd = holder.fd)]
    NotTheOne {
        /// Where it was.
        holder: Holder,
        /// What differs.
        difference: &'static str,
    },
    /// It listens alone: the kernel balances nothing.
    #[error(
        "{key}: process {pid} ({name}) listens without SO_REUSEPORT; turn it on in the server and restart \
         it: PgBouncer `so_reuseport = 1`, nginx `listen ... reuseport`, HAProxy `bind ... shards \
         by-thread`, Envoy `enable_reuse_port: true`, gunicorn `--reuse-port`", pid = holder.pid
    )]
    NotReuseport {
        /// The address.
        key: GroupKey,
        /// Who listens.
        holder: Holder,
        /// Its name.
        name: String,
    },
    /// Bound, but not (or no longer) listening: attaching through it would break its `listen()`.
    #[error("{key}: the socket of process {pid} does not listen (any more)", pid = holder.pid)]
    NotListening {
        /// The address.
        key: GroupKey,
        /// Who has it.
        holder: Holder,
    },
    /// Multipath TCP cannot be steered.
    #[error(
        "{key}: process {pid} listens with multipath TCP, which cannot be steered: let it listen with \
         plain TCP (Go: GODEBUG=multipathtcp=0) or set net.mptcp.enabled=0, and restart it", pid = holder.pid
    )]
    Mptcp {
        /// The address.
        key: GroupKey,
        /// Who listens.
        holder: Holder,
    },
    /// Not allowed.
    #[error("may not take a listener from process {pid} ({name}): {denial}")]
    Denied {
        /// From whom.
        pid: Pid,
        /// Its name.
        name: String,
        /// Which rule forbids it.
        denial: Denial,
    },
    /// The kernel has no way to take a descriptor.
    #[error(
        "this kernel has no pidfd_getfd (needs 5.6 or later): listeners of running servers cannot be \
         taken; servers that use this project as a library still can be steered"
    )]
    NoPidfdGetfd,
    /// No process that we can see holds it.
    #[error("{key}: no visible process has the listener open")]
    NoHolder {
        /// The address.
        key: GroupKey,
    },
    /// Another failure, ours: out of descriptors or memory.
    #[error("process {pid}: {source}", pid = holder.pid)]
    Syscall {
        /// From whom.
        holder: Holder,
        /// What failed.
        #[source]
        source: SyscallError,
    },
}

impl AcquireError {
    /// Whether the listener went away since it was found: nothing is wrong but the time.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone | Self::NotTheOne { .. } | Self::NotListening { .. })
    }
}

/// Duplicates the listener, verifies that it is the one and fit for steering, runs `work` on it and
/// closes it at once. Tries the holders in turn until one still has it.
///
/// # Minimum kernel version
///
/// 5.6.
pub fn with_listener<R>(
    listener: &Listener,
    key: &GroupKey,
    work: impl FnOnce(BorrowedFd<'_>) -> R,
) -> Result<R, AcquireError> {
    with_taken(listener, key, balanced, work)
}

/// As [`with_listener`], of one that may listen alone, without `SO_REUSEPORT`.
///
/// # Minimum kernel version
///
/// 5.6.
pub(crate) fn with_any_listener<R>(
    listener: &Listener,
    key: &GroupKey,
    work: impl FnOnce(BorrowedFd<'_>) -> R,
) -> Result<R, AcquireError> {
    with_taken(listener, key, |_| Ok(()), work)
}

fn with_taken<R>(
    listener: &Listener,
    key: &GroupKey,
    fit: impl Fn(BorrowedFd<'_>) -> Result<(), Failure>,
    work: impl FnOnce(BorrowedFd<'_>) -> R,
) -> Result<R, AcquireError> {
    let mut last = None;
    for holder in &listener.holders {
        let taken = take(*holder, listener.cookie, key);
        match taken.and_then(|taken| fit(taken.as_fd()).map(|()| taken)) {
            Ok(taken) => {
                let result = work(taken.as_fd());
                drop(taken);
                return Ok(result);
            }
            // The next holder may still have it, or be ours to look at.
            Err(error @ (Failure::Gone | Failure::NotTheOne(_) | Failure::Denied)) => {
                // A refusal says more than that another one is gone.
                if !matches!(last, Some((_, Failure::Denied))) {
                    last = Some((*holder, error));
                }
            }
            Err(error) => return Err(explain(*holder, error, key)),
        }
    }
    match last {
        Some((holder, error)) => Err(explain(holder, error, key)),
        None => Err(AcquireError::NoHolder { key: *key }),
    }
}

/// What can go wrong while the duplicate is held: no text, no allocation, no look at `/proc`.
#[derive(Debug)]
enum Failure {
    Gone,
    NotTheOne(&'static str),
    NotReuseport,
    NotListening,
    Mptcp,
    Denied,
    NoPidfdGetfd,
    Syscall(SyscallError),
}

/// Opens the process first and takes the descriptor through that: a process id may come to mean
/// another process, an open pidfd cannot, and the checks tell a reused descriptor number.
fn take(holder: Holder, cookie: u64, key: &GroupKey) -> Result<std::os::fd::OwnedFd, Failure> {
    let taken = if holder.pid == std::process::id() {
        // Our own takes no privilege, and no system call that a sandbox may forbid.
        inherited::duplicate(holder.fd).map_err(classify)?
    } else {
        let process = pidfd::open(holder.pid).map_err(classify)?;
        pidfd::getfd(process.as_fd(), holder.fd).map_err(classify)?
    };
    verify(taken.as_fd(), cookie, key)?;
    Ok(taken)
}

/// Sorts the errors of `pidfd_open` and `pidfd_getfd`.
fn classify(error: SyscallError) -> Failure {
    match error.errno() {
        // A non-leader thread's id is ENOENT (6.18) or EINVAL (older); ids come from /proc, so the
        // process ended and a thread took its number.
        libc::ESRCH | libc::EBADF | libc::ENOENT => Failure::Gone,
        libc::EINVAL if error.call == "pidfd_open" => Failure::Gone,
        libc::EPERM | libc::EACCES => Failure::Denied,
        libc::ENOSYS => Failure::NoPidfdGetfd,
        _ => Failure::Syscall(error),
    }
}

/// Whether the kernel balances among it and others.
fn balanced(fd: BorrowedFd<'_>) -> Result<(), Failure> {
    if sockopt::reuseport(fd).map_err(Failure::Syscall)? {
        Ok(())
    } else {
        Err(Failure::NotReuseport)
    }
}

/// Whether this is the listener with that cookie, and listens. The cookie comes last:
/// asking for it changes a socket that may not be ours to change.
fn verify(fd: BorrowedFd<'_>, cookie: u64, key: &GroupKey) -> Result<(), Failure> {
    let domain = match sockopt::domain(fd) {
        Err(error) if error.errno() == libc::ENOTSOCK => {
            return Err(Failure::NotTheOne("it is no socket"));
        }
        result => result.map_err(Failure::Syscall)?,
    };
    let family = if key.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    if domain != family {
        return Err(Failure::NotTheOne("it is of another family"));
    }
    let protocol = sockopt::protocol(fd).map_err(Failure::Syscall)?;
    let multipath = protocol == sockopt::IPPROTO_MPTCP && key.protocol == Protocol::Tcp;
    if protocol != i32::from(key.protocol.number()) && !multipath {
        return Err(Failure::NotTheOne("it is of another protocol"));
    }
    let address = sockopt::local_address(fd).map_err(Failure::Syscall)?;
    let same = |address: std::net::SocketAddr| {
        address.ip() == key.address.ip() && address.port() == key.address.port()
    };
    if !address.is_some_and(same) {
        return Err(Failure::NotTheOne("it has another address"));
    }
    // An accepted connection has its listener's address; it is a client's, so touch it no further.
    if sockopt::has_peer(fd).map_err(Failure::Syscall)? {
        return Err(Failure::NotTheOne("it is a connection"));
    }
    if multipath {
        return Err(Failure::Mptcp);
    }
    if key.protocol == Protocol::Tcp && !sockopt::listens(fd).map_err(Failure::Syscall)? {
        return Err(Failure::NotListening);
    }
    if sockopt::cookie(fd).map_err(Failure::Syscall)? != cookie {
        return Err(Failure::NotTheOne("it is another socket on the same address"));
    }
    Ok(())
}

/// Makes an error for people, after the duplicate was closed.
fn explain(holder: Holder, failure: Failure, key: &GroupKey) -> AcquireError {
    let key = *key;
    match failure {
        Failure::Gone => AcquireError::Gone,
        Failure::NotTheOne(difference) => AcquireError::NotTheOne { holder, difference },
        Failure::NotReuseport => {
            AcquireError::NotReuseport { key, holder, name: procfs::name(holder.pid) }
        }
        Failure::NotListening => AcquireError::NotListening { key, holder },
        Failure::Mptcp => AcquireError::Mptcp { key, holder },
        Failure::Denied => AcquireError::Denied {
            pid: holder.pid,
            name: procfs::name(holder.pid),
            denial: denial::diagnose(holder.pid),
        },
        Failure::NoPidfdGetfd => AcquireError::NoPidfdGetfd,
        Failure::Syscall(source) => AcquireError::Syscall { holder, source },
    }
}

#[cfg(test)]
mod tests;
