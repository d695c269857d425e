//! One agent per group: a lock of its own beside the group's pins, held for as long as the agent
//! lives. The base directory's lock is for one change at a time, and everybody's.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::{AGENT, LockedPins, PinsError, io_error, name};
use crate::model::{GroupKey, Pid};

/// The right to keep a group. The kernel takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct AgentLock {
    path: PathBuf,
    _lock: File,
}

impl AgentLock {
    /// Removes the directory too; the base directory must be locked, so that nobody opens it
    /// meanwhile.
    pub fn release(self, _pins: &LockedPins) -> Result<(), PinsError> {
        fs::remove_dir(&self.path).map_err(io_error("remove", &self.path))
    }
}

impl LockedPins {
    /// Takes the group's agent lock; [`PinsError::Owned`] where another process has it.
    pub fn lock_agent(&self, group: &GroupKey) -> Result<AgentLock, PinsError> {
        let path = self.agent(group);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("make", &path)(error));
            }
            _ => {}
        }
        if super::child::look(&self.pins.base, &path)? != super::child::Child::Directory {
            return Err(PinsError::NotDirectory { path });
        }
        let file = File::open(&path).map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(AgentLock { path, _lock: file }),
            Err(TryLockError::WouldBlock) => {
                Err(PinsError::Owned { group: *group, pid: owner(&file) })
            }
            Err(TryLockError::Error(error)) => Err(io_error("lock", &path)(error)),
        }
    }

    /// Removes what an agent that was killed left behind; one that lives keeps it.
    pub fn clear_agent(&self, group: &GroupKey) -> Result<(), PinsError> {
        if !self.agent(group).exists() {
            return Ok(());
        }
        match self.lock_agent(group) {
            Ok(lock) => lock.release(self),
            Err(PinsError::Owned { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn agent(&self, group: &GroupKey) -> PathBuf {
        self.pins.base.join(format!("{AGENT}{}", name(group)))
    }
}

/// Who holds the lock on `file`, as far as `/proc/locks` tells: a process in another pid namespace
/// is not shown.
fn owner(file: &File) -> Option<Pid> {
    let meta = file.metadata().ok()?;
    holder(&fs::read_to_string("/proc/locks").ok()?, meta.dev(), meta.ino())
}

/// The process of a line such as `4: FLOCK  ADVISORY  WRITE 1234 00:1b:567 0 EOF`: device numbers in
/// hexadecimal, then the inode.
fn holder(locks: &str, device: u64, inode: u64) -> Option<Pid> {
    let file = format!("{:02x}:{:02x}:{inode}", libc::major(device), libc::minor(device));
    let line = locks.lines().find(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some("FLOCK") && words.nth(3) == Some(&file)
    })?;
    line.split_whitespace().nth(4)?.parse().ok().filter(|&pid| pid > 0)
}

/// Whether a directory below the base is an agent's lock and no group's pins.
pub(super) fn is_lock(directory: &Path) -> bool {
    directory.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(AGENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_told_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 77 00:1b:567 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 00:1b:56 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 1234 00:1b:567 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 99 00:1b:567 0 EOF\n";
        let device = libc::makedev(0, 0x1b);
        assert_eq!(holder(locks, device, 567), Some(1234));
        assert_eq!(holder(locks, device, 568), None);
        assert_eq!(holder(locks, libc::makedev(8, 0x1b), 567), None);
        assert_eq!(holder("", device, 567), None);
        assert_eq!(holder("3: FLOCK ADVISORY WRITE 0 00:1b:567 0 EOF", device, 567), None);
    }
}
