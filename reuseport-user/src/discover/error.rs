//! What can go wrong in discovery, and what to do about it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::model::{Netns, Pid, Protocol};
use crate::sys::SyscallError;
use crate::sys::netlink::DumpError;
use crate::sys::netns::{NAMED, NetnsError};

/// A namespace with listeners on the port.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// Where; `pid` is a process that holds one of the listeners if there is one.
    pub netns: Netns,
    /// Name of that process.
    pub name: String,
    /// Addresses listened on.
    pub addresses: Vec<SocketAddr>,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = list(&self.addresses);
        match self.netns.pid {
            Some(pid) => write!(f, "--pid {pid}: {} on {addresses}", self.name)?,
            None => write!(f, "namespace {}: {addresses}", self.netns.inode)?,
        }
        if self.netns.own { f.write_str(" (this namespace)") } else { Ok(()) }
    }
}

/// Why no group was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// No socket of that kind on the port.
    #[error("nobody listens on {protocol} port {port}: looked in {looked}{hint}")]
    NobodyListens {
        /// The port.
        port: u16,
        /// The transport.
        protocol: Protocol,
        /// Where we looked, and where we could not.
        looked: String,
        /// What was found instead; empty, or begins with a separator.
        hint: String,
    },
    /// Listeners in several namespaces.
    #[error("port {port} is listened on in {} network namespaces; pick one:{}", candidates.len(), lines(candidates))]
    Ambiguous {
        /// The port.
        port: u16,
        /// Where.
        candidates: Vec<Candidate>,
    },
    /// Nobody listens on an address that was asked for.
    #[error(
        "nobody listens on address {address} of port {port}; these are listened on: {}",
        list(found)
    )]
    AddressNotFound {
        /// The port.
        port: u16,
        /// The address.
        address: IpAddr,
        /// What there is.
        found: Vec<SocketAddr>,
    },
    /// A multipath TCP listener, which no BPF map takes.
    #[error(
        "{who} listens on {address} with multipath TCP, which cannot be steered: let it listen \
         with plain TCP (Go: GODEBUG=multipathtcp=0) or set net.mptcp.enabled=0, and restart it",
        who = pid.map_or("a process we cannot see".into(), |pid| format!("process {pid} ({name})"))
    )]
    Mptcp {
        /// Who.
        pid: Option<Pid>,
        /// Its name.
        name: String,
        /// Where it listens.
        address: SocketAddr,
    },
    /// There are listeners, and no process that we can see holds any.
    #[error(
        "{listeners} listener(s) on port {port}, but no visible process has them open: {reason}"
    )]
    NoHolder {
        /// The port.
        port: u16,
        /// How many.
        listeners: usize,
        /// Why that may be.
        reason: String,
    },
    /// The namespace that was asked for cannot be opened.
    #[error("network namespace {path}: {source}{}", how_to_open(path, source), path = path.display())]
    OpenNetns {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file that was given is not one's.
    #[error(
        "{path} is not a network namespace: --netns takes a file such as /run/netns/NAME or \
         /proc/PID/ns/net", path = path.display()
    )]
    NotNetns {
        /// The file.
        path: PathBuf,
    },
    /// No such process.
    #[error("there is no process {0} (as this process id namespace counts them)")]
    NoProcess(Pid),
    /// The namespace that was asked for cannot be entered.
    #[error(transparent)]
    EnterNetns(#[from] NetnsError),
    /// The kernel could not list sockets.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// Another system call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn lines(candidates: &[Candidate]) -> String {
    let lines: Vec<String> = candidates.iter().map(|it| format!("\n  {it}")).collect();
    lines.concat()
}

/// What to do about a namespace file that cannot be opened, where it is known.
fn how_to_open(path: &Path, error: &io::Error) -> String {
    let named = Path::new(NAMED).join(path);
    match error.kind() {
        io::ErrorKind::NotFound if path.is_relative() && named.exists() => {
            format!(" (--netns takes a file: {})", named.display())
        }
        io::ErrorKind::PermissionDenied if path.starts_with("/proc") => {
            " (another user's process, or one with more powers: run as root with CAP_SYS_PTRACE, or \
             name the namespace with --netns)"
                .to_owned()
        }
        _ => String::new(),
    }
}
