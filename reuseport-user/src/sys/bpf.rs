//! `bpf(2)` for what aya has no call for: a sockarray with 8-byte values, a program from no
//! object, and what an open program is.
#![expect(unsafe_code, reason = "raw bpf(2) calls")]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use bytemuck::{Pod, Zeroable};

use super::{SyscallError, check};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

const BPF_PROG_TYPE_SK_REUSEPORT: u32 = 21;
const BPF_SK_REUSEPORT_SELECT_OR_MIGRATE: u32 = 40;

/// `BPF_PROG_TYPE_TRACING`.
pub(crate) const TRACING: u32 = 26;

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
    value: &mut [u64],
    flags: u64,
) -> Result<(), SyscallError> {
    let mut attr = ElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: (&raw const key) as u64,
        // Where there is none, the kernel wants none; an empty slice points somewhere all the same.
        value: if value.is_empty() { 0 } else { value.as_mut_ptr() as u64 },
        flags,
        ..ElemAttr::default()
    };
    // SAFETY: the attribute outlives the call; key and value point to live integers of the sizes
    // that the callers' map has (`SockArray::open` checks it).
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<ElemAttr>()) };
    check(call, answer).map(drop)
}

/// Value of `key` in an array map with 8-byte values; `None` where the slot is empty.
pub(crate) fn lookup_u64(map: BorrowedFd<'_>, key: u32) -> Result<Option<u64>, SyscallError> {
    let mut value = [0];
    match elem("bpf(BPF_MAP_LOOKUP_ELEM)", BPF_MAP_LOOKUP_ELEM, map, key, &mut value, 0) {
        Ok(()) => Ok(Some(value[0])),
        Err(error) if error.errno() == libc::ENOENT => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets `key` of an array map with 8-byte values.
pub(crate) fn update_u64(
    map: BorrowedFd<'_>,
    key: u32,
    value: u64,
    flags: u64,
) -> Result<(), SyscallError> {
    elem("bpf(BPF_MAP_UPDATE_ELEM)", BPF_MAP_UPDATE_ELEM, map, key, &mut [value], flags)
}

/// Deletes `key`; false where it was empty already.
pub(crate) fn delete(map: BorrowedFd<'_>, key: u32) -> Result<bool, SyscallError> {
    match elem("bpf(BPF_MAP_DELETE_ELEM)", BPF_MAP_DELETE_ELEM, map, key, &mut [], 0) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == libc::ENOENT => Ok(false),
        Err(error) => Err(error),
    }
}

/// The `BPF_PROG_LOAD` view of `union bpf_attr`, as far as it is needed here.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Loads a program that passes, selects nothing, and is allowed to migrate: the kernel's hash
/// decides.
///
/// # Minimum kernel version
///
/// 5.14; earlier ones load it as one that does not migrate.
pub(crate) fn load_passing_migrator(name: &str) -> Result<OwnedFd, SyscallError> {
    // `r0 = SK_PASS; exit`: operation, registers, offset, and the immediate value.
    let move_pass = [&[0xb7, 0, 0, 0][..], &1i32.to_ne_bytes()].concat();
    let code = [move_pass, vec![0x95, 0, 0, 0, 0, 0, 0, 0]].concat();
    let license = c"Dual MIT/GPL";
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_SK_REUSEPORT,
        insn_cnt: (code.len() / 8) as u32,
        insns: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: BPF_SK_REUSEPORT_SELECT_OR_MIGRATE,
        ..LoadAttr::default()
    };
    // The last byte stays zero.
    for (to, from) in attr.prog_name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the attribute, the instructions and the license outlive the call; the kernel reads as
    // many instructions as it is told.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw mut attr, size_of::<LoadAttr>())
    };
    let fd = check("bpf(BPF_PROG_LOAD)", answer)?;
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The `BPF_OBJ_GET_INFO_BY_FD` view of `union bpf_attr`.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// Fills the head of what the kernel tells of a program; zeroes ask for no arrays.
fn info<T: Pod>(program: BorrowedFd<'_>, head: &mut T) -> Result<(), SyscallError> {
    let (fd, len) = (program.as_raw_fd() as u32, size_of::<T>() as u32);
    let mut attr = InfoAttr { fd, len, info: std::ptr::from_mut(head) as u64 };
    // SAFETY: the attribute and the head outlive the call, and the kernel writes no more than `len`
    // bytes of plain numbers; an array that the head points to is as long as it says (`program_info`).
    let answer = unsafe {
        let size = size_of::<InfoAttr>();
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attr, size)
    };
    check("bpf(BPF_OBJ_GET_INFO_BY_FD)", answer).map(drop)
}

/// How often the kernel left a program out, because one was running on the CPU already; zero where it
/// does not tell (before 5.12).
pub(crate) fn recursion_misses(program: BorrowedFd<'_>) -> Result<u64, SyscallError> {
    // `struct bpf_prog_info` up to `recursion_misses`, its last word here.
    let mut words = [0u64; 27];
    info(program, &mut words)?;
    Ok(words[26])
}

/// `struct bpf_prog_info` up to its name.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct InfoHead {
    kind: u32,
    id: u32,
    tag: u64,
    lengths: [u32; 2],
    instructions: [u64; 2],
    loaded_at: u64,
    user: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// What a program is.
#[derive(Debug)]
pub(crate) struct ProgramInfo {
    /// `BPF_PROG_TYPE_*`.
    pub(crate) kind: u32,
    /// Of two programs the one loaded later has the greater.
    pub(crate) id: u32,
    /// At most 15 bytes of its name.
    pub(crate) name: String,
    /// Ids of the maps that it uses, 32 at most.
    pub(crate) maps: Vec<u32>,
}

/// Asks the kernel for it; takes no privilege.
pub(crate) fn program_info(program: BorrowedFd<'_>) -> Result<ProgramInfo, SyscallError> {
    let mut maps = vec![0u32; 32];
    let map_ids = maps.as_mut_ptr() as u64;
    let mut head = InfoHead { map_count: maps.len() as u32, map_ids, ..InfoHead::default() };
    info(program, &mut head)?;
    // The kernel says how many there are, not how many it wrote.
    maps.truncate(head.map_count as usize);
    let name = head.name.split(|&byte| byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    Ok(ProgramInfo { kind: head.kind, id: head.id, name, maps })
}
