//! Memory that the kernel shares with us: files of its own, and values of maps.
#![expect(unsafe_code, reason = "mmap(2)")]

use std::fs::File;
use std::io::{self, Read as _};
use std::mem::offset_of;
use std::ops::Deref;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use reuseport_common::abi::Load;

use super::SyscallError;

/// The bytes of a file that never change while the kernel runs.
#[derive(Debug)]
pub(crate) enum Mapped {
    /// Mapped: no copy, one system call.
    Mapped(Mapping),
    /// Read: sysfs gives a page at a time.
    Read(Vec<u8>),
}

/// A mapping; undone on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapped {
    /// Maps or reads `path`. Only for files that cannot change or shrink: the kernel's BTF.
    ///
    /// # Minimum kernel version
    ///
    /// 6.16 to be mapped; it is read before.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len() as usize;
        if let Ok(mapping) = Mapping::new(file.as_fd(), length, Sharing::Copy) {
            return Ok(Self::Mapped(mapping));
        }
        let mut bytes = Vec::with_capacity(length);
        file.read_to_end(&mut bytes)?;
        Ok(Self::Read(bytes))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            // SAFETY: the mapping is readable for its whole length until it is dropped, and the
            // kernel's own read-only data does not change (callers of `open` see to that).
            Self::Mapped(it) => unsafe { std::slice::from_raw_parts(it.start.as_ptr(), it.length) },
            Self::Read(bytes) => bytes,
        }
    }
}

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// Read only.
    Copy,
    /// Read only; what others write is seen.
    Read,
    /// Writes are seen by the kernel and everybody else.
    Write,
}

impl Mapping {
    fn new(file: BorrowedFd<'_>, length: usize, sharing: Sharing) -> io::Result<Self> {
        let (protection, flags) = match sharing {
            Sharing::Copy => (libc::PROT_READ, libc::MAP_PRIVATE),
            Sharing::Read => (libc::PROT_READ, libc::MAP_SHARED),
            Sharing::Write => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing else. A length
        // of 0 is refused.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(0))?;
        Ok(Self { start, length })
    }
}

/// The values of `LOAD`, mapped: a plain store is a write to the map, without a system call.
///
/// # Minimum kernel version
///
/// 5.5, for `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub(crate) struct SharedLoads {
    mapping: Mapping,
    slots: u32,
    /// Not in a map that somebody froze.
    writable: bool,
}

// SAFETY: the memory is only ever reached through atomics, and lives as long as the value.
unsafe impl Send for SharedLoads {}
// SAFETY: as above.
unsafe impl Sync for SharedLoads {}

impl SharedLoads {
    /// Maps a `LOAD` of this many slots; a frozen one only to be read.
    pub(crate) fn map(map: BorrowedFd<'_>, slots: u32) -> Result<Self, SyscallError> {
        let length = slots as usize * size_of::<Load>();
        let map = |sharing| Mapping::new(map, length, sharing);
        let (mapping, writable) = match map(Sharing::Write) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => (map(Sharing::Read), false),
            mapping => (mapping, true),
        };
        let mapping = mapping.map_err(|source| SyscallError { call: "mmap(LOAD)", source })?;
        Ok(Self { mapping, slots, writable })
    }

    /// What a slot's values are now; zeroes beyond the last.
    pub(crate) fn load(&self, slot: u32) -> Load {
        let read = |offset| self.word(slot, offset).map_or(0, |word| word.load(Relaxed));
        let (pending, limit) = (offset_of!(Load, pending), offset_of!(Load, limit));
        Load { pending: read(pending), limit: read(limit) }
    }

    /// [`Load::pending`] of a slot, to be written; `None` beyond the last, or where it cannot be.
    pub(crate) fn pending(&self, slot: u32) -> Option<&AtomicU32> {
        self.word(slot, offset_of!(Load, pending)).filter(|_| self.writable)
    }

    /// [`Load::limit`] of a slot, to be written; `None` beyond the last, or where it cannot be.
    pub(crate) fn limit(&self, slot: u32) -> Option<&AtomicU32> {
        self.word(slot, offset_of!(Load, limit)).filter(|_| self.writable)
    }

    /// Refuses what the caller is about to write, where it cannot be.
    pub(crate) fn require_writable(&self) -> Result<(), SyscallError> {
        let refused = || io::Error::from_raw_os_error(libc::EPERM);
        let error = || SyscallError { call: "write to LOAD", source: refused() };
        if self.writable { Ok(()) } else { Err(error()) }
    }

    fn word(&self, slot: u32, offset: usize) -> Option<&AtomicU32> {
        (slot < self.slots).then(|| {
            let at = slot as usize * size_of::<Load>() + offset;
            // SAFETY: within the mapping, which begins on a page, is readable and lives as long as
            // `self`; the offset is a multiple of four. Whoever stores asks `writable` first.
            unsafe { AtomicU32::from_ptr(self.mapping.start.as_ptr().add(at).cast()) }
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the very mapping that `new` made; `self` was its only user.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn mapped_and_read_bytes_are_the_same() {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        assert!(*Mapped::open(path).unwrap() == fs::read(path).unwrap()[..]);
    }

    #[test]
    fn what_cannot_be_mapped_is_read() {
        let mapped = Mapped::open(Path::new("/proc/self/status")).unwrap();
        assert!(matches!(mapped, Mapped::Read(_)));
        assert!(mapped.starts_with(b"Name:"));
    }
}
