//! The BPF file system.
#![expect(unsafe_code, reason = "statfs(2), statvfs(2)")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{SyscallError, check};

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Whether `path` lies on a mounted bpffs.
pub(crate) fn is_bpffs(path: &Path) -> Result<bool, SyscallError> {
    let path = c_string("statfs", path)?;
    // SAFETY: zeroes are a valid `struct statfs`.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and the answer a whole `struct statfs`, both alive.
    check("statfs", i64::from(unsafe { libc::statfs(path.as_ptr(), &raw mut answer) }))?;
    let magic = answer.f_type as i64;
    Ok(magic == BPF_FS_MAGIC)
}

/// Whether `path` lies on a file system that is mounted read-only.
pub(crate) fn is_read_only(path: &Path) -> Result<bool, SyscallError> {
    let path = c_string("statvfs", path)?;
    // SAFETY: zeroes are a valid `struct statvfs`.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and the answer a whole `struct statvfs`, both alive.
    check("statvfs", i64::from(unsafe { libc::statvfs(path.as_ptr(), &raw mut answer) }))?;
    Ok(answer.f_flag & libc::ST_RDONLY != 0)
}

fn c_string(call: &'static str, path: &Path) -> Result<CString, SyscallError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|source| SyscallError { call, source: source.into() })
}
