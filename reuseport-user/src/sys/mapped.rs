//! A kernel-made file, mapped into memory where the kernel lets it be.
#![expect(unsafe_code, reason = "mmap(2)")]

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Deref;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::ptr::NonNull;

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
        if let Some(mapping) = Mapping::new(&file, length) {
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

impl Mapping {
    fn new(file: &File, length: usize) -> Option<Self> {
        if length == 0 {
            return None;
        }
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing else.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return None;
        }
        Some(Self { start: NonNull::new(start.cast())?, length })
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
