//! Pins: where a group's program and maps stay when this process is gone.
//!
//! One directory per group below `reuseport-steer` on bpffs, named after what sets the group apart.
//! It is made aside as `new-NAME` and renamed into place once the program is attached, so that
//! whoever looks finds all of it or none. Changes are made under an exclusive lock on the base
//! directory, which the kernel drops with its holder.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::BpfError;
use super::maps::Maps;
use super::object::Object;
use super::sockarray::SockArray;
use crate::model::{GroupKey, Protocol};
use crate::sys::bpffs;
use crate::sys::caps::Cap;
use crate::sys::sockopt;

use child::Child;

mod agent;
mod child;
mod error;
mod pinned;

pub use agent::AgentLock;
pub use error::PinsError;
use error::io_error;
pub(crate) use pinned::Descriptors;
pub use pinned::{Pinned, maps};
use pinned::{in_directory, open_program};

/// Where bpffs is mounted by default.
pub const BPFFS: &str = "/sys/fs/bpf";
const BASE: &str = "reuseport-steer";
const PROGRAM: &str = "program";
/// A directory being made; it becomes the group's when its program is attached.
const NEW: &str = "new-";
/// A directory being replaced.
const OLD: &str = "old-";
/// An agent's lock.
const AGENT: &str = "agent-";
/// How long to wait for another instance.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The base directory.
#[derive(Debug)]
pub struct Pins {
    base: PathBuf,
}

/// The base directory, held exclusively.
#[derive(Debug)]
pub struct LockedPins {
    pins: Pins,
    _lock: File,
}

/// A directory below the base, and what is in it or why that cannot be read.
pub type Found = (PathBuf, Result<Pinned, PinsError>);

impl Pins {
    /// The base directory on the bpffs at `bpffs`; it need not exist yet.
    pub fn at(bpffs: &Path) -> Result<Self, PinsError> {
        let base = bpffs.join(BASE);
        let not_bpffs = || PinsError::NotBpffs { path: bpffs.to_owned() };
        match bpffs::is_bpffs(bpffs) {
            Ok(true) => Ok(Self { base }),
            Ok(false) => Err(not_bpffs()),
            Err(error) if error.errno() == libc::ENOENT => Err(not_bpffs()),
            Err(error) => Err(io_error("look at", bpffs)(error.source)),
        }
    }

    /// Whether anybody ever made the base directory.
    pub fn exist(&self) -> bool {
        self.base.exists()
    }

    /// Pins of `group`; `None` where there are none. Half-made or unreadable ones are an error.
    pub fn open(&self, group: &GroupKey) -> Result<Option<Pinned>, PinsError> {
        let directory = self.place(group);
        match child::look(&self.base, &directory) {
            Ok(Child::Missing) => Ok(None),
            Ok(Child::Directory) => Pinned::open(directory).map(Some),
            Ok(Child::Other) => Err(PinsError::NotDirectory { path: directory }),
            // Whoever may not look into the base directory has nothing there.
            Err(PinsError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether this process may see if there are pins of `group`.
    pub(crate) fn may_look_at(&self, group: &GroupKey) -> bool {
        let look = fs::symlink_metadata(self.place(group));
        !look.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Id of the program in the group's pins, whichever version made them.
    pub fn program_id(&self, group: &GroupKey) -> Option<u32> {
        open_program(&self.place(group)).ok().map(|(_, id)| id)
    }

    /// Where the group's pins are, or would be.
    pub fn place(&self, group: &GroupKey) -> PathBuf {
        self.base.join(name(group))
    }

    /// Every directory below the base, what a crash left under `new-` and `old-` among them
    /// ([`names_port`] knows these names), and what is in it or why that cannot be read.
    pub fn list(&self) -> Result<Vec<Found>, PinsError> {
        let entries = match fs::read_dir(&self.base) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read", &self.base)(error)),
        };
        let mut directories: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        directories.retain(|directory| !agent::is_lock(directory));
        directories.sort();
        let open = |directory: PathBuf| {
            let found = match child::look(&self.base, &directory) {
                Ok(Child::Other) => Err(PinsError::NotDirectory { path: directory.clone() }),
                // What is gone meanwhile cannot be opened either.
                Ok(Child::Directory | Child::Missing) => Pinned::open(directory.clone()),
                Err(error) => Err(error),
            };
            (directory, found)
        };
        Ok(directories.into_iter().map(open).collect())
    }

    /// Ids of the programs of all groups; none where this process can have no pins.
    pub fn program_ids(&self) -> Result<Vec<u32>, PinsError> {
        let listed = match self.list() {
            Err(error) if error.is_out_of_reach() => Vec::new(),
            listed => listed?,
        };
        let found = listed.into_iter().filter_map(|(_, found): Found| found.ok());
        Ok(found.map(|pinned| pinned.program_id).collect())
    }

    /// Makes the base directory where it is missing, checks that nobody else may write it, and
    /// takes the lock.
    pub fn lock(self) -> Result<LockedPins, PinsError> {
        match DirBuilder::new().mode(0o700).create(&self.base) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("make", &self.base)(error));
            }
            _ => {}
        }
        let meta = fs::symlink_metadata(&self.base).map_err(io_error("look at", &self.base))?;
        if !meta.is_dir() {
            return Err(PinsError::NotDirectory { path: self.base });
        }
        // Found out now, not between taking a program off and removing its pins.
        match bpffs::is_read_only(&self.base) {
            Ok(false) => {}
            Ok(true) => {
                let source = io::Error::from_raw_os_error(libc::EROFS);
                return Err(io_error("change", &self.base)(source));
            }
            Err(error) => return Err(io_error("look at", &self.base)(error.source)),
        }
        let expected = crate::sys::caps::Confinement::read().uid;
        child::check(&self.base, &meta, &[expected, 0], expected)?;
        let lock = File::open(&self.base).map_err(io_error("open", &self.base))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(LockedPins { pins: self, _lock: lock }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    sleep(Duration::from_millis(2));
                }
                Err(TryLockError::WouldBlock) => return Err(PinsError::Locked { path: self.base }),
                Err(TryLockError::Error(error)) => return Err(io_error("lock", &self.base)(error)),
            }
        }
    }
}

/// Everything that only reads needs no lock.
impl std::ops::Deref for LockedPins {
    type Target = Pins;

    fn deref(&self) -> &Pins {
        &self.pins
    }
}

impl LockedPins {
    /// Pins a loaded object aside. Nothing is in force yet: [`LockedPins::commit`] after attaching,
    /// or [`LockedPins::remove`] on any error.
    pub fn stage(
        &self,
        group: &GroupKey,
        object: &mut Object,
        migrates: bool,
    ) -> Result<Pinned, PinsError> {
        let directory = self.pins.base.join(format!("{NEW}{}", name(group)));
        self.remove(&directory)?;
        DirBuilder::new().mode(0o700).create(&directory).map_err(io_error("make", &directory))?;
        let pinned = (|| {
            object
                .pin_into(&directory, PROGRAM, migrates)
                .map_err(|error| sort_pin(&directory, error))?;
            let maps = Maps::open_unfilled(&in_directory(&directory));
            Pinned::with(directory.clone(), maps)
        })();
        if pinned.is_err() {
            self.remove(&directory)?;
        }
        pinned
    }

    /// Puts a staged directory in the group's place; what was there goes.
    pub fn commit(&self, staged: &mut Pinned, group: &GroupKey) -> Result<(), PinsError> {
        let place = self.place(group);
        let old = self.pins.base.join(format!("{OLD}{}", name(group)));
        self.remove(&old)?;
        match child::look(&self.pins.base, &place)? {
            Child::Missing => {}
            Child::Directory => {
                fs::rename(&place, &old).map_err(io_error("rename", &place))?;
            }
            // A directory cannot be renamed over anything else.
            Child::Other => self.remove(&place)?,
        }
        let from = self.staged(group);
        fs::rename(&from, &place).map_err(io_error("rename", &from))?;
        staged.directory = Some(place);
        // The group is steered by now. What stays of the old pins is removed by the next attach.
        let _left_over = self.remove(&old);
        Ok(())
    }

    /// Frees the sockets of pins that another version made, for a map of ours. Its program, if it is
    /// in force, then leaves every connection to the kernel's hash.
    pub fn release(&self, group: &GroupKey) -> Result<(), PinsError> {
        release(&self.place(group))
    }

    /// Where a staged directory of `group` would be; it is there only after a crash.
    pub fn staged(&self, group: &GroupKey) -> PathBuf {
        self.pins.base.join(format!("{NEW}{}", name(group)))
    }

    /// Where a replaced directory of `group` would be; it is there only after a crash.
    pub fn replaced(&self, group: &GroupKey) -> PathBuf {
        self.pins.base.join(format!("{OLD}{}", name(group)))
    }

    /// Removes a group's pins and frees their sockets for another map at once; where somebody froze
    /// the map (`bpftool map freeze`), they are free when its last user is gone.
    ///
    /// Follows no link and descends no further: what is not a directory at `directory` is unlinked,
    /// and one of another user's is refused ([`PinsError::Unsafe`]).
    pub fn remove(&self, directory: &Path) -> Result<(), PinsError> {
        match child::look(&self.pins.base, directory)? {
            Child::Missing => return Ok(()),
            Child::Other => {
                return fs::remove_file(directory).map_err(io_error("remove", directory));
            }
            Child::Directory => {}
        }
        release(directory)?;
        for entry in fs::read_dir(directory).map_err(io_error("read", directory))?.flatten() {
            fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
        }
        fs::remove_dir(directory).map_err(io_error("remove", directory))
    }
}

/// Frees the sockets of the map in `directory`, whichever version made it; where somebody froze it,
/// they stay.
fn release(directory: &Path) -> Result<(), PinsError> {
    let Ok(sockets) = SockArray::open(&in_directory(directory)) else { return Ok(()) };
    match sockets.clear() {
        Err(error) if !error.is_write_refused() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Detaches whatever program is attached to the group of `socket`; false where none was.
///
/// # Minimum kernel version
///
/// 5.3.
pub fn detach(socket: BorrowedFd<'_>) -> Result<bool, BpfError> {
    Ok(sockopt::detach_reuseport(socket)?)
}

fn inode(directory: &Path) -> io::Result<u64> {
    Ok(fs::symlink_metadata(directory)?.ino())
}

fn sort_pin(directory: &Path, error: BpfError) -> PinsError {
    match error.errno() {
        libc::EROFS | libc::ENOENT | libc::EACCES => {
            let source = io::Error::from_raw_os_error(error.errno());
            io_error("pin into or open", directory)(source)
        }
        _ => BpfError::sort("use the pins", Cap::Bpf)(error).into(),
    }
}

/// Directory name of a group: readable, and unique by a hash of all that sets it apart. Dots are
/// not allowed on bpffs.
fn name(group: &GroupKey) -> String {
    let raw = group.to_raw();
    let hash = super::fnv1a(bytemuck::bytes_of(&raw));
    format!("{}{}-{}-{hash:016x}", group.protocol, raw.family, raw.port)
}

/// Whether a directory below the base is, by its name, of a group on `port`: in place, or left
/// behind by a crash while it was made or replaced.
pub fn names_port(directory: &Path, protocol: Protocol, port: u16) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = name.strip_prefix(NEW).or_else(|| name.strip_prefix(OLD)).unwrap_or(name);
    name.strip_prefix(&protocol.to_string())
        .and_then(|rest| rest.split('-').nth(1))
        .is_some_and(|named| named == port.to_string())
}

#[cfg(test)]
mod tests;
