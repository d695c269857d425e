//! Why a launch failed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::model::Pid;
use crate::steer::SteerError;
use crate::sys::SyscallError;
use crate::sys::netlink::DumpError;
use crate::sys::spawn;
use crate::topology::TopologyError;

use super::placement::PlacementError;
use super::template::TemplateError;

/// A launch that failed. By then nothing that it started is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The copies cannot be placed.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The command line of the copies makes no sense.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// `/sys` could not be read.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// Somebody listens there already.
    #[error(
        "port {port} is in use: {who} listens on {address}; stop it, or choose another port (a \
         server that runs already is steered by `attach` or `agent`)"
    )]
    PortInUse {
        /// The port.
        port: u16,
        /// Who, as far as can be seen.
        who: String,
        /// On which address.
        address: SocketAddr,
    },
    /// A listener could not be opened.
    #[error("listen on {address}: {source}{}", hint(source))]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The program could not be started.
    #[error("start `{}`: {source}{}", program.display(), no_program(program, source))]
    NotStarted {
        /// As it was given, filled in.
        program: OsString,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A copy ended before all of them listened.
    #[error("worker {worker} (process {pid}) {} before it was up{}", ending(*status), background(*status))]
    EndedAtOnce {
        /// Its number.
        worker: u32,
        /// Its process.
        pid: Pid,
        /// How it ended.
        status: Status,
    },
    /// A copy ended again and again.
    #[error(
        "worker {worker} ended {times} times in a row and is not started again; the last time it {}",
        ending(*status)
    )]
    CrashLoop {
        /// Its number.
        worker: u32,
        /// How often.
        times: u32,
        /// How it ended.
        status: Status,
    },
    /// A copy runs and does not listen.
    #[error(
        "worker {worker} (process {pid}) does not listen on port {port} after {after:?}: is that the \
         port it is configured for, and does it stay in the foreground? --listen-timeout gives it longer"
    )]
    NeverListened {
        /// Its number.
        worker: u32,
        /// Its process.
        pid: Pid,
        /// Where it ought to.
        port: u16,
        /// How long it had.
        after: Duration,
    },
    /// A copy runs and does not take the listener that it was given.
    #[error(
        "worker {worker} (process {pid}) was not seen accepting from the listener it was given after \
         {after:?}: does it take descriptor 3 (LISTEN_FDS)? A program that opens its own listener \
         with SO_REUSEPORT takes --port instead of --listen"
    )]
    NeverAccepted {
        /// Its number.
        worker: u32,
        /// Its process.
        pid: Pid,
        /// How long it had.
        after: Duration,
    },
    /// The program, as it listens, cannot be steered.
    #[error("{0}; or let the launcher open the listeners, for programs that take them: --listen")]
    Unfit(#[source] SteerError),
    /// Steering failed.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// The kernel could not list sockets.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// Another system call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// What the launcher itself needs to run is not to be had.
    #[error("{what}: {source}{}", limit(source))]
    Own {
        /// What.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

impl LaunchError {
    /// Adds what was being done.
    pub(super) fn own(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Own { what, source }
    }
}

fn ending(status: Status) -> String {
    match status {
        Status::Exited(status) => format!("exited with status {status}"),
        Status::Signalled(signal) => format!("was ended by {}", spawn::signal_name(signal)),
    }
}

fn background(status: Status) -> &'static str {
    match status {
        Status::Exited(0) => ": does it go to the background? Keep it in the foreground",
        _ => "",
    }
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "; somebody has it without SO_REUSEPORT, or another user with it (`ss -ltnp`)"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 take CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; no interface has that address",
        _ => limit(source),
    }
}

fn limit(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            "; raise RLIMIT_NOFILE: `ulimit -n`, systemd `LimitNOFILE=`"
        }
        Some(libc::EAGAIN) => "; raise the limit on processes: `ulimit -u`, systemd `TasksMax=`",
        _ => "",
    }
}

fn no_program(program: &OsStr, source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound if program.as_encoded_bytes().contains(&b'/') => {
            "; that file is not there, or the interpreter that its first line names is not"
        }
        io::ErrorKind::NotFound => "; give its path, or have it in PATH",
        io::ErrorKind::PermissionDenied => "; it is not an executable file for this user",
        _ => limit(source),
    }
}
