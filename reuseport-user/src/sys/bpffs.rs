//! The BPF file system.
#![expect(unsafe_code, reason = "statfs(2)")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{SyscallError, check};

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Whether `path` lies on a mounted bpffs.
pub(crate) fn is_bpffs(path: &Path) -> Result<bool, SyscallError> {
    let call = "statfs";
    let path = CString::new(path.as_os_str().as_bytes())
        .map_err(|source| SyscallError { call, source: source.into() })?;
    // SAFETY: zeroes are a valid `struct statfs`.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and the answer a whole `struct statfs`, both alive.
    check(call, i64::from(unsafe { libc::statfs(path.as_ptr(), &raw mut answer) }))?;
    let magic = answer.f_type as i64;
    Ok(magic == BPF_FS_MAGIC)
}
