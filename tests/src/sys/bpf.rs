//! Reuseport programs by hand: what the benchmarks compare the product with.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::{check, set_option};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_ENABLE_STATS: libc::c_long = 32;
const BPF_PROG_TYPE_SK_REUSEPORT: u32 = 21;

/// `bpf(2)` with the head of `union bpf_attr`; the kernel takes the rest as zero.
fn bpf(command: libc::c_long, attr: &mut [u64]) -> io::Result<OwnedFd> {
    let size = size_of_val(attr);
    // SAFETY: pointer and size describe `attr`, which outlives the call; pointers within are the
    // caller's, to values that outlive it too.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size) };
    let fd = check(fd as i32)?;
    // SAFETY: the commands above return a new descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads the smallest program there is: `r0 = SK_PASS; exit`.
pub fn load_pass() -> io::Result<OwnedFd> {
    const SK_PASS: u64 = 1;
    // struct bpf_insn as little-endian words: opcode in the lowest byte, immediate in the upper half.
    let program: [u64; 2] = [0xb7 | SK_PASS << 32, 0x95];
    let license = c"GPL";
    let head = u64::from(BPF_PROG_TYPE_SK_REUSEPORT) | (program.len() as u64) << 32;
    bpf(BPF_PROG_LOAD, &mut [head, program.as_ptr() as u64, license.as_ptr() as u64])
}

/// Loads the smallest program that steers: it selects the socket in slot 0 of `sockets`, a map of the
/// kind REUSEPORT_SOCKARRAY.
pub fn load_select(sockets: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SK_SELECT_REUSEPORT: u64 = 82;
    let map = sockets.as_raw_fd() as u64;
    // As above, with the registers in the second byte and the offset in the next two.
    let program: [u64; 9] = [
        0xfffc_0a62,                      // *(u32 *)(r10 - 4) = 0
        0x1218 | map << 32,               // r2 = the map, in two words
        0,                                //
        0xa3bf,                           // r3 = r10
        0x0307 | 0xffff_fffc << 32,       // r3 += -4
        0x04b7,                           // r4 = 0
        0x85 | SK_SELECT_REUSEPORT << 32, // call
        0xb7 | 1 << 32,                   // r0 = SK_PASS
        0x95,                             // exit
    ];
    let license = c"GPL";
    let head = u64::from(BPF_PROG_TYPE_SK_REUSEPORT) | (program.len() as u64) << 32;
    bpf(BPF_PROG_LOAD, &mut [head, program.as_ptr() as u64, license.as_ptr() as u64])
}

/// Opens what is pinned at `path`.
pub fn pinned(path: &str) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path)?;
    bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64])
}

/// Opens a loaded program by its id.
pub fn program(id: u32) -> io::Result<OwnedFd> {
    bpf(BPF_PROG_GET_FD_BY_ID, &mut [u64::from(id)])
}

/// Turns run statistics of all programs on, until the descriptor is closed.
pub fn enable_stats() -> io::Result<OwnedFd> {
    const BPF_STATS_RUN_TIME: u64 = 0;
    bpf(BPF_ENABLE_STATS, &mut [BPF_STATS_RUN_TIME])
}

/// `run_time_ns` and `run_cnt` of a program of ours, and its id.
pub fn statistics(program: BorrowedFd<'_>) -> io::Result<(u64, u64, u32)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse::<u64>().ok())
            .ok_or_else(|| io::Error::other(format!("no {name} in fdinfo")))
    };
    Ok((field("run_time_ns")?, field("run_cnt")?, field("prog_id")? as u32))
}

/// Puts `program` in charge of the group that `member` belongs to.
pub fn attach(member: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const SO_ATTACH_REUSEPORT_EBPF: i32 = 52;
    let fd = program.as_raw_fd().to_ne_bytes();
    set_option(member, libc::SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &fd)
}

/// Takes any program away from the group that `member` belongs to.
pub fn detach(member: BorrowedFd<'_>) -> io::Result<()> {
    const SO_DETACH_REUSEPORT_BPF: i32 = 68;
    match set_option(member, libc::SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, &0_i32.to_ne_bytes()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// A duplicate of another process's descriptor.
pub fn take_fd(pid: u32, fd: u64) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let process = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32)?;
    // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
    let process = unsafe { OwnedFd::from_raw_fd(process) };
    let raw = process.as_fd().as_raw_fd();
    // SAFETY: numbers only; the pidfd is open by the borrow.
    let taken = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, raw, fd as i32, 0) } as i32)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(taken) })
}
