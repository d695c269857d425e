//! The use cases, where the stages meet: attach, detach, status; drain, undrain and weight; and the
//! change in place that all but detach end in.
//!
//! Each works group by group, under the pins' lock where it changes anything, and reports what it
//! did as values; printing them is the command line's work.

pub mod attach;
pub mod change;
pub mod detach;
mod draft;
mod error;
mod fill;
pub(crate) mod fit;
mod intent;
pub mod loan;
pub(crate) mod ownership;
mod pin_workers;
mod reconcile;
mod rung;
pub mod status;
mod store;

use std::fs::File;
use std::path::PathBuf;

pub use attach::{AttachOptions, AttachReport, Ladder, attach};
pub use detach::{DetachReport, Detached, detach};
pub use draft::Change;
pub use error::SteerError;
pub use intent::Intent;
pub(crate) use intent::Intents;
pub use reconcile::{Reconciled, reconcile};
pub use rung::RungStatus;
use serde::{Deserialize, Serialize};
pub use status::{GroupStatus, status};

use crate::discover::{DiscoverError, NetnsChoice, Target, discover};
use crate::model::{Group, GroupKey, Pid};
use crate::sys::caps::{Cap, Confinement};
use crate::sys::netns;

/// Where pins live and how much the verifier says: the same for every use case.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Mount point of bpffs, usually [`crate::bpf::pins::BPFFS`].
    pub bpffs: PathBuf,
    /// Keep the verifier's whole log in errors.
    pub verifier_log: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { bpffs: crate::bpf::pins::BPFFS.into(), verifier_log: false }
    }
}

/// A worker's share, as the user gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The process.
    pub pid: Pid,
    /// The thread, where one is meant.
    pub tid: Option<Pid>,
    /// Percent of a normal share; 0 takes no part.
    pub percent: u32,
}

/// Something the user should know, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Notice {
    /// What is so.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Notice {
    pub(crate) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// The groups on a port in every namespace that has any, each with a target that means that
/// namespace alone.
fn discover_everywhere(all: &Target) -> Result<Vec<(Target, Vec<Group>)>, SteerError> {
    match discover(all) {
        Ok(groups) => Ok(vec![(all.clone(), groups)]),
        Err(DiscoverError::NobodyListens { .. }) => Ok(Vec::new()),
        Err(DiscoverError::Ambiguous { candidates, .. }) => {
            let pids = candidates.into_iter().filter_map(|candidate| candidate.netns.pid);
            let mut found = Vec::new();
            for pid in pids {
                let target = Target { netns: NetnsChoice::Pid(pid), ..all.clone() };
                match discover(&target) {
                    Ok(groups) => found.push((target, groups)),
                    // It stopped meanwhile.
                    Err(DiscoverError::NobodyListens { .. } | DiscoverError::NoProcess(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(found)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the group is certainly gone: nobody listens, in the namespace that it was in where that is
/// the target's or our own, in every one there is otherwise. What cannot be seen counts as alive: pins
/// that stay cost less than pins that are missed.
fn is_gone(key: &GroupKey, target: Option<&Target>) -> bool {
    let all = Target { protocol: key.protocol, ..Target::tcp(key.address.port()) };
    let is_its = |target: &&Target| matches!(named_netns(target), Ok(Some(it)) if it == key.netns);
    let named = target.filter(is_its).map(|target| target.netns.clone());
    let own = || (own_netns() == Some(key.netns)).then(|| NetnsChoice::Pid(std::process::id()));
    let found = match named.or_else(own) {
        // What goes on elsewhere on the port must not matter.
        Some(netns) => match discover(&Target { netns, ..all }) {
            Err(DiscoverError::NobodyListens { .. }) => return true,
            found => found.map_err(SteerError::from),
        },
        None if sees_everything() => discover_everywhere(&all)
            .map(|found| found.into_iter().flat_map(|(_, groups)| groups).collect()),
        None => return false,
    };
    found.is_ok_and(|groups| !groups.iter().any(|group| group.key == *key))
}

/// Cookie of our own namespace.
fn own_netns() -> Option<u64> {
    netns::cookie(netns::inode(netns::OWN.as_ref()).ok()?).ok()
}

/// Whether every network namespace that a process lives in can be looked into: from the initial pid
/// namespace, with the capabilities for it.
fn sees_everything() -> bool {
    /// `PROC_PID_INIT_INO` of the kernel's `proc_ns.h`.
    const INITIAL: u64 = 0xEFFF_FFFC;
    let confinement = Confinement::read();
    netns::inode("/proc/self/ns/pid".as_ref()).is_ok_and(|inode| inode == INITIAL)
        && confinement.has(Cap::SysAdmin)
        && confinement.has(Cap::SysPtrace)
}

/// Cookie of the namespace that the target names, if it names one.
fn named_netns(target: &Target) -> Result<Option<u64>, SteerError> {
    let path = match &target.netns {
        NetnsChoice::Auto => return Ok(None),
        NetnsChoice::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        NetnsChoice::Path(path) => path.clone(),
    };
    let opened = netns::open(&path).and_then(|file| Ok((file, netns::inode(&path)?)));
    let (file, inode) = opened.map_err(|source| DiscoverError::OpenNetns { path, source })?;
    // To enter one's own takes CAP_SYS_ADMIN too.
    let own = netns::inode(netns::OWN.as_ref()).is_ok_and(|own| own == inode);
    let cookie = if own {
        netns::cookie(inode)
    } else {
        netns::inside(&file, || netns::cookie(inode)).map_err(DiscoverError::from)?
    };
    Ok(Some(cookie.map_err(DiscoverError::from)?))
}

/// Runs `work` in the network namespace of `group`.
fn in_netns<R: Send>(
    group: &Group,
    target: &Target,
    work: impl FnOnce() -> R + Send,
) -> Result<R, SteerError> {
    if group.netns.own {
        return Ok(work());
    }
    let path = match (&target.netns, group.netns.pid) {
        (NetnsChoice::Path(path), _) => path.clone(),
        (_, Some(pid)) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        (_, None) => return Ok(work()),
    };
    let file: File =
        netns::open(&path).map_err(|source| DiscoverError::OpenNetns { path, source })?;
    netns::inside(&file, work).map_err(|error| DiscoverError::from(error).into())
}
