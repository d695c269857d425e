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
    /// Writes are seen by the kernel and everybody else.
    Write,
}

impl Mapping {
    fn new(file: BorrowedFd<'_>, length: usize, sharing: Sharing) -> io::Result<Self> {
        let (protection, flags) = match sharing {
            Sharing::Copy => (libc::PROT_READ, libc::MAP_PRIVATE),
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
}

// SAFETY: the memory is only ever reached through atomics, and lives as long as the value.
unsafe impl Send for SharedLoads {}
// SAFETY: as above.
unsafe impl Sync for SharedLoads {}

impl SharedLoads {
    /// Maps a `LOAD` of this many slots.
    pub(crate) fn map(map: BorrowedFd<'_>, slots: u32) -> Result<Self, SyscallError> {
        let length = slots as usize * size_of::<Load>();
        let mapping = Mapping::new(map, length, Sharing::Write)
            .map_err(|source| SyscallError { call: "mmap(LOAD)", source })?;
        Ok(Self { mapping, slots })
    }

    /// [`Load::pending`] of a slot; `None` beyond the last.
    pub(crate) fn pending(&self, slot: u32) -> Option<&AtomicU32> {
        self.word(slot, offset_of!(Load, pending))
    }

    /// [`Load::limit`] of a slot; `None` beyond the last.
    pub(crate) fn limit(&self, slot: u32) -> Option<&AtomicU32> {
        self.word(slot, offset_of!(Load, limit))
    }

    fn word(&self, slot: u32, offset: usize) -> Option<&AtomicU32> {
        (slot < self.slots).then(|| {
            let at = slot as usize * size_of::<Load>() + offset;
            // SAFETY: within the mapping, which begins on a page, is readable and writable and lives
            // as long as `self`; the offset is a multiple of four.
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
