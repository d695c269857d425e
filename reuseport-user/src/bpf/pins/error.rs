//! What can go wrong with pins, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::{LOCK_PATIENCE, child};
use crate::bpf::BpfError;
use crate::model::{GroupKey, Pid};
use crate::sys::{mounts, netns};

/// Why pins cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinsError {
    /// Not a bpffs.
    #[error("{path} is not a mounted BPF file system: {}", where_to_have_one(path))]
    NotBpffs {
        /// What was looked at.
        path: PathBuf,
    },
    /// Others could replace what is in it, or have put it there.
    #[error(
        "{path} can be written by others (mode {mode:04o}, owner {uid}): whoever may write here may \
         steer; {}", child::advice(path, *uid, *expected)
    )]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Who should own it: the user who runs this.
        expected: u32,
    },
    /// The base directory is something else.
    #[error("{path} is not a directory (a link, perhaps): remove it, it is not ours")]
    NotDirectory {
        /// The path.
        path: PathBuf,
    },
    /// Another instance is at work.
    #[error(
        "another reuseport-steer is changing {path} (waited {}s): try again, or see who holds the \
         lock in /proc/locks",
        LOCK_PATIENCE.as_secs()
    )]
    Locked {
        /// The base directory.
        path: PathBuf,
    },
    /// Another agent keeps the group.
    #[error(
        "{group}: {} keeps it already; stop that one, or leave the group to it",
        pid.map_or("another agent".to_owned(), |pid| format!("the agent with process id {pid}"))
    )]
    Owned {
        /// The group.
        group: GroupKey,
        /// Its process, where it can be seen.
        pid: Option<Pid>,
    },
    /// The file system refused.
    #[error("{action} {path}: {source}{hint}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What to do, where it is known.
        hint: &'static str,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

impl PinsError {
    /// Whether this process can have no pins here: no bpffs, or none that it may use.
    pub fn is_out_of_reach(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match self {
            Self::NotBpffs { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem)
            }
            _ => false,
        }
    }
}

/// What to do where there is no bpffs.
fn where_to_have_one(path: &Path) -> String {
    if mounts::outside().is_none() {
        return format!(
            "run `mount -t bpf bpf {}` (in a container: mount the host's, or your own), or name \
             another with --bpffs",
            path.display()
        );
    }
    let netns = netns::own_name().unwrap_or_else(|| "FILE".into());
    format!(
        "this process has mounts of its own, as `ip netns exec` gives every command, and pins on one \
         that is mounted here go with them; run the command outside, with `--netns {}` (in a \
         container: mount the host's)",
        netns.display()
    )
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinsError {
    move |source| {
        let hint = match source.raw_os_error() {
            Some(libc::EROFS) => " (mounted read-only: `mount -o remount,rw` it)",
            Some(libc::EACCES | libc::EPERM) => {
                " (run as root, or with a BPF file system of this user's: --bpffs)"
            }
            _ => "",
        };
        PinsError::Io { action, path: path.to_owned(), hint, source }
    }
}
