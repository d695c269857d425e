//! `bpf(2)` for what aya has no call for: a sockarray with 8-byte values.
#![expect(unsafe_code, reason = "raw bpf(2) calls")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::{SyscallError, check};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

/// `EEXIST` instead of replacing an occupied slot.
pub(crate) const BPF_NOEXIST: u64 = 1;
/// The kernel's own "not supported", which libc has no name for.
pub const ENOTSUPP: i32 = 524;

/// The `BPF_MAP_*_ELEM` view of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn elem(
    call: &'static str,
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: u32,
    value: Option<&mut u64>,
    flags: u64,
) -> Result<(), SyscallError> {
    let mut attr = ElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: (&raw const key) as u64,
        value: value.map_or(0, |value| std::ptr::from_mut(value) as u64),
        flags,
        ..ElemAttr::default()
    };
    // SAFETY: the attribute outlives the call; key and value point to live integers of the sizes
    // that the callers' map has (`SockArray::new` checks them).
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<ElemAttr>()) };
    check(call, answer).map(drop)
}

/// Value of `key` in an array map with 8-byte values; `None` where the slot is empty.
pub(crate) fn lookup_u64(map: BorrowedFd<'_>, key: u32) -> Result<Option<u64>, SyscallError> {
    let mut value = 0;
    match elem("bpf(BPF_MAP_LOOKUP_ELEM)", BPF_MAP_LOOKUP_ELEM, map, key, Some(&mut value), 0) {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.errno() == libc::ENOENT => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets `key` of an array map with 8-byte values.
pub(crate) fn update_u64(
    map: BorrowedFd<'_>,
    key: u32,
    mut value: u64,
    flags: u64,
) -> Result<(), SyscallError> {
    elem("bpf(BPF_MAP_UPDATE_ELEM)", BPF_MAP_UPDATE_ELEM, map, key, Some(&mut value), flags)
}

/// Deletes `key`; false where it was empty already.
pub(crate) fn delete(map: BorrowedFd<'_>, key: u32) -> Result<bool, SyscallError> {
    match elem("bpf(BPF_MAP_DELETE_ELEM)", BPF_MAP_DELETE_ELEM, map, key, None, 0) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == libc::ENOENT => Ok(false),
        Err(error) => Err(error),
    }
}
