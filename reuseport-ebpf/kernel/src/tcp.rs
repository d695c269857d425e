//! TCP's states, and how the kernel tells of their changes.

use aya_ebpf::cty::c_void;

pub const ESTABLISHED: u32 = 1;
pub const SYN_RECV: u32 = 3;
pub const CLOSE: u32 = 7;
pub const LISTEN: u32 = 10;

/// What `trace_inet_sock_set_state` passes, arguments in 8-byte seats.
#[repr(C)]
pub struct StateChange {
    pub socket: *const c_void,
    pub before: u64,
    pub now: u64,
}
